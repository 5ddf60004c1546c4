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
    const unsigned *a, *b;
    float *d;
};
template <class T, float (*NUMBER)(T)> float half_of(unsigned pair, unsigned odd)
{
    uint16_t bits = (uint16_t)(pair >> 16 * odd);
    T h;
    memcpy(&h, &bits, 2);
    return NUMBER(h);
}
inline const operands &operands_of(uint64_t value)
{
    return *(const operands *)(uintptr_t)value;
}
/* The whole warp's. */
template <class T, float (*NUMBER)(T)> void multiply(const uint64_t *all)
{
    float a[16][16], b[16][8], d[16][8];
    for (unsigned l = 0; l < 32; l++) {
        const operands &own = operands_of(all[l]);
        unsigned g = l / 4, t = l % 4;
        for (unsigned i = 0; i < 8; i++)
            a[g + 8 * (i / 2 % 2)][2 * t + 8 * (i / 4) + i % 2] = half_of<T, NUMBER>(own.a[i / 2], i % 2);
        for (unsigned i = 0; i < 4; i++)
            b[2 * t + 8 * (i / 2) + i % 2][g] = half_of<T, NUMBER>(own.b[i / 2], i % 2);
        for (unsigned i = 0; i < 4; i++) d[g + 8 * (i / 2)][2 * t + i % 2] = own.d[i];
    }
    for (unsigned row = 0; row < 16; row++)
        for (unsigned k = 0; k < 16; k++)
            for (unsigned col = 0; col < 8; col++) d[row][col] += a[row][k] * b[k][col];
    for (unsigned l = 0; l < 32; l++)
        for (unsigned i = 0; i < 4; i++)
            operands_of(all[l]).d[i] = d[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
}
template <class T, float (*NUMBER)(T)> void mma_16x8x16(float d[4], const unsigned a[4], const unsigned b[2])
{
    operands own = {a, b, d};
    exchange(0xffffffffu, (uint64_t)(uintptr_t)&own, multiply<T, NUMBER>);
}

/* N matrices [8, 8] of 16 bits: lanes 8 i .. 8 i + 7 give the addresses of matrix i's rows; lane l gets of each the elements
 * 2 (l % 4), 2 (l % 4) + 1 of row l / 4, or of column l / 4 with TRANSPOSE. */
struct wanted {
    unsigned *to;
    const uint16_t *row;
};
inline const wanted &wanted_of(uint64_t value)
{
    return *(const wanted *)(uintptr_t)value;
}
template <int N, bool TRANSPOSE> void load(const uint64_t *all)
{
    for (unsigned i = 0; i < N; i++) {
        const uint16_t *rows[8];
        for (unsigned r = 0; r < 8; r++) rows[r] = wanted_of(all[8 * i + r]).row;
        for (unsigned l = 0; l < 32; l++) {
            unsigned near = l / 4, pair = 2 * (l % 4);
            wanted_of(all[l]).to[i] = TRANSPOSE ? rows[pair][near] | (unsigned)rows[pair + 1][near] << 16
                                                : rows[near][pair] | (unsigned)rows[near][pair + 1] << 16;
        }
    }
}
template <int N, bool TRANSPOSE> void ldmatrix(unsigned *to, const void *row)
{
    if ((uintptr_t)row % 16) abort();
    wanted own = {to, (const uint16_t *)row};
    exchange(0xffffffffu, (uint64_t)(uintptr_t)&own, load<N, TRANSPOSE>);
}
} // namespace cudasim

#endif
