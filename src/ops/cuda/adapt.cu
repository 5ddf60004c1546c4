/* What adapters add to a product, for the rows that have one: two kernels over tiles of rows of one adapter each. Ranks are small, so both
 * are bound by memory: the first one by A (few rows) and x, the second by y.
 *
 * The first: a block has a tile, a part, 16 ranks and a range of the inputs; its warps take 32 inputs in turn, straight from memory to the
 * tensor cores, and their sums are added in order at the end. The ranges give a decoding batch enough blocks. The second: a block has a
 * tile, a part and 128 outputs; it adds up the ranges in order, rounds them and multiplies. f32 on the vector units. */
#include "mma.cuh"
#include "table.h"

enum { SHRINK_WARPS = 8, SHRINK_THREADS = SHRINK_WARPS * WARP, SHRINK_RANKS = 16, SHRINK_STEP = 32 };
enum { EXPAND_WARPS = 4, EXPAND_THREADS = EXPAND_WARPS * WARP, EXPAND_EACH = 32, EXPAND_STEP = 64 };
enum { EXPAND_OUT = EXPAND_WARPS * EXPAND_EACH, EXPAND_PAD = 32 /* rows lie half the banks apart */ };

struct adapt_work { /* what a block does */
    struct device_factors f;
    struct adapted_tile tile;
    u32 part;
};

__device__ inline struct adapt_work adapt_work(const struct adapt_args &p)
{
    struct adapt_work w;
    w.tile = p.tiles[blockIdx.y];
    w.part = blockIdx.z;
    w.f = p.factors[w.tile.adapter * p.stride + w.part];
    return w;
}

/* The inner sums of a row of the tile over a range. */
__device__ inline float *low_of(const struct adapt_args &p, const struct adapt_work &w, u32 split, u32 row)
{
    return p.low + (((size_t)split * p.n_rows + w.tile.first + row) * p.parts + w.part) * p.low_ld;
}

struct adapt_range {     /* of the inputs */
    u32 from, end, rank; /* rank: the block's first one */
};
__device__ inline struct adapt_range adapt_range(const struct adapt_args &p)
{
    u32 steps = (p.n_in + SHRINK_STEP - 1) / SHRINK_STEP,
        each = (steps + p.splits - 1) / p.splits * SHRINK_STEP;
    u32 split = blockIdx.x % p.splits;
    struct adapt_range r = {split * each, (split + 1) * each, blockIdx.x / p.splits * SHRINK_RANKS};
    if (r.end > p.n_in) r.end = p.n_in;
    return r;
}

/* ---- A x, on the tensor cores */
template <int ROWS> struct shrink_shared {
    float sums[SHRINK_WARPS][ROWS][SHRINK_RANKS];
};

/* The warps' sums in order, scaled. */
template <int ROWS>
__device__ inline void shrink_store(const shrink_shared<ROWS> &s, const struct adapt_args &p,
                                    const struct adapt_work &w, u32 rank)
{
    __syncthreads();
    for (u32 i = threadIdx.x; i < w.tile.n * SHRINK_RANKS; i += SHRINK_THREADS) {
        u32 r = i / SHRINK_RANKS, c = i % SHRINK_RANKS;
        float sum = 0;
        for (u32 k = 0; k < SHRINK_WARPS; k++) sum += s.sums[k][r][c];
        if (rank + c < w.f.rank) low_of(p, w, blockIdx.x % p.splits, r)[rank + c] = sum * w.f.scale;
    }
}

template <class T, class X, int ROWS>
__device__ inline void shrink_sums(const struct adapt_args &p, const struct adapt_work &w,
                                   const struct adapt_range &range, float acc[ROWS / 16][SHRINK_RANKS / 8][4])
{
    enum { AHEAD = ROWS == ADAPTED_FEW ? 4 : sizeof(X) == sizeof(T) ? 2 : 1 }; /* as registers allow */
    u32 lane = threadIdx.x % WARP, g = lane / 4, offset = lane % 4 * 8;
    const T *a = (const T *)w.f.a + (size_t)(range.rank + g) * p.n_in + offset;
    const X *x[ROWS / 8];
#pragma unroll
    for (int i = 0; i < ROWS / 8; i++) {
        u32 r = i * 8 + g;
        x[i] = (const X *)p.x + (r < w.tile.n ? p.rows[w.tile.first + r] * p.ld_x + offset : 0);
    }
#pragma unroll AHEAD
    for (u32 k = range.from + threadIdx.x / WARP * SHRINK_STEP; k < range.end;
         k += SHRINK_WARPS * SHRINK_STEP) {
        uint4 left[ROWS / 8], right[SHRINK_RANKS / 8];
        bool there = k + offset < range.end;
#pragma unroll
        for (int j = 0; j < SHRINK_RANKS / 8; j++) {
            right[j] = uint4{0, 0, 0, 0};
            if (there && range.rank + j * 8 + g < w.f.rank)
                right[j] = eight<T>(a + (size_t)j * 8 * p.n_in + k);
        }
#pragma unroll
        for (int i = 0; i < ROWS / 8; i++) {
            left[i] = uint4{0, 0, 0, 0};
            if (there && i * 8 + g < w.tile.n) left[i] = eight<T>(x[i] + k);
        }
#pragma unroll
        for (int i = 0; i < ROWS / 16; i++)
#pragma unroll
            for (int j = 0; j < SHRINK_RANKS / 8; j++)
                mma_32<T>(acc[i][j], left[2 * i], left[2 * i + 1], right[j]);
    }
}

template <class T, class X, int ROWS>
__global__ void __launch_bounds__(SHRINK_THREADS) shrink_kernel(struct adapt_args p)
{
    SHARED(shrink_shared<ROWS>, s);
    struct adapt_work w = adapt_work(p);
    struct adapt_range range = adapt_range(p);
    float acc[ROWS / 16][SHRINK_RANKS / 8][4] = {};
    u32 lane = threadIdx.x % WARP;
    if (!w.f.a || range.rank >= w.f.rank) return; /* the whole block */
    shrink_sums<T, X, ROWS>(p, w, range, acc);
#pragma unroll
    for (int i = 0; i < ROWS / 16; i++)
#pragma unroll
        for (int j = 0; j < SHRINK_RANKS / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                s.sums[threadIdx.x / WARP][i * 16 + lane / 4 + e / 2 * 8][j * 8 + lane % 4 * 2 + e % 2] =
                    acc[i][j][e];
    shrink_store<ROWS>(s, p, w, range.rank);
}

/* ---- B of that, onto y */
/* Numbers [k, k + 8) of a row of B, zeros behind its end. Ranks that are no multiple of 8 leave rows where they cannot be read at once. */
template <class T> __device__ inline uint4 rank_numbers(const T *row, u32 k, u32 rank)
{
    vec16<T> v;
    v.raw = uint4{0, 0, 0, 0};
    if (rank % 8 == 0) {
        if (k < rank) v = load16(row + k);
        return v.raw;
    }
#pragma unroll
    for (u32 i = 0; i < vec16<T>::N; i++)
        if (k + i < rank) v.of[i] = row[k + i];
    return v.raw;
}

template <class T, int ROWS> struct expand_shared {
    alignas(16) T low[ROWS][EXPAND_STEP + EXPAND_PAD];
};

/* Inner sums [k, k + EXPAND_STEP) of the tile, zeros where there are none. */
template <class T>
__device__ inline void load_low(T *to, u32 ld, u32 rows, const struct adapt_args &p,
                                const struct adapt_work &w, u32 k)
{
    for (u32 i = threadIdx.x; i < rows * EXPAND_STEP; i += EXPAND_THREADS) {
        u32 r = i / EXPAND_STEP, c = i % EXPAND_STEP;
        float sum = 0;
        if (r < w.tile.n && k + c < w.f.rank)
            for (u32 split = 0; split < p.splits; split++) sum += low_of(p, w, split, r)[k + c];
        to[r * ld + c] = from_f32<T>(sum);
    }
}

template <class T, int ROWS>
__device__ inline void expand_store(const struct adapt_args &p, const struct adapt_work &w, u32 first,
                                    const float acc[ROWS / 16][EXPAND_EACH / 8][4])
{
    u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < ROWS / 8; i++) {
        u32 r = i * 8 + lane / 4;
        if (r >= w.tile.n) continue;
        float *y = p.y + p.rows[w.tile.first + r] * p.ld_y + w.f.at;
#pragma unroll
        for (int j = 0; j < EXPAND_EACH / 8; j++) {
            u32 o = first + j * 8 + lane % 4 * 2;
            if (o >= w.f.n_out) continue;
            float2 *to = reinterpret_cast<float2 *>(y + o), v = *to;
            v.x += acc[i / 2][j][i % 2 * 2];
            v.y += acc[i / 2][j][i % 2 * 2 + 1];
            *to = v;
        }
    }
}

template <class T, int ROWS>
__global__ void __launch_bounds__(EXPAND_THREADS) expand_kernel(struct adapt_args p)
{
    typedef expand_shared<T, ROWS> shared;
    SHARED(shared, s);
    struct adapt_work w = adapt_work(p);
    u32 lane = threadIdx.x % WARP, g = lane / 4, offset = lane % 4 * 8;
    u32 first = blockIdx.x * EXPAND_OUT + threadIdx.x / WARP * EXPAND_EACH;
    float acc[ROWS / 16][EXPAND_EACH / 8][4] = {};
    if (!w.f.a || blockIdx.x * EXPAND_OUT >= w.f.n_out) return; /* the whole block */
    for (u32 k0 = 0; k0 < w.f.rank; k0 += EXPAND_STEP) {
        __syncthreads();
        load_low<T>(&s.low[0][0], EXPAND_STEP + EXPAND_PAD, ROWS, p, w, k0);
        __syncthreads();
        for (u32 k = 0; k < EXPAND_STEP && k0 + k < w.f.rank; k += 32) {
            uint4 right[EXPAND_EACH / 8];
#pragma unroll
            for (int j = 0; j < EXPAND_EACH / 8; j++) {
                u32 o = first + j * 8 + g;
                right[j] = uint4{0, 0, 0, 0};
                if (o < w.f.n_out)
                    right[j] =
                        rank_numbers((const T *)w.f.b + (size_t)o * w.f.rank, k0 + k + offset, w.f.rank);
            }
#pragma unroll
            for (int i = 0; i < ROWS / 16; i++) {
                uint4 a = load16(&s.low[i * 16 + g][k + offset]).raw,
                      a8 = load16(&s.low[i * 16 + g + 8][k + offset]).raw;
#pragma unroll
                for (int j = 0; j < EXPAND_EACH / 8; j++) mma_32<T>(acc[i][j], a, a8, right[j]);
            }
        }
    }
    expand_store<T, ROWS>(p, w, first, acc);
}

/* ---- f32 */
/* A warp has two of the ranks, its lanes the inputs. */
__global__ void __launch_bounds__(SHRINK_THREADS) shrink_f32_kernel(struct adapt_args p)
{
    struct adapt_work w = adapt_work(p);
    struct adapt_range range = adapt_range(p);
    u32 lane = threadIdx.x % WARP;
    if (!w.f.a || range.rank >= w.f.rank) return; /* the whole block */
    for (u32 c = range.rank + threadIdx.x / WARP; c < range.rank + SHRINK_RANKS && c < w.f.rank;
         c += SHRINK_WARPS) {
        const float *a = (const float *)w.f.a + (size_t)c * p.n_in;
        for (u32 r = 0; r < w.tile.n; r++) {
            const float *x = (const float *)p.x + p.rows[w.tile.first + r] * p.ld_x;
            float sum = 0;
            for (u32 k = range.from + lane * 4; k < range.end; k += WARP * 4) {
                vec16<float> v = load16(a + k), u = load16(x + k);
                for (int e = 0; e < 4; e++) sum += v.of[e] * u.of[e];
            }
            sum = warp_sum(sum);
            if (lane == 0) low_of(p, w, blockIdx.x % p.splits, r)[c] = sum * w.f.scale;
        }
    }
}

/* A thread has an output of all rows. */
__global__ void __launch_bounds__(EXPAND_THREADS) expand_f32_kernel(struct adapt_args p)
{
    typedef expand_shared<float, ADAPTED_FEW> shared;
    SHARED(shared, s);
    struct adapt_work w = adapt_work(p);
    u32 o = blockIdx.x * EXPAND_OUT + threadIdx.x;
    float acc[ADAPTED_FEW] = {};
    if (!w.f.a || blockIdx.x * EXPAND_OUT >= w.f.n_out) return; /* the whole block */
    for (u32 k0 = 0; k0 < w.f.rank; k0 += EXPAND_STEP) {
        __syncthreads();
        load_low<float>(&s.low[0][0], EXPAND_STEP + EXPAND_PAD, ADAPTED_FEW, p, w, k0);
        __syncthreads();
#pragma unroll 2
        for (u32 k = 0; k < EXPAND_STEP && k0 + k < w.f.rank && o < w.f.n_out; k++) {
            float b = ((const float *)w.f.b)[(size_t)o * w.f.rank + k0 + k];
#pragma unroll
            for (int r = 0; r < ADAPTED_FEW; r++) acc[r] += s.low[r][k] * b;
        }
    }
#pragma unroll
    for (int r = 0; r < ADAPTED_FEW; r++)
        if (r < (int)w.tile.n && o < w.f.n_out) p.y[p.rows[w.tile.first + r] * p.ld_y + w.f.at + o] += acc[r];
}

/* ---- which of them */
static const char shrink_name[] = "products of adapters", expand_name[] = "sums of adapters";

template <class T, class X, int ROWS>
static void adapt_as(const struct adapt_args &a, dim3 shrink, dim3 expand, struct device *d)
{
    launch(d, shrink_name, shrink_kernel<T, X, ROWS>, shrink, SHRINK_THREADS, sizeof(shrink_shared<ROWS>), a);
    launch(d, expand_name, expand_kernel<T, ROWS>, expand, EXPAND_THREADS, sizeof(expand_shared<T, ROWS>), a);
}

template <class T, class X>
static void adapt_rows(const struct adapt_args &a, dim3 shrink, dim3 expand, struct device *d)
{
    if (a.tile_rows > ADAPTED_FEW)
        adapt_as<T, X, ADAPTED_MANY>(a, shrink, expand, d);
    else
        adapt_as<T, X, ADAPTED_FEW>(a, shrink, expand, d);
}

template <class T>
static void adapt_16(const struct adapt_args &a, dim3 shrink, dim3 expand, struct device *d)
{
    if (a.x_dtype == DTYPE_F32)
        adapt_rows<T, float>(a, shrink, expand, d);
    else
        adapt_rows<T, T>(a, shrink, expand, d);
}

static void adapt_f32(const struct adapt_args &a, dim3 shrink, dim3 expand, struct device *d)
{
    launch(d, shrink_name, shrink_f32_kernel, shrink, SHRINK_THREADS, 0, a);
    launch(d, expand_name, expand_f32_kernel, expand, EXPAND_THREADS,
           sizeof(expand_shared<float, ADAPTED_FEW>), a);
}

void device_adapt(struct device *d, const struct adapt_args *a)
{
    dim3 shrink((a->most_rank + SHRINK_RANKS - 1) / SHRINK_RANKS * a->splits, a->n_tiles, a->parts),
        expand((a->most_out + EXPAND_OUT - 1) / EXPAND_OUT, a->n_tiles, a->parts);
    BUG_ON(a->tile_rows > (a->dtype == DTYPE_F32 ? (u32)ADAPTED_FEW : (u32)ADAPTED_MANY));
    BUG_ON(a->x_dtype != a->dtype && a->x_dtype != DTYPE_F32);
    BUG_ON(a->most_rank > a->low_ld || a->n_in % 8);
    if (!a->n_tiles || !a->most_rank) return;
    if (a->dtype == DTYPE_F32)
        adapt_f32(*a, shrink, expand, d);
    else if (a->dtype == DTYPE_BF16)
        adapt_16<bf16>(*a, shrink, expand, d);
    else
        adapt_16<f16>(*a, shrink, expand, d);
}
