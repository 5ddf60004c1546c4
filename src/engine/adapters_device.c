/* Adapters on a device: where their factors are, which rows of a chunk are whose, and one call a product for all of them. */
#include "engine/forward_inner.h"

#include <stdlib.h>

/* Of a row's inner sums: the lower the rank, the more ranges of inputs they are of, so that the same memory does for all ranks up to 256. */
enum { LOW_UNIT = 16, LOW_NUMBERS = 256, MOST_SPLITS = 8 };

static u32 layers_of(const struct forward *f)
{
    return f->part.layers.n;
}

/* Of the device's table: [adapters, layers of this engine, products, parts]. */
static size_t factors_at(const struct forward *f, u32 adapter, u32 layer, enum adapted_product product)
{
    size_t at = (size_t)adapter * layers_of(f) + layer - f->part.layers.first;
    return (at * ADAPTED_PRODUCTS + product) * ADAPTED_PARTS;
}

size_t adapters_device_factors(const struct forward *f)
{
    const struct adapters *list = f->spec.config->load.adapters;
    return list ? (size_t)list->n * layers_of(f) * ADAPTED_PRODUCTS * ADAPTED_PARTS : 0;
}

void adapters_device_shape(struct forward *f, u32 most_rank)
{
    u32 ld = (most_rank + LOW_UNIT - 1) / LOW_UNIT * LOW_UNIT;
    f->adapters.low_ld = ld;
    f->adapters.splits = ld ? MAX_OF(1u, MIN_OF(LOW_NUMBERS / ld, (u32)MOST_SPLITS)) : 0;
}

void adapters_device_start(struct forward *f)
{
    const struct adapters *list = f->spec.config->load.adapters;
    size_t n = adapters_device_factors(f);
    if (!n) return;
    struct device_factors *all = mem_zero(n, sizeof *all);
    for (u32 i = 0; i < list->n; i++)
        for (u32 layer = f->part.layers.first; layer < f->part.layers.first + layers_of(f); layer++)
            for (int p = 0; p < ADAPTED_PRODUCTS; p++)
                for (u32 k = 0; k < ADAPTED_PARTS; k++) {
                    const struct adapted *x = &forward_adapted(f, i + 1, layer, (enum adapted_product)p)[k];
                    if (x->a.data)
                        all[factors_at(f, i, layer, (enum adapted_product)p) + k] = (struct device_factors){
                            x->a.data, x->b.data, x->a.n_out, x->b.n_out, x->at, x->scale};
                }
    device_upload(f->spec.device, f->adapters.factors, all, n * sizeof *all);
    free(all);
}

/* ---- a chunk */
static void add_tiles(struct forward *f, u32 adapter, u32 first, u32 n)
{
    for (u32 at = 0; at < n; at += f->adapters.tile_rows)
        f->lists.tiles[f->adapters.n_tiles++] =
            (struct adapted_tile){adapter, first + at, MIN_OF(f->adapters.tile_rows, n - at)};
}

void adapters_device_group(struct forward *f)
{
    u32 count[MODEL_MAX_ADAPTERS] = {0}, first[MODEL_MAX_ADAPTERS], rows = 0, present = 0;
    f->adapters.rows = f->adapters.n_tiles = f->adapters.present = 0;
    for (u32 i = 0; i < f->adapters.n; i++) count[f->adapters.runs[i].adapter - 1] += f->adapters.runs[i].n;
    for (u32 a = 0; a < MODEL_MAX_ADAPTERS; a++) {
        first[a] = rows;
        rows += count[a];
        present += count[a] > 0;
        f->adapters.present |= count[a] ? 1u << a : 0;
    }
    bool many = f->spec.compute != COMPUTE_F32 && rows > present * ADAPTED_FEW;
    f->adapters.rows = rows;
    f->adapters.tile_rows = many ? ADAPTED_MANY : ADAPTED_FEW;
    for (u32 a = 0; a < MODEL_MAX_ADAPTERS; a++) add_tiles(f, a, first[a], count[a]);
    for (u32 i = 0; i < f->adapters.n; i++) {
        const struct adapter_run *run = &f->adapters.runs[i];
        for (u32 k = 0; k < run->n; k++) f->lists.adapted[first[run->adapter - 1]++] = run->row + k;
    }
}

/* What the adapters of the chunk have of a product. */
struct extent {
    u32 rank, outputs, inputs;
};

static struct extent extent_of(const struct forward *f, u32 layer, enum adapted_product product)
{
    struct extent e = {0, 0, 0};
    for (u32 a = 0; a < MODEL_MAX_ADAPTERS; a++)
        for (u32 k = 0; f->adapters.present >> a & 1 && k < ADAPTED_PARTS; k++) {
            const struct adapted *x = &forward_adapted(f, a + 1, layer, product)[k];
            if (!x->a.data) continue;
            e.rank = MAX_OF(e.rank, x->a.n_out);
            e.outputs = MAX_OF(e.outputs, x->b.n_out);
            e.inputs = x->a.n_in;
        }
    return e;
}

void adapters_device_add(struct forward *f, u32 layer, enum adapted_product product, struct rows_in in,
                         struct rows_out out)
{
    struct extent e = extent_of(f, layer, product);
    if (!e.rank) return;
    device_adapt(f->spec.device,
                 &(struct adapt_args){.factors = f->adapters.factors + factors_at(f, 0, layer, product),
                                      .stride = (size_t)layers_of(f) * ADAPTED_PRODUCTS * ADAPTED_PARTS,
                                      .dtype = compute_dtype(f->spec.compute),
                                      .parts = ADAPTED_PARTS,
                                      .most_rank = e.rank,
                                      .most_out = e.outputs,
                                      .rows = f->seen.adapted,
                                      .tiles = f->seen.tiles,
                                      .n_rows = f->adapters.rows,
                                      .n_tiles = f->adapters.n_tiles,
                                      .tile_rows = f->adapters.tile_rows,
                                      .x = in.x,
                                      .x_dtype = in.dtype,
                                      .n_in = e.inputs,
                                      .ld_x = in.ld,
                                      .ld_y = out.ld,
                                      .y = out.y,
                                      .low = f->adapters.low,
                                      .low_ld = (u32)f->adapters.low_ld,
                                      .splits = f->adapters.splits});
}
