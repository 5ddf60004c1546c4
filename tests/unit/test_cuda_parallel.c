/* The forward pass of several engines with a GPU each (emulated, a process for each engine) against the reference checkpoints: at f32 their
 * logits and greedy continuations, and the same bits in every batch and chunking; at bf16 and f16 what the shorter numbers allow. The same
 * bits in other orders of threads, and with stages. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "cuda_crew.h"
#include "cuda_runner.h"
#include "reference.h"
#include "wide.h"

static const char *const folders[] = {
    "llama_tied_llama3", "llama_untied_sharded", "mistral_swa16", "qwen2_bias",
    "qwen3_headdim32",   "llama_dynamic",        "gemma2",        "gemma3_text",
    "phi3_swa",          "qwen3_fp8block",       "qwen3_awq",     "llama_gptq",
    "mixtral",           "deepseek_v3"};
static const char *const widened[] = {"qwen3_moe", "gpt_oss"};
enum { USED = 3 /* prompts */, MOST_TOKENS = 64 };

struct division {
    const struct reference *ref;
    u32 tp, pp;
    enum compute compute;
    u64 order;
    u32 vocab;
    bool may_be_off; /* OFF_SHARE of the rows */
    float *trace;    /* of all engines: [USED, LONGEST, vocab], what the sampler gets of each position */
    size_t trace_bytes;
};

static float *trace_row(const struct division *d, u32 prompt, u32 pos)
{
    return d->trace + ((size_t)prompt * LONGEST + pos) * d->vocab;
}

/* Rows of logits at the sampler, on the host; the others' part of the step is done. */
static const float *fetch(struct cuda_runner *c, const float *logits, size_t rows)
{
    static float host[MOST_TOKENS * 1024];
    struct error err = {0};
    crew_need(logits != NULL, forward_error(c->r.forward));
    if (shard_last(&c->r.shard) && c->r.shard.tp_rank == 0) {
        crew_need(rows * c->r.config.vocab <= COUNT_OF(host), NULL);
        cuda_fetch(c->device, host, logits, rows * c->r.config.vocab * sizeof *host);
    } else {
        crew_need(!device_finish(c->device, &err), &err);
    }
    return host;
}

static void run_alone(struct cuda_runner *c, const struct division *d, bool sampler)
{
    for (u32 i = 0; i < USED; i++) {
        const struct prompt *p = &d->ref->prompts[i];
        struct fwd_seq all = runner_seq(&c->r, i, p->ids, 0, p->n);
        all.prompt = p->n;
        const float *rows = fetch(c, forward_run_all(c->r.forward, &all, 1), p->n);
        if (sampler) memcpy(trace_row(d, i, 0), rows, (size_t)p->n * d->vocab * sizeof *rows);
        for (u32 step = 0; step + 1 < STEPS; step++) {
            struct fwd_seq one = runner_seq(&c->r, i, &p->greedy[step], p->n + step, 1);
            one.prompt = p->n;
            rows = fetch(c, forward_run(c->r.forward, &one, 1), 1);
            if (sampler) memcpy(trace_row(d, i, p->n + step), rows, d->vocab * sizeof *rows);
        }
    }
}

/* Rows that were compared, and those that are not near. */
struct judged {
    u32 all, off;
};

static bool near(struct judged *j, const float *a, const float *b, u32 n, double most)
{
    bool fine = true;
    for (u32 i = 0; i < n && fine; i++) fine = fabs((double)a[i] - b[i]) <= most;
    j->all++;
    j->off += !fine;
    return fine;
}

static bool few_off(const struct division *d, const struct judged *j)
{
    return j->off <= (d->may_be_off ? OFF_SHARE * j->all : 0);
}

/* All prompts in every step, so many tokens at a time: the bits of run_alone at f32; else single tokens have another kernel for
 * attention than prompts, on one GPU, too. */
static void run_together(struct cuda_runner *c, const struct division *d, bool sampler, u32 chunk)
{
    u32 done[USED] = {0};
    struct judged judged = {0};
    for (;;) {
        struct fwd_seq seqs[USED];
        u32 n = 0, who[USED];
        for (u32 i = 0; i < USED; i++) {
            const struct prompt *p = &d->ref->prompts[i];
            u32 at = done[i], take = at < p->n ? MIN_OF(chunk, p->n - at) : at < p->n + STEPS - 1;
            if (!take) continue;
            seqs[n] =
                runner_seq(&c->r, USED + i, at < p->n ? p->ids + at : p->greedy + (at - p->n), at, take);
            seqs[n].prompt = p->n;
            done[i] += take;
            who[n++] = i;
        }
        if (!n) break;
        const float *rows = fetch(c, forward_run(c->r.forward, seqs, n), n);
        for (u32 k = 0; k < n && sampler; k++)
            near(&judged, rows + (size_t)k * d->vocab, trace_row(d, who[k], done[who[k]] - 1), d->vocab,
                 d->compute ? tolerances[d->compute] : 0);
    }
    crew_need(few_off(d, &judged), NULL);
}

static void engine(struct cuda_member *m, void *arg)
{
    const struct division *d = arg;
    struct cuda_runner c;
    struct error err = {0};
    cudasim_order(d->order ? d->order + m->me : 0);
    if (d->tp * d->pp > 1) crew_need(!cuda_connect(m, 0, &err), &err);
    const struct cuda_part part = {d->tp, d->pp, m->me, m->device, m->world, m->gpus, NULL};
    cuda_runner_start_part(&c, d->ref->dir, d->compute, MOST_TOKENS, &part);
    bool sampler = shard_last(&c.r.shard) && c.r.shard.tp_rank == 0;
    run_alone(&c, d, sampler);
    run_together(&c, d, sampler, 17);
    cuda_runner_stop_part(&c);
}

static void division_start(struct division *d, const struct reference *ref, u32 tp, u32 pp,
                           enum compute compute, u64 order)
{
    struct model_config config = reference_config(ref);
    *d = (struct division){ref, tp, pp, compute, order, config.vocab, false, NULL, 0};
    d->may_be_off = compute != COMPUTE_F32 && config.moe.experts;
    d->trace_bytes = (size_t)USED * LONGEST * d->vocab * sizeof *d->trace;
    d->trace = cuda_crew_memory(d->trace_bytes);
    struct crew c = {.shape = crew_shape(tp, pp, NULL), .arg = d};
    cuda_crew_run(&c, engine);
}

static void division_drop(struct division *d)
{
    munmap(d->trace, d->trace_bytes);
}

static void assert_reference(const struct division *d)
{
    double most = tolerances[d->compute];
    struct judged judged = {0};
    for (u32 i = 0; i < USED; i++) {
        const struct prompt *p = &d->ref->prompts[i];
        const float *wanted = stored(d->ref, "logits", i, (size_t)p->n * d->vocab);
        for (u32 pos = 0; pos < p->n; pos++)
            if (!near(&judged, trace_row(d, i, pos), wanted + (size_t)pos * d->vocab, d->vocab, most) &&
                !d->may_be_off)
                fail_msg("prompt %u: logits of position %u are off", i, pos);
        for (u32 step = 0; step < STEPS; step++) {
            const float *row = trace_row(d, i, p->n - 1 + step);
            i32 best = best_token(row, d->vocab);
            if (d->compute == COMPUTE_F32) assert_int_equal(best, p->greedy[step]);
            judged.all++;
            judged.off += !((double)row[best] - row[p->greedy[step]] <= 2 * most);
        }
    }
    if (judged.off)
        print_message("# %s at %s: %u of %u rows are off\n", d->ref->dir,
                      dtype_name(compute_dtype(d->compute)), judged.off, judged.all);
    assert_true(few_off(d, &judged));
}

static void assert_same(const struct division *a, const struct division *b)
{
    for (u32 i = 0; i < USED; i++)
        assert_memory_equal(trace_row(a, i, 0), trace_row(b, i, 0),
                            (a->ref->prompts[i].n + STEPS - 1) * (size_t)a->vocab * sizeof(float));
}

static void check_model(const struct reference *ref, u32 tp, enum compute compute, u64 order)
{
    struct division d;
    division_start(&d, ref, tp, 1, compute, order);
    assert_reference(&d);
    division_drop(&d);
}

static void check_folder(const char *name, u32 tp, enum compute compute, u64 order)
{
    struct reference ref;
    reference_read(&ref, name);
    check_model(&ref, tp, compute, order);
    reference_release(&ref);
}

static void test_two(void **state)
{
    bool coded = strstr(*state, "fp8") || strstr(*state, "awq") || strstr(*state, "gptq");
    check_folder(*state, 2, COMPUTE_F32, 0);
    if (!coded) check_folder(*state, 2, strlen(*state) % 2 ? COMPUTE_BF16 : COMPUTE_F16, 1);
}

/* Half of 24 columns is no multiple of 8: refused as that; the same model with more columns, of which the second engine has some that are
 * zeros, is not. */
static void test_wide(void **state)
{
    struct reference ref;
    struct wide w;
    struct error err = {0};
    reference_read(&ref, *state);
    struct model_config c = reference_config(&ref);
    struct forward_spec spec = {.config = &c};
    runner_need(!shard_of(&spec.shard, &c, 2, 1, 0, 0, &err), &err);
    assert_int_equal(forward_check_device(&spec, &err), ERR_UNSUPPORTED);
    assert_string_equal(err.message, "12 for an engine: on devices it has to be a multiple of 8");
    wide_make(&w, &ref, c.moe.ffn, 32);
    check_model(&ref, 2, COMPUTE_F32, 0);
    check_model(&ref, 2, COMPUTE_BF16, 1);
    made_drop(&w.to);
    reference_release(&ref);
}

/* More engines than KV heads: some have the same one. */
static void test_four(void **state)
{
    (void)state;
    check_folder("llama_tied_llama3", 4, COMPUTE_F32, 5);
}

/* Stages hand the stream on as it is; nor does the order of threads make a difference. */
static void test_stages(void **state)
{
    static const struct {
        u32 tp, pp, other_pp;
    } all[] = {{1, 1, 2}, {2, 1, 2}};
    struct reference ref;
    (void)state;
    reference_read(&ref, "qwen2_bias");
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        struct division one, other;
        division_start(&one, &ref, all[i].tp, all[i].pp, COMPUTE_BF16, 0);
        assert_reference(&one);
        division_start(&other, &ref, all[i].tp, all[i].other_pp, COMPUTE_BF16, 3);
        assert_same(&one, &other);
        division_drop(&one);
        division_drop(&other);
    }
    reference_release(&ref);
}

/* ---- steps of more tokens than a chunk, and sums that are made in slices: the bits of small steps ----------------*/
enum { LONG = 700, SEQS = 3, SMALL = 100 };

static void fill_tokens(i32 *tokens, u32 seq, u32 vocab)
{
    for (u32 i = 0; i < LONG; i++) tokens[i] = (i32)((i * 31 + seq * 17 + i * i) % vocab);
}

static void long_steps(struct cuda_member *m, void *arg)
{
    const struct division *d = arg;
    struct cuda_runner c;
    struct error err = {0};
    static i32 tokens[SEQS][LONG];
    static float once[SEQS * 1024];
    crew_need(!cuda_connect(m, 0, &err), &err);
    const struct cuda_part part = {d->tp, d->pp, m->me, m->device, m->world, m->gpus, NULL};
    cuda_runner_start_part(&c, d->ref->dir, COMPUTE_F32, SEQS * LONG, &part);
    bool sampler = shard_last(&c.r.shard) && c.r.shard.tp_rank == 0;
    struct fwd_seq seqs[SEQS];
    for (u32 i = 0; i < SEQS; i++) {
        fill_tokens(tokens[i], i, d->vocab);
        seqs[i] = runner_seq(&c.r, i, tokens[i], 0, LONG);
    }
    memcpy(once, fetch(&c, forward_run(c.r.forward, seqs, SEQS), SEQS), SEQS * d->vocab * sizeof *once);
    for (u32 i = 0; i < SEQS; i++)
        for (u32 at = 0; at < LONG; at += SMALL) {
            seqs[i] = runner_seq(&c.r, SEQS + i, tokens[i] + at, at, SMALL);
            const float *row = fetch(&c, forward_run(c.r.forward, &seqs[i], 1), 1);
            if (sampler && at + SMALL == LONG)
                crew_need(!memcmp(row, once + i * d->vocab, d->vocab * sizeof *row), NULL);
        }
    cuda_runner_stop_part(&c);
}

static void test_long_steps(void **state)
{
    struct reference ref;
    (void)state;
    reference_read(&ref, "llama_tied_llama3");
    struct division d = {.ref = &ref, .tp = 2, .pp = 2, .vocab = reference_config(&ref).vocab};
    struct crew c = {.shape = crew_shape(2, 2, NULL), .arg = &d};
    cuda_crew_run(&c, long_steps);
    reference_release(&ref);
}

/* Parts whose sizes the kernels cannot take are refused by size. */
static void test_refused(void **state)
{
    struct error err = {0};
    struct reference ref;
    (void)state;
    reference_read(&ref, folders[0]);
    struct model_config c = reference_config(&ref);
    struct forward_spec spec = {.config = &c};
    runner_need(!shard_of(&spec.shard, &c, 2, 1, 0, 0, &err), &err);
    assert_int_equal(forward_check_device(&spec, &err), 0);
    spec.shard.ffn.n = 12;
    assert_int_equal(forward_check_device(&spec, &err), ERR_UNSUPPORTED);
    assert_string_equal(err.where, "intermediate_size");
    assert_string_equal(err.message, "12 for an engine: on devices it has to be a multiple of 8");
    reference_release(&ref);
}

int main(void)
{
    struct CMUnitTest tests[COUNT_OF(folders) + COUNT_OF(widened) + 4] = {
        cmocka_unit_test(test_four), cmocka_unit_test(test_stages), cmocka_unit_test(test_long_steps),
        cmocka_unit_test(test_refused)};
    u32 n = 4;
    for (u32 i = 0; i < COUNT_OF(folders); i++)
        tests[n++] = (struct CMUnitTest){folders[i], test_two, NULL, NULL, (void *)(uintptr_t)folders[i]};
    for (u32 i = 0; i < COUNT_OF(widened); i++)
        tests[n++] = (struct CMUnitTest){widened[i], test_wide, NULL, NULL, (void *)(uintptr_t)widened[i]};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("cuda_parallel", tests, NULL, NULL);
}
