/* bfloat16 as in CUDA's cuda_bf16.h: conversions round to nearest even. */
#ifndef CUDASIM_CUDA_BF16_H
#define CUDASIM_CUDA_BF16_H

#include <cuda_runtime.h>

struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 h)
{
    return __uint_as_float((unsigned)h.bits << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float f)
{
    unsigned u = __float_as_uint(f);
    if ((u & 0x7fffffff) > 0x7f800000) return {(uint16_t)(u >> 16 | 0x40)};
    return {(uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}

#endif
