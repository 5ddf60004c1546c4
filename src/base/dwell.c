#include "mpiserve/base.h"

#include <sched.h>

void dwell_worked(struct dwell *d, u64 now_ns)
{
    d->worked_ns = now_ns;
    d->turns = 0;
}

bool dwell_may(const struct dwell *d, u64 now_ns)
{
    return now_ns < d->worked_ns + DWELL_NS && d->turns < DWELL_TURNS && now_ns >= d->shy_until_ns;
}

void dwell_gave_way(struct dwell *d, u64 before_ns, u64 now_ns)
{
    d->turns += now_ns - before_ns > DWELL_TURN_NS;
    if (now_ns - before_ns <= DWELL_HOG_NS) return;
    bool again = before_ns < d->shy_until_ns + 4 * d->shy_ns; /* soon after it dwelt again */
    d->shy_ns = again ? MIN_OF(2 * d->shy_ns, DWELL_SHY_MOST_NS) : DWELL_SHY_MIN_NS;
    d->shy_until_ns = now_ns + d->shy_ns;
}

bool dwell_on(struct dwell *d, u64 now_ns)
{
    if (!dwell_may(d, now_ns)) return false;
    sched_yield();
    dwell_gave_way(d, now_ns, clock_ns());
    return true;
}
