/* What all kernels share: elements, shared memory, sums over a warp and a block, launches. Inside ops/cuda.
 *
 * The sources are plain CUDA C++; tests compile them as C++ against a small emulation (tests/cudasim), so that they keep to a part
 * of the language: cudaLaunchKernelEx instead of <<<>>>, one SHARED structure a kernel, whole warps in shuffles. */
#ifndef MPISERVE_OPS_CUDA_KERNEL_CUH
#define MPISERVE_OPS_CUDA_KERNEL_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The doors are C; their atomics are not looked at from here. */
#define _Atomic
#define _Noreturn
extern "C" {
#include "mpiserve/device.h"
}

typedef __nv_bfloat16 bf16;
typedef __half f16;

#ifdef __CUDACC__
#define SHARED(type, name)                                                                                   \
    extern __shared__ __align__(16) unsigned char shared_memory[];                                           \
    type &name = *reinterpret_cast<type *>(shared_memory)
#else
#define SHARED(type, name) type &name = *reinterpret_cast<type *>(cudasim::shared(sizeof(type)))
#endif

enum { WARP = 32, MAX_HEAD_DIM = 256 };
static const unsigned ALL_LANES = 0xffffffffu;

/* ---- elements */
__device__ inline float to_f32(float x)
{
    return x;
}
__device__ inline float to_f32(bf16 x)
{
    return __bfloat162float(x);
}
__device__ inline float to_f32(f16 x)
{
    return __half2float(x);
}
template <class T> __device__ T from_f32(float x);
template <> __device__ inline float from_f32<float>(float x)
{
    return x;
}
template <> __device__ inline bf16 from_f32<bf16>(float x)
{
    return __float2bfloat16_rn(x);
}
template <> __device__ inline f16 from_f32<f16>(float x)
{
    return __float2half_rn(x);
}

/* 16 bytes, in one access. */
template <class T> union vec16 {
    enum { N = 16 / sizeof(T) };
    uint4 raw;
    T of[N];
};
template <class T> __device__ inline vec16<T> load16(const T *from)
{
    vec16<T> v;
    v.raw = *reinterpret_cast<const uint4 *>(from);
    return v;
}
/* Four numbers, in one access. */
template <class T> __device__ inline void store4(T *to, const float v[4])
{
    struct alignas(4 * sizeof(T)) four {
        T of[4];
    } x;
    for (int i = 0; i < 4; i++) x.of[i] = from_f32<T>(v[i]);
    *reinterpret_cast<four *>(to) = x;
}

/* ---- sums; all threads get the result */
template <class T> __device__ inline T warp_sum(T v)
{
    for (int bits = WARP / 2; bits; bits /= 2) v += __shfl_xor_sync(ALL_LANES, v, bits);
    return v;
}
__device__ inline float warp_max(float v)
{
    for (int bits = WARP / 2; bits; bits /= 2) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, bits));
    return v;
}
/* room: a number a warp, used by nothing else; the block is whole warps. */
template <class T> __device__ inline T block_sum(T v, T *room)
{
    unsigned warps = blockDim.x / WARP;
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = v;
    __syncthreads();
    T sum = room[0];
    for (unsigned i = 1; i < warps; i++) sum += room[i];
    return sum;
}

/* ---- the host's side */
extern "C" {
cudaStream_t device_stream(const struct device *d);
bool device_works(const struct device *d);                                  /* no error yet */
void device_failed(struct device *d, cudaError_t e, const char *operation); /* cudaSuccess is fine */
}
template <class... P, class... A>
void launch(struct device *d, const char *operation, void (*kernel)(P...), dim3 grid, unsigned threads,
            size_t shared, A &&...args)
{
    cudaLaunchConfig_t c;
    memset((void *)&c, 0, sizeof c);
    c.gridDim = grid;
    c.blockDim = dim3(threads);
    c.dynamicSmemBytes = shared;
    c.stream = device_stream(d);
    if (device_works(d)) device_failed(d, cudaLaunchKernelEx(&c, kernel, args...), operation);
}

#endif
