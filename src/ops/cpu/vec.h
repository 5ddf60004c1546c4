/* The vec_*.h of the instruction set that this file is compiled for. */
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "ops/cpu/vec_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "ops/cpu/vec_avx2.h"
#else
#include "ops/cpu/vec_portable.h"
#endif
