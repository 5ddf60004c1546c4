/* Attention of single tokens: the keys that a token sees are cut into splits of KV_SPLIT from position 0, a block to a split, KV
 * head and up to DECODE_ROWS of its q heads; a second kernel merges the splits in ascending order. So a long sequence
 * occupies the whole device, and K and V are read once for all q heads of a group.
 *
 * In a block: scores, eight lanes to a key; softmax of the split, a warp to a q head; then each thread adds up 16 bytes of V's
 * columns over a part of the keys, and the parts are added in order. */
#include "table.h"

enum { DECODE_THREADS = 128, DECODE_ROWS = 8, KEY_LANES = 8, KEYS_AT_ONCE = DECODE_THREADS / KEY_LANES };

/* D: at least head_dim. */
template <int ROWS, int D> struct decode_shared {
    float q[ROWS][D];
    float score[ROWS][KV_SPLIT];
    float top[ROWS], sum[ROWS];
    float part[DECODE_THREADS * 8];
};

struct decode_work { /* what a block does */
    u32 first, end;  /* keys */
    u32 kv_head, head, rows;
    const u32 *blocks;
};

template <class T, int ROWS, int D>
__device__ void decode_scores(decode_shared<ROWS, D> &s, const struct decode_work &w,
                              const struct kv_view &kv, float cap)
{
    u32 lane = threadIdx.x % KEY_LANES, vectors = kv.head_dim / vec16<T>::N;
    for (u32 at = w.first; at < w.end; at += KEYS_AT_ONCE) {
        u32 key = at + threadIdx.x / KEY_LANES;
        float sum[ROWS] = {0};
        if (key < w.end) {
            const T *k = kv_at<T>(kv, w.blocks[key / kv.block_size], w.kv_head, key);
            for (u32 v = lane; v < vectors; v += KEY_LANES) {
                vec16<T> x = load16(k + v * vec16<T>::N);
#pragma unroll
                for (int r = 0; r < ROWS; r++)
#pragma unroll
                    for (int e = 0; e < vec16<T>::N; e++)
                        sum[r] += s.q[r][v * vec16<T>::N + e] * to_f32(x.of[e]);
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            for (int bits = KEY_LANES / 2; bits; bits /= 2)
                sum[r] += __shfl_xor_sync(ALL_LANES, sum[r], bits);
            if (lane == 0 && key < w.end) s.score[r][key - w.first] = capped(sum[r], cap);
        }
    }
}

template <int ROWS, int D> __device__ void decode_softmax(decode_shared<ROWS, D> &s, u32 n)
{
    for (u32 r = threadIdx.x / WARP; r < ROWS; r += DECODE_THREADS / WARP) {
        float top = -INFINITY, sum = 0;
        for (u32 i = threadIdx.x % WARP; i < n; i += WARP) top = fmaxf(top, s.score[r][i]);
        top = warp_max(top);
        for (u32 i = threadIdx.x % WARP; i < n; i += WARP) {
            float p = expf(s.score[r][i] - top);
            s.score[r][i] = p;
            sum += p;
        }
        sum = warp_sum(sum);
        if (threadIdx.x % WARP == 0) {
            s.top[r] = top;
            s.sum[r] = sum;
        }
    }
}

template <class T, int ROWS, int D>
__device__ void decode_values(decode_shared<ROWS, D> &s, const struct decode_work &w,
                              const struct decode_params &p, u32 span, u32 split, bool alone)
{
    enum { N = vec16<T>::N };
    u32 d = p.kv.value_dim, columns = d / N, groups = DECODE_THREADS / columns;
    u32 column = threadIdx.x % columns, group = threadIdx.x / columns;
    float sum[ROWS][N] = {{0}};
    for (u32 key = w.first + group; group < groups && key < w.end; key += groups) {
        const T *k = kv_at<T>(p.kv, w.blocks[key / p.kv.block_size], w.kv_head, key);
        vec16<T> v = load16((const T *)((const u8 *)k + p.kv.v_offset) + column * N);
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int e = 0; e < N; e++) sum[r][e] += s.score[r][key - w.first] * to_f32(v.of[e]);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        __syncthreads();
#pragma unroll
        for (int e = 0; e < N; e++) s.part[threadIdx.x * N + e] = sum[r][e];
        __syncthreads();
        if (r >= (int)w.rows) continue;
        T *final = (T *)p.out + p.spans[span].row * p.ld_out + (w.head + r) * d;
        float *to = p.partial + (((size_t)blockIdx.z * p.heads + w.head + r) * p.splits + split) * (d + 2);
        for (u32 i = threadIdx.x; i < d; i += DECODE_THREADS) {
            float total = 0;
            for (u32 g = 0; g < groups; g++) total += s.part[g * d + i];
            if (alone)
                final[i] = from_f32<T>(total / (s.sum[r] + sink_of(p.sinks, w.head + r, s.top[r])));
            else
                to[i] = total;
        }
        if (!alone && threadIdx.x == 0) {
            to[d] = s.top[r];
            to[d + 1] = s.sum[r];
        }
    }
}

template <class T, int ROWS, int D>
__global__ void __launch_bounds__(DECODE_THREADS, 4) decode_kernel(struct decode_params p, u32 first_span)
{
    typedef decode_shared<ROWS, D> shared;
    SHARED(shared, s);
    u32 index = first_span + blockIdx.z, split = blockIdx.x, group = p.heads / p.kv.kv_heads;
    const struct attn_span span = p.spans[index];
    u32 per_head = (group + ROWS - 1) / ROWS, offset = blockIdx.y % per_head * ROWS, pos = last_seen(span, 0),
        low = first_seen(pos, p.window);
    if (span.n != 1 || split >= splits_of(pos, p.window)) return; /* the whole block */
    u32 start = (low / KV_SPLIT + split) * KV_SPLIT;
    struct decode_work w;
    w.first = start > low ? start : low;
    w.end = start + KV_SPLIT < pos + 1 ? start + KV_SPLIT : pos + 1;
    w.kv_head = blockIdx.y / per_head;
    w.head = w.kv_head * group + offset;
    w.rows = group - offset < ROWS ? group - offset : ROWS;
    w.blocks = span.blocks;
    for (u32 i = threadIdx.x; i < ROWS * p.kv.head_dim; i += DECODE_THREADS) {
        u32 r = i / p.kv.head_dim, c = i % p.kv.head_dim;
        s.q[r][c] = r < w.rows ? p.q[span.row * p.ld_q + (w.head + r) * p.kv.head_dim + c] : 0;
    }
    __syncthreads();
    decode_scores<T, ROWS, D>(s, w, p.kv, p.soft_cap);
    __syncthreads();
    decode_softmax<ROWS, D>(s, w.end - w.first);
    __syncthreads();
    decode_values<T, ROWS, D>(s, w, p, index, split, splits_of(pos, p.window) == 1);
}

template <class T>
__global__ void __launch_bounds__(DECODE_THREADS) merge_kernel(struct decode_params p, u32 first_span)
{
    const struct attn_span span = p.spans[first_span + blockIdx.y];
    u32 d = p.kv.value_dim, head = blockIdx.x, n = splits_of(last_seen(span, 0), p.window);
    if (span.n != 1 || n == 1) return;
    const float *from = p.partial + ((size_t)blockIdx.y * p.heads + head) * p.splits * (d + 2);
    float top = -INFINITY, sum = 0;
    for (u32 k = 0; k < n; k++) top = fmaxf(top, from[k * (d + 2) + d]);
    for (u32 k = 0; k < n; k++) sum += expf(from[k * (d + 2) + d] - top) * from[k * (d + 2) + d + 1];
    sum += sink_of(p.sinks, head, top);
    for (u32 i = threadIdx.x; i < d; i += DECODE_THREADS) {
        float total = 0;
        for (u32 k = 0; k < n; k++) total += expf(from[k * (d + 2) + d] - top) * from[k * (d + 2) + i];
        ((T *)p.out)[span.row * p.ld_out + head * d + i] = from_f32<T>(total / sum);
    }
}

void merge_splits(const struct decode_params &p, u32 first, u32 n, enum dtype dtype, struct device *d)
{
    if (p.splits < 2) return;
    by_dtype(dtype, [&](auto zero) {
        launch(d, "attention, merge", merge_kernel<decltype(zero)>, dim3(p.heads, n), DECODE_THREADS, 0, p,
               first);
    });
}

template <class T, int ROWS, int D>
static void decode_spans(const struct decode_params &p, const struct attn_args *a, struct device *d)
{
    u32 kv_heads = p.kv.kv_heads, per_head = (p.heads / kv_heads + ROWS - 1) / ROWS;
    by_room(p, a->n_spans, [&](u32 first, u32 n) {
        launch(d, "attention", decode_kernel<T, ROWS, D>, dim3(p.splits, kv_heads * per_head, n),
               DECODE_THREADS, sizeof(decode_shared<ROWS, D>), p, first);
        merge_splits(p, first, n, a->kv->dtype, d);
    });
}

struct decode_params decode_params(const struct attn_args *a, struct device *d)
{
    u32 splits = (a->longest + KV_SPLIT - 1) / KV_SPLIT;
    if (a->window) splits = MIN_OF(splits, a->window / KV_SPLIT + 2);
    struct decode_params p = {a->q,        a->out,    device_partial(d),  a->spans, kv_view(a->kv, a->layer),
                              a->heads,    a->window, MAX_OF(splits, 1u), a->ld_q,  a->ld_out,
                              a->soft_cap, a->sinks};
    return p;
}

void decode(const struct attn_args *a, struct device *d)
{
    u32 group = a->heads / a->kv->kv_heads;
    struct decode_params p = decode_params(a, d);
    if (a->kv->latent) {
        decode_spans<float, DECODE_ROWS, KV_MAX_LATENT>(p, a, d);
        return;
    }
    by_dtype(a->kv->dtype, [&](auto zero) {
        typedef decltype(zero) T;
        if (group == 1)
            decode_spans<T, 1, MAX_HEAD_DIM>(p, a, d);
        else if (group <= 2)
            decode_spans<T, 2, MAX_HEAD_DIM>(p, a, d);
        else if (group <= 4)
            decode_spans<T, 4, MAX_HEAD_DIM>(p, a, d);
        else
            decode_spans<T, DECODE_ROWS, MAX_HEAD_DIM>(p, a, d);
    });
}
