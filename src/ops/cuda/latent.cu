/* Latent attention: what comes before its scores, a warp to a head of a row or to a row's latent; and the scores and sums themselves, on
 * the tensor cores.
 *
 * All heads of a token share one key, the latent, whose first numbers are also the value. So the rows of a tile are heads and tokens of a
 * span, 16 to a block, and a tile of keys is read once for scores and sums: each of the four warps has the scores of a quarter of the keys,
 * and the sums of a quarter of the value's columns; the weights go from one to the other through shared memory. A single token's keys are
 * cut into splits, as decode.cu does it, and merged there. */
#include "mma.cuh"
#include "table.h"

enum { PLACE_WARPS = 4 };

struct place_params {
    float *q, *absorbed;
    const float *latent, *norm, *angles;
    const struct place *places;
    float eps, scale;
    bool interleaved;
    u32 heads, rows, nope, rope, rank;
    size_t ld_q, ld_absorbed, ld_latent;
    struct kv_view kv;
};

/* y: x [n] rotated, times scale: firsts of the pairs, then seconds. y is not x. */
template <class T>
__device__ inline void rotate(T *y, const float *x, const float *angles, u32 n, bool interleaved, float scale)
{
    u32 half = n / 2;
    for (u32 m = threadIdx.x % WARP; m < half; m += WARP) {
        float a = interleaved ? x[2 * m] : x[m], b = interleaved ? x[2 * m + 1] : x[m + half], c = angles[m],
              s = angles[half + m];
        y[m] = from_f32<T>((a * c - b * s) * scale);
        y[m + half] = from_f32<T>((b * c + a * s) * scale);
    }
}

template <class T> __global__ void __launch_bounds__(PLACE_WARPS *WARP) place_kernel(struct place_params p)
{
    u32 unit = blockIdx.x * PLACE_WARPS + threadIdx.x / WARP, row = unit / (p.heads + 1),
        head = unit % (p.heads + 1), lane = threadIdx.x % WARP;
    if (row >= p.rows) return; /* a whole warp */
    const float *angles = p.angles + (size_t)row * p.rope;
    if (head < p.heads) {
        float *q = p.q + row * p.ld_q + head * (p.nope + p.rope);
        rotate(p.absorbed + row * p.ld_absorbed + head * (p.rank + p.rope) + p.rank, q + p.nope, angles,
               p.rope, p.interleaved, p.scale);
        for (u32 i = lane; i < p.nope; i += WARP) q[i] *= p.scale;
        return;
    }
    const float *x = p.latent + row * p.ld_latent;
    float sum = 0;
    for (u32 i = lane; i < p.rank; i += WARP) sum += x[i] * x[i];
    float factor = 1.0f / sqrtf(warp_sum(sum) / (float)p.rank + p.eps);
    T *to = (T *)kv_at<T>(p.kv, p.places[row].block, 0, p.places[row].offset);
    for (u32 i = lane; i < p.rank; i += WARP) to[i] = from_f32<T>(x[i] * factor * p.norm[i]);
    rotate(to + p.rank, x + p.rank, angles, p.rope, p.interleaved, 1.0f);
}

void latent(const struct latent_args *a, struct share s)
{
    struct place_params p = {
        a->q,    a->absorbed, a->latent,      a->norm,        a->angles,    a->places,
        a->eps,  a->scale,    a->interleaved, a->heads,       a->rows,      a->nope,
        a->rope, a->rank,     a->ld_q,        a->ld_absorbed, a->ld_latent, kv_view(a->kv, a->layer)};
    u32 units = a->rows * (a->heads + 1);
    if (!units) return;
    by_dtype(a->kv->dtype, [&](auto zero) {
        launch(s.device, "latents", place_kernel<decltype(zero)>,
               dim3((units + PLACE_WARPS - 1) / PLACE_WARPS), PLACE_WARPS * WARP, 0, p);
    });
}

/* ---- attention */
enum {
    LATENT_WARPS = 4,
    LATENT_THREADS = LATENT_WARPS * WARP,
    LATENT_ROWS = 16,
    LATENT_KEYS = 64,
    LATENT_PAD = 8
};
static_assert(LATENT_KEYS == LATENT_WARPS * 16, "a warp has the scores of 16 keys");
static_assert(KV_SPLIT % LATENT_KEYS == 0, "no tile has keys of two splits");

/* DV: at least the value's size; a multiple of 64. Room behind it for what is rotated. No more than 99 KiB: GPUs that are not made for
 * data centres have no more. */
template <class T, int DV> struct latent_shared {
    enum { D = DV + DEVICE_MAX_LATENT - KV_MAX_VALUE };
    alignas(16) T q[LATENT_ROWS][D + LATENT_PAD];
    alignas(16) T k[LATENT_KEYS][D + LATENT_PAD];
    alignas(16) T p[LATENT_ROWS][LATENT_KEYS + LATENT_PAD];
    float top[LATENT_WARPS][LATENT_ROWS], sum[LATENT_WARPS][LATENT_ROWS];
};
struct latent_work { /* what a block does */
    struct attn_span span;
    u32 row, rows;        /* the first of its rows, token by token, head by head; all rows of the span */
    u32 first, end, wide; /* keys; numbers of a key, in whole steps of 16 */
};

template <class T, int DV>
__device__ void latent_load_q(latent_shared<T, DV> &s, const struct latent_work &w,
                              const struct decode_params &p)
{
    u32 d = p.kv.head_dim;
    for (u32 i = threadIdx.x; i < LATENT_ROWS * w.wide; i += LATENT_THREADS) {
        u32 r = i / w.wide, c = i % w.wide, row = w.row + r;
        bool there = row < w.rows && c < d;
        s.q[r][c] =
            from_f32<T>(there ? p.q[(w.span.row + row / p.heads) * p.ld_q + row % p.heads * d + c] : 0.0f);
    }
}

/* Keys [first, first + LATENT_KEYS); zeros behind the last: that memory may hold anything, and 0 x NaN is NaN. */
template <class T, int DV>
__device__ void latent_load_keys(latent_shared<T, DV> &s, const struct latent_work &w,
                                 const struct kv_view &kv, u32 first)
{
    enum { N = vec16<T>::N };
    u32 vectors = w.wide / N;
    for (u32 i = threadIdx.x; i < LATENT_KEYS * vectors; i += LATENT_THREADS) {
        u32 key = i / vectors, c = i % vectors * N, u = first + key;
        vec16<T> v;
        v.raw = uint4{0, 0, 0, 0};
        if (u < w.end && c < kv.head_dim)
            v = load16(kv_at<T>(kv, w.span.blocks[u / kv.block_size], 0, u) + c);
        *reinterpret_cast<uint4 *>(&s.k[key][c]) = v.raw;
    }
}

/* Of the warp's 16 keys. Those that a row does not see become -inf. */
template <class T, int DV>
__device__ void latent_scores(const latent_shared<T, DV> &s, const struct latent_work &w, u32 heads,
                              u32 first, float score[2][4])
{
    u32 lane = threadIdx.x % WARP, key0 = threadIdx.x / WARP * 16;
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) score[j][i] = 0;
#pragma unroll 4
    for (u32 c = 0; c < w.wide; c += 16) {
        unsigned a[4], b[4];
        load_matrices(a, &s.q[lane % 16][c + lane / 16 * 8]);
        load_matrices(b, &s.k[key0 + lane % 8 + lane / 16 * 8][c + lane / 8 % 2 * 8]);
        mma(score[0], a, b, T());
        mma(score[1], a, b + 2, T());
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u32 pos = w.span.pos + (w.row + lane / 4 + 8 * half) / heads;
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                u32 key = first + key0 + j * 8 + lane % 4 * 2 + i;
                if (key > pos) score[j][2 * half + i] = -INFINITY;
            }
    }
}

struct latent_running { /* of the lane's two rows: the maximum of all keys, the sum over the warp's */
    float top[2], sum[2];
};

/* Scores become weights over the running maximum of all warps, in s.p; returns what earlier sums are to be multiplied by. */
template <class T, int DV>
__device__ void latent_softmax(latent_shared<T, DV> &s, struct latent_running &run, float score[2][4],
                               float keep[2])
{
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float top = fmaxf(fmaxf(score[0][2 * half], score[0][2 * half + 1]),
                          fmaxf(score[1][2 * half], score[1][2 * half + 1]));
        top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
        top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
        if (lane % 4 == 0) s.top[warp][lane / 4 + 8 * half] = top;
    }
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u32 r = lane / 4 + 8 * half;
        float top = run.top[half];
        for (int i = 0; i < LATENT_WARPS; i++) top = fmaxf(top, s.top[i][r]);
        float base = top == -INFINITY ? 0 : top, sum = 0;
        keep[half] = __expf(run.top[half] - base);
#pragma unroll
        for (int j = 0; j < 2; j++) {
            float a = __expf(score[j][2 * half] - base), b = __expf(score[j][2 * half + 1] - base);
            sum += a + b;
            unsigned pair = pair_of<T>(a, b);
            memcpy(&s.p[r][warp * 16 + j * 8 + lane % 4 * 2], &pair, sizeof pair);
        }
        run.top[half] = top;
        run.sum[half] = run.sum[half] * keep[half] + sum;
    }
    __syncthreads();
}

/* Sums of the warp's columns. */
template <class T, int DV>
__device__ void latent_values(const latent_shared<T, DV> &s, const float keep[2], float out[DV / 32][4])
{
    u32 lane = threadIdx.x % WARP, column = threadIdx.x / WARP * (DV / LATENT_WARPS);
#pragma unroll
    for (int j = 0; j < DV / 32; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) out[j][i] *= keep[i / 2];
#pragma unroll
    for (int k = 0; k < LATENT_KEYS; k += 16) {
        unsigned a[4];
        load_matrices(a, &s.p[lane % 16][k + lane / 16 * 8]);
#pragma unroll
        for (int j = 0; j < DV / 32; j += 2) {
            unsigned b[4];
            load_matrices_transposed(b, &s.k[k + lane % 16][column + j * 8 + lane / 16 * 8]);
            mma(out[j], a, b, T());
            mma(out[j + 1], a, b + 2, T());
        }
    }
}

/* Results, or this split's part of them. */
template <class T, int DV>
__device__ void latent_store(latent_shared<T, DV> &s, const struct latent_work &w,
                             const struct decode_params &p, u32 index, bool alone, struct latent_running &run,
                             const float out[DV / 32][4])
{
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, d = p.kv.value_dim;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = run.sum[half];
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(ALL_LANES, sum, 2);
        if (lane % 4 == 0) s.sum[warp][lane / 4 + 8 * half] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u32 r = lane / 4 + 8 * half, row = w.row + r, head = row % p.heads;
        if (row >= w.rows) continue;
        float sum = 0,
              *to = alone ? (float *)p.out + (w.span.row + row / p.heads) * p.ld_out + head * d
                          : p.partial + (((size_t)index * p.heads + head) * p.splits + blockIdx.x) * (d + 2);
        for (int i = 0; i < LATENT_WARPS; i++) sum += s.sum[i][r];
        float scale = alone ? 1.0f / sum : 1.0f;
#pragma unroll
        for (int j = 0; j < DV / 32; j++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                u32 c = warp * (DV / LATENT_WARPS) + j * 8 + lane % 4 * 2 + i;
                if (c < d) to[c] = out[j][2 * half + i] * scale;
            }
        if (!alone && warp == 0 && lane % 4 == 0) {
            to[d] = run.top[half];
            to[d + 1] = sum;
        }
    }
}

/* Grid: splits, tiles of rows, spans. */
template <class T, int DV>
__global__ void __launch_bounds__(LATENT_THREADS, 2) latent_kernel(struct decode_params p, u32 first_span)
{
    typedef latent_shared<T, DV> shared;
    SHARED(shared, s);
    struct latent_work w;
    u32 split = blockIdx.x, last;
    w.span = p.spans[first_span + blockIdx.z];
    w.row = blockIdx.y * LATENT_ROWS;
    w.rows = w.span.n * p.heads;
    bool single = w.span.n == 1, alone = !single || splits_of(w.span.pos, 0) == 1;
    if (w.row >= w.rows || split >= (single ? splits_of(w.span.pos, 0) : 1)) return; /* the whole block */
    last = (w.row + LATENT_ROWS < w.rows ? w.row + LATENT_ROWS : w.rows) - 1;
    w.first = split * KV_SPLIT;
    w.end = w.span.pos + last / p.heads + 1; /* what its last row sees */
    if (single && w.end > w.first + KV_SPLIT) w.end = w.first + KV_SPLIT;
    w.wide = (p.kv.head_dim + 15) / 16 * 16;
    float score[2][4], keep[2], out[DV / 32][4];
    struct latent_running run = {{-INFINITY, -INFINITY}, {0, 0}};
#pragma unroll
    for (int j = 0; j < DV / 32; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) out[j][i] = 0;
    latent_load_q(s, w, p);
    for (u32 first = w.first; first < w.end; first += LATENT_KEYS) {
        __syncthreads();
        latent_load_keys(s, w, p.kv, first);
        __syncthreads();
        latent_scores(s, w, p.heads, first, score);
        latent_softmax(s, run, score, keep);
        latent_values<T, DV>(s, keep, out);
    }
    latent_store<T, DV>(s, w, p, blockIdx.z, alone, run, out);
}

enum { FEW_VALUES = 64 };
template <class T, class F> static void by_values(u32 value_dim, u32 head_dim, F f)
{
    if (value_dim <= FEW_VALUES && head_dim <= latent_shared<T, FEW_VALUES>::D)
        f(latent_kernel<T, FEW_VALUES>, sizeof(latent_shared<T, FEW_VALUES>));
    else
        f(latent_kernel<T, KV_MAX_VALUE>, sizeof(latent_shared<T, KV_MAX_VALUE>));
}

template <class T> static void prepare(struct device *d)
{
    static const u32 sizes[] = {FEW_VALUES, KV_MAX_VALUE};
    for (u32 size : sizes)
        by_values<T>(size, size, [&](auto kernel, size_t bytes) {
            cudaError_t e =
                cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
            device_failed(d, e, "shared memory of latent attention");
        });
}

void latents_prepare(struct device *d)
{
    prepare<bf16>(d);
    prepare<f16>(d);
}

void attend_latents(const struct attn_args *a, struct device *d)
{
    struct decode_params p = decode_params(a, d);
    u32 tokens = a->n_spans > a->n_single ? (u32)LATENT_TOKENS : 1,
        tiles = (tokens * a->heads + LATENT_ROWS - 1) / LATENT_ROWS;
    by_room(p, a->n_spans, [&](u32 first, u32 n) {
        auto start = [&](auto kernel, size_t bytes) {
            launch(d, "attention over latents", kernel, dim3(p.splits, tiles, n), LATENT_THREADS, bytes, p,
                   first);
        };
        if (a->kv->dtype == DTYPE_BF16)
            by_values<bf16>(p.kv.value_dim, p.kv.head_dim, start);
        else
            by_values<f16>(p.kv.value_dim, p.kv.head_dim, start);
        merge_splits(p, first, n, DTYPE_F32, d);
    });
}
