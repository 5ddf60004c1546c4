#ifdef __x86_64__
#include "ops/cpu/kernels.h"

const struct ops ops_avx512 = {.name = "avx512", KERNELS};
#endif
