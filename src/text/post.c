/* Post-processors: what is put around a text. Of a file's templates only the one for a single text matters here. */
#include "text/tokenizer.h"

#include <string.h>

static int add_special(struct tokenizer *t, const struct json *names, const char *name, struct ids *to,
                       struct error *err)
{
    const char *field = "post_processor.special_tokens";
    const struct json *list = name ? json_get(json_get(names, name), "ids") : NULL;
    if (json_kind(list) != JK_ARRAY)
        return field_error(err, ERR_INPUT, field, "has no ids for \"%.60s\"", name ? name : "");
    for (size_t i = 0; i < json_len(list); i++) {
        i64 id = json_int(json_item(list, i), -1);
        if (id < 0 || id >= t->vocab.n_ids || !(t->vocab.tokens[id].flags & TOKEN_USED))
            return field_error(err, ERR_INPUT, field, "\"%.60s\": id %lld is no token", name, (long long)id);
        ids_add(to, (i32)id);
    }
    return 0;
}

static int load_template(struct tokenizer *t, const struct json *field, struct error *err)
{
    const struct json *single = json_get(field, "single");
    struct ids *to = &t->prefix;
    if (json_kind(single) != JK_ARRAY)
        return field_error(err, ERR_INPUT, "post_processor.single", "must be an array");
    if (t->prefix.len || t->suffix.len)
        return field_error(err, ERR_UNSUPPORTED, "post_processor.processors", "more than one adds tokens");
    for (size_t i = 0; i < json_len(single); i++) {
        const struct json *special = json_get(json_item(single, i), "SpecialToken");
        const char *sequence = json_text(json_get(json_get(json_item(single, i), "Sequence"), "id"));
        if (special) {
            int rc = add_special(t, json_get(field, "special_tokens"), json_text(json_get(special, "id")), to,
                                 err);
            if (rc) return rc;
        } else if (sequence && strcmp(sequence, "A") == 0 && to == &t->prefix) {
            to = &t->suffix;
        } else {
            return field_error(err, ERR_UNSUPPORTED, "post_processor.single", "item %zu is not supported", i);
        }
    }
    if (to == &t->prefix)
        return field_error(err, ERR_UNSUPPORTED, "post_processor.single", "lacks the text itself");
    return 0;
}

/* ["[SEP]", 3] */
static int add_named(struct tokenizer *t, const struct json *pair, const char *field, struct ids *to,
                     struct error *err)
{
    i64 id = json_int(json_item(pair, 1), -1);
    if (id < 0 || id >= t->vocab.n_ids || !(t->vocab.tokens[id].flags & TOKEN_USED))
        return field_error(err, ERR_INPUT, field, "must be [token, id] of a token");
    ids_add(to, (i32)id);
    return 0;
}

/* BERT's and RoBERTa's differ for pairs of texts only. */
static int load_around(struct tokenizer *t, const struct json *field, struct error *err)
{
    if (t->prefix.len || t->suffix.len)
        return field_error(err, ERR_UNSUPPORTED, "post_processor.processors", "more than one adds tokens");
    int rc = add_named(t, json_get(field, "cls"), "post_processor.cls", &t->prefix, err);
    return rc ? rc : add_named(t, json_get(field, "sep"), "post_processor.sep", &t->suffix, err);
}

static int load_nothing(struct tokenizer *t, const struct json *field, struct error *err)
{
    (void)t, (void)field, (void)err;
    return 0;
}

struct post_row {
    const char *type;
    int (*load)(struct tokenizer *t, const struct json *field, struct error *err);
};
static const struct post_row rows[] = {
    {"ByteLevel", load_nothing}, /* it moves offsets, which nobody asks for */
    {"TemplateProcessing", load_template},
    {"BertProcessing", load_around},
    {"RobertaProcessing", load_around},
};

static int load_one(struct tokenizer *t, const struct json *field, struct error *err)
{
    const char *type = json_text(json_get(field, "type"));
    if (!type) return field_error(err, ERR_INPUT, "post_processor.type", "must be a string");
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        if (strcmp(type, rows[i].type) == 0) return rows[i].load(t, field, err);
    }
    return field_error(err, ERR_UNSUPPORTED, "post_processor.type", "\"%.100s\" is not supported", type);
}

int post_load(struct tokenizer *t, const struct json *field, struct error *err)
{
    if (json_kind(field) == JK_NONE || json_kind(field) == JK_NULL) return 0;
    const char *type = json_text(json_get(field, "type"));
    if (!type || strcmp(type, "Sequence") != 0) return load_one(t, field, err);
    const struct json *list = json_get(field, "processors");
    if (json_kind(list) != JK_ARRAY)
        return field_error(err, ERR_INPUT, "post_processor.processors", "must be an array");
    for (size_t i = 0; i < json_len(list); i++) {
        int rc = load_one(t, json_item(list, i), err);
        if (rc) return rc;
    }
    return 0;
}
