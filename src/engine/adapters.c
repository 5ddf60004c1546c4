/* Adapters in the forward pass: what they add to a product, y += scale B (A x), for their sequences' rows alone. The product itself is the
 * base's, computed as ever: rows without an adapter keep their bits, and a row's sum depends on the row alone, whoever is in the
 * batch. With several engines a product out of heads or MLP has inputs in parts, and so has A: what is added is a partial sum like
 * the product. */
#include "engine/forward_inner.h"

enum { CUT_ROWS = 16 }; /* of a piece of work in the first of both products */

void forward_add_run(struct forward *f, u32 adapter, u32 row, u32 n)
{
    struct adapter_run *last = f->adapters.n ? &f->adapters.runs[f->adapters.n - 1] : NULL;
    if (!adapter) return;
    BUG_ON(!f->spec.config->load.adapters || adapter > f->spec.config->load.adapters->n);
    if (last && last->adapter == adapter && last->row + last->n == row)
        last->n += n;
    else
        f->adapters.runs[f->adapters.n++] = (struct adapter_run){adapter, row, n};
}

struct work { /* one product in work, on one thread */
    struct forward *f;
    u32 layer;
    enum adapted_product product;
    struct rows_in in;
    struct share s;
};

/* Is there anything to add, and does it want numbers as f32 that are bf16? The same on all threads. */
static bool find_work(const struct work *w, bool *widen)
{
    bool any = false;
    *widen = false;
    for (u32 i = 0; i < w->f->adapters.n; i++) {
        const struct adapted *x = forward_adapted(w->f, w->f->adapters.runs[i].adapter, w->layer, w->product);
        for (u32 k = 0; k < ADAPTED_PARTS; k++) {
            if (!x[k].a.data) continue;
            any = true;
            *widen |= w->in.dtype == DTYPE_BF16 && x[k].a.dtype == DTYPE_F32;
        }
    }
    return any;
}

static u32 inputs_of(const struct adapted *x)
{
    for (u32 k = 0; k < ADAPTED_PARTS; k++)
        if (x[k].a.data) return x[k].a.n_in;
    return 0;
}

/* Inputs of the rows with adapters as f32, which is exact. */
static void widen_inputs(const struct work *w)
{
    struct forward *f = w->f;
    for (u32 i = 0; i < f->adapters.n; i++) {
        const struct adapter_run *run = &f->adapters.runs[i];
        u32 n = (inputs_of(forward_adapted(f, run->adapter, w->layer, w->product)) + 1) / 2 * 2;
        for (u32 r = run->row + w->s.i; r < run->row + run->n; r += w->s.n) {
            const u16 *from = (const u16 *)w->in.x + r * w->in.ld;
            float *to = f->adapters.wide + r * f->act_ld;
            for (u32 k = 0; k < n; k++) to[k] = f32_from_bf16(from[k]);
        }
    }
    forward_wait(f, w->s);
}

static float *low_of(const struct forward *f, u32 row, u32 part)
{
    return f->adapters.low + (row * (size_t)ADAPTED_PARTS + part) * f->adapters.low_ld;
}

static size_t row_stride(const struct forward *f)
{
    return ADAPTED_PARTS * f->adapters.low_ld;
}

/* scale A x of some rows, to the part's place. */
static void lower_piece(const struct work *w, const struct adapted *x, u32 part, u32 row, u32 rows)
{
    struct forward *f = w->f;
    bool wide = w->in.dtype == DTYPE_BF16 && x->a.dtype == DTYPE_F32;
    const struct rows_in in = wide ? (struct rows_in){f->adapters.wide, DTYPE_F32, f->act_ld} : w->in;
    f->spec.ops->linear(&(struct linear_args){.w = &x->a,
                                              .x = (const u8 *)in.x + row * in.ld * dtype_bytes(in.dtype),
                                              .x_dtype = in.dtype,
                                              .rows = rows,
                                              .ld_x = in.ld,
                                              .ld_y = row_stride(f),
                                              .y = low_of(f, row, part)},
                        (struct share){0, 1, NULL});
    for (u32 r = row; r < row + rows; r++) {
        float *low = low_of(f, r, part);
        for (u32 k = 0; k < x->a.n_out; k++) low[k] *= x->scale;
        if (x->a.n_out % 2) low[x->a.n_out] = 0;
    }
}

/* Ranks are small: threads share rows and parts, not outputs. */
static void lower(const struct work *w)
{
    u32 piece = 0;
    for (u32 i = 0; i < w->f->adapters.n; i++) {
        const struct adapter_run *run = &w->f->adapters.runs[i];
        const struct adapted *x = forward_adapted(w->f, run->adapter, w->layer, w->product);
        for (u32 k = 0; k < ADAPTED_PARTS; k++)
            for (u32 at = 0; x[k].a.data && at < run->n; at += CUT_ROWS)
                if (piece++ % w->s.n == w->s.i)
                    lower_piece(w, &x[k], k, run->row + at, MIN_OF(run->n - at, (u32)CUT_ROWS));
    }
    forward_wait(w->f, w->s);
}

static void raise(const struct work *w, struct rows_out out)
{
    struct forward *f = w->f;
    for (u32 i = 0; i < f->adapters.n; i++) {
        const struct adapter_run *run = &f->adapters.runs[i];
        const struct adapted *x = forward_adapted(f, run->adapter, w->layer, w->product);
        for (u32 k = 0; k < ADAPTED_PARTS; k++)
            if (x[k].a.data)
                f->spec.ops->linear(&(struct linear_args){.w = &x[k].b,
                                                          .x = low_of(f, run->row, k),
                                                          .x_dtype = DTYPE_F32,
                                                          .rows = run->n,
                                                          .ld_x = row_stride(f),
                                                          .ld_y = out.ld,
                                                          .y = out.y + run->row * out.ld + x[k].at,
                                                          .add = true},
                                    w->s);
    }
    forward_wait(f, w->s);
}

void forward_adapt(struct forward *f, const struct layer_weights *layer, enum adapted_product product,
                   struct rows_in in, struct rows_out out, struct share s)
{
    const struct work w = {f, (u32)(layer - f->spec.weights->layer), product, in, s};
    bool widen;
    if (!f->adapters.n) return;
    if (f->spec.device) {
        adapters_device_add(f, w.layer, product, in, out);
        return;
    }
    if (!find_work(&w, &widen)) return;
    if (widen) widen_inputs(&w);
    lower(&w);
    raise(&w, out);
}
