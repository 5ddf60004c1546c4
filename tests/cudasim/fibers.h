/* The threads of a block, as fibers on one CPU thread. Inside cudasim. */
#ifndef CUDASIM_FIBERS_H
#define CUDASIM_FIBERS_H

#include <cuda_runtime.h>

namespace cudasim
{
/* Runs a grid: block after block, every thread of a block on a stack of its own. */
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()> &thread);
} // namespace cudasim

#endif
