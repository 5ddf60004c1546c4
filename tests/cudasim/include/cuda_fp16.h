/* Half precision as in CUDA's cuda_fp16.h: conversions round to nearest even. */
#ifndef CUDASIM_CUDA_FP16_H
#define CUDASIM_CUDA_FP16_H

#include <cuda_runtime.h>

struct __half {
    uint16_t bits;
};
float __half2float(__half h);
__half __float2half_rn(float f);

#endif
