/* Post-processors: what is put around a text, and around and between two. */
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

/* A list of items: tokens go to parts[0] until the text with[0] comes, then to parts[1], and so on. */
struct items {
    const char *field;
    struct ids *parts[3];
    const char *with[3];
    size_t n;               /* parts */
    struct pair_form *pair; /* whose types are taken; NULL: they do not matter */
};

/* Of the tokens in a part, or of the text behind it: 0 up to somewhere between the texts, then 1; or 0 throughout. */
static bool take_type(struct pair_form *p, size_t part, size_t n_tokens, i64 type)
{
    if (part == 1 && type == 1)
        p->typed = true;
    else if (type != p->typed)
        return false;
    if (part == 1 && !type) p->n_first += n_tokens;
    return true;
}

static int load_items(struct tokenizer *t, const struct json *field, const struct json *list,
                      const struct items *to, struct error *err)
{
    size_t part = 0;
    for (size_t i = 0; i < json_len(list); i++) {
        const struct json *special = json_get(json_item(list, i), "SpecialToken"),
                          *text = json_get(json_item(list, i), "Sequence");
        const char *sequence = json_text(json_get(text, "id"));
        size_t at = part, before = to->parts[at]->len;
        int rc = 0;
        if (special)
            rc = add_special(t, json_get(field, "special_tokens"), json_text(json_get(special, "id")),
                             to->parts[at], err);
        else if (sequence && part + 1 < to->n && strcmp(sequence, to->with[part]) == 0)
            part++;
        else
            rc = field_error(err, ERR_UNSUPPORTED, to->field, "item %zu is not supported", i);
        if (rc) return rc;
        i64 type = json_int(json_get(special ? special : text, "type_id"), 0);
        if (to->pair && !take_type(to->pair, at, to->parts[at]->len - before, type))
            return field_error(err, ERR_UNSUPPORTED, to->field, "item %zu: type %lld is not supported there",
                               i, (long long)type);
    }
    if (part + 1 == to->n) return 0;
    return field_error(err, ERR_UNSUPPORTED, to->field, "lacks the text itself");
}

static void pair_none(struct tokenizer *t)
{
    t->pair.behind.len = t->pair.before.len = t->pair.between.len = 0;
    t->pair.typed = t->pair.offered = false;
    t->pair.n_first = 0;
}

/* What is wrong with it matters only to those who ask for pairs. */
static void load_pair(struct tokenizer *t, const struct json *field)
{
    struct pair_form *p = &t->pair;
    const struct items items = {
        "post_processor.pair", {&p->before, &p->between, &p->behind}, {"A", "B"}, COUNT_OF(items.parts), p};
    const struct json *list = json_get(field, "pair");
    pair_none(t);
    if (json_kind(list) != JK_ARRAY)
        field_error(&p->why, ERR_UNSUPPORTED, items.field, "must be an array");
    else
        p->offered = load_items(t, field, list, &items, &p->why) == 0;
}

static int load_template(struct tokenizer *t, const struct json *field, struct error *err)
{
    const struct json *single = json_get(field, "single");
    const struct items items = {"post_processor.single", {&t->prefix, &t->suffix}, {"A"}, 2, NULL};
    if (json_kind(single) != JK_ARRAY) return field_error(err, ERR_INPUT, items.field, "must be an array");
    if (t->prefix.len || t->suffix.len)
        return field_error(err, ERR_UNSUPPORTED, "post_processor.processors", "more than one adds tokens");
    load_pair(t, field);
    return load_items(t, field, single, &items, err);
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

/* BERT's and RoBERTa's differ for pairs of texts only: one token between them and types, or two. */
static int load_around(struct tokenizer *t, const struct json *field, u32 between, struct error *err)
{
    struct pair_form *p = &t->pair;
    if (t->prefix.len || t->suffix.len)
        return field_error(err, ERR_UNSUPPORTED, "post_processor.processors", "more than one adds tokens");
    int rc = add_named(t, json_get(field, "cls"), "post_processor.cls", &t->prefix, err);
    if (rc == 0) rc = add_named(t, json_get(field, "sep"), "post_processor.sep", &t->suffix, err);
    if (rc) return rc;
    pair_none(t);
    ids_add(&p->before, t->prefix.data[0]);
    for (u32 i = 0; i < between; i++) ids_add(&p->between, t->suffix.data[0]);
    ids_add(&p->behind, t->suffix.data[0]);
    p->n_first = between;
    p->typed = between == 1;
    p->offered = true;
    return 0;
}

static int load_bert(struct tokenizer *t, const struct json *field, struct error *err)
{
    return load_around(t, field, 1, err);
}

static int load_roberta(struct tokenizer *t, const struct json *field, struct error *err)
{
    return load_around(t, field, 2, err);
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
    {"BertProcessing", load_bert},
    {"RobertaProcessing", load_roberta},
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
    field_error(&t->pair.why, ERR_UNSUPPORTED, "post_processor", "says nothing of pairs of texts");
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
