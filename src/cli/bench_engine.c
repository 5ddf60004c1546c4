/* mpiserve bench engine: an engine alone, beside what memory and products give on this machine. */
#include "cli/bench.h"
#include "mpiserve/config.h"
#include "mpiserve/engine.h"
#include "mpiserve/json.h"
#include "mpiserve/proc.h"
#include "mpiserve/topo.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LIST_MOST = 16, RUNS_MOST = 1000, LENGTH_MOST = 1 << 24, BATCH_MOST = 4096 };

static const char usage[] =
    "mpiserve bench engine [MODEL] [--input-len N,N...] [--batch-size N,N...] [options of the job] [--json]\n"
    "\n"
    "Measures one engine without MPI, scheduler and HTTP: how fast it reads prompts of some lengths, and how "
    "fast it\n"
    "generates for some numbers of sequences at the same time; beside it what memory and products give here, "
    "measured\n"
    "in the same run. Options of the job that an engine knows are taken: --engine cuda, --compute, "
    "--quantization,\n"
    "--kv-cache-dtype, --load-format dummy (random weights: a folder with a config.json is enough), "
    "--threads,\n"
    "--cpu-isa, --max-num-batched-tokens, --block-size. MODEL is the demo model where none is named.\n"
    "  --input-len N,N...     128,512,2048, of them what the model can read: tokens of a prompt\n"
    "  --batch-size N,N...    1,8,32: sequences that generate at the same time\n"
    "  --context-len N        512, or what fits: tokens before the first one generated, whole blocks; taken "
    "as computed\n"
    "  --output-len N         32: tokens that each sequence generates\n"
    "  --num-iters N          5: how often each is measured; the median is shown\n"
    "  --num-iters-warmup N   1: how often before that\n"
    "  --json                 include/mpiserve/cli.h describes it\n"
    "A share above 100 % of memory means that caches hold what is read again and again. Exit status: 0, 1 "
    "the model\n"
    "cannot be run, 2 wrong usage.\n";

struct numbers {
    u32 at[LIST_MOST], n;
};
struct asked {
    struct numbers input_len, batch_size;
    u32 context_len, output_len, iters, warmup;
    bool context_given, input_given, json;
    struct config config;
};

/* ---- arguments */
static int read_list(const char *name, const char *text, u32 least, u32 most, u32 count, struct numbers *out,
                     struct error *err)
{
    out->n = 0;
    for (const char *at = text;; at++) {
        char *end;
        unsigned long v = strtoul(at, &end, 10);
        bool digit = *at >= '0' && *at <= '9';
        if (!digit || v < least || v > most || (*end && *end != ',') || out->n == count)
            return error_set(err, ERR_INPUT, name,
                             count > 1 ? "`%.40s` is not a list of at most %u whole numbers from %u to %u"
                                       : "`%.40s` is not %u whole number from %u to %u",
                             text, count, least, most);
        out->at[out->n++] = (u32)v;
        at = end;
        if (!*at) return 0;
    }
}

static int read_own(struct asked *a, const char *name, const char *value, struct error *err)
{
    const struct {
        const char *name;
        struct numbers *list; /* or one number: */
        u32 *one, least, most;
        bool *given;
    } all[] = {{"--input-len", &a->input_len, NULL, 1, LENGTH_MOST, &a->input_given},
               {"--batch-size", &a->batch_size, NULL, 1, BATCH_MOST, NULL},
               {"--context-len", NULL, &a->context_len, 0, LENGTH_MOST, &a->context_given},
               {"--output-len", NULL, &a->output_len, 1, LENGTH_MOST, NULL},
               {"--num-iters", NULL, &a->iters, 1, RUNS_MOST, NULL},
               {"--num-iters-warmup", NULL, &a->warmup, 0, RUNS_MOST, NULL}};
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        struct numbers one;
        if (strcmp(name, all[i].name) != 0) continue;
        int rc = read_list(name, value, all[i].least, all[i].most, all[i].list ? LIST_MOST : 1,
                           all[i].list ? all[i].list : &one, err);
        if (rc) return rc;
        if (all[i].one) *all[i].one = one.at[0];
        if (all[i].given) *all[i].given = true;
        return 1;
    }
    return 0;
}

/* Own options are taken out; the rest is the job's. 1: --help. */
static int read_arguments(struct asked *a, int argc, char **argv, struct error *err)
{
    *a = (struct asked){.input_len = {{128, 512, 2048}, 3},
                        .batch_size = {{1, 8, 32}, 3},
                        .context_len = 512,
                        .output_len = 32,
                        .iters = 5,
                        .warmup = 1};
    char **rest = mem_alloc(((size_t)argc + 1) * sizeof *rest);
    int n = 0, rc = 0;
    for (int i = 0; i < argc && rc >= 0; i++) {
        char name[32];
        const char *equals = strchr(argv[i], '=');
        bool help = i > 2 && (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0);
        if (help) {
            free(rest);
            return 1;
        }
        snprintf(name, sizeof name, "%.*s", equals ? (int)MIN_OF(equals - argv[i], (ptrdiff_t)31) : 31,
                 argv[i]);
        if (i > 2 && strcmp(argv[i], "--json") == 0) {
            a->json = true;
            continue;
        }
        rc = i < 3 ? 0 : read_own(a, name, equals ? equals + 1 : i + 1 < argc ? argv[i + 1] : "", err);
        if (rc == 0) rest[n++] = argv[i];
        if (rc == 1 && !equals) i++;
    }
    rest[n] = NULL;
    if (rc >= 0) rc = config_load(&a->config, n, rest, 3, err);
    free(rest);
    return rc;
}

/* ---- what is to be run */
static int too_long(const char *name, u32 asked, u32 more, u32 most, struct error *err)
{
    return error_set(err, ERR_INPUT, name, "%u tokens%s%s are more than the model's %u", asked,
                     more ? " and those of " : "", more ? "--output-len" : "", most);
}

/* Lengths that the model cannot have are an error where they were asked for. */
static int fit(struct asked *a, u32 most, u32 block_size, struct error *err)
{
    u32 kept = 0;
    for (u32 i = 0; i < a->input_len.n; i++) {
        if (a->input_len.at[i] <= most)
            a->input_len.at[kept++] = a->input_len.at[i];
        else if (a->input_given)
            return too_long("--input-len", a->input_len.at[i], 0, most, err);
    }
    if (!kept) a->input_len.at[kept++] = most;
    a->input_len.n = kept;
    if (a->output_len > most) return too_long("--output-len", a->output_len, 0, most, err);
    if (a->context_len > most - a->output_len) {
        if (a->context_given) return too_long("--context-len", a->context_len, a->output_len, most, err);
        a->context_len = most - a->output_len;
    }
    a->context_len -= a->context_len % block_size;
    return 0;
}

static u32 largest(const struct numbers *list)
{
    u32 most = 0;
    for (u32 i = 0; i < list->n; i++) most = MAX_OF(most, list->at[i]);
    return most;
}

static u32 cores_here(void)
{
    struct error err;
    struct topo *t = topo_load(&err);
    struct cpuset mine = {0};
    u32 n = t && cpuset_of_self(&mine, &err) == 0 ? topo_cores_of(t, &mine) : 1;
    topo_free(t);
    return MAX_OF(n, 1u);
}

/* An engine with room for what is asked; asks it before what it needs. */
static struct engine_solo *make_engine(struct asked *a, struct engine_ask *ask, struct error *err)
{
    const struct config *c = &a->config;
    struct engine_needs needs;
    engine_ask_of(c, strcmp(c->engine, "cuda") == 0 ? "cuda" : c->cpu_isa, ask);
    if (strcmp(c->engine, "null") == 0) {
        error_set(err, ERR_UNSUPPORTED, "--engine", "null computes nothing: there is nothing to measure");
        return NULL;
    }
    ask->max_rows = 0;
    if (engine_plan(ask, &needs, err) || fit(a, needs.max_model_len, ask->block_size, err)) return NULL;
    ask->max_rows = largest(&a->batch_size);
    ask->max_model_len = MAX_OF(largest(&a->input_len), a->context_len + a->output_len);
    ask->max_step_tokens = MAX_OF((u32)c->max_num_batched_tokens, ask->max_rows);
    ask->threads = c->threads ? (u32)c->threads : cores_here();
    if (engine_plan(ask, &needs, err)) return NULL;
    u64 blocks = ((u64)ask->max_model_len + ask->block_size - 1) / ask->block_size * ask->max_rows + 1,
        all = needs.weights_bytes + needs.work_bytes + blocks * needs.kv_bytes_per_block,
        left = memory_left();
    if (!needs.device && all > left) {
        error_set(err, ERR_MEMORY, "memory",
                  "%llu bytes are needed (weights %llu, K and V of %u sequences %llu), %llu are left: lower "
                  "--batch-size or --context-len",
                  (unsigned long long)all, (unsigned long long)needs.weights_bytes, ask->max_rows,
                  (unsigned long long)(blocks * needs.kv_bytes_per_block), (unsigned long long)left);
        return NULL;
    }
    return engine_solo_new(ask, err);
}

/* ---- measuring */
struct measured { /* of a case: seconds of each run, and what a run computed and read */
    double seconds[RUNS_MOST], median;
    struct engine_cost cost;
};

static int run_steps(struct engine_solo *s, u32 tokens, u32 most, double *seconds, struct engine_cost *cost,
                     struct error *err)
{
    *seconds = 0;
    *cost = (struct engine_cost){0};
    for (u32 done = 0, n; done < tokens; done += n) {
        u64 ns;
        n = MIN_OF(most, tokens - done);
        struct engine_cost step = engine_solo_cost(s, n);
        int rc = engine_solo_step(s, n, &ns, err);
        if (rc) return rc;
        *seconds += (double)ns / 1e9;
        cost->flops += step.flops;
        cost->bytes += step.bytes;
    }
    return 0;
}

static int by_size(const void *x, const void *y)
{
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

/* A prompt (batch 1, nothing cached), or so many tokens of a batch, one a step. */
static int measure(const struct asked *a, struct engine_solo *s, u32 batch, u32 cached, u32 tokens, u32 most,
                   struct measured *m, struct error *err)
{
    double sorted[RUNS_MOST], seconds;
    for (u32 i = 0; i < a->warmup + a->iters; i++) {
        engine_solo_begin(s, batch, cached, most == 1 ? 1 : tokens);
        int rc = run_steps(s, tokens, most, &seconds, &m->cost, err);
        if (rc) return rc;
        if (i >= a->warmup) m->seconds[i - a->warmup] = seconds;
    }
    memcpy(sorted, m->seconds, a->iters * sizeof *sorted);
    qsort(sorted, a->iters, sizeof *sorted, by_size);
    m->median = a->iters % 2 ? sorted[a->iters / 2] : (sorted[a->iters / 2 - 1] + sorted[a->iters / 2]) / 2;
    return 0;
}

/* ---- the answer */
struct answer {
    const struct asked *asked;
    const struct engine_solo *solo;
    const struct engine_ask *ask;
    struct engine_speed speed;
    struct json_out *json; /* NULL: text */
};

static void head_json(const struct answer *x)
{
    const struct engine_needs *n = engine_solo_needs(x->solo);
    struct json_out *o = x->json;
    json_out_key_str(o, "mpiserve", MPISERVE_VERSION);
    json_out_key_str(o, "model", x->ask->model);
    json_out_key_str(o, "engine", x->asked->config.engine);
    json_out_key_str(o, "device", engine_solo_device(x->solo));
    json_out_key_str(o, "compute", n->compute);
    json_out_key_str(o, "isa", n->isa);
    json_out_key_str(o, "quantization", x->ask->quantization);
    json_out_key_str(o, "load_format", x->ask->load_format);
    json_out_key_int(o, "threads", n->device ? 1 : x->ask->threads);
    json_out_key_int(o, "max_num_batched_tokens", x->ask->max_step_tokens);
    json_out_key_int(o, "weights_bytes", n->weights_bytes);
    json_out_key(o, "limits");
    json_out_object(o);
    json_out_key_real(o, "memory_bytes_per_s", x->speed.bytes);
    json_out_key_real(o, "product_flops_per_s", x->speed.flops);
    json_out_end_object(o);
}

static void head_text(const struct answer *x)
{
    const struct engine_needs *n = engine_solo_needs(x->solo);
    const char *device = engine_solo_device(x->solo);
    printf("%s: %s on %s", x->ask->model, n->compute, device ? device : n->isa);
    if (!n->device) printf(", %u thread%s", x->ask->threads, x->ask->threads > 1 ? "s" : "");
    printf("; weights %.1f MB%s\n", (double)n->weights_bytes / 1e6,
           strcmp(x->ask->load_format, "dummy") == 0 ? ", random" : "");
    printf("limits, measured: memory %.1f GB/s (%s), products %.1f GFLOP/s\n", x->speed.bytes / 1e9,
           n->device ? "copying, both ways" : "reading", x->speed.flops / 1e9);
}

/* One case; rows is what its first columns are. */
static void add_case(const struct answer *x, u32 batch, u32 before, u32 tokens, const struct measured *m)
{
    double all = (double)batch * tokens, bytes = m->cost.bytes / m->median, flops = m->cost.flops / m->median;
    struct json_out *o = x->json;
    if (!o) {
        printf("%7u%9u%8u%12.1f%11.3f%9.1f%8.0f%%%10.1f%8.0f%%\n", batch, before, tokens, all / m->median,
               1e3 * m->median, bytes / 1e9, 100 * bytes / x->speed.bytes, flops / 1e9,
               100 * flops / x->speed.flops);
        fflush(stdout);
        return;
    }
    json_out_object(o);
    json_out_key_int(o, "batch_size", batch);
    json_out_key_int(o, "context_len", before);
    json_out_key_int(o, "tokens", tokens);
    json_out_key_real(o, "tokens_per_s", all / m->median);
    json_out_key_real(o, "seconds", m->median);
    json_out_key_real(o, "bytes_per_s", bytes);
    json_out_key_real(o, "of_memory", bytes / x->speed.bytes);
    json_out_key_real(o, "flops_per_s", flops);
    json_out_key_real(o, "of_products", flops / x->speed.flops);
    json_out_key(o, "runs");
    json_out_array(o);
    for (u32 i = 0; i < x->asked->iters; i++) json_out_real(o, m->seconds[i]);
    json_out_end_array(o);
    json_out_end_object(o);
}

static void begin_list(const struct answer *x, const char *key, const char *title)
{
    if (x->json) {
        json_out_key(x->json, key);
        json_out_array(x->json);
        return;
    }
    printf("\n%s\n%7s%9s%8s%12s%11s%9s%9s%10s%9s\n", title, "batch", "context", "tokens", "tokens/s", "ms",
           "GB/s", "of mem.", "GFLOP/s", "of prod.");
}

static int run_cases(const struct answer *x, struct engine_solo *s, struct error *err)
{
    const struct asked *a = x->asked;
    struct measured *m = mem_zero(1, sizeof *m);
    int rc = 0;
    begin_list(x, "prefill", "Prompts");
    for (u32 i = 0; i < a->input_len.n && rc == 0; i++) {
        u32 n = a->input_len.at[i];
        rc = measure(a, s, 1, 0, n, MAX_OF(x->ask->max_step_tokens, 2u), m, err);
        if (rc == 0) add_case(x, 1, 0, n, m);
    }
    if (x->json) json_out_end_array(x->json);
    begin_list(x, "decode", "Single tokens");
    for (u32 i = 0; i < a->batch_size.n && rc == 0; i++) {
        u32 n = a->batch_size.at[i];
        rc = measure(a, s, n, a->context_len, a->output_len, 1, m, err);
        if (rc == 0) add_case(x, n, a->context_len, a->output_len, m);
    }
    if (x->json) json_out_end_array(x->json);
    free(m);
    return rc;
}

static int bench(struct asked *a, struct error *err)
{
    struct engine_ask ask;
    struct buf text = {0};
    struct json_out o;
    struct engine_solo *s = make_engine(a, &ask, err);
    if (!s) return err->code;
    struct answer x = {.asked = a, .solo = s, .ask = &ask, .json = a->json ? &o : NULL};
    int rc = engine_solo_speed(s, &x.speed, err);
    json_out_init(&o, &text);
    json_out_object(&o);
    if (rc == 0) x.json ? head_json(&x) : head_text(&x);
    if (rc == 0) rc = run_cases(&x, s, err);
    json_out_end_object(&o);
    if (rc == 0 && x.json) puts(text.data);
    buf_release(&text);
    engine_solo_free(s);
    return rc;
}

int bench_engine(int argc, char **argv)
{
    struct asked *a = mem_zero(1, sizeof *a);
    struct error err = {0};
    char line[1100];
    log_setup(LOG_WARNING, "");
    int rc = read_arguments(a, argc, argv, &err), status = rc < 0 ? 2 : 0;
    if (rc == 1) fputs(usage, stdout);
    for (int i = 0; rc == 0 && i < a->config.n_notes; i++) log_info("%s", a->config.notes[i]);
    if (rc == 0 && bench(a, &err)) {
        config_blame(&a->config, &err);
        status = 1;
    }
    if (status) log_error("%s", error_text(&err, line, sizeof line));
    free(a);
    return status;
}
