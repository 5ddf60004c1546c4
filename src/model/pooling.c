/* How an embedding model makes one vector of a text: the files of sentence-transformers that lie beside config.json. A folder
 * without modules.json generates. What these files ask for and is not offered is refused by name. */
#include "model/config.h"
#include <stdio.h>
#include <string.h>

enum { POOLING_MAX_BYTES = 4 << 20 };

/* A file of the folder; *out NULL: there is none, which is fine. */
static int read_file(const struct model_config *c, const char *sub, const char *name, char path[PATH_LEN],
                     struct json **out, struct error *err)
{
    *out = NULL;
    int rc = sub[0] ? path_join(path, PATH_LEN, err, "%s/%s/%s", c->dir, sub, name)
                    : path_join(path, PATH_LEN, err, "%s/%s", c->dir, name);
    if (rc) return ERR_INPUT;
    if (!file_exists(path)) return 0;
    return (*out = json_read_file(path, POOLING_MAX_BYTES, err)) ? 0 : ERR_INPUT;
}

static int need_object(struct fields *f)
{
    if (json_kind(f->object) == JK_OBJECT) return f->rc;
    return fields_fail(f, ERR_INPUT, "holds %s; it must be an object", json_kind_name(json_kind(f->object)));
}

/* ---- 1_Pooling/config.json */
static const struct mode {
    const char *flag, *word; /* a boolean of its own; the value of "pooling_mode" */
    enum pooling kind;       /* POOLING_NONE: not offered */
} MODES[] = {
    {"pooling_mode_lasttoken", "lasttoken", POOLING_LAST},
    {"pooling_mode_mean_tokens", "mean", POOLING_MEAN},
    {"pooling_mode_cls_token", "cls", POOLING_CLS},
    {"pooling_mode_max_tokens", "max", POOLING_NONE},
    {"pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", POOLING_NONE},
    {"pooling_mode_weightedmean_tokens", "weightedmean", POOLING_NONE},
};

static int set_mode(struct fields *f, const struct mode *m, struct pooling_config *out)
{
    if (m->kind == POOLING_NONE)
        return fields_fail(f, ERR_UNSUPPORTED,
                           "\"%s\" is not offered; offered: last token, mean, first token", m->flag);
    if (out->kind)
        return fields_fail(f, ERR_UNSUPPORTED,
                           "asks for several vectors one behind the other; one is offered");
    out->kind = m->kind;
    return f->rc;
}

static int read_mode(struct fields *f, struct pooling_config *out)
{
    char name[SHOWN_LEN];
    const char *word = fields_text(f, "pooling_mode", NULL);
    for (size_t i = 0; i < COUNT_OF(MODES) && !f->rc; i++) {
        bool usual = !word && MODES[i].kind == POOLING_MEAN; /* where the file does not say */
        if (word ? !strcmp(word, MODES[i].word) : fields_bool(f, MODES[i].flag, usual))
            set_mode(f, &MODES[i], out);
    }
    if (f->rc || out->kind) return f->rc;
    if (word) return fields_fail(f, ERR_UNSUPPORTED, "\"pooling_mode\" %s is not offered", shown(word, name));
    return fields_fail(f, ERR_INPUT, "names no way of pooling");
}

static int read_pooling(struct model_config *c, const char *sub, bool *include_prompt, struct error *err)
{
    char path[PATH_LEN];
    struct json *root;
    int rc = read_file(c, sub, "config.json", path, &root, err);
    if (rc) return rc;
    if (!root) return error_set(err, ERR_NOT_FOUND, path, "modules.json names it, and it is not there");
    struct fields f = {.path = path, .object = root, .err = err};
    if (!need_object(&f) && !read_mode(&f, &c->pooling)) {
        c->pooling.width = (u32)fields_int(&f, "word_embedding_dimension", 1, MAX_WIDTH, 0);
        *include_prompt = fields_bool(&f, "include_prompt", true);
    }
    json_drop(root);
    return f.rc;
}

/* ---- modules.json: Transformer, Pooling, and Normalize where vectors get length 1 */
enum stage { WANT_TRANSFORMER, WANT_POOLING, WANT_NORMALIZE, WANT_NO_MORE };

static int read_module(struct fields *f, struct model_config *c, enum stage *stage, bool *include_prompt)
{
    static const char *const classes[] = {"Transformer", "Pooling", "Normalize"};
    char name[SHOWN_LEN];
    const char *type = fields_text(f, "type", ""), *sub = fields_text(f, "path", ""),
               *dot = strrchr(type, '.'), *class = dot ? dot + 1 : type;
    if (f->rc) return f->rc;
    if (*stage == WANT_NO_MORE || strcmp(class, classes[*stage]))
        return fields_fail(f, ERR_UNSUPPORTED,
                           "module \"%s\" is not offered here; offered: Transformer, Pooling, Normalize, "
                           "in this order",
                           shown(class, name));
    if (*stage == WANT_TRANSFORMER && sub[0])
        return fields_fail(f, ERR_UNSUPPORTED, "the Transformer lies in \"%s\"; it must be the folder itself",
                           shown(sub, name));
    if (strstr(sub, "..") || sub[0] == '/')
        return fields_fail(f, ERR_INPUT, "path \"%s\" leads out of the folder", shown(sub, name));
    if (*stage == WANT_NORMALIZE) c->pooling.normalize = true;
    return (*stage)++ == WANT_POOLING ? read_pooling(c, sub, include_prompt, f->err) : 0;
}

static int read_modules(const struct json *list, const char *path, struct model_config *c,
                        bool *include_prompt, struct error *err)
{
    enum stage stage = WANT_TRANSFORMER;
    if (json_kind(list) != JK_ARRAY)
        return error_set(err, ERR_INPUT, path, "holds %s; it must be an array",
                         json_kind_name(json_kind(list)));
    for (size_t i = 0; i < json_len(list); i++) {
        struct fields f = {.path = path, .object = json_item(list, i), .err = err};
        int rc = need_object(&f);
        if (!rc) rc = read_module(&f, c, &stage, include_prompt);
        if (rc) return rc;
    }
    if (stage >= WANT_NORMALIZE) return 0;
    return error_set(err, ERR_INPUT, path, "names no Transformer with Pooling behind it");
}

/* ---- config_sentence_transformers.json: the prompt in front of every text */
static int read_prompt(struct model_config *c, bool include_prompt, struct error *err)
{
    char path[PATH_LEN], shown_name[SHOWN_LEN];
    struct json *root;
    int rc = read_file(c, "", "config_sentence_transformers.json", path, &root, err);
    if (rc || !root) return rc;
    struct fields f = {.path = path, .object = root, .err = err};
    const char *name = need_object(&f) ? NULL : fields_text(&f, "default_prompt_name", NULL);
    const char *text = name ? json_text(json_get(json_get(root, "prompts"), name)) : "";
    if (!text)
        fields_fail(&f, ERR_INPUT, "\"default_prompt_name\" is %s, and \"prompts\" has no such text",
                    shown(name, shown_name));
    else if (strlen(text) >= sizeof c->pooling.prompt)
        fields_fail(&f, ERR_UNSUPPORTED, "the default prompt has %zu bytes; at most %zu are offered",
                    strlen(text), sizeof c->pooling.prompt - 1);
    else if (text[0] && !include_prompt)
        fields_fail(&f, ERR_UNSUPPORTED,
                    "a default prompt that is left out of pooling (\"include_prompt\" false) is not offered");
    else
        memcpy(c->pooling.prompt, text, strlen(text) + 1);
    json_drop(root);
    return f.rc;
}

int config_pooling(struct model_config *out, struct error *err)
{
    char path[PATH_LEN];
    struct json *list;
    bool include_prompt = true;
    int rc = read_file(out, "", "modules.json", path, &list, err);
    if (rc || !list) return rc;
    rc = read_modules(list, path, out, &include_prompt, err);
    json_drop(list);
    return rc ? rc : read_prompt(out, include_prompt, err);
}

int config_pooled(struct model_config *out, struct error *err)
{
    char path[PATH_LEN];
    struct json *root;
    if (!out->pooling.kind || out->pooling.scores) return 0;
    if (out->pooling.width && out->pooling.width != out->hidden)
        return error_set(err, ERR_INPUT, out->dir,
                         "\"word_embedding_dimension\" is %u, and \"hidden_size\" of config.json is %u",
                         out->pooling.width, out->hidden);
    out->tied = true; /* files of such models may have no head, and none is needed */
    int rc = read_file(out, "", "sentence_bert_config.json", path, &root, err);
    if (rc || !root) return rc;
    struct fields f = {.path = path, .object = root, .err = err};
    if (!need_object(&f)) {
        u32 most = (u32)fields_int(&f, "max_seq_length", 1, INT32_MAX, out->max_position);
        out->max_position = MIN_OF(out->max_position, most);
        out->pooling.lowercase = fields_bool(&f, "do_lower_case", false);
    }
    json_drop(root);
    return f.rc;
}
