/* Normalizers: rewrite a section of text before it is split. */
#include "text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* A row of the table: how a type is read, and what it does to a text. ascii: it leaves ASCII as it is. */
struct normalize_row {
    const char *type;
    int (*load)(struct normalize_step *s, const struct json *field, struct error *err);
    int (*run)(const struct normalize_step *s, struct pattern_scratch *scratch, const char *text, size_t len,
               struct buf *out, struct error *err);
    int options; /* of utf8proc */
    bool ascii;
};

/* ---- Unicode's normal forms ---- */

/* The canonical order of marks, run by run. utf8proc's own is quadratic in the length of a run, and a text from the
 * network may be one run. */
static void order_marks(utf8proc_int32_t *cp, size_t n, utf8proc_int32_t *spare)
{
    for (size_t from = 0; from < n; from++) {
        if (!utf8proc_get_property(cp[from])->combining_class) continue;
        size_t to = from, start[257] = {0};
        for (; to < n && utf8proc_get_property(cp[to])->combining_class; to++) {
            start[utf8proc_get_property(cp[to])->combining_class % 256 + 1]++;
        }
        for (int i = 0; i < 256; i++) start[i + 1] += start[i];
        for (size_t i = from; i < to && to - from > 1; i++) {
            spare[start[utf8proc_get_property(cp[i])->combining_class % 256]++] = cp[i];
        }
        if (to - from > 1) memcpy(cp + from, spare, (to - from) * sizeof(*cp));
        from = to;
    }
}

static int unicode_form(const struct normalize_step *s, struct pattern_scratch *scratch, const char *text,
                        size_t len, struct buf *out, struct error *err)
{
    int boundary = 0, options = s->row->options;
    (void)scratch, (void)err;
    size_t n = 0, cap = len + 64; /* UTF8PROC_STABLE's longest expansion of a character is 18 */
    utf8proc_int32_t *cp = mem_alloc(cap * sizeof(*cp));
    for (size_t at = 0; at < len;) {
        int used;
        u32 c = utf8_at(text + at, &used);
        at += (size_t)used;
        if (n + 32 > cap) cp = mem_resize(cp, (cap *= 2) * sizeof(*cp));
        utf8proc_ssize_t got = utf8proc_decompose_char((utf8proc_int32_t)c, cp + n,
                                                       (utf8proc_ssize_t)(cap - n), options, &boundary);
        if (got > 0) n += (size_t)got;
    }
    utf8proc_int32_t *spare = mem_alloc(n * sizeof(*spare));
    order_marks(cp, n, spare);
    free(spare);
    utf8proc_ssize_t end = utf8proc_normalize_utf32(cp, (utf8proc_ssize_t)n, options);
    for (utf8proc_ssize_t i = 0; i < end; i++) utf8_add(out, (u32)cp[i]);
    free(cp);
    return 0;
}

/* ---- the others ---- */

static int load_content(struct normalize_step *s, const struct json *field, const char *key,
                        struct error *err)
{
    const struct json *v = json_get(field, key);
    if (json_kind(v) != JK_TEXT) {
        char where[64];
        snprintf(where, sizeof(where), "normalizer.%s", key);
        return field_error(err, ERR_INPUT, where, "must be a string");
    }
    s->content = mem_textn(json_text(v), json_len(v));
    s->content_len = json_len(v);
    return 0;
}

static int load_prepend(struct normalize_step *s, const struct json *field, struct error *err)
{
    return load_content(s, field, "prepend", err);
}

static int prepend(const struct normalize_step *s, struct pattern_scratch *scratch, const char *text,
                   size_t len, struct buf *out, struct error *err)
{
    (void)scratch, (void)err;
    if (len) buf_add(out, s->content, s->content_len);
    buf_add(out, text, len);
    return 0;
}

static int load_replace(struct normalize_step *s, const struct json *field, struct error *err)
{
    int rc = load_content(s, field, "content", err);
    if (rc) return rc;
    s->pattern = pattern_load(json_get(field, "pattern"), "normalizer.pattern", err);
    return s->pattern ? 0 : -1;
}

static int replace(const struct normalize_step *s, struct pattern_scratch *scratch, const char *text,
                   size_t len, struct buf *out, struct error *err)
{
    size_t done = 0, from, to;
    while (done < len) {
        int rc = pattern_find(s->pattern, scratch, text, len, done, &from, &to, err);
        if (rc < 0) return rc;
        if (rc == 0) break;
        buf_add(out, text + done, from - done);
        buf_add(out, s->content, s->content_len);
        done = to;
    }
    buf_add(out, text + done, len - done);
    return 0;
}

static int load_strip(struct normalize_step *s, const struct json *field, struct error *err)
{
    (void)err;
    s->left = json_bool(json_get(field, "strip_left"), true);
    s->right = json_bool(json_get(field, "strip_right"), true);
    return 0;
}

static int strip(const struct normalize_step *s, struct pattern_scratch *scratch, const char *text,
                 size_t len, struct buf *out, struct error *err)
{
    int n;
    (void)scratch, (void)err;
    while (s->left && len && utf8_is_space(utf8_at(text, &n))) {
        text += n;
        len -= (size_t)n;
    }
    while (s->right && len && utf8_is_space(utf8_at(text + len - utf8_last(text, len), &n))) len -= (size_t)n;
    buf_add(out, text, len);
    return 0;
}

static void add_lower(struct buf *out, u32 cp)
{
    utf8_add(out, cp == 0x130 ? 'i' : (u32)utf8proc_tolower((utf8proc_int32_t)cp));
    if (cp == 0x130) utf8_add(out, 0x307);
}

/* Character by character: unlike Python's lower() a sigma at the end of a word is not special. */
static int lowercase(const struct normalize_step *s, struct pattern_scratch *scratch, const char *text,
                     size_t len, struct buf *out, struct error *err)
{
    int n;
    (void)s, (void)scratch, (void)err;
    for (size_t at = 0; at < len; at += (size_t)n) add_lower(out, utf8_at(text + at, &n));
    return 0;
}

static int strip_accents(const struct normalize_step *s, struct pattern_scratch *scratch, const char *text,
                         size_t len, struct buf *out, struct error *err)
{
    int n;
    (void)s, (void)scratch, (void)err;
    for (size_t at = 0; at < len; at += (size_t)n) {
        u32 cp = utf8_at(text + at, &n);
        if (utf8proc_category((utf8proc_int32_t)cp) != UTF8PROC_CATEGORY_MN) utf8_add(out, cp);
    }
    return 0;
}

/* ---- SentencePiece's ---- */

static int load_precompiled(struct normalize_step *s, const struct json *field, struct error *err)
{
    const struct json *map = json_get(field, "precompiled_charsmap");
    if (json_kind(map) != JK_TEXT)
        return field_error(err, ERR_INPUT, "normalizer.precompiled_charsmap", "must be a string");
    s->map = charsmap_read(json_text(map), json_len(map), err);
    return s->map ? 0 : ERR_INPUT;
}

static int precompiled(const struct normalize_step *s, struct pattern_scratch *scratch, const char *text,
                       size_t len, struct buf *out, struct error *err)
{
    (void)scratch;
    return charsmap_run(s->map, text, len, out, err);
}

/* ---- BERT's ---- */

static int load_bert(struct normalize_step *s, const struct json *field, struct error *err)
{
    (void)err;
    s->clean = json_bool(json_get(field, "clean_text"), true);
    s->chinese = json_bool(json_get(field, "handle_chinese_chars"), true);
    s->lowercase = json_bool(json_get(field, "lowercase"), true);
    s->strip_accents = json_bool(json_get(field, "strip_accents"), s->lowercase);
    return 0;
}

static bool is_chinese(u32 cp)
{
    static const struct {
        u32 from, to;
    } ranges[] = {{0x3400, 0x4DBF},   {0x4E00, 0x9FFF},   {0xF900, 0xFAFF},   {0x20000, 0x2A6DF},
                  {0x2A700, 0x2B73F}, {0x2B740, 0x2B81F}, {0x2B920, 0x2CEAF}, {0x2F800, 0x2FA1F}};
    for (size_t i = 0; i < COUNT_OF(ranges); i++)
        if (cp >= ranges[i].from && cp <= ranges[i].to) return true;
    return false;
}

static bool is_dirt(u32 cp)
{
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    if (cp == '\t' || cp == '\n' || cp == '\r') return false;
    return cp == 0 || cp == REPLACEMENT || c == UTF8PROC_CATEGORY_CC || c == UTF8PROC_CATEGORY_CF ||
           c == UTF8PROC_CATEGORY_CO;
}

static void bert_clean(const struct normalize_step *s, const char *text, size_t len, struct buf *out)
{
    int n;
    for (size_t at = 0; at < len; at += (size_t)n) {
        u32 cp = utf8_at(text + at, &n);
        if (s->clean && is_dirt(cp)) continue;
        if (s->clean && utf8_is_space(cp)) cp = ' ';
        bool alone = s->chinese && is_chinese(cp);
        if (alone) buf_char(out, ' ');
        utf8_add(out, cp);
        if (alone) buf_char(out, ' ');
    }
}

static bool is_ascii(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if ((u8)text[i] >= 0x80) return false;
    }
    return true;
}

static int bert(const struct normalize_step *s, struct pattern_scratch *scratch, const char *text, size_t len,
                struct buf *out, struct error *err)
{
    static const struct normalize_row nfd = {.options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE};
    const struct normalize_step decompose = {.row = &nfd};
    struct buf a = {0}, b = {0};
    bert_clean(s, text, len, &a);
    if (s->strip_accents && !is_ascii(a.data, a.len)) {
        unicode_form(&decompose, scratch, a.data, a.len, &b, err);
        buf_clear(&a);
        strip_accents(s, scratch, b.data, b.len, &a, err);
    }
    if (s->lowercase) {
        lowercase(s, scratch, a.data, a.len, out, err);
    } else {
        buf_add(out, a.data, a.len);
    }
    buf_release(&a);
    buf_release(&b);
    return 0;
}

/* ---- the table ---- */

static int load_nothing(struct normalize_step *s, const struct json *field, struct error *err)
{
    (void)s, (void)field, (void)err;
    return 0;
}

static const struct normalize_row rows[] = {
    {"NFC", load_nothing, unicode_form, UTF8PROC_STABLE | UTF8PROC_COMPOSE, true},
    {"NFD", load_nothing, unicode_form, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, true},
    {"NFKC", load_nothing, unicode_form, UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT, true},
    {"NFKD", load_nothing, unicode_form, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT, true},
    {"Prepend", load_prepend, prepend, 0, false},
    {"Replace", load_replace, replace, 0, false},
    {"Strip", load_strip, strip, 0, false},
    {"Lowercase", load_nothing, lowercase, 0, false},
    {"StripAccents", load_nothing, strip_accents, 0, true},
    {"BertNormalizer", load_bert, bert, 0, false},
    {"Precompiled", load_precompiled, precompiled, 0, false},
};

static int load_step(struct normalizer *n, const struct json *field, struct error *err)
{
    const char *type = json_text(json_get(field, "type"));
    if (!type) return field_error(err, ERR_INPUT, "normalizer.type", "must be a string");
    if (n->n == NORMALIZE_STEPS)
        return field_error(err, ERR_UNSUPPORTED, "normalizer", "more than %d steps", NORMALIZE_STEPS);
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        if (strcmp(type, rows[i].type) != 0) continue;
        struct normalize_step *step = &n->steps[n->n++];
        *step = (struct normalize_step){.row = &rows[i]};
        return rows[i].load(step, field, err);
    }
    return field_error(err, ERR_UNSUPPORTED, "normalizer.type", "\"%.100s\" is not supported", type);
}

int normalizer_load(struct normalizer *n, const struct json *field, struct error *err)
{
    if (json_kind(field) == JK_NONE || json_kind(field) == JK_NULL) return 0;
    const char *type = json_text(json_get(field, "type"));
    if (!type || strcmp(type, "Sequence") != 0) return load_step(n, field, err);
    const struct json *list = json_get(field, "normalizers");
    if (json_kind(list) != JK_ARRAY)
        return field_error(err, ERR_INPUT, "normalizer.normalizers", "must be an array");
    for (size_t i = 0; i < json_len(list); i++) {
        int rc = normalizer_load(n, json_item(list, i), err); /* Sequences may lie in each other */
        if (rc) return rc;
    }
    return 0;
}

void normalizer_release(struct normalizer *n)
{
    for (int i = 0; i < n->n; i++) {
        pattern_free(n->steps[i].pattern);
        free(n->steps[i].content);
        charsmap_free(n->steps[i].map);
    }
    n->n = 0;
}

int normalizer_run(const struct normalizer *n, struct pattern_scratch *s, const char **text, size_t *len,
                   struct buf *out, struct error *err)
{
    struct buf next = {0};
    int rc = 0;
    for (int i = 0; i < n->n && rc == 0; i++) {
        const struct normalize_row *row = n->steps[i].row;
        if (row->ascii && is_ascii(*text, *len)) continue;
        buf_clear(&next);
        buf_reserve(&next, *len + 64);
        rc = row->run(&n->steps[i], s, *text, *len, &next, err);
        struct buf swap = *out;
        *out = next;
        next = swap;
        *text = out->data;
        *len = out->len;
    }
    buf_release(&next);
    return rc;
}
