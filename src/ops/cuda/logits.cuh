/* Passes of a block over one row of logits: the same order of numbers, the same exponential and the same sums of 64 as
 * engine/logits.c, so that the same draws give the same tokens. (Sums of those sums are f64 here and there; their order differs,
 * which moves a draw's limit by about 1e-16 of the mass.) Inside ops/cuda. */
#ifndef MPISERVE_OPS_CUDA_LOGITS_CUH
#define MPISERVE_OPS_CUDA_LOGITS_CUH

#include "kernel.cuh"

enum { SAMPLE_THREADS = 256, LOGIT_BLOCK = 64, LOGIT_LANES = 4, LIST_MOST = 512 };

struct logits_shared {
    double sums[SAMPLE_THREADS];
    float maxima[SAMPLE_THREADS / WARP];
    u32 counts[SAMPLE_THREADS / WARP];
    u64 keys[LIST_MOST]; /* the best, sorted */
    float e[LIST_MOST];
    u32 n_keys;
    i32 token;
};

/* Larger is better: by logit, then by lower id. */
__device__ inline u32 order_of(float x)
{
    u32 bits = __float_as_uint(x + 0.0f); /* -0 and 0 are equal */
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline u64 key_of(float x, u32 id)
{
    return (u64)order_of(x) << 32 | (0xffffffffu - id);
}
__device__ inline u32 key_id(u64 key)
{
    return 0xffffffffu - (u32)key;
}

/* exp of x <= 0, without fused multiply-adds: bit for bit what the CPU computes. */
__device__ inline float exp_of(float x)
{
    const float round = 12582912.0f, ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
    float shifted = __fadd_rn(__fmul_rn(x, 0x1.715476p0f), round);
    u32 n = __float_as_uint(shifted) - __float_as_uint(round);
    float whole = __fsub_rn(shifted, round);
    float r = __fsub_rn(__fsub_rn(x, __fmul_rn(whole, ln2_high)), __fmul_rn(whole, ln2_low));
    const float series[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    float p = 1.0f / 5040;
#pragma unroll
    for (int i = 0; i < 7; i++) p = __fadd_rn(__fmul_rn(p, r), series[i]);
    return x > -87.0f ? __fmul_rn(p, __uint_as_float((n + 127) << 23)) : 0.0f;
}

__device__ inline float block_max(float v, struct logits_shared &s)
{
    v = warp_max(v);
    __syncthreads();
    if (threadIdx.x % WARP == 0) s.maxima[threadIdx.x / WARP] = v;
    __syncthreads();
    float top = s.maxima[0];
    for (u32 i = 1; i < SAMPLE_THREADS / WARP; i++) top = fmaxf(top, s.maxima[i]);
    return top;
}

/* Sum over all i < n of f(i), a number or a count. */
template <class F> __device__ inline double row_mass(u32 n, struct logits_shared &s, F f)
{
    double sum = 0;
    for (u32 i = threadIdx.x; i < n; i += SAMPLE_THREADS) sum += f(i);
    return block_sum(sum, s.sums);
}
template <class F> __device__ inline u32 row_count(u32 n, struct logits_shared &s, F f)
{
    u32 sum = 0;
    for (u32 i = threadIdx.x; i < n; i += SAMPLE_THREADS) sum += f(i) ? 1 : 0;
    return block_sum(sum, s.counts);
}
/* The largest key of those that f admits; 0: none. */
template <class F> __device__ inline u64 row_best(const float *x, u32 n, struct logits_shared &s, F f)
{
    u64 best = 0;
    for (u32 i = threadIdx.x; i < n; i += SAMPLE_THREADS) {
        u64 key = key_of(x[i], i);
        if (key > best && f(key)) best = key;
    }
    for (int bits = WARP / 2; bits; bits /= 2) {
        u64 other = __shfl_xor_sync(ALL_LANES, best, bits);
        best = other > best ? other : best;
    }
    __syncthreads();
    if (threadIdx.x % WARP == 0) s.keys[threadIdx.x / WARP] = best;
    __syncthreads();
    for (u32 i = 0; i < SAMPLE_THREADS / WARP; i++) best = s.keys[i] > best ? s.keys[i] : best;
    return best;
}

/* The largest logit. False: there is a NaN or +inf, or nothing but -inf. */
__device__ inline bool row_scan(const float *x, u32 n, struct logits_shared &s, float *max)
{
    float top = -INFINITY;
    int bad = 0;
    for (u32 i = threadIdx.x; i < n; i += SAMPLE_THREADS) {
        bad |= x[i] != x[i];
        top = fmaxf(top, x[i]);
    }
    *max = block_max(top, s);
    return !__syncthreads_or(bad) && fabsf(*max) < INFINITY;
}

/* For every 64 logits the sum of g(i): four lanes take every fourth, then (0 + 1) + (2 + 3). to (may be NULL) gets the sums; the
 * result is the sum of all. */
template <class G> __device__ inline double row_sums(u32 n, struct logits_shared &s, float *to, G g)
{
    u32 blocks = (n + LOGIT_BLOCK - 1) / LOGIT_BLOCK, lane = threadIdx.x % LOGIT_LANES;
    double total = 0;
    for (u32 first = 0; first < blocks; first += SAMPLE_THREADS / LOGIT_LANES) {
        u32 block = first + threadIdx.x / LOGIT_LANES;
        float sum = 0;
        for (u32 i = block * LOGIT_BLOCK + lane; i < (block + 1) * LOGIT_BLOCK && i < n; i += LOGIT_LANES)
            sum = __fadd_rn(sum, g(i));
        sum = __fadd_rn(sum, __shfl_xor_sync(ALL_LANES, sum, 1));
        sum = __fadd_rn(sum, __shfl_xor_sync(ALL_LANES, sum, 2));
        if (lane == 0 && block < blocks) {
            total += sum;
            if (to) to[block] = sum;
        }
    }
    return block_sum(total, s.sums);
}

/* The largest key for which `holds`, where it holds for `low` and for all keys below one for which it does. Keys are searched by
 * logit first, then by id where several have that logit; keys are asked about that are nobody's. */
template <class F>
__device__ inline u64 key_search(const float *x, u32 n, struct logits_shared &s, float low, float high,
                                 F holds)
{
    u32 from = order_of(low), to = order_of(high);
    while (from < to) {
        u32 middle = to - (to - from) / 2;
        if (holds((u64)middle << 32))
            from = middle;
        else
            to = middle - 1;
    }
    if (row_count(n, s, [&](u32 i) { return order_of(x[i]) == from; }) < 2)
        return row_best(x, n, s, [&](u64 key) { return key >> 32 <= from; });
    u32 id = 0, most = n - 1; /* keys fall as ids rise: the smallest id */
    while (id < most) {
        u32 middle = id + (most - id) / 2;
        if (holds((u64)from << 32 | (0xffffffffu - middle)))
            most = middle;
        else
            id = middle + 1;
    }
    return (u64)from << 32 | (0xffffffffu - id);
}

#endif
