/* The scheduler: every answer is its own, whatever ends, is preempted or cancelled; and pipeline stages. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "batch_world.h"

/* Returns the number of preemptions. */
static u64 drive_as(u64 seed, u32 n_blocks, u32 in_flight, u32 max_step_tokens, u32 death_per_mille,
                    u32 cancel_per_mille, bool prefix_cache)
{
    struct world w;
    world_init_as(&w, n_blocks, in_flight, max_step_tokens, prefix_cache);
    u32 quiet = 0;
    for (u64 i = 0; quiet < 50; i++) {
        u32 r[4], q[4];
        rng_block(seed, i, 0, r);
        rng_block(seed, i, 1, q);
        if (w.n_added < MAX_REQ && r[0] % 4 == 0) add_client(&w, w.n_added, q);
        if (r[1] % 1000 < death_per_mille) engine_dies(&w, false);
        if (r[2] % 1000 < cancel_per_mille && w.n_added) {
            struct client *c = &w.c[q[0] % w.n_added];
            if (batch_cancel(w.b, c->id)) c->cancelled = true;
        }
        if (r[3] % 2) plan_one(&w);
        if (r[3] % 3) run_one(&w);
        if (r[3] % 5 == 0) collect(&w);
        quiet = w.n_added == MAX_REQ && batch_idle(w.b) && w.m.n_queue == 0 ? quiet + 1 : 0;
        assert_true(i < 200000);
    }
    collect(&w);
    assert_int_equal(w.n_freed, MAX_REQ);
    for (u32 i = 0; i < MAX_REQ; i++) check_client(&w.c[i]);
    struct batch_counts n;
    batch_counts(w.b, &n);
    assert_int_equal(n.running + n.waiting, 0);
    plan_one(&w);
    run_one(&w);
    batch_counts(w.b, &n);
    assert_int_equal(n.free_blocks, n.total_blocks);
    assert_true(n.prefix_hits <= n.prefix_queries && (n.prefix_hits > 0) == prefix_cache);
    batch_free(w.b);
    return n.preemptions;
}

/* With and without the prefix cache: the answers are what a sequence alone would give. */
static u64 drive(u64 seed, u32 n_blocks, u32 in_flight, u32 max_step_tokens, u32 death_per_mille,
                 u32 cancel_per_mille)
{
    u64 with = drive_as(seed, n_blocks, in_flight, max_step_tokens, death_per_mille, cancel_per_mille, true);
    u64 without =
        drive_as(seed, n_blocks, in_flight, max_step_tokens, death_per_mille, cancel_per_mille, false);
    return MIN_OF(with, without);
}

static void every_answer_is_its_own(void **state)
{
    (void)state;
    for (u64 s = 1; s <= 10; s++) drive(s, 300, 1 + s % 2, 32, 0, 0);
}
static void small_cache_preempts_and_finishes(void **state)
{
    (void)state;
    u64 preemptions = 0;
    for (u64 s = 1; s <= 10; s++) preemptions += drive(100 + s, LEN / BLOCK + 2, 1 + s % 2, ROWS + s, 0, 0);
    assert_true(preemptions > 0);
}
static void deaths_change_no_byte(void **state)
{
    (void)state;
    for (u64 s = 1; s <= 10; s++) drive(200 + s, 40, 2, 24, 60, 0);
}
static void cancels_lose_nothing(void **state)
{
    (void)state;
    for (u64 s = 1; s <= 10; s++) drive(300 + s, 40, 2, 24, 20, 40);
}

/* A request that ends the engine whenever it is in a step is found and fails alone. */
static void a_poison_request_fails_alone(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 300, 2, 64);
    for (u32 i = 0; i < 6; i++) add_client(&w, i, (const u32[]){10 + i, 9, 0, 2 * i});
    const u64 poison = 4;
    for (int i = 0; i < 1000 && !batch_idle(w.b); i++) {
        plan_one(&w);
        bool dead = false;
        for (u32 k = 0; k < w.m.n_queue; k++) {
            struct step_view v;
            assert_int_equal(step_view(&v, w.m.queue[k], w.m.queue_len[k], NULL), 0);
            for (u32 n = 0; n < v.head->n_new; n++) dead |= v.new[n].request == poison;
        }
        if (dead)
            engine_dies(&w, true);
        else
            run_one(&w);
        collect(&w);
    }
    assert_true(batch_idle(w.b));
    for (u32 i = 0; i < 6; i++) {
        if (w.c[i].id == poison)
            assert_int_equal(w.c[i].finish[0], FINISH_ERROR);
        else
            check_client(&w.c[i]);
    }
    batch_free(w.b);
}

/* Suspects run one request at a time; one that finds no row because those before it hold them all waits, it does not stop them. */
static void a_suspect_without_a_row_waits_its_turn(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 300, 2, 256);
    add_client(&w, 0, (const u32[]){10, 19, 5, 0});
    add_client(&w, 1, (const u32[]){11, 19, 5, 2});
    add_client(&w, 2, (const u32[]){12, 19, 3, 4});
    plan_one(&w);
    add_client(&w, 3, (const u32[]){13, 19, 2, 6}); /* more urgent, and more than the one row left */
    plan_one(&w);
    engine_dies(&w, true);
    for (int i = 0; i < 1000 && !batch_idle(w.b); i++) {
        plan_one(&w);
        run_one(&w);
        collect(&w);
    }
    assert_true(batch_idle(w.b));
    for (u32 i = 0; i < 4; i++) check_client(&w.c[i]);
    batch_free(w.b);
}

/* What is given up becomes free only when the steps in flight have ended: until then nobody else has to go. */
static u32 one_block_short(bool prefix_cache)
{
    struct world w;
    world_init_as(&w, LEN / BLOCK + 2, 2, 64, prefix_cache);
    for (u32 i = 0; i < 6; i++) add_client(&w, i, (const u32[]){7, 19, 0, 2 * i});
    struct batch_counts n = {0};
    u32 steps = 0, most = 0;
    for (; !batch_idle(w.b); steps++) {
        u64 before = n.preemptions;
        u32 queued = w.m.n_queue;
        plan_one(&w);
        if (w.m.n_queue == STEP_IN_FLIGHT || w.m.n_queue == queued) run_one(&w);
        collect(&w);
        batch_counts(w.b, &n);
        most = MAX_OF(most, (u32)(n.preemptions - before));
        assert_true(steps < 10000);
    }
    for (u32 i = 0; i < 6; i++) check_client(&w.c[i]);
    assert_int_equal(most, 1);
    assert_in_range(n.preemptions, 1, 5);
    batch_free(w.b);
    return w.m.n_computed;
}

static void one_block_short_costs_one_sequence(void **state)
{
    (void)state;
    assert_true(one_block_short(true) < one_block_short(false)); /* who was preempted finds its own blocks */
}

static void end_all_ends_running_and_waiting(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 300, 2, 64);
    for (u32 i = 0; i < 20; i++) add_client(&w, i, (const u32[]){10 + i, 9, 1, 2 * i});
    plan_one(&w);
    batch_end_all(w.b, FINISH_RETRY);
    collect(&w);
    for (u32 i = 0; i < 20; i++) assert_int_equal(w.c[i].finish[0], FINISH_RETRY);
    assert_int_equal(w.n_freed, 20);
    run_one(&w);
    assert_true(batch_idle(w.b));
    batch_free(w.b);
}

static void impossible_specs_are_refused(void **state)
{
    (void)state;
    struct error err;
    struct batch_spec spec = {.max_rows = 8,
                              .max_step_tokens = 4,
                              .max_model_len = 64,
                              .block_size = 4,
                              .n_blocks = 100,
                              .in_flight = 1,
                              .max_kills = 2,
                              .max_frame = 1 << 16};
    assert_null(batch_new(&spec, &err));
    spec.max_step_tokens = 8;
    spec.n_blocks = 16;
    assert_null(batch_new(&spec, &err));
    assert_non_null(strstr(err.message, "too small"));
}

/* ---- pipeline stages ----*/
static void stages_are_told_every_token(void **state)
{
    (void)state;
    u64 preemptions = 0;
    for (u64 s = 1; s <= 12; s++)
        preemptions += drive(500 + s, s % 3 ? 40 : LEN / BLOCK + 2, 3 + s % 6, 24, s % 2 ? 40 : 0, s % 5 * 8);
    assert_true(preemptions > 0);
}

static void every_stage_has_a_step_to_work_on(void **state)
{
    (void)state;
    enum { DEPTH = 4 };
    struct world w;
    world_init_as(&w, 300, DEPTH, 64, false);
    for (u32 i = 0; i < ROWS; i++) add_client(&w, i, (const u32[]){3, 19, 0, 2 * i});
    for (u32 i = 0; i < DEPTH; i++) { /* all prompts are behind them: they decode */
        plan_one(&w);
        run_one(&w);
    }
    for (u32 i = 0; i < DEPTH; i++) plan_one(&w);
    for (u32 round = 0; round < 2; round++) {
        struct step_view v;
        assert_int_equal(w.m.n_queue, DEPTH);
        assert_int_equal(step_view(&v, w.m.queue[0], w.m.queue_len[0], NULL), 0);
        assert_in_range(v.head->n_rows, 1, ROWS / DEPTH);
        run_one(&w);
        plan_one(&w);
    }
    finish_all(&w);
    for (u32 i = 0; i < ROWS; i++) check_client(&w.c[i]);
    batch_free(w.b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_answer_is_its_own),
        cmocka_unit_test(small_cache_preempts_and_finishes),
        cmocka_unit_test(deaths_change_no_byte),
        cmocka_unit_test(cancels_lose_nothing),
        cmocka_unit_test(a_poison_request_fails_alone),
        cmocka_unit_test(end_all_ends_running_and_waiting),
        cmocka_unit_test(impossible_specs_are_refused),
        cmocka_unit_test(a_suspect_without_a_row_waits_its_turn),
        cmocka_unit_test(one_block_short_costs_one_sequence),
        cmocka_unit_test(stages_are_told_every_token),
        cmocka_unit_test(every_stage_has_a_step_to_work_on),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
