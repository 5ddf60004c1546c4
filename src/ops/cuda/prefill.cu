/* Attention of several tokens of a sequence, on the tensor cores. A block takes a span and a KV head: its rows are the span's tokens
 * times the q heads of that KV head, PREFILL_ROWS at most, 16 to a warp. Tiles of keys come through shared memory in ascending
 * order; scores, their softmax and the sums stay in registers (online softmax), since the scores of a warp lie over its lanes
 * exactly as the next product wants them.
 *
 * Lane 4 g + t holds of a 16 x 8 result: row g, columns 2 t and 2 t + 1; row g + 8, the same columns. */
#include "mma.cuh"
#include "table.h"

enum { PREFILL_WARPS = PREFILL_ROWS / 16, PREFILL_THREADS = PREFILL_WARPS * WARP, PAD = 8 };

struct prefill_params {
    const float *q;
    void *out;
    const struct attn_span *spans;
    struct kv_view kv;
    u32 heads, window;
    size_t ld_q, ld_out;
    float soft_cap;     /* 0: none */
    const float *sinks; /* [heads] or NULL */
};

/* Rows are 16 bytes longer than a multiple of 128: eight rows lie in different banks. */
template <class T, int D, int KEYS> struct prefill_shared {
    alignas(16) T q[PREFILL_ROWS][D + PAD];
    alignas(16) T k[KEYS][D + PAD];
    alignas(16) T v[KEYS][D + PAD];
};

struct prefill_work {
    struct attn_span span;
    u32 kv_head, group, rows;
    u32 low, last; /* first and last key that the span sees */
};

template <class T, int D, int KEYS>
__device__ void load_q(prefill_shared<T, D, KEYS> &s, const struct prefill_work &w,
                       const struct prefill_params &p)
{
    u32 d = p.kv.head_dim;
    for (u32 i = threadIdx.x; i < PREFILL_ROWS * D; i += PREFILL_THREADS) {
        u32 r = i / D, c = i % D, head = w.kv_head * w.group + r % w.group;
        bool there = r < w.rows && c < d;
        s.q[r][c] = from_f32<T>(there ? p.q[(w.span.row + r / w.group) * p.ld_q + head * d + c] : 0.0f);
    }
}

/* Keys [first, first + KEYS); zeros where no token sees them: that memory may hold anything, and 0 x NaN is NaN. */
template <class T, int D, int KEYS>
__device__ void load_tile(prefill_shared<T, D, KEYS> &s, const struct prefill_work &w,
                          const struct kv_view &kv, u32 first)
{
    enum { N = vec16<T>::N };
    for (u32 i = threadIdx.x; i < KEYS * (D / N); i += PREFILL_THREADS) {
        u32 key = i / (D / N), c = i % (D / N) * N, u = first + key;
        vec16<T> k, v;
        k.raw = v.raw = uint4{0, 0, 0, 0};
        if (u >= w.low && u <= w.last && c < kv.head_dim) {
            const T *at = kv_at<T>(kv, w.span.blocks[u / kv.block_size], w.kv_head, u) + c;
            k = load16(at);
            v = load16((const T *)((const u8 *)at + kv.v_offset));
        }
        *reinterpret_cast<uint4 *>(&s.k[key][c]) = k.raw;
        *reinterpret_cast<uint4 *>(&s.v[key][c]) = v.raw;
    }
}

/* q k of the warp's 16 rows and the tile's keys. */
template <class T, int D, int KEYS>
__device__ void tile_scores(const prefill_shared<T, D, KEYS> &s, u32 row0, float score[KEYS / 8][4])
{
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) score[j][i] = 0;
    mma_rows<T, KEYS, D>(s.q + row0, s.k, score);
}

/* Scores are capped; keys that a row does not see become -inf. */
template <int KEYS>
__device__ void tile_mask(const struct prefill_work &w, u32 row0, u32 first, u32 window, float cap,
                          float score[KEYS / 8][4])
{
    u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u32 pos = last_seen(w.span, (row0 + lane / 4 + 8 * half) / w.group), low = first_seen(pos, window);
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                u32 key = first + j * 8 + lane % 4 * 2 + i;
                float *at = &score[j][2 * half + i];
                *at = key < low || key > pos ? -INFINITY : capped(*at, cap);
            }
    }
}

struct running { /* of the lane's two rows */
    float top[2], sum[2];
};

/* Scores become exponentials over the running maximum; what was summed before is scaled to it. */
template <int D, int KEYS>
__device__ void tile_softmax(struct running &run, float score[KEYS / 8][4], float out[D / 8][4])
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float top = run.top[half], sum = 0;
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
            top = fmaxf(top, fmaxf(score[j][2 * half], score[j][2 * half + 1]));
        top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
        top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
        float base = top == -INFINITY ? 0 : top,
              keep = __expf(run.top[half] - base); /* a row that saw no key yet */
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float p = __expf(score[j][2 * half + i] - base);
                score[j][2 * half + i] = p;
                sum += p;
            }
        run.top[half] = top;
        run.sum[half] = run.sum[half] * keep + sum; /* this lane's columns; the four are added at the end */
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            out[j][2 * half] *= keep;
            out[j][2 * half + 1] *= keep;
        }
    }
}

template <class T, int D, int KEYS>
__device__ void tile_values(const prefill_shared<T, D, KEYS> &s, const float score[KEYS / 8][4],
                            float out[D / 8][4])
{
    u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
        const unsigned a[4] = {pair_of<T>(score[2 * k][0], score[2 * k][1]),
                               pair_of<T>(score[2 * k][2], score[2 * k][3]),
                               pair_of<T>(score[2 * k + 1][0], score[2 * k + 1][1]),
                               pair_of<T>(score[2 * k + 1][2], score[2 * k + 1][3])};
#pragma unroll
        for (int j = 0; j < D / 8; j += 2) {
            unsigned b[4];
            load_matrices_transposed(b, &s.v[k * 16 + lane % 16][j * 8 + lane / 16 * 8]);
            mma(out[j], a, b, T());
            mma(out[j + 1], a, b + 2, T());
        }
    }
}

template <class T, int D>
__device__ void store_out(const struct prefill_work &w, const struct prefill_params &p, u32 row0,
                          struct running &run, float out[D / 8][4])
{
    u32 lane = threadIdx.x % WARP, d = p.kv.head_dim;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = run.sum[half];
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(ALL_LANES, sum, 2);
        u32 r = row0 + lane / 4 + 8 * half;
        if (r >= w.rows) continue;
        sum += sink_of(p.sinks, w.kv_head * w.group + r % w.group, run.top[half]);
        T *to = (T *)p.out + (w.span.row + r / w.group) * p.ld_out + (w.kv_head * w.group + r % w.group) * d;
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            u32 c = j * 8 + lane % 4 * 2;
            unsigned pair = pair_of<T>(out[j][2 * half] / sum, out[j][2 * half + 1] / sum);
            if (c < d) *reinterpret_cast<unsigned *>(to + c) = pair;
        }
    }
}

template <class T, int D, int KEYS>
__global__ void __launch_bounds__(PREFILL_THREADS, 2) prefill_kernel(struct prefill_params p)
{
    typedef prefill_shared<T, D, KEYS> shared;
    SHARED(shared, s);
    struct prefill_work w;
    w.span = p.spans[blockIdx.x];
    if (w.span.n == 1) return; /* the whole block: decode's */
    w.kv_head = blockIdx.y;
    w.group = p.heads / p.kv.kv_heads;
    w.rows = w.span.n * w.group;
    w.low = first_seen(w.span.pos, p.window);
    w.last = last_seen(w.span, w.span.n - 1);
    u32 row0 = threadIdx.x / WARP * 16;
    float score[KEYS / 8][4], out[D / 8][4];
    struct running run = {{-INFINITY, -INFINITY}, {0, 0}};
#pragma unroll
    for (int j = 0; j < D / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) out[j][i] = 0;
    load_q(s, w, p);
    for (u32 first = w.low / KEYS * KEYS; first <= w.last; first += KEYS) {
        __syncthreads();
        load_tile(s, w, p.kv, first);
        __syncthreads();
        tile_scores<T, D, KEYS>(s, row0, score);
        tile_mask<KEYS>(w, row0, first, p.window, p.soft_cap, score);
        tile_softmax<D, KEYS>(run, score, out);
        tile_values<T, D, KEYS>(s, score, out);
    }
    store_out<T, D>(w, p, row0, run, out);
}

/* Head sizes between these are computed as the next one, with columns of zeros. */
template <class T, class F> static void by_size(u32 d, F f)
{
    if (d <= 32)
        f(prefill_kernel<T, 32, 64>, sizeof(prefill_shared<T, 32, 64>));
    else if (d <= 64)
        f(prefill_kernel<T, 64, 64>, sizeof(prefill_shared<T, 64, 64>));
    else if (d <= 128)
        f(prefill_kernel<T, 128, 64>, sizeof(prefill_shared<T, 128, 64>));
    else
        f(prefill_kernel<T, 256, 32>, sizeof(prefill_shared<T, 256, 32>));
}

template <class T> static void prepare(struct device *d)
{
    static const u32 sizes[] = {32, 64, 128, 256};
    for (u32 size : sizes)
        by_size<T>(size, [&](auto kernel, size_t bytes) {
            cudaError_t e =
                cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
            device_failed(d, e, "shared memory of attention");
        });
}

void prefill_prepare(struct device *d)
{
    prepare<bf16>(d);
    prepare<f16>(d);
}

void prefill(const struct attn_args *a, struct device *d)
{
    struct prefill_params p = {a->q,        a->out,    a->spans, kv_view(a->kv, a->layer),
                               a->heads,    a->window, a->ld_q,  a->ld_out,
                               a->soft_cap, a->sinks};
    dim3 grid(a->n_spans, a->kv->kv_heads);
    auto start = [&](auto kernel, size_t bytes) {
        launch(d, "attention of prompts", kernel, grid, PREFILL_THREADS, bytes, p);
    };
    if (a->kv->dtype == DTYPE_BF16)
        by_size<bf16>(a->kv->head_dim, start);
    else
        by_size<f16>(a->kv->head_dim, start);
}

/* ---- both kinds of spans */
u32 device_attn_tokens(const struct kv_pool *kv, u32 heads)
{
    u32 group = heads / kv->kv_heads;
    if (kv->dtype == DTYPE_F32) return 1;
    return kv->latent ? (u32)LATENT_TOKENS : group > PREFILL_ROWS ? 1 : PREFILL_ROWS / group;
}

void attn(const struct attn_args *a, struct share s)
{
    if (a->kv->latent && a->kv->dtype != DTYPE_F32) {
        attend_latents(a, s.device);
        return;
    }
    if (a->n_single) decode(a, s.device);
    if (a->n_spans > a->n_single) prefill(a, s.device);
}
