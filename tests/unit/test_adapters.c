/* Adapters in the forward pass: what peft computes, at f32, from every instruction set; the same bits alone, beside the base and other
 * adapters, in chunks, with more threads; the base's bits as if there were none; the same tokens from several engines. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>

#include "adapter_world.h"
#include "crew.h"

static const double tolerance = 2e-3;
static void run_alone(struct runner *r, struct world *w, u32 model)
{
    u32 vocab = r->config.vocab;
    for (u32 i = 0; i < PROMPTS; i++) {
        const struct prompt *p = &w->refs[model].prompts[i];
        float **rows = &w->logits[model][i];
        if (!*rows) *rows = calloc((size_t)rows_of(p) * vocab, sizeof **rows);
        struct fwd_seq all = sequence(r, i, model, p, 0, p->n);
        memcpy(*rows, forward_run_all(r->forward, &all, 1), (size_t)p->n * vocab * 4);
        for (u32 at = p->n; at < rows_of(p); at++) {
            struct fwd_seq one = sequence(r, i, model, p, at, 1);
            memcpy(*rows + (size_t)at * vocab, forward_run(r->forward, &one, 1), vocab * 4);
        }
    }
}

static double worst(const float *got, const float *want, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        double off = fabs((double)got[i] - want[i]);
        if (!(off <= tolerance)) fail_msg("number %zu: %g, not %g", i, got[i], want[i]);
        most = fmax(most, off);
    }
    return most;
}

static double check_values(const struct world *w, u32 model, u32 vocab)
{
    double most = 0;
    for (u32 i = 0; i < PROMPTS; i++) {
        const struct reference *ref = &w->refs[model];
        const struct prompt *p = &ref->prompts[i];
        const float *rows = w->logits[model][i], *last = rows + (size_t)(p->n - 1) * vocab;
        if (i < 3)
            most =
                fmax(most, worst(rows, stored(ref, "logits", i, (size_t)p->n * vocab), (size_t)p->n * vocab));
        most = fmax(most, worst(last, stored(ref, "last_logits", i, vocab), vocab));
        for (u32 step = 0; step < STEPS; step++) {
            const float *row = last + (size_t)step * vocab;
            assert_int_equal(best_token(row, vocab), p->greedy[step]);
            assert_true(fabs(logprob(row, vocab, p->greedy[step]) - p->greedy_logprobs[step]) <= tolerance);
        }
    }
    return most;
}

/* All prompts of all models in every step, and each has the bits that it has alone. */
static void check_together(struct runner *r, const struct world *w, u32 chunk)
{
    u32 vocab = r->config.vocab, done[MODELS * PROMPTS] = {0};
    for (;;) {
        struct fwd_seq seqs[MODELS * PROMPTS];
        u32 n = 0, who[MODELS * PROMPTS];
        for (u32 k = 0; k < w->n * PROMPTS; k++) {
            u32 model = k % w->n, i = k / w->n, at = done[k];
            const struct prompt *p = &w->refs[model].prompts[i];
            u32 take = at < p->n ? MIN_OF(chunk, p->n - at) : at < rows_of(p);
            if (!take) continue;
            seqs[n] = sequence(r, PROMPTS + k, model, p, at, take);
            who[n++] = k;
            done[k] += take;
        }
        if (!n) return;
        const float *logits = forward_run(r->forward, seqs, n);
        for (u32 j = 0; j < n; j++) {
            u32 k = who[j];
            const float *alone = w->logits[k % w->n][k / w->n] + (size_t)(done[k] - 1) * vocab;
            assert_memory_equal(logits + (size_t)j * vocab, alone, vocab * 4);
        }
    }
}

/* The base alone, loaded without adapters. */
static void check_base(const struct world *w, enum compute compute, const struct model_load *load)
{
    struct runner r;
    struct model_load plain = *load;
    struct world bare = {.refs = {w->refs[0]}, .n = 1};
    plain.adapters = NULL;
    runner_load_as(&r, w->refs[0].dir, &plain);
    runner_start(&r, ops_cpu_best(), compute, 1, 256);
    run_alone(&r, &bare, 0);
    for (u32 i = 0; i < PROMPTS; i++) {
        assert_memory_equal(bare.logits[0][i], w->logits[0][i],
                            rows_of(&w->refs[0].prompts[i]) * (size_t)r.config.vocab * 4);
        free(bare.logits[0][i]);
    }
    runner_unload(&r);
}

static void check_level(struct runner *r, struct world *w, const char *isa, enum compute compute, bool first)
{
    runner_start(r, isa, compute, 1, 512);
    for (u32 m = 0; m < w->n && first; m++) run_alone(r, w, m);
    static const u32 chunks[] = {LONGEST, 16, 3};
    for (u32 i = 0; i < COUNT_OF(chunks); i++) check_together(r, w, chunks[i]);
    runner_start(r, isa, compute, 3, 512);
    check_together(r, w, 5);
}

static void test_world(void **state)
{
    const char *levels[8];
    int n = runner_levels(levels);
    struct world w;
    struct runner r;
    world_open(&w, *state);
    runner_load_as(&r, w.refs[0].dir, &w.load);
    for (int compute = COMPUTE_F32; compute <= COMPUTE_BF16; compute++) {
        for (int i = 0; i < n; i++) check_level(&r, &w, levels[i], (enum compute)compute, i == 0);
        for (u32 m = 0; m < w.n && compute == COMPUTE_F32; m++)
            printf("# %s: logits within %.1e at f32\n", w.names[m], check_values(&w, m, r.config.vocab));
        check_base(&w, (enum compute)compute, &w.load);
    }
    runner_unload(&r);
    world_close(&w);
}

/* Adapters stay as they are stored. */
static void test_quantised(void **state)
{
    static const enum dtype formats[] = {DTYPE_I8, DTYPE_I4};
    (void)state;
    for (u32 i = 0; i < COUNT_OF(formats); i++) {
        struct world w;
        struct runner r;
        world_open(&w, llama);
        w.load.weights = formats[i];
        runner_load_as(&r, w.refs[0].dir, &w.load);
        check_level(&r, &w, ops_cpu_best(), COMPUTE_F32, true);
        check_base(&w, COMPUTE_F32, &w.load);
        assert_memory_not_equal(w.logits[0][3], w.logits[1][3], r.config.vocab * 4);
        runner_unload(&r);
        world_close(&w);
    }
}

/* ---- several engines */
struct division {
    const struct world *w;
    u32 tp, pp;
    enum compute compute;
};

/* The prompts of all models together, then their continuations: the sampler finds the tokens of the reference. */
static void run_greedy(struct runner *r, const struct division *d, bool sampler)
{
    const struct world *w = d->w;
    u32 n = w->n * PROMPTS, vocab = r->config.vocab;
    for (u32 step = 0; step < STEPS; step++) {
        struct fwd_seq seqs[MODELS * PROMPTS];
        for (u32 k = 0; k < n; k++) {
            const struct prompt *p = &w->refs[k % w->n].prompts[k / w->n];
            seqs[k] = sequence(r, k, k % w->n, p, step ? p->n + step - 1 : 0, step ? 1 : p->n);
        }
        const float *logits = forward_run(r->forward, seqs, n);
        crew_need(logits != NULL, forward_error(r->forward));
        for (u32 k = 0; k < n && sampler; k++) {
            i32 best = best_token(logits + (size_t)k * vocab, vocab);
            crew_need(best == w->refs[k % w->n].prompts[k / w->n].greedy[step], NULL);
        }
    }
}

static void engine(struct coll_world *c, u32 me, void *arg)
{
    const struct division *d = arg;
    struct runner r;
    runner_read(&r, d->w->refs[0].dir, &d->w->load);
    runner_fill(&r, d->tp, d->pp, me % d->tp, me / d->tp);
    r.all = coll_all(c);
    r.stage = coll_stage(c);
    runner_start(&r, ops_cpu_best(), d->compute, 1 + (int)me % 2, 512);
    run_greedy(&r, d, me == d->tp * (d->pp - 1));
    runner_unload(&r);
}

static void test_division(void **state)
{
    static const u32 shapes[][2] = {{2, 1}, {1, 2}, {2, 2}, {4, 1}};
    for (u32 i = 0; i < COUNT_OF(shapes); i++) {
        struct world w;
        world_open(&w, *state);
        struct division d = {&w, shapes[i][0], shapes[i][1], COMPUTE_F32};
        struct crew c = {.shape = crew_shape(d.tp, d.pp, NULL), .fn = engine, .arg = &d};
        crew_run(&c);
        world_close(&w);
    }
}

#define WORLD(name, fn, world)                                                                               \
    {                                                                                                        \
        name, fn, NULL, NULL, (void *)(uintptr_t)(world)                                                     \
    }
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        WORLD("llama", test_world, llama),
        WORLD("qwen3", test_world, qwen3),
        WORLD("phi3, fused products", test_world, phi3),
        WORLD("deepseek, latent attention", test_world, deepseek),
        WORLD("gemma2, norms behind", test_world, gemma2),
        WORLD("mixtral, attention beside experts", test_world, mixtral),
        WORLD("several engines: llama", test_division, llama),
        WORLD("several engines: qwen3", test_division, qwen3),
        WORLD("several engines: phi3", test_division, phi3),
        WORLD("several engines: deepseek", test_division, deepseek),
        WORLD("several engines: gemma2", test_division, gemma2),
        WORLD("several engines: mixtral", test_division, mixtral),
        cmocka_unit_test(test_quantised),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("adapters", tests, NULL, NULL);
}
