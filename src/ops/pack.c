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

/* ---- rows of a panel that is not filled in one call: scattered one by one */

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

/* Outputs [o0, next) of one panel; from `end` on they are padding. */
static void pack_part(void *dst, enum dtype dtype, u32 n_in, u32 o0, u32 next, u32 end, const u8 *src,
                      size_t row_bytes, enum dtype src_dtype)
{
    for (u32 k0 = 0; k0 < even(n_in); k0 += PACK_BLOCK) {
        u32 k1 = MIN_OF(k0 + PACK_BLOCK, even(n_in));
        for (u32 o = o0; o < next; o++) {
            const void *from = o < end ? src + (o - o0) * row_bytes : NULL;
            if (dtype == DTYPE_BF16)
                pack_bf16(dst, n_in, o, k0, k1, from, src_dtype);
            else
                pack_f32(dst, n_in, o, k0, k1, from, src_dtype);
        }
    }
}

/* ---- whole panels: a panel is its rows as a matrix of words (an f32, or a pair of bf16), turned */
typedef u32 four __attribute__((vector_size(16), may_alias));
#if defined(__clang__)
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (four){i, j, k, l})
#endif

static four four_at(const u8 *from)
{
    four x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
}

/* 4 words of 4 rows, row bytes apart -> 4 times 4 words, PANEL apart. */
static inline void turn_four(u32 *to, const u8 *from, size_t row)
{
    four a = four_at(from), b = four_at(from + row), c = four_at(from + 2 * row), d = four_at(from + 3 * row);
    four ab01 = SHUFFLE(a, b, 0, 4, 1, 5), ab23 = SHUFFLE(a, b, 2, 6, 3, 7);
    four cd01 = SHUFFLE(c, d, 0, 4, 1, 5), cd23 = SHUFFLE(c, d, 2, 6, 3, 7);
    four *out = (four *)to;
    out[0] = SHUFFLE(ab01, cd01, 0, 1, 4, 5);
    out[PANEL / 4] = SHUFFLE(ab01, cd01, 2, 3, 6, 7);
    out[2 * PANEL / 4] = SHUFFLE(ab23, cd23, 0, 1, 4, 5);
    out[3 * PANEL / 4] = SHUFFLE(ab23, cd23, 2, 3, 6, 7);
}

/* PANEL rows of n words -> n times PANEL words. A cache line of 4 rows at a time: rows a power of two apart share a few places
 * of the first cache. */
static void turn(u32 *to, const u8 *from, size_t row, u32 n)
{
    enum { LINE = 16 };
    u32 k = 0;
    for (; k + LINE <= n; k += LINE)
        for (u32 o = 0; o < PANEL; o += 4)
            for (u32 i = k; i < k + LINE; i += 4)
                turn_four(to + (size_t)i * PANEL + o, from + o * row + (size_t)i * 4, row);
    for (; k < n; k++)
        for (u32 o = 0; o < PANEL; o++)
            __builtin_memcpy(to + (size_t)k * PANEL + o, from + o * row + (size_t)k * 4, 4);
}

/* Numbers [k0, k1) of a row in the panel's type; k1 may be one behind the last. */
static void convert(void *to, enum dtype dtype, const void *from, enum dtype t, u32 n_in, u32 k0, u32 k1)
{
    u32 end = MIN_OF(k1, n_in);
    u16 *narrow = to;
    float *wide = to;
    if (dtype == t)
        __builtin_memcpy(to, (const u8 *)from + (size_t)k0 * dtype_bytes(t), (end - k0) * dtype_bytes(t));
    else if (dtype == DTYPE_BF16)
        for (u32 k = k0; k < end; k++) narrow[k - k0] = bf16_from_f32(source(from, t, k));
    else
        for (u32 k = k0; k < end; k++) wide[k - k0] = source(from, t, k);
    if (end == k1) return;
    if (dtype == DTYPE_BF16)
        narrow[end - k0] = 0;
    else
        wide[end - k0] = 0;
}

static void pack_panel(u32 *to, enum dtype dtype, u32 n_in, const u8 *src, size_t row_bytes,
                       enum dtype src_dtype)
{
    u32 width = dtype == DTYPE_BF16 ? 2 : 1; /* numbers of a word */
    if (dtype == src_dtype && n_in % 2 == 0) {
        turn(to, src, row_bytes, n_in / width);
        return;
    }
    u32 tile[PANEL][PACK_BLOCK];
    for (u32 k0 = 0; k0 < even(n_in); k0 += PACK_BLOCK) {
        u32 k1 = MIN_OF(k0 + PACK_BLOCK, even(n_in));
        for (u32 o = 0; o < PANEL; o++) convert(tile[o], dtype, src + o * row_bytes, src_dtype, n_in, k0, k1);
        turn(to + (size_t)(k0 / width) * PANEL, (const u8 *)tile, sizeof tile[0], (k1 - k0) / width);
    }
}

void pack_rows(void *dst, enum dtype dtype, u32 n_out, u32 n_in, u32 row0, u32 n, const void *src,
               enum dtype src_dtype)
{
    size_t row_bytes = (size_t)n_in * (src_dtype == DTYPE_F32 ? 4 : 2);
    size_t panel_bytes = packed_bytes(dtype, PANEL, n_in);
    u32 end = row0 + n, all = end == n_out ? panels(n_out) * PANEL : end, next;
    for (u32 o0 = row0; o0 < all; o0 = next) {
        const u8 *from = (const u8 *)src + (size_t)(o0 - row0) * row_bytes;
        next = MIN_OF((o0 / PANEL + 1) * PANEL, all);
        if (o0 % PANEL == 0 && o0 + PANEL <= end)
            pack_panel((u32 *)((u8 *)dst + o0 / PANEL * panel_bytes), dtype, n_in, from, row_bytes,
                       src_dtype);
        else
            pack_part(dst, dtype, n_in, o0, next, end, from, row_bytes, src_dtype);
    }
}
