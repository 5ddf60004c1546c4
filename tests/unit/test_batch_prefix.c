/* The scheduler and the prefix cache: what is shared, by whom, and for how long. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "batch_world.h"

/* ---- the prefix cache ----*/
enum { EQUAL_PROMPT = 40, EQUAL_SHARED = (EQUAL_PROMPT - 1) / BLOCK * BLOCK };
/* Clients with the same prompt, answers of up to 20 tokens, and a seed each. */
static struct client *add_equal(struct world *w, u32 i)
{
    add_client(w, i, (const u32[]){EQUAL_PROMPT - 1, 19, 0, 2 * (i + 1)});
    return &w->c[i];
}

/* Prompts of another kind share nothing with what is cached; those of the same kind do. */
static u32 kind_by_length(const void *arg, u32 prompt_len)
{
    assert_null(arg);
    return prompt_len > EQUAL_PROMPT;
}

static void kinds_of_prompts_are_apart(void **state)
{
    (void)state;
    struct world w;
    world_kind = kind_by_length;
    world_init_as(&w, 300, 2, 64, true);
    world_kind = NULL;
    struct client *first = add_equal(&w, 0);
    finish_all(&w);
    for (u32 i = 1; i < 3; i++) {
        w.c[i] = (struct client){.id = i + 1, .n_prompt = EQUAL_PROMPT + 1, .max_tokens = 1, .n_samples = 1};
        memcpy(w.c[i].prompt, first->prompt, EQUAL_PROMPT * 4);
        submit_client(&w, &w.c[i], 0);
        finish_all(&w);
        check_client(&w.c[i]);
    }
    assert_int_equal(w.c[1].n_cached, 0);
    assert_int_equal(w.c[2].n_cached, EQUAL_PROMPT / BLOCK * BLOCK);
    batch_free(w.b);
}

/* An adapter's blocks are its own, also where routers look for them. */
static void adapters_are_apart(void **state)
{
    (void)state;
    struct world w;
    world_init_as(&w, 300, 2, 64, true);
    static const u32 adapters[] = {0, 1, 2, 1, 0}, cached[] = {0, 0, 0, EQUAL_SHARED, EQUAL_SHARED};
    u64 hashes[300], own[EQUAL_PROMPT / BLOCK];
    for (u32 i = 0; i < COUNT_OF(adapters); i++) {
        world_adapter = adapters[i];
        add_equal(&w, i);
        finish_all(&w);
        check_client(&w.c[i]);
        assert_int_equal(w.c[i].n_cached, cached[i]);
        assert_int_equal(w.m.last_adapter, adapters[i]);
        kv_prefix_hashes(kv_kind(adapters[i], 0), w.c[i].prompt, EQUAL_PROMPT, BLOCK, own);
        u32 n = batch_cached(w.b, hashes, COUNT_OF(hashes)), found = 0;
        for (u32 k = 0; k < n; k++)
            found += hashes[k] == own[0] || hashes[k] == own[EQUAL_PROMPT / BLOCK - 1];
        assert_int_equal(found, 2);
    }
    world_adapter = 0;
    batch_free(w.b);
}

static void adapters_outlive_engines(void **state)
{
    (void)state;
    struct world w;
    world_init_as(&w, 300, 2, 64, true);
    world_adapter = 2;
    add_equal(&w, 0);
    world_adapter = 0;
    for (u32 i = 0; i < 3; i++) {
        plan_one(&w);
        run_one(&w);
    }
    engine_dies(&w, false);
    assert_int_equal(w.m.last_adapter, 0);
    finish_all(&w);
    check_client(&w.c[0]);
    assert_int_equal(w.m.last_adapter, 2);
    batch_free(w.b);
}

static void equal_beginnings_are_computed_once(void **state)
{
    (void)state;
    struct world w;
    struct batch_counts n;
    world_init_as(&w, 300, 2, 64, true);
    struct client *first = add_equal(&w, 0), *next = &w.c[2];
    finish_all(&w);
    assert_true(w.m.first_pos == 0 && first->n_cached == 0);
    u32 before = w.m.n_computed;
    add_equal(&w, 1);
    finish_all(&w);
    assert_true(w.m.first_pos == EQUAL_SHARED && w.c[1].n_cached == EQUAL_SHARED);
    assert_true(w.m.n_computed - before <= EQUAL_PROMPT - EQUAL_SHARED + w.c[1].got[0]);
    batch_counts(w.b, &n);
    assert_int_equal(n.prefix_queries, 2 * EQUAL_PROMPT);
    assert_int_equal(n.prefix_hits, EQUAL_SHARED);
    /* a conversation goes on: the answer was computed, too, but for its last token */
    *next = (struct client){
        .id = 3, .n_prompt = EQUAL_PROMPT + first->got[0] + 1, .max_tokens = 1, .n_samples = 1};
    memcpy(next->prompt, first->prompt, EQUAL_PROMPT * 4);
    memcpy(next->prompt + EQUAL_PROMPT, first->out[0], first->got[0] * 4);
    submit_client(&w, next, 0);
    finish_all(&w);
    assert_int_equal(next->n_cached, (EQUAL_PROMPT + first->got[0] - 1) / BLOCK * BLOCK);
    for (u32 i = 0; i < 3; i++) check_client(&w.c[i]);
    batch_free(w.b);
}

static u32 computed_for_three_samples(u32 max_step_tokens, bool prefix_cache)
{
    struct world w;
    world_init_as(&w, 300, 2, max_step_tokens, prefix_cache);
    add_client(&w, 0, (const u32[]){EQUAL_PROMPT - 1, 0, 2, 4}); /* one token each */
    finish_all(&w);
    check_client(&w.c[0]);
    assert_int_equal(w.c[0].n_cached, 0);
    u32 n = w.m.n_computed;
    batch_free(w.b);
    return n;
}

static void samples_share_their_prompt(void **state)
{
    (void)state;
    const u32 sizes[] = {ROWS, 13, 64, 256};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        assert_int_equal(computed_for_three_samples(sizes[i], true),
                         EQUAL_PROMPT + 2 * (EQUAL_PROMPT - EQUAL_SHARED));
        assert_int_equal(computed_for_three_samples(sizes[i], false), 3 * EQUAL_PROMPT);
    }
}

static void the_cache_goes_with_the_engine(void **state)
{
    (void)state;
    struct world w;
    world_init_as(&w, 300, 2, 64, true);
    add_equal(&w, 0);
    finish_all(&w);
    engine_dies(&w, false);
    for (u32 i = 1; i < 3; i++) {
        add_equal(&w, i);
        finish_all(&w);
        assert_int_equal(w.m.first_pos, i == 1 ? 0 : EQUAL_SHARED);
        check_client(&w.c[i]);
    }
    batch_free(w.b);
}

/* What was committed before a cancel can be used; what was only planned cannot. */
static void a_cancelled_sequence_leaves_its_blocks(void **state)
{
    (void)state;
    struct world w;
    world_init_as(&w, 300, 2, 16, true);
    struct client *c = add_equal(&w, 0);
    plan_one(&w);
    run_one(&w);
    plan_one(&w);
    assert_true(batch_cancel(w.b, c->id));
    c->cancelled = true;
    add_equal(&w, 1);
    plan_one(&w);
    finish_all(&w);
    assert_int_equal(w.m.first_pos, 16);
    check_client(&w.c[1]);
    batch_free(w.b);
}

/* Both compute the prompt; one keeps its copy to itself, and nothing is lost at the end. */
static void two_at_the_same_time(void **state)
{
    (void)state;
    struct world w;
    struct batch_counts n;
    world_init_as(&w, 300, 2, 256, true);
    add_equal(&w, 0);
    add_equal(&w, 1);
    finish_all(&w);
    add_equal(&w, 2);
    finish_all(&w);
    assert_int_equal(w.m.first_pos, EQUAL_SHARED);
    for (u32 i = 0; i < 3; i++) check_client(&w.c[i]);
    batch_counts(w.b, &n);
    assert_int_equal(n.free_blocks, n.total_blocks);
    batch_free(w.b);
}

static void numbers_that_are_not_finite_are_not_kept(void **state)
{
    (void)state;
    struct world w;
    world_init_as(&w, 300, 2, 64, true);
    add_equal(&w, 0);
    finish_all(&w);
    w.m.nan_seed = add_equal(&w, 1)->seed;
    finish_all(&w);
    assert_int_equal(w.c[1].finish[0], FINISH_ERROR);
    assert_int_equal(w.m.first_pos, EQUAL_SHARED);
    add_equal(&w, 2);
    finish_all(&w);
    assert_int_equal(w.m.first_pos, 0);
    check_client(&w.c[2]);
    batch_free(w.b);
}

/* Memory is short: what goes first is the end of the sequence that ended, not what others may have in common with it. */
static void beginnings_stay_longer_than_ends(void **state)
{
    (void)state;
    struct world w;
    world_init_as(&w, LEN / BLOCK + 2, 2, 64, true);
    add_equal(&w, 0);
    finish_all(&w);
    add_client(&w, 1, (const u32[]){EQUAL_PROMPT + EQUAL_PROMPT - 1, 0, 0, 4}); /* of another family */
    finish_all(&w);
    assert_int_equal(w.c[1].n_cached, 0);
    add_equal(&w, 2);
    finish_all(&w);
    assert_in_range(w.c[2].n_cached, BLOCK, EQUAL_SHARED - BLOCK);
    for (u32 i = 0; i < 3; i++) check_client(&w.c[i]);
    batch_free(w.b);
}

/* One that waits for memory finds its beginning anew at every step. That does not keep these blocks from others. */
static void who_waits_holds_nothing(void **state)
{
    (void)state;
    struct world w;
    struct step_view v;
    world_init_as(&w, LEN / BLOCK + 2, 2, 64, true);
    add_client(&w, 0, (const u32[]){EQUAL_PROMPT - 1, 0, 0, 2}); /* leaves 10 blocks of 17 */
    finish_all(&w);
    add_client(&w, 1, (const u32[]){EQUAL_PROMPT + 28, 19, 0, 4}); /* runs in 8 */
    plan_one(&w);
    add_equal(&w, 2);                                            /* finds 9, and needs 10 */
    add_client(&w, 3, (const u32[]){2 * EQUAL_PROMPT, 0, 0, 8}); /* needs one */
    plan_one(&w);
    assert_int_equal(step_view(&v, w.m.queue[1], w.m.queue_len[1], NULL), 0);
    assert_int_equal(v.head->n_new, 1);
    assert_int_equal(v.new->request, w.c[3].id);
    finish_all(&w);
    for (u32 i = 0; i < 4; i++) check_client(&w.c[i]);
    batch_free(w.b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kinds_of_prompts_are_apart),
        cmocka_unit_test(adapters_are_apart),
        cmocka_unit_test(adapters_outlive_engines),
        cmocka_unit_test(equal_beginnings_are_computed_once),
        cmocka_unit_test(samples_share_their_prompt),
        cmocka_unit_test(the_cache_goes_with_the_engine),
        cmocka_unit_test(a_cancelled_sequence_leaves_its_blocks),
        cmocka_unit_test(two_at_the_same_time),
        cmocka_unit_test(numbers_that_are_not_finite_are_not_kept),
        cmocka_unit_test(beginnings_stay_longer_than_ends),
        cmocka_unit_test(who_waits_holds_nothing),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
