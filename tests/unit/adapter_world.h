/* A reference checkpoint and adapters for it (tests/reference/adapters), with what peft makes of each: prompts, logits, greedy tokens. */
#ifndef MPISERVE_TESTS_ADAPTER_WORLD_H
#define MPISERVE_TESTS_ADAPTER_WORLD_H

#include "reference.h"

enum { MODELS = 3 }; /* of a world: the base, and two adapters */

/* A base and its adapters, each with what the library says of it. */
struct world {
    const char *const *names; /* of folders: the base, adapters; NULL ends the list */
    struct reference refs[MODELS];
    u32 n;
    struct adapters adapters;
    struct model_load load;
    float *logits[MODELS][PROMPTS]; /* alone: [n + STEPS - 1, vocab] */
};
static const char *const llama[] = {"llama_tied_llama3", "llama_attention", "llama_all", NULL},
                         *const qwen3[] = {"qwen3_headdim32", "qwen3_mlp", NULL},
                         *const phi3[] = {"phi3_swa", "phi3_fused", NULL},
                         *const deepseek[] = {"deepseek_v2", "deepseek_latent", NULL},
                         *const gemma2[] = {"gemma2", "gemma2_all", NULL},
                         *const mixtral[] = {"mixtral", "mixtral_attention", NULL};

static inline void world_open(struct world *w, const char *const *names)
{
    memset(w, 0, sizeof *w);
    w->names = names;
    reference_read(&w->refs[0], names[0]);
    for (w->n = 1; names[w->n]; w->n++) {
        char name[128];
        struct error err = {0};
        struct reference *ref = &w->refs[w->n];
        snprintf(name, sizeof name, "../adapters/%s", names[w->n]);
        reference_read(ref, name);
        runner_need(!adapter_open(&w->adapters.list[w->n - 1], names[w->n], ref->dir, &err), &err);
        w->adapters.n = w->n;
    }
    w->load.adapters = &w->adapters;
}

static inline void world_close(struct world *w)
{
    for (u32 i = 0; i < w->adapters.n; i++) adapter_close(&w->adapters.list[i]);
    for (u32 m = 0; m < w->n; m++) {
        reference_release(&w->refs[m]);
        for (u32 i = 0; i < PROMPTS; i++) free(w->logits[m][i]);
    }
}

static inline struct fwd_seq sequence(const struct runner *r, u32 blocks, u32 model, const struct prompt *p,
                                      u32 at, u32 n)
{
    const i32 *tokens = at < p->n ? p->ids + at : p->greedy + (at - p->n);
    struct fwd_seq q = runner_seq(r, blocks, tokens, at, n);
    q.prompt = p->n;
    q.adapter = model;
    return q;
}

static inline u32 rows_of(const struct prompt *p)
{
    return p->n + STEPS - 1;
}

#endif
