/* The forward pass of several engines (threads here) against the reference checkpoints: the references' tokens with 1, 2, 4 and 8 engines a
 * stage, but for the divisions that a table names; the same bits in every batch, chunking and with more threads; stages change no bit at
 * all. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <math.h>

#include "crew.h"
#include "doubled.h"
#include "made.h"
#include "trace.h"

/* ---- one engine ------------------------------------------------------------------------------------------------*/
struct division {
    const struct reference *ref;
    u32 tp, pp;
    enum compute compute;
    struct trace *trace; /* what the sampler gets */
};

static void run_alone(struct runner *r, const struct division *d, bool sampler)
{
    u32 vocab = r->config.vocab;
    for (u32 i = 0; i < PROMPTS; i++) {
        const struct prompt *p = &d->ref->prompts[i];
        float *rows = d->trace->logits[i];
        struct fwd_seq all = trace_tokens(r, i, p, 0, p->n);
        const float *got = forward_run_all(r->forward, &all, 1);
        crew_need(got != NULL, forward_error(r->forward));
        if (sampler) memcpy(rows, got, (size_t)p->n * vocab * 4);
        for (u32 step = 0; step + 1 < STEPS; step++) {
            struct fwd_seq one = trace_tokens(r, i, p, p->n + step, 1);
            got = forward_run(r->forward, &one, 1);
            crew_need(got != NULL, forward_error(r->forward));
            if (sampler) memcpy(rows + (p->n + step) * (size_t)vocab, got, vocab * 4);
        }
    }
}

/* Prompts in chunks, then the continuation, all four in every step; the sampler finds the bits of run_alone. */
static void run_together(struct runner *r, const struct division *d, bool sampler, u32 chunk)
{
    u32 vocab = r->config.vocab, done[PROMPTS] = {0}, who[PROMPTS], n;
    struct fwd_seq seqs[PROMPTS];
    while ((n = trace_step(r, d->ref, chunk, done, seqs, who))) {
        const float *logits = forward_run(r->forward, seqs, n);
        crew_need(logits != NULL, forward_error(r->forward));
        for (u32 k = 0; k < n && sampler; k++)
            crew_need(!memcmp(logits + (size_t)k * vocab, trace_row(d->trace, who[k], done[who[k]], vocab),
                              vocab * 4),
                      NULL);
    }
}

static void engine(struct coll_world *w, u32 me, void *arg)
{
    const struct division *d = arg;
    struct runner *r = malloc(sizeof *r);
    runner_load_part(r, d->ref->dir, d->tp, d->pp, me % d->tp, me / d->tp);
    r->all = coll_all(w);
    r->stage = coll_stage(w);
    bool sampler = shard_last(&r->shard) && r->shard.tp_rank == 0;
    runner_start(r, ops_cpu_best(), d->compute, 1, 256);
    run_alone(r, d, sampler);
    static const u32 chunks[] = {LONGEST, 16, 3};
    for (u32 i = 0; i < COUNT_OF(chunks); i++) run_together(r, d, sampler, chunks[i]);
    runner_start(r, ops_cpu_best(), d->compute, 2, 16); /* steps cut to sixteen tokens by the forward pass */
    run_together(r, d, sampler, 4);
    runner_unload(r);
    free(r);
}

/* ---- divisions -------------------------------------------------------------------------------------------------*/
static void check_tokens(const struct reference *ref, const struct trace *t, u32 vocab)
{
    for (u32 i = 0; i < PROMPTS; i++) {
        const struct prompt *p = &ref->prompts[i];
        for (u32 step = 0; step < STEPS; step++)
            assert_int_equal(best_token(t->logits[i] + (size_t)(p->n - 1 + step) * vocab, vocab),
                             p->greedy[step]);
    }
}

static void run_division(struct division *d, const char *nodes)
{
    struct crew c = {.shape = crew_shape(d->tp, d->pp, nodes), .fn = engine, .arg = d};
    crew_run(&c);
}

/* Other sums, and nothing else: a scale of the wrong block is far more. */
static void assert_near(const struct reference *ref, const struct trace *a, const struct trace *b, u32 vocab)
{
    for (u32 i = 0; i < PROMPTS; i++)
        for (size_t k = 0; k < trace_rows(&ref->prompts[i]) * vocab; k++)
            if (!(fabsf(a->logits[i][k] - b->logits[i][k]) <= 1e-3f))
                fail_msg("prompt %u, logit %zu: %g, not %g", i, k, (double)b->logits[i][k],
                         (double)a->logits[i][k]);
}

/* Where these and more engines cannot share a checkpoint, or one with twice its heads. */
static const struct {
    const char *folder;
    u32 tp;
    const char *why;
} refused[] = {
    {"olmo2", 2, "norms q and k over all heads"},
    {"qwen3_fp8block", 8, "8 engines cannot share the 4 attention heads"}, /* codes: heads are not doubled */
    {"qwen3_awq", 8, "8 engines cannot share the 4 attention heads"},
    {"deepseek_v3_fp8block", 8, "8 engines cannot share the 4 attention heads"},
};

static const char *refusal(const char *folder, u32 tp)
{
    for (size_t i = 0; i < COUNT_OF(refused); i++)
        if (!strcmp(refused[i].folder, folder) && tp >= refused[i].tp) return refused[i].why;
    return NULL;
}

/* Eight engines for a model with four heads: the same model with each of them twice. */
static void run_doubled(const struct reference *ref, const struct trace *whole, u32 vocab)
{
    struct reference twice = *ref;
    struct doubled doubled;
    struct trace eight;
    doubled_make(&doubled, &twice);
    trace_alloc(&eight, &twice, vocab);
    struct division d = {.ref = &twice, .tp = 8, .pp = 1, .compute = COMPUTE_F32, .trace = &eight};
    run_division(&d, NULL);
    check_tokens(&twice, &eight, vocab);
    assert_near(&twice, whole, &eight, vocab);
    trace_free(&eight);
    made_drop(&doubled.to);
}

/* Whether the checkpoint itself is for so many engines. */
static bool divides(const char *folder, const struct reference *ref, const struct model_config *c, u32 tp,
                    const struct trace *whole)
{
    struct shard part;
    struct error err;
    const char *why = refusal(folder, tp);
    int rc = shard_of(&part, c, tp, 1, 0, 0, &err);
    if (!rc) {
        assert_null(why);
    } else if (why) {
        assert_non_null(strstr(err.message, why));
        printf("# not tested: %s, -tp %u: %s\n", folder, tp, why);
    } else {
        assert_true(tp == 2 * c->heads);
        printf("# with twice the heads: %s, -tp %u\n", folder, tp);
        run_doubled(ref, whole, c->vocab);
    }
    return !rc;
}

static void test_folder(void **state)
{
    struct reference ref;
    struct model_config config;
    struct error err;
    struct trace whole;
    reference_read(&ref, *state);
    runner_need(!model_read_config(ref.dir, &config, &err), &err);
    trace_alloc(&whole, &ref, config.vocab);
    for (u32 tp = 1; tp <= 8; tp *= 2) {
        if (!divides(*state, &ref, &config, tp, &whole)) continue;
        for (enum compute compute = COMPUTE_F32; compute <= COMPUTE_BF16; compute++) {
            struct trace one, two;
            trace_alloc(&one, &ref, config.vocab);
            trace_alloc(&two, &ref, config.vocab);
            struct division d = {.ref = &ref, .tp = tp, .pp = 1, .compute = compute, .trace = &one};
            run_division(&d, NULL);
            if (compute == COMPUTE_F32) {
                check_tokens(&ref, &one, config.vocab);
                for (u32 i = 0; tp == 1 && i < PROMPTS; i++)
                    memcpy(whole.logits[i], one.logits[i], trace_rows(&ref.prompts[i]) * config.vocab * 4);
                assert_near(&ref, &whole, &one, config.vocab);
            }
            d.pp = 2;
            d.trace = &two;
            if (tp <= 4) run_division(&d, NULL);
            if (tp <= 4) assert_same(&ref, &one, &two, config.vocab);
            trace_free(&one);
            trace_free(&two);
        }
    }
    trace_free(&whole);
    reference_release(&ref);
}

/* ---- models made here: biases on everything, layers that differ, odd sizes, three and six engines --------------*/
static const char *const made_configs[] = {
    "{\"model_type\":\"llama\",\"hidden_size\":30,\"num_hidden_layers\":4,\"num_attention_heads\":6,"
    "\"num_key_value_heads\":3,\"head_dim\":8,\"vocab_size\":66,\"intermediate_size\":42,"
    "\"max_position_embeddings\":256,\"attention_bias\":true,\"mlp_bias\":true,\"tie_word_embeddings\":true}",
    "{\"model_type\":\"qwen2\",\"hidden_size\":48,\"num_hidden_layers\":5,\"num_attention_heads\":6,"
    "\"num_key_value_heads\":1,\"vocab_size\":78,\"intermediate_size\":30,\"sliding_window\":24,"
    "\"use_sliding_window\":true,\"max_window_layers\":2,\"max_position_embeddings\":256,"
    "\"tie_word_embeddings\":false}",
};

static void made_prompts(struct reference *ref, const char *dir, u32 vocab)
{
    snprintf(ref->dir, sizeof ref->dir, "%s", dir);
    for (u32 i = 0; i < PROMPTS; i++) {
        struct prompt *p = &ref->prompts[i];
        p->n = 1 + i * 30;
        for (u32 k = 0; k < LONGEST; k++) p->ids[k] = (i32)((k * 31 + i * 17 + k * k) % vocab);
        for (u32 k = 0; k < STEPS; k++) p->greedy[k] = (i32)((k * 13 + i) % vocab);
    }
}

static void test_made(void **state)
{
    (void)state;
    static const u32 tps[] = {1, 2, 3, 6};
    for (size_t k = 0; k < COUNT_OF(made_configs); k++) {
        static struct reference ref;
        struct model_config config;
        struct made made;
        struct error err;
        struct trace whole, one, two;
        u32 compared = 0;
        made_model(&made, made_configs[k]);
        runner_need(!model_read_config(made.dir, &config, &err), &err);
        made_prompts(&ref, made.dir, config.vocab);
        trace_alloc(&whole, &ref, config.vocab);
        trace_alloc(&one, &ref, config.vocab);
        trace_alloc(&two, &ref, config.vocab);
        for (size_t i = 0; i < COUNT_OF(tps); i++) {
            struct shard part;
            struct division d = {.ref = &ref, .tp = tps[i], .pp = 1, .trace = i ? &one : &whole};
            if (shard_of(&part, &config, d.tp, 1, 0, 0, &err)) continue;
            compared++;
            run_division(&d, NULL);
            if (i) assert_near(&ref, &whole, &one, config.vocab);
            const struct trace *same = d.trace;
            d.trace = &two;
            d.pp = d.tp > 2 ? 1 : 3; /* stages of different lengths */
            run_division(&d, NULL);
            assert_same(&ref, same, &two, config.vocab);
        }
        assert_true(compared >= 3);
        trace_free(&whole);
        trace_free(&one);
        trace_free(&two);
        made_drop(&made);
    }
}

/* Over nodes: other transports, the same bits. */
static void test_nodes(void **state)
{
    struct reference ref;
    struct trace one, two;
    (void)state;
    reference_read(&ref, folders[4]);
    u32 vocab = 320;
    trace_alloc(&one, &ref, vocab);
    trace_alloc(&two, &ref, vocab);
    struct division d = {.ref = &ref, .tp = 2, .pp = 2, .compute = COMPUTE_F32, .trace = &one};
    run_division(&d, NULL);
    d.trace = &two;
    run_division(&d, "0011"); /* a stage a node */
    assert_same(&ref, &one, &two, vocab);
    run_division(&d, "0101"); /* stages over nodes */
    assert_same(&ref, &one, &two, vocab);
    trace_free(&one);
    trace_free(&two);
    reference_release(&ref);
}

/* ---- what cannot be divided ------------------------------------------------------------------------------------*/
static void test_refused(void **state)
{
    (void)state;
    struct model_config c = {.dir = "m", .heads = 12, .kv_heads = 4, .ffn = 96, .vocab = 480, .layers = 3};
    struct shard s;
    struct error err;
    static const struct {
        u32 tp, pp;
        const char *words;
    } cases[] = {
        {1, 1, NULL},
        {2, 3, NULL},
        {4, 1, NULL},
        {12, 1, NULL}, /* three engines for each KV head */
        {5, 1, "5 engines cannot share the 12 attention heads of m evenly"},
        {3, 1, "neither of 3 engines and the 4 KV heads of m divides the other"},
        {6, 1, "neither of 6 engines and the 4 KV heads of m divides the other"},
        {1, 4, "m has 3 layers, fewer than 4 stages"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        int rc = shard_of(&s, &c, cases[i].tp, cases[i].pp, 0, 0, &err);
        assert_int_equal(rc, cases[i].words ? ERR_UNSUPPORTED : 0);
        if (rc) assert_string_equal(err.message, cases[i].words);
    }
    c.ffn = 98;
    assert_int_equal(shard_of(&s, &c, 4, 1, 0, 0, &err), ERR_UNSUPPORTED);
    assert_string_equal(err.message, "4 engines cannot share the 98 ffn columns of m evenly");
    c.ffn = 96;
    c.vocab = 481;
    assert_int_equal(shard_of(&s, &c, 2, 1, 0, 0, &err), ERR_UNSUPPORTED);
    assert_string_equal(err.message, "2 engines cannot share the 481 vocabulary entries of m evenly");
}

/* Every head, column, entry and layer belongs to somebody; KV heads go with the query heads that use them. */
static void test_cover(void **state)
{
    (void)state;
    struct model_config c = {.dir = "m", .heads = 48, .kv_heads = 8, .ffn = 960, .vocab = 4800, .layers = 11};
    struct error err;
    static const u32 tps[] = {1, 2, 4, 8, 16, 24, 48};
    for (size_t i = 0; i < COUNT_OF(tps); i++)
        for (u32 pp = 1; pp <= 11; pp++) {
            u32 layers = 0, heads = 0, before = UINT32_MAX;
            for (u32 stage = 0; stage < pp; stage++) {
                struct shard s;
                assert_int_equal(shard_of(&s, &c, tps[i], pp, 0, stage, &err), 0);
                assert_int_equal(s.layers.first, layers);
                assert_true(s.layers.n >= 1 && s.layers.n <= before && s.layers.n + 1 >= c.layers / pp);
                before = s.layers.n;
                layers += s.layers.n;
            }
            assert_int_equal(layers, c.layers);
            for (u32 rank = 0; rank < tps[i]; rank++) {
                struct shard s;
                assert_int_equal(shard_of(&s, &c, tps[i], pp, rank, 0, &err), 0);
                assert_int_equal(s.heads.first, heads);
                for (u32 h = 0; h < s.heads.n;
                     h++) /* a head finds its KV head as it would in the whole model */
                    assert_int_equal(s.kv_heads.first + h / (s.heads.n / s.kv_heads.n), (heads + h) / 6);
                heads += s.heads.n;
                assert_int_equal(s.ffn.first, rank * s.ffn.n);
                assert_int_equal(s.vocab.first, rank * s.vocab.n);
                assert_int_equal(s.ffn.n * tps[i], c.ffn);
                assert_int_equal(s.vocab.n * tps[i], c.vocab);
            }
            assert_int_equal(heads, c.heads);
        }
}

int main(void)
{
    struct CMUnitTest tests[COUNT_OF(folders) + 4] = {
        cmocka_unit_test(test_refused), cmocka_unit_test(test_cover), cmocka_unit_test(test_nodes),
        cmocka_unit_test(test_made)};
    for (u32 i = 0; i < COUNT_OF(folders); i++)
        tests[4 + i] =
            (struct CMUnitTest){folders[i], test_folder, NULL, NULL, (void *)(uintptr_t)folders[i]};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("parallel", tests, NULL, NULL);
}
