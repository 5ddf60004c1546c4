/* The whole forward pass on CUDA (emulated) against a reference checkpoint: at f32 its logits and greedy continuations; at bf16 and f16
 * what the shorter numbers allow. Alone, in batches, in chunks, in several orders of threads. */
#ifndef MPISERVE_TESTS_CUDA_REFERENCE_H
#define MPISERVE_TESTS_CUDA_REFERENCE_H

#include "cuda_runner.h"
#include "reference.h"

/* Mean errors (root of squares) of logits; the CPU's bf16 has 0.037. */
static const double means[] = {5e-4, 0.1, 0.012};

/* An engine with its errors' limits, and a place for logits on the host. */
struct engine {
    struct cuda_runner on;
    double tolerance, mean;
    u32 judged, off;
    bool may_be_off;
    float *rows;
};

static inline void engine_start(struct engine *e, const char *dir, enum compute compute, u32 max_tokens)
{
    *e = (struct engine){.tolerance = tolerances[compute], .mean = means[compute]};
    cuda_runner_start(&e->on, dir, compute, max_tokens);
    e->rows = malloc((size_t)max_tokens * e->on.r.config.vocab * sizeof(float));
}

static inline void engine_stop(struct engine *e)
{
    cuda_runner_stop(&e->on);
    free(e->rows);
    assert_int_equal(cudasim_allocated(), 0);
}

static inline bool row_is_near(const struct engine *e, const float *got, const float *want, u32 n)
{
    double sum = 0, most = 0;
    for (u32 i = 0; i < n; i++) {
        double gap = fabs((double)got[i] - want[i]);
        sum += gap * gap;
        most = gap >= most ? gap : most; /* NaN is no gap that is small */
        if (isnan(gap)) return false;
    }
    return most <= e->tolerance && sqrt(sum / n) <= 2 * e->mean;
}

static inline void judge(struct engine *e, bool near, const char *what, u32 row)
{
    e->judged++;
    if (near) return;
    e->off++;
    if (!e->may_be_off) fail_msg("%s: row %u is off", what, row);
}

/* Rows of logits, and their mean error, of those that are not off. */
static inline void assert_near(struct engine *e, const char *what, const float *got, const float *want,
                               size_t n)
{
    u32 vocab = e->on.r.config.vocab, count = 0;
    double sum = 0;
    for (size_t at = 0; at < n; at += vocab) {
        bool near = row_is_near(e, got + at, want + at, vocab);
        judge(e, near, what, (u32)(at / vocab));
        count += near;
        for (u32 i = 0; near && i < vocab; i++) sum += pow((double)got[at + i] - want[at + i], 2);
    }
    if (e->may_be_off && n == vocab) return; /* one row says little of the mean */
    if (!(sqrt(sum / MAX_OF((double)count * vocab, 1)) <= e->mean))
        fail_msg("%s: off by %g", what, sqrt(sum / ((double)count * vocab)));
}

/* The greedy choice is the reference's where that is not nearly as good as another one. */
static inline void assert_greedy(struct engine *e, const float *row, i32 token, double wanted_logprob,
                                 u32 step)
{
    u32 vocab = e->on.r.config.vocab;
    bool near = row[best_token(row, vocab)] - row[token] <= 2 * e->tolerance &&
                (e->tolerance > 0.01 || best_token(row, vocab) == token) &&
                fabs(logprob(row, vocab, token) - wanted_logprob) <= 2 * e->tolerance;
    judge(e, near, "greedy choice", step);
}

static inline const float *fetch(struct engine *e, const float *logits, size_t rows)
{
    cuda_fetch(e->on.device, e->rows, logits, rows * e->on.r.config.vocab * sizeof *logits);
    return e->rows;
}

static inline void check_alone(struct engine *e, const struct reference *ref, u32 i)
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
    assert_greedy(e, rows + (size_t)(p->n - 1) * vocab, p->greedy[0], p->greedy_logprobs[0], 0);
    for (u32 step = 0; step + 1 < STEPS; step++) {
        struct fwd_seq one = runner_seq(r, i, &p->greedy[step], p->n + step, 1);
        one.prompt = p->n;
        assert_greedy(e, fetch(e, forward_run(r->forward, &one, 1), 1), p->greedy[step + 1],
                      p->greedy_logprobs[step + 1], step + 1);
    }
}

/* All prompts in every step, so many tokens at a time; what wants logits is checked. */
static inline void check_together(struct engine *e, const struct reference *ref, u32 chunk)
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
            assert_greedy(e, logits + (size_t)k * vocab, p->greedy[step], p->greedy_logprobs[step], step);
        }
    }
}

static inline void check_folder(const char *name, enum compute compute, u64 order)
{

    struct reference ref;
    struct engine e;
    cudasim_order(order);
    reference_read(&ref, name);
    engine_start(&e, ref.dir, compute, 256);
    e.may_be_off = compute != COMPUTE_F32 && e.on.r.config.moe.experts;
    for (u32 i = 0; i < PROMPTS; i++) check_alone(&e, &ref, i);
    check_together(&e, &ref, 17);
    if (e.off)
        print_message("# %s at %s: %u of %u rows are off\n", name, dtype_name(compute_dtype(compute)), e.off,
                      e.judged);
    if (e.off > OFF_SHARE * e.judged) fail_msg("%u of %u rows are off", e.off, e.judged);
    engine_stop(&e);
    reference_release(&ref);
}

/* Shorter numbers where weights are stored as such. */
static inline void test_folder(void **state)
{
    bool coded =
        strstr(*state, "fp8") || strstr(*state, "awq") || strstr(*state, "gptq") || strstr(*state, "mxfp4");
    check_folder(*state, COMPUTE_F32, 0);
    if (coded) return;
    check_folder(*state, COMPUTE_BF16, 1);
    if (strlen(*state) % 2 == 0) check_folder(*state, COMPUTE_F16, 2);
}

#endif
