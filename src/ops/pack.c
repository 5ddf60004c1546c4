/* Weights in panels: see struct packed. */
#include "mpiserve/ops.h"

enum {
    PACK_BLOCK = 128
}; /* inputs packed at a time: 16 rows of them stay in the first cache while they are scattered */

static u32 even(u32 n)
{
    return (n + 1) & ~1u;
}
static u32 panels(u32 n_out)
{
    return (n_out + PANEL - 1) / PANEL;
}

size_t packed_bytes(enum dtype dtype, u32 n_out, u32 n_in)
{
    return (size_t)panels(n_out) * PANEL * even(n_in) * (dtype == DTYPE_BF16 ? 2 : 4);
}

float f32_from_f8(u8 x)
{
    u32 sign = (u32)(x & 0x80) << 24, magnitude = x & 0x7f;
    if (magnitude == 0x7f) return f32_from_bits(0x7fc00000);
    return f32_from_bits(sign | magnitude << 20) * 0x1p120f; /* the exponents' biases are 127 and 7; exact */
}

float f32_from_f4(u8 x)
{
    static const float values[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    return x & 8 ? -values[x & 7] : values[x & 7];
}

float f32_from_f16(u16 h)
{
    u32 sign = (u32)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    if (exponent == 31) return f32_from_bits(sign | 0x7f800000 | mantissa << 13);
    if (exponent) return f32_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float tiny = (float)mantissa * 0x1p-24f;
    return sign ? -tiny : tiny;
}

u16 f16_from_f32(float f)
{
    u32 u = f32_bits(f), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
    if (magnitude > 0x7f800000) return (u16)(sign | 0x7e00 | (magnitude >> 13 & 0x1ff));
    if (magnitude >= 0x477ff000) return (u16)(sign | 0x7c00); /* 65520 and more */
    if (magnitude < 0x38800000) { /* below 2^-14: multiples of 2^-24, which adding 1/2 rounds to */
        float rounded = f32_from_bits(magnitude) + 0.5f;
        return (u16)(sign | (f32_bits(rounded) - f32_bits(0.5f)));
    }
    u32 odd = magnitude >> 13 & 1;
    return (u16)(sign | ((magnitude - 0x38000000 + 0xfff + odd) >> 13));
}

static float source(const void *src, enum dtype t, size_t i)
{
    if (t == DTYPE_F32) return ((const float *)src)[i];
    u16 h = ((const u16 *)src)[i];
    return t == DTYPE_BF16 ? f32_from_bf16(h) : f32_from_f16(h);
}

/* Inputs [k0, k1) of output o; from: n_in numbers, or NULL for a padding row. */
static void pack_bf16(u16 *dst, u32 n_in, u32 o, u32 k0, u32 k1, const void *from, enum dtype t)
{
    u16 *lane = dst + (size_t)(o / PANEL) * PANEL * even(n_in) + (o % PANEL) * 2;
    for (u32 k = k0; k < k1; k++) {
        u16 v = 0;
        if (from && k < n_in)
            v = t == DTYPE_BF16 ? ((const u16 *)from)[k] : bf16_from_f32(source(from, t, k));
        lane[(size_t)(k / 2) * PANEL * 2 + (k & 1)] = v;
    }
}

static void pack_f32(float *dst, u32 n_in, u32 o, u32 k0, u32 k1, const void *from, enum dtype t)
{
    float *lane = dst + (size_t)(o / PANEL) * PANEL * even(n_in) + o % PANEL;
    for (u32 k = k0; k < k1; k++) lane[(size_t)k * PANEL] = from && k < n_in ? source(from, t, k) : 0;
}

void pack_rows(void *dst, enum dtype dtype, u32 n_out, u32 n_in, u32 row0, u32 n, const void *src,
               enum dtype src_dtype)
{
    size_t row_bytes = (size_t)n_in * (src_dtype == DTYPE_F32 ? 4 : 2);
    u32 end = row0 + n, all = end == n_out ? panels(n_out) * PANEL : end, next;
    for (u32 o0 = row0; o0 < all; o0 = next) {
        next = MIN_OF((o0 / PANEL + 1) * PANEL, all);
        for (u32 k0 = 0; k0 < even(n_in); k0 += PACK_BLOCK) {
            u32 k1 = MIN_OF(k0 + PACK_BLOCK, even(n_in));
            for (u32 o = o0; o < next; o++) {
                const void *from = o < end ? (const u8 *)src + (o - row0) * row_bytes : NULL;
                if (dtype == DTYPE_BF16)
                    pack_bf16(dst, n_in, o, k0, k1, from, src_dtype);
                else
                    pack_f32(dst, n_in, o, k0, k1, from, src_dtype);
            }
        }
    }
}
