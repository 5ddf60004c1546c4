/* Operations row by row: norm, gated activations, soft cap, embedding, angles of the rotation. */
#ifndef MPISERVE_OPS_ROWS_H
#define MPISERVE_OPS_ROWS_H

#include "ops/cpu/linear.h"

/* e^x, to about an ulp; x is taken into [-87, 88]; NaN stays. */
ALWAYS_INLINE vf vf_exp(vf x)
{
    const float shift = 12582912.0f + 127; /* 1.5 2^23 + the exponent's bias: n + 127 lands in the low bits */
    x = vf_min(vf_set(88.0f), vf_max(vf_set(-87.0f), x));
    vf t = vf_add(vf_mul(x, vf_set(1.44269504f)), vf_set(shift));
    vf n = vf_sub(t, vf_set(shift));
    vf r = vf_fma(n, vf_set(-0.693359375f), x); /* ln 2 in two parts; the first has nine bits */
    r = vf_fma(n, vf_set(2.12194440e-4f), r);
    vf e = vf_set(1.0f / 5040);
    e = vf_fma(e, r, vf_set(1.0f / 720));
    e = vf_fma(e, r, vf_set(1.0f / 120));
    e = vf_fma(e, r, vf_set(1.0f / 24));
    e = vf_fma(e, r, vf_set(1.0f / 6));
    e = vf_fma(e, r, vf_set(0.5f));
    e = vf_fma(e, r, vf_set(1));
    e = vf_fma(e, r, vf_set(1));
    return vf_mul(e, vf_exponent(t));
}

/* n <= 16 activations; the caller keeps i even. */
ALWAYS_INLINE void act_store(void *row, enum dtype dtype, u32 i, vf v, u32 n)
{
    if (dtype == DTYPE_F32) {
        float *y = (float *)row + i;
        if (n == 16)
            vf_store(y, v);
        else
            vf_store_n(y, v, n);
    } else {
        u16 *y = (u16 *)row + i;
        if (n == 16)
            vf_store_bf16(y, v);
        else
            vf_store_bf16_n(y, v, n);
    }
}

ALWAYS_INLINE void *act_row(void *y, enum dtype dtype, size_t row, size_t ld)
{
    return (u8 *)y + row * ld * (dtype == DTYPE_F32 ? 4 : 2);
}

/* Lanes from `n` on are 0 in v: an odd row's partner is written with it. */
ALWAYS_INLINE void act_store_tail(void *row, enum dtype dtype, u32 i, vf v, u32 n)
{
    act_store(row, dtype, i, v, MIN_OF((n - i + 1) & ~1u, 16u));
}

/* 1 / sqrt(mean of squares + eps): four sums of every fourth sixteen, then one. */
ALWAYS_INLINE float norm_scale(const float *x, u32 n, float eps)
{
    vf sum[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    u32 i = 0;
    for (; i + 64 <= n; i += 64) {
        UNROLL for (u32 j = 0; j < 4; j++)
        {
            vf v = vf_load(x + i + j * 16);
            sum[j] = vf_fma(v, v, sum[j]);
        }
    }
    UNROLL for (u32 j = 0; j < 4; j++)
    {
        if (i + j * 16 < n) {
            vf v = vf_load_n(x + i + j * 16, n - i - j * 16);
            sum[j] = vf_fma(v, v, sum[j]);
        }
    }
    float total = vf_sum(vf_add(vf_add(sum[0], sum[1]), vf_add(sum[2], sum[3])));
    return 1.0f / __builtin_sqrtf(total / (float)n + eps);
}

/* The sum of (x - mean)^power, power 1 or 2, in the same order. */
ALWAYS_INLINE float norm_moment(const float *x, u32 n, float mean, int power)
{
    vf sum[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    for (u32 i = 0; i < n; i += 64) {
        UNROLL for (u32 j = 0; j < 4; j++)
        {
            u32 at = i + j * 16;
            if (at >= n) continue;
            vf v = vf_sub(vf_load_n(x + at, n - at), vf_set(mean));
            if (n - at < 16) v = vf_select(v, vf_zero(), 0, (i32)(n - at)); /* what does not lie in the row */
            sum[j] = power == 1 ? vf_add(sum[j], v) : vf_fma(v, v, sum[j]);
        }
    }
    return vf_sum(vf_add(vf_add(sum[0], sum[1]), vf_add(sum[2], sum[3])));
}

/* LayerNorm; x and y may be the same row. */
static void norm_centred(const struct norm_args *a, const float *x, void *y)
{
    float mean = norm_moment(x, a->n, 0, 1) / (float)a->n,
          square = norm_moment(x, a->n, mean, 2) / (float)a->n;
    vf scale = vf_set(1.0f / __builtin_sqrtf(square + a->eps));
    for (u32 i = 0; i < a->n; i += 16) {
        vf v = vf_mul(vf_sub(vf_load_n(x + i, a->n - i), vf_set(mean)), scale);
        v = vf_fma(v, vf_load_n(a->w + i, a->n - i), vf_load_n(a->bias + i, a->n - i));
        if (a->n - i < 16) v = vf_select(v, vf_zero(), 0, (i32)(a->n - i));
        if (a->add)
            vf_store_n((float *)y + i, vf_add(vf_load_n((float *)y + i, a->n - i), v), a->n - i);
        else
            act_store_tail(y, a->y_dtype, i, v, a->n);
    }
}

static void norm(const struct norm_args *a, struct share s)
{
    for (u32 r = s.i; r < a->rows; r += s.n) {
        const float *x = a->x + (a->list ? a->list[r] : r) * a->ld_x;
        void *y = act_row(a->y, a->y_dtype, r, a->ld_y);
        if (a->bias) {
            norm_centred(a, x, y);
            continue;
        }
        vf scale = vf_set(norm_scale(x, a->n, a->eps));
        for (u32 i = 0; i < a->n; i += 16) {
            vf v = vf_mul(vf_load_n(x + i, a->n - i), scale);
            v = vf_mul(v, vf_load_n(a->w + i, a->n - i));
            if (a->add)
                vf_store_n((float *)y + i, vf_add(vf_load_n((float *)y + i, a->n - i), v), a->n - i);
            else
                act_store_tail(y, a->y_dtype, i, v, a->n);
        }
    }
}

/* x / (1 + e^-t): silu with t = x, the tanh form of gelu with twice its inner term */
ALWAYS_INLINE vf gated(vf x, vf t)
{
    return vf_div(x, vf_add(vf_set(1), vf_exp(vf_sub(vf_zero(), t))));
}

ALWAYS_INLINE vf glu_gelu(vf g, vf u)
{
    vf cubic = vf_fma(vf_mul(g, g), vf_set(0.044715f), vf_set(1));
    return vf_mul(gated(g, vf_mul(vf_mul(g, vf_set(1.59576912f)), cubic)), u); /* 2 sqrt(2 / pi) */
}

/* The limit comes first: a NaN stays. */
ALWAYS_INLINE vf glu_clamped(vf g, vf u, float limit, float alpha)
{
    g = vf_min(vf_set(limit), g);
    u = vf_max(vf_set(-limit), vf_min(vf_set(limit), u));
    return vf_mul(vf_add(u, vf_set(1)), gated(g, vf_mul(g, vf_set(alpha))));
}

/* erfc(z) / 2 for z >= 0, to 1e-7: Abramowitz and Stegun, 7.1.26. A NaN stays. */
ALWAYS_INLINE vf half_erfc(vf z)
{
    vf t = vf_div(vf_set(1), vf_fma(z, vf_set(0.3275911f), vf_set(1)));
    vf p = vf_set(1.061405429f / 2);
    p = vf_fma(p, t, vf_set(-1.453152027f / 2));
    p = vf_fma(p, t, vf_set(1.421413741f / 2));
    p = vf_fma(p, t, vf_set(-0.284496736f / 2));
    p = vf_fma(p, t, vf_set(0.254829592f / 2));
    return vf_mul(vf_mul(p, t), vf_exp(vf_sub(vf_zero(), vf_mul(z, z))));
}

/* x (1 + erf(x / sqrt 2)) / 2 = max(x, 0) - |x| erfc(|x| / sqrt 2) / 2, which loses no digits where x is far below 0. */
ALWAYS_INLINE vf gelu(vf x)
{
    vf size = vf_max(vf_sub(vf_zero(), x), x);
    return vf_sub(vf_max(vf_zero(), x), vf_mul(size, half_erfc(vf_mul(size, vf_set(0.70710678f)))));
}

static void gelu_row(const struct glu_args *a, u32 r)
{
    const float *x = a->x + r * a->ld_x;
    void *y = act_row(a->y, a->y_dtype, r, a->ld_y);
    for (u32 i = 0; i < a->n; i += 16)
        act_store_tail(y, a->y_dtype, i, gelu(vf_load_n(x + i, a->n - i)), a->n);
}

ALWAYS_INLINE void glu_row(const struct glu_args *a, u32 r, enum activation act)
{
    const float *gate = a->x + r * a->ld_x, *up = gate + a->n;
    void *y = act_row(a->y, a->y_dtype, r, a->ld_y);
    for (u32 i = 0; i < a->n; i += 16) {
        vf g = vf_load_n(gate + i, a->n - i), u = vf_load_n(up + i, a->n - i);
        vf v = act == ACT_SILU        ? vf_mul(gated(g, g), u)
               : act == ACT_GELU_TANH ? glu_gelu(g, u)
                                      : glu_clamped(g, u, a->limit, a->alpha);
        act_store_tail(y, a->y_dtype, i, v, a->n);
    }
}

static void glu(const struct glu_args *a, struct share s)
{
    for (u32 r = s.i; r < a->rows; r += s.n) {
        if (a->act == ACT_SILU)
            glu_row(a, r, ACT_SILU);
        else if (a->act == ACT_GELU_TANH)
            glu_row(a, r, ACT_GELU_TANH);
        else if (a->act == ACT_GELU)
            gelu_row(a, r);
        else
            glu_row(a, r, ACT_CLAMPED);
    }
}

/* c tanh(x / c) = c (e - 1) / (e + 1), e = e^(2 x / c) */
ALWAYS_INLINE vf soft_cap(vf x, float c)
{
    vf e = vf_exp(vf_mul(x, vf_set(2 / c)));
    return vf_mul(vf_div(vf_sub(e, vf_set(1)), vf_add(e, vf_set(1))), vf_set(c));
}

static void cap(const struct cap_args *a, struct share s)
{
    for (u32 r = s.i; r < a->rows; r += s.n)
        for (u32 i = 0; i < a->n; i += 16) {
            float *x = a->x + r * a->ld + i;
            vf_store_n(x, soft_cap(vf_load_n(x, a->n - i), a->cap), a->n - i);
        }
}

static void embed_packed(const struct packed *w, u32 id, float *y, u32 n)
{
    size_t panel = id / PANEL * (size_t)((n + 1) / 2), lane = id % PANEL;
    for (u32 k = 0; k < n; k++) {
        size_t pair = panel + k / 2;
        if (w->dtype == DTYPE_F32)
            y[k] = ((const float *)w->data)[(pair * 2 + (k & 1)) * PANEL + lane];
        else
            y[k] = f32_from_bf16(((const u16 *)w->data)[(pair * PANEL + lane) * 2 + (k & 1)]);
    }
}

static void embed_add(const struct embed_args *a, size_t from, float *y)
{
    for (u32 i = 0; i < a->n; i += 16) {
        u32 n = a->n - i;
        vf v = a->dtype == DTYPE_F32 ? vf_load_n((const float *)a->table + from + i, n)
                                     : vf_load_bf16_n((const u16 *)a->table + from + i, n);
        vf_store_n(y + i, vf_add(vf_load_n(y + i, n), v), n);
    }
}

static void embed(const struct embed_args *a, struct share s)
{
    for (u32 r = s.i; r < a->rows; r += s.n) {
        float *y = a->y + r * a->ld_y;
        size_t from = (size_t)a->ids[r] * a->n;
        if (a->add)
            embed_add(a, from, y);
        else if (a->ids[r] < 0)
            __builtin_memset(y, 0, a->n * sizeof *y);
        else if (!a->table)
            embed_packed(a->packed, (u32)a->ids[r], y, a->n);
        else if (a->dtype == DTYPE_F32)
            __builtin_memcpy(y, (const float *)a->table + from, a->n * sizeof *y);
        else
            for (u32 i = 0; i < a->n; i += 16)
                vf_store_n(y + i, vf_load_bf16_n((const u16 *)a->table + from + i, a->n - i), a->n - i);
        for (u32 i = 0; a->scale > 0 && i < a->n; i++) y[i] *= a->scale;
    }
}

/* Threads share the columns: a sum's order is that of its rows. */
static void pooling(const struct pooling_args *a, struct share s)
{
    u32 from = a->n * s.i / s.n, to = a->n * (s.i + 1) / s.n;
    for (const struct pooling_run *run = a->runs; run < a->runs + a->n_runs; run++) {
        for (u32 k = from; run->begins && k < to; k++) run->sum[k] = 0;
        for (u32 r = run->row; r < run->row + run->n; r++)
            for (u32 k = from; k < to; k++) run->sum[k] += a->x[r * a->ld_x + k];
    }
}

/* cos and sin of an angle in f32, |a| < 2^20, in f64: a = k pi/2 + r, then the series of r, |r| <= pi/4. */
static void angle_cos_sin(float angle, float *c, float *s)
{
    const double half_pi = 1.57079632679489655800, rest = 6.12323399573676603587e-17;
    double a = angle, k = (a * 0.63661977236758134308 + 0x1.8p52) - 0x1.8p52;
    double r = (a - k * half_pi) - k * rest, z = r * r;
    double co = 1 - z * (1.0 / 2 - z * (1.0 / 24 - z * (1.0 / 720 - z * (1.0 / 40320 - z / 3628800))));
    double si =
        r * (1 - z * (1.0 / 6 - z * (1.0 / 120 - z * (1.0 / 5040 - z * (1.0 / 362880 - z / 39916800)))));
    i64 quadrant = (i64)k & 3;
    *c = (float)(quadrant == 0 ? co : quadrant == 1 ? -si : quadrant == 2 ? -co : si);
    *s = (float)(quadrant == 0 ? si : quadrant == 1 ? co : quadrant == 2 ? -si : -co);
}

static void angles(const struct angles_args *a, struct share s)
{
    float scale = a->scale > 0 ? a->scale : 1;
    for (u32 r = s.i; r < a->rows; r += s.n) {
        const float *inv = a->inv + r * a->ld_inv;
        float *c = a->table + (size_t)r * 2 * a->half;
        for (u32 m = 0; m < a->half; m++)
            angle_cos_sin((float)a->positions[r] * inv[m], c + m, c + a->half + m);
        for (u32 m = 0; m < 2 * a->half; m++) c[m] *= scale;
    }
}

#endif
