/* linear: activations broadcast against panels of 16 output columns.
 *
 * Every output is one chain of fused multiply-adds over k in order, whatever tile it falls into: a tile is R rows x P panels
 * whose sums stay in registers over a block of k; between blocks they rest in memory, unrounded. */
#ifndef MPISERVE_OPS_LINEAR_H
#define MPISERVE_OPS_LINEAR_H

#include "mpiserve/ops.h"
#include "ops/cpu/vec.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

enum linear_kind { W_F32, W_BF16, W_BF16_X_BF16, W_F8, W_I8, W_I4, W_F4 };
enum { MAX_PANELS = 8, GROUP = 16, ROW_BLOCK = 16 * LINEAR_ROWS };
enum { K_BLOCK = 512 }; /* x [ROW_BLOCK, K_BLOCK] stays in the second cache: 192 KiB */

struct tile {
    const u8 *x, *w;
    size_t ld_x, ld_w; /* bytes from row to row, panel to panel */
    u32 pairs;         /* of k */
    u32 lead, group;   /* quantised: pairs of the first group and of the others */
    float *sums;       /* [R, ld_sums] */
    size_t ld_sums;
    bool first; /* start from 0, not from sums */
};

ALWAYS_INLINE vf tile_weight(const u8 *w, enum linear_kind kind, int odd)
{
    if (kind == W_F32) return vf_load((const float *)(const void *)w + odd * PANEL);
    return odd ? vf_high(vi_load(w)) : vf_low(vi_load(w));
}

ALWAYS_INLINE vf tile_x(const u8 *x)
{
    return vf_set(*(const float *)(const void *)x);
}

/* One k: acc[r][p] += x[r] w[p]. With one panel each x is used once: it is not kept, since registers are scarce there. */
ALWAYS_INLINE void tile_step(vf acc[][MAX_PANELS], const struct tile *t, const u8 *x, const u8 *w,
                             enum linear_kind kind, int odd, const int R, const int P)
{
    vf xs[LINEAR_ROWS];
    UNROLL for (int r = 0; r < R && P > 1; r++) xs[r] = tile_x(x + r * t->ld_x + odd * 4);
    UNROLL for (int p = 0; p < P; p++)
    {
        vf v = tile_weight(w + p * t->ld_w, kind, odd);
        UNROLL for (int r = 0; r < R; r++) acc[r][p] =
            vf_fma(P > 1 ? xs[r] : tile_x(x + r * t->ld_x + odd * 4), v, acc[r][p]);
    }
}

ALWAYS_INLINE vi tile_x_pair(const u8 *x)
{
    return vi_set(*(const u32 *)(const void *)x);
}

ALWAYS_INLINE void tile_dots(vf acc[][MAX_PANELS], const struct tile *t, const u8 *x, const u8 *w,
                             const int R, const int P)
{
    vi xs[LINEAR_ROWS];
    UNROLL for (int r = 0; r < R && P > 1; r++) xs[r] = tile_x_pair(x + r * t->ld_x);
    UNROLL for (int p = 0; p < P; p++)
    {
        vi v = vi_load(w + p * t->ld_w);
        UNROLL for (int r = 0; r < R; r++) acc[r][p] =
            vf_dot(acc[r][p], P > 1 ? xs[r] : tile_x_pair(x + r * t->ld_x), v);
    }
}

ALWAYS_INLINE void tile_run(const struct tile *t, enum linear_kind kind, const int R, const int P)
{
    vf acc[LINEAR_ROWS][MAX_PANELS];
    UNROLL for (int r = 0; r < R; r++)
    {
        UNROLL for (int p = 0; p < P; p++) acc[r][p] =
            t->first ? vf_zero() : vf_load(t->sums + r * t->ld_sums + p * PANEL);
    }
    const u8 *x = t->x, *w = t->w;
    for (u32 k = 0; k < t->pairs; k++) {
        if (kind == W_BF16_X_BF16) {
            tile_dots(acc, t, x, w, R, P);
        } else {
            tile_step(acc, t, x, w, kind, 0, R, P);
            tile_step(acc, t, x, w, kind, 1, R, P);
        }
        x += kind == W_BF16_X_BF16 ? 4 : 8;
        w += kind == W_F32 ? 2 * PANEL * 4 : PANEL * 4;
    }
    UNROLL for (int r = 0; r < R; r++)
    {
        UNROLL for (int p = 0; p < P; p++) vf_store(t->sums + r * t->ld_sums + p * PANEL, acc[r][p]);
    }
}

/* A function for each shape that this instruction set's registers hold. */
typedef void tile_fn(const struct tile *);
#define TILE(R, P)                                                                                           \
    static void tile_f32_##R##_##P(const struct tile *t)                                                     \
    {                                                                                                        \
        if (R <= LINEAR_ROWS && P <= LINEAR_PANELS(R)) tile_run(t, W_F32, R, P);                             \
    }                                                                                                        \
    static void tile_bf16_##R##_##P(const struct tile *t)                                                    \
    {                                                                                                        \
        if (R <= LINEAR_ROWS && P <= LINEAR_PANELS(R)) tile_run(t, W_BF16, R, P);                            \
    }                                                                                                        \
    static void tile_dot_##R##_##P(const struct tile *t)                                                     \
    {                                                                                                        \
        if (R <= LINEAR_ROWS && P <= LINEAR_PANELS(R)) tile_run(t, W_BF16_X_BF16, R, P);                     \
    }
#define TILES(R) TILE(R, 1) TILE(R, 2) TILE(R, 4) TILE(R, 8)
TILES(1)
TILES(2)
TILES(3)
TILES(4)
TILES(5)
TILES(6)
#define TILE_ROW(kind, R)                                                                                    \
    {                                                                                                        \
        tile_##kind##_##R##_1, tile_##kind##_##R##_2, tile_##kind##_##R##_4, tile_##kind##_##R##_8           \
    }
#define TILE_KIND(kind)                                                                                      \
    {                                                                                                        \
        TILE_ROW(kind, 1), TILE_ROW(kind, 2), TILE_ROW(kind, 3), TILE_ROW(kind, 4), TILE_ROW(kind, 5),       \
            TILE_ROW(kind, 6)                                                                                \
    }
static tile_fn *const tile_fns[3][6][4] = {TILE_KIND(f32), TILE_KIND(bf16),
                                           TILE_KIND(dot)}; /* [kind][R - 1][log2 P] */

#include "ops/cpu/quant.h"

/* Sums of one row to y, panels from column o. */
ALWAYS_INLINE void linear_finish(const struct linear_args *a, const float *sums, u32 row, u32 o, u32 columns)
{
    float *y = a->y + row * a->ld_y + o;
    for (u32 c = 0; c < columns; c += PANEL) {
        u32 n = MIN_OF(columns - c, (u32)PANEL);
        vf v = vf_load(sums + c);
        if (a->bias) v = vf_add(v, vf_load_n(a->bias + o + c, n));
        if (a->add) v = vf_add(vf_load_n(y + c, n), v);
        vf_store_n(y + c, v, n);
    }
}

/* Rows are cut into blocks of nearly the same size; the largest sets how many panels go at a time. */
ALWAYS_INLINE u32 row_blocks(u32 rows)
{
    return (rows + LINEAR_ROWS - 1) / LINEAR_ROWS;
}
ALWAYS_INLINE u32 block_panels(u32 rows)
{
    u32 blocks = row_blocks(rows), largest = (rows + blocks - 1) / blocks;
    return LINEAR_PANELS(largest);
}

ALWAYS_INLINE enum linear_kind kind_of(const struct linear_args *a)
{
    if (dtype_quantised(a->w->dtype)) return W_F8 + (a->w->dtype - DTYPE_F8);
    return a->w->dtype == DTYPE_F32 ? W_F32 : a->x_dtype == DTYPE_F32 ? W_BF16 : W_BF16_X_BF16;
}

/* Rows [r0, r1), at most ROW_BLOCK, of `count` panels from `panel`, at most GROUP: for each block of k, that block of x
 * stays in the second cache while the panels go by. Quantised weights are small: one block. */
static void linear_group(const struct linear_args *a, u32 r0, u32 r1, u32 panel, u32 count)
{
    enum linear_kind kind = kind_of(a);
    bool quantised = kind >= W_F8;
    u32 pairs = (a->w->n_in + 1) / 2, blocks = row_blocks(r1 - r0), most = block_panels(r1 - r0);
    size_t w_pair = kind == W_F32 ? 2 * PANEL * 4 : PANEL * 4, x_pair = kind == W_BF16_X_BF16 ? 4 : 8;
    float sums[ROW_BLOCK * GROUP * PANEL] __attribute__((aligned(64)));
    struct tile t = {.ld_x = a->ld_x * x_pair / 2,
                     .ld_w = quantised ? quant_panel(a->w) : pairs * w_pair,
                     .ld_sums = count * PANEL,
                     .lead = a->w->lead / 2,
                     .group = a->w->group / 2};
    u32 step = blocks > 1 && !quantised ? K_BLOCK / 2 : pairs, n;
    if (quantised) most = MIN_OF(most, (u32)QUANT_PANELS);
    for (u32 k = 0; k < pairs; k += step) {
        t.pairs = MIN_OF(step, pairs - k);
        t.first = k == 0;
        for (u32 p = 0; p < count; p += n) {
            for (n = most; n > count - p;) n /= 2;
            t.w = (const u8 *)a->w->data + (panel + p) * t.ld_w + k * w_pair;
            for (u32 b = 0; b < blocks; b++) {
                u32 from = (r1 - r0) * b / blocks, to = (r1 - r0) * (b + 1) / blocks;
                t.x = (const u8 *)a->x + (r0 + from) * t.ld_x + k * x_pair;
                t.sums = sums + from * t.ld_sums + p * PANEL;
                (quantised ? quant_fns[kind - W_F8][to - from - 1][__builtin_ctz(n)]
                           : tile_fns[kind][to - from - 1][__builtin_ctz(n)])(&t);
            }
        }
    }
    u32 o = panel * PANEL, columns = MIN_OF(count * PANEL, a->w->n_out - o);
    for (u32 r = r0; r < r1; r++) linear_finish(a, sums + (r - r0) * t.ld_sums, r, o, columns);
}

static void linear_rows(const struct linear_args *a, u32 r0, u32 r1, u32 p0, u32 p1)
{
    for (u32 from = r0, to; from < r1; from = to) {
        to = MIN_OF(from + ROW_BLOCK, r1);
        for (u32 p = p0; p < p1; p += GROUP) linear_group(a, from, to, p, MIN_OF((u32)GROUP, p1 - p));
    }
}

static void linear(const struct linear_args *a, struct share s)
{
    if (!a->rows) return;
    u32 panels = (a->w->n_out + PANEL - 1) / PANEL, across = MIN_OF(s.n, panels), down = s.n / across;
    u32 unit = MAX_PANELS; /* panels are dealt in such groups where that gives every thread one */
    while (unit > 1 && panels / unit < across) unit /= 2;
    u32 units = (panels + unit - 1) / unit, i = s.i % across, j = s.i / across;
    if (j >= down) return;
    u32 r0 = a->rows * j / down, r1 = a->rows * (j + 1) / down;
    u32 p0 = units * i / across * unit, p1 = MIN_OF(units * (i + 1) / across * unit, panels);
    if (a->x_dtype == DTYPE_BF16) {
        u32 old = vec_flush_begin();
        linear_rows(a, r0, r1, p0, p1);
        vec_flush_end(old);
    } else {
        linear_rows(a, r0, r1, p0, p1);
    }
}

/* Threads share the heads. */
static void heads(const struct heads_args *a, struct share s)
{
    for (u32 i = s.i; i < a->heads; i += s.n) {
        struct packed w = a->w;
        w.data = (const u8 *)w.data + i * a->stride;
        linear(&(struct linear_args){.w = &w,
                                     .x = a->x + i * a->x_step,
                                     .x_dtype = DTYPE_F32,
                                     .rows = a->rows,
                                     .ld_x = a->ld_x,
                                     .ld_y = a->ld_y,
                                     .y = a->y + i * a->y_step},
               (struct share){0, 1, NULL});
    }
}

#endif
