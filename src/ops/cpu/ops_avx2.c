#ifdef __x86_64__
#include "ops/cpu/kernels.h"

const struct ops ops_avx2 = {.name = "avx2", KERNELS};
#endif
