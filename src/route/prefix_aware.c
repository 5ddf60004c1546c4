/* To who holds most of the prompt already (route.h: what counts, and when load is more important). */
#include "route/prefix_index.h"

#include <stdlib.h>

enum { AHEAD = 8 }; /* blocks whose bucket is on its way while one is looked at */
struct match {
    u32 replica, length;
};
struct prefix_router {
    struct prefix_index index;
    struct match matches[2 * HOLDERS]; /* of the ask at work: who holds a prefix, and how many blocks */
    u32 n_matches;
    /* The last choice: its replica is known to hold the first `length` of these blocks. A chained hash stands for all before it. */
    u64 last_hash;
    u32 n_prefix;
    struct match last;
};

static void *new (const struct router *r)
{
    struct prefix_router *p = mem_zero(1, sizeof *p);
    prefix_index_init(&p->index, r->n, r->prefix_blocks);
    return p;
}

static void release(void *state)
{
    struct prefix_router *p = state;
    prefix_index_release(&p->index);
    free(p);
}

static bool has(const struct holders *h, u16 replica)
{
    for (u32 k = 0; k < h->n; k++)
        if (h->replicas[k] == replica) return true;
    return false;
}

/* Who does not hold the block after the first `length` is done; the others stay. */
static void keep_common(struct prefix_router *p, struct holders *of, const struct holders *with, u32 length)
{
    u32 n = 0;
    for (u32 k = 0; k < of->n; k++)
        if (has(with, of->replicas[k]))
            of->replicas[n++] = of->replicas[k];
        else
            p->matches[p->n_matches++] = (struct match){of->replicas[k], length};
    of->n = n;
}

static void add_all(struct prefix_router *p, const struct holders *h, u32 length)
{
    for (u32 k = 0; k < h->n; k++) p->matches[p->n_matches++] = (struct match){h->replicas[k], length};
}

/* Fills the matches. A block whose holders are at their maximum excludes nobody: who is found behind it holds it, too, as far as
 * anybody knows. So of a row of such blocks at the begin only the last one's holders matter. */
static void walk(struct router *r, const struct route_ask *ask)
{
    struct prefix_router *p = r->state;
    const struct prefix_index *x = &p->index;
    struct holders best = {.n = 0}, here;
    bool anybody = true; /* no block so far has told all of its holders */
    u32 i, length = 0;   /* length: of the prefix that best hold */
    p->n_matches = 0;
    for (i = 0; i < MIN_OF(ask->n_prefix, (u32)AHEAD); i++) prefix_index_ready(x, ask->prefix[i]);
    for (i = 0; i < ask->n_prefix; i++) {
        if (i + AHEAD < ask->n_prefix) prefix_index_ready(x, ask->prefix[i + AHEAD]);
        if (prefix_index_use(&p->index, ask->prefix[i]) < HOLDERS) {
            prefix_index_holders(x, r, ask->prefix[i], &here);
            if (anybody) {
                if (i > 0) prefix_index_holders(x, r, ask->prefix[i - 1], &best);
                add_all(p, &best, length); /* for when those who hold more are overloaded */
                anybody = false;
                best = here;
            } else {
                keep_common(p, &best, &here, length);
            }
            if (best.n == 0) return;
        }
        length = i + 1;
    }
    if (anybody && i > 0) prefix_index_holders(x, r, ask->prefix[i - 1], &best);
    add_all(p, &best, length);
}

static bool overloaded(const struct router *r, u32 i)
{
    u64 n = r->n_eligible, then = r->seats[i].ongoing + 1ull;
    u64 more = MAX_OF(r->views[i].n_slots / ROUTE_PREFIX_SLOTS_MORE, 1u);
    return then * n > r->total + 1 + more * n && 2 * then * n > 3 * (r->total + 1);
}

static bool better(const struct router *r, const struct match *a, const struct match *b)
{
    if (a->length != b->length) return a->length > b->length;
    return r->seats[a->replica].ongoing < r->seats[b->replica].ongoing;
}

static i32 choose(struct router *r, const struct route_ask *ask)
{
    struct prefix_router *p = r->state;
    const struct match *best = NULL;
    walk(r, ask);
    for (u32 k = 0; k < p->n_matches; k++) {
        const struct match *m = &p->matches[k];
        bool worth = (u64)m->length * ROUTE_PREFIX_WORTH >= ask->n_prefix;
        if (worth && (!best || better(r, m, best)) && !overloaded(r, m->replica)) best = m;
    }
    p->last = best ? *best : (struct match){(u32)route_power_of_two(r), 0};
    p->n_prefix = ask->n_prefix;
    p->last_hash = ask->n_prefix ? ask->prefix[ask->n_prefix - 1] : 0;
    return (i32)p->last.replica;
}

static void chosen(struct router *r, u32 i, const struct route_ask *ask)
{
    struct prefix_router *p = r->state;
    u32 k = 0;
    if (ask->n_prefix == 0) return;
    if (p->last.replica == i && p->n_prefix == ask->n_prefix && p->last_hash == ask->prefix[p->n_prefix - 1])
        k = p->last.length;
    for (; k < ask->n_prefix; k++) {
        if (k + AHEAD < ask->n_prefix) prefix_index_ready(&p->index, ask->prefix[k + AHEAD]);
        prefix_index_put(&p->index, r, ask->prefix[k], i);
    }
}

static void add(struct router *r, u32 i, u64 hash)
{
    prefix_index_put(&((struct prefix_router *)r->state)->index, r, hash, i);
}

static void drop(struct router *r, u32 i, u64 hash)
{
    struct prefix_router *p = r->state;
    p->last.length = 0; /* it may have been one of these */
    prefix_index_remove(&p->index, hash, i);
}

static void clear(struct router *r, u32 i)
{
    struct prefix_router *p = r->state;
    p->last.length = 0;
    prefix_index_clear(&p->index, i);
}

const struct route_policy policy_prefix_aware = {
    .name = "prefix_aware",
    .help =
        "the replica whose cache holds most of the prompt, unless it is overloaded; others by power_of_two",
    .choose = choose,
    .new = new,
    .free = release,
    .chosen = chosen,
    .prefix_add = add,
    .prefix_remove = drop,
    .prefix_clear = clear,
};
