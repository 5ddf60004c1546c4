/* vec: sixteen f32 lanes in plain C. See vec_avx512.h: the same bits, on any machine. */
#ifndef MPISERVE_OPS_VEC_H
#define MPISERVE_OPS_VEC_H

#include "mpiserve/ops.h"

typedef struct {
    float v[16];
} vf;
typedef struct {
    u32 v[16];
} vi;

enum { LINEAR_ROWS = 2, SCORE_ROWS = 1, SCORE_TILES = 1, VALUE_ROWS = 1, VALUE_TILES = 1 };
#define LINEAR_PANELS(rows) ((rows)*0 + 1)

#define LANES for (u32 i = 0; i < 16; i++)

#ifdef __FP_FAST_FMAF
static inline float fma1(float a, float b, float c)
{
    return __builtin_fmaf(a, b, c);
}
#else
/* Without the instruction: the product is exact in f64; the sum is rounded to odd there (its error says which way),
 * so that rounding it to f32 is as if from the exact value. */
static inline float fma1(float a, float b, float c)
{
    double p = (double)a * b, s = p + c, back = s - p;
    double error = (p - (s - back)) + (c - back);
    u64 bits;
    __builtin_memcpy(&bits, &s, sizeof bits);
    if ((error < 0 || error > 0) && !(bits & 1)) bits += (error > 0) == (s > 0) ? 1 : -1ull;
    __builtin_memcpy(&s, &bits, sizeof bits);
    return (float)s;
}
#endif

static inline vf vf_set(float x)
{
    vf r;
    LANES r.v[i] = x;
    return r;
}
static inline vf vf_zero(void)
{
    return vf_set(0);
}
static inline vf vf_load(const float *p)
{
    vf r;
    LANES r.v[i] = p[i];
    return r;
}
static inline void vf_store(float *p, vf x)
{
    LANES p[i] = x.v[i];
}
static inline vf vf_load_n(const float *p, u32 n)
{
    vf r;
    LANES r.v[i] = i < n ? p[i] : 0;
    return r;
}
static inline void vf_store_n(float *p, vf x, u32 n)
{
    LANES if (i < n) p[i] = x.v[i];
}
static inline vf vf_add(vf x, vf y)
{
    LANES x.v[i] += y.v[i];
    return x;
}
static inline vf vf_sub(vf x, vf y)
{
    LANES x.v[i] -= y.v[i];
    return x;
}
static inline vf vf_mul(vf x, vf y)
{
    LANES x.v[i] *= y.v[i];
    return x;
}
static inline vf vf_div(vf x, vf y)
{
    LANES x.v[i] /= y.v[i];
    return x;
}
static inline vf vf_max(vf x, vf y)
{
    LANES x.v[i] = x.v[i] > y.v[i] ? x.v[i] : y.v[i];
    return x;
}
static inline vf vf_min(vf x, vf y)
{
    LANES x.v[i] = x.v[i] < y.v[i] ? x.v[i] : y.v[i];
    return x;
}
static inline vf vf_fma(vf x, vf y, vf z)
{
    LANES x.v[i] = fma1(x.v[i], y.v[i], z.v[i]);
    return x;
}
static inline vf vf_exponent(vf x)
{
    LANES x.v[i] = f32_from_bits(f32_bits(x.v[i]) << 23);
    return x;
}
static inline vf vf_select(vf x, vf other, i32 from, i32 to)
{
    LANES x.v[i] = (i32)i >= from && (i32)i < to ? x.v[i] : other.v[i];
    return x;
}
static inline float vf_sum(vf x)
{
    for (u32 half = 8; half; half /= 2)
        for (u32 i = 0; i < half; i++) x.v[i] += x.v[i + half];
    return x.v[0];
}
static inline float vf_largest(vf x)
{
    for (u32 half = 8; half; half /= 2)
        for (u32 i = 0; i < half; i++) x.v[i] = x.v[i] > x.v[i + half] ? x.v[i] : x.v[i + half];
    return x.v[0];
}

static inline vi vi_load(const void *p)
{
    vi r;
    __builtin_memcpy(&r, p, sizeof r);
    return r;
}
static inline vi vi_set(u32 x)
{
    vi r;
    LANES r.v[i] = x;
    return r;
}
static inline vf vf_low(vi x)
{
    vf r;
    LANES r.v[i] = f32_from_bits(x.v[i] << 16);
    return r;
}
static inline vf vf_high(vi x)
{
    vf r;
    LANES r.v[i] = f32_from_bits(x.v[i] & 0xffff0000);
    return r;
}
static inline vf vf_load_bf16_n(const u16 *p, u32 n)
{
    vf r;
    LANES r.v[i] = i < n ? f32_from_bf16(p[i]) : 0;
    return r;
}
static inline vf vf_load_bf16(const u16 *p)
{
    return vf_load_bf16_n(p, 16);
}
static inline void vf_store_bf16_n(u16 *p, vf x, u32 n)
{
    LANES if (i < n) p[i] = bf16_from_f32(x.v[i]);
}
static inline void vf_store_bf16(u16 *p, vf x)
{
    vf_store_bf16_n(p, x, 16);
}
static inline vf vf_dot(vf acc, vi a, vi b)
{
    return vf_fma(vf_low(a), vf_low(b), vf_fma(vf_high(a), vf_high(b), acc));
}
/* The control word is the machine's own here: sums below 2^-126 may differ from vdpbf16ps. */
static inline u32 vec_flush_begin(void)
{
    return 0;
}
static inline void vec_flush_end(u32 old)
{
    (void)old;
}
static inline vf vf_load_f16(const u16 *p)
{
    vf r;
    LANES r.v[i] = f32_from_f16(p[i]);
    return r;
}
static inline void vf_store_f16(u16 *p, vf x)
{
    LANES p[i] = f16_from_f32(x.v[i]);
}
/* Of pairs of f16. */
static inline vf vf_low_f16(vi x)
{
    vf r;
    LANES r.v[i] = f32_from_f16((u16)x.v[i]);
    return r;
}
static inline vf vf_high_f16(vi x)
{
    vf r;
    LANES r.v[i] = f32_from_f16((u16)(x.v[i] >> 16));
    return r;
}

/* Sixteen codes of quantised weights as f32. F4: twice the value. */
static inline vf vf_load_i8(const u8 *p)
{
    vf r;
    LANES r.v[i] = (float)(i8)p[i];
    return r;
}
static inline vf vf_load_u4(const u8 *p, int high)
{
    vf r;
    LANES r.v[i] = (float)(high ? p[i] >> 4 : p[i] & 15);
    return r;
}
static inline vf vf_load_f4(const u8 *p, int high)
{
    vf r;
    LANES r.v[i] = 2 * f32_from_f4((u8)(high ? p[i] >> 4 : p[i] & 15));
    return r;
}
static inline vf vf_load_f8(const u8 *p)
{
    vf r;
    LANES r.v[i] = f32_from_bits((u32)(p[i] & 0x80) << 24 | (u32)(p[i] & 0x7f) << 20) * 0x1p120f;
    return r;
}
static inline void vec_prefetch(const void *p)
{
    __builtin_prefetch(p, 0, 2);
}

#endif
