/* Vectors of an embedding model: the reference's numbers in every pooling; the same bits however the work is cut, in whatever
 * company, behind cached blocks, after a restart, with stages; what an engine must refuse. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "crew.h"
#include "engine/execute.h"
#include "runner.h"
#include "stepper.h"
#include "vector_reference.h"

enum { HIDDEN = 64, NUMERICS = 77, ROW_BLOCKS = 20, MOST_TOKENS = 512 };

static struct fixture {
    struct vector_reference ref;
    struct runner model;
    struct execute *x;
    struct stepper s;
    struct results_view out;
} fix;

static int setup(void **state)
{
    (void)state;
    vector_reference_read(&fix.ref, "qwen3");
    runner_load(&fix.model, fix.ref.dir);
    assert_int_equal(fix.ref.width, HIDDEN);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    execute_free(fix.x);
    runner_unload(&fix.model);
    buf_release(&fix.s.data);
    return 0;
}

static void engine_start(u32 gen, const char *fault)
{
    struct error err = {0};
    execute_free(fix.x);
    struct execute_spec spec = {.limits = {.max_rows = 8,
                                           .max_step_tokens = MOST_TOKENS,
                                           .max_model_len = ROW_BLOCKS * RUNNER_BLOCK,
                                           .max_logprobs = 2,
                                           .block_size = RUNNER_BLOCK,
                                           .n_blocks = 200,
                                           .vocab = fix.model.config.vocab,
                                           .hidden = model_vector(&fix.model.config),
                                           .pooling = fix.model.config.pooling.kind},
                                .forward = fix.model.forward,
                                .pool = fix.model.pool,
                                .gen = gen,
                                .numerics = NUMERICS};
    runner_need(!fault_parse(&spec.fault, fault, &err), &err);
    runner_need((fix.x = execute_new(&spec, &err)) != NULL, &err);
    fix.s.gen = gen;
    fix.s.numerics = NUMERICS;
    fix.s.id = 1;
}

static void model_start(enum pooling pooling, const char *isa, int threads)
{
    fix.model.config.pooling.kind = pooling;
    runner_start(&fix.model, isa, COMPUTE_F32, threads, MOST_TOKENS);
    engine_start(1, NULL);
}

static bool run(void)
{
    size_t len, out_len;
    void *frame = stepper_seal(&fix.s, STEP_FORWARD, &len);
    const void *out = execute_step(fix.x, frame, len, &out_len);
    assert_int_equal(results_view(&fix.out, out, out_len, NULL), 0);
    free(frame);
    if (fix.out.head->failed) fix.s.id--;
    return !fix.out.head->failed;
}

static const float *vector_of(u32 i)
{
    assert_true(i < fix.out.head->n);
    const struct result *r = &fix.out.rows[i];
    assert_true(r->n_out == 0 && r->flags == 0 && r->logprobs.len == 0);
    assert_int_equal(r->hidden.len, HIDDEN);
    return results_at(&fix.out, r->hidden);
}

static u32 blocks_of_row(u32 row, u32 *blocks)
{
    for (u32 i = 0; i < ROW_BLOCKS; i++) blocks[i] = 1 + row + i * 8;
    return ROW_BLOCKS;
}

static void begin(u32 row, const struct text *t)
{
    struct sampling any = stepper_greedy();
    stepper_new(&fix.s, row, 1, &any, t->ids, t->n, t->n, t->n)->pooling = fix.model.config.pooling.kind;
}

/* The tokens of a text from pos on, as many as n. */
static struct row *part(u32 row, const struct text *t, u32 pos, u32 n)
{
    u32 blocks[ROW_BLOCKS], n_blocks = blocks_of_row(row, blocks);
    n = MIN_OF(n, t->n - pos);
    return stepper_row(&fix.s, row, 1, pos, n, pos + n == t->n ? WANT_HIDDEN : WANT_NOTHING, blocks,
                       pos ? 0 : n_blocks);
}

static void embed(u32 row, const struct text *t, u32 chunk, float *out)
{
    begin(row, t);
    for (u32 pos = 0; pos < t->n; pos += chunk) {
        part(row, t, pos, chunk);
        assert_true(run());
        assert_int_equal(fix.out.head->n, pos + chunk >= t->n);
    }
    assert_int_equal(fix.out.rows[0].pos0, t->n);
    memcpy(out, vector_of(0), HIDDEN * sizeof *out);
    stepper_free(&fix.s, row, 1);
    assert_true(run());
}

static void assert_wanted(const float *got, const struct text *t, size_t pool)
{
    assert_vector(&fix.ref, (u32)(t - fix.ref.texts), pool, got, fix.ref.tolerance);
}

static void chunks(void **state)
{
    (void)state;
    static const u32 cuts[] = {MOST_TOKENS, 1, 7, 16, 61, 250};
    for (size_t p = 0; p < COUNT_OF(POOLS); p++) {
        float whole[MOST_TEXTS][HIDDEN], cut[HIDDEN];
        for (int threads = 1; threads <= 2; threads++) {
            model_start(POOLS[p].pooling, ops_cpu_best(), threads);
            for (u32 i = 0; i < fix.ref.n_texts; i++)
                for (size_t k = 0; k < COUNT_OF(cuts); k++) {
                    embed(i % 2, &fix.ref.texts[i], cuts[k], cut);
                    assert_wanted(cut, &fix.ref.texts[i], p);
                    if (threads == 1 && k == 0) memcpy(whole[i], cut, sizeof cut);
                    assert_memory_equal(cut, whole[i], sizeof cut);
                }
        }
        model_start(POOLS[p].pooling, "portable", 1);
        embed(0, &fix.ref.texts[2], 20, cut);
        assert_wanted(cut, &fix.ref.texts[2], p);
    }
}

static void company(void **state)
{
    (void)state;
    for (size_t p = 0; p < COUNT_OF(POOLS); p++) {
        float alone[MOST_TEXTS][HIDDEN];
        u32 ended = 0, done[MOST_TEXTS] = {0};
        model_start(POOLS[p].pooling, ops_cpu_best(), 2);
        for (u32 i = 0; i < fix.ref.n_texts; i++) embed(i, &fix.ref.texts[i], MOST_TOKENS, alone[i]);
        for (u32 i = 0; i < fix.ref.n_texts; i++) begin(i, &fix.ref.texts[i]);
        while (ended < fix.ref.n_texts) {
            u32 who[MOST_TEXTS], n = 0;
            for (u32 i = 0; i < fix.ref.n_texts; i++) {
                if (done[i] >= fix.ref.texts[i].n) continue;
                part(i, &fix.ref.texts[i], done[i], 5 + i);
                done[i] += 5 + i;
                if (done[i] >= fix.ref.texts[i].n) who[n++] = i;
            }
            assert_true(run());
            assert_int_equal(fix.out.head->n, n);
            for (u32 k = 0; k < n; k++) assert_memory_equal(vector_of(k), alone[who[k]], sizeof alone[0]);
            ended += n;
        }
    }
}

/* A sum that begins, whatever was there: with the first row, and not with each chunk of a step. */
static void begins(void **state)
{
    (void)state;
    for (size_t p = 0; p < COUNT_OF(POOLS); p++)
        for (u32 i = 0; i < fix.ref.n_texts; i++) {
            const struct text *t = &fix.ref.texts[i];
            float sum[HIDDEN];
            for (u32 k = 0; k < HIDDEN; k++) sum[k] = NAN;
            model_start(POOLS[p].pooling, ops_cpu_best(), 2);
            struct fwd_seq q = text_whole(&fix.model, 1, t, POOLS[p].pooling, sum);
            q.hidden.begins = true;
            assert_non_null(forward_run(fix.model.forward, &q, 1));
            for (u32 k = 0; k < HIDDEN && POOLS[p].pooling == POOLING_MEAN; k++) sum[k] /= (float)t->n;
            assert_wanted(sum, t, p);
        }
}

/* Only the last position's row is needed, so the others may be cached. */
static void behind_cached_blocks(void **state)
{
    (void)state;
    const struct text *t = &fix.ref.texts[3];
    float whole[HIDDEN];
    u32 blocks[ROW_BLOCKS];
    model_start(POOLING_LAST, ops_cpu_best(), 1);
    embed(0, t, MOST_TOKENS, whole);
    for (u32 cached = RUNNER_BLOCK; cached < t->n; cached += RUNNER_BLOCK) {
        u32 n_blocks = blocks_of_row(1, blocks);
        for (u32 i = 0; i < cached / RUNNER_BLOCK; i++) blocks[i] = 1 + i * 8; /* of row 0 */
        begin(1, t);
        stepper_row(&fix.s, 1, 1, cached, t->n - cached, WANT_HIDDEN, blocks, n_blocks);
        assert_true(run());
        assert_memory_equal(vector_of(0), whole, sizeof whole);
        stepper_free(&fix.s, 1, 1);
        assert_true(run());
    }
}

static void restarts(void **state)
{
    (void)state;
    const struct text *t = &fix.ref.texts[3];
    for (size_t p = 0; p < COUNT_OF(POOLS); p++) {
        float whole[HIDDEN], again[HIDDEN];
        model_start(POOLS[p].pooling, ops_cpu_best(), 1);
        embed(0, t, MOST_TOKENS, whole);
        for (u32 done = 10; done < t->n; done += 40) {
            begin(0, t);
            part(0, t, 0, done);
            assert_true(run());
            if (done % 80 == 10)
                engine_start(2, NULL); /* another engine */
            else
                stepper_free(&fix.s, 0, 1); /* the row is another's: it was preempted */
            embed(0, t, 13, again);
            assert_memory_equal(again, whole, sizeof whole);
        }
    }
}

static void not_finite(void **state)
{
    (void)state;
    const struct text *t = &fix.ref.texts[2];
    char fault[32];
    float fine[HIDDEN];
    snprintf(fault, sizeof fault, "nan-token:%d", t->ids[3]);
    model_start(POOLING_MEAN, ops_cpu_best(), 1);
    engine_start(1, fault);
    begin(0, t);
    for (u32 pos = 0; pos < t->n; pos += 8) {
        part(0, t, pos, 8);
        assert_true(run());
    }
    assert_true(fix.out.head->n == 1 && fix.out.rows[0].flags == RESULT_NONFINITE);
    assert_int_equal(fix.out.rows[0].hidden.len, 0);
    stepper_free(&fix.s, 0, 1);
    embed(1, &fix.ref.texts[0], 8, fine);
    assert_wanted(fine, &fix.ref.texts[0], 1);
}

static void refusals(void **state)
{
    (void)state;
    const struct text *t = &fix.ref.texts[2];
    struct sampling any = stepper_greedy();
    float fine[HIDDEN];
    u32 blocks[ROW_BLOCKS], n_blocks = blocks_of_row(0, blocks);
    model_start(POOLING_MEAN, ops_cpu_best(), 1);
    for (int w = 0; w < 6; w++) {
        struct seq_new *n = stepper_new(&fix.s, 0, 1, &any, t->ids, t->n, t->n, t->n);
        n->pooling = w == 0 ? POOLING_NONE : w == 1 ? POOLING_LAST : w == 2 ? POOLING_CLS + 1 : POOLING_MEAN;
        struct row *r = stepper_row(&fix.s, 0, 1, 0, t->n, WANT_HIDDEN, blocks, n_blocks);
        if (w == 3) r->want = WANT_SAMPLE;
        if (w == 4) r->n_tok--, fix.s.n_tok--; /* wants the vector before the prompt's end */
        if (w == 5) r->pos = RUNNER_BLOCK, r->n_tok = (u16)(t->n - RUNNER_BLOCK), fix.s.n_tok -= RUNNER_BLOCK;
        if (run()) fail_msg("case %d was not refused", w);
    }
    stepper_new(&fix.s, 0, 1, &any, t->ids, t->n - 1, t->n, t->n)->pooling =
        POOLING_MEAN; /* what was emitted? */
    assert_false(run());
    embed(0, t, 9, fine); /* and nothing has changed */
    assert_wanted(fine, t, 1);
    model_start(POOLING_NONE, ops_cpu_best(), 1); /* a model that generates */
    begin(0, t);
    fix.s.new[0].pooling = POOLING_LAST;
    assert_false(run());
    stepper_new(&fix.s, 0, 1, &any, t->ids, t->n, t->n, t->n + 1);
    stepper_row(&fix.s, 0, 1, 0, t->n, WANT_HIDDEN, blocks, n_blocks);
    assert_false(run());
}

/* ---- several engines -------------------------------------------------------------------------------------------*/
struct division {
    u32 tp, pp;
    float (*out)[HIDDEN]; /* of the sampler */
};

static void engine(struct coll_world *w, u32 me, void *arg)
{
    const struct division *d = arg;
    struct runner *r = malloc(sizeof *r);
    runner_load_part(r, fix.ref.dir, d->tp, d->pp, me % d->tp, me / d->tp);
    r->config.pooling.kind = POOLING_MEAN;
    r->all = coll_all(w);
    r->stage = coll_stage(w);
    bool sampler = shard_last(&r->shard) && r->shard.tp_rank == 0;
    runner_start(r, ops_cpu_best(), COMPUTE_F32, 2, MOST_TOKENS);
    for (u32 i = 0; i < fix.ref.n_texts; i++)
        for (u32 chunk = MOST_TOKENS; chunk > 4; chunk /= 8) {
            const struct text *t = &fix.ref.texts[i];
            float sum[HIDDEN] = {0};
            for (u32 pos = 0; pos < t->n; pos += chunk) {
                struct fwd_seq q = runner_seq(r, i, t->ids + pos, pos, MIN_OF(chunk, t->n - pos));
                q.want_logits = false;
                q.hidden.n = q.n_tok;
                q.hidden.sum = sum;
                crew_need(forward_run(r->forward, &q, 1) != NULL, forward_error(r->forward));
            }
            if (!sampler) crew_need(!memcmp(sum, (float[HIDDEN]){0}, sizeof sum), NULL);
            if (sampler && chunk == MOST_TOKENS) memcpy(d->out[i], sum, sizeof sum);
            if (sampler) crew_need(!memcmp(d->out[i], sum, sizeof sum), NULL);
        }
    runner_unload(r);
    free(r);
}

static void divisions(void **state)
{
    (void)state;
    for (u32 tp = 1; tp <= 4; tp *= 2) {
        float out[2][MOST_TEXTS][HIDDEN] = {0};
        for (u32 pp = 1; pp <= 2; pp++) {
            struct division d = {.tp = tp, .pp = pp, .out = out[pp - 1]};
            struct crew c = {.shape = crew_shape(tp, pp, NULL), .fn = engine, .arg = &d};
            crew_run(&c);
        }
        assert_memory_equal(out[0], out[1], sizeof out[0]); /* stages change no bit */
        for (u32 i = 0; i < fix.ref.n_texts; i++) {
            for (u32 k = 0; k < HIDDEN; k++) out[0][i][k] /= (float)fix.ref.texts[i].n;
            assert_wanted(out[0][i], &fix.ref.texts[i], 1);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks),   cmocka_unit_test(begins),
        cmocka_unit_test(company),  cmocka_unit_test(behind_cached_blocks),
        cmocka_unit_test(restarts), cmocka_unit_test(not_finite),
        cmocka_unit_test(refusals), cmocka_unit_test(divisions),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, setup, teardown);
}
