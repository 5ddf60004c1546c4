/* Texts with origins: building them, taking parts of them, searching them. */
#include "text/template.h"
#include "text/utf8.h"

#include <string.h>

enum origin origin_at(struct value text, size_t at)
{
    return text.origin == FROM_BOTH ? (enum origin)text.marks[at] : (enum origin)text.origin;
}

static void reserve(struct render *r, struct writer *w, size_t more)
{
    if (w->len + more <= w->cap) return;
    size_t cap = MAX_OF(w->cap * 2, w->len + more + 64);
    if (cap > UINT32_MAX) raise_error(r, "a text of more than 4 GiB");
    char *data = render_alloc(r, cap);
    if (w->len) memcpy(data, w->data, w->len);
    if (w->marks) {
        u8 *marks = render_alloc(r, cap);
        memcpy(marks, w->marks, w->len);
        w->marks = marks;
    }
    w->data = data;
    w->cap = cap;
}

/* From here on each byte has its mark. */
static void mix(struct render *r, struct writer *w)
{
    if (w->marks) return;
    w->marks = render_alloc(r, w->cap);
    memset(w->marks, w->origin, w->len);
    w->origin = FROM_BOTH;
}

void write_text(struct render *r, struct writer *w, const char *s, size_t len, enum origin origin)
{
    if (len == 0) return;
    reserve(r, w, len);
    if (w->len == 0 && !w->marks) w->origin = (u8)origin;
    if (w->origin != origin) mix(r, w);
    if (w->marks) memset(w->marks + w->len, origin, len);
    memcpy(w->data + w->len, s, len);
    w->len += len;
}

void write_part(struct render *r, struct writer *w, struct value text, size_t from, size_t len)
{
    if (text.origin != FROM_BOTH) {
        write_text(r, w, text.text + from, len, (enum origin)text.origin);
        return;
    }
    while (len) {
        size_t run = 1;
        while (run < len && text.marks[from + run] == text.marks[from]) run++;
        write_text(r, w, text.text + from, run, (enum origin)text.marks[from]);
        from += run;
        len -= run;
    }
}

struct value written(struct render *r, struct writer *w)
{
    reserve(r, w, 1);
    w->data[w->len] = 0;
    return (struct value){.kind = V_TEXT,
                          .origin = w->origin,
                          .safe = w->safe,
                          .len = (u32)w->len,
                          .text = w->data,
                          .marks = w->marks};
}

struct value part(struct value text, size_t from, size_t len)
{
    text.text += from;
    text.len = (u32)len;
    if (text.origin == FROM_BOTH) text.marks += from;
    return text;
}

i64 count_chars(struct value text)
{
    i64 n = 0;
    for (u32 i = 0; i < text.len; i++) n += ((u8)text.text[i] & 0xC0) != 0x80;
    return n;
}

size_t char_offset(struct value text, i64 n)
{
    size_t at = 0;
    for (; n > 0 && at < text.len; n--) {
        int width;
        utf8_at(text.text + at, &width);
        at += (size_t)width;
    }
    return at;
}

bool is_py_space(u32 cp)
{
    return utf8_is_space(cp) || (cp >= 0x1C && cp <= 0x1F);
}

const char *find_text(struct value in, size_t from, struct value what)
{
    if (what.len == 0) return in.text + from;
    return memmem(in.text + from, in.len - from, what.text, what.len);
}

static bool is_stripped(u32 cp, const struct value *chars)
{
    if (!chars) return is_py_space(cp);
    for (size_t at = 0; at < chars->len;) {
        int n;
        if (utf8_at(chars->text + at, &n) == cp) return true;
        at += (size_t)n;
    }
    return false;
}

struct value text_strip(struct render *r, struct value v, const struct value *chars, bool left, bool right)
{
    size_t from = 0, to = v.len;
    int n;
    spend(r, 1 + v.len / 64);
    for (; left && from < to && is_stripped(utf8_at(v.text + from, &n), chars); from += (size_t)n) {}
    while (right && to > from) {
        int last = utf8_last(v.text + from, to - from);
        if (!is_stripped(utf8_at(v.text + to - last, &n), chars)) break;
        to -= (size_t)last;
    }
    return part(v, from, to - from);
}

/* An empty `from` is found before each character and at the end. */
static struct value spread(struct render *r, struct value v, struct value to, i64 count)
{
    struct writer w = {.safe = v.safe};
    size_t at = 0;
    for (; count != 0; count--) {
        int n = 0;
        write_part(r, &w, to, 0, to.len);
        if (at >= v.len) break;
        utf8_at(v.text + at, &n);
        write_part(r, &w, v, at, (size_t)n);
        at += (size_t)n;
    }
    write_part(r, &w, v, at, v.len - at);
    return written(r, &w);
}

struct value text_replace(struct render *r, struct value v, struct value from, struct value to, i64 count)
{
    struct writer w = {.safe = v.safe};
    size_t at = 0;
    spend(r, 1 + v.len / 64);
    if (from.len == 0) return spread(r, v, to, count);
    for (; count != 0; count--) {
        const char *hit = find_text(v, at, from);
        if (!hit) break;
        write_part(r, &w, v, at, (size_t)(hit - v.text) - at);
        write_part(r, &w, to, 0, to.len);
        at = (size_t)(hit - v.text) + from.len;
    }
    write_part(r, &w, v, at, v.len - at);
    return written(r, &w);
}

struct value text_escape(struct render *r, struct value v)
{
    static const char chars[] = "&<>'\"";
    static const char *const as[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
    struct writer w = {.safe = true};
    if (v.safe) return v;
    for (size_t at = 0; at < v.len; at++) {
        const char *c = v.text[at] ? strchr(chars, v.text[at]) : NULL;
        if (c) {
            write_text(r, &w, as[c - chars], strlen(as[c - chars]), origin_at(v, at));
        } else {
            write_part(r, &w, v, at, 1);
        }
    }
    return written(r, &w);
}
