/* Sums of what several devices have computed, and marks that tell the host how far the stream is. */
#include "table.h"

enum { SUM_THREADS = 256 };

struct sum_params {
    const float *parts;
    size_t ld, count;
    float *out;
    volatile u64 *mark_at;
    u64 mark;
    u32 n;
    bool add;
};

__global__ void __launch_bounds__(SUM_THREADS) sum_kernel(struct sum_params p)
{
    size_t i = 4 * ((size_t)blockIdx.x * SUM_THREADS + threadIdx.x);
    if (p.mark && i == 0) *p.mark_at = p.mark;
    if (i >= p.count) return;
    float4 sum = *reinterpret_cast<const float4 *>(p.parts + i);
    for (u32 m = 1; m < p.n; m++) {
        float4 v = *reinterpret_cast<const float4 *>(p.parts + m * p.ld + i);
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    float4 *to = reinterpret_cast<float4 *>(p.out + i);
    if (p.add) {
        float4 v = *to;
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    *to = sum;
}

void device_sum(struct device *d, const struct sum_args *a)
{
    struct sum_params p = {a->parts, a->ld, a->count, a->out, device_mark_place(d), a->mark, a->n, a->add};
    size_t blocks = (a->count / 4 + SUM_THREADS - 1) / SUM_THREADS;
    BUG_ON(a->count % 4 || a->ld % 4 || (a->mark && !p.mark_at));
    if (blocks) launch(d, "sum", sum_kernel, dim3((u32)blocks), SUM_THREADS, 0, p);
}

__global__ void mark_kernel(volatile u64 *at, u64 number)
{
    if (threadIdx.x == 0) *at = number;
}

void device_mark(struct device *d, u64 number)
{
    launch(d, "mark", mark_kernel, dim3(1), WARP, 0, device_mark_place(d), number);
}
