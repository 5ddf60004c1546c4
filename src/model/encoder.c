/* Encoders (BERT and its kin): config.json beyond the sizes, and what is done with the last layer. A folder with modules.json makes
 * vectors; a classifier of one label scores pairs of texts. */
#include "model/config.h"
#include <math.h>
#include <string.h>

/* ---- classes: X and one of these, where arch->class_name is XModel */
static const struct head {
    const char *end;
    bool scores;
} HEADS[] = {{"Model", false}, {"ForMaskedLM", false}, {"ForSequenceClassification", true}};

static const struct head *find_head(const char *class, const struct arch *a)
{
    size_t n = strlen(a->class_name) - strlen("Model");
    for (size_t i = 0; i < COUNT_OF(HEADS); i++)
        if (!strncmp(class, a->class_name, n) && !strcmp(class + n, HEADS[i].end)) return &HEADS[i];
    return NULL;
}

/* "id2label" of a classifier; without it there are two. */
static u32 labels(struct fields *f)
{
    const struct json *names = json_get(f->object, "id2label");
    i64 usual = json_kind(names) == JK_OBJECT ? (i64)json_len(names) : 2;
    return (u32)fields_int(f, "num_labels", 1, MAX_WIDTH, usual);
}

int config_encoder_class(struct fields *f, const char *class, struct model_config *out)
{
    char name[SHOWN_LEN];
    const struct head *head = find_head(class, out->arch);
    if (!head)
        return fields_fail(f, ERR_UNSUPPORTED,
                           "\"architectures\" names %s; a %s model is offered as %s, and as "
                           "ForSequenceClassification with one label",
                           shown(class, name), out->arch->model_type, out->arch->class_name);
    if (!head->scores && !out->pooling.kind)
        return fields_fail(
            f, ERR_UNSUPPORTED,
            "is of an encoder, which generates nothing, and no modules.json beside it says how it "
            "makes vectors");
    if (!head->scores) return 0;
    if (out->pooling.kind)
        return fields_fail(f, ERR_UNSUPPORTED,
                           "\"architectures\" names a classifier, and modules.json beside it makes vectors");
    if (labels(f) != 1)
        return fields_fail(f, ERR_UNSUPPORTED, "is of a classifier with %u labels; offered: one, a score",
                           labels(f));
    out->pooling = (struct pooling_config){.kind = POOLING_CLS, .scores = true, .sigmoid = true};
    return f->rc;
}

/* ---- what becomes of the score: the newer and the older key of sentence-transformers; without them it is the sigmoid. */
static void read_activation(struct fields *f, struct model_config *out)
{
    char name[SHOWN_LEN];
    struct fields inner = {
        .path = f->path, .object = json_get(f->object, "sentence_transformers"), .err = f->err};
    const char *key = "activation_fn",
               *class = json_kind(inner.object) == JK_OBJECT ? fields_text(&inner, key, NULL) : NULL;
    if (inner.rc) f->rc = inner.rc;
    if (!class) class = fields_text(f, key = "sbert_ce_default_activation_function", "Sigmoid");
    const char *dot = strrchr(class, '.'), *last = dot ? dot + 1 : class;
    out->pooling.sigmoid = !strcmp(last, "Sigmoid");
    if (!out->pooling.sigmoid && strcmp(last, "Identity"))
        fields_fail(f, ERR_UNSUPPORTED, "\"%s\" %s is not offered; offered: Sigmoid, Identity", key,
                    shown(class, name));
}

static void read_positions(struct fields *f, struct model_config *out)
{
    char name[SHOWN_LEN];
    const char *kind = fields_text(f, "position_embedding_type", "absolute");
    if (strcmp(kind, "absolute"))
        fields_fail(f, ERR_UNSUPPORTED, "\"position_embedding_type\" %s is not offered; offered: absolute",
                    shown(kind, name));
    struct encoder_config *e = &out->encoder;
    e->positions = out->max_position;
    if (out->arch->padded) e->first = (u32)fields_int(f, "pad_token_id", 0, INT32_MAX - 1, 1) + 1;
    if (e->first >= e->positions)
        fields_fail(f, ERR_INPUT, "\"max_position_embeddings\" is %u, and \"pad_token_id\" takes %u of them",
                    e->positions, e->first);
    else
        out->max_position = e->positions - e->first;
}

int config_encoder(struct fields *f, struct model_config *out)
{
    if (f->rc) return f->rc;
    out->kv_heads = out->heads;
    out->head_dim = out->hidden / out->heads;
    if (out->hidden % out->heads || out->head_dim % 2 || out->head_dim > MODEL_MAX_HEAD)
        return fields_fail(f, ERR_INPUT,
                           "\"num_attention_heads\" %u: \"hidden_size\" (%u) must be that many heads of an "
                           "even size up to %d",
                           out->heads, out->hidden, MODEL_MAX_HEAD);
    config_activation(f, out->arch, "hidden_act");
    if (fields_bool(f, "is_decoder", false))
        fields_fail(f, ERR_UNSUPPORTED, "\"is_decoder\" true is not offered for a %s model",
                    out->arch->model_type);
    if (fields_has(f, "quantization_config"))
        fields_fail(f, ERR_UNSUPPORTED, "\"quantization_config\" is not offered for a %s model",
                    out->arch->model_type);
    out->eps = (float)fields_real(f, "layer_norm_eps", 1e-20, 1, 1e-12);
    out->encoder.types = (u32)fields_int(f, "type_vocab_size", 1, MAX_WIDTH, 2);
    out->score_scale = 1 / sqrtf((float)out->head_dim);
    out->embed_scale = 1;
    out->q_bias = out->o_bias = out->mlp_bias = true;
    read_positions(f, out);
    if (out->pooling.scores) read_activation(f, out);
    return f->rc;
}
