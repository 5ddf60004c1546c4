/* What files call tensors, and the two ends of an encoder: its embeddings, and what makes a score of a vector. */
#include "engine/layout_inner.h"
#include <stdio.h>
#include <string.h>

void layout_name(const struct builder *b, char *out, u32 layer, const char *name)
{
    snprintf(out, LAYOUT_NAME, b->c->arch->encoder ? "encoder.layer.%u.%s" : "model.layers.%u.%s", layer,
             name);
}

/* The name with its end changed, where it has this one. */
static bool other_end(char *out, const char *name, const char *end, const char *other)
{
    size_t n = strlen(name), m = strlen(end);
    if (n < m || strcmp(name + n - m, end)) return false;
    snprintf(out, LAYOUT_NAME, "%.*s%s", (int)(n - m), name, other);
    return true;
}

static const struct tensor *with_prefix(const struct builder *b, const char *name)
{
    char full[LAYOUT_NAME + 16];
    snprintf(full, sizeof full, "%s%s", b->c->arch->prefix, name);
    const struct tensor *t = model_tensor(b->f, full);
    return t ? t : model_tensor(b->f, name);
}

static const struct tensor *encoder_tensor(const struct builder *b, const char *name)
{
    char old[LAYOUT_NAME];
    const struct tensor *t = with_prefix(b, name);
    if (!t && (other_end(old, name, "LayerNorm.weight", "LayerNorm.gamma") ||
               other_end(old, name, "LayerNorm.bias", "LayerNorm.beta")))
        t = with_prefix(b, old);
    return t;
}

const struct tensor *layout_tensor(const struct builder *b, const char *name)
{
    static const char outer[] = "model.";
    if (b->c->arch->encoder) return encoder_tensor(b, name);
    const struct tensor *t = model_tensor(b->f, name);
    if (t || !b->c->pooling.kind || strncmp(name, outer, sizeof outer - 1)) return t;
    return model_tensor(b->f, name + sizeof outer - 1);
}

/* ---- the two ends */
#define TARGET(field) offsetof(struct weights, field)

struct end {
    enum slot_kind kind;
    size_t target;
    const char *name;
    enum dim rows, cols;
};

static int add_list(const struct builder *b, const struct end *list, size_t n)
{
    int rc = 0;
    for (size_t i = 0; i < n && !rc; i++) {
        const struct slot s = {.kind = list[i].kind, .target = list[i].target, .exact = true};
        rc = layout_one(b, s, list[i].name, list[i].rows, list[i].cols);
    }
    return rc;
}

int layout_encoder(const struct builder *b)
{
    static const struct end embeddings[] = {
        {SLOT_ROWS, TARGET(embed), "embeddings.word_embeddings.weight", DIM_VOCAB, DIM_HIDDEN},
        {SLOT_ROWS, TARGET(positions), "embeddings.position_embeddings.weight", DIM_POSITIONS, DIM_HIDDEN},
        {SLOT_ROWS, TARGET(types), "embeddings.token_type_embeddings.weight", DIM_TYPES, DIM_HIDDEN},
        {SLOT_VECTOR, TARGET(embed_norm), "embeddings.LayerNorm.weight", DIM_HIDDEN, DIM_ONE},
        {SLOT_VECTOR, TARGET(embed_bias), "embeddings.LayerNorm.bias", DIM_HIDDEN, DIM_ONE},
    };
    static const struct end pooler[] = {
        {SLOT_PANELS, TARGET(score_dense), "pooler.dense.weight", DIM_HIDDEN, DIM_HIDDEN},
        {SLOT_VECTOR, TARGET(score_dense_bias), "pooler.dense.bias", DIM_HIDDEN, DIM_ONE},
        {SLOT_PANELS, TARGET(score_out), "classifier.weight", DIM_ONE, DIM_HIDDEN},
        {SLOT_VECTOR, TARGET(score_out_bias), "classifier.bias", DIM_ONE, DIM_ONE},
    };
    static const struct end classifier[] = {
        {SLOT_PANELS, TARGET(score_dense), "classifier.dense.weight", DIM_HIDDEN, DIM_HIDDEN},
        {SLOT_VECTOR, TARGET(score_dense_bias), "classifier.dense.bias", DIM_HIDDEN, DIM_ONE},
        {SLOT_PANELS, TARGET(score_out), "classifier.out_proj.weight", DIM_ONE, DIM_HIDDEN},
        {SLOT_VECTOR, TARGET(score_out_bias), "classifier.out_proj.bias", DIM_ONE, DIM_ONE},
    };
    int rc = shard_first(b->shard) ? add_list(b, embeddings, COUNT_OF(embeddings)) : 0;
    if (rc || !shard_last(b->shard) || !b->c->pooling.scores) return rc;
    return b->c->arch->padded ? add_list(b, classifier, COUNT_OF(classifier))
                              : add_list(b, pooler, COUNT_OF(pooler));
}

/* Heads of other tasks, and a list of numbers from 0 on that older files have. */
bool layout_encoder_idle(const struct model_config *c, const char *name)
{
    static const char *const begins[] = {"pooler.", "cls.", "lm_head.", "embeddings.position_ids"};
    size_t n = strlen(c->arch->prefix);
    if (!strncmp(name, c->arch->prefix, n)) name += n;
    for (size_t i = 0; i < COUNT_OF(begins); i++)
        if (!strncmp(name, begins[i], strlen(begins[i]))) return true;
    return false;
}
