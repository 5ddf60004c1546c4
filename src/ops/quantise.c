/* Quantised weights in panels: see struct packed. */
#include "mpiserve/ops.h"

#include <math.h>
#include <string.h>

static bool four_bits(enum dtype t)
{
    return t == DTYPE_I4 || t == DTYPE_F4;
}
static u32 pairs(u32 inputs)
{
    return (inputs + 1) / 2;
}
static u32 panels(const struct packed *w)
{
    return (w->n_out + PANEL - 1) / PANEL;
}

u32 packed_groups(const struct packed *w)
{
    if (!dtype_quantised(w->dtype)) return 0;
    return w->n_in <= w->lead ? 1 : 1 + (w->n_in - w->lead + w->group - 1) / w->group;
}

static size_t head_bytes(enum dtype t)
{
    return (t == DTYPE_I4 ? 2 : 1) * (size_t)PANEL * sizeof(float);
}
static size_t pair_bytes(enum dtype t)
{
    return four_bits(t) ? PANEL : 2 * PANEL;
}

/* A panel's bytes, whole lines of a cache. */
static size_t panel_bytes(const struct packed *w)
{
    size_t n = packed_groups(w) * head_bytes(w->dtype) + pairs(w->n_in) * pair_bytes(w->dtype);
    return (n + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
}

size_t packed_size(const struct packed *w)
{
    if (!dtype_quantised(w->dtype)) return packed_bytes(w->dtype, w->n_out, w->n_in);
    return panels(w) * panel_bytes(w);
}

/* Inputs [*from, *to) of a group. */
static void group_range(const struct packed *w, u32 group, u32 *from, u32 *to)
{
    *from = group ? w->lead + (group - 1) * w->group : 0;
    *to = MIN_OF(group ? *from + w->group : w->lead, w->n_in);
}

static void put_code(const struct packed *w, u8 *pair, u32 lane, u32 k, u8 code)
{
    if (!four_bits(w->dtype))
        pair[(k & 1) * PANEL + lane] = code;
    else if (k & 1)
        pair[lane] = (u8)((pair[lane] & 0x0f) | code << 4);
    else
        pair[lane] = (u8)((pair[lane] & 0xf0) | (code & 0x0f));
}

/* One output; codes NULL: a padding row. */
static void pack_row(u8 *dst, const struct packed *w, u32 o, const u8 *codes, const float *scales,
                     const float *zeros)
{
    u8 *at = dst + o / PANEL * panel_bytes(w);
    u32 lane = o % PANEL;
    for (u32 g = 0, from, to; g < packed_groups(w); g++) {
        group_range(w, g, &from, &to);
        float scale = codes ? scales[g] : 0, zero = codes && zeros ? zeros[g] : 0;
        if (w->dtype == DTYPE_F4) scale /= 2;
        memcpy(at + lane * sizeof scale, &scale, sizeof scale);
        if (w->dtype == DTYPE_I4) memcpy(at + (PANEL + lane) * sizeof zero, &zero, sizeof zero);
        at += head_bytes(w->dtype);
        for (u32 k = from; k < from + 2 * pairs(to - from); k++)
            put_code(w, at + (k - from) / 2 * pair_bytes(w->dtype), lane, k - from,
                     codes && k < to ? codes[k] : 0);
        at += pairs(to - from) * pair_bytes(w->dtype);
    }
}

void pack_codes(void *dst, const struct packed *w, u32 row0, u32 n, const u8 *codes, const float *scales,
                const float *zeros)
{
    u32 end = row0 + n, groups = packed_groups(w);
    for (u32 i = 0; i < n; i++)
        pack_row(dst, w, row0 + i, codes + (size_t)i * w->n_in, scales + (size_t)i * groups,
                 zeros ? zeros + (size_t)i * groups : NULL);
    for (u32 o = end; end == w->n_out && o < panels(w) * PANEL; o++) pack_row(dst, w, o, NULL, NULL, NULL);
}

/* ---- numbers to codes */
static float number(const void *src, enum dtype t, size_t i)
{
    if (t == DTYPE_F32) return ((const float *)src)[i];
    u16 h = ((const u16 *)src)[i];
    return t == DTYPE_BF16 ? f32_from_bf16(h) : f32_from_f16(h);
}

static float clamped(float x, float lo, float hi)
{
    return x < lo ? lo : x > hi ? hi : x;
}

/* Symmetric: the largest becomes 127. */
static void to_i8(const float *x, u32 n, u8 *codes, float *scale)
{
    float most = 0;
    for (u32 i = 0; i < n; i++) most = fmaxf(most, fabsf(x[i]));
    *scale = most / 127;
    float by = most > 0 ? 127 / most : 0;
    for (u32 i = 0; i < n; i++) codes[i] = (u8)(i8)clamped(rintf(x[i] * by), -127, 127);
}

/* From the smallest to the largest, in fifteen steps; 0 has a code, and so is exact. */
static void to_i4(const float *x, u32 n, u8 *codes, float *scale, float *zero)
{
    float lo = 0, hi = 0;
    for (u32 i = 0; i < n; i++) {
        lo = fminf(lo, x[i]);
        hi = fmaxf(hi, x[i]);
    }
    *scale = (hi - lo) / 15;
    float by = hi > lo ? 15 / (hi - lo) : 0;
    *zero = rintf(-lo * by);
    for (u32 i = 0; i < n; i++) codes[i] = (u8)clamped(rintf(x[i] * by) + *zero, 0, 15);
}

void quantise_rows(const struct packed *w, u32 n, const void *src, enum dtype src_dtype, u8 *codes,
                   float *scales, float *zeros)
{
    enum { PIECE = 4096 };
    float x[PIECE];
    u32 groups = packed_groups(w);
    BUG_ON(w->group > PIECE || w->lead > PIECE);
    for (u32 r = 0; r < n; r++)
        for (u32 g = 0, from, to; g < groups; g++) {
            size_t at = (size_t)r * groups + g;
            group_range(w, g, &from, &to);
            for (u32 k = from; k < to; k++) x[k - from] = number(src, src_dtype, (size_t)r * w->n_in + k);
            u8 *out = codes + (size_t)r * w->n_in + from;
            if (w->dtype == DTYPE_I8)
                to_i8(x, to - from, out, &scales[at]);
            else
                to_i4(x, to - from, out, &scales[at], &zeros[at]);
        }
}
