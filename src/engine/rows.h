/* rows: the engine's row table: tokens, block table and sampler state of each running sequence. A cache: seq_new
 * rebuilds a row exactly. A step is checked whole against the table before anything changes. */
#ifndef MPISERVE_ENGINE_ROWS_H
#define MPISERVE_ENGINE_ROWS_H

#include "engine/sampler.h"
#include "mpiserve/step.h"

struct rows_limits {
    u32 max_rows, max_step_tokens, max_model_len, max_logprobs;
    u32 block_size, n_blocks, vocab;
    u32 hidden;           /* numbers of a vector; 0: the model generates, and makes none */
    enum pooling pooling; /* how it makes them */
    bool whole;           /* an encoder: a row is all of its sequence */
    u32 types;            /* of tokens, see seq_new */
    u32 adapters;
};
struct seq_row {
    bool used;
    u8 dead; /* enum result_flags: what its sampling failed with; 0: alive */
    u32 gen, max_len;
    i32 *history; /* [n_tok] */
    u32 n_tok, room;
    u32 *blocks; /* [n_blocks], part of the table's one allocation */
    u32 n_blocks;
    u32 next_pos;  /* where its next row begins; 0: it had none */
    u32 second;    /* see seq_new */
    u32 adapter;   /* 0: none */
    bool pooled;   /* a vector is wanted, no tokens */
    float *vector; /* [hidden], part of the table's one allocation: the sum of the rows so far */
    struct sampler_row sampler;
};
struct rows {
    struct rows_limits limits;
    u32 max_blocks; /* of one row */
    struct seq_row *row;
    u32 *tables;               /* [max_rows, max_blocks] */
    float *vectors;            /* [max_rows, hidden] */
    struct row_shadow *shadow; /* [max_rows]: the table as it would be, while a step is checked */
    u64 stamp;
};
int rows_init(struct rows *t, const struct rows_limits *limits, struct error *err);
void rows_release(struct rows *t);
/* Is the step executable? Changes nothing. */
int rows_check(struct rows *t, const struct step_view *v, struct error *err);
/* A checked step's seq_free and seq_new, then its rows' new blocks. */
int rows_apply(struct rows *t, const struct step_view *v, struct error *err);
/* A token was sampled: it joins the history where max_len allows. */
void rows_append(struct seq_row *r, i32 token);

#endif
