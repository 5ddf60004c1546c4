/* Sums over the members, each element from member 0 to member n - 1, in f32. */
#include "coll/coll_inner.h"

#include <string.h>

enum { WIDE = 16 }; /* numbers at a time */
typedef float vec __attribute__((vector_size(4 * WIDE)));

size_t type_bytes(enum coll_type type)
{
    return type == COLL_F32 ? 4 : 2;
}

/* ---- the narrow types: exact to f32, rounded to nearest even back; NaN stays NaN -------------------------------*/
static float from_bits(u32 bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static u32 to_bits(float f)
{
    u32 bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static float from_bf16(u16 h)
{
    return from_bits((u32)h << 16);
}

static u16 to_bf16(float f)
{
    u32 u = to_bits(f);
    if ((u & 0x7fffffff) > 0x7f800000) return (u16)(u >> 16 | 0x40);
    return (u16)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static float from_f16(u16 h)
{
    u32 sign = (u32)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    if (exponent == 31) return from_bits(sign | 0x7f800000 | mantissa << 13);
    if (exponent) return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float tiny = (float)mantissa * 0x1p-24f;
    return sign ? -tiny : tiny;
}

static u16 to_f16(float f)
{
    u32 u = to_bits(f), sign = u >> 16 & 0x8000, rest = u & 0x7fffffff;
    if (rest > 0x7f800000) return (u16)(sign | 0x7e00);
    if (rest >= 0x477ff000) return (u16)(sign | 0x7c00); /* what rounds to 2^16 and more */
    if (rest < 0x38800000) /* below 2^-14: multiples of 2^-24, which adding 0.5 rounds to */
        return (u16)(sign | (to_bits(from_bits(rest) + 0.5f) - 0x3f000000));
    return (u16)(sign | ((rest + 0xfff + (rest >> 13 & 1)) - (112u << 23)) >> 13);
}

static float load_one(const void *at, size_t i, enum coll_type type)
{
    if (type == COLL_F32) return ((const float *)at)[i];
    u16 h = ((const u16 *)at)[i];
    return type == COLL_BF16 ? from_bf16(h) : from_f16(h);
}

static void store_one(void *at, size_t i, enum coll_type type, float v)
{
    if (type == COLL_F32)
        ((float *)at)[i] = v;
    else
        ((u16 *)at)[i] = type == COLL_BF16 ? to_bf16(v) : to_f16(v);
}

static void sum_ones(const void *const *in, u32 n, void *out, size_t from, size_t count, enum coll_type type,
                     bool add)
{
    for (size_t i = from; i < count; i++) {
        float sum = load_one(in[0], i, type);
        float before = add ? load_one(out, i, type) : 0;
        for (u32 m = 1; m < n; m++) sum += load_one(in[m], i, type);
        store_one(out, i, type, sum);
        if (add) store_one(out, i, type, before + load_one(out, i, type));
    }
}

/* ---- f32, many at a time ---------------------------------------------------------------------------------------*/
static size_t sum_wide(const void *const *in, u32 n, float *out, size_t count, bool add)
{
    size_t i = 0;
    for (; i + WIDE <= count; i += WIDE) {
        vec sum, more;
        memcpy(&sum, (const float *)in[0] + i, sizeof sum);
        for (u32 m = 1; m < n; m++) {
            memcpy(&more, (const float *)in[m] + i, sizeof more);
            sum += more;
        }
        if (add) {
            memcpy(&more, out + i, sizeof more);
            sum = more + sum;
        }
        memcpy(out + i, &sum, sizeof sum);
    }
    return i;
}

void sum_members(const void *const *in, u32 n, void *out, size_t count, enum coll_type type, bool add)
{
    size_t done = type == COLL_F32 ? sum_wide(in, n, out, count, add) : 0;
    sum_ones(in, n, out, done, count, type, add);
}
