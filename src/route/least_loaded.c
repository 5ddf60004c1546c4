/* The least loaded of all: replicas stand in one row, sorted by load, each load a stretch of it. A load changes by one with one
 * swap at the border of its stretch; whoever is not eligible stands behind all. */
#include "route/router.h"

#include <stdlib.h>

struct row {
    u32 *order; /* [n] replicas by load */
    u32 *at;    /* [n] a replica's place in it */
    u32 *load;  /* [n] the stretch that it is in */
    u32 *start; /* [out + 2] where a stretch begins; the one behind the last begins at n */
    u32 most, out;
};

static void *new (const struct router *r)
{
    struct row *w = mem_zero(1, sizeof *w);
    for (u32 i = 0; i < r->n; i++) w->most = MAX_OF(w->most, r->views[i].n_slots);
    w->out = w->most + 1;
    w->order = mem_zero(r->n + 1, sizeof *w->order);
    w->at = mem_zero(r->n + 1, sizeof *w->at);
    w->load = mem_zero(r->n + 1, sizeof *w->load);
    w->start = mem_zero(w->out + 2, sizeof *w->start);
    for (u32 i = 0; i < r->n; i++) {
        w->order[i] = w->at[i] = i;
        w->load[i] = w->out;
    }
    w->start[w->out + 1] = r->n;
    return w;
}

static void release(void *state)
{
    struct row *w = state;
    free(w->order);
    free(w->at);
    free(w->load);
    free(w->start);
    free(w);
}

static void swap_to(struct row *w, u32 i, u32 place)
{
    u32 other = w->order[place], from = w->at[i];
    w->order[from] = other;
    w->at[other] = from;
    w->order[place] = i;
    w->at[i] = place;
}

static void move(struct row *w, u32 i, u32 to)
{
    u32 load = w->load[i];
    for (; load < to; load++) swap_to(w, i, --w->start[load + 1]);
    for (; load > to; load--) swap_to(w, i, w->start[load]++);
    w->load[i] = to;
}

static void sort(struct router *r, u32 i)
{
    struct row *w = r->state;
    move(w, i, MIN_OF(r->seats[i].ongoing, w->most));
}

static void leave(struct router *r, u32 i)
{
    struct row *w = r->state;
    move(w, i, w->out);
}

static i32 choose(struct router *r, const struct route_ask *ask)
{
    const struct row *w = r->state;
    u32 x[4];
    (void)ask;
    router_draw(r, x);
    u32 least = w->load[w->order[0]];
    return (i32)w->order[route_below(x[0], w->start[least + 1])];
}

const struct route_policy policy_least_loaded = {
    .name = "least_loaded",
    .help = "of all replicas one with the fewest ongoing requests",
    .choose = choose,
    .new = new,
    .free = release,
    .enter = sort,
    .leave = leave,
    .changed = sort,
};
