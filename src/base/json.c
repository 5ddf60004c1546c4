/* Reading JSON with jansson; nothing else includes it. A struct json is a json_t seen from outside. */
#include "mpiserve/json.h"

#define json_real jansson_real /* declared there, not used here: the name is this door's */
#include <jansson.h>
#undef json_real

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { JSON_LEVELS = 64 };

static json_t *inner(const struct json *v)
{
    return (json_t *)(uintptr_t)v;
}

static const struct json *outer(const json_t *v)
{
    return (const struct json *)v;
}

struct place {
    size_t line, column, byte;
};

static int fail_at(struct error *err, const struct place *at, const char *message)
{
    char where[128];
    snprintf(where, sizeof(where), "line %zu, column %zu (byte %zu)", at->line, at->column, at->byte);
    return error_set(err, ERR_INPUT, where, "%s", message);
}

/* jansson recurses and allows 2048 levels, and drops a NUL that follows a number: what it must not see is
 * found here. Only brackets outside of strings count; text that is no JSON at all is judged by the parser. */
static int check_text(const char *text, size_t len, struct error *err)
{
    int depth = 0;
    bool in_string = false;
    struct place at = {.line = 1};
    for (size_t i = 0; i < len; i++) {
        char c = text[i];
        at.byte++;
        at.column += ((u8)c & 0xC0) != 0x80;
        if (c == '\n') {
            at.line++;
            at.column = 0;
        }
        if (!c) return fail_at(err, &at, "a NUL byte in the text");
        if (c == '"') {
            in_string = !in_string;
        } else if (in_string) {
            if (c != '\\' || i + 1 == len || text[i + 1] == '\n' || !text[i + 1]) continue;
            i++; /* the escaped byte may be a quote */
            at.byte++;
            at.column += ((u8)text[i] & 0xC0) != 0x80;
        } else if (c == '[' || c == '{') {
            if (++depth > JSON_LEVELS) return fail_at(err, &at, "more than 64 levels of arrays and objects");
        } else if (c == ']' || c == '}') {
            depth--;
        }
    }
    return 0;
}

/* ---- integers beyond 64 bits --------------------------------------------------------------------------------
 * jansson refuses them. So the text is read once more with 0 in their place, and then they are put where the zeros are, as
 * strings that begin with a byte that no UTF-8 has. */
enum { BIG_MARK = 0xFF, BIG_DIGITS = 4300 /* as many as Python reads */ };

struct big_integers {
    struct span_of_text {
        size_t number, from, len; /* number: among all integers of the text, in their order */
    } * found;
    size_t n, cap, seen, used; /* seen, used: while they are put in */
    const char *text;
};

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* A number at text[at]; its length without sign. Integers count; those that are too large are noted. */
static size_t note_number(struct big_integers *b, char *text, size_t at, size_t *count)
{
    size_t digits = at + (text[at] == '-'), end = digits;
    while (is_digit(text[end])) end++;
    if (text[end] == '.' || text[end] == 'e' || text[end] == 'E') {
        return end + strspn(text + end, "+-.eE0123456789") - at;
    }
    size_t number = (*count)++, len = end - digits;
    if (len < 19 || len > BIG_DIGITS || text[digits] == '0') return MAX_OF(end - at, (size_t)1);
    char next = text[end];
    text[end] = 0;
    errno = 0;
    strtoll(text + at, NULL, 10);
    text[end] = next;
    if (errno != ERANGE) return end - at;
    if (b->n == b->cap) {
        b->cap = b->cap ? b->cap * 2 : 8;
        b->found = mem_resize(b->found, b->cap * sizeof(*b->found));
    }
    b->found[b->n++] = (struct span_of_text){number, at, end - at};
    memset(text + at, ' ', end - at);
    text[at] = '0';
    return end - at;
}

static void find_big(struct big_integers *b, char *text, size_t len)
{
    bool in_string = false;
    size_t count = 0;
    for (size_t i = 0; i < len;) {
        if (text[i] == '"') in_string = !in_string;
        if (in_string && text[i] == '\\' && i + 1 < len) i++;
        bool number = !in_string && (text[i] == '-' || is_digit(text[i]));
        i += number ? note_number(b, text, i, &count) : 1;
    }
}

/* What belongs in place of v, a new value: NULL when v stays. */
static json_t *put_big(struct big_integers *b, json_t *v)
{
    size_t i;
    json_t *item, *other;
    if (json_is_integer(v)) {
        if (b->used == b->n || b->found[b->used].number != b->seen++) return NULL;
        const struct span_of_text *at = &b->found[b->used++];
        char *text = mem_alloc(at->len + 1);
        text[0] = (char)BIG_MARK;
        memcpy(text + 1, b->text + at->from, at->len);
        other = json_stringn_nocheck(text, at->len + 1);
        free(text);
        return other;
    }
    for (i = 0; i < json_array_size(v); i++) {
        item = json_array_get(v, i);
        if ((other = put_big(b, item))) json_array_set_new(v, i, other);
    }
    for (void *it = json_object_iter(v); it; it = json_object_iter_next(v, it))
        if ((other = put_big(b, json_object_iter_value(it)))) json_object_iter_set_new(v, it, other);
    return NULL;
}

static json_t *read_with_big(const char *text, size_t len, size_t flags, json_error_t *bad)
{
    struct big_integers b = {.text = text};
    char *copy = mem_textn(text, len);
    find_big(&b, copy, len);
    json_t *root = json_loadb(copy, len, flags, bad);
    json_t *other = root ? put_big(&b, root) : NULL;
    if (other) {
        json_decref(root);
        root = other;
    }
    free(copy);
    free(b.found);
    return root;
}

struct json *json_read(const char *text, size_t len, struct error *err)
{
    static const size_t flags = JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY;
    struct place at = {.line = 1};
    if (!len) {
        fail_at(err, &at, "the text is empty");
        return NULL;
    }
    if (check_text(text, len, err) < 0) return NULL;
    json_error_t bad;
    json_t *root = json_loadb(text, len, flags, &bad);
    if (!root && json_error_code(&bad) == json_error_numeric_overflow)
        root = read_with_big(text, len, flags, &bad);
    if (root) return (struct json *)root;
    at = (struct place){(size_t)MAX_OF(bad.line, 1), (size_t)MAX_OF(bad.column, 0),
                        (size_t)MAX_OF(bad.position, 0)};
    fail_at(err, &at, bad.text);
    return NULL;
}

struct json *json_read_of(const char *path, const char *text, size_t len, struct error *err)
{
    struct error inside;
    char where[sizeof(inside.where)];
    struct json *root = json_read(text, len, &inside);
    if (root) return root;
    if (path_join(where, sizeof(where), NULL, "%s: %s", path, inside.where) < 0)
        snprintf(where, sizeof(where), "%s", inside.where);
    error_set(err, inside.code, where, "%s", inside.message);
    return NULL;
}

struct json *json_read_file(const char *path, size_t max_bytes, struct error *err)
{
    struct buf text = {0};
    int rc = file_read(path, max_bytes, &text, err);
    struct json *root = rc ? NULL : json_read_of(path, text.data, text.len, err);
    buf_release(&text);
    return root;
}

void json_drop(struct json *root)
{
    json_decref((json_t *)root);
}

enum json_kind json_kind(const struct json *v)
{
    if (!v) return JK_NONE;
    switch (json_typeof(inner(v))) {
    case JSON_OBJECT: return JK_OBJECT;
    case JSON_ARRAY: return JK_ARRAY;
    case JSON_STRING: return (u8)json_string_value(inner(v))[0] == BIG_MARK ? JK_BIG : JK_TEXT;
    case JSON_INTEGER: return JK_INT;
    case JSON_REAL: return JK_REAL;
    case JSON_TRUE:
    case JSON_FALSE: return JK_BOOL;
    case JSON_NULL: return JK_NULL;
    }
    return JK_NONE;
}

const char *json_kind_name(enum json_kind kind)
{
    static const char *const names[] = {
        [JK_NONE] = "nothing",   [JK_NULL] = "null",        [JK_BOOL] = "a boolean",
        [JK_INT] = "an integer", [JK_REAL] = "a number",    [JK_TEXT] = "a string",
        [JK_ARRAY] = "an array", [JK_OBJECT] = "an object", [JK_BIG] = "an integer beyond 64 bits",
    };
    return (unsigned)kind < COUNT_OF(names) ? names[kind] : "nothing";
}

const struct json *json_get(const struct json *object, const char *key)
{
    return outer(json_object_get(inner(object), key));
}

size_t json_len(const struct json *v)
{
    switch (json_kind(v)) {
    case JK_TEXT: return json_string_length(inner(v));
    case JK_ARRAY: return json_array_size(inner(v));
    case JK_OBJECT: return json_object_size(inner(v));
    default: return 0;
    }
}

const struct json *json_item(const struct json *array, size_t i)
{
    return outer(json_array_get(inner(array), i));
}

const char *json_text(const struct json *v)
{
    return json_kind(v) == JK_TEXT ? json_string_value(inner(v)) : NULL;
}

const char *json_digits(const struct json *v)
{
    return json_kind(v) == JK_BIG ? json_string_value(inner(v)) + 1 : NULL;
}

i64 json_int(const struct json *v, i64 otherwise)
{
    return json_kind(v) == JK_INT ? (i64)json_integer_value(inner(v)) : otherwise;
}

double json_real(const struct json *v, double otherwise)
{
    enum json_kind kind = json_kind(v);
    return kind == JK_INT || kind == JK_REAL ? json_number_value(inner(v)) : otherwise;
}

bool json_bool(const struct json *v, bool otherwise)
{
    return json_kind(v) == JK_BOOL ? json_is_true(inner(v)) : otherwise;
}

void *json_first(const struct json *object)
{
    return json_object_iter(inner(object));
}

void *json_next(const struct json *object, void *it)
{
    return json_object_iter_next(inner(object), it);
}

const char *json_key(void *it)
{
    return json_object_iter_key(it);
}

size_t json_key_len(void *it)
{
    return it ? json_object_iter_key_len(it) : 0;
}

const struct json *json_value(void *it)
{
    return outer(json_object_iter_value(it));
}
