/* ops: the kernels. One table of operations; cpu/ implements it for several instruction sets, chosen at run
 * time.
 *
 * Batch invariance: a row of an output depends on that row of the input alone: products add K in order per
 * output column, threads split columns or rows, never K; attention uses fixed KV splits from position 0,
 * merged in ascending order. */
#ifndef MPISERVE_OPS_H
#define MPISERVE_OPS_H

#include "mpiserve/base.h"
#include "mpiserve/model.h"

enum { PANEL = 16 }; /* output columns a panel */

/* A linear layer's weight W [n_out, n_in] in panels of PANEL outputs. For each panel, for each pair of inputs
 * (k, k+1), bf16: 16 x {W[o][k], W[o][k+1]} (u16 pairs, as dot-product instructions want them); f32: 16 x
 * W[o][k], then 16 x W[o][k+1]. n_out is padded to whole panels, n_in to even, with zeros. 64-byte aligned.
 */
struct packed {
    const void *data;
    enum dtype dtype; /* DTYPE_F32 or DTYPE_BF16 */
    u32 n_out, n_in;
};
size_t packed_bytes(enum dtype dtype, u32 n_out, u32 n_in);
/* Packs rows [row0, row0 + n) (src: row-major [n, n_in]; F32, BF16 or F16) into the weight at dst, rounding
 * to nearest even where dtype is narrower. Rows of one weight may come in several calls, in any order and
 * from several threads; the call with the last row also zeroes the padding rows. */
void pack_rows(void *dst, enum dtype dtype, u32 n_out, u32 n_in, u32 row0, u32 n, const void *src,
               enum dtype src_dtype);

/* Conversions of single numbers; exact, or rounded to nearest even. NaN stays NaN. */
static inline float f32_from_bits(u32 bits)
{
    float f;
    __builtin_memcpy(&f, &bits, sizeof f);
    return f;
}
static inline u32 f32_bits(float f)
{
    u32 bits;
    __builtin_memcpy(&bits, &f, sizeof bits);
    return bits;
}
static inline float f32_from_bf16(u16 h)
{
    return f32_from_bits((u32)h << 16);
}
static inline u16 bf16_from_f32(float f)
{
    u32 u = f32_bits(f);
    if ((u & 0x7fffffff) > 0x7f800000) return (u16)(u >> 16 | 0x40);
    return (u16)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
float f32_from_f16(u16 h);

#endif
