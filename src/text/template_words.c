/* Methods that few templates use: of texts, of what encode() gives, of numbers. */
#include "text/template.h"
#include "text/utf8.h"

#include <math.h>
#include <string.h>
#include <utf8proc.h>

#define METHOD(name)                                                                                         \
    static struct value name(struct render *r, struct value in, const struct call *call,                     \
                             const struct value *arg)
#define UNUSED (void)r, (void)in, (void)call, (void)arg

static i64 need_int(struct render *r, struct value v)
{
    i64 i;
    if (!as_int(v, &i)) raise_error(r, "'%s' object cannot be interpreted as an integer", type_name(v));
    return i;
}

/* ---- case ---- */

METHOD(swapcase)
{
    UNUSED;
    return text_swapcase(r, in);
}

METHOD(casefold)
{
    UNUSED;
    return text_casefold(r, in);
}

/* ---- width ---- */

static struct value pad(struct render *r, struct value in, const struct value *arg, i64 left, i64 right)
{
    struct writer w = {.safe = in.safe};
    struct value fill = arg[1].kind == V_ABSENT ? v_text(" ") : arg[1];
    if (fill.kind != V_TEXT || count_chars(fill) != 1)
        raise_error(r, "The fill character must be exactly one character long");
    for (i64 i = 0; i < left; i++) write_part(r, &w, fill, 0, fill.len);
    write_part(r, &w, in, 0, in.len);
    for (i64 i = 0; i < right; i++) write_part(r, &w, fill, 0, fill.len);
    return written(r, &w);
}

METHOD(ljust)
{
    UNUSED;
    return pad(r, in, arg, 0, need_int(r, arg[0]) - count_chars(in));
}

METHOD(rjust)
{
    UNUSED;
    return pad(r, in, arg, need_int(r, arg[0]) - count_chars(in), 0);
}

METHOD(center)
{
    UNUSED;
    i64 width = need_int(r, arg[0]), missing = MAX_OF(width - count_chars(in), (i64)0);
    i64 left = missing / 2 + (missing & width & 1);
    return pad(r, in, arg, left, missing - left);
}

METHOD(zfill)
{
    UNUSED;
    struct writer w = {0};
    bool sign = in.len && (in.text[0] == '+' || in.text[0] == '-');
    write_part(r, &w, in, 0, sign);
    for (i64 i = need_int(r, arg[0]) - count_chars(in); i > 0; i--) write_text(r, &w, "0", 1, FROM_TEMPLATE);
    write_part(r, &w, in, sign, in.len - sign);
    return written(r, &w);
}

METHOD(expandtabs)
{
    UNUSED;
    struct writer w = {0};
    i64 size = arg[0].kind == V_ABSENT ? 8 : need_int(r, arg[0]), column = 0;
    for (size_t at = 0; at < in.len; at++) {
        char c = in.text[at];
        if (c != '\t') {
            write_part(r, &w, in, at, 1);
            column = c == '\n' || c == '\r' ? 0 : column + (((u8)c & 0xC0) != 0x80);
            continue;
        }
        i64 n = size > 0 ? size - column % size : 0;
        column += n;
        for (; n > 0; n--) write_text(r, &w, " ", 1, origin_at(in, at));
    }
    return written(r, &w);
}

/* ---- kinds of characters ---- */

static utf8proc_category_t category(u32 cp)
{
    return utf8proc_category((utf8proc_int32_t)cp);
}

static bool is_letter(u32 cp)
{
    return category(cp) >= UTF8PROC_CATEGORY_LU && category(cp) <= UTF8PROC_CATEGORY_LO;
}

static bool is_decimal(u32 cp)
{
    return category(cp) == UTF8PROC_CATEGORY_ND;
}

/* Characters of Lo that count something (Chinese numbers) have the property too; which, no category says. */
static bool is_numeric(u32 cp)
{
    utf8proc_category_t c = category(cp);
    return c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_NO;
}

static bool is_alnum(u32 cp)
{
    return is_letter(cp) || is_numeric(cp);
}

static bool is_ascii(u32 cp)
{
    return cp < 0x80;
}

static bool is_printable(u32 cp)
{
    utf8proc_category_t c = category(cp);
    return cp == ' ' || (c != UTF8PROC_CATEGORY_CN && c < UTF8PROC_CATEGORY_ZS);
}

static bool is_in_name(u32 cp)
{
    utf8proc_category_t c = category(cp);
    return is_letter(cp) || c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_ND ||
           c == UTF8PROC_CATEGORY_PC || c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_MC;
}

static struct value all_chars(struct value in, bool (*is)(u32 cp), bool if_empty)
{
    bool all = in.len > 0 || if_empty;
    int n;
    for (size_t at = 0; all && at < in.len; at += (size_t)n) all = is(utf8_at(in.text + at, &n));
    return v_bool(all);
}

METHOD(isalnum_)
{
    UNUSED;
    return all_chars(in, is_alnum, false);
}

METHOD(isascii_)
{
    UNUSED;
    return all_chars(in, is_ascii, true);
}

METHOD(isdecimal)
{
    UNUSED;
    return all_chars(in, is_decimal, false);
}

METHOD(isnumeric)
{
    UNUSED;
    for (size_t at = 0; at < in.len;) {
        int n;
        if (category(utf8_at(in.text + at, &n)) == UTF8PROC_CATEGORY_LO)
            raise_unsupported(r, "isnumeric() of letters");
        at += (size_t)n;
    }
    return all_chars(in, is_numeric, false);
}

METHOD(isprintable)
{
    UNUSED;
    return all_chars(in, is_printable, true);
}

METHOD(isidentifier)
{
    UNUSED;
    int n = 0;
    u32 cp = in.len ? utf8_at(in.text, &n) : 0;
    bool begins = cp == '_' || is_letter(cp) || category(cp) == UTF8PROC_CATEGORY_NL;
    return v_bool(in.len && begins && all_chars(in, is_in_name, true).b);
}

/* Upper case begins words, lower case goes on in them. */
METHOD(istitle)
{
    UNUSED;
    bool inside = false, any = false, fine = true;
    int n;
    for (size_t at = 0; at < in.len && fine; at += (size_t)n) {
        utf8proc_category_t c = category(utf8_at(in.text + at, &n));
        bool upper = c == UTF8PROC_CATEGORY_LU || c == UTF8PROC_CATEGORY_LT,
             lower = c == UTF8PROC_CATEGORY_LL;
        fine = !(upper && inside) && !(lower && !inside);
        inside = upper || lower;
        any = any || inside;
    }
    return v_bool(fine && any);
}

/* ---- others ---- */

METHOD(last_index)
{
    UNUSED;
    struct value at = call_function(r, method_find(V_TEXT, "rfind"), in, call);
    if (at.i < 0) raise_error(r, "substring not found");
    return at;
}

METHOD(format)
{
    UNUSED;
    return format_braces(r, in, call, NULL);
}

METHOD(format_map)
{
    UNUSED;
    if (arg[0].kind != V_DICT) raise_error(r, "format_map needs a mapping, not %s", type_name(arg[0]));
    return format_braces(r, in, NULL, &arg[0]);
}

/* A dict of code points: to a code point, a text, or none for nothing. */
METHOD(translate)
{
    UNUSED;
    struct writer w = {0};
    if (arg[0].kind != V_DICT) raise_unsupported(r, "translate() without a dict");
    for (size_t at = 0; at < in.len;) {
        int n;
        char c[UTF8_MAX];
        i64 code = 0;
        const struct value *v = dict_get(r, arg[0].dict, v_int(utf8_at(in.text + at, &n)));
        if (!v) {
            write_part(r, &w, in, at, (size_t)n);
        } else if (v->kind == V_TEXT) {
            write_part(r, &w, *v, 0, v->len);
        } else if (as_int(*v, &code) && code >= 0 && code <= 0x10FFFF && (code < 0xD800 || code > 0xDFFF)) {
            write_text(r, &w, c, (size_t)utf8_put((u32)code, c), origin_at(in, at));
        } else if (v->kind != V_NONE) {
            raise_error(r, "character mapping must return integer, None or str");
        }
        at += (size_t)n;
    }
    return written(r, &w);
}

static bool is_utf8_name(struct value v)
{
    return v.kind == V_ABSENT || is_text(v, "utf-8") || is_text(v, "utf8") || is_text(v, "UTF-8");
}

METHOD(encode)
{
    UNUSED;
    if (!is_utf8_name(arg[0]) || arg[1].kind != V_ABSENT)
        raise_unsupported(r, "encode() to anything but UTF-8");
    in.kind = V_BYTES;
    in.safe = false;
    return in;
}

METHOD(decode)
{
    UNUSED;
    if (!is_utf8_name(arg[0]) || arg[1].kind != V_ABSENT)
        raise_unsupported(r, "decode() from anything but UTF-8");
    in.kind = V_TEXT;
    return in;
}

const struct function more_text_methods[] = {
    {"casefold", casefold, "", 0},
    {"center", center, "width,fillchar", 1},
    {"encode", encode, "encoding,errors", 0},
    {"expandtabs", expandtabs, "tabsize", 0},
    {"format", format, "*", 0},
    {"format_map", format_map, "mapping", 1},
    {"isalnum", isalnum_, "", 0},
    {"isascii", isascii_, "", 0},
    {"isdecimal", isdecimal, "", 0},
    {"isidentifier", isidentifier, "", 0},
    {"isnumeric", isnumeric, "", 0},
    {"isprintable", isprintable, "", 0},
    {"istitle", istitle, "", 0},
    {"ljust", ljust, "width,fillchar", 1},
    {"rindex", last_index, "*", 0},
    {"rjust", rjust, "width,fillchar", 1},
    {"swapcase", swapcase, "", 0},
    {"translate", translate, "table", 1},
    {"zfill", zfill, "width", 1},
    {NULL, NULL, NULL, 0},
};
const struct function bytes_methods[] = {
    {"decode", decode, "encoding,errors", 0},
    {NULL, NULL, NULL, 0},
};

/* ---- numbers ---- */

static u64 size_of(struct render *r, struct value in)
{
    i64 i;
    if (!as_int(in, &i)) raise_unsupported(r, "this method of an integer beyond 64 bits");
    return i < 0 ? 0 - (u64)i : (u64)i;
}

METHOD(bit_length)
{
    UNUSED;
    u64 size = size_of(r, in);
    return v_int(size ? 64 - __builtin_clzll(size) : 0);
}

METHOD(bit_count)
{
    UNUSED;
    return v_int(__builtin_popcountll(size_of(r, in)));
}

METHOD(is_integer)
{
    UNUSED;
    return v_bool(in.kind != V_REAL || (isfinite(in.d) && in.d == floor(in.d)));
}

METHOD(conjugate)
{
    UNUSED;
    return in.kind == V_REAL ? in : binary(r, OP_ADD, v_int(0), in);
}

const struct function number_methods[] = {
    {"bit_count", bit_count, "", 0}, {"bit_length", bit_length, "", 0},
    {"conjugate", conjugate, "", 0}, {"is_integer", is_integer, "", 0},
    {NULL, NULL, NULL, 0},
};
const struct function real_methods[] = {
    {"conjugate", conjugate, "", 0},
    {"is_integer", is_integer, "", 0},
    {NULL, NULL, NULL, 0},
};
