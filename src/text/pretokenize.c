/* Pre-tokenizers: split a section of text into words, which the model then sees one by one. */
#include "text/tokenizer.h"

#include <string.h>

/* The pattern of ByteLevel with use_regex, which the file does not contain (GPT-2). */
#define GPT2_PATTERN "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define PUNCTUATION  "[!-\\/:-@\\[-`{-~\\p{P}]"

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
    int rc = load_behavior(step, json_get(field, "behavior"), err);
    if (rc) return rc;
    step->invert = json_bool(json_get(field, "invert"), false);
    step->pattern = pattern_load(json_get(field, "pattern"), "pre_tokenizer.pattern", err);
    return step->pattern ? 0 : -1;
}

static int load_byte_level(struct pre_step *step, const struct json *field, struct error *err)
{
    step->prefix = json_bool(json_get(field, "add_prefix_space"), true) ? PREFIX_ALWAYS : PREFIX_NEVER;
    strcpy(step->mark, " ");
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
    return rc ? rc : set_pattern(step, PUNCTUATION, false, err);
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

/* Files of old say add_prefix_space instead of prepend_scheme. */
static int load_scheme(struct pre_step *step, const struct json *field, struct error *err)
{
    static const char *const names[] = {
        [PREFIX_NEVER] = "never", [PREFIX_FIRST] = "first", [PREFIX_ALWAYS] = "always"};
    const struct json *scheme = json_get(field, "prepend_scheme");
    step->prefix = json_bool(json_get(field, "add_prefix_space"), true) ? PREFIX_ALWAYS : PREFIX_NEVER;
    if (json_kind(scheme) <= JK_NULL) return 0;
    for (size_t i = 0; json_text(scheme) && i < COUNT_OF(names); i++) {
        if (strcmp(json_text(scheme), names[i]) != 0) continue;
        step->prefix = (enum prefix_scheme)i;
        return 0;
    }
    return field_error(err, ERR_INPUT, "pre_tokenizer.prepend_scheme", "must be always, first or never");
}

static bool is_one_character(const struct json *v)
{
    int n = 0;
    if (json_kind(v) != JK_TEXT || json_len(v) == 0) return false;
    utf8_at(json_text(v), &n);
    return (size_t)n == json_len(v) && json_text(v)[0];
}

static int load_metaspace(struct pre_step *step, const struct json *field, struct error *err)
{
    const struct json *mark = json_get(field, "replacement");
    if (!is_one_character(mark))
        return field_error(err, ERR_INPUT, "pre_tokenizer.replacement", "must be one character");
    strcpy(step->mark, json_text(mark));
    step->metaspace = true;
    step->behavior = SPLIT_NEXT;
    int rc = load_scheme(step, field, err);
    if (rc || !json_bool(json_get(field, "split"), true)) return rc;
    return set_pattern(step, step->mark, true, err);
}

static int load_delimiter(struct pre_step *step, const struct json *field, struct error *err)
{
    const struct json *delimiter = json_get(field, "delimiter");
    if (!is_one_character(delimiter))
        return field_error(err, ERR_INPUT, "pre_tokenizer.delimiter", "must be one character");
    step->behavior = SPLIT_REMOVED;
    return set_pattern(step, json_text(delimiter), true, err);
}

static int load_default_punctuation(struct pre_step *step, const struct json *field, struct error *err)
{
    (void)field;
    return set_pattern(step, PUNCTUATION, false, err);
}

/* Two rows of one type are two steps. */
static const struct pretokenize_row rows[] = {
    {"ByteLevel", load_byte_level, true},
    {"Split", load_split, false},
    {"Digits", load_digits, false},
    {"Punctuation", load_punctuation, false},
    {"Whitespace", load_whitespace, false},
    {"WhitespaceSplit", load_whitespace_split, false},
    {"Metaspace", load_metaspace, false},
    {"BertPreTokenizer", load_whitespace_split, false},
    {"BertPreTokenizer", load_default_punctuation, false},
    {"CharDelimiterSplit", load_delimiter, false},
};

static int load_step(struct pretokenizer *p, const struct json *field, struct error *err)
{
    const char *type = json_text(json_get(field, "type"));
    int before = p->n;
    if (!type) return field_error(err, ERR_INPUT, "pre_tokenizer.type", "must be a string");
    /* Later steps would see the byte alphabet's characters, not the text's. */
    if (p->bytes) return field_error(err, ERR_UNSUPPORTED, "pre_tokenizer", "%.60s after ByteLevel", type);
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        if (strcmp(type, rows[i].type) != 0) continue;
        if (p->n == PRE_STEPS)
            return field_error(err, ERR_UNSUPPORTED, "pre_tokenizer", "more than %d steps", PRE_STEPS);
        struct pre_step *step = &p->steps[p->n++];
        memset(step, 0, sizeof(*step));
        int rc = rows[i].load(step, field, err);
        if (rc) return rc;
        p->bytes = rows[i].bytes;
    }
    if (p->n > before) return 0;
    return field_error(err, ERR_UNSUPPORTED, "pre_tokenizer.type", "\"%.100s\" is not supported", type);
}

int pretokenizer_load(struct pretokenizer *p, const struct json *field, struct error *err)
{
    if (json_kind(field) == JK_NONE || json_kind(field) == JK_NULL) return 0;
    const char *type = json_text(json_get(field, "type"));
    if (!type || strcmp(type, "Sequence") != 0) return load_step(p, field, err);
    const struct json *list = json_get(field, "pretokenizers");
    if (json_kind(list) != JK_ARRAY)
        return field_error(err, ERR_INPUT, "pre_tokenizer.pretokenizers", "must be an array");
    for (size_t i = 0; i < json_len(list); i++) {
        int rc = pretokenizer_load(p, json_item(list, i), err); /* Sequences may lie in each other */
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

static int run_step(struct encoding *e, int step, const char *text, size_t len, bool first);

/* A cut of the text into matches and what lies between them; one piece is held back, because the next one may join it. */
struct cut {
    struct encoding *e;
    int step;
    const char *text;
    size_t from, to; /* the held piece; empty: none */
    bool match;      /* the last part of it is one */
    bool first;      /* text is where the whole text begins */
};

static int pass_on(struct cut *c)
{
    int rc = 0;
    if (c->to > c->from)
        rc = run_step(c->e, c->step + 1, c->text + c->from, c->to - c->from, c->first && c->from == 0);
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

static int split(struct encoding *e, int step, const char *text, size_t len, bool first)
{
    struct cut c = {.e = e, .step = step, .text = text, .first = first};
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

/* With marks for blanks (Metaspace), and a mark in front where the scheme wants one and none is there. */
static void rewrite(const struct pre_step *s, const char *text, size_t len, bool first, struct buf *out)
{
    size_t mark = strlen(s->mark);
    bool wanted = s->prefix == PREFIX_ALWAYS || (s->prefix == PREFIX_FIRST && first);
    bool there = (s->metaspace && text[0] == ' ') || (len >= mark && memcmp(text, s->mark, mark) == 0);
    buf_clear(out);
    if (wanted && !there) buf_add(out, s->mark, mark);
    while (s->metaspace && len) {
        const char *blank = memchr(text, ' ', len);
        size_t plain = blank ? (size_t)(blank - text) : len;
        buf_add(out, text, plain);
        if (blank) buf_add(out, s->mark, mark);
        text += plain + (blank != NULL);
        len -= plain + (blank != NULL);
    }
    buf_add(out, text, len);
}

static int run_step(struct encoding *e, int step, const char *text, size_t len, bool first)
{
    const struct pre_step *s = &e->t->pre.steps[step];
    if (step == e->t->pre.n) return e->t->model->word(e, text, len);
    if (s->metaspace || (s->prefix && text[0] != s->mark[0])) {
        rewrite(s, text, len, first, &e->written[step]);
        text = e->written[step].data;
        len = e->written[step].len;
    }
    if (!s->pattern) return run_step(e, step + 1, text, len, first);
    return split(e, step, text, len, first);
}

int pretokenize(struct encoding *e, const char *text, size_t len)
{
    return len ? run_step(e, 0, text, len, text == e->begin) : 0;
}
