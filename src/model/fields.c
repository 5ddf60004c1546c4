#include "model/fields.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

const char *shown(const char *text, char out[SHOWN_LEN])
{
    size_t n = 0;
    for (; text[n] && n + 1 < SHOWN_LEN; n++) out[n] = (u8)text[n] < 0x20 || text[n] == 0x7f ? '?' : text[n];
    if (text[n]) memcpy(out + n - 3, "...", 3);
    out[n] = 0;
    return out;
}

int fields_fail(struct fields *f, int code, const char *fmt, ...)
{
    if (f->rc) return f->rc;
    char text[600];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return f->rc = error_set(f->err, code, f->path, "%s", text);
}

static const struct json *member(const struct fields *f, const char *key)
{
    const struct json *v = json_get(f->object, key);
    return json_kind(v) == JK_NULL ? NULL : v;
}

bool fields_has(const struct fields *f, const char *key)
{
    return member(f, key) != NULL;
}

static void wrong_kind(struct fields *f, const char *key, const struct json *v, const char *wanted)
{
    fields_fail(f, ERR_INPUT, "\"%s\" is %s; it must be %s", key, json_kind_name(json_kind(v)), wanted);
}

i64 fields_int(struct fields *f, const char *key, i64 lo, i64 hi, i64 otherwise)
{
    const struct json *v = member(f, key);
    if (!v) return otherwise;
    if (json_kind(v) != JK_INT) {
        wrong_kind(f, key, v, "an integer");
        return otherwise;
    }
    i64 n = json_int(v, 0);
    if (n >= lo && n <= hi) return n;
    fields_fail(f, ERR_INPUT, "\"%s\" is %lld; it must be from %lld to %lld", key, (long long)n,
                (long long)lo, (long long)hi);
    return otherwise;
}

i64 fields_need_int(struct fields *f, const char *key, i64 lo, i64 hi)
{
    if (!fields_has(f, key)) fields_fail(f, ERR_INPUT, "\"%s\" is missing", key);
    return fields_int(f, key, lo, hi, lo);
}

double fields_real(struct fields *f, const char *key, double lo, double hi, double otherwise)
{
    const struct json *v = member(f, key);
    if (!v) return otherwise;
    if (json_kind(v) != JK_INT && json_kind(v) != JK_REAL) {
        wrong_kind(f, key, v, "a number");
        return otherwise;
    }
    double x = json_real(v, NAN);
    if (x >= lo && x <= hi) return x;
    fields_fail(f, ERR_INPUT, "\"%s\" is %g; it must be from %g to %g", key, x, lo, hi);
    return otherwise;
}

double fields_need_real(struct fields *f, const char *key, double lo, double hi)
{
    if (!fields_has(f, key)) fields_fail(f, ERR_INPUT, "\"%s\" is missing", key);
    return fields_real(f, key, lo, hi, lo);
}

bool fields_bool(struct fields *f, const char *key, bool otherwise)
{
    const struct json *v = member(f, key);
    if (!v) return otherwise;
    if (json_kind(v) != JK_BOOL) wrong_kind(f, key, v, "true or false");
    return json_bool(v, otherwise);
}

const char *fields_text(struct fields *f, const char *key, const char *otherwise)
{
    const struct json *v = member(f, key);
    if (!v) return otherwise;
    if (json_kind(v) == JK_TEXT) return json_text(v);
    wrong_kind(f, key, v, "a string");
    return otherwise;
}

u32 fields_ids(struct fields *f, const char *key, i64 vocab, i32 *out, u32 max)
{
    const struct json *v = member(f, key);
    if (!v) return 0;
    bool list = json_kind(v) == JK_ARRAY;
    size_t n = list ? json_len(v) : 1;
    if (n > max) {
        fields_fail(f, ERR_INPUT, "\"%s\" has %zu ids; at most %u are taken", key, n, max);
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        const struct json *id = list ? json_item(v, i) : v;
        if (json_kind(id) != JK_INT) {
            wrong_kind(f, key, id, "a token id or a list of them");
            return 0;
        }
        i64 value = json_int(id, -1);
        if (value < 0 || value >= vocab) {
            fields_fail(f, ERR_INPUT, "\"%s\" names token %lld; the vocabulary has %lld", key,
                        (long long)value, (long long)vocab);
            return 0;
        }
        out[i] = (i32)value;
    }
    return (u32)n;
}
