/* A PEFT folder: adapter_config.json, adapter_model.safetensors. Which modules an adapter changes is told by its tensors; of the
 * configuration only what the tensors do not say is used, and what would make other maths of them is refused by name. */
#include "model/config.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ADAPTER_MAX_BYTES = 4 << 20, MOST_ALPHA = 1000000 };

/* Read here, or of no concern: training, bookkeeping, and where tensors are (they say so themselves). */
static const char KNOWN_KEYS[] =
    " "
    "peft_type r lora_alpha use_rslora rank_pattern alpha_pattern init_lora_weights bias target_modules "
    "exclude_modules layers_to_transform layers_pattern lora_dropout task_type base_model_name_or_path "
    "revision "
    "inference_mode auto_mapping peft_version megatron_core qalora_group_size runtime_config eva_config ";

/* Ways to begin the training that leave the base as it is. */
static const char SAME_BASE[] = " gaussian eva orthogonal ";

/* What is absent, null, false, "", [] and {} asks for nothing. */
static bool is_off(const struct json *v)
{
    enum json_kind kind = json_kind(v);
    if (kind == JK_BOOL) return !json_bool(v, true);
    return kind <= JK_NULL || ((kind == JK_TEXT || kind == JK_ARRAY || kind == JK_OBJECT) && !json_len(v));
}

static void check_keys(struct fields *f)
{
    char name[SHOWN_LEN];
    for (void *it = json_first(f->object); it && !f->rc; it = json_next(f->object, it)) {
        if (is_off(json_value(it)) || word_listed(json_key(it), KNOWN_KEYS)) continue;
        fields_fail(f, ERR_UNSUPPORTED,
                    "\"%s\" is not offered: adapters are plain LoRA on the attention and MLP products of "
                    "layers; merge this one into the model's weights",
                    shown(json_key(it), name));
    }
}

static void check_words(struct fields *f)
{
    char name[SHOWN_LEN];
    const char *type = fields_text(f, "peft_type", ""), *bias = fields_text(f, "bias", "none");
    const struct json *init = json_get(f->object, "init_lora_weights");
    if (strcmp(type, "LORA"))
        fields_fail(f, ERR_UNSUPPORTED, "\"peft_type\" is \"%s\"; offered: LORA", shown(type, name));
    if (strcmp(bias, "none"))
        fields_fail(f, ERR_UNSUPPORTED, "\"bias\" is \"%s\"; offered: none", shown(bias, name));
    if (json_kind(init) == JK_TEXT && !word_listed(json_text(init), SAME_BASE))
        fields_fail(f, ERR_UNSUPPORTED,
                    "\"init_lora_weights\" is \"%s\", which changes the base model too; convert the adapter "
                    "to plain LoRA",
                    shown(json_text(init), name));
}

/* rank_pattern, alpha_pattern: names of modules, or ends of them, and a number for each. */
static double check_pattern(struct fields *f, const char *field, bool ranks)
{
    const double lo = ranks ? 1 : -MOST_ALPHA, hi = ranks ? MODEL_MAX_RANK : MOST_ALPHA;
    char name[SHOWN_LEN];
    const struct json *map = json_get(f->object, field);
    double most = 0;
    if (is_off(map)) return 0;
    if (json_kind(map) != JK_OBJECT)
        fields_fail(f, ERR_INPUT, "\"%s\" is %s; it must be an object", field,
                    json_kind_name(json_kind(map)));
    for (void *it = json_first(map); it && !f->rc; it = json_next(map, it)) {
        double v = json_real(json_value(it), NAN);
        shown(json_key(it), name);
        if (!json_key_len(it) || strpbrk(json_key(it), "\\^$*+?()[]{}|"))
            fields_fail(f, ERR_UNSUPPORTED,
                        "\"%s\" has the regular expression \"%s\"; offered: names of modules or their ends, "
                        "as layers.3.self_attn.q_proj or q_proj",
                        field, name);
        else if (!(v >= lo && v <= hi) || (ranks && v != floor(v)))
            fields_fail(f, ERR_INPUT, "\"%s\": \"%s\" must be a number from %g to %g%s", field, name, lo, hi,
                        ranks ? ", a whole one" : "");
        most = fmax(most, v);
    }
    return most;
}

static int read_fields(struct adapter *a, struct fields *f)
{
    if (json_kind(f->object) != JK_OBJECT)
        return fields_fail(f, ERR_INPUT, "holds %s; it must be an object",
                           json_kind_name(json_kind(f->object)));
    check_words(f);
    check_keys(f);
    a->rank = (u32)fields_int(f, "r", 1, MODEL_MAX_RANK, 8);
    a->alpha = fields_real(f, "lora_alpha", -MOST_ALPHA, MOST_ALPHA, 8);
    a->rank_stable = fields_bool(f, "use_rslora", false);
    a->max_rank = MAX_OF(a->rank, (u32)check_pattern(f, "rank_pattern", true));
    check_pattern(f, "alpha_pattern", false);
    return f->rc;
}

static int read_config(struct adapter *a, struct error *err)
{
    char path[PATH_LEN];
    struct buf text = {0};
    if (path_join(path, sizeof path, err, "%s/adapter_config.json", a->dir)) return ERR_INPUT;
    int rc = file_read(path, ADAPTER_MAX_BYTES, &text, err);
    if (rc == 0) {
        a->config_hash = hash_bytes(text.data, text.len, 0);
        a->config = json_read_of(path, text.data, text.len, err);
    }
    buf_release(&text);
    if (!a->config) return rc ? rc : ERR_INPUT;
    struct fields f = {.path = path, .object = a->config, .err = err};
    return read_fields(a, &f);
}

int adapter_open(struct adapter *a, const char *name, const char *dir, struct error *err)
{
    *a = (struct adapter){0};
    if (path_join(a->name, sizeof a->name, err, "%s", name) ||
        path_join(a->dir, sizeof a->dir, err, "%s", dir))
        return ERR_INPUT;
    int rc = read_config(a, err);
    if (!rc && !(a->files = model_open_single(dir, "adapter_model.safetensors", err)))
        rc = err ? err->code : ERR_INPUT;
    if (rc) adapter_close(a);
    return rc;
}

void adapter_close(struct adapter *a)
{
    json_drop(a->config);
    model_close(a->files);
    a->config = NULL;
    a->files = NULL;
}

/* ---- modules */
/* The first entry that is the module's name or, behind a dot, its end. */
static double of_pattern(const struct adapter *a, const char *field, const char *module, double otherwise)
{
    const struct json *map = json_get(a->config, field);
    size_t len = strlen(module);
    if (json_kind(map) != JK_OBJECT) return otherwise;
    for (void *it = json_first(map); it; it = json_next(map, it)) {
        size_t n = json_key_len(it);
        if (n > len || strcmp(module + len - n, json_key(it))) continue;
        if (n == len || module[len - n - 1] == '.') return json_real(json_value(it), otherwise);
    }
    return otherwise;
}

static const struct tensor *find(const struct adapter *a, const char *module, const char *factor,
                                 char name[PATH_LEN])
{
    static const char outer[] = "model.";
    snprintf(name, PATH_LEN, "base_model.model.%s.%s.weight", module, factor);
    const struct tensor *t = model_tensor(a->files, name);
    if (t || strncmp(module, outer, sizeof outer - 1)) return t;
    char inner[PATH_LEN]; /* of models without a head */
    snprintf(inner, sizeof inner, "base_model.model.%s.%s.weight", module + sizeof outer - 1, factor);
    t = model_tensor(a->files, inner);
    if (t) memcpy(name, inner, sizeof inner);
    return t;
}

static int check_factor(const struct adapter *a, const struct tensor *t, const char *name, u32 rows, u32 cols,
                        struct error *err)
{
    if (!t) return error_set(err, ERR_INPUT, a->dir, "tensor %s is missing; its other factor is there", name);
    if (t->dtype > DTYPE_F16)
        return error_set(err, ERR_UNSUPPORTED, a->dir, "tensor %s is stored as %s; offered: F32, BF16, F16",
                         name, t->stored);
    if (t->n_dims == 2 && t->dims[0] == rows && t->dims[1] == cols) return 0;
    return error_set(err, ERR_INPUT, a->dir,
                     "tensor %s has shape [%llu, %llu]%s; adapter_config.json and the model ask for [%u, %u]",
                     name, (unsigned long long)(t->n_dims ? t->dims[0] : 0),
                     (unsigned long long)(t->n_dims > 1 ? t->dims[1] : 0),
                     t->n_dims == 2 ? "" : " (not two sizes)", rows, cols);
}

int adapter_module(const struct adapter *a, const char *module, u32 n_out, u32 n_in,
                   struct adapter_module *out, struct error *err)
{
    char down[PATH_LEN], up[PATH_LEN];
    *out = (struct adapter_module){.a = find(a, module, "lora_A", down), .b = find(a, module, "lora_B", up)};
    if (!out->a && !out->b) return 0;
    out->rank = (u32)of_pattern(a, "rank_pattern", module, a->rank);
    double alpha = of_pattern(a, "alpha_pattern", module, a->alpha);
    out->scale = (float)(alpha / (a->rank_stable ? sqrt(out->rank) : out->rank));
    int rc = check_factor(a, out->a, down, out->rank, n_in, err);
    if (!rc) rc = check_factor(a, out->b, up, n_out, out->rank, err);
    return rc ? rc : 1;
}
