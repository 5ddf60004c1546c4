/* config.json: what the model is. Both spellings of the library (older and newer) are read. */
#include "model/config.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
    CONFIG_MAX_BYTES = 16 << 20,
    MAX_VOCAB = 1 << 24,
    MAX_POSITION = 1 << 24,
    MAX_HEAD_DIM = MODEL_MAX_HEAD,
};

static const struct size_field {
    const char *key;
    size_t at; /* a u32 in struct model_config */
    i64 max;
} SIZES[] = {
    {"hidden_size", offsetof(struct model_config, hidden), MAX_WIDTH},
    {"num_hidden_layers", offsetof(struct model_config, layers), MODEL_MAX_LAYERS},
    {"num_attention_heads", offsetof(struct model_config, heads), MAX_WIDTH},
    {"intermediate_size", offsetof(struct model_config, ffn), MAX_WIDTH},
    {"vocab_size", offsetof(struct model_config, vocab), MAX_VOCAB},
    {"max_position_embeddings", offsetof(struct model_config, max_position), MAX_POSITION},
};

/* XModel beside XForCausalLM: how embedding models are saved. */
static bool is_headless(const char *class, const struct arch *arch)
{
    static const char with_head[] = "ForCausalLM";
    const char *end = strstr(arch->class_name, with_head);
    size_t n = end ? (size_t)(end - arch->class_name) : 0;
    return n && !strncmp(class, arch->class_name, n) && !strcmp(class + n, "Model");
}

static int read_arch(struct fields *f, struct model_config *out)
{
    char name[SHOWN_LEN];
    const char *type = fields_text(f, "model_type", NULL);
    if (f->rc) return f->rc;
    if (!type) return fields_fail(f, ERR_INPUT, "\"model_type\" is missing");
    out->arch = model_arch(type);
    if (!out->arch) {
        struct buf list = {0};
        arch_list(&list);
        fields_fail(f, ERR_UNSUPPORTED, "model_type \"%s\" is not offered; offered: %s", shown(type, name),
                    list.data);
        buf_release(&list);
        return f->rc;
    }
    if (!fields_has(f, "architectures"))
        return out->arch->encoder ? config_encoder_class(f, out->arch->class_name, out) : 0;
    const char *class = json_text(json_item(json_get(f->object, "architectures"), 0));
    if (!class) return fields_fail(f, ERR_INPUT, "\"architectures\" must be a list of class names");
    if (out->arch->encoder) return config_encoder_class(f, class, out);
    if (strcmp(class, out->arch->class_name) && !(out->pooling.kind && is_headless(class, out->arch)))
        return fields_fail(f, ERR_UNSUPPORTED, "\"architectures\" names %s; a %s model is offered as %s only",
                           shown(class, name), out->arch->model_type, out->arch->class_name);
    return 0;
}

static int read_kv_heads(struct fields *f, struct model_config *out)
{
    const struct arch *a = out->arch;
    bool listed = json_get(f->object, "num_key_value_heads") != NULL; /* null says "as many as heads" */
    if (!listed && !a->kv_heads_optional)
        return fields_fail(f, ERR_INPUT, "\"num_key_value_heads\" is missing");
    out->kv_heads = (u32)fields_int(f, "num_key_value_heads", 1, out->heads, out->heads);
    if (a->mla) out->kv_heads = out->heads; /* the number plays no part there */
    if (out->heads % out->kv_heads)
        return fields_fail(f, ERR_INPUT,
                           "\"num_attention_heads\" (%u) is not a multiple of \"num_key_value_heads\" (%u)",
                           out->heads, out->kv_heads);
    return f->rc;
}

static int read_heads(struct fields *f, struct model_config *out)
{
    const struct arch *a = out->arch;
    if (read_kv_heads(f, out)) return f->rc;
    if (a->mla) return config_mla(f, out);
    if (!fields_has(f, "head_dim") && !a->head_dim_default && out->hidden % out->heads)
        return fields_fail(f, ERR_INPUT,
                           "\"hidden_size\" (%u) is not a multiple of \"num_attention_heads\" (%u), and "
                           "there is no \"head_dim\"",
                           out->hidden, out->heads);
    u32 usual = a->head_dim_default ? (u32)a->head_dim_default : out->hidden / out->heads;
    out->head_dim = (u32)fields_int(f, "head_dim", 2, MAX_HEAD_DIM, usual);
    if (out->head_dim % 2 || !out->head_dim || out->head_dim > MAX_HEAD_DIM)
        return fields_fail(f, ERR_INPUT, "the size of a head is %u; it must be even, from 2 to %d",
                           out->head_dim, MAX_HEAD_DIM);
    return f->rc;
}

static int check_width(struct fields *f, const struct model_config *c)
{
    if ((u64)c->heads * c->head_dim <= MAX_WIDTH) return f->rc;
    return fields_fail(f, ERR_INPUT, "%u heads of %u are wider than %d", c->heads, c->head_dim, MAX_WIDTH);
}

static int read_biases(struct fields *f, struct model_config *out)
{
    const struct arch *a = out->arch;
    bool attention = fields_bool(f, "attention_bias", a->bias_default),
         mlp = fields_bool(f, "mlp_bias", false);
    if (attention && !a->attention_bias && !a->qkv_bias)
        fields_fail(f, ERR_UNSUPPORTED, "\"attention_bias\" true is not known of a %s model", a->model_type);
    if (mlp && !a->mlp_bias)
        fields_fail(f, ERR_UNSUPPORTED, "\"mlp_bias\" true is not known of a %s model", a->model_type);
    out->q_bias = a->qkv_bias ? fields_bool(f, "qkv_bias", true) : a->attention_bias && attention;
    out->o_bias = a->attention_bias && a->o_bias && attention;
    out->mlp_bias = a->mlp_bias && mlp;
    out->qk_norm = a->qk_norm;
    if (a->mla && out->q_bias && !out->mla.q_rank)
        fields_fail(f, ERR_UNSUPPORTED, "\"attention_bias\" true is not offered without \"q_lora_rank\"");
    return f->rc;
}

static const char *const ACTIVATIONS[] = {
    [ACT_SILU] = "silu", [ACT_GELU_TANH] = "gelu_pytorch_tanh", [ACT_CLAMPED] = "silu", [ACT_GELU] = "gelu"};

void config_activation(struct fields *f, const struct arch *a, const char *key)
{
    char name[SHOWN_LEN];
    const char *wanted = ACTIVATIONS[a->act], *act = fields_text(f, key, wanted);
    bool swish = !strcmp(wanted, "silu") && !strcmp(act, "swish");
    if (strcmp(act, wanted) && !swish)
        fields_fail(f, ERR_UNSUPPORTED, "\"%s\" %s is not offered; offered: %s", key, shown(act, name),
                    wanted);
}

/* A soft cap: null switches it off, absent is the architecture's. */
static float read_cap(struct fields *f, const char *key, float usual)
{
    bool listed = json_get(f->object, key) != NULL;
    return (float)fields_real(f, key, 1e-3, 1e6, listed ? 0 : (double)usual);
}

static void read_gemma(struct fields *f, struct model_config *out)
{
    out->embed_scale = sqrtf((float)out->hidden);
    out->score_scale = 1 / sqrtf((float)fields_real(f, "query_pre_attn_scalar", 1e-3, 1e6, 256));
    out->score_cap = read_cap(f, "attn_logit_softcapping", out->arch->score_cap);
    out->logit_cap = read_cap(f, "final_logit_softcapping", out->arch->logit_cap);
    if (out->score_cap > 0 && !(out->arch->score_cap > 0))
        fields_fail(f, ERR_UNSUPPORTED, "\"attn_logit_softcapping\" is not offered for a %s model",
                    out->arch->model_type);
}

static int read_rest(struct fields *f, struct model_config *out)
{
    const struct arch *a = out->arch;
    config_activation(f, a, "hidden_act");
    out->eps = (float)fields_real(f, "rms_norm_eps", 1e-20, 1, a->eps_default > 0 ? a->eps_default : 1e-6);
    out->tied = fields_bool(f, "tie_word_embeddings", a->tied_default);
    out->embed_scale = 1;
    out->score_scale = 1 / sqrtf((float)out->head_dim);
    if (a->act == ACT_GELU_TANH) {
        config_activation(f, a, "hidden_activation");
        read_gemma(f, out);
    }
    if (a->act == ACT_CLAMPED) {
        out->act_limit = (float)fields_real(f, "swiglu_limit", 1e-3, 1e6, 7);
        out->act_alpha = (float)fields_real(f, "swiglu_alpha", 1e-3, 1e3, 1.702);
    }
    return f->rc;
}

static bool says_float32(const struct fields *f)
{
    const char *type = json_text(json_get(f->object, fields_has(f, "dtype") ? "dtype" : "torch_dtype"));
    return type && !strcmp(type, "float32");
}

static int read_all(struct fields *f, struct model_config *out)
{
    if (json_kind(f->object) != JK_OBJECT)
        return fields_fail(f, ERR_INPUT, "holds %s; it must be an object",
                           json_kind_name(json_kind(f->object)));
    if (read_arch(f, out) || config_check_keys(f, out->arch)) return f->rc;
    out->float32 = says_float32(f);
    for (size_t i = 0; i < COUNT_OF(SIZES); i++)
        *(u32 *)((char *)out + SIZES[i].at) = (u32)fields_need_int(f, SIZES[i].key, 1, SIZES[i].max);
    if (out->arch->encoder) return config_encoder(f, out);
    if (f->rc || read_heads(f, out) || check_width(f, out) || read_biases(f, out) || config_windows(f, out) ||
        config_moe(f, out) || read_rest(f, out) || config_quant(f, out))
        return f->rc;
    return config_rope(f, out);
}

int model_read_config(const char *dir, struct model_config *out, struct error *err)
{
    char path[PATH_LEN];
    memset(out, 0, sizeof *out);
    if (path_join(out->dir, sizeof out->dir, err, "%s", dir) ||
        path_join(path, sizeof path, err, "%s/config.json", dir))
        return ERR_INPUT;
    if (access(path, R_OK) < 0 && errno != ENOENT)
        return error_errno(err, path, "cannot read the model's folder");
    if (access(dir, F_OK) < 0) return error_errno(err, dir, "cannot find the model's folder");
    if (!file_exists(path))
        return error_set(err, ERR_NOT_FOUND, dir, "no config.json: this is not a model's folder");
    int rc = config_pooling(out, err);
    if (rc) return rc;
    struct json *root = json_read_file(path, CONFIG_MAX_BYTES, err);
    if (!root) return ERR_INPUT;
    struct fields f = {.path = path, .object = root, .err = err};
    rc = read_all(&f, out);
    if (!rc) rc = config_pooled(out, err);
    if (!rc) rc = config_generation(root, out, err);
    json_drop(root);
    return rc;
}
