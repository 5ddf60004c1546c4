/* Characters in bytes (Unicode 15, table 3-7 and section 3.9: maximal ill-formed parts). */
#include "text/utf8.h"

#include <utf8proc.h>

/* What may follow a first byte: the range of the second byte differs for a few (overlong forms, surrogates, the end of
 * Unicode); later bytes are 80..BF. */
static int sequence(u8 first, u8 *low, u8 *high)
{
    *low = 0x80;
    *high = 0xBF;
    if (first < 0xC2 || first > 0xF4) return 0;
    if (first < 0xE0) return 2;
    if (first == 0xE0) *low = 0xA0;
    if (first == 0xED) *high = 0x9F;
    if (first < 0xF0) return 3;
    if (first == 0xF0) *low = 0x90;
    if (first == 0xF4) *high = 0x8F;
    return 4;
}

int utf8_next(const char *s, size_t len, u32 *cp)
{
    u8 first = (u8)s[0], low, high;
    if (first < 0x80) {
        *cp = first;
        return 1;
    }
    int want = sequence(first, &low, &high);
    if (!want) return -1;
    u32 c = first & (0xFF >> (want + 1));
    for (int i = 1; i < want; i++) {
        if ((size_t)i == len) return 0;
        u8 b = (u8)s[i];
        if (b < low || b > high) return -i;
        low = 0x80;
        high = 0xBF;
        c = c << 6 | (b & 0x3F);
    }
    *cp = c;
    return want;
}

size_t utf8_valid(const char *s, size_t len)
{
    size_t at = 0;
    u32 cp;
    while (at < len) {
        int n = utf8_next(s + at, len - at, &cp);
        if (n <= 0) return at;
        at += (size_t)n;
    }
    return len;
}

int utf8_put(u32 cp, char out[UTF8_MAX])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    int n = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (int i = n - 1; i > 0; i--, cp >>= 6) out[i] = (char)(0x80 | (cp & 0x3F));
    out[0] = (char)(0xF00 >> n | cp);
    return n;
}

void utf8_add(struct buf *out, u32 cp)
{
    char c[UTF8_MAX];
    buf_add(out, c, (size_t)utf8_put(cp, c));
}

u32 utf8_at(const char *s, int *len)
{
    u32 cp = REPLACEMENT;
    *len = utf8_next(s, UTF8_MAX, &cp);
    return cp;
}

int utf8_last(const char *s, size_t len)
{
    int n = 1;
    while ((size_t)n < len && n < UTF8_MAX && ((u8)s[len - (size_t)n] & 0xC0) == 0x80) n++;
    return n;
}

bool utf8_is_space(u32 cp)
{
    if (cp < 0x80) return cp == ' ' || (cp >= 9 && cp <= 13);
    return cp == 0x85 || cp == 0xA0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 ||
           cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

/* Alphabetic characters that are symbols by category: circled and squared Latin letters. */
static bool is_letter_symbol(u32 cp)
{
    return (cp >= 0x24B6 && cp <= 0x24E9) || (cp >= 0x1F130 && cp <= 0x1F149) ||
           (cp >= 0x1F150 && cp <= 0x1F169) || (cp >= 0x1F170 && cp <= 0x1F189);
}

bool utf8_is_word(u32 cp)
{
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_PC: return true;
    default: return is_letter_symbol(cp) || cp == 0x200C || cp == 0x200D;
    }
}
