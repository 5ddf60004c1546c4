/* What stands for a linear layer's weight: a tensor of numbers, or codes with scales. */
#include "engine/layout_inner.h"
#include <stdio.h>
#include <string.h>

static u32 blocks(u32 n, u32 block)
{
    return (n + block - 1) / block;
}

static int not_offered(const struct builder *b, const char *name, const struct tensor *t, const char *offered)
{
    return error_set(b->err, ERR_UNSUPPORTED, b->c->dir, "tensor %s is stored as %s; offered: %s", name,
                     t->stored, offered);
}

/* A tensor NAME_SUFFIX of that shape, whose numbers can be read as they are, or of the type that is named. */
static const struct tensor *beside(const struct builder *b, const char *name, const char *suffix,
                                   struct shape shape, const char *type)
{
    char full[LAYOUT_NAME + 32];
    snprintf(full, sizeof full, "%s%s", name, suffix);
    const struct tensor *t = layout_find(b, full, shape);
    if (!t || (type ? !strcmp(t->stored, type) : t->dtype <= DTYPE_F16)) return t;
    not_offered(b, full, t, type ? type : "F32, BF16, F16");
    return NULL;
}

/* ---- fp8: NAME.weight, and NAME.weight_scale_inv */
static int fp8(const struct builder *b, const char *name, struct slot_part *p)
{
    u32 block = b->c->quant.block, rows = p->across ? p->cols.of : p->rows.of,
        cols = p->across ? p->rows.of : p->cols.of;
    if (b->c->quant.method != QUANT_FP8 || p->begin || p->step > 1)
        return error_set(b->err, ERR_UNSUPPORTED, b->c->dir,
                         "tensor %s is stored as F8_E4M3, which \"quantization_config\" does not explain",
                         name);
    p->scale =
        beside(b, name, "_scale_inv", (struct shape){0, blocks(rows, block), blocks(cols, block)}, NULL);
    p->block = block;
    p->form = STORED_FP8;
    return p->scale ? 0 : b->err->code;
}

int layout_stack(const struct builder *b, struct slot *s, const char *name, struct slot_part p)
{
    if (p.tensor->dtype == DTYPE_F8 && s->kind == SLOT_PANELS) {
        if (fp8(b, name, &p)) return b->err->code;
    } else if (!p.form && p.tensor->dtype > DTYPE_F16) {
        return not_offered(b, name, p.tensor, "F32, BF16, F16");
    }
    s->n_in = p.cols.n;
    s->n_out += p.rows.n;
    s->part[s->n_parts++] = p;
    return 0;
}

static bool has(const struct builder *b, const char *name, const char *suffix)
{
    char full[LAYOUT_NAME + 32];
    snprintf(full, sizeof full, "%s%s", name, suffix);
    return layout_tensor(b, full) != NULL;
}

/* ---- awq and gptq: NAME.qweight, qzeros and scales, gptq: g_idx; eight codes of four bits a word, or four of eight */
static int eights(const struct builder *b, const char *name, struct slice s)
{
    if (s.first % 8 == 0 && s.n % 8 == 0 && s.of % 8 == 0) return 0;
    return error_set(b->err, ERR_UNSUPPORTED, b->c->dir,
                     "%s: %u of %u begin at %u; weights stored eight to a word are divided at multiples of 8",
                     name, s.n, s.of, s.first);
}

static int words(const struct builder *b, struct slot *s, const char *name, struct slot_part p)
{
    const struct quant_config *q = &b->c->quant;
    bool awq = q->method == QUANT_AWQ;
    u32 out = p.rows.of, in = p.cols.of, block = q->block ? q->block : in, each = 32 / q->bits;
    if (eights(b, name, p.rows) || eights(b, name, p.cols)) return b->err->code;
    p.form = awq ? STORED_AWQ : q->v2 ? STORED_GPTQ_V2 : STORED_GPTQ;
    p.block = block;
    p.bits = q->bits;
    p.scattered = q->scattered;
    p.tensor = beside(b, name, ".qweight",
                      awq ? (struct shape){0, in, out / each} : (struct shape){0, in / each, out}, "I32");
    if (!awq && (p.scattered || has(b, name, ".g_idx"))) {
        p.index = beside(b, name, ".g_idx", (struct shape){0, in, 0}, "I32");
        if (!p.index) return b->err->code;
    }
    if (p.tensor)
        p.zero = beside(b, name, ".qzeros", (struct shape){0, blocks(in, block), out / each}, "I32");
    if (p.zero) p.scale = beside(b, name, ".scales", (struct shape){0, blocks(in, block), out}, NULL);
    return p.scale ? layout_stack(b, s, name, p) : b->err->code;
}

static bool in_words(const struct builder *b, const char *name)
{
    return (b->c->quant.method == QUANT_AWQ || b->c->quant.method == QUANT_GPTQ) && has(b, name, ".qweight");
}

bool layout_has(const struct builder *b, const char *name)
{
    return b->c->load.dummy || has(b, name, ".weight") || in_words(b, name);
}

int layout_weight(const struct builder *b, struct slot *s, const char *name, struct slot_part p)
{
    char full[LAYOUT_NAME + 8];
    if (in_words(b, name)) return words(b, s, name, p);
    snprintf(full, sizeof full, "%s.weight", name);
    p.tensor = layout_find(b, full, (struct shape){0, p.rows.of, p.cols.of});
    return p.tensor ? layout_stack(b, s, full, p) : b->err->code;
}

/* ---- mxfp4: NAME_blocks [experts, rows, cols / 32, 16] and NAME_scales [experts, rows, cols / 32] */
int layout_mxfp4(const struct builder *b, struct slot *s, const char *name, u32 experts, struct slot_part p)
{
    enum { BLOCK = 32 };
    char full[LAYOUT_NAME + 8];
    if (p.cols.of % BLOCK || p.cols.first % 2 || p.cols.n % 2)
        return error_set(
            b->err, ERR_UNSUPPORTED, b->c->dir,
            "%s: %u of %u inputs from %u; mxfp4 is read in blocks of %d, and divided at even numbers", name,
            p.cols.n, p.cols.of, p.cols.first, BLOCK);
    p.scale = beside(b, name, "_scales", (struct shape){experts, p.rows.of, p.cols.of / BLOCK}, "U8");
    if (!p.scale) return b->err->code;
    snprintf(full, sizeof full, "%s_blocks", name);
    p.tensor = layout_tensor(b, full);
    const u64 want[] = {experts, p.rows.of, p.cols.of / BLOCK, BLOCK / 2};
    if (!p.tensor || p.tensor->n_dims != 4 || memcmp(p.tensor->dims, want, sizeof want) ||
        strcmp(p.tensor->stored, "U8"))
        return error_set(b->err, ERR_INPUT, b->c->dir, "tensor %s is missing, or is not U8 [%u, %u, %u, %d]",
                         full, experts, p.rows.of, p.cols.of / BLOCK, BLOCK / 2);
    p.form = STORED_MXFP4;
    p.block = BLOCK;
    return layout_stack(b, s, full, p);
}
