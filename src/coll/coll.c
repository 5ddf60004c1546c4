/* The door: worlds, their two groups, which transport a call takes, and what is said when it fails. */
#include "coll/coll_inner.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- worlds ----------------------------------------------------------------------------------------------------*/
static void group_init(struct coll_world *w, struct coll *c, u32 first, u32 n, u64 area)
{
    *c = (struct coll){.world = w, .n = n, .me = w->spec.me - first, .phase = 1};
    for (u32 i = 0; i < n; i++) c->member[i] = first + i;
    if (area) c->area = w->memory + area;
}

static int check_spec(const struct coll_spec *s, struct error *err)
{
    int rc = coll_check(&s->shape, err);
    if (rc) return rc;
    u32 engines = MAX_OF(engines_of(&s->shape), 1u);
    if (s->me >= engines) return error_set(err, ERR_INPUT, "group", "engine %u of %u", s->me, engines);
    u64 need = coll_bytes(&s->shape, s->shape.node[s->me]);
    if (s->bytes != need || (need && (!s->memory || (uintptr_t)s->memory % CACHE_LINE)))
        return error_set(err, ERR_INPUT, "group", "%llu bytes of memory at %p, %llu are needed",
                         (unsigned long long)s->bytes, s->memory, (unsigned long long)need);
    return 0;
}

struct coll_world *coll_open(const struct coll_spec *spec, struct error *err)
{
    if (check_spec(spec, err)) return NULL;
    struct coll_world *w = mem_zero(1, sizeof *w);
    w->spec = *spec;
    struct coll_shape *s = &w->spec.shape;
    if (!s->tp) s->tp = s->pp = 1;
    if (!w->spec.tick_ns) w->spec.tick_ns = NS_PER_S;
    u32 engines = engines_of(s), stage = spec->me / s->tp;
    w->memory = spec->memory;
    place_of(&w->place, s, s->node[spec->me]);
    group_init(w, &w->all, 0, engines, w->place.all);
    group_init(w, &w->stage, stage * s->tp, s->tp, w->place.stage[stage]);
    if (!coll_relays(s)) return w;
    w->relay = relay_at(w->memory, &w->place, engines, spec->me);
    w->scratch = aligned_alloc(CACHE_LINE, (size_t)engines * LINK_BYTES);
    if (w->scratch) return w;
    error_set(err, ERR_MEMORY, "group", "no memory for messages of %u engines", engines);
    coll_close(w);
    return NULL;
}

void coll_close(struct coll_world *w)
{
    if (!w) return;
    free(w->scratch);
    free(w);
}

struct coll *coll_all(struct coll_world *w)
{
    return &w->all;
}

/* Where there is one stage only, the two groups are one: they share their slots. */
struct coll *coll_stage(struct coll_world *w)
{
    return w->spec.shape.pp == 1 ? &w->all : &w->stage;
}

u32 coll_size(const struct coll *c)
{
    return c->n;
}

u32 coll_me(const struct coll *c)
{
    return c->me;
}

/* ---- failures --------------------------------------------------------------------------------------------------*/
const char *call_name(enum call_kind k)
{
    static const char *const names[] = {
        [CALL_ALL_REDUCE] = "all_reduce", [CALL_ALL_GATHER] = "all_gather", [CALL_GATHER] = "gather",
        [CALL_BROADCAST] = "broadcast",   [CALL_ALL_TO_ALL] = "all_to_all", [CALL_SEND] = "send",
        [CALL_RECEIVE] = "receive",
    };
    return (size_t)k < COUNT_OF(names) ? names[k] : "no call";
}

static int broken(struct coll_world *w, struct error *err)
{
    return error_set(err, w->err.code, w->err.where, "%s", w->err.message);
}

int fail_other(struct coll *c, const struct call *call, u32 who, const char *what, struct error *err)
{
    struct coll_world *w = c->world;
    if (!w->broken)
        error_set(&w->err, ERR_PEER, "group", "%s %llu of %llu bytes: engine %u (rank %u) %s",
                  call_name(call->kind), (unsigned long long)c->calls, (unsigned long long)call->bytes, who,
                  w->spec.shape.rank[who], what);
    w->broken = true;
    return broken(w, err);
}

int fail_missing(struct coll *c, const struct call *call, u32 who, struct error *err)
{
    char what[64];
    if (who == c->world->spec.me)
        snprintf(what, sizeof what, "has an agent that takes no messages for %.1f s",
                 (double)call->wait_ns / NS_PER_S);
    else
        snprintf(what, sizeof what, "has not come within %.1f s", (double)call->wait_ns / NS_PER_S);
    return fail_other(c, call, who, what, err);
}

int world_look(const struct coll *c, struct error *err)
{
    return c->world->broken ? broken(c->world, err) : 0;
}

/* ---- teams -----------------------------------------------------------------------------------------------------*/
void team_barrier(const struct coll_how *how)
{
    if (threads_of(how) > 1) how->barrier(how->arg);
}

int team_result(struct coll *c, const struct coll_how *how, int rc, struct error *err)
{
    if (threads_of(how) == 1) return rc;
    if (!thread_of(how)) c->rc = rc;
    how->barrier(how->arg);
    rc = c->rc;
    if (rc && thread_of(how)) broken(c->world, err);
    return rc;
}

/* ---- calls -----------------------------------------------------------------------------------------------------*/
static const struct transport *transport_of(const struct coll *c)
{
    return c->area ? &transport_shm : &transport_messages;
}

static struct call begin(struct coll *c, enum call_kind kind, u32 root, u64 bytes, const struct coll_how *how)
{
    BUG_ON(root != NOBODY && root >= c->n);
    if (!thread_of(how)) c->calls++;
    u64 wait_ns = how && how->wait_ns ? how->wait_ns : c->world->spec.wait_ns;
    return (struct call){kind, root, bytes, wait_ns, how && how->lazy};
}

int coll_all_reduce(struct coll *c, const struct coll_reduce *r, const struct coll_how *how,
                    struct error *err)
{
    struct call call = begin(c, CALL_ALL_REDUCE, NOBODY, r->count * type_bytes(r->type), how);
    BUG_ON(r->add && r->in == r->out);
    if (c->n > 1) return transport_of(c)->all_reduce(c, r, &call, how, err);
    int rc = world_look(c, err);
    if (rc) return rc;
    if (!thread_of(how) && (r->add || r->in != r->out)) {
        const void *in = r->in;
        sum_members(&in, 1, r->out, r->count, r->type, r->add);
    }
    team_barrier(how);
    return 0;
}

/* The own rows, where they do not lie in out already. */
static void place_own(const struct coll *c, const struct coll_gather *g)
{
    const u8 *from = g->in;
    u8 *to = (u8 *)g->out + c->me * g->bytes;
    for (size_t i = 0; i < g->rows && from != to; i++)
        memcpy(to + i * g->ld_out, from + i * g->ld_in, g->bytes);
}

static int gather(struct coll *c, u32 root, enum call_kind kind, const struct coll_gather *g,
                  const struct coll_how *how, struct error *err)
{
    struct call call = begin(c, kind, root, g->rows * g->bytes, how);
    if ((root == NOBODY || root == c->me) && !thread_of(how)) place_own(c, g);
    if (c->n > 1) return transport_of(c)->gather(c, g, &call, how, err);
    int rc = world_look(c, err);
    if (rc) return rc;
    team_barrier(how);
    return 0;
}

int coll_all_gather(struct coll *c, const struct coll_gather *g, const struct coll_how *how,
                    struct error *err)
{
    return gather(c, NOBODY, CALL_ALL_GATHER, g, how, err);
}

int coll_gather(struct coll *c, u32 root, const struct coll_gather *g, const struct coll_how *how,
                struct error *err)
{
    return gather(c, root, CALL_GATHER, g, how, err);
}

/* Walks the rows that a run of their bytes touches. */
struct walk {
    size_t row, column, n; /* n: bytes in this row */
};
static struct walk walk_at(const struct coll_gather *g, u64 at, size_t left)
{
    struct walk w = {.row = at / g->bytes, .column = at % g->bytes};
    w.n = MIN_OF(left, g->bytes - w.column);
    return w;
}

void gather_pack(const struct coll_gather *g, u64 at, size_t n, u8 *to)
{
    while (n) {
        struct walk w = walk_at(g, at, n);
        memcpy(to, (const u8 *)g->in + w.row * g->ld_in + w.column, w.n);
        to += w.n;
        at += w.n;
        n -= w.n;
    }
}

void gather_unpack(const struct coll_gather *g, u32 member, u64 at, size_t n, const u8 *from)
{
    while (n) {
        struct walk w = walk_at(g, at, n);
        memcpy((u8 *)g->out + w.row * g->ld_out + member * g->bytes + w.column, from, w.n);
        from += w.n;
        at += w.n;
        n -= w.n;
    }
}

int coll_broadcast(struct coll *c, u32 root, void *data, size_t bytes, const struct coll_how *how,
                   struct error *err)
{
    BUG_ON(threads_of(how) > 1);
    struct call call = begin(c, CALL_BROADCAST, root, bytes, how);
    int rc = world_look(c, err);
    return rc || c->n == 1 ? rc : transport_of(c)->broadcast(c, data, &call, err);
}

int coll_all_to_all(struct coll *c, const void *in, void *out, size_t bytes, const struct coll_how *how,
                    struct error *err)
{
    BUG_ON(threads_of(how) > 1);
    struct call call = begin(c, CALL_ALL_TO_ALL, NOBODY, c->n * bytes, how);
    int rc = world_look(c, err);
    if (rc) return rc;
    if (c->n > 1) return transport_of(c)->all_to_all(c, in, out, bytes, &call, err);
    memcpy(out, in, bytes);
    return 0;
}

int coll_send(struct coll *c, u32 to, const void *data, size_t bytes, const struct coll_how *how,
              struct error *err)
{
    BUG_ON(c != &c->world->all || to == c->me || threads_of(how) > 1);
    struct call call = begin(c, CALL_SEND, to, bytes, how);
    int rc = world_look(c, err);
    for (size_t at = 0; at < MAX_OF(bytes, (size_t)1) && !rc; at += LINK_BYTES)
        rc = link_send(c, to, (const u8 *)data + at, MIN_OF((size_t)LINK_BYTES, bytes - at), &call, err);
    return rc;
}

int coll_receive(struct coll *c, u32 from, void *data, size_t bytes, const struct coll_how *how,
                 struct error *err)
{
    BUG_ON(c != &c->world->all || from == c->me || threads_of(how) > 1);
    struct call call = begin(c, CALL_RECEIVE, from, bytes, how);
    int rc = world_look(c, err);
    for (size_t at = 0; at < MAX_OF(bytes, (size_t)1) && !rc; at += LINK_BYTES)
        rc = link_receive(c, from, (u8 *)data + at, MIN_OF((size_t)LINK_BYTES, bytes - at), &call, err);
    return rc;
}
