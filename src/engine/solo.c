/* An engine in this process, to measure it. What is around an engine is left out: it gets its boot from itself, and steps as frames. */
#include "engine/cost.h"
#include "engine/process.h"
#include "engine/speed.h"
#include "mpiserve/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SPIN_US = 50 }; /* as engines that have their cores to themselves */

struct engine_solo {
    struct engine e;
    struct channel_head head;
    struct engine_needs needs;
    u64 step;                 /* id of the last one */
    u32 n, pos, known, old_n; /* sequences; where each goes on; tokens of its history; those to be freed */
    u32 prompt, generation;   /* of the rows */
    bool fresh;               /* the next step brings them */
    u32 per_seq;              /* blocks */
};

/* ---- life */
static void fill_boot(struct engine_boot *b, const struct engine_ask *ask, const struct engine_needs *needs)
{
    u32 per_seq = (needs->max_model_len + ask->block_size - 1) / ask->block_size;
    *b = (struct engine_boot){.weights_bytes = needs->weights_bytes,
                              .gen = 1,
                              .numerics = needs->numerics,
                              .block_size = ask->block_size,
                              .n_blocks = per_seq * ask->max_rows + 1,
                              .max_rows = ask->max_rows,
                              .max_step_tokens = ask->max_step_tokens,
                              .max_model_len = needs->max_model_len,
                              .max_logprobs = ask->max_logprobs,
                              .threads = ask->threads,
                              .spin_us = SPIN_US,
                              .loader = 1};
    b->kv_bytes = needs->kv_bytes_per_block * b->n_blocks;
    const struct {
        char *to;
        size_t size;
        const char *text;
    } texts[] = {{b->model, sizeof b->model, ask->model},
                 {b->compute, sizeof b->compute, needs->compute},
                 {b->isa, sizeof b->isa, needs->isa},
                 {b->quantization, sizeof b->quantization, ask->quantization},
                 {b->load_format, sizeof b->load_format, ask->load_format},
                 {b->kv_cache_dtype, sizeof b->kv_cache_dtype, ask->kv_cache_dtype}};
    for (size_t i = 0; i < COUNT_OF(texts); i++)
        snprintf(texts[i].to, texts[i].size, "%s", texts[i].text ? texts[i].text : "auto");
}

static int host_memory(const char *name, u64 bytes, struct error *err)
{
    int fd = memfd_create(name, MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0) {
        error_errno(err, name, "no memory for %llu bytes", (unsigned long long)bytes);
        if (fd >= 0) close(fd);
        return -1;
    }
    return fd;
}

/* Blocks count as computed: zeros give finite numbers, and are memory of their own. */
static void clear_kv(struct engine_solo *s)
{
    if (s->e.model.device)
        device_zero(s->e.model.device, s->e.model.kv, s->e.model.kv_bytes);
    else
        memset(s->e.model.kv, 0, s->e.model.kv_bytes);
}

static int start(struct engine_solo *s, struct error *err)
{
    struct engine *e = &s->e;
    if (!s->needs.device) {
        e->weights_fd = host_memory("weights", s->head.boot.weights_bytes, err);
        e->kv_fd = e->weights_fd < 0 ? -1 : host_memory("KV", s->head.boot.kv_bytes, err);
        if (e->kv_fd < 0) return ERR_MEMORY;
    }
    int rc = engine_build(e, err);
    if (rc == 0) clear_kv(s);
    return rc;
}

struct engine_solo *engine_solo_new(const struct engine_ask *ask, struct error *err)
{
    struct engine_needs needs;
    if (ask->n_adapters) {
        error_set(err, ERR_UNSUPPORTED, "--lora-modules",
                  "the model is measured without adapters: leave them out");
        return NULL;
    }
    if (engine_plan(ask, &needs, err)) return NULL;
    if (needs.null || needs.hidden || MAX_OF(ask->tp, 1u) * MAX_OF(ask->pp, 1u) > 1) {
        error_set(err, ERR_UNSUPPORTED, ask->model, "one engine that generates can be measured: %s",
                  needs.null     ? "this one computes nothing"
                  : needs.hidden ? "this model makes vectors"
                                 : "this is a replica of several");
        return NULL;
    }
    struct engine_solo *s = mem_zero(1, sizeof *s);
    s->needs = needs;
    fill_boot(&s->head.boot, ask, &needs);
    s->per_seq = (s->head.boot.n_blocks - 1) / ask->max_rows;
    s->e = (struct engine){.head = &s->head,
                           .boot = &s->head.boot,
                           .weights_fd = -1,
                           .kv_fd = -1,
                           .group = {.root = true, .sampler = true}};
    if (start(s, err) == 0) return s;
    engine_solo_free(s);
    return NULL;
}

void engine_solo_free(struct engine_solo *s)
{
    if (!s) return;
    engine_release(&s->e);
    if (s->e.weights_fd >= 0) close(s->e.weights_fd);
    if (s->e.kv_fd >= 0) close(s->e.kv_fd);
    free(s);
}

const struct engine_needs *engine_solo_needs(const struct engine_solo *s)
{
    return &s->needs;
}

const char *engine_solo_device(const struct engine_solo *s)
{
    return s->e.model.device ? device_info(s->e.model.device)->name : NULL;
}

/* ---- steps */
void engine_solo_begin(struct engine_solo *s, u32 n, u32 cached, u32 prompt)
{
    const struct engine_boot *b = s->e.boot;
    BUG_ON(!n || n > b->max_rows || !prompt || cached % b->block_size ||
           (u64)cached + prompt > b->max_model_len);
    s->old_n = s->generation ? s->n : 0;
    s->n = n;
    s->pos = cached;
    s->known = s->prompt = cached + prompt;
    s->generation++;
    s->fresh = true;
}

static u32 blocks_of(const struct engine_solo *s, u32 tokens)
{
    return (tokens + s->e.boot->block_size - 1) / s->e.boot->block_size;
}

/* Every row's prompt, of tokens that differ. */
static void add_new(const struct engine_solo *s, struct step_view *v, size_t *at)
{
    static const struct sampling greedy = {
        .top_p = 1, .repetition_penalty = 1, .n_logprobs = -1, .max_tokens = 1};
    size_t bytes = align8(s->known * sizeof(i32));
    for (u32 i = 0; i < s->old_n; i++)
        ((struct seq_free *)v->free)[i] = (struct seq_free){i, s->generation - 1};
    for (u32 r = 0; r < s->n; r++, *at += bytes) {
        i32 *tokens = (i32 *)(void *)(v->data + *at);
        for (u32 i = 0; i < s->known; i++) tokens[i] = (i32)((r * 31 + i * 7 + 3) % s->needs.vocab);
        ((struct seq_new *)v->new)[r] = (struct seq_new){.row = r,
                                                         .row_gen = s->generation,
                                                         .request = r,
                                                         .prompt_len = s->prompt,
                                                         .n_tok = s->known,
                                                         .max_len = s->needs.max_model_len,
                                                         .sampling = greedy,
                                                         .tokens = {(u32)*at, s->known}};
    }
}

static void add_rows(const struct engine_solo *s, struct step_view *v, u32 n_tok, u32 have, u32 more,
                     size_t at)
{
    size_t bytes = align8(more * sizeof(u32));
    for (u32 r = 0; r < s->n; r++, at += bytes) {
        u32 *blocks = (u32 *)(void *)(v->data + at);
        for (u32 i = 0; i < more; i++) blocks[i] = 1 + r * s->per_seq + have + i;
        ((struct row *)v->rows)[r] =
            (struct row){.row = r,
                         .row_gen = s->generation,
                         .pos = s->pos,
                         .n_tok = (u16)n_tok,
                         .want = s->pos + n_tok == s->known ? WANT_SAMPLE : WANT_NOTHING,
                         .mask_slot = -1,
                         .block_delta = {{(u32)at, more}}};
    }
}

static void *make_frame(struct engine_solo *s, u32 n_tok, size_t *len)
{
    u32 have = s->fresh ? 0 : blocks_of(s, s->pos), more = blocks_of(s, s->pos + n_tok) - have;
    size_t tokens = s->fresh ? align8(s->known * sizeof(i32)) : 0, blocks = align8(more * sizeof(u32)),
           at = 0;
    struct step h = {.id = ++s->step,
                     .gen = s->e.boot->gen,
                     .numerics = s->e.boot->numerics,
                     .kind = STEP_FORWARD,
                     .n_new = s->fresh ? s->n : 0,
                     .n_free = s->fresh ? s->old_n : 0,
                     .n_rows = s->n,
                     .n_tok = s->n * n_tok,
                     .data_len = (u32)(s->n * (tokens + blocks))};
    struct step_view v;
    void *frame = mem_zero(1, *len = step_frame_bytes(&h));
    step_frame_layout(frame, &h, &v);
    if (s->fresh) add_new(s, &v, &at);
    add_rows(s, &v, n_tok, have, more, at);
    step_frame_seal(frame);
    return frame;
}

/* What the step says, or why it does not. */
static int judge(const struct engine_solo *s, const void *out, size_t len, struct error *err)
{
    struct results_view v;
    if (!out) {
        *err = *execute_error(s->e.execute);
        return err->code;
    }
    int rc = results_view(&v, out, len, err);
    if (rc < 0) return rc;
    if (v.head->failed)
        return error_set(err, ERR_STATE, "step", "the engine refused it; its reason is above");
    for (u32 i = 0; i < v.head->n; i++)
        if (v.rows[i].flags)
            return error_set(err, ERR_STATE, s->e.boot->model, "the model gives numbers that are not finite");
    return 0;
}

int engine_solo_step(struct engine_solo *s, u32 n_tok, u64 *ns, struct error *err)
{
    size_t len, out_len = 0;
    BUG_ON(s->pos + n_tok > s->known || (u64)s->n * n_tok > s->e.boot->max_step_tokens);
    void *frame = make_frame(s, n_tok, &len);
    u64 start = clock_ns();
    const void *out = execute_step(s->e.execute, frame, len, &out_len);
    *ns = clock_ns() - start;
    free(frame);
    s->fresh = false;
    s->pos += n_tok;
    if (s->pos == s->known && s->known < s->needs.max_model_len) s->known++;
    return judge(s, out, out_len, err);
}

/* ---- limits */
struct engine_cost engine_solo_cost(const struct engine_solo *s, u32 n_tok)
{
    const struct engine_boot *b = s->e.boot;
    const struct loaded *m = &s->e.model;
    return cost_of(
        &(struct cost_ask){.config = &m->config,
                           .shard = &m->shard,
                           .weights = &m->weights,
                           .device = m->device != NULL,
                           .kv_token = s->needs.kv_bytes_per_block / b->block_size / m->config.layers,
                           .seqs = s->n,
                           .pos = s->pos,
                           .n_tok = n_tok,
                           .logits = s->pos + n_tok == s->known});
}

int engine_solo_speed(const struct engine_solo *s, struct engine_speed *out, struct error *err)
{
    const struct engine_boot *b = s->e.boot;
    enum compute compute = COMPUTE_F32;
    compute_parse(b->compute, &compute);
    struct device *device = s->e.model.device;
    return speed_measure(&(struct speed_ask){.ops = device ? ops_cuda() : ops_cpu(b->isa),
                                             .dtype = compute_dtype(compute),
                                             .pool = s->e.pool,
                                             .device = device},
                         out, err);
}
