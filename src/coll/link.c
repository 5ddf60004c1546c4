/* Messages between two engines. In a node: a link of their own. Between nodes: the sender's link to its agent, and
 * behind the agents a link for each sender. There a sender has at most LINK_SLOTS messages under way, so that
 * the receiving agent always finds room; the receiver says from time to time how many it has taken. */
#include "coll/coll_inner.h"

#include <stdio.h>
#include <string.h>

/* The next free message, or NULL: err is filled. */
static struct message *link_claim(struct coll *c, struct link *l, u32 who, const struct call *call,
                                  struct error *err)
{
    u32 put = counter_value(&l->put);
    if (counter_wait(c->world, &l->taken, put - LINK_SLOTS + 1, call->wait_ns)) {
        fail_missing(c, call, who, err);
        return NULL;
    }
    return &l->slots[put % LINK_SLOTS];
}

static void link_put(struct link *l)
{
    counter_raise(&l->put, counter_value(&l->put) + 1);
}

static void wake_agent(struct coll_world *w)
{
    atomic_store(&w->owes_wake, false);
    if (w->spec.wake_agent) w->spec.wake_agent(w->spec.arg);
}

void coll_wake(struct coll_world *w)
{
    if (atomic_load_explicit(&w->owes_wake, memory_order_relaxed)) wake_agent(w);
}

static int send_out(struct coll *c, u32 to, struct message head, const void *data, const struct call *call,
                    struct error *err)
{
    struct coll_world *w = c->world;
    struct message *m = link_claim(c, &w->relay->out, w->spec.me, call, err);
    if (!m) return ERR_PEER;
    memcpy(m, &head, offsetof(struct message, data));
    m->peer = to;
    if (head.len) memcpy(m->data, data, head.len);
    link_put(&w->relay->out);
    if (call->lazy)
        atomic_store(&w->owes_wake, true);
    else
        wake_agent(w);
    return 0;
}

static bool is_here(const struct coll *c, u32 engine)
{
    return c->world->place.at[engine] != NOBODY;
}

int link_send(struct coll *c, u32 to, const void *data, size_t bytes, const struct call *call,
              struct error *err)
{
    struct coll_world *w = c->world;
    struct message head = {.len = (u32)bytes, .kind = MESSAGE_DATA};
    if (is_here(c, to)) {
        struct link *l = link_at(w->memory, &w->place, w->spec.me, to);
        struct message *m = link_claim(c, l, to, call, err);
        if (!m) return ERR_PEER;
        m->len = head.len;
        if (bytes) memcpy(m->data, data, bytes);
        link_put(l);
        return 0;
    }
    if (counter_wait(w, &w->relay->credit[to], w->sent[to] - LINK_SLOTS + 1, call->wait_ns))
        return fail_missing(c, call, to, err);
    w->sent[to]++;
    return send_out(c, to, head, data, call, err);
}

static int give_credit(struct coll *c, u32 from, const struct call *call, struct error *err)
{
    struct coll_world *w = c->world;
    if (++w->taken[from] % (LINK_SLOTS / 2)) return 0;
    struct message head = {.kind = MESSAGE_CREDIT, .value = w->taken[from]};
    return send_out(c, from, head, NULL, call, err);
}

int link_receive(struct coll *c, u32 from, void *data, size_t bytes, const struct call *call,
                 struct error *err)
{
    struct coll_world *w = c->world;
    bool here = is_here(c, from);
    struct link *l = here ? link_at(w->memory, &w->place, from, w->spec.me) : &w->relay->in[from];
    u32 taken = counter_value(&l->taken);
    if (counter_wait(w, &l->put, taken + 1, call->wait_ns)) return fail_missing(c, call, from, err);
    const struct message *m = &l->slots[taken % LINK_SLOTS];
    if (m->len != bytes) {
        char what[96];
        snprintf(what, sizeof what, "has sent %u bytes where %zu belong", m->len, bytes);
        return fail_other(c, call, from, what, err);
    }
    if (bytes) memcpy(data, m->data, bytes);
    counter_raise(&l->taken, taken + 1);
    return here ? 0 : give_credit(c, from, call, err);
}
