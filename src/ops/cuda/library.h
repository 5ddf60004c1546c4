/* Functions of libraries by name. Inside ops/cuda. */
#ifndef MPISERVE_OPS_CUDA_LIBRARY_H
#define MPISERVE_OPS_CUDA_LIBRARY_H

/* NULL: there is no such library, or nothing of that name in it. Libraries stay open. */
extern "C" void *library_symbol(const char *library, const char *name);

#endif
