/* CUDA kernels (emulated) of the table of operations against plain C: every type, sizes around the kernels' steps, several orders of
 * threads. Attention: test_cuda_attn. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "cuda_world.h"

static const enum dtype types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
static struct device *d;

static float *random_row(size_t n, u64 seed)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = random_number(&seed);
    return x;
}

static void assert_close(float got, double want, enum dtype t, const char *what, size_t i)
{
    double slack = 2e-6 + (t == DTYPE_F32 ? 4e-6 : number_step(t)) * fabs(want);
    if (!(fabs(got - want) <= slack))
        fail_msg("%s[%zu] (%s): %g, not %g", what, i, dtype_name(t), (double)got, want);
}

/* ---- norm */
static void check_norm(enum dtype t, u32 rows, u32 n, bool listed, bool centred)
{
    u32 of = 5, list[8] = {3, 0, 4, 1, 1, 2, 0, 3};
    size_t ld_x = n + 8, ld_y = n + 16;
    float *x = random_row(of * ld_x, 7), *w = random_row(n, 8), *bias = random_row(n, 9);
    u8 *y = malloc(rows * ld_y * dtype_bytes(t));
    float *dx = cuda_memory(d, x, of * ld_x * 4), *dw = cuda_memory(d, w, n * 4),
          *dbias = cuda_memory(d, bias, n * 4);
    u32 *dlist = cuda_memory(d, list, sizeof list);
    void *dy = cuda_memory(d, NULL, rows * ld_y * dtype_bytes(t));
    ops_cuda()->norm(&(struct norm_args){.x = dx,
                                         .w = dw,
                                         .bias = centred ? dbias : NULL,
                                         .list = listed ? dlist : NULL,
                                         .eps = 1e-5f,
                                         .y = dy,
                                         .y_dtype = t,
                                         .rows = rows,
                                         .n = n,
                                         .ld_x = ld_x,
                                         .ld_y = ld_y},
                     cuda_share(d));
    cuda_fetch(d, y, dy, rows * ld_y * dtype_bytes(t));
    for (u32 r = 0; r < rows; r++) {
        const float *from = x + (listed ? list[r] : r) * ld_x;
        double sum = 0, mean = 0;
        for (u32 i = 0; i < n && centred; i++) mean += (double)from[i] / n;
        for (u32 i = 0; i < n; i++) sum += (from[i] - mean) * (from[i] - mean);
        for (u32 i = 0; i < n; i++) {
            double want = (from[i] - mean) / sqrt(sum / n + 1e-5) * w[i] + (centred ? bias[i] : 0);
            assert_close(number_load(y, t, r * ld_y + i), want, t, "norm", i);
        }
    }
    void *all[] = {dx, dw, dbias, dlist, dy};
    for (u32 i = 0; i < COUNT_OF(all); i++) device_free(d, all[i]);
    free(x);
    free(w);
    free(bias);
    free(y);
}

static void test_norm(void **state)
{
    static const u32 sizes[] = {8, 64, 1024, 1032, 2056};
    (void)state;
    for (u32 t = 0; t < COUNT_OF(types); t++)
        for (u32 i = 0; i < COUNT_OF(sizes); i++) {
            check_norm(types[t], 3, sizes[i], false, i % 2);
            check_norm(types[t], 8, sizes[i], true, i % 2 == 0);
        }
}

/* Added to what is there; or in its place. */
static void check_norm_onto(bool centred, bool in_place)
{
    enum { N = 520, ROWS = 3 };
    float *x = random_row(ROWS * N, 1), *w = random_row(N, 2), *y = random_row(ROWS * N, 3), got[ROWS * N];
    void *there[] = {cuda_memory(d, x, ROWS * N * 4), cuda_memory(d, w, N * 4),
                     cuda_memory(d, y, ROWS * N * 4)};
    struct norm_args a = {.x = there[0],
                          .w = there[1],
                          .bias = centred ? there[1] : NULL,
                          .eps = 1e-6f,
                          .y = there[in_place ? 0 : 2],
                          .rows = ROWS,
                          .n = N,
                          .ld_x = N,
                          .ld_y = N,
                          .add = !in_place};
    ops_cuda()->norm(&a, cuda_share(d));
    cuda_fetch(d, got, a.y, sizeof got);
    a.x = x;
    a.w = w;
    a.bias = centred ? w : NULL;
    a.y = y;
    ops_cpu("portable")->norm(&a, (struct share){0, 1, NULL});
    for (u32 i = 0; i < ROWS * N; i++) assert_close(got[i], y[i], DTYPE_F32, "norm, added", i);
    for (u32 i = 0; i < COUNT_OF(there); i++) device_free(d, there[i]);
    free(x);
    free(w);
    free(y);
}

static void test_norm_onto(void **state)
{
    (void)state;
    check_norm_onto(false, false);
    check_norm_onto(true, false);
    check_norm_onto(true, true);
}

/* ---- gated activations, caps */
static double glu_of(enum activation act, double gate, double up)
{
    if (act == ACT_GELU_TANH)
        return 0.5 * gate * (1 + tanh(sqrt(2 / M_PI) * (gate + 0.044715 * gate * gate * gate))) * up;
    if (act == ACT_SILU) return gate / (1 + exp(-gate)) * up;
    if (act == ACT_GELU) return gate * erfc(-gate / sqrt(2)) / 2;
    gate = fmin(gate, 1.5);
    return (fmin(fmax(up, -1.5), 1.5) + 1) * gate / (1 + exp(-1.702 * gate));
}

static void check_glu(enum dtype t, enum activation act, u32 rows, u32 n)
{
    u32 inputs = act == ACT_GELU ? 1 : 2;
    size_t ld_x = inputs * n, ld_y = n + 8, bytes = rows * ld_y * dtype_bytes(t);
    float *x = random_row(rows * ld_x, 9);
    for (u32 i = 0; i < 4; i++) x[i] *= 40; /* exponentials that are 0 or infinite */
    u8 *y = malloc(bytes);
    float *dx = cuda_memory(d, x, rows * ld_x * 4);
    void *dy = cuda_memory(d, NULL, bytes);
    ops_cuda()->glu(&(struct glu_args){.x = dx,
                                       .y = dy,
                                       .y_dtype = t,
                                       .rows = rows,
                                       .n = n,
                                       .ld_x = ld_x,
                                       .ld_y = ld_y,
                                       .act = act,
                                       .limit = 1.5f,
                                       .alpha = 1.702f},
                    cuda_share(d));
    cuda_fetch(d, y, dy, bytes);
    for (u32 r = 0; r < rows; r++)
        for (u32 i = 0; i < n; i++)
            assert_close(number_load(y, t, r * ld_y + i),
                         glu_of(act, x[r * ld_x + i], x[r * ld_x + (inputs - 1) * n + i]), t, "glu", i);
    device_free(d, dx);
    device_free(d, dy);
    free(x);
    free(y);
}

static void test_glu(void **state)
{
    (void)state;
    for (u32 t = 0; t < COUNT_OF(types); t++)
        for (int act = ACT_SILU; act <= ACT_GELU; act++) {
            check_glu(types[t], (enum activation)act, 3, 8);
            check_glu(types[t], (enum activation)act, 2, 1032);
        }
}

static void test_cap(void **state)
{
    enum { N = 300, ROWS = 3, LD = 310 };
    float *x = random_row(ROWS * LD, 4), got[ROWS * LD];
    (void)state;
    for (u32 i = 0; i < ROWS * LD; i++) x[i] *= 20;
    struct cap_args a = {.x = cuda_memory(d, x, sizeof got), .cap = 30, .rows = ROWS, .n = N, .ld = LD};
    ops_cuda()->cap(&a, cuda_share(d));
    cuda_fetch(d, got, a.x, sizeof got);
    for (u32 i = 0; i < ROWS * LD; i++)
        assert_close(got[i], i % LD < N ? 30 * tanh(x[i] / 30) : x[i], DTYPE_F32, "cap", i);
    device_free(d, a.x);
    free(x);
}

/* ---- sums of rows */
static void test_pooling(void **state)
{
    enum { N = 100, ROWS = 40, LD = 104, RUNS = 3 };
    static const struct pooling_run runs[RUNS] = {{NULL, 0, 1, 1}, {NULL, 1, 30, 0}, {NULL, 31, 9, 1}};
    float *x = random_row(ROWS * LD, 4), *sums = random_row(RUNS * N, 5), got[RUNS * N];
    float *dx = cuda_memory(d, x, ROWS * LD * 4), *dsums = cuda_memory(d, sums, sizeof got);
    struct pooling_run there[RUNS], here[RUNS];
    (void)state;
    for (u32 i = 0; i < RUNS; i++) {
        there[i] = here[i] = runs[i];
        there[i].sum = dsums + (RUNS - 1 - i) * N;
        here[i].sum = sums + (RUNS - 1 - i) * N;
    }
    struct pooling_args a = {dx, cuda_memory(d, there, sizeof there), RUNS, N, LD};
    void *druns = (void *)(uintptr_t)a.runs;
    ops_cuda()->pooling(&a, cuda_share(d));
    cuda_fetch(d, got, dsums, sizeof got);
    a.x = x;
    a.runs = here;
    for (u32 i = 0; i < 3; i++) ops_cpu("portable")->pooling(&a, (struct share){i, 3, NULL});
    assert_memory_equal(got, sums, sizeof got); /* the same order */
    device_free(d, dx);
    device_free(d, dsums);
    device_free(d, druns);
    free(x);
    free(sums);
}

/* ---- embedding and angles */
static void test_embed(void **state)
{
    enum { VOCAB = 11, WIDTH = 264, ROWS = 4 };
    static const i32 ids[ROWS] = {10, 0, -1, 10};
    (void)state;
    for (u32 t = 0; t < COUNT_OF(types); t++)
        for (int packed = 0; packed < 2; packed++) {
            enum dtype type = types[t];
            u8 table[VOCAB * WIDTH * 4];
            float y[ROWS * WIDTH];
            u64 seed = 3;
            for (u32 i = 0; i < VOCAB * WIDTH; i++) number_store(table, type, i, random_number(&seed));
            void *dt = cuda_memory(d, table, VOCAB * WIDTH * dtype_bytes(type));
            i32 *dids = cuda_memory(d, ids, sizeof ids);
            bool add = type == DTYPE_BF16 && !packed; /* to ones */
            for (u32 i = 0; i < ROWS * WIDTH; i++) y[i] = 1;
            float *dy = cuda_memory(d, add ? y : NULL, sizeof y);
            struct packed w = {.data = dt, .dtype = type, .n_out = VOCAB, .n_in = WIDTH};
            ops_cuda()->embed(&(struct embed_args){.table = packed ? NULL : dt,
                                                   .packed = &w,
                                                   .dtype = type,
                                                   .ids = dids,
                                                   .y = dy,
                                                   .rows = ROWS,
                                                   .n = WIDTH,
                                                   .ld_y = WIDTH,
                                                   .scale = packed ? 1.5f : 0,
                                                   .add = add},
                              cuda_share(d));
            cuda_fetch(d, y, dy, sizeof y);
            for (u32 i = 0; i < ROWS * WIDTH; i++)
                assert_true(y[i] ==
                            (float)add +
                                (ids[i / WIDTH] < 0
                                     ? 0
                                     : number_load(table, type, (size_t)ids[i / WIDTH] * WIDTH + i % WIDTH) *
                                           (packed ? 1.5f : 1)));
            device_free(d, dt);
            device_free(d, dids);
            device_free(d, dy);
        }
}

/* The same bits as the CPU: a restart on another kind of engine would else turn the queries a little. */
static void check_angles(float scale, bool own)
{
    enum { HALF = 20, ROWS = 40 };
    float inv[ROWS * HALF], want[ROWS * 2 * HALF], got[ROWS * 2 * HALF];
    u32 positions[ROWS];
    for (u32 m = 0; m < ROWS * HALF; m++) inv[m] = powf(10000 + (float)(m / HALF), -(float)(m % HALF) / HALF);
    for (u32 r = 0; r < ROWS; r++) positions[r] = r * r * 83;
    struct angles_args a = {.inv = inv,
                            .positions = positions,
                            .table = want,
                            .rows = ROWS,
                            .half = HALF,
                            .ld_inv = own ? HALF : 0,
                            .scale = scale};
    ops_cpu("portable")->angles(&a, (struct share){0, 1, NULL});
    a.inv = cuda_memory(d, inv, sizeof inv);
    a.positions = cuda_memory(d, positions, sizeof positions);
    a.table = cuda_memory(d, NULL, sizeof got);
    ops_cuda()->angles(&a, cuda_share(d));
    cuda_fetch(d, got, a.table, sizeof got);
    assert_memory_equal(got, want, sizeof got);
    device_free(d, (void *)a.inv);
    device_free(d, (void *)a.positions);
    device_free(d, a.table);
}

static void test_angles(void **state)
{
    (void)state;
    check_angles(0, false);
    check_angles(1.25f, true);
}

/* ---- products */
/* y begins `off` numbers behind what was allocated. */
static void check_linear(enum dtype t, u32 rows, u32 n_out, u32 n_in, bool bias, bool add, u32 off)
{
    size_t ld_x = n_in + 8, ld_y = n_out + 8;
    u8 *x = malloc(rows * ld_x * 4), *w = malloc((size_t)n_out * n_in * 4);
    float *b = random_row(n_out, 5), *y = random_row(rows * ld_y, 6), *got = malloc(rows * ld_y * 4);
    u64 seed = 4;
    for (size_t i = 0; i < rows * ld_x; i++) number_store(x, t, i, random_number(&seed));
    for (size_t i = 0; i < (size_t)n_out * n_in; i++) number_store(w, t, i, random_number(&seed));
    struct packed packed = {.data = cuda_memory(d, w, (size_t)n_out * n_in * dtype_bytes(t)),
                            .dtype = t,
                            .n_out = n_out,
                            .n_in = n_in};
    float *db = cuda_memory(d, b, n_out * 4), *memory = cuda_memory(d, NULL, (rows * ld_y + off) * 4),
          *dy = memory + off;
    device_upload(d, dy, y, rows * ld_y * 4);
    void *dx = cuda_memory(d, x, rows * ld_x * dtype_bytes(t));
    ops_cuda()->linear(&(struct linear_args){.w = &packed,
                                             .bias = bias ? db : NULL,
                                             .x = dx,
                                             .x_dtype = t,
                                             .rows = rows,
                                             .ld_x = ld_x,
                                             .ld_y = ld_y,
                                             .y = dy,
                                             .add = add},
                       cuda_share(d));
    cuda_fetch(d, got, dy, rows * ld_y * 4);
    for (u32 r = 0; r < rows; r++)
        for (u32 o = 0; o < ld_y; o++) {
            double want = add || o >= n_out ? y[r * ld_y + o] : 0;
            for (u32 k = 0; o < n_out && k < n_in; k++)
                want += (double)number_load(x, t, r * ld_x + k) * number_load(w, t, (size_t)o * n_in + k);
            if (bias && o < n_out) want += b[o];
            assert_true(fabs(got[r * ld_y + o] - want) < 1e-4);
        }
    void *all[] = {(void *)packed.data, db, memory, dx};
    for (u32 i = 0; i < COUNT_OF(all); i++) device_free(d, all[i]);
    free(x);
    free(w);
    free(b);
    free(y);
    free(got);
}

static void test_linear(void **state)
{
    (void)state;
    for (u32 t = 0; t < COUNT_OF(types); t++)
        for (u32 k = 0; k < 4; k++) {
            check_linear(types[t], 1, 24, 64, k & 1, k & 2, k);
            check_linear(types[t], 5, 300, 40, k & 1, k & 2, 0);
            check_linear(types[t], 5, 300, 40, k & 1, k & 2, 0); /* the plan that was found before */
        }
}

/* ---- rope: q in place, k and v in the pool */
struct rope_case {
    u32 heads, kv_heads, dim, rotary;
    bool norm, still; /* still: without angles */
};
enum { ROPE_ROWS = 5, ROPE_BLOCK = 16, ROPE_BLOCKS = 4, ROPE_LAYERS = 2 };
static const struct place rope_places[ROPE_ROWS] = {{2, 15}, {3, 0}, {3, 1}, {1, 7}, {1, 8}};

static void check_pool(const struct kv_pool *kv, const u8 *pool, const float *qkv, const struct rope_case *c,
                       size_t ld)
{
    for (u32 r = 0; r < ROPE_ROWS; r++)
        for (u32 h = 0; h < c->kv_heads; h++)
            for (u32 i = 0; i < c->dim; i++) {
                const u8 *head = pool + rope_places[r].block * kv->block_bytes +
                                 (c->kv_heads + h) * kv->head_bytes; /* layer 1 */
                size_t at = rope_places[r].offset * c->dim + i;
                const float *k = qkv + r * ld + (c->heads + h) * c->dim, *v = k + c->kv_heads * c->dim;
                assert_close(number_load(head, kv->dtype, at), k[i], kv->dtype, "k", at);
                assert_close(number_load(head + kv->v_offset, kv->dtype, at), v[i], kv->dtype, "v", at);
            }
}

static void check_rope(enum compute compute, const struct rope_case *c)
{
    u32 dim = c->dim;
    size_t ld = (c->heads + 2 * c->kv_heads) * dim, bytes = ROPE_ROWS * ld * 4;
    struct kv_pool kv, cpu_kv;
    kv_pool_init(&kv, compute, ROPE_LAYERS, c->kv_heads, dim, ROPE_BLOCK);
    kv_pool_init(&cpu_kv, COMPUTE_F32, ROPE_LAYERS, c->kv_heads, dim, ROPE_BLOCK);
    float *qkv = random_row(ROPE_ROWS * ld, 1), *angles = random_row(ROPE_ROWS * dim, 2),
          *q_norm = random_row(dim, 3), *k_norm = random_row(dim, 4), *want = malloc(bytes),
          *got = malloc(bytes);
    memcpy(want, qkv, bytes);
    cpu_kv.memory = aligned_alloc(CACHE_LINE, cpu_kv.block_bytes * ROPE_BLOCKS);
    struct rope_args a = {.qkv = want,
                          .angles = c->still ? NULL : angles,
                          .q_norm = c->norm ? q_norm : NULL,
                          .k_norm = c->norm ? k_norm : NULL,
                          .rotary = c->rotary,
                          .eps = 1e-6f,
                          .scale = 0.25f,
                          .kv = &cpu_kv,
                          .places = rope_places,
                          .layer = 1,
                          .heads = c->heads,
                          .rows = ROPE_ROWS,
                          .ld = ld};
    ops_cpu("portable")->rope(&a, (struct share){0, 1, NULL});
    kv.memory = cuda_memory(d, NULL, kv.block_bytes * ROPE_BLOCKS);
    void *all[] = {cuda_memory(d, qkv, bytes),
                   cuda_memory(d, angles, ROPE_ROWS * dim * 4),
                   cuda_memory(d, q_norm, dim * 4),
                   cuda_memory(d, k_norm, dim * 4),
                   cuda_memory(d, rope_places, sizeof rope_places),
                   kv.memory};
    a.qkv = all[0];
    a.angles = c->still ? NULL : all[1];
    a.q_norm = c->norm ? all[2] : NULL;
    a.k_norm = c->norm ? all[3] : NULL;
    a.places = all[4];
    a.kv = &kv;
    ops_cuda()->rope(&a, cuda_share(d));
    u8 *pool = malloc(kv.block_bytes * ROPE_BLOCKS);
    cuda_fetch(d, got, all[0], bytes);
    cuda_fetch(d, pool, kv.memory, kv.block_bytes * ROPE_BLOCKS);
    for (size_t i = 0; i < ROPE_ROWS * ld; i++) assert_close(got[i], want[i], DTYPE_F32, "qkv", i);
    check_pool(&kv, pool, want, c, ld);
    for (u32 i = 0; i < COUNT_OF(all); i++) device_free(d, all[i]);
    void *own[] = {qkv, angles, q_norm, k_norm, want, got, cpu_kv.memory, pool};
    for (u32 i = 0; i < COUNT_OF(own); i++) free(own[i]);
}

static void test_rope(void **state)
{
    static const struct rope_case cases[] = {{4, 2, 8, 0, false, false},   {2, 2, 80, 32, true, false},
                                             {8, 1, 128, 0, true, false},  {1, 1, 256, 0, false, false},
                                             {2, 1, 64, 16, false, false}, {4, 4, 32, 0, false, true}};
    (void)state;
    for (int compute = COMPUTE_F32; compute <= COMPUTE_F16; compute++)
        for (u32 i = 0; i < COUNT_OF(cases); i++) check_rope((enum compute)compute, &cases[i]);
}

/* ---- what comes before latent attention: q in place and to the absorbed one, the latent to the pool */
static void check_latent(enum compute compute, bool interleaved, u32 heads, u32 nope, u32 rope, u32 rank)
{
    u32 dim = rank + rope;
    size_t ld_q = heads * (nope + rope), ld_absorbed = heads * dim, ld_latent = dim + 8;
    struct kv_pool kv, cpu_kv;
    kv_pool_init_latent(&cpu_kv, DTYPE_F32, ROPE_LAYERS, rank, rope, ROPE_BLOCK);
    kv_pool_init_latent(&kv, types[compute], ROPE_LAYERS, rank, rope, ROPE_BLOCK);
    cpu_kv.memory = aligned_alloc(CACHE_LINE, cpu_kv.block_bytes * ROPE_BLOCKS);
    float *parts[] = {random_row(ROPE_ROWS * ld_q, 1), random_row(ROPE_ROWS * ld_absorbed, 2),
                      random_row(ROPE_ROWS * ld_latent, 3), random_row(rank, 4),
                      random_row(ROPE_ROWS * rope, 5)};
    const size_t bytes[] = {ROPE_ROWS * ld_q * 4, ROPE_ROWS * ld_absorbed * 4, ROPE_ROWS * ld_latent * 4,
                            rank * 4, ROPE_ROWS * rope * 4};
    void *there[COUNT_OF(parts) + 2] = {[COUNT_OF(parts)] = cuda_memory(d, rope_places, sizeof rope_places),
                                        cuda_memory(d, NULL, kv.block_bytes * ROPE_BLOCKS)};
    for (u32 i = 0; i < COUNT_OF(parts); i++) there[i] = cuda_memory(d, parts[i], bytes[i]);
    struct latent_args a = {.q = parts[0],
                            .absorbed = parts[1],
                            .latent = parts[2],
                            .norm = parts[3],
                            .angles = parts[4],
                            .eps = 1e-6f,
                            .scale = 0.25f,
                            .interleaved = interleaved,
                            .kv = &cpu_kv,
                            .places = rope_places,
                            .layer = 1,
                            .heads = heads,
                            .rows = ROPE_ROWS,
                            .nope = nope,
                            .rope = rope,
                            .rank = rank,
                            .ld_q = ld_q,
                            .ld_absorbed = ld_absorbed,
                            .ld_latent = ld_latent};
    ops_cpu("portable")->latent(&a, (struct share){0, 1, NULL});
    kv.memory = there[COUNT_OF(parts) + 1];
    a.q = there[0];
    a.absorbed = there[1];
    a.latent = there[2];
    a.norm = there[3];
    a.angles = there[4];
    a.places = there[COUNT_OF(parts)];
    a.kv = &kv;
    ops_cuda()->latent(&a, cuda_share(d));
    for (u32 i = 0; i < 2; i++) {
        float *got = malloc(bytes[i]);
        cuda_fetch(d, got, there[i], bytes[i]);
        for (size_t k = 0; k < bytes[i] / 4; k++)
            assert_close(got[k], parts[i][k], DTYPE_F32, i ? "absorbed" : "q", k);
        free(got);
    }
    u8 *pool = malloc(kv.block_bytes * ROPE_BLOCKS);
    cuda_fetch(d, pool, kv.memory, kv.block_bytes * ROPE_BLOCKS);
    for (u32 r = 0; r < ROPE_ROWS; r++)
        for (u32 i = 0; i < dim; i++) {
            size_t at = rope_places[r].offset * dim + i;
            const u8 *block =
                (u8 *)cpu_kv.memory + rope_places[r].block * cpu_kv.block_bytes + cpu_kv.head_bytes;
            assert_close(
                number_load(pool + rope_places[r].block * kv.block_bytes + kv.head_bytes, kv.dtype, at),
                number_load(block, DTYPE_F32, at), kv.dtype, "latent", at);
        }
    for (u32 i = 0; i < COUNT_OF(there); i++) device_free(d, there[i]);
    for (u32 i = 0; i < COUNT_OF(parts); i++) free(parts[i]);
    free(cpu_kv.memory);
    free(pool);
}

static void test_latent(void **state)
{
    (void)state;
    for (int compute = COMPUTE_F32; compute <= COMPUTE_F16; compute++) {
        check_latent((enum compute)compute, true, 4, 16, 8, 32);
        check_latent((enum compute)compute, false, 3, 128, 64, 512);
    }
}

/* ---- the device */
static void test_copies(void **state)
{
    enum { BYTES = 9 << 20 }; /* several times what is staged at once */
    struct error err = {0};
    u8 *from = malloc(BYTES), *back = malloc(BYTES);
    (void)state;
    for (size_t i = 0; i < BYTES; i++) from[i] = (u8)(i * 7 + i / 4096);
    u8 *at = cuda_memory(d, NULL, 2 * BYTES);
    for (u32 i = 0; i < 3 * DEVICE_UPLOADS; i++) { /* small ones: each is what it was when it was given */
        device_upload(d, at + i, &from[i], 1);
        from[i]++;
    }
    cuda_fetch(d, back, at, 3 * DEVICE_UPLOADS);
    for (u32 i = 0; i < 3 * DEVICE_UPLOADS; i++) assert_int_equal(back[i], (u8)(from[i] - 1));
    device_upload(d, at, from, BYTES);
    device_copy(d, at + BYTES, at, BYTES);
    device_zero(d, at, 100);
    cuda_fetch(d, back, at + BYTES, BYTES);
    assert_memory_equal(back, from, BYTES);
    cuda_fetch(d, back, at, 200);
    for (u32 i = 0; i < 200; i++) assert_int_equal(back[i], i < 100 ? 0 : from[i]);
    device_free(d, at);
    assert_null(device_alloc(d, (size_t)1 << 40, &err));
    assert_int_equal(err.code, ERR_MEMORY);
    assert_non_null(strstr(err.message, "cudaErrorMemoryAllocation: 1099511627776 bytes are asked for"));
    assert_int_equal(device_finish(d, &err), 0); /* told above; the device works on */
    free(from);
    free(back);
}

static void test_devices(void **state)
{
    struct device_info info[DEVICE_MAX];
    struct error err = {0};
    (void)state;
    assert_int_equal(device_list(info, DEVICE_MAX, &err), 1);
    assert_string_equal(info[0].uuid, "GPU-63756461-7369-6d2d-6465-766963652d30");
    assert_string_equal(info[0].name, "cudasim");
    assert_int_equal(info[0].free, 0);
    assert_int_equal(device_look(&info[0], &err), 0);
    assert_true(info[0].total >= info[0].free && info[0].free > 0);
    struct device *other = device_open(info[0].uuid, &err);
    assert_non_null(other);
    device_close(other);
    assert_null(device_open("GPU-0", &err));
    assert_string_equal(err.message, "none of the 1 devices has the UUID GPU-0");
}

/* Whatever call of the runtime fails: opening says so and leaves nothing, or the next device_finish says so. */
static void test_errors(void **state)
{
    struct error err = {0};
    size_t before = cudasim_allocated();
    u64 n = 1;
    (void)state;
    for (;; n++) {
        cudasim_fail(n, 700);
        struct device *other = device_open("", &err);
        cudasim_fail(0, 0);
        if (!other) {
            assert_non_null(strstr(err.message, "cudaErrorIllegalAddress"));
            assert_int_equal(cudasim_allocated(), before);
            continue;
        }
        device_close(other);
        break;
    }
    assert_true(n > 20);
    struct device *other = device_open("", &err);
    float x[8] = {1}, *at = cuda_memory(other, x, sizeof x);
    cudasim_fail(1, 719);
    ops_cuda()->norm(
        &(struct norm_args){
            .x = at, .w = at, .y = at, .y_dtype = DTYPE_F32, .rows = 1, .n = 8, .ld_x = 8, .ld_y = 8},
        cuda_share(other));
    cudasim_fail(0, 0);
    device_upload(other, at, x, sizeof x);
    assert_int_equal(device_finish(other, &err), ERR_STATE);
    assert_string_equal(err.message, "cudaErrorLaunchFailure in norm: emulated failure");
    device_free(other, at);
    device_close(other);
    assert_int_equal(cudasim_allocated(), before);
}

/* The whole list once for each order of threads. */
static int set_up(void **state)
{
    cudasim_order((u64)(uintptr_t)*state);
    return 0;
}

int main(void)
{
    cuda_begin();
    static const struct CMUnitTest all[] = {
        cmocka_unit_test(test_norm),   cmocka_unit_test(test_norm_onto), cmocka_unit_test(test_glu),
        cmocka_unit_test(test_cap),    cmocka_unit_test(test_embed),     cmocka_unit_test(test_pooling),
        cmocka_unit_test(test_angles), cmocka_unit_test(test_linear),    cmocka_unit_test(test_rope),
        cmocka_unit_test(test_latent), cmocka_unit_test(test_copies),    cmocka_unit_test(test_devices),
        cmocka_unit_test(test_errors),
    };
    enum { EMULATED = 2 }; /* the last ones: about the emulation's device, and calls that fail on demand */
    struct CMUnitTest tests[CUDA_ORDERS * COUNT_OF(all)];
    u32 each = COUNT_OF(all) - (cudasim_here() ? 0 : EMULATED), n = CUDA_ORDERS * each;
    for (u32 i = 0; i < n; i++) {
        tests[i] = all[i % each];
        tests[i].setup_func = set_up;
        tests[i].initial_state = (void *)(uintptr_t)(i / each);
    }
    d = cuda_open();
    cmocka_set_message_output(CM_OUTPUT_TAP);
    int failed = _cmocka_run_group_tests("cuda_ops", tests, n, NULL, NULL);
    device_close(d);
    return failed;
}
