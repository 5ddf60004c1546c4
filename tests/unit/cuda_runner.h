/* A model folder on a device, loaded and ready to run. */
#ifndef MPISERVE_TESTS_CUDA_RUNNER_H
#define MPISERVE_TESTS_CUDA_RUNNER_H

#include "cuda_world.h"
#include "runner.h"

/* Largest errors of logits, which are 1 to 10 in size. The CPU's bf16 has up to 0.26; here weights that are stored as f32 become
 * shorter, too. */
static const double tolerances[] = {2e-3, 0.4, 0.05};

/* With shorter numbers a token near a tie goes to another expert, and all that follows is another model's: of such rows so many may be
 * off. (Experts' own arithmetic: test_cuda_experts.) */
static const double OFF_SHARE = 0.15;

enum { CUDA_BLOCKS = RUNNER_SEQS * RUNNER_BLOCKS };

struct cuda_runner {
    struct device *device;
    struct runner r; /* image and kv are the device's */
    struct weights_place place;
};

struct cuda_part { /* an engine of several; tp 0: the only one, on a device of its own */
    u32 tp, pp, me;
    struct device *device;
    struct coll_world *world;
    struct coll_nccl *gpus;
    struct adapters *adapters;
};

/* part NULL: all of the model on a device that is opened here. */
static inline void cuda_runner_start_part(struct cuda_runner *c, const char *dir, enum compute compute,
                                          u32 max_tokens, const struct cuda_part *part)
{
    static const enum dtype types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    struct error err = {0};
    struct runner *r = &c->r;
    size_t bytes;
    bool several = part && part->tp;
    memset(c, 0, sizeof *c);
    c->device = several ? part->device : cuda_open();
    c->place = (struct weights_place){c->device, types[compute]};
    runner_need(!model_read_config(dir, &r->config, &err), &err);
    r->config.load.adapters = part ? part->adapters : NULL;
    r->shard = shard_whole(&r->config);
    if (several)
        runner_need(!shard_of(&r->shard, &r->config, part->tp, part->pp, part->me % part->tp,
                              part->me / part->tp, &err),
                    &err);
    runner_need((r->files = model_open(dir, &err)) != NULL, &err);
    runner_need(!weights_plan(&r->config, &r->shard, r->files, &c->place, &bytes, &err), &err);
    r->image = cuda_memory(c->device, NULL, bytes);
    runner_need(!weights_fill(&r->config, &r->shard, r->files, &c->place, r->image, bytes, NULL, &err), &err);
    runner_need(!weights_bind(&r->config, &r->shard, r->files, &c->place, r->image, &r->weights, &err), &err);
    r->kv = cuda_memory(c->device, NULL,
                        forward_kv_bytes(&r->config, &r->shard, compute, CUDA_BLOCKS, RUNNER_BLOCK));
    runner_blocks(r);
    struct forward_spec spec = {.config = &r->config,
                                .shard = r->shard,
                                .all = several ? coll_all(part->world) : NULL,
                                .stage = several ? coll_stage(part->world) : NULL,
                                .gpus = several ? part->gpus : NULL,
                                .weights = &r->weights,
                                .ops = ops_cuda(),
                                .compute = compute,
                                .device = c->device,
                                .on_device = true,
                                .kv = r->kv,
                                .block_size = RUNNER_BLOCK,
                                .n_blocks = CUDA_BLOCKS,
                                .max_step_tokens = max_tokens,
                                .max_rows = RUNNER_SEQS,
                                .max_seq_blocks = RUNNER_BLOCKS};
    size_t before = cudasim_allocated();
    runner_need((r->forward = forward_new(&spec, &err)) != NULL, &err);
    if (cudasim_here() && cudasim_allocated() - before != forward_work_bytes(&spec))
        BUG("another size than was planned");
}

static inline void cuda_runner_start(struct cuda_runner *c, const char *dir, enum compute compute,
                                     u32 max_tokens)
{
    cuda_runner_start_part(c, dir, compute, max_tokens, NULL);
}

/* A part's device stays open. */
static inline void cuda_runner_stop_part(struct cuda_runner *c)
{
    forward_free(c->r.forward);
    device_free(c->device, c->r.image);
    device_free(c->device, c->r.kv);
    weights_release(&c->r.weights);
    model_close(c->r.files);
}

static inline void cuda_runner_stop(struct cuda_runner *c)
{
    cuda_runner_stop_part(c);
    device_close(c->device);
}

#endif
