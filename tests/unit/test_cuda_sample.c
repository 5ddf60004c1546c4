/* Sampling on CUDA (emulated) chooses what the CPU's sampler chooses, row by row: the same token for the same draw, the same
 * log-probabilities and states. Random rows with every parameter, and edges. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "cuda_world.h"
#include "engine/device_sampler.h"
#include "engine/logits.h"

enum { ROWS = 140 /* more than there are slots */, MOST = 12, HISTORY = 40 };
static const struct sampling neutral = {
    .temperature = 1, .top_p = 1, .repetition_penalty = 1, .n_logprobs = -1, .max_tokens = 9};
static u64 seed;

static u32 below(u32 n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (u32)((seed >> 33) % n);
}
static float between(float a, float b)
{
    return a + (b - a) * (float)below(1 << 20) * 0x1p-20f;
}

struct lists {
    struct token_bias bias[6];
    i32 allowed[12], words[12], ends[3], history[HISTORY];
};
struct batch {
    u32 vocab, n;
    float *logits; /* [ROWS, vocab] */
    struct sampling p[ROWS];
    struct lists lists[ROWS];
    struct sampler_spec spec[ROWS];
};

static void batch_init(struct batch *b, u32 vocab)
{
    memset(b, 0, sizeof *b);
    b->vocab = vocab;
    b->logits = malloc((size_t)ROWS * vocab * 4);
}

/* A row with no lists; its logits are the caller's to fill. */
static float *batch_add(struct batch *b, const struct sampling *p)
{
    struct lists *l = &b->lists[b->n];
    b->p[b->n] = *p;
    for (u32 i = 0; i < HISTORY; i++) l->history[i] = (i32)below(b->vocab);
    b->spec[b->n] = (struct sampler_spec){.history = l->history, .prompt_len = HISTORY / 2, .n = HISTORY};
    return b->logits + (size_t)b->n++ * b->vocab;
}

static void assert_logprobs(const struct token_logprob *got, const struct token_logprob *want, u32 n)
{
    for (u32 i = 0; i < n; i++) {
        assert_int_equal(got[i].id, want[i].id);
        assert_int_equal(got[i].rank, want[i].rank);
        assert_true(got[i].logprob == want[i].logprob ||
                    fabsf(got[i].logprob - want[i].logprob) < 1e-6f * (1 + fabsf(want[i].logprob)));
    }
}

/* Runs all rows on both; rows of the logits in falling order, so that indices are told apart. */
static void batch_compare(struct batch *b)
{
    struct error err = {0};
    struct device *d = cuda_open();
    struct device_sampler *s = device_sampler_new(d, ROWS, b->vocab, MOST, &err);
    cuda_need(s != NULL, &err);
    struct sampler *cpu = sampler_new(b->vocab);
    struct sampler_row rows[ROWS];
    float *logits = cuda_memory(d, NULL, (size_t)b->n * b->vocab * 4);
    device_sampler_clear(s);
    for (u32 i = 0; i < b->n; i++) {
        b->spec[i].sampling = &b->p[i];
        cuda_need(!sampler_row_init(&rows[i], &b->spec[i], b->vocab, &err), &err);
        device_upload(d, logits + (size_t)(b->n - 1 - i) * b->vocab, b->logits + (size_t)i * b->vocab,
                      b->vocab * 4);
        assert_int_equal(device_sampler_add(s, &rows[i], b->spec[i].history, b->spec[i].n, b->n - 1 - i), i);
    }
    cuda_need(!device_sampler_run(s, logits, &err), &err);
    for (u32 i = 0; i < b->n; i++) {
        struct token_logprob want[1 + MOST] = {0}, got[1 + MOST] = {0};
        struct choice c = sampler_choose(cpu, &rows[i], b->logits + (size_t)i * b->vocab, b->spec[i].history,
                                         b->spec[i].n, NULL, want);
        struct choice g = device_sampler_choice(s, i, got);
        if (g.state != c.state || g.token != c.token || g.n_logprobs != c.n_logprobs)
            fail_msg("vocabulary %u, row %u (T %g top_k %u top_p %g min_p %g): state %d token %d with %u, "
                     "not state %d token %d with %u",
                     b->vocab, i, (double)b->p[i].temperature, b->p[i].top_k, (double)b->p[i].top_p,
                     (double)b->p[i].min_p, g.state, g.token, g.n_logprobs, c.state, c.token, c.n_logprobs);
        assert_logprobs(got, want, c.n_logprobs);
        sampler_row_release(&rows[i]);
    }
    sampler_free(cpu);
    device_free(d, logits);
    device_sampler_free(s);
    device_close(d);
    b->n = 0;
}

static void random_logits(float *x, u32 vocab)
{
    u32 kind = below(4);
    for (u32 i = 0; i < vocab; i++) {
        x[i] = between(-8, 8);
        if (kind == 1) x[i] = roundf(x[i]); /* ties */
        if (kind == 2) x[i] *= 30;          /* a few have it all */
        if (kind == 3 && below(3)) x[i] = -INFINITY;
    }
    if (kind == 3) x[below(vocab)] = 1;
}

static void random_sampling(struct sampling *p, u32 vocab)
{
    static const float temperatures[] = {0, 1, 0.7f, 2, 0.02f};
    *p = neutral;
    p->temperature = temperatures[below(5)];
    p->seed = below(1 << 30);
    if (below(2)) p->top_p = below(8) ? between(0.01f, 1) : 1e-6f;
    if (below(3) == 0) p->top_k = 1 + below(below(2) ? 20 : vocab + 2);
    if (below(3) == 0) p->min_p = between(0, 0.3f);
    if (below(2)) p->n_logprobs = (i32)below(MOST + 1);
    if (below(3) == 0) p->repetition_penalty = between(0.7f, 1.5f);
    if (below(3) == 0) p->presence_penalty = between(-2, 2);
    if (below(3) == 0) p->frequency_penalty = between(-2, 2);
    if (below(4) == 0) p->min_tokens = 15 + below(10);
}

static void random_lists(struct lists *l, struct sampler_spec *spec, u32 vocab)
{
    if (below(3) == 0) {
        spec->n_bias = 1 + below(6);
        for (u32 i = 0; i < spec->n_bias; i++)
            l->bias[i] = (struct token_bias){(i32)below(vocab), between(-10, 10)};
        l->bias[spec->n_bias - 1].id = l->bias[0].id; /* twice the same */
    }
    if (below(4) == 0)
        for (u32 n = 1 + below(12); spec->n_allowed < n; spec->n_allowed++)
            l->allowed[spec->n_allowed] = (i32)below(vocab);
    if (below(3) == 0) { /* a word that the history begins, one that it does not, one of a single token */
        const i32 words[] = {
            3, l->history[HISTORY - 2], l->history[HISTORY - 1], (i32)below(vocab), 2, 0, (i32)below(vocab),
            1, (i32)below(vocab)};
        memcpy(l->words, words, sizeof words);
        spec->n_bad_words = COUNT_OF(words);
    }
    if (below(2))
        for (; spec->n_eos_ids < 3; spec->n_eos_ids++) l->ends[spec->n_eos_ids] = (i32)below(vocab);
    spec->bias = l->bias;
    spec->allowed = l->allowed;
    spec->bad_words = l->words;
    spec->eos_ids = l->ends;
}

static void test_random(void **state)
{
    static const u32 sizes[] = {5, 64, 65, 300, 1500};
    seed = 77 + (u64)(uintptr_t)*state;
    cudasim_order((u64)(uintptr_t)*state);
    for (u32 i = 0; i < COUNT_OF(sizes); i++) {
        struct batch b;
        batch_init(&b, sizes[i]);
        for (u32 r = 0; r < ROWS; r++) {
            struct sampling p;
            random_sampling(&p, sizes[i]);
            random_logits(batch_add(&b, &p), sizes[i]);
            random_lists(&b.lists[r], &b.spec[r], sizes[i]);
        }
        batch_compare(&b);
        free(b.logits);
    }
}

/* Many draws of one distribution: their limits lie everywhere. */
static void test_draws(void **state)
{
    enum { VOCAB = 700 };
    struct batch b;
    (void)state;
    cudasim_order(5);
    seed = 3;
    batch_init(&b, VOCAB);
    static const struct sampling kinds[] = {
        {.temperature = 1.5f, .top_p = 1, .repetition_penalty = 1, .n_logprobs = -1},
        {.temperature = 1, .top_p = 0.9f, .repetition_penalty = 1, .n_logprobs = -1},
        {.temperature = 1, .top_p = 0.95f, .top_k = 20, .repetition_penalty = 1, .n_logprobs = -1},
        {.temperature = 3, .top_p = 0.8f, .top_k = 650, .repetition_penalty = 1, .n_logprobs = -1},
    };
    for (u32 kind = 0; kind < COUNT_OF(kinds); kind++)
        for (u32 round = 0; round < 2; round++) {
            for (u32 r = 0; r < ROWS; r++) {
                struct sampling p = kinds[kind];
                p.seed = round * ROWS + r;
                float *x = batch_add(&b, &p);
                for (u32 i = 0; i < VOCAB; i++) x[i] = (float)(i * 37 % 101) * 0.05f;
            }
            batch_compare(&b);
        }
    free(b.logits);
}

static void fill(float *x, u32 n, float v)
{
    for (u32 i = 0; i < n; i++) x[i] = v;
}

static void test_edges(void **state)
{
    enum { VOCAB = 130 };
    struct batch b;
    (void)state;
    cudasim_order(9);
    seed = 1;
    batch_init(&b, VOCAB);
    struct sampling p = neutral;
    float *x;
    p.n_logprobs = MOST;
    fill(batch_add(&b, &p), VOCAB, NAN);
    fill(batch_add(&b, &p), VOCAB, -INFINITY);
    fill(batch_add(&b, &p), VOCAB, 0); /* all are equal */
    p.top_k = 3;
    fill(batch_add(&b, &p), VOCAB, 0); /* and so all are of the three best */
    p.top_p = 1e-9f;
    fill(batch_add(&b, &p), VOCAB, 0);
    p.top_k = 0;
    fill(batch_add(&b, &p), VOCAB, 0);
    p.top_p = 0.5f; /* the mass below is exactly the limit */
    for (p.seed = 0; p.seed < 20; p.seed++) fill(batch_add(&b, &p), VOCAB, 0);
    p.top_p = 1e-20f; /* 1 - top_p is 1 */
    x = batch_add(&b, &p);
    fill(x, VOCAB, 0);
    x[77] = x[99] = 0.25f;
    for (u32 i = 0; i < VOCAB; i += 64) { /* one bad number, in any place */
        x = batch_add(&b, &p);
        fill(x, VOCAB, 1);
        x[i] = i ? INFINITY : NAN;
    }
    x = batch_add(&b, &p); /* one is possible */
    fill(x, VOCAB, -INFINITY);
    x[129] = -3e38f;
    fill(batch_add(&b, &p), VOCAB, 2); /* everything that is allowed is a bad word */
    static const i32 only[] = {4}, word[] = {1, 4};
    b.spec[b.n - 1].allowed = only;
    b.spec[b.n - 1].n_allowed = 1;
    b.spec[b.n - 1].bad_words = word;
    b.spec[b.n - 1].n_bad_words = 2;
    x = batch_add(&b, &p); /* a bias that makes infinity */
    fill(x, VOCAB, 3e38f);
    static const struct token_bias huge = {7, 3e38f};
    b.spec[b.n - 1].bias = &huge;
    b.spec[b.n - 1].n_bias = 1;
    p.temperature = 0;
    x = batch_add(&b, &p); /* zeros of both signs are equal: the lower id */
    fill(x, VOCAB, -1);
    x[3] = -0.0f;
    x[2] = 0.0f;
    x[1] = -0.0f;
    batch_compare(&b);
    free(b.logits);
}

/* The exponential is the CPU's to the last bit: a minimum that is just what tokens have keeps them, the next number drops them. */
static void test_exponential(void **state)
{
    enum { VOCAB = 130 };
    struct batch b;
    (void)state;
    seed = 8;
    batch_init(&b, VOCAB);
    for (u32 round = 0; round < 5; round++) {
        for (u32 r = 0; r < ROWS; r++) {
            struct sampling p = neutral;
            float v = -between(0.1f, 6), e = logits_exp_one(v);
            p.seed = below(1000);
            p.min_p = r % 2 ? e : nextafterf(e, 1);
            float *x = batch_add(&b, &p);
            fill(x, VOCAB, v);
            x[VOCAB / 2] = 0;
        }
        batch_compare(&b);
    }
    free(b.logits);
}

/* Lists longer than the room that was taken for them at first: penalties of long texts. */
static void test_long_lists(void **state)
{
    enum { VOCAB = 40000 };
    struct batch b;
    (void)state;
    cudasim_order(0);
    seed = 2;
    batch_init(&b, VOCAB);
    struct sampling p = neutral;
    p.repetition_penalty = 1.2f;
    i32 *long_history = malloc(VOCAB * sizeof *long_history);
    for (i32 i = 0; i < VOCAB; i++) long_history[i] = VOCAB - 1 - i;
    for (u32 r = 0; r < 2; r++) {
        random_logits(batch_add(&b, &p), VOCAB);
        b.spec[r].history = long_history;
        b.spec[r].n = VOCAB;
        b.spec[r].prompt_len = VOCAB / 2 + r;
    }
    batch_compare(&b);
    free(long_history);
    free(b.logits);
}

int main(void)
{
    cuda_begin();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_random, (void *)0),
        cmocka_unit_test_prestate(test_random, (void *)1),
        cmocka_unit_test_prestate(test_random, (void *)2),
        cmocka_unit_test_prestate(test_random, (void *)3),
        cmocka_unit_test(test_draws),
        cmocka_unit_test(test_edges),
        cmocka_unit_test(test_long_lists),
        cmocka_unit_test(test_exponential),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("cuda_sample", tests, NULL, NULL);
}
