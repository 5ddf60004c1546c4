/* Those who wait for a slot: one set, three binary heaps over it (turn, deadline, arrival); each waiter knows its places. */
#include "mpiserve/route.h"

#include <stdlib.h>

enum { BY_TURN, BY_DEADLINE, BY_ARRIVAL, HEAPS };
static const u32 outside = UINT32_MAX;

void route_queue_init(struct route_queue *q, u32 max)
{
    *q = (struct route_queue){.max = max, .patience_ns = UINT64_MAX};
    for (int h = 0; h < HEAPS; h++) q->heaps[h] = mem_zero(max ? max : 1, sizeof *q->heaps[h]);
}

void route_queue_release(struct route_queue *q)
{
    for (int h = 0; h < HEAPS; h++) free(q->heaps[h]);
    *q = (struct route_queue){0};
}

void route_waiter_init(struct route_waiter *x, i64 priority, u64 deadline_ns)
{
    *x = (struct route_waiter){
        .priority = priority, .deadline_ns = deadline_ns, .at = {outside, outside, outside}};
}

bool route_queue_holds(const struct route_queue *q, const struct route_waiter *x)
{
    return x->at[BY_TURN] < q->n && q->heaps[BY_TURN][x->at[BY_TURN]] == x;
}

static bool before(int heap, const struct route_waiter *a, const struct route_waiter *b)
{
    if (heap == BY_DEADLINE && a->deadline_ns != b->deadline_ns) return a->deadline_ns < b->deadline_ns;
    if (heap == BY_TURN && a->priority != b->priority) return a->priority < b->priority;
    return a->order < b->order;
}

static void set(struct route_queue *q, int heap, u32 at, struct route_waiter *x)
{
    q->heaps[heap][at] = x;
    x->at[heap] = at;
}

/* Puts x at `at` or where it belongs on the way up. */
static u32 rise(struct route_queue *q, int heap, u32 at, struct route_waiter *x)
{
    while (at > 0 && before(heap, x, q->heaps[heap][(at - 1) / 2])) {
        set(q, heap, at, q->heaps[heap][(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    set(q, heap, at, x);
    return at;
}

static void sink(struct route_queue *q, int heap, u32 at, u32 n, struct route_waiter *x)
{
    for (u32 child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && before(heap, q->heaps[heap][child + 1], q->heaps[heap][child])) child++;
        if (!before(heap, q->heaps[heap][child], x)) break;
        set(q, heap, at, q->heaps[heap][child]);
    }
    set(q, heap, at, x);
}

int route_queue_put(struct route_queue *q, struct route_waiter *x, struct error *err)
{
    if (q->n >= q->max)
        return error_set(err, ERR_FULL, "", "the queue holds %u waiting requests, its most", q->max);
    BUG_ON(route_queue_holds(q, x));
    if (x->order == 0) x->order = ++q->arrivals; /* who comes back keeps its turn */
    q->n++;
    for (int h = 0; h < HEAPS; h++) rise(q, h, q->n - 1, x);
    return 0;
}

struct route_waiter *route_queue_first(const struct route_queue *q, u64 now_ns)
{
    if (!q->n) return NULL;
    struct route_waiter *oldest = q->heaps[BY_ARRIVAL][0];
    bool old = now_ns > oldest->since_ns && now_ns - oldest->since_ns >= q->patience_ns;
    return q->passed_over && old ? oldest : q->heaps[BY_TURN][0];
}

void route_queue_serve(struct route_queue *q, struct route_waiter *x)
{
    BUG_ON(!route_queue_holds(q, x));
    q->passed_over = q->heaps[BY_ARRIVAL][0] != x;
    route_queue_remove(q, x);
}

void route_queue_remove(struct route_queue *q, struct route_waiter *x)
{
    if (!route_queue_holds(q, x)) return;
    for (int h = 0; h < HEAPS; h++) {
        u32 at = x->at[h];
        struct route_waiter *last = q->heaps[h][q->n - 1];
        if (last != x) {
            if (rise(q, h, at, last) == at) sink(q, h, at, q->n - 1, last);
        }
        x->at[h] = outside;
    }
    q->n--;
}

u64 route_queue_deadline(const struct route_queue *q)
{
    return q->n ? q->heaps[BY_DEADLINE][0]->deadline_ns : UINT64_MAX;
}

struct route_waiter *route_queue_expired(struct route_queue *q, u64 now_ns)
{
    if (q->n == 0 || q->heaps[BY_DEADLINE][0]->deadline_ns > now_ns) return NULL;
    struct route_waiter *x = q->heaps[BY_DEADLINE][0];
    route_queue_remove(q, x);
    return x;
}
