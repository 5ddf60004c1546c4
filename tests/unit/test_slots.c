/* Slot words: packing, and every transition from every state, legal or not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "mpiserve/slots.h"

#include <stdio.h>
#include <string.h>

enum { OWNER = 5, OTHER = 6, EPOCH = 9 };
static const u32 seqs[] = {0, 1, 77, UINT32_MAX - 1, UINT32_MAX};

static void test_packing(void **state)
{
    (void)state;
    static const u32 epochs[] = {1, 2, 2048, SLOT_EPOCH_MAX};
    static const u16 owners[] = {0, 1, 255, 65535};
    for (size_t e = 0; e < COUNT_OF(epochs); e++)
        for (size_t o = 0; o < COUNT_OF(owners); o++)
            for (size_t q = 0; q < COUNT_OF(seqs); q++)
                for (enum slot_state st = SLOT_CLOSED; st <= SLOT_RUNNING; st++) {
                    u64 word = slot_word(epochs[e], st, owners[o], seqs[q]);
                    assert_int_equal(slot_word_epoch(word), epochs[e]);
                    assert_int_equal(slot_word_state(word), st);
                    assert_int_equal(slot_word_owner(word), owners[o]);
                    assert_int_equal(slot_word_seq(word), seqs[q]);
                    bool owned = st >= SLOT_RESERVED_SHORT;
                    assert_int_equal(slot_word_valid(word), owned || owners[o] == 0);
                }
    assert_int_equal(slot_word(1, SLOT_FREE, 0, 0), 0x0012000000000000);
}

static void test_never_valid(void **state)
{
    (void)state;
    static const u64 words[] = {0,
                                SLOT_NEVER,
                                1,
                                0x0002000000000000 /* epoch 0 */,
                                0x0016000000000000 /* state 6 */,
                                0x001f000000000000,
                                0x0012000100000000 /* free with an owner */};
    for (size_t i = 0; i < COUNT_OF(words); i++) {
        assert_false(slot_word_valid(words[i]));
        const struct slot_move moves[] = {
            slot_reserve(words[i], 0, SLOT_CLASS_SHORT),
            slot_release(words[i], 0, 1, 0),
            slot_run(words[i], 1, 0),
            slot_finish(words[i], 1, 0),
            slot_reap(words[i], 1, 0),
            slot_close(words[i]),
            slot_open(words[i], 1),
        };
        for (size_t k = 0; k < COUNT_OF(moves); k++) {
            assert_int_equal(moves[k].verdict, SLOT_BROKEN);
            assert_int_equal(moves[k].word, words[i]);
        }
    }
}

enum action { RESERVE, RESERVE_LONG, RELEASE, RELEASE_OTHER, RUN, FINISH, REAP, CLOSE, OPEN, N_ACTIONS };

static struct slot_move act(enum action a, u64 old, u32 epoch, u32 seq)
{
    switch (a) {
    case RESERVE: return slot_reserve(old, OWNER, SLOT_CLASS_SHORT);
    case RESERVE_LONG: return slot_reserve(old, OWNER, SLOT_CLASS_LONG);
    case RELEASE: return slot_release(old, OWNER, epoch, seq);
    case RELEASE_OTHER: return slot_release(old, OTHER, epoch, seq);
    case RUN: return slot_run(old, epoch, seq);
    case FINISH: return slot_finish(old, epoch, seq);
    case REAP: return slot_reap(old, epoch, seq);
    case CLOSE: return slot_close(old);
    case OPEN: return slot_open(old, epoch);
    case N_ACTIONS: break;
    }
    fail_msg("action %d", a);
    return (struct slot_move){0};
}

/* What each action must say in each state when the token names the word; the state after SLOT_OK. */
#define TO(s)                                                                                                \
    {                                                                                                        \
        SLOT_OK, s                                                                                           \
    }
#define NO(v)                                                                                                \
    {                                                                                                        \
        v, 0                                                                                                 \
    }
static const struct {
    enum slot_verdict verdict;
    enum slot_state to;
} table[SLOT_RUNNING + 1][N_ACTIONS] = {
    [SLOT_CLOSED] = {NO(SLOT_SHUT), NO(SLOT_SHUT), NO(SLOT_STALE), NO(SLOT_STALE), NO(SLOT_STALE),
                     NO(SLOT_STALE), NO(SLOT_STALE), NO(SLOT_SHUT), TO(SLOT_FREE)},
    [SLOT_FREE] = {TO(SLOT_RESERVED_SHORT), TO(SLOT_RESERVED_LONG), NO(SLOT_STALE), NO(SLOT_STALE),
                   NO(SLOT_STALE), NO(SLOT_STALE), NO(SLOT_STALE), TO(SLOT_CLOSED), NO(SLOT_WRONG)},
    [SLOT_RESERVED_SHORT] = {NO(SLOT_BUSY), NO(SLOT_BUSY), TO(SLOT_FREE), NO(SLOT_FOREIGN), TO(SLOT_RUNNING),
                             NO(SLOT_WRONG), TO(SLOT_FREE), NO(SLOT_BUSY), NO(SLOT_WRONG)},
    [SLOT_RESERVED_LONG] = {NO(SLOT_BUSY), NO(SLOT_BUSY), TO(SLOT_FREE), NO(SLOT_FOREIGN), TO(SLOT_RUNNING),
                            NO(SLOT_WRONG), TO(SLOT_FREE), NO(SLOT_BUSY), NO(SLOT_WRONG)},
    [SLOT_RUNNING] = {NO(SLOT_BUSY), NO(SLOT_BUSY), NO(SLOT_STARTED), NO(SLOT_FOREIGN), NO(SLOT_STARTED),
                      TO(SLOT_FREE), NO(SLOT_STARTED), NO(SLOT_BUSY), NO(SLOT_WRONG)},
};

static void check_new_word(enum action a, enum slot_state from, u64 word, enum slot_state to, u32 seq)
{
    bool ended = to == SLOT_FREE && from != SLOT_CLOSED;
    bool owned = to >= SLOT_RESERVED_SHORT;
    assert_true(slot_word_valid(word));
    assert_int_equal(slot_word_state(word), to);
    assert_int_equal(slot_word_seq(word),
                     (u32)(seq + ended)); /* every end of a reservation, and nothing else */
    assert_int_equal(slot_word_owner(word), owned ? OWNER : 0);
    assert_int_equal(slot_word_epoch(word), EPOCH);
    (void)a;
}

static void test_table(void **state)
{
    (void)state;
    for (enum slot_state from = SLOT_CLOSED; from <= SLOT_RUNNING; from++)
        for (enum action a = 0; a < N_ACTIONS; a++)
            for (size_t q = 0; q < COUNT_OF(seqs); q++) {
                u64 old = slot_word(EPOCH, from, from >= SLOT_RESERVED_SHORT ? OWNER : 0, seqs[q]);
                struct slot_move m = act(a, old, EPOCH, seqs[q]);
                if (m.verdict != table[from][a].verdict)
                    fail_msg("state %d, action %d: %s", from, a, slot_verdict_name(m.verdict));
                if (m.verdict)
                    assert_int_equal(m.word, old);
                else
                    check_new_word(a, from, m.word, table[from][a].to, seqs[q]);
            }
}

/* A token of another epoch or seq never does anything. */
static void test_stale_tokens(void **state)
{
    (void)state;
    static const enum action with_token[] = {RELEASE, RELEASE_OTHER, RUN, FINISH, REAP};
    for (enum slot_state from = SLOT_CLOSED; from <= SLOT_RUNNING; from++)
        for (size_t i = 0; i < COUNT_OF(with_token); i++)
            for (size_t q = 0; q < COUNT_OF(seqs); q++) {
                u64 old = slot_word(EPOCH, from, from >= SLOT_RESERVED_SHORT ? OWNER : 0, seqs[q]);
                const struct slot_move moves[] = {
                    act(with_token[i], old, EPOCH, seqs[q] + 1),
                    act(with_token[i], old, EPOCH, seqs[q] - 1),
                    act(with_token[i], old, EPOCH + 1, seqs[q]),
                    act(with_token[i], old, 0, seqs[q]),
                };
                for (size_t k = 0; k < COUNT_OF(moves); k++) {
                    assert_int_equal(moves[k].verdict, SLOT_STALE);
                    assert_int_equal(moves[k].word, old);
                }
            }
}

static void test_epochs(void **state)
{
    (void)state;
    assert_int_equal(slot_epoch_after(1), 2);
    assert_int_equal(slot_epoch_after(SLOT_EPOCH_MAX), 1);
    assert_int_equal(slot_epoch_after(SLOT_EPOCH_MAX - 1), SLOT_EPOCH_MAX);
    u64 closed = slot_word(SLOT_EPOCH_MAX, SLOT_CLOSED, 0, 12);
    struct slot_move m = slot_open(closed, slot_epoch_after(SLOT_EPOCH_MAX));
    assert_int_equal(m.verdict, SLOT_OK);
    assert_int_equal(m.word, slot_word(1, SLOT_FREE, 0, 12));
    assert_int_equal(slot_open(closed, 0).verdict, SLOT_WRONG);
    assert_int_equal(slot_open(closed, SLOT_EPOCH_MAX + 1).verdict, SLOT_WRONG);
    /* a token from before the new epoch is stale although slot and seq agree */
    u64 again = slot_reserve(m.word, OWNER, SLOT_CLASS_SHORT).word;
    assert_int_equal(slot_run(again, SLOT_EPOCH_MAX, 12).verdict, SLOT_STALE);
    assert_int_equal(slot_run(again, 1, 12).verdict, SLOT_OK);
}

/* Slot 0, owner 0, seq 0 are ordinary. */
static void test_zero_is_ordinary(void **state)
{
    (void)state;
    u64 word = slot_reserve(slot_word(1, SLOT_FREE, 0, 0), 0, SLOT_CLASS_SHORT).word;
    assert_int_equal(slot_release(word, 1, 1, 0).verdict, SLOT_FOREIGN);
    word = slot_run(word, 1, 0).word;
    word = slot_finish(word, 1, 0).word;
    assert_int_equal(word, slot_word(1, SLOT_FREE, 0, 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_packing), cmocka_unit_test(test_never_valid),
        cmocka_unit_test(test_table),   cmocka_unit_test(test_stale_tokens),
        cmocka_unit_test(test_epochs),  cmocka_unit_test(test_zero_is_ordinary),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("slots", tests, NULL, NULL);
}
