#include "engine/weights.h"
#include "engine/layout.h"
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Read at a time. A row is at most 4 MiB (2^20 f32), so whole rows always fit. */
enum { STAGING = 16 << 20 };

int weights_plan(const struct model_config *c, const struct model_files *f, size_t *bytes, struct error *err)
{
    struct layout l;
    int rc = layout_build(&l, c, f, err);
    if (rc) return rc;
    *bytes = l.bytes;
    layout_release(&l);
    return 0;
}

/* ---- filling
 * -------------------------------------------------------------------------------------------------*/
struct filler {
    const struct model_files *files;
    u8 *image;
    void *staging;
    _Atomic u64 *progress;
    struct error *err;
};

static float widened(const void *from, enum dtype t, size_t i)
{
    if (t == DTYPE_F32) return ((const float *)from)[i];
    u16 h = ((const u16 *)from)[i];
    return t == DTYPE_BF16 ? f32_from_bf16(h) : f32_from_f16(h);
}

/* Rows [row, row + n) of the slot, read from a tensor of type from. */
static void store(const struct filler *x, const struct slot *s, u32 row, u32 n, enum dtype from)
{
    void *at = x->image + s->offset;
    size_t first = (size_t)row * s->n_in, count = (size_t)n * s->n_in;
    if (s->kind == SLOT_PANELS)
        pack_rows(at, s->dtype, s->n_out, s->n_in, row, n, x->staging, from);
    else if (s->dtype == from)
        memcpy((u8 *)at + first * dtype_bytes(from), x->staging, count * dtype_bytes(from));
    else
        for (size_t i = 0; i < count; i++) ((float *)at)[first + i] = widened(x->staging, from, i);
}

static int fill_part(const struct filler *x, const struct slot *s, u32 row0, const struct tensor *t)
{
    u64 row_bytes = (u64)s->n_in * dtype_bytes(t->dtype);
    u32 rows = (u32)t->dims[0], most = (u32)MIN_OF(STAGING / row_bytes, (u64)rows);
    if (most > PANEL) most -= most % PANEL;
    for (u32 row = 0; row < rows;) {
        u32 n = MIN_OF(most, rows - row);
        int rc = model_read(x->files, t, row * row_bytes, x->staging, n * row_bytes, x->err);
        if (rc) return rc;
        store(x, s, row0 + row, n, t->dtype);
        if (x->progress) atomic_fetch_add(x->progress, n * row_bytes);
        row += n;
    }
    return 0;
}

static int fill_slot(const struct filler *x, const struct slot *s)
{
    int rc = 0;
    u32 row0 = 0;
    for (u32 i = 0; i < s->n_parts && !rc; i++) {
        rc = fill_part(x, s, row0, s->part[i]);
        row0 += (u32)s->part[i]->dims[0];
    }
    return rc;
}

static void report_unused(const struct layout *l, const struct model_config *c, const struct model_files *f)
{
    const char *first = NULL;
    u32 n = layout_unused(l, c, f, &first);
    if (n)
        log_warning("%s: %u tensor%s not used by this architecture, the first is %s", c->dir, n,
                    n == 1 ? " is" : "s are", first);
}

int weights_fill(const struct model_config *c, const struct model_files *f, void *image, size_t bytes,
                 _Atomic u64 *progress, struct error *err)
{
    struct layout l;
    int rc = layout_build(&l, c, f, err);
    if (rc) return rc;
    struct filler x = {f, image, malloc(STAGING), progress, err};
    if (!x.staging)
        rc = error_set(err, ERR_MEMORY, c->dir, "no memory for reading the weights (%d bytes)", STAGING);
    else if (bytes < l.bytes)
        rc = error_set(err, ERR_INPUT, c->dir,
                       "the weights need %zu bytes, %zu are set aside: the files have changed", l.bytes,
                       bytes);
    else
        report_unused(&l, c, f);
    for (u32 i = 0; i < l.n && !rc; i++) rc = fill_slot(&x, &l.slots[i]);
    free(x.staging);
    layout_release(&l);
    return rc;
}

/* ---- binding
 * -------------------------------------------------------------------------------------------------*/
int weights_bind(const struct model_config *c, const struct model_files *f, const void *image,
                 struct weights *out, struct error *err)
{
    struct layout l;
    int rc = layout_build(&l, c, f, err);
    if (rc) return rc;
    memset(out, 0, sizeof *out);
    for (u32 i = 0; i < l.n; i++) {
        const struct slot *s = &l.slots[i];
        const void *data = (const u8 *)image + s->offset;
        void *target = (u8 *)out + s->target;
        if (s->kind == SLOT_PANELS)
            *(struct packed *)target = (struct packed){data, s->dtype, s->n_out, s->n_in};
        else
            memcpy(target, &data, sizeof data);
        if (s->kind == SLOT_ROWS) out->embed_dtype = s->dtype;
    }
    layout_release(&l);
    return 0;
}
