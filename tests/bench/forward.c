/* The engine's work without the engine process, steps, messages and HTTP: prompts are read, then every sequence decodes
 * greedily, in one batch. Prints one JSON object; the difference to the figures over HTTP is overhead.
 *   forward MODEL COMPUTE THREADS SEQUENCES PROMPT TOKENS ROUNDS [[dummy-]int8|int4] */
#include "../unit/runner.h"

#include "engine/sampler.h"

struct work {
    struct runner r;
    struct sampler *sampler;
    struct sampler_row rows[RUNNER_SEQS];
    i32 history[RUNNER_SEQS][RUNNER_LENGTH];
    u32 n, prompt, tokens;
    u64 sampler_ns;
};

/* One step of all sequences: `take` tokens from pos, then a choice for each. */
static void step(struct work *w, u32 pos, u32 take)
{
    struct fwd_seq seqs[RUNNER_SEQS];
    u32 vocab = w->r.config.vocab, at = pos + take;
    for (u32 s = 0; s < w->n; s++) seqs[s] = runner_seq(&w->r, s, w->history[s] + pos, pos, take);
    const float *logits = forward_run(w->r.forward, seqs, w->n);
    u64 start = clock_ns();
    for (u32 s = 0; s < w->n; s++) {
        struct choice c = sampler_choose(w->sampler, &w->rows[s], logits + (size_t)s * vocab, w->history[s],
                                         at, NULL, NULL);
        if (at < RUNNER_LENGTH) w->history[s][at] = c.token;
        sampler_row_push(&w->rows[s], c.token);
    }
    w->sampler_ns += clock_ns() - start;
}

static void start_rows(struct work *w)
{
    struct error err = {0};
    struct sampling greedy = {.temperature = 0, .top_p = 1, .repetition_penalty = 1, .n_logprobs = -1};
    for (u32 s = 0; s < w->n; s++) {
        for (u32 i = 0; i < w->prompt; i++)
            w->history[s][i] = (i32)((s * 31 + i * 7 + 3) % w->r.config.vocab);
        struct sampler_spec spec = {
            .sampling = &greedy, .history = w->history[s], .prompt_len = w->prompt, .n = w->prompt};
        sampler_row_release(&w->rows[s]);
        runner_need(!sampler_row_init(&w->rows[s], &spec, w->r.config.vocab, &err), &err);
    }
}

static void bench(struct work *w, int rounds)
{
    for (int i = 0; i < rounds; i++) {
        start_rows(w);
        u64 start = clock_ns();
        w->sampler_ns = 0;
        step(w, 0, w->prompt);
        u64 prefill = clock_ns() - start;
        for (u32 t = 1; t < w->tokens; t++) step(w, w->prompt + t - 1, 1);
        double seconds = (double)(clock_ns() - start) / 1e9;
        printf("%s{\"tokens_per_s\": %.1f, \"prefill_ms\": %.4f, \"sampler_share\": %.4f}", i ? ", " : "",
               (double)w->n * w->tokens / seconds, (double)prefill / 1e6,
               (double)w->sampler_ns / 1e9 / seconds);
    }
}

int main(int argc, char **argv)
{
    if (argc != 8 && argc != 9) {
        fprintf(stderr,
                "forward MODEL auto|f32|bf16 THREADS SEQUENCES PROMPT TOKENS ROUNDS [[dummy-]int8|int4]\n");
        return 2;
    }
    static struct work w;
    int threads = atoi(argv[3]);
    w.n = (u32)atoi(argv[4]);
    w.prompt = (u32)atoi(argv[5]);
    w.tokens = (u32)atoi(argv[6]);
    const char *load = argc == 9 ? argv[8] : "";
    runner_load_as(&w.r, argv[1],
                   &(struct model_load){.dummy = strstr(load, "dummy") != NULL,
                                        .weights = strstr(load, "int8")   ? DTYPE_I8
                                                   : strstr(load, "int4") ? DTYPE_I4
                                                                          : DTYPE_F32});
    w.r.spin_ns = 50 * NS_PER_US; /* as engines that have their cores to themselves */
    const struct ops *ops = ops_cpu(ops_cpu_best());
    bool f32 = !strcmp(argv[2], "f32") || (!strcmp(argv[2], "auto") && !ops->native_bf16);
    if (w.n < 1 || w.n > RUNNER_SEQS || !w.prompt || !w.tokens || w.prompt + w.tokens > RUNNER_LENGTH) {
        fprintf(stderr, "forward: at most %d sequences of %d tokens\n", RUNNER_SEQS, RUNNER_LENGTH);
        return 2;
    }
    runner_start(&w.r, ops->name, f32 ? COMPUTE_F32 : COMPUTE_BF16, threads, RUNNER_SEQS * RUNNER_BLOCK);
    w.sampler = sampler_new(w.r.config.vocab);
    printf("{\"isa\": \"%s\", \"compute\": \"%s\", \"runs\": [", ops->name, f32 ? "f32" : "bf16");
    bench(&w, atoi(argv[7]));
    printf("]}\n");
    sampler_free(w.sampler);
    for (u32 s = 0; s < RUNNER_SEQS; s++) sampler_row_release(&w.rows[s]);
    runner_unload(&w.r);
    return 0;
}
