/* Quantised forms. What the tensors mean: struct quant_config, and where the forms are read, below. */
#include "engine/stored.h"
#include <math.h>
#include <string.h>

enum dtype stored_codes_dtype(enum stored_form form)
{
    return form == STORED_FP8 ? DTYPE_F8 : form == STORED_MXFP4 ? DTYPE_F4 : DTYPE_I4;
}

struct slice stored_groups(const struct slot_part *p)
{
    u32 first = p->cols.first / p->block, last = (p->cols.first + p->cols.n - 1) / p->block;
    u32 all = (p->cols.of + p->block - 1) / p->block;
    return p->scattered ? (struct slice){0, all, all} : (struct slice){first, last - first + 1, all};
}

/* n numbers of a tensor from element `at`, widened. */
static int read_numbers(const struct model_files *f, const struct tensor *t, u64 at, u64 n, float *to,
                        struct error *err)
{
    size_t element = dtype_bytes(t->dtype);
    u8 *end = (u8 *)to + n * (sizeof *to - element); /* widened from the front */
    int rc = model_read(f, t, at * element, end, n * element, err);
    for (u64 i = 0; i < n && !rc && element == 2; i++) {
        u16 half;
        memcpy(&half, end + i * element, sizeof half);
        to[i] = t->dtype == DTYPE_BF16 ? f32_from_bf16(half) : f32_from_f16(half);
    }
    return rc;
}

/* ---- fp8: weight [rows, cols] E4M3; scale [rows / block, cols / block] multiplies. Across: both turned */
static int fp8_scales(const struct model_files *f, const struct slot_part *p, u32 row, u32 n,
                      struct stored_room *room, struct error *err)
{
    struct slice groups = stored_groups(p);
    u32 top = (p->rows.first + row) / p->block, last = (p->rows.first + row + n - 1) / p->block;
    u32 wide = p->across ? (p->rows.of + p->block - 1) / p->block : groups.of;
    u32 first = p->across ? groups.first : top, count = p->across ? groups.n : last - top + 1;
    float *all = room->raw; /* the codes are out of it */
    int rc = read_numbers(f, p->scale, (u64)first * wide, (u64)count * wide, all, err);
    for (u32 r = 0; r < n && !rc; r++) {
        u32 block = (p->rows.first + row + r) / p->block;
        for (u32 g = 0; g < groups.n; g++)
            room->scales[(size_t)r * groups.n + g] =
                p->across ? all[(size_t)g * wide + block]
                          : all[(size_t)(block - top) * wide + groups.first + g];
    }
    return rc;
}

static int read_fp8(const struct model_files *f, const struct slot_part *p, u32 row, u32 n,
                    struct stored_room *room, struct error *err)
{
    const void *raw;
    int rc = stored_raw(f, p, row, n, room, &raw, err);
    if (rc) return rc;
    memcpy(room->codes, raw, (size_t)n * p->cols.n);
    for (size_t i = 0; i < (size_t)n * p->cols.n; i++)
        if ((room->codes[i] & 0x7f) == 0x7f)
            return error_set(err, ERR_INPUT, "weights", "a weight of fp8 is not a number");
    return fp8_scales(f, p, row, n, room, err);
}

/* ---- awq, gptq: words of eight codes, or of four */
/* scales [groups, outputs]: turned. */
static int word_scales(const struct model_files *f, const struct slot_part *p, u32 row, u32 n,
                       struct stored_room *room, struct error *err)
{
    struct slice groups = stored_groups(p);
    int rc = 0;
    for (u32 g = 0; g < groups.n && !rc; g++) {
        float *line = room->raw;
        rc = read_numbers(f, p->scale, (u64)(groups.first + g) * p->rows.of + p->rows.first + row, n, line,
                          err);
        for (u32 o = 0; o < n && !rc; o++) room->scales[(size_t)o * groups.n + g] = line[o];
    }
    return rc;
}

/* Code j of a word's eight or four. */
static u32 code_of(const struct slot_part *p, u32 word, u32 j)
{
    static const u8 awq[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    return word >> p->bits * (p->form == STORED_AWQ ? awq[j] : j) & ((1u << p->bits) - 1);
}

/* zeros [groups, outputs / each] */
static int word_zeros(const struct model_files *f, const struct slot_part *p, u32 row, u32 n,
                      struct stored_room *room, struct error *err)
{
    struct slice groups = stored_groups(p);
    u32 each = 32 / p->bits, more = p->form == STORED_GPTQ;
    u64 wide = p->rows.of / each, first = (p->rows.first + row) / each;
    int rc = 0;
    for (u32 g = 0; g < groups.n && !rc; g++) {
        const u32 *line = room->raw;
        rc = model_read(f, p->zero, ((groups.first + g) * wide + first) * 4, room->raw, n / each * 4, err);
        for (u32 o = 0; o < n && !rc; o++) /* one more may be 16, or 256 */
            room->zeros[(size_t)o * groups.n + g] = (float)(code_of(p, line[o / each], o % each) + more);
    }
    return rc;
}

/* weight [inputs, outputs / 8] */
static int awq_codes(const struct model_files *f, const struct slot_part *p, u32 row, u32 n,
                     struct stored_room *room, struct error *err)
{
    u64 stride = p->rows.of / 8 * 4, from = p->cols.first * stride + (p->rows.first + row) / 8 * 4;
    int rc = model_read_rows(f, p->tensor, from, stride, room->raw, n / 8 * 4, p->cols.n, err);
    const u32 *raw = room->raw;
    for (u32 k = 0; k < p->cols.n && !rc; k++)
        for (u32 o = 0; o < n; o++)
            room->codes[(size_t)o * p->cols.n + k] = (u8)code_of(p, raw[k * (n / 8) + o / 8], o % 8);
    return rc;
}

/* weight [inputs / each, outputs] */
static int gptq_codes(const struct model_files *f, const struct slot_part *p, u32 row, u32 n,
                      struct stored_room *room, struct error *err)
{
    u32 each = 32 / p->bits;
    u64 stride = (u64)p->rows.of * 4, from = p->cols.first / each * stride + (u64)(p->rows.first + row) * 4;
    int rc = model_read_rows(f, p->tensor, from, stride, room->raw, (u64)n * 4, p->cols.n / each, err);
    const u32 *raw = room->raw;
    for (u32 k = 0; k < p->cols.n && !rc; k++)
        for (u32 o = 0; o < n; o++)
            room->codes[(size_t)o * p->cols.n + k] =
                (u8)code_of(p, raw[(size_t)(k / each) * n + o], k % each);
    return rc;
}

static const char *name_of(const struct model_files *f, const struct tensor *t)
{
    for (size_t i = 0; i < model_tensor_count(f); i++)
        if (model_tensor_at(f, i) == t) return model_tensor_name(f, i);
    BUG("a tensor of no file");
}

/* The group of each input to raw, after everything else. In order, it must say what is taken for granted. */
static int gptq_index(const struct model_files *f, const struct slot_part *p, struct stored_room *room,
                      struct error *err)
{
    u32 *index = room->raw, groups = stored_groups(p).of;
    int rc = model_read(f, p->index, (u64)p->cols.first * 4, index, (u64)p->cols.n * 4, err);
    for (u32 k = 0; k < p->cols.n && !rc; k++) {
        u32 input = p->cols.first + k;
        if (index[k] >= groups)
            rc = error_set(err, ERR_INPUT, name_of(f, p->index), "input %u is in group %d; there are %u",
                           input, (i32)index[k], groups);
        else if (!p->scattered && index[k] != input / p->block)
            rc = error_set(err, ERR_INPUT, name_of(f, p->index),
                           "input %u is in group %u, not %u as \"desc_act\" false in config.json says", input,
                           index[k], input / p->block);
    }
    return rc;
}

static int read_words(const struct model_files *f, const struct slot_part *p, u32 row, u32 n,
                      struct stored_room *room, struct error *err)
{
    int rc = p->form == STORED_AWQ ? awq_codes(f, p, row, n, room, err) : gptq_codes(f, p, row, n, room, err);
    if (!rc) rc = word_scales(f, p, row, n, room, err);
    if (!rc) rc = word_zeros(f, p, row, n, room, err);
    return rc || !p->index ? rc : gptq_index(f, p, room, err);
}

/* ---- mxfp4: blocks [.., rows, cols / 32, 16], the lower half of a byte first; scales are powers of two, biased by 127 */
static int mxfp4_row(const struct model_files *f, const struct slot_part *p, u64 stored_row, u8 *codes,
                     float *scales, struct error *err)
{
    struct slice groups = stored_groups(p);
    u8 bytes[1 << 12];
    u64 row = p->begin / p->cols.of + stored_row;
    for (u32 k = 0, n; k < p->cols.n; k += n) {
        n = MIN_OF(p->cols.n - k, 2 * (u32)sizeof bytes);
        int rc = model_read(f, p->tensor, (row * p->cols.of + p->cols.first + k) / 2, bytes, n / 2, err);
        if (rc) return rc;
        for (u32 i = 0; i < n; i++) codes[k + i] = bytes[i / 2] >> (i % 2 ? 4 : 0) & 15;
    }
    for (u32 g = 0, n; g < groups.n; g += n) {
        n = MIN_OF(groups.n - g, (u32)sizeof bytes);
        int rc = model_read(f, p->scale, row * groups.of + groups.first + g, bytes, n, err);
        if (rc) return rc;
        for (u32 i = 0; i < n; i++) {
            scales[g + i] = ldexpf(1, bytes[i] - 127);
            if (bytes[i] == 255 || !isfinite(6 * scales[g + i]))
                return error_set(err, ERR_INPUT, "weights", "a scale of mxfp4 (%u) is too large", bytes[i]);
        }
    }
    return 0;
}

static int read_mxfp4(const struct model_files *f, const struct slot_part *p, u32 row, u32 n,
                      struct stored_room *room, struct error *err)
{
    u32 groups = stored_groups(p).n, step = p->step ? p->step : 1;
    int rc = 0;
    for (u32 o = 0; o < n && !rc; o++)
        rc = mxfp4_row(f, p, (u64)(p->rows.first + row + o) * step + p->phase,
                       room->codes + (size_t)o * p->cols.n, room->scales + (size_t)o * groups, err);
    return rc;
}

int stored_codes(const struct model_files *f, const struct slot_part *p, u32 row, u32 n,
                 struct stored_room *room, struct error *err)
{
    if (p->form == STORED_FP8) return read_fp8(f, p, row, n, room, err);
    if (p->form == STORED_MXFP4) return read_mxfp4(f, p, row, n, room, err);
    return read_words(f, p, row, n, room, err);
}
