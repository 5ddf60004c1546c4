/* attn: attention over paged KV. A unit of work is one kv head and a few consecutive tokens: up to ATTN_ROWS rows of q (tokens x
 * the group's heads) share each load of K and V.
 *
 * A pool of latents has no tiles of K: they are made for a few tiles at a time and serve all rows of the unit.
 *
 * For each split of KV_SPLIT positions: all scores, their largest, e^(s - largest), sums in the order of positions; then the split is
 * merged into the running result. A row takes part in a split from its own first to its own last position, so that its numbers
 * do not depend on the rows beside it. */
#ifndef MPISERVE_OPS_ATTN_H
#define MPISERVE_OPS_ATTN_H

#include "ops/cpu/latent.h"

#include <stdatomic.h>

struct attn_unit {
    const float *q[ATTN_ROWS];          /* [d] */
    u32 from[ATTN_ROWS], to[ATTN_ROWS]; /* positions seen */
    float *out[ATTN_ROWS];              /* running sum of p v, [dv] */
    float largest[ATTN_ROWS], sum[ATTN_ROWS];
    u32 rows, d, dv, ld_v; /* ld_v: numbers from one position's V to the next's */
    float soft_cap;
    enum dtype dtype, k_dtype; /* of V; of the tiles of K */
    bool latent;
};
struct attn_split {                                          /* positions [base, base + KV_SPLIT) */
    u32 base, from, to;                                      /* [from, to): seen by any row */
    const u8 *k[KV_SPLIT / KV_TILE], *v[KV_SPLIT / KV_TILE]; /* by tile */
    float p[ATTN_ROWS][KV_SPLIT] __attribute__((aligned(64)));
    float *tiles; /* latents: [SCORE_TILES][d][KV_TILE] */
    const float *k_scale[KV_SPLIT / KV_TILE], *v_scale[KV_SPLIT / KV_TILE]; /* I8 */
};

/* R rows x SCORE_TILES tiles: lanes are positions. */
ALWAYS_INLINE void scores_tile(const struct attn_unit *u, struct attn_split *s, u32 row, u32 tile, u32 last,
                               enum dtype dtype, const int R)
{
    vf acc[SCORE_ROWS][SCORE_TILES];
    const u8 *k[SCORE_TILES];
    UNROLL for (int t = 0; t < SCORE_TILES; t++)
    {
        k[t] = s->k[MIN_OF(tile + (u32)t, last)];
        UNROLL for (int r = 0; r < R; r++) acc[r][t] = vf_zero();
    }
    for (u32 j = 0; j < u->d; j += 2) {
        UNROLL for (int odd = 0; odd < 2; odd++)
        {
            vf q[SCORE_ROWS];
            UNROLL for (int r = 0; r < R; r++) q[r] = vf_set(u->q[row + (u32)r][j + (u32)odd]);
            UNROLL for (int t = 0; t < SCORE_TILES; t++)
            {
                vf v = kv_tile(k[t], dtype, odd);
                UNROLL for (int r = 0; r < R; r++) acc[r][t] = vf_fma(q[r], v, acc[r][t]);
            }
        }
        UNROLL for (int t = 0; t < SCORE_TILES; t++) k[t] += 2 * KV_TILE * kv_element(dtype);
    }
    UNROLL for (int t = 0; t < SCORE_TILES; t++)
    {
        UNROLL for (int r = 0; r < R; r++)
        {
            if (tile + (u32)t <= last) vf_store(s->p[row + (u32)r] + (tile + (u32)t) * KV_TILE, acc[r][t]);
        }
    }
}

/* acc[r][c] += p[r][at] v[at][column + 16 c] for one position */
ALWAYS_INLINE void values_step(vf acc[][VALUE_TILES], const struct attn_unit *u, const struct attn_split *s,
                               u32 row, u32 column, u32 at, enum dtype dtype, const int R, const int C)
{
    u32 tail = u->dv - column; /* less than 16 with C = 1 only */
    const u8 *v = s->v[at / KV_TILE] + (at % KV_TILE * u->ld_v + column) * kv_element(dtype);
    vf p[VALUE_ROWS];
    UNROLL for (int r = 0; r < R; r++) p[r] = vf_set(s->p[row + (u32)r][at]);
    UNROLL for (int c = 0; c < C; c++)
    {
        const u8 *from = v + c * 16 * kv_element(dtype);
        vf x = C > 1 ? kv_load(from, dtype) : kv_load_n(from, dtype, tail);
        UNROLL for (int r = 0; r < R; r++) acc[r][c] = vf_fma(p[r], x, acc[r][c]);
    }
}

/* Even positions in order, odd ones in order, then both: twice as many independent sums. The position before an odd `from` has
 * been written and its p is 0. */
ALWAYS_INLINE void values_tile(const struct attn_unit *u, const struct attn_split *s, u32 row, u32 column,
                               float *sums, enum dtype dtype, const int R, const int C)
{
    vf even[VALUE_ROWS][VALUE_TILES], odd[VALUE_ROWS][VALUE_TILES];
    UNROLL for (int r = 0; r < R; r++)
    {
        UNROLL for (int c = 0; c < C; c++) even[r][c] = odd[r][c] = vf_zero();
    }
    u32 at = (s->from - s->base) & ~1u, end = s->to - s->base;
    for (; at + 2 <= end; at += 2) {
        values_step(even, u, s, row, column, at, dtype, R, C);
        values_step(odd, u, s, row, column, at + 1, dtype, R, C);
    }
    if (at < end) values_step(even, u, s, row, column, at, dtype, R, C);
    UNROLL for (int r = 0; r < R; r++)
    {
        float *to = sums + (size_t)r * KV_MAX_VALUE + column;
        UNROLL for (int c = 0; c < C; c++) vf_store(to + c * 16, vf_add(even[r][c], odd[r][c]));
    }
}

/* A function for each format. */
#define ATTN_FORMATS(dtype, run)                                                                             \
    switch (dtype) {                                                                                         \
    case DTYPE_F32: run(DTYPE_F32); break;                                                                   \
    case DTYPE_BF16: run(DTYPE_BF16); break;                                                                 \
    case DTYPE_F16: run(DTYPE_F16); break;                                                                   \
    default: run(DTYPE_I8); break;                                                                           \
    }
#define ATTN_SHAPES(R)                                                                                       \
    static void scores_##R(const struct attn_unit *u, struct attn_split *s, u32 row, u32 tile, u32 last)     \
    {                                                                                                        \
        if (R > SCORE_ROWS) return;                                                                          \
        ATTN_FORMATS(u->k_dtype, SCORES_##R)                                                                 \
    }                                                                                                        \
    ATTN_VALUES(R, 1)                                                                                        \
    ATTN_VALUES(R, 2)                                                                                        \
    ATTN_VALUES(R, 4)
#define SCORES_1(dtype) scores_tile(u, s, row, tile, last, dtype, 1)
#define SCORES_2(dtype) scores_tile(u, s, row, tile, last, dtype, 2)
#define SCORES_4(dtype) scores_tile(u, s, row, tile, last, dtype, 4)
#define ATTN_VALUES(R, C)                                                                                    \
    static void values_##R##_##C(const struct attn_unit *u, const struct attn_split *s, u32 row, u32 column, \
                                 float *sums)                                                                \
    {                                                                                                        \
        if (R > VALUE_ROWS || R * C > VALUE_TILES) return;                                                   \
        ATTN_FORMATS(u->dtype, VALUES_##R##_##C)                                                             \
    }
#define VALUES(dtype, R, C) values_tile(u, s, row, column, sums, dtype, R, C)
#define VALUES_1_1(dtype)   VALUES(dtype, 1, 1)
#define VALUES_1_2(dtype)   VALUES(dtype, 1, 2)
#define VALUES_1_4(dtype)   VALUES(dtype, 1, 4)
#define VALUES_2_1(dtype)   VALUES(dtype, 2, 1)
#define VALUES_2_2(dtype)   VALUES(dtype, 2, 2)
#define VALUES_2_4(dtype)   VALUES(dtype, 2, 4)
#define VALUES_4_1(dtype)   VALUES(dtype, 4, 1)
#define VALUES_4_2(dtype)   VALUES(dtype, 4, 2)
#define VALUES_4_4(dtype)   VALUES(dtype, 4, 4)
ATTN_SHAPES(1)
ATTN_SHAPES(2)
ATTN_SHAPES(4)
typedef void scores_fn(const struct attn_unit *, struct attn_split *, u32, u32, u32);
typedef void values_fn(const struct attn_unit *, const struct attn_split *, u32, u32, float *);
static scores_fn *const scores_fns[3] = {scores_1, scores_2, scores_4}; /* [log2 R] */
static values_fn *const values_fns[3][3] = {{values_1_1, values_1_2, values_1_4},
                                            {values_2_1, values_2_2, values_2_4},
                                            {values_4_1, values_4_2, values_4_4}}; /* [log2 R][log2 C] */

/* The largest power of two, as its logarithm, that is at most n and most. */
ALWAYS_INLINE u32 shape_log2(u32 n, u32 most)
{
    return 31 - (u32)__builtin_clz(MIN_OF(n, most));
}

/* Positions of a tile that the row sees keep their value. */
ALWAYS_INLINE vf tile_seen(vf v, vf other, const struct attn_split *s, u32 tile, u32 from, u32 to)
{
    u32 at = s->base + tile * KV_TILE;
    if (at >= from && at + KV_TILE <= to) return v;
    return vf_select(v, other, (i32)from - (i32)at, (i32)to - (i32)at);
}

/* Scores of a row to weights e^(s - largest), 0 outside of what it sees. Returns their sum. */
static float split_softmax(float *p, const struct attn_split *s, u32 from, u32 to, float *largest)
{
    const vf none = vf_set(-__builtin_inff());
    u32 first = (s->from - s->base) / KV_TILE, last = (s->to - s->base + KV_TILE - 1) / KV_TILE;
    vf top = none, sum = vf_zero();
    for (u32 t = first; t < last; t++)
        top = vf_max(top, tile_seen(vf_load(p + t * KV_TILE), none, s, t, from, to));
    *largest = vf_largest(top);
    for (u32 t = first; t < last; t++) {
        vf e = vf_exp(vf_sub(vf_load(p + t * KV_TILE), vf_set(*largest)));
        e = tile_seen(e, vf_zero(), s, t, from, to);
        vf_store(p + t * KV_TILE, e);
        sum = vf_add(sum, e);
    }
    return vf_sum(sum);
}

/* (largest, sum, out) of a row with those of a later split. */
static void split_merge(struct attn_unit *u, u32 row, float largest, float sum, const float *values)
{
    bool first = u->sum[row] == 0;
    float top = first || largest > u->largest[row] ? largest : u->largest[row], scale[16];
    vf exps = vf_exp(vf_sub(vf_load((const float[16]){u->largest[row], largest}), vf_set(top)));
    vf_store(scale, exps);
    vf old = vf_set(scale[0]), new = vf_set(scale[1]);
    float *out = u->out[row];
    for (u32 j = 0; j < u->dv; j += 16) {
        vf v = vf_load(values + j);
        if (!first) v = vf_fma(vf_load(out + j), old, vf_mul(v, new));
        vf_store(out + j, v);
    }
    u->sum[row] = first ? sum : u->sum[row] * scale[0] + sum * scale[1];
    u->largest[row] = top;
}

static void split_values(struct attn_unit *u, const struct attn_split *s, float (*sums)[KV_MAX_VALUE])
{
    for (u32 row = 0; row < u->rows;) {
        u32 r = shape_log2(u->rows - row, VALUE_ROWS);
        for (u32 column = 0; column < u->dv;) {
            u32 left = u->dv - column, c = left < 32 ? 0 : shape_log2(left / 16, MIN_OF(VALUE_TILES >> r, 4));
            values_fns[r][c](u, s, row, column, sums[row]);
            column += 16u << c;
        }
        row += 1u << r;
    }
}

/* A row of latents to every sixteenth number. */
static void latent_lane(float *to, const u8 *row, enum dtype dtype, u32 d, float scale)
{
    float x[16];
    for (u32 j = 0; j < d; j += 16) {
        vf_store(x, vf_mul(kv_load_n(row + j * kv_element(dtype), dtype, d - j), vf_set(scale)));
        for (u32 i = 0; i < 16 && j + i < d; i++) to[(size_t)(j + i) * KV_TILE] = x[i];
    }
}

/* Tiles [tile, tile + SCORE_TILES) of K out of rows of latents, up to `last`. */
static void latent_tiles(const struct attn_unit *u, struct attn_split *s, u32 tile, u32 last)
{
    for (u32 t = tile; t <= last && t < tile + SCORE_TILES; t++) {
        float *to = s->tiles + (size_t)(t - tile) * u->d * KV_TILE;
        for (u32 lane = 0; lane < KV_TILE; lane++)
            latent_lane(to + lane, s->v[t] + (size_t)lane * u->ld_v * kv_element(u->dtype), u->dtype, u->d,
                        u->dtype == DTYPE_I8 ? s->k_scale[t][lane] : 1);
        s->k[t] = (const u8 *)to;
    }
}

static void split_scores(const struct attn_unit *u, struct attn_split *s, u32 first, u32 last)
{
    u32 step = u->latent ? SCORE_TILES : last + 1 - first;
    for (u32 from = first; from <= last; from += step) {
        if (u->latent) latent_tiles(u, s, from, last);
        for (u32 row = 0; row < u->rows;) {
            u32 r = shape_log2(u->rows - row, SCORE_ROWS);
            for (u32 tile = from; tile < from + step && tile <= last; tile += SCORE_TILES)
                scores_fns[r](u, s, row, tile, last);
            row += 1u << r;
        }
    }
}

/* Codes' scales: those of K multiply scores, those of V the weights. */
static void split_scale(const struct attn_unit *u, struct attn_split *s, const float *const *scale)
{
    u32 first = (s->from - s->base) / KV_TILE, last = (s->to - s->base - 1) / KV_TILE;
    for (u32 row = 0; row < u->rows; row++)
        for (u32 t = first; t <= last; t++) {
            float *p = s->p[row] + t * KV_TILE;
            vf_store(p, vf_mul(vf_load(p), vf_load(scale[t])));
        }
}

static void attn_split(struct attn_unit *u, struct attn_split *s)
{
    u32 first = (s->from - s->base) / KV_TILE, last = (s->to - s->base - 1) / KV_TILE;
    split_scores(u, s, first, last);
    if (u->k_dtype == DTYPE_I8) split_scale(u, s, s->k_scale);
    float largest[ATTN_ROWS], sum[ATTN_ROWS], values[ATTN_ROWS][KV_MAX_VALUE] __attribute__((aligned(64)));
    for (u32 row = 0; u->soft_cap > 0 && row < u->rows; row++)
        for (u32 at = first * KV_TILE; at < (last + 1) * KV_TILE; at += 16)
            vf_store(s->p[row] + at, soft_cap(vf_load(s->p[row] + at), u->soft_cap));
    for (u32 row = 0; row < u->rows; row++)
        sum[row] = split_softmax(s->p[row], s, u->from[row], u->to[row], &largest[row]);
    if (u->dtype == DTYPE_I8) split_scale(u, s, s->v_scale);
    split_values(u, s, values);
    for (u32 row = 0; row < u->rows; row++)
        if (u->from[row] < s->to && u->to[row] > s->from)
            split_merge(u, row, largest[row], sum[row], values[row]);
}

/* Where the tiles of the split are. */
static void split_find(const struct attn_args *a, const struct attn_span *span, u32 head,
                       struct attn_split *s)
{
    const struct kv_pool *kv = a->kv;
    u32 tiles = kv->block_size / KV_TILE;
    size_t tile_bytes = kv_element(kv->dtype) * (size_t)KV_TILE * kv->head_dim;
    for (u32 t = (s->from - s->base) / KV_TILE; t <= (s->to - s->base - 1) / KV_TILE; t++) {
        u32 tile = s->base / KV_TILE + t;
        const u8 *k = kv_head(kv, span->blocks[tile / tiles], a->layer, head);
        s->k[t] = k + tile % tiles * tile_bytes;
        s->v[t] = s->k[t] + kv->v_offset;
        s->k_scale[t] = (const float *)(const void *)(k + kv->k_scales) + tile % tiles * KV_TILE;
        s->v_scale[t] = (const float *)(const void *)(k + kv->v_scales) + tile % tiles * KV_TILE;
        for (size_t i = 0; span->n == 1 && i < tile_bytes; i += CACHE_LINE) { /* read once: not in a cache */
            vec_prefetch(s->k[t] + i);
            if (!kv->latent) vec_prefetch(s->v[t] + i);
        }
    }
}

/* What the row's sums are to be multiplied by: 1 / their sum, to which the sink belongs where there is one. */
static float row_scale(const struct attn_unit *u, u32 row, const float *sink)
{
    if (!sink) return 1 / u->sum[row];
    float top = *sink > u->largest[row] ? *sink : u->largest[row], e[16];
    vf_store(e, vf_exp(vf_sub(vf_load((const float[16]){u->largest[row], *sink}), vf_set(top))));
    return e[0] / (u->sum[row] * e[0] + e[1]);
}

static void attn_store(const struct attn_args *a, const struct attn_unit *u, const struct attn_span *span,
                       u32 q0, u32 q1)
{
    for (u32 r = 0; r < u->rows; r++) {
        u32 q = q0 + r % (q1 - q0);
        vf scale = vf_set(row_scale(u, r, a->sinks ? a->sinks + q : NULL));
        u8 *y = act_row(a->out, a->out_dtype, span->row + r / (q1 - q0), a->ld_out);
        y += q * u->dv * (a->out_dtype == DTYPE_F32 ? 4 : 2);
        for (u32 j = 0; j < u->dv; j += 16)
            act_store(y, a->out_dtype, j, vf_mul(vf_load(u->out[r] + j), scale), MIN_OF(u->dv - j, 16u));
    }
}

static void attn_rows(const struct attn_args *a, const struct attn_span *span, u32 head, u32 q0, u32 q1)
{
    const struct kv_pool *kv = a->kv;
    float out[ATTN_ROWS][KV_MAX_VALUE] __attribute__((aligned(64)));
    float tiles[SCORE_TILES * KV_MAX_LATENT * KV_TILE] __attribute__((aligned(64)));
    struct attn_unit u = {.d = kv->head_dim,
                          .dv = kv->value_dim,
                          .ld_v = kv->latent ? kv->head_dim : kv->value_dim,
                          .soft_cap = a->soft_cap,
                          .dtype = kv->dtype,
                          .k_dtype = kv->latent ? DTYPE_F32 : kv->dtype,
                          .latent = kv->latent};
    for (u32 t = 0; t < span->n; t++)
        for (u32 q = q0; q < q1; q++, u.rows++) {
            u32 pos = span->pos + t;
            u.q[u.rows] = a->q + (span->row + t) * a->ld_q + q * u.d;
            u.from[u.rows] = !span->sees && a->window && pos >= a->window ? pos - a->window + 1 : 0;
            u.to[u.rows] = span->sees ? span->sees : pos + 1;
            u.out[u.rows] = out[u.rows];
        }
    u32 from = u.from[0], to = u.to[u.rows - 1];
    struct attn_split s;
    s.tiles = tiles;
    for (s.base = from / KV_SPLIT * KV_SPLIT; s.base < to; s.base += KV_SPLIT) {
        s.from = MAX_OF(from, s.base);
        s.to = MIN_OF(to, s.base + KV_SPLIT);
        split_find(a, span, head, &s);
        attn_split(&u, &s);
    }
    attn_store(a, &u, span, q0, q1);
}

static void attn(const struct attn_args *a, struct share s)
{
    (void)s; /* threads take units as they become free: the cost of one depends on its positions */
    u32 heads = a->kv->kv_heads, group = a->heads / heads, parts = (group + ATTN_ROWS - 1) / ATTN_ROWS, unit;
    while ((unit = atomic_fetch_add_explicit(a->ticket, 1, memory_order_relaxed)) <
           a->n_spans * heads * parts) {
        u32 head = unit / parts % heads, q = unit % parts * ATTN_ROWS;
        attn_rows(a, a->spans + unit / parts / heads, head, head * group + q,
                  head * group + MIN_OF(group, q + ATTN_ROWS));
    }
}

#endif
