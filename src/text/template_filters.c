/* Filters. A row: name, function, parameters, how many of them are required. */
#include "text/template.h"
#include "text/utf8.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILTER(name)                                                                                         \
    static struct value name(struct render *r, struct value in, const struct call *call,                     \
                             const struct value *arg)
#define UNUSED (void)r, (void)in, (void)call, (void)arg

static const struct value *text_or_null(struct render *r, const struct value *arg, const char *what)
{
    if (arg->kind == V_ABSENT || arg->kind == V_NONE) return NULL;
    if (arg->kind != V_TEXT) raise_error(r, "%s must be a string, not %s", what, type_name(*arg));
    return arg;
}

static i64 int_or(struct render *r, struct value v, i64 otherwise, const char *what)
{
    i64 i;
    if (v.kind == V_ABSENT) return otherwise;
    if (!as_int(v, &i)) raise_error(r, "%s must be an integer, not %s", what, type_name(v));
    return i;
}

/* ---- texts ---- */

FILTER(upper)
{
    UNUSED;
    return text_upper(r, to_text(r, in));
}

FILTER(lower)
{
    UNUSED;
    return text_lower(r, to_text(r, in));
}

FILTER(title)
{
    UNUSED;
    return text_title(r, to_text(r, in), true);
}

FILTER(capitalize)
{
    UNUSED;
    return text_capitalize(r, to_text(r, in));
}

FILTER(trim)
{
    UNUSED;
    return text_strip(r, to_text(r, in), text_or_null(r, &arg[0], "trim: chars"), true, true);
}

FILTER(string)
{
    UNUSED;
    return to_text(r, in);
}

FILTER(safe)
{
    UNUSED;
    struct value v = to_text(r, in);
    v.safe = true;
    return v;
}

FILTER(escape)
{
    UNUSED;
    return text_escape(r, to_text(r, in));
}

FILTER(replace)
{
    UNUSED;
    struct value v = to_text(r, in);
    v.safe = false;
    i64 count = arg[2].kind == V_NONE ? -1 : int_or(r, arg[2], -1, "replace: count");
    return text_replace(r, v, to_text(r, arg[0]), to_text(r, arg[1]), count);
}

/* indent(width=4, first=false, blank=false): lines but the first, empty ones only on demand. */
FILTER(indent)
{
    UNUSED;
    struct writer w = {.safe = in.kind == V_TEXT && in.safe};
    struct value v = in, by = arg[0];
    if (in.kind == V_UNDEFINED) raise_error(r, "%s", in.text);
    if (in.kind != V_TEXT) raise_error(r, "indent needs a string, not %s", type_name(in));
    bool first = is_true(arg[1]), blank = is_true(arg[2]);
    if (memchr(v.text, '\r', v.len)) raise_unsupported(r, "indent of a text with carriage returns");
    if (by.kind != V_TEXT) {
        struct writer spaces = {0};
        for (i64 i = int_or(r, by, 4, "indent: width"); i > 0; i--)
            write_text(r, &spaces, " ", 1, FROM_TEMPLATE);
        by = written(r, &spaces);
    }
    for (size_t at = 0; at <= v.len;) {
        const char *end = memchr(v.text + at, '\n', v.len - at);
        size_t to = end ? (size_t)(end - v.text) : v.len;
        if (at ? (to > at || blank) : first) write_part(r, &w, by, 0, by.len);
        write_part(r, &w, v, at, to - at + (end ? 1 : 0));
        at = to + 1;
    }
    return written(r, &w);
}

FILTER(tojson)
{
    UNUSED;
    struct writer w = {0};
    write_json(r, in, arg, &w);
    return written(r, &w);
}

/* ---- numbers ---- */

FILTER(absolute)
{
    UNUSED;
    if (in.kind == V_REAL) return v_real(fabs(in.d));
    if (!is_number(in)) raise_error(r, "bad operand type for abs(): '%s'", type_name(in));
    return compare(r, OP_LT, in, v_int(0)) ? binary(r, OP_SUB, v_int(0), in)
                                           : binary(r, OP_ADD, v_int(0), in);
}

/* A number in a text as int() and float() of Python read it; false: none. */
static bool read_number(struct render *r, struct value v, i64 base, struct value *out)
{
    char s[128], *end;
    struct value t = text_strip(r, v, NULL, true, true);
    if (t.len == 0 || t.len >= sizeof(s)) return false;
    for (u32 i = 0; i < t.len; i++) {
        if ((u8)t.text[i] >= 0x80 || t.text[i] == 0 || t.text[i] == '_')
            raise_unsupported(r, "numbers with other digits");
        s[i] = t.text[i];
    }
    s[t.len] = 0;
    if (base) {
        errno = 0;
        *out = v_int(strtoll(s, &end, (int)base));
        if (errno == ERANGE && base != 10) raise_unsupported(r, "an integer beyond 64 bits in this base");
        if (errno == ERANGE && *end == 0) *out = big_from_digits(r, s + (s[0] == '+'));
        return *end == 0;
    }
    if (strpbrk(s, "xXnNpP(")) return false; /* strtod reads more than float() does */
    *out = v_real(strtod(s, &end));
    return *end == 0 && end != s;
}

static struct value truncate_real(struct render *r, double d, struct value otherwise)
{
    if (!isfinite(d)) return otherwise;
    if (fabs(d) < 9.2e18) return v_int((i64)d);
    char digits[400];
    snprintf(digits, sizeof(digits), "%.0f", d);
    return big_from_digits(r, digits);
}

FILTER(to_int)
{
    UNUSED;
    struct value v, otherwise = arg[0].kind == V_ABSENT ? v_int(0) : arg[0];
    i64 base = int_or(r, arg[1], 10, "int: base"), i;
    if (base != 2 && base != 8 && base != 10 && base != 16) raise_unsupported(r, "int with this base");
    if (in.kind == V_UNDEFINED) raise_error(r, "%s", in.text);
    if (in.kind == V_REAL) return truncate_real(r, in.d, otherwise);
    if (as_int(in, &i)) return v_int(i);
    if (in.kind == V_BIG) return in;
    if (in.kind != V_TEXT) return otherwise;
    if (read_number(r, in, base, &v)) return v;
    return read_number(r, in, 0, &v) ? truncate_real(r, v.d, otherwise) : otherwise;
}

FILTER(to_real)
{
    UNUSED;
    struct value v;
    if (in.kind == V_UNDEFINED) raise_error(r, "%s", in.text);
    if (in.kind == V_BIG) return v_real(big_real(r, in));
    if (is_number(in)) return v_real(as_real(in));
    if (in.kind == V_TEXT && read_number(r, in, 0, &v)) return v;
    return arg[0].kind == V_ABSENT ? v_real(0) : arg[0];
}

FILTER(rounded)
{
    UNUSED;
    i64 precision = int_or(r, arg[0], 0, "round: precision");
    char s[400];
    if (!is_number(in)) raise_error(r, "type %s doesn't define __round__ method", type_name(in));
    if (precision < 0 || precision > 15) raise_unsupported(r, "round with this precision");
    if (in.kind == V_BIG) return in;
    double d = as_real(in), scale = pow(10, (double)precision);
    if (arg[1].kind == V_ABSENT || is_text(arg[1], "common")) {
        if (in.kind != V_REAL) return binary(r, OP_ADD, v_int(0), in);
        snprintf(s, sizeof(s), "%.*f", (int)precision,
                 d); /* rounds half to even of the exact value, as Python */
        return v_real(strtod(s, NULL));
    }
    if (is_text(arg[1], "ceil")) return v_real(ceil(d * scale) / scale);
    if (is_text(arg[1], "floor")) return v_real(floor(d * scale) / scale);
    raise_error(r, "method must be common, ceil or floor");
}

/* ---- any value ---- */

FILTER(otherwise)
{
    UNUSED;
    bool use = in.kind == V_UNDEFINED || (is_true(arg[1]) && !is_true(in));
    if (!use) return in;
    return arg[0].kind == V_ABSENT ? v_text("") : arg[0];
}

FILTER(count)
{
    UNUSED;
    return v_int(length(r, in));
}

FILTER(to_list)
{
    UNUSED;
    const struct list *from = walk(r, in);
    struct list *l = list_new(r, from->n);
    for (u32 i = 0; i < from->n; i++) list_add(r, l, from->items[i]);
    return v_list(V_LIST, l);
}

FILTER(first)
{
    UNUSED;
    if (in.kind == V_GENERATOR && !in.list->walked && in.list->n > 1) {
        struct list *rest = render_alloc(r, sizeof(*rest)); /* the rest of it stays to be walked */
        *rest = (struct list){.items = in.list->items + 1, .n = in.list->n - 1, .cap = in.list->n - 1};
        struct value v = in.list->items[0];
        *in.list = *rest;
        return v;
    }
    const struct list *l = walk(r, in);
    return l->n ? l->items[0] : undefined(r, "No first item, sequence was empty.");
}

FILTER(last)
{
    UNUSED;
    if (in.kind == V_GENERATOR) raise_error(r, "'generator' object is not reversible");
    const struct list *l = walk(r, in);
    return l->n ? l->items[l->n - 1] : undefined(r, "No last item, sequence was empty.");
}

FILTER(reversed)
{
    UNUSED;
    struct writer w = {0};
    if (in.kind == V_GENERATOR) raise_unsupported(r, "reverse of what map or select gave");
    const struct list *from = walk(r, in);
    struct list *l = list_new(r, from->n);
    for (u32 i = from->n; i > 0; i--) list_add(r, l, from->items[i - 1]);
    if (in.kind != V_TEXT) return v_list(V_GENERATOR, l);
    for (u32 i = 0; i < l->n; i++) write_part(r, &w, l->items[i], 0, l->items[i].len);
    return written(r, &w);
}

FILTER(items)
{
    UNUSED;
    struct list *l = list_new(r, 0);
    if (in.kind == V_UNDEFINED) return v_list(V_GENERATOR, l);
    if (in.kind != V_DICT) raise_error(r, "Can only get item pairs from a mapping.");
    for (u32 i = 0; i < in.dict->n; i++) {
        struct list *pair = list_new(r, 2);
        list_add(r, pair, in.dict->pairs[i].key);
        list_add(r, pair, in.dict->pairs[i].value);
        list_add(r, l, v_list(V_TUPLE, pair));
    }
    return v_list(V_GENERATOR, l);
}

FILTER(join)
{
    UNUSED;
    struct writer w = {0};
    const struct list *l = walk(r, in);
    struct value by = arg[0].kind == V_ABSENT ? v_text("") : to_text(r, arg[0]);
    for (u32 i = 0; i < l->n; i++) {
        struct value v = l->items[i];
        if (arg[1].kind != V_ABSENT && arg[1].kind != V_NONE) v = attribute_path(r, v, arg[1], NULL);
        if (i) write_part(r, &w, by, 0, by.len);
        write_value(r, &w, v);
    }
    return written(r, &w);
}

static const struct function filters[] = {
    {"abs", absolute, "", 0},
    {"capitalize", capitalize, "", 0},
    {"count", count, "", 0},
    {"d", otherwise, "default_value,boolean", 0},
    {"default", otherwise, "default_value,boolean", 0},
    {"e", escape, "", 0},
    {"escape", escape, "", 0},
    {"first", first, "", 0},
    {"float", to_real, "default", 0},
    {"indent", indent, "width,first,blank", 0},
    {"int", to_int, "default,base", 0},
    {"items", items, "", 0},
    {"join", join, "d,attribute", 0},
    {"last", last, "", 0},
    {"length", count, "", 0},
    {"list", to_list, "", 0},
    {"lower", lower, "", 0},
    {"replace", replace, "old,new,count", 2},
    {"reverse", reversed, "", 0},
    {"round", rounded, "precision,method", 0},
    {"safe", safe, "", 0},
    {"string", string, "", 0},
    {"title", title, "", 0},
    {"tojson", tojson, "ensure_ascii,indent,separators,sort_keys", 0},
    {"trim", trim, "chars", 0},
    {"upper", upper, "", 0},
};

static const char *const refused[] = {"random", "urlize", "wordwrap", "xmlattr"};

const struct function *filter_find(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(filters); i++) {
        if (strcmp(filters[i].name, name) == 0) return &filters[i];
    }
    const struct function *const others[] = {list_filters, text_filters};
    for (size_t i = 0; i < COUNT_OF(others); i++)
        for (const struct function *f = others[i]; f->name; f++)
            if (strcmp(f->name, name) == 0) return f;
    return NULL;
}

bool filter_is_refused(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(refused); i++) {
        if (strcmp(refused[i], name) == 0) return true;
    }
    return false;
}
