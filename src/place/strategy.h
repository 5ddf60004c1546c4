/* Inside of place/: how a strategy divides replicas among nodes. */
#ifndef PLACE_STRATEGY_H
#define PLACE_STRATEGY_H

#include "mpiserve/place.h"

struct node_room {
    u32 ranks;  /* that may hold an engine */
    u32 room;   /* replicas that may be placed there */
    u32 take;   /* replicas that are, as a whole */
    u32 stages; /* pipeline stages of replicas that lie on several nodes */
};
bool place_is_strict(enum place_strategy s);
/* Takes away the room that a strict strategy does not use. order [n]: nodes with ranks, by their lowest; order[0] is the
 * head. ERR_INPUT when that cannot work out. */
int strategy_narrow(struct node_room *nodes, const u32 *order, u32 n, const struct place_spec *spec,
                    u64 group, struct error *err);
/* Deals so many replicas into the room of the nodes of order [n], which is enough. */
void strategy_deal(struct node_room *nodes, const u32 *order, u32 n, enum place_strategy strategy,
                   u64 replicas);

#endif
