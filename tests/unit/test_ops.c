/* ops: products and row operations of every instruction set of this machine, against f64 and bit by bit against each other. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>

#include "runner.h"

enum { ROWS = 17, WIDEST = 1104 };

static u64 lcg;
static float any(float scale)
{
    lcg = lcg * 6364136223846793005ull + 1442695040888963407ull;
    return scale * (float)((double)(lcg >> 11) / (1ull << 52) - 1);
}

static float *numbers(size_t n, float scale)
{
    float *x = aligned_alloc(CACHE_LINE, (n * 4 + CACHE_LINE) / CACHE_LINE * CACHE_LINE);
    for (size_t i = 0; i < n; i++) x[i] = any(scale);
    return x;
}

/* ---- packing and conversions */
static void test_conversions(void **state)
{
    (void)state;
    static const struct {
        u32 f32;
        u16 bf16;
    } rounded[] = {{0x3f800000, 0x3f80}, {0x3f808000, 0x3f80}, {0x3f808001, 0x3f81}, {0x3f818000, 0x3f82},
                   {0x7f7fffff, 0x7f80}, {0xff800000, 0xff80}, {0x7f800001, 0x7fc0}, {0x80000000, 0x8000}};
    for (size_t i = 0; i < COUNT_OF(rounded); i++)
        assert_int_equal(bf16_from_f32(f32_from_bits(rounded[i].f32)), rounded[i].bf16);
    assert_true(f32_from_f16(0x3c00) == 1 && f32_from_f16(0xc248) == -3.140625f &&
                f32_from_f16(1) == 0x1p-24f);
    assert_true(f32_from_f16(0x83ff) == -1023 * 0x1p-24f && f32_from_f16(0x7bff) == 65504);
    assert_true(isinf(f32_from_f16(0xfc00)) && isnan(f32_from_f16(0x7c01)));
    for (u32 h = 0; h < 0x10000; h++) /* there and back */
        assert_true(isnan(f32_from_f16((u16)h)) || f16_from_f32(f32_from_f16((u16)h)) == h);
    static const struct {
        float f32;
        u16 f16;
    } halves[] = {{65519, 0x7bff},          {65520, 0x7c00},        {-1e30f, 0xfc00},  {1 + 0x1p-11f, 0x3c00},
                  {1 + 0x1.8p-10f, 0x3c02}, {0x1p-25f, 0},          {0x1.1p-25f, 1},   {-0x1.8p-24f, 0x8002},
                  {0x1.ffep-15f, 0x0400},   {0x1.ff8p-15f, 0x03ff}, {INFINITY, 0x7c00}};
    for (size_t i = 0; i < COUNT_OF(halves); i++)
        assert_int_equal(f16_from_f32(halves[i].f32), halves[i].f16);
    assert_true(isnan(f32_from_f16(f16_from_f32(NAN))));
}

/* W[o][k] from the panels, by the door's own words. */
static float unpacked(const struct packed *w, u32 o, u32 k)
{
    size_t panel = (size_t)(o / 16) * 16 * ((w->n_in + 1) & ~1u);
    if (w->dtype == DTYPE_F32) return ((const float *)w->data)[panel + (size_t)k * 16 + o % 16];
    return f32_from_bf16(((const u16 *)w->data)[panel + (size_t)(k / 2) * 32 + o % 16 * 2 + k % 2]);
}

static void test_pack(void **state)
{
    (void)state;
    enum { OUT = 37, IN = 131 };
    float *src = numbers(OUT * IN, 1);
    for (int dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
        size_t bytes = packed_bytes(dtype, OUT, IN);
        u8 *data = aligned_alloc(CACHE_LINE, bytes);
        memset(data, 0xff, bytes);
        pack_rows(data, dtype, OUT, IN, 20, OUT - 20, src + 20 * IN,
                  DTYPE_F32); /* in two calls, the last rows first */
        pack_rows(data, dtype, OUT, IN, 0, 20, src, DTYPE_F32);
        struct packed w = {.data = data, .dtype = dtype, .n_out = OUT, .n_in = IN};
        for (u32 o = 0; o < 48; o++)
            for (u32 k = 0; k < IN + 1; k++) {
                float want = o < OUT && k < IN ? src[o * IN + k] : 0;
                if (dtype == DTYPE_BF16) want = f32_from_bf16(bf16_from_f32(want));
                assert_true(unpacked(&w, o, k) == want);
            }
        free(data);
    }
    free(src);
}

/* Whole panels go another way than single rows: the same bits, of every type, also of what is no number. */
static void test_pack_panels(void **state)
{
    (void)state;
    static const u32 sizes[][2] = {{16, 2},   {16, 1},   {32, 8},   {48, 31},  {16, 32},  {37, 34},
                                   {64, 128}, {33, 131}, {16, 256}, {20, 257}, {16, 300}, {80, 1023}};
    static const enum dtype types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    for (size_t i = 0; i < COUNT_OF(sizes) * 6; i++) {
        u32 n_out = sizes[i / 6][0], n_in = sizes[i / 6][1];
        enum dtype dtype = types[i % 2], from = types[i / 2 % 3];
        size_t bytes = packed_bytes(dtype, n_out, n_in), row = (size_t)n_in * dtype_bytes(from);
        u8 *src = malloc(row * n_out), *whole = aligned_alloc(CACHE_LINE, bytes),
           *single = aligned_alloc(CACHE_LINE, bytes);
        for (size_t k = 0; k < row * n_out; k++) src[k] = (u8)(f32_bits(any(1)) >> 7); /* any bits */
        memset(whole, 0x55, bytes);
        memset(single, 0xaa, bytes);
        pack_rows(whole, dtype, n_out, n_in, 0, n_out, src, from);
        for (u32 o = 0; o < n_out; o++) pack_rows(single, dtype, n_out, n_in, o, 1, src + o * row, from);
        if (memcmp(whole, single, bytes))
            fail_msg("%u x %u, %s from %s", n_out, n_in, dtype_name(dtype), dtype_name(from));
        free(src);
        free(whole);
        free(single);
    }
}

/* ---- products */
struct product {
    u32 n_out, n_in;
    enum dtype w_dtype, x_dtype;
    struct packed w;
    void *data;
    u8 *x; /* [ROWS, ld] */
    u32 ld;
    float *bias, *old;
};

static void product_make(struct product *p, u32 n_out, u32 n_in, enum dtype w_dtype, enum dtype x_dtype)
{
    float *w = numbers((size_t)n_out * n_in, 1);
    *p = (struct product){.n_out = n_out, .n_in = n_in, .w_dtype = w_dtype, .x_dtype = x_dtype};
    p->data = aligned_alloc(CACHE_LINE, packed_bytes(w_dtype, n_out, n_in));
    pack_rows(p->data, w_dtype, n_out, n_in, 0, n_out, w, DTYPE_F32);
    p->w = (struct packed){.data = p->data, .dtype = w_dtype, .n_out = n_out, .n_in = n_in};
    p->ld = (n_in + 1 + 4) & ~1u;
    p->x = calloc(ROWS * (size_t)p->ld, 4);
    for (u32 r = 0; r < ROWS; r++)
        for (u32 k = 0; k < n_in; k++) {
            size_t at = (size_t)r * p->ld + k;
            if (x_dtype == DTYPE_F32)
                ((float *)(void *)p->x)[at] = any(1);
            else
                ((u16 *)(void *)p->x)[at] = bf16_from_f32(any(1));
        }
    p->bias = numbers(n_out, 1);
    p->old = numbers((size_t)ROWS * n_out, 1);
    free(w);
}

static void product_free(struct product *p)
{
    free(p->data);
    free(p->x);
    free(p->bias);
    free(p->old);
}

/* Rows [r0, r0 + rows) into y [rows, n_out], in n shares. */
static void product_run(const struct ops *ops, const struct product *p, u32 r0, u32 rows, bool bias, bool add,
                        u32 n, float *y)
{
    size_t element = p->x_dtype == DTYPE_F32 ? 4 : 2;
    memcpy(y, p->old + (size_t)r0 * p->n_out, (size_t)rows * p->n_out * 4);
    struct linear_args a = {.w = &p->w,
                            .bias = bias ? p->bias : NULL,
                            .x = p->x + r0 * p->ld * element,
                            .x_dtype = p->x_dtype,
                            .rows = rows,
                            .ld_x = p->ld,
                            .ld_y = p->n_out,
                            .y = y,
                            .add = add};
    for (u32 i = 0; i < n; i++) ops->linear(&a, (struct share){i, n, NULL});
}

static void check_product(const struct product *p, const float *y, bool bias, bool add)
{
    for (u32 r = 0; r < ROWS; r++)
        for (u32 o = 0; o < p->n_out; o++) {
            double sum = 0, size = 1;
            for (u32 k = 0; k < p->n_in; k++) {
                size_t at = (size_t)r * p->ld + k;
                float x = p->x_dtype == DTYPE_F32 ? ((float *)(void *)p->x)[at]
                                                  : f32_from_bf16(((u16 *)(void *)p->x)[at]);
                double term = (double)x * unpacked(&p->w, o, k);
                sum += term;
                size += fabs(term);
            }
            if (bias) sum += p->bias[o];
            if (add) sum += p->old[r * p->n_out + o];
            if (fabs(y[r * p->n_out + o] - sum) > 1e-6 * size)
                fail_msg("[%u][%u]: %g, not %g", r, o, y[r * p->n_out + o], sum);
        }
}

static void check_rows(const struct ops *ops, const struct product *p, const float *all, float *y)
{
    for (u32 rows = 1; rows <= ROWS; rows++)
        for (u32 r0 = 0; r0 + rows <= ROWS; r0 += rows) {
            product_run(ops, p, r0, rows, true, true, 1, y);
            assert_memory_equal(y, all + (size_t)r0 * p->n_out, (size_t)rows * p->n_out * 4);
        }
    static const u32 shares[] = {2, 3, 7, 40};
    for (u32 i = 0; i < COUNT_OF(shares); i++) {
        product_run(ops, p, 0, ROWS, true, true, shares[i], y);
        assert_memory_equal(y, all, (size_t)ROWS * p->n_out * 4);
    }
}

static void test_linear(void **state)
{
    (void)state;
    static const u32 shapes[][2] = {{1, 1},    {16, 2},    {17, 3},         {48, 64},
                                    {100, 33}, {150, 129}, {33, WIDEST - 1}};
    static const enum dtype kinds[][2] = {
        {DTYPE_F32, DTYPE_F32}, {DTYPE_BF16, DTYPE_F32}, {DTYPE_BF16, DTYPE_BF16}};
    const char *levels[8];
    int n = runner_levels(levels);
    float *first = malloc(ROWS * WIDEST * 4), *all = malloc(ROWS * WIDEST * 4),
          *y = malloc(ROWS * WIDEST * 4);
    for (u32 s = 0; s < COUNT_OF(shapes); s++)
        for (u32 k = 0; k < COUNT_OF(kinds); k++) {
            struct product p;
            product_make(&p, shapes[s][0], shapes[s][1], kinds[k][0], kinds[k][1]);
            for (int i = 0; i < n; i++) {
                const struct ops *ops = ops_cpu(levels[i]);
                product_run(ops, &p, 0, ROWS, false, false, 1, all);
                check_product(&p, all, false, false);
                product_run(ops, &p, 0, ROWS, true, true, 1, all);
                check_product(&p, all, true, true);
                check_rows(ops, &p, all, y);
                if (i == 0) memcpy(first, all, (size_t)ROWS * p.n_out * 4);
                assert_memory_equal(first, all, (size_t)ROWS * p.n_out * 4);
            }
            product_free(&p);
        }
    free(first);
    free(all);
    free(y);
}

/* The rounding of every step is that of the instruction: sums that cancel, very large and very small numbers. */
static void test_linear_extremes(void **state)
{
    (void)state;
    const char *levels[8];
    int n = runner_levels(levels);
    struct product p;
    product_make(&p, 64, 64, DTYPE_BF16, DTYPE_BF16);
    u16 *x = (u16 *)(void *)p.x, *w = p.data;
    for (u32 i = 0; i < ROWS * p.ld; i++) x[i] = (u16)((x[i] & 0x807f) | (56 + (u32)(any(1) * 40 + 40)) << 7);
    for (u32 i = 0; i < 64 * 64; i++) w[i] = (u16)((w[i] & 0x807f) | (56 + (u32)(any(1) * 40 + 40)) << 7);
    float first[ROWS * 64], y[ROWS * 64];
    for (int i = 0; i < n; i++) {
        product_run(ops_cpu(levels[i]), &p, 0, ROWS, false, false, 1, i ? y : first);
        if (i) assert_memory_equal(first, y, sizeof y);
    }
    product_free(&p);
}

/* ---- row operations: checked against f64, then each instruction set against the first */
typedef void row_op(const struct ops *, const float *x, u32 n, enum dtype out, void *y);

static double number(const void *y, enum dtype dtype, size_t i)
{
    return dtype == DTYPE_F32 ? ((const float *)y)[i] : f32_from_bf16(((const u16 *)y)[i]);
}

static const float *norm_weight, *norm_bias;
static void norm_rows(const float *bias, const struct ops *ops, const float *x, u32 n, enum dtype out,
                      void *y)
{
    struct norm_args a = {.x = x,
                          .w = norm_weight,
                          .bias = bias,
                          .eps = 1e-5f,
                          .y = y,
                          .y_dtype = out,
                          .rows = 3,
                          .n = n,
                          .ld_x = 2 * n,
                          .ld_y = WIDEST};
    for (u32 i = 0; i < 2; i++) ops->norm(&a, (struct share){i, 2, NULL});
}

static void run_norm(const struct ops *ops, const float *x, u32 n, enum dtype out, void *y)
{
    norm_rows(NULL, ops, x, n, out, y);
}
static void check_norm(const float *x, u32 n, enum dtype out, const void *y)
{
    for (u32 r = 0; r < 3; r++) {
        double squares = 0;
        for (u32 i = 0; i < n; i++) squares += (double)x[r * 2 * n + i] * x[r * 2 * n + i];
        for (u32 i = 0; i < n; i++) {
            double want = x[r * 2 * n + i] / sqrt(squares / n + 1e-5f) * norm_weight[i];
            assert_true(fabs(number(y, out, r * WIDEST + i) - want) <=
                        fabs(want) * (out == DTYPE_F32 ? 1e-6 : 4e-3));
        }
    }
}

static void run_centred(const struct ops *ops, const float *x, u32 n, enum dtype out, void *y)
{
    norm_rows(norm_bias, ops, x, n, out, y);
}
static void check_centred(const float *x, u32 n, enum dtype out, const void *y)
{
    for (u32 r = 0; r < 3; r++) {
        double sum = 0, squares = 0;
        for (u32 i = 0; i < n; i++) sum += x[r * 2 * n + i];
        for (u32 i = 0; i < n; i++) squares += pow(x[r * 2 * n + i] - sum / n, 2);
        for (u32 i = 0; i < n; i++) {
            double scaled = (x[r * 2 * n + i] - sum / n) / sqrt(squares / n + 1e-5f) * norm_weight[i];
            double slack = (fabs(scaled) + fabs(norm_bias[i])) * (out == DTYPE_F32 ? 2e-6 : 4e-3) + 1e-6;
            assert_true(fabs(number(y, out, r * WIDEST + i) - scaled - norm_bias[i]) <= slack);
        }
    }
}

/* Added to what is there, in place of x. */
static void run_norm_add(const struct ops *ops, const float *x, u32 n, enum dtype out, void *y)
{
    (void)out;
    float *to = y;
    for (u32 r = 0; r < 3; r++)
        for (u32 i = 0; i < n; i++) to[r * WIDEST + i] = 1;
    struct norm_args a = {.x = x,
                          .w = norm_weight,
                          .eps = 1e-5f,
                          .y = y,
                          .rows = 3,
                          .n = n,
                          .ld_x = 2 * n,
                          .ld_y = WIDEST,
                          .add = true};
    for (u32 i = 0; i < 2; i++) ops->norm(&a, (struct share){i, 2, NULL});
    for (u32 r = 0; r < 3 && n % 2; r++) to[r * WIDEST + n] = 0; /* is not written */
}
static void check_norm_add(const float *x, u32 n, enum dtype out, const void *y)
{
    (void)out;
    for (u32 r = 0; r < 3; r++) {
        double squares = 0;
        for (u32 i = 0; i < n; i++) squares += (double)x[r * 2 * n + i] * x[r * 2 * n + i];
        for (u32 i = 0; i < n; i++) {
            double want = 1 + x[r * 2 * n + i] / sqrt(squares / n + 1e-5f) * norm_weight[i];
            assert_true(fabs(number(y, DTYPE_F32, r * WIDEST + i) - want) <= 2e-6 * (fabs(want) + 1));
        }
    }
}

static enum activation glu_act;
static const double glu_limit = 1.5, glu_alpha = 1.702;
static void run_glu(const struct ops *ops, const float *x, u32 n, enum dtype out, void *y)
{
    struct glu_args a = {.x = x,
                         .y = y,
                         .y_dtype = out,
                         .rows = 3,
                         .n = n,
                         .ld_x = 2 * n,
                         .ld_y = WIDEST,
                         .act = glu_act,
                         .limit = (float)glu_limit,
                         .alpha = (float)glu_alpha};
    for (u32 i = 0; i < 2; i++) ops->glu(&a, (struct share){i, 2, NULL});
}
static double glu_of(double g, double u)
{
    if (glu_act == ACT_GELU) return 0.5 * g * erfc(-g / sqrt(2));
    if (glu_act == ACT_SILU) return g / (1 + exp(-g)) * u;
    if (glu_act == ACT_GELU_TANH)
        return 0.5 * g * (1 + tanh(sqrt(2 / M_PI) * (g + 0.044715 * g * g * g))) * u;
    g = fmin(g, glu_limit);
    u = fmax(fmin(u, glu_limit), -glu_limit);
    return (u + 1) * g / (1 + exp(-(double)(float)glu_alpha * g));
}
static void check_glu(const float *x, u32 n, enum dtype out, const void *y)
{
    for (u32 r = 0; r < 3; r++)
        for (u32 i = 0; i < n; i++) {
            double want = glu_of(x[r * 2 * n + i], x[r * 2 * n + n + i]);
            double slack =
                fabs(want) * (out == DTYPE_F32 ? 4e-6 : 4e-3) + (glu_act == ACT_GELU ? 3e-7 : 1e-6);
            if (!(fabs(number(y, out, r * WIDEST + i) - want) <= slack))
                fail_msg("activation %d: %g, not %g", (int)glu_act, number(y, out, r * WIDEST + i), want);
        }
}

static void run_cap(const struct ops *ops, const float *x, u32 n, enum dtype out, void *y)
{
    (void)out;
    float *to = y;
    memset(y, 0, 3 * WIDEST * 4);
    for (u32 r = 0; r < 3; r++) memcpy(to + r * WIDEST, x + r * 2 * n, n * 4);
    struct cap_args a = {.x = to, .cap = 4, .rows = 3, .n = n, .ld = WIDEST};
    for (u32 i = 0; i < 2; i++) ops->cap(&a, (struct share){i, 2, NULL});
}
static void check_cap(const float *x, u32 n, enum dtype out, const void *y)
{
    (void)out;
    for (u32 r = 0; r < 3; r++)
        for (u32 i = 0; i < n; i++) {
            double want = 4 * tanh(x[r * 2 * n + i] / 4);
            assert_true(fabs(number(y, DTYPE_F32, r * WIDEST + i) - want) <= 2e-6);
        }
}

static void check_row_op(row_op *run, void (*check)(const float *, u32, enum dtype, const void *),
                         enum dtype last, float scale)
{
    static const u32 widths[] = {1, 2, 15, 16, 17, 64, 65, 200, 515, WIDEST};
    const char *levels[8];
    int n = runner_levels(levels);
    u8 *first = malloc(3 * WIDEST * 4), *y = malloc(3 * WIDEST * 4);
    for (u32 k = 0; k < COUNT_OF(widths); k++)
        for (enum dtype out = DTYPE_F32; out <= last; out++) {
            float *x = numbers((size_t)3 * 2 * widths[k], scale);
            for (int i = 0; i < n; i++) {
                memset(y, 0x11, 3 * WIDEST * 4);
                run(ops_cpu(levels[i]), x, widths[k], out, y);
                check(x, widths[k], out, y);
                assert_true(widths[k] % 2 == 0 || number(y, out, widths[k]) == 0); /* the partner in a pair */
                if (i == 0) memcpy(first, y, 3 * WIDEST * 4);
                assert_memory_equal(first, y, 3 * WIDEST * 4);
            }
            free(x);
        }
    free(first);
    free(y);
}

static void test_rows(void **state)
{
    (void)state;
    float *w = numbers(WIDEST, 1), *bias = numbers(WIDEST, 1);
    norm_weight = w;
    norm_bias = bias;
    check_row_op(run_centred, check_centred, DTYPE_BF16, 3);
    check_row_op(run_norm, check_norm, DTYPE_BF16, 3);
    check_row_op(run_norm, check_norm, DTYPE_BF16, 1e-4f);
    check_row_op(run_norm_add, check_norm_add, DTYPE_F32, 3);
    for (glu_act = ACT_SILU; glu_act <= ACT_GELU; glu_act++) {
        check_row_op(run_glu, check_glu, DTYPE_BF16, 3);
        check_row_op(run_glu, check_glu, DTYPE_BF16, 60);
    }
    check_row_op(run_cap, check_cap, DTYPE_F32, 3);
    check_row_op(run_cap, check_cap, DTYPE_F32, 1000);
    free(bias);
    free(w);
}

static void test_embed(void **state)
{
    (void)state;
    enum { VOCAB = 37, N = 51, ROWS = 5 };
    const i32 ids[ROWS] = {0, 36, -1, 16, 15}; /* -1: zeros */
    const char *levels[8];
    int n = runner_levels(levels);
    float *table = numbers(VOCAB * N, 1), y[ROWS * N];
    u16 half[VOCAB * N];
    for (u32 i = 0; i < VOCAB * N; i++) half[i] = bf16_from_f32(table[i]);
    for (int dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
        const void *rows = dtype == DTYPE_F32 ? (void *)table : (void *)half;
        void *data = aligned_alloc(CACHE_LINE, packed_bytes(dtype, VOCAB, N));
        pack_rows(data, dtype, VOCAB, N, 0, VOCAB, rows, dtype);
        struct packed packed = {.data = data, .dtype = dtype, .n_out = VOCAB, .n_in = N};
        for (int i = 0; i < 4 * n; i++) {
            float scale = i / 2 % 2 ? 2.5f : 0;
            struct embed_args a = {.table = i % 2 ? rows : NULL,
                                   .packed = &packed,
                                   .dtype = dtype,
                                   .ids = ids,
                                   .y = y,
                                   .rows = ROWS,
                                   .n = N,
                                   .ld_y = N,
                                   .scale = scale};
            memset(y, 0xff, sizeof y);
            for (u32 t = 0; t < 3; t++) ops_cpu(levels[i / 4])->embed(&a, (struct share){t, 3, NULL});
            for (u32 r = 0; r < ROWS; r++)
                for (u32 k = 0; k < N; k++) {
                    float stored = ids[r] < 0 ? 0 : number(rows, dtype, (size_t)ids[r] * N + k);
                    assert_true(y[r * N + k] == stored * (scale > 0 ? scale : 1));
                }
            if (i % 4 != 1) continue; /* a table, without scale: a second row on top */
            a.add = true;
            a.rows = 2;
            for (u32 t = 0; t < 3; t++) ops_cpu(levels[i / 4])->embed(&a, (struct share){t, 3, NULL});
            for (u32 k = 0; k < 2 * N; k++)
                assert_true(y[k] == 2 * number(rows, dtype, (size_t)ids[k / N] * N + k % N));
        }
        free(data);
    }
    free(table);
}

static void test_angles(void **state)
{
    (void)state;
    static const u32 positions[] = {0, 1, 2, 3, 100, 1023, 4096, 131071, 1000000};
    static const float inv[] = {1, 0.7853982f, 0.31622776f, 1e-3f, 1.5707964f, 1e-6f};
    enum { N = COUNT_OF(positions), HALF = COUNT_OF(inv) };
    const char *levels[8];
    int n = runner_levels(levels);
    float first[N * 2 * HALF], table[N * 2 * HALF];
    for (int i = 0; i < n; i++) {
        struct angles_args a = {.inv = inv, .positions = positions, .table = table, .rows = N, .half = HALF};
        ops_cpu(levels[i])->angles(&a, (struct share){0, 1, NULL});
        for (u32 r = 0; r < N; r++)
            for (u32 m = 0; m < HALF; m++) {
                double angle = (float)positions[r] * inv[m];
                assert_true(fabs(table[r * 2 * HALF + m] - cos(angle)) < 1e-7);
                assert_true(fabs(table[r * 2 * HALF + HALF + m] - sin(angle)) < 1e-7);
            }
        if (i == 0) memcpy(first, table, sizeof table);
        assert_memory_equal(first, table, sizeof table);
    }
}

/* Each row its own frequencies, and a factor. */
static void test_angles_of_rows(void **state)
{
    (void)state;
    static const u32 positions[] = {5, 70};
    static const float inv[] = {1, 0.5f, 0, 0.25f, 0.125f};
    const char *levels[8];
    int n = runner_levels(levels);
    for (int i = 0; i < n; i++) {
        float table[2 * 4];
        struct angles_args a = {.inv = inv,
                                .positions = positions,
                                .table = table,
                                .rows = 2,
                                .half = 2,
                                .ld_inv = 3,
                                .scale = 1.25f};
        for (u32 t = 0; t < 2; t++) ops_cpu(levels[i])->angles(&a, (struct share){t, 2, NULL});
        for (u32 r = 0; r < 2; r++)
            for (u32 m = 0; m < 2; m++) {
                double angle = (float)positions[r] * inv[r * 3 + m];
                assert_true(fabs(table[r * 4 + m] - 1.25 * cos(angle)) < 2e-7);
                assert_true(fabs(table[r * 4 + 2 + m] - 1.25 * sin(angle)) < 2e-7);
            }
    }
}

static void test_levels(void **state)
{
    (void)state;
    assert_int_equal(ops_isa_level("portable"), 0);
    assert_true(ops_isa_level("avx2") < ops_isa_level("avx512"));
    assert_true(ops_isa_level("avx512") < ops_isa_level("avx512bf16"));
    assert_int_equal(ops_isa_level("sse9"), -1);
    assert_null(ops_cpu("sse9"));
    assert_null(ops_isa_name(-1));
    assert_null(ops_isa_name(4));
    assert_string_equal(ops_cpu("portable")->name, "portable");
    assert_string_equal(ops_cpu(ops_cpu_best())->name, ops_cpu_best());
    assert_false(ops_cpu("portable")->native_bf16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_levels), cmocka_unit_test(test_conversions),
                                       cmocka_unit_test(test_pack),   cmocka_unit_test(test_pack_panels),
                                       cmocka_unit_test(test_linear), cmocka_unit_test(test_linear_extremes),
                                       cmocka_unit_test(test_rows),   cmocka_unit_test(test_embed),
                                       cmocka_unit_test(test_angles), cmocka_unit_test(test_angles_of_rows)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("ops", tests, NULL, NULL);
}
