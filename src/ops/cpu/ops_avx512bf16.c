#ifdef __x86_64__
#include "ops/cpu/kernels.h"

const struct ops ops_avx512bf16 = {.name = "avx512bf16", .native_bf16 = true, KERNELS};
#endif
