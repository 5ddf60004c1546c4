/* Writing JSON: straight into a buf, commas placed by a bit a level. */
#include "mpiserve/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void json_out_init(struct json_out *o, struct buf *to)
{
    *o = (struct json_out){.to = to};
}

static void before_value(struct json_out *o)
{
    u64 bit = 1ull << o->depth;
    if (!o->after_key && o->depth && (o->started & bit)) buf_char(o->to, ',');
    o->after_key = false;
    o->started |= bit;
}

static void enter(struct json_out *o, char bracket)
{
    before_value(o);
    BUG_ON(o->depth >= 63);
    o->depth++;
    o->started &= ~(1ull << o->depth);
    buf_char(o->to, bracket);
}

static void leave(struct json_out *o, char bracket)
{
    BUG_ON(o->depth <= 0 || o->after_key);
    o->depth--;
    buf_char(o->to, bracket);
}

void json_out_object(struct json_out *o)
{
    enter(o, '{');
}
void json_out_array(struct json_out *o)
{
    enter(o, '[');
}
void json_out_end_object(struct json_out *o)
{
    leave(o, '}');
}
void json_out_end_array(struct json_out *o)
{
    leave(o, ']');
}

/* Bytes of the UTF-8 character at s, or, negated, of the bad start of one (Unicode 3.9, maximal subparts). */
static int utf8_step(const u8 *s, size_t left)
{
    u8 low = 0x80, high = 0xBF, c = s[0];
    int need = c < 0x80 ? 0 : c < 0xC2 ? -1 : c < 0xE0 ? 1 : c < 0xF0 ? 2 : c < 0xF5 ? 3 : -1;
    if (need < 0) return -1;
    if (c == 0xE0) low = 0xA0;  /* overlong */
    if (c == 0xED) high = 0x9F; /* surrogates */
    if (c == 0xF0) low = 0x90;  /* overlong */
    if (c == 0xF4) high = 0x8F; /* above U+10FFFF */
    for (int i = 1; i <= need; i++) {
        if ((size_t)i >= left || s[i] < low || s[i] > high) return -i;
        low = 0x80;
        high = 0xBF;
    }
    return need + 1;
}

static void add_escaped(struct buf *to, u8 c)
{
    static const char short_forms[32] = {
        ['\b'] = 'b', ['\t'] = 't', ['\n'] = 'n', ['\f'] = 'f', ['\r'] = 'r'};
    char form = c < 32 ? short_forms[c] : (char)c;
    if (!form) {
        buf_printf(to, "\\u%04x", c);
        return;
    }
    buf_char(to, '\\');
    buf_char(to, form);
}

static void add_text(struct buf *to, const char *s, size_t len)
{
    const u8 *at = (const u8 *)s, *end = at + len, *run = at; /* [run, at) needs no change */
    buf_reserve(to, len + 2);
    buf_char(to, '"');
    while (at < end) {
        if (*at >= 0x20 && *at < 0x80 && *at != '"' && *at != '\\') {
            at++;
            continue;
        }
        int step = *at < 0x80 ? 0 : utf8_step(at, (size_t)(end - at));
        if (step > 0) {
            at += step;
            continue;
        }
        buf_add(to, run, (size_t)(at - run));
        if (step < 0)
            buf_text(to, "\xEF\xBF\xBD");
        else
            add_escaped(to, *at);
        at += step < 0 ? -step : 1;
        run = at;
    }
    buf_add(to, run, (size_t)(at - run));
    buf_char(to, '"');
}

static void add_real(struct buf *to, double v)
{
    char text[40];
    if (!isfinite(v)) v = -9999.0;
    /* 15 digits always survive a double, so fewer are never needed, except where it has fewer bits. */
    for (int digits = isnormal(v) ? 15 : 1; digits <= 17; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, v);
        if (strtod(text, NULL) == v) break;
    }
    buf_text(to, text);
    if (!strpbrk(text, ".e")) buf_text(to, ".0"); /* it stays a real when it is read back */
}

void json_out_key(struct json_out *o, const char *key)
{
    BUG_ON(o->after_key || !o->depth);
    before_value(o);
    add_text(o->to, key, strlen(key));
    buf_char(o->to, ':');
    o->after_key = true;
}

void json_out_text(struct json_out *o, const char *s, size_t len)
{
    before_value(o);
    add_text(o->to, s, len);
}

void json_out_str(struct json_out *o, const char *s)
{
    if (s)
        json_out_text(o, s, strlen(s));
    else
        json_out_null(o);
}

void json_out_int(struct json_out *o, i64 v)
{
    before_value(o);
    buf_printf(o->to, "%lld", (long long)v);
}

void json_out_real(struct json_out *o, double v)
{
    before_value(o);
    add_real(o->to, v);
}

void json_out_bool(struct json_out *o, bool v)
{
    before_value(o);
    buf_text(o->to, v ? "true" : "false");
}

void json_out_null(struct json_out *o)
{
    before_value(o);
    buf_text(o->to, "null");
}

void json_out_key_str(struct json_out *o, const char *key, const char *s)
{
    json_out_key(o, key);
    json_out_str(o, s);
}

void json_out_key_int(struct json_out *o, const char *key, i64 v)
{
    json_out_key(o, key);
    json_out_int(o, v);
}

void json_out_key_real(struct json_out *o, const char *key, double v)
{
    json_out_key(o, key);
    json_out_real(o, v);
}

void json_out_key_bool(struct json_out *o, const char *key, bool v)
{
    json_out_key(o, key);
    json_out_bool(o, v);
}

/* Works on the buf alone: a tree of 64 levels may come from a client and may be written at any depth. */
static void add_tree(struct buf *to, const struct json *v)
{
    switch (json_kind(v)) {
    case JK_NONE:
    case JK_NULL: buf_text(to, "null"); break;
    case JK_BOOL: buf_text(to, json_bool(v, false) ? "true" : "false"); break;
    case JK_INT: buf_printf(to, "%lld", (long long)json_int(v, 0)); break;
    case JK_REAL: add_real(to, json_real(v, 0)); break;
    case JK_BIG: buf_text(to, json_digits(v)); break;
    case JK_TEXT: add_text(to, json_text(v), json_len(v)); break;
    case JK_ARRAY:
        buf_char(to, '[');
        for (size_t i = 0; i < json_len(v); i++) {
            if (i) buf_char(to, ',');
            add_tree(to, json_item(v, i));
        }
        buf_char(to, ']');
        break;
    case JK_OBJECT:
        buf_char(to, '{');
        for (void *it = json_first(v), *first = it; it; it = json_next(v, it)) {
            if (it != first) buf_char(to, ',');
            add_text(to, json_key(it), json_key_len(it));
            buf_char(to, ':');
            add_tree(to, json_value(it));
        }
        buf_char(to, '}');
        break;
    }
}

void json_out_value(struct json_out *o, const struct json *v)
{
    before_value(o);
    add_tree(o->to, v);
}
