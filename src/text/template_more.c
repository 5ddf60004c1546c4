/* Filters of texts that few templates use. */
#include "text/template.h"
#include "text/utf8.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define FILTER(name)                                                                                         \
    static struct value name(struct render *r, struct value in, const struct call *call,                     \
                             const struct value *arg)
#define UNUSED (void)r, (void)in, (void)call, (void)arg

static i64 int_or(struct render *r, struct value v, i64 otherwise, const char *what)
{
    i64 i;
    if (v.kind == V_ABSENT || v.kind == V_NONE) return otherwise;
    if (!as_int(v, &i)) raise_error(r, "%s must be an integer, not %s", what, type_name(v));
    return i;
}

/* truncate(length=255, killwords=false, end="...", leeway=5) */
FILTER(truncate)
{
    UNUSED;
    struct writer w = {0};
    struct value v = to_text(r, in), end = arg[2].kind == V_ABSENT ? v_text("...") : to_text(r, arg[2]);
    i64 length = int_or(r, arg[0], 255, "truncate: length"),
        leeway = int_or(r, arg[3], 5, "truncate: leeway");
    if (length < count_chars(end))
        raise_error(r, "expected length >= %lld, got %lld", (long long)count_chars(end), (long long)length);
    if (leeway < 0) raise_error(r, "expected leeway >= 0, got %lld", (long long)leeway);
    if (count_chars(v) <= length + leeway) return v;
    v = part(v, 0, char_offset(v, length - count_chars(end)));
    const char *blank = is_true(arg[1]) ? NULL : memrchr(v.text, ' ', v.len);
    write_part(r, &w, v, 0, blank ? (size_t)(blank - v.text) : v.len);
    write_part(r, &w, end, 0, end.len);
    return written(r, &w);
}

/* \w of Python: letters, numbers and _. */
static bool is_word(u32 cp)
{
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    return cp == '_' || (c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO) ||
           c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_NO;
}

FILTER(wordcount)
{
    UNUSED;
    struct value v = to_text(r, in);
    i64 n = 0;
    bool inside = false;
    spend(r, 1 + v.len / 16);
    for (size_t at = 0; at < v.len;) {
        int width;
        bool word = is_word(utf8_at(v.text + at, &width));
        n += word && !inside;
        inside = word;
        at += (size_t)width;
    }
    return v_int(n);
}

FILTER(center)
{
    UNUSED;
    struct value v = to_text(r, in);
    struct call padding = {.items = (struct value[]){arg[0].kind == V_ABSENT ? v_int(80) : arg[0]}, .n = 1};
    return call_function(r, method_find(V_TEXT, "center"), v, &padding);
}

FILTER(format)
{
    UNUSED;
    struct value v = to_text(r, in);
    struct list *args = list_new(r, call->n);
    struct value names = {.kind = V_DICT, .dict = dict_new(r)};
    if (call->n && call->n_named)
        raise_error(r, "can't handle positional and keyword arguments at the same time");
    for (u32 i = 0; i < call->n; i++) list_add(r, args, call->items[i]);
    for (u32 i = 0; i < call->n_named; i++)
        dict_set(r, names.dict, v_text(call->named[i].name), call->named[i].value);
    return format_percent(r, v, call->n_named ? names : v_list(V_TUPLE, args));
}

/* ---- URLs ---- */

static void quote(struct render *r, struct writer *w, struct value v, bool query)
{
    struct value text = to_text(r, v);
    for (size_t at = 0; at < text.len; at++) {
        u8 c = (u8)text.text[at];
        char s[4];
        bool plain = isalnum(c) || (c && strchr("_.-~", c)) || (c == '/' && !query);
        if (c < 0x80 && plain)
            snprintf(s, sizeof(s), "%c", c);
        else
            snprintf(s, sizeof(s), query && c == ' ' ? "+" : "%%%02X", c);
        write_text(r, w, s, strlen(s), origin_at(text, at));
    }
}

/* A text as a part of a path, a dict or pairs as a query. */
FILTER(urlencode)
{
    UNUSED;
    struct writer w = {0};
    bool pairs = in.kind == V_DICT || in.kind == V_LIST || in.kind == V_TUPLE || in.kind == V_VIEW ||
                 in.kind == V_GENERATOR;
    if (!pairs) {
        quote(r, &w, in, false);
        return written(r, &w);
    }
    struct value items =
        in.kind == V_DICT ? call_function(r, method_find(V_DICT, "items"), in, &(struct call){0}) : in;
    const struct list *l = walk(r, items);
    for (u32 i = 0; i < l->n; i++) {
        const struct list *pair = walk(r, l->items[i]);
        if (pair->n != 2) raise_error(r, "urlencode needs pairs");
        if (i) write_text(r, &w, "&", 1, FROM_TEMPLATE);
        quote(r, &w, pair->items[0], true);
        write_text(r, &w, "=", 1, FROM_TEMPLATE);
        quote(r, &w, pair->items[1], true);
    }
    return written(r, &w);
}

/* ---- HTML ---- */

/* Without what stands between open and close, in one pass after the other as markupsafe does. */
static struct value cut_out(struct render *r, struct value v, const char *open, const char *close)
{
    struct writer w = {0};
    size_t at = 0;
    for (;;) {
        const char *from = find_text(v, at, v_text(open));
        const char *to = from ? find_text(v, (size_t)(from - v.text), v_text(close)) : NULL;
        if (!to) break;
        spend(r, 1);
        write_part(r, &w, v, at, (size_t)(from - v.text) - at);
        at = (size_t)(to - v.text) + strlen(close);
    }
    write_part(r, &w, v, at, v.len - at);
    return written(r, &w);
}

/* The character of an entity at text[at], with its length; 0: none. */
static u32 entity(struct render *r, struct value v, size_t at, size_t *len)
{
    static const struct {
        const char *name;
        u32 cp;
    } names[] = {{"&amp;", '&'},  {"&lt;", '<'},    {"&gt;", '>'},
                 {"&quot;", '"'}, {"&apos;", '\''}, {"&nbsp;", 0xA0}};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        *len = strlen(names[i].name);
        if (v.len - at >= *len && memcmp(v.text + at, names[i].name, *len) == 0) return names[i].cp;
    }
    bool hex = at + 2 < v.len && (v.text[at + 2] | 32) == 'x';
    size_t from = at + 2 + hex, to = from;
    u32 cp = 0;
    if (at + 2 >= v.len) return 0;
    if (v.text[at + 1] != '#') {
        if (isalpha((u8)v.text[at + 1])) raise_unsupported(r, "striptags with this entity");
        return 0;
    }
    for (; to < v.len && (hex ? isxdigit((u8)v.text[to]) : isdigit((u8)v.text[to])) && to - from < 7; to++)
        cp = cp * (hex ? 16 : 10) +
             (u32)(isdigit((u8)v.text[to]) ? v.text[to] - '0' : (v.text[to] | 32) - 'a' + 10);
    if (to == from) return 0;
    if (cp < 32 || (cp >= 0x7F && cp < 0xA0) || cp > 0x10FFFF || (cp >= 0xD800 && cp < 0xE000))
        raise_unsupported(r, "striptags with this entity");
    *len = to - at + (to < v.len && v.text[to] == ';');
    return cp;
}

FILTER(striptags)
{
    UNUSED;
    struct writer w = {0}, plain = {0};
    struct value v = cut_out(r, cut_out(r, to_text(r, in), "<!--", "-->"), "<", ">");
    struct value words = call_function(r, method_find(V_TEXT, "split"), v, &(struct call){0});
    for (u32 i = 0; i < words.list->n; i++) {
        if (i) write_text(r, &w, " ", 1, FROM_TEMPLATE);
        write_part(r, &w, words.list->items[i], 0, words.list->items[i].len);
    }
    v = written(r, &w);
    for (size_t at = 0; at < v.len;) {
        size_t len = 1;
        u32 cp = v.text[at] == '&' ? entity(r, v, at, &len) : 0;
        char c[UTF8_MAX];
        if (cp) {
            write_text(r, &plain, c, (size_t)utf8_put(cp, c), origin_at(v, at));
        } else {
            write_part(r, &plain, v, at, len = 1);
        }
        at += len;
    }
    return written(r, &plain);
}

FILTER(forceescape)
{
    UNUSED;
    struct value v = to_text(r, in);
    v.safe = false;
    return text_escape(r, v);
}

/* ---- others ---- */

FILTER(filesizeformat)
{
    UNUSED;
    static const char *const units[] = {"k", "M", "G", "T", "P", "E", "Z", "Y"};
    struct writer w = {0};
    bool binary = is_true(arg[0]);
    char s[64];
    double base = binary ? 1024 : 1000;
    double bytes = call_function(r, filter_find("float"), in, &(struct call){0}).d, unit = base;
    if (bytes == 1) {
        snprintf(s, sizeof(s), "1 Byte");
    } else if (bytes < base) {
        snprintf(s, sizeof(s), "%.0f Bytes", trunc(bytes));
    } else {
        size_t i = 0;
        for (unit *= base; i + 1 < COUNT_OF(units) && bytes >= unit; i++) unit *= base;
        snprintf(s, sizeof(s), "%.1f %s%s", base * bytes / unit, binary && i == 0 ? "K" : units[i],
                 binary ? "iB" : "B");
    }
    write_text(r, &w, s, strlen(s), FROM_TEMPLATE);
    return written(r, &w);
}

static bool has_dict(struct value v)
{
    bool any = v.kind == V_DICT && v.dict->n > 1;
    for (u32 i = 0; !any && (v.kind == V_LIST || v.kind == V_TUPLE) && i < v.list->n; i++)
        any = has_dict(v.list->items[i]);
    return any;
}

/* What fits a line is printed as repr; pprint wraps what does not, and sorts dicts. */
FILTER(pretty)
{
    UNUSED;
    struct writer w = {0};
    write_repr(r, &w, in);
    struct value v = written(r, &w);
    if (count_chars(v) > 80 || has_dict(in)) raise_unsupported(r, "pprint of several lines or of a dict");
    return v;
}

/* The attribute only: items do not count. */
FILTER(attr)
{
    UNUSED;
    struct value name = to_text(r, arg[0]);
    char *copy = render_alloc(r, name.len + 1);
    memcpy(copy, name.text, name.len);
    struct value v = get_attribute(r, in, copy);
    return v.kind != V_ABSENT ? v
                              : undefined(r, "'%s object' has no attribute '%.100s'", type_name(in), copy);
}

const struct function text_filters[] = {
    {"attr", attr, "name", 1},
    {"center", center, "width", 0},
    {"filesizeformat", filesizeformat, "binary", 0},
    {"forceescape", forceescape, "", 0},
    {"format", format, "*", 0},
    {"pprint", pretty, "", 0},
    {"striptags", striptags, "", 0},
    {"truncate", truncate, "length,killwords,end,leeway", 0},
    {"urlencode", urlencode, "", 0},
    {"wordcount", wordcount, "", 0},
    {NULL, NULL, NULL, 0},
};
