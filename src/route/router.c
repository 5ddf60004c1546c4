/* What all policies share: who is eligible, what is ongoing there, and the exclusions of a round. */
#include "route/router.h"

#include <stdlib.h>

static void enter(struct router *r, u32 i)
{
    struct seat *s = &r->seats[i];
    s->at = r->n_eligible;
    r->eligible[r->n_eligible++] = i;
    r->total += s->ongoing;
    if (r->policy->enter) r->policy->enter(r, i);
}

static void leave(struct router *r, u32 i)
{
    struct seat *s = &r->seats[i];
    u32 last = r->eligible[--r->n_eligible];
    r->eligible[s->at] = last;
    r->seats[last].at = s->at;
    s->at = ROUTE_NOWHERE;
    r->total -= s->ongoing;
    if (r->policy->leave) r->policy->leave(r, i);
}

static void settle(struct router *r, u32 i)
{
    const struct seat *s = &r->seats[i];
    bool is = s->at != ROUTE_NOWHERE, should = s->up && !s->excluded;
    if (should && !is) enter(r, i);
    if (is && !should) leave(r, i);
}

struct router *router_new(const struct route_policy *policy, const struct route_view *views, u32 n, u64 key,
                          u32 prefix_blocks)
{
    BUG_ON(n > ROUTE_MAX_REPLICAS);
    struct router *r = mem_zero(1, sizeof *r);
    *r = (struct router){
        .policy = policy, .views = views, .n = n, .home = -1, .key = key, .prefix_blocks = prefix_blocks};
    r->seats = mem_zero(n + 1, sizeof *r->seats);
    r->eligible = mem_zero(n + 1, sizeof *r->eligible);
    r->excluded = mem_zero(n + 1, sizeof *r->excluded);
    for (u32 i = 0; i < n; i++) {
        r->seats[i].at = ROUTE_NOWHERE;
        if (views[i].home) r->home = (i32)i;
    }
    if (policy->new) r->state = policy->new (r);
    for (u32 i = 0; i < n; i++) router_update(r, i);
    return r;
}

void router_free(struct router *r)
{
    if (!r) return;
    if (r->policy->free) r->policy->free(r->state);
    free(r->seats);
    free(r->eligible);
    free(r->excluded);
    free(r);
}

void router_update(struct router *r, u32 index)
{
    BUG_ON(index >= r->n);
    struct seat *s = &r->seats[index];
    u32 ongoing = r->views[index].ongoing;
    s->up = r->views[index].state == ROUTE_UP;
    if (s->at != ROUTE_NOWHERE && !s->up) leave(r, index);
    if (s->ongoing != ongoing) {
        if (s->at != ROUTE_NOWHERE) r->total += (u64)ongoing - s->ongoing;
        s->ongoing = ongoing;
        if (s->at != ROUTE_NOWHERE && r->policy->changed) r->policy->changed(r, index);
    }
    settle(r, index);
}

void router_round(struct router *r)
{
    while (r->n_excluded) {
        u32 i = r->excluded[--r->n_excluded];
        r->seats[i].excluded = false;
        settle(r, i);
    }
}

void router_exclude(struct router *r, u32 index)
{
    BUG_ON(index >= r->n);
    if (r->seats[index].excluded) return;
    r->seats[index].excluded = true;
    r->excluded[r->n_excluded++] = index;
    settle(r, index);
}

i32 router_choose(struct router *r, const struct route_ask *ask)
{
    static const struct route_ask nothing = {0};
    r->choices++;
    return r->n_eligible ? r->policy->choose(r, ask ? ask : &nothing) : -1;
}

void router_chosen(struct router *r, u32 index, const struct route_ask *ask)
{
    BUG_ON(index >= r->n);
    if (r->policy->chosen && ask) r->policy->chosen(r, index, ask);
}

void router_prefix_add(struct router *r, u32 index, u64 hash)
{
    BUG_ON(index >= r->n);
    if (r->policy->prefix_add) r->policy->prefix_add(r, index, hash);
}

void router_prefix_remove(struct router *r, u32 index, u64 hash)
{
    BUG_ON(index >= r->n);
    if (r->policy->prefix_remove) r->policy->prefix_remove(r, index, hash);
}

void router_prefix_clear(struct router *r, u32 index)
{
    BUG_ON(index >= r->n);
    if (r->policy->prefix_clear) r->policy->prefix_clear(r, index);
}
