/* Philox 4x32-10, a counter-based generator: ten rounds of two 32x32-bit products. */
#include "mpiserve/base.h"

#include <errno.h>
#include <sys/random.h>

enum { PHILOX_ROUNDS = 10 };
static const u32 philox_m0 = 0xD2511F53, philox_m1 = 0xCD9E8D57;
static const u32 philox_w0 = 0x9E3779B9, philox_w1 = 0xBB67AE85;

void rng_block(u64 key, u64 counter_lo, u64 counter_hi, u32 out[4])
{
    u32 k0 = (u32)key, k1 = (u32)(key >> 32);
    u32 c0 = (u32)counter_lo, c1 = (u32)(counter_lo >> 32);
    u32 c2 = (u32)counter_hi, c3 = (u32)(counter_hi >> 32);
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        u64 p0 = (u64)philox_m0 * c0, p1 = (u64)philox_m1 * c2;
        u32 n0 = (u32)(p1 >> 32) ^ c1 ^ k0, n2 = (u32)(p0 >> 32) ^ c3 ^ k1;
        c1 = (u32)p1;
        c3 = (u32)p0;
        c0 = n0;
        c2 = n2;
        k0 += philox_w0;
        k1 += philox_w1;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* An odd multiple of 2^-24 is exact in a float; a 24th random bit would round the largest value to 1. */
float rng_unit(u32 bits)
{
    return (float)(bits >> 8 | 1) * 0x1p-24f;
}

u64 random_u64(void)
{
    static _Thread_local u64 fetched[64];
    static _Thread_local u32 left;
    if (!left && random_bytes(fetched, sizeof(fetched), NULL) == 0) left = COUNT_OF(fetched);
    if (!left) return clock_ns();
    return fetched[--left];
}

int random_bytes(void *out, size_t len, struct error *err)
{
    u8 *at = out;
    while (len) {
        ssize_t n = getrandom(at, len, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return error_errno(err, "", "the kernel gave no random bytes");
        at += n;
        len -= (size_t)n;
    }
    return 0;
}
