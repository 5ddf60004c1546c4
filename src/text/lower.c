/* Lower case as Python's str.lower() has it: full mappings, the final sigma. */
#include "mpiserve/text.h"
#include "text/utf8.h"

#include <string.h>
#include <utf8proc.h>

bool utf8_is_cased(u32 cp)
{
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    return c == UTF8PROC_CATEGORY_LU || c == UTF8PROC_CATEGORY_LL || c == UTF8PROC_CATEGORY_LT;
}

static bool is_case_ignorable(u32 cp)
{
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    return c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_ME || c == UTF8PROC_CATEGORY_CF ||
           c == UTF8PROC_CATEGORY_LM || c == UTF8PROC_CATEGORY_SK ||
           (cp < 0x80 && cp && strchr("'.:^`", (int)cp)) || cp == 0xB7 || cp == 0x2019;
}

/* A sigma is final after a letter and not before one. */
static bool is_final_sigma(const char *text, size_t len, size_t at)
{
    bool after = false;
    int n;
    for (size_t i = at; i > 0 && !after;) {
        i -= (size_t)utf8_last(text, i);
        u32 cp = utf8_at(text + i, &n);
        if (is_case_ignorable(cp)) continue;
        if (!utf8_is_cased(cp)) return false;
        after = true;
    }
    if (!after) return false;
    for (size_t i = at + 2; i < len; i += (size_t)n) {
        u32 cp = utf8_at(text + i, &n);
        if (!is_case_ignorable(cp)) return !utf8_is_cased(cp);
    }
    return true;
}

int utf8_lower(const char *text, size_t len, size_t at, u32 out[2])
{
    int n;
    u32 cp = utf8_at(text + at, &n);
    if (cp == 0x130) {
        out[0] = 'i';
        out[1] = 0x307;
        return 2;
    }
    bool final = cp == 0x3A3 && is_final_sigma(text, len, at);
    out[0] = final ? 0x3C2 : (u32)utf8proc_tolower((utf8proc_int32_t)cp);
    return 1;
}

void text_lower_case(const char *text, size_t len, struct buf *out)
{
    u32 cp[2];
    for (size_t at = 0; at < len; at += (size_t)utf8_width(text + at))
        for (int i = 0, n = utf8_lower(text, len, at, cp); i < n; i++) utf8_add(out, cp[i]);
}
