#include "engine/layout_inner.h"
#include "engine/stored.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { IMAGE_ALIGN = 64 };

/* ---- tensors */
static void shape_text(const struct tensor *t, char *out, size_t size)
{
    size_t n = (size_t)snprintf(out, size, "[");
    for (u32 i = 0; i < t->n_dims && i < COUNT_OF(t->dims) && n < size; i++)
        n += (size_t)snprintf(out + n, size - n, "%s%llu", i ? ", " : "", (unsigned long long)t->dims[i]);
    if (n < size) snprintf(out + n, size - n, "%s]", t->n_dims > COUNT_OF(t->dims) ? ", ..." : "");
}

/* A tensor of random numbers. */
static const struct tensor *make(const struct builder *b, const struct tensor *want)
{
    struct tensor *t = arena_alloc(&b->l->made, sizeof *t);
    *t = *want;
    t->dtype = DTYPE_BF16;
    t->file = MODEL_NO_FILE;
    t->offset = b->l->n_made++;
    return t;
}

const struct tensor *layout_find(const struct builder *b, const char *name, struct shape shape)
{
    char found[128], text[64];
    const u32 wanted[] = {shape.planes, shape.rows, shape.cols};
    struct tensor want = {0};
    for (size_t i = 0; i < COUNT_OF(wanted); i++)
        if (wanted[i]) want.dims[want.n_dims++] = wanted[i];
    if (b->c->load.dummy) return make(b, &want);
    const struct tensor *t = layout_tensor(b, name);
    if (!t) {
        error_set(b->err, ERR_INPUT, b->c->dir, "tensor %s is missing", name);
        return NULL;
    }
    if (t->n_dims != want.n_dims || memcmp(t->dims, want.dims, want.n_dims * sizeof *t->dims)) {
        shape_text(t, found, sizeof found);
        shape_text(&want, text, sizeof text);
        error_set(b->err, ERR_INPUT, b->c->dir, "tensor %s has shape %s; config.json asks for %s", name,
                  found, text);
        return NULL;
    }
    return t;
}

struct packed slot_packed(const struct slot *s)
{
    return (struct packed){
        .dtype = s->dtype, .n_out = s->n_out, .n_in = s->n_in, .group = s->group, .lead = s->lead};
}

static size_t slot_bytes(const struct builder *b, const struct slot *s)
{
    const struct packed w = slot_packed(s);
    return s->kind == SLOT_PANELS && !b->place ? packed_size(&w)
                                               : (size_t)s->n_out * s->n_in * dtype_bytes(s->dtype);
}

/* Codes stay codes where all parts have the same kind of them, and groups that lie and fall together. */
bool slot_keeps_codes(const struct slot *s)
{
    const struct slot_part *p = s->part;
    for (u32 i = 0; i < s->n_parts; i++)
        if (p[i].form != p->form || p[i].block != p->block || p[i].cols.first != p->cols.first ||
            p[i].scattered || p[i].bits > 4)
            return false;
    return p->form && p->block % 2 == 0 && p->cols.first % 2 == 0;
}

/* bf16 as it is stored if all parts are, else f32. */
static enum dtype plain_dtype(const struct slot *s)
{
    enum dtype dtype = s->kind == SLOT_VECTOR ? DTYPE_F32 : DTYPE_BF16;
    for (u32 i = 0; i < s->n_parts; i++)
        if (s->part[i].tensor->dtype != DTYPE_BF16) dtype = DTYPE_F32;
    return dtype;
}

static void choose_dtype(const struct builder *b, struct slot *s)
{
    enum { I8_GROUP = 128, I4_GROUP = 32 };
    s->dtype = b->place && s->kind != SLOT_VECTOR ? b->place->dtype : plain_dtype(s);
    if (s->kind != SLOT_PANELS || b->place) return;
    if (slot_keeps_codes(s)) {
        s->dtype = stored_codes_dtype(s->part[0].form);
        s->group = s->part[0].block;
        s->lead = s->group - s->part[0].cols.first % s->group;
    } else if (dtype_quantised(b->c->load.weights) && !s->exact) {
        s->dtype = b->c->load.weights;
        s->group = s->lead = s->dtype == DTYPE_I8 ? I8_GROUP : I4_GROUP;
    }
}

void layout_add(const struct builder *b, struct slot s)
{
    struct layout *l = b->l;
    choose_dtype(b, &s);
    s.offset = l->bytes;
    size_t bytes = slot_bytes(b, &s);
    l->bytes +=
        b->place ? weights_device_stride(bytes) : (bytes + IMAGE_ALIGN - 1) / IMAGE_ALIGN * IMAGE_ALIGN;
    if (l->n == l->cap) {
        l->cap = l->cap ? 2 * l->cap : 64;
        l->slots = mem_resize(l->slots, l->cap * sizeof *l->slots);
    }
    l->slots[l->n++] = s;
}

/* ---- layers */
int layout_one(const struct builder *b, struct slot s, const char *name, enum dim rows, enum dim cols)
{
    struct slot_part p = {.rows = dim_slice(b->c, b->shard, rows), .cols = dim_slice(b->c, b->shard, cols)};
    p.tensor = layout_find(b, name, (struct shape){0, p.rows.of, s.kind == SLOT_VECTOR ? 0 : p.cols.of});
    if (!p.tensor || layout_stack(b, &s, name, p)) return b->err->code;
    layout_add(b, s);
    return 0;
}

/* Without what it is of the layer (weight, bias). */
static void part_name(const struct builder *b, char *out, u32 layer, const struct tensor_part *part)
{
    layout_name(b, out, layer, part->name);
    if (!part->other || layout_has(b, out)) return;
    char other[LAYOUT_NAME];
    layout_name(b, other, layer, part->other);
    if (layout_has(b, other)) memcpy(out, other, sizeof other);
}

/* Rows of all parts of a fused tensor. */
static u32 fused_rows(const struct builder *b, const struct tensor_linear *lin)
{
    u32 sum = 0;
    for (u32 i = 0; i < SLOT_PARTS && lin->parts[i].name; i++)
        sum += dim_slice(b->c, b->shard, lin->parts[i].rows).of;
    return sum;
}

static int add_bias(const struct builder *b, u32 layer, const struct tensor_linear *lin)
{
    struct slot s = {.kind = SLOT_VECTOR, .target = layout_target(layer, lin->bias)};
    for (u32 i = 0; i < SLOT_PARTS && lin->parts[i].name; i++) {
        char name[LAYOUT_NAME], bias[LAYOUT_NAME + 8];
        struct slot_part p = {.rows = dim_slice(b->c, b->shard, lin->parts[i].rows),
                              .cols = dim_slice(b->c, b->shard, DIM_ONE)};
        part_name(b, name, layer, &lin->parts[i]);
        snprintf(bias, sizeof bias, "%s.bias", name);
        p.tensor = layout_find(b, bias, (struct shape){0, p.rows.of, 0});
        if (!p.tensor || layout_stack(b, &s, bias, p)) return b->err->code;
    }
    layout_add(b, s);
    return 0;
}

/* Parts stacked along the outputs. */
static int add_linear(const struct builder *b, u32 layer, const struct tensor_linear *lin)
{
    struct slot s = {.kind = SLOT_PANELS, .target = layout_target(layer, lin->weight), .exact = lin->exact};
    u32 before = 0, all = lin->fused ? fused_rows(b, lin) : 0;
    for (u32 i = 0; i < SLOT_PARTS && lin->parts[i].name; i++) {
        char name[LAYOUT_NAME];
        struct slot_part p = {.rows = dim_slice(b->c, b->shard, lin->parts[i].rows),
                              .cols = dim_slice(b->c, b->shard, lin->cols)};
        part_name(b, name, layer, &lin->parts[i]);
        if (lin->fused) {
            p.rows.first += before;
            before += p.rows.of;
            p.rows.of = all;
        }
        if (layout_weight(b, &s, name, p)) return b->err->code;
    }
    layout_add(b, s);
    return 0;
}

static int add_vectors(const struct builder *b, u32 layer)
{
    int rc = 0;
    for (size_t i = 0; i < TENSOR_VECTORS_N && !rc; i++) {
        const struct tensor_vector *v = &TENSOR_VECTORS[i];
        struct slot s = {.kind = SLOT_VECTOR,
                         .target = layout_target(layer, v->at),
                         .plus_one = v->norm && b->c->arch->plus_one};
        char name[LAYOUT_NAME];
        layout_name(b, name, layer, v->name);
        if (!v->when || v->when(b->c, layer)) rc = layout_one(b, s, name, v->size, DIM_ONE);
    }
    return rc;
}

static int add_layer(const struct builder *b, u32 layer)
{
    int rc = add_vectors(b, layer);
    for (size_t i = 0; i < TENSOR_LINEARS_N && !rc; i++) {
        const struct tensor_linear *lin = &TENSOR_LINEARS[i];
        if (lin->when && !lin->when(b->c, layer)) continue;
        rc = add_linear(b, layer, lin);
        if (!rc && lin->biased && lin->biased(b->c, layer)) rc = add_bias(b, layer, lin);
    }
    if (!rc && b->c->arch->mla) rc = layout_heads(b, layer);
    if (!rc && b->c->sparse[layer]) rc = layout_experts(b, layer);
    return rc;
}

/* What lies at the two ends. A tied head serves as the embedding as well, if one engine has both. */
static int add_ends(const struct builder *b)
{
    const char *embed = "model.embed_tokens.weight", *head = b->c->tied ? embed : "lm_head.weight";
    bool first = shard_first(b->shard), last = shard_last(b->shard);
    const struct slot rows = {.kind = SLOT_ROWS, .target = offsetof(struct weights, embed)},
                      panels = {.kind = SLOT_PANELS, .target = offsetof(struct weights, head), .exact = true},
                      norm = {.kind = SLOT_VECTOR,
                              .target = offsetof(struct weights, norm),
                              .plus_one = b->c->arch->plus_one};
    int rc = 0;
    if (first && !(last && b->c->tied)) rc = layout_one(b, rows, embed, DIM_VOCAB, DIM_HIDDEN);
    if (last && !rc) rc = layout_one(b, panels, head, DIM_VOCAB, DIM_HIDDEN);
    if (last && !rc) rc = layout_one(b, norm, "model.norm.weight", DIM_HIDDEN, DIM_ONE);
    return rc;
}

int layout_build(struct layout *l, const struct model_config *c, const struct shard *part,
                 const struct model_files *f, const struct weights_place *place, struct error *err)
{
    struct error own; /* what is found wrong is asked for its code */
    struct builder b = {l, c, part, f, place, err ? err : &own};
    memset(l, 0, sizeof *l);
    arena_init(&l->made, 0);
    int rc = c->arch->encoder ? layout_encoder(&b) : add_ends(&b);
    for (u32 i = 0; i < part->layers.n && !rc; i++) rc = add_layer(&b, part->layers.first + i);
    if (!rc) rc = layout_adapters(&b);
    if (rc) layout_release(l);
    return rc;
}

void layout_release(struct layout *l)
{
    free(l->slots);
    arena_release(&l->made);
    memset(l, 0, sizeof *l);
}

/* ---- what is left over
 * ---------------------------------------------------------------------------------------*/
static int by_address(const void *x, const void *y)
{
    const struct tensor *a = *(const struct tensor *const *)x, *b = *(const struct tensor *const *)y;
    return (a > b) - (a < b);
}

static bool ends_with(const char *name, const char *end)
{
    size_t n = strlen(name), m = strlen(end);
    return n > m && !strcmp(name + n - m, end);
}

/* What is known and has nothing to say. */
static bool idle(const struct model_config *c, const char *name)
{
    u32 layer;
    if (c->arch->encoder) return layout_encoder_idle(c, name);
    if (ends_with(name, ".rotary_emb.inv_freq")) return true; /* older files store what is computed */
    if (c->tied && !strcmp(name, "lm_head.weight")) return true;
    return c->arch->mla && sscanf(name, "model.layers.%u.", &layer) == 1 &&
           layer >= c->layers; /* layers that predict further tokens */
}

u32 layout_unused(const struct layout *l, const struct model_config *c, const struct model_files *f,
                  const char **first)
{
    u32 n = 0, unused = 0;
    const struct tensor **used = mem_alloc((4 * l->n * SLOT_PARTS + 1) * sizeof(const struct tensor *));
    for (u32 i = 0; i < l->n; i++)
        for (u32 j = 0; j < l->slots[i].n_parts; j++) {
            const struct slot_part *p = &l->slots[i].part[j];
            used[n++] = p->tensor;
            if (p->scale) used[n++] = p->scale;
            if (p->zero) used[n++] = p->zero;
            if (p->index) used[n++] = p->index;
        }
    qsort(used, n, sizeof *used, by_address);
    for (size_t i = 0; i < model_tensor_count(f); i++) {
        const struct tensor *t = model_tensor_at(f, i);
        if (bsearch(&t, used, n, sizeof *used, by_address) || idle(c, model_tensor_name(f, i))) continue;
        if (!unused++) *first = model_tensor_name(f, i);
    }
    free(used);
    return unused;
}
