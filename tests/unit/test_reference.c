/* The forward pass against the reference checkpoints: logits, log-probabilities and greedy continuations at f32 for every
 * instruction set; and the same bits alone, in a batch, in chunks, with more threads and from every instruction set. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>

#include "trace.h"

static const double tolerance = 2e-3;
static double worst_logit, worst_logprob; /* of the folder in work */

static void assert_near(const char *what, const float *got, const float *want, size_t n, double *worst)
{
    for (size_t i = 0; i < n; i++) {
        double off = fabs((double)got[i] - want[i]);
        if (!(off <= tolerance)) fail_msg("%s[%zu]: %g, not %g", what, i, got[i], want[i]);
        *worst = fmax(*worst, off);
    }
}

static void run_alone(struct runner *r, const struct reference *ref, struct trace *t)
{
    u32 vocab = r->config.vocab;
    for (u32 i = 0; i < PROMPTS; i++) {
        const struct prompt *p = &ref->prompts[i];
        struct fwd_seq all = trace_tokens(r, i, p, 0, p->n);
        memcpy(t->logits[i], forward_run_all(r->forward, &all, 1), (size_t)p->n * vocab * 4);
        for (u32 step = 0; step + 1 < STEPS; step++) {
            struct fwd_seq one = trace_tokens(r, i, p, p->n + step, 1);
            memcpy(t->logits[i] + (p->n + step) * (size_t)vocab, forward_run(r->forward, &one, 1), vocab * 4);
        }
    }
}

static void check_values(const struct reference *ref, const struct trace *t, u32 vocab)
{
    for (u32 i = 0; i < PROMPTS; i++) {
        const struct prompt *p = &ref->prompts[i];
        const float *rows = t->logits[i], *last = rows + (size_t)(p->n - 1) * vocab;
        if (i < 3)
            assert_near("logits", rows, stored(ref, "logits", i, (size_t)p->n * vocab), (size_t)p->n * vocab,
                        &worst_logit);
        assert_near("last_logits", last, stored(ref, "last_logits", i, vocab), vocab, &worst_logit);
        for (u32 k = 0; i && k + 1 < p->n; k++) {
            float got = (float)logprob(rows + (size_t)k * vocab, vocab, p->ids[k + 1]);
            assert_near("token_logprobs", &got, stored(ref, "token_logprobs", i, p->n - 1) + k, 1,
                        &worst_logprob);
        }
        for (u32 step = 0; step < STEPS; step++) {
            const float *row = last + (size_t)step * vocab;
            assert_int_equal(best_token(row, vocab), p->greedy[step]);
            double gap = logprob(row, vocab, p->greedy[step]) - p->greedy_logprobs[step];
            assert_true(fabs(gap) <= tolerance);
            worst_logprob = fmax(worst_logprob, fabs(gap));
        }
    }
}

/* Prompts in chunks, then the continuation, all four in every step. */
static void check_together(struct runner *r, const struct reference *ref, const struct trace *t, u32 chunk)
{
    u32 vocab = r->config.vocab, done[PROMPTS] = {0}, who[PROMPTS], n;
    struct fwd_seq seqs[PROMPTS];
    while ((n = trace_step(r, ref, chunk, done, seqs, who))) {
        const float *logits = forward_run(r->forward, seqs, n);
        for (u32 k = 0; k < n; k++)
            assert_memory_equal(logits + (size_t)k * vocab, trace_row(t, who[k], done[who[k]], vocab),
                                vocab * 4);
    }
}

static void check_level(struct runner *r, const struct reference *ref, const char *isa, enum compute compute,
                        struct trace *t)
{
    runner_start(r, isa, compute, 1, 256);
    run_alone(r, ref, t);
    if (compute == COMPUTE_F32) check_values(ref, t, r->config.vocab);
    static const u32 chunks[] = {LONGEST, 16, 3, 1};
    for (u32 i = 0; i < COUNT_OF(chunks); i++) check_together(r, ref, t, chunks[i]);
    runner_start(r, isa, compute, 3, 16); /* three threads, steps cut to sixteen tokens by the forward pass */
    check_together(r, ref, t, 4);
}

static void test_folder(void **state)
{
    const char *levels[8];
    int n = runner_levels(levels);
    struct reference ref;
    struct runner r;
    worst_logit = worst_logprob = 0;
    reference_read(&ref, *state);
    runner_load(&r, ref.dir);
    for (int compute = COMPUTE_F32; compute <= COMPUTE_BF16; compute++) {
        struct trace first, t;
        trace_alloc(&first, &ref, r.config.vocab);
        trace_alloc(&t, &ref, r.config.vocab);
        check_level(&r, &ref, levels[0], compute, &first);
        for (int i = 1; i < n; i++) {
            check_level(&r, &ref, levels[i], compute, &t);
            assert_same(&ref, &first, &t, r.config.vocab);
        }
        trace_free(&first);
        trace_free(&t);
    }
    printf("# %s: logits within %.1e, log-probabilities within %.1e at f32\n", (const char *)*state,
           worst_logit, worst_logprob);
    runner_unload(&r);
    reference_release(&ref);
}

/* ---- other formats of weights and of the KV cache: the same bits however it is computed, and not far from f32 */
static const struct format {
    const char *name;
    struct model_load load;
    double most; /* mean difference of logits */
} formats[] = {
    {"f16 KV", {.kv_set = true, .kv = DTYPE_F16}, 0.01},
    {"bf16 KV", {.kv_set = true, .kv = DTYPE_BF16}, 0.08},
    {"int8 KV", {.kv_set = true, .kv = DTYPE_I8}, 0.4},
    {"int8 weights", {.weights = DTYPE_I8}, 0.6},
    {"int4 weights", {.weights = DTYPE_I4}, 3.5},
    {"random weights", {.dummy = true}, INFINITY},
    {"random int4 weights", {.dummy = true, .weights = DTYPE_I4}, INFINITY},
};

/* Random weights make a few logits sensitive, and an expert may be another one: the mean tells more than the largest. */
static double mean_difference(const struct reference *ref, const struct trace *a, const struct trace *b,
                              u32 vocab)
{
    double sum = 0, n = 0;
    for (u32 i = 0; i < PROMPTS; i++)
        for (size_t k = 0; k < trace_rows(&ref->prompts[i]) * vocab; k++, n++) {
            assert_true(isfinite(b->logits[i][k]));
            sum += fabs((double)a->logits[i][k] - b->logits[i][k]);
        }
    return sum / n;
}

static void check_format(const struct reference *ref, const struct format *f, const struct trace *plain)
{
    const char *levels[8];
    int n = runner_levels(levels);
    struct runner r;
    struct trace first, t;
    runner_load_as(&r, ref->dir, &f->load);
    u32 vocab = r.config.vocab;
    trace_alloc(&first, ref, vocab);
    trace_alloc(&t, ref, vocab);
    for (int i = 0; i < n; i++) {
        struct trace *to = i ? &t : &first;
        runner_start(&r, levels[i], COMPUTE_F32, 1, 256);
        run_alone(&r, ref, to);
        check_together(&r, ref, to, 16);
        runner_start(&r, levels[i], COMPUTE_F32, 3, 16);
        check_together(&r, ref, to, 3);
        if (i) assert_same(ref, &first, &t, vocab);
    }
    double off = mean_difference(ref, plain, &first, vocab);
    printf("# %s, %s: logits %.2g from f32 in the mean\n", strrchr(ref->dir, '/') + 1, f->name, off);
    assert_true(off <= f->most);
    trace_free(&first);
    trace_free(&t);
    runner_unload(&r);
}

static void test_formats(void **state)
{
    struct reference ref;
    struct runner r;
    struct trace plain;
    reference_read(&ref, *state);
    runner_load(&r, ref.dir);
    trace_alloc(&plain, &ref, r.config.vocab);
    runner_start(&r, ops_cpu_best(), COMPUTE_F32, 1, 256);
    run_alone(&r, &ref, &plain);
    for (u32 i = 0; i < COUNT_OF(formats); i++) check_format(&ref, &formats[i], &plain);
    trace_free(&plain);
    runner_unload(&r);
    reference_release(&ref);
}

/* All folders, or those that are named (a pattern: gemma*). */
int main(int argc, char **argv)
{
    static const char *const of_formats[][2] = {{"formats of llama", "llama_untied_sharded"},
                                                {"formats of scattered groups", "llama_gptq_act"},
                                                {"formats of gemma", "gemma3_text"},
                                                {"formats of qwen moe", "qwen2_moe"},
                                                {"formats of deepseek", "deepseek_v2"}};
    struct CMUnitTest tests[COUNT_OF(folders) + COUNT_OF(of_formats)] = {0};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    for (u32 i = 0; i < COUNT_OF(folders); i++)
        tests[i] = (struct CMUnitTest){folders[i], test_folder, NULL, NULL, (void *)(uintptr_t)folders[i]};
    for (u32 i = 0; i < COUNT_OF(of_formats); i++)
        tests[COUNT_OF(folders) + i] = (struct CMUnitTest){of_formats[i][0], test_formats, NULL, NULL,
                                                           (void *)(uintptr_t)of_formats[i][1]};
    return cmocka_run_group_tests_name("reference", tests, NULL, NULL);
}
