/* When to start an engine again. Time is an argument. */
#include "mpiserve/proc.h"

const struct restart_policy restart_default = {
    .first_ns = 50 * NS_PER_MS,
    .longest_ns = 10 * NS_PER_S,
    .window_ns = 120 * NS_PER_S,
    .calm_ns = 30 * NS_PER_S,
    .most = 8,
};

void restart_init(struct restart *r, const struct restart_policy *policy)
{
    *r = (struct restart){.policy = policy ? *policy : restart_default};
    BUG_ON(r->policy.most < 1 || r->policy.most > RESTART_MOST);
}

void restart_ready(struct restart *r, u64 now_ns)
{
    r->ready_ns = now_ns;
}

u64 restart_died(struct restart *r, u64 now_ns)
{
    const struct restart_policy *p = &r->policy;
    if (r->ready_ns && now_ns - r->ready_ns >= p->calm_ns) r->streak = 0;
    r->ready_ns = 0;
    r->deaths[r->n_deaths++ % p->most] = now_ns;
    /* the oldest of the last `most` deaths sits where the next one will go */
    if (r->n_deaths >= p->most && now_ns - r->deaths[r->n_deaths % p->most] <= p->window_ns) r->broken = true;
    if (r->broken) return UINT64_MAX;
    u64 wait = p->first_ns;
    for (u32 i = 0; i < r->streak && wait < p->longest_ns; i++) wait *= 2;
    r->streak++;
    return now_ns + MIN_OF(wait, p->longest_ns);
}

bool restart_broken(const struct restart *r)
{
    return r->broken;
}
