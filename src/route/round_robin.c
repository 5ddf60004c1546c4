/* One after the other, by index. */
#include "route/bits.h"
#include "route/router.h"

#include <stdlib.h>

struct turn {
    struct bits eligible;
    u32 next;
};

static void *new (const struct router *r)
{
    struct turn *t = mem_zero(1, sizeof *t);
    bits_init(&t->eligible, r->n);
    t->next = r->n ? (u32)(r->key % r->n) : 0;
    return t;
}

static void release(void *state)
{
    struct turn *t = state;
    bits_release(&t->eligible);
    free(t);
}

static void enter(struct router *r, u32 i)
{
    bits_put(&((struct turn *)r->state)->eligible, i);
}

static void leave(struct router *r, u32 i)
{
    bits_drop(&((struct turn *)r->state)->eligible, i);
}

static i32 choose(struct router *r, const struct route_ask *ask)
{
    struct turn *t = r->state;
    (void)ask;
    u32 i = bits_from(&t->eligible, t->next);
    if (i == BITS_NONE) i = bits_from(&t->eligible, 0);
    t->next = i + 1;
    return (i32)i;
}

const struct route_policy policy_round_robin = {
    .name = "round_robin",
    .help = "one replica after the other",
    .choose = choose,
    .new = new,
    .free = release,
    .enter = enter,
    .leave = leave,
};
