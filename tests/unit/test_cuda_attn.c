/* Attention on CUDA (emulated) against plain f64 sums: single tokens and spans of several, every type, head sizes between those that
 * the tensor cores have, windows, lengths around splits and tiles, scattered blocks; memory that no token was written to is NaN. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "cuda_world.h"

enum { MAX_SPANS = 12, BLOCK = 16, LAYERS = 2, LAYER = 1, LONGEST = 1100, MAX_BLOCKS = LONGEST / BLOCK + 1 };

struct shape {
    u32 heads, kv_heads, dim, window;
    float cap; /* of scores; 0: none */
    bool sinks;
    u32 rank;   /* of latents: the first numbers of K, which are V; 0: none */
    bool whole; /* a span is the first tokens of its sequence, and all of them see all of it */
};
struct piece { /* a span: the last n tokens of a sequence of `length`; or the first ones */
    u32 length, n;
};
struct world {
    enum dtype type;
    struct shape s;
    u32 n_spans, rows, n_blocks;
    struct kv_pool kv;
    u8 *pool; /* the host's copy */
    float *q;
    struct attn_span spans[MAX_SPANS];
    u32 table[MAX_SPANS][MAX_BLOCKS];
};

static u32 value_dim(const struct world *w)
{
    return w->s.rank ? w->s.rank : w->s.dim;
}

static enum dtype out_type(const struct world *w)
{
    return w->s.rank ? DTYPE_F32 : w->type;
}

/* K (or V) of a sequence's position. */
static u8 *head_at(struct world *w, u32 seq, u32 pos, u32 head)
{
    return w->pool + w->table[seq][pos / BLOCK] * w->kv.block_bytes +
           (LAYER * w->s.kv_heads + head) * w->kv.head_bytes;
}

static float kv_number(struct world *w, u32 seq, u32 pos, u32 head, bool value, u32 i)
{
    return number_load(head_at(w, seq, pos, head) + (value ? w->kv.v_offset : 0), w->type,
                       pos % BLOCK * w->s.dim + i);
}

static void fill_pool(struct world *w, const struct piece *pieces)
{
    u64 seed = 11;
    u32 next = 0;
    for (u32 q = 0; q < w->n_spans; q++) w->n_blocks += pieces[q].length / BLOCK + 1;
    w->pool = malloc(w->kv.block_bytes * w->n_blocks);
    memset(w->pool, 0xff, w->kv.block_bytes * w->n_blocks);
    for (u32 q = 0; q < w->n_spans; q++) {
        for (u32 b = 0; b <= pieces[q].length / BLOCK; b++) w->table[q][b] = w->n_blocks - 1 - next++;
        for (u32 pos = 0; pos < pieces[q].length; pos++)
            for (u32 h = 0; h < w->s.kv_heads; h++)
                for (u32 i = 0; i < w->s.dim; i++) {
                    u8 *at = head_at(w, q, pos, h);
                    number_store(at, w->type, pos % BLOCK * w->s.dim + i, random_number(&seed));
                    number_store(at + w->kv.v_offset, w->type, pos % BLOCK * w->s.dim + i,
                                 random_number(&seed));
                }
    }
}

static void world_init(struct world *w, enum compute compute, const struct shape *s,
                       const struct piece *pieces, u32 n)
{
    u64 seed = 12;
    memset(w, 0, sizeof *w);
    w->s = *s;
    w->n_spans = n;
    kv_pool_init(&w->kv, compute, LAYERS, s->kv_heads, s->dim, BLOCK);
    w->type = w->kv.dtype;
    if (s->rank) kv_pool_init_latent(&w->kv, w->type, LAYERS, s->rank, s->dim - s->rank, BLOCK);
    fill_pool(w, pieces);
    for (u32 q = 0; q < n; q++) {
        w->spans[q] =
            (struct attn_span){w->table[q], w->rows, pieces[q].length - pieces[q].n, pieces[q].n, 0};
        if (s->whole) w->spans[q].pos = 0, w->spans[q].sees = pieces[q].length;
        w->rows += pieces[q].n;
    }
    size_t count = (size_t)w->rows * s->heads * s->dim;
    w->q = malloc(count * 4);
    for (size_t i = 0; i < count; i++) w->q[i] = random_number(&seed) * 2 / sqrtf((float)s->dim);
}

static float sink_of(u32 head)
{
    return (float)(head % 3) - 0.5f;
}

/* One q head of one row. */
static void expect(struct world *w, u32 seq, u32 row, u32 head, double *out)
{
    const struct attn_span *span = &w->spans[seq];
    u32 pos = span->pos + row - span->row, dim = w->s.dim, kv_head = head / (w->s.heads / w->s.kv_heads);
    if (w->s.whole) pos = span->sees - 1;
    u32 low = w->s.window && pos + 1 > w->s.window ? pos + 1 - w->s.window : 0;
    const float *q = w->q + ((size_t)row * w->s.heads + head) * dim;
    double sum = 0, p[LONGEST], top = -1e30;
    memset(out, 0, value_dim(w) * sizeof *out);
    for (u32 u = low; u <= pos; u++) {
        p[u] = 0;
        for (u32 i = 0; i < dim; i++) p[u] += (double)q[i] * kv_number(w, seq, u, kv_head, false, i);
        if (w->s.cap > 0) p[u] = w->s.cap * tanh(p[u] / w->s.cap);
        top = fmax(top, p[u]);
    }
    if (w->s.sinks) sum = exp(sink_of(head) - top);
    for (u32 u = low; u <= pos; u++) {
        double e = exp(p[u] - top);
        sum += e;
        for (u32 i = 0; i < value_dim(w); i++) out[i] += e * kv_number(w, seq, u, kv_head, true, i);
    }
    for (u32 i = 0; i < value_dim(w); i++) out[i] /= sum;
}

/* f32: sums of up to 1100 terms; else q, p and the result are rounded to the type, and so are the scores' errors. */
static double slack_of(enum dtype t)
{
    return t == DTYPE_F32 ? 2e-5 : 6 * (double)number_step(t);
}

static void compare(struct world *w, const u8 *out, size_t ld)
{
    double want[512];
    u32 size = value_dim(w);
    for (u32 q = 0; q < w->n_spans; q++)
        for (u32 row = w->spans[q].row; row < w->spans[q].row + w->spans[q].n; row++)
            for (u32 head = 0; head < w->s.heads; head++) {
                expect(w, q, row, head, want);
                for (u32 i = 0; i < size; i++) {
                    float got = number_load(out, out_type(w), row * ld + head * size + i);
                    if (!(fabs(got - want[i]) <= slack_of(w->type)))
                        fail_msg("%s, %u/%u heads of %u, window %u, span at %u of %u, row %u head %u [%u]: "
                                 "%g, not %g",
                                 dtype_name(w->type), w->s.heads, w->s.kv_heads, w->s.dim, w->s.window,
                                 w->spans[q].pos, w->spans[q].n, row, head, i, (double)got, want[i]);
                }
            }
}

static struct device *d;

static void check(enum compute compute, const struct shape *s, const struct piece *pieces, u32 n)
{
    struct world w;
    struct attn_span spans[MAX_SPANS];
    world_init(&w, compute, s, pieces, n);
    struct attn_args a = {.out_dtype = out_type(&w),
                          .kv = &w.kv,
                          .n_spans = n,
                          .layer = LAYER,
                          .heads = s->heads,
                          .window = s->window,
                          .ld_q = s->heads * s->dim,
                          .ld_out = s->heads * value_dim(&w) + 8};
    size_t bytes = w.rows * a.ld_out * dtype_bytes(out_type(&w));
    u32 *table = cuda_memory(d, w.table, sizeof w.table);
    for (u32 q = 0; q < n; q++) {
        spans[q] = w.spans[q];
        spans[q].blocks = table + q * MAX_BLOCKS;
        if (spans[q].n > 1) continue;
        a.n_single++;
        a.longest = MAX_OF(a.longest, s->whole ? spans[q].sees : spans[q].pos + 1);
    }
    float sinks[128];
    for (u32 h = 0; h < s->heads; h++) sinks[h] = sink_of(h);
    a.soft_cap = s->cap;
    float *there = cuda_memory(d, sinks, sizeof sinks);
    a.sinks = s->sinks ? there : NULL;
    w.kv.memory = cuda_memory(d, w.pool, w.kv.block_bytes * w.n_blocks);
    a.spans = cuda_memory(d, spans, n * sizeof *spans);
    a.q = cuda_memory(d, w.q, w.rows * a.ld_q * 4);
    a.out = cuda_memory(d, NULL, bytes);
    ops_cuda()->attn(&a, cuda_share(d));
    u8 *out = malloc(bytes);
    cuda_fetch(d, out, a.out, bytes);
    compare(&w, out, a.ld_out);
    void *all[] = {table, w.kv.memory, (void *)a.spans, (void *)a.q, a.out, there};
    for (u32 i = 0; i < COUNT_OF(all); i++) device_free(d, all[i]);
    free(out);
    free(w.pool);
    free(w.q);
}

static const struct shape shapes[] = {
    {4, 4, 8, 0, 0, false, 0, false},   {4, 2, 16, 0, 2, true, 0, false},
    {6, 2, 32, 5, 0, false, 0, false},  {8, 2, 64, 300, 0, true, 0, false},
    {4, 1, 80, 0, 3, false, 0, false},  {16, 1, 32, 0, 0, false, 0, false},
    {8, 1, 128, 40, 5, true, 0, false}, {2, 2, 96, 257, 0, false, 0, false},
    {10, 1, 64, 0, 0, false, 0, false}, {2, 1, 256, 0, 0, true, 0, false},
};

static void test_single(void **state)
{
    static const struct piece pieces[] = {{1, 1}, {15, 1}, {17, 1}, {256, 1}, {257, 1}, {300, 1}, {1040, 1}};
    (void)state;
    for (int compute = COMPUTE_F32; compute <= COMPUTE_F16; compute++)
        for (u32 i = 0; i < COUNT_OF(shapes); i++)
            check((enum compute)compute, &shapes[i], pieces, i % 3 ? 6 : 7);
}

static u32 tokens_of(enum compute compute, u32 heads, u32 kv_heads, u32 dim)
{
    struct kv_pool kv;
    kv_pool_init(&kv, compute, 1, kv_heads, dim, BLOCK);
    return device_attn_tokens(&kv, heads);
}

/* Spans as long as they may be, beside single tokens and short ones. */
static void test_spans(void **state)
{
    (void)state;
    for (int compute = COMPUTE_BF16; compute <= COMPUTE_F16; compute++)
        for (u32 i = 0; i < COUNT_OF(shapes); i++) {
            const struct shape *s = &shapes[i];
            u32 most = tokens_of((enum compute)compute, s->heads, s->kv_heads, s->dim);
            assert_int_equal(most, 64 / (s->heads / s->kv_heads));
            const struct piece pieces[] = {{most, most},    {2, 2},          {70, 1},
                                           {330, most - 1}, {130, most / 2}, {65, 2}};
            check((enum compute)compute, s, pieces, COUNT_OF(pieces));
        }
}

/* Tokens see those behind them, too. */
static void test_whole(void **state)
{
    static const struct shape whole[] = {{4, 4, 32, 0, 0, false, 0, true}, {2, 1, 72, 0, 0, false, 0, true}};
    static const struct piece single[] = {{1, 1}, {17, 1}, {256, 1}, {300, 1}},
                              mixed[] = {{70, 32}, {2, 2}, {300, 1}, {330, 7}, {32, 32}, {1, 1}};
    (void)state;
    for (int compute = COMPUTE_F32; compute <= COMPUTE_F16; compute++)
        for (u32 i = 0; i < COUNT_OF(whole); i++)
            if (compute == COMPUTE_F32)
                check((enum compute)compute, &whole[i], single, COUNT_OF(single));
            else
                check((enum compute)compute, &whole[i], mixed, COUNT_OF(mixed));
}

static void test_tokens(void **state)
{
    (void)state;
    assert_int_equal(tokens_of(COMPUTE_F32, 8, 2, 128), 1);
    assert_int_equal(tokens_of(COMPUTE_BF16, 71, 1, 64), 1);
    assert_int_equal(tokens_of(COMPUTE_F16, 12, 4, 64), 21);
    struct kv_pool kv;
    kv_pool_init_latent(&kv, DTYPE_BF16, 1, 512, 64, BLOCK);
    assert_int_equal(device_attn_tokens(&kv, 128), 16);
}

/* Latents: one key for all heads, of which a part is the value. Sizes that fill the kernels' tiles and such that do not. */
static const struct shape latents[] = {
    {4, 1, 40, 0, 0, false, 32, false},    {1, 1, 16, 0, 0, false, 8, false},
    {20, 1, 128, 0, 0, false, 64, false},  {3, 1, 80, 0, 0, false, 72, false},
    {16, 1, 576, 0, 0, false, 512, false}, {2, 1, 136, 0, 0, false, 64, false},
};

static void test_latents(void **state)
{
    static const struct piece single[] = {{1, 1}, {17, 1}, {256, 1}, {257, 1}, {600, 1}};
    (void)state;
    for (u32 i = 0; i < COUNT_OF(latents); i++) {
        u32 few = latents[i].dim > 200 ? 4 : COUNT_OF(single);
        check(COMPUTE_F32, &latents[i], single, few);
        for (int compute = COMPUTE_BF16; compute <= COMPUTE_F16; compute++) {
            enum { MOST = 16 };
            const struct piece mixed[] = {{MOST, MOST}, {2, 2}, {70, 1}, {330, 5}, {131, MOST}, {300, 1}};
            check((enum compute)compute, &latents[i], single, few);
            check((enum compute)compute, &latents[i], mixed, COUNT_OF(mixed));
        }
    }
}

/* More partial results than there is memory for: the spans go in parts. */
static void test_parts(void **state)
{
    enum { SPANS = 600, HEADS = 128, DIM = 256, KEYS = 300 };
    struct kv_pool kv;
    (void)state;
    kv_pool_init(&kv, COMPUTE_BF16, 1, 1, DIM, BLOCK);
    u32 table[KEYS / BLOCK + 1] = {0};
    struct attn_span *spans = malloc(SPANS * sizeof *spans);
    struct attn_args a = {.out_dtype = DTYPE_BF16,
                          .kv = &kv,
                          .n_spans = SPANS,
                          .heads = HEADS,
                          .n_single = SPANS,
                          .longest = KEYS,
                          .ld_q = HEADS * DIM,
                          .ld_out = HEADS * DIM};
    u32 *dtable = cuda_memory(d, table, sizeof table);
    for (u32 i = 0; i < SPANS; i++) /* most have one key, so that this takes no minutes */
        spans[i] = (struct attn_span){dtable, i, i == 0 || i == SPANS - 1 ? KEYS - 1 : 0, 1, 0};
    float *q = calloc((size_t)SPANS * HEADS * DIM, 4);
    u16 *block = malloc(kv.block_bytes), *out = malloc((size_t)SPANS * HEADS * DIM * 2);
    for (size_t i = 0; i < kv.block_bytes / 2; i++) block[i] = bf16_from_f32(i < kv.v_offset / 2 ? 1 : 3);
    kv.memory = cuda_memory(d, block, kv.block_bytes);
    a.spans = cuda_memory(d, spans, SPANS * sizeof *spans);
    a.q = cuda_memory(d, q, (size_t)SPANS * HEADS * DIM * 4);
    a.out = cuda_memory(d, NULL, (size_t)SPANS * HEADS * DIM * 2);
    ops_cuda()->attn(&a, cuda_share(d));
    cuda_fetch(d, out, a.out, (size_t)SPANS * HEADS * DIM * 2);
    for (size_t i = 0; i < (size_t)SPANS * HEADS * DIM; i++) assert_int_equal(out[i], bf16_from_f32(3));
    void *all[] = {dtable, kv.memory, (void *)a.spans, (void *)a.q, a.out};
    for (u32 i = 0; i < COUNT_OF(all); i++) device_free(d, all[i]);
    free(spans);
    free(q);
    free(block);
    free(out);
}

static int set_up(void **state)
{
    cudasim_order((u64)(uintptr_t)*state);
    return 0;
}

int main(void)
{
    cuda_begin();
    static const struct CMUnitTest all[] = {cmocka_unit_test(test_single), cmocka_unit_test(test_spans),
                                            cmocka_unit_test(test_whole), cmocka_unit_test(test_latents)};
    struct CMUnitTest tests[CUDA_ORDERS * COUNT_OF(all) + 2] = {cmocka_unit_test(test_tokens),
                                                                cmocka_unit_test(test_parts)};
    for (u32 i = 2; i < COUNT_OF(tests); i++) {
        tests[i] = all[(i - 2) % COUNT_OF(all)];
        tests[i].setup_func = set_up;
        tests[i].initial_state = (void *)(uintptr_t)((i - 2) / COUNT_OF(all));
    }
    cmocka_set_message_output(CM_OUTPUT_TAP);
    d = cuda_open();
    int failed = cmocka_run_group_tests_name("cuda_attn", tests, NULL, NULL);
    device_close(d);
    return failed;
}
