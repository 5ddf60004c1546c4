#include "mpiserve/base.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- errors, log, memory, bytes, files ---- */

static void errors(void **state)
{
    (void)state;
    struct error err;
    char text[1200];
    assert_int_equal(error_set(NULL, ERR_INPUT, "x", "y"), ERR_INPUT);
    assert_int_equal(error_set(&err, ERR_FULL, "--slots", "at most %d", 3), ERR_FULL);
    assert_string_equal(error_text(&err, text, sizeof(text)), "--slots: at most 3");
    error_set(&err, err.code, err.where, "again: %s", err.message); /* wraps itself */
    assert_string_equal(error_text(&err, text, sizeof(text)), "--slots: again: at most 3");
    errno = ENOSPC;
    assert_int_equal(error_errno(&err, NULL, "cannot write %s", "it"), ERR_IO);
    assert_string_equal(error_text(&err, text, sizeof(text)), "cannot write it: No space left on device");
    char big[2000];
    memset(big, 'a', sizeof(big) - 1);
    big[sizeof(big) - 1] = 0;
    error_set(&err, ERR_INPUT, big, "%s", big);
    assert_int_equal(strlen(err.where), sizeof(err.where) - 1);
    assert_int_equal(strlen(err.message), sizeof(err.message) - 1);
}

/* What fn writes to stderr. */
static void captured(void (*fn)(void), char *out, size_t size)
{
    int ends[2], kept = dup(STDERR_FILENO);
    assert_int_equal(pipe(ends), 0);
    dup2(ends[1], STDERR_FILENO);
    fn();
    dup2(kept, STDERR_FILENO);
    close(kept);
    close(ends[1]);
    ssize_t n = read(ends[0], out, size - 1);
    close(ends[0]);
    out[MAX_OF(n, 0)] = 0;
}

static void log_two(void)
{
    log_setup(LOG_INFO, "rank 3");
    log_debug("not seen");
    log_warning("a\nb\x1b[31m %d", 7);
    log_setup(LOG_INFO, "");
    errno = EBADF;
    log_info("plain");
    assert_int_equal(errno, EBADF);
}

static void log_long(void)
{
    char big[9000];
    memset(big, 'x', sizeof(big) - 1);
    big[sizeof(big) - 1] = 0;
    log_error("%s", big);
}

static void log_lines(void **state)
{
    (void)state;
    char out[10000];
    captured(log_two, out, sizeof(out));
    char *second = strchr(out, '\n') + 1;
    assert_non_null(strstr(out, " W rank 3: a b [31m 7\n"));
    assert_int_equal(out[2] == ':' && out[5] == ':' && out[8] == '.', 1);
    assert_string_equal(second + 12, " I plain\n");
    captured(log_long, out, sizeof(out));
    assert_true(strlen(out) <= 4096);
    assert_string_equal(out + strlen(out) - 4, "...\n");
}

static void memory(void **state)
{
    (void)state;
    struct arena a;
    arena_init(&a, 256);
    for (int round = 0; round < 3; round++) {
        char *texts[100];
        for (int i = 0; i < 100; i++) {
            char want[16];
            snprintf(want, sizeof(want), "text %d", i);
            texts[i] = arena_text(&a, want, strlen(want));
            u8 *p = arena_alloc(&a, (size_t)i * 7);
            assert_int_equal((uintptr_t)p % 16, 0);
            memset(p, 0xEE, (size_t)i * 7);
        }
        for (int i = 0; i < 100; i++) assert_int_equal(atoi(texts[i] + 5), i);
        arena_clear(&a);
    }
    arena_release(&a);
    char *s = mem_textn("abcdef", 3);
    s = mem_resize(s, 100);
    assert_string_equal(s, "abc");
    free(s);
    u64 *z = mem_zero(4, 8);
    assert_int_equal(z[0] | z[1] | z[2] | z[3], 0);
    free(z);
}

static void bytes(void **state)
{
    (void)state;
    struct buf b = {0};
    buf_add(&b, NULL, 0);
    assert_string_equal(b.data, "");
    for (int i = 0; i < 1000; i++) buf_printf(&b, "%d,", i);
    assert_int_equal(b.len, 10 * 2 + 90 * 3 + 900 * 4);
    assert_int_equal(b.data[b.len], 0);
    buf_clear(&b);
    buf_text(&b, "x");
    buf_char(&b, 'y');
    buf_reserve(&b, 5000);
    buf_printf(&b, "%4000d", 1);
    assert_int_equal(strlen(b.data), 4002);
    buf_release(&b);
    assert_null(b.data);
}

static void files(void **state)
{
    (void)state;
    char folder[] = "/tmp/mpiserve-test-XXXXXX", path[PATH_LEN], fresh[PATH_LEN];
    struct error err;
    struct buf b = {0};
    struct stat st;
    assert_non_null(mkdtemp(folder));
    assert_int_equal(path_join(path, sizeof(path), &err, "%s/%s", folder, "key"), 0);
    assert_int_equal(path_join(fresh, sizeof(fresh), &err, "%s.new", path), 0);
    assert_int_equal(path_join(fresh, 8, &err, "%s", path), ERR_INPUT);
    assert_int_equal(path_join(fresh, sizeof(fresh), &err, "%s.new", path), 0);

    assert_int_equal(file_read(path, 100, &b, &err), ERR_NOT_FOUND);
    assert_string_equal(err.where, path);
    assert_int_equal(file_read(folder, 100, &b, &err), ERR_INPUT);
    assert_int_equal(symlink("/nonexistent/elsewhere", fresh), 0); /* must not be followed */
    assert_int_equal(file_write_whole(path, "one", 3, 0600, &err), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(file_write_whole(path, "three", 5, 0600, &err), 0);
    assert_false(file_exists(fresh));
    assert_int_equal(file_read(path, 5, &b, &err), 0);
    assert_string_equal(b.data, "three");
    assert_int_equal(file_read(path, 4, &b, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "5 bytes"));
    assert_int_equal(b.len, 0);
    assert_int_equal(file_read("/proc/self/status", 100000, &b, &err), 0);
    assert_true(b.len > 100);
    assert_int_equal(file_read("/proc/self/status", 10, &b, &err), ERR_INPUT);
    assert_int_equal(file_write_whole("/nonexistent/x", "", 0, 0600, &err), ERR_IO);
    /* what cannot be replaced stays, and leaves no litter */
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(file_write_whole(path, "x", 1, 0600, &err), ERR_IO);
    assert_false(file_exists(fresh));
    buf_release(&b);
    rmdir(path);
    assert_int_equal(rmdir(folder), 0);
}

/* Nobody writes: empty, at once. Somebody does: all of it, also what comes later. */
static void files_that_are_pipes(void **state)
{
    (void)state;
    char folder[] = "/tmp/mpiserve-test-XXXXXX", path[PATH_LEN];
    struct error err;
    struct buf b = {0};
    assert_non_null(mkdtemp(folder));
    assert_int_equal(path_join(path, sizeof(path), &err, "%s/pipe", folder), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    alarm(20);
    assert_int_equal(file_read(path, 100, &b, &err), 0);
    assert_int_equal(b.len, 0);
    int keeps = open(path, O_RDWR | O_CLOEXEC), to = open(path, O_WRONLY | O_CLOEXEC);
    assert_true(keeps >= 0 && to >= 0);
    pid_t child = fork();
    if (child == 0) {
        close(keeps);
        usleep(20000);
        _exit(write(to, "late", 4) != 4);
    }
    close(to);
    assert_true(child > 0);
    int from = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    close(keeps);
    assert_int_equal(file_read(path, 100, &b, &err), 0);
    assert_string_equal(b.data, "late");
    alarm(0);
    close(from);
    buf_release(&b);
    waitpid(child, NULL, 0);
    assert_int_equal(unlink(path) | rmdir(folder), 0);
}

/* ---- hashes and random numbers ---- */

static void checksums(void **state)
{
    (void)state;
    u8 data[300];
    assert_int_equal(crc32c("123456789", 9, 0), 0xE3069283);
    assert_int_equal(crc32c_portable("123456789", 9, 0), 0xE3069283);
    memset(data, 0, 32);
    assert_int_equal(crc32c(data, 32, 0), 0x8A9136AA); /* RFC 3720 B.4 */
    memset(data, 0xFF, 32);
    assert_int_equal(crc32c(data, 32, 0), 0x62A8AB43);
    for (size_t i = 0; i < sizeof(data); i++) data[i] = (u8)(i * 37 + i / 5);
    for (size_t len = 0; len < sizeof(data); len++) {
        u32 whole = crc32c(data, len, 0);
        assert_int_equal(whole, crc32c_portable(data, len, 0));
        assert_int_equal(whole, crc32c(data + len / 3, len - len / 3, crc32c(data, len / 3, 0)));
    }
}

static int compare_u64(const void *a, const void *b)
{
    u64 x = *(const u64 *)a, y = *(const u64 *)b;
    return x < y ? -1 : x > y;
}

static void hashes(void **state)
{
    (void)state;
    /* every length and every single flipped bit gives another value; about half of the bits change */
    enum { LEN = 67, COUNT = LEN * 8 + LEN + 1 };
    u8 data[LEN] = {0};
    static u64 seen[COUNT];
    int n = 0;
    u64 flips = 0;
    for (size_t len = 0; len <= LEN; len++) seen[n++] = hash_bytes(data, len, 5);
    for (int bit = 0; bit < LEN * 8; bit++) {
        data[bit / 8] ^= (u8)(1 << bit % 8);
        seen[n] = hash_bytes(data, LEN, 5);
        flips += (u64)__builtin_popcountll(seen[n] ^ seen[LEN]);
        n++;
        data[bit / 8] ^= (u8)(1 << bit % 8);
    }
    assert_int_equal(n, COUNT);
    assert_in_range(flips / (LEN * 8), 30, 34);
    qsort(seen, COUNT, sizeof(seen[0]), compare_u64);
    for (int i = 1; i < COUNT; i++) assert_true(seen[i] != seen[i - 1]);
    assert_true(hash_bytes("abc", 3, 1) != hash_bytes("abc", 3, 2));
    /* the value is part of what ranks agree on: it never changes */
    assert_true(hash_bytes("mpiserve", 8, 0) == 0xcb4476589a86eed3ull);
    assert_true(hash_bytes("one MPI job, many engines, any client", 37, 7) == 0x09e5b23b8c0a0612ull);
}

static void random_numbers(void **state)
{
    (void)state;
    /* known answers of Random123 (kat_vectors, philox4x32 10) */
    static const struct {
        u64 key, lo, hi;
        u32 want[4];
    } known[] = {
        {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {~0ull, ~0ull, ~0ull, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {0x299f31d0a4093822,
         0x85a308d3243f6a88,
         0x0370734413198a2e,
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < COUNT_OF(known); i++) {
        u32 out[4];
        rng_block(known[i].key, known[i].lo, known[i].hi, out);
        assert_memory_equal(out, known[i].want, sizeof(out));
    }
    assert_true(rng_unit(0) > 0 && rng_unit(0xFFFFFFFF) < 1);
    double sum = 0;
    for (u32 i = 0; i < 4096; i++) sum += rng_unit(i << 20);
    assert_true(sum > 2047 && sum < 2049);
    u8 a[300] = {0}, b[300] = {0};
    assert_int_equal(random_bytes(a, sizeof(a), NULL), 0);
    assert_int_equal(random_bytes(b, sizeof(b), NULL), 0);
    assert_memory_not_equal(a, b, sizeof(a));
}

static void clocks(void **state)
{
    (void)state;
    u64 before = clock_ns();
    usleep(2000);
    assert_true(clock_ns() - before >= 2 * NS_PER_MS);
    assert_true(clock_unix() > 1700000000);
}

/* ---- slices ---- */
static void slices_are_what_was_asked(void **state)
{
    (void)state;
    u64 usual = thread_slice(0);
    if (usual == 0) skip(); /* an older kernel, or a policy of the user's */
    assert_int_equal(thread_slice(SLICE_SHORT_NS), SLICE_SHORT_NS);
    assert_int_equal(thread_slice(SLICE_SHORT_NS / 10), SLICE_SHORT_NS); /* none is shorter */
    assert_int_equal(thread_slice(0), usual);
}

/* ---- dwelling ---- */
static void dwells_after_work_only(void **state)
{
    (void)state;
    struct dwell d = {0};
    u64 now = 5 * NS_PER_S;
    assert_false(dwell_may(&d, now)); /* it has not worked yet */
    dwell_worked(&d, now);
    assert_true(dwell_may(&d, now + DWELL_NS - 1));
    assert_false(dwell_may(&d, now + DWELL_NS));
    dwell_gave_way(&d, now, now + DWELL_HOG_NS); /* not long */
    assert_true(dwell_may(&d, now));
}

static void others_have_their_turns(void **state)
{
    (void)state;
    struct dwell d = {0};
    u64 now = 5 * NS_PER_S;
    dwell_worked(&d, now);
    for (int i = 0; i < 100; i++)
        dwell_gave_way(&d, now, now + DWELL_TURN_NS); /* nobody else wanted the core */
    for (int i = 0; i < DWELL_TURNS; i++) {
        assert_true(dwell_may(&d, now));
        dwell_gave_way(&d, now, now + DWELL_TURN_NS + 1);
    }
    assert_false(dwell_may(&d, now));
    dwell_worked(&d, now);
    assert_true(dwell_may(&d, now));
}

static void who_computes_beside_it_is_left_alone(void **state)
{
    (void)state;
    struct dwell d = {0};
    u64 now = 5 * NS_PER_S, began = now;
    int tries = 0;
    while (now <
           began + 10 * NS_PER_S) { /* each time that it gives way, it is for 3 ms; work comes all the time */
        dwell_worked(&d, now);
        if (dwell_may(&d, now)) {
            tries++;
            dwell_gave_way(&d, now, now + 3 * NS_PER_MS);
            now += 3 * NS_PER_MS;
        }
        now += 20 * NS_PER_US;
    }
    assert_int_equal(d.shy_ns, DWELL_SHY_MOST_NS);
    assert_in_range(tries, 18, 21);      /* 1, 2, 4 ... 512 ms, and then once a second */
    now = d.shy_until_ns + 5 * NS_PER_S; /* it has gone, and comes back once */
    dwell_worked(&d, now);
    assert_true(dwell_may(&d, now));
    dwell_gave_way(&d, now, now + 3 * NS_PER_MS);
    assert_int_equal(d.shy_ns, DWELL_SHY_MIN_NS);
}

/* ---- queue ---- */

enum { PRODUCERS = 4, PUSHES = 20000 };
struct item {
    struct queue_node node;
    int producer, number;
};
struct producer {
    struct queue *q;
    struct item *items;
    pthread_t thread;
};

static void *produce(void *arg)
{
    struct producer *p = arg;
    for (int i = 0; i < PUSHES; i++) {
        queue_push(p->q, &p->items[i].node);
        if (i % 64 == 0) sched_yield(); /* lets the consumer run dry and fall asleep */
    }
    return NULL;
}

static void queue_wakes(void **state)
{
    (void)state;
    struct error err;
    struct queue *q = queue_new(&err);
    struct producer producers[PRODUCERS];
    int next[PRODUCERS] = {0}, taken = 0, sleeps = 0;
    assert_null(queue_take_all(q));
    for (int p = 0; p < PRODUCERS; p++) {
        producers[p] = (struct producer){.q = q, .items = mem_zero(PUSHES, sizeof(struct item))};
        for (int i = 0; i < PUSHES; i++) producers[p].items[i] = (struct item){.producer = p, .number = i};
        assert_int_equal(pthread_create(&producers[p].thread, NULL, produce, &producers[p]), 0);
    }
    while (taken < PRODUCERS * PUSHES) {
        for (struct queue_node *n = queue_take_all(q); n; taken++) {
            struct item *it = (struct item *)n;
            n = n->next;
            assert_int_equal(it->number, next[it->producer]++);
        }
        if (taken == PRODUCERS * PUSHES || !queue_prepare_sleep(q)) continue;
        struct pollfd fd = {.fd = queue_fd(q), .events = POLLIN};
        assert_int_equal(poll(&fd, 1, 20000), 1); /* a lost wake-up would time out here */
        queue_woke(q);
        sleeps++;
    }
    for (int p = 0; p < PRODUCERS; p++) {
        pthread_join(producers[p].thread, NULL);
        free(producers[p].items);
    }
    assert_true(sleeps > 0);
    queue_free(q);
}

static void queue_rings_only_for_sleepers(void **state)
{
    (void)state;
    struct queue *q = queue_new(NULL);
    struct item a = {0}, b = {0};
    struct pollfd fd = {.fd = queue_fd(q), .events = POLLIN};
    queue_push(q, &a.node);
    assert_int_equal(poll(&fd, 1, 0), 0);
    assert_false(queue_prepare_sleep(q));
    assert_ptr_equal(queue_take_all(q), &a.node);
    assert_true(queue_prepare_sleep(q));
    queue_push(q, &a.node);
    queue_push(q, &b.node);
    assert_int_equal(poll(&fd, 1, 0), 1);
    queue_woke(q);
    assert_int_equal(poll(&fd, 1, 0), 0);
    struct queue_node *n = queue_take_all(q);
    assert_ptr_equal(n, &a.node);
    assert_ptr_equal(n->next, &b.node);
    assert_null(n->next->next);
    queue_free(q);
}

/* ---- ring ---- */

enum { RING_SIZE = 4096, FRAMES = 30000 };

static u8 *ring_memory(struct ring *r)
{
    u8 *mem = mmap(NULL, ring_bytes(RING_SIZE), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(mem != MAP_FAILED);
    ring_format(mem, RING_SIZE);
    assert_int_equal(ring_attach(r, mem, ring_bytes(RING_SIZE), NULL), 0);
    return mem;
}

/* Frame i: its length is drawn from its number, its last four bytes are the checksum of the others. */
static size_t frame_len(u32 i, size_t max)
{
    u32 draw[4];
    rng_block(7, i, 0, draw);
    return 4 + (draw[1] % 8 ? draw[0] % 100 : draw[0] % (max - 3));
}

static _Noreturn void ring_child(u8 *mem)
{
    struct ring r;
    if (ring_attach(&r, mem, ring_bytes(RING_SIZE), NULL) < 0) _exit(1);
    for (u32 i = 0; i < FRAMES; i++) {
        size_t len = frame_len(i, ring_max_frame(&r)),
               spare = i % 5 * (len + 40 < ring_max_frame(&r) ? 8 : 0);
        u8 *at;
        while (!(at = ring_claim(&r, len + spare))) sched_yield();
        for (size_t k = 0; k < len - 4; k++) at[k] = (u8)(i + k * 31);
        u32 crc = crc32c(at, len - 4, i);
        memcpy(at + len - 4, &crc, 4);
        ring_publish(&r, len);
    }
    _exit(0);
}

static void ring_between_processes(void **state)
{
    (void)state;
    struct ring r;
    u8 *mem = ring_memory(&r);
    pid_t child = fork();
    if (child == 0) ring_child(mem);
    u64 deadline = clock_ns() + 60 * NS_PER_S;
    for (u32 i = 0; i < FRAMES;) {
        size_t len;
        const u8 *at = ring_peek(&r, &len);
        if (!at) {
            assert_int_equal(len, 0);
            assert_true(clock_ns() < deadline);
            sched_yield();
            continue;
        }
        assert_int_equal(len, frame_len(i, ring_max_frame(&r)));
        u32 crc;
        memcpy(&crc, at + len - 4, 4);
        assert_int_equal(crc, crc32c(at, len - 4, i));
        assert_int_equal((uintptr_t)at % 8, 0);
        ring_consume(&r);
        i++;
    }
    int status;
    waitpid(child, &status, 0);
    assert_int_equal(status, 0);
    munmap(mem, ring_bytes(RING_SIZE));
}

static void ring_fills_and_empties(void **state)
{
    (void)state;
    struct ring r;
    u8 *mem = ring_memory(&r);
    size_t len, max = ring_max_frame(&r);
    assert_null(ring_peek(&r, &len));
    assert_int_equal(len, 0);
    /* whatever the position, an empty ring takes the largest frame */
    for (size_t step = 0; step < 1100; step += 8) {
        assert_non_null(ring_claim(&r, step));
        ring_publish(&r, step);
        assert_non_null(ring_peek(&r, &len));
        assert_int_equal(len, step);
        ring_consume(&r);
        u8 *at = ring_claim(&r, max);
        assert_non_null(at);
        at[max - 1] = (u8)step;
        assert_null(ring_peek(&r, &len)); /* not before it is published */
        assert_non_null(ring_claim(&r, max));
        ring_publish(&r, max);
        const u8 *got = ring_peek(&r, &len);
        assert_int_equal(len, max);
        assert_int_equal(got[max - 1], (u8)step);
        assert_ptr_equal(ring_peek(&r, &len), got);
        ring_consume(&r);
    }
    int n = 0;
    while (ring_claim(&r, 100)) {
        ring_publish(&r, 100);
        n++;
    }
    assert_in_range(n, RING_SIZE / 112 - 1, RING_SIZE / 112);
    for (; n; n--) {
        assert_non_null(ring_peek(&r, &len));
        ring_consume(&r);
    }
    assert_null(ring_peek(&r, &len));
    assert_int_equal(len, 0);
    munmap(mem, ring_bytes(RING_SIZE));
}

/* Every byte of the ring is overwritten in turn, and at random: peek answers, and never leaves the memory. */
static void ring_corrupt(void **state)
{
    (void)state;
    struct error err;
    struct ring r;
    u8 *mem = ring_memory(&r), *copy = mem_alloc(ring_bytes(RING_SIZE));
    size_t total = ring_bytes(RING_SIZE), len;
    for (int i = 0; i < 3; i++) {
        memset(ring_claim(&r, 1000), 0, 1000);
        ring_publish(&r, 1000);
    }
    memcpy(copy, mem, total);
    static const u32 bad_lengths[] = {0xFFFFFFFF, 0xFFFFFFF8, RING_SIZE, RING_SIZE / 2 - 7, 3100, 0x7FFFFFFF};
    u8 *header = r.data;
    for (size_t i = 0; i < COUNT_OF(bad_lengths); i++) {
        memcpy(header, &bad_lengths[i], 4);
        assert_null(ring_peek(&r, &len));
        assert_true(len == SIZE_MAX);
        memcpy(mem, copy, total);
    }
    memset(header + 4, 0, 4); /* no kind */
    assert_null(ring_peek(&r, &len));
    assert_true(len == SIZE_MAX);
    for (u32 i = 0; i < 20000; i++) {
        u32 draw[4];
        memcpy(mem, copy, total);
        rng_block(11, i, 0, draw);
        size_t spot = i % 2 ? draw[0] % (total - RING_SIZE + 16) : draw[0] % total;
        mem[spot] = (u8)draw[1];
        for (int k = 0; k < 8; k++) {
            const u8 *at = ring_peek(&r, &len);
            assert_true(at || len == 0 || len == SIZE_MAX);
            if (!at) break;
            assert_true(at >= r.data && len <= RING_SIZE && at + len <= r.data + RING_SIZE);
            ring_consume(&r);
        }
        u8 *at = ring_claim(&r, 50);
        if (at) {
            assert_true(at >= r.data && at + 50 <= r.data + RING_SIZE);
            ring_publish(&r, 50);
        }
    }
    memcpy(mem, copy, total);
    assert_int_equal(ring_attach(&r, mem, total - 1, &err), ERR_PEER);
    assert_int_equal(ring_attach(&r, mem, 100, &err), ERR_INPUT);
    assert_int_equal(ring_attach(&r, mem + 8, total - 8, &err), ERR_INPUT);
    memset(mem, 0, 64);
    assert_int_equal(ring_attach(&r, mem, total, &err), ERR_PEER);
    free(copy);
    munmap(mem, total);
}

/* ---- threads ---- */

struct shared {
    struct pool *pool;
    atomic_int sum, ran;
    int slots[4], rounds;
    atomic_int wrong;
};

static void add_one(void *arg, int thread, int threads)
{
    struct shared *s = arg;
    if (thread < 0 || thread >= threads) atomic_fetch_add(&s->wrong, 1);
    atomic_fetch_add(&s->sum, 1 << thread * 8);
    atomic_fetch_add(&s->ran, 1);
}

/* Between two barriers every thread sees what all others wrote before the first. */
static void in_step(void *arg, int thread, int threads)
{
    struct shared *s = arg;
    for (int round = 1; round <= s->rounds; round++) {
        s->slots[thread] = round;
        pool_barrier(s->pool);
        for (int i = 0; i < threads; i++)
            if (s->slots[i] != round) atomic_fetch_add(&s->wrong, 1);
        pool_barrier(s->pool);
    }
}

static void pools(void **state)
{
    (void)state;
    struct error err;
    assert_null(pool_new(0, 0, &err));
    assert_int_equal(err.code, ERR_INPUT);
    for (int threads = 1; threads <= 4; threads++) {
        for (int spin = 0; spin < 2; spin++) {
            struct shared s = {.pool = pool_new(threads, spin ? 20 * NS_PER_US : 0, &err), .rounds = 300};
            assert_non_null(s.pool);
            assert_int_equal(pool_threads(s.pool), threads);
            for (int i = 0; i < 300; i++) {
                atomic_store(&s.sum, 0);
                pool_run(s.pool, add_one, &s);
                assert_int_equal(atomic_load(&s.sum), 0x01010101 & (int)((1ull << threads * 8) - 1));
            }
            assert_int_equal(atomic_load(&s.ran), 300 * threads);
            pool_run(s.pool, in_step, &s);
            pool_run(s.pool, in_step, &s);
            assert_int_equal(atomic_load(&s.wrong), 0);
            pool_free(s.pool);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors),
        cmocka_unit_test(log_lines),
        cmocka_unit_test(memory),
        cmocka_unit_test(bytes),
        cmocka_unit_test(files),
        cmocka_unit_test(files_that_are_pipes),
        cmocka_unit_test(checksums),
        cmocka_unit_test(hashes),
        cmocka_unit_test(random_numbers),
        cmocka_unit_test(clocks),
        cmocka_unit_test(queue_wakes),
        cmocka_unit_test(slices_are_what_was_asked),
        cmocka_unit_test(dwells_after_work_only),
        cmocka_unit_test(others_have_their_turns),
        cmocka_unit_test(who_computes_beside_it_is_left_alone),
        cmocka_unit_test(queue_rings_only_for_sleepers),
        cmocka_unit_test(ring_between_processes),
        cmocka_unit_test(ring_fills_and_empties),
        cmocka_unit_test(ring_corrupt),
        cmocka_unit_test(pools),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
