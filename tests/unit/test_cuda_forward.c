/* The whole forward pass on CUDA (emulated) against the reference checkpoints: at f32 their logits and greedy continuations; at bf16
 * and f16 what the shorter numbers allow. Alone, in batches, in chunks, in several orders of threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "cuda_runner.h"
#include "reference.h"

static const char *const folders[] = {
    "llama_tied_llama3",     "llama_untied_sharded", "llama_v5style", "mistral_swa16", "qwen2_bias",
    "qwen3_headdim32",       "llama_dynamic",        "gemma2",        "gemma3_text",   "phi3_swa",
    "phi3_longrope_partial", "qwen3_fp8block",       "qwen3_awq",     "llama_gptq"};
/* Largest and mean (root of squares) errors of logits, which are 1 to 10 in size. The CPU's bf16 has up to
 * 0.26, and 0.037; here weights that are stored as f32 become shorter, too. */
static const double tolerances[] = {2e-3, 0.4, 0.05}, means[] = {5e-4, 0.1, 0.012};

/* An engine with its errors' limits, and a place for logits on the host. */
struct engine {
    struct cuda_runner on;
    double tolerance, mean;
    float *rows;
};

static void engine_start(struct engine *e, const char *dir, enum compute compute, u32 max_tokens)
{
    *e = (struct engine){.tolerance = tolerances[compute], .mean = means[compute]};
    cuda_runner_start(&e->on, dir, compute, max_tokens);
    e->rows = malloc((size_t)max_tokens * e->on.r.config.vocab * sizeof(float));
}

static void engine_stop(struct engine *e)
{
    cuda_runner_stop(&e->on);
    free(e->rows);
    assert_int_equal(cudasim_allocated(), 0);
}

static void assert_near(const struct engine *e, const char *what, const float *got, const float *want,
                        size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        double gap = (double)got[i] - want[i];
        sum += gap * gap;
        if (!(fabs(gap) <= e->tolerance))
            fail_msg("%s[%zu]: %g, not %g", what, i, (double)got[i], (double)want[i]);
    }
    if (!(sqrt(sum / (double)n) <= e->mean)) fail_msg("%s: off by %g", what, sqrt(sum / (double)n));
}

/* The greedy choice is the reference's where that is not nearly as good as another one. */
static void assert_greedy(const struct engine *e, const float *row, i32 token, double wanted_logprob)
{
    u32 vocab = e->on.r.config.vocab;
    assert_true(row[best_token(row, vocab)] - row[token] <= 2 * e->tolerance);
    if (e->tolerance < 0.01) assert_int_equal(best_token(row, vocab), token);
    assert_true(fabs(logprob(row, vocab, token) - wanted_logprob) <= 2 * e->tolerance);
}

static const float *fetch(struct engine *e, const float *logits, size_t rows)
{
    cuda_fetch(e->on.device, e->rows, logits, rows * e->on.r.config.vocab * sizeof *logits);
    return e->rows;
}

static void check_alone(struct engine *e, const struct reference *ref, u32 i)
{
    struct runner *r = &e->on.r;
    const struct prompt *p = &ref->prompts[i];
    u32 vocab = r->config.vocab;
    struct fwd_seq all = runner_seq(r, i, p->ids, 0, p->n);
    all.prompt = p->n;
    const float *rows = fetch(e, forward_run_all(r->forward, &all, 1), p->n);
    if (i < 3)
        assert_near(e, "logits", rows, stored(ref, "logits", i, (size_t)p->n * vocab), (size_t)p->n * vocab);
    assert_near(e, "last_logits", rows + (size_t)(p->n - 1) * vocab, stored(ref, "last_logits", i, vocab),
                vocab);
    assert_greedy(e, rows + (size_t)(p->n - 1) * vocab, p->greedy[0], p->greedy_logprobs[0]);
    for (u32 step = 0; step + 1 < STEPS; step++) {
        struct fwd_seq one = runner_seq(r, i, &p->greedy[step], p->n + step, 1);
        one.prompt = p->n;
        assert_greedy(e, fetch(e, forward_run(r->forward, &one, 1), 1), p->greedy[step + 1],
                      p->greedy_logprobs[step + 1]);
    }
}

/* All prompts in every step, so many tokens at a time; what wants logits is checked. */
static void check_together(struct engine *e, const struct reference *ref, u32 chunk)
{
    u32 vocab = e->on.r.config.vocab, done[PROMPTS] = {0};
    for (;;) {
        struct fwd_seq seqs[PROMPTS];
        u32 n = 0, wanted = 0, who[PROMPTS];
        for (u32 i = 0; i < PROMPTS; i++) {
            const struct prompt *p = &ref->prompts[i];
            u32 at = done[i], take = at < p->n ? MIN_OF(chunk, p->n - at) : at < p->n + STEPS - 1;
            if (!take) continue;
            seqs[n] = runner_seq(&e->on.r, PROMPTS + i, at < p->n ? p->ids + at : p->greedy + (at - p->n), at,
                                 take);
            seqs[n].prompt = p->n;
            done[i] += take;
            seqs[n].want_logits = done[i] >= p->n;
            if (seqs[n++].want_logits) who[wanted++] = i;
        }
        if (!n) return;
        const float *logits = fetch(e, forward_run(e->on.r.forward, seqs, n), wanted);
        for (u32 k = 0; k < wanted; k++) {
            const struct prompt *p = &ref->prompts[who[k]];
            u32 step = done[who[k]] - p->n;
            assert_greedy(e, logits + (size_t)k * vocab, p->greedy[step], p->greedy_logprobs[step]);
        }
    }
}

static void check_folder(const char *name, enum compute compute, u64 order)
{
    struct reference ref;
    struct engine e;
    cudasim_order(order);
    reference_read(&ref, name);
    engine_start(&e, ref.dir, compute, 256);
    for (u32 i = 0; i < PROMPTS; i++) check_alone(&e, &ref, i);
    check_together(&e, &ref, 17);
    engine_stop(&e);
    reference_release(&ref);
}

/* Shorter numbers where weights are stored as such. */
static void test_folder(void **state)
{
    bool coded = strstr(*state, "fp8") || strstr(*state, "awq") || strstr(*state, "gptq");
    check_folder(*state, COMPUTE_F32, 0);
    if (!coded) check_folder(*state, strlen(*state) % 2 ? COMPUTE_BF16 : COMPUTE_F16, 1);
}

/* Blocks that are copied and zeroed are the device's. */
static void test_blocks(void **state)
{
    struct reference ref;
    struct engine e;
    (void)state;
    reference_read(&ref, folders[0]);
    engine_start(&e, ref.dir, COMPUTE_F32, 64);
    const struct prompt *p = &ref.prompts[2];
    struct fwd_seq seq = runner_seq(&e.on.r, 0, p->ids, 0, p->n),
                   last = runner_seq(&e.on.r, 1, p->ids + p->n - 1, p->n - 1, 1);
    u32 vocab = e.on.r.config.vocab;
    float *first = malloc(vocab * sizeof *first);
    memcpy(first, fetch(&e, forward_run(e.on.r.forward, &seq, 1), 1), vocab * sizeof *first);
    for (u32 b = 0; b <= (p->n - 1) / RUNNER_BLOCK; b++)
        forward_copy_block(e.on.r.forward, e.on.r.blocks[1][b], e.on.r.blocks[0][b]);
    assert_near(&e, "from copied blocks", fetch(&e, forward_run(e.on.r.forward, &last, 1), 1), first, vocab);
    forward_zero_block(e.on.r.forward, e.on.r.blocks[1][0]);
    const float *zeroed = fetch(&e, forward_run(e.on.r.forward, &last, 1), 1);
    double most = 0;
    for (u32 i = 0; i < vocab; i++) most = fmax(most, fabs((double)zeroed[i] - first[i]));
    assert_true(most > e.tolerance);
    free(first);
    engine_stop(&e);
    reference_release(&ref);
}

/* What kernels cannot take is refused before anything is allocated. */
static void test_refused(void **state)
{
    static const struct {
        const char *folder, *says;
    } all[] = {{"mixtral", "experts: on CPUs only; leave out --engine cuda"},
               {"deepseek_v2", "latent attention: on CPUs only; leave out --engine cuda"},
               {"olmo2", "norms behind the layers only: on CPUs only; leave out --engine cuda"}};
    (void)state;
    for (u32 i = 0; i < COUNT_OF(all); i++) {
        struct error err = {0};
        struct model_config c;
        char dir[PATH_LEN];
        snprintf(dir, sizeof dir, "%s/reference/models/%s", data_dir("MPISERVE_TESTS", "tests"),
                 all[i].folder);
        runner_need(!model_read_config(dir, &c, &err), &err);
        struct forward_spec spec = {.config = &c, .shard = shard_whole(&c)};
        assert_int_equal(forward_check_device(&spec, &err), ERR_UNSUPPORTED);
        assert_string_equal(err.message, all[i].says);
    }
    struct error err = {0};
    struct reference ref;
    struct model_config c;
    reference_read(&ref, folders[0]);
    runner_need(!model_read_config(ref.dir, &c, &err), &err);
    struct forward_spec spec = {.config = &c, .shard = shard_whole(&c)};
    assert_int_equal(forward_check_device(&spec, &err), 0);
    c.ffn = 100;
    assert_int_equal(forward_check_device(&spec, &err), ERR_UNSUPPORTED);
    assert_string_equal(err.where, "intermediate_size");
    c.ffn = 96;
    spec.shard.tp = 2;
    assert_int_equal(forward_check_device(&spec, &err), ERR_UNSUPPORTED);
    assert_string_equal(err.message, "a replica of several engines (tp 2, pp 1) runs on CPUs only");
    reference_release(&ref);
}

int main(void)
{
    cuda_begin();
    struct CMUnitTest tests[COUNT_OF(folders) + 2] = {cmocka_unit_test(test_blocks),
                                                      cmocka_unit_test(test_refused)};
    for (u32 i = 0; i < COUNT_OF(folders); i++)
        tests[2 + i] =
            (struct CMUnitTest){folders[i], test_folder, NULL, NULL, (void *)(uintptr_t)folders[i]};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("cuda_forward", tests, NULL, NULL);
}
