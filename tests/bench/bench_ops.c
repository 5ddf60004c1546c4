/* Speed of the kernels and of the forward pass in one thread, of which the processor time is taken: the best of
 * several short runs, since machines are shared.
 *   bench_ops [MODEL [ISA]]      default: the demo model in MPISERVE_JOBS (default "jobs"), all but plain C */
#include "../unit/runner.h"

#include <time.h>

enum { ROUNDS = 40, BUDGET_NS = 100000000 }; /* at most so many runs or so long, and at least two */

static u64 lcg = 1;
static u32 any(void)
{
    lcg = lcg * 6364136223846793005ull + 1442695040888963407ull;
    return (u32)(lcg >> 33);
}

/* Of this thread alone: other programs may want the core. */
static u64 cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (u64)t.tv_sec * NS_PER_S + (u64)t.tv_nsec;
}

/* ---- products */
struct shape {
    const char *what;
    u32 n_out, n_in;
};
static const struct shape shapes[] = {{"demo qkv", 512, 256},  {"demo gate_up", 1280, 256},
                                      {"demo down", 256, 640}, {"demo head", 2048, 256},
                                      {"1B o", 2048, 2048},    {"1B down", 2048, 8192}};
static const u32 row_counts[] = {1, 2, 4, 8, 32, 192};
struct kind {
    const char *what;
    enum dtype w, x;
};
static const struct kind kinds[] = {{"f32 x f32", DTYPE_F32, DTYPE_F32},
                                    {"f32 x bf16", DTYPE_BF16, DTYPE_F32},
                                    {"bf16 x bf16", DTYPE_BF16, DTYPE_BF16}};

static double linear_seconds(const struct ops *ops, const struct linear_args *a, double flop)
{
    double best = 1e9;
    u32 repeat = 1 + (u32)(2e7 / flop);
    u64 begin = cpu_ns();
    for (int round = 0; round < ROUNDS && (round < 2 || cpu_ns() - begin < BUDGET_NS); round++) {
        u64 start = cpu_ns();
        for (u32 i = 0; i < repeat; i++) ops->linear(a, (struct share){0, 1, NULL});
        best = MIN_OF(best, (double)(cpu_ns() - start) / 1e9 / repeat);
    }
    return best;
}

static void bench_linear(const struct ops *ops, const struct shape *s, const struct kind *k)
{
    u32 most = row_counts[COUNT_OF(row_counts) - 1];
    size_t bytes = packed_bytes(k->w, s->n_out, s->n_in), x_bytes = k->x == DTYPE_F32 ? 4 : 2;
    u8 *w = aligned_alloc(CACHE_LINE, bytes), *x = aligned_alloc(CACHE_LINE, most * (s->n_in + 16) * x_bytes);
    float *y = aligned_alloc(CACHE_LINE, (size_t)most * s->n_out * 4);
    for (size_t i = 0; i < bytes; i += 2) *(u16 *)(void *)(w + i) = (u16)(0x3c00 + any() % 512);
    for (size_t i = 0; i < most * (s->n_in + 16) * x_bytes; i += 2)
        *(u16 *)(void *)(x + i) = (u16)(0x3c00 + any() % 512);
    struct packed packed = {.data = w, .dtype = k->w, .n_out = s->n_out, .n_in = s->n_in};
    printf("%-12s %-12s %-12s", ops->name, s->what, k->what);
    for (u32 i = 0; i < COUNT_OF(row_counts); i++) {
        struct linear_args a = {.w = &packed,
                                .x = x,
                                .x_dtype = k->x,
                                .rows = row_counts[i],
                                .ld_x = s->n_in + 16,
                                .ld_y = s->n_out,
                                .y = y};
        double flop = 2.0 * s->n_out * s->n_in * row_counts[i], seconds = linear_seconds(ops, &a, flop);
        printf(" %6.0f", flop / seconds / 1e9);
        if (i == 0) printf(" (%3.0f GB/s)", (double)bytes / seconds / 1e9);
    }
    printf("\n");
    fflush(stdout);
    free(w);
    free(x);
    free(y);
}

/* ---- the model */
static i32 tokens[RUNNER_SEQS * RUNNER_LENGTH];

/* Seconds of a step of n sequences, each `take` tokens from pos. */
static double step_seconds(struct runner *r, u32 n, u32 pos, u32 take)
{
    struct fwd_seq seqs[RUNNER_SEQS];
    double best = 1e9;
    for (u32 i = 0; i < n; i++) seqs[i] = runner_seq(r, i, tokens + i * RUNNER_LENGTH, pos, take);
    u64 begin = cpu_ns();
    for (int round = 0; round < ROUNDS && (round < 2 || cpu_ns() - begin < 3 * (u64)BUDGET_NS); round++) {
        u64 start = cpu_ns();
        forward_run(r->forward, seqs, n);
        best = MIN_OF(best, (double)(cpu_ns() - start) / 1e9);
    }
    return best;
}

static void bench_model(struct runner *r, const char *isa, enum compute compute)
{
    runner_start(r, isa, compute, 1, RUNNER_LENGTH);
    memset(r->kv, 0,
           forward_kv_bytes(&r->config, &r->shard, compute, RUNNER_SEQS * RUNNER_BLOCKS, RUNNER_BLOCK));
    printf("%-12s %-5s", isa, compute == COMPUTE_F32 ? "f32" : "bf16");
    static const u32 batches[] = {1, 4, 8, 32};
    for (u32 i = 0; i < COUNT_OF(batches); i++)
        printf(" %8.0f", batches[i] / step_seconds(r, batches[i], 100, 1));
    printf(" %8.0f", 1 / step_seconds(r, 1, 1000, 1));
    printf(" %8.0f %8.0f\n", 128 / step_seconds(r, 1, 0, 128), 1000 / step_seconds(r, 1, 0, 1000));
    fflush(stdout);
}

int main(int argc, char **argv)
{
    const char *levels[8];
    char dir[PATH_LEN];
    int n = runner_levels(levels);
    if (argc > 2) {
        levels[0] = argv[2];
        n = 1;
    }
    if (n == 1 && !ops_cpu(levels[0])) {
        fprintf(stderr, "no instruction set \"%s\" here\n", levels[0]);
        return 2;
    }
    snprintf(dir, sizeof dir, "%s/demo-model", data_dir("MPISERVE_JOBS", "jobs"));
    struct runner r;
    runner_load(&r, argc > 1 ? argv[1] : dir);
    for (u32 i = 0; i < COUNT_OF(tokens); i++) tokens[i] = (i32)(any() % r.config.vocab);
    printf("tokens/s of %s, one thread\n%-12s %-5s", argc > 1 ? argv[1] : dir, "isa", "");
    printf(" decode 1        4        8       32 at 1000  prefill 128  1000\n");
    for (int i = n - 1; i >= (n > 1); i--) {
        bench_model(&r, levels[i], COMPUTE_BF16);
        bench_model(&r, levels[i], COMPUTE_F32);
    }
    runner_unload(&r);
    printf("\nproducts, one thread: GFLOP/s by rows\n%-12s %-12s %-12s", "isa", "shape", "x  x  W");
    for (u32 i = 0; i < COUNT_OF(row_counts); i++) printf(" %6u%s", row_counts[i], i ? "" : "           ");
    printf("\n");
    for (int i = n - 1; i >= (n > 1); i--)
        for (u32 s = 0; s < COUNT_OF(shapes); s++)
            for (u32 k = 0; k < COUNT_OF(kinds); k++) bench_linear(ops_cpu(levels[i]), &shapes[s], &kinds[k]);
    return 0;
}
