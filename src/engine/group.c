#include "engine/group.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

enum { FIRST_BYTES = 4096, MOST_BYTES = 1 << 30, DEFAULT_WAIT_MS = 20000 };
enum { CONNECT_WAITS = 3 }; /* GPUs: contexts and connections take their time at the start */
enum { STAGES_LATER = 8 };  /* beyond, none waits longer: an agent's patience with a step ends, too */
static const u64 tick_ns = 250 * NS_PER_MS;

struct packet {
    u64 bytes; /* of all */
    u32 n_outcomes, pad;
    u64 frame_bytes;
    /* then: outcomes, frame (8-byte aligned) */
};
_Static_assert(sizeof(struct outcome) % 8 == 0 && sizeof(struct packet) % 8 == 0, "frames are aligned");

static void tick(void *channel)
{
    atomic_store(&channel_head(channel)->heartbeat_ns, clock_ns());
}

static void wake_agent(void *channel)
{
    channel_wake_agent(channel);
}

static int map(struct group *g, int fd, u64 bytes, struct error *err)
{
    struct stat st;
    if (!bytes) return 0;
    if (fstat(fd, &st) < 0) return error_errno(err, "group", "descriptor %d", fd);
    if (st.st_size < 0 || (u64)st.st_size != bytes)
        return error_set(err, ERR_PEER, "group", "the memory has %lld bytes instead of %llu",
                         (long long)st.st_size, (unsigned long long)bytes);
    void *mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mem == MAP_FAILED)
        return error_errno(err, "group", "cannot map %llu bytes", (unsigned long long)bytes);
    madvise(mem, bytes, MADV_DONTDUMP);
    g->memory = mem;
    g->bytes = bytes;
    return 0;
}

static int check_boot(const struct engine_boot *b, struct error *err)
{
    int rc = coll_check(&b->group, err);
    if (rc < 0) return rc;
    u32 tp = MAX_OF(b->group.tp, 1u), pp = MAX_OF(b->group.pp, 1u);
    if (b->tp_rank >= tp || b->pp_rank >= pp)
        return error_set(err, ERR_PEER, "boot", "engine %u of %u in stage %u of %u", b->tp_rank, tp,
                         b->pp_rank, pp);
    return 0;
}

int group_open(struct group *g, struct channel *c, int fd, struct error *err)
{
    const struct engine_boot *b = &channel_head(c)->boot;
    *g = (struct group){.root = true, .sampler = true};
    int rc = check_boot(b, err);
    if (rc < 0 || b->group.tp * b->group.pp < 2) return rc;
    u64 wait_ns = (b->group_wait_ms ? b->group_wait_ms : DEFAULT_WAIT_MS) * NS_PER_MS;
    struct coll_spec spec = {
        .shape = b->group,
        .me = b->pp_rank * b->group.tp + b->tp_rank,
        .bytes = b->group_bytes,
        /* later stages wait for earlier ones: who waits for the culprit itself speaks first */
        .wait_ns = wait_ns + wait_ns / 16 * MIN_OF(b->pp_rank, (u32)STAGES_LATER),
        .spin_ns = b->spin_us * NS_PER_US,
        .tick_ns = tick_ns,
        .tick = tick,
        .wake_agent = wake_agent,
        .arg = c};
    rc = map(g, fd, b->group_bytes, err);
    if (rc < 0) return rc;
    spec.memory = g->memory;
    g->wait_ns = spec.wait_ns;
    g->world = coll_open(&spec, err);
    if (!g->world) return err->code;
    g->all = coll_all(g->world);
    g->stage = coll_stage(g->world);
    g->root = spec.me == 0;
    g->sampler = b->tp_rank == 0 && b->pp_rank + 1 == b->group.pp;
    return 0;
}

/* ---- between GPUs */
static int look(void *arg, u64 waited_ns, struct error *err)
{
    struct group *g = arg;
    return coll_nccl_look(g->gpus, device_marked(g->device), waited_ns, err);
}

int group_connect(struct group *g, struct device *d, struct error *err)
{
    if (!g->world) return 0;
    const struct coll_gpu gpu = {.stream = device_stream_handle(d),
                                 .uuid = device_info(d)->uuid,
                                 .wait_ns = CONNECT_WAITS * g->wait_ns};
    const struct device_watch watch = {look, g};
    g->device = d;
    g->gpus = coll_nccl_open(g->world, &gpu, err);
    return g->gpus ? device_watch(d, &watch, err) : ERR_PEER;
}

void group_disconnect(struct group *g)
{
    coll_nccl_close(g->gpus);
    g->gpus = NULL;
}

void group_close(struct group *g)
{
    coll_close(g->world);
    if (g->memory) munmap(g->memory, g->bytes);
    free(g->packet);
    *g = (struct group){0};
}

static int make_room(struct group *g, u64 bytes, struct error *err)
{
    bytes = MAX_OF(bytes, (u64)FIRST_BYTES);
    if (bytes <= g->room) return 0;
    u8 *packet = bytes > MOST_BYTES ? NULL : realloc(g->packet, bytes);
    if (!packet)
        return error_set(err, ERR_MEMORY, "group", "no memory for a step of %llu bytes",
                         (unsigned long long)bytes);
    memset(packet + g->room, 0, bytes - g->room);
    g->packet = packet;
    g->room = bytes;
    return 0;
}

static void point(const struct group *g, struct group_step *s)
{
    const struct packet *p = (const void *)g->packet;
    const u8 *at = g->packet + sizeof *p;
    *s = (struct group_step){.outcomes = (const void *)at,
                             .n = p->n_outcomes,
                             .frame = at + p->n_outcomes * sizeof(struct outcome),
                             .len = p->frame_bytes};
}

/* With one stage all execute a step at the same time, and slots hold two of them: a broadcast. Stages are up to as many steps apart as
 * there are in flight: each engine gets its own messages, so that the first stage never waits for the last. Another node can do
 * nothing with a step before it has what the first stage makes of it: one wake-up takes both. */
static int to_others(struct group *g, u8 *data, size_t bytes, struct error *err)
{
    const struct coll_how with_hidden = {.lazy = !g->gpus}; /* NCCL does not pass here */
    if (g->stage == g->all) return coll_broadcast(g->all, 0, data, bytes, NULL, err);
    int rc = 0;
    for (u32 i = 1; i < coll_size(g->all) && !rc; i++)
        rc = coll_send(g->all, i, data, bytes, &with_hidden, err);
    return rc;
}

static int from_root(struct group *g, u8 *data, size_t bytes, const struct coll_how *how, struct error *err)
{
    if (g->stage == g->all) return coll_broadcast(g->all, 0, data, bytes, how, err);
    return coll_receive(g->all, 0, data, bytes, how, err);
}

int group_hand_on(struct group *g, struct group_step *s, struct error *err)
{
    size_t list = s->n * sizeof(struct outcome);
    const struct packet head = {
        .bytes = sizeof head + list + s->len, .n_outcomes = s->n, .frame_bytes = s->len};
    int rc = make_room(g, head.bytes, err);
    if (rc < 0) return rc;
    memcpy(g->packet, &head, sizeof head);
    if (list) memcpy(g->packet + sizeof head, s->outcomes, list);
    memcpy(g->packet + sizeof head + list, s->frame, s->len);
    rc = to_others(g, g->packet, FIRST_BYTES, err);
    if (rc == 0 && head.bytes > FIRST_BYTES)
        rc = to_others(g, g->packet + FIRST_BYTES, head.bytes - FIRST_BYTES, err);
    point(g, s);
    return rc;
}

void group_done(struct group *g)
{
    if (g->world) coll_wake(g->world);
}

int group_take(struct group *g, struct group_step *s, struct error *err)
{
    static const struct coll_how patient = {.wait_ns = COLL_FOREVER};
    int rc = make_room(g, FIRST_BYTES, err);
    if (rc == 0) rc = from_root(g, g->packet, FIRST_BYTES, &patient, err);
    if (rc < 0) return rc;
    struct packet head;
    memcpy(&head, g->packet, sizeof head);
    u64 list = head.n_outcomes * (u64)sizeof(struct outcome);
    if (head.frame_bytes > head.bytes || head.bytes != sizeof head + list + head.frame_bytes)
        return error_set(err, ERR_PEER, "group", "a step of %llu bytes with a frame of %llu and %u outcomes",
                         (unsigned long long)head.bytes, (unsigned long long)head.frame_bytes,
                         head.n_outcomes);
    rc = make_room(g, head.bytes, err);
    if (rc == 0 && head.bytes > FIRST_BYTES)
        rc = from_root(g, g->packet + FIRST_BYTES, head.bytes - FIRST_BYTES, NULL, err);
    point(g, s);
    return rc;
}
