/* What a format of weights or of the KV cache costs in accuracy: perplexity of a text, and how far the next token's distribution is from
 * that of the weights as they are stored, in f32 (Kullback-Leibler divergence, in nats a token).
 *   quality MODEL TEXT-FILE [TOKENS]      at most so many tokens of the text (4096), in pieces of 512 */
#include "../unit/runner.h"

#include "mpiserve/text.h"

#include <math.h>

enum { PIECE = 512 };

static const struct variant {
    const char *name;
    struct model_load load;
    enum compute compute;
} variants[] = {
    {"f32, as stored", {0}, COMPUTE_F32},
    {"compute bf16", {0}, COMPUTE_BF16},
    {"kv f16", {.kv_set = true, .kv = DTYPE_F16}, COMPUTE_F32},
    {"kv bf16", {.kv_set = true, .kv = DTYPE_BF16}, COMPUTE_F32},
    {"kv int8", {.kv_set = true, .kv = DTYPE_I8}, COMPUTE_F32},
    {"int8", {.weights = DTYPE_I8}, COMPUTE_F32},
    {"int4", {.weights = DTYPE_I4}, COMPUTE_F32},
    {"int4, kv int8", {.weights = DTYPE_I4, .kv_set = true, .kv = DTYPE_I8}, COMPUTE_F32},
};

struct sums {
    double nll, kl, worst_kl;
    u32 same, n; /* positions whose most likely token is that of f32 */
};

/* Log-probabilities in place. */
static void log_softmax(float *x, u32 n)
{
    double sum = 0, top = x[best_token(x, n)];
    for (u32 i = 0; i < n; i++) sum += exp(x[i] - top);
    for (u32 i = 0; i < n; i++) x[i] = (float)(x[i] - top - log(sum));
}

static double divergence(const float *p, const float *q, u32 n)
{
    double sum = 0;
    for (u32 i = 0; i < n; i++) sum += exp(p[i]) * (p[i] - q[i]);
    return fmax(sum, 0);
}

/* Log-probabilities of all positions: [n, vocab]. */
static float *run(const char *dir, const struct variant *v, const i32 *ids, u32 n, u64 *bytes)
{
    static struct runner r;
    struct error err;
    size_t image;
    runner_load_as(&r, dir, &v->load);
    runner_need(!weights_plan(&r.config, &r.shard, r.files, NULL, &image, &err), &err);
    *bytes = image;
    runner_start(&r, ops_cpu_best(), v->compute, 2, PIECE);
    u32 vocab = r.config.vocab;
    float *all = mem_alloc((size_t)n * vocab * sizeof *all);
    for (u32 at = 0; at < n; at += PIECE) {
        u32 take = MIN_OF(n - at, (u32)PIECE);
        struct fwd_seq q = runner_seq(&r, 0, ids + at, 0, take);
        q.prompt = take;
        memcpy(all + (size_t)at * vocab, forward_run_all(r.forward, &q, 1),
               (size_t)take * vocab * sizeof *all);
    }
    for (u32 i = 0; i < n; i++) log_softmax(all + (size_t)i * vocab, vocab);
    runner_unload(&r);
    return all;
}

static struct sums compare(const float *plain, const float *other, const i32 *ids, u32 n, u32 vocab)
{
    struct sums s = {.n = n};
    for (u32 i = 0; i < n; i++) {
        const float *p = plain + (size_t)i * vocab, *q = other + (size_t)i * vocab;
        double kl = divergence(p, q, vocab);
        s.kl += kl;
        s.worst_kl = fmax(s.worst_kl, kl);
        s.same += best_token(p, vocab) == best_token(q, vocab);
        if (i + 1 < n && (i + 1) % PIECE) s.nll -= q[ids[i + 1]];
    }
    return s;
}

static void print(const char *name, const struct sums *s, u64 bytes)
{
    u32 predicted = s->n - (s->n + PIECE - 1) / PIECE;
    printf("%-16s %10.1f MiB  perplexity %9.4f  KL mean %.2e max %.2e  same token %6.2f %%\n", name,
           (double)bytes / (1 << 20), exp(s->nll / predicted), s->kl / s->n, s->worst_kl,
           100.0 * s->same / s->n);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct error err = {0};
    struct model_config config;
    struct buf text = {0};
    struct ids ids = {0};
    if (argc < 3) {
        fprintf(stderr, "quality MODEL TEXT-FILE [TOKENS]\n");
        return 1;
    }
    runner_need(!model_read_config(argv[1], &config, &err), &err);
    struct tokenizer *t = tokenizer_load(argv[1], &err);
    runner_need(t != NULL, &err);
    runner_need(!file_read(argv[2], 1 << 26, &text, &err), &err);
    runner_need(!tokenizer_encode(t, text.data, text.len, 0, &ids, &err), &err);
    u32 n = MIN_OF((u32)ids.len, argc > 3 ? (u32)atoi(argv[3]) : 4096u);
    if (n < 2) return 1;
    printf("%s, %u tokens of %s\n", argv[1], n, argv[2]);
    float *plain = NULL;
    for (size_t i = 0; i < COUNT_OF(variants); i++) {
        u64 bytes;
        if (config.quant.method && variants[i].load.weights) continue;
        float *other = run(argv[1], &variants[i], ids.data, n, &bytes);
        if (!plain) plain = other;
        struct sums s = compare(plain, other, ids.data, n, config.vocab);
        print(variants[i].name, &s, bytes);
        if (other != plain) free(other);
    }
    free(plain);
    tokenizer_free(t);
    buf_release(&text);
    return 0;
}
