/* ops: routing, sorting, products and sums of experts, against f64; the same bits for every batch, thread and instruction set. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>

#include "runner.h"

enum { ROWS = 23, MAX_E = 40, MAX_K = 6 };

static u64 lcg = 11;
static float any(void)
{
    lcg = lcg * 6364136223846793005ull + 1442695040888963407ull;
    return (float)((double)(lcg >> 11) / (1ull << 52) - 1);
}

static float *numbers(size_t n, float scale)
{
    float *x = aligned_alloc(CACHE_LINE, (n * 4 + CACHE_LINE) / CACHE_LINE * CACHE_LINE);
    for (size_t i = 0; i < n; i++) x[i] = scale * any();
    return x;
}

/* ---- routing */
static const struct moe_config routings[] = {
    {.experts = 8, .per_token = 2, .groups = 1, .top_groups = 1, .renormalise = true, .scale = 1},
    {.experts = 19, .per_token = 4, .groups = 1, .top_groups = 1, .scale = 1},
    {.experts = 16, .per_token = 4, .groups = 4, .top_groups = 2, .scale = 4},
    {.experts = 40,
     .per_token = 6,
     .groups = 8,
     .top_groups = 3,
     .pair_groups = true,
     .correction = true,
     .renormalise = true,
     .scale = 2.5f,
     .score = SCORE_SIGMOID},
    {.experts = 33, .per_token = 4, .groups = 1, .top_groups = 1, .scale = 1, .score = SCORE_CHOSEN},
    {.experts = 1, .per_token = 1, .groups = 1, .top_groups = 1, .scale = 1},
};

static u32 best_of(const double *x, const bool *out, u32 n)
{
    u32 best = n;
    for (u32 i = 0; i < n; i++)
        if (!out[i] && (best == n || x[i] > x[best])) best = i;
    return best;
}

/* By the words of the door, one row. */
static void route_double(const struct moe_config *m, const float *z, const float *correction, u32 *ids,
                         double *w)
{
    double p[MAX_E], c[MAX_E], best[MAX_E], sum = 0;
    bool out[MAX_E] = {false}, kept[MAX_E] = {false};
    u32 size = m->experts / m->groups;
    for (u32 e = 0; e < m->experts; e++) sum += exp(z[e]);
    for (u32 e = 0; e < m->experts; e++) {
        p[e] = m->score == SCORE_SOFTMAX   ? exp(z[e]) / sum
               : m->score == SCORE_SIGMOID ? 1 / (1 + exp(-z[e]))
                                           : z[e];
        c[e] = p[e] + (m->correction ? correction[e] : 0);
    }
    for (u32 g = 0; g < m->groups; g++) {
        bool seen[MAX_E] = {false};
        u32 a = best_of(c + g * size, seen, size);
        best[g] = c[g * size + a];
        seen[a] = true;
        if (m->pair_groups) best[g] += c[g * size + best_of(c + g * size, seen, size)];
    }
    for (u32 i = 0; i < m->top_groups; i++) kept[best_of(best, kept, m->groups)] = true;
    for (u32 e = 0; e < m->experts; e++) out[e] = !kept[e / size];
    sum = 0;
    for (u32 j = 0; j < m->per_token; j++) {
        out[ids[j] = best_of(c, out, m->experts)] = true;
        w[j] = m->score == SCORE_CHOSEN ? exp(p[ids[j]]) : p[ids[j]];
        sum += w[j];
    }
    for (u32 j = 0; j < m->per_token; j++)
        w[j] *= m->scale / (m->renormalise || m->score == SCORE_CHOSEN ? sum : 1);
}

static void check_routing(const struct moe_config *m)
{
    const char *levels[8];
    int n = runner_levels(levels);
    u32 ld = m->experts + 3, ids[ROWS * MAX_K], first[ROWS * MAX_K];
    float *z = numbers(ROWS * ld, 3), *correction = numbers(m->experts, 0.3f);
    float w[ROWS * MAX_K], first_w[ROWS * MAX_K];
    for (int i = 0; i < n; i++) {
        struct route_args a = {.moe = m,
                               .logits = z,
                               .correction = m->correction ? correction : NULL,
                               .ids = ids,
                               .weights = w,
                               .rows = ROWS,
                               .ld = ld};
        for (u32 t = 0; t < 3; t++) ops_cpu(levels[i])->route(&a, (struct share){t, 3, NULL});
        for (u32 r = 0; r < ROWS; r++) {
            u32 want[MAX_K];
            double weights[MAX_K];
            route_double(m, z + r * ld, correction, want, weights);
            for (u32 j = 0; j < m->per_token; j++) {
                assert_int_equal(ids[r * m->per_token + j], want[j]);
                assert_true(fabs(w[r * m->per_token + j] - weights[j]) <= 2e-6 * (weights[j] + 0.1));
            }
        }
        if (i == 0) memcpy(first, ids, sizeof ids);
        if (i == 0) memcpy(first_w, w, sizeof w);
        assert_memory_equal(first, ids, (size_t)ROWS * m->per_token * 4);
        assert_memory_equal(first_w, w, (size_t)ROWS * m->per_token * 4);
    }
    free(z);
    free(correction);
}

static void test_routing(void **state)
{
    (void)state;
    for (u32 i = 0; i < COUNT_OF(routings); i++) check_routing(&routings[i]);
}

/* Equal scores: the lower expert. Numbers that are none: experts that exist. */
static void test_routing_edges(void **state)
{
    (void)state;
    const struct moe_config m = {.experts = 8, .per_token = 3, .groups = 2, .top_groups = 1, .scale = 1};
    const char *levels[8];
    int n = runner_levels(levels);
    for (int i = 0; i < n; i++) {
        float z[2][8] = {{1, 2, 2, 1, 1, 2, 1, 2}}, w[6];
        u32 ids[6];
        for (u32 e = 0; e < 8; e++) z[1][e] = NAN;
        struct route_args a = {.moe = &m, .logits = z[0], .ids = ids, .weights = w, .rows = 2, .ld = 8};
        ops_cpu(levels[i])->route(&a, (struct share){0, 1, NULL});
        assert_true(ids[0] == 1 && ids[1] == 2 && ids[2] == 0);
        assert_true(ids[3] < 8 && ids[4] < 8 && ids[5] < 8 && isnan(w[3]));
    }
}

/* ---- a layer of experts */
struct layer {
    u32 experts, k, n_in, n_out;
    enum dtype w_dtype, x_dtype;
    u8 *data;
    size_t stride;
    float *w, *bias, *x, *weights, *shared, *gate, *old;
    u8 *act;
    u32 ids[ROWS * MAX_K];
};

static void layer_make(struct layer *l)
{
    u32 ld = (l->n_in + 1) & ~1u;
    l->stride = packed_bytes(l->w_dtype, l->n_out, l->n_in);
    l->data = aligned_alloc(CACHE_LINE, l->stride * l->experts);
    l->w = numbers((size_t)l->experts * l->n_out * l->n_in, 1);
    for (size_t i = 0; l->w_dtype == DTYPE_BF16 && i < (size_t)l->experts * l->n_out * l->n_in; i++)
        l->w[i] = f32_from_bf16(bf16_from_f32(l->w[i]));
    for (u32 e = 0; e < l->experts; e++)
        pack_rows(l->data + e * l->stride, l->w_dtype, l->n_out, l->n_in, 0, l->n_out,
                  l->w + (size_t)e * l->n_out * l->n_in, DTYPE_F32);
    l->bias = numbers((size_t)l->experts * l->n_out, 1);
    l->x = numbers((size_t)ROWS * ld, 1);
    l->act = malloc((size_t)ROWS * ld * 4);
    for (u32 i = 0; i < ROWS * ld; i++) {
        if (i % ld >= l->n_in) l->x[i] = 0;
        if (l->x_dtype == DTYPE_BF16) {
            u16 h = bf16_from_f32(l->x[i]);
            memcpy(l->act + i * 2, &h, 2);
            l->x[i] = f32_from_bf16(h);
        } else {
            memcpy(l->act + i * 4, &l->x[i], 4);
        }
    }
    l->weights = numbers(ROWS * l->k, 1);
    l->shared = numbers((size_t)ROWS * l->n_out, 1);
    l->gate = numbers(ROWS, 2);
    l->old = numbers((size_t)ROWS * l->n_out, 1);
    for (u32 r = 0; r < ROWS; r++) /* few experts, so that some have none and some many */
        for (u32 j = 0; j < l->k; j++)
            l->ids[r * l->k + j] = (r * r + j * 3) % l->experts % (l->experts / 2 + 3);
}

static void layer_free(struct layer *l)
{
    void *parts[] = {l->data, l->w, l->bias, l->x, l->weights, l->shared, l->gate, l->old, l->act};
    for (size_t i = 0; i < COUNT_OF(parts); i++) free(parts[i]);
}

/* Rows [r0, r0 + rows) through sort, gather, products and sum, to y [rows, n_out]. */
static void layer_run(const struct ops *ops, const struct layer *l, u32 r0, u32 rows, bool add, u32 threads,
                      float *y)
{
    u32 pairs = rows * l->k, ld = (l->n_in + 1) & ~1u, start[MAX_E + 1];
    u32 *order = malloc(pairs * 4), *place = malloc(pairs * 4);
    size_t element = l->x_dtype == DTYPE_F32 ? 4 : 2;
    u8 *sorted = malloc(pairs * ld * element);
    float *out = malloc((size_t)pairs * l->n_out * 4);
    _Atomic u32 ticket = 0;
    memcpy(y, l->old + (size_t)r0 * l->n_out, (size_t)rows * l->n_out * 4);
    struct group_args g = {.ids = l->ids + r0 * l->k,
                           .start = start,
                           .order = order,
                           .place = place,
                           .pairs = pairs,
                           .experts = l->experts};
    struct gather_args t = {.x = l->act + r0 * ld * element,
                            .y = sorted,
                            .dtype = l->x_dtype,
                            .order = order,
                            .pairs = pairs,
                            .per_token = l->k,
                            .n = l->n_in,
                            .ld_x = ld,
                            .ld_y = ld};
    struct experts_args e = {.w = {.data = l->data, .dtype = l->w_dtype, .n_out = l->n_out, .n_in = l->n_in},
                             .stride = l->stride,
                             .bias = l->bias,
                             .bias_stride = l->n_out,
                             .x = sorted,
                             .x_dtype = l->x_dtype,
                             .start = start,
                             .experts = l->experts,
                             .ld_x = ld,
                             .ld_y = l->n_out,
                             .y = out,
                             .ticket = &ticket};
    struct combine_args c = {.x = out,
                             .weights = l->weights + r0 * l->k,
                             .place = place,
                             .shared = add ? l->shared + (size_t)r0 * l->n_out : NULL,
                             .shared_gate = add ? l->gate + r0 : NULL,
                             .y = y,
                             .rows = rows,
                             .per_token = l->k,
                             .n = l->n_out,
                             .ld_x = l->n_out,
                             .ld_shared = l->n_out,
                             .ld_y = l->n_out,
                             .add = add};
    for (u32 i = 0; i < threads; i++) ops->group(&g, (struct share){i, threads, NULL});
    for (u32 i = 0; i < threads; i++) ops->gather(&t, (struct share){i, threads, NULL});
    for (u32 i = 0; i < threads; i++) ops->experts(&e, (struct share){i, threads, NULL});
    for (u32 i = 0; i < threads; i++) ops->combine(&c, (struct share){i, threads, NULL});
    free(order);
    free(place);
    free(sorted);
    free(out);
}

static void layer_check(const struct layer *l, bool add, const float *y)
{
    u32 ld = (l->n_in + 1) & ~1u;
    for (u32 r = 0; r < ROWS; r++)
        for (u32 o = 0; o < l->n_out; o++) {
            double sum = 0, size = 1;
            for (u32 j = 0; j < l->k; j++) {
                u32 e = l->ids[r * l->k + j];
                double part = l->bias[e * l->n_out + o];
                for (u32 i = 0; i < l->n_in; i++) {
                    double term = (double)l->x[r * ld + i] * l->w[((size_t)e * l->n_out + o) * l->n_in + i];
                    part += term;
                    size += fabs(term * l->weights[r * l->k + j]);
                }
                sum += part * l->weights[r * l->k + j];
            }
            if (add) sum += l->old[r * l->n_out + o] + l->shared[r * l->n_out + o] / (1 + exp(-l->gate[r]));
            if (!(fabs(y[r * l->n_out + o] - sum) <= 2e-6 * size))
                fail_msg("[%u][%u]: %g, not %g", r, o, y[r * l->n_out + o], sum);
        }
}

static void check_layer(struct layer *l)
{
    const char *levels[8];
    int n = runner_levels(levels);
    size_t bytes = (size_t)ROWS * l->n_out * 4;
    float *first = malloc(bytes), *y = malloc(bytes);
    layer_make(l);
    for (int i = 0; i < n; i++) {
        const struct ops *ops = ops_cpu(levels[i]);
        layer_run(ops, l, 0, ROWS, false, 1, y);
        layer_check(l, false, y);
        layer_run(ops, l, 0, ROWS, true, 3, y);
        layer_check(l, true, y);
        if (i == 0) memcpy(first, y, bytes);
        assert_memory_equal(first, y, bytes);
        for (u32 rows = 1; rows < ROWS; rows += 4)
            for (u32 r0 = 0; r0 + rows <= ROWS; r0 += rows) {
                layer_run(ops, l, r0, rows, true, 2, y);
                assert_memory_equal(first + (size_t)r0 * l->n_out, y, (size_t)rows * l->n_out * 4);
            }
    }
    layer_free(l);
    free(first);
    free(y);
}

static void test_layers(void **state)
{
    (void)state;
    static const enum dtype kinds[][2] = {
        {DTYPE_F32, DTYPE_F32}, {DTYPE_BF16, DTYPE_F32}, {DTYPE_BF16, DTYPE_BF16}};
    static const u32 shapes[][4] = {{8, 2, 33, 48}, {40, 6, 64, 150}, {1, 1, 20, 16}, {5, 3, 130, 300}};
    for (u32 k = 0; k < COUNT_OF(kinds); k++)
        for (u32 i = 0; i < COUNT_OF(shapes); i++) {
            struct layer l = {.experts = shapes[i][0],
                              .k = shapes[i][1],
                              .n_in = shapes[i][2],
                              .n_out = shapes[i][3],
                              .w_dtype = kinds[k][0],
                              .x_dtype = kinds[k][1]};
            check_layer(&l);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_routing), cmocka_unit_test(test_routing_edges),
                                       cmocka_unit_test(test_layers)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("ops_experts", tests, NULL, NULL);
}
