/* vec: sixteen f32 lanes in two registers (AVX2 and FMA). See vec_avx512.h. */
#ifndef MPISERVE_OPS_VEC_H
#define MPISERVE_OPS_VEC_H

#include "mpiserve/base.h"

#include <immintrin.h>

typedef struct {
    __m256 a, b;
} vf;
typedef struct {
    __m256i a, b;
} vi;

enum { LINEAR_ROWS = 5, SCORE_ROWS = 2, SCORE_TILES = 2, VALUE_ROWS = 2, VALUE_TILES = 2 };
#define LINEAR_PANELS(rows) ((rows) == 1 ? 4 : (rows) <= 3 ? 2 : 1)

static inline vf vf_set(float x)
{
    __m256 v = _mm256_set1_ps(x);
    return (vf){v, v};
}
static inline vf vf_zero(void)
{
    return (vf){_mm256_setzero_ps(), _mm256_setzero_ps()};
}
static inline vf vf_load(const float *p)
{
    return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline void vf_store(float *p, vf v)
{
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
}
static inline __m256i lanes_below(i32 n) /* of eight */
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline vf vf_load_n(const float *p, u32 n)
{
    if (n >= 16) return vf_load(p);
    return (vf){_mm256_maskload_ps(p, lanes_below((i32)n)),
                _mm256_maskload_ps(p + 8, lanes_below((i32)n - 8))};
}
static inline void vf_store_n(float *p, vf v, u32 n)
{
    if (n >= 16) {
        vf_store(p, v);
        return;
    }
    _mm256_maskstore_ps(p, lanes_below((i32)n), v.a);
    _mm256_maskstore_ps(p + 8, lanes_below((i32)n - 8), v.b);
}
static inline vf vf_add(vf x, vf y)
{
    return (vf){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
static inline vf vf_sub(vf x, vf y)
{
    return (vf){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}
static inline vf vf_mul(vf x, vf y)
{
    return (vf){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
static inline vf vf_div(vf x, vf y)
{
    return (vf){_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}
static inline vf vf_max(vf x, vf y)
{
    return (vf){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}
static inline vf vf_min(vf x, vf y)
{
    return (vf){_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)};
}
static inline vf vf_fma(vf x, vf y, vf z)
{
    return (vf){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
static inline __m256 exponent8(__m256 v)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v), 23));
}
static inline vf vf_exponent(vf v)
{
    return (vf){exponent8(v.a), exponent8(v.b)};
}
static inline __m256 select8(__m256 v, __m256 other, i32 from, i32 to)
{
    __m256i keep = _mm256_andnot_si256(lanes_below(from), lanes_below(to));
    return _mm256_blendv_ps(other, v, _mm256_castsi256_ps(keep));
}
static inline vf vf_select(vf v, vf other, i32 from, i32 to)
{
    return (vf){select8(v.a, other.a, from, to), select8(v.b, other.b, from - 8, to - 8)};
}
static inline float vf_sum(vf v)
{
    __m256 a = _mm256_add_ps(v.a, v.b);
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}
static inline float vf_largest(vf v)
{
    __m256 a = _mm256_max_ps(v.a, v.b);
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_shuffle_ps(b, b, 1)));
}

static inline vi vi_load(const void *p)
{
    return (vi){_mm256_loadu_si256(p), _mm256_loadu_si256((const __m256i *)p + 1)};
}
static inline vi vi_set(u32 x)
{
    __m256i v = _mm256_set1_epi32((int)x);
    return (vi){v, v};
}
static inline vf vf_low(vi v)
{
    return (vf){_mm256_castsi256_ps(_mm256_slli_epi32(v.a, 16)),
                _mm256_castsi256_ps(_mm256_slli_epi32(v.b, 16))};
}
static inline vf vf_high(vi v)
{
    __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32((int)0xffff0000));
    return (vf){_mm256_and_ps(_mm256_castsi256_ps(v.a), m), _mm256_and_ps(_mm256_castsi256_ps(v.b), m)};
}
static inline vf vf_widen(__m128i a, __m128i b)
{
    vi v = {_mm256_cvtepu16_epi32(a), _mm256_cvtepu16_epi32(b)};
    return vf_low(v);
}
static inline vf vf_load_bf16(const u16 *p)
{
    return vf_widen(_mm_loadu_si128((const void *)p), _mm_loadu_si128((const void *)(p + 8)));
}
static inline vf vf_load_bf16_n(const u16 *p, u32 n)
{
    if (n >= 16) return vf_load_bf16(p);
    u16 lanes[16] = {0};
    for (u32 i = 0; i < n; i++) lanes[i] = p[i];
    return vf_load_bf16(lanes);
}
static inline __m256i round8(__m256 v)
{
    __m256i u = _mm256_castps_si256(v), top = _mm256_srli_epi32(u, 16);
    __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
    __m256i r = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(r, _mm256_or_si256(top, _mm256_set1_epi32(0x40)), nan);
}
static inline void vf_store_bf16(u16 *p, vf v)
{
    __m256i h = _mm256_packus_epi32(round8(v.a), round8(v.b)); /* packs within halves: 0 2 1 3 */
    _mm256_storeu_si256((void *)p, _mm256_permute4x64_epi64(h, 0xd8));
}
static inline void vf_store_bf16_n(u16 *p, vf v, u32 n)
{
    u16 lanes[16];
    vf_store_bf16(n >= 16 ? p : lanes, v);
    for (u32 i = 0; n < 16 && i < n; i++) p[i] = lanes[i];
}

#include "ops/cpu/vec_x86.h"

static inline vf vf_load_f16(const u16 *p)
{
    return (vf){_mm256_cvtph_ps(_mm_loadu_si128((const void *)p)),
                _mm256_cvtph_ps(_mm_loadu_si128((const void *)(p + 8)))};
}
static inline void vf_store_f16(u16 *p, vf v)
{
    _mm_storeu_si128((void *)p, _mm256_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128((void *)(p + 8), _mm256_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
/* The lower halves of eight u32, as f16. */
static inline __m256 lower_f16(__m256i v)
{
    const __m256i pick = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1, 0, 1, 4,
                                          5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1);
    __m256i t = _mm256_shuffle_epi8(v, pick);
    return _mm256_cvtph_ps(_mm_unpacklo_epi64(_mm256_castsi256_si128(t), _mm256_extracti128_si256(t, 1)));
}
/* Of pairs of f16. */
static inline vf vf_low_f16(vi v)
{
    return (vf){lower_f16(v.a), lower_f16(v.b)};
}
static inline vf vf_high_f16(vi v)
{
    return (vf){lower_f16(_mm256_srli_epi32(v.a, 16)), lower_f16(_mm256_srli_epi32(v.b, 16))};
}

static inline vf vf_from_i8(__m128i codes)
{
    return (vf){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(codes, 8)))};
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
static inline __m256 f8_of(__m256i x)
{
    __m256i sign = _mm256_slli_epi32(_mm256_and_si256(x, _mm256_set1_epi32(0x80)), 24);
    __m256i magnitude = _mm256_slli_epi32(_mm256_and_si256(x, _mm256_set1_epi32(0x7f)), 20);
    return _mm256_mul_ps(_mm256_castsi256_ps(_mm256_or_si256(sign, magnitude)), _mm256_set1_ps(0x1p120f));
}
static inline vf vf_load_f8(const u8 *p)
{
    __m128i bytes = _mm_loadu_si128((const void *)p);
    return (vf){f8_of(_mm256_cvtepu8_epi32(bytes)), f8_of(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))};
}

#endif
