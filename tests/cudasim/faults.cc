/* Kernels with one fault each, and the same without: what test_cudasim runs to see whether the emulation finds it. */
#include "faults.h"

#include <cuda_runtime.h>

namespace
{
enum { N = FAULT_THREADS };
struct memory {
    float value[N];
    float last;
};

/* Every thread reads its neighbour's number. */
template <bool BARRIER> void neighbour(const float *from, float *to)
{
    memory &s = *(memory *)cudasim::shared(sizeof(memory));
    s.value[threadIdx.x] = from[threadIdx.x];
    if (BARRIER) __syncthreads();
    to[threadIdx.x] = s.value[(threadIdx.x + 1) % N];
}

/* The same twice in the same memory: without the second barrier some read what the next round has written already. */
template <bool BARRIER> void rounds(const float *from, float *to)
{
    memory &s = *(memory *)cudasim::shared(sizeof(memory));
    float sum = 0;
    for (unsigned round = 0; round < 3; round++) {
        s.value[threadIdx.x] = from[threadIdx.x] + (float)round;
        __syncthreads();
        sum += s.value[(threadIdx.x + 1) % N];
        if (BARRIER) __syncthreads();
    }
    to[threadIdx.x] = sum;
}

/* Adds by plain loads and stores around a shuffle: a race between warps that only the order of threads shows. */
void lost_update(const float *from, float *to)
{
    memory &s = *(memory *)cudasim::shared(sizeof(memory));
    if (threadIdx.x == 0) s.last = 0;
    __syncthreads();
    if (threadIdx.x == N - 1) s.last = from[0];
    if (threadIdx.x == 0) s.last += 1;
    __syncthreads();
    to[threadIdx.x] = s.last;
}

void half_barrier(const float *, float *)
{
    if (threadIdx.x < N / 2) __syncthreads();
}

void half_warp(const float *, float *to)
{
    if (threadIdx.x % 32 < 16) to[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}

void beyond_shared(const float *, float *to)
{
    memory &s = *(memory *)cudasim::shared(sizeof(memory));
    float *value = s.value;
    value[N + 1 + threadIdx.x] = 1;
    to[threadIdx.x] = value[N + 1 + threadIdx.x];
}

void beyond_global(const float *from, float *to)
{
    to[threadIdx.x] = from[threadIdx.x + 1];
}

void warp_sum(const float *from, float *to)
{
    float v = from[threadIdx.x];
    for (int bits = 16; bits; bits /= 2) v += __shfl_xor_sync(0xffffffffu, v, bits);
    unsigned votes = __ballot_sync(0xffffffffu, from[threadIdx.x] > 3);
    to[threadIdx.x] = v + (float)__popc(votes);
}

void (*const kernels[])(const float *, float *) = {
    neighbour<true>, neighbour<false>, rounds<true>,  rounds<false>, lost_update,
    half_barrier,    half_warp,        beyond_shared, beyond_global, warp_sum,
};
} // namespace

static int run_on(cudaStream_t stream, enum fault_kernel which, const float *from, float *to)
{
    void *in = nullptr, *out = nullptr;
    size_t bytes = N * sizeof(float);
    int rc = cudaMalloc(&in, bytes);
    if (!rc) rc = cudaMalloc(&out, bytes);
    cudaLaunchConfig_t c = {dim3(2), dim3(N), sizeof(memory), stream, nullptr, 0};
    if (!rc) rc = cudaMemcpyAsync(in, from, bytes, cudaMemcpyHostToDevice, stream);
    if (!rc) rc = cudaLaunchKernelEx(&c, kernels[which], (const float *)in, (float *)out);
    if (!rc) rc = cudaMemcpyAsync(to, out, bytes, cudaMemcpyDeviceToHost, stream);
    if (!rc) rc = cudaStreamSynchronize(stream);
    cudaFree(in);
    cudaFree(out);
    return rc;
}

int fault_run(enum fault_kernel which, const float *from, float *to)
{
    cudaStream_t stream;
    int rc = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (rc) return rc;
    rc = run_on(stream, which, from, to);
    cudaStreamDestroy(stream);
    return rc;
}

int fault_host_race(float *out)
{
    cudaStream_t stream;
    void *at;
    float staged = 1;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    cudaMalloc(&at, sizeof staged);
    cudaMemcpyAsync(at, &staged, sizeof staged, cudaMemcpyHostToDevice, stream);
    staged = 2; /* before anybody waited */
    cudaMemcpyAsync(out, at, sizeof staged, cudaMemcpyDeviceToHost, stream);
    int rc = cudaStreamSynchronize(stream);
    cudaFree(at);
    cudaStreamDestroy(stream);
    return rc;
}
