#include "engine/stored.h"
#include <stdlib.h>
#include <string.h>

int stored_room_init(struct stored_room *r, struct error *err)
{
    *r = (struct stored_room){malloc(STORED_BYTES), malloc(STORED_BYTES), malloc(STORED_BYTES)};
    if (r->raw && r->numbers && r->scales) return 0;
    stored_room_release(r);
    return error_set(err, ERR_MEMORY, "weights", "no memory for reading (%d bytes)", 3 * STORED_BYTES);
}

void stored_room_release(struct stored_room *r)
{
    free(r->raw);
    free(r->numbers);
    free(r->scales);
    memset(r, 0, sizeof *r);
}

static u32 step_of(const struct slot_part *p)
{
    return p->step ? p->step : 1;
}

u64 stored_bytes(const struct slot_part *p, u32 n)
{
    return (u64)n * p->cols.n * step_of(p) * dtype_bytes(p->tensor->dtype);
}

u32 stored_most(const struct slot_part *p)
{
    u64 row = MAX_OF(stored_bytes(p, 1), p->scale ? p->cols.n * sizeof(float) : 0), most = STORED_BYTES / row;
    if (most > PANEL) most -= most % PANEL;
    return (u32)MAX_OF(MIN_OF(most, (u64)p->rows.n), 1u);
}

/* ---- rows as they are */
static int read_along(const struct model_files *f, const struct slot_part *p, u32 row, u32 n, void *to,
                      struct error *err)
{
    u64 element = dtype_bytes(p->tensor->dtype), stride = p->cols.of * element;
    u64 from = p->begin * element + (p->rows.first + row) * stride + p->cols.first * element;
    return model_read_rows(f, p->tensor, from, stride, to, p->cols.n * element, n, err);
}

/* ---- stored [cols, rows]: read as it lies, then turned */
static void turn(const struct slot_part *p, u32 n, const u8 *raw, u8 *to)
{
    size_t element = dtype_bytes(p->tensor->dtype), step = step_of(p);
    for (u32 k = 0; k < p->cols.n; k++)
        for (u32 o = 0; o < n; o++)
            memcpy(to + ((size_t)o * p->cols.n + k) * element,
                   raw + ((size_t)k * n * step + o * step) * element, element);
}

static int read_across(const struct model_files *f, const struct slot_part *p, u32 row, u32 n,
                       struct stored_room *room, struct error *err)
{
    u64 element = dtype_bytes(p->tensor->dtype), stride = p->rows.of * element, step = step_of(p);
    u64 column = (p->rows.first + row) * step + p->phase, last = column + n * step;
    u64 len = MIN_OF(last, (u64)p->rows.of) - column; /* behind the last output, others' numbers may end */
    u64 from = (p->begin + (u64)p->cols.first * p->rows.of + column) * element;
    if (len < n * step) { /* the last row of pieces is shorter: one by one */
        int rc = 0;
        for (u32 k = 0; k < p->cols.n && !rc; k++)
            rc = model_read(f, p->tensor, from + k * stride, (u8 *)room->raw + k * n * step * element,
                            len * element, err);
        if (rc) return rc;
    } else {
        int rc = model_read_rows(f, p->tensor, from, stride, room->raw, len * element, p->cols.n, err);
        if (rc) return rc;
    }
    turn(p, n, room->raw, room->numbers);
    return 0;
}

/* ---- fp8 with a scale for each block */
static int read_scales(const struct model_files *f, const struct slot_part *p, u32 first, u32 n, float *to,
                       struct error *err)
{
    u32 wide = (p->cols.of + p->scale_block - 1) / p->scale_block;
    size_t element = dtype_bytes(p->scale->dtype), count = (size_t)n * wide;
    u8 *end = (u8 *)to + count * (sizeof *to - element); /* widened from the front */
    int rc = model_read(f, p->scale, (u64)first * wide * element, end, count * element, err);
    for (size_t i = 0; i < count && !rc; i++) {
        u16 half;
        memcpy(&half, end + i * element, sizeof half);
        if (p->scale->dtype == DTYPE_BF16) to[i] = f32_from_bf16(half);
        if (p->scale->dtype == DTYPE_F16) to[i] = f32_from_f16(half);
    }
    return rc;
}

static int read_scaled(const struct model_files *f, const struct slot_part *p, u32 row, u32 n,
                       struct stored_room *room, struct error *err)
{
    u32 top = p->rows.first + row, block = p->scale_block, wide = (p->cols.of + block - 1) / block;
    const u8 *raw = room->raw;
    const float *scales = room->scales;
    float *to = room->numbers;
    int rc = read_along(f, p, row, n, room->raw, err);
    if (!rc) rc = read_scales(f, p, top / block, (top + n - 1) / block - top / block + 1, room->scales, err);
    for (u32 r = 0; r < n && !rc; r++) {
        const float *s = scales + (size_t)((top + r) / block - top / block) * wide;
        for (u32 k = 0; k < p->cols.n; k++, raw++) *to++ = f32_from_f8(*raw) * s[(p->cols.first + k) / block];
    }
    return rc;
}

int stored_read(const struct model_files *f, const struct slot_part *p, u32 row, u32 n,
                struct stored_room *room, const void **numbers, enum dtype *dtype, struct error *err)
{
    *dtype = p->scale ? DTYPE_F32 : p->tensor->dtype;
    *numbers = p->scale || p->across ? room->numbers : room->raw;
    if (p->scale) return read_scaled(f, p, row, n, room, err);
    if (p->across) return read_across(f, p, row, n, room, err);
    return read_along(f, p, row, n, room->raw, err);
}
