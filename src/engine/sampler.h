/* sampler: from a row of logits to a token. Inside the engine room.
 *
 * The choice is a pure function of the logits, the row's sampling and history, and the position: a row rebuilt from prompt
 * and emitted tokens goes on with the same draws, in whatever batch, on whatever replica.
 * Life cycle: sampler_new once a thread; sampler_row_init for a sequence (prompt, or prompt + emitted tokens), then for
 * every token sampler_choose, and sampler_row_push when it is appended to the history; sampler_row_release.
 * Thread rule: a sampler is one thread's scratch memory; rows are read by sampler_choose and changed by push, so several
 * threads may choose for several rows at once. */
#ifndef MPISERVE_ENGINE_SAMPLER_H
#define MPISERVE_ENGINE_SAMPLER_H

#include "mpiserve/base.h"
#include "mpiserve/request.h"

/* What a row is made from; the arrays are copied, the history is not kept. */
struct sampler_spec {
    const struct sampling *sampling; /* seed is the sample's own */
    const i32 *history;              /* [n] prompt and emitted tokens */
    u32 prompt_len, n;
    const struct token_bias *bias;
    const i32 *allowed, *bad_words, *eos_ids, *stop_ids; /* as in struct request */
    u32 n_bias, n_allowed, n_bad_words, n_eos_ids, n_stop_ids;
};
struct token_count {
    i32 id;
    u32 n; /* times in the output; 0: in the prompt only */
};
struct sampler_row {
    struct sampling sampling;
    u32 prompt_len;
    struct token_bias *bias;
    i32 *allowed, *bad_words, *ends; /* ends: eos_ids and stop_ids */
    u32 n_bias, n_allowed, n_bad_words, n_ends;
    bool penalties;
    struct token_count *counts; /* distinct tokens in order of appearance */
    u32 n_counts, cap_counts;
    u32 *table;  /* hash of an id -> 1 + index into counts; 0: free; 2 * cap_counts slots */
    void *lists; /* memory of the lists */
};
/* ERR_PEER for ids outside [0, vocab), malformed bad_words, prompt_len > n. */
int sampler_row_init(struct sampler_row *r, const struct sampler_spec *spec, u32 vocab, struct error *err);
void sampler_row_push(struct sampler_row *r, i32 token); /* a new output token, in [0, vocab) */
void sampler_row_release(struct sampler_row *r);         /* {0} and released rows are fine too */

struct sampler;
struct sampler *sampler_new(u32 vocab);
size_t sampler_bytes(u32 vocab); /* that sampler_new allocates */
void sampler_free(struct sampler *s);

enum sampler_state {
    SAMPLER_OK,
    SAMPLER_NONFINITE, /* NaN or +inf among the logits, or nothing but -inf */
    SAMPLER_NOTHING,   /* bias, allowed, min_tokens and bad words leave no token */
};
struct choice {
    enum sampler_state state;
    i32 token;      /* -1 unless OK */
    u32 n_logprobs; /* entries written: the chosen token, then the best */
};
/* What a draw depends on, for samplers that work elsewhere (device_sampler.h). position: of the token chosen, as n below. */
double sampler_uniform(const struct sampler_row *r, u32 position); /* in (0, 1) */
float sampler_scale(const struct sampling *p); /* 1 / temperature; 0: the best token, no draw */
double sampler_drop(const struct sampling *p); /* the share of the mass that top_p drops; 0: none */
bool sampler_ends_masked(const struct sampler_row *r, u32 n);
bool sampler_changes(const struct sampler_row *r, u32 n); /* anything but the draw: bias, penalties, masks */
/* Tokens that would complete a bad word; returns how many, at most n_bad_words / 2. */
u32 sampler_forbidden(const struct sampler_row *r, const i32 *history, u32 n, i32 *out);

/* logits: [vocab], read only. history: [n]; the token chosen is the one at position n. grammar: a bit a token, those
 * that are 0 are forbidden; NULL: all allowed. logprobs: room for 1 + sampling.n_logprobs entries (n_logprobs more than the
 * vocabulary: 1 + vocab), or NULL if n_logprobs is -1; natural, of the distribution after the grammar and before all else; best
 * first, ties by lower id, rank = place in that order from 1. */
struct choice sampler_choose(struct sampler *s, const struct sampler_row *r, const float *logits,
                             const i32 *history, u32 n, const u32 *grammar, struct token_logprob *logprobs);

#endif
