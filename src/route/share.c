/* Max-min fair shares of slots among ingresses. */
#include "mpiserve/route.h"

/* What a level leaves: positive while it is not reached by the sum of what each gets under it. */
static u64 taken(const struct route_demand *d, u32 n, u32 self, u64 level)
{
    u64 sum = 0;
    for (u32 i = 0; i < n; i++)
        if (d[i].waiting || i == self) sum += MIN_OF((u64)d[i].waiting + d[i].in_use, level);
    return sum;
}

u32 route_fair_share(u32 slots, const struct route_demand *d, u32 n, u32 self)
{
    u64 low = 0, high = slots; /* the smallest level at which nothing is left over */
    while (low < high) {
        u64 middle = (low + high) / 2;
        if (taken(d, n, self, middle) >= slots)
            high = middle;
        else
            low = middle + 1;
    }
    return (u32)low;
}
