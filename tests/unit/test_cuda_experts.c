/* CUDA kernels (emulated) of experts: routing, sorting and the sums against the CPU's, which are checked against f64; products of experts
 * and heads against f64. Every type, sizes around tiles, experts without tokens, several orders of threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "cuda_world.h"

static const enum dtype types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
static const struct share cpu = {0, 1, NULL};
static struct device *d;

static float *random_row(size_t n, u64 seed)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = random_number(&seed);
    return x;
}

static void release(void *const *all, u32 n)
{
    for (u32 i = 0; i < n; i++) device_free(d, all[i]);
}

/* ---- routing */
static const struct moe_config routings[] = {
    {.experts = 8, .per_token = 2, .groups = 1, .top_groups = 1, .renormalise = true, .scale = 1},
    {.experts = 130, .per_token = 8, .groups = 1, .top_groups = 1, .scale = 1},
    {.experts = 16, .per_token = 4, .groups = 4, .top_groups = 2, .scale = 4},
    {.experts = 256,
     .per_token = 8,
     .groups = 8,
     .top_groups = 4,
     .pair_groups = true,
     .correction = true,
     .renormalise = true,
     .scale = 2.5f,
     .score = SCORE_SIGMOID},
    {.experts = 33, .per_token = 4, .groups = 1, .top_groups = 1, .scale = 1, .score = SCORE_CHOSEN},
    {.experts = 1, .per_token = 1, .groups = 1, .top_groups = 1, .scale = 1},
    {.experts = 1024, .per_token = 1024, .groups = 1, .top_groups = 1, .scale = 1},
};

/* wild: equal logits, and some that are no numbers: every choice is an expert, and none is chosen twice. */
static void check_routing(const struct moe_config *m, bool wild)
{
    enum { ROWS = 5 };
    u32 ld = m->experts + 3, k = m->per_token;
    size_t pairs = (size_t)ROWS * k;
    float *z = random_row(ROWS * ld, 3), *correction = random_row(m->experts, 4);
    u32 *ids = malloc(2 * pairs * 4);
    float *w = malloc(2 * pairs * 4);
    for (u32 i = 0; wild && i < ROWS * ld; i++) z[i] = i % 7 == 0 ? NAN : i % 5 ? 0.5f : 1;
    struct route_args a = {.moe = m,
                           .logits = z,
                           .correction = m->correction ? correction : NULL,
                           .ids = ids,
                           .weights = w,
                           .rows = ROWS,
                           .ld = ld};
    ops_cpu("portable")->route(&a, cpu);
    void *all[] = {cuda_memory(d, z, ROWS * ld * 4), cuda_memory(d, correction, m->experts * 4),
                   cuda_memory(d, NULL, pairs * 4), cuda_memory(d, NULL, pairs * 4)};
    a.logits = all[0];
    if (a.correction) a.correction = all[1];
    a.ids = all[2];
    a.weights = all[3];
    ops_cuda()->route(&a, cuda_share(d));
    cuda_fetch(d, ids + pairs, a.ids, pairs * 4);
    cuda_fetch(d, w + pairs, a.weights, pairs * 4);
    for (size_t i = 0; i < pairs && !wild; i++) {
        assert_int_equal(ids[pairs + i], ids[i]);
        assert_true(fabsf(w[pairs + i] - w[i]) <= 2e-6f * (w[i] + 0.1f));
    }
    for (u32 r = 0; r < ROWS; r++) {
        bool taken[1024] = {false};
        for (u32 j = 0; j < k; j++) {
            u32 e = ids[pairs + r * k + j];
            assert_true(e < m->experts && !taken[e]);
            taken[e] = true;
        }
    }
    release(all, COUNT_OF(all));
    free(z);
    free(correction);
    free(ids);
    free(w);
}

static void test_routing(void **state)
{
    (void)state;
    for (u32 i = 0; i < COUNT_OF(routings); i++) {
        check_routing(&routings[i], false);
        check_routing(&routings[i], true);
    }
}

/* ---- sorting */
static void check_sorting(u32 rows, u32 per_token, u32 experts)
{
    u32 pairs = rows * per_token, *host = malloc((2 * (experts + 1) + 5 * pairs) * 4), *ids = host,
        *start = ids + pairs, *order = start + experts + 1, *place = order + pairs, *got = place + pairs;
    u64 seed = 8;
    for (u32 i = 0; i < pairs; i++) { /* the last expert and a third of the others get nothing */
        u32 e = (u32)(fabsf(random_number(&seed)) * 1e6f) % experts;
        ids[i] = experts > 3 && (e % 3 == 1 || e == experts - 1) ? 0 : e;
    }
    struct group_args a = {
        .ids = ids, .start = start, .order = order, .place = place, .pairs = pairs, .experts = experts};
    ops_cpu("portable")->group(&a, cpu);
    void *all[] = {cuda_memory(d, ids, pairs * 4), cuda_memory(d, NULL, (experts + 1) * 4),
                   cuda_memory(d, NULL, pairs * 4), cuda_memory(d, NULL, pairs * 4)};
    a.ids = all[0];
    a.start = all[1];
    a.order = all[2];
    a.place = all[3];
    ops_cuda()->group(&a, cuda_share(d));
    const struct {
        const void *there;
        const u32 *want;
        u32 n;
    } parts[] = {{a.start, start, experts + 1}, {a.order, order, pairs}, {a.place, place, pairs}};
    for (u32 i = 0; i < COUNT_OF(parts); i++) {
        cuda_fetch(d, got, parts[i].there, parts[i].n * 4);
        assert_memory_equal(got, parts[i].want, parts[i].n * 4);
    }
    release(all, COUNT_OF(all));
    free(host);
}

static void test_sorting(void **state)
{
    (void)state;
    check_sorting(1, 1, 1);
    check_sorting(3, 2, 8);
    check_sorting(128, 2, 16); /* as many pairs as threads */
    check_sorting(150, 6, 40);
}

/* ---- gathering, and the sum */
static void test_gathering(void **state)
{
    enum { ROWS = 5, PER_TOKEN = 3, N = 1032, LD_X = N + 8, LD_Y = N + 16, PAIRS = ROWS * PER_TOKEN };
    u32 order[PAIRS];
    (void)state;
    for (u32 i = 0; i < PAIRS; i++) order[i] = (i * 7 + 3) % PAIRS;
    for (u32 t = 0; t < COUNT_OF(types); t++) {
        size_t size = dtype_bytes(types[t]);
        u8 *x = malloc(ROWS * LD_X * size), *y = malloc(PAIRS * LD_Y * size);
        for (size_t i = 0; i < ROWS * LD_X * size; i++) x[i] = (u8)(i * 31 + i / 256);
        void *all[] = {cuda_memory(d, x, ROWS * LD_X * size), cuda_memory(d, NULL, PAIRS * LD_Y * size),
                       cuda_memory(d, order, sizeof order)};
        ops_cuda()->gather(&(struct gather_args){.x = all[0],
                                                 .y = all[1],
                                                 .dtype = types[t],
                                                 .order = all[2],
                                                 .pairs = PAIRS,
                                                 .per_token = PER_TOKEN,
                                                 .n = N,
                                                 .ld_x = LD_X,
                                                 .ld_y = LD_Y},
                           cuda_share(d));
        cuda_fetch(d, y, all[1], PAIRS * LD_Y * size);
        for (u32 i = 0; i < PAIRS; i++)
            assert_memory_equal(y + i * LD_Y * size, x + order[i] / PER_TOKEN * LD_X * size, N * size);
        release(all, COUNT_OF(all));
        free(x);
        free(y);
    }
}

static void check_sum(bool shared, bool gate, bool add)
{
    enum { ROWS = 4, PER_TOKEN = 5, N = 1032, PAIRS = ROWS * PER_TOKEN };
    float *x = random_row(PAIRS * N, 1), *w = random_row(PAIRS, 2), *s = random_row(ROWS * N, 3),
          *g = random_row(ROWS, 4), *y = random_row(ROWS * N, 5), *got = malloc(ROWS * N * 4);
    u32 place[PAIRS];
    for (u32 i = 0; i < PAIRS; i++) place[i] = (i * 9 + 2) % PAIRS;
    void *all[] = {cuda_memory(d, x, PAIRS * N * 4), cuda_memory(d, w, PAIRS * 4),
                   cuda_memory(d, s, ROWS * N * 4),  cuda_memory(d, g, ROWS * 4),
                   cuda_memory(d, y, ROWS * N * 4),  cuda_memory(d, place, sizeof place)};
    struct combine_args a = {.x = x,
                             .weights = w,
                             .place = place,
                             .shared = shared ? s : NULL,
                             .shared_gate = gate ? g : NULL,
                             .y = y,
                             .rows = ROWS,
                             .per_token = PER_TOKEN,
                             .n = N,
                             .ld_x = N,
                             .ld_shared = N,
                             .ld_y = N,
                             .add = add};
    ops_cpu("portable")->combine(&a, cpu);
    a.x = all[0];
    a.weights = all[1];
    a.shared = shared ? all[2] : NULL;
    a.shared_gate = gate ? all[3] : NULL;
    a.y = all[4];
    a.place = all[5];
    ops_cuda()->combine(&a, cuda_share(d));
    cuda_fetch(d, got, all[4], ROWS * N * 4);
    for (u32 i = 0; i < ROWS * N; i++) assert_true(fabsf(got[i] - y[i]) <= 4e-6f);
    release(all, COUNT_OF(all));
    void *own[] = {x, w, s, g, y, got};
    for (u32 i = 0; i < COUNT_OF(own); i++) free(own[i]);
}

static void test_sum(void **state)
{
    (void)state;
    check_sum(false, false, false);
    check_sum(true, false, true);
    check_sum(true, true, true);
}

/* ---- products */
struct bank {
    enum dtype type;
    u32 n, n_out, n_in;
    size_t stride; /* of weights, bytes */
    u8 *w;
    void *there;
};

static void bank_make(struct bank *b, enum dtype type, u32 n, u32 n_out, u32 n_in)
{
    u64 seed = 21;
    *b = (struct bank){.type = type, .n = n, .n_out = n_out, .n_in = n_in};
    b->stride = ((size_t)n_out * n_in * dtype_bytes(type) + 255) / 256 * 256;
    b->w = malloc(n * b->stride);
    memset(b->w, 0xff, n * b->stride);
    for (u32 e = 0; e < n; e++)
        for (size_t i = 0; i < (size_t)n_out * n_in; i++)
            number_store(b->w + e * b->stride, type, i, random_number(&seed));
    b->there = cuda_memory(d, b->w, n * b->stride);
}

static void bank_drop(struct bank *b)
{
    device_free(d, b->there);
    free(b->w);
}

static struct packed bank_packed(const struct bank *b)
{
    return (struct packed){.data = b->there, .dtype = b->type, .n_out = b->n_out, .n_in = b->n_in};
}

/* x as the products see it: [n_in] of type `as`, rounded to the weights'. */
static void assert_product(const struct bank *b, u32 e, const u8 *x, enum dtype as, size_t at, const float *y,
                           const float *bias, const char *what)
{
    for (u32 o = 0; o < b->n_out; o++) {
        double want = bias ? bias[o] : 0, size = 1;
        for (u32 k = 0; k < b->n_in; k++) {
            u8 rounded[4];
            number_store(rounded, b->type, 0, number_load(x, as, at + k));
            double term = (double)number_load(rounded, b->type, 0) *
                          number_load(b->w + e * b->stride, b->type, (size_t)o * b->n_in + k);
            want += term;
            size += fabs(term);
        }
        if (!(fabs(y[o] - want) <= 2e-6 * size))
            fail_msg("%s, %s, weight %u, output %u: %g, not %g", what, dtype_name(b->type), e, o,
                     (double)y[o], want);
    }
}

/* rows: of each expert. */
static void check_experts(enum dtype type, const u32 *rows, u32 experts, u32 n_out, u32 n_in, bool bias)
{
    u32 start[32] = {0};
    for (u32 e = 0; e < experts; e++) start[e + 1] = start[e] + rows[e];
    u32 pairs = start[experts];
    size_t ld_x = n_in + 8, ld_y = n_out + 4, bias_stride = (n_out + 63) / 64 * 64;
    struct bank b;
    bank_make(&b, type, experts, n_out, n_in);
    u8 *x = malloc(pairs * ld_x * 4);
    u64 seed = 5;
    for (size_t i = 0; i < pairs * ld_x; i++) number_store(x, type, i, random_number(&seed));
    float *biases = random_row(experts * bias_stride, 6), *y = malloc(pairs * ld_y * 4);
    void *all[] = {cuda_memory(d, x, pairs * ld_x * dtype_bytes(type)),
                   cuda_memory(d, biases, experts * bias_stride * 4), cuda_memory(d, NULL, pairs * ld_y * 4),
                   cuda_memory(d, start, (experts + 1) * 4)};
    ops_cuda()->experts(&(struct experts_args){.w = bank_packed(&b),
                                               .stride = b.stride,
                                               .bias = bias ? all[1] : NULL,
                                               .bias_stride = bias_stride,
                                               .x = all[0],
                                               .x_dtype = type,
                                               .start = all[3],
                                               .experts = experts,
                                               .pairs = pairs,
                                               .ld_x = ld_x,
                                               .ld_y = ld_y,
                                               .y = all[2]},
                        cuda_share(d));
    cuda_fetch(d, y, all[2], pairs * ld_y * 4);
    for (u32 e = 0; e < experts; e++)
        for (u32 r = start[e]; r < start[e + 1]; r++) {
            assert_product(&b, e, x, type, r * ld_x, y + r * ld_y, bias ? biases + e * bias_stride : NULL,
                           "experts");
            assert_true(isnan(y[r * ld_y + n_out])); /* nothing beside the outputs is written */
        }
    release(all, COUNT_OF(all));
    bank_drop(&b);
    free(x);
    free(biases);
    free(y);
}

static void test_experts(void **state)
{
    static const u32 few[] = {1, 0, 3, 16, 17, 0}, many[] = {0, 70, 64, 1, 200};
    (void)state;
    for (u32 t = 0; t < COUNT_OF(types); t++) {
        check_experts(types[t], few, COUNT_OF(few), 72, 136, true);
        check_experts(types[t], few, COUNT_OF(few), 24, 8, false);
        check_experts(types[t], many, COUNT_OF(many), 64, 64, true);
        check_experts(types[t], many, COUNT_OF(many), 100, 72, false);
    }
}

static void check_heads(enum dtype type, u32 heads, u32 rows, u32 n_out, u32 n_in, u32 x_step, u32 y_step)
{
    size_t ld_x = heads * x_step + 8, ld_y = heads * y_step + 4;
    struct bank b;
    bank_make(&b, type, heads, n_out, n_in);
    float *x = random_row(rows * ld_x, 7), *y = malloc(rows * ld_y * 4);
    void *all[] = {cuda_memory(d, x, rows * ld_x * 4), cuda_memory(d, NULL, rows * ld_y * 4)};
    ops_cuda()->heads(&(struct heads_args){.w = bank_packed(&b),
                                           .stride = b.stride,
                                           .x = all[0],
                                           .y = all[1],
                                           .heads = heads,
                                           .rows = rows,
                                           .ld_x = ld_x,
                                           .ld_y = ld_y,
                                           .x_step = x_step,
                                           .y_step = y_step},
                      cuda_share(d));
    cuda_fetch(d, y, all[1], rows * ld_y * 4);
    for (u32 h = 0; h < heads; h++)
        for (u32 r = 0; r < rows; r++) {
            assert_product(&b, h, (u8 *)x, DTYPE_F32, r * ld_x + h * x_step, y + r * ld_y + h * y_step, NULL,
                           "heads");
            if (y_step > n_out) assert_true(isnan(y[r * ld_y + h * y_step + n_out]));
        }
    release(all, COUNT_OF(all));
    bank_drop(&b);
    free(x);
    free(y);
}

static void test_heads(void **state)
{
    (void)state;
    for (u32 t = 0; t < COUNT_OF(types); t++) {
        check_heads(types[t], 3, 1, 40, 16, 24,
                    48); /* as the absorbing one: n_in of a head, room behind n_out */
        check_heads(types[t], 2, 33, 72, 128, 128, 72);
        check_heads(types[t], 5, 16, 16, 24, 24, 16);
    }
}

/* f32 for shorter weights, more of it than is rounded at once. */
static void test_rounded_inputs(void **state)
{
    enum { N_OUT = 3, N_IN = 8192, ROWS = 4100, LD = N_IN };
    (void)state;
    struct bank b;
    bank_make(&b, DTYPE_BF16, 1, N_OUT, N_IN);
    float *x = random_row((size_t)ROWS * LD, 3), *y = malloc(ROWS * N_OUT * 4);
    void *all[] = {cuda_memory(d, x, (size_t)ROWS * LD * 4), cuda_memory(d, NULL, ROWS * N_OUT * 4)};
    const struct packed w = bank_packed(&b);
    ops_cuda()->linear(
        &(struct linear_args){
            .w = &w, .x = all[0], .x_dtype = DTYPE_F32, .rows = ROWS, .ld_x = LD, .ld_y = N_OUT, .y = all[1]},
        cuda_share(d));
    cuda_fetch(d, y, all[1], ROWS * N_OUT * 4);
    static const u32 looked_at[] = {0, 1, 4094, 4095, 4096, 4097, 4099};
    for (u32 i = 0; i < COUNT_OF(looked_at); i++) {
        size_t r = looked_at[i];
        assert_product(&b, 0, (u8 *)x, DTYPE_F32, r * LD, y + r * N_OUT, NULL, "rounded");
    }
    release(all, COUNT_OF(all));
    bank_drop(&b);
    free(x);
    free(y);
}

/* The whole list once for each order of threads. */
static int set_up(void **state)
{
    cudasim_order((u64)(uintptr_t)*state);
    return 0;
}

int main(void)
{
    static const struct CMUnitTest all[] = {cmocka_unit_test(test_routing),   cmocka_unit_test(test_sorting),
                                            cmocka_unit_test(test_gathering), cmocka_unit_test(test_sum),
                                            cmocka_unit_test(test_experts),   cmocka_unit_test(test_heads)};
    struct CMUnitTest tests[CUDA_ORDERS * COUNT_OF(all) + 1] = {cmocka_unit_test(test_rounded_inputs)};
    for (u32 i = 1; i < COUNT_OF(tests); i++) {
        tests[i] = all[i % COUNT_OF(all)];
        tests[i].setup_func = set_up;
        tests[i].initial_state = (void *)(uintptr_t)((i - 1) / COUNT_OF(all));
    }
    cuda_begin();
    d = cuda_open();
    cmocka_set_message_output(CM_OUTPUT_TAP);
    int failed = cmocka_run_group_tests_name("cuda_experts", tests, NULL, NULL);
    device_close(d);
    return failed;
}
