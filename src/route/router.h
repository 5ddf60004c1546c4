/* Inside of route/: what policies see of a router, and what each of them is. */
#ifndef ROUTE_ROUTER_H
#define ROUTE_ROUTER_H

#include "mpiserve/route.h"

struct seat {    /* a replica, as of its last update */
    u32 ongoing; /* its view's */
    u32 at;      /* in eligible[]; ROUTE_NOWHERE: not eligible */
    bool up, excluded;
};
#define ROUTE_NOWHERE UINT32_MAX

struct router {
    const struct route_policy *policy;
    const struct route_view *views;
    struct seat *seats; /* [n] */
    u32 n;
    u32 *eligible, n_eligible; /* in no order that means anything */
    u32 *excluded, n_excluded; /* in this round */
    u64 total;                 /* ongoing on the eligible */
    i32 home;                  /* index of the view that is home; -1: none */
    u64 key, choices;
    u32 prefix_blocks; /* as router_new was told */
    void *state;       /* the policy's own */
};

/* All but choose may be NULL. enter and leave: the replica has become eligible, or is no longer; changed: it is and stays
 * eligible, its ongoing are others. Seats are as they are afterwards. choose: somebody is eligible. */
struct route_policy {
    const char *name, *help;
    i32 (*choose)(struct router *r, const struct route_ask *ask);
    void *(*new)(const struct router *r);
    void (*free)(void *state);
    void (*enter)(struct router *r, u32 i);
    void (*leave)(struct router *r, u32 i);
    void (*changed)(struct router *r, u32 i);
    void (*chosen)(struct router *r, u32 i, const struct route_ask *ask);
    void (*prefix_add)(struct router *r, u32 i, u64 hash);
    void (*prefix_remove)(struct router *r, u32 i, u64 hash);
    void (*prefix_clear)(struct router *r, u32 i);
};
extern const struct route_policy policy_power_of_two, policy_least_loaded, policy_round_robin, policy_session,
    policy_prefix_aware, policy_random;

/* Four random words for this choice. */
static inline void router_draw(const struct router *r, u32 out[4])
{
    rng_block(r->key, r->choices, 0, out);
}
/* Uniform below n. */
static inline u32 route_below(u32 random, u32 n)
{
    return (u32)((u64)random * n >> 32);
}
/* Home when it is idle; else of two draws the less loaded one. */
i32 route_power_of_two(struct router *r);

#endif
