/* engine/sampler: hand-computed cases, edges, and draws against a slow second opinion in double precision. */
#include "engine/logits.h"
#include "engine/sampler.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define NO (-INFINITY)

static const struct sampling PLAIN = {
    .temperature = 1, .top_p = 1, .repetition_penalty = 1, .n_logprobs = -1, .max_tokens = 9};

/* One choice with everything given at once; history defaults to one prompt token. */
struct trial {
    struct sampling p;
    struct sampler_spec spec;
    const u32 *grammar;
    struct token_logprob logprobs[32];
    u32 vocab;
};

static struct trial plain(u32 vocab)
{
    static const i32 first[1] = {0};
    struct trial t = {.p = PLAIN, .vocab = vocab};
    t.spec.history = first;
    t.spec.n = t.spec.prompt_len = 1;
    return t;
}

static struct choice choose(struct trial *t, const float *logits)
{
    struct sampler *s = sampler_new(t->vocab);
    struct sampler_row r;
    struct error e;
    t->spec.sampling = &t->p;
    if (sampler_row_init(&r, &t->spec, t->vocab, &e)) fail_msg("%s", e.message);
    struct choice c = sampler_choose(s, &r, logits, t->spec.history, t->spec.n, t->grammar, t->logprobs);
    sampler_row_release(&r);
    sampler_free(s);
    return c;
}

static i32 greedy(struct trial *t, const float *logits)
{
    t->p.temperature = 0;
    struct choice c = choose(t, logits);
    assert_int_equal(c.state, SAMPLER_OK);
    return c.token;
}

/* ---- greedy --------------------------------------------------------------------------------------------------*/
static void test_greedy(void **state)
{
    (void)state;
    float x[300];
    for (u32 n = 1; n <= 300; n++) {
        struct trial t = plain(n);
        for (u32 i = 0; i < n; i++) x[i] = -3;
        x[n / 2] = x[n - 1] = 7;
        assert_int_equal(greedy(&t, x), n / 2); /* the lower id of a tie */
        x[n / 3] = 7;
        assert_int_equal(greedy(&t, x), n / 3);
        for (u32 i = 0; i < n; i++) x[i] = NO;
        x[n - 1] = -1e30f;
        assert_int_equal(greedy(&t, x), n - 1);
    }
    struct trial t = plain(3);
    float zeros[3] = {-0.0f, 0.0f, -1};
    assert_int_equal(greedy(&t, zeros), 0);
    t.p.temperature = 9e-6f; /* is zero */
    t.p.top_k = 2;
    for (t.p.seed = 0; t.p.seed < 20; t.p.seed++) assert_int_equal(choose(&t, (float[]){1, 1, 1}).token, 0);
    t.p.temperature = 2e-5f; /* is 0.01: e^-0.5 against 1 */
    u32 ones = 0;
    for (t.p.seed = 0; t.p.seed < 400; t.p.seed++) ones += choose(&t, (float[]){0.005f, 0, -9}).token == 1;
    assert_in_range(ones, 120, 185);
}

static void test_nonfinite(void **state)
{
    (void)state;
    float x[150];
    for (u32 n = 1; n <= 150; n++)
        for (u32 at = 0; at < n; at += 1 + n / 9) {
            static const float bad[] = {NAN, -NAN, INFINITY};
            for (size_t k = 0; k < COUNT_OF(bad); k++) {
                struct trial t = plain(n);
                for (u32 i = 0; i < n; i++) x[i] = i == at ? bad[k] : (float)i;
                t.p.n_logprobs = 1;
                struct choice c = choose(&t, x);
                assert_int_equal(c.state, SAMPLER_NONFINITE);
                assert_int_equal(c.token, -1);
                assert_int_equal(c.n_logprobs, 0);
            }
            struct trial t = plain(n);
            for (u32 i = 0; i < n; i++) x[i] = i == at ? 1 : NO;
            assert_int_equal(choose(&t, x).token, at);
            x[at] = NO;
            assert_int_equal(choose(&t, x).state, SAMPLER_NONFINITE);
        }
    struct trial t = plain(3);
    u32 grammar = 5;
    t.grammar = &grammar; /* a NaN that the grammar forbids is one all the same */
    assert_int_equal(choose(&t, (float[]){1, NAN, 1}).state, SAMPLER_NONFINITE);
}

/* ---- changes to the logits -----------------------------------------------------------------------------------*/
static void test_bias_allowed(void **state)
{
    (void)state;
    const float x[5] = {5, 4, 3, 2, 1};
    struct trial t = plain(5);
    struct token_bias bias[] = {{4, 100}, {0, -100}};
    t.spec.bias = bias;
    t.spec.n_bias = 2;
    assert_int_equal(greedy(&t, x), 4);
    t.spec.allowed = (i32[]){1, 0};
    t.spec.n_allowed = 2;
    assert_int_equal(greedy(&t, x), 1); /* a bias does not bring back what is not allowed */
    u32 grammar = 1u << 3 | 1u << 2;
    t = plain(5);
    t.grammar = &grammar;
    assert_int_equal(greedy(&t, x), 2);
    t.spec.allowed = (i32[]){4};
    t.spec.n_allowed = 1;
    assert_int_equal(choose(&t, x).state, SAMPLER_NOTHING);
    grammar = 0;
    assert_int_equal(choose(&t, x).state, SAMPLER_NOTHING);
}

static void test_min_tokens(void **state)
{
    (void)state;
    const float x[5] = {1, 2, 3, 4, 5};
    const i32 history[] = {0, 0, 1, 1, 1};
    struct trial t = plain(5);
    t.spec.history = history;
    t.spec.prompt_len = 2;
    t.spec.eos_ids = (i32[]){4};
    t.spec.stop_ids = (i32[]){3, 2};
    t.spec.n_eos_ids = 1;
    t.spec.n_stop_ids = 2;
    t.p.min_tokens = 3;
    t.p.ignore_eos = 1;
    for (t.spec.n = 2; t.spec.n <= 5; t.spec.n++) assert_int_equal(greedy(&t, x), t.spec.n < 5 ? 1 : 4);
    t.spec.n = 2;
    t.spec.allowed = (i32[]){4};
    t.spec.n_allowed = 1;
    assert_int_equal(choose(&t, x).state, SAMPLER_NOTHING);
}

static void test_penalties(void **state)
{
    (void)state;
    const i32 history[] = {0, 1, 1, 2, 2, 2, 3}; /* prompt 0 1 1, output 2 2 2 3 */
    const float x[5] = {10, 9, 8, -2, 0.5f};
    struct trial t = plain(5);
    t.spec.history = history;
    t.spec.prompt_len = 3;
    t.spec.n = 7;
    t.p.repetition_penalty = 2; /* 5, 4.5, 4, -4, 0.5 */
    assert_int_equal(greedy(&t, x), 0);
    t.p.repetition_penalty = 25; /* 0.4, 0.36, 0.32, -50, 0.5: token 4 was never seen */
    assert_int_equal(greedy(&t, x), 4);
    t.p.repetition_penalty = 1;
    t.p.frequency_penalty = 1; /* the output alone counts: 10, 9, 5, -3, 0.5 */
    assert_int_equal(greedy(&t, x), 0);
    assert_int_equal(greedy(&t, (float[]){1, 2, 5.5f, -2, 2.6f}), 4); /* 2: 5.5 - 3 */
    assert_int_equal(greedy(&t, (float[]){1, 2, 5.5f, -2, 2.4f}), 2);
    t.p.frequency_penalty = 0;
    t.p.presence_penalty = 1;
    assert_int_equal(greedy(&t, (float[]){1, 2, 5.5f, -2, 4.6f}), 4); /* 2: 5.5 - 1 */
    assert_int_equal(greedy(&t, (float[]){1, 2, 5.5f, -2, 4.4f}), 2);
    t.p.presence_penalty = -2; /* may be negative */
    assert_int_equal(greedy(&t, (float[]){1, 2, 5.5f, 5.6f, 7.5f}), 3);
    /* the bias comes before the penalties, repetition before the others: (4 + 4) / 2 - 3 - 0.5 = 0.5 */
    t.p.repetition_penalty = 2;
    t.p.frequency_penalty = 1;
    t.p.presence_penalty = 0.5f;
    struct token_bias bias[] = {{2, 4}};
    t.spec.bias = bias;
    t.spec.n_bias = 1;
    assert_int_equal(greedy(&t, (float[]){NO, NO, 4, NO, 0.501f}), 4);
    assert_int_equal(greedy(&t, (float[]){NO, NO, 4, NO, 0.499f}), 2);
    /* raw log-probabilities know nothing of it */
    t.p.n_logprobs = 0;
    greedy(&t, (float[]){NO, NO, 4, NO, 4});
    assert_true(fabsf(t.logprobs[0].logprob + 0.6931472f) < 1e-6f);
}

static void test_bad_words(void **state)
{
    (void)state;
    const i32 history[] = {1, 2, 3, 1, 2}; /* prompt 1 2, output 3 1 2 */
    const float x[6] = {0, 1, 2, 3, 4, 5};
    struct trial t = plain(6);
    t.spec.history = history;
    t.spec.prompt_len = 2;
    t.spec.n = 5;
    const struct {
        i32 words[8];
        u32 n;
        i32 token;
    } rows[] = {
        {{1, 5}, 2, 4},                   /* one token: never */
        {{1, 5, 1, 4}, 4, 3},             /* two words */
        {{3, 1, 2, 5}, 4, 4},             /* the output ends with 1 2 */
        {{4, 3, 1, 2, 5}, 5, 4},          /* it is 3 1 2 */
        {{5, 2, 3, 1, 2, 5}, 6, 5},       /* 2 is the prompt's: no match across the border */
        {{3, 2, 1, 5}, 4, 5},             /* another order */
        {{2, 2, 5, 3, 1, 2, 4}, 7, 3},    /* both end here */
        {{7, 1, 2, 3, 1, 2, 5, 5}, 8, 5}, /* longer than the output */
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        t.spec.bad_words = rows[i].words;
        t.spec.n_bad_words = rows[i].n;
        assert_int_equal(greedy(&t, x), rows[i].token);
    }
}

static void test_row_refused(void **state)
{
    (void)state;
    static const i32 four[] = {4}, negative[] = {-1}, cut[] = {2, 1}, empty[] = {0, 1}, outside[] = {1, 4};
    static const struct token_bias bias = {4, 1};
    struct sampler_row r;
    struct error e;
    struct trial t[9];
    for (size_t i = 0; i < COUNT_OF(t); i++) t[i] = plain(4);
    t[0].spec.prompt_len = 2;
    t[1].spec.history = four;
    t[2].spec.allowed = negative;
    t[2].spec.n_allowed = 1;
    t[3].spec.eos_ids = four;
    t[3].spec.n_eos_ids = 1;
    t[4].spec.stop_ids = four;
    t[4].spec.n_stop_ids = 1;
    t[5].spec.bias = &bias;
    t[5].spec.n_bias = 1;
    t[6].spec.bad_words = cut;
    t[7].spec.bad_words = empty;
    t[8].spec.bad_words = outside;
    for (size_t i = 6; i < COUNT_OF(t); i++) t[i].spec.n_bad_words = 2;
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        t[i].spec.sampling = &t[i].p;
        assert_int_equal(sampler_row_init(&r, &t[i].spec, 4, &e), ERR_PEER);
        sampler_row_release(&r);
    }
}

/* ---- log-probabilities ---------------------------------------------------------------------------------------*/
static void test_logprobs(void **state)
{
    (void)state;
    const float x[6] = {1, 3, 2, 3, NO, 0};
    double base = log(exp(1) + 2 * exp(3) + exp(2) + 1);
    struct trial t = plain(6);
    t.p.n_logprobs = 3;
    t.p.temperature = 0;
    struct choice c = choose(&t, x);
    assert_int_equal(c.n_logprobs, 4);
    const i32 ids[4] = {1, 1, 3, 2}, ranks[4] = {1, 1, 2, 3};
    for (u32 i = 0; i < 4; i++) {
        assert_int_equal(t.logprobs[i].id, ids[i]);
        assert_int_equal(t.logprobs[i].rank, ranks[i]);
        assert_true(fabs((double)t.logprobs[i].logprob - ((double)x[ids[i]] - base)) < 1e-6);
    }
    t.p.n_logprobs = 9; /* more than there are above -inf */
    c = choose(&t, x);
    assert_int_equal(c.n_logprobs, 6);
    t.p.n_logprobs = 0;
    struct token_bias bias[] = {{5, 50}};
    t.spec.bias = bias;
    t.spec.n_bias = 1;
    c = choose(&t, x); /* chosen against the model's taste */
    assert_int_equal(c.n_logprobs, 1);
    assert_int_equal(t.logprobs[0].id, 5);
    assert_int_equal(t.logprobs[0].rank, 5);
    assert_true(fabs((double)t.logprobs[0].logprob + base) < 1e-6);
    u32 grammar = 1u << 0 | 1u << 5; /* a grammar is visible in them */
    t.grammar = &grammar;
    c = choose(&t, x);
    assert_int_equal(t.logprobs[0].rank, 2);
    assert_true(fabs((double)t.logprobs[0].logprob + log(exp(1) + 1)) < 1e-6);
}

static void test_exp(void **state)
{
    (void)state;
    for (int i = 0; i <= 860000; i++) {
        float x = -(float)i * 1e-4f;
        double want = exp((double)x), got = (double)logits_exp_one(x);
        if (fabs(got - want) > 2.5e-7 * want) fail_msg("exp(%g) = %g, not %g", (double)x, got, want);
    }
    assert_true(logits_exp_one(0) == 1);
    assert_true(logits_exp_one(-100) == 0 && logits_exp_one(-1e30f) == 0 && logits_exp_one(NO) == 0);
}

/* ---- draws against a second opinion --------------------------------------------------------------------------*/
struct pair {
    double x;
    u32 id;
};

static int worse_last(const void *a, const void *b)
{
    const struct pair *p = a, *q = b;
    if (p->x != q->x) return p->x > q->x ? -1 : 1;
    return p->id < q->id ? -1 : 1;
}

/* The probabilities to the letter of the API, slowly. */
static void opinion(const struct sampling *p, const float *logits, u32 n, double *prob)
{
    struct pair *a = malloc(n * sizeof *a);
    double total = 0, running = 0;
    double temperature = p->temperature < 0.01f ? 0.01 : (double)p->temperature;
    for (u32 i = 0; i < n; i++) a[i] = (struct pair){(double)logits[i] / temperature, i};
    qsort(a, n, sizeof *a, worse_last);
    u32 kept = n;
    while (kept > 1 && exp(a[kept - 1].x - a[0].x) < (double)p->min_p) kept--;
    if (p->top_k && p->top_k < kept) {
        double border = a[p->top_k - 1].x;
        while (a[kept - 1].x < border) kept--;
    }
    for (u32 i = 0; i < kept; i++) total += exp(a[i].x - a[0].x);
    u32 first = kept;
    while (first > 1 && p->top_p < 1) {
        running += exp(a[first - 1].x - a[0].x) / total;
        if (running > 1 - (double)p->top_p) break;
        first--;
    }
    total = 0;
    for (u32 i = 0; i < first; i++) total += exp(a[i].x - a[0].x);
    for (u32 i = 0; i < n; i++) prob[a[i].id] = i < first ? exp(a[i].x - a[0].x) / total : 0;
    free(a);
}

/* Draws with many seeds and compares frequencies (chi-square at about five standard deviations). */
static void compare(const struct sampling *p, const float *x, u32 n, u32 draws)
{
    double *prob = malloc(n * sizeof *prob), chi = 0, expected_small = 0;
    u32 *seen = calloc(n, sizeof *seen), cells = 0, seen_small = 0;
    struct sampler *s = sampler_new(n);
    opinion(p, x, n, prob);
    struct trial t = plain(n);
    t.p = *p;
    t.spec.sampling = &t.p;
    for (u32 i = 0; i < draws; i++) {
        struct sampler_row r;
        t.p.seed = 1000 + i;
        assert_int_equal(sampler_row_init(&r, &t.spec, n, NULL), 0);
        struct choice c = sampler_choose(s, &r, x, t.spec.history, 1, NULL, NULL);
        assert_int_equal(c.state, SAMPLER_OK);
        seen[c.token]++;
        sampler_row_release(&r);
    }
    for (u32 i = 0; i < n; i++) {
        double want = prob[i] * draws;
        if (prob[i] == 0 && seen[i]) fail_msg("token %u was drawn %u times and is cut off", i, seen[i]);
        if (want < 8) {
            expected_small += want;
            seen_small += seen[i];
            continue;
        }
        chi += (seen[i] - want) * (seen[i] - want) / want;
        cells++;
    }
    if (expected_small > 8) {
        chi += (seen_small - expected_small) * (seen_small - expected_small) / expected_small;
        cells++;
    }
    if (chi > cells + 5 * sqrt(2.0 * cells) + 5) fail_msg("chi-square %g with %u cells", chi, cells);
    sampler_free(s);
    free(prob);
    free(seen);
}

/* Numbers about normal with that deviation, keyed by seed. */
static void random_logits(float *x, u32 n, u64 seed, float deviation)
{
    for (u32 i = 0; i < n; i++) {
        u32 b[4];
        rng_block(seed, i, 99, b);
        x[i] = deviation * (rng_unit(b[0]) + rng_unit(b[1]) + rng_unit(b[2]) + rng_unit(b[3]) - 2) * 1.73f;
    }
}

static void test_draws(void **state)
{
    (void)state;
    static const struct {
        u32 n;
        float deviation, temperature, top_p, min_p;
        u32 top_k;
    } rows[] = {
        {2, 1, 1, 1, 0, 0},         {7, 1, 1, 1, 0, 0},           {100, 2, 1, 1, 0, 0},
        {100, 2, 0.5f, 1, 0, 0},    {100, 2, 2, 1, 0, 0},         {500, 3, 1, 1, 0, 0},
        {100, 2, 1, 0.9f, 0, 0},    {100, 2, 1, 0.5f, 0, 0},      {100, 2, 1, 0.1f, 0, 0},
        {100, 2, 1, 1e-6f, 0, 0},   {100, 2, 1, 1, 0.1f, 0},      {100, 2, 1, 1, 1, 0},
        {100, 2, 1, 1, 0, 1},       {100, 2, 1, 1, 0, 5},         {100, 2, 1, 1, 0, 99},
        {100, 2, 1, 1, 0, 100},     {100, 2, 1, 0.8f, 0, 20},     {100, 2, 1, 0.8f, 0.2f, 50},
        {500, 0.1f, 1, 0.7f, 0, 0}, {500, 0.1f, 1, 0.7f, 0, 400}, {65, 2, 1.3f, 0.95f, 0.02f, 0},
    };
    float x[500];
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct sampling p = PLAIN;
        p.temperature = rows[i].temperature;
        p.top_p = rows[i].top_p;
        p.min_p = rows[i].min_p;
        p.top_k = rows[i].top_k;
        random_logits(x, rows[i].n, i, rows[i].deviation);
        compare(&p, x, rows[i].n, 6000);
    }
}

static void test_draw_edges(void **state)
{
    (void)state;
    struct sampling p = PLAIN;
    p.top_k = 2; /* ties at the border stay: 1 2 3 */
    compare(&p, (float[]){0, 5, 4, 4, 1}, 5, 3000);
    p.top_k = 1;
    compare(&p, (float[]){4, 4, 1}, 3, 1000);
    p.top_k = 0;
    p.top_p = 0.5f; /* four alike: two are dropped (running sum <= 0.5), the higher ids */
    compare(&p, (float[]){1, 1, 1, 1}, 4, 1000);
    p.top_k = 3;
    p.top_p = 0.6f; /* of what top_k leaves, and its ties */
    compare(&p, (float[]){3, 2, 1.5f, 1.5f, 1}, 5, 3000);
    p = PLAIN;
    p.min_p =
        0.5f; /* before top_k, after temperature: exp(-1 / 2) = 0.61 stays, exp(-2 / 2) = 0.37 does not */
    p.temperature = 2;
    compare(&p, (float[]){3, 2, 1, NO}, 4, 2000);
    p = PLAIN;
    compare(&p, (float[]){NO, 1, NO, 0, NO}, 5, 2000);
    p.temperature = 0.01f; /* huge distances: exp underflows to nothing */
    compare(&p, (float[]){100, 0, -100}, 3, 100);
    p.top_k = 3;
    compare(&p, (float[]){100, 0, -100}, 3, 100);
}

static void test_large_vocabulary(void **state)
{
    (void)state;
    enum { N = 150001 };
    float *x = malloc(N * sizeof *x);
    random_logits(x, N, 5, 2);
    struct sampling p = PLAIN;
    p.top_k = 50;
    compare(&p, x, N, 2000);
    p.top_k = 3000;
    p.top_p = 0.3f;
    compare(&p, x, N, 300);
    p.top_k = 0;
    p.top_p = 0.01f;
    p.temperature = 0.5f;
    compare(&p, x, N, 500);
    free(x);
}

/* ---- replay --------------------------------------------------------------------------------------------------*/
enum { STEPS = 120, WORDS = 97 };

static void model_of(const i32 *history, u32 n, float *x)
{
    random_logits(x, WORDS, (u64)history[n - 1] * 1000 + history[n / 2], 2);
}

static void run(const struct sampler_spec *spec, i32 *history, u32 from, u32 to)
{
    float x[WORDS];
    struct sampler *s = sampler_new(WORDS);
    struct sampler_row r;
    struct sampler_spec now = *spec;
    now.history = history;
    now.n = from;
    assert_int_equal(sampler_row_init(&r, &now, WORDS, NULL), 0);
    for (u32 n = from; n < to; n++) {
        model_of(history, n, x);
        struct choice c = sampler_choose(s, &r, x, history, n, NULL, NULL);
        assert_int_equal(c.state, SAMPLER_OK);
        history[n] = c.token;
        sampler_row_push(&r, c.token);
    }
    sampler_row_release(&r);
    sampler_free(s);
}

static void test_replay(void **state)
{
    (void)state;
    struct sampling p = {.temperature = 0.9f,
                         .top_p = 0.9f,
                         .top_k = 30,
                         .min_p = 0.01f,
                         .repetition_penalty = 1.2f,
                         .frequency_penalty = 0.2f,
                         .presence_penalty = 0.3f,
                         .n_logprobs = -1,
                         .seed = 42,
                         .min_tokens = 100};
    struct sampler_spec spec = {.sampling = &p,
                                .prompt_len = 8,
                                .eos_ids = (i32[]){5},
                                .n_eos_ids = 1,
                                .bad_words = (i32[]){2, 7, 8, 1, 9},
                                .n_bad_words = 5};
    for (u32 round = 0; round < 2; round++, p.top_k = 0) {
        i32 whole[8 + STEPS] = {1, 2, 3, 4, 5, 6, 7, 8}, again[8 + STEPS];
        run(&spec, whole, 8, 8 + STEPS);
        for (u32 crash = 8; crash < 8 + STEPS; crash += 7) {
            memcpy(again, whole, sizeof whole);
            memset(again + crash, 0, (8 + STEPS - crash) * sizeof *again);
            run(&spec, again, crash, 8 + STEPS);
            assert_memory_equal(again, whole, sizeof whole);
        }
        for (u32 i = 8; i < 108; i++) assert_int_not_equal(whole[i], 5);
        for (u32 i = 8; i < 8 + STEPS; i++)
            assert_true(whole[i] != 9 && (whole[i] != 8 || i == 8 || whole[i - 1] != 7));
        memcpy(again, whole, sizeof whole);
        p.seed++;
        run(&spec, again, 8, 8 + STEPS);
        assert_memory_not_equal(again, whole, sizeof whole);
    }
}

/* Counts of many different tokens, incremental and at once. */
static void test_counts(void **state)
{
    (void)state;
    enum { N = 5000 };
    i32 *history = malloc(N * sizeof *history);
    struct sampling p = PLAIN;
    p.repetition_penalty = 1.1f;
    struct sampler_spec spec = {.sampling = &p, .history = history, .prompt_len = 1000, .n = 1000};
    struct sampler_row a, b;
    for (u32 i = 0; i < N; i++) history[i] = (i32)((u64)i * i % 2003);
    assert_int_equal(sampler_row_init(&a, &spec, 2003, NULL), 0);
    for (u32 i = 1000; i < N; i++) sampler_row_push(&a, history[i]);
    spec.n = N;
    assert_int_equal(sampler_row_init(&b, &spec, 2003, NULL), 0);
    assert_int_equal(a.n_counts, b.n_counts);
    assert_memory_equal(a.counts, b.counts, a.n_counts * sizeof *a.counts);
    u32 total = 0;
    for (u32 i = 0; i < a.n_counts; i++) total += a.counts[i].n;
    assert_int_equal(total, N - 1000);
    assert_int_equal(a.n_counts, 1002); /* squares modulo a prime */
    sampler_row_release(&a);
    sampler_row_release(&b);
    free(history);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy),       cmocka_unit_test(test_nonfinite),
        cmocka_unit_test(test_bias_allowed), cmocka_unit_test(test_min_tokens),
        cmocka_unit_test(test_penalties),    cmocka_unit_test(test_bad_words),
        cmocka_unit_test(test_row_refused),  cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_exp),          cmocka_unit_test(test_draws),
        cmocka_unit_test(test_draw_edges),   cmocka_unit_test(test_large_vocabulary),
        cmocka_unit_test(test_replay),       cmocka_unit_test(test_counts),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("sampler", tests, NULL, NULL);
}
