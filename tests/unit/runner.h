/* A model folder, loaded and ready to run, for tests of the forward pass. Block tables are scattered on purpose. */
#ifndef MPISERVE_TESTS_RUNNER_H
#define MPISERVE_TESTS_RUNNER_H

#include "engine/forward.h"
#include "mpiserve/ops.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RUNNER_SEQS = 32, RUNNER_BLOCKS = 64, RUNNER_BLOCK = 16 };
enum { RUNNER_LENGTH = RUNNER_BLOCKS * RUNNER_BLOCK };

struct runner {
    struct model_config config;
    struct shard shard;
    struct coll *all, *stage; /* of an engine of several */
    struct model_files *files;
    struct weights weights;
    void *image, *kv;
    struct pool *pool;
    u64 spin_ns; /* of the pool; 0 unless set behind runner_load */
    struct forward *forward;
    u32 blocks[RUNNER_SEQS][RUNNER_BLOCKS];
};

static inline const char *data_dir(const char *variable, const char *otherwise)
{
    const char *dir = getenv(variable);
    return dir ? dir : otherwise;
}

static inline void runner_need(bool fine, const struct error *err)
{
    char text[1200];
    if (fine) return;
    fprintf(stderr, "%s\n", error_text(err, text, sizeof text));
    abort();
}

static inline void runner_blocks(struct runner *r)
{
    for (u32 s = 0; s < RUNNER_SEQS; s++)
        for (u32 b = 0; b < RUNNER_BLOCKS; b++)
            r->blocks[s][b] = (s * RUNNER_BLOCKS + b) * 37 % (RUNNER_SEQS * RUNNER_BLOCKS);
}

static inline void runner_read(struct runner *r, const char *dir, const struct model_load *load)
{
    struct error err = {0};
    memset(r, 0, sizeof *r);
    runner_need(!model_read_config(dir, &r->config, &err), &err);
    r->config.load = *load;
}

static inline void runner_fill(struct runner *r, u32 tp, u32 pp, u32 tp_rank, u32 pp_rank)
{
    struct error err = {0};
    size_t bytes;
    runner_need(!shard_of(&r->shard, &r->config, tp, pp, tp_rank, pp_rank, &err), &err);
    runner_need((r->files = r->config.load.dummy ? model_open_none() : model_open(r->config.dir, &err)) !=
                    NULL,
                &err);
    runner_need(!weights_plan(&r->config, &r->shard, r->files, NULL, &bytes, &err), &err);
    r->image = aligned_alloc(CACHE_LINE, (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);
    runner_need(!weights_fill(&r->config, &r->shard, r->files, NULL, r->image, bytes, NULL, &err), &err);
    runner_need(!weights_bind(&r->config, &r->shard, r->files, NULL, r->image, &r->weights, &err), &err);
    runner_blocks(r);
}

/* One engine's part of the model. */
static inline void runner_load_part(struct runner *r, const char *dir, u32 tp, u32 pp, u32 tp_rank,
                                    u32 pp_rank)
{
    runner_read(r, dir, &(struct model_load){0});
    runner_fill(r, tp, pp, tp_rank, pp_rank);
}

static inline void runner_load_as(struct runner *r, const char *dir, const struct model_load *load)
{
    runner_read(r, dir, load);
    runner_fill(r, 1, 1, 0, 0);
}

static inline void runner_load(struct runner *r, const char *dir)
{
    runner_load_part(r, dir, 1, 1, 0, 0);
}

static inline void runner_stop(struct runner *r)
{
    forward_free(r->forward);
    pool_free(r->pool);
    free(r->kv);
    r->forward = NULL;
    r->pool = NULL;
    r->kv = NULL;
}

/* (Re)starts with another instruction set. The KV pool begins as NaN: nothing unwritten may be used. */
static inline void runner_start(struct runner *r, const char *isa, enum compute compute, int threads,
                                u32 max_tokens)
{
    struct error err = {0};
    runner_stop(r);
    u32 n_blocks = RUNNER_SEQS * RUNNER_BLOCKS;
    size_t bytes = forward_kv_bytes(&r->config, &r->shard, compute, n_blocks, RUNNER_BLOCK);
    r->kv = aligned_alloc(CACHE_LINE, bytes);
    memset(r->kv, 0xff, bytes);
    runner_need((r->pool = pool_new(threads, r->spin_ns, &err)) != NULL, &err);
    struct forward_spec spec = {.config = &r->config,
                                .shard = r->shard,
                                .all = r->all,
                                .stage = r->stage,
                                .weights = &r->weights,
                                .ops = ops_cpu(isa),
                                .compute = compute,
                                .pool = r->pool,
                                .kv = r->kv,
                                .block_size = RUNNER_BLOCK,
                                .n_blocks = n_blocks,
                                .max_step_tokens = max_tokens,
                                .max_rows = RUNNER_SEQS};
    runner_need((r->forward = forward_new(&spec, &err)) != NULL, &err);
}

static inline void runner_unload(struct runner *r)
{
    runner_stop(r);
    weights_release(&r->weights);
    free(r->image);
    model_close(r->files);
}

/* Tokens of sequence s from position pos. */
static inline struct fwd_seq runner_seq(const struct runner *r, u32 s, const i32 *tokens, u32 pos, u32 n)
{
    return (struct fwd_seq){
        .tokens = tokens, .pos = pos, .n_tok = n, .blocks = r->blocks[s], .want_logits = true};
}

static inline i32 best_token(const float *logits, u32 vocab)
{
    u32 best = 0;
    for (u32 i = 1; i < vocab; i++)
        if (logits[i] > logits[best]) best = i;
    return (i32)best;
}

/* Instruction sets of this machine, lowest first; returns how many. */
static inline int runner_levels(const char *names[8])
{
    int n = 0;
    for (int level = 0; ops_isa_name(level); level++)
        if (ops_cpu(ops_isa_name(level))) names[n++] = ops_isa_name(level);
    return n;
}

#endif
