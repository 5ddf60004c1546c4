/* ops: quantised weights: their codes, products against f64, the same bits for every batch, thread and instruction set. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>

#include "runner.h"

enum { ROWS = 17, WIDEST = 700 };

static u64 lcg = 3;
static u32 bits(void)
{
    lcg = lcg * 6364136223846793005ull + 1442695040888963407ull;
    return (u32)(lcg >> 32);
}
static float any(void)
{
    return (float)((double)bits() / (1u << 31) - 1);
}

/* ---- numbers in few bits */
static void test_f8(void **state)
{
    (void)state;
    for (u32 i = 0; i < 256; i++) {
        int exponent = (int)(i >> 3 & 15);
        double m = i & 7, value = exponent ? (1 + m / 8) * pow(2, exponent - 7) : m / 8 * pow(2, -6);
        float got = f32_from_f8((u8)i);
        if ((i & 0x7f) == 0x7f)
            assert_true(isnan(got));
        else
            assert_true((double)got == (i & 0x80 ? -value : value));
    }
    assert_true(f32_from_f8(0x7e) == 448);
}

static void test_f4(void **state)
{
    (void)state;
    for (u32 i = 0; i < 16; i++) {
        u32 exponent = i >> 1 & 3, m = i & 1;
        double value = exponent ? (1 + m / 2.0) * pow(2, (int)exponent - 1) : m / 2.0;
        assert_true((double)f32_from_f4((u8)i) == (i & 8 ? -value : value));
    }
}

/* ---- products */
struct product {
    struct packed w;
    void *data;
    u8 *codes;
    float *scales, *zeros, *x, *old;
    u32 groups, ld;
};

static void product_make(struct product *p, enum dtype dtype, u32 n_out, u32 n_in, u32 group, u32 lead)
{
    *p = (struct product){.w = {.dtype = dtype, .n_out = n_out, .n_in = n_in, .group = group, .lead = lead}};
    p->groups = packed_groups(&p->w);
    p->ld = ((n_in + 1) & ~1u) + 2;
    p->codes = malloc((size_t)n_out * n_in);
    for (size_t i = 0; i < (size_t)n_out * n_in; i++) {
        p->codes[i] = (u8)(bits() >> 8);
        if (dtype == DTYPE_F8 && (p->codes[i] & 0x7f) == 0x7f) p->codes[i] = 0;
        if (dtype >= DTYPE_I4) p->codes[i] &= 15;
    }
    p->scales = malloc((size_t)n_out * p->groups * 4);
    p->zeros = malloc((size_t)n_out * p->groups * 4);
    for (size_t i = 0; i < (size_t)n_out * p->groups; i++) {
        p->scales[i] = any() * 0.1f;
        p->zeros[i] = (float)(bits() % 17);
    }
    p->x = calloc(ROWS * (size_t)p->ld, 4);
    p->old = malloc(ROWS * (size_t)n_out * 4);
    for (u32 r = 0; r < ROWS; r++)
        for (u32 k = 0; k < n_in; k++) p->x[r * p->ld + k] = any();
    for (u32 i = 0; i < ROWS * n_out; i++) p->old[i] = any();
    size_t bytes = packed_size(&p->w);
    assert_int_equal(bytes % 64, 0);
    p->data = aligned_alloc(CACHE_LINE, bytes);
    memset(p->data, 0xff, bytes);
    u32 half = n_out / 2;
    const float *zeros = dtype == DTYPE_I4 ? p->zeros : NULL;
    pack_codes(p->data, &p->w, half, n_out - half, p->codes + (size_t)half * n_in,
               p->scales + half * p->groups,
               zeros ? zeros + half * p->groups : NULL); /* in two calls, the last rows first */
    pack_codes(p->data, &p->w, 0, half, p->codes, p->scales, zeros);
    p->w.data = p->data;
}

static void product_free(struct product *p)
{
    void *parts[] = {p->data, p->codes, p->scales, p->zeros, p->x, p->old};
    for (size_t i = 0; i < COUNT_OF(parts); i++) free(parts[i]);
}

static double weight(const struct product *p, u32 o, u32 k)
{
    u32 g = k < p->w.lead ? 0 : 1 + (k - p->w.lead) / p->w.group;
    u8 code = p->codes[(size_t)o * p->w.n_in + k];
    double scale = p->scales[o * p->groups + g];
    switch (p->w.dtype) {
    case DTYPE_F8: return f32_from_f8(code) * scale;
    case DTYPE_I8: return (i8)code * scale;
    case DTYPE_I4: return (code - (double)p->zeros[o * p->groups + g]) * scale;
    default: return f32_from_f4(code) * scale;
    }
}

static void product_run(const struct ops *ops, const struct product *p, u32 r0, u32 rows, u32 n, float *y)
{
    memcpy(y, p->old + (size_t)r0 * p->w.n_out, (size_t)rows * p->w.n_out * 4);
    struct linear_args a = {.w = &p->w,
                            .x = p->x + (size_t)r0 * p->ld,
                            .x_dtype = DTYPE_F32,
                            .rows = rows,
                            .ld_x = p->ld,
                            .ld_y = p->w.n_out,
                            .y = y,
                            .add = true};
    for (u32 i = 0; i < n; i++) ops->linear(&a, (struct share){i, n, NULL});
}

static void check_product(const struct product *p, const float *y)
{
    for (u32 r = 0; r < ROWS; r++)
        for (u32 o = 0; o < p->w.n_out; o++) {
            double sum = p->old[r * p->w.n_out + o], size = 1;
            for (u32 k = 0; k < p->w.n_in; k++) {
                double term = p->x[r * p->ld + k] * weight(p, o, k);
                sum += term;
                size += fabs(term);
            }
            if (!(fabs(y[r * p->w.n_out + o] - sum) <= 1e-6 * size))
                fail_msg("[%u][%u]: %g, not %g", r, o, y[r * p->w.n_out + o], sum);
        }
}

static void check_shape(enum dtype dtype, u32 n_out, u32 n_in, u32 group, u32 lead)
{
    static const u32 shares[] = {2, 3, 7};
    const char *levels[8];
    int n = runner_levels(levels);
    struct product p;
    product_make(&p, dtype, n_out, n_in, group, lead);
    size_t bytes = (size_t)ROWS * n_out * 4;
    float *first = malloc(bytes), *y = malloc(bytes);
    for (int i = 0; i < n; i++) {
        const struct ops *ops = ops_cpu(levels[i]);
        product_run(ops, &p, 0, ROWS, 1, y);
        check_product(&p, y);
        if (i == 0) memcpy(first, y, bytes);
        assert_memory_equal(first, y, bytes);
        for (u32 rows = 1; rows <= ROWS; rows += 2)
            for (u32 r0 = 0; r0 + rows <= ROWS; r0 += rows) {
                product_run(ops, &p, r0, rows, 1, y);
                assert_memory_equal(first + (size_t)r0 * n_out, y, (size_t)rows * n_out * 4);
            }
        for (u32 s = 0; s < COUNT_OF(shares); s++) {
            product_run(ops, &p, 0, ROWS, shares[s], y);
            assert_memory_equal(first, y, bytes);
        }
    }
    free(first);
    free(y);
    product_free(&p);
}

static void test_products(void **state)
{
    (void)state;
    static const u32 shapes[][4] = {{1, 1, 32, 32},    {17, 2, 2, 2},        {48, 64, 32, 32},
                                    {100, 33, 16, 16}, {150, 300, 128, 128}, {70, 259, 128, 44},
                                    {33, 699, 64, 2},  {20, 40, 128, 100}};
    for (enum dtype dtype = DTYPE_F8; dtype <= DTYPE_F4; dtype++)
        for (u32 i = 0; i < COUNT_OF(shapes); i++)
            check_shape(dtype, shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3]);
}

/* ---- numbers to codes: each within half a step of what it was, zeros and extremes exact */
static void check_codes(enum dtype dtype, u32 n_in, u32 group, u32 lead)
{
    enum { N = 5 };
    struct product p = {.w = {.dtype = dtype, .n_out = N, .n_in = n_in, .group = group, .lead = lead}};
    p.groups = packed_groups(&p.w);
    float *x = malloc(N * n_in * 4), scales[N * 64], zeros[N * 64];
    u8 *codes = malloc(N * n_in);
    for (u32 i = 0; i < N * n_in; i++) x[i] = i % 11 == 0 ? 0 : any() + (i / n_in == 3 ? 2 : 0);
    for (u32 k = 0; k < n_in; k++) x[4 * n_in + k] = 0;
    quantise_rows(&p.w, N, x, DTYPE_F32, codes, scales, zeros);
    p.codes = codes;
    p.scales = scales;
    p.zeros = zeros;
    for (u32 o = 0; o < N; o++)
        for (u32 k = 0; k < n_in; k++) {
            u32 g = k < lead ? 0 : 1 + (k - lead) / group;
            double step = scales[o * p.groups + g], off = fabs(weight(&p, o, k) - (double)x[o * n_in + k]);
            assert_true(off <= step * (dtype == DTYPE_I4 ? 1.001 : 0.501));
            assert_true(x[o * n_in + k] != 0 || off == 0);
            assert_true(o < 4 || step == 0);
        }
    free(x);
    free(codes);
}

static void test_codes(void **state)
{
    (void)state;
    for (enum dtype dtype = DTYPE_I8; dtype <= DTYPE_I4; dtype++) {
        check_codes(dtype, 300, 32, 32);
        check_codes(dtype, 77, 128, 128);
        check_codes(dtype, 200, 64, 10);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_f8), cmocka_unit_test(test_f4),
                                       cmocka_unit_test(test_products), cmocka_unit_test(test_codes)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("ops_quant", tests, NULL, NULL);
}
