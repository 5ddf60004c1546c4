/* Operations row by row: norms, gated activations, caps, embedding, angles of the rotation, bias, sums of rows. Numbers are f32, four to
 * an access. */
#include "table.h"

enum { ROW_THREADS = 256, FLAT_THREADS = 256, POOL_THREADS = 64 };

struct norm_shared {
    float sums[ROW_THREADS / WARP];
};

struct norm_params {
    const float *x, *w, *bias;
    const u32 *list;
    void *y;
    u32 n;
    float eps;
    size_t ld_x, ld_y;
};

/* The sum of x - mean, or of its squares, over the row; for all threads. */
template <bool SQUARES> __device__ inline float norm_moment(const float *x, u32 n, float mean, float *room)
{
    float sum = 0;
    for (u32 i = threadIdx.x * 4; i < n; i += ROW_THREADS * 4) {
        float4 v = *reinterpret_cast<const float4 *>(x + i);
        v.x -= mean, v.y -= mean, v.z -= mean, v.w -= mean;
        sum += SQUARES ? v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w) : v.x + v.y + (v.z + v.w);
    }
    return block_sum(sum, room);
}

/* CENTRED: LayerNorm. ADD: y is f32, and may not be x. */
template <class T, bool CENTRED, bool ADD>
__global__ void __launch_bounds__(ROW_THREADS) norm_kernel(struct norm_params p)
{
    SHARED(norm_shared, s);
    const float *from = p.x + (p.list ? p.list[blockIdx.x] : blockIdx.x) * p.ld_x;
    T *to = (T *)p.y + blockIdx.x * p.ld_y;
    float mean = CENTRED ? norm_moment<false>(from, p.n, 0, s.sums) / (float)p.n : 0;
    float scale = 1.0f / sqrtf(norm_moment<true>(from, p.n, mean, s.sums) / (float)p.n + p.eps);
    for (u32 i = threadIdx.x * 4; i < p.n; i += ROW_THREADS * 4) {
        float4 v = *reinterpret_cast<const float4 *>(from + i),
               g = *reinterpret_cast<const float4 *>(p.w + i), b = {0, 0, 0, 0};
        if (CENTRED) b = *reinterpret_cast<const float4 *>(p.bias + i);
        float out[4] = {(v.x - mean) * scale * g.x + b.x, (v.y - mean) * scale * g.y + b.y,
                        (v.z - mean) * scale * g.z + b.z, (v.w - mean) * scale * g.w + b.w};
        if (ADD)
            for (int k = 0; k < 4; k++) out[k] += to_f32(to[i + k]);
        store4(to + i, out);
    }
}

template <class T, bool CENTRED, bool ADD>
static void norm_as(const struct norm_params &p, u32 rows, struct share s)
{
    launch(s.device, "norm", norm_kernel<T, CENTRED, ADD>, dim3(rows), ROW_THREADS, sizeof(norm_shared), p);
}

static void norm(const struct norm_args *a, struct share s)
{
    if (!a->rows) return;
    struct norm_params p = {a->x, a->w, a->bias, a->list, a->y, a->n, a->eps, a->ld_x, a->ld_y};
    if (a->add && a->bias)
        norm_as<float, true, true>(p, a->rows, s);
    else if (a->add)
        norm_as<float, false, true>(p, a->rows, s);
    else
        by_dtype(a->y_dtype, [&](auto zero) {
            typedef decltype(zero) T;
            if (a->bias)
                norm_as<T, true, false>(p, a->rows, s);
            else
                norm_as<T, false, false>(p, a->rows, s);
        });
}

struct glu_params {
    const float *x;
    void *y;
    u32 n;
    size_t ld_x, ld_y;
    float limit, alpha;
};

template <enum activation ACT>
__device__ inline float glu_of(float gate, float up, const struct glu_params &p)
{
    if (ACT == ACT_GELU_TANH)
        return 0.5f * gate * (1 + tanhf(0.79788456f * (gate + 0.044715f * gate * gate * gate))) * up;
    if (ACT == ACT_CLAMPED) {
        gate = fminf(gate, p.limit);
        return (fmaxf(-p.limit, fminf(up, p.limit)) + 1) * gate / (1.0f + expf(-p.alpha * gate));
    }
    /* of both signs without a difference of like numbers */
    if (ACT == ACT_GELU) return 0.5f * gate * erfcf(-0.70710678f * gate);
    return gate / (1.0f + expf(-gate)) * up;
}

template <class T, enum activation ACT>
__global__ void __launch_bounds__(FLAT_THREADS) glu_kernel(struct glu_params p)
{
    u32 i = (blockIdx.x * FLAT_THREADS + threadIdx.x) * 4;
    if (i >= p.n) return;
    const float *row = p.x + blockIdx.y * p.ld_x;
    float4 g = *reinterpret_cast<const float4 *>(row + i), u = g;
    if (ACT != ACT_GELU) u = *reinterpret_cast<const float4 *>(row + p.n + i);
    const float out[4] = {glu_of<ACT>(g.x, u.x, p), glu_of<ACT>(g.y, u.y, p), glu_of<ACT>(g.z, u.z, p),
                          glu_of<ACT>(g.w, u.w, p)};
    store4((T *)p.y + blockIdx.y * p.ld_y + i, out);
}

/* Blocks that each take `step` elements of a row. */
static u32 pieces(u32 n, u32 step)
{
    return (n + step - 1) / step;
}

template <enum activation ACT> static void glu_as(const struct glu_args *a, struct share s)
{
    struct glu_params p = {a->x, a->y, a->n, a->ld_x, a->ld_y, a->limit, a->alpha};
    by_dtype(a->y_dtype, [&](auto zero) {
        launch(s.device, "gated activation", glu_kernel<decltype(zero), ACT>,
               dim3(pieces(a->n, FLAT_THREADS * 4), a->rows), FLAT_THREADS, 0, p);
    });
}

static void glu(const struct glu_args *a, struct share s)
{
    if (!a->rows) return;
    if (a->act == ACT_SILU)
        glu_as<ACT_SILU>(a, s);
    else if (a->act == ACT_GELU_TANH)
        glu_as<ACT_GELU_TANH>(a, s);
    else if (a->act == ACT_GELU)
        glu_as<ACT_GELU>(a, s);
    else
        glu_as<ACT_CLAMPED>(a, s);
}

__global__ void __launch_bounds__(FLAT_THREADS) cap_kernel(float *x, float cap, u32 n, size_t ld)
{
    u32 i = blockIdx.x * FLAT_THREADS + threadIdx.x;
    float *at = x + blockIdx.y * ld + i;
    if (i < n) *at = cap * tanhf(*at / cap);
}

static void cap(const struct cap_args *a, struct share s)
{
    if (!a->rows) return;
    launch(s.device, "cap", cap_kernel, dim3(pieces(a->n, FLAT_THREADS), a->rows), FLAT_THREADS, 0, a->x,
           a->cap, a->n, a->ld);
}

template <class T>
__global__ void __launch_bounds__(FLAT_THREADS)
    embed_kernel(const T *table, const i32 *ids, float *y, u32 n, size_t ld_y, float scale, bool add)
{
    u32 i = blockIdx.x * FLAT_THREADS + threadIdx.x;
    i32 id = ids[blockIdx.y];
    if (i >= n) return;
    float *to = y + blockIdx.y * ld_y + i, v = id < 0 ? 0 : to_f32(table[(size_t)id * n + i]) * scale;
    *to = add ? *to + v : v;
}

static void embed(const struct embed_args *a, struct share s)
{
    if (!a->rows) return;
    const void *table = a->table ? a->table : a->packed->data; /* both are row-major here */
    by_dtype(a->table ? a->dtype : a->packed->dtype, [&](auto zero) {
        typedef decltype(zero) T;
        launch(s.device, "embed", embed_kernel<T>, dim3(pieces(a->n, FLAT_THREADS), a->rows), FLAT_THREADS, 0,
               (const T *)table, a->ids, a->y, a->n, a->ld_y, a->scale > 0 ? a->scale : 1.0f, a->add);
    });
}

/* cos and sin of an angle in f32, |a| < 2^20, in f64: the same steps as on the CPU. */
__device__ inline void angle_cos_sin(float angle, float *c, float *s)
{
    const double half_pi = 1.57079632679489655800, rest = 6.12323399573676603587e-17;
    double a = angle, k = rint(a * 0.63661977236758134308);
    double r = (a - k * half_pi) - k * rest, z = r * r;
    double co = 1 - z * (1.0 / 2 - z * (1.0 / 24 - z * (1.0 / 720 - z * (1.0 / 40320 - z / 3628800))));
    double si =
        r * (1 - z * (1.0 / 6 - z * (1.0 / 120 - z * (1.0 / 5040 - z * (1.0 / 362880 - z / 39916800)))));
    int quadrant = (int)k & 3;
    *c = (float)(quadrant == 0 ? co : quadrant == 1 ? -si : quadrant == 2 ? -co : si);
    *s = (float)(quadrant == 0 ? si : quadrant == 1 ? co : quadrant == 2 ? -si : -co);
}

struct angles_params {
    const float *inv;
    const u32 *positions;
    float *table;
    u32 total, half;
    size_t ld_inv;
    float scale;
};

__global__ void __launch_bounds__(FLAT_THREADS) angles_kernel(struct angles_params p)
{
    u32 i = blockIdx.x * FLAT_THREADS + threadIdx.x, row = i / p.half, m = i % p.half;
    if (i >= p.total) return;
    float *to = p.table + (size_t)row * 2 * p.half + m, c, s;
    angle_cos_sin((float)p.positions[row] * p.inv[row * p.ld_inv + m], &c, &s);
    to[0] = c * p.scale;
    to[p.half] = s * p.scale;
}

static void angles(const struct angles_args *a, struct share s)
{
    struct angles_params p = {a->inv,
                              a->positions,
                              a->table,
                              a->rows * a->half,
                              a->half,
                              a->ld_inv,
                              a->scale > 0 ? a->scale : 1.0f};
    if (!p.total) return;
    launch(s.device, "angles", angles_kernel, dim3(pieces(p.total, FLAT_THREADS)), FLAT_THREADS, 0, p);
}

__global__ void __launch_bounds__(FLAT_THREADS)
    bias_kernel(const float *bias, float *y, u32 n, size_t ld_y, bool add)
{
    u32 i = blockIdx.x * FLAT_THREADS + threadIdx.x;
    if (i >= n) return;
    float *to = y + blockIdx.y * ld_y + i;
    *to = add ? *to + bias[i] : bias[i];
}

void bias_rows(struct device *d, const float *bias, float *y, u32 rows, u32 n, size_t ld_y, bool add)
{
    launch(d, "bias", bias_kernel, dim3(pieces(n, FLAT_THREADS), rows), FLAT_THREADS, 0, bias, y, n, ld_y,
           add);
}

template <class T>
__global__ void __launch_bounds__(FLAT_THREADS) shorten_kernel(const float *x, size_t ld_x, T *y, u32 n)
{
    u32 i = (blockIdx.x * FLAT_THREADS + threadIdx.x) * 4;
    if (i >= n) return;
    float4 v = *reinterpret_cast<const float4 *>(x + blockIdx.y * ld_x + i);
    const float out[4] = {v.x, v.y, v.z, v.w};
    store4(y + (size_t)blockIdx.y * n + i, out);
}

void shorten_rows(struct device *d, const float *x, size_t ld_x, void *y, enum dtype dtype, u32 rows, u32 n)
{
    by_dtype(dtype, [&](auto zero) {
        typedef decltype(zero) T;
        launch(d, "conversion", shorten_kernel<T>, dim3(pieces(n, FLAT_THREADS * 4), rows), FLAT_THREADS, 0,
               x, ld_x, (T *)y, n);
    });
}

/* A thread has a column of a run. Rows are on their way while those before are added. */
__global__ void __launch_bounds__(POOL_THREADS)
    pooling_kernel(const float *x, size_t ld_x, const struct pooling_run *runs, u32 n)
{
    u32 i = blockIdx.x * POOL_THREADS + threadIdx.x;
    const struct pooling_run run = runs[blockIdx.y];
    if (i >= n) return;
    const float *from = x + run.row * ld_x + i;
    float sum = run.begins ? 0 : run.sum[i];
#pragma unroll 8
    for (u32 r = 0; r < run.n; r++) sum += from[r * ld_x];
    run.sum[i] = sum;
}

static void pooling(const struct pooling_args *a, struct share s)
{
    if (!a->n_runs) return;
    launch(s.device, "sums of rows", pooling_kernel, dim3(pieces(a->n, POOL_THREADS), a->n_runs),
           POOL_THREADS, 0, a->x, a->ld_x, a->runs, a->n);
}

const struct ops *ops_cuda(void)
{
    static const struct ops table = {"cuda", true,  linear, norm,    glu,   cap,   embed,  angles,  rope,
                                     latent, heads, attn,   pooling, route, group, gather, experts, combine};
    return &table;
}
