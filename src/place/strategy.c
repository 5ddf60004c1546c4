/* How many replicas each node takes. A strategy narrows the nodes' room (the strict ones) and says in which order it is used;
 * whether the replicas fit is then one sum. Linear in the ranks, but for one sort of the nodes. */
#include "place/strategy.h"

#include <stdlib.h>
#include <string.h>

static const char *const names[] = {[PLACE_PACK] = "PACK",
                                    [PLACE_STRICT_PACK] = "STRICT_PACK",
                                    [PLACE_SPREAD] = "SPREAD",
                                    [PLACE_STRICT_SPREAD] = "STRICT_SPREAD"};

const char *place_strategy_name(enum place_strategy s)
{
    return names[s];
}

int place_strategy_parse(const char *name, enum place_strategy *out)
{
    for (size_t i = 0; i < COUNT_OF(names); i++)
        if (strcmp(names[i], name) == 0) {
            *out = (enum place_strategy)i;
            return 0;
        }
    return ERR_INPUT;
}

bool place_is_strict(enum place_strategy s)
{
    return s == PLACE_STRICT_PACK || s == PLACE_STRICT_SPREAD;
}

/* ---- room ----------------------------------------------------------------------------------------------------*/
/* One node keeps its room: the head where replicas are asked for there, else the first that holds all of them (no number
 * given: the largest). */
static int keep_one_node(struct node_room *nodes, const u32 *order, u32 n, const struct place_spec *spec,
                         u64 group, struct error *err)
{
    u32 kept = 0, largest = 0;
    for (u32 i = 1; i < n; i++)
        if (nodes[order[i]].room > nodes[order[largest]].room) largest = i;
    if (spec->dp_local > 0)
        kept = 0;
    else if (spec->dp == PLACE_ABSENT)
        kept = largest;
    else
        while (kept < n && nodes[order[kept]].room < (u64)spec->dp) kept++;
    if (kept == n)
        return error_set(
            err, ERR_INPUT, "data_parallel_size",
            "asks for %lld replicas of %llu ranks each on one node (STRICT_PACK), and the largest "
            "holds %u: take fewer replicas, more ranks a node, or PACK",
            (long long)spec->dp, (unsigned long long)group, nodes[order[largest]].room);
    for (u32 i = 0; i < n; i++)
        if (i != kept) nodes[order[i]].room = 0;
    return 0;
}

int strategy_narrow(struct node_room *nodes, const u32 *order, u32 n, const struct place_spec *spec,
                    u64 group, struct error *err)
{
    if (spec->strategy == PLACE_STRICT_PACK) return keep_one_node(nodes, order, n, spec, group, err);
    if (spec->strategy != PLACE_STRICT_SPREAD) return 0;
    if (spec->dp_local > 1)
        return error_set(
            err, ERR_INPUT, "data_parallel_size_local",
            "asks for %lld replicas on the head node, and STRICT_SPREAD puts one on a node: take "
            "1, or SPREAD",
            (long long)spec->dp_local);
    for (u32 i = 0; i < n; i++) nodes[order[i]].room = MIN_OF(nodes[order[i]].room, 1u);
    return 0;
}

/* ---- dealing -------------------------------------------------------------------------------------------------*/
struct seat {
    u32 node, room, place; /* place: in the order of lowest ranks */
};

static int roomiest_first(const void *x, const void *y)
{
    const struct seat *a = x, *b = y;
    if (a->room != b->room) return a->room > b->room ? -1 : 1;
    return a->place < b->place ? -1 : a->place > b->place;
}

/* The fewest nodes: the largest are filled first. */
static void deal_packed(struct node_room *nodes, const u32 *order, u32 n, u64 replicas)
{
    struct seat *seats = mem_alloc((n + 1) * sizeof *seats);
    for (u32 i = 0; i < n; i++) seats[i] = (struct seat){order[i], nodes[order[i]].room, i};
    qsort(seats, n, sizeof *seats, roomiest_first);
    for (u32 i = 0; i < n && replicas; i++) {
        u32 take = (u32)MIN_OF(replicas, (u64)seats[i].room);
        nodes[seats[i].node].take = take;
        replicas -= take;
    }
    free(seats);
}

/* One to each node in turn; a node without room leaves the round, so that each replica is looked at once. */
static void deal_evenly(struct node_room *nodes, const u32 *order, u32 n, u64 replicas)
{
    u32 *round = mem_alloc((n + 1) * sizeof *round);
    memcpy(round, order, n * sizeof *round);
    while (replicas && n) {
        u32 left = 0;
        for (u32 i = 0; i < n && replicas; i++) {
            struct node_room *node = &nodes[round[i]];
            if (node->take == node->room) continue;
            node->take++;
            replicas--;
            round[left++] = round[i];
        }
        n = left;
    }
    free(round);
}

void strategy_deal(struct node_room *nodes, const u32 *order, u32 n, enum place_strategy strategy,
                   u64 replicas)
{
    if (strategy == PLACE_SPREAD || strategy == PLACE_STRICT_SPREAD)
        deal_evenly(nodes, order, n, replicas);
    else
        deal_packed(nodes, order, n, replicas);
}
