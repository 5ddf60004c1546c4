/* latent: what multi-head latent attention does before its scores. */
#ifndef MPISERVE_OPS_LATENT_H
#define MPISERVE_OPS_LATENT_H

#include "ops/cpu/rope.h"

/* y [n]: x [n] rotated, times scale: firsts of the pairs, then seconds. y is not x. */
static void latent_rotate(float *y, const float *x, const float *angles, u32 n, bool interleaved, float scale)
{
    u32 half = n / 2;
    for (u32 m = 0; m < half; m++) {
        float a = interleaved ? x[2 * m] : x[m], b = interleaved ? x[2 * m + 1] : x[m + half];
        float c = angles[m], s = angles[half + m];
        y[m] = (a * c - b * s) * scale;
        y[m + half] = (b * c + a * s) * scale;
    }
}

static void latent_q(const struct latent_args *a, u32 row)
{
    const float *angles = a->angles + (size_t)row * a->rope;
    for (u32 h = 0; h < a->heads; h++) {
        float *q = a->q + row * a->ld_q + h * (a->nope + a->rope);
        float *to = a->absorbed + row * a->ld_absorbed + h * (a->rank + a->rope) + a->rank;
        latent_rotate(to, q + a->nope, angles, a->rope, a->interleaved, a->scale);
        for (u32 j = 0; j < a->nope; j += 16)
            vf_store_n(q + j, vf_mul(vf_load_n(q + j, a->nope - j), vf_set(a->scale)), a->nope - j);
    }
}

static void latent_store(const struct latent_args *a, u32 row)
{
    const struct kv_pool *kv = a->kv;
    float *x = a->latent + row * a->ld_latent, rotated[KV_MAX_LATENT];
    u32 d = a->rank + a->rope, offset = a->places[row].offset;
    head_norm(x, a->norm, a->rank, a->eps);
    latent_rotate(rotated, x + a->rank, a->angles + (size_t)row * a->rope, a->rope, a->interleaved, 1);
    __builtin_memcpy(x + a->rank, rotated, a->rope * sizeof *x);
    u8 *head = kv_head(kv, a->places[row].block, a->layer, 0);
    kv_store_row(head + (size_t)offset * d * kv_element(kv->dtype),
                 (float *)(void *)(head + kv->k_scales) + offset, kv->dtype, x, d);
}

static void latent(const struct latent_args *a, struct share s)
{
    for (u32 row = s.i; row < a->rows; row += s.n) {
        latent_q(a, row);
        latent_store(a, row);
    }
}

#endif
