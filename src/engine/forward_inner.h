/* forward: what its parts share. Every function here is called by all threads of the pool with their share, and ends with a barrier:
 * what it wrote can be read. What talks to other engines can fail, on all threads alike: the chunk ends there. */
#ifndef MPISERVE_ENGINE_FORWARD_INNER_H
#define MPISERVE_ENGINE_FORWARD_INNER_H

#include "engine/forward.h"
#include "engine/mirror.h"
#include "engine/parallel.h"
#include "engine/rotary.h"
#include "mpiserve/ops.h"

#include <stdatomic.h>

struct forward {
    struct forward_spec spec;
    struct shard part; /* = spec.shard */
    struct parallel parallel;
    struct kv_pool kv;
    u32 chunk;               /* rows of the buffers below */
    u32 enough;              /* rows that are computed without waiting for more: chunk, or less */
    struct rotary rotary[2]; /* of all layers; or of those without a window, of those with one */
    float *angles[2];        /* [chunk, 2, dims/2] */
    float *x;                /* [chunk, hidden]: the residual stream */
    float *wide;             /* [chunk, rows of qkv], [chunk, 2 ffn] (encoders: ffn) */
    void *act;               /* [chunk, act_ld]: what goes into a product */
    size_t act_ld;
    float *branch;                           /* [chunk, hidden]: what is normed before it is added to x */
    struct {                                 /* MLA */
        float *q, *absorbed, *sums, *values; /* [chunk, heads, head_dim, kv_rank + rope, kv_rank, value] */
    } mla;
    struct {
        float *logits, *weights;          /* [chunk, experts], [chunk, per_token] */
        u32 *ids, *start, *order, *place; /* see group_args */
        void *sorted, *act;               /* [chunk per_token, act_ld], [chunk per_token, ffn_ld] */
        float *wide, *out;                /* [chunk per_token, 2 ffn], [chunk per_token, hidden] */
        float *shared, *shared_gate;      /* [chunk, hidden], [chunk] */
        size_t ffn_ld;
    } moe;
    float *partial;             /* [chunk, hidden]: partial sums, where the group has no better place */
    float *partial_to;          /* that place, or partial */
    u64 layer_work;             /* products a token */
    float *logits, *all_logits; /* [max_rows, logits_ld], [max_step_tokens, logits_ld] */
    u32 logits_ld;              /* the vocabulary, or this engine's part of it */
    /* the chunk in work */
    struct token_lists lists, seen; /* on the host; where the operations look */
    struct {
        float *rows;           /* [chunk, hidden]: those that are wanted */
        float *dense, *scores; /* [chunk, hidden], [chunk]: of a classifier's head */
        u32 n, n_runs;         /* of the lists */
    } vectors;
    struct {
        struct adapter_run {
            u32 adapter, row, n;
        } * runs;    /* [chunk]: rows of the stream, in order */
        float *low;  /* [chunk, ADAPTED_PARTS, low_ld]: scale A x; on a device [splits] of them */
        float *wide; /* [chunk, act_ld]: inputs as f32; on the host */
        size_t low_ld;
        u32 n;
        /* on a device */
        struct device_factors *factors;
        u32 splits, present, rows, n_tiles, tile_rows; /* present: a bit for each adapter of the chunk */
    } adapters;
    u32 rows, n_spans, n_wanted;
    u32 n_single, longest; /* spans of one token: how many, and the most tokens that one of them sees */
    struct mirror *mirror; /* NULL: no device */
    float *logits_out;
    _Atomic u32 *tickets; /* [layers, TICKETS] */
};
enum { TICKET_ATTENTION, TICKET_GATE_UP, TICKET_DOWN, TICKETS };

static inline void forward_wait(const struct forward *f, struct share s)
{
    if (s.n > 1) pool_barrier(f->spec.pool);
}
static inline _Atomic u32 *forward_ticket(struct forward *f, u32 layer, int which)
{
    return &f->tickets[(layer - f->part.layers.first) * TICKETS + (u32)which];
}
/* The format in which a weight takes its input. */
static inline enum dtype forward_act(const struct forward *f, const struct packed *w)
{
    if (f->spec.device) return w->dtype;
    return f->spec.compute == COMPUTE_BF16 && w->dtype == DTYPE_BF16 ? DTYPE_BF16 : DTYPE_F32;
}

/* From one weight of a bank to the next, in bytes; from one vector of a bank to the next, in numbers. */
static inline size_t forward_stride(const struct forward *f, const struct packed *w)
{
    return f->spec.device ? weights_device_stride((size_t)w->n_out * w->n_in * dtype_bytes(w->dtype))
                          : packed_stride(w);
}
static inline size_t forward_vector_stride(const struct forward *f, u32 n)
{
    return f->spec.device ? weights_device_stride(n * sizeof(float)) / sizeof(float) : vector_stride(n);
}

struct rows_in { /* what goes into a product: [rows, n_in] */
    const void *x;
    enum dtype dtype;
    size_t ld;
};
struct rows_out { /* what comes out: y = W x + bias */
    float *y;
    size_t ld;
    u32 rows;
    bool add; /* y += */
};
void forward_linear(struct forward *f, const struct packed *w, const float *bias, struct rows_in in,
                    struct rows_out out, struct share s);
/* The stream, normed by weight, as input of products; or the stream itself where weight is NULL. */
struct rows_in forward_norm(struct forward *f, const float *weight, enum dtype dtype, struct share s);
/* gate, up [rows, 2 n] of x to f->act or y. */
void forward_glu(struct forward *f, const float *x, size_t ld_x, void *y, enum dtype dtype, size_t ld_y,
                 u32 rows, u32 n, struct share s);
struct behind { /* the norm behind a part: of what it adds, or (NORMS_SUM) of the sum; NULL: none */
    const float *norm, *bias;
};
/* A product back to the residual stream: over this engine's inputs, then the sum over all engines, one of which adds the bias; then the norm
 * behind it. */
struct product_out {
    const struct packed *w;
    const float *bias;
    struct behind behind;
    enum adapted_product adapted;
};
int forward_out(struct forward *f, const struct layer_weights *layer, struct product_out p, struct rows_in in,
                struct share s);
/* The stream becomes its LayerNorm. */
void forward_centre(struct forward *f, struct behind norm, struct share s);
/* What an adapter (from 1) has of a product: [ADAPTED_PARTS]. */
static inline const struct adapted *forward_adapted(const struct forward *f, u32 adapter, u32 layer,
                                                    enum adapted_product product)
{
    return f->spec.weights->adapters[(size_t)(adapter - 1) * f->spec.config->layers + layer].part[product];
}
/* Behind a product of a layer: what adapters add to it. */
void forward_adapt(struct forward *f, const struct layer_weights *layer, enum adapted_product product,
                   struct rows_in in, struct rows_out out, struct share s);
/* Rows of a chunk whose sequence has an adapter (0: none), in order. One thread. */
void forward_add_run(struct forward *f, u32 adapter, u32 row, u32 n);
/* Of a chunk's rows, position i of the sequence's tokens: does it join a sum? One thread. */
void forward_add_vector(struct forward *f, const struct fwd_seq *q, u32 row, u32 i);
/* Those rows, or the scores that they are of, to their sums. */
void forward_vectors(struct forward *f, struct share s);
/* The same on a device. Sizes of the inner sums; numbers of its table of factors; that table, once all is there; before the lists of a
 * chunk are sent; and for each product. */
void adapters_device_shape(struct forward *f, u32 most_rank);
size_t adapters_device_factors(const struct forward *f);
void adapters_device_start(struct forward *f);
void adapters_device_group(struct forward *f);
void adapters_device_add(struct forward *f, u32 layer, enum adapted_product product, struct rows_in in,
                         struct rows_out out);
/* Before what leads to the next sum over engines: a barrier at least lies between. */
void forward_prepare(struct forward *f, struct share s);
/* Sums [rows, hidden] that stand in f->partial_to, over all engines, to the stream. */
int forward_sum(struct forward *f, struct share s);

/* A layer's parts, from stream to stream. */
int forward_attention(struct forward *f, u32 layer, const struct layer_weights *w, struct share s);
int forward_latent(struct forward *f, u32 layer, const struct layer_weights *w, struct share s);
int forward_mlp(struct forward *f, const struct layer_weights *w, struct share s);
int forward_experts(struct forward *f, u32 layer, const struct layer_weights *w, struct share s);

#endif
