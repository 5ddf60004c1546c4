/* utf8: characters in bytes. Private to this room. */
#ifndef TEXT_UTF8_H
#define TEXT_UTF8_H

#include "mpiserve/base.h"

enum { UTF8_MAX = 4, REPLACEMENT = 0xFFFD };

/* Looks at the character at s (len > 0 bytes). Good: its length, with the code point in *cp. Ill-formed: -n, where n
 * bytes are the maximal ill-formed part. 0: the bytes begin a character and end before it does. */
int utf8_next(const char *s, size_t len, u32 *cp);
/* Index of the first byte that is not UTF-8, or len. */
size_t utf8_valid(const char *s, size_t len);
int utf8_put(u32 cp, char out[UTF8_MAX]); /* the number of bytes written */
void utf8_add(struct buf *out, u32 cp);

/* In valid text only: the code point at s, and the length of the last character of the len > 0 bytes at s. */
u32 utf8_at(const char *s, int *len);
static inline int utf8_width(const char *s) /* bytes of the character at s */
{
    u8 first = (u8)s[0];
    return first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
}
int utf8_last(const char *s, size_t len);

/* lower.c: cased (of the categories Lu, Ll, Lt); the one or two characters that the one at `at` becomes in lower case, which
 * depends on its neighbours. */
bool utf8_is_cased(u32 cp);
int utf8_lower(const char *text, size_t len, size_t at, u32 out[2]);

bool utf8_is_space(u32 cp); /* White_Space */
bool utf8_is_word(u32 cp);  /* Alphabetic, marks, decimal digits, connectors, joiners */

#endif
