/* Upper and lower case as Python's str has them: full mappings, the final sigma (lower.c), title case by words. */
#include "text/template.h"
#include "text/utf8.h"

#include <string.h>
#include <utf8proc.h>

/* Characters whose upper case is several characters (Unicode's SpecialCasing.txt). Rare ones are refused. */
static bool special_upper(struct render *r, u32 cp, struct writer *w, enum origin origin, bool title)
{
    static const struct {
        u32 cp;
        const char *upper, *title;
    } rows[] = {{0xDF, "SS", "Ss"},     {0xFB00, "FF", "Ff"},   {0xFB01, "FI", "Fi"}, {0xFB02, "FL", "Fl"},
                {0xFB03, "FFI", "Ffi"}, {0xFB04, "FFL", "Ffl"}, {0xFB05, "ST", "St"}, {0xFB06, "ST", "St"}};
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        if (rows[i].cp != cp) continue;
        const char *s = title ? rows[i].title : rows[i].upper;
        write_text(r, w, s, strlen(s), origin);
        return true;
    }
    if (cp == 0x149 || cp == 0x1F0 || cp == 0x390 || cp == 0x3B0 || cp == 0x587 ||
        (cp >= 0x1E96 && cp <= 0x1E9A) || (cp >= 0x1F50 && cp <= 0x1FFC) || (cp >= 0xFB13 && cp <= 0xFB17))
        raise_unsupported(r, "upper case of ligatures and of Greek letters with breathings");
    return false;
}

static void put(struct render *r, struct writer *w, u32 cp, enum origin origin)
{
    char c[UTF8_MAX];
    write_text(r, w, c, (size_t)utf8_put(cp, c), origin);
}

static void put_lower(struct render *r, struct writer *w, struct value v, size_t at)
{
    u32 cp[2];
    for (int i = 0, n = utf8_lower(v.text, v.len, at, cp); i < n; i++) put(r, w, cp[i], origin_at(v, at));
}

static void put_upper(struct render *r, struct writer *w, struct value v, size_t at, u32 cp, bool title)
{
    if (special_upper(r, cp, w, origin_at(v, at), title)) return;
    utf8proc_int32_t c = (utf8proc_int32_t)cp;
    put(r, w, (u32)(title ? utf8proc_totitle(c) : utf8proc_toupper(c)), origin_at(v, at));
}

enum casing { UPPER, LOWER, CAPITALIZE, TITLE, TITLE_FILTER, SWAP };

/* Where a word begins for the title filter: after white space and - ( { [ < */
static bool parts_words(u32 cp)
{
    return is_py_space(cp) || (cp < 0x80 && cp && strchr("-({[<", (int)cp));
}

static struct value convert(struct render *r, struct value v, enum casing casing)
{
    struct writer w = {.safe = v.safe};
    bool begins = true; /* the next letter is a word's first */
    spend(r, 1 + v.len / 16);
    for (size_t at = 0; at < v.len;) {
        int n;
        u32 cp = utf8_at(v.text + at, &n);
        utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)cp);
        bool is_lower = casing == SWAP && category == UTF8PROC_CATEGORY_LL;
        if (casing == SWAP && !is_lower && category != UTF8PROC_CATEGORY_LU) {
            put(r, &w, cp, origin_at(v, at));
        } else if (casing == UPPER || is_lower) {
            put_upper(r, &w, v, at, cp, false);
        } else if (casing == LOWER || casing == SWAP || !begins) {
            put_lower(r, &w, v, at);
        } else {
            put_upper(r, &w, v, at, cp, casing != TITLE_FILTER);
        }
        begins = (casing == TITLE && !utf8_is_cased(cp)) || (casing == TITLE_FILTER && parts_words(cp));
        at += (size_t)n;
    }
    return written(r, &w);
}

struct value text_upper(struct render *r, struct value v)
{
    return convert(r, v, UPPER);
}

struct value text_lower(struct render *r, struct value v)
{
    return convert(r, v, LOWER);
}

struct value text_capitalize(struct render *r, struct value v)
{
    return convert(r, v, CAPITALIZE);
}

struct value text_title(struct render *r, struct value v, bool filter)
{
    return convert(r, v, filter ? TITLE_FILTER : TITLE);
}

struct value text_swapcase(struct render *r, struct value v)
{
    return convert(r, v, SWAP);
}

/* Full case folding of Unicode. */
struct value text_casefold(struct render *r, struct value v)
{
    struct writer w = {0};
    for (size_t at = 0; at < v.len;) {
        int n, boundary = 0;
        utf8proc_int32_t folded[8];
        u32 cp = utf8_at(v.text + at, &n);
        utf8proc_ssize_t count = utf8proc_decompose_char((utf8proc_int32_t)cp, folded, COUNT_OF(folded),
                                                         UTF8PROC_STABLE | UTF8PROC_CASEFOLD, &boundary);
        for (utf8proc_ssize_t i = 0; i < count; i++) put(r, &w, (u32)folded[i], origin_at(v, at));
        at += (size_t)n;
    }
    return written(r, &w);
}

/* str.isupper() and str.islower(): at least one cased character, and all of them so. */
bool text_is_case(struct value v, bool upper)
{
    bool any = false;
    for (size_t at = 0; at < v.len;) {
        int n;
        utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)utf8_at(v.text + at, &n));
        if (c == UTF8PROC_CATEGORY_LT || c == (upper ? UTF8PROC_CATEGORY_LL : UTF8PROC_CATEGORY_LU))
            return false;
        any = any || c == (upper ? UTF8PROC_CATEGORY_LU : UTF8PROC_CATEGORY_LL);
        at += (size_t)n;
    }
    return any;
}
