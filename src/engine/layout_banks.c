/* Weights of which a layer has many: the experts', and the heads' of latent attention. */
#include "engine/layout_inner.h"
#include <stdio.h>

#define LAYER(field) offsetof(struct layer_weights, field)

/* ---- experts: each with its own tensors, or all in one */
static const struct spelling { /* of an expert's weights; the first whose gate is there */
    const char *gate, *up, *down;
} SPELLINGS[] = {
    {"mlp.experts.%u.gate_proj", "mlp.experts.%u.up_proj", "mlp.experts.%u.down_proj"},
    {"block_sparse_moe.experts.%u.w1", "block_sparse_moe.experts.%u.w3", "block_sparse_moe.experts.%u.w2"},
};

static void expert_name(char *out, u32 layer, const char *format, u32 expert)
{
    size_t n = (size_t)snprintf(out, LAYOUT_NAME, "model.layers.%u.", layer);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(out + n, LAYOUT_NAME - n, format, expert);
#pragma GCC diagnostic pop
}

static const struct spelling *find_spelling(const struct builder *b, u32 layer)
{
    char name[LAYOUT_NAME];
    for (size_t i = 0; i < COUNT_OF(SPELLINGS); i++) {
        expert_name(name, layer, SPELLINGS[i].gate, 0);
        if (layout_has(b, name)) return &SPELLINGS[i];
    }
    return &SPELLINGS[0];
}

static int stack_one(const struct builder *b, struct slot *s, u32 layer, const char *format, u32 expert,
                     enum dim rows, enum dim cols)
{
    char name[LAYOUT_NAME];
    struct slot_part p = {.rows = dim_slice(b->c, b->shard, rows), .cols = dim_slice(b->c, b->shard, cols)};
    expert_name(name, layer, format, expert);
    return layout_weight(b, s, name, p);
}

static size_t bank_target(u32 layer, size_t field, u32 i)
{
    return i ? TARGET_NONE : layout_target(layer, field);
}

static int add_separate(const struct builder *b, u32 layer)
{
    const struct spelling *sp = find_spelling(b, layer);
    for (u32 e = 0; e < b->c->moe.experts; e++) {
        struct slot s = {.kind = SLOT_PANELS, .target = bank_target(layer, LAYER(expert_gate_up), e)};
        if (stack_one(b, &s, layer, sp->gate, e, DIM_EXPERT_FFN, DIM_HIDDEN) ||
            stack_one(b, &s, layer, sp->up, e, DIM_EXPERT_FFN, DIM_HIDDEN))
            return b->err->code;
        layout_add(b, s);
    }
    for (u32 e = 0; e < b->c->moe.experts; e++) {
        struct slot s = {.kind = SLOT_PANELS, .target = bank_target(layer, LAYER(expert_down), e)};
        if (stack_one(b, &s, layer, sp->down, e, DIM_HIDDEN, DIM_EXPERT_FFN)) return b->err->code;
        layout_add(b, s);
    }
    return 0;
}

/* A tensor [experts, ...] of all experts. */
struct fused {
    const char *name;
    size_t at;
    enum slot_kind kind;
    bool gate_up; /* else down */
};

/* The part of expert e that is the gate (0) or up (1) half, or down. Stored [2 ffn, hidden] with the gate first; or, where experts have
 * biases, [hidden, 2 ffn], and as codes [2 ffn, hidden], with gate and up in turn. */
static struct slot_part fused_part(const struct builder *b, const struct fused *x, u32 e, u32 half,
                                   bool codes)
{
    bool turns = b->c->moe.bias, vector = x->kind == SLOT_VECTOR;
    struct slice ffn = dim_slice(b->c, b->shard, DIM_EXPERT_FFN),
                 hidden = dim_slice(b->c, b->shard, DIM_HIDDEN);
    struct slot_part p = {.rows = x->gate_up ? ffn : hidden,
                          .cols = x->gate_up ? hidden : ffn,
                          .across = turns && !codes,
                          .step = 1};
    if (vector) p.cols = (struct slice){0, 1, 1};
    if (x->gate_up) {
        if (!turns) p.rows.first += half * ffn.of;
        p.rows.of = 2 * ffn.of;
        p.step = turns ? 2 : 1;
        p.phase = turns ? half : 0;
    }
    p.begin = (u64)e * p.rows.of * p.cols.of;
    return p;
}

static int stack_codes(const struct builder *b, struct slot *s, const struct fused *x, const char *name,
                       u32 e)
{
    int rc = 0;
    for (u32 half = 0; half < (x->gate_up ? 2 : 1) && !rc; half++)
        rc = layout_mxfp4(b, s, name, b->c->moe.experts, fused_part(b, x, e, half, true));
    return rc;
}

static int add_codes(const struct builder *b, u32 layer, const struct fused *x, const char *name)
{
    for (u32 e = 0; e < b->c->moe.experts; e++) {
        struct slot s = {.kind = x->kind, .target = bank_target(layer, x->at, e)};
        if (stack_codes(b, &s, x, name, e)) return b->err->code;
        layout_add(b, s);
    }
    return 0;
}

static int add_fused(const struct builder *b, u32 layer, const struct fused *x)
{
    char name[LAYOUT_NAME];
    struct slot_part p = fused_part(b, x, 0, 0, false);
    struct shape shape = {b->c->moe.experts, p.across ? p.cols.of : p.rows.of,
                          p.across ? p.rows.of : p.cols.of};
    if (x->kind == SLOT_VECTOR) shape = (struct shape){0, b->c->moe.experts, p.rows.of};
    snprintf(name, sizeof name, "model.layers.%u.%s", layer, x->name);
    if (x->kind == SLOT_PANELS && b->c->quant.method == QUANT_MXFP4 && !layout_tensor(b, name) &&
        !b->c->load.dummy)
        return add_codes(b, layer, x, name);
    const struct tensor *t = layout_find(b, name, shape);
    if (!t) return b->err->code;
    for (u32 e = 0; e < b->c->moe.experts; e++) {
        struct slot s = {.kind = x->kind, .target = bank_target(layer, x->at, e)};
        for (u32 half = 0; half < (x->gate_up ? 2 : 1); half++) {
            p = fused_part(b, x, e, half, false);
            p.tensor = t;
            if (layout_stack(b, &s, name, p)) return b->err->code;
        }
        layout_add(b, s);
    }
    return 0;
}

static const struct fused FUSED[] = {
    {"mlp.experts.gate_up_proj", LAYER(expert_gate_up), SLOT_PANELS, true},
    {"mlp.experts.down_proj", LAYER(expert_down), SLOT_PANELS, false},
    {"mlp.experts.gate_up_proj_bias", LAYER(expert_gate_up_bias), SLOT_VECTOR, true},
    {"mlp.experts.down_proj_bias", LAYER(expert_down_bias), SLOT_VECTOR, false},
};

int layout_experts(const struct builder *b, u32 layer)
{
    char name[LAYOUT_NAME];
    int rc = 0;
    snprintf(name, sizeof name, "model.layers.%u.%s", layer, FUSED[0].name);
    if (!b->c->moe.bias && !layout_tensor(b, name)) return add_separate(b, layer);
    for (size_t i = 0; i < COUNT_OF(FUSED) && !rc; i++)
        if (FUSED[i].kind == SLOT_PANELS || b->c->moe.bias) rc = add_fused(b, layer, &FUSED[i]);
    return rc;
}

/* ---- heads of latent attention: kv_b_proj [heads (nope + value), rank], head by head: what makes k of a latent, turned round so that
 * it takes q to the latent's side; and what makes v of it */
int layout_heads(const struct builder *b, u32 layer)
{
    const struct mla_config *m = &b->c->mla;
    u32 size = m->nope + m->value, all = b->c->heads * size;
    const struct slice rank = {0, m->kv_rank, m->kv_rank};
    char name[LAYOUT_NAME];
    snprintf(name, sizeof name, "model.layers.%u.self_attn.kv_b_proj.weight", layer);
    const struct tensor *t = layout_find(b, name, (struct shape){0, all, m->kv_rank});
    if (!t) return b->err->code;
    for (int expand = 0; expand < 2; expand++)
        for (u32 i = 0; i < b->shard->heads.n; i++) {
            u32 row = (b->shard->heads.first + i) * size;
            size_t field = expand ? LAYER(expand) : LAYER(absorb);
            struct slot s = {.kind = SLOT_PANELS, .target = bank_target(layer, field, i), .exact = true};
            struct slot_part p = {.tensor = t, .rows = rank, .cols = {row, m->nope, all}, .across = true};
            if (expand)
                p = (struct slot_part){.tensor = t, .rows = {row + m->nope, m->value, all}, .cols = rank};
            if (layout_stack(b, &s, name, p)) return b->err->code;
            layout_add(b, s);
        }
    return 0;
}
