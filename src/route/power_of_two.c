/* Power of two choices: nearly as even as looking at all, for the price of two looks. */
#include "route/router.h"

i32 route_power_of_two(struct router *r)
{
    u32 x[4];
    if (r->home >= 0 && r->seats[r->home].at != ROUTE_NOWHERE && r->seats[r->home].ongoing == 0)
        return r->home;
    router_draw(r, x);
    u32 a = route_below(x[0], r->n_eligible), i = r->eligible[a];
    if (r->n_eligible == 1) return (i32)i;
    u32 b = route_below(x[1], r->n_eligible - 1);
    u32 j = r->eligible[b + (b >= a)];
    /* Of a tie the first: it is as random as the second. */
    return (i32)(r->seats[j].ongoing < r->seats[i].ongoing ? j : i);
}

static i32 choose(struct router *r, const struct route_ask *ask)
{
    (void)ask;
    return route_power_of_two(r);
}

const struct route_policy policy_power_of_two = {
    .name = "power_of_two",
    .help = "two random replicas, the one with fewer ongoing requests; the own rank's when it is idle",
    .choose = choose,
};
