/* Collectives of a group that spans nodes, made of messages; the same order of sums as in a node. Exchanges
 * go message by message, so that no member can be stuck in sending while all others send as well. Latency
 * counts more than bytes for what is small. */
#include "coll/coll_inner.h"

#include <string.h>

enum { ONE_SHOT_BYTES = 16 << 10 };

static u8 *scratch_of(const struct coll *c, u32 m)
{
    return c->world->scratch + (size_t)m * LINK_BYTES;
}

/* Every member's block for each other one: `mine` gives what goes to m, what comes is put into scratch. */
struct blocks {
    const u8 *to[COLL_MAX];
    size_t to_bytes[COLL_MAX], from_bytes[COLL_MAX];
};
static int exchange(struct coll *c, const struct blocks *b, const struct call *call, struct error *err)
{
    int rc = 0;
    for (u32 k = 1; k < c->n && !rc; k++) { /* not all to the same one first */
        u32 m = (c->me + k) % c->n;
        rc = link_send(c, c->member[m], b->to[m], b->to_bytes[m], call, err);
    }
    for (u32 k = 1; k < c->n && !rc; k++) {
        u32 m = (c->me + c->n - k) % c->n;
        rc = link_receive(c, c->member[m], scratch_of(c, m), b->from_bytes[m], call, err);
    }
    return rc;
}

static void sum_scratch(const struct coll *c, const u8 *mine, void *out, size_t count, enum coll_type type,
                        bool add)
{
    const void *in[COLL_MAX];
    for (u32 m = 0; m < c->n; m++) in[m] = m == c->me ? mine : scratch_of(c, m);
    sum_members(in, c->n, out, count, type, add);
}

static int one_shot(struct coll *c, const u8 *in, u8 *out, size_t count, const struct coll_reduce *r,
                    const struct call *call, struct error *err)
{
    struct blocks b;
    for (u32 m = 0; m < c->n; m++) {
        b.to[m] = in;
        b.to_bytes[m] = b.from_bytes[m] = count * type_bytes(r->type);
    }
    int rc = exchange(c, &b, call, err);
    if (!rc) sum_scratch(c, in, out, count, r->type, r->add);
    return rc;
}

/* Member i gets part i of all, adds it up, and gives the sum to all. */
static int two_stage(struct coll *c, const u8 *in, u8 *out, size_t count, const struct coll_reduce *r,
                     const struct call *call, struct error *err)
{
    size_t unit = type_bytes(r->type), from[COLL_MAX + 1];
    struct blocks b;
    for (u32 m = 0; m <= c->n; m++) from[m] = count * m / c->n;
    size_t own = from[c->me + 1] - from[c->me];
    for (u32 m = 0; m < c->n; m++) {
        b.to[m] = in + from[m] * unit;
        b.to_bytes[m] = (from[m + 1] - from[m]) * unit;
        b.from_bytes[m] = own * unit;
    }
    int rc = exchange(c, &b, call, err);
    if (rc) return rc;
    u8 *sum = scratch_of(c, c->me);
    sum_scratch(c, in + from[c->me] * unit, sum, own, r->type, false);
    for (u32 m = 0; m < c->n; m++) {
        b.to[m] = sum;
        b.to_bytes[m] = own * unit;
        b.from_bytes[m] = (from[m + 1] - from[m]) * unit;
    }
    rc = exchange(c, &b, call, err);
    for (u32 m = 0; m < c->n && !rc; m++) {
        const void *theirs = scratch_of(c, m);
        sum_members(&theirs, 1, out + from[m] * unit, from[m + 1] - from[m], r->type, r->add);
    }
    return rc;
}

static int sum_all(struct coll *c, const struct coll_reduce *r, const struct call *call, struct error *err)
{
    size_t unit = type_bytes(r->type), most = LINK_BYTES / unit, at = 0;
    int rc = world_look(c, err);
    if (rc) return rc;
    do {
        size_t n = MIN_OF(most, r->count - at);
        const u8 *in = (const u8 *)r->in + at * unit;
        u8 *out = (u8 *)r->out + at * unit;
        rc = n * unit <= ONE_SHOT_BYTES ? one_shot(c, in, out, n, r, call, err)
                                        : two_stage(c, in, out, n, r, call, err);
        at += most;
    } while (at < r->count && !rc);
    return rc;
}

static int messages_all_reduce(struct coll *c, const struct coll_reduce *r, const struct call *call,
                               const struct coll_how *how, struct error *err)
{
    team_barrier(how); /* all of in is there */
    int rc = thread_of(how) ? 0 : sum_all(c, r, call, err);
    return team_result(c, how, rc, err);
}

static int gather_run(struct coll *c, const struct coll_gather *g, size_t at, size_t n,
                      const struct call *call, struct error *err)
{
    u8 *mine = scratch_of(c, c->me);
    struct blocks b = {0};
    int rc = 0;
    if (call->root != c->me) gather_pack(g, at, n, mine);
    if (call->root == NOBODY) {
        for (u32 m = 0; m < c->n; m++) {
            b.to[m] = mine;
            b.to_bytes[m] = b.from_bytes[m] = n;
        }
        rc = exchange(c, &b, call, err);
    } else if (call->root != c->me) {
        return link_send(c, c->member[call->root], mine, n, call, err);
    } else {
        for (u32 m = 0; m < c->n && !rc; m++)
            if (m != c->me) rc = link_receive(c, c->member[m], scratch_of(c, m), n, call, err);
    }
    for (u32 m = 0; m < c->n && !rc; m++)
        if (m != c->me) gather_unpack(g, m, at, n, scratch_of(c, m));
    return rc;
}

static int gather_all(struct coll *c, const struct coll_gather *g, const struct call *call, struct error *err)
{
    size_t all = g->rows * g->bytes, at = 0;
    int rc = world_look(c, err);
    if (rc) return rc;
    do {
        rc = gather_run(c, g, at, MIN_OF((size_t)LINK_BYTES, all - at), call, err);
        at += LINK_BYTES;
    } while (at < all && !rc);
    return rc;
}

static int messages_gather(struct coll *c, const struct coll_gather *g, const struct call *call,
                           const struct coll_how *how, struct error *err)
{
    team_barrier(how);
    int rc = thread_of(how) ? 0 : gather_all(c, g, call, err);
    return team_result(c, how, rc, err);
}

static int messages_broadcast(struct coll *c, void *data, const struct call *call, struct error *err)
{
    int rc = 0;
    for (size_t at = 0; at < MAX_OF(call->bytes, 1u) && !rc; at += LINK_BYTES) {
        size_t n = MIN_OF((size_t)LINK_BYTES, call->bytes - at);
        u8 *here = (u8 *)data + at;
        if (call->root != c->me) {
            rc = link_receive(c, c->member[call->root], here, n, call, err);
            continue;
        }
        for (u32 m = 0; m < c->n && !rc; m++)
            if (m != c->me) rc = link_send(c, c->member[m], here, n, call, err);
    }
    return rc;
}

static int messages_all_to_all(struct coll *c, const u8 *in, u8 *out, size_t bytes, const struct call *call,
                               struct error *err)
{
    struct blocks b;
    int rc = 0;
    for (size_t at = 0; at < MAX_OF(bytes, (size_t)1) && !rc; at += LINK_BYTES) {
        size_t n = MIN_OF((size_t)LINK_BYTES, bytes - at);
        for (u32 m = 0; m < c->n; m++) {
            b.to[m] = in + m * bytes + at;
            b.to_bytes[m] = b.from_bytes[m] = n;
        }
        rc = exchange(c, &b, call, err);
        for (u32 m = 0; m < c->n && !rc; m++)
            memcpy(out + m * bytes + at, m == c->me ? in + m * bytes + at : scratch_of(c, m), n);
    }
    return rc;
}

const struct transport transport_messages = {messages_all_reduce, messages_gather, messages_broadcast,
                                             messages_all_to_all};
