/* What an engine would need: asked by agents before there is one. */
#include "engine/device_sampler.h"
#include "engine/device_vectors.h"
#include "engine/execute.h"
#include "engine/forward.h"
#include "engine/load.h"
#include "mpiserve/config.h"
#include "mpiserve/engine.h"

#include <stdio.h>
#include <string.h>

static int resolve(const struct engine_ask *ask, const struct model_config *config, struct engine_needs *out,
                   enum compute *compute, struct error *err)
{
    const char *isa = strcmp(ask->isa, "auto") == 0 ? ops_cpu_best() : ask->isa;
    out->device = strcmp(isa, "cuda") == 0;
    const struct ops *ops = out->device ? ops_cuda() : ops_cpu(isa);
    if (!ops && out->device)
        return error_set(err, ERR_UNSUPPORTED, "--engine cuda", "this build has no CUDA: make CUDA=1");
    if (!ops)
        return error_set(err, ERR_UNSUPPORTED, "cpu-isa",
                         "\"%s\" is not offered by this machine; its best is \"%s\"", isa, ops_cpu_best());
    const char *name = ask->compute;
    out->null = strcmp(name, "null") == 0;
    if (out->null) {
        out->device = false;
        snprintf(out->isa, sizeof(out->isa), "%s", isa);
        snprintf(out->compute, sizeof(out->compute), "%s", name);
        return 0;
    }
    bool f32 = config->float32 && !out->device;
    if (strcmp(name, "auto") == 0) name = ops->native_bf16 && !f32 ? "bf16" : "f32";
    if (compute_parse(name, compute) < 0)
        return error_set(err, ERR_INPUT, "compute", "\"%s\" is none of auto, f32, bf16, f16", name);
    if (*compute == COMPUTE_F16 && !out->device)
        return error_set(err, ERR_UNSUPPORTED, "--compute",
                         "f16 is for --engine cuda: CPUs compute in f32 or bf16 here");
    snprintf(out->isa, sizeof(out->isa), "%s", isa);
    snprintf(out->compute, sizeof(out->compute), "%s", name);
    return 0;
}

static u32 numerics_class(const struct engine_needs *n, const struct model_load *load,
                          const struct shard *part, u32 block_size)
{
    char text[160];
    int len = snprintf(text, sizeof(text), "mpiserve %s, %s, %s, %d, %d, tp %u, pp %u, ep 1, blocks of %u",
                       MPISERVE_VERSION, n->isa, n->compute, (int)load->weights,
                       load->kv_set ? (int)load->kv : -1, part->tp, part->pp, block_size);
    u32 h = (u32)hash_bytes(text, (size_t)len, 0);
    return h ? h : 1;
}

int compute_parse(const char *name, enum compute *out)
{
    if (strcmp(name, "f32") == 0)
        *out = COMPUTE_F32;
    else if (strcmp(name, "bf16") == 0)
        *out = COMPUTE_BF16;
    else if (strcmp(name, "f16") == 0)
        *out = COMPUTE_F16;
    else
        return ERR_INPUT;
    return 0;
}

/* What an engine allocates for its work. */
static u64 work_bytes(const struct model_config *c, const struct shard *part, const struct engine_ask *ask,
                      bool null)
{
    u32 len = ask->max_model_len ? ask->max_model_len : c->max_position;
    struct forward_spec spec = {
        .config = c, .shard = *part, .max_step_tokens = ask->max_step_tokens, .max_rows = ask->max_rows};
    u64 row = (len + ask->block_size - 1) / ask->block_size * sizeof(u32) + len * (u64)sizeof(i32);
    u64 samplers =
        forward_has_logits(&spec) && !c->pooling.kind ? ask->threads * (u64)sampler_bytes(c->vocab) : 0;
    u64 maths = null ? 0 : forward_work_bytes(&spec) + samplers;
    u32 vector = model_vector(c);
    return maths + execute_results_max(ask->max_rows, ask->max_logprobs, vector) +
           ask->max_rows * (row + vector * sizeof(float));
}

static u64 device_work_bytes(const struct model_config *c, const struct shard *part,
                             const struct engine_ask *ask)
{
    u32 len = ask->max_model_len ? ask->max_model_len : c->max_position;
    struct forward_spec spec = {.config = c,
                                .shard = *part,
                                .on_device = true,
                                .max_step_tokens = ask->max_step_tokens,
                                .max_rows = ask->max_rows,
                                .max_seq_blocks = (len + ask->block_size - 1) / ask->block_size};
    u64 results = !forward_has_logits(&spec) ? 0
                  : c->pooling.kind          ? device_vectors_bytes(ask->max_rows + 1, model_vector(c))
                                    : device_sampler_bytes(ask->max_rows, c->vocab, ask->max_logprobs);
    return device_own_bytes() + forward_work_bytes(&spec) + results;
}

/* An encoder reads a prompt in one step. */
static int check_step(const struct engine_ask *ask, const struct model_config *c, struct error *err)
{
    u32 len = ask->max_model_len ? ask->max_model_len : c->max_position;
    if (!c->arch->encoder || !ask->max_rows || len <= ask->max_step_tokens) return 0;
    return error_set(
        err, ERR_INPUT, "--max-num-batched-tokens",
        "%u are fewer than the %u tokens of the longest prompt, which %s reads in one step: give "
        "--max-num-batched-tokens %u, or a lower --max-model-len",
        ask->max_step_tokens, len, c->dir, len);
}

static int open_adapters(const struct engine_ask *ask, struct adapters **out, struct error *err)
{
    int rc = 0;
    if (!ask->n_adapters) return 0;
    *out = mem_zero(1, sizeof **out);
    for (u32 i = 0; i < ask->n_adapters && !rc; i++)
        rc = load_adapter(*out, ask->adapters[i].name, ask->adapters[i].path, err);
    return rc;
}

/* What an adapter's tensors ask of the model is found with the layout; the option is to blame for it. */
static int plan_weights(const struct model_config *c, const struct shard *part,
                        const struct model_files *files, const struct weights_place *place, size_t *bytes,
                        struct error *err)
{
    struct error why = {0};
    int rc = weights_plan(c, part, files, place, bytes, &why);
    const struct adapters *list = c->load.adapters;
    for (u32 i = 0; rc && list && i < list->n; i++)
        if (!strcmp(list->list[i].dir, why.where))
            return error_set(err, why.code, "--lora-modules", "%s: %s: %s", list->list[i].name, why.where,
                             why.message);
    return rc ? error_set(err, why.code, why.where, "%s", why.message) : 0;
}

static int plan(const struct engine_ask *ask, struct adapters **adapters, struct engine_needs *out,
                struct error *err)
{
    struct model_config config;
    enum compute compute = COMPUTE_F32;
    size_t bytes;
    memset(out, 0, sizeof(*out));
    if (!ask->block_size || ask->block_size % KV_TILE)
        return error_set(err, ERR_INPUT, "block-size", "%u is not a multiple of %d", ask->block_size,
                         KV_TILE);
    int rc = model_read_config(ask->model, &config, err);
    if (rc == 0) rc = resolve(ask, &config, out, &compute, err);
    if (rc == 0) rc = load_formats(&config, ask->quantization, ask->load_format, ask->kv_cache_dtype, err);
    if (rc == 0) rc = open_adapters(ask, adapters, err);
    if (rc < 0) return rc;
    config.load.adapters = *adapters;
    if (ask->max_model_len > config.max_position)
        return error_set(err, ERR_INPUT, "--max-model-len", "%u is more than the model's %u",
                         ask->max_model_len, config.max_position);
    rc = check_step(ask, &config, err);
    if (rc < 0) return rc;
    struct shard part;
    rc = shard_of(&part, &config, MAX_OF(ask->tp, 1u), MAX_OF(ask->pp, 1u), ask->tp_rank, ask->pp_rank, err);
    if (rc < 0) return rc;
    const struct forward_spec spec = {.config = &config, .shard = part, .compute = compute};
    if (out->device && forward_check_device(&spec, err)) return ERR_UNSUPPORTED;
    struct model_files *files = load_files(&config, err);
    if (!files) return err ? err->code : ERR_INPUT;
    const struct weights_place place = {.dtype = compute_dtype(compute)};
    rc = plan_weights(&config, &part, files, out->device ? &place : NULL, &bytes, err);
    if (rc == 0) {
        out->weights_bytes = out->device ? bytes : WEIGHTS_IMAGE_OFFSET + (out->null ? 0 : bytes);
        out->kv_bytes_per_block =
            out->null ? 1 : forward_kv_bytes(&config, &part, compute, 1, ask->block_size);
        if (ask->max_rows)
            out->work_bytes = out->device ? device_work_bytes(&config, &part, ask)
                                          : work_bytes(&config, &part, ask, out->null);
        out->fingerprint = model_fingerprint(&config, files);
        out->numerics = numerics_class(out, &config.load, &part, ask->block_size);
        out->vocab = config.vocab;
        out->hidden = model_vector(&config);
        if (config.arch->encoder)
            out->most_tokens = step_in_flight(MAX_OF(ask->pp, 1u)) * ask->max_step_tokens;
        out->max_model_len = ask->max_model_len ? ask->max_model_len : config.max_position;
    }
    model_close(files);
    return rc;
}

int engine_plan(const struct engine_ask *ask, struct engine_needs *out, struct error *err)
{
    struct adapters *adapters = NULL;
    int rc = plan(ask, &adapters, out, err);
    load_adapters_close(adapters);
    return rc;
}

int engine_device_room(const struct engine_needs *needs, const struct engine_device *d, u64 *out,
                       struct error *err)
{
    u64 unplanned = d->total - (u64)((double)d->total * d->share),
        may = d->free > unplanned ? d->free - unplanned : 0, taken = needs->weights_bytes + needs->work_bytes,
        left = may > taken ? may - taken : 0;
    *out = d->asked ? d->asked : left;
    if (!left)
        return error_set(
            err, ERR_MEMORY, "--gpu-memory-utilization",
            "%.2f of the GPU's %llu bytes leaves %llu unplanned, and %llu are free: weights (%llu) and work "
            "(%llu) do not fit into %llu. Raise it, take a GPU that others use less, or several (-tp)",
            d->share, (unsigned long long)d->total, (unsigned long long)unplanned,
            (unsigned long long)d->free, (unsigned long long)needs->weights_bytes,
            (unsigned long long)needs->work_bytes, (unsigned long long)may);
    if (d->asked > left)
        return error_set(err, ERR_INPUT, "--kv-cache-memory-bytes",
                         "%llu are more than the GPU has left: %llu", (unsigned long long)d->asked,
                         (unsigned long long)left);
    return 0;
}

u64 engine_kv_share(u64 memory, u32 ranks)
{
    return memory / 2 / MAX_OF(ranks, 1u);
}

int engine_blocks(const struct engine_needs *needs, const struct engine_limits *limits, u64 kv_bytes,
                  u32 *out, struct error *err)
{
    u64 per_seq = (limits->max_model_len + (u64)limits->block_size - 1) / limits->block_size;
    u64 wanted = per_seq * limits->max_rows + 1, most = needs->most_tokens / limits->block_size;
    if (needs->most_tokens) wanted = MIN_OF(wanted, most + limits->max_rows + per_seq + 1);
    u64 room = kv_bytes / needs->kv_bytes_per_block;
    *out = (u32)MIN_OF(wanted, MIN_OF(room, (u64)UINT32_MAX));
    if (*out > per_seq) return 0;
    return error_set(err, ERR_INPUT, "--kv-cache-memory-bytes",
                     "one sequence of %u tokens needs %llu bytes of KV cache, there are %llu: give more, "
                     "or lower --max-model-len",
                     limits->max_model_len, (unsigned long long)((per_seq + 1) * needs->kv_bytes_per_block),
                     (unsigned long long)kv_bytes);
}

size_t engine_ring_size(u32 max_rows, u32 max_step_tokens, u32 max_model_len, u32 max_logprobs, u32 hidden,
                        u32 block_size)
{
    const u64 lists = 1 << 20, margin = 4096;
    u64 step = lists + margin + max_model_len * (u64)sizeof(i32) +
               max_rows * (u64)(sizeof(struct seq_free) + sizeof(struct seq_new) + sizeof(struct row) + 16) +
               (max_step_tokens / block_size + (u64)max_rows) * 2 * (sizeof(u32) + sizeof(struct block_op));
    u64 need =
            STEP_IN_FLIGHT * 2 * MAX_OF(step, execute_results_max(max_rows, max_logprobs, hidden) + margin),
        size = 1 << 21;
    while (size < need) size *= 2;
    return size;
}
