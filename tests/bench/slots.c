/* reserve + release on a node, uncontended: rank 0 takes and gives back a slot of rank 1, which sleeps, and one of its own.
 * Prints one JSON object: microseconds of a pair, median, least and most of the batches.
 *   mpirun -np 2 slots [BATCHES] */
#include "mpiserve/slots.h"
#include "mpiserve/wire.h"

#include <stdio.h>
#include <stdlib.h>

enum { PAIRS = 1000, SLOTS = 64, MAX_BATCHES = 10000 };

static struct wire *wire;

static void need(bool fine, const struct error *err)
{
    char text[1200];
    if (fine) return;
    fprintf(stderr, "slots: %s\n", error_text(err, text, sizeof text));
    wire_abort(wire, 1);
}

/* Microseconds of a pair, over one batch. */
static double batch(struct slots *s, u32 leader)
{
    struct error err = {0};
    u64 start = clock_ns();
    for (int i = 0; i < PAIRS; i++) {
        struct slots_answer a;
        need(!slots_reserve(s, (i32)leader, leader, SLOTS, SLOT_CLASS_SHORT, &a, &err), &err);
        if (!a.accepted) error_set(&err, ERR_STATE, "reserve", "refused in an empty window");
        need(a.accepted, &err);
        int released = slots_release(s, leader, &a.token, &err);
        if (released == 0) error_set(&err, ERR_STATE, "release", "the slot was lost");
        need(released == 1, &err);
    }
    return (double)(clock_ns() - start) / 1e3 / PAIRS;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(struct slots *s, u32 leader, int batches, const char *name)
{
    double us[MAX_BATCHES];
    batch(s, leader); /* warms up */
    for (int i = 0; i < batches; i++) us[i] = batch(s, leader);
    qsort(us, (size_t)batches, sizeof *us, by_value);
    printf(", \"%s\": {\"median\": %.4f, \"min\": %.4f, \"max\": %.4f}", name, us[batches / 2], us[0],
           us[batches - 1]);
}

int main(int argc, char **argv)
{
    struct error err = {0};
    static const u32 node_of[2];
    int batches = argc > 1 ? atoi(argv[1]) : 200;
    wire = wire_init(&argc, &argv, &err);
    need(wire != NULL, &err);
    if (wire_size(wire) != 2 || wire_n_nodes(wire) != 1 || batches < 1 || batches > MAX_BATCHES)
        error_set(&err, ERR_INPUT, "slots", "mpirun -np 2 slots [BATCHES], on one node");
    need(!err.code, &err);
    struct slots_spec spec = {
        .epoch = 1, .node_of = node_of, .lease_short_ns = 3600 * NS_PER_S, .lease_long_ns = 3600 * NS_PER_S};
    struct slots *s = slots_new(&spec, &err);
    need(s != NULL, &err);
    u32 rank = wire_rank(wire);
    need(!slots_open(s, (i32)rank, SLOTS, &err), &err);
    need(!wire_barrier(wire, &err), &err);
    if (rank == 0) {
        printf("{\"pairs\": %d", batches * PAIRS);
        measure(s, 1, batches, "other_us");
        measure(s, 0, batches, "own_us");
        printf("}\n");
    }
    need(!wire_barrier(wire, &err), &err);
    slots_free(s);
    wire_end(wire);
    return 0;
}
