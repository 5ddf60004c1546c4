/* ops: the kernels. One table of operations; cpu/ implements it for several instruction sets, chosen at run
 * time.
 *
 * Batch invariance: a row of an output depends on that row of the input alone: products add K in order per
 * output column, threads split columns or rows, never K; attention uses fixed KV splits from position 0,
 * merged in ascending order.
 * Numerics: norms, softmax, rotation and all sums are f32. The CPU levels give the same bits as each other
 * (one kernel source, the same order of operations, fused multiply-add everywhere, own exp, sin and cos; one
 * difference is possible: a machine without flush control treats denormals in products of bf16 exactly). Life
 * cycle: none; tables are constant. Thread rule: every operation is called by all threads of a pool with the
 * same arguments and each its share; it does its part and returns without waiting. The caller puts a barrier
 * where the next operation reads what other threads wrote. Nothing is allocated. */
#ifndef MPISERVE_OPS_H
#define MPISERVE_OPS_H

#include "mpiserve/base.h"
#include "mpiserve/model.h"

enum { PANEL = 16 }; /* output columns a panel */

/* A linear layer's weight W [n_out, n_in] in panels of PANEL outputs. For each panel, for each pair of inputs
 * (k, k+1), bf16: 16 x {W[o][k], W[o][k+1]} (u16 pairs, as dot-product instructions want them); f32: 16 x
 * W[o][k], then 16 x W[o][k+1]. n_out is padded to whole panels, n_in to even, with zeros. 64-byte aligned.
 */
struct packed {
    const void *data;
    enum dtype dtype; /* DTYPE_F32 or DTYPE_BF16; or quantised, see below */
    u32 n_out, n_in;
    u32 group,
        lead; /* quantised: inputs with one scale; and those of the first group, whose begin another engine may have. Even */
};
size_t packed_bytes(enum dtype dtype, u32 n_out, u32 n_in);
/* Packs rows [row0, row0 + n) (src: row-major [n, n_in]; F32, BF16 or F16) into the weight at dst, rounding
 * to nearest even where dtype is narrower. Rows of one weight may come in several calls, in any order and
 * from several threads; the call with the last row also zeroes the padding rows. */
void pack_rows(void *dst, enum dtype dtype, u32 n_out, u32 n_in, u32 row0, u32 n, const void *src,
               enum dtype src_dtype);

/* Quantised weights: W[o][k] = (value of a code - zero) * scale, with a scale, and for I4 a zero, for each output and group of inputs.
 *   F8   8 bits, E4M3                     I8   8 bits, -127 .. 127
 *   I4   4 bits, 0 .. 15, with zeros      F4   4 bits, E2M1: 0 .5 1 1.5 2 3 4 6, and the same negated
 * In memory, for each panel, for each group: 16 scales, (I4: 16 zeros,) f32; then for each pair of inputs (k, k + 1): 16 codes of k and
 * 16 of k + 1 (8 bits), or 16 bytes with the code of k below that of k + 1. F4's scales are stored halved. Products take such a weight as
 * its value in f32, which is exact but for one rounding. x is f32. */
static inline bool dtype_quantised(enum dtype t)
{
    return t >= DTYPE_F8 && t <= DTYPE_F4;
}
u32 packed_groups(const struct packed *w);  /* of a row; 0: not quantised */
size_t packed_size(const struct packed *w); /* bytes, of every dtype; a multiple of 64 */
/* Rows [row0, row0 + n) as codes [n, n_in], one a byte, scales and zeros (I4; else NULL) [n, groups]. As pack_rows. */
void pack_codes(void *dst, const struct packed *w, u32 row0, u32 n, const u8 *codes, const float *scales,
                const float *zeros);
/* The codes of I8 or I4 that come nearest to rows [n, n_in] of numbers, group by group; zeros: I4 only. */
void quantise_rows(const struct packed *w, u32 n, const void *src, enum dtype src_dtype, u8 *codes,
                   float *scales, float *zeros);

/* Conversions of single numbers; exact, or rounded to nearest even. NaN stays NaN. */
static inline float f32_from_bits(u32 bits)
{
    float f;
    __builtin_memcpy(&f, &bits, sizeof f);
    return f;
}
static inline u32 f32_bits(float f)
{
    u32 bits;
    __builtin_memcpy(&bits, &f, sizeof bits);
    return bits;
}
static inline float f32_from_bf16(u16 h)
{
    return f32_from_bits((u32)h << 16);
}
static inline u16 bf16_from_f32(float f)
{
    u32 u = f32_bits(f);
    if ((u & 0x7fffffff) > 0x7f800000) return (u16)(u >> 16 | 0x40);
    return (u16)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
float f32_from_f16(u16 h);
u16 f16_from_f32(float f); /* too large: infinite */
float f32_from_f8(u8 x);   /* E4M3 */
float f32_from_f4(u8 x);   /* E2M1, the lower four bits */

/* The number format of activations that go into products with bf16 weights, and of the KV cache. */
enum compute { COMPUTE_F32, COMPUTE_BF16, COMPUTE_F16 }; /* F16: on devices only */

/* ---- the KV pool
 * ----------------------------------------------------------------------------------------------- Blocks of
 * block_size tokens, all layers and heads of a block together, so that copying a block is one memcpy. In a
 * block, for each layer and head: K in tiles of 16 tokens (f32: [d][16]; bf16: [d/2][16][2]), then V
 * [block_size][d]. A score is then a sum over d in each lane, with no sum across lanes. Memory that no token
 * was written to may hold anything. */
enum { KV_TILE = 16, KV_SPLIT = 256, KV_MAX_HEAD = 256, KV_MAX_LATENT = 640, KV_MAX_VALUE = 512 };
struct kv_pool {
    u8 *memory; /* 64-byte aligned */
    enum dtype
        dtype; /* F32, BF16, F16, or I8: codes with an f32 scale for each token and head, of K and of V, behind them */
    u32 block_size, layers, kv_heads;
    u32 head_dim;  /* of K; even, <= KV_MAX_HEAD. block_size: a multiple of KV_TILE */
    u32 value_dim; /* of V: head_dim, or what of a latent is summed */
    bool latent;
    size_t block_bytes, head_bytes, v_offset;
    size_t k_scales, v_scales; /* I8: in a head's bytes, [block_size] each; the same one for a latent */
};
/* Fills in the geometry; memory is left NULL. K tiles of I8: [d][16]; of F16 as of BF16. */
void kv_pool_init_as(struct kv_pool *kv, enum dtype dtype, u32 layers, u32 kv_heads, u32 head_dim,
                     u32 block_size);
/* F32, BF16 or F16, as activations are. */
void kv_pool_init(struct kv_pool *kv, enum compute compute, u32 layers, u32 kv_heads, u32 head_dim,
                  u32 block_size);
/* The pool of multi-head latent attention: one "head" for all, a row [block_size][rank + rope] a token, which is K, and its first
 * rank numbers V: both in one, stored once. rank + rope: even, <= KV_MAX_LATENT; rank <= KV_MAX_VALUE. */
void kv_pool_init_latent(struct kv_pool *kv, enum dtype dtype, u32 layers, u32 rank, u32 rope,
                         u32 block_size);

/* ---- operations
 * ------------------------------------------------------------------------------------------------ Matrices
 * are row-major; ld is the distance of rows in elements. Activations that go into a product ("act") are f32
 * or bf16; their rows have an even number of elements with 0 in the last one where n is odd. */
struct device;
struct share { /* this thread's part: i of n; on a device: 0 of 1, and pointers are the device's (device.h) */
    u32 i, n;
    struct device *device;
};
struct linear_args { /* y[r][o] = sum_k x[r][k] W[o][k] (+ bias[o]); add: y[r][o] += the same */
    const struct packed *w;
    const float *bias; /* [n_out] or NULL */
    const void *x;     /* [rows, n_in] act; bf16 only with bf16 weights */
    enum dtype x_dtype;
    u32 rows;
    size_t ld_x, ld_y;
    float *y; /* [rows, n_out] */
    bool add;
};
struct norm_args {      /* y = x / sqrt(mean(x^2) + eps) * w; add: y += the same */
    const float *x, *w; /* [rows, n], [n] */
    const float *bias;  /* [n]: the mean is taken away from x first, and this is added last (LayerNorm) */
    const u32 *list;    /* [rows]: the rows of x to take; NULL: the first ones */
    float eps;
    void *y; /* [rows, n] act; may be x; add: f32 */
    enum dtype y_dtype;
    u32 rows, n;
    size_t ld_x, ld_y;
    bool add;
};
struct glu_args {   /* y[r][i] = act(gate x[r][i], up x[r][n + i]): see enum activation */
    const float *x; /* [rows, 2 n]; ACT_GELU: [rows, n] */
    void *y;        /* [rows, n] act */
    enum dtype y_dtype;
    u32 rows, n;
    size_t ld_x, ld_y;
    enum activation act;
    float limit, alpha; /* ACT_CLAMPED */
};
struct cap_args { /* x = cap tanh(x / cap) */
    float *x;     /* [rows, n] */
    float cap;
    u32 rows, n;
    size_t ld;
};
struct embed_args {              /* y[r] = row ids[r] of the embedding */
    const void *table;           /* [vocab, n] of dtype, row-major; or NULL: */
    const struct packed *packed; /* the rows of a packed weight */
    enum dtype dtype;
    const i32 *ids; /* [rows], checked by the caller; -1: a row of zeros */
    float *y;       /* [rows, n] */
    u32 rows, n;
    size_t ld_y;
    float scale; /* y is multiplied by it; 0: 1 */
    bool add;    /* y += the row; with a table, ids >= 0 and without scale */
};
struct angles_args {      /* table[r] = scale cos(position inv[m]), then sin: [rows, 2, half] */
    const float *inv;     /* [half]; or [rows, half], ld_inv apart */
    const u32 *positions; /* [rows] */
    float *table;
    u32 rows, half;
    size_t ld_inv; /* 0: one inv for all rows */
    float scale;   /* 0: 1 */
};
struct place { /* where a token's K and V go */
    u32 block, offset;
};
struct rope_args {       /* q, k: norm (optional), rotate; q: scale, in place; k, v: to the KV pool */
    float *qkv;          /* [rows, (heads + 2 kv_heads) d] */
    const float *angles; /* [rows, 2, rotary/2]; NULL: nothing is rotated */
    u32 rotary;          /* the first numbers of a head are rotated, so many; even; 0: d */
    const float *q_norm, *k_norm; /* [d] or NULL */
    float eps, scale;
    const struct kv_pool *kv;
    const struct place *places; /* [rows] */
    u32 layer, heads, rows;
    size_t ld;
};
struct
    latent_args { /* multi-head latent attention: rotates and scales q; norm and rotation of the latent, which goes to the pool */
    float *q;     /* [rows, heads, nope + rope]: nope is scaled in place */
    float *absorbed; /* [rows, heads, rank + rope]: the rotated, scaled rope part of q goes to its end */
    float *latent;   /* [rows, rank + rope]: changed */
    const float *norm, *angles; /* [rank]; [rows, 2, rope/2] */
    float eps, scale;
    bool interleaved; /* pairs (2m, 2m + 1); the result is the pairs' firsts, then their seconds */
    const struct kv_pool *kv;
    const struct place *places;
    u32 layer, heads, rows, nope, rope, rank;
    size_t ld_q, ld_absorbed, ld_latent;
};
struct heads_args {  /* a weight for each head: y[r][i] = W_i x[r][i] */
    struct packed w; /* of head 0; the others follow, stride bytes apart */
    size_t stride;
    const float *x; /* [rows, ..]: n_in numbers of head i at i x_step */
    float *y;       /* [rows, ..]: n_out numbers of head i at i y_step */
    u32 heads, rows;
    size_t ld_x, ld_y, x_step, y_step;
};
struct attn_span {     /* consecutive tokens of one sequence */
    const u32 *blocks; /* the sequence's block table */
    u32 row, pos, n;   /* of the first token; tokens */
    u32 sees;          /* all of them see positions [0, sees), without a window; 0: each up to its own */
};
struct attn_args {  /* o[t] = sum_u softmax(q[t] k[u]) v[u] over u <= t, t - u < window */
    const float *q; /* [rows, heads d], scaled */
    void *out;      /* [rows, heads value_dim] act */
    enum dtype out_dtype;
    const struct kv_pool *kv;
    const struct attn_span *spans;     /* units of work, at most attn_tokens() long */
    u32 n_spans, layer, heads, window; /* 0: no window */
    u32 n_single, longest; /* of the spans: how many have one token; the most tokens that one of those sees */
    size_t ld_q, ld_out;
    float soft_cap;      /* scores become cap tanh(score / cap); 0: not */
    const float *sinks;  /* [heads]: a further score a head, whose weight is dropped; or NULL */
    _Atomic u32 *ticket; /* 0 before the first thread starts: threads take units from it */
};
enum { ATTN_ROWS = 16 };
/* Tokens of a unit of work for q heads in groups of `group` to a kv head. */
static inline u32 attn_tokens(u32 group)
{
    return group >= ATTN_ROWS ? 1 : ATTN_ROWS / group;
}

/* ---- vectors: sums of rows, each from its first row to its last */
struct pooling_run {
    float *sum; /* [n of the args]; of no other run */
    u32 row, n; /* of x */
    u32 begins; /* 1: the sum is of these rows alone; 0: they are added to what is there */
};
struct pooling_args {
    const float *x; /* [rows, n] */
    const struct pooling_run *runs;
    u32 n_runs, n;
    size_t ld_x;
};

/* ---- mixture of experts: pairs (token, choice) are sorted by expert, so that each expert's rows lie together */
struct route_args { /* see struct moe_config; among equal scores the lower expert goes first */
    const struct moe_config *moe;
    const float *logits;     /* [rows, experts] */
    const float *correction; /* [experts], or NULL */
    u32 *ids;                /* [rows, per_token], best first */
    float *weights;          /* [rows, per_token] */
    u32 rows;
    size_t ld;
};
struct group_args { /* the first thread does it; a stable sort */
    const u32 *ids; /* [pairs = rows per_token] */
    u32 *start;     /* [experts + 1]: expert e has sorted rows [start[e], start[e + 1]) */
    u32 *order;     /* [pairs]: the pair at a sorted row */
    u32 *place;     /* [pairs]: the sorted row of a pair */
    u32 pairs, experts;
};
struct gather_args { /* y[i] = x[order[i] / per_token] */
    const void *x;   /* [rows, n] act */
    void *y;         /* [pairs, n] act */
    enum dtype dtype;
    const u32 *order;
    u32 pairs, per_token, n;
    size_t ld_x, ld_y;
};
struct experts_args { /* y[i] = W_e x[i] (+ bias_e) for the sorted rows i of each expert e */
    struct packed w;  /* of expert 0; the others follow, stride bytes apart */
    size_t stride;
    const float *bias; /* [experts, n_out], bias_stride apart, or NULL */
    size_t bias_stride;
    const void *x; /* [pairs, n_in] act */
    enum dtype x_dtype;
    const u32 *start;
    u32 experts, pairs;
    size_t ld_x, ld_y;
    float *y;            /* [pairs, n_out] */
    _Atomic u32 *ticket; /* as in attn_args */
};
struct
    combine_args { /* y[r] = sum_j weights[r][j] x[place[r][j]], in order of j, + the shared expert's; add: y[r] += the same */
    const float *x; /* [pairs, n] */
    const float *weights;
    const u32 *place;
    const float *shared, *shared_gate; /* [rows, n], or NULL; [rows]: times sigmoid of it, or NULL */
    float *y;                          /* [rows, n] */
    u32 rows, per_token, n;
    size_t ld_x, ld_shared, ld_y;
    bool add;
};

struct ops {
    const char *name; /* "portable", "avx2", "avx512", "avx512bf16" */
    bool native_bf16; /* products of bf16 are an instruction: compute "auto" means bf16 */
    void (*linear)(const struct linear_args *, struct share);
    void (*norm)(const struct norm_args *, struct share);
    void (*glu)(const struct glu_args *, struct share);
    void (*cap)(const struct cap_args *, struct share);
    void (*embed)(const struct embed_args *, struct share);
    void (*angles)(const struct angles_args *, struct share);
    void (*rope)(const struct rope_args *, struct share);
    void (*latent)(const struct latent_args *, struct share);
    void (*heads)(const struct heads_args *, struct share);
    void (*attn)(const struct attn_args *, struct share);
    void (*pooling)(const struct pooling_args *, struct share);
    void (*route)(const struct route_args *, struct share);
    void (*group)(const struct group_args *, struct share);
    void (*gather)(const struct gather_args *, struct share);
    void (*experts)(const struct experts_args *, struct share);
    void (*combine)(const struct combine_args *, struct share);
};
/* The table of an instruction set; NULL: unknown, or not of this CPU, operating system or build. */
const struct ops *ops_cpu(const char *isa);
const char *ops_cpu_best(void); /* the highest level that ops_cpu offers here */
/* Levels rise with the instruction set, so that ranks agree by a minimum. */
int ops_isa_level(const char *isa);  /* 0 .. ; -1: unknown */
const char *ops_isa_name(int level); /* NULL: no such level */

#endif
