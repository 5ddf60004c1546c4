/* Decoders: what each token adds to a text. The steps of a file's decoder run over every token once, when it is loaded; a
 * token may read otherwise where it is the first of a text. */
#include "text/tokenizer.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DECODE_STEPS = 16 };

struct decode_step {
    const struct decode_row *row;
    struct pattern *pattern; /* of Replace */
    char *text;              /* what it puts in place, a prefix, or the character to strip */
    size_t text_len;
    u32 start, stop; /* of Strip */
    bool prefixed;   /* Metaspace: marks of the first token are dropped */
    bool cleanup;    /* WordPiece */
};
struct chain {
    struct decode_step steps[DECODE_STEPS];
    int n;
    bool byte_runs, joined; /* a step before made the tokens one text */
    struct pattern_scratch *patterns;
};
struct piece { /* a token on its way */
    struct buf text, next;
    bool first, byte;
};
struct decode_row {
    const char *type;
    int (*load)(struct chain *c, struct decode_step *s, const struct json *field, struct error *err);
    void (*run)(const struct chain *c, const struct decode_step *s, struct piece *p);
};

/* ---- the steps ---- */

static void turn(struct piece *p)
{
    struct buf swap = p->text;
    p->text = p->next;
    p->next = swap;
    buf_clear(&p->next);
}

static int load_join(struct chain *c, struct decode_step *s, const struct json *field, struct error *err)
{
    (void)s, (void)field, (void)err;
    c->joined = true;
    return 0;
}

static void byte_level(const struct chain *c, const struct decode_step *s, struct piece *p)
{
    (void)c, (void)s;
    alphabet_bytes(p->text.data, p->text.len, &p->next);
    turn(p);
}

static void nothing(const struct chain *c, const struct decode_step *s, struct piece *p)
{
    (void)c, (void)s, (void)p;
}

static int load_byte_fallback(struct chain *c, struct decode_step *s, const struct json *field,
                              struct error *err)
{
    (void)s, (void)field, (void)err;
    c->byte_runs = true;
    return 0;
}

/* <0xE2> */
static void byte_fallback(const struct chain *c, const struct decode_step *s, struct piece *p)
{
    const char *t = p->text.data;
    (void)c, (void)s;
    p->byte = p->text.len == 6 && memcmp(t, "<0x", 3) == 0 && t[5] == '>' && isxdigit((u8)t[3]) &&
              isxdigit((u8)t[4]);
    if (!p->byte) return;
    buf_char(&p->next, (char)strtoul((char[]){t[3], t[4], 0}, NULL, 16));
    turn(p);
}

static int load_text(struct decode_step *s, const struct json *field, const char *key, bool one,
                     struct error *err)
{
    const struct json *v = json_get(field, key);
    char where[64];
    int n = 0;
    snprintf(where, sizeof(where), "decoder.%s", key);
    if (json_kind(v) != JK_TEXT) return field_error(err, ERR_INPUT, where, "must be a string");
    if (json_len(v)) utf8_at(json_text(v), &n);
    if (one && ((size_t)n != json_len(v) || !n || !json_text(v)[0]))
        return field_error(err, ERR_INPUT, where, "must be one character");
    s->text = mem_textn(json_text(v), json_len(v));
    s->text_len = json_len(v);
    return 0;
}

static int load_replace(struct chain *c, struct decode_step *s, const struct json *field, struct error *err)
{
    (void)c;
    int rc = load_text(s, field, "content", false, err);
    if (rc) return rc;
    s->pattern = pattern_load(json_get(field, "pattern"), "decoder.pattern", err);
    return s->pattern ? 0 : -1;
}

static void replace(const struct chain *c, const struct decode_step *s, struct piece *p)
{
    size_t done = 0, from, to;
    while (done < p->text.len &&
           pattern_find(s->pattern, c->patterns, p->text.data, p->text.len, done, &from, &to, NULL) == 1) {
        buf_add(&p->next, p->text.data + done, from - done);
        buf_add(&p->next, s->text, s->text_len);
        done = to;
    }
    buf_add(&p->next, p->text.data + done, p->text.len - done);
    turn(p);
}

static int load_strip(struct chain *c, struct decode_step *s, const struct json *field, struct error *err)
{
    i64 start = json_int(json_get(field, "start"), 0), stop = json_int(json_get(field, "stop"), 0);
    int rc = load_text(s, field, "content", true, err);
    if (rc) return rc;
    if (start < 0 || start > TOKEN_MAX_BYTES || stop < 0 || stop > TOKEN_MAX_BYTES)
        return field_error(err, ERR_INPUT, "decoder.start", "and decoder.stop must be in 0..%d",
                           TOKEN_MAX_BYTES);
    if (c->joined && stop) /* the end of a stream is not known before it comes */
        return field_error(err, ERR_UNSUPPORTED, "decoder.stop", "behind Fuse is not supported");
    s->start = (u32)start;
    s->stop = (u32)stop;
    return 0;
}

static void strip(const struct chain *c, const struct decode_step *s, struct piece *p)
{
    const char *text = p->text.data;
    size_t len = p->text.len;
    (void)c;
    for (u32 i = 0; i < s->start && len >= s->text_len && memcmp(text, s->text, s->text_len) == 0; i++) {
        text += s->text_len;
        len -= s->text_len;
    }
    for (u32 i = 0; i < s->stop && len >= s->text_len; i++) {
        if (memcmp(text + len - s->text_len, s->text, s->text_len) != 0) break;
        len -= s->text_len;
    }
    buf_add(&p->next, text, len);
    turn(p);
}

static int load_metaspace(struct chain *c, struct decode_step *s, const struct json *field, struct error *err)
{
    const char *scheme = json_text(json_get(field, "prepend_scheme"));
    (void)c;
    s->prefixed = json_bool(json_get(field, "add_prefix_space"), true);
    if (scheme) s->prefixed = strcmp(scheme, "never") != 0;
    return load_text(s, field, "replacement", true, err);
}

static void metaspace(const struct chain *c, const struct decode_step *s, struct piece *p)
{
    const char *text = p->text.data, *end = text + p->text.len;
    (void)c;
    while (text < end) {
        const char *mark = memmem(text, (size_t)(end - text), s->text, s->text_len);
        buf_add(&p->next, text, (size_t)((mark ? mark : end) - text));
        if (!mark) break;
        if (!p->first || !s->prefixed) buf_char(&p->next, ' ');
        text = mark + s->text_len;
    }
    turn(p);
}

static int load_wordpiece(struct chain *c, struct decode_step *s, const struct json *field, struct error *err)
{
    (void)c;
    s->cleanup = json_bool(json_get(field, "cleanup"), true);
    return load_text(s, field, "prefix", false, err);
}

/* Every `from` in text becomes `to`. */
static void substitute(struct piece *p, const char *from, const char *to)
{
    const char *text = p->text.data, *end = text + p->text.len;
    while (text < end) {
        const char *hit = memmem(text, (size_t)(end - text), from, strlen(from));
        buf_add(&p->next, text, (size_t)((hit ? hit : end) - text));
        if (!hit) break;
        buf_text(&p->next, to);
        text = hit + strlen(from);
    }
    turn(p);
}

static void wordpiece(const struct chain *c, const struct decode_step *s, struct piece *p)
{
    static const char *const clean[][2] = {
        {" .", "."},   {" ?", "?"},     {" !", "!"},     {" ,", ","},
        {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},   {" do not", " don't"},
        {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
    };
    (void)c;
    if (!p->first) {
        bool rest = p->text.len >= s->text_len && memcmp(p->text.data, s->text, s->text_len) == 0;
        if (!rest) buf_char(&p->next, ' ');
        buf_add(&p->next, p->text.data + (rest ? s->text_len : 0), p->text.len - (rest ? s->text_len : 0));
        turn(p);
    }
    for (size_t i = 0; s->cleanup && i < COUNT_OF(clean); i++) substitute(p, clean[i][0], clean[i][1]);
}

/* Without a decoder tokens are joined with blanks. */
static void blanks(const struct chain *c, const struct decode_step *s, struct piece *p)
{
    (void)c, (void)s;
    if (p->first) return;
    buf_char(&p->next, ' ');
    buf_add(&p->next, p->text.data, p->text.len);
    turn(p);
}

static const struct decode_row rows[] = {
    {"ByteLevel", load_join, byte_level},
    {"Replace", load_replace, replace},
    {"ByteFallback", load_byte_fallback, byte_fallback},
    {"Fuse", load_join, nothing},
    {"Strip", load_strip, strip},
    {"Metaspace", load_metaspace, metaspace},
    {"WordPiece", load_wordpiece, wordpiece},
};
static const struct decode_row no_decoder = {"none", load_join, blanks};

/* ---- reading ---- */

/* What may come behind what: bytes of characters are joined before anything looks at them, and of a joined text only the
 * begin can be changed, while it streams. */
static int check_order(const struct chain *c, const struct decode_row *row, struct error *err)
{
    const char *type = row->type;
    if (c->n == DECODE_STEPS)
        return field_error(err, ERR_UNSUPPORTED, "decoder", "more than %d steps", DECODE_STEPS);
    bool fits = !c->joined && (!c->byte_runs || row->load == load_join);
    if (c->joined) fits = row->run == strip || row->run == nothing;
    if (row->run == byte_level) fits = c->n == 0;
    if (fits) return 0;
    return field_error(err, ERR_UNSUPPORTED, "decoder.type", "%.60s at this place is not supported", type);
}

static int load_step(struct chain *c, const struct json *field, struct error *err)
{
    const char *type = json_text(json_get(field, "type"));
    if (!type) return field_error(err, ERR_INPUT, "decoder.type", "must be a string");
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        if (strcmp(type, rows[i].type) != 0) continue;
        int rc = check_order(c, &rows[i], err);
        if (rc) return rc;
        struct decode_step *step = &c->steps[c->n++];
        *step = (struct decode_step){.row = &rows[i]};
        return rows[i].load(c, step, field, err);
    }
    return field_error(err, ERR_UNSUPPORTED, "decoder.type", "\"%.60s\" is not supported", type);
}

static int load_chain(struct chain *c, const struct json *field, struct error *err)
{
    const char *type = json_text(json_get(field, "type"));
    if (!type || strcmp(type, "Sequence") != 0) return load_step(c, field, err);
    const struct json *list = json_get(field, "decoders");
    if (json_kind(list) != JK_ARRAY)
        return field_error(err, ERR_INPUT, "decoder.decoders", "must be an array");
    for (size_t i = 0; i < json_len(list); i++) {
        int rc = load_chain(c, json_item(list, i), err); /* Sequences may lie in each other */
        if (rc) return rc;
    }
    return 0;
}

/* Steps up to the one that joins all tokens; what is behind it is the stream's. */
static void run_chain(const struct chain *c, struct piece *p, const char *text, size_t len)
{
    p->byte = false;
    buf_clear(&p->text);
    buf_clear(&p->next);
    buf_reserve(&p->text, len + 1);
    buf_add(&p->text, text, len);
    for (int i = 0; i < c->n; i++) {
        c->steps[i].row->run(c, &c->steps[i], p);
        if (c->steps[i].row->load == load_join) break;
    }
}

static u32 keep(struct vocab *v, const struct buf *text)
{
    u32 at = (u32)v->pool.len;
    buf_add(&v->pool, text->data, text->len);
    return at;
}

static void decode_tokens(struct vocab *v, const struct chain *c)
{
    struct piece p = {0};
    for (i32 id = 0; id < v->n_ids; id++) {
        struct token *t = &v->tokens[id];
        if (!(t->flags & TOKEN_USED)) continue;
        bool normal = t->bytes_len > 0; /* an added token reads as its normalized text */
        struct buf text = {0};
        buf_add(&text, v->pool.data + (normal ? t->bytes : t->text), normal ? t->bytes_len : t->text_len);
        p.first = true;
        run_chain(c, &p, text.data, text.len);
        t->first = keep(v, &p.text);
        t->first_len = (u32)p.text.len;
        if (p.byte) t->flags |= TOKEN_BYTE;
        p.first = false;
        run_chain(c, &p, text.data, text.len);
        bool same =
            p.text.len == t->first_len && memcmp(p.text.data, v->pool.data + t->first, p.text.len) == 0;
        t->bytes = same ? t->first : keep(v, &p.text);
        t->bytes_len = (u32)p.text.len;
        buf_release(&text);
    }
    buf_release(&p.text);
    buf_release(&p.next);
}

/* Strip steps behind the one that joins: the first of them counts. */
static int set_strip(struct decoder *d, const struct chain *c, struct error *err)
{
    bool joined = false;
    for (int i = 0; i < c->n; i++) {
        const struct decode_step *s = &c->steps[i];
        if (joined && s->row->run == strip && d->strip)
            return field_error(err, ERR_UNSUPPORTED, "decoder.type",
                               "a second Strip behind Fuse is not supported");
        if (joined && s->row->run == strip) {
            d->strip = s->start;
            strcpy(d->strip_char, s->text);
        }
        joined = joined || s->row->load == load_join;
    }
    return 0;
}

int decoder_load(struct tokenizer *t, const struct json *field, struct error *err)
{
    struct chain c = {.patterns = pattern_scratch_new()};
    int rc = c.patterns ? 0 : error_set(err, ERR_MEMORY, "decoder", "no memory for pattern matching");
    if (rc == 0 && json_kind(field) <= JK_NULL)
        c.steps[c.n++] = (struct decode_step){.row = &no_decoder};
    else if (rc == 0)
        rc = load_chain(&c, field, err);
    if (rc == 0) rc = set_strip(&t->decoder, &c, err);
    if (rc == 0) decode_tokens(&t->vocab, &c);
    t->decoder.byte_runs = c.byte_runs;
    for (int i = 0; i < c.n; i++) {
        pattern_free(c.steps[i].pattern);
        free(c.steps[i].text);
    }
    pattern_scratch_free(c.patterns);
    return rc;
}
