#include "ops/cpu/kernels.h"

const struct ops ops_portable = {.name = "portable", KERNELS};
