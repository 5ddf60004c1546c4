/* Patterns: Oniguruma's syntax brought to PCRE2, and searching with limits. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/tokenizer.h"

#include <ctype.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* A try at one place of a text ends after so many steps, and a search is one of few places at a time. Between them the processor
 * time of the text is looked at, which may be some hundred times what the patterns of real models take. */
enum { PLACE_STEPS = 200 * 1000, BYTE_STEPS = 4, PLACES = 64, HEAP_LIMIT_KIB = 64 * 1024, LOOK_EVERY = 16 };
static const u64 TEXT_NS = 2 * NS_PER_S, BYTE_NS = 2000;

struct pattern {
    pcre2_code *code; /* NULL: literal */
    char *literal;
    size_t literal_len;
};
struct pattern_scratch {
    pcre2_match_data *data;
    pcre2_match_context *limits;
    u64 started_ns, cpu_ns; /* of the first search */
    u32 searches, steps;    /* steps: the limit that is set */
};

/* ---- translation: what is the same in both passes, what differs is rewritten, the rest is refused ---- */

struct translation {
    const char *at;
    struct buf out;
    const char *field;
    struct error *err;
    bool in_class;
};

static int refuse(struct translation *t, const char *what)
{
    return field_error(t->err, ERR_UNSUPPORTED, t->field, "%s at \"%.40s\" is not supported", what, t->at);
}

/* \p{Name}: general categories are the same; PCRE2 takes a script's name for its extensions, Oniguruma does not. */
static int property(struct translation *t)
{
    const char *name = t->at + 2;
    if (isalpha((u8)*name)) { /* \pL */
        buf_add(&t->out, t->at, 3);
        t->at += 3;
        return 0;
    }
    size_t len =
        *name == '{' ? strspn(name + 1, "^ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_") : 0;
    if (len == 0 || name[1 + len] != '}') return refuse(t, "this property");
    buf_add(&t->out, t->at, 3);
    if (len > 2 && name[1] != '^') {
        static const char *const same[] = {"Any", "Alphabetic", "White_Space", "Lowercase", "Uppercase"};
        bool is_same = false;
        for (size_t i = 0; i < COUNT_OF(same); i++)
            is_same = is_same || (strlen(same[i]) == len && strncmp(same[i], name + 1, len) == 0);
        if (!is_same) buf_text(&t->out, "sc:");
    }
    buf_add(&t->out, name + 1, len + 1);
    t->at += 3 + len + 1;
    return 0;
}

static int hex_escape(struct translation *t)
{
    size_t digits = 0;
    if (t->at[1] == 'u') {
        while (digits < 4 && isxdigit((u8)t->at[2 + digits])) digits++;
        if (digits < 4) return refuse(t, "this escape");
        buf_printf(&t->out, "\\x{%.4s}", t->at + 2);
        t->at += 6;
        return 0;
    }
    if (t->at[2] == '{') {
        while (isxdigit((u8)t->at[3 + digits])) digits++;
        if (digits == 0 || t->at[3 + digits] != '}') return refuse(t, "this escape");
        buf_add(&t->out, t->at, digits + 4);
        t->at += digits + 4;
        return 0;
    }
    while (digits < 2 && isxdigit((u8)t->at[2 + digits])) digits++;
    if (digits == 0) return refuse(t, "this escape");
    buf_printf(&t->out, "\\x{%.*s}", (int)digits, t->at + 2);
    t->at += 2 + digits;
    return 0;
}

struct escape {
    char letter;
    const char *outside, *in_class; /* NULL: refused there */
};
static const struct escape escapes[] = {
    {'s', "\\p{White_Space}", "\\p{White_Space}"},
    {'S', "\\P{White_Space}", "\\P{White_Space}"},
    {'w', "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]", "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"},
    {'W', "[^\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]", NULL},
    {'d', "\\p{Nd}", "\\p{Nd}"},
    {'D', "\\P{Nd}", "\\P{Nd}"},
    {'r', "\\r", "\\r"},
    {'n', "\\n", "\\n"},
    {'t', "\\t", "\\t"},
    {'f', "\\f", "\\f"},
    {'v', "\\x0b", "\\x0b"},
    {'a', "\\a", "\\a"},
    {'e', "\\e", "\\e"},
    {'A', "\\A", NULL},
    {'z', "\\z", NULL},
};

static int escape(struct translation *t)
{
    char c = t->at[1];
    if (c == 'p' || c == 'P') return property(t);
    if (c == 'x' || c == 'u') return hex_escape(t);
    for (size_t i = 0; i < COUNT_OF(escapes); i++) {
        const char *as = t->in_class ? escapes[i].in_class : escapes[i].outside;
        if (escapes[i].letter != c || !as) continue;
        buf_text(&t->out, as);
        t->at += 2;
        return 0;
    }
    if (c == 0 || isalnum((u8)c) || (u8)c >= 0x80) return refuse(t, "this escape");
    buf_add(&t->out, t->at, 2);
    t->at += 2;
    return 0;
}

static int class(struct translation *t)
{
    t->in_class = true;
    size_t open = t->at[1] == '^' ? 2 : 1;
    buf_add(&t->out, t->at, open);
    t->at += open;
    if (*t->at == ']') return refuse(t, "an empty set");
    while (*t->at != ']') {
        int rc = 0;
        if (*t->at == 0) return refuse(t, "an open set");
        if (*t->at == '[') return refuse(t, "a set in a set");
        if (t->at[0] == '&' && t->at[1] == '&') return refuse(t, "an intersection of sets");
        if (*t->at == '\\') {
            rc = escape(t);
        } else {
            buf_char(&t->out, *t->at++);
        }
        if (rc) return rc;
    }
    buf_char(&t->out, *t->at++);
    t->in_class = false;
    return 0;
}

static int group(struct translation *t)
{
    static const char *const known[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?i)", "(?-i:"};
    if (t->at[1] == '*') return refuse(t, "a verb");
    if (t->at[1] != '?') {
        buf_char(&t->out, *t->at++);
        return 0;
    }
    for (size_t i = 0; i < COUNT_OF(known); i++) {
        size_t len = strlen(known[i]);
        if (strncmp(t->at, known[i], len) != 0) continue;
        buf_add(&t->out, t->at, len);
        t->at += len;
        return 0;
    }
    return refuse(t, "this group");
}

/* {n,m}+ is possessive for PCRE2 and a second repetition for Oniguruma; {,m} is literal for PCRE2. */
static int interval(struct translation *t)
{
    size_t len = 1 + strspn(t->at + 1, "0123456789,");
    if (t->at[1] == ',' && t->at[len] == '}') return refuse(t, "an interval without a lower bound");
    if (len > 1 && t->at[len] == '}') {
        if (t->at[len + 1] == '+') return refuse(t, "a repetition after an interval");
        len++;
    }
    buf_add(&t->out, t->at, len);
    t->at += len;
    return 0;
}

static int translate(struct translation *t)
{
    int rc = 0;
    while (*t->at && rc == 0) {
        switch (*t->at) {
        case '\\': rc = escape(t); break;
        case '[': rc = class(t); break;
        case '(': rc = group(t); break;
        case '{': rc = interval(t); break;
        default: buf_char(&t->out, *t->at++);
        }
    }
    return rc;
}

/* ---- compiling and searching ---- */

static pcre2_code *compile(const char *text, size_t len, u32 options, const char *field, struct error *err)
{
    int code;
    PCRE2_SIZE at;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (context) pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)text, len, options, &code, &at, context);
    pcre2_compile_context_free(context);
    if (!re) {
        char why[160] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof(why));
        field_error(err, ERR_UNSUPPORTED, field, "pattern \"%.200s\": %s at byte %zu", text, why, (size_t)at);
        return NULL;
    }
    u32 matches_empty = 0;
    pcre2_pattern_info(re, PCRE2_INFO_MATCHEMPTY, &matches_empty);
    if (matches_empty) {
        field_error(err, ERR_UNSUPPORTED, field, "pattern \"%.200s\" matches the empty text", text);
        pcre2_code_free(re);
        return NULL;
    }
    pcre2_jit_compile(re, PCRE2_JIT_COMPLETE); /* where there is no JIT the interpreter runs */
    return re;
}

struct pattern *pattern_load(const struct json *pattern, const char *field, struct error *err)
{
    const struct json *regex = json_get(pattern, "Regex"), *string = json_get(pattern, "String");
    const struct json *source = json_text(regex) ? regex : string;
    if (!json_text(source)) {
        field_error(err, ERR_INPUT, field, "must hold a Regex or a String");
        return NULL;
    }
    if (strlen(json_text(source)) != json_len(source)) {
        field_error(err, ERR_UNSUPPORTED, field, "contains a NUL");
        return NULL;
    }
    return pattern_compile(json_text(source), source == string, field, err);
}

struct pattern *pattern_compile(const char *source, bool literal, const char *field, struct error *err)
{
    struct translation t = {.at = source, .field = field, .err = err};
    struct pattern *p = mem_zero(1, sizeof(*p));
    if (!source[0]) {
        field_error(err, ERR_INPUT, field, "an empty pattern");
    } else if (literal) {
        p->literal = mem_text(source);
        p->literal_len = strlen(source);
        return p;
    } else if (translate(&t) == 0) {
        /* Oniguruma's ^ and $ always are at lines */
        p->code = compile(t.out.data, t.out.len,
                          PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C | PCRE2_UCP | PCRE2_MULTILINE |
                              PCRE2_USE_OFFSET_LIMIT,
                          field, err);
    }
    buf_release(&t.out);
    if (p->code) return p;
    free(p);
    return NULL;
}

void pattern_free(struct pattern *p)
{
    if (!p) return;
    pcre2_code_free(p->code);
    free(p->literal);
    free(p);
}

struct pattern_scratch *pattern_scratch_new(void)
{
    struct pattern_scratch *s = mem_zero(1, sizeof(*s));
    s->data = pcre2_match_data_create(1, NULL);
    s->limits = pcre2_match_context_create(NULL);
    if (!s->data || !s->limits) {
        pattern_scratch_free(s);
        return NULL;
    }
    pcre2_set_heap_limit(s->limits, HEAP_LIMIT_KIB);
    return s;
}

void pattern_scratch_free(struct pattern_scratch *s)
{
    if (!s) return;
    pcre2_match_data_free(s->data);
    pcre2_match_context_free(s->limits);
    free(s);
}

static u64 cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (u64)t.tv_sec * NS_PER_S + (u64)t.tv_nsec;
}

/* The thread's time is asked for only when the clock says that it may be up: asking takes longer than most searches. */
static bool took_too_long(struct pattern_scratch *s, size_t len)
{
    u64 allowed = TEXT_NS + len * BYTE_NS;
    if (!s->started_ns) {
        s->started_ns = clock_ns();
        s->cpu_ns = cpu_ns();
    }
    return clock_ns() - s->started_ns > allowed && cpu_ns() - s->cpu_ns > allowed;
}

static int too_much(size_t at, const char *why, struct error *err)
{
    char where[32];
    snprintf(where, sizeof(where), "byte %zu", at);
    return error_set(err, ERR_FULL, where, "the tokenizer's pattern needs too much work for this text: %s",
                     why);
}

/* A match that begins in text[at, until]. */
static int find_before(const struct pattern *p, struct pattern_scratch *s, const char *text, size_t len,
                       size_t at, size_t until)
{
    u32 steps = (u32)MIN_OF(PLACE_STEPS + len * BYTE_STEPS, (size_t)INT32_MAX);
    if (s->steps != steps) pcre2_set_match_limit(s->limits, s->steps = steps);
    pcre2_set_offset_limit(s->limits, until);
    int rc = pcre2_match(p->code, (PCRE2_SPTR)text, len, at, PCRE2_NO_UTF_CHECK, s->data, s->limits);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter's stack is on the heap */
        rc = pcre2_match(p->code, (PCRE2_SPTR)text, len, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, s->data,
                         s->limits);
    return rc;
}

static int find_literal(const struct pattern *p, const char *text, size_t len, size_t at, size_t *from,
                        size_t *to)
{
    const char *hit = p->literal_len == 1 ? memchr(text + at, p->literal[0], len - at)
                                          : memmem(text + at, len - at, p->literal, p->literal_len);
    *from = hit ? (size_t)(hit - text) : len;
    *to = *from + p->literal_len;
    return hit != NULL;
}

int pattern_find(const struct pattern *p, struct pattern_scratch *s, const char *text, size_t len, size_t at,
                 size_t *from, size_t *to, struct error *err)
{
    if (p->literal) return find_literal(p, text, len, at, from, to);
    int rc = PCRE2_ERROR_NOMATCH;
    bool look = ++s->searches % LOOK_EVERY == 0; /* a short text ends before the first look */
    while (rc == PCRE2_ERROR_NOMATCH) {
        if (look && took_too_long(s, len)) return too_much(at, "its time is up", err);
        size_t until = at + PLACES;
        while (until < len && ((u8)text[until] & 0xC0) == 0x80) until++;
        if (until > len) until = len;
        rc = find_before(p, s, text, len, at, until);
        if (until == len) break;
        if (rc == PCRE2_ERROR_NOMATCH) at = until;
        look = true;
    }
    if (rc == PCRE2_ERROR_NOMATCH) return 0;
    if (rc < 0) {
        char why[160] = "";
        pcre2_get_error_message(rc, (PCRE2_UCHAR *)why, sizeof(why));
        return too_much(at, why, err);
    }
    const PCRE2_SIZE *range = pcre2_get_ovector_pointer(s->data);
    *from = range[0];
    *to = range[1];
    return 1;
}
