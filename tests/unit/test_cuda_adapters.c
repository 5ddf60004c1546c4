/* Adapters on CUDA (emulated): their kernels against plain sums; and what peft computes, of rows with adapters beside rows without, at f32 and
 * as near as shorter numbers come; with several engines. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "adapter_world.h"
#include "cuda_crew.h"
#include "cuda_runner.h"

/* ---- kernels */
enum { ROWS = 150, ADAPTERS = 3, PARTS = 3, LD = 504, MOST_RANK = 256 };

struct adaption {
    enum dtype type, x_type;
    u32 n_in, splits, tile_rows;
    u32 rank[ADAPTERS][PARTS]; /* 0: nothing there */
    u32 rows[ADAPTERS];
};
struct part_of { /* on the host */
    u8 *a, *b;
    struct device_factors there;
};
static const u32 outputs[PARTS] = {136, 24, 300}, places[PARTS] = {8, 160, 200};
static struct device *d;

static u8 *numbers(enum dtype t, size_t n, u64 seed)
{
    u8 *x = malloc(n * dtype_bytes(t));
    for (size_t i = 0; i < n; i++) number_store(x, t, i, random_number(&seed) / 4);
    return x;
}

static void make_part(struct part_of *p, const struct adaption *c, u32 adapter, u32 part)
{
    u32 rank = c->rank[adapter][part];
    *p = (struct part_of){NULL, NULL, {NULL, NULL, 0, 0, 0, 0}};
    if (!rank) return;
    size_t in = (size_t)rank * c->n_in, out = (size_t)rank * outputs[part];
    p->a = numbers(c->type, in, 10 + adapter * PARTS + part);
    p->b = numbers(c->type, out, 50 + adapter * PARTS + part);
    p->there = (struct device_factors){cuda_memory(d, p->a, in * dtype_bytes(c->type)),
                                       cuda_memory(d, p->b, out * dtype_bytes(c->type)),
                                       rank,
                                       outputs[part],
                                       places[part],
                                       0.5f + (float)adapter};
}

/* Row r's adapter; ADAPTERS: none. */
static u32 adapter_of(u32 r, u32 *left)
{
    for (u32 i = 0; i < ADAPTERS; i++) {
        u32 a = (r + i) % ADAPTERS;
        if (r % 7 == 3 || !left[a]) continue;
        left[a]--;
        return a;
    }
    return ADAPTERS;
}

/* The inner sums of a row. */
static void low_of(const struct adaption *c, const struct part_of *p, const u8 *x, u32 row, double *low)
{
    float rounded[LD];
    for (u32 i = 0; i < c->n_in; i++) {
        u8 number[4];
        number_store(number, c->type, 0, number_load(x, c->x_type, (size_t)row * LD + i));
        rounded[i] = number_load(number, c->type, 0);
    }
    for (u32 k = 0; k < p->there.rank; k++) {
        low[k] = 0;
        for (u32 i = 0; i < c->n_in; i++)
            low[k] += (double)rounded[i] * number_load(p->a, c->type, (size_t)k * c->n_in + i);
        low[k] *= p->there.scale;
    }
}

/* What an output gets, and how far off it may be: the inner sums are rounded to the type. */
static double want_of(const struct adaption *c, const struct part_of *p, const double *low, u32 o,
                      double *slack)
{
    double sum = 0;
    for (u32 k = 0; k < p->there.rank; k++) {
        double v = low[k] * number_load(p->b, c->type, (size_t)o * p->there.rank + k);
        sum += v;
        *slack += fabs(v) * (c->type == DTYPE_F32 ? 1e-5 : (double)number_step(c->type));
    }
    return sum;
}

static void check_row(const struct adaption *c, struct part_of parts[ADAPTERS][PARTS], const u8 *x, u32 row,
                      u32 adapter, const float *got)
{
    double want[LD], slack[LD];
    for (u32 o = 0; o < LD; o++) want[o] = 1, slack[o] = 0;
    for (u32 k = 0; k < PARTS && adapter < ADAPTERS; k++) {
        const struct part_of *p = &parts[adapter][k];
        double low[MOST_RANK];
        low_of(c, p, x, row, low);
        for (u32 o = 0; o < outputs[k] && p->there.rank; o++) {
            slack[places[k] + o] = 1e-6;
            want[places[k] + o] += want_of(c, p, low, o, &slack[places[k] + o]);
        }
    }
    for (u32 o = 0; o < LD; o++)
        if (!(fabs(got[o] - want[o]) <= slack[o]))
            fail_msg("%s, %u inputs, row %u of adapter %u, output %u: %g, not %g", dtype_name(c->type),
                     c->n_in, row, adapter, o, (double)got[o], want[o]);
}

static void check(const struct adaption *c)
{
    struct part_of parts[ADAPTERS][PARTS];
    struct device_factors factors[ADAPTERS][PARTS];
    u32 list[ROWS], whose[ROWS], left[ADAPTERS], n = 0, n_tiles = 0, most_rank = 0;
    struct adapted_tile tiles[ROWS];
    u8 *x = numbers(c->x_type, ROWS * LD, 1);
    float *y = malloc(ROWS * LD * sizeof *y);
    memcpy(left, c->rows, sizeof left);
    for (u32 i = 0; i < ROWS * LD; i++) y[i] = 1;
    for (u32 r = 0; r < ROWS; r++) whose[r] = adapter_of(r, left);
    for (u32 a = 0; a < ADAPTERS; a++) {
        u32 first = n;
        for (u32 r = 0; r < ROWS; r++)
            if (whose[r] == a) list[n++] = r;
        for (u32 at = first; at < n; at += c->tile_rows)
            tiles[n_tiles++] = (struct adapted_tile){a, at, MIN_OF(c->tile_rows, n - at)};
        for (u32 k = 0; k < PARTS; k++) {
            make_part(&parts[a][k], c, a, k);
            factors[a][k] = parts[a][k].there;
            most_rank = MAX_OF(most_rank, c->rank[a][k]);
        }
    }
    struct adapt_args args = {
        .factors = cuda_memory(d, factors, sizeof factors),
        .stride = PARTS,
        .dtype = c->type,
        .parts = PARTS,
        .most_rank = most_rank,
        .most_out = 300,
        .rows = cuda_memory(d, list, n * sizeof *list),
        .tiles = cuda_memory(d, tiles, n_tiles * sizeof *tiles),
        .n_rows = n,
        .n_tiles = n_tiles,
        .tile_rows = c->tile_rows,
        .x = cuda_memory(d, x, ROWS * LD * dtype_bytes(c->x_type)),
        .x_dtype = c->x_type,
        .n_in = c->n_in,
        .ld_x = LD,
        .ld_y = LD,
        .y = cuda_memory(d, y, ROWS * LD * sizeof *y),
        .low = cuda_memory(d, NULL, (size_t)c->splits * n * PARTS * MOST_RANK * sizeof(float)),
        .low_ld = MOST_RANK,
        .splits = c->splits};
    device_adapt(d, &args);
    cuda_fetch(d, y, args.y, ROWS * LD * sizeof *y);
    for (u32 r = 0; r < ROWS; r++) check_row(c, parts, x, r, whose[r], y + (size_t)r * LD);
    const void *there[] = {args.factors, args.rows, args.tiles, args.x, args.y, args.low};
    for (size_t i = 0; i < COUNT_OF(there); i++) device_free(d, (void *)(uintptr_t)there[i]);
    for (u32 i = 0; i < ADAPTERS * PARTS; i++) {
        struct part_of *p = &parts[i / PARTS][i % PARTS];
        device_free(d, (void *)(uintptr_t)p->there.a);
        device_free(d, (void *)(uintptr_t)p->there.b);
        free(p->a);
        free(p->b);
    }
    free(x);
    free(y);
}

/* Ranks around a tile of 16 and steps of 64, and such that rows of B are not aligned; few and many rows; inputs that ranges cut unevenly. */
static void test_kernels(void **state)
{
    static const struct adaption cases[] = {
        {0, 0, 40, 1, ADAPTED_FEW, {{8, 0, 16}, {0, 1, 0}, {20, 5, 64}}, {3, 1, 20}},
        {0, 0, 328, 8, ADAPTED_FEW, {{16, 16, 16}, {130, 0, 70}, {0, 0, 0}}, {17, 16, 4}},
        {0, 0, 488, 1, ADAPTED_MANY, {{16, 0, 8}, {12, 64, 65}, {33, 0, 0}}, {70, 40, 1}},
    };
    (void)state;
    d = cuda_open();
    for (u32 order = 0; order < CUDA_ORDERS; order++)
        for (size_t i = 0; i < COUNT_OF(cases); i++) {
            static const enum dtype types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
            struct adaption c = cases[i];
            c.type = types[(order + i) % COUNT_OF(types)];
            c.x_type = order == 2 ? DTYPE_F32 : c.type;
            if (c.type == DTYPE_F32) c.tile_rows = ADAPTED_FEW;
            cudasim_order(order);
            check(&c);
        }
    device_close(d);
}

/* ---- forward passes */
static u32 step_of(const struct runner *r, const struct world *w, u32 step, struct fwd_seq *seqs)
{
    u32 n = w->n * PROMPTS;
    for (u32 k = 0; k < n; k++) {
        const struct prompt *p = &w->refs[k % w->n].prompts[k / w->n];
        seqs[k] = sequence(r, k, k % w->n, p, step ? p->n + step - 1 : 0, step ? 1 : p->n);
    }
    return n;
}

static void judge(const struct world *w, u32 k, u32 step, const float *row, u32 vocab, enum compute compute)
{
    const struct prompt *p = &w->refs[k % w->n].prompts[k / w->n];
    const float *last = stored(&w->refs[k % w->n], "last_logits", k / w->n, vocab);
    double most = tolerances[compute];
    for (u32 i = 0; i < vocab && step == 0; i++)
        if (!(fabs((double)row[i] - last[i]) <= most))
            fail_msg("%s at %d, prompt %u, logit %u: %g, not %g", w->names[k % w->n], compute, k / w->n, i,
                     (double)row[i], (double)last[i]);
    i32 best = best_token(row, vocab), wanted = p->greedy[step];
    if (compute == COMPUTE_F32 && best != wanted)
        fail_msg("%s, prompt %u, step %u: token %d, not %d", w->names[k % w->n], k / w->n, step, best,
                 wanted);
    if (!((double)row[best] - row[wanted] <= 2 * most))
        fail_msg("%s at %d, prompt %u, step %u is off", w->names[k % w->n], compute, k / w->n, step);
}

/* The same rows without any adapter: the base's have the same bits. */
static void check_base(struct cuda_runner *c, const struct world *w, const float *with)
{
    struct fwd_seq seqs[MODELS * PROMPTS];
    u32 vocab = c->r.config.vocab, n = step_of(&c->r, w, 0, seqs);
    float *without = malloc((size_t)n * vocab * sizeof *without);
    for (u32 k = 0; k < n; k++) seqs[k].adapter = 0, seqs[k].blocks = c->r.blocks[n + k];
    cuda_fetch(c->device, without, forward_run(c->r.forward, seqs, n), (size_t)n * vocab * sizeof *without);
    for (u32 k = 0; k < n; k++)
        assert_true(!memcmp(with + k * vocab, without + k * vocab, vocab * sizeof *with) == (k % w->n == 0));
    free(without);
}

/* The prompts of all models in one step, then their continuations. */
static void check_world(const char *const *names, enum compute compute, u32 steps, u64 order)
{
    struct world w;
    struct cuda_runner c;
    struct fwd_seq seqs[MODELS * PROMPTS];
    cudasim_order(order);
    world_open(&w, names);
    cuda_runner_start_part(&c, w.refs[0].dir, compute, 512, &(struct cuda_part){.adapters = &w.adapters});
    u32 vocab = c.r.config.vocab;
    float *rows = malloc((size_t)MODELS * PROMPTS * vocab * sizeof *rows);
    for (u32 step = 0; step < steps; step++) {
        u32 n = step_of(&c.r, &w, step, seqs);
        cuda_fetch(c.device, rows, forward_run(c.r.forward, seqs, n), (size_t)n * vocab * sizeof *rows);
        for (u32 k = 0; k < n; k++) judge(&w, k, step, rows + (size_t)k * vocab, vocab, compute);
        if (step == 0) check_base(&c, &w, rows);
    }
    free(rows);
    cuda_runner_stop(&c);
    world_close(&w);
    assert_int_equal(cudasim_allocated(), 0);
}

static void test_world(void **state)
{
    check_world(*state, COMPUTE_F32, 4, 0);
}

static void test_shorter(void **state)
{
    check_world(*state, COMPUTE_BF16, 6, 1);
    check_world(*state, COMPUTE_F16, 2, 2);
}

/* ---- several engines */
struct division {
    struct world *w;
    u32 tp, pp;
};

static void engine(struct cuda_member *m, void *arg)
{
    const struct division *x = arg;
    struct cuda_runner c;
    struct error err = {0};
    struct fwd_seq seqs[MODELS * PROMPTS];
    static float rows[MODELS * PROMPTS * 1024];
    crew_need(!cuda_connect(m, 0, &err), &err);
    const struct cuda_part part = {x->tp, x->pp, m->me, m->device, m->world, m->gpus, &x->w->adapters};
    cuda_runner_start_part(&c, x->w->refs[0].dir, COMPUTE_F32, 512, &part);
    u32 vocab = c.r.config.vocab;
    bool sampler = shard_last(&c.r.shard) && c.r.shard.tp_rank == 0;
    for (u32 step = 0; step < 4; step++) {
        u32 n = step_of(&c.r, x->w, step, seqs);
        const float *logits = forward_run(c.r.forward, seqs, n);
        crew_need(logits != NULL, forward_error(c.r.forward));
        if (sampler)
            cuda_fetch(c.device, rows, logits, (size_t)n * vocab * sizeof *rows);
        else
            crew_need(!device_finish(c.device, &err), &err);
        for (u32 k = 0; k < n && sampler; k++) {
            const struct prompt *p = &x->w->refs[k % x->w->n].prompts[k / x->w->n];
            crew_need(best_token(rows + (size_t)k * vocab, vocab) == p->greedy[step], NULL);
        }
    }
    cuda_runner_stop_part(&c);
}

static void test_divisions(void **state)
{
    static const u32 shapes[][2] = {{2, 1}, {2, 2}};
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        struct world w;
        world_open(&w, *state);
        struct division x = {&w, shapes[i][0], shapes[i][1]};
        struct crew c = {.shape = crew_shape(x.tp, x.pp, NULL), .arg = &x};
        cuda_crew_run(&c, engine);
        world_close(&w);
    }
}

#define WORLD(name, fn, world)                                                                               \
    {                                                                                                        \
        name, fn, NULL, NULL, (void *)(uintptr_t)(world)                                                     \
    }
int main(int argc, char **argv)
{
    cuda_begin();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kernels),
        WORLD("llama, two adapters", test_world, llama),
        WORLD("qwen3", test_world, qwen3),
        WORLD("phi3, fused products", test_world, phi3),
        WORLD("deepseek, latent attention", test_world, deepseek),
        WORLD("gemma2, norms behind", test_world, gemma2),
        WORLD("mixtral, attention beside experts", test_world, mixtral),
        WORLD("llama, shorter numbers", test_shorter, llama),
        WORLD("gemma2, shorter numbers", test_shorter, gemma2),
        WORLD("several engines: llama", test_divisions, llama), /* from here on: of the emulation */
    };
    enum { EMULATED = 1 };
    size_t n = COUNT_OF(tests) - (cudasim_here() ? 0 : EMULATED);
    cmocka_set_message_output(CM_OUTPUT_TAP);
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return _cmocka_run_group_tests("cuda_adapters", tests, n, NULL, NULL);
}
