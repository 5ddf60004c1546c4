/* The agents' side of messages between nodes. What an engine has written is looked at once, and checked. */
#include "coll/coll_inner.h"

#include <stdlib.h>
#include <string.h>

/* What travels: a message without its length and peer, which the agents know. */
struct travel {
    u32 kind, value;
    u8 data[LINK_BYTES];
};
_Static_assert(sizeof(struct travel) <= COLL_RELAY_MOST, "messages fit");

struct coll_relay {
    struct relay_area *area;
    u32 engines, taken;
    u32 sent[COLL_MAX], credit[COLL_MAX]; /* messages to another engine; those that it has taken */
    u32 put[COLL_MAX], given[COLL_MAX];   /* messages from it; those whose taking it was told of */
    u32 peer;                             /* of the message that is looked at */
    bool remote[COLL_MAX], open;
    struct travel copy;
};

struct coll_relay *coll_relay_open(const struct coll_shape *s, u32 engine, void *memory, u64 bytes,
                                   struct error *err)
{
    if (coll_check(s, err)) return NULL;
    struct place p;
    if (engine >= engines_of(s) || !coll_relays(s) || coll_bytes(s, s->node[engine]) != bytes) {
        error_set(err, ERR_INPUT, "relay", "engine %u of %u in %llu bytes", engine, engines_of(s),
                  (unsigned long long)bytes);
        return NULL;
    }
    struct coll_relay *r = mem_zero(1, sizeof *r);
    place_of(&p, s, s->node[engine]);
    r->engines = engines_of(s);
    r->area = relay_at(memory, &p, r->engines, engine);
    for (u32 i = 0; i < r->engines; i++) r->remote[i] = p.at[i] == NOBODY;
    return r;
}

void coll_relay_close(struct coll_relay *r)
{
    free(r);
}

bool coll_relay_waiting(struct coll_relay *r)
{
    return atomic_load(&r->area->out.put.value) != r->taken;
}

/* More than may be under way is not let out: neither data beyond the other's credit, nor credit for what was not put. Counts are
 * of the agent's own, so an engine gone mad cannot keep it busy, nor fill the other agent's memory. */
static bool may_go(const struct coll_relay *r, u32 kind, u32 value, u32 n, u32 to)
{
    if (kind == MESSAGE_DATA) return r->sent[to] - r->credit[to] < LINK_SLOTS;
    u32 more = value - r->given[to];
    return kind == MESSAGE_CREDIT && !n && more && more <= r->put[to] - r->given[to];
}

const void *coll_relay_take(struct coll_relay *r, u32 *to, size_t *len)
{
    *len = 0;
    u32 waiting = counter_value(&r->area->out.put) - r->taken;
    if (!waiting) return NULL;
    const volatile struct message *m = &r->area->out.slots[r->taken % LINK_SLOTS];
    u32 n = m->len, peer = m->peer, kind = m->kind, value = m->value;
    if (waiting > LINK_SLOTS || n > LINK_BYTES || peer >= r->engines || !r->remote[peer] ||
        !may_go(r, kind, value, n, peer)) {
        *len = SIZE_MAX;
        return NULL;
    }
    r->copy.kind = kind;
    r->copy.value = value;
    r->peer = peer;
    memcpy(r->copy.data, (const void *)m->data, n);
    *to = peer;
    *len = offsetof(struct travel, data) + n;
    r->open = true;
    return &r->copy;
}

void coll_relay_taken(struct coll_relay *r)
{
    BUG_ON(!r->open);
    r->open = false;
    if (r->copy.kind == MESSAGE_DATA)
        r->sent[r->peer]++;
    else
        r->given[r->peer] = r->copy.value;
    counter_raise(&r->area->out.taken, ++r->taken);
}

int coll_relay_put(struct coll_relay *r, u32 from, const void *data, size_t len, struct error *err)
{
    const struct travel *t = data;
    const size_t head = offsetof(struct travel, data);
    if (from >= r->engines || !r->remote[from] || len < head || len > sizeof *t)
        return error_set(err, ERR_PEER, "relay", "%zu bytes from engine %u", len, from);
    if (t->kind == MESSAGE_CREDIT) {
        if (t->value - r->credit[from] > LINK_SLOTS)
            return error_set(err, ERR_PEER, "relay", "engine %u has taken %u messages after %u", from,
                             t->value, r->credit[from]);
        counter_raise(&r->area->credit[from], r->credit[from] = t->value);
        return 0;
    }
    struct link *in = &r->area->in[from];
    if (t->kind != MESSAGE_DATA || r->put[from] - counter_value(&in->taken) >= LINK_SLOTS)
        return error_set(err, ERR_PEER, "relay", "engine %u sends more than may be under way", from);
    struct message *m = &in->slots[r->put[from] % LINK_SLOTS];
    m->len = (u32)(len - head);
    memcpy(m->data, t->data, len - head);
    counter_raise(&in->put, ++r->put[from]);
    return 0;
}
