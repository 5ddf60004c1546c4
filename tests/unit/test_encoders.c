/* Encoders: the reference's vectors in every pooling and a classifier's scores; the same bits in whatever company; with stages and parts;
 * what an engine must refuse. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "crew.h"
#include "engine/layout.h"
#include "mpiserve/engine.h"
#include "runner.h"
#include "stepper_run.h"
#include "vector_reference.h"

enum { HIDDEN = 32, MOST_TOKENS = 700, NUMERICS = 77 };
static const char *const models[] = {"bert", "xlmr", "bert_scorer", "xlmr_scorer"};
enum { SCORERS = 2 }; /* the first of them */

struct fixture {
    struct vector_reference ref;
    struct runner model;
};
static struct fixture fix[COUNT_OF(models)];

static int setup(void **state)
{
    (void)state;
    for (size_t m = 0; m < COUNT_OF(models); m++) {
        struct fixture *f = &fix[m];
        vector_reference_read(&f->ref, models[m]);
        runner_load(&f->model, f->ref.dir);
        assert_true(f->model.config.arch->encoder && f->model.config.hidden == HIDDEN);
        assert_int_equal(f->ref.width, m >= SCORERS ? 1 : HIDDEN);
        assert_true(f->ref.scores == (m >= SCORERS) && f->ref.tolerance < 1.5e-4f);
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (size_t m = 0; m < COUNT_OF(models); m++) runner_unload(&fix[m].model);
    return 0;
}

/* ---- forward passes */
/* Sums, not means. */
static void alone(struct runner *r, const struct text *t, enum pooling pooling, float *sum)
{
    struct fwd_seq q = text_whole(r, 3, t, pooling, sum);
    memset(sum, 0, HIDDEN * sizeof *sum);
    assert_non_null(forward_run(r->forward, &q, 1));
}

static void check_near(const struct fixture *f, u32 text, size_t pool, const float *sum, float slack)
{
    float rows = POOLS[pool].pooling == POOLING_MEAN ? (float)f->ref.texts[text].n : 1, vector[HIDDEN];
    for (u32 i = 0; i < f->ref.width; i++) vector[i] = sum[i] / rows;
    assert_vector(&f->ref, text, pool, vector, slack);
}

static void references(void **state)
{
    (void)state;
    const char *levels[8];
    int n = runner_levels(levels);
    for (struct fixture *f = fix; f < fix + COUNT_OF(fix); f++) {
        float first[COUNT_OF(POOLS)][MOST_TEXTS][HIDDEN], sum[HIDDEN];
        for (int i = 0; i < n; i++) {
            runner_start(&f->model, levels[i], COMPUTE_F32, 1 + i % 2, i ? MOST_TOKENS : LONGEST);
            for (size_t p = f->ref.scores ? 2 : 0; p < COUNT_OF(POOLS); p++)
                for (u32 t = 0; t < f->ref.n_texts; t++) {
                    alone(&f->model, &f->ref.texts[t], POOLS[p].pooling, sum);
                    check_near(f, t, p, sum, f->ref.tolerance);
                    if (i == 0) memcpy(first[p][t], sum, sizeof sum);
                    assert_memory_equal(first[p][t], sum, sizeof sum);
                }
        }
    }
}

/* All texts in one call, in two orders, with one and more threads, and some of them twice. */
static void company(void **state)
{
    (void)state;
    for (struct fixture *f = fix; f < fix + COUNT_OF(fix); f++)
        for (size_t p = f->ref.scores ? 2 : 0; p < COUNT_OF(POOLS); p++) {
            float wanted[MOST_TEXTS][HIDDEN], sums[MOST_TEXTS][HIDDEN];
            struct fwd_seq seqs[MOST_TEXTS];
            runner_start(&f->model, ops_cpu_best(), COMPUTE_F32, 3, MOST_TOKENS);
            for (u32 t = 0; t < f->ref.n_texts; t++)
                alone(&f->model, &f->ref.texts[t], POOLS[p].pooling, wanted[t]);
            for (u32 round = 0; round < 4; round++) {
                memset(sums, 0, sizeof sums);
                for (u32 i = 0; i < f->ref.n_texts; i++) {
                    u32 t = (round % 2 ? f->ref.n_texts - 1 - i : i + round) % f->ref.n_texts;
                    seqs[i] = text_whole(&f->model, 4 + t, &f->ref.texts[t], POOLS[p].pooling, sums[t]);
                }
                assert_non_null(forward_run(f->model.forward, seqs, f->ref.n_texts));
                assert_memory_equal(sums, wanted, f->ref.n_texts * sizeof *sums);
            }
        }
}

/* Another format of the cache and of products: near, and no further. */
static void other_formats(void **state)
{
    (void)state;
    for (struct fixture *f = fix; f < fix + COUNT_OF(fix); f++) {
        float sum[HIDDEN];
        struct runner r;
        runner_start(&f->model, ops_cpu_best(), COMPUTE_BF16, 1, MOST_TOKENS);
        alone(&f->model, &f->ref.texts[3], POOLING_CLS, sum);
        check_near(f, 3, 2, sum, 0.05f);
        runner_load_as(&r, f->ref.dir, &(struct model_load){.weights = DTYPE_I8});
        runner_start(&r, ops_cpu_best(), COMPUTE_F32, 1, MOST_TOKENS);
        alone(&r, &f->ref.texts[3], POOLING_CLS, sum);
        check_near(f, 3, 2, sum, 0.2f);
        runner_unload(&r);
    }
}

/* Types of tokens count. */
static void types(void **state)
{
    (void)state;
    struct fixture *f = &fix[SCORERS];
    struct text t = f->ref.texts[0];
    float sum[HIDDEN];
    runner_start(&f->model, ops_cpu_best(), COMPUTE_F32, 1, MOST_TOKENS);
    t.second = 0;
    alone(&f->model, &t, POOLING_CLS, sum);
    assert_true(fabsf(sum[0] - t.wanted[0][0]) > 1e-2f);
    t.second = f->ref.texts[0].second + 1;
    alone(&f->model, &t, POOLING_CLS, sum);
    assert_true(fabsf(sum[0] - t.wanted[0][0]) > 1e-3f);
}

/* ---- several engines */
struct division {
    struct fixture *fix;
    u32 tp, pp;
    float (*out)[HIDDEN]; /* of the sampler */
};

static void engine(struct coll_world *w, u32 me, void *arg)
{
    const struct division *d = arg;
    struct fixture *f = d->fix;
    struct runner *r = malloc(sizeof *r);
    runner_load_part(r, f->ref.dir, d->tp, d->pp, me % d->tp, me / d->tp);
    r->config.pooling.kind = POOLING_CLS;
    r->all = coll_all(w);
    r->stage = coll_stage(w);
    bool sampler = shard_last(&r->shard) && r->shard.tp_rank == 0;
    runner_start(r, ops_cpu_best(), COMPUTE_F32, 2, MOST_TOKENS);
    float sums[MOST_TEXTS][HIDDEN] = {0};
    struct fwd_seq seqs[MOST_TEXTS];
    for (u32 i = 0; i < f->ref.n_texts; i++)
        seqs[i] = text_whole(r, i, &f->ref.texts[i], POOLING_CLS, sums[i]);
    crew_need(forward_run(r->forward, seqs, f->ref.n_texts) != NULL, forward_error(r->forward));
    for (u32 i = 0; i < f->ref.n_texts; i++) {
        float one[HIDDEN] = {0};
        struct fwd_seq q = text_whole(r, i, &f->ref.texts[i], POOLING_CLS, one);
        crew_need(forward_run(r->forward, &q, 1) != NULL, forward_error(r->forward));
        crew_need(!memcmp(one, sampler ? sums[i] : (float[HIDDEN]){0}, sizeof one), NULL);
    }
    if (sampler) memcpy(d->out, sums, sizeof sums);
    runner_unload(r);
    free(r);
}

static void divisions(void **state)
{
    (void)state;
    for (struct fixture *f = fix; f < fix + COUNT_OF(fix); f++)
        for (u32 tp = 1; tp <= 2; tp++) {
            float out[2][MOST_TEXTS][HIDDEN] = {0};
            for (u32 pp = 1; pp <= 2; pp++) {
                struct division d = {.fix = f, .tp = tp, .pp = pp, .out = out[pp - 1]};
                struct crew c = {.shape = crew_shape(tp, pp, NULL), .fn = engine, .arg = &d};
                crew_run(&c);
            }
            assert_memory_equal(out[0], out[1], sizeof out[0]); /* stages change no bit */
            for (u32 i = 0; i < f->ref.n_texts; i++) check_near(f, i, 2, out[0][i], f->ref.tolerance);
        }
}

/* Every tensor of the files is of use, or known not to be; one that is missing is named as the newer files have it. */
static void tensors(void **state)
{
    (void)state;
    for (struct fixture *f = fix; f < fix + COUNT_OF(fix); f++) {
        struct layout l;
        struct error err = {0};
        const char *first;
        struct model_files *none = model_open_none();
        assert_int_equal(layout_build(&l, &f->model.config, &f->model.shard, f->model.files, NULL, &err), 0);
        u32 unused = layout_unused(&l, &f->model.config, f->model.files, &first);
        if (unused) fail_msg("%s: %u unused, %s", f->ref.dir, unused, first);
        layout_release(&l);
        assert_true(layout_build(&l, &f->model.config, &f->model.shard, none, NULL, &err) < 0);
        assert_non_null(strstr(err.message, "tensor embeddings.word_embeddings.weight is missing"));
        model_close(none);
    }
}

/* What agents ask: a step must take the longest prompt, and the cache is for the steps in flight. */
static void plans(void **state)
{
    (void)state;
    struct engine_ask ask = {.model = fix[0].ref.dir,
                             .compute = "f32",
                             .isa = "auto",
                             .block_size = 16,
                             .max_rows = 8,
                             .max_step_tokens = 319};
    struct engine_needs needs;
    struct error err = {0};
    u32 blocks;
    assert_int_equal(engine_plan(&ask, &needs, &err), ERR_INPUT);
    assert_true(strstr(err.message, "319") && strstr(err.message, "320") && strstr(err.where, "batched"));
    ask.max_model_len = 319;
    assert_int_equal(engine_plan(&ask, &needs, &err), 0);
    ask.max_model_len = 0;
    ask.max_step_tokens = 320;
    assert_int_equal(engine_plan(&ask, &needs, &err), 0);
    assert_true(needs.hidden == HIDDEN && needs.max_model_len == 320 && needs.most_tokens == 640);
    struct engine_limits limits = {8, 320, 16};
    assert_int_equal(engine_blocks(&needs, &limits, 1ull << 40, &blocks, &err), 0);
    assert_int_equal(blocks, 640 / 16 + 8 + 20 + 1); /* and not 8 * 20 + 1 */
    limits.max_rows = 2;
    assert_int_equal(engine_blocks(&needs, &limits, 1ull << 40, &blocks, &err), 0);
    assert_int_equal(blocks, 2 * 20 + 1);
    assert_int_equal(engine_blocks(&needs, &limits, 20 * needs.kv_bytes_per_block, &blocks, &err), ERR_INPUT);
}

/* ---- steps */
static struct stepper steps;
static struct results_view out;

static struct execute *start(struct fixture *f, u32 gen)
{
    struct error err = {0};
    const struct model_config *c = &f->model.config;
    runner_start(&f->model, ops_cpu_best(), COMPUTE_F32, 2, MOST_TOKENS);
    struct execute_spec spec = {.limits = {.max_rows = 4,
                                           .max_step_tokens = MOST_TOKENS,
                                           .max_model_len = c->max_position,
                                           .block_size = RUNNER_BLOCK,
                                           .n_blocks = 100,
                                           .vocab = c->vocab,
                                           .hidden = model_vector(c),
                                           .pooling = c->pooling.kind,
                                           .whole = true,
                                           .types = c->encoder.types},
                                .forward = f->model.forward,
                                .pool = f->model.pool,
                                .gen = gen,
                                .numerics = NUMERICS};
    struct execute *x = execute_new(&spec, &err);
    runner_need(x != NULL, &err);
    steps.gen = gen;
    steps.numerics = NUMERICS;
    steps.id = 1;
    return x;
}

static bool run(struct execute *x, u32 kind)
{
    assert_non_null(stepper_run(&steps, kind, x, &out));
    if (out.head->failed) steps.id--;
    return !out.head->failed;
}

static struct seq_new *begin(const struct fixture *f, u32 row, u32 text)
{
    struct sampling any = stepper_greedy();
    const struct text *t = &f->ref.texts[text];
    struct seq_new *n = stepper_new(&steps, row, 1, &any, t->ids, t->n, t->n, t->n);
    n->pooling = f->model.config.pooling.kind;
    n->second = t->second;
    return n;
}

static struct row *part(u32 row, u32 pos, u32 n, u32 want)
{
    u32 blocks[20];
    for (u32 i = 0; i < COUNT_OF(blocks); i++) blocks[i] = 1 + row + i * 4;
    return stepper_row(&steps, row, 1, pos, n, want, blocks, pos ? 0 : COUNT_OF(blocks));
}

static void in_steps(void **state)
{
    (void)state;
    for (size_t m = 0; m < COUNT_OF(models); m++) {
        struct fixture *f = &fix[m];
        size_t pool = f->model.config.pooling.kind == POOLING_MEAN ? 1 : 2;
        struct execute *x = start(f, 3);
        assert_true(run(x, STEP_CANARY));
        for (u32 i = 0; i < 4; i++) {
            begin(f, i, i);
            part(i, 0, f->ref.texts[i].n, WANT_HIDDEN);
        }
        assert_true(run(x, STEP_FORWARD));
        assert_int_equal(out.head->n, 4);
        for (u32 i = 0; i < 4; i++) {
            float sum[HIDDEN];
            u32 n = f->ref.scores ? 1 : HIDDEN;
            assert_int_equal(out.rows[i].hidden.len, n);
            const float *mean = results_at(&out, out.rows[i].hidden);
            for (u32 k = 0; k < n; k++) sum[k] = pool == 1 ? mean[k] * (float)f->ref.texts[i].n : mean[k];
            check_near(f, i, pool, sum, f->ref.tolerance);
        }
        assert_true(run(x, STEP_CANARY));
        execute_free(x);
    }
}

static void refusals(void **state)
{
    (void)state;
    struct fixture *bert = &fix[0], *xlmr = &fix[1];
    struct execute *x = start(bert, 1);
    u32 n = bert->ref.texts[2].n;
    begin(bert, 0, 2);
    part(0, 0, n - 1, WANT_NOTHING); /* a part of a prompt */
    assert_false(run(x, STEP_FORWARD));
    begin(bert, 0, 2);
    part(0, 16, n - 16, WANT_HIDDEN); /* its end */
    assert_false(run(x, STEP_FORWARD));
    begin(bert, 0, 2)->second = n; /* behind all tokens */
    part(0, 0, n, WANT_HIDDEN);
    assert_false(run(x, STEP_FORWARD));
    begin(bert, 0, 2)->second = n - 1;
    part(0, 0, n, WANT_HIDDEN);
    assert_true(run(x, STEP_FORWARD));
    execute_free(x);
    x = start(xlmr, 1);
    begin(xlmr, 0, 2)->second = 3; /* the model has one type */
    part(0, 0, xlmr->ref.texts[2].n, WANT_HIDDEN);
    assert_false(run(x, STEP_FORWARD));
    execute_free(x);
    buf_release(&steps.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(references), cmocka_unit_test(company),   cmocka_unit_test(other_formats),
        cmocka_unit_test(types),      cmocka_unit_test(divisions), cmocka_unit_test(tensors),
        cmocka_unit_test(plans),      cmocka_unit_test(in_steps),  cmocka_unit_test(refusals),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("encoders", tests, setup, teardown);
}
