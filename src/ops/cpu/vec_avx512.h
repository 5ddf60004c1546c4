/* vec: sixteen f32 lanes (AVX-512). The same functions in every vec_*.h, and the same bits from them: kernels are
 * written once over these. A comparison with NaN keeps the second operand, as maxps does. */
#ifndef MPISERVE_OPS_VEC_H
#define MPISERVE_OPS_VEC_H

#include "mpiserve/base.h"

#include <immintrin.h>

typedef __m512 vf;
typedef __m512i vi; /* sixteen u32, or sixteen pairs of bf16 */

/* Tiles that fill 32 registers: panels at a time for 1 .. LINEAR_ROWS rows; query rows x KV tiles; rows, and rows x columns / 16,
 * each in two sums. */
enum { LINEAR_ROWS = 6, SCORE_ROWS = 4, SCORE_TILES = 4, VALUE_ROWS = 4, VALUE_TILES = 8 };
#define LINEAR_PANELS(rows) ((rows) <= 3 ? 8 : 4)

static inline vf vf_set(float x)
{
    return _mm512_set1_ps(x);
}
static inline vf vf_zero(void)
{
    return _mm512_setzero_ps();
}
static inline vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
static inline void vf_store(float *p, vf v)
{
    _mm512_storeu_ps(p, v);
}
static inline __mmask16 first_lanes(u32 n)
{
    return (__mmask16)(n >= 16 ? 0xffff : (1u << n) - 1);
}
/* The first n lanes; the rest are 0 (load) or untouched (store). */
static inline vf vf_load_n(const float *p, u32 n)
{
    return _mm512_maskz_loadu_ps(first_lanes(n), p);
}
static inline void vf_store_n(float *p, vf v, u32 n)
{
    _mm512_mask_storeu_ps(p, first_lanes(n), v);
}
static inline vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
static inline vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
static inline vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
static inline vf vf_fma(vf a, vf b, vf c) /* a b + c, rounded once */
{
    return _mm512_fmadd_ps(a, b, c);
}
static inline vf vf_exponent(vf v) /* the low bits of v's bits, moved to the exponent */
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v), 23));
}
/* Lanes [from, to) of v, other elsewhere; any integers. */
static inline vf vf_select(vf v, vf other, i32 from, i32 to)
{
    u32 below_to = to <= 0 ? 0 : first_lanes((u32)to), below_from = from <= 0 ? 0 : first_lanes((u32)from);
    return _mm512_mask_blend_ps((__mmask16)(below_to & ~below_from), other, v);
}
/* Lane i with lane i + 8, then + 4, + 2, + 1. */
static inline float vf_sum(vf v)
{
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}
static inline float vf_largest(vf v)
{
    __m256 a = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_shuffle_ps(b, b, 1)));
}

static inline vi vi_load(const void *p)
{
    return _mm512_loadu_si512(p);
}
static inline vi vi_set(u32 x)
{
    return _mm512_set1_epi32((int)x);
}
static inline vf vf_low(vi pairs) /* the first number of each pair, widened */
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
}
static inline vf vf_high(vi pairs)
{
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}
static inline vf vf_widen(__m256i h)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
static inline vf vf_load_bf16(const u16 *p)
{
    return vf_widen(_mm256_loadu_si256((const void *)p));
}
static inline vf vf_load_bf16_n(const u16 *p, u32 n)
{
    return vf_widen(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
static inline __m256i vf_round(vf v) /* to nearest even; NaN quiet */
{
    vi u = _mm512_castps_si512(v), top = _mm512_srli_epi32(u, 16);
    vi odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
    vi r = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd), 16);
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(r, nan, top, _mm512_set1_epi32(0x40)));
}
static inline void vf_store_bf16(u16 *p, vf v)
{
    _mm256_storeu_si256((void *)p, vf_round(v));
}
static inline void vf_store_bf16_n(u16 *p, vf v, u32 n)
{
    _mm256_mask_storeu_epi16(p, first_lanes(n), vf_round(v));
}

#include "ops/cpu/vec_x86.h"

static inline vf vf_load_f16(const u16 *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
}
static inline void vf_store_f16(u16 *p, vf v)
{
    _mm256_storeu_si256((void *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
/* Of pairs of f16. */
static inline vf vf_low_f16(vi v)
{
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v));
}
static inline vf vf_high_f16(vi v)
{
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(v, 16)));
}

static inline vf vf_from_i8(__m128i codes)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
}
static inline vf vf_load_i8(const u8 *p)
{
    return vf_from_i8(_mm_loadu_si128((const void *)p));
}
static inline vf vf_load_u4(const u8 *p, int high)
{
    return vf_from_i8(codes_of(p, high));
}
static inline vf vf_load_f4(const u8 *p, int high)
{
    return vf_from_i8(doubled_f4(codes_of(p, high)));
}
static inline vf vf_load_f8(const u8 *p)
{
    __m512i x = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p));
    __m512i sign = _mm512_slli_epi32(_mm512_and_si512(x, _mm512_set1_epi32(0x80)), 24);
    __m512i magnitude = _mm512_slli_epi32(_mm512_and_si512(x, _mm512_set1_epi32(0x7f)), 20);
    return _mm512_mul_ps(_mm512_castsi512_ps(_mm512_or_si512(sign, magnitude)), _mm512_set1_ps(0x1p120f));
}

#endif
