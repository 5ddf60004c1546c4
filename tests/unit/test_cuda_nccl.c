/* coll over NCCL (emulated, a process for each engine): what arrives, sums of devices in the order of the engines, and how everything that
 * can go wrong at the start and in a call is named within its deadline. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "cuda_crew.h"
#include "engine/parallel.h"

enum { MANY = 100000, WORDS = 1000 };
static const u64 soon_ns = 300 * NS_PER_MS;

static u8 byte_of(u32 from, u32 to, size_t i)
{
    return (u8)(from * 89 + to * 31 + i * 7 + i / 251);
}

/* bytes of the device that say from whom and to whom they are */
static void *filled(struct cuda_member *m, u32 to, u32 blocks, size_t bytes)
{
    u8 *host = malloc(blocks * bytes);
    for (u32 b = 0; b < blocks; b++)
        for (size_t i = 0; i < bytes; i++) host[b * bytes + i] = byte_of(m->me, blocks > 1 ? b : to, i);
    void *at = cuda_memory(m->device, host, blocks * bytes);
    free(host);
    return at;
}

static void need_block(struct cuda_member *m, const u8 *at, size_t bytes, u32 from, u32 to)
{
    u8 *host = malloc(bytes);
    cuda_fetch(m->device, host, at, bytes);
    for (size_t i = 0; i < bytes; i++) crew_need(host[i] == byte_of(from, to, i), NULL);
    free(host);
}

static void connect_all(struct cuda_member *m)
{
    struct error err = {0};
    crew_need(!cuda_connect(m, 0, &err), &err);
}

/* ---- what arrives ------------------------------------------------------------------------------------------------*/
static void move_collectives(struct cuda_member *m, void *arg)
{
    static const size_t sizes[] = {1, 1000, MANY};
    struct error err = {0};
    (void)arg;
    connect_all(m);
    u32 n = coll_size(coll_stage(m->world));
    for (size_t k = 0; k < COUNT_OF(sizes); k++) {
        size_t bytes = sizes[k];
        u8 *one = filled(m, 7, 1, bytes), *each = filled(m, 0, n, bytes),
           *out = cuda_memory(m->device, NULL, n * bytes);
        crew_need(!coll_nccl_all_gather(m->gpus, one, out, bytes, &err), &err);
        for (u32 i = 0; i < n; i++) need_block(m, out + i * bytes, bytes, i, 7);
        crew_need(!coll_nccl_all_to_all(m->gpus, each, out, bytes, &err), &err);
        for (u32 i = 0; i < n; i++) need_block(m, out + i * bytes, bytes, i, m->me);
        device_copy(m->device, out + m->me * bytes, one, bytes); /* in place */
        crew_need(!coll_nccl_all_gather(m->gpus, out + m->me * bytes, out, bytes, &err), &err);
        for (u32 i = 0; i < n; i++) need_block(m, out + i * bytes, bytes, i, 7);
        device_zero(m->device, out, n * bytes);
        crew_need(!coll_nccl_gather(m->gpus, n - 1, one, out, bytes, &err), &err);
        for (u32 i = 0; i + 1 < n && m->me == n - 1; i++) need_block(m, out + i * bytes, bytes, i, 7);
        crew_need(coll_nccl_calls(m->gpus) == 4 * (k + 1), NULL);
        crew_need(!device_finish(m->device, &err), &err);
        device_free(m->device, one);
        device_free(m->device, each);
        device_free(m->device, out);
    }
}

/* A ring of messages through the stages, three under way at once. */
static void move_messages(struct cuda_member *m, void *arg)
{
    enum { MESSAGES = 3, BYTES = 70000 };
    struct error err = {0};
    const u32 *tp = arg;
    connect_all(m);
    u32 n = coll_size(coll_all(m->world)), to = m->me + *tp, from = m->me - *tp;
    u8 *in[MESSAGES], *out[MESSAGES];
    for (u32 k = 0; k < MESSAGES; k++) {
        out[k] = filled(m, k, 1, BYTES);
        in[k] = cuda_memory(m->device, NULL, BYTES);
        if (m->me >= *tp) crew_need(!coll_nccl_receive(m->gpus, from, in[k], BYTES, &err), &err);
        if (to < n) crew_need(!coll_nccl_send(m->gpus, to, out[k], BYTES, &err), &err);
    }
    for (u32 k = 0; k < MESSAGES; k++) {
        if (m->me >= *tp) need_block(m, in[k], BYTES, from, k);
        crew_need(!device_finish(m->device, &err), &err);
        device_free(m->device, in[k]);
        device_free(m->device, out[k]);
    }
}

static void test_moves(void **state)
{
    (void)state;
    for (u32 tp = 2; tp <= 4; tp++) {
        struct crew c = {.shape = crew_shape(tp, 1, NULL)};
        cuda_crew_run(&c, move_collectives);
    }
    for (u32 tp = 1; tp <= 2; tp++) {
        struct crew c = {.shape = crew_shape(tp, 3, NULL), .arg = &tp};
        cuda_crew_run(&c, move_messages);
    }
}

/* ---- sums: the bits of the host's ---------------------------------------------------------------------------------*/
static float part_of(u32 me, size_t i)
{
    u64 state = me * 7919 + i * 104729 + 1;
    random_number(&state);
    return random_number(&state) * (i % 5 ? 1 : 1000);
}

static void sum_on_both(struct cuda_member *m, size_t n, bool add)
{
    struct error err = {0};
    u32 tp = coll_size(coll_stage(m->world));
    struct parallel p = {.shard = {.tp = tp, .pp = 1, .tp_rank = m->me},
                         .stage = coll_stage(m->world),
                         .device = m->device,
                         .gpus = m->gpus,
                         .parts = cuda_memory(m->device, NULL, parallel_parts(tp, n, 0) * sizeof(float))};
    float *in = malloc(n * sizeof *in), *out = malloc(n * sizeof *out), *got = malloc(n * sizeof *got);
    for (size_t i = 0; i < n; i++) in[i] = part_of(m->me, i), out[i] = part_of(99, i);
    float *to = cuda_memory(m->device, out, n * sizeof *out),
          *from = cuda_memory(m->device, NULL, parallel_padded(tp, n) * sizeof *from);
    device_upload(m->device, from, in, n * sizeof *in);
    const struct coll_reduce r = {.in = in, .out = out, .count = n, .type = COLL_F32, .add = add};
    crew_need(!coll_all_reduce(p.stage, &r, NULL, &err), &err);
    crew_need(!parallel_sum(&p, from, to, n, add, (struct share){0, 1, m->device}), &p.err);
    cuda_fetch(m->device, got, to, n * sizeof *got);
    crew_need(!memcmp(got, out, n * sizeof *got), NULL);
    crew_need(device_marked(m->device) == coll_nccl_calls(m->gpus), NULL);
    device_free(m->device, p.parts);
    device_free(m->device, to);
    device_free(m->device, from);
    free(in);
    free(out);
    free(got);
}

/* On both sides of where the way changes, and where slices do not come out even. */
static void sums(struct cuda_member *m, void *arg)
{
    static const size_t sizes[] = {4, 128, 65536, 65540, 100004};
    (void)arg;
    connect_all(m);
    for (size_t k = 0; k < COUNT_OF(sizes); k++)
        for (u32 add = 0; add < 2; add++) sum_on_both(m, sizes[k], add);
}

static void test_sums(void **state)
{
    (void)state;
    for (u32 tp = 2; tp <= 5; tp++) {
        struct crew c = {.shape = crew_shape(tp, 1, NULL)};
        cudasim_order(tp);
        cuda_crew_run(&c, sums);
    }
}

/* ---- what goes wrong ----------------------------------------------------------------------------------------------*/
struct said { /* by each engine; empty: nothing was wrong */
    char words[4][600];
    const char *how; /* what engine 1 does */
    u64 n;
};

static void say(struct said *s, u32 me, const struct error *err)
{
    char text[1100];
    snprintf(s->words[me], sizeof s->words[me], "%.599s", error_text(err, text, sizeof text));
}

static struct said *run_and_listen(u32 tp, u64 wait_ns, const char *how, u64 n, cuda_crew_fn fn)
{
    struct said *s = cuda_crew_memory(sizeof *s);
    s->how = how;
    s->n = n;
    struct crew c = {.shape = crew_shape(tp, 1, NULL), .wait_ns = wait_ns, .arg = s};
    cuda_crew_run(&c, fn);
    return s;
}

static void drop(struct said *s)
{
    munmap(s, sizeof *s);
}

static void start_badly(struct cuda_member *m, void *arg)
{
    struct said *s = arg;
    struct error err = {0};
    if (m->me == 1) {
        if (!strcmp(s->how, "absent")) return;
        if (!strcmp(s->how, "without")) cudasim_nccl_without("ncclRecv");
        if (!strcmp(s->how, "version")) cudasim_nccl_version(22703);
        if (!strcmp(s->how, "mute")) cudasim_nccl_never_connects();
        if (!strcmp(s->how, "error")) cudasim_nccl_fail(s->n, 2);
        if (!strcmp(s->how, "same")) {
            device_close(m->device);
            m->device = cuda_open_number(0);
        }
    }
    if (!strcmp(s->how, "old")) cudasim_nccl_version(21210);
    if (cuda_connect(m, soon_ns, &err)) say(s, m->me, &err);
}

static void test_starts(void **state)
{
    static const struct {
        const char *how;
        u64 n;
        const char *zero, *one; /* what the engines say */
    } all[] = {
        {"fine", 0, "", ""},
        {"absent", 0, "group: all_gather 1 of 56 bytes: engine 1 (rank 101) has not come within 0.3 s", ""},
        {"without", 0, "NCCL: engine 1 (rank 101) has none: its log says why",
         "libnccl.so.2: cannot be opened, or has no ncclRecv: several GPUs for a model need NCCL 2.14 or "
         "later; "
         "install it (libnccl2), or add its folder to LD_LIBRARY_PATH"},
        {"version", 0,
         "NCCL: engine 1 (rank 101) has version 22703, this engine has 22809: all need the same",
         "NCCL: engine 0 (rank 100) has version 22809, this engine has 22703: all need the same"},
        {"old", 0, "NCCL: version 21210 is too old: 2.14 or later is needed",
         "NCCL: version 21210 is too old: 2.14 or later is needed"},
        {"same", 0,
         "NCCL: engine 0 (rank 100) and engine 1 (rank 101) have the same GPU, "
         "GPU-63756461-7369-6d2d-6465-766963652d30: each engine needs its own",
         "NCCL: engine 0 (rank 100) and engine 1 (rank 101) have the same GPU, "
         "GPU-63756461-7369-6d2d-6465-766963652d30: each engine needs its own"},
        {"mute", 0,
         "NCCL: connecting the GPUs of engine 0 (rank 100) to engine 1 (rank 101): NCCL is not ready within "
         "0.3 "
         "s; NCCL_DEBUG=WARN lets it say why",
         "NCCL: connecting the GPUs of engine 0 (rank 100) to engine 1 (rank 101): NCCL is not ready within "
         "0.3 "
         "s; NCCL_DEBUG=WARN lets it say why"},
        {"error", 1,
         "NCCL: connecting the GPUs of engine 0 (rank 100) to engine 1 (rank 101): NCCL is not ready within "
         "0.3 "
         "s; NCCL_DEBUG=WARN lets it say why",
         "NCCL: ncclSystemError in connecting the GPUs of engine 0 (rank 100) to engine 1 (rank 101): "
         "emulated "
         "failure"},
        {"error", 2, NULL,
         "NCCL: ncclSystemError in connecting the GPUs of engine 0 (rank 100) to engine 1 (rank 101): "
         "emulated "
         "failure"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        struct said *s = run_and_listen(2, soon_ns, all[i].how, all[i].n, start_badly);
        if (all[i].zero) assert_string_equal(s->words[0], all[i].zero);
        assert_string_equal(s->words[1], all[i].one);
        drop(s);
    }
}

/* The first engine cannot make an id: all say so. */
static void no_id(struct cuda_member *m, void *arg)
{
    struct error err = {0};
    if (m->me == 0) cudasim_nccl_fail(1, 2);
    if (cuda_connect(m, soon_ns, &err)) say(arg, m->me, &err);
}

static void test_no_id(void **state)
{
    (void)state;
    struct said *s = run_and_listen(3, soon_ns, "", 0, no_id);
    for (u32 i = 0; i < 3; i++)
        assert_string_equal(s->words[i],
                            "NCCL: ncclSystemError in ncclGetUniqueId of the first engine: emulated failure");
    drop(s);
}

/* Three sums; engine 1 leaves, stops or fails in the middle. */
static void work_badly(struct cuda_member *m, void *arg)
{
    struct said *s = arg;
    struct error err = {0};
    connect_all(m);
    struct parallel p = {.shard = {.tp = 2, .pp = 1, .tp_rank = m->me},
                         .stage = coll_stage(m->world),
                         .device = m->device,
                         .gpus = m->gpus,
                         .parts = cuda_memory(m->device, NULL, 2 * WORDS * sizeof(float))};
    float *x = cuda_memory(m->device, NULL, WORDS * sizeof *x),
          *y = cuda_memory(m->device, NULL, WORDS * sizeof *y);
    bool odd = m->me == 1;
    int rc = 0;
    for (u32 k = 0; k < 3 && !rc; k++) {
        if (odd && k == 1 && !strcmp(s->how, "leaves")) break;
        if (odd && k == 1 && !strcmp(s->how, "call")) cudasim_nccl_fail(s->n, 6);
        if (odd && k == 1 && !strcmp(s->how, "cuda")) cudasim_fail(s->n, 719);
        rc = parallel_sum(&p, x, y, WORDS, true, (struct share){0, 1, m->device});
        if (k == 0) crew_need(!device_finish(m->device, &err), &err);
    }
    if (rc) {
        say(s, m->me, &p.err);
    } else if (device_finish(m->device, &err)) {
        say(s, m->me, &err);
        crew_need(device_finish(m->device, &err) == err.code, NULL); /* and nothing else for ever */
    }
    cudasim_fail(0, 0);
    coll_nccl_close(m->gpus);
    m->gpus = NULL;
    device_free(m->device, p.parts);
    device_free(m->device, x);
    device_free(m->device, y);
}

static void check_work(const char *how, u64 n, const char *zero, const char *one)
{
    struct said *s = run_and_listen(2, soon_ns, how, n, work_badly);
    if (strcmp(s->words[0], zero) || !strstr(s->words[1], one))
        fail_msg("%s %u: \"%s\", \"%s\"", how, (u32)n, s->words[0], s->words[1]);
    drop(s);
}

static void test_work(void **state)
{
    (void)state;
    static const char waits[] = "NCCL: all_gather 2 of 4000 bytes of engine 0 (rank 100) to engine 1 (rank "
                                "101) is not done within 0.3 s";
    check_work("fine", 0, "", "");
    check_work("leaves", 0, waits, "");
    check_work(
        "call", 1, waits,
        "NCCL: ncclRemoteError in all_gather 2 of 4000 bytes of engine 0 (rank 100) to engine 1 (rank 101): "
        "emulated failure");
    for (u64 n = 2; n < 6; n++) check_work("call", n, waits, "NCCL: ncclRemoteError in all_gather ");
    check_work("cuda", 1, waits, "CUDA: cudaErrorLaunchFailure in ");
}

/* An asynchronous error is seen by who waits for the stream: engine 1 here, whose partner does not come. */
static void late_error(struct cuda_member *m, void *arg)
{
    struct said *s = arg;
    struct error err = {0};
    connect_all(m);
    float *x = cuda_memory(m->device, NULL, 2 * WORDS * sizeof *x);
    if (m->me == 1) {
        crew_need(!coll_nccl_all_gather(m->gpus, x + WORDS, x, WORDS * sizeof *x, &err), &err);
        cudasim_nccl_fail(s->n, 6);
        if (device_finish(m->device, &err)) say(s, 1, &err);
        crew_need(coll_nccl_all_gather(m->gpus, x + WORDS, x, WORDS * sizeof *x, &err) == ERR_PEER, NULL);
        coll_nccl_close(m->gpus);
        m->gpus = NULL;
    }
    device_free(m->device, x);
}

static void test_late_error(void **state)
{
    (void)state;
    struct said *s = run_and_listen(2, 60 * NS_PER_S, "", 5, late_error);
    assert_string_equal(s->words[1],
                        "NCCL: ncclRemoteError in all_gather 1 of 4000 bytes of engine 0 (rank 100) to "
                        "engine 1 (rank 101): emulated failure");
    drop(s);
}

/* A host that is far ahead waits for its uploads, and for no longer than for anything else. */
static void far_ahead(struct cuda_member *m, void *arg)
{
    struct said *s = arg;
    struct error err = {0};
    float number = 1;
    connect_all(m);
    float *x = cuda_memory(m->device, NULL, 2 * WORDS * sizeof *x);
    if (m->me == 1) {
        crew_need(!coll_nccl_all_gather(m->gpus, x + WORDS, x, WORDS * sizeof *x, &err), &err);
        for (u32 i = 0; i < 2 * DEVICE_UPLOADS; i++) device_upload(m->device, x, &number, sizeof number);
        crew_need(device_check(m->device, &err) == ERR_PEER, NULL);
        say(s, 1, &err);
        coll_nccl_close(m->gpus);
        m->gpus = NULL;
    }
    device_free(m->device, x);
}

static void test_far_ahead(void **state)
{
    (void)state;
    struct said *s = run_and_listen(2, soon_ns, "", 0, far_ahead);
    assert_string_equal(s->words[1],
                        "NCCL: all_gather 1 of 4000 bytes of engine 0 (rank 100) to engine 1 (rank 101) is "
                        "not done within 0.3 s");
    drop(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_moves),    cmocka_unit_test(test_sums),
                                       cmocka_unit_test(test_starts),   cmocka_unit_test(test_no_id),
                                       cmocka_unit_test(test_work),     cmocka_unit_test(test_late_error),
                                       cmocka_unit_test(test_far_ahead)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("cuda_nccl", tests, NULL, NULL);
}
