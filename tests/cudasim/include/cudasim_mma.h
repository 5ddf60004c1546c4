/* Tensor core and matrix load instructions, with the distribution of elements over lanes that the PTX manual gives for
 * mma.m16n8k16 and ldmatrix. */
#ifndef CUDASIM_MMA_H
#define CUDASIM_MMA_H

#include <cuda_runtime.h>

namespace cudasim
{
/* Lane l = 4 g + t holds of A [16, 16] the pairs (g, 2t) (g + 8, 2t) (g, 2t + 8) (g + 8, 2t + 8), each with the next column;
 * of B [16, 8] the pairs (2t, g) (2t + 8, g), each with the next row; of C and D [16, 8] (g, 2t) (g, 2t + 1) (g + 8, 2t)
 * (g + 8, 2t + 1). */
struct operands {
    unsigned a[4], b[2];
};
template <class T> void mma_16x8x16(float d[4], const unsigned a[4], const unsigned b[2], float (*number)(T))
{
    operands own = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    const uint64_t *all = exchange(0xffffffffu, (uint64_t)(uintptr_t)&own);
    const operands *lanes[32];
    for (int i = 0; i < 32; i++) lanes[i] = (const operands *)(uintptr_t)all[i];
    auto half_of = [&](unsigned pair, unsigned odd) {
        uint16_t bits = (uint16_t)(pair >> 16 * odd);
        T h;
        memcpy(&h, &bits, 2);
        return number(h);
    };
    unsigned g = lane() / 4, t = lane() % 4;
    float result[4];
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = g + 8 * (i / 2), col = 2 * t + i % 2;
        result[i] = d[i];
        for (unsigned k = 0; k < 16; k++)
            result[i] += half_of(lanes[row % 8 * 4 + k % 8 / 2]->a[row / 8 + 2 * (k / 8)], k % 2) *
                         half_of(lanes[col * 4 + k % 8 / 2]->b[k / 8], k % 2);
    }
    exchange(0xffffffffu, 0); /* nobody's operands go before all have read them */
    for (unsigned i = 0; i < 4; i++) d[i] = result[i];
}

/* n matrices [8, 8] of 16 bits: lanes 8 i .. 8 i + 7 give the addresses of matrix i's rows; lane l gets of each the elements
 * 2 (l % 4), 2 (l % 4) + 1 of row l / 4, or of column l / 4 with `transpose`. */
inline void ldmatrix(unsigned *to, int n, const void *row, bool transpose)
{
    if ((uintptr_t)row % 16) abort();
    const uint64_t *all = exchange(0xffffffffu, (uint64_t)(uintptr_t)row);
    unsigned l = lane(), got[4] = {0, 0, 0, 0};
    for (int i = 0; i < n; i++)
        for (unsigned odd = 0; odd < 2; odd++) {
            unsigned r = transpose ? 2 * (l % 4) + odd : l / 4, c = transpose ? l / 4 : 2 * (l % 4) + odd;
            got[i] |= (unsigned)((const uint16_t *)(uintptr_t)all[8 * i + (int)r])[c] << 16 * odd;
        }
    exchange(0xffffffffu, 0);
    for (int i = 0; i < n; i++) to[i] = got[i];
}
} // namespace cudasim

#endif
