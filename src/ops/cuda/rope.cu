/* rope: a warp to a head of a row. q is normalised (where the model does so), rotated and scaled in place; k the same and into the
 * KV pool; v into the KV pool. */
#include "table.h"

enum { ROPE_WARPS = 4 };

struct rope_params {
    float *qkv;
    const float *angles, *q_norm, *k_norm;
    const struct place *places;
    float eps, scale;
    u32 heads, rows, rotary;
    size_t ld;
    struct kv_view kv;
};

/* Normalises a head, rotates its first numbers (none: rotary 0), pairs (m, m + rotary/2), and scales it; lane l has m = l, l + 32, ... */
__device__ inline void turn_head(float *x, const float *norm, const float *angles, u32 d, u32 rotary,
                                 float eps, float scale)
{
    u32 half = rotary / 2, lane = threadIdx.x % WARP;
    float factor = 1;
    if (norm) {
        float sum = 0;
        for (u32 i = lane; i < d; i += WARP) sum += x[i] * x[i];
        factor = 1.0f / sqrtf(warp_sum(sum) / (float)d + eps);
    }
    for (u32 m = lane; m < half; m += WARP) {
        float a = x[m], b = x[half + m], c = angles[m], s = angles[half + m];
        if (norm) {
            a = a * factor * norm[m];
            b = b * factor * norm[half + m];
        }
        x[m] = (a * c - b * s) * scale;
        x[half + m] = (b * c + a * s) * scale;
    }
    for (u32 i = rotary + lane; i < d; i += WARP) x[i] = (norm ? x[i] * factor * norm[i] : x[i]) * scale;
}

template <class T> __global__ void __launch_bounds__(ROPE_WARPS *WARP) rope_kernel(struct rope_params p)
{
    u32 per_row = p.heads + 2 * p.kv.kv_heads, d = p.kv.head_dim;
    u32 unit = blockIdx.x * ROPE_WARPS + threadIdx.x / WARP, row = unit / per_row, head = unit % per_row;
    if (row >= p.rows) return; /* a whole warp */
    float *x = p.qkv + row * p.ld + head * d;
    const float *angles = p.angles + (size_t)row * p.rotary;
    if (head < p.heads) {
        turn_head(x, p.q_norm, angles, d, p.rotary, p.eps, p.scale);
        return;
    }
    u32 kv_head = (head - p.heads) % p.kv.kv_heads;
    bool value = head - p.heads >= p.kv.kv_heads;
    if (!value) turn_head(x, p.k_norm, angles, d, p.rotary, p.eps, 1);
    struct place at = p.places[row];
    u8 *to = (u8 *)kv_at<T>(p.kv, at.block, kv_head, at.offset) + (value ? p.kv.v_offset : 0);
    __syncwarp();
    for (u32 i = threadIdx.x % WARP; i < d; i += WARP) ((T *)to)[i] = from_f32<T>(x[i]);
}

void rope(const struct rope_args *a, struct share s)
{
    struct rope_params p = {a->qkv,    a->angles,
                            a->q_norm, a->k_norm,
                            a->places, a->eps,
                            a->scale,  a->heads,
                            a->rows,   !a->angles ? 0 : a->rotary ? a->rotary : a->kv->head_dim,
                            a->ld,     kv_view(a->kv, a->layer)};
    u32 units = a->rows * (a->heads + 2 * a->kv->kv_heads);
    if (!units) return;
    by_dtype(a->kv->dtype, [&](auto zero) {
        launch(s.device, "rope", rope_kernel<decltype(zero)>, dim3((units + ROPE_WARPS - 1) / ROPE_WARPS),
               ROPE_WARPS * WARP, 0, p);
    });
}
