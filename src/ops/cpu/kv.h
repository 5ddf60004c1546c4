/* kv: K and V in the pool's formats: written a token at a time, read sixteen numbers at a time. */
#ifndef MPISERVE_OPS_CPU_KV_H
#define MPISERVE_OPS_CPU_KV_H

#include "ops/cpu/rows.h"

static u8 *kv_head(const struct kv_pool *kv, u32 block, u32 layer, u32 head)
{
    return kv->memory + block * kv->block_bytes + (layer * kv->kv_heads + head) * kv->head_bytes;
}

ALWAYS_INLINE u32 kv_element(enum dtype t)
{
    return t == DTYPE_F32 ? 4 : t == DTYPE_I8 ? 1 : 2;
}

/* Sixteen numbers of a row, or codes; what does not lie in it is 0. */
ALWAYS_INLINE vf kv_load(const u8 *p, enum dtype t)
{
    if (t == DTYPE_F32) return vf_load((const float *)(const void *)p);
    if (t == DTYPE_BF16) return vf_load_bf16((const u16 *)(const void *)p);
    return t == DTYPE_F16 ? vf_load_f16((const u16 *)(const void *)p) : vf_load_i8(p);
}
ALWAYS_INLINE vf kv_load_n(const u8 *p, enum dtype t, u32 n)
{
    if (t == DTYPE_F32) return vf_load_n((const float *)(const void *)p, n);
    if (n >= 16) return kv_load(p, t);
    u8 padded[32] __attribute__((aligned(32))) = {0};
    __builtin_memcpy(padded, p, n * kv_element(t));
    return kv_load(padded, t);
}

/* Two of sixteen positions' numbers of a tile: of j + odd, j even. */
ALWAYS_INLINE vf kv_tile(const u8 *tile, enum dtype t, int odd)
{
    if (t == DTYPE_F32) return vf_load((const float *)(const void *)tile + odd * KV_TILE);
    if (t == DTYPE_I8) return vf_load_i8(tile + odd * KV_TILE);
    if (t == DTYPE_F16) return odd ? vf_high_f16(vi_load(tile)) : vf_low_f16(vi_load(tile));
    return odd ? vf_high(vi_load(tile)) : vf_low(vi_load(tile));
}

/* The codes of n numbers, and their scale. */
static float kv_codes(u8 *codes, const float *x, u32 n)
{
    vf most = vf_zero(), unseen = vf_zero(); /* a maximum may pass over what is no number */
    for (u32 i = 0; i < n; i += 16) {
        vf v = vf_load_n(x + i, n - i);
        unseen = vf_add(unseen, vf_sub(v, v));
        most = vf_max(most, vf_max(v, vf_sub(vf_zero(), v)));
    }
    float largest = vf_largest(most), by = largest > 0 ? 127 / largest : 0;
    for (u32 i = 0; i < n; i++) {
        float code = __builtin_rintf(x[i] * by);
        codes[i] = (u8)(i8)(code > 127 ? 127 : code > -127 ? code : -127);
    }
    return largest / 127 + vf_sum(unseen);
}

/* n numbers as a row: as they are, or as codes with their scale. */
static void kv_store_row(u8 *row, float *scale, enum dtype t, const float *x, u32 n)
{
    if (t == DTYPE_F32) {
        __builtin_memcpy(row, x, n * 4);
        return;
    }
    if (t == DTYPE_I8) {
        *scale = kv_codes(row, x, n);
        return;
    }
    u16 *to = (u16 *)(void *)row, half[16];
    const vf most = vf_set(65504);
    for (u32 i = 0; i < n; i += 16) {
        vf v = vf_load_n(x + i, n - i);
        if (t == DTYPE_BF16) {
            vf_store_bf16_n(to + i, v, n - i);
        } else {
            vf_store_f16(half, vf_max(vf_sub(vf_zero(), most), vf_min(most, v)));
            __builtin_memcpy(to + i, half, MIN_OF(n - i, 16u) * 2);
        }
    }
}

/* k [d] into its lane of a tile, v [d] as a row. */
static void kv_store(const struct kv_pool *kv, u8 *head, u32 offset, const float *k, const float *v)
{
    u32 d = kv->head_dim, tile = offset / KV_TILE, lane = offset % KV_TILE, element = kv_element(kv->dtype);
    u8 row[KV_MAX_HEAD * 4] __attribute__((aligned(64)));
    float *k_scales = (float *)(void *)(head + kv->k_scales),
          *v_scales = (float *)(void *)(head + kv->v_scales);
    kv_store_row(head + kv->v_offset + (size_t)offset * d * element, v_scales + offset, kv->dtype, v, d);
    kv_store_row(row, k_scales + offset, kv->dtype, k, d);
    u8 *to = head + (size_t)tile * d * KV_TILE * element;
    if (element == 2)
        for (u32 j = 0; j < d; j += 2) __builtin_memcpy(to + (j * KV_TILE + lane * 2) * 2, row + j * 2, 4);
    else
        for (u32 j = 0; j < d; j++)
            __builtin_memcpy(to + (j * KV_TILE + lane) * element, row + j * element, element);
}

#endif
