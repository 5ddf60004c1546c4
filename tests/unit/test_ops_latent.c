/* ops: multi-head latent attention, against f64; the same bits however tokens are grouped and from every instruction set. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>

#include "runner.h"

struct setting {
    u32 heads, nope, rope, rank, block, length;
    bool interleaved;
};
static const struct setting settings[] = {{4, 16, 8, 32, 16, 300, true},
                                          {20, 8, 4, 46, 32, 70, false},
                                          {2, 128, 64, 512, 16, 270, true},
                                          {1, 2, 2, 2, 16, 40, true}};

struct scene {
    struct setting s;
    u32 d; /* of a row of the pool */
    float *q, *latent, *norm, *angles;
    float *q_out, *latent_out, *absorbed;
    struct kv_pool kv;
    u32 *blocks;
    struct place *places;
    float *out;
};

static u64 lcg = 7;
static float *numbers(size_t n, float scale)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        lcg = lcg * 6364136223846793005ull + 1442695040888963407ull;
        x[i] = scale * (float)((double)(lcg >> 11) / (1ull << 52) - 1);
    }
    return x;
}

static size_t q_size(const struct scene *x)
{
    return (size_t)x->s.length * x->s.heads * (x->s.nope + x->s.rope);
}

static void scene_make(struct scene *x, const struct setting *s)
{
    u32 n_blocks = s->length / s->block + 1, half = s->rope / 2;
    *x = (struct scene){.s = *s, .d = s->rank + s->rope};
    x->q = numbers(q_size(x), 2);
    x->latent = numbers((size_t)s->length * x->d, 2);
    x->norm = numbers(s->rank, 1);
    x->angles = malloc((size_t)s->length * s->rope * 4);
    for (u32 t = 0; t < s->length; t++)
        for (u32 m = 0; m < half; m++) {
            x->angles[t * s->rope + m] = (float)cos(t * pow(1000, -2.0 * m / s->rope));
            x->angles[t * s->rope + half + m] = (float)sin(t * pow(1000, -2.0 * m / s->rope));
        }
    x->q_out = malloc(q_size(x) * 4);
    x->latent_out = malloc((size_t)s->length * x->d * 4);
    x->absorbed =
        numbers((size_t)s->length * s->heads * x->d, 1); /* its first parts stand for absorbed products */
    x->blocks = malloc(n_blocks * sizeof *x->blocks);
    x->places = malloc(s->length * sizeof *x->places);
    for (u32 b = 0; b < n_blocks; b++) x->blocks[b] = n_blocks - 1 - b;
    for (u32 t = 0; t < s->length; t++) x->places[t] = (struct place){x->blocks[t / s->block], t % s->block};
    x->out = malloc((size_t)s->length * s->heads * s->rank * 4);
}

static void scene_free(struct scene *x)
{
    void *parts[] = {x->q,        x->latent,    x->norm,   x->angles, x->q_out, x->latent_out,
                     x->absorbed, x->kv.memory, x->blocks, x->places, x->out};
    for (size_t i = 0; i < COUNT_OF(parts); i++) free(parts[i]);
}

static float scale_of(const struct scene *x)
{
    return 1 / sqrtf((float)(x->s.nope + x->s.rope));
}

/* Into the second of three layers of a pool that is NaN elsewhere. */
static void store_tokens(struct scene *x, const struct ops *ops, enum dtype dtype, u32 threads)
{
    const struct setting *s = &x->s;
    free(x->kv.memory);
    kv_pool_init_latent(&x->kv, dtype, 3, s->rank, s->rope, s->block);
    size_t bytes = x->kv.block_bytes * (s->length / s->block + 1);
    x->kv.memory = aligned_alloc(CACHE_LINE, bytes);
    memset(x->kv.memory, 0xff, bytes);
    memcpy(x->q_out, x->q, q_size(x) * 4);
    memcpy(x->latent_out, x->latent, (size_t)s->length * x->d * 4);
    struct latent_args a = {.q = x->q_out,
                            .absorbed = x->absorbed,
                            .latent = x->latent_out,
                            .norm = x->norm,
                            .angles = x->angles,
                            .eps = 1e-6f,
                            .scale = scale_of(x),
                            .interleaved = s->interleaved,
                            .kv = &x->kv,
                            .places = x->places,
                            .layer = 1,
                            .heads = s->heads,
                            .rows = s->length,
                            .nope = s->nope,
                            .rope = s->rope,
                            .rank = s->rank,
                            .ld_q = s->heads * (s->nope + s->rope),
                            .ld_absorbed = s->heads * x->d,
                            .ld_latent = x->d};
    for (u32 i = 0; i < threads; i++) ops->latent(&a, (struct share){i, threads, NULL});
}

static void rotate(const struct scene *x, u32 t, const float *from, double scale, double *to)
{
    u32 half = x->s.rope / 2;
    for (u32 m = 0; m < half; m++) {
        double c = x->angles[t * 2 * half + m], s = x->angles[t * 2 * half + half + m];
        double a = x->s.interleaved ? from[2 * m] : from[m],
               b = x->s.interleaved ? from[2 * m + 1] : from[m + half];
        to[m] = (a * c - b * s) * scale;
        to[m + half] = (b * c + a * s) * scale;
    }
}

static double pooled(const struct scene *x, u32 t, u32 j)
{
    const u8 *head = x->kv.memory + x->places[t].block * x->kv.block_bytes + x->kv.head_bytes;
    size_t at = (size_t)x->places[t].offset * x->d + j;
    const u16 *half = (const u16 *)(const void *)head;
    switch (x->kv.dtype) {
    case DTYPE_F32: return ((const float *)(const void *)head)[at];
    case DTYPE_BF16: return f32_from_bf16(half[at]);
    case DTYPE_F16: return f32_from_f16(half[at]);
    default:
        return (double)(i8)head[at] *
               ((const float *)(const void *)(head + x->kv.k_scales))[x->places[t].offset];
    }
}

static void check_stored(const struct scene *x)
{
    const struct setting *s = &x->s;
    static const double slacks[] = {
        [DTYPE_F32] = 2e-6, [DTYPE_BF16] = 8e-3, [DTYPE_F16] = 2e-3, [DTYPE_I8] = 3e-2};
    double slack = slacks[x->kv.dtype], want[64];
    for (u32 t = 0; t < s->length; t++) {
        const float *row = x->latent + (size_t)t * x->d;
        double squares = 0;
        for (u32 j = 0; j < s->rank; j++) squares += (double)row[j] * row[j];
        for (u32 j = 0; j < s->rank; j++)
            assert_true(fabs(pooled(x, t, j) - row[j] / sqrt(squares / s->rank + 1e-6) * x->norm[j]) < slack);
        rotate(x, t, row + s->rank, 1, want);
        for (u32 j = 0; j < s->rope; j++) assert_true(fabs(pooled(x, t, s->rank + j) - want[j]) < 2 * slack);
        for (u32 h = 0; h < s->heads; h++) {
            size_t at = ((size_t)t * s->heads + h) * (s->nope + s->rope);
            rotate(x, t, x->q + at + s->nope, (double)scale_of(x), want);
            for (u32 j = 0; j < s->nope; j++)
                assert_true(fabs(x->q_out[at + j] - (double)x->q[at + j] * scale_of(x)) < 1e-6);
            for (u32 j = 0; j < s->rope; j++)
                assert_true(fabs(x->absorbed[((size_t)t * s->heads + h) * x->d + s->rank + j] - want[j]) <
                            2e-6);
        }
    }
}

static void attend(struct scene *x, const struct ops *ops, u32 most)
{
    struct attn_span *spans = malloc(x->s.length * sizeof *spans);
    _Atomic u32 ticket = 0;
    u32 n = 0, fit = attn_tokens(x->s.heads), step = most && most < fit ? most : fit;
    for (u32 t = 0; t < x->s.length; t += step)
        spans[n++] = (struct attn_span){x->blocks, t, t, MIN_OF(step, x->s.length - t), 0};
    struct attn_args a = {.q = x->absorbed,
                          .out = x->out,
                          .out_dtype = DTYPE_F32,
                          .kv = &x->kv,
                          .spans = spans,
                          .n_spans = n,
                          .layer = 1,
                          .heads = x->s.heads,
                          .ld_q = x->s.heads * x->d,
                          .ld_out = x->s.heads * x->s.rank,
                          .ticket = &ticket};
    ops->attn(&a, (struct share){0, 1, NULL});
    free(spans);
}

static void check_token(const struct scene *x, u32 t)
{
    const struct setting *s = &x->s;
    double p[600], o[512];
    for (u32 h = 0; h < s->heads; h++) {
        const float *q = x->absorbed + ((size_t)t * s->heads + h) * x->d;
        double top = -INFINITY, sum = 0;
        for (u32 u = 0; u <= t; u++) {
            p[u] = 0;
            for (u32 j = 0; j < x->d; j++) p[u] += q[j] * pooled(x, u, j);
            top = fmax(top, p[u]);
        }
        memset(o, 0, sizeof o);
        for (u32 u = 0; u <= t; u++) {
            sum += p[u] = exp(p[u] - top);
            for (u32 j = 0; j < s->rank; j++) o[j] += p[u] * pooled(x, u, j);
        }
        for (u32 j = 0; j < s->rank; j++) {
            double got = x->out[((size_t)t * s->heads + h) * s->rank + j];
            if (!(fabs(got - o[j] / sum) <= 5e-5))
                fail_msg("rank %u, token %u, head %u, %u: %g, not %g", s->rank, t, h, j, got, o[j] / sum);
        }
    }
}

static void check_setting(const struct setting *s, enum dtype dtype)
{
    const char *levels[8];
    int n = runner_levels(levels);
    struct scene x;
    scene_make(&x, s);
    size_t bytes = (size_t)s->length * s->heads * s->rank * 4;
    float *first = malloc(bytes);
    for (int i = 0; i < n; i++) {
        store_tokens(&x, ops_cpu(levels[i]), dtype, i % 2 ? 5 : 1);
        check_stored(&x);
        for (u32 most = 0; most < 3; most++) {
            memset(x.out, 0xff, bytes);
            attend(&x, ops_cpu(levels[i]), most);
            if (i == 0 && most == 0) {
                for (u32 t = 0; t<s->length; t += t % 256> 250 || t % 256 < 3 ? 1 : 17) check_token(&x, t);
                memcpy(first, x.out, bytes);
            }
            assert_memory_equal(first, x.out, bytes);
        }
    }
    free(first);
    scene_free(&x);
}

static void test_latent(void **state)
{
    (void)state;
    for (u32 i = 0; i < COUNT_OF(settings); i++) {
        check_setting(&settings[i], DTYPE_F32);
        check_setting(&settings[i], DTYPE_BF16);
        check_setting(&settings[i], DTYPE_F16);
        check_setting(&settings[i], DTYPE_I8);
    }
}

/* rank + rope numbers a token, once. */
static void test_pool(void **state)
{
    (void)state;
    struct kv_pool kv;
    kv_pool_init_latent(&kv, DTYPE_BF16, 61, 512, 64, 16);
    assert_int_equal(kv.block_bytes, 61 * 16 * 576 * 2);
    assert_int_equal(kv.value_dim, 512);
    kv_pool_init_latent(&kv, DTYPE_F32, 2, 32, 8, 16);
    assert_int_equal(kv.block_bytes, 2 * 16 * 40 * 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_pool), cmocka_unit_test(test_latent)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("ops_latent", tests, NULL, NULL);
}
