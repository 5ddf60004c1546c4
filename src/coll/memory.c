/* The group memory of a node: a pure function of the shape, so that everybody finds the same places. */
#include "coll/coll_inner.h"

enum { PAGE = 4096 };

static u64 round_page(u64 n)
{
    return (n + PAGE - 1) & ~(u64)(PAGE - 1);
}

int coll_check(const struct coll_shape *s, struct error *err)
{
    if (!s->tp && !s->pp) return 0;
    if (!s->tp || !s->pp || s->tp > COLL_MAX || s->pp > COLL_MAX || s->tp * s->pp > COLL_MAX)
        return error_set(err, ERR_INPUT, "replica",
                         "%u engines a stage and %u stages: offered are 1 to %d engines", s->tp, s->pp,
                         COLL_MAX);
    return 0;
}

bool coll_relays(const struct coll_shape *s)
{
    for (u32 i = 1; i < engines_of(s); i++)
        if (s->node[i] != s->node[0]) return true;
    return false;
}

u64 group_area_bytes(u32 n)
{
    return round_page(n * sizeof(struct member)) + 2ull * n * SLOT_BYTES;
}

u8 *group_slot(u8 *area, u32 n, u32 piece, u32 member)
{
    return area + round_page(n * sizeof(struct member)) + ((u64)(piece & 1) * n + member) * SLOT_BYTES;
}

u64 relay_area_bytes(u32 engines)
{
    return round_page(sizeof(struct relay_area) + engines * sizeof(struct link));
}

/* A group of n engines from `first` on gets an area if they all are here. */
static u64 group_place(struct place *p, u32 first, u32 n)
{
    for (u32 i = first; i < first + n; i++)
        if (p->at[i] == NOBODY) return 0;
    if (n < 2) return 0;
    u64 at = p->bytes;
    p->bytes += group_area_bytes(n);
    return at;
}

void place_of(struct place *p, const struct coll_shape *s, u32 node)
{
    u32 engines = engines_of(s);
    *p = (struct place){.bytes = PAGE}; /* no area is at 0 */
    for (u32 i = 0; i < engines; i++) {
        p->at[i] = NOBODY;
        if (s->node[i] != node) continue;
        p->at[i] = p->n;
        p->local[p->n++] = i;
    }
    p->all = group_place(p, 0, engines);
    for (u32 i = 0; i < s->pp; i++) p->stage[i] = s->pp > 1 ? group_place(p, i * s->tp, s->tp) : p->all;
    p->links = p->bytes;
    p->bytes += round_page((u64)p->n * p->n * sizeof(struct link));
    p->relays = p->bytes;
    if (coll_relays(s)) p->bytes += p->n * relay_area_bytes(engines);
}

u64 coll_bytes(const struct coll_shape *s, u32 node)
{
    struct place p;
    if (engines_of(s) < 2) return 0;
    place_of(&p, s, node);
    return p.bytes;
}
