/* The operations of the table for devices, a file each. Inside ops/cuda. */
#ifndef MPISERVE_OPS_CUDA_TABLE_H
#define MPISERVE_OPS_CUDA_TABLE_H

#include "kernel.cuh"

/* Calls f with a 0 of the type. */
template <class F> void by_dtype(enum dtype t, F f)
{
    if (t == DTYPE_F32)
        f(0.0f);
    else if (t == DTYPE_BF16)
        f(bf16());
    else
        f(f16());
}

void linear(const struct linear_args *a, struct share s);
void rope(const struct rope_args *a, struct share s);
void attn(const struct attn_args *a, struct share s);
void latent(const struct latent_args *a, struct share s);
void heads(const struct heads_args *a, struct share s);
void route(const struct route_args *a, struct share s);
void group(const struct group_args *a, struct share s);
void gather(const struct gather_args *a, struct share s);
void experts(const struct experts_args *a, struct share s);
void combine(const struct combine_args *a, struct share s);
/* y[r] = bias, or y[r] += bias. */
void bias_rows(struct device *d, const float *bias, float *y, u32 rows, u32 n, size_t ld_y, bool add);
/* y [rows, n] of dtype = x, f32, rows ld_x apart. */
void shorten_rows(struct device *d, const float *x, size_t ld_x, void *y, enum dtype dtype, u32 rows, u32 n);

/* ---- parts of the attention */
struct kv_view {      /* a layer of the KV pool on the device */
    const u8 *memory; /* of the layer's first head in block 0 */
    size_t block_bytes, head_bytes, v_offset;
    u32 kv_heads, head_dim, value_dim, block_size;
};
static inline struct kv_view kv_view(const struct kv_pool *kv, u32 layer)
{
    struct kv_view v = {kv->memory + layer * kv->kv_heads * kv->head_bytes,
                        kv->block_bytes,
                        kv->head_bytes,
                        kv->v_offset,
                        kv->kv_heads,
                        kv->head_dim,
                        kv->value_dim,
                        kv->block_size};
    return v;
}
/* K of a position (V: v_offset further on). block: of the position. */
template <class T> __device__ inline const T *kv_at(const struct kv_view &kv, u32 block, u32 head, u32 pos)
{
    const u8 *at = kv.memory + block * kv.block_bytes + head * kv.head_bytes;
    return reinterpret_cast<const T *>(at) + (size_t)(pos % kv.block_size) * kv.head_dim;
}
__device__ inline float capped(float score, float cap)
{
    return cap > 0 ? cap * tanhf(score / cap) : score;
}
/* What a head's sink adds to the sum of exponentials over `top`. */
__device__ inline float sink_of(const float *sinks, u32 head, float top)
{
    return sinks ? expf(sinks[head] - top) : 0;
}
/* First position that a token sees. */
__host__ __device__ inline u32 first_seen(u32 pos, u32 window)
{
    return window && pos + 1 > window ? pos + 1 - window : 0;
}
/* Last position that a span's token sees. */
__host__ __device__ inline u32 last_seen(const struct attn_span &span, u32 token)
{
    return span.sees ? span.sees - 1 : span.pos + token;
}
/* Memory of the device for what an operation needs until it is done: partial results of attention, rounded inputs of products. */
enum { PARTIAL_BYTES = 64 << 20 };
struct decode_params {
    const float *q;
    void *out;
    float *partial; /* [spans, heads, splits, value_dim + 2]: sum of p v, then the maximum, the sum of p */
    const struct attn_span *spans;
    struct kv_view kv;
    u32 heads, window, splits;
    size_t ld_q, ld_out;
    float soft_cap;     /* 0: none */
    const float *sinks; /* [heads] or NULL */
};
struct decode_params decode_params(const struct attn_args *a, struct device *d);
/* Splits from the one with the first key that is seen to the one with the last, pos. */
__host__ __device__ inline u32 splits_of(u32 pos, u32 window)
{
    return pos / KV_SPLIT - first_seen(pos, window) / KV_SPLIT + 1;
}
/* Calls step(first, n) for as many spans at a time as partial results have room for. */
template <class F> void by_room(const struct decode_params &p, u32 n_spans, F step)
{
    size_t bytes = (size_t)p.heads * p.splits * (p.kv.value_dim + 2) * sizeof(float);
    u32 most = (u32)(PARTIAL_BYTES / bytes);
    most = most < 1 ? 1 : most > 65535 ? 65535 : most;
    for (u32 first = 0; first < n_spans; first += most)
        step(first, n_spans - first < most ? n_spans - first : most);
}
/* Partial results of n spans from first on to out, of dtype, for those that are of one token and several splits. */
void merge_splits(const struct decode_params &p, u32 first, u32 n, enum dtype dtype, struct device *d);
/* Spans of one token, on the vector units: any type; latents: f32. */
void decode(const struct attn_args *a, struct device *d);
/* Spans of several tokens, on the tensor cores: bf16 and f16. */
void prefill(const struct attn_args *a, struct device *d);
enum { PREFILL_ROWS = 64 }; /* q rows of a span: tokens x heads of a KV head */
/* Spans over latents, on the tensor cores: bf16 and f16. */
void attend_latents(const struct attn_args *a, struct device *d);
enum { LATENT_TOKENS = 16 }; /* of a span */
/* Raise the limits of shared memory where kernels need more than the usual. */
void prefill_prepare(struct device *d);
void latents_prepare(struct device *d);
float *device_partial(const struct device *d);
int device_ordinal(const struct device *d);
volatile u64 *device_mark_place(const struct device *d); /* NULL: without device_watch */
/* Products. */
enum { WORKSPACE_BYTES = 32 << 20 };
int blas_open(struct device *d, struct error *err);
void blas_close(struct device *d);
struct blas **device_blas(struct device *d);
void device_failed_product(struct device *d, int status, u32 n_out, u32 n_in, u32 rows);

#endif
