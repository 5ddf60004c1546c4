/* Sessions stay where they are: consistent hashing with bounded loads (route.h names the source). */
#include "route/bits.h"
#include "route/router.h"

#include <stdlib.h>

enum { CROWD_OF = 5, CROWD_FOR = 4 }; /* c = 5/4 */
struct point {
    u32 hash, replica;
};
struct circle {
    struct point *points; /* [n] by hash */
    u32 n;
    u32 *
        first; /* [1 << bits] where hashes with these first bits begin: a search is one look and a step or two */
    int bits;
    u32 *own;             /* [replicas, ROUTE_RING_POINTS] which points are a replica's */
    struct bits eligible; /* points of eligible replicas */
};

static int by_hash(const void *a, const void *b)
{
    const struct point *p = a, *q = b;
    if (p->hash != q->hash) return p->hash < q->hash ? -1 : 1;
    return p->replica < q->replica ? -1 : p->replica > q->replica;
}

static void place_points(struct circle *g, u32 replicas)
{
    u32 *seen = mem_zero(replicas + 1, sizeof *seen);
    for (u32 i = 0; i < g->n; i++) {
        const u32 of[2] = {i / ROUTE_RING_POINTS, i % ROUTE_RING_POINTS};
        g->points[i] = (struct point){(u32)(hash_bytes(of, sizeof of, 0) >> 32), of[0]};
    }
    qsort(g->points, g->n, sizeof *g->points, by_hash);
    for (u32 i = 0; i < g->n; i++) {
        u32 replica = g->points[i].replica;
        g->own[replica * ROUTE_RING_POINTS + seen[replica]++] = i;
    }
    free(seen);
}

static void *new (const struct router *r)
{
    struct circle *g = mem_zero(1, sizeof *g);
    g->n = r->n * ROUTE_RING_POINTS;
    for (g->bits = 1; g->n >> g->bits; g->bits++) {}
    g->points = mem_zero(g->n + 1, sizeof *g->points);
    g->own = mem_zero(g->n + 1, sizeof *g->own);
    g->first = mem_zero((size_t)1 << g->bits, sizeof *g->first);
    bits_init(&g->eligible, g->n);
    place_points(g, r->n);
    for (u32 prefix = 0, i = 0; prefix < 1u << g->bits; prefix++) {
        while (i < g->n && g->points[i].hash >> (32 - g->bits) < prefix) i++;
        g->first[prefix] = i;
    }
    return g;
}

static void release(void *state)
{
    struct circle *g = state;
    bits_release(&g->eligible);
    free(g->points);
    free(g->own);
    free(g->first);
    free(g);
}

static void enter(struct router *r, u32 i)
{
    struct circle *g = r->state;
    for (u32 k = 0; k < ROUTE_RING_POINTS; k++) bits_put(&g->eligible, g->own[i * ROUTE_RING_POINTS + k]);
}

static void leave(struct router *r, u32 i)
{
    struct circle *g = r->state;
    for (u32 k = 0; k < ROUTE_RING_POINTS; k++) bits_drop(&g->eligible, g->own[i * ROUTE_RING_POINTS + k]);
}

static u32 start(const struct circle *g, u32 hash)
{
    u32 i = g->first[hash >> (32 - g->bits)];
    while (i < g->n && g->points[i].hash < hash) i++;
    return i;
}

static u64 bound(const struct router *r)
{
    u64 n = (u64)CROWD_FOR * r->n_eligible;
    return (CROWD_OF * (r->total + 1) + n - 1) / n;
}

static i32 choose(struct router *r, const struct route_ask *ask)
{
    struct circle *g = r->state;
    if (!ask->has_session) return route_power_of_two(r);
    u64 most = bound(r);
    u32 at = start(g, (u32)(hash_bytes(&ask->session, sizeof ask->session, 0) >> 32));
    for (u32 i = at, steps = 0; steps <= 2 * g->n; i++, steps++) {
        i = bits_from(&g->eligible, i);
        if (i == BITS_NONE) i = bits_from(&g->eligible, 0);
        u32 replica = g->points[i].replica;
        if (r->seats[replica].ongoing + 1ull <= most) return (i32)replica;
    }
    BUG("all of %u eligible replicas are above the mean", r->n_eligible);
}

const struct route_policy policy_session = {
    .name = "session",
    .help = "equal sessions (X-Session-ID, session_id, user) to the same replica unless it is overloaded; "
            "others by "
            "power_of_two",
    .choose = choose,
    .new = new,
    .free = release,
    .enter = enter,
    .leave = leave,
};
