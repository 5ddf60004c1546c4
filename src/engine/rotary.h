/* rotary: the frequencies by which rows are rotated. Inside the engine room. */
#ifndef MPISERVE_ENGINE_ROTARY_H
#define MPISERVE_ENGINE_ROTARY_H

#include "mpiserve/model.h"

struct rotary {
    const struct rope_config *config;
    float *inv; /* [dims/2]; where it depends on lengths: [rows, dims/2] */
    bool varies;
    u32 last; /* the length of the row before */
};
/* Numbers of inv for so many rows. */
static inline bool rotary_varies(const struct rope_config *c)
{
    return c->kind == ROPE_DYNAMIC || c->kind == ROPE_LONGROPE;
}
static inline size_t rotary_size(const struct rope_config *c, u32 rows)
{
    return (rotary_varies(c) ? rows : 1) * (size_t)(c->dims / 2);
}
/* inv: rotary_size numbers. */
void rotary_init(struct rotary *r, const struct rope_config *config, float *inv);
/* The row is of a token at position pos, in a sequence whose prompt has so many tokens. Rows in order from 0. */
void rotary_row(struct rotary *r, u32 row, u32 pos, u32 prompt);

#endif
