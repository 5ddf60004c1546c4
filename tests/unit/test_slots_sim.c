/* The transitions of slots.h under simulated ingresses, leaders, messages and faults: a schedule is a pure function of its seed, and
 * the book of slots_world.h is compared after every step. SLOTS_SIM_SEED=n runs that seed only. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "slots_world.h"

enum { SEEDS = 4, STEPS = 10000000, STEPS_SANITIZED = 1000000 }; /* of all seeds together */

static void new_world(u64 seed, u32 epoch, u32 seq)
{
    w = (struct world){.seed = seed};
    for (u32 l = 0; l < LEADERS; l++) {
        w.leaders[l].epoch = epoch;
        for (u32 s = 0; s < SLOTS; s++) {
            w.words[l][s] = slot_word(epoch, SLOT_FREE, 0, seq);
            w.book[l][s] = (struct entry){.epoch = epoch, .seq = seq};
        }
    }
}

/* ---- schedules -----------------------------------------------------------------------------------------------*/
/* Nobody ends what is another's, or what runs. */
static void probe(const struct flight *f)
{
    const struct flight *other = &w.flights[draw(FLIGHTS)];
    const struct place *p = &other->now;
    if (!p->ticket) return;
    const struct entry *e = &w.book[p->leader][p->slot];
    bool its = e->ticket == p->ticket && e->epoch == slot_word_epoch(p->word);
    if (owner_of(other) != owner_of(f))
        CHECK(release_place(f, p) == (its ? SLOT_FOREIGN : SLOT_STALE));
    else if (its && e->running)
        CHECK(release_place(other, p) == SLOT_STARTED);
}

static void step_flight(struct flight *f)
{
    if (!draw(16)) probe(f);
    if (f->before.ticket && !draw(16)) { /* whoever cleans up releases again, much later too */
        CHECK(release_place(f, &f->before) != SLOT_OK);
        return;
    }
    switch (f->at) {
    case IDLE:
        if (!w.closing) flight_look(f, draw(LEADERS), draw(SLOTS));
        break;
    case LOOKED: flight_reserve(f, draw(4) ? SLOT_CLASS_SHORT : SLOT_CLASS_LONG); break;
    case HELD: w.closing || !draw(4) ? (void)flight_release(f) : (void)flight_dispatch(f); break;
    case SENT:
        if (f->life != w.leaders[f->now.leader].life)
            put_back(f);
        else if (!draw(32))
            flight_cancel(f);
    }
}

static void step_leader(u32 l)
{
    struct leader *a = &w.leaders[l];
    u32 s = draw(SLOTS), i = draw(INGRESSES), what = draw(16);
    if (a->dead)
        what ? (void)0 : leader_rebuild(l, draw(2) ? 0 : UINT32_MAX - draw(3));
    else if (a->looked)
        leader_act(l);
    else if (what < 8)
        leader_take(l, i);
    else if (what < 13 && a->running[s].used && w.up[l][a->running[s].flight % INGRESSES].n < PIPE - SLOTS)
        leader_finish(l, s);
    else if (a->draining && all_closed(l))
        leader_open(l, draw(2));
    else if (what >= 13 && (a->draining || !draw(8)))
        leader_look(l, s);
}

static void step_fault(void)
{
    u32 l = draw(LEADERS), i = draw(INGRESSES);
    struct pipe *r = &w.down[l][i];
    switch (draw(8)) {
    case 0: ingress_dies(i); break;
    case 1:
        if (!w.leaders[l].dead) leader_dies(l);
        break;
    case 2:
        if (!w.leaders[l].dead) leader_rebuild(l, draw(2) ? 0 : UINT32_MAX - draw(3));
        break;
    case 3:
    case 4: w.leaders[l].draining = true; break;
    default: /* delivered twice, the copy later */
        if (r->n && r->n < PIPE / 2 && r->at[r->from % PIPE].kind == DISPATCH) send(r, r->at[r->from % PIPE]);
    }
}

static void step(void)
{
    u32 who = draw(32);
    w.step++;
    if (who < 16)
        step_flight(&w.flights[draw(FLIGHTS)]);
    else if (who < 20)
        ingress_take(draw(INGRESSES), draw(LEADERS));
    else if (who < 31 || w.closing || draw(16))
        step_leader(draw(LEADERS));
    else
        step_fault();
    book_compare();
}

static bool quiet(void)
{
    u32 busy = 0;
    for (u32 k = 0; k < FLIGHTS; k++) busy += w.flights[k].at != IDLE;
    for (u32 l = 0; l < LEADERS; l++) {
        busy += !all_closed(l) || w.leaders[l].dead;
        for (u32 i = 0; i < INGRESSES; i++) busy += w.down[l][i].n + w.up[l][i].n;
    }
    return !busy;
}

/* Nobody begins anything and every replica drains: all must end, with nothing left over. */
static void settle(void)
{
    w.closing = true;
    for (u32 n = 0; !quiet(); n++) {
        for (u32 l = 0; l < LEADERS; l++) w.leaders[l].draining = true;
        if (n > 1000000) fail_msg("seed %" PRIu64 ": it does not come to an end", w.seed);
        step();
    }
    CHECK(w.grants == w.releases + w.finishes + w.reaps + w.dropped);
}

static void run_seed(u64 seed, u64 steps)
{
    new_world(seed, SLOT_EPOCH_MAX - 1, UINT32_MAX - 50);
    for (u64 n = 0; n < steps; n++) step();
    settle();
    print_message("# seed %" PRIu64 ": %" PRIu64 " steps, grants %" PRIu64 " = released %" PRIu64
                  " + finished %" PRIu64 " + reaped %" PRIu64 " + dropped %" PRIu64 "; refused %" PRIu64
                  ", drains %" PRIu64 ", deaths %" PRIu64 ", epochs %" PRIu64 " and %" PRIu64 "\n",
                  seed, w.step, w.grants, w.releases, w.finishes, w.reaps, w.dropped, w.refused, w.drains,
                  w.faults, w.leaders[0].windows, w.leaders[1].windows);
    CHECK(w.grants > steps / 100 && w.runs > steps / 200 && w.reaps > steps / 2000);
    CHECK(w.refused > steps / 10000 && w.drains > steps / 20000 && w.dropped > steps / 100000);
}

static void test_schedules(void **state)
{
    (void)state;
    const char *only = getenv("SLOTS_SIM_SEED"), *sanitize = getenv("SANITIZE");
    u64 steps = (sanitize && sanitize[0] ? STEPS_SANITIZED : STEPS) / SEEDS;
    for (u64 seed = 1; seed <= SEEDS && !only; seed++) run_seed(seed, steps);
    if (only) run_seed(strtoull(only, NULL, 10), steps);
}

/* ---- one case for each way to leak ---------------------------------------------------------------------------*/
static struct flight *held(u32 flight, u32 leader, u32 slot)
{
    struct flight *f = &w.flights[flight];
    flight_look(f, leader, slot);
    assert_int_equal(flight_reserve(f, SLOT_CLASS_SHORT), SLOT_OK);
    return f;
}

static struct flight *sent(u32 flight, u32 leader, u32 slot)
{
    struct flight *f = held(flight, leader, slot);
    assert_true(flight_dispatch(f));
    return f;
}

static void deliver_all(void)
{
    for (u32 l = 0; l < LEADERS; l++)
        for (u32 i = 0; i < INGRESSES; i++) {
            while (w.down[l][i].n) leader_take(l, i);
            while (w.up[l][i].n) ingress_take(i, l);
        }
}

/* Nothing is held, and the books balance. */
static void all_over(u64 releases, u64 finishes, u64 reaps, u64 dropped)
{
    deliver_all();
    book_compare();
    assert_int_equal(w.releases, releases);
    assert_int_equal(w.finishes, finishes);
    assert_int_equal(w.reaps, reaps);
    assert_int_equal(w.dropped, dropped);
    assert_int_equal(w.grants, releases + finishes + reaps + dropped);
    for (u32 k = 0; k < FLIGHTS; k++) assert_int_equal(w.flights[k].at, IDLE);
}

static enum slot_verdict reap(u32 l, u32 s)
{
    leader_look(l, s);
    return leader_act(l);
}

static void test_duplicate_token(void **state)
{
    (void)state;
    new_world(0, 1, 0);
    struct flight *f = sent(1, 0, 2);
    struct message m = w.down[0][1].at[0];
    assert_int_equal(leader_take(0, 1), SLOT_OK);
    send(&w.down[0][1], m);
    assert_int_equal(leader_take(0, 1), SLOT_STARTED); /* while it runs: ignored */
    assert_int_equal(w.up[0][1].n, 0);
    leader_finish(0, 2);
    send(&w.down[0][1], m);
    assert_int_equal(leader_take(0, 1),
                     SLOT_STALE); /* after its end: refused, and the refusal means nothing */
    deliver_all();
    assert_int_equal(f->at, IDLE);
    send(&w.down[0][1], m);
    held(4, 0, 2); /* of the same ingress, in the same slot */
    assert_int_equal(leader_take(0, 1), SLOT_STALE);
    flight_release(&w.flights[4]);
    all_over(1, 1, 0, 0);
    assert_int_equal(w.runs, 1);
}

static void test_cancel_during_reserve(void **state)
{
    (void)state;
    new_world(0, 1, 0);
    struct flight *f = held(2, 1, 3); /* the client was gone when the compare-and-swap came back */
    assert_int_equal(flight_release(f), SLOT_OK);
    all_over(1, 0, 0, 0);
}

static void test_reply_lost_after_accept(void **state)
{
    (void)state;
    new_world(0, 1, 0);
    held(0, 0, 0);
    ingress_dies(0); /* it never learns what it was granted */
    assert_int_equal(reap(0, 0), SLOT_OK);
    assert_int_equal(reap(0, 0), SLOT_WRONG);
    all_over(0, 0, 1, 0);
}

static void test_cancel_during_clean_up(void **state)
{
    (void)state;
    new_world(0, 1, 0);
    struct flight *f = sent(0, 0, 0), *next;
    leader_take(0, 0);
    leader_finish(0, 0); /* the end is on its way */
    flight_cancel(f);
    next = held(1, 0, 0);
    assert_int_equal(leader_take(0, 0),
                     SLOT_OK); /* nothing to cancel any more, and nobody else's slot is freed */
    book_compare();
    assert_int_equal(w.book[0][0].ticket, next->now.ticket);
    assert_int_equal(flight_release(next), SLOT_OK);
    all_over(1, 1, 0, 0);
}

/* Why the flag comes first: a release by somebody who thinks that it was not dispatched finds it running. */
static void test_dispatch_flag_late(void **state)
{
    (void)state;
    new_world(0, 1, 0);
    struct flight *f = sent(0, 0, 1);
    f->at = HELD; /* the message is out, the flag is not set */
    assert_int_equal(leader_take(0, 0), SLOT_OK);
    assert_int_equal(release_place(f, &f->now), SLOT_STARTED); /* and nothing is freed */
    book_compare();
    f->at = SENT;
    leader_finish(0, 1);
    all_over(0, 1, 0, 0);
}

static void close_words(u32 l)
{
    w.leaders[l].draining = true;
    for (u32 s = 0; s < SLOTS; s++) {
        leader_look(l, s);
        if (slot_word_state(w.words[l][s]) == SLOT_FREE) leader_act(l);
        w.leaders[l].looked = false;
    }
}

static void test_drain_between_reserve_and_dispatch(void **state)
{
    (void)state;
    new_world(0, 1, 0);
    struct flight *f = held(0, 0, 0);
    close_words(0);
    assert_int_equal(slot_close(w.words[0][0]).verdict, SLOT_BUSY);
    assert_false(all_closed(0)); /* what is reserved counts */
    assert_true(flight_dispatch(f));
    assert_int_equal(leader_take(0, 0), SLOT_OK); /* it was let in, so it runs */
    close_words(0);
    assert_false(all_closed(0));
    leader_finish(0, 0);
    close_words(0);
    assert_true(all_closed(0));
    flight_look(&w.flights[1], 0, 0);
    assert_int_equal(flight_reserve(&w.flights[1], SLOT_CLASS_SHORT), SLOT_SHUT);
    all_over(0, 1, 0, 0);
}

static void test_release_after_reap(void **state)
{
    (void)state;
    new_world(0, 1, 0);
    struct flight *f = held(0, 0, 0), *next;
    assert_int_equal(reap(0, 0), SLOT_OK);
    assert_int_equal(flight_release(f), SLOT_STALE);
    next = held(3, 0, 0); /* the same ingress has the same slot again */
    assert_int_equal(release_place(f, &f->before), SLOT_STALE);
    assert_int_equal(flight_release(next), SLOT_OK);
    assert_int_equal(release_place(next, &next->before), SLOT_STALE);
    next = held(4, 0, 0); /* another one has it */
    assert_int_equal(release_place(f, &f->before), SLOT_STALE);
    assert_int_equal(flight_release(next), SLOT_OK);
    all_over(2, 0, 1, 0);
}

static void test_owner_death(void **state)
{
    (void)state;
    new_world(0, 1, 0);
    sent(1, 0, 0); /* runs when its owner dies */
    leader_take(0, 1);
    sent(4, 0, 1); /* its message is still on its way */
    held(7, 0, 2); /* reserved only */
    ingress_dies(1);
    assert_int_equal(leader_take(0, 1), SLOT_OK);
    leader_finish(0, 0);
    leader_finish(0, 1);
    assert_int_equal(reap(0, 2), SLOT_OK);
    all_over(0, 2, 1, 0);
}

static void test_wrap_around(void **state)
{
    (void)state;
    new_world(0, SLOT_EPOCH_MAX, UINT32_MAX);
    struct flight *f = held(0, 0, 0);
    assert_int_equal(flight_release(f), SLOT_OK);
    assert_int_equal(slot_word_seq(w.words[0][0]), 0);
    assert_int_equal(slot_word_epoch(w.words[0][0]), SLOT_EPOCH_MAX); /* nothing is carried over */
    sent(3, 0, 0);
    assert_int_equal(release_place(f, &f->before), SLOT_STALE);
    assert_int_equal(leader_take(0, 0), SLOT_OK); /* seq 0 runs */
    struct flight *late = sent(1, 0, 1);
    held(2, 0, 2);
    leader_rebuild(0, 0); /* epoch 1: one runs on, two reservations are gone */
    book_compare();
    assert_int_equal(w.words[0][0], slot_word(1, SLOT_RUNNING, 0, 0));
    assert_int_equal(leader_take(0, 1), SLOT_STALE);
    assert_int_equal(flight_release(&w.flights[2]), SLOT_STALE);
    leader_finish(0, 0);
    deliver_all();
    assert_int_equal(late->at, IDLE); /* refused: it may be tried again */
    all_over(1, 1, 0, 2);
}

/* Replica 0, slot 0, owner 0, seq 0: a token of zeros but for its epoch. */
static void test_zero_is_ordinary(void **state)
{
    (void)state;
    new_world(0, 1, 0);
    struct flight *f = sent(0, 0, 0);
    const struct slot_token *token = &w.down[0][0].at[0].token;
    assert_true(token->replica == 0 && token->slot == 0 && token->epoch == 1 && token->seq == 0);
    assert_int_equal(slot_word_owner(f->now.word), 0);
    assert_int_equal(release_place(&w.flights[1], &f->now), SLOT_FOREIGN);
    assert_int_equal(leader_take(0, 0), SLOT_OK);
    leader_finish(0, 0);
    held(0, 1, 0);
    assert_int_equal(reap(1, 0), SLOT_OK);
    assert_int_equal(flight_release(f), SLOT_STALE);
    all_over(0, 1, 1, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_duplicate_token),
        cmocka_unit_test(test_cancel_during_reserve),
        cmocka_unit_test(test_reply_lost_after_accept),
        cmocka_unit_test(test_cancel_during_clean_up),
        cmocka_unit_test(test_dispatch_flag_late),
        cmocka_unit_test(test_drain_between_reserve_and_dispatch),
        cmocka_unit_test(test_release_after_reap),
        cmocka_unit_test(test_owner_death),
        cmocka_unit_test(test_wrap_around),
        cmocka_unit_test(test_zero_is_ordinary),
        cmocka_unit_test(test_schedules),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("slots_sim", tests, NULL, NULL);
}
