/* Products of a bank of weights: experts, each with its rows of the sorted tokens, and heads of latent attention, each with a part of
 * every row. How many rows an expert has is known on the device only, so that the grid cannot depend on it: a block takes 64 outputs
 * of one weight and goes through its rows, as many at a time as a tile has; an expert without rows costs a look.
 *
 * bf16 and f16 on the tensor cores: outputs are the rows of the result's tile, 16 to a warp, tokens its columns. Inputs are added in
 * ascending order whatever the tile. While a step of inputs is multiplied, the next one is on its way in registers. */
#include "mma.cuh"
#include "table.h"

enum { BANK_WARPS = 4, BANK_THREADS = BANK_WARPS * WARP, BANK_OUT = 64, BANK_STEP = 64, BANK_PAD = 8 };
enum { PLAIN_ROWS = 16, PLAIN_STEP = 32 };

struct bank_params {
    const u8 *w;
    size_t stride;
    const float *bias;
    size_t bias_stride;
    const void *x;
    float *y;
    const u32 *start; /* NULL: all have the rows [0, rows) */
    u32 rows, n_in, n_out;
    size_t ld_x, ld_y, x_step, y_step; /* steps: from one weight's to the next one's */
};
struct bank_work { /* what a block does */
    const void *w, *x;
    const float *bias;
    float *y;
    u32 first_out, row, end;
};

template <class T, class X> __device__ inline struct bank_work bank_work(const struct bank_params &p)
{
    u32 i = blockIdx.y;
    struct bank_work w;
    w.w = p.w + i * p.stride;
    w.x = (const X *)p.x + i * p.x_step;
    w.y = p.y + i * p.y_step;
    w.bias = p.bias ? p.bias + i * p.bias_stride : nullptr;
    w.first_out = blockIdx.x * BANK_OUT;
    w.row = p.start ? p.start[i] : 0;
    w.end = p.start ? p.start[i + 1] : p.rows;
    return w;
}

/* A tile of ROWS rows and BANK_STEP inputs on its way from memory to shared memory, 16 bytes of T at a time. */
template <class T, int ROWS> struct bank_tile {
    enum { VECTORS = ROWS * BANK_STEP / 8, EACH = (VECTORS + BANK_THREADS - 1) / BANK_THREADS };
    uint4 v[EACH];

    /* Zeros outside of [0, rows) and [0, n_in). */
    template <class X> __device__ void fetch(const X *from, size_t ld, u32 rows, u32 k, u32 n_in)
    {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            u32 at = threadIdx.x + i * BANK_THREADS, r = at / (BANK_STEP / 8),
                c = k + at % (BANK_STEP / 8) * 8;
            v[i] = uint4{0, 0, 0, 0};
            if (r < rows && r < ROWS && c < n_in) v[i] = eight<T>(from + r * ld + c);
        }
    }
    __device__ void put(T (*to)[BANK_STEP + BANK_PAD]) const
    {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            u32 at = threadIdx.x + i * BANK_THREADS;
            if (at < VECTORS)
                *reinterpret_cast<uint4 *>(&to[at / (BANK_STEP / 8)][at % (BANK_STEP / 8) * 8]) = v[i];
        }
    }
};

template <class T, int ROWS> struct bank_shared {
    alignas(16) T w[BANK_OUT][BANK_STEP + BANK_PAD];
    alignas(16) T x[ROWS][BANK_STEP + BANK_PAD];
};

template <int ROWS>
__device__ inline void bank_store(const struct bank_work &w, const struct bank_params &p, u32 row,
                                  const float acc[ROWS / 8][4])
{
    u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u32 o = w.first_out + threadIdx.x / WARP * 16 + lane / 4 + 8 * half;
        float bias = w.bias && o < p.n_out ? w.bias[o] : 0;
#pragma unroll
        for (int j = 0; j < ROWS / 8; j++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                u32 r = row + j * 8 + lane % 4 * 2 + i;
                if (o < p.n_out && r < w.end) w.y[r * p.ld_y + o] = acc[j][2 * half + i] + bias;
            }
    }
}

template <class T, class X, int ROWS>
__global__ void __launch_bounds__(BANK_THREADS) bank_kernel(struct bank_params p)
{
    typedef bank_shared<T, ROWS> shared;
    SHARED(shared, s);
    struct bank_work w = bank_work<T, X>(p);
    const T *weights = (const T *)w.w + (size_t)w.first_out * p.n_in;
    for (u32 row = w.row; row < w.end; row += ROWS) {
        const X *x = (const X *)w.x + row * p.ld_x;
        bank_tile<T, BANK_OUT> next_w;
        bank_tile<T, ROWS> next_x;
        float acc[ROWS / 8][4];
#pragma unroll
        for (int j = 0; j < ROWS / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[j][i] = 0;
        next_w.fetch(weights, p.n_in, p.n_out - w.first_out, 0, p.n_in);
        next_x.fetch(x, p.ld_x, w.end - row, 0, p.n_in);
        for (u32 k = 0; k < p.n_in; k += BANK_STEP) {
            __syncthreads();
            next_w.put(s.w);
            next_x.put(s.x);
            __syncthreads();
            if (k + BANK_STEP < p.n_in) {
                next_w.fetch(weights, p.n_in, p.n_out - w.first_out, k + BANK_STEP, p.n_in);
                next_x.fetch(x, p.ld_x, w.end - row, k + BANK_STEP, p.n_in);
            }
            mma_rows<T, ROWS, BANK_STEP>(s.w + threadIdx.x / WARP * 16, s.x, acc);
        }
        bank_store<ROWS>(w, p, row, acc);
    }
}

/* ---- f32, on the vector units: a thread has one output of half the tile's rows */
struct plain_shared {
    float w[BANK_OUT][PLAIN_STEP + 1], x[PLAIN_ROWS][PLAIN_STEP];
};

/* PLAIN_STEP columns of `tile` rows, zeros where there are none. */
__device__ inline void plain_load(float *to, u32 ld_to, u32 tile, const float *from, size_t ld, u32 rows,
                                  u32 columns)
{
    u32 c = threadIdx.x % PLAIN_STEP;
    for (u32 r = threadIdx.x / PLAIN_STEP; r < tile; r += BANK_THREADS / PLAIN_STEP)
        to[r * ld_to + c] = r < rows && c < columns ? from[r * ld + c] : 0;
}

__global__ void __launch_bounds__(BANK_THREADS, 4) bank_f32_kernel(struct bank_params p)
{
    SHARED(plain_shared, s);
    enum { EACH = PLAIN_ROWS / (BANK_THREADS / BANK_OUT) };
    struct bank_work w = bank_work<float, float>(p);
    u32 out = threadIdx.x % BANK_OUT, first = threadIdx.x / BANK_OUT * EACH, o = w.first_out + out;
    const float *weights = (const float *)w.w + (size_t)w.first_out * p.n_in;
    for (u32 row = w.row; row < w.end; row += PLAIN_ROWS) {
        float acc[EACH] = {0};
        for (u32 k0 = 0; k0 < p.n_in; k0 += PLAIN_STEP) {
            __syncthreads();
            plain_load(&s.w[0][0], PLAIN_STEP + 1, BANK_OUT, weights + k0, p.n_in, p.n_out - w.first_out,
                       p.n_in - k0);
            plain_load(&s.x[0][0], PLAIN_STEP, PLAIN_ROWS, (const float *)w.x + row * p.ld_x + k0, p.ld_x,
                       w.end - row, p.n_in - k0);
            __syncthreads();
#pragma unroll 8
            for (u32 k = 0; k < PLAIN_STEP; k++) {
#pragma unroll
                for (int r = 0; r < EACH; r++) acc[r] += s.w[out][k] * s.x[first + r][k];
            }
        }
        float bias = w.bias && o < p.n_out ? w.bias[o] : 0;
#pragma unroll
        for (int r = 0; r < EACH; r++)
            if (o < p.n_out && row + first + r < w.end) w.y[(row + first + r) * p.ld_y + o] = acc[r] + bias;
    }
}

/* ---- which of them */
enum { FEW_ROWS = 16, MANY_ROWS = 64 };

template <class T, class X>
static void bank_as(const struct bank_params &p, u32 weights, bool many, const char *what, struct device *d)
{
    dim3 grid((p.n_out + BANK_OUT - 1) / BANK_OUT, weights);
    if (many)
        launch(d, what, bank_kernel<T, X, MANY_ROWS>, grid, BANK_THREADS, sizeof(bank_shared<T, MANY_ROWS>),
               p);
    else
        launch(d, what, bank_kernel<T, X, FEW_ROWS>, grid, BANK_THREADS, sizeof(bank_shared<T, FEW_ROWS>), p);
}

static void bank_f32(const struct bank_params &p, u32 weights, const char *what, struct device *d)
{
    dim3 grid((p.n_out + BANK_OUT - 1) / BANK_OUT, weights);
    launch(d, what, bank_f32_kernel, grid, BANK_THREADS, sizeof(plain_shared), p);
}

void experts(const struct experts_args *a, struct share s)
{
    static const char what[] = "products of experts";
    struct bank_params p = {(const u8 *)a->w.data,
                            a->stride,
                            a->bias,
                            a->bias_stride,
                            a->x,
                            a->y,
                            a->start,
                            0,
                            a->w.n_in,
                            a->w.n_out,
                            a->ld_x,
                            a->ld_y,
                            0,
                            0};
    bool many = a->pairs > a->experts * FEW_ROWS; /* on average more than a small tile has */
    BUG_ON(a->x_dtype != a->w.dtype);
    if (!a->pairs) return;
    if (a->w.dtype == DTYPE_F32)
        bank_f32(p, a->experts, what, s.device);
    else if (a->w.dtype == DTYPE_BF16)
        bank_as<bf16, bf16>(p, a->experts, many, what, s.device);
    else
        bank_as<f16, f16>(p, a->experts, many, what, s.device);
}

void heads(const struct heads_args *a, struct share s)
{
    static const char what[] = "products of heads";
    struct bank_params p = {(const u8 *)a->w.data,
                            a->stride,
                            nullptr,
                            0,
                            a->x,
                            a->y,
                            nullptr,
                            a->rows,
                            a->w.n_in,
                            a->w.n_out,
                            a->ld_x,
                            a->ld_y,
                            a->x_step,
                            a->y_step};
    bool many = a->rows > FEW_ROWS;
    if (!a->rows) return;
    if (a->w.dtype == DTYPE_F32)
        bank_f32(p, a->heads, what, s.device);
    else if (a->w.dtype == DTYPE_BF16)
        bank_as<bf16, float>(p, a->heads, many, what, s.device);
    else
        bank_as<f16, float>(p, a->heads, many, what, s.device);
}
