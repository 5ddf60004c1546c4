#include "model/safetensors.h"
#include "model/fields.h"
#include "mpiserve/json.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_NAME = 512, PIECE = 256 << 20 };

static const struct stored_type {
    const char *name;
    enum dtype dtype;
    u8 bits;
} TYPES[] = {
    {"F32", DTYPE_F32, 32},          {"BF16", DTYPE_BF16, 16},    {"F16", DTYPE_F16, 16},
    {"BOOL", DTYPE_OTHER, 8},        {"U8", DTYPE_OTHER, 8},      {"I8", DTYPE_OTHER, 8},
    {"U16", DTYPE_OTHER, 16},        {"I16", DTYPE_OTHER, 16},    {"U32", DTYPE_OTHER, 32},
    {"I32", DTYPE_OTHER, 32},        {"F64", DTYPE_OTHER, 64},    {"I64", DTYPE_OTHER, 64},
    {"U64", DTYPE_OTHER, 64},        {"C64", DTYPE_OTHER, 64},    {"F8_E4M3", DTYPE_F8, 8},
    {"F8_E5M2", DTYPE_OTHER, 8},     {"F8_E8M0", DTYPE_OTHER, 8}, {"F8_E4M3FNUZ", DTYPE_OTHER, 8},
    {"F8_E5M2FNUZ", DTYPE_OTHER, 8}, {"F6_E2M3", DTYPE_OTHER, 6}, {"F6_E3M2", DTYPE_OTHER, 6},
    {"F4", DTYPE_OTHER, 4},
};

size_t dtype_bytes(enum dtype t)
{
    return t == DTYPE_F32 ? 4 : t == DTYPE_BF16 || t == DTYPE_F16 ? 2 : t == DTYPE_F8 ? 1 : 0;
}

const char *dtype_name(enum dtype t)
{
    return t == DTYPE_F32    ? "F32"
           : t == DTYPE_BF16 ? "BF16"
           : t == DTYPE_F16  ? "F16"
           : t == DTYPE_F8   ? "F8_E4M3"
                             : "other";
}

void tensor_list_init(struct tensor_list *l)
{
    memset(l, 0, sizeof *l);
    arena_init(&l->names, 0);
}

void tensor_list_release(struct tensor_list *l)
{
    free(l->items);
    arena_release(&l->names);
    memset(l, 0, sizeof *l);
}

static struct named_tensor *append(struct tensor_list *l)
{
    if (l->n == l->cap) {
        l->cap = l->cap ? 2 * l->cap : 256;
        l->items = mem_resize(l->items, l->cap * sizeof *l->items);
    }
    memset(&l->items[l->n], 0, sizeof *l->items);
    return &l->items[l->n++];
}

/* What messages need while one file is read. */
struct reader {
    const char *path;
    u64 data_start, data_size;
    u32 file;
    struct tensor_list *out;
    struct error *err;
};

static const struct stored_type *find_type(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(TYPES); i++)
        if (!strcmp(TYPES[i].name, name)) return &TYPES[i];
    return NULL;
}

/* Fills dims and the number of elements; false when it is no list of sizes or the product does not fit. */
static bool read_shape(const struct json *shape, struct tensor *t, u64 *elements)
{
    if (json_kind(shape) != JK_ARRAY || json_len(shape) > 64) return false;
    bool fits = true;
    *elements = 1;
    t->n_dims = (u32)json_len(shape);
    for (u32 i = 0; i < t->n_dims; i++) {
        i64 n = json_int(json_item(shape, i), -1);
        if (n < 0) return false;
        if (i < COUNT_OF(t->dims)) t->dims[i] = (u64)n;
        if (__builtin_mul_overflow(*elements, (u64)n, elements)) fits = false;
    }
    return fits;
}

static int read_offsets(const struct reader *r, const char *name, const struct json *v, struct tensor *t)
{
    i64 a = json_int(json_item(v, 0), -1), b = json_int(json_item(v, 1), -1);
    if (json_kind(v) != JK_ARRAY || json_len(v) != 2 || a < 0 || b < a)
        return error_set(r->err, ERR_INPUT, r->path,
                         "tensor %s: data_offsets must be [begin, end], begin <= end", name);
    if ((u64)b > r->data_size)
        return error_set(
            r->err, ERR_INPUT, r->path,
            "tensor %s ends at byte %lld of the data, which are %llu bytes: the file is truncated or damaged",
            name, (long long)b, (unsigned long long)r->data_size);
    t->offset = r->data_start + (u64)a;
    t->bytes = (u64)(b - a);
    return 0;
}

static int read_tensor(const struct reader *r, const char *key, const struct json *v)
{
    char name[SHOWN_LEN];
    shown(key, name);
    const char *type = json_text(json_get(v, "dtype"));
    if (json_kind(v) != JK_OBJECT || !type)
        return error_set(r->err, ERR_INPUT, r->path, "tensor %s: the header has no dtype for it", name);
    struct tensor t = {.file = r->file, .dtype = DTYPE_OTHER};
    u64 elements, bits;
    if (!read_shape(json_get(v, "shape"), &t, &elements))
        return error_set(r->err, ERR_INPUT, r->path, "tensor %s: shape is not a list of sizes, or too large",
                         name);
    if (read_offsets(r, name, json_get(v, "data_offsets"), &t)) return ERR_INPUT;
    const struct stored_type *known = find_type(type);
    if (known) {
        t.dtype = known->dtype;
        if (__builtin_mul_overflow(elements, (u64)known->bits, &bits) || bits % 8 || bits / 8 != t.bytes)
            return error_set(r->err, ERR_INPUT, r->path,
                             "tensor %s: %llu bytes are stored, which is not the size of its shape in %s",
                             name, (unsigned long long)t.bytes, type);
    }
    char spelled[SHOWN_LEN];
    snprintf(t.stored, sizeof t.stored, "%.15s", shown(type, spelled));
    struct named_tensor *item = append(r->out);
    item->name = arena_text(&r->out->names, key, strlen(key));
    item->t = t;
    return 0;
}

static int check_metadata(const struct reader *r, const struct json *v)
{
    bool texts = json_kind(v) == JK_OBJECT;
    for (void *it = texts ? json_first(v) : NULL; it; it = json_next(v, it))
        texts = texts && json_kind(json_value(it)) == JK_TEXT;
    if (texts) return 0;
    return error_set(r->err, ERR_INPUT, r->path, "__metadata__ must be an object of strings");
}

static int read_member(const struct reader *r, void *it)
{
    char name[SHOWN_LEN];
    const char *key = json_key(it);
    if (!strcmp(key, "__metadata__")) return check_metadata(r, json_value(it));
    if (!*key || json_key_len(it) != strlen(key) || strlen(key) > MAX_NAME)
        return error_set(r->err, ERR_INPUT, r->path,
                         "a tensor's name is empty, longer than %d bytes, or holds a NUL: \"%s\"", MAX_NAME,
                         shown(key, name));
    if (r->out->n == SAFETENSORS_MAX_TENSORS)
        return error_set(r->err, ERR_UNSUPPORTED, r->path, "more than %d tensors", SAFETENSORS_MAX_TENSORS);
    return read_tensor(r, key, json_value(it));
}

static int by_place(const void *x, const void *y)
{
    const struct named_tensor *a = *(struct named_tensor *const *)x, *b = *(struct named_tensor *const *)y;
    if (a->t.offset != b->t.offset) return a->t.offset < b->t.offset ? -1 : 1;
    return (a->t.bytes > b->t.bytes) - (a->t.bytes < b->t.bytes);
}

/* The tensors must cover the data exactly: no byte belongs to none or to two. */
static int check_cover(const struct reader *r, struct named_tensor *const *sorted, u32 n)
{
    u64 at = r->data_start, end = r->data_start + r->data_size;
    char name[SHOWN_LEN], before[SHOWN_LEN];
    for (u32 i = 0; i < n; i++) {
        const struct tensor *t = &sorted[i]->t;
        if (t->offset < at)
            return error_set(r->err, ERR_INPUT, r->path,
                             "tensor %s (from byte %llu of the data) overlaps tensor %s (to byte %llu)",
                             shown(sorted[i]->name, name), (unsigned long long)(t->offset - r->data_start),
                             shown(sorted[i ? i - 1 : 0]->name, before),
                             (unsigned long long)(at - r->data_start));
        if (t->offset > at)
            return error_set(r->err, ERR_INPUT, r->path, "%llu bytes before tensor %s belong to no tensor",
                             (unsigned long long)(t->offset - at), shown(sorted[i]->name, name));
        at += t->bytes;
    }
    if (at == end) return 0;
    return error_set(r->err, ERR_INPUT, r->path, "%llu bytes after the last tensor belong to no tensor",
                     (unsigned long long)(end - at));
}

static int check_places(const struct reader *r, u32 first)
{
    u32 n = r->out->n - first;
    struct named_tensor **sorted = mem_alloc((n + 1) * sizeof *sorted);
    for (u32 i = 0; i < n; i++) sorted[i] = &r->out->items[first + i];
    qsort(sorted, n, sizeof *sorted, by_place);
    int rc = check_cover(r, sorted, n);
    free(sorted);
    return rc;
}

int safetensors_parse(const char *text, size_t len, u64 data_start, u64 data_size, const char *path, u32 file,
                      struct tensor_list *out, struct error *err)
{
    struct reader r = {path, data_start, data_size, file, out, err};
    struct error why = {0};
    u32 first = out->n;
    struct json *root = json_read(text, len, &why);
    if (!root)
        return error_set(err, ERR_INPUT, path, "the header is not valid JSON: %s: %s", why.where,
                         why.message);
    int rc = 0;
    if (json_kind(root) != JK_OBJECT) rc = error_set(err, ERR_INPUT, path, "the header is not a JSON object");
    for (void *it = rc ? NULL : json_first(root); it && !rc; it = json_next(root, it))
        rc = read_member(&r, it);
    if (!rc) rc = check_places(&r, first);
    json_drop(root);
    return rc;
}

int read_span(int fd, const char *path, u64 off, void *to, u64 len, struct error *err)
{
    for (u64 done = 0; done < len;) {
        ssize_t n = pread(fd, (char *)to + done, MIN_OF(len - done, (u64)PIECE), (off_t)(off + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            return error_errno(err, path, "cannot read at byte %llu", (unsigned long long)(off + done));
        if (n == 0)
            return error_set(err, ERR_IO, path, "ends at byte %llu: it became shorter while it was open",
                             (unsigned long long)(off + done));
        done += (u64)n;
    }
    return 0;
}

int safetensors_header(int fd, u64 size, const char *path, u32 file, struct tensor_list *out,
                       struct error *err)
{
    u8 head[8];
    if (size < sizeof head)
        return error_set(err, ERR_INPUT, path, "%llu bytes are too few for a safetensors file",
                         (unsigned long long)size);
    int rc = read_span(fd, path, 0, head, sizeof head, err);
    if (rc) return rc;
    u64 len = 0;
    for (int i = 7; i >= 0; i--) len = len << 8 | head[i];
    if (len > size - sizeof head)
        return error_set(err, ERR_INPUT, path,
                         "a header of %llu bytes does not fit in a file of %llu: truncated or damaged",
                         (unsigned long long)len, (unsigned long long)size);
    if (len > SAFETENSORS_MAX_HEADER)
        return error_set(err, ERR_UNSUPPORTED, path, "a header of %llu bytes is larger than %d",
                         (unsigned long long)len, SAFETENSORS_MAX_HEADER);
    char *text = malloc(len + 1);
    if (!text)
        return error_set(err, ERR_MEMORY, path, "no memory for a header of %llu bytes",
                         (unsigned long long)len);
    rc = read_span(fd, path, sizeof head, text, len, err);
    if (!rc)
        rc = safetensors_parse(text, len, sizeof head + len, size - sizeof head - len, path, file, out, err);
    free(text);
    return rc;
}
