/* The forward pass of decoder-only models with grouped-query attention and a gated MLP: llama, mistral, qwen2, qwen3
 * differ by fields of the configuration. A step is computed in chunks of at most CHUNK_TOKENS tokens through all
 * layers, which bounds the working memory; results do not depend on the cut. Where a replica has several engines, chunks
 * also are what its stages hand on: while one computes a chunk, the next one computes the chunk before. */
#include "engine/forward.h"

#include "engine/parallel.h"
#include "mpiserve/ops.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK_TOKENS = 192 };
/* Products of a layer below which the barriers cost more than a second thread saves. */
static const u64 alone_below = 2000000;

struct forward {
    struct forward_spec spec;
    struct shard part; /* = spec.shard */
    struct parallel parallel;
    struct kv_pool kv;
    u32 chunk;     /* rows of the buffers below */
    float *inv;    /* [d/2] rotation per position */
    float *angles; /* [chunk, 2, d/2] */
    float *x;      /* [chunk, hidden]: the residual stream */
    float *wide;   /* [chunk, (heads + 2 kv_heads) d], [chunk, 2 ffn] */
    void *act;     /* [chunk, act_ld]: what goes into a product */
    size_t act_ld;
    float *partial;             /* [chunk, hidden]: partial sums, where the group has no better place */
    float *partial_to;          /* that place, or partial */
    u64 layer_work;             /* products a token */
    float *logits, *all_logits; /* [max_rows, logits_ld], [max_step_tokens, logits_ld] */
    u32 logits_ld;              /* the vocabulary, or this engine's part of it */
    /* the chunk in work */
    i32 *ids; /* rows of the embedding */
    u32 *positions;
    struct place *places;
    struct attn_span *spans;
    u32 *wanted; /* rows that get logits */
    u32 rows, n_spans, n_wanted;
    float *logits_out;
    _Atomic u32 *tickets; /* [layers] */
};

static void set_inv(float *inv, const struct model_config *c)
{
    for (u32 m = 0; m < c->head_dim / 2; m++) {
        double f = pow(c->rope.theta, -2.0 * m / c->head_dim);
        if (c->rope.kind == ROPE_LINEAR) f /= c->rope.factor;
        if (c->rope.kind == ROPE_LLAMA3) {
            double wave = 2 * M_PI / f, lo = c->rope.low_freq_factor, hi = c->rope.high_freq_factor;
            double g = (c->rope.original_max_position / wave - lo) / (hi - lo);
            g = g < 0 ? 0 : g > 1 ? 1 : g; /* slow ones are divided, fast ones kept, between them a blend */
            f = (1 - g) * f / c->rope.factor + g * f;
        }
        inv[m] = (float)f;
    }
}

size_t forward_kv_bytes(const struct model_config *c, const struct shard *part, enum compute compute,
                        u32 n_blocks, u32 block_size)
{
    struct kv_pool kv;
    kv_pool_init(&kv, compute, part->layers.n, part->kv_heads.n, c->head_dim, block_size);
    return kv.block_bytes * n_blocks;
}

/* Sizes of the working memory, all but all_logits. */
struct room {
    size_t at; /* of the pointer in struct forward */
    size_t rows, bytes;
};
enum { MAX_ROOMS = 16 };

static size_t room_bytes(const struct room *r)
{
    size_t size = (r->rows * r->bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    return MAX_OF(size, (size_t)CACHE_LINE);
}

bool forward_has_logits(const struct forward_spec *s)
{
    return shard_last(&s->shard) && s->shard.tp_rank == 0;
}

static u32 qkv_width(const struct forward *f)
{
    return (f->part.heads.n + 2 * f->part.kv_heads.n) * f->spec.config->head_dim;
}

/* Fills in chunk and the widths, and lists what has to be there; returns how many. */
static size_t rooms_of(struct forward *f, struct room *list)
{
    const struct forward_spec *s = &f->spec;
    const struct model_config *c = s->config;
    u32 n = f->chunk = MIN_OF(s->max_step_tokens, (u32)CHUNK_TOKENS);
    const struct shard *part = &f->part;
    size_t widest = MAX_OF(qkv_width(f), 2 * part->ffn.n);
    size_t act = MAX_OF(MAX_OF(c->hidden, part->ffn.n), part->heads.n * c->head_dim);
    f->logits_ld = forward_has_logits(s) ? part->vocab.of : part->vocab.n;
    f->act_ld = act / PANEL * PANEL + 2 * PANEL; /* not a power of two: rows would share lines of a cache */
    const struct room all[] = {
        {offsetof(struct forward, inv), c->head_dim / 2, sizeof *f->inv},
        {offsetof(struct forward, angles), n, c->head_dim * sizeof *f->angles},
        {offsetof(struct forward, x), n, c->hidden * sizeof *f->x},
        {offsetof(struct forward, wide), n, widest * sizeof *f->wide},
        {offsetof(struct forward, act), n, f->act_ld * sizeof(float)},
        {offsetof(struct forward, partial), part->tp > 1 ? n : 0, c->hidden * sizeof *f->partial},
        {offsetof(struct forward, logits), shard_last(part) ? s->max_rows : 0,
         f->logits_ld * sizeof *f->logits},
        {offsetof(struct forward, ids), n, sizeof *f->ids},
        {offsetof(struct forward, positions), n, sizeof *f->positions},
        {offsetof(struct forward, places), n, sizeof *f->places},
        {offsetof(struct forward, spans), n, sizeof *f->spans},
        {offsetof(struct forward, wanted), n, sizeof *f->wanted},
        {offsetof(struct forward, tickets), part->layers.n, sizeof *f->tickets},
    };
    memcpy(list, all, sizeof all);
    return COUNT_OF(all);
}

size_t forward_work_bytes(const struct forward_spec *spec)
{
    struct forward f = {.spec = *spec, .part = spec->shard};
    struct room list[MAX_ROOMS];
    size_t n = rooms_of(&f, list), sum = 0;
    for (size_t i = 0; i < n; i++) sum += room_bytes(&list[i]);
    return sum;
}

static int check_spec(const struct forward_spec *s, struct error *err)
{
    const struct model_config *c = s->config;
    if (!s->block_size || s->block_size % KV_TILE)
        return error_set(err, ERR_INPUT, "block size", "%u is not a multiple of %d", s->block_size, KV_TILE);
    if (c->head_dim % 2 || c->head_dim > 256 || !c->head_dim)
        return error_set(err, ERR_UNSUPPORTED, "head_dim", "%u: the kernels take even sizes up to 256",
                         c->head_dim);
    if (!s->max_rows || !s->max_step_tokens)
        return error_set(err, ERR_INPUT, "forward", "a step needs room for at least one row and one token");
    BUG_ON((s->shard.tp > 1 && !s->stage) || (s->shard.pp > 1 && !s->all));
    return 0;
}

struct forward *forward_new(const struct forward_spec *spec, struct error *err)
{
    if (check_spec(spec, err)) return NULL;
    struct forward *f = mem_zero(1, sizeof *f);
    const struct model_config *c = spec->config;
    f->spec = *spec;
    f->part = spec->shard;
    f->parallel =
        (struct parallel){.shard = spec->shard, .all = spec->all, .stage = spec->stage, .pool = spec->pool};
    kv_pool_init(&f->kv, spec->compute, f->part.layers.n, f->part.kv_heads.n, c->head_dim, spec->block_size);
    f->kv.memory = spec->kv;
    f->layer_work = c->hidden * (u64)(qkv_width(f) + f->part.heads.n * c->head_dim + 3 * f->part.ffn.n);
    struct room list[MAX_ROOMS];
    bool missing = false;
    for (size_t i = 0, n = rooms_of(f, list); i < n; i++) {
        void *p = aligned_alloc(CACHE_LINE, room_bytes(&list[i]));
        memcpy((char *)f + list[i].at, &p, sizeof p);
        missing |= !p;
    }
    if (missing) {
        error_set(err, ERR_MEMORY, "forward", "no memory for steps of %u tokens, %u rows", f->chunk,
                  spec->max_rows);
        forward_free(f);
        return NULL;
    }
    set_inv(f->inv, c);
    return f;
}

void forward_free(struct forward *f)
{
    if (!f) return;
    void *parts[] = {f->inv,    f->angles,         f->x,   f->wide,      f->act,    f->partial,
                     f->logits, f->all_logits,     f->ids, f->positions, f->places, f->spans,
                     f->wanted, (void *)f->tickets};
    for (size_t i = 0; i < COUNT_OF(parts); i++) free(parts[i]);
    free(f);
}

void *forward_block(const struct forward *f, u32 block)
{
    return f->kv.memory + block * f->kv.block_bytes;
}

size_t forward_block_bytes(const struct forward *f)
{
    return f->kv.block_bytes;
}

/* ---- one chunk, on every thread of the pool
 * What talks to other engines can fail, on all threads alike: the chunk ends there. */
static void wait(const struct forward *f, struct share s)
{
    if (s.n > 1) pool_barrier(f->spec.pool);
}

/* The format in which a weight takes its input. */
static enum dtype act_dtype(const struct forward *f, const struct packed *w)
{
    return f->spec.compute == COMPUTE_BF16 ? w->dtype : DTYPE_F32;
}

static void run_norm(struct forward *f, const float *weight, const struct packed *next, struct share s)
{
    const struct model_config *c = f->spec.config;
    f->spec.ops->norm(&(struct norm_args){.x = f->x,
                                          .w = weight,
                                          .eps = c->eps,
                                          .y = f->act,
                                          .y_dtype = act_dtype(f, next),
                                          .rows = f->rows,
                                          .n = c->hidden,
                                          .ld_x = c->hidden,
                                          .ld_y = f->act_ld},
                      s);
    wait(f, s);
}

struct target { /* of a product: y = W act + bias, or added to y */
    float *y;
    size_t ld;
    u32 rows;
    bool add;
};
static void run_linear(struct forward *f, const struct packed *w, const float *bias, struct target to,
                       struct share s)
{
    f->spec.ops->linear(&(struct linear_args){.w = w,
                                              .bias = bias,
                                              .x = f->act,
                                              .x_dtype = act_dtype(f, w),
                                              .rows = to.rows,
                                              .ld_x = f->act_ld,
                                              .ld_y = to.ld,
                                              .y = to.y,
                                              .add = to.add},
                        s);
    wait(f, s);
}

/* A product into what this engine has of a layer: nobody else is needed. */
static void run_in(struct forward *f, const struct packed *w, const float *bias, struct share s)
{
    run_linear(f, w, bias, (struct target){f->wide, w->n_out, f->rows, false}, s);
}

/* A product back to the residual stream: over this engine's inputs, then the sum over all engines; one of them adds the bias. */
static int run_out(struct forward *f, const struct packed *w, const float *bias, struct share s)
{
    u32 hidden = f->spec.config->hidden;
    if (!parallel_tensor(&f->parallel)) {
        run_linear(f, w, bias, (struct target){f->x, hidden, f->rows, true}, s);
        return 0;
    }
    if (f->part.tp_rank) bias = NULL;
    run_linear(f, w, bias, (struct target){f->partial_to, hidden, f->rows, false}, s);
    return parallel_sum(&f->parallel, f->partial_to, f->x, (size_t)f->rows * hidden, true, s);
}

/* Before the products that lead to the next run_out: a barrier at least lies between. */
static void prepare_out(struct forward *f, struct share s)
{
    if (s.i == 0 && parallel_tensor(&f->parallel))
        f->partial_to = parallel_partial(&f->parallel, (size_t)f->rows * f->spec.config->hidden, f->partial);
}

static int run_attention(struct forward *f, u32 layer, const struct layer_weights *w, struct share s)
{
    const struct model_config *c = f->spec.config;
    u32 here = layer - f->part.layers.first; /* in this stage's KV pool */
    prepare_out(f, s);
    run_norm(f, w->attn_norm, &w->qkv, s);
    run_in(f, &w->qkv, w->qkv_bias, s);
    f->spec.ops->rope(&(struct rope_args){.qkv = f->wide,
                                          .angles = f->angles,
                                          .q_norm = w->q_norm,
                                          .k_norm = w->k_norm,
                                          .eps = c->eps,
                                          .scale = 1 / sqrtf((float)c->head_dim),
                                          .kv = &f->kv,
                                          .places = f->places,
                                          .layer = here,
                                          .heads = f->part.heads.n,
                                          .rows = f->rows,
                                          .ld = w->qkv.n_out},
                      s);
    wait(f, s);
    f->spec.ops->attn(&(struct attn_args){.q = f->wide,
                                          .out = f->act,
                                          .out_dtype = act_dtype(f, &w->o),
                                          .kv = &f->kv,
                                          .spans = f->spans,
                                          .n_spans = f->n_spans,
                                          .layer = here,
                                          .heads = f->part.heads.n,
                                          .window = c->window[layer],
                                          .ld_q = w->qkv.n_out,
                                          .ld_out = f->act_ld,
                                          .ticket = &f->tickets[here]},
                      s);
    wait(f, s);
    return run_out(f, &w->o, w->o_bias, s);
}

static int run_mlp(struct forward *f, const struct layer_weights *w, struct share s)
{
    prepare_out(f, s);
    run_norm(f, w->mlp_norm, &w->gate_up, s);
    run_in(f, &w->gate_up, w->gate_up_bias, s);
    f->spec.ops->glu(&(struct glu_args){.x = f->wide,
                                        .y = f->act,
                                        .y_dtype = act_dtype(f, &w->down),
                                        .rows = f->rows,
                                        .n = f->part.ffn.n,
                                        .ld_x = w->gate_up.n_out,
                                        .ld_y = f->act_ld},
                     s);
    wait(f, s);
    return run_out(f, &w->down, w->down_bias, s);
}

static void run_angles(struct forward *f, struct share s)
{
    f->spec.ops->angles(&(struct angles_args){.inv = f->inv,
                                              .positions = f->positions,
                                              .table = f->angles,
                                              .rows = f->rows,
                                              .half = f->spec.config->head_dim / 2},
                        s);
}

/* Rows that another engine has are zeros here: the sum is the one that is not. */
static int run_embed(struct forward *f, struct share s)
{
    const struct model_config *c = f->spec.config;
    const struct weights *w = f->spec.weights;
    f->spec.ops->embed(&(struct embed_args){.table = w->embed,
                                            .packed = &w->head,
                                            .dtype = w->embed_dtype,
                                            .ids = f->ids,
                                            .y = f->x,
                                            .rows = f->rows,
                                            .n = c->hidden,
                                            .ld_y = c->hidden},
                       s);
    wait(f, s);
    if (!parallel_tensor(&f->parallel)) return 0;
    return parallel_sum(&f->parallel, f->x, f->x, (size_t)f->rows * c->hidden, false, s);
}

/* Logits of the wanted rows, which are few: norm and head leave the others out. */
static int run_head(struct forward *f, struct share s)
{
    const struct model_config *c = f->spec.config;
    const struct weights *w = f->spec.weights;
    enum dtype dtype = act_dtype(f, &w->head);
    size_t row_bytes = f->act_ld * (dtype == DTYPE_F32 ? 4 : 2);
    for (u32 i = s.i; i < f->n_wanted; i += s.n)
        f->spec.ops->norm(&(struct norm_args){.x = f->x + (size_t)f->wanted[i] * c->hidden,
                                              .w = w->norm,
                                              .eps = c->eps,
                                              .y = (u8 *)f->act + i * row_bytes,
                                              .y_dtype = dtype,
                                              .rows = 1,
                                              .n = c->hidden},
                          (struct share){0, 1});
    wait(f, s);
    run_linear(f, &w->head, NULL, (struct target){f->logits_out, f->logits_ld, f->n_wanted, false}, s);
    return parallel_logits(&f->parallel, f->logits_out, f->n_wanted, s);
}

static void chunk_thread(void *arg, int thread, int threads)
{
    struct forward *f = arg;
    struct share s = {(u32)thread, (u32)threads};
    u32 first = f->part.layers.first, end = first + f->part.layers.n;
    run_angles(f, s);
    int rc = shard_first(&f->part) ? run_embed(f, s) : 0;
    wait(f, s);
    for (u32 layer = first; layer < end && !rc; layer++) {
        const struct layer_weights *w = &f->spec.weights->layer[layer];
        rc = run_attention(f, layer, w, s);
        if (!rc) rc = run_mlp(f, w, s);
    }
    if (!rc && f->n_wanted) run_head(f, s);
}

/* ---- a step, cut into chunks */
static void add_tokens(struct forward *f, const struct fwd_seq *q, u32 done, u32 n, bool all)
{
    u32 most = attn_tokens(f->part.heads.n / f->part.kv_heads.n);
    for (u32 i = 0; i < n; i++) {
        u32 row = f->rows + i, pos = q->pos + done + i;
        if (shard_first(&f->part)) {
            BUG_ON((u32)q->tokens[done + i] >= f->part.vocab.of);
            f->ids[row] = parallel_id(&f->parallel, q->tokens[done + i]);
        }
        f->positions[row] = pos;
        f->places[row] = (struct place){q->blocks[pos / f->spec.block_size], pos % f->spec.block_size};
        BUG_ON(f->places[row].block >= f->spec.n_blocks);
        if (i % most == 0)
            f->spans[f->n_spans++] = (struct attn_span){q->blocks, row, pos, MIN_OF(most, n - i)};
        if (!shard_last(&f->part)) continue;
        if (all || (q->want_logits && done + i == q->n_tok - 1)) f->wanted[f->n_wanted++] = row;
    }
    f->rows += n;
}

static int run_chunk(struct forward *f, float *logits, u32 *written)
{
    size_t stream = (size_t)f->rows * f->spec.config->hidden;
    for (u32 i = 0; i < f->part.layers.n; i++) atomic_store_explicit(&f->tickets[i], 0, memory_order_relaxed);
    f->logits_out = logits + (size_t)*written * f->logits_ld;
    *written += f->n_wanted;
    int rc = parallel_receive(&f->parallel, f->x, stream);
    if (rc) return rc;
    if (f->rows * f->layer_work < alone_below)
        chunk_thread(f, 0, 1);
    else
        pool_run(f->spec.pool, chunk_thread, f);
    f->rows = f->n_spans = f->n_wanted = 0;
    if (f->parallel.broken) return f->parallel.err.code;
    return parallel_send(&f->parallel, f->x, stream);
}

static int run_step(struct forward *f, const struct fwd_seq *seqs, u32 n, float *logits, bool all)
{
    u32 written = 0;
    int rc = f->parallel.broken ? f->parallel.err.code : 0;
    for (u32 i = 0; i < n && !rc; i++)
        for (u32 done = 0; done < seqs[i].n_tok && !rc;) {
            u32 take = MIN_OF(seqs[i].n_tok - done, f->chunk - f->rows);
            add_tokens(f, &seqs[i], done, take, all);
            done += take;
            if (f->rows == f->chunk) rc = run_chunk(f, logits, &written);
        }
    return f->rows && !rc ? run_chunk(f, logits, &written) : rc;
}

const float *forward_run(struct forward *f, const struct fwd_seq *seqs, u32 n)
{
    return run_step(f, seqs, n, f->logits, false) ? NULL : f->logits;
}

const float *forward_run_all(struct forward *f, const struct fwd_seq *seqs, u32 n)
{
    struct room r = {.rows = f->spec.max_step_tokens, .bytes = f->logits_ld * sizeof(float)};
    if (!f->all_logits) f->all_logits = aligned_alloc(CACHE_LINE, room_bytes(&r));
    if (!f->all_logits) return NULL;
    return run_step(f, seqs, n, f->all_logits, true) ? NULL : f->all_logits;
}

const struct error *forward_error(const struct forward *f)
{
    return &f->parallel.err;
}
