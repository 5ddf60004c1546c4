/* A replica at random, without a look at its load: what the others are compared with. */
#include "route/router.h"

static i32 choose(struct router *r, const struct route_ask *ask)
{
    u32 x[4];
    (void)ask;
    router_draw(r, x);
    return (i32)r->eligible[route_below(x[0], r->n_eligible)];
}

const struct route_policy policy_random = {
    .name = "random",
    .help = "any replica, without a look at its load; for comparison",
    .choose = choose,
};
