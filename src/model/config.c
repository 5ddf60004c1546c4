/* config.json: what the model is. Both spellings of the library (older and newer) are read. */
#include "model/config.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
    CONFIG_MAX_BYTES = 16 << 20,
    MAX_WIDTH = 1 << 20, /* of any activation */
    MAX_VOCAB = 1 << 24,
    MAX_POSITION = 1 << 24,
    MAX_HEAD_DIM = 1024,
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
    if (!fields_has(f, "architectures")) return 0;
    const char *class = json_text(json_item(json_get(f->object, "architectures"), 0));
    if (!class) return fields_fail(f, ERR_INPUT, "\"architectures\" must be a list of class names");
    if (strcmp(class, out->arch->class_name))
        return fields_fail(f, ERR_UNSUPPORTED, "\"architectures\" names %s; a %s model is offered as %s only",
                           shown(class, name), out->arch->model_type, out->arch->class_name);
    return 0;
}

static int read_heads(struct fields *f, struct model_config *out)
{
    const struct arch *a = out->arch;
    bool listed = json_get(f->object, "num_key_value_heads") != NULL; /* null says "as many as heads" */
    if (!listed && !a->kv_heads_optional)
        return fields_fail(f, ERR_INPUT, "\"num_key_value_heads\" is missing");
    out->kv_heads = (u32)fields_int(f, "num_key_value_heads", 1, out->heads, out->heads);
    if (out->heads % out->kv_heads)
        return fields_fail(f, ERR_INPUT,
                           "\"num_attention_heads\" (%u) is not a multiple of \"num_key_value_heads\" (%u)",
                           out->heads, out->kv_heads);
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
    if ((u64)out->heads * out->head_dim > MAX_WIDTH)
        return fields_fail(f, ERR_INPUT, "%u heads of %u are wider than %d", out->heads, out->head_dim,
                           MAX_WIDTH);
    return f->rc;
}

static int read_biases(struct fields *f, struct model_config *out)
{
    const struct arch *a = out->arch;
    bool attention = fields_bool(f, "attention_bias", false), mlp = fields_bool(f, "mlp_bias", false);
    if (attention && !a->attention_bias && !a->qkv_bias)
        fields_fail(f, ERR_UNSUPPORTED, "\"attention_bias\" true is not known of a %s model", a->model_type);
    if (mlp && !a->mlp_bias)
        fields_fail(f, ERR_UNSUPPORTED, "\"mlp_bias\" true is not known of a %s model", a->model_type);
    out->q_bias = a->qkv_bias || (a->attention_bias && attention);
    out->o_bias = a->attention_bias && a->o_bias && attention;
    out->mlp_bias = a->mlp_bias && mlp;
    out->qk_norm = a->qk_norm;
    return f->rc;
}

static bool layer_windowed(const struct arch *a, u32 layer, i64 first)
{
    return a->window_all || (a->window_opt && layer >= first);
}

static int read_windows(struct fields *f, struct model_config *out)
{
    const struct arch *a = out->arch;
    bool offered = a->window_all || a->window_opt;
    bool listed = json_get(f->object, "sliding_window") != NULL; /* null says "none" */
    i64 window = fields_int(f, "sliding_window", 0, INT32_MAX, listed ? 0 : a->window_default);
    bool use = fields_bool(f, "use_sliding_window", false);
    i64 first = fields_int(f, "max_window_layers", 0, MAX_WIDTH, 28);
    if (!offered && window)
        return fields_fail(f, ERR_UNSUPPORTED, "\"sliding_window\" is not known of a %s model",
                           a->model_type);
    if (a->window_opt && !use) window = 0;
    const struct json *types = fields_has(f, "layer_types") ? json_get(f->object, "layer_types") : NULL;
    if (types && (json_kind(types) != JK_ARRAY || json_len(types) != out->layers))
        return fields_fail(f, ERR_INPUT, "\"layer_types\" must be a list of %u strings, one a layer",
                           out->layers);
    for (u32 i = 0; i < out->layers; i++) {
        const char *type = json_text(json_item(types, i));
        bool slides = type && !strcmp(type, "sliding_attention");
        if (types && !slides && (!type || strcmp(type, "full_attention")))
            return fields_fail(f, ERR_UNSUPPORTED,
                               "\"layer_types\" item %u must be \"full_attention\" or \"sliding_attention\"",
                               i);
        if (slides && !offered)
            return fields_fail(f, ERR_UNSUPPORTED, "\"layer_types\": a window is not known of a %s model",
                               a->model_type);
        out->window[i] = (types ? slides : layer_windowed(a, i, first)) ? (u32)window : 0;
    }
    return f->rc;
}

static int read_rest(struct fields *f, struct model_config *out)
{
    char name[SHOWN_LEN];
    const char *act = fields_text(f, "hidden_act", "silu");
    if (strcmp(act, "silu") && strcmp(act, "swish"))
        fields_fail(f, ERR_UNSUPPORTED, "\"hidden_act\" %s is not offered; offered: silu", shown(act, name));
    out->eps = (float)fields_real(f, "rms_norm_eps", 1e-20, 1, out->arch->eps_default);
    out->tied = fields_bool(f, "tie_word_embeddings", false);
    return f->rc;
}

static int read_all(struct fields *f, struct model_config *out)
{
    if (json_kind(f->object) != JK_OBJECT)
        return fields_fail(f, ERR_INPUT, "holds %s; it must be an object",
                           json_kind_name(json_kind(f->object)));
    if (read_arch(f, out) || config_check_keys(f)) return f->rc;
    for (size_t i = 0; i < COUNT_OF(SIZES); i++)
        *(u32 *)((char *)out + SIZES[i].at) = (u32)fields_need_int(f, SIZES[i].key, 1, SIZES[i].max);
    if (f->rc || read_heads(f, out) || read_biases(f, out) || read_windows(f, out) || read_rest(f, out))
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
    struct json *root = json_read_file(path, CONFIG_MAX_BYTES, err);
    if (!root) return ERR_INPUT;
    struct fields f = {.path = path, .object = root, .err = err};
    int rc = read_all(&f, out);
    if (!rc) rc = config_generation(root, out, err);
    json_drop(root);
    return rc;
}
