#include "mpiserve/ops.h"

static size_t lines(size_t n)
{
    return (n + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
}

static size_t element(enum dtype t)
{
    return t == DTYPE_F32 ? 4 : t == DTYPE_I8 ? 1 : 2;
}

void kv_pool_init_as(struct kv_pool *kv, enum dtype dtype, u32 layers, u32 kv_heads, u32 head_dim,
                     u32 block_size)
{
    size_t numbers = element(dtype) * block_size * head_dim,
           scales = dtype == DTYPE_I8 ? block_size * sizeof(float) : 0, half = numbers + scales;
    *kv = (struct kv_pool){.dtype = dtype,
                           .block_size = block_size,
                           .layers = layers,
                           .kv_heads = kv_heads,
                           .head_dim = head_dim,
                           .value_dim = head_dim,
                           .v_offset = half,
                           .k_scales = numbers,
                           .v_scales = half + numbers,
                           .head_bytes = lines(2 * half)};
    kv->block_bytes = kv->head_bytes * kv_heads * layers;
}

void kv_pool_init(struct kv_pool *kv, enum compute compute, u32 layers, u32 kv_heads, u32 head_dim,
                  u32 block_size)
{
    static const enum dtype types[] = {
        [COMPUTE_F32] = DTYPE_F32, [COMPUTE_BF16] = DTYPE_BF16, [COMPUTE_F16] = DTYPE_F16};
    kv_pool_init_as(kv, types[compute], layers, kv_heads, head_dim, block_size);
}

void kv_pool_init_latent(struct kv_pool *kv, enum dtype dtype, u32 layers, u32 rank, u32 rope, u32 block_size)
{
    kv_pool_init_as(kv, dtype, layers, 1, rank + rope, block_size);
    kv->latent = true;
    kv->value_dim = rank;
    kv->head_bytes = lines(kv->v_offset);
    kv->v_offset = 0;
    kv->v_scales = kv->k_scales;
    kv->block_bytes = kv->head_bytes * layers;
}
