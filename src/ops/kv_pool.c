#include "mpiserve/ops.h"

void kv_pool_init(struct kv_pool *kv, enum compute compute, u32 layers, u32 kv_heads, u32 head_dim,
                  u32 block_size)
{
    size_t element = compute == COMPUTE_BF16 ? 2 : 4, half = element * block_size * head_dim;
    *kv = (struct kv_pool){.dtype = compute == COMPUTE_BF16 ? DTYPE_BF16 : DTYPE_F32,
                           .block_size = block_size,
                           .layers = layers,
                           .kv_heads = kv_heads,
                           .head_dim = head_dim,
                           .value_dim = head_dim,
                           .v_offset = half,
                           .head_bytes = (2 * half + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE};
    kv->block_bytes = kv->head_bytes * kv_heads * layers;
}

void kv_pool_init_latent(struct kv_pool *kv, enum compute compute, u32 layers, u32 rank, u32 rope,
                         u32 block_size)
{
    kv_pool_init(kv, compute, layers, 1, rank + rope, block_size);
    kv->latent = true;
    kv->value_dim = rank;
    kv->head_bytes = (kv->v_offset + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    kv->v_offset = 0;
    kv->block_bytes = kv->head_bytes * layers;
}
