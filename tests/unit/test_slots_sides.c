/* The ingress and leader sides over a window of plain memory. Before each compare-and-swap the window may let another actor act, so
 * that every read can be outdated by the time it is used: the races of the real window, replayed from a seed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "slots/slots_inner.h"

#include <stdlib.h>
#include <string.h>

enum { LEADER = 0, INGRESSES = 3, SLOTS = 6, REPLICA = 0, HELD = 16, STEPS = 1000000, LEASE = 120 };

/* ---- a window of plain memory (instead of the room's own) ---------------------------------------------------*/
struct slot_window {
    u64 operations;
};
static u64 memory[SLOTS_PER_RANK];
static void (*interrupt)(void);

static void maybe_interrupt(void)
{
    void (*act)(void) = interrupt;
    if (!act) return;
    interrupt = NULL; /* actors do not nest deeper than one */
    act();
    interrupt = act;
}

struct slot_window *slot_window_new(const struct slots_spec *spec, struct error *err)
{
    (void)err;
    (void)spec;
    return mem_zero(1, sizeof(struct slot_window));
}
void slot_window_free(struct slot_window *w)
{
    free(w);
}
void slot_window_abandon(struct slot_window *w)
{
    free(w);
}
u32 slot_window_ranks(const struct slot_window *w)
{
    (void)w;
    return 1;
}
u32 slot_window_rank(const struct slot_window *w)
{
    (void)w;
    return 0;
}
u64 slot_window_operations(const struct slot_window *w)
{
    return w->operations;
}

int slot_window_cas(struct slot_window *w, u32 rank, u32 slot, u64 expected, u64 desired, u64 *old,
                    struct error *err)
{
    (void)err;
    assert_int_equal(rank, LEADER);
    maybe_interrupt();
    w->operations++;
    *old = memory[slot];
    if (*old == expected) memory[slot] = desired;
    return 0;
}

int slot_window_read(struct slot_window *w, u32 rank, u32 first, u32 n, u64 *out, struct error *err)
{
    for (u32 i = 0; i < n; i++) slot_window_cas(w, rank, first + i, SLOT_NEVER, SLOT_NEVER, &out[i], err);
    return 0;
}

/* ---- the actors ----------------------------------------------------------------------------------------------*/
struct held {
    struct slot_token token;
    bool sent; /* dispatched: the leader may run it at any time */
};
struct world {
    struct slots *ingress[INGRESSES], *leader;
    struct held held[INGRESSES][HELD];
    u32 n_held[INGRESSES];
    struct slot_token running[SLOTS * 2];
    u32 n_running;
    u64 now, draws;
    bool draining;
    i32 acting; /* an actor does not interrupt itself */
    /* the independent count: who holds which reservation, as told to the actors */
    u64 grants, ended, reaped_known;
    u32 granted_seq[SLOTS];
    bool ever_granted[SLOTS];
};
static struct world w;

static u32 draw(u32 below)
{
    u32 out[4];
    rng_block(42, w.draws++, 0, out);
    return out[0] % below;
}

static void open_world(u32 first_seq)
{
    w = (struct world){.acting = -1};
    interrupt = NULL;
    for (u32 i = 0; i < SLOTS_PER_RANK; i++) memory[i] = slot_word(SLOT_EPOCH_MAX, SLOT_CLOSED, 0, first_seq);
    struct slots_spec spec = {.epoch = SLOT_EPOCH_MAX, .lease_short_ns = LEASE, .lease_long_ns = 4 * LEASE};
    w.leader = slots_new(&spec, NULL);
    assert_int_equal(slots_open(w.leader, REPLICA, SLOTS, NULL), 0);
    for (u32 i = 0; i < INGRESSES; i++) {
        spec.owner = (u16)i;
        w.ingress[i] = slots_new(&spec, NULL);
    }
}

static void close_world(void)
{
    interrupt = NULL;
    for (u32 i = 0; i < INGRESSES; i++) slots_free(w.ingress[i]);
    slots_free(w.leader);
}

/* (slot, epoch, seq) was never granted before: seqs only rise. */
static void note_grant(const struct slot_token *t)
{
    assert_in_range(t->slot, 0, SLOTS - 1);
    if (w.ever_granted[t->slot] && (i32)(t->seq - w.granted_seq[t->slot]) <= 0)
        fail_msg("slot %u: seq %u granted after %u", t->slot, t->seq, w.granted_seq[t->slot]);
    w.ever_granted[t->slot] = true;
    w.granted_seq[t->slot] = t->seq;
    w.grants++;
}

static void act_reserve(u32 i)
{
    if (w.n_held[i] == HELD) return;
    struct slots_answer a;
    u32 before = slots_outstanding(w.ingress[i], LEADER);
    enum slot_class lease = draw(4) ? SLOT_CLASS_SHORT : SLOT_CLASS_LONG;
    assert_int_equal(slots_reserve(w.ingress[i], REPLICA, LEADER, SLOTS, lease, &a, NULL), 0);
    assert_in_range(a.n_cas, 0, 2 * SLOTS + 16);
    assert_int_equal(slots_outstanding(w.ingress[i], LEADER), before + a.accepted);
    if (!a.accepted) {
        assert_int_not_equal(a.reason, SLOTS_GRANTED);
        return;
    }
    note_grant(&a.token);
    w.held[i][w.n_held[i]++] = (struct held){.token = a.token};
}

static void forget(u32 i, u32 k)
{
    w.held[i][k] = w.held[i][--w.n_held[i]];
}

static void act_release(u32 i)
{
    if (!w.n_held[i]) return;
    u32 k = draw(w.n_held[i]);
    struct held h = w.held[i][k];
    if (h.sent) return;
    int rc = slots_release(w.ingress[i], LEADER, &h.token, NULL);
    assert_in_range(rc, 0, 1);
    if (rc == 0) w.reaped_known++;
    w.ended++;
    assert_int_equal(slots_release(w.ingress[i], LEADER, &h.token, NULL), 0); /* idempotent */
    forget(i, k);
}

/* The message arrives at once or later: the leader acts on it in act_dispatch of a later step as well. */
static void act_send(u32 i)
{
    if (w.n_held[i]) w.held[i][draw(w.n_held[i])].sent = true;
}

static void act_dispatch(void)
{
    u32 i = draw(INGRESSES);
    if (!w.n_held[i]) return;
    u32 k = draw(w.n_held[i]);
    struct held h = w.held[i][k];
    if (!h.sent) return;
    int rc = slots_run(w.leader, &h.token, NULL);
    if (rc == SLOT_STALE) { /* reaped before the message came: refused, the ingress selects anew */
        slots_ended(w.ingress[i], LEADER, &h.token);
        w.reaped_known++;
        w.ended++;
        forget(i, k);
        return;
    }
    if (rc == SLOT_STARTED) return; /* dispatched before, and it runs */
    assert_int_equal(rc, SLOT_OK);
    for (u32 r = 0; r < w.n_running; r++)
        assert_int_not_equal(w.running[r].slot, h.token.slot); /* one owner */
    w.running[w.n_running++] = h.token;
    assert_int_equal(slots_run(w.leader, &h.token, NULL), SLOT_STARTED); /* never run twice */
    assert_int_equal(slots_release(w.ingress[i], LEADER, &h.token, NULL), ERR_STATE);
}

static void act_finish(void)
{
    if (!w.n_running) return;
    u32 r = draw(w.n_running);
    struct slot_token t = w.running[r];
    assert_int_equal(slots_finish(w.leader, &t, NULL), SLOT_OK);
    assert_int_equal(slots_finish(w.leader, &t, NULL), SLOT_STALE);
    w.running[r] = w.running[--w.n_running];
    for (u32 i = 0; i < INGRESSES; i++)
        for (u32 k = 0; k < w.n_held[i]; k++)
            if (!memcmp(&w.held[i][k].token, &t, sizeof t)) {
                slots_ended(w.ingress[i], LEADER, &t);
                w.ended++;
                forget(i, k);
                return;
            }
    fail_msg("slot %u ran for nobody", t.slot);
}

static void act_leader(void)
{
    switch (draw(40)) {
    case 0: assert_true(slots_reap(w.leader, w.now, NULL) >= 0); break;
    case 1:
        w.draining = true;
        assert_true(slots_close_free(w.leader, NULL) >= 0);
        break;
    case 2:
    case 3:
    case 4:
        assert_int_equal(slots_open(w.leader, REPLICA, SLOTS, NULL), 0);
        w.draining = false;
        break;
    default: draw(2) ? act_dispatch() : act_finish();
    }
}

static void act_ingress(u32 i)
{
    switch (draw(5)) {
    case 0:
    case 1: act_reserve(i); break;
    case 2: act_release(i); break;
    default: act_send(i);
    }
}

/* One actor's turn; the leader's number is INGRESSES. Dispatch and finish touch an ingress's table, as messages would. */
static void turn(void)
{
    i32 who = (i32)draw(INGRESSES + 1), before = w.acting;
    if (who == w.acting) return;
    w.acting = who;
    who == INGRESSES ? act_leader() : act_ingress((u32)who);
    w.acting = before;
}

/* Inside another's operation only ingresses act, since leader turns also move messages of that very operation. */
static void intrude(void)
{
    if (draw(3)) return;
    i32 who = (i32)draw(INGRESSES), before = w.acting;
    if (who == w.acting || w.acting == INGRESSES + 1) return;
    struct slots_answer a;
    if (w.n_held[who] == HELD) return;
    w.acting = who;
    /* only what ends within itself: reserve, and give back at random */
    assert_int_equal(slots_reserve(w.ingress[who], REPLICA, LEADER, SLOTS, SLOT_CLASS_SHORT, &a, NULL), 0);
    if (a.accepted) {
        note_grant(&a.token);
        if (draw(2)) {
            int rc = slots_release(w.ingress[who], LEADER, &a.token, NULL);
            assert_int_equal(rc, 1);
            w.ended++;
        } else
            w.held[who][w.n_held[who]++] = (struct held){.token = a.token};
    }
    w.acting = before;
}

static void check_world(void)
{
    u32 owned[SLOTS] = {0};
    for (u32 i = 0; i < INGRESSES; i++)
        for (u32 k = 0; k < w.n_held[i]; k++) {
            const struct slot_token *t = &w.held[i][k].token;
            u64 word = memory[t->slot];
            bool live = slot_word_epoch(word) == t->epoch && slot_word_seq(word) == t->seq &&
                        (slot_word_reserved(word) || slot_word_state(word) == SLOT_RUNNING);
            owned[t->slot] += live;
            if (live) assert_int_equal(slot_word_owner(word), i);
        }
    for (u32 s = 0; s < SLOTS; s++) {
        assert_true(slot_word_valid(memory[s]));
        bool used = slot_word_state(memory[s]) >= SLOT_RESERVED_SHORT;
        assert_int_equal(owned[s], used); /* exactly one owner of what is in use, none of what is not */
    }
    for (u32 s = SLOTS; s < SLOTS + 4; s++) assert_int_equal(slot_word_state(memory[s]), SLOT_CLOSED);
}

/* Everybody lets go; what is left is reaped; then nothing is outstanding and the books balance. */
static void settle(void)
{
    interrupt = NULL;
    while (w.n_running) act_finish();
    for (u32 i = 0; i < INGRESSES; i++)
        while (w.n_held[i]) {
            w.held[i][0].sent = false;
            struct held h = w.held[i][0];
            w.reaped_known += slots_release(w.ingress[i], LEADER, &h.token, NULL) == 0;
            w.ended++;
            forget(i, 0);
        }
    u64 grants = 0, releases = 0;
    for (u32 i = 0; i < INGRESSES; i++) {
        const struct slots_counts *c = slots_counts(w.ingress[i]);
        grants += c->grants;
        releases += c->releases;
        assert_int_equal(slots_outstanding(w.ingress[i], LEADER), 0);
    }
    const struct slots_counts *c = slots_counts(w.leader);
    assert_int_equal(grants, w.grants);
    assert_int_equal(grants, w.ended);
    assert_int_equal(grants, releases + c->finishes + c->reaped);
    assert_int_equal(c->reaped, w.reaped_known);
    assert_int_equal(slots_close_free(w.leader, NULL), 0);
    assert_int_equal(slots_in_use(w.leader), 0);
    assert_false(slots_reserved_seen(w.leader));
}

static void test_random_schedules(void **state)
{
    (void)state;
    open_world(UINT32_MAX - 2000); /* seq wraps in the run */
    interrupt = intrude;
    for (u32 step = 0; step < STEPS; step++) {
        w.now += draw(3);
        turn();
        if (step % 16 == 0) check_world();
    }
    settle();
    print_message("# %llu grants, %llu finished, %llu reaped\n", (unsigned long long)w.grants,
                  (unsigned long long)slots_counts(w.leader)->finishes,
                  (unsigned long long)slots_counts(w.leader)->reaped);
    assert_true(w.grants > STEPS / 20);
    assert_true(slots_counts(w.leader)->reaped > 100);
    assert_true(slots_counts(w.leader)->runs > 1000);
    close_world();
}

static void test_reserve_until_full(void **state)
{
    (void)state;
    open_world(0);
    struct slots_answer a;
    struct slot_token tokens[SLOTS];
    slots_published(w.ingress[1], LEADER, 2);
    for (u32 i = 0; i < SLOTS; i++) {
        assert_int_equal(slots_reserve(w.ingress[1], REPLICA, LEADER, SLOTS, SLOT_CLASS_SHORT, &a, NULL), 0);
        assert_true(a.accepted);
        assert_int_equal(a.n_cas, 1); /* the words of a new job are guessed right */
        assert_int_equal(a.num_ongoing, i + 1 + 2);
        assert_int_equal(slots_ongoing(w.ingress[1], LEADER), i + 1 + 2);
        tokens[i] = a.token;
    }
    assert_int_equal(slots_reserve(w.ingress[1], REPLICA, LEADER, SLOTS, SLOT_CLASS_SHORT, &a, NULL), 0);
    assert_false(a.accepted);
    assert_int_equal(a.reason, SLOTS_FULL);
    assert_int_equal(a.num_ongoing, SLOTS);
    assert_int_equal(a.n_cas, 0); /* all are its own */
    assert_int_equal(slots_reserve(w.ingress[2], REPLICA, LEADER, SLOTS, SLOT_CLASS_SHORT, &a, NULL), 0);
    assert_int_equal(a.reason, SLOTS_FULL);
    assert_int_equal(a.num_ongoing, SLOTS); /* exact: it saw every word */
    assert_int_equal(slots_release(w.ingress[1], LEADER, &tokens[3], NULL), 1);
    assert_int_equal(slots_release(w.ingress[1], LEADER, &tokens[3], NULL), 0);
    assert_int_equal(slots_release(w.ingress[2], LEADER, &tokens[4], NULL), 0); /* not its own */
    assert_int_equal(slots_reserve(w.ingress[1], REPLICA, LEADER, SLOTS, SLOT_CLASS_SHORT, &a, NULL), 0);
    assert_true(a.accepted && a.n_cas == 1 && a.token.slot == tokens[3].slot &&
                a.token.seq == tokens[3].seq + 1);
    close_world();
}

static void test_drain(void **state)
{
    (void)state;
    open_world(0);
    struct slots_answer a, b;
    slots_reserve(w.ingress[0], REPLICA, LEADER, SLOTS, SLOT_CLASS_SHORT, &a, NULL);
    slots_reserve(w.ingress[1], REPLICA, LEADER, SLOTS, SLOT_CLASS_SHORT, &b, NULL);
    assert_int_equal(slots_run(w.leader, &a.token, NULL), SLOT_OK);
    assert_int_equal(slots_close_free(w.leader, NULL), 2); /* one running, one reserved */
    assert_int_equal(slots_in_use(w.leader), 2);
    assert_int_equal(slots_in_use_by_others(w.leader, 0), 1);
    struct slots_answer c;
    slots_reserve(w.ingress[2], REPLICA, LEADER, SLOTS, SLOT_CLASS_SHORT, &c, NULL);
    assert_false(c.accepted);
    assert_int_equal(c.reason, SLOTS_LEAVING);
    assert_int_equal(c.num_ongoing, 2);
    assert_int_equal(slots_finish(w.leader, &a.token, NULL), SLOT_OK);
    assert_int_equal(slots_close_free(w.leader, NULL), 1);
    assert_int_equal(slots_release(w.ingress[1], LEADER, &b.token, NULL), 1);
    assert_int_equal(slots_close_free(w.leader, NULL), 0);
    assert_int_equal(slots_run(w.leader, &b.token, NULL), SLOT_STALE);
    assert_int_equal(slots_open(w.leader, REPLICA, SLOTS, NULL), 0);
    slots_reserve(w.ingress[2], REPLICA, LEADER, SLOTS, SLOT_CLASS_SHORT, &c, NULL);
    assert_true(c.accepted);
    close_world();
}

static void test_leases(void **state)
{
    (void)state;
    open_world(0);
    struct slots_answer s, l;
    slots_reserve(w.ingress[0], REPLICA, LEADER, SLOTS, SLOT_CLASS_SHORT, &s, NULL);
    slots_reserve(w.ingress[0], REPLICA, LEADER, SLOTS, SLOT_CLASS_LONG, &l, NULL);
    u64 t = 1000000;
    assert_int_equal(slots_reap(w.leader, t, NULL), 0); /* first seen now: the clock starts */
    assert_true(slots_reserved_seen(w.leader));
    u64 before = slots_counts(w.leader)->cas;
    assert_int_equal(slots_reap(w.leader, t + LEASE / 8 - 1, NULL), 0);
    assert_int_equal(slots_counts(w.leader)->cas, before); /* not looked: too early */
    assert_int_equal(slots_reap(w.leader, t + LEASE - 1, NULL), 0);
    assert_int_equal(slots_reap(w.leader, t + LEASE + LEASE / 8, NULL), 1);
    assert_int_equal(slots_run(w.leader, &s.token, NULL), SLOT_STALE); /* too late */
    assert_int_equal(slots_release(w.ingress[0], LEADER, &s.token, NULL), 0);
    /* the same slot again: the new reservation has its own clock */
    slots_reserve(w.ingress[0], REPLICA, LEADER, SLOTS, SLOT_CLASS_SHORT, &s, NULL);
    assert_int_equal(slots_reap(w.leader, t + 2 * LEASE, NULL), 0);
    assert_int_equal(slots_run(w.leader, &s.token, NULL), SLOT_OK);
    assert_int_equal(slots_reap(w.leader, t + 4 * LEASE, NULL), 1); /* the long one; what runs has no lease */
    assert_int_equal(slots_run(w.leader, &l.token, NULL), SLOT_STALE);
    assert_int_equal(slots_finish(w.leader, &s.token, NULL), SLOT_OK);
    close_world();
}

static void test_foreign_tokens(void **state)
{
    (void)state;
    open_world(0);
    struct slots_answer a;
    slots_reserve(w.ingress[0], REPLICA, LEADER, SLOTS, SLOT_CLASS_SHORT, &a, NULL);
    struct slot_token bad = a.token;
    bad.replica = 1;
    assert_int_equal(slots_run(w.leader, &bad, NULL), SLOT_STALE);
    bad = a.token;
    bad.slot = SLOTS;
    assert_int_equal(slots_run(w.leader, &bad, NULL), SLOT_STALE);
    bad.slot = 65535;
    assert_int_equal(slots_run(w.leader, &bad, NULL), SLOT_STALE);
    assert_int_equal(slots_release(w.ingress[0], LEADER, &bad, NULL), 0);
    assert_int_equal(slots_release(w.ingress[0], 12345, &a.token, NULL), 0);
    memory[a.token.slot] = 7; /* memory gone mad */
    struct error err = {0};
    assert_int_equal(slots_run(w.leader, &a.token, &err), ERR_PEER);
    assert_non_null(strstr(err.message, "0x7"));
    assert_int_equal(slots_run(w.ingress[1], &a.token, NULL), SLOT_STALE); /* leads nothing */
    slots_forget(w.ingress[0], LEADER);
    assert_int_equal(slots_outstanding(w.ingress[0], LEADER), 0);
    close_world();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reserve_until_full),
        cmocka_unit_test(test_drain),
        cmocka_unit_test(test_leases),
        cmocka_unit_test(test_foreign_tokens),
        cmocka_unit_test(test_random_schedules),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("slots_sides", tests, NULL, NULL);
}
