/* String literals: Python's escapes, the way Jinja reads them. */
#include "text/template.h"
#include "text/utf8.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct unescape {
    struct lexer *lexer;
    const char *s;
    size_t len, at;
    char *out;
    size_t n;
};

static void put(struct unescape *u, u32 cp)
{
    if (cp > 0x10FFFF || (cp >= 0xD800 && cp < 0xE000))
        fault_raise(u->lexer->fault, ERR_UNSUPPORTED, "a string with half of a surrogate pair");
    u->n += (size_t)utf8_put(cp, u->out + u->n);
}

static void hex(struct unescape *u, size_t want)
{
    char digits[9] = "";
    for (size_t i = 0; i < want; i++) {
        char c = u->at + 2 + i < u->len ? u->s[u->at + 2 + i] : 0;
        if (!isxdigit((u8)c))
            fault_raise(u->lexer->fault, ERR_INPUT, "a string has a truncated \\%c escape", u->s[u->at + 1]);
        digits[i] = c;
    }
    put(u, (u32)strtoul(digits, NULL, 16));
    u->at += 2 + want;
}

static void octal(struct unescape *u)
{
    u32 value = 0;
    u->at++;
    for (int i = 0; i < 3 && u->at < u->len && u->s[u->at] >= '0' && u->s[u->at] <= '7'; i++)
        value = value * 8 + (u32)(u->s[u->at++] - '0');
    put(u, value);
}

/* Jinja writes other characters as escapes before it reads escapes: a backslash in front of one stays, and so does what
 * was written for the character. */
static void before_other(struct unescape *u)
{
    int n;
    u32 cp = utf8_at(u->s + u->at + 1, &n);
    u->n += (size_t)sprintf(u->out + u->n, cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", cp);
    u->at += 1 + (size_t)n;
}

static void escape(struct unescape *u)
{
    static const char letters[] = "\\'\"abfnrtv", means[] = "\\'\"\a\b\f\n\r\t\v";
    char c = u->at + 1 < u->len ? u->s[u->at + 1] : 0;
    const char *simple = c ? strchr(letters, c) : NULL;
    if (simple) {
        u->out[u->n++] = means[simple - letters];
        u->at += 2;
    } else if (c == '\n') {
        u->at += 2;
    } else if (c == 'x') {
        hex(u, 2);
    } else if (c == 'u') {
        hex(u, 4);
    } else if (c == 'U') {
        hex(u, 8);
    } else if (c >= '0' && c <= '7') {
        octal(u);
    } else if (c == 'N') {
        fault_raise(u->lexer->fault, ERR_UNSUPPORTED, "the escape \\N in a string is not supported");
    } else if ((u8)c >= 0x80) {
        before_other(u);
    } else {
        u->out[u->n++] = u->s[u->at++];
    }
}

const char *lex_literal(struct lexer *l, const char *inside, size_t len, u32 *out_len)
{
    /* before_other() makes 12 bytes of 3 or more; nothing else grows by more */
    struct unescape u = {.lexer = l, .s = inside, .len = len, .out = arena_alloc(l->arena, len * 4 + 16)};
    while (u.at < u.len) {
        if (u.s[u.at] == '\\') {
            escape(&u);
        } else {
            u.out[u.n++] = u.s[u.at++];
        }
    }
    u.out[u.n] = 0;
    *out_len = (u32)u.n;
    return u.out;
}
