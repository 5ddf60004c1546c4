/* The choice of a replica: policies in a table. */
#include "mpiserve/route.h"

#include <stdio.h>
#include <string.h>

static const struct route_policy policies[] = {
    {"power_of_two", "two random replicas, the one with fewer ongoing requests", route_power_of_two},
};

const struct route_policy *route_policies(u32 *n)
{
    *n = COUNT_OF(policies);
    return policies;
}

const struct route_policy *route_policy_find(const char *name, struct error *err)
{
    char known[256] = "";
    for (size_t i = 0; i < COUNT_OF(policies); i++) {
        if (strcmp(policies[i].name, name) == 0) return &policies[i];
        size_t at = strlen(known);
        snprintf(known + at, sizeof known - at, "%s%s", at ? ", " : "", policies[i].name);
    }
    error_set(err, ERR_NOT_FOUND, name, "is no routing policy; there are: %s", known);
    return NULL;
}

void route_exclude(struct route_excluded *x, u32 index)
{
    BUG_ON(index >= ROUTE_MAX_REPLICAS);
    u64 bit = 1ull << (index % 64);
    if (x->bits[index / 64] & bit) return;
    x->bits[index / 64] |= bit;
    x->n++;
}

void route_exclude_clear(struct route_excluded *x)
{
    if (x->n) memset(x, 0, sizeof *x);
}

bool route_is_excluded(const struct route_excluded *x, u32 index)
{
    return x && index < ROUTE_MAX_REPLICAS && x->bits[index / 64] >> (index % 64) & 1;
}

static bool eligible(const struct route_view *view, u32 i, const struct route_excluded *x)
{
    return view[i].state == ROUTE_UP && !route_is_excluded(x, i);
}

/* The eligible replica at or after `start`, going round; not `other`. -1: none. */
static i32 next_eligible(const struct route_view *view, u32 n, const struct route_excluded *x, u32 start,
                         i32 other)
{
    for (u32 k = 0; k < n; k++) {
        u32 i = (start + k) % n;
        if ((i32)i != other && eligible(view, i, x)) return (i32)i;
    }
    return -1;
}

/* A few draws find an eligible one while most are; where few are left, going round finds it. */
static i32 draw(const struct route_view *view, u32 n, const struct route_excluded *x, const u32 r[4],
                i32 other)
{
    for (int k = 0; k < 3; k++) {
        u32 i = (u32)((u64)r[k] * n >> 32);
        if ((i32)i != other && eligible(view, i, x)) return (i32)i;
    }
    return next_eligible(view, n, x, (u32)((u64)r[3] * n >> 32), other);
}

i32 route_power_of_two(const struct route_view *view, u32 n, const struct route_excluded *x, u64 key,
                       u64 counter)
{
    u32 r[4], q[4];
    if (n == 0) return -1;
    rng_block(key, counter, 0, r);
    rng_block(key, counter, 1, q);
    i32 a = draw(view, n, x, r, -1);
    if (a < 0) return -1;
    i32 b = draw(view, n, x, q, a);
    if (b < 0) return a;
    if (view[a].ongoing != view[b].ongoing) return view[a].ongoing < view[b].ongoing ? a : b;
    return (r[0] ^ q[0]) & 1 ? a : b;
}
