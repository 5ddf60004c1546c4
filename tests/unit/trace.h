/* What the forward pass makes of a reference checkpoint: the logits of its prompts and their continuations, to be compared to the bit. */
#ifndef MPISERVE_TESTS_TRACE_H
#define MPISERVE_TESTS_TRACE_H

#include "reference.h"

static const char *const folders[] = {"llama_tied_llama3",
                                      "llama_untied_sharded",
                                      "llama_v5style",
                                      "llama_dynamic",
                                      "mistral_swa16",
                                      "qwen2_bias",
                                      "qwen3_headdim32",
                                      "qwen3_fp8block",
                                      "gemma2",
                                      "gemma3_text",
                                      "phi3_swa",
                                      "phi3_longrope_partial",
                                      "olmo2",
                                      "mixtral",
                                      "qwen2_moe",
                                      "qwen3_moe",
                                      "qwen3_moe_v5fused",
                                      "deepseek_v2_lite",
                                      "deepseek_v2",
                                      "deepseek_v3",
                                      "deepseek_v3_noqlora",
                                      "gpt_oss",
                                      "qwen3_awq",
                                      "llama_gptq",
                                      "llama_gptq_v2",
                                      "llama_gptq_act",
                                      "llama_gptq_act8",
                                      "deepseek_v3_fp8block",
                                      "gpt_oss_mxfp4"};
struct trace { /* all logits of a prompt and its continuation: [n + STEPS - 1, vocab] each */
    float *logits[PROMPTS];
};

static inline size_t trace_rows(const struct prompt *p)
{
    return p->n + STEPS - 1;
}

static inline void trace_alloc(struct trace *t, const struct reference *ref, u32 vocab)
{
    for (u32 i = 0; i < PROMPTS; i++) t->logits[i] = calloc(trace_rows(&ref->prompts[i]) * vocab, 4);
}

static inline void trace_free(struct trace *t)
{
    for (u32 i = 0; i < PROMPTS; i++) free(t->logits[i]);
}

static inline void assert_same(const struct reference *ref, const struct trace *a, const struct trace *b,
                               u32 vocab)
{
    for (u32 i = 0; i < PROMPTS; i++)
        assert_memory_equal(a->logits[i], b->logits[i], trace_rows(&ref->prompts[i]) * vocab * 4);
}

/* Tokens [at, at + n) of a prompt and its continuation, with the blocks of sequence s. */
static inline struct fwd_seq trace_tokens(const struct runner *r, u32 s, const struct prompt *p, u32 at,
                                          u32 n)
{
    struct fwd_seq q = runner_seq(r, s, at < p->n ? p->ids + at : p->greedy + (at - p->n), at, n);
    q.prompt = p->n;
    return q;
}

/* The next step of prompts in chunks, then their continuations, all of them in every step; prompt i in the blocks of PROMPTS + i.
 * done: tokens of each, moved on; who: of each sequence, its prompt. Returns the number of sequences, 0 at the end. */
static inline u32 trace_step(const struct runner *r, const struct reference *ref, u32 chunk, u32 *done,
                             struct fwd_seq *seqs, u32 *who)
{
    u32 n = 0;
    for (u32 i = 0; i < PROMPTS; i++) {
        const struct prompt *p = &ref->prompts[i];
        u32 at = done[i], take = at < p->n ? MIN_OF(chunk, p->n - at) : at < trace_rows(p);
        if (!take) continue;
        seqs[n] = trace_tokens(r, PROMPTS + i, p, at, take);
        who[n++] = i;
        done[i] += take;
    }
    return n;
}

/* The logits behind the last token of so many. */
static inline const float *trace_row(const struct trace *t, u32 prompt, u32 done, u32 vocab)
{
    return t->logits[prompt] + (size_t)(done - 1) * vocab;
}

#endif
