/* Vectors and scores on CUDA (emulated): the references of encoders and of a model that generates otherwise, in every pooling, at f32 and as
 * near as shorter numbers come; in steps and chunks, with several engines; NaN, and calls of CUDA that fail. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "cuda_crew.h"
#include "cuda_runner.h"
#include "stepper_run.h"
#include "vector_reference.h"

enum { MOST_TOKENS = 700, NUMERICS = 77, ROW_BLOCKS = 20 };
/* Of numbers that are up to 4 in size. */
static const float slack[] = {5e-4f, 0.06f, 0.01f};

/* The first n texts in one step. */
static void sum_up(struct runner *r, const struct vector_reference *ref, u32 n, enum pooling pooling,
                   float *sums)
{
    struct fwd_seq seqs[MOST_TEXTS];
    for (u32 i = 0; i < n; i++) {
        seqs[i] = text_whole(r, i, &ref->texts[i], pooling, sums + (size_t)i * ref->width);
        seqs[i].hidden.begins = true;
    }
    runner_need(forward_run(r->forward, seqs, n) != NULL, forward_error(r->forward));
}

/* All texts as means; the rest of the poolings is f32's. */
static void check_model(const struct vector_reference *ref, enum compute compute, u64 order)
{
    struct cuda_runner c;
    float got[MOST_TEXTS * WIDEST];
    size_t bytes = (size_t)ref->n_texts * ref->width * sizeof *got;
    cudasim_order(order);
    cuda_runner_start(&c, ref->dir, compute, MOST_TOKENS);
    float *sums = cuda_memory(c.device, NULL, bytes);
    for (size_t p = ref->scores ? 2 : 0; p < COUNT_OF(POOLS); p++) {
        bool all = ref->scores || POOLS[p].pooling == POOLING_MEAN;
        u32 n = all ? ref->n_texts : compute == COMPUTE_F32 ? 4 : 0;
        if (n) sum_up(&c.r, ref, n, POOLS[p].pooling, sums);
        cuda_fetch(c.device, got, sums, bytes);
        for (u32 i = 0; i < n; i++) {
            float *vector = got + (size_t)i * ref->width;
            for (u32 k = 0; k < ref->width && POOLS[p].pooling == POOLING_MEAN; k++)
                vector[k] /= (float)ref->texts[i].n;
            assert_vector(ref, i, p, vector, slack[compute]);
        }
    }
    device_free(c.device, sums);
    cuda_runner_stop(&c);
    assert_int_equal(cudasim_allocated(), 0);
}

static void test_model(void **state)
{
    struct vector_reference ref;
    vector_reference_read(&ref, *state);
    check_model(&ref, COMPUTE_F32, 0);
    check_model(&ref, COMPUTE_BF16, 1);
    if (ref.scores) check_model(&ref, COMPUTE_F16, 2);
}

/* ---- steps */
struct fixture {
    struct vector_reference ref;
    struct cuda_runner cuda;
    struct execute *x;
    struct stepper s;
    struct results_view out;
    enum pooling pooling;
};

/* (Re)starts the engine, over the same device. */
static void engine_start(struct fixture *f, enum pooling pooling, const char *fault)
{
    struct error err = {0};
    const struct model_config *c = &f->cuda.r.config;
    execute_free(f->x);
    f->pooling = pooling;
    f->s.id = 1;
    struct execute_spec spec = {.limits = {.max_rows = 8,
                                           .max_step_tokens = MOST_TOKENS,
                                           .max_model_len = ROW_BLOCKS * RUNNER_BLOCK,
                                           .block_size = RUNNER_BLOCK,
                                           .n_blocks = 200,
                                           .vocab = c->vocab,
                                           .hidden = f->ref.width,
                                           .pooling = pooling,
                                           .whole = c->arch->encoder,
                                           .types = c->encoder.types},
                                .forward = f->cuda.r.forward,
                                .device = f->cuda.device,
                                .gen = 1,
                                .numerics = NUMERICS};
    runner_need(!fault_parse(&spec.fault, fault, &err), &err);
    runner_need((f->x = execute_new(&spec, &err)) != NULL, &err);
}

static void fixture_start(struct fixture *f, const char *name)
{
    *f = (struct fixture){.s = {.gen = 1, .numerics = NUMERICS}};
    vector_reference_read(&f->ref, name);
    cuda_runner_start(&f->cuda, f->ref.dir, COMPUTE_F32, MOST_TOKENS);
    engine_start(f, f->cuda.r.config.pooling.kind, NULL);
}

static void fixture_stop(struct fixture *f)
{
    execute_free(f->x);
    buf_release(&f->s.data);
    cuda_runner_stop(&f->cuda);
    assert_int_equal(cudasim_allocated(), 0);
}

static const void *run(struct fixture *f, u32 kind)
{
    return stepper_run(&f->s, kind, f->x, &f->out);
}

static void begin(struct fixture *f, u32 row, u32 text)
{
    struct sampling any = stepper_greedy();
    const struct text *t = &f->ref.texts[text];
    struct seq_new *n = stepper_new(&f->s, row, 1, &any, t->ids, t->n, t->n, t->n);
    n->pooling = f->pooling;
    n->second = t->second;
}

/* The tokens of a text from pos on, as many as n. */
static void part(struct fixture *f, u32 row, u32 text, u32 pos, u32 n)
{
    u32 blocks[ROW_BLOCKS], left = f->ref.texts[text].n - pos;
    for (u32 i = 0; i < ROW_BLOCKS; i++) blocks[i] = 1 + row + i * 8;
    stepper_row(&f->s, row, 1, pos, MIN_OF(n, left), n >= left ? WANT_HIDDEN : WANT_NOTHING, blocks,
                pos ? 0 : ROW_BLOCKS);
}

static void check_result(struct fixture *f, u32 result, u32 text)
{
    const struct result *r = &f->out.rows[result];
    size_t pool = 0;
    while (POOLS[pool].pooling != f->pooling) pool++;
    assert_true(result < f->out.head->n && r->flags == 0);
    assert_int_equal(r->hidden.len, f->ref.width);
    assert_vector(&f->ref, text, pool, results_at(&f->out, r->hidden), slack[COMPUTE_F32]);
}

/* Texts together, beside a canary; rows are used again. */
static void test_steps(void **state)
{
    struct fixture f;
    fixture_start(&f, *state);
    for (u32 round = 0; round < 2; round++) {
        assert_true(run(&f, STEP_CANARY) && !f.out.head->failed);
        for (u32 i = 0; i < 4; i++) {
            begin(&f, 6 - i, (i + round) % 4);
            part(&f, 6 - i, (i + round) % 4, 0, LONGEST);
        }
        assert_true(run(&f, STEP_FORWARD) && !f.out.head->failed);
        assert_int_equal(f.out.head->n, 4);
        for (u32 i = 0; i < 4; i++) {
            check_result(&f, i, (i + round) % 4);
            stepper_free(&f.s, 6 - i, 1);
        }
        assert_non_null(run(&f, STEP_FORWARD));
    }
    fixture_stop(&f);
}

/* Two prompts in parts of different lengths, in every pooling. */
static void test_parts(void **state)
{
    struct fixture f;
    (void)state;
    fixture_start(&f, "qwen3");
    for (size_t p = 0; p < COUNT_OF(POOLS); p++) {
        u32 done[2] = {0}, ended = 0;
        engine_start(&f, POOLS[p].pooling, NULL);
        for (u32 i = 0; i < 2; i++) begin(&f, i, 2 + i);
        while (ended < 2) {
            u32 who[2], n = 0;
            for (u32 i = 0; i < 2; i++) {
                u32 left = f.ref.texts[2 + i].n - done[i], take = MIN_OF(i ? 30u : 7u, left);
                if (!left) continue;
                part(&f, i, 2 + i, done[i], take);
                done[i] += take;
                if (take == left) who[n++] = i;
            }
            assert_true(run(&f, STEP_FORWARD) && !f.out.head->failed);
            assert_int_equal(f.out.head->n, n);
            for (u32 k = 0; k < n; k++) check_result(&f, k, 2 + who[k]);
            ended += n;
        }
    }
    fixture_stop(&f);
}

/* What was not finite in an earlier part; the other one is fine. */
static void test_not_finite(void **state)
{
    struct fixture f;
    char fault[32];
    (void)state;
    fixture_start(&f, "qwen3");
    snprintf(fault, sizeof fault, "nan-token:%d", f.ref.texts[2].ids[0]);
    engine_start(&f, POOLING_MEAN, fault);
    begin(&f, 0, 2);
    begin(&f, 1, 1);
    part(&f, 0, 2, 0, 10);
    assert_non_null(run(&f, STEP_FORWARD));
    part(&f, 0, 2, 10, LONGEST);
    part(&f, 1, 1, 0, LONGEST);
    assert_non_null(run(&f, STEP_FORWARD));
    assert_true(f.out.head->n == 2 && f.out.rows[0].flags == RESULT_NONFINITE &&
                f.out.rows[0].hidden.len == 0);
    check_result(&f, 1, 1);
    fixture_stop(&f);
}

/* A call of CUDA in a step fails: the engine is told to end, with CUDA's name and the step. */
static void test_errors(void **state)
{
    (void)state;
    for (u64 n = 1; n < 58; n += 19) {
        struct fixture f;
        fixture_start(&f, "bert_scorer");
        begin(&f, 0, 1);
        part(&f, 0, 1, 0, LONGEST);
        cudasim_fail(n, 719);
        const void *out = run(&f, STEP_FORWARD);
        cudasim_fail(0, 0);
        if (out) fail_msg("call %llu: the step ends well", (unsigned long long)n);
        const char *why = execute_error(f.x)->message;
        if (strncmp(why, "step 1: cudaErrorLaunchFailure in ", 34) && !strstr(why, "cublasLt status"))
            fail_msg("%s", why);
        fixture_stop(&f);
    }
}

/* ---- several engines */
struct division {
    const struct vector_reference *ref;
    u32 tp, pp;
    float *out; /* of the sampler: [texts, width] */
};

static void engine(struct cuda_member *m, void *arg)
{
    const struct division *d = arg;
    struct cuda_runner c;
    struct error err = {0};
    size_t bytes = (size_t)d->ref->n_texts * d->ref->width * sizeof(float);
    crew_need(!cuda_connect(m, 0, &err), &err);
    const struct cuda_part part = {d->tp, d->pp, m->me, m->device, m->world, m->gpus, NULL};
    cuda_runner_start_part(&c, d->ref->dir, COMPUTE_F32, MOST_TOKENS, &part);
    float *sums = cuda_memory(m->device, NULL, bytes);
    sum_up(&c.r, d->ref, d->ref->n_texts, POOLING_CLS, sums);
    if (shard_last(&c.r.shard) && c.r.shard.tp_rank == 0)
        cuda_fetch(m->device, d->out, sums, bytes);
    else
        crew_need(!device_finish(m->device, &err), &err);
    device_free(m->device, sums);
    cuda_runner_stop_part(&c);
}

static void test_divisions(void **state)
{
    static const u32 shapes[][2] = {{2, 1}, {2, 2}};
    struct vector_reference ref;
    vector_reference_read(&ref, *state);
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        size_t bytes = MOST_TEXTS * WIDEST * sizeof(float);
        struct division d = {&ref, shapes[i][0], shapes[i][1], cuda_crew_memory(bytes)};
        struct crew c = {.shape = crew_shape(d.tp, d.pp, NULL), .arg = &d};
        cuda_crew_run(&c, engine);
        for (u32 t = 0; t < ref.n_texts; t++)
            assert_vector(&ref, t, 2, d.out + (size_t)t * ref.width, slack[COMPUTE_F32]);
        munmap(d.out, bytes);
    }
}

#define OF(name, fn, model)                                                                                  \
    {                                                                                                        \
        name, fn, NULL, NULL, (void *)(uintptr_t)(model)                                                     \
    }
int main(void)
{
    cuda_begin();
    const struct CMUnitTest tests[] = {
        OF("bert", test_model, "bert"),
        OF("xlmr", test_model, "xlmr"),
        OF("bert_scorer", test_model, "bert_scorer"),
        OF("xlmr_scorer", test_model, "xlmr_scorer"),
        OF("qwen3", test_model, "qwen3"),
        OF("steps: bert", test_steps, "bert"),
        OF("steps: xlmr_scorer", test_steps, "xlmr_scorer"),
        OF("steps: qwen3", test_steps, "qwen3"),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_not_finite),
        OF("several engines: xlmr", test_divisions, "xlmr"), /* from here on: of the emulation */
        OF("several engines: bert_scorer", test_divisions, "bert_scorer"),
        cmocka_unit_test(test_errors),
    };
    enum { EMULATED = 3 };
    size_t n = COUNT_OF(tests) - (cudasim_here() ? 0 : EMULATED);
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return _cmocka_run_group_tests("cuda_vectors", tests, n, NULL, NULL);
}
