/* Who is rung before an operation on the slot window waits. In a job of one node processor atomics do it all and nobody is; in a job of
 * several, each operation is a message that its target serves, a target on the own node too. The nodes are told, not real.
 * ranks: 4
 * By hand: mpirun -np 4 --oversubscribe build/tests/mpi/wakes */
#include "tap.h"

#include "mpiserve/slots.h"

#include <unistd.h>

enum { SLOTS = 2, RANKS_MAX = 64 };

static u32 rung[RANKS_MAX];

static void ring(void *ctx, u32 rank)
{
    (void)ctx;
    rung[rank]++;
}

static void must(struct wire *w, int rc, const struct error *err)
{
    if (rc >= 0) return;
    fprintf(stderr, "Bail out! rank %u: %s\n", wire_rank(w), err->message);
    wire_abort(w, 1);
}

/* Collective: reserves one slot of every other rank and notes who was rung for it. */
static void visit_all(struct tap *t, u32 nodes, bool expected)
{
    struct wire *w = t->wire;
    u32 size = wire_size(w), me = wire_rank(w), node_of[RANKS_MAX] = {0};
    struct error err = {0};
    for (u32 r = 0; r < size; r++) node_of[r] = r * nodes / size;
    struct slots_spec spec = {.owner = (u16)me,
                              .epoch = 1,
                              .node_of = node_of,
                              .lease_short_ns = NS_PER_S,
                              .lease_long_ns = NS_PER_S,
                              .ring = ring};
    struct slots *s = slots_new(&spec, &err);
    must(w, s ? 0 : -1, &err);
    must(w, slots_open(s, (i32)me, SLOTS, &err), &err);
    must(w, wire_barrier(w, &err), &err);
    for (u32 r = 0; r < size; r++) {
        struct slots_answer a;
        if (r == me) continue;
        rung[r] = 0;
        must(w, slots_reserve(s, (i32)r, r, SLOTS, SLOT_CLASS_SHORT, &a, &err), &err);
        CHECK(t, (rung[r] > 0) == expected, "rank %u was rung %u times", r, rung[r]);
        if (a.accepted) must(w, slots_release(s, r, &a.token, &err), &err);
    }
    must(w, wire_barrier(w, &err), &err);
    slots_free(s);
}

int main(int argc, char **argv)
{
    struct tap t;
    alarm(60);
    if (wire_size(tap_start(&t, &argc, &argv)) > RANKS_MAX) return 1;
    visit_all(&t, 1, false);
    tap_case(&t, "one node: nobody needs to be woken");
    visit_all(&t, 2, true);
    tap_case(&t, "two nodes: every target is woken, on the own node too");
    return tap_end(&t);
}
