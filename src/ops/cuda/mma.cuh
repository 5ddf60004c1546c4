/* The tensor cores' product and the loads that go with it: mma.m16n8k16 and ldmatrix of PTX (sm_80 and later). Inside ops/cuda. */
#ifndef MPISERVE_OPS_CUDA_MMA_CUH
#define MPISERVE_OPS_CUDA_MMA_CUH

#include "kernel.cuh"

#ifdef __CUDACC__
__device__ inline void mma(float d[4], const unsigned a[4], const unsigned b[2], bf16)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void mma(float d[4], const unsigned a[4], const unsigned b[2], f16)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* Four matrices [8, 8]; lanes 8 i .. 8 i + 7 give the addresses of matrix i's rows, in shared memory. */
__device__ inline void load_matrices(unsigned to[4], const void *row)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
}
__device__ inline void load_matrices_transposed(unsigned to[4], const void *row)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
}
#else
#include <cudasim_mma.h>
inline void mma(float d[4], const unsigned a[4], const unsigned b[2], bf16)
{
    cudasim::mma_16x8x16<bf16, to_f32>(d, a, b);
}
inline void mma(float d[4], const unsigned a[4], const unsigned b[2], f16)
{
    cudasim::mma_16x8x16<f16, to_f32>(d, a, b);
}
inline void load_matrices(unsigned to[4], const void *row)
{
    cudasim::ldmatrix<4, false>(to, row);
}
inline void load_matrices_transposed(unsigned to[4], const void *row)
{
    cudasim::ldmatrix<4, true>(to, row);
}
#endif

template <class T> __device__ inline unsigned pair_of(float low, float high)
{
    T two[2] = {from_f32<T>(low), from_f32<T>(high)};
    unsigned bits;
    memcpy(&bits, two, sizeof bits);
    return bits;
}

/* Eight numbers as T. */
template <class T> __device__ inline uint4 eight(const T *from)
{
    return load16(from).raw;
}
template <class T> __device__ inline uint4 eight(const float *from)
{
    vec16<float> a = load16(from), b = load16(from + 4);
    uint4 v = {pair_of<T>(a.of[0], a.of[1]), pair_of<T>(a.of[2], a.of[3]), pair_of<T>(b.of[0], b.of[1]),
               pair_of<T>(b.of[2], b.of[3])};
    return v;
}

/* d [16, 8] += a b^T over 32 inputs, without shared memory between: lane 4 g + t has eight inputs behind each other, from 8 t on, of rows g
 * and g + 8 of a, and of row g of b. Two products of 16 inputs, whose order is another one, and the same in a and b. */
template <class T> __device__ inline void mma_32(float d[4], uint4 a, uint4 a8, uint4 b)
{
    const unsigned left[2][4] = {{a.x, a8.x, a.y, a8.y}, {a.z, a8.z, a.w, a8.w}},
                   right[2][2] = {{b.x, b.y}, {b.z, b.w}};
    mma(d, left[0], right[0], T());
    mma(d, left[1], right[1], T());
}

/* d [16, COLUMNS] += a b^T over K inputs, in ascending order: 16 rows of a, COLUMNS rows of b, in shared memory, as the warp's lanes hold
 * them. */
template <class T, int COLUMNS, int K, int LD_A, int LD_B>
__device__ inline void mma_rows(const T (*a)[LD_A], const T (*b)[LD_B], float d[COLUMNS / 8][4])
{
    unsigned lane = threadIdx.x % WARP;
#pragma unroll
    for (int k = 0; k < K; k += 16) {
        unsigned left[4], right[4];
        load_matrices(left, &a[lane % 16][k + lane / 16 * 8]);
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j += 2) {
            load_matrices(right, &b[j * 8 + lane % 8 + lane / 16 * 8][k + lane / 8 % 2 * 8]);
            mma(d[j], left, right, T());
            mma(d[j + 1], left, right + 2, T());
        }
    }
}

#endif
