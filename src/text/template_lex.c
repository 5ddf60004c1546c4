/* Tokens of a template: text between tags with its white space controls, and what stands inside of tags. */
#include "text/template.h"
#include "text/utf8.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static struct lexeme *add(struct lexer *l, enum token_kind kind, const char *text, size_t len)
{
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 256;
        struct lexeme *more = arena_alloc(l->arena, cap * sizeof(*more));
        if (l->n) memcpy(more, l->items, l->n * sizeof(*more));
        l->items = more;
        l->cap = cap;
    }
    l->items[l->n] = (struct lexeme){.kind = kind, .line = l->line, .len = (u32)len};
    l->items[l->n].text = arena_text(l->arena, text, len);
    return &l->items[l->n++];
}

static bool looking_at(const struct lexer *l, size_t at, const char *s)
{
    size_t n = strlen(s);
    return l->len - at >= n && memcmp(l->src + at, s, n) == 0;
}

static size_t skip_space(const struct lexer *l, size_t at)
{
    while (at < l->len) {
        int n;
        if (!is_py_space(utf8_at(l->src + at, &n))) break;
        at += (size_t)n;
    }
    return at;
}

static void advance(struct lexer *l, size_t to)
{
    for (size_t i = l->at; i < to; i++) l->line += l->src[i] == '\n';
    l->at = to;
}

/* ---- text between tags ---- */

static size_t strip_end(const struct lexer *l, size_t from, size_t to)
{
    while (to > from) {
        int last = utf8_last(l->src + from, to - from), n;
        if (!is_py_space(utf8_at(l->src + to - last, &n))) break;
        to -= (size_t)last;
    }
    return to;
}

/* lstrip_blocks: blanks between the line's begin and the tag at `to` go away. */
static size_t strip_indent(const struct lexer *l, size_t from, size_t to)
{
    size_t begin = to;
    while (begin > from && l->src[begin - 1] != '\n') begin--;
    bool at_line_begin = begin > from || l->line_starts;
    return at_line_begin && skip_space(l, begin) >= to ? begin : to;
}

/* The text up to the tag at `tag`, whose sign (- + or other) stands at tag + 2. */
static void put_data(struct lexer *l, size_t tag, bool is_print)
{
    size_t end = tag;
    char sign = tag + 2 < l->len ? l->src[tag + 2] : 0;
    if (sign == '-') {
        end = strip_end(l, l->at, tag);
    } else if (sign != '+' && !is_print && tag < l->len) {
        end = strip_indent(l, l->at, tag);
    }
    if (end > l->at) add(l, T_DATA, l->src + l->at, end - l->at);
    advance(l, tag);
    l->line_starts = false;
}

/* An end of a tag at `at`: "+%}", "-%}" and the white space behind it, "%}" and a newline. 0: none there. */
static size_t tag_end(const struct lexer *l, size_t at, const char *close, bool trim_newline, bool plus)
{
    size_t n = strlen(close);
    if (looking_at(l, at, "-") && looking_at(l, at + 1, close)) return skip_space(l, at + 1 + n);
    if (plus && looking_at(l, at, "+") && looking_at(l, at + 1, close)) return at + 1 + n;
    if (!looking_at(l, at, close)) return 0;
    at += n;
    return trim_newline && at < l->len && l->src[at] == '\n' ? at + 1 : at;
}

static void end_tag(struct lexer *l, size_t to)
{
    l->line_starts = l->src[to - 1] == '\n';
    advance(l, to);
}

static void comment(struct lexer *l)
{
    for (size_t at = l->at + 2; at < l->len; at++) {
        size_t end = tag_end(l, at, "#}", true, true);
        if (!end) continue;
        end_tag(l, end);
        return;
    }
    fault_raise(l->fault, ERR_INPUT, "missing end of comment");
}

/* The end of "{% word %}" at `at`, or 0. */
static size_t word_tag(const struct lexer *l, size_t at, const char *word, bool trim_newline, bool plus)
{
    if (!looking_at(l, at, "{%")) return 0;
    at += 2;
    if (at < l->len && (l->src[at] == '-' || l->src[at] == '+')) at++;
    at = skip_space(l, at);
    if (!looking_at(l, at, word)) return 0;
    return tag_end(l, skip_space(l, at + strlen(word)), "%}", trim_newline, plus);
}

static bool raw(struct lexer *l)
{
    size_t begin = word_tag(l, l->at, "raw", false, false);
    if (!begin) return false;
    end_tag(l, begin);
    for (size_t at = begin; at < l->len; at++) {
        size_t end = word_tag(l, at, "endraw", true, true);
        if (!end) continue;
        put_data(l, at, false);
        end_tag(l, end);
        return true;
    }
    fault_raise(l->fault, ERR_INPUT, "missing end of raw block");
}

/* ---- inside of tags ---- */

static size_t digits(const struct lexer *l, size_t at)
{
    while (at < l->len &&
           (isdigit((u8)l->src[at]) || (l->src[at] == '_' && at + 1 < l->len && isdigit((u8)l->src[at + 1]))))
        at++;
    return at;
}

static int digit_value(char c)
{
    return isdigit((u8)c) ? c - '0' : isalpha((u8)c) ? tolower((u8)c) - 'a' + 10 : 99;
}

static void integer(struct lexer *l, size_t at, int base)
{
    size_t from = l->at;
    i64 value = 0;
    for (; at < l->len; at++) {
        if (l->src[at] == '_' && at + 1 < l->len && digit_value(l->src[at + 1]) < base) continue;
        int d = digit_value(l->src[at]);
        if (d >= base || (base == 10 && l->src[from] == '0' && d)) break;
        if (__builtin_mul_overflow(value, base, &value) || __builtin_add_overflow(value, d, &value))
            fault_raise(l->fault, ERR_UNSUPPORTED, "an integer beyond 64 bits is not supported");
    }
    add(l, T_INT, l->src + from, at - from)->i = value;
    advance(l, at);
}

static void number(struct lexer *l)
{
    size_t from = l->at, at = digits(l, from);
    const char *s = l->src;
    bool after_dot = from > 0 && s[from - 1] == '.', real = false;
    if (!after_dot && at + 1 < l->len && s[at] == '.' && isdigit((u8)s[at + 1])) {
        at = digits(l, at + 1);
        real = true;
    }
    if (!after_dot && at < l->len && (s[at] == 'e' || s[at] == 'E')) {
        size_t sign = at + 1 < l->len && (s[at + 1] == '+' || s[at + 1] == '-') ? 1 : 0;
        if (at + 1 + sign < l->len && isdigit((u8)s[at + 1 + sign])) {
            at = digits(l, at + 1 + sign);
            real = true;
        }
    }
    if (!real) {
        int base = 10;
        if (s[from] == '0' && from + 2 < l->len) {
            char c = (char)tolower((u8)s[from + 1]);
            int wanted = c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 10;
            if (wanted != 10 && digit_value(s[from + 2]) < wanted) base = wanted;
        }
        integer(l, base == 10 ? from : from + 2, base);
        return;
    }
    char plain[64];
    size_t n = 0;
    for (size_t i = from; i < at && n < sizeof(plain) - 1; i++) {
        if (s[i] != '_') plain[n++] = s[i];
    }
    plain[n] = 0;
    if (n == sizeof(plain) - 1) fault_raise(l->fault, ERR_UNSUPPORTED, "a number of more than 62 characters");
    add(l, T_REAL, s + from, at - from)->d = strtod(plain, NULL);
    advance(l, at);
}

static void literal(struct lexer *l)
{
    size_t from = l->at + 1, at = from;
    while (at < l->len && l->src[at] != l->src[l->at]) at += l->src[at] == '\\' ? 2 : 1;
    if (at >= l->len) fault_raise(l->fault, ERR_INPUT, "a string has no end");
    u32 len;
    const char *text = lex_literal(l, l->src + from, at - from, &len);
    struct lexeme *t = add(l, T_TEXT, "", 0);
    t->text = text;
    t->len = len;
    advance(l, at + 1);
}

static void operator(struct lexer *l)
{
    static const char *const two[] = {"//", "**", "==", "!=", ">=", "<="};
    char c = l->src[l->at];
    size_t n = 1;
    for (size_t i = 0; i < COUNT_OF(two); i++) {
        if (looking_at(l, l->at, two[i])) n = 2;
    }
    if (n == 1 && (c == 0 || !strchr("+-/*%~[](){}><=.:|,;", c))) {
        int width;
        utf8_at(l->src + l->at, &width);
        fault_raise(l->fault, ERR_INPUT, "unexpected character \"%.*s\"", width, l->src + l->at);
    }
    if (n == 1 && strchr("([{", c)) {
        if (l->n_open == (int)sizeof(l->open))
            fault_raise(l->fault, ERR_UNSUPPORTED, "too many open brackets");
        l->open[l->n_open++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    }
    if (n == 1 && strchr(")]}", c) && (l->n_open == 0 || l->open[--l->n_open] != c))
        fault_raise(l->fault, ERR_INPUT, "unexpected \"%c\"", c);
    add(l, T_OP, l->src + l->at, n);
    advance(l, l->at + n);
}

static size_t name_end(const struct lexer *l, size_t at)
{
    while (at < l->len) {
        int n;
        if (!utf8_is_word(utf8_at(l->src + at, &n))) break;
        at += (size_t)n;
    }
    return at;
}

static void tag(struct lexer *l, bool is_print)
{
    int line = l->line;
    add(l, is_print ? T_PRINT_BEGIN : T_BLOCK_BEGIN, "", 0);
    advance(l, l->at + 2);
    if (l->at < l->len && (l->src[l->at] == '-' || l->src[l->at] == '+')) l->at++;
    l->n_open = 0;
    for (;;) {
        advance(l, skip_space(l, l->at));
        if (l->at >= l->len) {
            l->line = line;
            fault_raise(l->fault, ERR_INPUT, "a tag has no end");
        }
        l->fault->line = l->line;
        size_t end = l->n_open ? 0 : tag_end(l, l->at, is_print ? "}}" : "%}", !is_print, !is_print);
        if (end) {
            add(l, is_print ? T_PRINT_END : T_BLOCK_END, "", 0);
            end_tag(l, end);
            return;
        }
        u8 c = (u8)l->src[l->at];
        size_t name = name_end(l, l->at);
        if (isdigit(c)) {
            number(l);
        } else if (name > l->at) {
            add(l, T_NAME, l->src + l->at, name - l->at);
            advance(l, name);
        } else if (c == '\'' || c == '"') {
            literal(l);
        } else {
            operator(l);
        }
    }
}

/* ---- the whole ---- */

/* Line ends become \n; the last one is dropped. */
static void normalize_lines(struct lexer *l, const char *source, size_t len)
{
    char *to = arena_alloc(l->arena, len + 1);
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        if (source[i] == '\r' && i + 1 < len && source[i + 1] == '\n') continue;
        to[n++] = source[i] == '\r' ? '\n' : source[i];
    }
    if (n && to[n - 1] == '\n') n--;
    to[n] = 0;
    l->src = to;
    l->len = n;
}

void lex(struct lexer *l, const char *source, size_t len)
{
    normalize_lines(l, source, len);
    l->line = 1;
    l->line_starts = true;
    while (l->at < l->len) {
        size_t next = l->at;
        while (next < l->len && !(l->src[next] == '{' && next + 1 < l->len &&
                                  strchr("%{#", l->src[next + 1]) && l->src[next + 1]))
            next++;
        bool is_print = next < l->len && l->src[next + 1] == '{';
        l->fault->line = l->line;
        put_data(l, next, is_print);
        if (l->at >= l->len) break;
        l->fault->line = l->line;
        if (l->src[l->at + 1] == '#') {
            comment(l);
        } else if (is_print || !raw(l)) {
            tag(l, is_print);
        }
    }
    add(l, T_END, "", 0);
}
