/* Experts, all but their products (bank.cu): routing, a block to a row; sorting, a block to an expert; gathering; and the weighted sum. */
#include "table.h"

enum { ROUTE_THREADS = 128, ROUTE_MOST = 1024, GROUP_THREADS = 256, COPY_THREADS = 256 };

/* ---- routing */
struct route_params {
    const float *logits, *correction;
    u32 *ids;
    float *weights;
    size_t ld;
    u32 experts, per_token, groups, top_groups;
    enum moe_score score;
    bool pair_groups, renormalise;
    float scale;
};
struct route_shared {
    float p[ROUTE_MOST], score[ROUTE_MOST], best[ROUTE_MOST];
    u8 taken[ROUTE_MOST], kept[ROUTE_MOST];
    float sums[ROUTE_THREADS / WARP];
    unsigned long long keys[ROUTE_THREADS / WARP];
};

/* Rises with the number, and for equal ones with a lower index; above 0. What is no number comes last. */
__device__ inline unsigned long long key_of(float v, u32 index)
{
    unsigned bits = __float_as_uint(v == v ? v + 0.0f : -INFINITY);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (unsigned long long)bits << 32 | (0xffffffffu - index);
}
__device__ inline u32 index_of(unsigned long long key)
{
    return 0xffffffffu - (u32)key;
}

/* The best of those not taken, for all threads. */
__device__ inline u32 route_best(const float *x, const u8 *taken, u32 n, unsigned long long *room)
{
    unsigned long long best = 0;
    for (u32 i = threadIdx.x; i < n; i += ROUTE_THREADS)
        if (!taken[i]) {
            unsigned long long key = key_of(x[i], i);
            best = key > best ? key : best;
        }
    for (int bits = WARP / 2; bits; bits /= 2) {
        unsigned long long other = __shfl_xor_sync(ALL_LANES, best, bits);
        best = other > best ? other : best;
    }
    __syncthreads();
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = best;
    __syncthreads();
    for (u32 i = 0; i < ROUTE_THREADS / WARP; i++) best = room[i] > best ? room[i] : best;
    return index_of(best);
}

__device__ inline float block_max(float v, float *room)
{
    v = warp_max(v);
    __syncthreads();
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = v;
    __syncthreads();
    for (u32 i = 0; i < ROUTE_THREADS / WARP; i++) v = fmaxf(v, room[i]);
    return v;
}

/* Logits to what experts are chosen and weighed by. */
__device__ inline void route_scores(route_shared &s, const struct route_params &p, const float *z)
{
    float top = -INFINITY, sum = 0;
    for (u32 e = threadIdx.x; e < p.experts; e += ROUTE_THREADS) top = fmaxf(top, z[e]);
    if (p.score == SCORE_SOFTMAX) top = block_max(top, s.sums);
    for (u32 e = threadIdx.x; e < p.experts; e += ROUTE_THREADS) {
        s.p[e] = p.score == SCORE_SOFTMAX   ? expf(z[e] - top)
                 : p.score == SCORE_SIGMOID ? 1.0f / (1.0f + expf(-z[e]))
                                            : z[e];
        sum += s.p[e];
    }
    if (p.score == SCORE_SOFTMAX) sum = block_sum(sum, s.sums);
    for (u32 e = threadIdx.x; e < p.experts; e += ROUTE_THREADS) {
        if (p.score == SCORE_SOFTMAX) s.p[e] /= sum;
        s.score[e] = s.p[e] + (p.correction ? p.correction[e] : 0);
        s.taken[e] = 0;
    }
    __syncthreads();
}

__device__ inline float group_score(const float *x, u32 n, bool pair)
{
    float first = x[0], second = -INFINITY;
    for (u32 i = 1; i < n; i++) {
        if (x[i] > first) {
            second = first;
            first = x[i];
        } else if (x[i] > second) {
            second = x[i];
        }
    }
    return pair ? first + second : first;
}

/* Experts of groups that are not among the best count as taken. */
__device__ inline void route_groups(route_shared &s, const struct route_params &p)
{
    u32 size = p.experts / p.groups;
    for (u32 g = threadIdx.x; g < p.groups; g += ROUTE_THREADS) {
        s.best[g] = group_score(s.score + g * size, size, p.pair_groups);
        s.kept[g] = 0;
    }
    __syncthreads();
    for (u32 i = 0; i < p.top_groups; i++) {
        u32 best = route_best(s.best, s.kept, p.groups, s.keys);
        if (threadIdx.x == 0) s.kept[best] = 1;
        __syncthreads();
    }
    for (u32 e = threadIdx.x; e < p.experts; e += ROUTE_THREADS) s.taken[e] = !s.kept[e / size];
    __syncthreads();
}

/* One thread: they are few. */
__device__ inline void route_weights(const route_shared &s, const struct route_params &p, const u32 *ids,
                                     float *w)
{
    float top = -INFINITY, sum = 0;
    for (u32 j = 0; j < p.per_token; j++) top = fmaxf(top, s.p[ids[j]]);
    for (u32 j = 0; j < p.per_token; j++) {
        w[j] = p.score == SCORE_CHOSEN ? expf(s.p[ids[j]] - top) : s.p[ids[j]];
        sum += w[j];
    }
    for (u32 j = 0; j < p.per_token; j++) {
        if (p.score == SCORE_CHOSEN) w[j] /= sum;
        if (p.renormalise) w[j] /= (p.score == SCORE_CHOSEN ? 1.0f : sum) + 1e-20f;
        w[j] *= p.scale;
    }
}

__global__ void __launch_bounds__(ROUTE_THREADS) route_kernel(struct route_params p)
{
    SHARED(route_shared, s);
    u32 *ids = p.ids + (size_t)blockIdx.x * p.per_token;
    route_scores(s, p, p.logits + blockIdx.x * p.ld);
    if (p.groups > 1) route_groups(s, p);
    for (u32 j = 0; j < p.per_token; j++) {
        u32 best = route_best(s.score, s.taken, p.experts, s.keys);
        if (threadIdx.x == 0) {
            ids[j] = best;
            s.taken[best] = 1;
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) route_weights(s, p, ids, p.weights + (size_t)blockIdx.x * p.per_token);
}

void route(const struct route_args *a, struct share s)
{
    const struct moe_config *m = a->moe;
    if (!a->rows) return;
    struct route_params p = {a->logits,      a->correction,  a->ids,    a->weights,    a->ld,
                             m->experts,     m->per_token,   m->groups, m->top_groups, m->score,
                             m->pair_groups, m->renormalise, m->scale};
    launch(s.device, "routing", route_kernel, dim3(a->rows), ROUTE_THREADS, sizeof(route_shared), p);
}

/* ---- sorting */
struct group_params {
    const u32 *ids;
    u32 *start, *order, *place;
    u32 pairs, experts;
};
struct group_shared {
    u32 sums[GROUP_THREADS / WARP], counts[GROUP_THREADS / WARP];
};

/* An expert's pairs, in their order, behind those of lower experts. */
__global__ void __launch_bounds__(GROUP_THREADS) group_kernel(struct group_params p)
{
    SHARED(group_shared, s);
    u32 expert = blockIdx.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, lower = 0;
    for (u32 i = threadIdx.x; i < p.pairs; i += GROUP_THREADS) lower += p.ids[i] < expert;
    u32 at = block_sum(lower, s.sums);
    if (threadIdx.x == 0) p.start[expert] = at;
    if (threadIdx.x == 0 && expert + 1 == p.experts) p.start[p.experts] = p.pairs;
    for (u32 first = 0; first < p.pairs; first += GROUP_THREADS) {
        u32 i = first + threadIdx.x;
        bool mine = i < p.pairs && p.ids[i] == expert;
        unsigned votes = __ballot_sync(ALL_LANES, mine);
        if (lane == 0) s.counts[warp] = (u32)__popc(votes);
        __syncthreads();
        u32 before = (u32)__popc(votes & ((1u << lane) - 1)), all = 0;
        for (u32 w = 0; w < GROUP_THREADS / WARP; w++) {
            before += w < warp ? s.counts[w] : 0;
            all += s.counts[w];
        }
        if (mine) {
            p.order[at + before] = i;
            p.place[i] = at + before;
        }
        at += all;
        __syncthreads();
    }
}

void group(const struct group_args *a, struct share s)
{
    struct group_params p = {a->ids, a->start, a->order, a->place, a->pairs, a->experts};
    launch(s.device, "sorting of tokens by expert", group_kernel, dim3(a->experts), GROUP_THREADS,
           sizeof(group_shared), p);
}

/* ---- there and back */
struct gather_params {
    const u8 *x;
    u8 *y;
    const u32 *order;
    u32 per_token, bytes;
    size_t ld_x, ld_y; /* bytes */
};

__global__ void __launch_bounds__(COPY_THREADS) gather_kernel(struct gather_params p)
{
    const u8 *from = p.x + p.order[blockIdx.x] / p.per_token * p.ld_x;
    u8 *to = p.y + blockIdx.x * p.ld_y;
    for (u32 i = threadIdx.x * 16; i < p.bytes; i += COPY_THREADS * 16)
        *reinterpret_cast<uint4 *>(to + i) = *reinterpret_cast<const uint4 *>(from + i);
}

void gather(const struct gather_args *a, struct share s)
{
    u32 size = a->dtype == DTYPE_F32 ? 4 : 2;
    struct gather_params p = {(const u8 *)a->x, (u8 *)a->y,     a->order,      a->per_token,
                              a->n * size,      a->ld_x * size, a->ld_y * size};
    if (a->pairs)
        launch(s.device, "gathering of experts' tokens", gather_kernel, dim3(a->pairs), COPY_THREADS, 0, p);
}

struct combine_params {
    const float *x, *weights, *shared, *shared_gate;
    const u32 *place;
    float *y;
    u32 per_token, n;
    size_t ld_x, ld_shared, ld_y;
    bool add;
};

__global__ void __launch_bounds__(COPY_THREADS) combine_kernel(struct combine_params p)
{
    u32 row = blockIdx.y, i = (blockIdx.x * COPY_THREADS + threadIdx.x) * 4;
    if (i >= p.n) return;
    float sum[4] = {0}, *to = p.y + row * p.ld_y + i;
    for (u32 j = 0; j < p.per_token; j++) {
        size_t at = (size_t)row * p.per_token + j;
        float w = p.weights[at];
        float4 v = *reinterpret_cast<const float4 *>(p.x + p.place[at] * p.ld_x + i);
        sum[0] += w * v.x;
        sum[1] += w * v.y;
        sum[2] += w * v.z;
        sum[3] += w * v.w;
    }
    if (p.shared) {
        float w = p.shared_gate ? 1.0f / (1.0f + expf(-p.shared_gate[row])) : 1.0f;
        float4 v = *reinterpret_cast<const float4 *>(p.shared + row * p.ld_shared + i);
        sum[0] += w * v.x;
        sum[1] += w * v.y;
        sum[2] += w * v.z;
        sum[3] += w * v.w;
    }
    if (p.add)
        for (int k = 0; k < 4; k++) sum[k] += to[k];
    store4(to, sum);
}

void combine(const struct combine_args *a, struct share s)
{
    if (!a->rows) return;
    struct combine_params p = {a->x,         a->weights, a->shared, a->shared_gate, a->place, a->y,
                               a->per_token, a->n,       a->ld_x,   a->ld_shared,   a->ld_y,  a->add};
    launch(s.device, "sum of experts", combine_kernel,
           dim3((a->n + COPY_THREADS * 4 - 1) / (COPY_THREADS * 4), a->rows), COPY_THREADS, 0, p);
}
