/* What a format of weights or of the KV cache costs in accuracy: perplexity of a text, and how far the next token's distribution is from
 * that of the weights as they are stored, in f32 (Kullback-Leibler divergence, in nats a token).
 *   quality MODEL TEXT-FILE [TOKENS]      at most so many tokens of the text (4096), in pieces of 512
 *   quality REFERENCE...                  folders of tests/reference/models: their prompts and continuations */
#include "../unit/runner.h"

#include "mpiserve/json.h"
#include "mpiserve/text.h"

#include <math.h>
#include <sys/stat.h>

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
    u32 predicted;
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

/* Sequences that know nothing of each other, one behind the other. */
struct pieces {
    struct ids ids;
    u32 *ends, n;
};

static void end_piece(struct pieces *p)
{
    p->ends = mem_resize(p->ends, (p->n + 1) * sizeof *p->ends);
    p->ends[p->n++] = (u32)p->ids.len;
}

/* Log-probabilities of all positions: [ids, vocab]. */
static float *run(const char *dir, const struct variant *v, const struct pieces *p, u64 *bytes)
{
    static struct runner r;
    struct error err;
    size_t image;
    runner_load_as(&r, dir, &v->load);
    runner_need(!weights_plan(&r.config, &r.shard, r.files, NULL, &image, &err), &err);
    *bytes = image;
    runner_start(&r, ops_cpu_best(), v->compute, 2, PIECE);
    u32 vocab = r.config.vocab;
    float *all = mem_alloc(p->ids.len * vocab * sizeof *all);
    for (u32 i = 0, at = 0; i < p->n; at = p->ends[i++]) {
        u32 take = p->ends[i] - at;
        struct fwd_seq q = runner_seq(&r, 0, p->ids.data + at, 0, take);
        q.prompt = take;
        memcpy(all + (size_t)at * vocab, forward_run_all(r.forward, &q, 1),
               (size_t)take * vocab * sizeof *all);
    }
    for (size_t i = 0; i < p->ids.len; i++) log_softmax(all + i * vocab, vocab);
    runner_unload(&r);
    return all;
}

static struct sums compare(const float *plain, const float *other, const struct pieces *pieces, u32 vocab)
{
    struct sums s = {.n = (u32)pieces->ids.len};
    for (u32 piece = 0, i = 0; piece < pieces->n; piece++)
        for (; i < pieces->ends[piece]; i++) {
            const float *p = plain + (size_t)i * vocab, *q = other + (size_t)i * vocab;
            double kl = divergence(p, q, vocab);
            s.kl += kl;
            s.worst_kl = fmax(s.worst_kl, kl);
            s.same += best_token(p, vocab) == best_token(q, vocab);
            if (i + 1 == pieces->ends[piece]) continue; /* what follows is not known */
            s.nll -= q[pieces->ids.data[i + 1]];
            s.predicted++;
        }
    return s;
}

static void print(const char *name, const struct sums *s, u64 bytes)
{
    printf("%-16s %10.1f MiB  perplexity %9.4f  KL mean %.2e max %.2e  same token %6.2f %%\n", name,
           (double)bytes / (1 << 20), exp(s->nll / s->predicted), s->kl / s->n, s->worst_kl,
           100.0 * s->same / s->n);
    fflush(stdout);
}

/* Every variant that the model can be loaded as. */
static void measure(const char *dir, const struct pieces *p)
{
    struct error err;
    struct model_config config;
    float *plain = NULL;
    runner_need(!model_read_config(dir, &config, &err), &err);
    printf("%s: %zu tokens in %u pieces\n", dir, p->ids.len, p->n);
    for (size_t i = 0; i < COUNT_OF(variants); i++) {
        u64 bytes;
        bool stays = config.quant.method && !quant_becomes_numbers(&config.quant);
        if (stays && variants[i].load.weights) continue;
        float *other = run(dir, &variants[i], p, &bytes);
        if (!plain) plain = other;
        struct sums s = compare(plain, other, p, config.vocab);
        print(variants[i].name, &s, bytes);
        if (other != plain) free(other);
    }
    free(plain);
}

static void read_text(const char *dir, const char *path, u32 most, struct pieces *p)
{
    struct error err = {0};
    struct buf text = {0};
    struct ids all = {0};
    struct tokenizer *t = tokenizer_load(dir, &err);
    runner_need(t != NULL, &err);
    runner_need(!file_read(path, 1 << 26, &text, &err), &err);
    runner_need(!tokenizer_encode(t, text.data, text.len, 0, &all, &err), &err);
    for (u32 i = 0, n = (u32)MIN_OF(all.len, (size_t)most); i < n; i++) {
        ids_add(&p->ids, all.data[i]);
        if (p->ids.len % PIECE == 0 || i + 1 == n) end_piece(p);
    }
    ids_release(&all);
    tokenizer_free(t);
    buf_release(&text);
}

static void add_ids(const struct json *ids, struct pieces *p)
{
    for (size_t i = 0; i < json_len(ids); i++) ids_add(&p->ids, (i32)json_int(json_item(ids, i), 0));
}

static void read_reference(const char *dir, struct pieces *p)
{
    struct error err = {0};
    char path[PATH_LEN];
    snprintf(path, sizeof path, "%s/reference.json", dir);
    struct json *root = json_read_file(path, 1 << 24, &err);
    runner_need(root != NULL, &err);
    const struct json *prompts = json_get(root, "prompts");
    for (size_t i = 0; i < json_len(prompts); i++) {
        add_ids(json_get(json_item(prompts, i), "ids"), p);
        add_ids(json_get(json_get(json_item(prompts, i), "greedy"), "ids"), p);
        end_piece(p);
    }
    json_drop(root);
}

static void release(struct pieces *p)
{
    ids_release(&p->ids);
    free(p->ends);
}

int main(int argc, char **argv)
{
    struct stat st;
    if (argc < 2) {
        fprintf(stderr, "quality MODEL TEXT-FILE [TOKENS], quality REFERENCE...\n");
        return 1;
    }
    if (argc > 2 && (stat(argv[2], &st) || !S_ISDIR(st.st_mode))) {
        struct pieces p = {0};
        read_text(argv[1], argv[2], argc > 3 ? (u32)atoi(argv[3]) : 4096u, &p);
        if (p.ids.len > 1) measure(argv[1], &p);
        release(&p);
        return 0;
    }
    for (int i = 1; i < argc; i++) {
        struct pieces p = {0};
        read_reference(argv[i], &p);
        measure(argv[i], &p);
        release(&p);
    }
    return 0;
}
