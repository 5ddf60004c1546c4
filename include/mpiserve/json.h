/* json: reading and writing JSON (second door of base/; the library behind it is known to src/base/json.c
 * only).
 *
 * Reading gives a tree owned by its root: free the root with json_drop, never a child. All getters accept
 * NULL and answer JK_NONE / NULL / 0, so that chains need no checks. The tree is read-only and may be read by
 * several threads. */
#ifndef MPISERVE_JSON_H
#define MPISERVE_JSON_H

#include "mpiserve/base.h"

/* JK_BIG: an integer outside of i64, which is only kept (a template prints it, a tool call carries it). */
enum json_kind { JK_NONE, JK_NULL, JK_BOOL, JK_INT, JK_REAL, JK_TEXT, JK_ARRAY, JK_OBJECT, JK_BIG };
struct json; /* a value */

/* Strict RFC 8259; duplicate keys, invalid UTF-8, more than 64 levels (reader_depth), numbers outside
 * of double and integers of more than 4300 digits are errors. The error's where is "line L, column C (byte B)". text need not end in NUL. NULs
 * inside strings are kept. */
struct json *json_read(const char *text, size_t len, struct error *err);
/* The same of a file's text: an error's where begins with its path. */
struct json *json_read_of(const char *path, const char *text, size_t len, struct error *err);
struct json *json_read_file(const char *path, size_t max_bytes, struct error *err);
void json_drop(struct json *root);

enum json_kind json_kind(const struct json *v);
const char *json_kind_name(enum json_kind kind); /* "a string", "an integer", ... for messages */
const struct json *json_get(const struct json *object, const char *key); /* NULL: absent */
size_t json_len(const struct json *v); /* items or members; bytes of a string */
const struct json *json_item(const struct json *array, size_t i);
const char *json_text(const struct json *v);       /* NUL-terminated UTF-8, or NULL if not a string */
const char *json_digits(const struct json *v);     /* JK_BIG only: "-123..." */
i64 json_int(const struct json *v, i64 otherwise); /* JK_INT only */
/* JK_INT or JK_REAL. Hidden: the library behind this door has a function of this name, which must stay its
 * own. */
__attribute__((visibility("hidden"))) double json_real(const struct json *v, double otherwise);
bool json_bool(const struct json *v, bool otherwise);
/* Members in file order: for (void *it = json_first(o); it; it = json_next(o, it)) ... json_key(it),
 * json_value(it) */
void *json_first(const struct json *object);
void *json_next(const struct json *object, void *it);
const char *json_key(void *it);
size_t json_key_len(void *it);
const struct json *json_value(void *it);

/* Writing: appends compact JSON to a buf; commas are placed by the writer. depth <= 63. */
struct json_out {
    struct buf *to;
    u64 started; /* a bit a level: something was written there */
    int depth;
    bool after_key;
};
void json_out_init(struct json_out *o, struct buf *to);
void json_out_object(struct json_out *o);
void json_out_array(struct json_out *o);
void json_out_end_object(struct json_out *o);
void json_out_end_array(struct json_out *o);
void json_out_key(struct json_out *o, const char *key);
void json_out_text(struct json_out *o, const char *s, size_t len); /* escapes; invalid UTF-8 becomes U+FFFD */
void json_out_str(struct json_out *o, const char *s);              /* NULL: null */
void json_out_int(struct json_out *o, i64 v);
void json_out_real(struct json_out *o,
                   double v); /* shortest that reads back; never NaN/Inf: -9999.0 instead */
void json_out_bool(struct json_out *o, bool v);
void json_out_null(struct json_out *o);
void json_out_value(struct json_out *o, const struct json *v); /* a parsed tree, copied out */
/* A member of an object: key and value. */
void json_out_key_str(struct json_out *o, const char *key, const char *s);
void json_out_key_int(struct json_out *o, const char *key, i64 v);
void json_out_key_real(struct json_out *o, const char *key, double v);
void json_out_key_bool(struct json_out *o, const char *key, bool v);

#endif
