/* weights: a model's weights in the kernels' layout, in one block of memory that engines of a node share.
 *
 * The layout is a pure function of (config, shard, stored dtypes): weights_plan gives every process the same offsets, so that
 * the image holds no pointers. weights_fill reads the files and packs; weights_bind makes the pointers of this process. */
#ifndef MPISERVE_ENGINE_WEIGHTS_H
#define MPISERVE_ENGINE_WEIGHTS_H

#include "engine/shard.h"
#include "mpiserve/base.h"
#include "mpiserve/model.h"
#include "mpiserve/ops.h"

struct layer_weights { /* heads, kv_heads and ffn: those of the shard. What a model has not: NULL, 0 */
    const float *attn_norm, *mlp_norm;           /* [hidden]: before attention, before the MLP */
    const float *attn_post, *mlp_post;           /* [hidden]: behind them */
    const float *attn_post_bias, *mlp_post_bias; /* the same; of LayerNorms */
    const float *q_norm, *k_norm; /* [head_dim], or [heads*d] and [kv_heads*d] with QK_NORM_WHOLE */
    struct packed qkv;            /* rows: heads*d of q, kv_heads*d of k, kv_heads*d of v; MLA: */
    const float *qkv_bias;        /* heads*d of q (q_rank with one), kv_rank + rope of the latent */
    const float *sinks;           /* [heads] */
    struct packed o;              /* [hidden, heads*d], MLA: [hidden, heads*value] */
    const float *o_bias;
    struct packed
        gate_up; /* rows: ffn of gate, ffn of up; where there are experts: the shared one; encoders: ffn */
    const float *gate_up_bias;
    struct packed down; /* [hidden, ffn] */
    const float *down_bias;
    /* MLA. Banks: the first of several weights of one shape, packed_stride() bytes apart */
    const float *q_a_norm, *latent_norm; /* [q_rank], [kv_rank] */
    struct packed q_b;                   /* [heads*d, q_rank] */
    struct packed absorb, expand;        /* banks of heads: [kv_rank, nope], [value, kv_rank] */
    /* experts */
    struct packed router; /* [experts, hidden] */
    const float *router_bias, *correction;
    struct packed shared_gate;                           /* [1, hidden] */
    struct packed expert_gate_up, expert_down;           /* banks: [2 ffn, hidden], [hidden, ffn] */
    const float *expert_gate_up_bias, *expert_down_bias; /* [experts, ...], vector_stride() numbers apart */
};
/* What an adapter adds to outputs [at, at + b.n_out) of a product: scale b (a x). */
struct adapted {
    struct packed a, b; /* [rank, inputs], [outputs, rank]; data NULL: nothing */
    u32 at;
    float scale;
};
enum adapted_product { ADAPTED_QKV, ADAPTED_Q_B, ADAPTED_O, ADAPTED_GATE_UP, ADAPTED_DOWN, ADAPTED_PRODUCTS };
enum { ADAPTED_PARTS = 3 };
struct adapter_layer {
    struct adapted part[ADAPTED_PRODUCTS][ADAPTED_PARTS]; /* at most one for each part of the product */
};
static inline size_t packed_stride(const struct packed *w)
{
    return packed_size(w);
}
static inline size_t vector_stride(u32 n)
{
    return (n + 15) / 16 * 16; /* parts of the image begin at multiples of 64 bytes */
}
/* The same on a device: what is as large there. */
enum { WEIGHTS_DEVICE_ALIGN = 256 };
static inline size_t weights_device_stride(size_t bytes)
{
    return (bytes + WEIGHTS_DEVICE_ALIGN - 1) / WEIGHTS_DEVICE_ALIGN * WEIGHTS_DEVICE_ALIGN;
}
struct table { /* [rows, hidden], row-major, f32 or bf16 */
    const void *data;
    enum dtype dtype;
};
struct weights {
    struct table embed; /* first stage: [vocab, hidden]; NULL: rows of the head */
    struct packed head; /* last stage: [vocab, hidden] packed */
    const float *norm;  /* [hidden] */
    /* encoders: what is added to a token's embedding, and the norm of the sum; what makes a score of a vector */
    struct table positions, types; /* [positions, hidden], [types, hidden] */
    const float *embed_norm, *embed_bias;
    struct packed score_dense, score_out; /* [hidden, hidden], [1, hidden] */
    const float *score_dense_bias, *score_out_bias;
    struct layer_weights
        layer[MODEL_MAX_LAYERS];    /* by number in the model; those of the stage are filled in */
    struct adapter_layer *adapters; /* [adapters, layers of the model]; NULL: there are none */
};
/* Where an image is and how it lies there: on the host in panels; or on a device, row-major, all of one type but for norms and biases
 * (f32): what is stored as codes becomes numbers. NULL stands for the host. */
struct weights_place {
    struct device *device; /* not looked at by weights_plan */
    enum dtype dtype;
};
/* Bytes of the image; checks that all tensors are there with the right shapes and dtypes (f32, bf16; f16 becomes f32),
 * and names what is missing or of another shape. */
int weights_plan(const struct model_config *c, const struct shard *part, const struct model_files *f,
                 const struct weights_place *place, size_t *bytes, struct error *err);
/* Fills the image; of the files it reads what the shard has. progress (may be NULL) is told the bytes read so far, and
 * what takes longer than a second is logged. */
int weights_fill(const struct model_config *c, const struct shard *part, const struct model_files *f,
                 const struct weights_place *place, void *image, size_t bytes, _Atomic u64 *progress,
                 struct error *err);
/* So many threads fill an image: one for each CPU that this process may use, and not many. */
int weights_threads(void);
/* Pointers into an image that is filled, or will be. */
int weights_bind(const struct model_config *c, const struct shard *part, const struct model_files *f,
                 const struct weights_place *place, const void *image, struct weights *out,
                 struct error *err);
/* The pointers to adapters; the image is the caller's. */
void weights_release(struct weights *w);

#endif
