/* Pre-tokenizers: split a section of text into words, which the model then sees one by one. */
#include "text/tokenizer.h"
#include "text/utf8.h"

#include <string.h>

/* The pattern of ByteLevel with use_regex, which the file does not contain (GPT-2). */
#define GPT2_PATTERN      "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define ASCII_PUNCTUATION "!-\\/:-@\\[-`{-~"

/* ---- loading: every type becomes a split by a pattern ---- */

typedef int load_row(struct pre_step *step, const struct json *field, struct error *err);
struct pretokenize_row {
    const char *type;
    load_row *load;
    bool bytes;
};

static int set_pattern(struct pre_step *step, const char *source, bool literal, struct error *err)
{
    step->pattern = pattern_compile(source, literal, "pre_tokenizer.pattern", err);
    return step->pattern ? 0 : -1;
}

static int load_behavior(struct pre_step *step, const struct json *field, struct error *err)
{
    static const char *const names[] = {
        [SPLIT_ISOLATED] = "Isolated",           [SPLIT_REMOVED] = "Removed",
        [SPLIT_PREVIOUS] = "MergedWithPrevious", [SPLIT_NEXT] = "MergedWithNext",
        [SPLIT_CONTIGUOUS] = "Contiguous",
    };
    const char *name = json_text(field);
    for (size_t i = 0; name && i < COUNT_OF(names); i++) {
        if (strcmp(name, names[i]) != 0) continue;
        step->behavior = (enum split_behavior)i;
        return 0;
    }
    return field_error(err, name ? ERR_UNSUPPORTED : ERR_INPUT, "pre_tokenizer.behavior",
                       "\"%.60s\" is not supported", name ? name : json_kind_name(json_kind(field)));
}

static int load_split(struct pre_step *step, const struct json *field, struct error *err)
{
    const struct json *pattern = json_get(field, "pattern");
    const char *regex = json_text(json_get(pattern, "Regex")),
               *string = json_text(json_get(pattern, "String"));
    if (!regex && !string)
        return field_error(err, ERR_INPUT, "pre_tokenizer.pattern", "must hold a Regex or a String");
    size_t len = json_len(json_get(pattern, regex ? "Regex" : "String"));
    if (strlen(regex ? regex : string) != len)
        return field_error(err, ERR_UNSUPPORTED, "pre_tokenizer.pattern", "contains a NUL");
    int rc = load_behavior(step, json_get(field, "behavior"), err);
    if (rc) return rc;
    step->invert = json_bool(json_get(field, "invert"), false);
    return set_pattern(step, regex ? regex : string, !regex, err);
}

static int load_byte_level(struct pre_step *step, const struct json *field, struct error *err)
{
    step->add_prefix_space = json_bool(json_get(field, "add_prefix_space"), true);
    return json_bool(json_get(field, "use_regex"), true) ? set_pattern(step, GPT2_PATTERN, false, err) : 0;
}

static int load_digits(struct pre_step *step, const struct json *field, struct error *err)
{
    return set_pattern(step, json_bool(json_get(field, "individual_digits"), false) ? "\\p{N}" : "\\p{N}+",
                       false, err);
}

static int load_punctuation(struct pre_step *step, const struct json *field, struct error *err)
{
    const struct json *behavior = json_get(field, "behavior");
    int rc = behavior ? load_behavior(step, behavior, err) : 0;
    return rc ? rc : set_pattern(step, "[" ASCII_PUNCTUATION "\\p{P}]", false, err);
}

static int load_whitespace(struct pre_step *step, const struct json *field, struct error *err)
{
    (void)field;
    step->behavior = SPLIT_REMOVED;
    step->invert = true;
    return set_pattern(step, "\\w+|[^\\w\\s]+", false, err);
}

static int load_whitespace_split(struct pre_step *step, const struct json *field, struct error *err)
{
    (void)field;
    step->behavior = SPLIT_REMOVED;
    return set_pattern(step, "\\s", false, err);
}

static const struct pretokenize_row rows[] = {
    {"ByteLevel", load_byte_level, true},   {"Split", load_split, false},
    {"Digits", load_digits, false},         {"Punctuation", load_punctuation, false},
    {"Whitespace", load_whitespace, false}, {"WhitespaceSplit", load_whitespace_split, false},
};

static int load_step(struct pretokenizer *p, const struct json *field, struct error *err)
{
    const char *type = json_text(json_get(field, "type"));
    if (!type) return field_error(err, ERR_INPUT, "pre_tokenizer.type", "must be a string");
    if (p->n == PRE_STEPS)
        return field_error(err, ERR_UNSUPPORTED, "pre_tokenizer", "more than %d steps", PRE_STEPS);
    /* Later steps would see the byte alphabet's characters, not the text's. */
    if (p->bytes) return field_error(err, ERR_UNSUPPORTED, "pre_tokenizer", "%.60s after ByteLevel", type);
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        if (strcmp(type, rows[i].type) != 0) continue;
        struct pre_step *step = &p->steps[p->n];
        memset(step, 0, sizeof(*step));
        int rc = rows[i].load(step, field, err);
        if (rc) return rc;
        p->n++;
        p->bytes = rows[i].bytes;
        return 0;
    }
    return field_error(err, ERR_UNSUPPORTED, "pre_tokenizer.type", "\"%.100s\" is not supported", type);
}

int pretokenizer_load(struct pretokenizer *p, const struct json *field, struct error *err)
{
    p->n = 0;
    p->bytes = false;
    if (json_kind(field) == JK_NONE || json_kind(field) == JK_NULL) return 0;
    const char *type = json_text(json_get(field, "type"));
    if (!type || strcmp(type, "Sequence") != 0) return load_step(p, field, err);
    const struct json *list = json_get(field, "pretokenizers");
    if (json_kind(list) != JK_ARRAY)
        return field_error(err, ERR_INPUT, "pre_tokenizer.pretokenizers", "must be an array");
    for (size_t i = 0; i < json_len(list); i++) {
        int rc = load_step(p, json_item(list, i), err);
        if (rc) return rc;
    }
    return 0;
}

void pretokenizer_release(struct pretokenizer *p)
{
    for (int i = 0; i < p->n; i++) pattern_free(p->steps[i].pattern);
    p->n = 0;
}

/* ---- running ---- */

static int run_step(struct encoding *e, int step, const char *text, size_t len);

/* A cut of the text into matches and what lies between them; one piece is held back, because the next one may join it. */
struct cut {
    struct encoding *e;
    int step;
    const char *text;
    size_t from, to; /* the held piece; empty: none */
    bool match;      /* the last part of it is one */
};

static int pass_on(struct cut *c)
{
    int rc = c->to > c->from ? run_step(c->e, c->step + 1, c->text + c->from, c->to - c->from) : 0;
    c->from = c->to;
    return rc;
}

static int put(struct cut *c, size_t from, size_t to, bool match)
{
    const struct pre_step *s = &c->e->t->pre.steps[c->step];
    bool held = c->to > c->from, joins = false;
    if (from == to) return 0;
    match = match != s->invert;
    if (s->behavior == SPLIT_REMOVED && match) return 0;
    if (s->behavior == SPLIT_CONTIGUOUS) joins = held && match == c->match;
    if (s->behavior == SPLIT_PREVIOUS) joins = held && match && !c->match;
    if (s->behavior == SPLIT_NEXT) joins = held && !match && c->match;
    if (joins) {
        c->to = to;
        if (s->behavior == SPLIT_PREVIOUS) c->match = true;
        if (s->behavior == SPLIT_NEXT) c->match = false;
        return 0;
    }
    int rc = pass_on(c);
    c->from = from;
    c->to = to;
    c->match = match;
    return rc;
}

static int split(struct encoding *e, int step, const char *text, size_t len)
{
    struct cut c = {.e = e, .step = step, .text = text};
    size_t done = 0;
    while (done < len) {
        size_t from, to;
        int rc =
            pattern_find(e->t->pre.steps[step].pattern, e->patterns, text, len, done, &from, &to, e->err);
        if (rc < 0) return rc;
        if (rc == 0) break;
        rc = put(&c, done, from, false);
        if (rc == 0) rc = put(&c, from, to, true);
        if (rc) return rc;
        done = to;
    }
    int rc = put(&c, done, len, false);
    return rc ? rc : pass_on(&c);
}

static int run_step(struct encoding *e, int step, const char *text, size_t len)
{
    const struct tokenizer *t = e->t;
    if (step == t->pre.n) {
        bpe_word(&t->bpe, &t->vocab, &e->bpe, text, len, e->out);
        return 0;
    }
    if (t->pre.steps[step].add_prefix_space && text[0] != ' ') {
        buf_clear(&e->prefixed);
        buf_char(&e->prefixed, ' ');
        buf_add(&e->prefixed, text, len);
        text = e->prefixed.data;
        len = e->prefixed.len;
    }
    if (!t->pre.steps[step].pattern) return run_step(e, step + 1, text, len);
    return split(e, step, text, len);
}

int pretokenize(struct encoding *e, const char *text, size_t len)
{
    return len ? run_step(e, 0, text, len) : 0;
}
