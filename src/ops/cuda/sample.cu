/* From logits to tokens: a block to a row, over as many rows as there are. The rules are engine/sampler.c's, and so are the numbers:
 * see logits.cuh. Sorting is avoided: what top_k and top_p cut off is found by searching for the key (logit and id) at the cut, a pass
 * over the row for each bit; only the few that top_k leaves are sorted. */
#include "logits.cuh"

enum { SAMPLE_SLOTS = 128 }; /* rows at a time, each with scratch memory */

struct sample_params {
    struct sample_args a;
    u32 stride; /* of a slot's scratch: changed logits, exponentials, sums of 64 */
};
struct view { /* a row in work */
    const float *x;
    float max, *e, *sums;
    u32 n;
};

/* ---- changes to the logits, in the API's order */
__device__ static void apply_penalties(const struct sample_row &r, const u32 *counts, float *x)
{
    for (u32 i = threadIdx.x; i < r.counts.n / 2; i += SAMPLE_THREADS) {
        float v = x[counts[2 * i]];
        u32 times = counts[2 * i + 1];
        v = v > 0 ? __fdiv_rn(v, r.repetition) : __fmul_rn(v, r.repetition);
        v = __fsub_rn(v, __fmul_rn(r.frequency, (float)times));
        if (times) v = __fsub_rn(v, r.presence);
        x[counts[2 * i]] = v;
    }
}

__device__ static void forbid(const u32 *ids, struct sample_list list, float *x)
{
    for (u32 i = threadIdx.x; i < list.n; i += SAMPLE_THREADS) x[ids[list.at + i]] = -INFINITY;
    __syncthreads();
}

__device__ static void apply_changes(const struct sample_row &r, const u32 *lists, const float *from,
                                     float *x, u32 n)
{
    for (u32 i = threadIdx.x; i < n; i += SAMPLE_THREADS) x[i] = r.allowed.n ? -INFINITY : from[i];
    __syncthreads();
    for (u32 i = threadIdx.x; i < r.allowed.n; i += SAMPLE_THREADS) {
        u32 id = lists[r.allowed.at + i];
        x[id] = from[id];
    }
    __syncthreads();
    if (threadIdx.x == 0) /* few, and an id may come twice */
        for (u32 i = 0; i < r.bias.n; i += 2) {
            float *to = &x[lists[r.bias.at + i]];
            *to = __fadd_rn(*to, __uint_as_float(lists[r.bias.at + i + 1]));
        }
    __syncthreads();
    forbid(lists, r.ends, x);
    apply_penalties(r, lists + r.counts.at, x);
    __syncthreads();
    forbid(lists, r.bad, x);
}

/* ---- draws */
/* e[i] = exp of the scaled logit, 0 where that is below min_p or the key below least; their sum. */
__device__ static double exponentials(const struct view &v, const struct sample_row &r, u64 least,
                                      struct logits_shared &s)
{
    return row_sums(v.n, s, v.sums, [&](u32 i) {
        float e = exp_of(__fmul_rn(__fsub_rn(v.x[i], v.max), r.scale));
        return v.e[i] = e >= r.min_p && key_of(v.x[i], i) >= least ? e : 0.0f;
    });
}

/* The least key that top_p leaves: what is below it has a mass of limit at most. The best always stays. */
__device__ static u64 cut_top_p(const struct view &v, double limit, struct logits_shared &s)
{
    u64 best = row_best(v.x, v.n, s, [](u64) { return true; });
    u64 key = key_search(v.x, v.n, s, -INFINITY, v.max, [&](u64 k) {
        return row_mass(v.n, s, [&](u32 i) { return key_of(v.x[i], i) < k ? (double)v.e[i] : 0; }) <= limit;
    });
    return key < best ? key : best;
}

/* The token at `target` when all with e > 0 stand in order of ids. By thread 0, over sums of sums first. */
__device__ static i32 find_in_order(const struct view &v, double target, struct logits_shared &s)
{
    u32 blocks = (v.n + LOGIT_BLOCK - 1) / LOGIT_BLOCK, per = (blocks + SAMPLE_THREADS - 1) / SAMPLE_THREADS;
    double own = 0;
    for (u32 b = threadIdx.x * per; b < (threadIdx.x + 1) * per && b < blocks; b++) own += v.sums[b];
    __syncthreads();
    s.sums[threadIdx.x] = own;
    __syncthreads();
    if (threadIdx.x == 0) {
        double sum = 0;
        u32 part = 0, block = 0;
        for (u32 t = 0; t < SAMPLE_THREADS; t++) {
            if (s.sums[t] == 0) continue;
            part = t;
            if (sum + s.sums[t] > target) break;
            sum += s.sums[t];
        }
        for (u32 b = part * per; b < (part + 1) * per && b < blocks; b++) {
            if (v.sums[b] == 0) continue;
            block = b;
            if (sum + v.sums[b] > target) break;
            sum += v.sums[b];
        }
        for (u32 i = block * LOGIT_BLOCK; i < (block + 1) * LOGIT_BLOCK && i < v.n; i++) {
            if (v.e[i] == 0) continue;
            s.token = (i32)i;
            sum += v.e[i];
            if (sum > target) break;
        }
    }
    __syncthreads();
    return s.token;
}

__device__ static i32 draw_all(const struct view &v, const struct sample_row &r, struct logits_shared &s)
{
    double total = exponentials(v, r, 0, s);
    if (r.drop > 0) total = exponentials(v, r, cut_top_p(v, r.drop * total, s), s);
    return find_in_order(v, r.draw * total, s);
}

/* Logits of the top_k best and of all that are equal to the last of them: their order is this or larger. */
__device__ static u32 kth_order(const struct view &v, u32 k, struct logits_shared &s)
{
    u32 from = order_of(-INFINITY) + 1, to = order_of(v.max);
    while (from < to) {
        u32 middle = to - (to - from) / 2;
        if (row_count(v.n, s, [&](u32 i) { return order_of(v.x[i]) >= middle; }) >= k)
            from = middle;
        else
            to = middle - 1;
    }
    return from;
}

/* The keys of that order or larger, the best first, in s.keys. n of them. */
__device__ static void sort_best(const struct view &v, u32 order, u32 n, struct logits_shared &s)
{
    u32 room = 2;
    while (room < n) room *= 2;
    __syncthreads();
    for (u32 i = threadIdx.x; i < room; i += SAMPLE_THREADS) s.keys[i] = 0;
    if (threadIdx.x == 0) s.n_keys = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < v.n; i += SAMPLE_THREADS)
        if (order_of(v.x[i]) >= order) s.keys[atomicAdd(&s.n_keys, 1u)] = key_of(v.x[i], i);
    __syncthreads();
    for (u32 size = 2; size <= room; size *= 2)
        for (u32 step = size / 2; step; step /= 2) {
            for (u32 i = threadIdx.x; i < room; i += SAMPLE_THREADS) {
                u32 j = i ^ step;
                u64 a = s.keys[i], b = s.keys[j];
                bool falling = (i & size) == 0;
                if (j > i && (falling ? a < b : a > b)) {
                    s.keys[i] = b;
                    s.keys[j] = a;
                }
            }
            __syncthreads();
        }
}

/* Few: sorted, then one thread does what the CPU does. */
__device__ static i32 draw_few(const struct view &v, const struct sample_row &r, u32 n,
                               struct logits_shared &s)
{
    for (u32 i = threadIdx.x; i < n; i += SAMPLE_THREADS)
        s.e[i] = exp_of(__fmul_rn(__fsub_rn(v.x[key_id(s.keys[i])], v.max), r.scale));
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 kept = 0, at = 0;
        double total = 0, below = 0, sum = 0;
        for (; kept < n && (!kept || (s.e[kept] > 0 && s.e[kept] >= r.min_p)); kept++) total += s.e[kept];
        double limit = r.drop * total;
        while (kept > 1 && below + s.e[kept - 1] <= limit) below += s.e[--kept];
        for (; at + 1 < kept; at++) {
            sum += s.e[at];
            if (sum > r.draw * (total - below)) break;
        }
        s.token = (i32)key_id(s.keys[at]);
    }
    __syncthreads();
    return s.token;
}

/* Many: the token is the one with the largest key at which the mass from the best down passes the target. */
__device__ static i32 draw_many(const struct view &v, const struct sample_row &r, u64 least,
                                struct logits_shared &s)
{
    double total = exponentials(v, r, least, s);
    if (r.drop > 0) total = exponentials(v, r, cut_top_p(v, r.drop * total, s), s);
    double target = r.draw * total;
    u64 key = key_search(v.x, v.n, s, -INFINITY, v.max, [&](u64 k) {
        return row_mass(v.n, s, [&](u32 i) { return key_of(v.x[i], i) >= k ? (double)v.e[i] : 0; }) > target;
    });
    return (i32)key_id(key);
}

__device__ static i32 draw(const struct view &v, const struct sample_row &r, struct logits_shared &s)
{
    if (r.greedy) return (i32)key_id(row_best(v.x, v.n, s, [](u64) { return true; }));
    if (!r.top_k || r.top_k >= v.n) return draw_all(v, r, s);
    u32 order = kth_order(v, r.top_k, s);
    u32 n = row_count(v.n, s, [&](u32 i) { return order_of(v.x[i]) >= order; });
    if (n > LIST_MOST) return draw_many(v, r, (u64)order << 32, s);
    sort_best(v, order, n, s);
    return draw_few(v, r, n, s);
}

/* ---- log-probabilities, of the logits as they came */
__device__ static u32 list_logprobs(const struct view &raw, u32 best, u32 token, struct token_logprob *out,
                                    struct logits_shared &s)
{
    double base = raw.max + log(row_sums(raw.n, s, (float *)NULL,
                                         [&](u32 i) { return exp_of(__fsub_rn(raw.x[i], raw.max)); }));
    u64 own = key_of(raw.x[token], token), last = ~(u64)0;
    u32 rank = 1 + row_count(raw.n, s, [&](u32 i) { return key_of(raw.x[i], i) > own; }), n = 1;
    struct token_logprob first = {(i32)token, (float)(raw.x[token] - base), (i32)rank};
    if (threadIdx.x == 0) out[0] = first;
    for (; n <= best; n++) {
        last = row_best(raw.x, raw.n, s, [&](u64 key) { return key < last; });
        u32 id = key_id(last);
        if (!last || raw.x[id] == -INFINITY) break;
        struct token_logprob next = {(i32)id, (float)(raw.x[id] - base), (i32)n};
        if (threadIdx.x == 0) out[n] = next;
    }
    return n;
}

__device__ static struct sample_choice choose(const struct sample_args &a, const struct sample_row &r,
                                              float *scratch, struct token_logprob *logprobs,
                                              struct logits_shared &s)
{
    u32 whole = (a.vocab + LOGIT_BLOCK - 1) / LOGIT_BLOCK * LOGIT_BLOCK;
    struct sample_choice c = {SAMPLE_NONFINITE, -1, 0};
    struct view raw = {a.logits + (size_t)r.logits * a.vocab, 0, scratch + whole, scratch + 2 * (size_t)whole,
                       a.vocab},
                now;
    if (!row_scan(raw.x, a.vocab, s, &raw.max)) return c;
    now = raw;
    if (r.edits) {
        apply_changes(r, a.lists, raw.x, scratch, a.vocab);
        now.x = scratch;
        if (!row_scan(now.x, a.vocab, s, &now.max)) {
            if (now.max == -INFINITY) c.state = SAMPLE_NOTHING;
            return c;
        }
    }
    c.token = draw(now, r, s);
    c.state = SAMPLE_OK;
    if (r.n_logprobs >= 0) c.n_logprobs = list_logprobs(raw, (u32)r.n_logprobs, (u32)c.token, logprobs, s);
    return c;
}

__global__ void __launch_bounds__(SAMPLE_THREADS, 2) sample_kernel(struct sample_params p)
{
    SHARED(logits_shared, s);
    for (u32 i = blockIdx.x; i < p.a.rows; i += gridDim.x) {
        const struct sample_row r = p.a.row[i];
        struct sample_choice c = choose(p.a, r, (float *)p.a.scratch + (size_t)blockIdx.x * p.stride,
                                        p.a.logprobs + (size_t)i * (1 + p.a.max_logprobs), s);
        if (threadIdx.x == 0) p.a.choices[i] = c;
    }
}

static u32 slot_words(u32 vocab)
{
    u32 blocks = (vocab + LOGIT_BLOCK - 1) / LOGIT_BLOCK;
    return 2 * blocks * LOGIT_BLOCK + blocks;
}

size_t device_sample_bytes(u32 rows, u32 vocab)
{
    return (size_t)MIN_OF(rows, (u32)SAMPLE_SLOTS) * slot_words(vocab) * sizeof(float);
}

void device_sample(struct device *d, const struct sample_args *a)
{
    if (!a->rows) return;
    struct sample_params p = {*a, slot_words(a->vocab)};
    launch(d, "sampling", sample_kernel, dim3(MIN_OF(a->rows, (u32)SAMPLE_SLOTS)), SAMPLE_THREADS,
           sizeof(logits_shared), p);
}
