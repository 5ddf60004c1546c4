/* batch: requests for vectors: planned without a token behind the prompt, answered once, rebuilt after a death. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "mpiserve/batch.h"

enum { HIDDEN = 3, BLOCK = 4, CONTEXT = 32, LONGEST = 64 };

static struct got {
    struct batch *b;
    u32 n_chunks, n_ended;
    float vector[HIDDEN];
    struct chunk last;
} got;
static struct step_view plan;

static void start_as(u32 hidden, bool whole)
{
    struct error err;
    struct batch_spec spec = {.max_rows = 4,
                              .max_step_tokens = 8,
                              .max_model_len = CONTEXT,
                              .block_size = BLOCK,
                              .n_blocks = 40,
                              .in_flight = 2,
                              .max_kills = 2,
                              .numerics = 5,
                              .hidden = hidden,
                              .max_frame = 1 << 16,
                              .whole = whole,
                              .prefix_cache = !whole};
    got = (struct got){.b = batch_new(&spec, &err)};
    assert_non_null(got.b);
    batch_engine_ready(got.b, 1);
}

static void start(u32 hidden)
{
    start_as(hidden, false);
}

static void stop(void)
{
    batch_free(got.b);
}

static int add(u64 id, enum pooling pooling, u32 n)
{
    i32 prompt[LONGEST];
    struct error err;
    for (u32 i = 0; i < n; i++) prompt[i] = (i32)i + 1;
    struct request head = {.id = id, .n_samples = 1, .pooling = pooling};
    head.sampling = (struct sampling){.top_p = 1, .repetition_penalty = 1, .n_logprobs = -1, .max_tokens = 1};
    struct request *r = request_build(&head, &(struct request_parts){.prompt = prompt, .n_prompt = n});
    int rc = batch_add(got.b, r, 0, 0, &err);
    free(r);
    return rc;
}

/* The next step, or false. Its row is the only one. */
static bool next(void)
{
    size_t len;
    struct error err;
    const void *frame = batch_plan(got.b, 0, &len);
    if (!frame) return false;
    assert_int_equal(step_view(&plan, frame, len, &err), 0);
    return true;
}

static int commit(u64 step, u32 gen, const struct result *r, u32 n_hidden, struct error *err)
{
    static u64 memory[64];
    struct results h = {
        .step = step, .gen = gen, .kind = STEP_FORWARD, .n = r != NULL, .data_len = n_hidden * 4};
    struct results_view v;
    assert_true(results_frame_bytes(&h) <= sizeof memory);
    results_frame_layout(memory, &h, &v);
    for (u32 i = 0; i < n_hidden; i++) ((float *)v.data)[i] = (float)step + (float)i / 4;
    if (r) {
        *(struct result *)v.rows = *r;
        ((struct result *)v.rows)->hidden.len = n_hidden;
    }
    results_frame_seal(memory);
    assert_int_equal(results_view(&v, memory, results_frame_bytes(&h), err), 0);
    return batch_commit(got.b, &v, 0, err);
}

static void take(void *arg, u32 origin, const void *msg, size_t len)
{
    (void)arg;
    assert_int_equal(origin, 0);
    size_t pos = 0;
    const struct chunk *c;
    while ((c = chunk_next(msg, len, &pos, NULL))) {
        got.n_chunks++;
        got.last = *c;
        if (!c->vector.len) continue;
        assert_int_equal(c->vector.len, HIDDEN);
        memcpy(got.vector, chunk_at(c, c->vector), sizeof got.vector);
    }
}

static void flush(void)
{
    u64 id;
    batch_flush(got.b, take, NULL);
    while (batch_next_ended(got.b, &id)) got.n_ended++;
}

/* Runs steps until none is to be planned; returns how many positions were computed. */
static u32 work(u64 *step, u32 gen)
{
    struct error err;
    u32 n = 0;
    while (next()) {
        struct result r = {0};
        ++*step;
        assert_int_equal(plan.head->id, *step);
        for (u32 i = 0; i < plan.head->n_rows; i++) n += plan.rows[i].n_tok;
        bool wanted = plan.head->n_rows && plan.rows[0].want == WANT_HIDDEN;
        if (plan.head->n_rows) {
            assert_int_equal(plan.head->n_rows, 1);
            r = (struct result){.row = plan.rows[0].row,
                                .row_gen = plan.rows[0].row_gen,
                                .pos0 = plan.rows[0].pos + plan.rows[0].n_tok};
        }
        assert_int_equal(commit(*step, gen, wanted ? &r : NULL, wanted ? HIDDEN : 0, &err), 0);
        flush();
    }
    return n;
}

static void one_vector(void **state)
{
    (void)state;
    struct error err;
    start(HIDDEN);
    assert_int_equal(add(1, POOLING_LAST, 11), 0);
    assert_true(next());
    assert_true(plan.head->n_new == 1 && plan.new[0].pooling == POOLING_LAST &&plan.new[0].max_len == 11);
    assert_true(plan.rows[0].n_tok == 8 && plan.rows[0].want == WANT_NOTHING);
    assert_true(next());
    assert_true(plan.rows[0].pos == 8 && plan.rows[0].n_tok == 3 && plan.rows[0].want == WANT_HIDDEN);
    struct result r = {.row = plan.rows[0].row, .row_gen = plan.rows[0].row_gen, .pos0 = 11};
    assert_int_equal(commit(1, 1, NULL, 0, &err), 0);
    assert_false(next()); /* nothing comes behind the prompt */
    assert_int_equal(commit(2, 1, &r, HIDDEN, &err), 0);
    flush();
    assert_true(got.n_chunks == 1 && got.n_ended == 1 && batch_idle(got.b));
    assert_true(got.last.finish == FINISH_STOP && got.last.last && got.last.n_tokens == 0);
    assert_true(got.vector[0] == 2 && got.vector[2] == 2.5f);
    stop();
}

static void wrong_results(void **state)
{
    (void)state;
    struct error err;
    for (int w = 0; w < 4; w++) {
        start(HIDDEN);
        assert_int_equal(add(1, POOLING_LAST, 5), 0);
        assert_true(next());
        struct result r = {.row = plan.rows[0].row, .row_gen = plan.rows[0].row_gen, .pos0 = 5};
        if (w == 1) r.pos0 = 4;
        if (w == 2)
            r = (struct result){.row = r.row, .row_gen = r.row_gen, .pos0 = 5, .n_out = 1, .tokens = {0, 1}};
        if (w == 3) r.flags = RESULT_NONFINITE;
        u32 n = w == 0 ? HIDDEN - 1 : w == 1 ? HIDDEN : 0;
        if (w == 2) { /* a token, where a vector is wanted */
            u64 memory[64];
            struct results h = {.step = 1, .gen = 1, .kind = STEP_FORWARD, .n = 1, .data_len = 8};
            struct results_view v;
            results_frame_layout(memory, &h, &v);
            memset((void *)v.data, 0, 8);
            *(struct result *)v.rows = r;
            results_frame_seal(memory);
            assert_int_equal(batch_commit(got.b, &v, 0, &err), ERR_PEER);
        } else {
            assert_int_equal(commit(1, 1, &r, n, &err), w == 3 ? 0 : ERR_PEER);
        }
        flush();
        if (w == 3) assert_true(got.n_ended == 1 && got.last.finish == FINISH_ERROR && got.last.error_len);
        stop();
    }
}

static void lengths(void **state)
{
    (void)state;
    u64 step = 0;
    start(HIDDEN);
    assert_int_equal(add(1, POOLING_MEAN, CONTEXT), 0); /* no room for an answer is needed */
    assert_int_equal(add(2, POOLING_MEAN, CONTEXT + 1), ERR_INPUT);
    assert_int_equal(work(&step, 1), CONTEXT);
    assert_int_equal(got.n_ended, 1);
    stop();
    start(0);
    assert_int_equal(add(1, POOLING_MEAN, 4), ERR_INPUT);
    assert_int_equal(add(2, POOLING_NONE, 4), 0);
    stop();
}

/* Encoders: a prompt is in one step, several where they fit; what does not fit into a step is refused. */
static void whole_prompts(void **state)
{
    (void)state;
    struct error err;
    static const u32 lengths[] = {5, 6, 2, 8, 1, 3};
    static const u32 steps[][3] = {{5, 2, 1}, {6}, {8}, {3}}; /* in order, and who fits goes along */
    start_as(HIDDEN, true);
    assert_int_equal(add(9, POOLING_CLS, 9), ERR_INPUT);
    for (u32 i = 0; i < COUNT_OF(lengths); i++) assert_int_equal(add(i + 1, POOLING_LAST, lengths[i]), 0);
    for (u32 k = 0; k < COUNT_OF(steps); k++) {
        struct results h = {.step = k + 1, .gen = 1, .kind = STEP_FORWARD};
        struct results_view v;
        u64 memory[128];
        assert_true(next());
        for (u32 i = 0; i < plan.head->n_rows; i++) {
            const struct row *r = &plan.rows[i];
            assert_true(r->pos == 0 && r->n_tok == steps[k][i] && r->want == WANT_HIDDEN);
            h.n++;
            h.data_len += HIDDEN * 4 + 4;
        }
        assert_true(plan.head->n_rows == 3 || !steps[k][plan.head->n_rows]);
        assert_true(results_frame_bytes(&h) <= sizeof memory);
        results_frame_layout(memory, &h, &v);
        memset((void *)v.data, 0, h.data_len);
        for (u32 i = 0; i < h.n; i++)
            ((struct result *)v.rows)[i] = (struct result){.row = plan.rows[i].row,
                                                           .row_gen = plan.rows[i].row_gen,
                                                           .pos0 = plan.rows[i].n_tok,
                                                           .hidden = {i * (HIDDEN * 4 + 4), HIDDEN}};
        results_frame_seal(memory);
        assert_int_equal(results_view(&v, memory, results_frame_bytes(&h), &err), 0);
        assert_int_equal(batch_commit(got.b, &v, 0, &err), 0);
        flush();
    }
    assert_true(got.n_ended == COUNT_OF(lengths) && batch_idle(got.b));
    stop();
}

static void cached_prompts(void **state)
{
    (void)state;
    u64 step = 0;
    start(HIDDEN);
    add(1, POOLING_MEAN, 13);
    assert_int_equal(work(&step, 1), 13);
    add(2, POOLING_LAST, 13); /* finds what the first left */
    assert_int_equal(work(&step, 1), 1);
    add(3, POOLING_MEAN, 13); /* needs every position */
    assert_int_equal(work(&step, 1), 13);
    add(4, POOLING_CLS, 13);
    assert_int_equal(work(&step, 1), 13);
    assert_int_equal(got.n_ended, 4);
    stop();
}

static void deaths(void **state)
{
    (void)state;
    struct error err;
    start(HIDDEN);
    assert_int_equal(add(1, POOLING_MEAN, 20), 0);
    assert_true(next() && next());
    assert_int_equal(commit(1, 1, NULL, 0, &err), 0);
    batch_engine_lost(got.b, true);
    assert_false(next());
    batch_engine_ready(got.b, 2);
    u64 step = 0;
    assert_int_equal(work(&step, 2), 20); /* from the first position */
    assert_true(got.n_chunks == 1 && got.n_ended == 1 && got.last.finish == FINISH_STOP);
    stop();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_vector),    cmocka_unit_test(wrong_results),  cmocka_unit_test(lengths),
        cmocka_unit_test(whole_prompts), cmocka_unit_test(cached_prompts), cmocka_unit_test(deaths),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
