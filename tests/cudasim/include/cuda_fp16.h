/* Half precision as in CUDA's cuda_fp16.h: conversions round to nearest even. */
#ifndef CUDASIM_CUDA_FP16_H
#define CUDASIM_CUDA_FP16_H

#include <cuda_runtime.h>

struct __half {
    uint16_t bits;
};
inline float __half2float(__half h)
{
    unsigned sign = (unsigned)(h.bits & 0x8000) << 16, exponent = h.bits >> 10 & 31,
             mantissa = h.bits & 0x3ff;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000 | mantissa << 13);
    if (exponent) return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
    float tiny = (float)mantissa * 0x1p-24f;
    return sign ? -tiny : tiny;
}

inline __half __float2half_rn(float f)
{
    unsigned u = __float_as_uint(f), sign = u >> 16 & 0x8000;
    float a = fabsf(f);
    if (a != a) return {(uint16_t)(sign | 0x7fff)};
    if (a >= 65520) return {(uint16_t)(sign | 0x7c00)};
    if (a < 0x1p-14f) return {(uint16_t)(sign | (unsigned)nearbyintf(a * 0x1p24f))};
    u = (u & 0x7fffffff) - (112u << 23);
    return {(uint16_t)(sign | (u + 0xfff + (u >> 13 & 1)) >> 13)};
}

#endif
