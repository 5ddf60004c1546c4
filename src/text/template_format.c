/* Formatting: "..." % args and "...".format(...), with Python's format specifications. */
#include "text/template.h"
#include "text/utf8.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH_MAX = 100000, PRECISION_MAX = 300 };

struct spec {
    struct value fill; /* a character; V_ABSENT: blank */
    char align, sign;  /* < > = ^ or 0; + - or blank */
    bool alternate, zero;
    i64 width, precision; /* -1: none */
    char group, type;     /* , or _; 0: none */
};

static void put(struct render *r, struct writer *w, const char *s)
{
    write_text(r, w, s, strlen(s), FROM_TEMPLATE);
}

/* sign and prefix stand in front of zeroes that fill up. */
static void put_padded(struct render *r, struct writer *w, const struct spec *s, const char *sign,
                       struct value body, char align)
{
    i64 missing = s->width - (i64)strlen(sign) - count_chars(body), left = 0;
    struct value fill = s->fill.kind == V_TEXT ? s->fill : v_text(s->zero ? "0" : " ");
    if (s->align) align = s->align;
    if (s->zero && !s->align) align = '=';
    if (align == '>' || align == '=') left = missing;
    if (align == '^') left = missing / 2;
    if (align == '=') put(r, w, sign);
    for (i64 i = 0; i < left; i++) write_part(r, w, fill, 0, fill.len);
    if (align != '=') put(r, w, sign);
    write_part(r, w, body, 0, body.len);
    for (i64 i = MAX_OF(left, (i64)0); i < missing; i++) write_part(r, w, fill, 0, fill.len);
}

/* ---- numbers ---- */

/* 1234567 -> 1,234,567 */
static void group_digits(const struct spec *s, const char *digits, struct buf *out)
{
    size_t whole = strspn(digits, "0123456789abcdefABCDEF"), every = 3;
    if (s->type == 'x' || s->type == 'X' || s->type == 'o' || s->type == 'b') every = 4;
    if (s->type != 'x' && s->type != 'X') whole = strspn(digits, "0123456789");
    for (size_t i = 0; i < whole; i++) {
        if (s->group && i && (whole - i) % every == 0) buf_char(out, s->group);
        buf_char(out, digits[i]);
    }
    buf_text(out, digits + whole);
}

static void put_number(struct render *r, struct writer *w, const struct spec *s, bool negative,
                       const char *prefix, const char *digits)
{
    char sign[8];
    struct buf grouped = {0};
    snprintf(sign, sizeof(sign), "%s%s",
             negative         ? "-"
             : s->sign == '+' ? "+"
             : s->sign == ' ' ? " "
                              : "",
             prefix);
    group_digits(s, digits, &grouped);
    struct value body = v_text("");
    char *copy = render_alloc(r, grouped.len + 1);
    memcpy(copy, grouped.data, grouped.len);
    body.text = copy;
    body.len = (u32)grouped.len;
    buf_release(&grouped);
    put_padded(r, w, s, sign, body, '>');
}

static void put_real(struct render *r, struct writer *w, const struct spec *s, double d)
{
    char digits[800], format[8] = "%.*f";
    double size = fabs(d);
    char type = s->type ? s->type : 'g';
    i64 precision = s->precision < 0 ? 6 : s->precision;
    if (precision > PRECISION_MAX) raise_unsupported(r, "a precision of more than 300");
    if (!isfinite(d)) {
        snprintf(digits, sizeof(digits), "%s",
                 isnan(d)            ? (isupper((u8)type) ? "NAN" : "nan")
                 : isupper((u8)type) ? "INF"
                                     : "inf");
    } else if (!s->type && s->precision < 0) {
        format_real(size, digits);
    } else if (type == '%') {
        snprintf(digits, sizeof(digits), "%.*f%%", (int)precision, size * 100);
    } else {
        snprintf(format, sizeof(format), s->alternate ? "%%#.*%c" : "%%.*%c", type);
        snprintf(digits, sizeof(digits), format, (int)precision, size);
        if (!s->type && !strpbrk(digits, ".e")) strcat(digits, ".0"); /* it stays a float */
    }
    put_number(r, w, s, signbit(d) && !isnan(d), "", digits);
}

static const char *digits_of(struct render *r, struct value v, char type, bool *negative)
{
    i64 i;
    char *out = render_alloc(r, 72), *at = out + 71;
    if (!as_int(v, &i)) {
        if (type != 'd') raise_unsupported(r, "an integer beyond 64 bits in this base");
        const char *digits = big_digits(r, v);
        *negative = digits[0] == '-';
        return digits + *negative;
    }
    u64 rest = i < 0 ? 0 - (u64)i : (u64)i;
    u64 base = type == 'x' || type == 'X' ? 16 : type == 'o' ? 8 : type == 'b' ? 2 : 10;
    *negative = i < 0;
    do {
        *--at = (type == 'X' ? "0123456789ABCDEF" : "0123456789abcdef")[rest % base];
    } while (rest /= base);
    return at;
}

static void put_character(struct render *r, struct writer *w, const struct spec *s, i64 code, char align)
{
    char c[UTF8_MAX + 1] = "";
    if (code < 0 || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
        raise_error(r, "%%c arg not in range(0x110000)");
    struct writer one = {0};
    write_text(r, &one, c, (size_t)utf8_put((u32)code, c), FROM_TEMPLATE);
    put_padded(r, w, s, "", written(r, &one), align);
}

static void put_integer(struct render *r, struct writer *w, const struct spec *s, struct value v)
{
    bool negative;
    i64 code;
    char prefix[3] = {'0', s->type, 0};
    if (s->type && strchr("eEfFgG%", s->type)) {
        put_real(r, w, s, v.kind == V_BIG ? big_real(r, v) : as_real(v));
        return;
    }
    if (s->precision >= 0) raise_error(r, "Precision not allowed in integer format specifier");
    if (s->type == 'c') {
        if (!as_int(v, &code)) raise_error(r, "%%c arg not in range(0x110000)");
        put_character(r, w, s, code, '<');
        return;
    }
    if (s->type && !strchr("dxXob", s->type))
        raise_error(r, "Unknown format code '%c' for object of type 'int'", s->type);
    if (s->group == ',' && s->type && s->type != 'd')
        raise_error(r, "Cannot specify ',' with '%c'.", s->type);
    const char *digits = digits_of(r, v, s->type ? s->type : 'd', &negative);
    put_number(r, w, s, negative, s->alternate && s->type && s->type != 'd' ? prefix : "", digits);
}

static void put_string(struct render *r, struct writer *w, const struct spec *s, struct value v)
{
    if (s->precision >= 0) v = part(v, 0, char_offset(v, s->precision));
    put_padded(r, w, s, "", v, '<');
}

/* ---- percent ---- */

struct percent {
    struct value format, args;
    size_t at;
    u32 used;
};

static struct value next_arg(struct render *r, struct percent *p)
{
    if (p->args.kind == V_TUPLE) {
        if (p->used >= p->args.list->n) raise_error(r, "not enough arguments for format string");
        return p->args.list->items[p->used++];
    }
    if (p->used++) raise_error(r, "not enough arguments for format string");
    return p->args;
}

static char peek(const struct percent *p)
{
    return p->at < p->format.len ? p->format.text[p->at] : 0;
}

/* A number or *; -1: none. */
static i64 read_count(struct render *r, struct percent *p)
{
    i64 n = -1;
    if (peek(p) == '*') {
        p->at++;
        if (!as_int(next_arg(r, p), &n)) raise_error(r, "* wants int");
        return MAX_OF(MIN_OF(n, (i64)WIDTH_MAX), (i64)-WIDTH_MAX);
    }
    for (; isdigit((u8)peek(p)); p->at++)
        n = MIN_OF(MAX_OF(n, (i64)0) * 10 + (peek(p) - '0'), (i64)WIDTH_MAX);
    return n;
}

static void read_flags(struct render *r, struct percent *p, struct spec *s)
{
    *s = (struct spec){.precision = -1};
    for (char c; (c = peek(p)) && strchr("-+ #0", c); p->at++) {
        if (c == '-') s->align = '<';
        if (c == '+' || (c == ' ' && s->sign != '+')) s->sign = c;
        if (c == '#') s->alternate = true;
        if (c == '0') s->zero = true;
    }
    i64 width = read_count(r, p);
    if (width < -1) s->align = '<';
    s->width = width < 0 ? (width == -1 ? 0 : -width) : width;
    if (s->align == '<') s->zero = false;
    if (peek(p) == '.') {
        p->at++;
        i64 precision = read_count(r, p);
        s->precision = MAX_OF(precision, (i64)0);
    }
    while (peek(p) == 'h' || peek(p) == 'l' || peek(p) == 'L') p->at++;
}

static void convert(struct render *r, struct writer *w, struct spec *s, struct value v)
{
    struct writer text = {0};
    i64 precision = s->precision;
    if (s->type == 's' || s->type == 'r' || s->type == 'a') {
        if (s->type == 'a') raise_unsupported(r, "formatting with %a");
        if (s->type == 's') {
            write_value(r, &text, v);
        } else {
            write_repr(r, &text, v);
        }
        s->zero = false;
        if (!s->align) s->align = '>';
        put_string(r, w, s, written(r, &text));
        return;
    }
    i64 code;
    if (s->type == 'c' && ((v.kind == V_TEXT && count_chars(v) == 1) || as_int(v, &code))) {
        s->zero = false;
        if (v.kind == V_TEXT) {
            put_padded(r, w, s, "", v, '>');
        } else {
            put_character(r, w, s, code, '>');
        }
        return;
    }
    if (!is_number(v))
        raise_error(r, "%%%c format: a real number is required, not %s", s->type, type_name(v));
    if (strchr("eEfFgG", s->type)) {
        put_real(r, w, s, v.kind == V_BIG ? big_real(r, v) : as_real(v));
        return;
    }
    if (s->type == 'i' || s->type == 'u') s->type = 'd';
    if (v.kind == V_REAL && s->type != 'd')
        raise_error(r, "%%%c format: an integer is required, not float", s->type);
    if (v.kind == V_REAL) {
        static const struct call none;
        v = call_function(r, filter_find("int"), v, &none);
    }
    if (precision >= 0) raise_unsupported(r, "formatting integers with a precision");
    put_integer(r, w, s, v);
}

static struct value mapped(struct render *r, struct percent *p)
{
    size_t from = ++p->at;
    int depth = 1;
    if (p->args.kind != V_DICT) raise_error(r, "format requires a mapping");
    for (; p->at < p->format.len; p->at++) {
        depth += (p->format.text[p->at] == '(') - (p->format.text[p->at] == ')');
        if (depth == 0) break;
    }
    if (depth) raise_error(r, "incomplete format key");
    struct value key = part(p->format, from, p->at++ - from);
    const struct value *v = dict_get_name(r, p->args.dict, key.text, key.len);
    if (!v) raise_error(r, "KeyError: '%.*s'", (int)MIN_OF(key.len, 100u), key.text);
    return *v;
}

struct value format_percent(struct render *r, struct value format, struct value args)
{
    struct writer w = {.safe = format.safe};
    struct percent p = {.format = format, .args = args};
    if (format.safe) raise_unsupported(r, "formatting with a safe text");
    while (p.at < format.len) {
        const char *hit = memchr(format.text + p.at, '%', format.len - p.at);
        size_t to = hit ? (size_t)(hit - format.text) : format.len;
        write_part(r, &w, format, p.at, to - p.at);
        p.at = to + 1;
        if (!hit) break;
        struct value named = {.kind = V_ABSENT};
        struct spec s;
        spend(r, 1);
        if (peek(&p) == '(') named = mapped(r, &p);
        read_flags(r, &p, &s);
        s.type = peek(&p);
        p.at++;
        if (!s.type) raise_error(r, "incomplete format");
        if (s.type == '%') {
            write_part(r, &w, format, p.at - 1, 1);
            continue;
        }
        if (!strchr("diouxXeEfFgGcrsa", s.type))
            raise_error(r, "unsupported format character '%c'", isprint((u8)s.type) ? s.type : '?');
        convert(r, &w, &s, named.kind == V_ABSENT ? next_arg(r, &p) : named);
    }
    bool all = args.kind == V_TUPLE ? p.used == args.list->n : p.used == 1;
    if (!all && (args.kind == V_TUPLE || args.kind != V_DICT))
        raise_error(r, "not all arguments converted during string formatting");
    return written(r, &w);
}

/* ---- braces ---- */

struct braces {
    struct value format;
    const struct call *call;
    const struct value *mapping;
    size_t at;
    i64 automatic; /* the next number of {}; -1: fields have numbers */
};

static i64 digits_at(struct value f, size_t *at, size_t end)
{
    i64 n = -1;
    for (; *at < end && isdigit((u8)f.text[*at]); ++*at)
        n = MIN_OF(MAX_OF(n, (i64)0) * 10 + (f.text[*at] - '0'), (i64)WIDTH_MAX);
    return n;
}

/* [[fill]align][sign][#][0][width][,][.precision][type] */
static void read_spec(struct render *r, struct value text, struct spec *s)
{
    size_t at = 0, fill = text.len ? char_offset(text, 1) : 0;
    *s = (struct spec){.precision = -1};
    if (fill && fill < text.len && strchr("<>=^", text.text[fill])) {
        s->fill = part(text, 0, fill);
        s->align = text.text[fill];
        at = fill + 1;
    } else if (text.len && strchr("<>=^", text.text[0])) {
        s->align = text.text[at++];
    }
    if (at < text.len && strchr("+- ", text.text[at])) s->sign = text.text[at++];
    if (at < text.len && text.text[at] == '#') s->alternate = text.text[at++] == '#';
    if (at < text.len && text.text[at] == '0') s->zero = text.text[at++] == '0';
    i64 width = digits_at(text, &at, text.len);
    s->width = MAX_OF(width, (i64)0);
    if (at < text.len && (text.text[at] == ',' || text.text[at] == '_')) s->group = text.text[at++];
    if (at < text.len && text.text[at] == '.') {
        at++;
        s->precision = digits_at(text, &at, text.len);
        if (s->precision < 0) raise_error(r, "Format specifier missing precision");
    }
    if (at < text.len) s->type = text.text[at++];
    if (at < text.len || (s->type && !isalpha((u8)s->type) && s->type != '%'))
        raise_error(r, "Invalid format specifier");
    if (s->zero && s->align && s->fill.kind != V_TEXT) s->fill = v_text("0");
    if ((s->zero || (s->align == '=' && is_text(s->fill, "0"))) && s->group)
        raise_unsupported(r, "zeroes and groups of digits in a format");
    if (s->type == 'n') raise_unsupported(r, "the format code n");
}

static void put_formatted(struct render *r, struct writer *w, struct value v, struct value spec)
{
    struct spec s;
    if (spec.len == 0 && v.kind != V_TEXT) {
        write_value(r, w, v);
        return;
    }
    read_spec(r, spec, &s);
    if (v.kind == V_TEXT) {
        if ((s.type && s.type != 's') || s.sign || s.align == '=')
            raise_error(r, "Unknown format code '%c' for object of type 'str'",
                        s.type    ? s.type
                        : s.align ? s.align
                                  : s.sign);
        if (s.zero && !s.align) s.align = '<';
        put_string(r, w, &s, v);
    } else if (v.kind == V_REAL) {
        if (s.type && !strchr("eEfFgG%", s.type))
            raise_error(r, "Unknown format code '%c' for object of type 'float'", s.type);
        put_real(r, w, &s, v.d);
    } else if (is_number(v)) {
        put_integer(r, w, &s, v);
    } else {
        raise_error(r, "unsupported format string passed to %s.__format__", type_name(v));
    }
}

static struct value named_field(struct render *r, struct braces *b, struct value name)
{
    for (u32 i = 0; b->call && i < b->call->n_named; i++)
        if (is_text(name, b->call->named[i].name)) return b->call->named[i].value;
    const struct value *v = b->mapping ? dict_get_name(r, b->mapping->dict, name.text, name.len) : NULL;
    if (!v) raise_error(r, "KeyError: '%.*s'", (int)MIN_OF(name.len, 100u), name.text);
    return *v;
}

static struct value first_part(struct render *r, struct braces *b, struct value name)
{
    size_t at = 0;
    i64 number = digits_at(name, &at, name.len);
    if (name.len && (number < 0 || at < name.len)) return named_field(r, b, name);
    if (name.len == 0) {
        if (b->automatic < 0)
            raise_error(r, "cannot switch from manual field specification to automatic field numbering");
        number = b->automatic++;
    } else {
        if (b->automatic > 0)
            raise_error(r, "cannot switch from automatic field numbering to manual field specification");
        b->automatic = -1;
    }
    if (!b->call || number >= b->call->n)
        raise_error(r, "Replacement index %lld out of range for positional args tuple", (long long)number);
    return b->call->items[number];
}

/* name.attribute[index] */
static struct value field_value(struct render *r, struct braces *b, struct value name)
{
    size_t at = 0;
    while (at < name.len && name.text[at] != '.' && name.text[at] != '[') at++;
    struct value v = first_part(r, b, part(name, 0, at));
    while (at < name.len) {
        bool attribute = name.text[at++] == '.';
        size_t from = at;
        while (at < name.len &&
               (attribute ? name.text[at] != '.' && name.text[at] != '[' : name.text[at] != ']'))
            at++;
        struct value key = part(name, from, at - from);
        if (key.len == 0) raise_error(r, "Empty attribute in format string");
        if (!attribute && at++ >= name.len) raise_error(r, "expected '}' before end of string");
        size_t digits = 0;
        i64 index = digits_at(key, &digits, key.len);
        char *copy = render_alloc(r, key.len + 1);
        memcpy(copy, key.text, key.len);
        v = attribute ? get_attr(r, v, copy) : get_item(r, v, digits == key.len ? v_int(index) : key);
        if (v.kind == V_UNDEFINED) raise_error(r, "%s", v.text);
    }
    return v;
}

/* Behind the opening brace. */
static void put_field(struct render *r, struct writer *w, struct braces *b)
{
    struct value f = b->format;
    size_t from = b->at, name_end = 0, spec = 0;
    char conversion = 0;
    int brackets = 0;
    for (; b->at < f.len && f.text[b->at] != '}'; b->at++) {
        char c = f.text[b->at];
        if (c == '{') raise_unsupported(r, "a format inside of a format");
        brackets += (c == '[') - (c == ']');
        if (c == '!' && !spec && !name_end && !brackets) {
            name_end = b->at;
            conversion = b->at + 1 < f.len ? f.text[b->at + 1] : 0;
        }
        if (c == ':' && !spec && !brackets) {
            spec = b->at + 1;
            if (!name_end) name_end = b->at;
        }
    }
    if (b->at >= f.len) raise_error(r, "expected '}' before end of string");
    if (!spec && !name_end) name_end = b->at;
    struct value v = field_value(r, b, part(f, from, name_end - from));
    if (conversion && conversion != 'r' && conversion != 's')
        raise_unsupported(r, "this conversion in a format");
    if (conversion) {
        struct writer text = {0};
        if (conversion == 'r') {
            write_repr(r, &text, v);
        } else {
            write_value(r, &text, v);
        }
        v = written(r, &text);
    }
    put_formatted(r, w, v, spec ? part(f, spec, b->at - spec) : part(f, 0, 0));
    b->at++;
}

struct value format_braces(struct render *r, struct value format, const struct call *call,
                           const struct value *mapping)
{
    struct writer w = {0};
    struct braces b = {.format = format, .call = call, .mapping = mapping};
    if (format.safe) raise_unsupported(r, "formatting with a safe text");
    while (b.at < format.len) {
        char c = format.text[b.at];
        bool twice = b.at + 1 < format.len && format.text[b.at + 1] == c;
        spend(r, 1);
        if (c == '{' && !twice) {
            b.at++;
            put_field(r, &w, &b);
        } else if (c == '}' && !twice) {
            raise_error(r, "Single '}' encountered in format string");
        } else {
            size_t n = 1;
            while (c != '{' && c != '}' && b.at + n < format.len && !strchr("{}", format.text[b.at + n])) n++;
            write_part(r, &w, format, b.at, n);
            b.at += c == '{' || c == '}' ? 2 : n;
        }
    }
    return written(r, &w);
}
