/* The book of reservations: a table by id, and two lists by age. */
#include "mpiserve/route.h"

#include <stdlib.h>

static struct reservation **chain_of(const struct reservation_book *b, const struct reservation_id *id)
{
    return (struct reservation **)&b->chains[id->bits[0] % RESERVATION_CHAINS]; /* ids are random: no hash */
}

static void append(struct reservation_list *l, struct reservation *r)
{
    r->next = NULL;
    r->previous = l->last;
    *(l->last ? &l->last->next : &l->first) = r;
    l->last = r;
    l->n++;
}

static void unlink_from(struct reservation_list *l, struct reservation *r)
{
    *(r->previous ? &r->previous->next : &l->first) = r->next;
    *(r->next ? &r->next->previous : &l->last) = r->previous;
    l->n--;
}

static void forget(struct reservation_book *b, struct reservation_list *l, struct reservation *r)
{
    struct reservation **at = chain_of(b, &r->id);
    while (*at != r) at = &(*at)->chain;
    *at = r->chain;
    unlink_from(l, r);
    free(r);
}

void reservation_book_release(struct reservation_book *b)
{
    struct reservation_list *lists[] = {&b->held, &b->ended};
    for (size_t i = 0; i < COUNT_OF(lists); i++)
        while (lists[i]->first) forget(b, lists[i], lists[i]->first);
}

struct reservation *reservation_find(const struct reservation_book *b, const struct reservation_id *id)
{
    struct reservation *r = *chain_of(b, id);
    while (r && (r->id.bits[0] != id->bits[0] || r->id.bits[1] != id->bits[1])) r = r->chain;
    return r;
}

void reservation_add(struct reservation_book *b, const struct reservation *what)
{
    BUG_ON(reservation_find(b, &what->id) || !selection_holds_slot(&what->selection));
    BUG_ON(b->held.last && b->held.last->deadline_ns > what->deadline_ns);
    struct reservation *r = mem_alloc(sizeof *r);
    *r = *what;
    r->state = RESERVATION_HELD;
    struct reservation **chain = chain_of(b, &r->id);
    r->chain = *chain;
    *chain = r;
    append(&b->held, r);
}

void reservation_end(struct reservation_book *b, struct reservation *r, enum reservation_state state)
{
    BUG_ON(r->state != RESERVATION_HELD || state == RESERVATION_HELD);
    unlink_from(&b->held, r);
    append(&b->ended, r);
    r->state = (u8)state;
    if (b->ended.n > RESERVATIONS_REMEMBERED) forget(b, &b->ended, b->ended.first);
}

struct reservation *reservation_due(const struct reservation_book *b, u64 now_ns)
{
    return reservation_deadline(b) <= now_ns ? b->held.first : NULL;
}

u64 reservation_deadline(const struct reservation_book *b)
{
    return b->held.first ? b->held.first->deadline_ns : UINT64_MAX;
}

const char *reservation_state_name(enum reservation_state state)
{
    static const char *const names[] = {"held", "used", "released", "expired"};
    return names[state];
}
