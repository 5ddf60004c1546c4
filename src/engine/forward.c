/* The forward pass of a model over an ops table. Architectures differ by fields of the configuration, by their
 * weights, and by which of the parts of a layer they have (layers.c, latent.c, experts.c). A step is computed in chunks of at most
 * CHUNK_TOKENS tokens through all layers, which bounds the working memory; results do not depend on the cut. Where a replica has
 * several engines, chunks also are what its stages hand on: while one computes a chunk, the next one computes the chunk before.
 * Sequences of encoders are never cut, so a chunk of theirs has room for a step. */
#include "engine/forward_inner.h"

#include <stdlib.h>
#include <string.h>

enum {
    CHUNK_TOKENS = 192,
    DEVICE_CHUNK_TOKENS = 2048, /* enough for a GPU's products; more would cost memory for results in f32 */
    DEVICE_CHUNK_PAIRS = 65535  /* of tokens and experts: a grid has no more rows */
};
/* Products of a layer below which the barriers cost more than a second thread saves. */
static const u64 alone_below = 2000000;

static void init_pool(struct kv_pool *kv, const struct model_config *c, const struct shard *part,
                      enum compute compute, u32 block_size)
{
    enum dtype dtype = c->load.kv_set ? c->load.kv : compute_dtype(compute);
    if (c->arch->mla)
        kv_pool_init_latent(kv, dtype, part->layers.n, c->mla.kv_rank, c->mla.rope, block_size);
    else
        kv_pool_init_as(kv, dtype, part->layers.n, part->kv_heads.n, c->head_dim, block_size);
}

size_t forward_kv_bytes(const struct model_config *c, const struct shard *part, enum compute compute,
                        u32 n_blocks, u32 block_size)
{
    struct kv_pool kv;
    init_pool(&kv, c, part, compute, block_size);
    return kv.block_bytes * n_blocks;
}

/* Sizes of the working memory, all but all_logits. */
struct room {
    size_t at; /* of the pointer in struct forward */
    size_t rows, bytes;
    bool host; /* even where there is a device */
};
enum { MAX_ROOMS = 48 };

static size_t room_bytes(const struct room *r)
{
    size_t size = (r->rows * r->bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    return MAX_OF(size, (size_t)CACHE_LINE);
}

bool forward_has_logits(const struct forward_spec *s)
{
    return shard_last(&s->shard) && s->shard.tp_rank == 0;
}

/* Columns of the first product of attention. */
static size_t qkv_width(const struct forward *f)
{
    const struct model_config *c = f->spec.config;
    u32 heads = f->part.heads.n * c->head_dim;
    if (c->arch->mla) return (c->mla.q_rank ? c->mla.q_rank : heads) + c->mla.kv_rank + c->mla.rope;
    return heads + 2 * f->part.kv_heads.n * c->head_dim;
}

static size_t largest(const size_t *sizes, size_t n)
{
    size_t most = 0;
    for (size_t i = 0; i < n; i++) most = MAX_OF(most, sizes[i]);
    return most;
}

/* Not a power of two: rows would share lines of a cache. */
static size_t padded(size_t n)
{
    return n / PANEL * PANEL + 2 * PANEL;
}

static size_t add_rooms(struct room *list, size_t n, const struct room *more, size_t count)
{
    BUG_ON(n + count > MAX_ROOMS);
    memcpy(list + n, more, count * sizeof *more);
    return n + count;
}

#define ROOM(field, rows, bytes)                                                                             \
    {                                                                                                        \
        offsetof(struct forward, field), rows, (bytes), false                                                \
    }
#define ROOM_ON_HOST(field, rows, bytes)                                                                     \
    {                                                                                                        \
        offsetof(struct forward, field), rows, (bytes), true                                                 \
    }

static size_t latent_rooms(const struct forward *f, struct room *list, size_t n)
{
    const struct mla_config *m = &f->spec.config->mla;
    size_t heads = f->part.heads.n * sizeof(float);
    const struct room all[] = {
        ROOM(mla.q, m->q_rank ? f->chunk : 0, heads * f->spec.config->head_dim),
        ROOM(mla.absorbed, f->chunk, heads * (m->kv_rank + m->rope)),
        ROOM(mla.sums, f->chunk, heads * m->kv_rank),
        ROOM(mla.values, f->chunk, heads * m->value),
    };
    return f->spec.config->arch->mla ? add_rooms(list, n, all, COUNT_OF(all)) : n;
}

static size_t expert_rooms(struct forward *f, struct room *list, size_t n)
{
    const struct model_config *c = f->spec.config;
    const struct moe_config *m = &c->moe;
    size_t pairs = (size_t)f->chunk * m->per_token, wide = 2 * (size_t)f->part.expert_ffn.n;
    f->moe.ffn_ld = padded(f->part.expert_ffn.n);
    const struct room all[] = {
        ROOM(moe.logits, f->chunk, m->experts * sizeof(float)),
        ROOM(moe.weights, pairs, sizeof(float)),
        ROOM(moe.ids, pairs, sizeof(u32)),
        ROOM(moe.start, m->experts + 1, sizeof(u32)),
        ROOM(moe.order, pairs, sizeof(u32)),
        ROOM(moe.place, pairs, sizeof(u32)),
        ROOM(moe.sorted, pairs, f->act_ld * sizeof(float)),
        ROOM(moe.act, pairs, f->moe.ffn_ld * sizeof(float)),
        ROOM(moe.wide, pairs, wide * sizeof(float)),
        ROOM(moe.out, pairs, c->hidden * sizeof(float)),
        ROOM(moe.shared, m->shared_ffn ? f->chunk : 0, c->hidden * sizeof(float)),
        ROOM(moe.shared_gate, m->shared_gate ? f->chunk : 0, sizeof(float)),
    };
    return m->experts ? add_rooms(list, n, all, COUNT_OF(all)) : n;
}

static u32 chunk_tokens(const struct forward_spec *s)
{
    u32 pairs = MAX_OF(s->config->moe.per_token, 1u);
    return s->on_device ? MIN_OF((u32)DEVICE_CHUNK_TOKENS, DEVICE_CHUNK_PAIRS / pairs) : CHUNK_TOKENS;
}

static size_t adapter_rooms(struct forward *f, struct room *list, size_t n)
{
    const struct adapters *a = f->spec.config->load.adapters;
    bool there = f->spec.on_device;
    u32 most = 0;
    for (u32 i = 0; a && i < a->n; i++) most = MAX_OF(most, a->list[i].max_rank);
    f->adapters.splits = 1;
    f->adapters.low_ld = (most + PANEL) / PANEL * PANEL; /* an odd rank has room for the zero behind it */
    if (there) adapters_device_shape(f, most);
    const struct room all[] = {
        ROOM_ON_HOST(adapters.runs, f->chunk, sizeof *f->adapters.runs),
        ROOM(adapters.low, f->chunk, f->adapters.splits * ADAPTED_PARTS * f->adapters.low_ld * sizeof(float)),
        ROOM_ON_HOST(adapters.wide, there ? 0 : f->chunk, f->act_ld * sizeof(float)),
        ROOM(adapters.factors, there ? adapters_device_factors(f) : 0, sizeof *f->adapters.factors),
        ROOM_ON_HOST(lists.adapted, there ? f->chunk : 0, sizeof *f->lists.adapted),
        ROOM_ON_HOST(lists.tiles, there ? f->chunk : 0, sizeof *f->lists.tiles),
    };
    return a ? add_rooms(list, n, all, COUNT_OF(all)) : n;
}

/* Fills in chunk and the widths, and lists what has to be there; returns how many. */
static size_t rooms_of(struct forward *f, struct room *list)
{
    const struct forward_spec *s = &f->spec;
    const struct model_config *c = s->config;
    const struct shard *part = &f->part;
    f->enough = MIN_OF(s->max_step_tokens, chunk_tokens(s));
    u32 n = f->chunk = c->arch->encoder ? s->max_step_tokens : f->enough;
    size_t ffn = (c->arch->encoder ? 1 : 2) * (size_t)part->ffn.n,
           widest = largest((const size_t[]){qkv_width(f), ffn, 2 * (size_t)part->shared_ffn.n}, 3);
    size_t act = largest((const size_t[]){c->hidden, part->ffn.n, part->shared_ffn.n,
                                          part->heads.n * c->head_dim, c->mla.q_rank},
                         5);
    bool behind = c->arch->norms == NORMS_POST || c->arch->norms == NORMS_AROUND, last = shard_last(part);
    u32 vectors = c->pooling.kind && forward_has_logits(s) ? n : 0, scores = c->pooling.scores ? vectors : 0;
    f->logits_ld = forward_has_logits(s) ? part->vocab.of : part->vocab.n;
    f->act_ld = padded(act);
    if (part->tp > 1)
        f->parallel.parts_n = parallel_parts(part->tp, (size_t)n * c->hidden, last ? part->vocab.of : 0);
    const struct room all[] = {
        ROOM_ON_HOST(lists.inv[0], rotary_size(&c->rope, n), sizeof(float)),
        ROOM(angles[0], n, c->rope.dims * sizeof(float)),
        ROOM_ON_HOST(lists.inv[1], c->arch->two_ropes ? rotary_size(&c->rope_local, n) : 0, sizeof(float)),
        ROOM(angles[1], c->arch->two_ropes ? n : 0, c->rope_local.dims * sizeof(float)),
        ROOM(x, n, c->hidden * sizeof(float)),
        ROOM(wide, n, widest * sizeof(float)),
        ROOM(act, n, f->act_ld * sizeof(float)),
        ROOM(branch, behind ? n : 0, c->hidden * sizeof(float)),
        ROOM(partial, part->tp > 1 ? parallel_padded(part->tp, (size_t)n * c->hidden) : 0, sizeof(float)),
        ROOM(parallel.parts, s->on_device ? f->parallel.parts_n : 0, sizeof(float)),
        ROOM(logits,
             !last || c->arch->encoder ? 0
             : c->pooling.kind         ? 1
                                       : s->max_rows,
             f->logits_ld * sizeof(float)),
        ROOM_ON_HOST(lists.ids, n, sizeof *f->lists.ids),
        ROOM_ON_HOST(lists.positions, n, sizeof *f->lists.positions),
        ROOM_ON_HOST(lists.places, n, sizeof *f->lists.places),
        ROOM_ON_HOST(lists.spans, n, sizeof *f->lists.spans),
        ROOM_ON_HOST(lists.wanted, n, sizeof *f->lists.wanted),
        ROOM_ON_HOST(lists.vectors, vectors, sizeof *f->lists.vectors),
        ROOM_ON_HOST(lists.runs, vectors, sizeof *f->lists.runs),
        ROOM(vectors.rows, vectors, c->hidden * sizeof(float)),
        ROOM(vectors.dense, scores, c->hidden * sizeof(float)),
        ROOM(vectors.scores, scores, sizeof(float)),
        ROOM_ON_HOST(lists.types, c->arch->encoder ? n : 0, sizeof *f->lists.types),
        ROOM_ON_HOST(tickets, part->layers.n, TICKETS * sizeof *f->tickets),
    };
    size_t so_far = add_rooms(list, 0, all, COUNT_OF(all));
    return adapter_rooms(f, list, expert_rooms(f, list, latent_rooms(f, list, so_far)));
}

static struct mirror_spec mirror_of(const struct forward *f)
{
    const struct model_config *c = f->spec.config;
    return (struct mirror_spec){.tokens = f->chunk,
                                .max_seqs = f->spec.max_rows,
                                .max_seq_blocks = f->spec.max_seq_blocks,
                                .inv = {rotary_size(&c->rope, f->chunk),
                                        c->arch->two_ropes ? rotary_size(&c->rope_local, f->chunk) : 0},
                                .types = c->arch->encoder,
                                .vectors = c->pooling.kind && forward_has_logits(&f->spec) ? f->chunk : 0,
                                .adapted = c->load.adapters ? f->chunk : 0};
}

size_t forward_work_bytes(const struct forward_spec *spec)
{
    struct forward f = {.spec = *spec, .part = spec->shard};
    struct room list[MAX_ROOMS];
    size_t n = rooms_of(&f, list), sum = 0;
    for (size_t i = 0; i < n; i++)
        if (!spec->on_device || !list[i].host) sum += room_bytes(&list[i]);
    if (!spec->on_device) return sum;
    const struct mirror_spec mirror = mirror_of(&f);
    return sum + mirror_bytes(&mirror);
}

/* What the kernels of devices ask for: accesses of 16 bytes everywhere, and parts of layers that they have. */
int forward_check_device(const struct forward_spec *s, struct error *err)
{
    const struct model_config *c = s->config;
    const struct {
        const char *where;
        bool refused;
    } parts[] = {{"--quantization", dtype_quantised(c->load.weights)},
                 {"a KV cache of another format than --compute",
                  c->load.kv_set && c->load.kv != compute_dtype(s->compute)}};
    const struct {
        const char *where;
        u32 n;
    } sizes[] = {{"hidden_size", c->hidden},
                 {"intermediate_size", s->shard.ffn.n},
                 {"head_dim", c->head_dim},
                 {"moe_intermediate_size", s->shard.expert_ffn.n},
                 {"the shared experts' intermediate size", s->shard.shared_ffn.n},
                 {"q_lora_rank", c->mla.q_rank},
                 {"kv_lora_rank", c->mla.kv_rank},
                 {"qk_nope_head_dim", c->mla.nope},
                 {"qk_rope_head_dim", c->mla.rope},
                 {"v_head_dim", c->mla.value}};
    for (size_t i = 0; i < COUNT_OF(parts); i++)
        if (parts[i].refused)
            return error_set(err, ERR_UNSUPPORTED, c->dir, "%s: on CPUs only; leave out --engine cuda",
                             parts[i].where);
    for (size_t i = 0; i < COUNT_OF(sizes); i++)
        if (sizes[i].n % 8)
            return error_set(err, ERR_UNSUPPORTED, sizes[i].where,
                             "%u for an engine: on devices it has to be a multiple of 8", sizes[i].n);
    if (c->mla.kv_rank + c->mla.rope > DEVICE_MAX_LATENT)
        return error_set(err, ERR_UNSUPPORTED, "kv_lora_rank",
                         "%u and %u of the rope: on devices %d together", c->mla.kv_rank, c->mla.rope,
                         DEVICE_MAX_LATENT);
    return 0;
}

static int check_spec(const struct forward_spec *s, struct error *err)
{
    const struct model_config *c = s->config;
    if (!s->block_size || s->block_size % KV_TILE)
        return error_set(err, ERR_INPUT, "block size", "%u is not a multiple of %d", s->block_size, KV_TILE);
    if (c->arch->mla && (c->mla.kv_rank + c->mla.rope > KV_MAX_LATENT || c->mla.kv_rank > KV_MAX_VALUE))
        return error_set(err, ERR_UNSUPPORTED, "kv_lora_rank",
                         "%u and %u: the kernels take up to %d, %d with the rope's", c->mla.kv_rank,
                         c->mla.rope, KV_MAX_VALUE, KV_MAX_LATENT);
    if (!c->arch->mla && (c->head_dim % 2 || c->head_dim > KV_MAX_HEAD || !c->head_dim))
        return error_set(err, ERR_UNSUPPORTED, "head_dim", "%u: the kernels take even sizes up to %d",
                         c->head_dim, KV_MAX_HEAD);
    if (!s->max_rows || !s->max_step_tokens)
        return error_set(err, ERR_INPUT, "forward", "a step needs room for at least one row and one token");
    if (s->device && forward_check_device(s, err)) return ERR_UNSUPPORTED;
    BUG_ON((s->shard.tp > 1 && !s->stage) || (s->shard.pp > 1 && !s->all));
    BUG_ON(s->device && s->shard.tp * s->shard.pp > 1 && !s->gpus);
    return 0;
}

/* Products a token and layer; of layers of experts where there are some. */
static u64 layer_work(const struct forward *f)
{
    const struct model_config *c = f->spec.config;
    u64 mlp =
        c->moe.experts ? c->moe.per_token * (u64)f->part.expert_ffn.n + f->part.shared_ffn.n : f->part.ffn.n;
    u64 latent = c->arch->mla ? (u64)f->part.heads.n * c->mla.kv_rank * (c->mla.nope + c->mla.value) : 0;
    u64 products = c->arch->encoder ? 2 : 3;
    return c->hidden * (qkv_width(f) + f->part.heads.n * (u64)c->head_dim + products * mlp) + latent;
}

static void *take(const struct forward *f, size_t bytes, bool host, struct error *err)
{
    if (f->spec.device && !host) return device_alloc(f->spec.device, bytes, err);
    void *p = aligned_alloc(CACHE_LINE, bytes);
    if (!p)
        error_set(err, ERR_MEMORY, "forward", "no memory for steps of %u tokens, %u rows", f->chunk,
                  f->spec.max_rows);
    return p;
}

static void give_back(const struct forward *f, void *p, bool host)
{
    if (f->spec.device && !host)
        device_free(f->spec.device, p);
    else
        free(p);
}

/* All working memory, and what is in it before the first chunk. */
static int take_rooms(struct forward *f, struct error *err)
{
    struct room list[MAX_ROOMS];
    const struct model_config *c = f->spec.config;
    for (size_t i = 0, n = rooms_of(f, list); i < n; i++) {
        void *p = take(f, room_bytes(&list[i]), list[i].host, err);
        if (!p) return ERR_MEMORY;
        memcpy((char *)f + list[i].at, &p, sizeof p);
    }
    f->seen = f->lists;
    rotary_init(&f->rotary[0], &c->rope, f->lists.inv[0]);
    if (c->arch->two_ropes) rotary_init(&f->rotary[1], &c->rope_local, f->lists.inv[1]);
    if (!f->spec.device) return 0;
    const struct mirror_spec mirror = mirror_of(f);
    f->mirror = mirror_new(f->spec.device, &mirror, err);
    adapters_device_start(f);
    return f->mirror ? 0 : ERR_MEMORY;
}

struct forward *forward_new(const struct forward_spec *spec, struct error *err)
{
    if (check_spec(spec, err)) return NULL;
    struct forward *f = mem_zero(1, sizeof *f);
    const struct model_config *c = spec->config;
    f->spec = *spec;
    f->spec.on_device = spec->device != NULL;
    f->part = spec->shard;
    f->parallel = (struct parallel){.shard = spec->shard,
                                    .all = spec->all,
                                    .stage = spec->stage,
                                    .pool = spec->pool,
                                    .device = spec->device,
                                    .gpus = spec->gpus};
    init_pool(&f->kv, c, &f->part, spec->compute, spec->block_size);
    f->kv.memory = spec->kv;
    f->layer_work = layer_work(f);
    if (take_rooms(f, err)) {
        forward_free(f);
        return NULL;
    }
    return f;
}

void forward_free(struct forward *f)
{
    if (!f) return;
    struct room list[MAX_ROOMS];
    for (size_t i = 0, n = rooms_of(f, list); i < n; i++) {
        void *p;
        memcpy(&p, (char *)f + list[i].at, sizeof p);
        give_back(f, p, list[i].host);
    }
    give_back(f, f->all_logits, false);
    mirror_free(f->mirror);
    free(f);
}

void forward_copy_block(struct forward *f, u32 to, u32 from)
{
    u8 *dst = f->kv.memory + to * f->kv.block_bytes, *src = f->kv.memory + from * f->kv.block_bytes;
    if (dst == src) return;
    if (f->spec.device)
        device_copy(f->spec.device, dst, src, f->kv.block_bytes);
    else
        memcpy(dst, src, f->kv.block_bytes);
}

void forward_zero_block(struct forward *f, u32 block)
{
    u8 *at = f->kv.memory + block * f->kv.block_bytes;
    if (f->spec.device)
        device_zero(f->spec.device, at, f->kv.block_bytes);
    else
        memset(at, 0, f->kv.block_bytes);
}

void *forward_block(const struct forward *f, u32 block)
{
    return f->kv.memory + block * f->kv.block_bytes;
}

size_t forward_block_bytes(const struct forward *f)
{
    return f->kv.block_bytes;
}

/* ---- one chunk, on every thread of the pool */
static void run_angles(struct forward *f, struct share s)
{
    for (u32 i = 0; i < (f->spec.config->arch->two_ropes ? 2 : 1); i++) {
        const struct rotary *r = &f->rotary[i];
        f->spec.ops->angles(&(struct angles_args){.inv = f->seen.inv[i],
                                                  .positions = f->seen.positions,
                                                  .table = f->angles[i],
                                                  .rows = f->rows,
                                                  .half = r->config->dims / 2,
                                                  .ld_inv = r->varies ? r->config->dims / 2 : 0,
                                                  .scale = (float)r->config->attention},
                            s);
    }
}

/* The rows of two further tables, by position and by type; then the norm of all three. */
static void run_places(struct forward *f, struct share s)
{
    const struct weights *w = f->spec.weights;
    const struct {
        const struct table *table;
        const i32 *ids;
    } more[] = {{&w->positions, (const i32 *)f->seen.positions}, {&w->types, f->seen.types}};
    for (size_t i = 0; i < COUNT_OF(more); i++) {
        f->spec.ops->embed(&(struct embed_args){.table = more[i].table->data,
                                                .dtype = more[i].table->dtype,
                                                .ids = more[i].ids,
                                                .y = f->x,
                                                .rows = f->rows,
                                                .n = f->spec.config->hidden,
                                                .ld_y = f->spec.config->hidden,
                                                .add = true},
                           s);
        forward_wait(f, s);
    }
    forward_centre(f, (struct behind){w->embed_norm, w->embed_bias}, s);
}

/* Rows that another engine has are zeros here: the sum is the one that is not. */
static int run_embed(struct forward *f, struct share s)
{
    const struct model_config *c = f->spec.config;
    const struct weights *w = f->spec.weights;
    float *to = f->parallel.device && parallel_tensor(&f->parallel) ? f->partial : f->x;
    f->spec.ops->embed(&(struct embed_args){.table = w->embed.data,
                                            .packed = &w->head,
                                            .dtype = w->embed.dtype,
                                            .ids = f->seen.ids,
                                            .y = to,
                                            .rows = f->rows,
                                            .n = c->hidden,
                                            .ld_y = c->hidden,
                                            .scale = c->arch->plus_one ? c->embed_scale : 0},
                       s);
    forward_wait(f, s);
    int rc = 0;
    if (parallel_tensor(&f->parallel))
        rc = parallel_sum(&f->parallel, to, f->x, (size_t)f->rows * c->hidden, false, s);
    if (!rc && c->arch->encoder) run_places(f, s);
    return rc;
}

/* Threads share the columns: rows are few. */
static void run_cap(struct forward *f, u32 columns, struct share s)
{
    u32 units = (columns + PANEL - 1) / PANEL, from = units * s.i / s.n * PANEL,
        to = MIN_OF(units * (s.i + 1) / s.n * PANEL, columns);
    if (from < to)
        f->spec.ops->cap(&(struct cap_args){.x = f->logits_out + from,
                                            .cap = f->spec.config->logit_cap,
                                            .rows = f->n_wanted,
                                            .n = to - from,
                                            .ld = f->logits_ld},
                         (struct share){0, 1, s.device});
    forward_wait(f, s);
}

/* Logits of the wanted rows, which are few: norm and head leave the others out. */
static int run_head(struct forward *f, struct share s)
{
    const struct model_config *c = f->spec.config;
    const struct weights *w = f->spec.weights;
    enum dtype dtype = forward_act(f, &w->head);
    f->spec.ops->norm(&(struct norm_args){.x = f->x,
                                          .w = w->norm,
                                          .list = f->seen.wanted,
                                          .eps = c->eps,
                                          .y = f->act,
                                          .y_dtype = dtype,
                                          .rows = f->n_wanted,
                                          .n = c->hidden,
                                          .ld_x = c->hidden,
                                          .ld_y = f->act_ld},
                      s);
    forward_wait(f, s);
    forward_linear(f, &w->head, NULL, (struct rows_in){f->act, dtype, f->act_ld},
                   (struct rows_out){f->logits_out, f->logits_ld, f->n_wanted, false}, s);
    if (c->logit_cap > 0) run_cap(f, w->head.n_out, s);
    return parallel_logits(&f->parallel, f->logits_out, f->n_wanted, s);
}

static int run_layer(struct forward *f, u32 layer, struct share s)
{
    const struct model_config *c = f->spec.config;
    const struct layer_weights *w = &f->spec.weights->layer[layer];
    int rc = c->arch->mla ? forward_latent(f, layer, w, s) : forward_attention(f, layer, w, s);
    if (rc) return rc;
    return c->sparse[layer] ? forward_experts(f, layer, w, s) : forward_mlp(f, w, s);
}

static void chunk_thread(void *arg, int thread, int threads)
{
    struct forward *f = arg;
    struct share s = {(u32)thread, (u32)threads, f->spec.device};
    u32 first = f->part.layers.first, end = first + f->part.layers.n;
    run_angles(f, s);
    int rc = shard_first(&f->part) ? run_embed(f, s) : 0;
    forward_wait(f, s);
    for (u32 layer = first; layer < end && !rc; layer++) rc = run_layer(f, layer, s);
    if (!rc && f->n_wanted) run_head(f, s);
    if (!rc && f->vectors.n) forward_vectors(f, s);
}

/* ---- a step, cut into chunks */
static u32 span_tokens(const struct forward *f)
{
    u32 heads = f->part.heads.n;
    return f->spec.device ? device_attn_tokens(&f->kv, heads) : attn_tokens(heads / f->kv.kv_heads);
}

static void add_span(struct forward *f, struct attn_span span)
{
    f->lists.spans[f->n_spans++] = span;
    if (span.n > 1) return;
    f->n_single++;
    f->longest = MAX_OF(f->longest, span.sees ? span.sees : span.pos + 1);
}

static void add_tokens(struct forward *f, const struct fwd_seq *q, u32 done, u32 n, bool all)
{
    const struct model_config *c = f->spec.config;
    bool whole = c->arch->encoder;
    u32 most = span_tokens(f), table = (q->pos + done + n - 1) / f->spec.block_size + 1;
    BUG_ON(whole && (q->pos || n < q->n_tok));
    const u32 *blocks = f->mirror ? mirror_table(f->mirror, q->blocks, table) : q->blocks;
    for (u32 i = 0; i < n; i++) {
        u32 row = f->rows + i, pos = q->pos + done + i;
        if (shard_first(&f->part)) {
            BUG_ON((u32)q->tokens[done + i] >= f->part.vocab.of);
            f->lists.ids[row] = parallel_id(&f->parallel, q->tokens[done + i]);
        }
        f->lists.positions[row] = pos + c->encoder.first;
        if (whole) f->lists.types[row] = q->second && pos >= q->second;
        rotary_row(&f->rotary[0], row, pos, q->prompt);
        if (c->arch->two_ropes) rotary_row(&f->rotary[1], row, pos, q->prompt);
        f->lists.places[row] = (struct place){q->blocks[pos / f->spec.block_size], pos % f->spec.block_size};
        BUG_ON(f->lists.places[row].block >= f->spec.n_blocks);
        if (i % most == 0)
            add_span(f, (struct attn_span){blocks, row, pos, MIN_OF(most, n - i), whole ? n : 0});
        if (forward_has_logits(&f->spec)) forward_add_vector(f, q, row, done + i);
        if (!shard_last(&f->part)) continue;
        if (all || (q->want_logits && done + i == q->n_tok - 1)) f->lists.wanted[f->n_wanted++] = row;
    }
    forward_add_run(f, q->adapter, f->rows, n);
    f->rows += n;
}

/* What the operations must know goes to the device. */
static void send_lists(struct forward *f)
{
    const struct model_config *c = f->spec.config;
    adapters_device_group(f);
    const struct mirror_use use = {.rows = f->rows,
                                   .spans = f->n_spans,
                                   .wanted = f->n_wanted,
                                   .types = c->arch->encoder ? f->rows : 0,
                                   .vectors = f->vectors.n,
                                   .runs = f->vectors.n_runs,
                                   .adapted = f->adapters.rows,
                                   .tiles = f->adapters.n_tiles,
                                   .inv = {rotary_size(&c->rope, f->rows),
                                           c->arch->two_ropes ? rotary_size(&c->rope_local, f->rows) : 0}};
    mirror_send(f->mirror, &f->lists, &use, &f->seen);
}

static int run_chunk(struct forward *f, float *logits, u32 *written)
{
    size_t stream = (size_t)f->rows * f->spec.config->hidden;
    for (u32 i = 0; i < f->part.layers.n * TICKETS; i++)
        atomic_store_explicit(&f->tickets[i], 0, memory_order_relaxed);
    f->logits_out = logits + (size_t)*written * f->logits_ld;
    *written += f->n_wanted;
    int rc = parallel_receive(&f->parallel, f->x, stream);
    if (rc) return rc;
    if (f->mirror) send_lists(f);
    if (f->mirror || f->rows * f->layer_work < alone_below)
        chunk_thread(f, 0, 1);
    else
        pool_run(f->spec.pool, chunk_thread, f);
    f->rows = f->n_spans = f->n_wanted = f->n_single = f->longest = f->adapters.n = 0;
    f->vectors.n = f->vectors.n_runs = 0;
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
            if (f->rows >= f->enough) rc = run_chunk(f, logits, &written);
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
    if (!f->all_logits) f->all_logits = take(f, room_bytes(&r), false, NULL);
    if (!f->all_logits) return NULL;
    return run_step(f, seqs, n, f->all_logits, true) ? NULL : f->all_logits;
}

const struct error *forward_error(const struct forward *f)
{
    return &f->parallel.err;
}
