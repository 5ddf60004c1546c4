#include "engine/stored.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

int stored_room_init(struct stored_room *r, struct error *err)
{
    *r = (struct stored_room){malloc(STORED_BYTES), malloc(STORED_BYTES), malloc(STORED_BYTES),
                              malloc(STORED_BYTES), malloc(STORED_BYTES)};
    if (r->raw && r->numbers && r->codes && r->scales && r->zeros) return 0;
    stored_room_release(r);
    return error_set(err, ERR_MEMORY, "weights", "no memory for reading (%d bytes)", 5 * STORED_BYTES);
}

void stored_room_release(struct stored_room *r)
{
    void *parts[] = {r->raw, r->numbers, r->codes, r->scales, r->zeros};
    for (size_t i = 0; i < COUNT_OF(parts); i++) free(parts[i]);
    memset(r, 0, sizeof *r);
}

static u32 step_of(const struct slot_part *p)
{
    return p->step ? p->step : 1;
}

u64 stored_bytes(const struct slot_part *p, u32 n)
{
    u64 numbers = (u64)n * p->cols.n;
    if (p->bits) return numbers * p->bits / 8;
    return p->form > STORED_FP8 ? numbers / 2 : numbers * dtype_bytes(p->tensor->dtype);
}

u32 stored_most(const struct slot_part *p)
{
    u64 number = p->form ? sizeof(float) : dtype_bytes(p->tensor->dtype) * step_of(p);
    u64 wide = p->scattered ? MAX_OF(p->cols.n, stored_groups(p).n) : p->cols.n;
    u64 most = (p->form || p->across ? STORED_BYTES : STORED_PIECE) / (wide * number);
    if (most > PANEL) most -= most % PANEL;
    return (u32)MAX_OF(MIN_OF(most, (u64)p->rows.n), 1u);
}

/* ---- rows as they are */
/* Byte in the tensor of a row's first number here. */
static u64 begin_along(const struct slot_part *p, u32 row)
{
    u64 numbers = p->begin + (u64)(p->rows.first + row) * p->cols.of + p->cols.first;
    return numbers * dtype_bytes(p->tensor->dtype);
}

u64 stored_place(const struct slot_part *p, u32 row)
{
    u64 within = p->form || p->across ? 0 : begin_along(p, row);
    return (u64)p->tensor->file << 48 | (p->tensor->offset + within);
}

/* Of what does not lie row by row, other ranges need the same bytes: the first one asks for all. */
void stored_ahead(const struct model_files *f, const struct slot_part *p, u32 row, u32 n)
{
    if (p->tensor->file == MODEL_NO_FILE) return;
    u64 stride = (u64)p->cols.of * dtype_bytes(p->tensor->dtype);
    if (!p->form && !p->across)
        model_ahead(f, p->tensor, begin_along(p, row),
                    stride * (n - 1) + (u64)p->cols.n * dtype_bytes(p->tensor->dtype));
    else if (row == 0)
        model_ahead(f, p->tensor, 0, p->tensor->bytes);
}

static int read_along(const struct model_files *f, const struct slot_part *p, u32 row, u32 n, void *to,
                      struct error *err)
{
    u64 element = dtype_bytes(p->tensor->dtype), stride = p->cols.of * element;
    return model_read_rows(f, p->tensor, begin_along(p, row), stride, to, p->cols.n * element, n, err);
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
    u64 column = (p->rows.first + row) * step + p->phase, wide = n * step;
    u64 len = MIN_OF(column + wide, (u64)p->rows.of) - column; /* nothing may lie behind the last output */
    u64 from = (p->begin + (u64)p->cols.first * p->rows.of + column) * element;
    int rc = 0;
    if (len == wide)
        rc = model_read_rows(f, p->tensor, from, stride, room->raw, len * element, p->cols.n, err);
    for (u32 k = 0; k < p->cols.n && !rc && len < wide; k++)
        rc = model_read(f, p->tensor, from + k * stride, (u8 *)room->raw + k * wide * element, len * element,
                        err);
    if (!rc) turn(p, n, room->raw, room->numbers);
    return rc;
}

int stored_raw(const struct model_files *f, const struct slot_part *p, u32 row, u32 n,
               struct stored_room *room, const void **raw, struct error *err)
{
    *raw = p->across ? room->numbers : room->raw;
    return p->across ? read_across(f, p, row, n, room, err) : read_along(f, p, row, n, room->raw, err);
}

/* ---- numbers */
static float code_value(enum dtype t, u8 code, float zero)
{
    if (t == DTYPE_F8) return f32_from_f8(code);
    return t == DTYPE_F4 ? f32_from_f4(code) : (float)code - zero;
}

static void numbers_of_codes(const struct slot_part *p, u32 n, struct stored_room *room)
{
    enum dtype t = stored_codes_dtype(p->form);
    const u32 *index = p->scattered ? room->raw : NULL;
    u32 lead = p->block - p->cols.first % p->block, groups = stored_groups(p).n;
    float *to = room->numbers;
    for (size_t r = 0; r < n; r++)
        for (u32 k = 0; k < p->cols.n; k++) {
            size_t g = r * groups + (index ? index[k] : k < lead ? 0 : 1 + (k - lead) / p->block);
            *to++ = code_value(t, room->codes[r * p->cols.n + k], t == DTYPE_I4 ? room->zeros[g] : 0) *
                    room->scales[g];
        }
}

/* bf16 numbers that a tensor of no file has: about as large as trained ones; vectors are 1. */
static void make_numbers(const struct slot_part *p, u32 row, u32 n, u16 *to)
{
    u64 state = hash_bytes(&p->tensor->offset, sizeof p->tensor->offset, p->rows.first + row);
    float scale = 1.7f / sqrtf((float)p->cols.of) / (float)(1u << 31);
    for (size_t i = 0; i < (size_t)n * p->cols.n; i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        to[i] = bf16_from_f32(p->cols.of == 1 ? 1 : (float)(i32)(state >> 32) * scale);
    }
}

int stored_read(const struct model_files *f, const struct slot_part *p, u32 row, u32 n,
                struct stored_room *room, const void **numbers, enum dtype *dtype, struct error *err)
{
    *dtype = p->form ? DTYPE_F32 : p->tensor->dtype;
    if (p->tensor->file == MODEL_NO_FILE) {
        make_numbers(p, row, n, room->raw);
        *numbers = room->raw;
        return 0;
    }
    if (!p->form) return stored_raw(f, p, row, n, room, numbers, err);
    int rc = stored_codes(f, p, row, n, room, err);
    *numbers = room->numbers;
    if (!rc) numbers_of_codes(p, n, room);
    return rc;
}
