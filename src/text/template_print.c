/* Values as text: what print shows, Python's repr, JSON. */
#include "text/template.h"
#include "text/utf8.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static void put(struct render *r, struct writer *w, const char *s)
{
    write_text(r, w, s, strlen(s), FROM_TEMPLATE);
}

int format_real(double d, char out[40])
{
    char digits[40];
    int precision = 1;
    if (isnan(d)) return sprintf(out, "nan");
    if (isinf(d)) return sprintf(out, d < 0 ? "-inf" : "inf");
    for (; precision < 17; precision++) {
        snprintf(digits, sizeof(digits), "%.*e", precision - 1, d);
        if (strtod(digits, NULL) == d) break;
    }
    snprintf(digits, sizeof(digits), "%.*e", precision - 1, d);
    int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent >= -4 && exponent < 16) {
        int n = snprintf(out, 40, "%.*f", MAX_OF(precision - 1 - exponent, 0), d);
        if (!strchr(out, '.')) n += sprintf(out + n, ".0");
        return n;
    }
    return snprintf(out, 40, "%s", digits); /* two digits of exponent at least, in C and in Python */
}

static void put_number(struct render *r, struct writer *w, struct value v)
{
    char s[40];
    if (v.kind == V_BIG) {
        put(r, w, big_digits(r, v));
        return;
    }
    if (v.kind == V_INT) {
        snprintf(s, sizeof(s), "%lld", (long long)v.i);
    } else {
        format_real(v.d, s);
    }
    put(r, w, s);
}

/* ---- Python ---- */

static bool is_printable(u32 cp)
{
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP: return false;
    case UTF8PROC_CATEGORY_ZS: return cp == ' ';
    default: return true;
    }
}

static void repr_text(struct render *r, struct writer *w, struct value v)
{
    bool single = memchr(v.text, '\'', v.len), both = single && memchr(v.text, '"', v.len);
    const char *quote = single && !both ? "\"" : "'";
    put(r, w, quote);
    for (size_t at = 0; at < v.len;) {
        int n;
        u32 cp = utf8_at(v.text + at, &n);
        char s[16] = "";
        if (cp == '\\' || cp == (u32)quote[0]) {
            snprintf(s, sizeof(s), "\\%c", (int)cp);
        } else if (cp == '\n' || cp == '\r' || cp == '\t') {
            snprintf(s, sizeof(s), "\\%c", cp == '\n' ? 'n' : cp == '\r' ? 'r' : 't');
        } else if (!is_printable(cp)) {
            snprintf(s, sizeof(s), cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", cp);
        }
        if (s[0]) {
            write_text(r, w, s, strlen(s), origin_at(v, at));
        } else {
            write_part(r, w, v, at, (size_t)n);
        }
        at += (size_t)n;
    }
    put(r, w, quote);
}

static void repr_bytes(struct render *r, struct writer *w, struct value v)
{
    bool single = memchr(v.text, '\'', v.len), both = single && memchr(v.text, '"', v.len);
    const char *quote = single && !both ? "\"" : "'";
    put(r, w, "b");
    put(r, w, quote);
    for (size_t at = 0; at < v.len; at++) {
        u8 c = (u8)v.text[at];
        char s[8];
        if (c == '\\' || c == (u8)quote[0])
            snprintf(s, sizeof(s), "\\%c", c);
        else if (c == '\n' || c == '\r' || c == '\t')
            snprintf(s, sizeof(s), "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
        else
            snprintf(s, sizeof(s), c < 0x20 || c > 0x7E ? "\\x%02x" : "%c", c);
        write_text(r, w, s, strlen(s), origin_at(v, at));
    }
    put(r, w, quote);
}

static void repr_items(struct render *r, struct writer *w, const char *open, const struct list *l,
                       const char *close)
{
    put(r, w, open);
    for (u32 i = 0; i < l->n; i++) {
        if (i) put(r, w, ", ");
        write_repr(r, w, l->items[i]);
    }
    put(r, w, close);
}

static void repr_dict(struct render *r, struct writer *w, const struct dict *d)
{
    put(r, w, "{");
    for (u32 i = 0; i < d->n; i++) {
        if (i) put(r, w, ", ");
        write_repr(r, w, d->pairs[i].key);
        put(r, w, ": ");
        write_repr(r, w, d->pairs[i].value);
    }
    put(r, w, "}");
}

static void repr_range(struct render *r, struct writer *w, const struct range *range)
{
    char s[96];
    int n = snprintf(s, sizeof(s), "range(%lld, %lld", (long long)range->start, (long long)range->stop);
    if (range->step != 1) n += snprintf(s + n, sizeof(s) - (size_t)n, ", %lld", (long long)range->step);
    snprintf(s + n, sizeof(s) - (size_t)n, ")");
    put(r, w, s);
}

void write_repr(struct render *r, struct writer *w, struct value v)
{
    spend(r, 1);
    go_deeper(r);
    switch (v.kind) {
    case V_UNDEFINED: put(r, w, "Undefined"); break;
    case V_NONE: put(r, w, "None"); break;
    case V_BOOL: put(r, w, v.b ? "True" : "False"); break;
    case V_INT:
    case V_BIG:
    case V_REAL: put_number(r, w, v); break;
    case V_BYTES: repr_bytes(r, w, v); break;
    case V_TEXT:
        if (v.safe) put(r, w, "Markup(");
        repr_text(r, w, v);
        if (v.safe) put(r, w, ")");
        break;
    case V_LIST: repr_items(r, w, "[", v.list, "]"); break;
    case V_TUPLE: repr_items(r, w, "(", v.list, v.list->n == 1 ? ",)" : ")"); break;
    case V_DICT: repr_dict(r, w, v.dict); break;
    case V_RANGE: repr_range(r, w, v.range); break;
    case V_VIEW:
        put(r, w, (const char *)v.marks);
        repr_items(r, w, "([", v.list, "])");
        break;
    default: raise_unsupported(r, "printing this kind of object");
    }
    r->depth--;
}

void write_value(struct render *r, struct writer *w, struct value v)
{
    if (v.kind == V_TEXT) {
        write_part(r, w, v, 0, v.len);
    } else if (v.kind != V_UNDEFINED) {
        write_repr(r, w, v);
    }
}

struct value to_text(struct render *r, struct value v)
{
    struct writer w = {0};
    if (v.kind == V_TEXT) return v;
    write_value(r, &w, v);
    return written(r, &w);
}

/* ---- JSON: json.dumps of Python ---- */

struct json_style {
    bool ascii, sort_keys, lines;
    struct value indent, comma, colon;
};

static void json_text_value(struct render *r, struct writer *w, const struct json_style *style,
                            struct value v)
{
    static const char letters[] = "\"\\\n\r\t\b\f", as[] = "\"\\nrtbf";
    put(r, w, "\"");
    for (size_t at = 0; at < v.len;) {
        int n;
        u32 cp = utf8_at(v.text + at, &n);
        const char *letter = cp && cp < 0x80 ? strchr(letters, (int)cp) : NULL;
        char s[16] = "";
        if (letter) {
            snprintf(s, sizeof(s), "\\%c", as[letter - letters]);
        } else if (cp < 0x20 || (style->ascii && cp > 0x7E && cp < 0x10000)) {
            snprintf(s, sizeof(s), "\\u%04x", cp);
        } else if (style->ascii && cp >= 0x10000) {
            snprintf(s, sizeof(s), "\\u%04x\\u%04x", 0xD7C0 + (cp >> 10), 0xDC00 + (cp & 0x3FF));
        }
        if (s[0]) {
            write_text(r, w, s, strlen(s), origin_at(v, at));
        } else {
            write_part(r, w, v, at, (size_t)n);
        }
        at += (size_t)n;
    }
    put(r, w, "\"");
}

static void new_line(struct render *r, struct writer *w, const struct json_style *style, int level)
{
    if (!style->lines) return;
    put(r, w, "\n");
    for (int i = 0; i < level; i++) write_part(r, w, style->indent, 0, style->indent.len);
}

static void json_any(struct render *r, struct writer *w, const struct json_style *style, struct value v,
                     int level);

static void json_list(struct render *r, struct writer *w, const struct json_style *style,
                      const struct list *l, int level)
{
    put(r, w, "[");
    for (u32 i = 0; i < l->n; i++) {
        if (i) write_part(r, w, style->comma, 0, style->comma.len);
        new_line(r, w, style, level + 1);
        json_any(r, w, style, l->items[i], level + 1);
    }
    if (l->n) new_line(r, w, style, level);
    put(r, w, "]");
}

static void json_key_value(struct render *r, struct writer *w, const struct json_style *style,
                           struct value key)
{
    if (key.kind == V_TEXT) {
        json_text_value(r, w, style, key);
    } else if (key.kind == V_NONE || is_number(key)) {
        put(r, w, "\"");
        json_any(r, w, style, key, 0);
        put(r, w, "\"");
    } else {
        raise_error(r, "keys must be str, int, float, bool or None, not %s", type_name(key));
    }
}

static struct dict *sorted_pairs(struct render *r, const struct dict *d)
{
    struct dict *s = dict_new(r);
    for (u32 i = 0; i < d->n; i++) dict_set(r, s, d->pairs[i].key, d->pairs[i].value);
    for (u32 i = 1; i < s->n; i++) { /* keys differ: the order of insertion does not matter */
        struct pair p = s->pairs[i];
        u32 k = i;
        for (; k > 0 && order(r, p.key, s->pairs[k - 1].key, "<") == -1; k--) s->pairs[k] = s->pairs[k - 1];
        s->pairs[k] = p;
        spend(r, i - k);
    }
    return s;
}

static void json_dict(struct render *r, struct writer *w, const struct json_style *style,
                      const struct dict *d, int level)
{
    if (style->sort_keys) d = sorted_pairs(r, d);
    put(r, w, "{");
    for (u32 i = 0; i < d->n; i++) {
        if (i) write_part(r, w, style->comma, 0, style->comma.len);
        new_line(r, w, style, level + 1);
        json_key_value(r, w, style, d->pairs[i].key);
        write_part(r, w, style->colon, 0, style->colon.len);
        json_any(r, w, style, d->pairs[i].value, level + 1);
    }
    if (d->n) new_line(r, w, style, level);
    put(r, w, "}");
}

static void json_any(struct render *r, struct writer *w, const struct json_style *style, struct value v,
                     int level)
{
    spend(r, 1);
    if (level > 200) raise_error(r, "maximum recursion depth exceeded");
    switch (v.kind) {
    case V_NONE: put(r, w, "null"); break;
    case V_BOOL: put(r, w, v.b ? "true" : "false"); break;
    case V_REAL:
        if (!isfinite(v.d)) {
            put(r, w, isnan(v.d) ? "NaN" : v.d < 0 ? "-Infinity" : "Infinity");
            break;
        } /* fall through */
    case V_BIG:
    case V_INT: put_number(r, w, v); break;
    case V_TEXT: json_text_value(r, w, style, v); break;
    case V_LIST:
    case V_TUPLE: json_list(r, w, style, v.list, level); break;
    case V_DICT: json_dict(r, w, style, v.dict, level); break;
    default: raise_error(r, "Object of type %s is not JSON serializable", type_name(v));
    }
}

static struct value indentation(struct render *r, struct value v)
{
    struct writer w = {0};
    i64 n;
    if (v.kind == V_TEXT) return v;
    if (!as_int(v, &n)) raise_error(r, "tojson: indent must be an integer or a string, not %s", type_name(v));
    if (n > 1000) raise_unsupported(r, "an indent of more than 1000");
    for (i64 i = 0; i < n; i++) put(r, &w, " ");
    return written(r, &w);
}

/* arg: ensure_ascii, indent, separators, sort_keys */
void write_json(struct render *r, struct value v, const struct value *arg, struct writer *w)
{
    struct json_style style = {.ascii = is_true(arg[0]), .sort_keys = is_true(arg[3])};
    style.lines = arg[1].kind != V_ABSENT && arg[1].kind != V_NONE;
    if (style.lines) style.indent = indentation(r, arg[1]);
    style.comma = v_text(style.lines ? "," : ", ");
    style.colon = v_text(": ");
    if (arg[2].kind != V_ABSENT && arg[2].kind != V_NONE) {
        const struct list *pair = walk(r, arg[2]);
        if (pair->n != 2 || pair->items[0].kind != V_TEXT || pair->items[1].kind != V_TEXT)
            raise_error(r, "tojson: separators must be two strings");
        style.comma = pair->items[0];
        style.colon = pair->items[1];
    }
    json_any(r, w, &style, v, 0);
}
