#include "engine/logits.h"
#include <math.h>
#include <string.h>

enum { WIDE = 4 };
typedef float vec __attribute__((vector_size(4 * WIDE)));
typedef u32 bits __attribute__((vector_size(4 * WIDE)));

static inline vec load(const float *x)
{
    vec v;
    memcpy(&v, x, sizeof v);
    return v;
}

static inline void store(float *x, vec v)
{
    memcpy(x, &v, sizeof v);
}

static inline vec all(float x)
{
    return (vec){x, x, x, x};
}

static inline vec pick(bits mask, vec yes, vec no)
{
    return (vec)((mask & (bits)yes) | (~mask & (bits)no));
}

static inline float sum_of(vec v)
{
    return (v[0] + v[1]) + (v[2] + v[3]);
}

/* The last block may be shorter: it is copied behind a filler. */
static inline const float *whole_block(const float *x, u32 left, float filler, float *copy)
{
    if (left >= LOGIT_BLOCK) return x;
    for (u32 i = 0; i < LOGIT_BLOCK; i++) copy[i] = i < left ? x[i] : filler;
    return copy;
}

/* ---- scan ----------------------------------------------------------------------------------------------------*/
static inline float block_scan(const float *x, bits *nan)
{
    vec a = load(x), b = load(x + WIDE);
    *nan |= (bits)(a != a) | (bits)(b != b);
    for (u32 i = 2 * WIDE; i < LOGIT_BLOCK; i += 2 * WIDE) {
        vec c = load(x + i), d = load(x + i + WIDE);
        *nan |= (bits)(c != c) | (bits)(d != d);
        a = pick((bits)(c > a), c, a);
        b = pick((bits)(d > b), d, b);
    }
    a = pick((bits)(b > a), b, a);
    return fmaxf(fmaxf(a[0], a[1]), fmaxf(a[2], a[3]));
}

bool logits_scan(const float *x, u32 n, float *block_max, float *max)
{
    float copy[LOGIT_BLOCK], best = -INFINITY;
    bits nan = {0};
    for (u32 i = 0; i < n; i += LOGIT_BLOCK) {
        float m = block_scan(whole_block(x + i, n - i, -INFINITY, copy), &nan);
        block_max[i / LOGIT_BLOCK] = m;
        if (m > best) best = m;
    }
    *max = best;
    return !(nan[0] | nan[1] | nan[2] | nan[3]) && isfinite(best);
}

u32 logits_first(const float *x, u32 n, const float *block_max, float max)
{
    u32 b = 0;
    while (b + 1 < logit_blocks(n) && block_max[b] != max) b++;
    for (u32 i = b * LOGIT_BLOCK; i < n; i++)
        if (x[i] == max) return i;
    BUG("a maximum that is nowhere");
}

/* ---- exponentials --------------------------------------------------------------------------------------------*/
/* exp of x <= 0: 2^n * exp(r), |r| <= ln 2 / 2, and the series of exp(r); within 2 units in the last place. What
 * would not be a normal number is 0. */
static inline vec exp_of(vec x)
{
    const float round = 0x1.8p23f, ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
    vec shifted = x * 0x1.715476p0f + round;
    bits n = (bits)shifted - (bits)all(round);
    vec whole = shifted - round;
    vec r = (x - whole * ln2_high) - whole * ln2_low;
    vec p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    vec e = p * (vec)((n + 127) << 23);
    return (vec)((bits)e & (bits)(x > all(-87.0f)));
}

float logits_exp_one(float x)
{
    return exp_of(all(x))[0];
}

double logits_sum_exp(const float *x, u32 n, float max)
{
    float copy[LOGIT_BLOCK];
    double total = 0;
    for (u32 i = 0; i < n; i += LOGIT_BLOCK) {
        const float *from = whole_block(x + i, n - i, -INFINITY, copy);
        vec sum = {0};
        for (u32 j = 0; j < LOGIT_BLOCK; j += WIDE) sum += exp_of(load(from + j) - max);
        total += (double)sum_of(sum);
    }
    return total;
}

double logits_exp(const float *x, u32 n, float max, float scale, float floor, float *e, float *block_sum)
{
    float copy[LOGIT_BLOCK];
    double total = 0;
    for (u32 i = 0; i < n; i += LOGIT_BLOCK) {
        const float *from = whole_block(x + i, n - i, -INFINITY, copy);
        vec sum = {0};
        for (u32 j = 0; j < LOGIT_BLOCK; j += WIDE) {
            vec v = exp_of((load(from + j) - max) * scale);
            v = (vec)((bits)v & (bits)(v >= all(floor)));
            store(e + i + j, v);
            sum += v;
        }
        block_sum[i / LOGIT_BLOCK] = sum_of(sum);
        total += (double)sum_of(sum);
    }
    return total;
}

double logits_floor(float *e, u32 n, float floor, float *block_sum)
{
    double total = 0;
    for (u32 i = 0; i < n; i += LOGIT_BLOCK) {
        vec sum = {0};
        for (u32 j = i; j < i + LOGIT_BLOCK; j += WIDE) {
            vec v = load(e + j);
            v = (vec)((bits)v & (bits)(v >= all(floor)));
            store(e + j, v);
            sum += v;
        }
        block_sum[i / LOGIT_BLOCK] = sum_of(sum);
        total += (double)sum_of(sum);
    }
    return total;
}

u32 logits_rank(const float *x, u32 n, u32 id)
{
    const vec own = all(x[id]);
    bits better = {0};
    u32 i = 0, rank = 1;
    for (; i + WIDE <= n; i += WIDE) better -= (bits)(load(x + i) > own);
    for (; i < n; i++) rank += x[i] > x[id];
    for (i = 0; i < id; i++) rank += x[i] == x[id];
    return rank + better[0] + better[1] + better[2] + better[3];
}

/* ---- selection -----------------------------------------------------------------------------------------------*/
static void sift(u64 *keys, u32 n, u32 at)
{
    u64 key = keys[at];
    for (u32 child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && keys[child + 1] > keys[child]) child++;
        if (keys[child] <= key) break;
        keys[at] = keys[child];
    }
    keys[at] = key;
}

void keys_heap(u64 *keys, u32 n)
{
    for (u32 i = n / 2; i > 0; i--) sift(keys, n, i - 1);
}

u64 keys_pop(u64 *keys, u32 *n)
{
    u64 top = keys[0];
    keys[0] = keys[--*n];
    if (*n) sift(keys, *n, 0);
    return top;
}

/* A block whose maximum is below the k-th largest block maximum holds none of the k best. */
static float bound_of(const float *block_max, u32 blocks, u32 k, u64 *spare)
{
    if (k > blocks) return -INFINITY;
    for (u32 b = 0; b < blocks; b++) spare[b] = key_of(block_max[b], b);
    u32 n = blocks, at = 0;
    keys_heap(spare, n);
    for (; k; k--) at = key_id(keys_pop(spare, &n));
    return block_max[at];
}

u32 logits_best(const float *x, u32 n, const float *block_max, u32 k, bool ties, u64 *keys, u64 *spare)
{
    u32 blocks = logit_blocks(n), found = 0;
    float bound = bound_of(block_max, blocks, k, spare);
    for (u32 b = 0; b < blocks; b++) {
        if (block_max[b] < bound) continue;
        for (u32 i = b * LOGIT_BLOCK; i < MIN_OF(n, (b + 1) * LOGIT_BLOCK); i++)
            if (x[i] >= bound && x[i] > -INFINITY) keys[found++] = key_of(x[i], i);
    }
    /* popped keys gather at the end of the memory, the best last */
    u32 left = found, taken = 0;
    u64 last = 0;
    keys_heap(keys, found);
    while (left && (taken < k || (ties && key_same_logit(keys[0], last)))) {
        last = keys_pop(keys, &left);
        keys[left] = last;
        taken++;
    }
    for (u32 i = 0, j = found - 1; i < j && i < taken; i++, j--) {
        u64 swap = keys[i];
        keys[i] = keys[j];
        keys[j] = swap;
    }
    return taken;
}
