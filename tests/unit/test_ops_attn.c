/* ops: rotation, the KV pool and attention, against f64; the same bits however tokens are grouped and from every instruction set. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>

#include "runner.h"

struct setting {
    u32 d, kv_heads, group, window, block, length;
    bool norm;
    float cap; /* 0: none */
    bool sinks;
    u32 rotary;   /* 0: all of d */
    bool encoder; /* nothing is rotated, and every token sees all */
};
static const struct setting settings[] = {
    {8, 2, 1, 0, 16, 560, false, 0, false, 0, false},    {16, 1, 2, 16, 32, 300, true, 0, false, 0, false},
    {32, 2, 2, 0, 32, 530, false, 0, false, 0, false},   {64, 1, 7, 100, 48, 300, true, 0, false, 0, false},
    {128, 1, 4, 130, 16, 300, true, 0, false, 0, false}, {256, 1, 1, 0, 512, 270, false, 0, false, 0, false},
    {40, 1, 3, 5, 64, 100, true, 0, false, 0, false},    {32, 1, 20, 1, 16, 40, false, 0, false, 0, false},
    {2, 3, 5, 257, 16, 520, false, 0, false, 0, false},  {16, 2, 2, 0, 16, 300, true, 1.5f, false, 0, false},
    {24, 1, 4, 40, 32, 300, false, 0, true, 0, false},   {32, 1, 18, 0, 16, 270, false, 2, true, 24, false},
    {16, 2, 1, 0, 16, 60, true, 0, false, 4, false},     {32, 2, 1, 0, 16, 530, false, 0, false, 0, true},
    {16, 1, 3, 20, 48, 17, false, 0, false, 0, true}};

/* Tokens of one sequence, and where they are kept. */
struct scene {
    struct setting s;
    u32 heads, ld; /* of a row of q, k, v */
    float *qkv, *angles, *q_norm, *k_norm, *sinks;
    u32 rotary;
    float *rotated; /* what the kernel made of qkv */
    struct kv_pool kv;
    u32 *blocks;
    struct place *places;
    u8 *out;
    double *k, *v; /* [length, kv_heads, d] in f64, rounded as stored */
};

static u64 lcg = 7;
static float any(void)
{
    lcg = lcg * 6364136223846793005ull + 1442695040888963407ull;
    return (float)((double)(lcg >> 11) / (1ull << 52) - 1);
}

static float *numbers(size_t n)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = any();
    return x;
}

static void scene_make(struct scene *x, const struct setting *s)
{
    u32 n_blocks = s->length / s->block + 1;
    *x = (struct scene){.s = *s, .heads = s->group * s->kv_heads};
    x->ld = (x->heads + 2 * s->kv_heads) * s->d;
    x->qkv = numbers((size_t)s->length * x->ld);
    for (size_t i = 0; i < (size_t)s->length * x->ld; i++) x->qkv[i] *= 3;
    x->rotated = malloc((size_t)s->length * x->ld * sizeof(float));
    x->q_norm = numbers(s->d);
    x->k_norm = numbers(s->d);
    x->sinks = numbers(x->heads);
    for (u32 i = 0; i < x->heads; i++) x->sinks[i] *= 4;
    u32 rotary = x->rotary = s->rotary ? s->rotary : s->d;
    x->angles = malloc((size_t)s->length * rotary * sizeof(float));
    for (u32 t = 0; t < s->length; t++)
        for (u32 m = 0; m < rotary / 2; m++) {
            double angle = t * pow(1000, -2.0 * m / rotary);
            x->angles[t * rotary + m] = (float)cos(angle);
            x->angles[t * rotary + rotary / 2 + m] = (float)sin(angle);
        }
    x->blocks = malloc(n_blocks * sizeof *x->blocks);
    x->places = malloc(s->length * sizeof *x->places);
    for (u32 b = 0; b < n_blocks; b++) x->blocks[b] = n_blocks - 1 - b;
    for (u32 t = 0; t < s->length; t++) x->places[t] = (struct place){x->blocks[t / s->block], t % s->block};
    x->out = malloc((size_t)s->length * x->heads * s->d * 4);
    x->k = malloc((size_t)s->length * s->kv_heads * s->d * sizeof(double));
    x->v = malloc((size_t)s->length * s->kv_heads * s->d * sizeof(double));
}

static void scene_free(struct scene *x)
{
    void *parts[] = {x->qkv,    x->angles, x->q_norm, x->k_norm, x->rotated, x->kv.memory,
                     x->blocks, x->places, x->out,    x->k,      x->v,       x->sinks};
    for (size_t i = 0; i < COUNT_OF(parts); i++) free(parts[i]);
}

/* Rotates all tokens into the second of three layers of a pool that is NaN elsewhere. */
static void store_tokens(struct scene *x, const struct ops *ops, enum dtype dtype, u32 threads)
{
    const struct setting *s = &x->s;
    size_t bytes;
    free(x->kv.memory);
    kv_pool_init_as(&x->kv, dtype, 3, s->kv_heads, s->d, s->block);
    bytes = x->kv.block_bytes * (s->length / s->block + 1);
    x->kv.memory = aligned_alloc(CACHE_LINE, bytes);
    memset(x->kv.memory, 0xff, bytes);
    memcpy(x->rotated, x->qkv, (size_t)s->length * x->ld * 4);
    struct rope_args a = {.qkv = x->rotated,
                          .angles = s->encoder ? NULL : x->angles,
                          .rotary = s->rotary,
                          .q_norm = s->norm ? x->q_norm : NULL,
                          .k_norm = s->norm ? x->k_norm : NULL,
                          .eps = 1e-6f,
                          .scale = 1 / sqrtf((float)s->d),
                          .kv = &x->kv,
                          .places = x->places,
                          .layer = 1,
                          .heads = x->heads,
                          .rows = s->length,
                          .ld = x->ld};
    for (u32 i = 0; i < threads; i++) ops->rope(&a, (struct share){i, threads, NULL});
}

/* Attention of all tokens in units of `most` (0: as many as fit). */
static void attend(struct scene *x, const struct ops *ops, enum dtype out, u32 most)
{
    struct attn_span *spans = malloc(x->s.length * sizeof *spans);
    _Atomic u32 ticket = 0;
    u32 n = 0, fit = attn_tokens(x->s.group), step = most && most < fit ? most : fit;
    for (u32 t = 0; t < x->s.length; t += step)
        spans[n++] = (struct attn_span){x->blocks, t, t, MIN_OF(step, x->s.length - t),
                                        x->s.encoder ? x->s.length : 0};
    struct attn_args a = {.q = x->rotated,
                          .out = x->out,
                          .out_dtype = out,
                          .kv = &x->kv,
                          .spans = spans,
                          .n_spans = n,
                          .layer = 1,
                          .heads = x->heads,
                          .window = x->s.window,
                          .ld_q = x->ld,
                          .ld_out = x->heads * x->s.d,
                          .soft_cap = x->s.cap,
                          .sinks = x->s.sinks ? x->sinks : NULL,
                          .ticket = &ticket};
    ops->attn(&a, (struct share){0, 1, NULL});
    free(spans);
}

/* ---- the same in f64 */
static void head_double(const struct scene *x, u32 t, const float *from, const float *norm, double *to)
{
    u32 d = x->s.d;
    double squares = 0, h[256];
    for (u32 j = 0; j < d; j++) squares += (double)from[j] * from[j];
    for (u32 j = 0; j < d; j++) h[j] = x->s.norm ? from[j] / sqrt(squares / d + 1e-6) * norm[j] : from[j];
    u32 half = x->rotary / 2;
    memcpy(to, h, d * sizeof *to);
    for (u32 m = 0; m < half && !x->s.encoder; m++) {
        double c = x->angles[t * 2 * half + m], s = x->angles[t * 2 * half + half + m];
        to[m] = h[m] * c - h[m + half] * s;
        to[m + half] = h[m + half] * c + h[m] * s;
    }
}

/* Number `at` of a head's K or V, whose scale is `scale`. */
static double pooled(const struct scene *x, const u8 *part, size_t at, const float *scale)
{
    const u16 *half = (const u16 *)(const void *)part;
    switch (x->kv.dtype) {
    case DTYPE_F32: return ((const float *)(const void *)part)[at];
    case DTYPE_BF16: return f32_from_bf16(half[at]);
    case DTYPE_F16: return f32_from_f16(half[at]);
    default: return (double)(i8)part[at] * *scale;
    }
}

static double largest_of(const double *v, u32 n)
{
    double most = 0;
    for (u32 j = 0; j < n; j++) most = fmax(most, fabs(v[j]));
    return most;
}

/* K and V as the pool must hold them; a rounding may go either way, so they are read back and compared. */
static void check_stored(struct scene *x)
{
    const struct setting *s = &x->s;
    const struct kv_pool *kv = &x->kv;
    static const double slacks[] = {
        [DTYPE_F32] = 1e-6, [DTYPE_BF16] = 4e-3, [DTYPE_F16] = 1e-3, [DTYPE_I8] = 0};
    bool pairs = kv->dtype == DTYPE_BF16 || kv->dtype == DTYPE_F16;
    for (u32 t = 0; t < s->length; t++)
        for (u32 h = 0; h < s->kv_heads; h++) {
            const float *row = x->qkv + (size_t)t * x->ld + (x->heads + h) * s->d;
            const u8 *head =
                kv->memory + x->places[t].block * kv->block_bytes + (s->kv_heads + h) * kv->head_bytes;
            double want[256], value[256], slack = slacks[kv->dtype];
            head_double(x, t, row, x->k_norm, want);
            for (u32 j = 0; j < s->d; j++) value[j] = row[s->kv_heads * s->d + j];
            double k_step = kv->dtype == DTYPE_I8 ? largest_of(want, s->d) / 253 : 0,
                   v_step = kv->dtype == DTYPE_I8 ? largest_of(value, s->d) / 253 : 0;
            u32 at = x->places[t].offset, tile = at / 16 * s->d * 16, lane = at % 16;
            const float *k_scale = (const float *)(const void *)(head + kv->k_scales) + at,
                        *v_scale = (const float *)(const void *)(head + kv->v_scales) + at;
            for (u32 j = 0; j < s->d; j++) {
                size_t k_at = pairs ? tile + j / 2 * 32 + lane * 2 + j % 2 : tile + j * 16 + lane;
                double k = pooled(x, head, k_at, k_scale),
                       v = pooled(x, head + kv->v_offset, at * s->d + j, v_scale);
                assert_true(fabs(k - want[j]) <=
                            slack * fabs(want[j]) + 5e-6 + k_step); /* a difference of two numbers near 3 */
                assert_true(fabs(v - value[j]) <=
                            (kv->dtype == DTYPE_F32 ? 0 : slack * fabs(value[j]) + 6e-8) + v_step);
                x->k[((size_t)t * s->kv_heads + h) * s->d + j] = k;
                x->v[((size_t)t * s->kv_heads + h) * s->d + j] = v;
            }
        }
}

static void check_token(const struct scene *x, u32 t, enum dtype out)
{
    const struct setting *s = &x->s;
    u32 from = !s->encoder && s->window && t >= s->window ? t - s->window + 1 : 0,
        end = s->encoder ? s->length : t + 1;
    double q[256], p[600], o[256];
    for (u32 i = 0; i < x->heads; i++) {
        double top = -INFINITY, sum = 0;
        u32 h = i / s->group;
        head_double(x, t, x->qkv + (size_t)t * x->ld + i * s->d, x->q_norm, q);
        for (u32 u = from; u < end; u++) {
            p[u] = 0;
            for (u32 j = 0; j < s->d; j++) p[u] += q[j] * x->k[((size_t)u * s->kv_heads + h) * s->d + j];
            p[u] /= sqrt(s->d);
            if (s->cap > 0) p[u] = s->cap * tanh(p[u] / s->cap);
            top = fmax(top, p[u]);
        }
        if (s->sinks) sum = exp(x->sinks[i] - top);
        memset(o, 0, sizeof o);
        for (u32 u = from; u < end; u++) {
            sum += p[u] = exp(p[u] - top);
            for (u32 j = 0; j < s->d; j++) o[j] += p[u] * x->v[((size_t)u * s->kv_heads + h) * s->d + j];
        }
        for (u32 j = 0; j < s->d; j++) {
            size_t at = (size_t)t * x->heads * s->d + i * s->d + j;
            double got =
                out == DTYPE_F32 ? ((float *)(void *)x->out)[at] : f32_from_bf16(((u16 *)(void *)x->out)[at]);
            double slack = out == DTYPE_F32 ? 2e-5 : 1.6e-2;
            if (!(fabs(got - o[j] / sum) <= slack))
                fail_msg("d %u, token %u, head %u, %u: %g, not %g", s->d, t, i, j, got, o[j] / sum);
        }
    }
}

static void check_setting(const struct setting *s, enum dtype dtype)
{
    const char *levels[8];
    int n = runner_levels(levels);
    struct scene x;
    scene_make(&x, s);
    enum dtype out = dtype == DTYPE_BF16 ? DTYPE_BF16 : DTYPE_F32;
    size_t bytes = (size_t)s->length * x.heads * s->d * (out == DTYPE_F32 ? 4 : 2);
    u8 *first = malloc(bytes);
    for (int i = 0; i < n; i++) {
        const struct ops *ops = ops_cpu(levels[i]);
        store_tokens(&x, ops, dtype, i % 2 ? 5 : 1);
        check_stored(&x);
        for (u32 most = 0; most < 4; most++) {
            memset(x.out, 0xff, bytes);
            attend(&x, ops, out, most);
            if (i == 0 && most == 0) {
                for (u32 t = 0; t<s->length; t += t % 256> 250 || t % 256 < 5 ? 1 : 7)
                    check_token(&x, t, out);
                memcpy(first, x.out, bytes);
            }
            assert_memory_equal(first, x.out, bytes);
        }
    }
    free(first);
    scene_free(&x);
}

static void check_format(enum dtype dtype)
{
    for (u32 i = 0; i < COUNT_OF(settings); i++) check_setting(&settings[i], dtype);
}

static void test_f32(void **state)
{
    (void)state;
    check_format(DTYPE_F32);
}

static void test_bf16(void **state)
{
    (void)state;
    check_format(DTYPE_BF16);
}

static void test_f16(void **state)
{
    (void)state;
    check_format(DTYPE_F16);
}

static void test_i8(void **state)
{
    (void)state;
    check_format(DTYPE_I8);
}

/* A number that is not finite reaches the result of the tokens that see it, and no other. */
static void test_not_finite(void **state)
{
    (void)state;
    const char *levels[8];
    int n = runner_levels(levels);
    struct setting s = {.d = 16, .kv_heads = 1, .group = 1, .block = 16, .length = 40};
    static const enum dtype formats[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16, DTYPE_I8};
    for (u32 i = 0; i < (u32)n * COUNT_OF(formats); i++) {
        const struct ops *ops = ops_cpu(levels[i / COUNT_OF(formats)]);
        struct scene x;
        scene_make(&x, &s);
        x.qkv[20 * x.ld + s.d + 3] = NAN; /* in k of token 20 */
        store_tokens(&x, ops, formats[i % COUNT_OF(formats)], 1);
        attend(&x, ops, DTYPE_F32, 1);
        for (u32 t = 0; t < s.length; t++) assert_true(isnan(((float *)(void *)x.out)[t * s.d]) == (t >= 20));
        scene_free(&x);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_f32), cmocka_unit_test(test_bf16),
                                       cmocka_unit_test(test_f16), cmocka_unit_test(test_i8),
                                       cmocka_unit_test(test_not_finite)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("ops_attn", tests, NULL, NULL);
}
