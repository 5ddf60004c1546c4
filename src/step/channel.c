/* The channel of an agent and its engine: one shared memory with boot, state words and two rings. */
#include "mpiserve/step.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { STEPS, RESULTS, PAGE = 4096 };

struct channel {
    struct channel_head *head;
    size_t bytes;        /* of the mapping */
    size_t off[2], data; /* of the rings: this side's own numbers */
    struct ring ring[2];
    int fd, to_engine, to_agent;
    u8 *copy; /* agent: the frame looked at; max_frame bytes, touched as needed */
    bool agent;
    struct dwell dwell; /* engine */
};

static size_t round_page(size_t n)
{
    return (n + PAGE - 1) & ~(size_t)(PAGE - 1);
}

static void layout(struct channel *c, size_t ring_size)
{
    c->data = ring_size;
    c->off[STEPS] = round_page(sizeof(struct channel_head));
    c->off[RESULTS] = c->off[STEPS] + round_page(ring_bytes(ring_size));
    c->bytes = c->off[RESULTS] + round_page(ring_bytes(ring_size));
}

static int map(struct channel *c, struct error *err)
{
    void *mem = mmap(NULL, c->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, c->fd, 0);
    if (mem == MAP_FAILED) return error_errno(err, "channel", "cannot map %zu bytes", c->bytes);
    madvise(mem, c->bytes, MADV_DONTDUMP);
    c->head = mem;
    return 0;
}

static int attach_rings(struct channel *c, struct error *err)
{
    for (int i = 0; i < 2; i++) {
        int rc = ring_attach(&c->ring[i], (u8 *)c->head + c->off[i], ring_bytes(c->data), err);
        if (rc < 0) return rc;
    }
    return 0;
}

static struct channel *handle(void)
{
    struct channel *c = mem_zero(1, sizeof(*c));
    c->fd = c->to_engine = c->to_agent = -1;
    return c;
}

static int make(struct channel *c, struct error *err)
{
    c->fd = memfd_create("mpiserve-channel", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (c->fd < 0 || ftruncate(c->fd, (off_t)c->bytes) < 0)
        return error_errno(err, "channel", "cannot make shared memory of %zu bytes", c->bytes);
    /* nobody can cut the memory away under the other side */
    if (fcntl(c->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return error_errno(err, "channel", "cannot seal shared memory");
    c->to_engine = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    c->to_agent = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (c->to_engine < 0 || c->to_agent < 0) return error_errno(err, "channel", "cannot make an eventfd");
    return map(c, err);
}

struct channel *channel_new(size_t ring_size, struct error *err)
{
    if (ring_size < PAGE || ring_size > 1u << 30 || (ring_size & (ring_size - 1))) {
        error_set(err, ERR_INPUT, "ring_size", "%zu is not a power of two in 4096..2^30", ring_size);
        return NULL;
    }
    struct channel *c = handle();
    c->agent = true;
    layout(c, ring_size);
    if (make(c, err) < 0) goto fail;
    static const struct engine_boot nothing;
    channel_reset(c, &nothing);
    c->copy = malloc(channel_max_frame(c));
    if (!c->copy) {
        error_set(err, ERR_MEMORY, "channel", "no memory for a frame of %zu bytes", channel_max_frame(c));
        goto fail;
    }
    return c;
fail:
    channel_free(c);
    return NULL;
}

/* The head says how large the rings are; all else follows and must agree. */
static int read_head(struct channel *c, struct error *err)
{
    struct stat st;
    u64 ring_size;
    u32 magic[2];
    if (fstat(c->fd, &st) < 0) return error_errno(err, "channel", "descriptor %d", c->fd);
    if (pread(c->fd, magic, sizeof(magic), 0) != sizeof(magic) ||
        pread(c->fd, &ring_size, sizeof(ring_size), offsetof(struct channel_head, ring_size)) !=
            sizeof(ring_size))
        return error_errno(err, "channel", "cannot read descriptor %d", c->fd);
    if (magic[0] != CHANNEL_MAGIC || magic[1] != CHANNEL_VERSION)
        return error_set(err, ERR_PEER, "channel", "magic %08x version %u, this program has %08x %u",
                         magic[0], magic[1], CHANNEL_MAGIC, CHANNEL_VERSION);
    if (ring_size < PAGE || ring_size > 1u << 30 || (ring_size & (ring_size - 1)))
        return error_set(err, ERR_PEER, "channel", "ring size %llu", (unsigned long long)ring_size);
    layout(c, ring_size);
    if ((u64)st.st_size != c->bytes)
        return error_set(err, ERR_PEER, "channel", "%lld bytes instead of %zu", (long long)st.st_size,
                         c->bytes);
    return 0;
}

struct channel *channel_attach(struct error *err)
{
    struct channel *c = handle();
    c->fd = FD_CHANNEL;
    c->to_engine = FD_TO_ENGINE;
    c->to_agent = FD_TO_AGENT;
    if (read_head(c, err) < 0 || map(c, err) < 0 || attach_rings(c, err) < 0) {
        channel_free(c);
        return NULL;
    }
    return c;
}

void channel_free(struct channel *c)
{
    if (!c) return;
    if (c->head) munmap(c->head, c->bytes);
    if (c->fd >= 0) close(c->fd);
    if (c->to_engine >= 0) close(c->to_engine);
    if (c->to_agent >= 0) close(c->to_agent);
    free(c->copy);
    free(c);
}

struct channel_head *channel_head(struct channel *c)
{
    return c->head;
}

int channel_fd(const struct channel *c, enum channel_fd which)
{
    switch (which) {
    case FD_CHANNEL: return c->fd;
    case FD_TO_ENGINE: return c->to_engine;
    case FD_TO_AGENT: return c->to_agent;
    default: return -1;
    }
}

static void drain(int fd)
{
    u64 count;
    while (read(fd, &count, sizeof(count)) < 0 && errno == EINTR) {}
}

void channel_reset(struct channel *c, const struct engine_boot *boot)
{
    struct channel_head *h = c->head;
    memset(h, 0, sizeof(*h));
    h->magic = CHANNEL_MAGIC;
    h->version = CHANNEL_VERSION;
    h->boot = *boot;
    for (int i = 0; i < 2; i++) {
        h->ring_off[i] = c->off[i];
        h->ring_size[i] = c->data;
        ring_format((u8 *)h + c->off[i], c->data);
    }
    BUG_ON(attach_rings(c, NULL) < 0);
    drain(c->to_engine);
    drain(c->to_agent);
    atomic_store(&h->heartbeat_ns, clock_ns());
    atomic_store(&h->state, ENGINE_STARTING);
}

void channel_fail(struct channel *c, const struct error *err)
{
    error_text(err, c->head->error, sizeof(c->head->error));
    atomic_store(&c->head->error_set, 1);
    atomic_store(&c->head->state, ENGINE_FAILED);
}

const char *channel_error(struct channel *c, char *out, size_t size)
{
    size_t n = 0;
    if (atomic_load(&c->head->error_set)) {
        n = MIN_OF(size - 1, sizeof(c->head->error));
        memcpy(out, c->head->error, n);
    }
    out[n] = 0;
    return out;
}

/* ---- frames and wake-ups ---- */

/* A publisher's half of the sleep protocol; the fence orders the frame before the look at the announcement.
 */
static void ring_bell(_Atomic u32 *sleeps, int fd)
{
    static const u64 one = 1;
    atomic_thread_fence(memory_order_seq_cst);
    if (!atomic_load_explicit(sleeps, memory_order_relaxed) || !atomic_exchange(sleeps, 0)) return;
    while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR) {}
}

/* A consumer's half: true when it may block now. */
static bool announce(_Atomic u32 *sleeps, struct ring *ring)
{
    size_t len;
    atomic_store(sleeps, 1);
    atomic_thread_fence(memory_order_seq_cst);
    if (!ring_peek(ring, &len) && len == 0) return true;
    atomic_store(sleeps, 0);
    return false;
}

void *channel_step_claim(struct channel *c, size_t len)
{
    return ring_claim(&c->ring[STEPS], len);
}

void channel_step_publish(struct channel *c, size_t len)
{
    ring_publish(&c->ring[STEPS], len);
    ring_bell(&c->head->engine_sleeps, c->to_engine);
}

const void *channel_result_peek(struct channel *c, size_t *len)
{
    const void *frame = ring_peek(&c->ring[RESULTS], len);
    if (!frame) return NULL;
    BUG_ON(*len > channel_max_frame(c)); /* the ring checks it */
    return memcpy(c->copy, frame, *len);
}

void channel_result_consume(struct channel *c)
{
    ring_consume(&c->ring[RESULTS]);
}

bool channel_agent_prepare_sleep(struct channel *c)
{
    return announce(&c->head->agent_sleeps, &c->ring[RESULTS]);
}

void channel_agent_woke(struct channel *c)
{
    atomic_store(&c->head->agent_sleeps, 0);
    drain(c->to_agent);
}

const void *channel_step_peek(struct channel *c, size_t *len)
{
    return ring_peek(&c->ring[STEPS], len);
}

void channel_step_consume(struct channel *c)
{
    ring_consume(&c->ring[STEPS]);
    dwell_worked(&c->dwell, clock_ns());
}

void *channel_result_claim(struct channel *c, size_t len)
{
    return ring_claim(&c->ring[RESULTS], len);
}

void channel_result_publish(struct channel *c, size_t len)
{
    ring_publish(&c->ring[RESULTS], len);
    ring_bell(&c->head->agent_sleeps, c->to_agent);
}

void channel_wake_agent(struct channel *c)
{
    ring_bell(&c->head->agent_sleeps, c->to_agent);
}

static bool has_step(struct channel *c)
{
    size_t len;
    return ring_peek(&c->ring[STEPS], &len) || len;
}

void channel_engine_wait(struct channel *c, u64 spin_ns, u64 max_ns)
{
    u64 start = clock_ns();
    for (u64 now = start; now - start < spin_ns; now = clock_ns()) {
        for (int i = 0; i < 64; i++) {
            if (has_step(c)) return;
            cpu_pause();
        }
    }
    while (dwell_on(&c->dwell, clock_ns()))
        if (has_step(c)) return;
    if (!announce(&c->head->engine_sleeps, &c->ring[STEPS])) return;
    struct pollfd p = {.fd = c->to_engine, .events = POLLIN};
    struct timespec limit = {.tv_sec = (time_t)(max_ns / NS_PER_S), .tv_nsec = (long)(max_ns % NS_PER_S)};
    ppoll(&p, 1, &limit, NULL);
    atomic_store(&c->head->engine_sleeps, 0);
    drain(c->to_engine);
}

size_t channel_max_frame(const struct channel *c)
{
    return ring_max_frame(&c->ring[STEPS]);
}
