/* A small world of ingresses and leaders around the pure functions of slots.h: the window is plain memory, messages lie in rings, and
 * every call is one step of one actor. A book that knows nothing of words says what each of them must be. Included once, by
 * test_slots_sim.c. */
#ifndef MPISERVE_SLOTS_WORLD_H
#define MPISERVE_SLOTS_WORLD_H

#include "mpiserve/slots.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LEADERS = 2, INGRESSES = 3, FLIGHTS = 12, SLOTS = 4, PIPE = 32 };

enum kind { DISPATCH, CANCEL, END, REFUSED };
struct message {
    enum kind kind;
    u32 flight;
    u64 ticket; /* of the reservation, or of the one that is cancelled */
    u64 life;   /* of the sender, if a leader */
    struct slot_token token;
};
struct pipe {
    struct message at[PIPE];
    u32 from, n;
};
struct place {
    u32 leader, slot;
    u64 word, ticket; /* as reserved */
};
/* A request's way at an ingress; flight f is of ingress f % INGRESSES. */
struct flight {
    enum { IDLE, LOOKED, HELD, SENT } at;
    struct place now, before; /* before: the last one released; ticket 0: none */
    u64 request, life;        /* life: of the leader it was sent to */
    bool cancelled;
};
struct running {
    bool used;
    u32 flight;
    u64 ticket;
    struct slot_token token;
};
struct leader {
    bool dead, draining, looked;
    u32 epoch, look_slot;
    u64 life, look_word, windows; /* windows: how many epochs it has had, without wrap */
    struct running running[SLOTS];
};
/* What must be true of a word. */
struct entry {
    u64 ticket; /* 0: nobody has it */
    u32 epoch, seq, owner;
    bool running, closed;
};
static struct world {
    u64 seed, step, draws;
    u64 words[LEADERS][SLOTS];
    struct flight flights[FLIGHTS];
    struct leader leaders[LEADERS];
    struct pipe down[LEADERS][INGRESSES], up[LEADERS][INGRESSES];
    struct entry book[LEADERS][SLOTS];
    u64 ran_request[FLIGHTS][LEADERS], ran_window[FLIGHTS][LEADERS];
    u64 tickets, grants, releases, runs, finishes, reaps, dropped, refused, drains, faults, done;
    bool closing; /* no new requests */
} w;

#define CHECK(cond)                                                                                          \
    do {                                                                                                     \
        if (!(cond)) fail_msg("seed %" PRIu64 ", step %" PRIu64 ": %s", w.seed, w.step, #cond);              \
    } while (0)

static u32 draw(u32 below)
{
    static u32 out[4];
    if (w.draws % 4 == 0) rng_block(w.seed, w.draws / 4, 0, out);
    return (u32)((u64)out[w.draws++ % 4] * below >> 32);
}

static bool cas(u32 l, u32 s, u64 expected, u64 desired, u64 *old)
{
    *old = w.words[l][s];
    if (*old == expected) w.words[l][s] = desired;
    return *old == expected;
}

/* A refusal leaves the word as it was, and says why. */
static struct slot_move checked(u64 old, struct slot_move m)
{
    CHECK(m.verdict != SLOT_BROKEN);
    CHECK(m.verdict == SLOT_OK || m.word == old);
    return m;
}

/* ---- the book ------------------------------------------------------------------------------------------------*/
static void book_grant(u32 l, u32 s, u64 ticket, u32 owner)
{
    struct entry *e = &w.book[l][s];
    CHECK(!e->ticket && !e->closed);
    e->ticket = ticket;
    e->owner = owner;
    w.grants++;
}

static void book_run(u32 l, u32 s, const struct message *m)
{
    struct entry *e = &w.book[l][s];
    const struct flight *f = &w.flights[m->flight];
    CHECK(e->ticket == m->ticket && !e->running);
    CHECK(m->token.epoch == w.leaders[l].epoch);
    e->running = true;
    w.runs++;
    if (f->at != SENT || f->now.ticket != m->ticket) return; /* its ingress died */
    CHECK(w.ran_request[m->flight][l] != f->request + 1 ||
          w.ran_window[m->flight][l] != w.leaders[l].windows);
    w.ran_request[m->flight][l] = f->request + 1;
    w.ran_window[m->flight][l] = w.leaders[l].windows;
}

static void book_end(u32 l, u32 s, u64 ticket, bool running, u64 *count)
{
    struct entry *e = &w.book[l][s];
    CHECK(ticket && e->ticket == ticket && e->running == running);
    e->ticket = 0;
    e->owner = 0;
    e->running = false;
    e->seq++;
    ++*count;
}

static void book_close(u32 l, u32 s, bool closed, u32 epoch)
{
    struct entry *e = &w.book[l][s];
    CHECK(!e->ticket && e->closed != closed);
    e->closed = closed;
    e->epoch = epoch;
}

static void book_compare(void)
{
    u64 open = 0;
    for (u32 l = 0; l < LEADERS; l++)
        for (u32 s = 0; s < SLOTS; s++) {
            const struct entry *e = &w.book[l][s];
            u64 word = w.words[l][s];
            CHECK(slot_word_valid(word));
            CHECK((slot_word_state(word) == SLOT_CLOSED) == e->closed);
            CHECK((slot_word_state(word) == SLOT_RUNNING) == e->running);
            CHECK((slot_word_state(word) >= SLOT_RESERVED_SHORT) == (e->ticket != 0));
            CHECK(slot_word_owner(word) == e->owner);
            CHECK(slot_word_epoch(word) == e->epoch && slot_word_seq(word) == e->seq);
            open += e->ticket != 0;
        }
    CHECK(w.grants == w.releases + w.finishes + w.reaps + w.dropped + open);
}

/* ---- messages: in order between two, as late as the schedule wants ----------------------------------------------*/
static void send(struct pipe *r, struct message m)
{
    CHECK(r->n < PIPE);
    r->at[(r->from + r->n++) % PIPE] = m;
}

static struct message receive(struct pipe *r)
{
    CHECK(r->n > 0);
    struct message m = r->at[r->from++ % PIPE];
    r->n--;
    return m;
}

/* ---- ingress -------------------------------------------------------------------------------------------------*/
static u16 owner_of(const struct flight *f)
{
    return (u16)((f - w.flights) % INGRESSES);
}

static void attempt_over(struct flight *f)
{
    f->at = IDLE;
    f->now = (struct place){0};
}

static void request_over(struct flight *f)
{
    attempt_over(f);
    f->request++;
    f->cancelled = false;
    w.done++;
}

static void flight_look(struct flight *f, u32 l, u32 s)
{
    f->now = (struct place){.leader = l, .slot = s, .word = w.words[l][s]};
    f->at = LOOKED;
}

static enum slot_verdict flight_reserve(struct flight *f, enum slot_class lease)
{
    struct place *p = &f->now;
    struct slot_move m = checked(p->word, slot_reserve(p->word, owner_of(f), lease));
    u64 old;
    if (m.verdict || !cas(p->leader, p->slot, p->word, m.word, &old)) {
        attempt_over(f);
        return m.verdict ? m.verdict : SLOT_BUSY;
    }
    p->word = m.word;
    p->ticket = ++w.tickets;
    f->at = HELD;
    book_grant(p->leader, p->slot, p->ticket, owner_of(f));
    return SLOT_OK;
}

/* The pure function on the word that is there now: what a release does, late or twice. */
static enum slot_verdict release_place(const struct flight *f, const struct place *p)
{
    u64 now = w.words[p->leader][p->slot], old;
    struct slot_move m =
        checked(now, slot_release(now, owner_of(f), slot_word_epoch(p->word), slot_word_seq(p->word)));
    if (m.verdict == SLOT_OK && cas(p->leader, p->slot, now, m.word, &old))
        book_end(p->leader, p->slot, p->ticket, false, &w.releases);
    return m.verdict;
}

static enum slot_verdict flight_release(struct flight *f)
{
    enum slot_verdict v = release_place(f, &f->now);
    CHECK(v == SLOT_OK || v == SLOT_STALE || v == SLOT_FOREIGN); /* not dispatched: it cannot run */
    f->before = f->now;
    request_over(f);
    return v;
}

static bool flight_dispatch(struct flight *f)
{
    struct place *p = &f->now;
    struct pipe *r = &w.down[p->leader][owner_of(f)];
    if (r->n >= PIPE - 2) return false;
    f->at = SENT; /* before the message */
    f->life = w.leaders[p->leader].life;
    send(r, (struct message){.kind = DISPATCH,
                             .flight = (u32)(f - w.flights),
                             .ticket = p->ticket,
                             .token = {.replica = (i32)p->leader,
                                       .slot = (u16)p->slot,
                                       .epoch = (u16)slot_word_epoch(p->word),
                                       .seq = slot_word_seq(p->word)}});
    return true;
}

static void flight_cancel(struct flight *f)
{
    struct pipe *r = &w.down[f->now.leader][owner_of(f)];
    if (f->cancelled || r->n >= PIPE - 2) return;
    f->cancelled = true;
    send(r, (struct message){.kind = CANCEL, .flight = (u32)(f - w.flights), .ticket = f->now.ticket});
}

static void put_back(struct flight *f)
{
    f->cancelled ? request_over(f) : attempt_over(f);
}

static void ingress_take(u32 i, u32 l)
{
    if (!w.up[l][i].n) return;
    struct message m = receive(&w.up[l][i]);
    struct flight *f = &w.flights[m.flight];
    if (f->at != SENT || f->now.ticket != m.ticket || f->life != m.life)
        return;                                                             /* of an attempt that is over */
    for (u32 s = 0; s < SLOTS; s++) CHECK(w.book[l][s].ticket != m.ticket); /* its slot is free */
    m.kind == END ? request_over(f) : put_back(f);
}

static void ingress_dies(u32 i)
{
    for (u32 k = i; k < FLIGHTS; k += INGRESSES)
        if (w.flights[k].at != IDLE) request_over(&w.flights[k]);
    w.faults++;
}

/* ---- leader --------------------------------------------------------------------------------------------------*/
static void answer(u32 l, const struct message *to, enum kind kind)
{
    struct message m = *to;
    m.kind = kind;
    m.life = w.leaders[l].life;
    send(&w.up[l][to->flight % INGRESSES], m);
}

static void leader_finish(u32 l, u32 s)
{
    struct running *r = &w.leaders[l].running[s];
    u64 now = w.words[l][s], old;
    struct slot_move m = checked(now, slot_finish(now, r->token.epoch, r->token.seq));
    CHECK(m.verdict == SLOT_OK && cas(l, s, now, m.word, &old));
    book_end(l, s, r->ticket, true, &w.finishes);
    CHECK(slot_finish(m.word, r->token.epoch, r->token.seq).verdict == SLOT_STALE);
    answer(l, &(struct message){.flight = r->flight, .ticket = r->ticket, .token = r->token}, END);
    r->used = false;
}

static enum slot_verdict leader_run(u32 l, const struct message *m)
{
    u32 s = m->token.slot;
    struct running *r = &w.leaders[l].running[s];
    u64 now = w.words[l][s], old;
    struct slot_move move = checked(now, slot_run(now, m->token.epoch, m->token.seq));
    if (move.verdict == SLOT_OK) {
        CHECK(cas(l, s, now, move.word, &old));
        book_run(l, s, m);
        CHECK(!r->used);
        *r = (struct running){true, m->flight, m->ticket, m->token};
    } else if (r->used && r->ticket == m->ticket) {
        /* Delivered twice: what runs will answer. After a rebuild the verdict is STALE, not STARTED. */
        return move.verdict;
    } else {
        answer(l, m, REFUSED);
        w.refused++;
    }
    return move.verdict;
}

static enum slot_verdict leader_take(u32 l, u32 i)
{
    if (!w.down[l][i].n || w.up[l][i].n >= PIPE - SLOTS) return SLOT_BUSY;
    struct message m = receive(&w.down[l][i]);
    if (m.kind == DISPATCH) return leader_run(l, &m);
    for (u32 s = 0; s < SLOTS; s++)
        if (w.leaders[l].running[s].used && w.leaders[l].running[s].ticket == m.ticket) leader_finish(l, s);
    return SLOT_OK;
}

static void leader_look(u32 l, u32 s)
{
    struct leader *a = &w.leaders[l];
    a->looked = true;
    a->look_slot = s;
    a->look_word = w.words[l][s];
}

/* A lease that is over, or a drain: acts on what was seen a while ago. */
static enum slot_verdict leader_act(u32 l)
{
    struct leader *a = &w.leaders[l];
    u32 s = a->look_slot, epoch = slot_word_epoch(a->look_word), seq = slot_word_seq(a->look_word);
    u64 now = w.words[l][s], old;
    const struct entry *e = &w.book[l][s];
    a->looked = false;
    if (e->ticket) CHECK(checked(now, slot_close(now)).verdict == SLOT_BUSY);
    if (e->running) CHECK(checked(now, slot_reap(now, e->epoch, e->seq)).verdict == SLOT_STARTED);
    if (slot_word_reserved(a->look_word)) {
        struct slot_move m = checked(now, slot_reap(now, epoch, seq));
        if (m.verdict == SLOT_OK && cas(l, s, now, m.word, &old))
            book_end(l, s, w.book[l][s].ticket, false, &w.reaps);
        if (m.verdict == SLOT_OK) CHECK(seq == slot_word_seq(now) && epoch == slot_word_epoch(now));
        return m.verdict;
    }
    if (!a->draining) return SLOT_WRONG;
    struct slot_move m = checked(a->look_word, slot_close(a->look_word));
    if (m.verdict) return m.verdict;
    if (!cas(l, s, a->look_word, m.word, &old)) return SLOT_BUSY;
    book_close(l, s, true, epoch);
    return SLOT_OK;
}

static bool all_closed(u32 l)
{
    u32 n = 0;
    for (u32 s = 0; s < SLOTS; s++) n += slot_word_state(w.words[l][s]) == SLOT_CLOSED;
    return n == SLOTS;
}

/* After a drain: the replica comes back, in its epoch or the next. */
static void leader_open(u32 l, bool next)
{
    struct leader *a = &w.leaders[l];
    for (u32 i = 0; i < SLOTS; i++) CHECK(!a->running[i].used);
    if (next) a->epoch = slot_epoch_after(a->epoch), a->windows++;
    for (u32 s = 0; s < SLOTS; s++) {
        u64 now = w.words[l][s], old;
        struct slot_move m = checked(now, slot_open(now, a->epoch));
        CHECK(m.verdict == SLOT_OK && cas(l, s, now, m.word, &old));
        book_close(l, s, false, a->epoch);
    }
    a->draining = false;
    w.drains++;
}

/* A new window: what runs is written into it from the table, reservations are dropped. */
static void leader_rebuild(u32 l, u32 first_seq)
{
    struct leader *a = &w.leaders[l];
    a->epoch = slot_epoch_after(a->epoch);
    a->windows++;
    a->looked = a->dead = false;
    for (u32 s = 0; s < SLOTS; s++) {
        struct running *r = &a->running[s];
        struct entry *e = &w.book[l][s];
        e->epoch = a->epoch;
        e->closed = false;
        if (r->used) {
            r->token.epoch = (u16)a->epoch;
            w.words[l][s] = slot_word(a->epoch, SLOT_RUNNING, (u16)(r->flight % INGRESSES), r->token.seq);
            continue;
        }
        w.dropped += e->ticket != 0;
        *e = (struct entry){.epoch = a->epoch, .seq = first_seq};
        w.words[l][s] = slot_open(slot_word(a->epoch, SLOT_CLOSED, 0, first_seq), a->epoch).word;
    }
}

static void leader_dies(u32 l)
{
    struct leader *a = &w.leaders[l];
    a->dead = true;
    a->life++;
    a->looked = false;
    memset(a->running, 0, sizeof a->running);
    w.faults++;
}

#endif
