/* Collectives of a group in one node.
 *
 * A call goes in pieces that fit a slot. For piece k each member that has something to say writes it into its
 * slot k % 2, posts, and reads the slots of those that it needs once they have posted. It counts a piece as
 * done when it has finished reading, and nobody writes piece k before all have done piece k - 2. So one wait
 * a piece is enough, and a root can be up to two pieces ahead. Phases count posts: a large sum has two of
 * them a piece, since in between members put what they have summed up into their own slots, in the place that
 * nobody else reads. */
#include "coll/coll_inner.h"

#include <stdio.h>
#include <string.h>

/* Below, every member adds up everything: one wait less, and for two members no more work either. */
enum { ONE_SHOT_BYTES = 32 << 10 };
/* No member can be so many pieces ahead of another. */
enum { FAR_AHEAD = 16 };

static struct member *member_of(const struct coll *c, u32 m)
{
    return group_members(c->area) + m;
}

static u8 *slot_of(const struct coll *c, u32 m)
{
    return group_slot(c->area, c->n, c->piece, m);
}

/* What is compared: kind, root and length in one word. */
static u64 call_word(const struct call *call)
{
    return (u64)call->kind << 56 | (u64)(call->root & 0xff) << 48 | (call->bytes & 0xffffffffffffull);
}

static int fail_call(struct coll *c, const struct call *call, u32 m, u64 word, struct error *err)
{
    char what[128];
    snprintf(what, sizeof what, "is in %s of %llu bytes", call_name((enum call_kind)(word >> 56)),
             (unsigned long long)(word & 0xffffffffffffull));
    return fail_other(c, call, c->member[m], what, err);
}

/* Until the member has posted this phase; then its slot of this piece can be read. */
static int await(struct coll *c, u32 m, const struct call *call, struct error *err)
{
    struct member *other = member_of(c, m);
    if (counter_wait(c->world, &other->posted, c->phase, call->wait_ns))
        return fail_missing(c, call, c->member[m], err);
    u64 word = atomic_load_explicit(&other->call[c->piece & 1], memory_order_relaxed);
    if (word != call_word(call)) return fail_call(c, call, m, word, err);
    c->known_done[m] = c->piece; /* it has finished all pieces before this one */
    return 0;
}

static int await_all(struct coll *c, const struct call *call, struct error *err)
{
    int rc = 0;
    for (u32 m = 0; m < c->n && !rc; m++)
        if (m != c->me) rc = await(c, m, call, err);
    return rc;
}

/* Until the own slot of this piece is read by nobody any more. */
static int claim(struct coll *c, const struct call *call, struct error *err)
{
    int rc = world_look(c, err);
    if (rc) return rc;
    for (u32 m = 0; m < c->n; m++) {
        u32 want = c->piece - 1;
        /* what was known long ago says nothing: counters wrap around */
        if (m == c->me || c->known_done[m] - want <= FAR_AHEAD) continue;
        struct counter *done = &member_of(c, m)->done;
        if (counter_wait(c->world, done, want, call->wait_ns))
            return fail_missing(c, call, c->member[m], err);
        c->known_done[m] = counter_value(done);
    }
    return 0;
}

static void post(struct coll *c, const struct call *call)
{
    struct member *own = member_of(c, c->me);
    atomic_store_explicit(&own->call[c->piece & 1], call_word(call), memory_order_relaxed);
    counter_raise(&own->posted, c->phase);
}

/* Who had nothing to post keeps up, too: nobody waits for that, but its counter must not fall behind by half
 * its range. */
static void finish(struct coll *c)
{
    struct member *own = member_of(c, c->me);
    if (counter_value(&own->posted) != c->phase) atomic_store(&own->posted.value, c->phase);
    c->piece++;
    c->phase++;
    counter_raise(&own->done, c->piece);
}

static int post_and_await_all(struct coll *c, const struct call *call, struct error *err)
{
    post(c, call);
    return await_all(c, call, err);
}

/* ---- sums ------------------------------------------------------------------------------------------------------*/
struct run { /* of elements or bytes */
    size_t from, n;
};
/* The i-th of n parts of a run, cut at cache lines. */
static struct run part_of(struct run all, size_t unit, u32 i, u32 n)
{
    size_t line = CACHE_LINE / unit, lines = (all.n + line - 1) / line;
    size_t from = MIN_OF(lines * i / n * line, all.n), to = MIN_OF(lines * (i + 1) / n * line, all.n);
    return (struct run){all.from + from, to - from};
}

/* Sums a run of the slots into out, where the run begins at out[0]. */
static void sum_run(const struct coll *c, struct run r, enum coll_type type, void *out, bool add)
{
    const void *in[COLL_MAX];
    size_t unit = type_bytes(type);
    for (u32 m = 0; m < c->n; m++) in[m] = slot_of(c, m) + r.from * unit;
    sum_members(in, c->n, out, r.n, type, add);
}

/* out (+)= what a member's slot has of a run. */
static void take_run(const struct coll *c, u32 m, struct run r, enum coll_type type, u8 *out, bool add)
{
    size_t unit = type_bytes(type);
    const void *from = slot_of(c, m) + r.from * unit;
    if (add)
        sum_members(&from, 1, out, r.n, type, true);
    else
        memcpy(out, from, r.n * unit);
}

static int one_shot(struct coll *c, const struct coll_reduce *r, struct run piece, const struct call *call,
                    const struct coll_how *how, struct error *err)
{
    size_t unit = type_bytes(r->type);
    int rc = thread_of(how) ? 0 : post_and_await_all(c, call, err);
    rc = team_result(c, how, rc, err);
    if (rc) return rc;
    struct run own = part_of((struct run){0, piece.n}, unit, thread_of(how), threads_of(how));
    sum_run(c, own, r->type, (u8 *)r->out + (piece.from + own.from) * unit, r->add);
    return 0;
}

/* Member i adds up part i and leaves it in its slot; the others take it from there. */
static int two_stage(struct coll *c, const struct coll_reduce *r, struct run piece, const struct call *call,
                     const struct coll_how *how, struct error *err)
{
    size_t unit = type_bytes(r->type);
    const struct run all = {0, piece.n};
    int rc = thread_of(how) ? 0 : post_and_await_all(c, call, err);
    rc = team_result(c, how, rc, err);
    if (rc) return rc;
    struct run own = part_of(part_of(all, unit, c->me, c->n), unit, thread_of(how), threads_of(how));
    sum_run(c, own, r->type, slot_of(c, c->me) + own.from * unit, false);
    team_barrier(how);
    if (!thread_of(how)) {
        c->phase++;
        rc = post_and_await_all(c, call, err);
    }
    rc = team_result(c, how, rc, err);
    for (u32 m = 0; m < c->n && !rc; m++) {
        struct run theirs = part_of(part_of(all, unit, m, c->n), unit, thread_of(how), threads_of(how));
        take_run(c, m, theirs, r->type, (u8 *)r->out + (piece.from + theirs.from) * unit, r->add);
    }
    return rc;
}

static int reduce_piece(struct coll *c, const struct coll_reduce *r, struct run piece,
                        const struct call *call, const struct coll_how *how, struct error *err)
{
    size_t unit = type_bytes(r->type);
    int rc = thread_of(how) ? 0 : claim(c, call, err);
    rc = team_result(c, how, rc, err);
    if (rc) return rc;
    struct run own = part_of((struct run){0, piece.n}, unit, thread_of(how), threads_of(how));
    u8 *slot = slot_of(c, c->me);
    if (r->in != slot)
        memcpy(slot + own.from * unit, (const u8 *)r->in + (piece.from + own.from) * unit, own.n * unit);
    team_barrier(how);
    bool small = c->n == 2 || piece.n * unit <= ONE_SHOT_BYTES;
    rc = small ? one_shot(c, r, piece, call, how, err) : two_stage(c, r, piece, call, how, err);
    team_barrier(how);
    if (!rc && !thread_of(how)) finish(c);
    team_barrier(how);
    return rc;
}

static int shm_all_reduce(struct coll *c, const struct coll_reduce *r, const struct call *call,
                          const struct coll_how *how, struct error *err)
{
    size_t most = SLOT_BYTES / type_bytes(r->type), at = 0;
    int rc = 0;
    do { /* a sum of nothing is a meeting too */
        rc = reduce_piece(c, r, (struct run){at, MIN_OF(most, r->count - at)}, call, how, err);
        at += most;
    } while (at < r->count && !rc);
    return rc;
}

void *coll_slot(struct coll *c, size_t bytes)
{
    struct call call = {
        .kind = CALL_ALL_REDUCE, .root = NOBODY, .bytes = bytes, .wait_ns = c->world->spec.wait_ns};
    if (c->n == 1 || !c->area || bytes > SLOT_BYTES) return NULL;
    return claim(c, &call, NULL) ? NULL : slot_of(c, c->me);
}

/* ---- gathers ---------------------------------------------------------------------------------------------------*/
static int gather_piece(struct coll *c, const struct coll_gather *g, struct run piece,
                        const struct call *call, const struct coll_how *how, struct error *err)
{
    bool reads = call->root == NOBODY || call->root == c->me, writes = call->root != c->me;
    int rc = 0;
    if (!thread_of(how)) rc = writes ? claim(c, call, err) : world_look(c, err);
    rc = team_result(c, how, rc, err);
    if (rc) return rc;
    struct run own = part_of((struct run){0, piece.n}, 1, thread_of(how), threads_of(how));
    if (writes) gather_pack(g, piece.from + own.from, own.n, slot_of(c, c->me) + own.from);
    team_barrier(how);
    if (!thread_of(how)) {
        if (writes) post(c, call);
        rc = reads ? await_all(c, call, err) : 0;
    }
    rc = team_result(c, how, rc, err);
    for (u32 m = 0; m < c->n && reads && !rc; m++)
        if (m != c->me) gather_unpack(g, m, piece.from + own.from, own.n, slot_of(c, m) + own.from);
    team_barrier(how);
    if (!rc && !thread_of(how)) finish(c);
    team_barrier(how);
    return rc;
}

static int shm_gather(struct coll *c, const struct coll_gather *g, const struct call *call,
                      const struct coll_how *how, struct error *err)
{
    size_t all = g->rows * g->bytes, at = 0;
    int rc = 0;
    do {
        rc = gather_piece(c, g, (struct run){at, MIN_OF((size_t)SLOT_BYTES, all - at)}, call, how, err);
        at += SLOT_BYTES;
    } while (at < all && !rc);
    return rc;
}

/* ---- one thread's calls ----------------------------------------------------------------------------------------*/
static int shm_broadcast(struct coll *c, void *data, const struct call *call, struct error *err)
{
    int rc = 0;
    for (size_t at = 0; at < MAX_OF(call->bytes, 1u) && !rc; at += SLOT_BYTES) {
        size_t n = MIN_OF((size_t)SLOT_BYTES, call->bytes - at);
        if (call->root == c->me) {
            rc = claim(c, call, err);
            if (rc) return rc;
            memcpy(slot_of(c, c->me), (u8 *)data + at, n);
            post(c, call);
        } else {
            rc = await(c, call->root, call, err);
            if (rc) return rc;
            memcpy((u8 *)data + at, slot_of(c, call->root), n);
        }
        finish(c);
    }
    return rc;
}

/* A slot has a piece of the block for each member. */
static int shm_all_to_all(struct coll *c, const u8 *in, u8 *out, size_t bytes, const struct call *call,
                          struct error *err)
{
    const size_t most = SLOT_BYTES / c->n / CACHE_LINE * CACHE_LINE;
    int rc = 0;
    for (size_t at = 0; at < MAX_OF(bytes, (size_t)1) && !rc; at += most) {
        size_t n = MIN_OF(most, bytes - at);
        rc = claim(c, call, err);
        if (rc) return rc;
        for (u32 m = 0; m < c->n; m++) memcpy(slot_of(c, c->me) + m * most, in + m * bytes + at, n);
        rc = post_and_await_all(c, call, err);
        if (rc) return rc;
        for (u32 m = 0; m < c->n; m++) memcpy(out + m * bytes + at, slot_of(c, m) + c->me * most, n);
        finish(c);
    }
    return rc;
}

const struct transport transport_shm = {shm_all_reduce, shm_gather, shm_broadcast, shm_all_to_all};
