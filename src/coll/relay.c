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
    u32 engines, taken, credit[COLL_MAX], put[COLL_MAX];
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

const void *coll_relay_take(struct coll_relay *r, u32 *to, size_t *len)
{
    *len = 0;
    u32 waiting = counter_value(&r->area->out.put) - r->taken;
    if (!waiting) return NULL;
    const volatile struct message *m = &r->area->out.slots[r->taken % LINK_SLOTS];
    u32 n = m->len, peer = m->peer;
    if (waiting > LINK_SLOTS || n > LINK_BYTES || peer >= r->engines || !r->remote[peer]) {
        *len = SIZE_MAX;
        return NULL;
    }
    r->copy.kind = m->kind;
    r->copy.value = m->value;
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
