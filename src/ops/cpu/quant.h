/* quant: tiles over quantised weights: see struct packed. A code becomes its weight in f32 in a register, once for all rows; then as
 * with f32 weights. */
#ifndef MPISERVE_OPS_QUANT_H
#define MPISERVE_OPS_QUANT_H

enum { QUANT_PANELS = 4 };

/* Bytes of a panel. */
static size_t quant_panel(const struct packed *w)
{
    return packed_size(w) / ((w->n_out + PANEL - 1) / PANEL);
}

ALWAYS_INLINE vf quant_weight(const u8 *codes, const float *head, enum linear_kind kind, int odd)
{
    if (kind == W_F8) return vf_mul(vf_load_f8(codes + odd * PANEL), vf_load(head));
    if (kind == W_I8) return vf_mul(vf_load_i8(codes + odd * PANEL), vf_load(head));
    if (kind == W_F4) return vf_mul(vf_load_f4(codes, odd), vf_load(head));
    return vf_mul(vf_sub(vf_load_u4(codes, odd), vf_load(head + PANEL)), vf_load(head));
}

ALWAYS_INLINE void quant_run(const struct tile *t, enum linear_kind kind, const int R, const int P)
{
    const size_t head_bytes = (kind == W_I4 ? 2 : 1) * PANEL * 4,
                 pair_bytes = kind <= W_I8 ? 2 * PANEL : PANEL;
    vf acc[LINEAR_ROWS][QUANT_PANELS];
    UNROLL for (int r = 0; r < R; r++)
    {
        UNROLL for (int p = 0; p < P; p++) acc[r][p] = vf_zero();
    }
    const u8 *x = t->x, *w = t->w;
    for (u32 k = 0, n = t->lead; k < t->pairs; k += n, n = t->group) {
        const u8 *head = w, *codes = w + head_bytes;
        n = MIN_OF(n, t->pairs - k);
        for (u32 i = 0; i < n; i++, x += 8, codes += pair_bytes) {
            UNROLL for (int odd = 0; odd < 2; odd++)
            {
                UNROLL for (int p = 0; p < P; p++)
                {
                    const u8 *panel = codes + p * t->ld_w;
                    vf v = quant_weight(panel, (const float *)(const void *)(head + p * t->ld_w), kind, odd);
                    UNROLL for (int r = 0; r < R; r++) acc[r][p] =
                        vf_fma(tile_x(x + r * t->ld_x + odd * 4), v, acc[r][p]);
                }
            }
        }
        w = codes;
    }
    UNROLL for (int r = 0; r < R; r++)
    {
        UNROLL for (int p = 0; p < P; p++) vf_store(t->sums + r * t->ld_sums + p * PANEL, acc[r][p]);
    }
}

#define QUANT(name, kind, R, P)                                                                              \
    static void quant_##name##_##R##_##P(const struct tile *t)                                               \
    {                                                                                                        \
        if (R <= LINEAR_ROWS && P <= LINEAR_PANELS(R)) quant_run(t, kind, R, P);                             \
    }
#define QUANT_ROWS(name, kind, R) QUANT(name, kind, R, 1) QUANT(name, kind, R, 2) QUANT(name, kind, R, 4)
#define QUANT_KIND(name, kind)                                                                               \
    QUANT_ROWS(name, kind, 1)                                                                                \
    QUANT_ROWS(name, kind, 2)                                                                                \
    QUANT_ROWS(name, kind, 3)                                                                                \
    QUANT_ROWS(name, kind, 4)                                                                                \
    QUANT_ROWS(name, kind, 5)                                                                                \
    QUANT_ROWS(name, kind, 6)
QUANT_KIND(f8, W_F8)
QUANT_KIND(i8, W_I8)
QUANT_KIND(i4, W_I4)
QUANT_KIND(f4, W_F4)
#define QUANT_ROW(name, R)                                                                                   \
    {                                                                                                        \
        quant_##name##_##R##_1, quant_##name##_##R##_2, quant_##name##_##R##_4                               \
    }
#define QUANT_TABLE(name)                                                                                    \
    {                                                                                                        \
        QUANT_ROW(name, 1), QUANT_ROW(name, 2), QUANT_ROW(name, 3), QUANT_ROW(name, 4), QUANT_ROW(name, 5),  \
            QUANT_ROW(name, 6)                                                                               \
    }
static tile_fn *const quant_fns[4][6][3] = {QUANT_TABLE(f8), QUANT_TABLE(i8), QUANT_TABLE(i4),
                                            QUANT_TABLE(f4)}; /* [kind - W_F8][R - 1][log2 P] */

#endif
