/* Normalizers: rewrite a section of text before it is split. */
#include "text/tokenizer.h"
#include "text/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

struct normalize_row {
    const char *type;
    int options; /* of utf8proc */
};
static const struct normalize_row rows[] = {
    {"NFC", UTF8PROC_STABLE | UTF8PROC_COMPOSE},
    {"NFD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE},
    {"NFKC", UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT},
    {"NFKD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT},
};

static int load_step(struct normalizer *n, const struct json *field, struct error *err)
{
    const char *type = json_text(json_get(field, "type"));
    if (!type) return field_error(err, ERR_INPUT, "normalizer.type", "must be a string");
    if (n->n == NORMALIZE_STEPS)
        return field_error(err, ERR_UNSUPPORTED, "normalizer", "more than %d steps", NORMALIZE_STEPS);
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        if (strcmp(type, rows[i].type) != 0) continue;
        n->steps[n->n++] = &rows[i];
        return 0;
    }
    return field_error(err, ERR_UNSUPPORTED, "normalizer.type", "\"%.100s\" is not supported", type);
}

int normalizer_load(struct normalizer *n, const struct json *field, struct error *err)
{
    n->n = 0;
    if (json_kind(field) == JK_NONE || json_kind(field) == JK_NULL) return 0;
    const char *type = json_text(json_get(field, "type"));
    if (!type || strcmp(type, "Sequence") != 0) return load_step(n, field, err);
    const struct json *list = json_get(field, "normalizers");
    if (json_kind(list) != JK_ARRAY)
        return field_error(err, ERR_INPUT, "normalizer.normalizers", "must be an array");
    for (size_t i = 0; i < json_len(list); i++) {
        int rc = load_step(n, json_item(list, i), err);
        if (rc) return rc;
    }
    return 0;
}

/* The canonical order of marks, run by run. utf8proc's own is quadratic in the length of a run, and a text from the
 * network may be one run. */
static void order_marks(utf8proc_int32_t *cp, size_t n, utf8proc_int32_t *spare)
{
    for (size_t from = 0; from < n; from++) {
        if (!utf8proc_get_property(cp[from])->combining_class) continue;
        size_t to = from, start[257] = {0};
        for (; to < n && utf8proc_get_property(cp[to])->combining_class; to++) {
            start[utf8proc_get_property(cp[to])->combining_class % 256 + 1]++;
        }
        for (int i = 0; i < 256; i++) start[i + 1] += start[i];
        for (size_t i = from; i < to && to - from > 1; i++) {
            spare[start[utf8proc_get_property(cp[i])->combining_class % 256]++] = cp[i];
        }
        if (to - from > 1) memcpy(cp + from, spare, (to - from) * sizeof(*cp));
        from = to;
    }
}

static void run_step(const struct normalize_row *row, const char *text, size_t len, struct buf *out)
{
    int boundary = 0;
    size_t n = 0, cap = len + 64; /* UTF8PROC_STABLE's longest expansion of a character is 18 */
    utf8proc_int32_t *cp = mem_alloc(cap * sizeof(*cp));
    for (size_t at = 0; at < len;) {
        int used;
        u32 c = utf8_at(text + at, &used);
        at += (size_t)used;
        if (n + 32 > cap) cp = mem_resize(cp, (cap *= 2) * sizeof(*cp));
        utf8proc_ssize_t got = utf8proc_decompose_char((utf8proc_int32_t)c, cp + n,
                                                       (utf8proc_ssize_t)(cap - n), row->options, &boundary);
        if (got > 0) n += (size_t)got;
    }
    utf8proc_int32_t *spare = mem_alloc(n * sizeof(*spare));
    order_marks(cp, n, spare);
    free(spare);
    utf8proc_ssize_t end = utf8proc_normalize_utf32(cp, (utf8proc_ssize_t)n, row->options);
    for (utf8proc_ssize_t i = 0; i < end; i++) utf8_add(out, (u32)cp[i]);
    free(cp);
}

static bool is_ascii(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if ((u8)text[i] >= 0x80) return false;
    }
    return true;
}

void normalizer_run(const struct normalizer *n, const char **text, size_t *len, struct buf *out)
{
    if (n->n == 0 || is_ascii(*text, *len)) return; /* every row leaves ASCII as it is */
    struct buf next = {0};
    for (int i = 0; i < n->n; i++) {
        buf_clear(&next);
        buf_reserve(&next, *len + 1);
        run_step(n->steps[i], *text, *len, &next);
        struct buf swap = *out;
        *out = next;
        next = swap;
        *text = out->data;
        *len = out->len;
    }
    buf_release(&next);
}
