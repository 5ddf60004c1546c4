/* cudasim: runs CUDA kernels on a CPU, for tests. The kernels' sources are compiled as C++ against include/, which has the
 * part of CUDA that they use; blocks run one after the other, the threads of a block as fibers that are switched at barriers,
 * shuffles and votes only. A warp runs until all its threads wait for other warps: as far ahead of them as it may be.
 *
 * What it finds: results that depend on the order of threads (cudasim_order), a barrier that not all threads reach
 * (abort with the block and the counts), shared or device memory used before it is written (both begin as NaN), accesses
 * out of bounds (address sanitizer: every allocation and a block's shared memory are of the exact size), and a host that does
 * not wait: work on a stream is done when somebody waits for the stream, and no earlier.
 * What it does not know: time, registers, caches, alignment of vector accesses, memory order between blocks.
 * Thread rule: kernels, and waiting for them, are one thread's; memory and copies on streams of their own any thread's. */
#ifndef MPISERVE_TESTS_CUDASIM_H
#define MPISERVE_TESTS_CUDASIM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* 1. The same tests link with a real device in tests/gpu, where this is 0, and the functions below do nothing. */
int cudasim_here(void);
/* 0: warps, and threads within them, run in ascending order (and so they begin); else a start for orders of blocks, warps and
 * threads that change at every barrier. */
void cudasim_order(uint64_t seed);
/* The n-th next call of the runtime (1: the next) fails with a code of cudaError_t, as do all behind it; 0: none does. */
void cudasim_fail(uint64_t n, int error);
/* Bytes of device and pinned memory that are not freed. */
size_t cudasim_allocated(void);
/* A kernel whose barrier not all threads reach ends here (default: a message and abort()). */
void cudasim_on_deadlock(void (*what)(const char *message));

/* NCCL, between processes. The n-th next call (1: the next; asking for errors counts) gives this result, as do all behind it; 0: none
 * does. */
void cudasim_nccl_fail(uint64_t n, int result);
void cudasim_nccl_version(int version);
void cudasim_nccl_without(const char *function); /* a library that lacks it; NULL: a whole one */
void cudasim_nccl_never_connects(void);          /* this process does not come to new communicators */

#ifdef __cplusplus
}
#endif
#endif
