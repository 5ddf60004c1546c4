/* Step frames for tests of the engine: collect, then seal. Arrays are copied when they are named. */
#ifndef MPISERVE_TESTS_STEPPER_H
#define MPISERVE_TESTS_STEPPER_H

#include "mpiserve/step.h"

#include <stdlib.h>
#include <string.h>

enum { STEPPER_MOST = 64 };
struct stepper {
    u32 gen, numerics;
    u64 id; /* of the next step */
    struct seq_free free[STEPPER_MOST];
    struct seq_new new[STEPPER_MOST];
    struct block_op ops[STEPPER_MOST];
    struct row rows[STEPPER_MOST];
    u32 n_free, n_new, n_ops, n_rows, n_tok;
    struct buf data;
};

static inline struct span stepper_put(struct stepper *s, const void *items, u32 n, size_t size)
{
    static const u8 zeros[8];
    struct span span = {(u32)s->data.len, n};
    buf_add(&s->data, items, n * size);
    buf_add(&s->data, zeros, (8 - s->data.len % 8) % 8);
    return span;
}

static inline struct sampling stepper_greedy(void)
{
    return (struct sampling){.top_p = 1, .repetition_penalty = 1, .n_logprobs = -1, .max_tokens = 100000};
}

/* The entry can be changed until the step is sealed. */
static inline struct seq_new *stepper_new(struct stepper *s, u32 row, u32 row_gen,
                                          const struct sampling *sampling, const i32 *tokens, u32 prompt_len,
                                          u32 n_tok, u32 max_len)
{
    struct seq_new *n = &s->new[s->n_new++];
    *n = (struct seq_new){.row = row,
                          .row_gen = row_gen,
                          .request = row,
                          .prompt_len = prompt_len,
                          .n_tok = n_tok,
                          .max_len = max_len,
                          .sampling = *sampling};
    n->tokens = stepper_put(s, tokens, n_tok, sizeof(i32));
    return n;
}

static inline void stepper_free(struct stepper *s, u32 row, u32 row_gen)
{
    s->free[s->n_free++] = (struct seq_free){row, row_gen};
}

static inline struct row *stepper_row(struct stepper *s, u32 row, u32 row_gen, u32 pos, u32 n_tok, u32 want,
                                      const u32 *blocks, u32 n_blocks)
{
    struct row *r = &s->rows[s->n_rows++];
    *r = (struct row){.row = row,
                      .row_gen = row_gen,
                      .pos = pos,
                      .n_tok = (u16)n_tok,
                      .src = SRC_HISTORY,
                      .want = (u8)want,
                      .mask_slot = -1};
    if (n_blocks) r->block_delta[0] = stepper_put(s, blocks, n_blocks, sizeof(u32));
    s->n_tok += n_tok;
    return r;
}

static inline void stepper_op(struct stepper *s, u32 op, u32 src, u32 dst)
{
    s->ops[s->n_ops++] = (struct block_op){.op = (u8)op, .src = src, .dst = dst};
}

/* malloc'd; the stepper is empty again and its id has risen. */
static inline void *stepper_seal(struct stepper *s, u32 kind, size_t *len)
{
    struct step h = {.id = s->id++,
                     .gen = s->gen,
                     .numerics = s->numerics,
                     .kind = (u8)kind,
                     .n_new = s->n_new,
                     .n_free = s->n_free,
                     .n_rows = s->n_rows,
                     .n_ops = s->n_ops,
                     .n_tok = s->n_tok,
                     .data_len = (u32)s->data.len};
    struct step_view v;
    void *frame = mem_alloc(*len = step_frame_bytes(&h));
    step_frame_layout(frame, &h, &v);
    memcpy((void *)v.free, s->free, s->n_free * sizeof(*s->free));
    memcpy((void *)v.new, s->new, s->n_new * sizeof(*s->new));
    memcpy((void *)v.ops, s->ops, s->n_ops * sizeof(*s->ops));
    memcpy((void *)v.rows, s->rows, s->n_rows * sizeof(*s->rows));
    if (s->data.len) memcpy((void *)v.data, s->data.data, s->data.len);
    step_frame_seal(frame);
    s->n_free = s->n_new = s->n_ops = s->n_rows = s->n_tok = 0;
    buf_clear(&s->data);
    return frame;
}

#endif
