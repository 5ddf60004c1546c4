/* rope: q and k are normalised (where the model does so) and rotated; k and v go to the KV pool. */
#ifndef MPISERVE_OPS_ROPE_H
#define MPISERVE_OPS_ROPE_H

#include "ops/cpu/kv.h"

ALWAYS_INLINE void head_norm(float *x, const float *w, u32 d, float eps)
{
    vf scale = vf_set(norm_scale(x, d, eps));
    for (u32 i = 0; i < d; i += 16)
        vf_store_n(x + i, vf_mul(vf_mul(vf_load_n(x + i, d - i), scale), vf_load_n(w + i, d - i)), d - i);
}

/* Pairs (m, m + rotary/2), then all times scale. */
ALWAYS_INLINE void head_rotate(float *x, const float *angles, u32 rotary, u32 d, float scale)
{
    u32 half = rotary / 2;
    for (u32 m = 0; m < half; m += 16) {
        u32 n = half - m;
        vf c = vf_load_n(angles + m, n), s = vf_load_n(angles + half + m, n);
        vf a = vf_load_n(x + m, n), b = vf_load_n(x + half + m, n);
        vf p = vf_sub(vf_mul(a, c), vf_mul(b, s)), q = vf_add(vf_mul(b, c), vf_mul(a, s));
        vf_store_n(x + m, vf_mul(p, vf_set(scale)), n);
        vf_store_n(x + half + m, vf_mul(q, vf_set(scale)), n);
    }
    for (u32 m = rotary; m < d; m += 16)
        vf_store_n(x + m, vf_mul(vf_load_n(x + m, d - m), vf_set(scale)), d - m);
}

static void rope(const struct rope_args *a, struct share s)
{
    const struct kv_pool *kv = a->kv;
    u32 d = kv->head_dim, group = a->heads / kv->kv_heads,
        rotary = !a->angles  ? 0
                 : a->rotary ? a->rotary
                             : d;
    for (u32 unit = s.i; unit < a->rows * kv->kv_heads; unit += s.n) {
        u32 r = unit / kv->kv_heads, h = unit % kv->kv_heads;
        const float *angles = a->angles ? a->angles + (size_t)r * rotary : NULL;
        float *q = a->qkv + r * a->ld + h * group * d, *k = a->qkv + r * a->ld + (a->heads + h) * d;
        for (u32 i = 0; i < group; i++, q += d) {
            if (a->q_norm) head_norm(q, a->q_norm, d, a->eps);
            head_rotate(q, angles, rotary, d, a->scale);
        }
        if (a->k_norm) head_norm(k, a->k_norm, d, a->eps);
        head_rotate(k, angles, rotary, d, 1);
        kv_store(kv, kv_head(kv, a->places[r].block, a->layer, h), a->places[r].offset, k,
                 k + kv->kv_heads * d);
    }
}

#endif
