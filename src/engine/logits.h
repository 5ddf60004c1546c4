/* logits: passes over one row of logits. Inside the engine room.
 *
 * Every result is the same on every machine: fixed order of sums, no library functions in the loops. A scan comes
 * first; its block maxima let later passes skip what cannot matter. */
#ifndef MPISERVE_ENGINE_LOGITS_H
#define MPISERVE_ENGINE_LOGITS_H

#include "mpiserve/base.h"

enum { LOGIT_BLOCK = 64 };
static inline u32 logit_blocks(u32 n)
{
    return (n + LOGIT_BLOCK - 1) / LOGIT_BLOCK;
}

/* Maxima of all blocks and of the row. False: there is a NaN or +inf, or nothing but -inf. */
bool logits_scan(const float *x, u32 n, float *block_max, float *max);
/* The lowest id whose logit is max. */
u32 logits_first(const float *x, u32 n, const float *block_max, float max);
/* Sum of exp(x - max). */
double logits_sum_exp(const float *x, u32 n, float max);
/* e[i] = exp((x[i] - max) * scale), 0 where that is below floor; sums of all blocks. e has room for whole
 * blocks and is 0 behind n. Returns the sum of all. */
double logits_exp(const float *x, u32 n, float max, float scale, float floor, float *e, float *block_sum);
/* Clears what is below floor; new sums. */
double logits_floor(float *e, u32 n, float floor, float *block_sum);
/* 1 + number of logits before id in the order of keys. */
u32 logits_rank(const float *x, u32 n, u32 id);
float logits_exp_one(float x); /* the same as in the loops; x <= 0 */

/* ---- keys: a logit and its id in one number; larger is better: by logit, then by lower id ---------------------*/
static inline u64 key_of(float x, u32 id)
{
    union {
        float f;
        u32 u;
    } v = {.f = x + 0.0f}; /* -0 and 0 are equal */
    u32 order = v.u & 0x80000000u ? ~v.u : v.u | 0x80000000u;
    return (u64)order << 32 | (0xffffffffu - id);
}
static inline u32 key_id(u64 key)
{
    return 0xffffffffu - (u32)key;
}
static inline bool key_same_logit(u64 a, u64 b)
{
    return a >> 32 == b >> 32;
}
/* A heap with the largest key first, in the memory given. */
void keys_heap(u64 *keys, u32 n);
u64 keys_pop(u64 *keys, u32 *n); /* n > 0 */

/* The k best logits (fewer if there are fewer above -inf), best first, in keys[0..]; with ties also all that are equal to
 * the last. keys holds n, spare holds logit_blocks(n). Returns how many. */
u32 logits_best(const float *x, u32 n, const float *block_max, u32 k, bool ties, u64 *keys, u64 *spare);

#endif
