#include "engine/layout.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { IMAGE_ALIGN = 64, NAME_LEN = 128 };

/* Sizes by meaning, so that the tables below hold for every model. */
enum dim { DIM_ONE, DIM_HIDDEN, DIM_Q, DIM_KV, DIM_FFN, DIM_HEAD, DIM_VOCAB, DIM_COUNT };

static struct slice whole(u32 n)
{
    return (struct slice){0, n, n};
}

static struct slice times(struct slice s, u32 n)
{
    return (struct slice){s.first * n, s.n * n, s.of * n};
}

static struct slice slice_of(const struct model_config *c, const struct shard *part, enum dim d)
{
    const struct slice slices[DIM_COUNT] = {
        [DIM_ONE] = whole(1),
        [DIM_HIDDEN] = whole(c->hidden),
        [DIM_Q] = times(part->heads, c->head_dim),
        [DIM_KV] = times(part->kv_heads, c->head_dim),
        [DIM_FFN] = part->ffn,
        [DIM_HEAD] = whole(c->head_dim),
        [DIM_VOCAB] = part->vocab,
    };
    return slices[d];
}

/* When a tensor is part of a model: always, or if a flag of its config is set. */
enum cond { ALWAYS, IF_Q_BIAS, IF_O_BIAS, IF_MLP_BIAS, IF_QK_NORM, COND_COUNT };

static bool holds(const struct model_config *c, enum cond cond)
{
    const bool values[COND_COUNT] = {true, c->q_bias, c->o_bias, c->mlp_bias, c->qk_norm};
    return values[cond];
}

#define LAYER(field) offsetof(struct layer_weights, field)

struct part {
    const char *name; /* after "model.layers.N."; NULL ends the list */
    enum dim rows;
};
static const struct linear {
    size_t weight, bias;
    enum cond biased;
    enum dim cols;
    struct part parts[SLOT_PARTS];
} LINEARS[] = {
    {LAYER(qkv),
     LAYER(qkv_bias),
     IF_Q_BIAS,
     DIM_HIDDEN,
     {{"self_attn.q_proj", DIM_Q}, {"self_attn.k_proj", DIM_KV}, {"self_attn.v_proj", DIM_KV}}},
    {LAYER(o), LAYER(o_bias), IF_O_BIAS, DIM_Q, {{"self_attn.o_proj", DIM_HIDDEN}}},
    {LAYER(gate_up),
     LAYER(gate_up_bias),
     IF_MLP_BIAS,
     DIM_HIDDEN,
     {{"mlp.gate_proj", DIM_FFN}, {"mlp.up_proj", DIM_FFN}}},
    {LAYER(down), LAYER(down_bias), IF_MLP_BIAS, DIM_FFN, {{"mlp.down_proj", DIM_HIDDEN}}},
};

static const struct norm {
    size_t at;
    const char *name;
    enum cond present;
    enum dim size;
} NORMS[] = {
    {LAYER(attn_norm), "input_layernorm", ALWAYS, DIM_HIDDEN},
    {LAYER(mlp_norm), "post_attention_layernorm", ALWAYS, DIM_HIDDEN},
    {LAYER(q_norm), "self_attn.q_norm", IF_QK_NORM, DIM_HEAD},
    {LAYER(k_norm), "self_attn.k_norm", IF_QK_NORM, DIM_HEAD},
};

/* ---- building
 * ------------------------------------------------------------------------------------------------*/
struct builder {
    struct layout *l;
    const struct model_config *c;
    const struct shard *shard;
    const struct model_files *f;
    struct error *err;
};

static void shape_text(const struct tensor *t, char *out, size_t size)
{
    size_t n = (size_t)snprintf(out, size, "[");
    for (u32 i = 0; i < t->n_dims && i < COUNT_OF(t->dims) && n < size; i++)
        n += (size_t)snprintf(out + n, size - n, "%s%llu", i ? ", " : "", (unsigned long long)t->dims[i]);
    if (n < size) snprintf(out + n, size - n, "%s]", t->n_dims > COUNT_OF(t->dims) ? ", ..." : "");
}

/* The tensor of that name and shape ([rows] if cols is 0), or NULL and an error. */
static const struct tensor *find(const struct builder *b, const char *name, u32 rows, u32 cols)
{
    char shape[128];
    const struct tensor *t = model_tensor(b->f, name);
    if (!t) {
        error_set(b->err, ERR_INPUT, b->c->dir, "tensor %s is missing", name);
        return NULL;
    }
    u32 dims = cols ? 2 : 1;
    if (t->n_dims != dims || t->dims[0] != rows || (cols && t->dims[1] != cols)) {
        shape_text(t, shape, sizeof shape);
        if (cols)
            error_set(b->err, ERR_INPUT, b->c->dir, "tensor %s has shape %s; config.json asks for [%u, %u]",
                      name, shape, rows, cols);
        else
            error_set(b->err, ERR_INPUT, b->c->dir, "tensor %s has shape %s; config.json asks for [%u]", name,
                      shape, rows);
        return NULL;
    }
    if (t->dtype == DTYPE_OTHER) {
        error_set(b->err, ERR_UNSUPPORTED, b->c->dir, "tensor %s is stored as %s; offered: F32, BF16, F16",
                  name, t->stored);
        return NULL;
    }
    return t;
}

static size_t slot_bytes(const struct slot *s)
{
    return s->kind == SLOT_PANELS ? packed_bytes(s->dtype, s->n_out, s->n_in)
                                  : (size_t)s->n_out * s->n_in * dtype_bytes(s->dtype);
}

/* Places the slot behind the others. Products take bf16 as it is stored if all parts are, else f32. */
static void add(const struct builder *b, struct slot s)
{
    struct layout *l = b->l;
    s.dtype = s.kind == SLOT_VECTOR ? DTYPE_F32 : DTYPE_BF16;
    for (u32 i = 0; i < s.n_parts; i++)
        if (s.part[i].tensor->dtype != DTYPE_BF16) s.dtype = DTYPE_F32;
    s.offset = l->bytes;
    l->bytes += (slot_bytes(&s) + IMAGE_ALIGN - 1) / IMAGE_ALIGN * IMAGE_ALIGN;
    if (l->n == l->cap) {
        l->cap = l->cap ? 2 * l->cap : 64;
        l->slots = mem_resize(l->slots, l->cap * sizeof *l->slots);
    }
    l->slots[l->n++] = s;
}

/* What this engine has of a tensor becomes the slot's next part. */
static int stack(const struct builder *b, struct slot *s, const char *name, enum dim rows, enum dim cols)
{
    struct slot_part p = {.rows = slice_of(b->c, b->shard, rows), .cols = slice_of(b->c, b->shard, cols)};
    p.tensor = find(b, name, p.rows.of, s->kind == SLOT_VECTOR ? 0 : p.cols.of);
    if (!p.tensor) return b->err->code;
    s->n_in = p.cols.n;
    s->n_out += p.rows.n;
    s->part[s->n_parts++] = p;
    return 0;
}

static int add_one(const struct builder *b, enum slot_kind kind, size_t target, const char *name,
                   enum dim rows, enum dim cols)
{
    struct slot s = {.kind = kind, .target = target};
    int rc = stack(b, &s, name, rows, cols);
    if (!rc) add(b, s);
    return rc;
}

/* The weights of a linear layer, or its biases: parts stacked along the outputs. */
static int add_stack(const struct builder *b, enum slot_kind kind, size_t target, u32 layer,
                     const struct linear *lin)
{
    bool bias = kind == SLOT_VECTOR;
    struct slot s = {.kind = kind, .target = target};
    int rc = 0;
    while (!rc && s.n_parts < SLOT_PARTS && lin->parts[s.n_parts].name) {
        const struct part *p = &lin->parts[s.n_parts];
        char name[NAME_LEN];
        snprintf(name, sizeof name, "model.layers.%u.%s.%s", layer, p->name, bias ? "bias" : "weight");
        rc = stack(b, &s, name, p->rows, bias ? DIM_ONE : lin->cols);
    }
    if (!rc) add(b, s);
    return rc;
}

static int add_layer(const struct builder *b, u32 layer)
{
    size_t base = offsetof(struct weights, layer) + layer * sizeof(struct layer_weights);
    int rc = 0;
    for (size_t i = 0; i < COUNT_OF(NORMS) && !rc; i++) {
        char name[NAME_LEN];
        snprintf(name, sizeof name, "model.layers.%u.%s.weight", layer, NORMS[i].name);
        if (holds(b->c, NORMS[i].present))
            rc = add_one(b, SLOT_VECTOR, base + NORMS[i].at, name, NORMS[i].size, DIM_ONE);
    }
    for (size_t i = 0; i < COUNT_OF(LINEARS) && !rc; i++) {
        rc = add_stack(b, SLOT_PANELS, base + LINEARS[i].weight, layer, &LINEARS[i]);
        if (!rc && holds(b->c, LINEARS[i].biased))
            rc = add_stack(b, SLOT_VECTOR, base + LINEARS[i].bias, layer, &LINEARS[i]);
    }
    return rc;
}

/* What lies at the two ends. A tied head serves as the embedding as well, if one engine has both. */
static int add_ends(const struct builder *b)
{
    const char *embed = "model.embed_tokens.weight", *head = b->c->tied ? embed : "lm_head.weight";
    bool first = shard_first(b->shard), last = shard_last(b->shard);
    int rc = 0;
    if (first && !(last && b->c->tied))
        rc = add_one(b, SLOT_ROWS, offsetof(struct weights, embed), embed, DIM_VOCAB, DIM_HIDDEN);
    if (last && !rc)
        rc = add_one(b, SLOT_PANELS, offsetof(struct weights, head), head, DIM_VOCAB, DIM_HIDDEN);
    if (last && !rc)
        rc =
            add_one(b, SLOT_VECTOR, offsetof(struct weights, norm), "model.norm.weight", DIM_HIDDEN, DIM_ONE);
    return rc;
}

int layout_build(struct layout *l, const struct model_config *c, const struct shard *part,
                 const struct model_files *f, struct error *err)
{
    struct error own; /* stack takes the code from it */
    struct builder b = {l, c, part, f, err ? err : &own};
    memset(l, 0, sizeof *l);
    int rc = add_ends(&b);
    for (u32 i = 0; i < part->layers.n && !rc; i++) rc = add_layer(&b, part->layers.first + i);
    if (rc) layout_release(l);
    return rc;
}

void layout_release(struct layout *l)
{
    free(l->slots);
    memset(l, 0, sizeof *l);
}

/* ---- what is left over
 * ---------------------------------------------------------------------------------------*/
static int by_address(const void *x, const void *y)
{
    const struct tensor *a = *(const struct tensor *const *)x, *b = *(const struct tensor *const *)y;
    return (a > b) - (a < b);
}

static bool idle(const struct model_config *c, const char *name)
{
    static const char end[] = ".rotary_emb.inv_freq"; /* older files store what is computed */
    size_t n = strlen(name), m = sizeof end - 1;
    return (n > m && !strcmp(name + n - m, end)) || (c->tied && !strcmp(name, "lm_head.weight"));
}

u32 layout_unused(const struct layout *l, const struct model_config *c, const struct model_files *f,
                  const char **first)
{
    u32 n = 0, unused = 0;
    const struct tensor **used = mem_alloc((l->n * SLOT_PARTS + 1) * sizeof(const struct tensor *));
    for (u32 i = 0; i < l->n; i++)
        for (u32 j = 0; j < l->slots[i].n_parts; j++) used[n++] = l->slots[i].part[j].tensor;
    qsort(used, n, sizeof *used, by_address);
    for (size_t i = 0; i < model_tensor_count(f); i++) {
        const struct tensor *t = model_tensor_at(f, i);
        if (bsearch(&t, used, n, sizeof *used, by_address) || idle(c, model_tensor_name(f, i))) continue;
        if (!unused++) *first = model_tensor_name(f, i);
    }
    free(used);
    return unused;
}
