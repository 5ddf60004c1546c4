/* A reference checkpoint whose experts have more columns than it was made with, zeros, which add nothing: for divisions that leave an engine
 * too few of them, as those of real models never do. bf16 checkpoints in one file. */
#ifndef MPISERVE_TESTS_WIDE_H
#define MPISERVE_TESTS_WIDE_H

#include "remade.h"

struct wide {
    struct made to;
    u32 from, columns;
};
struct wide_tensor {
    u64 n[3], wide[3]; /* sizes, the last axes; what is not there is 1 */
};

/* A size of an expert's tensor that counts its columns, or gates and ups together. */
static inline u64 wide_size(const struct wide *w, u64 n)
{
    return n == w->from ? w->columns : n == 2 * w->from ? 2 * w->columns : n;
}

static inline struct wide_tensor wide_shape(const struct wide *w, const char *name, const struct json *shape)
{
    struct wide_tensor t = {{1, 1, 1}, {1, 1, 1}};
    size_t axes = json_len(shape);
    assert_true(axes <= 3);
    for (size_t i = 0; i < axes; i++) {
        u64 n = (u64)json_int(json_item(shape, i), 0);
        t.n[3 - axes + i] = n;
        t.wide[3 - axes + i] = strstr(name, ".experts.") ? wide_size(w, n) : n;
    }
    return t;
}

static inline void wide_copy(struct made *m, const struct wide_tensor *t, const u16 *from)
{
    size_t start = m->data.len, n = t->wide[0] * t->wide[1] * t->wide[2] * sizeof *from;
    u8 *zeros = calloc(1, n);
    buf_add(&m->data, zeros, n);
    free(zeros);
    for (u64 i = 0; i < t->n[0]; i++)
        for (u64 k = 0; k < t->n[1]; k++)
            memcpy(m->data.data + start + (i * t->wide[1] + k) * t->wide[2] * sizeof *from,
                   from + (i * t->n[1] + k) * t->n[2], t->n[2] * sizeof *from);
}

static inline void wide_tensor(void *model, const char *name, const struct json *entry, const char *data)
{
    struct wide *w = model;
    struct made *m = &w->to;
    struct wide_tensor t = wide_shape(w, name, json_get(entry, "shape"));
    size_t from = m->data.len, axes = json_len(json_get(entry, "shape"));
    assert_string_equal(json_text(json_get(entry, "dtype")), "BF16");
    wide_copy(m, &t,
              (const u16 *)(const void *)(data + json_int(json_item(json_get(entry, "data_offsets"), 0), 0)));
    buf_printf(&m->header, "%c\"%s\":{\"dtype\":\"BF16\",\"shape\":[", m->n++ ? ',' : '{', name);
    for (size_t i = 3 - axes; i < 3; i++)
        buf_printf(&m->header, "%s%llu", i > 3 - axes ? "," : "", (unsigned long long)t.wide[i]);
    buf_printf(&m->header, "],\"data_offsets\":[%zu,%zu]}", from, m->data.len);
}

/* The experts' size is 24 in these, and the new one has as many digits. */
static inline void wide_config(struct wide *w, const char *dir)
{
    struct error err = {0};
    struct buf config = {0};
    char path[PATH_LEN + 32], wanted[64], size[16];
    snprintf(path, sizeof path, "%s/config.json", dir);
    runner_need(!file_read(path, 1 << 20, &config, &err), &err);
    buf_char(&config, 0);
    snprintf(wanted, sizeof wanted, "intermediate_size\": %u,", w->from);
    int digits = snprintf(size, sizeof size, "%u,", w->columns);
    char *at = strstr(config.data, wanted);
    assert_true(at && strlen(wanted) == strlen("intermediate_size\": ") + (size_t)digits);
    memcpy(at + strlen("intermediate_size\": "), size, (size_t)digits);
    made_file(&w->to, "config.json", config.data, config.len - 1);
    buf_release(&config);
}

/* ref, with the wide model's folder. made_drop(&w->to) removes it. */
static inline void wide_make(struct wide *w, struct reference *ref, u32 from, u32 columns)
{
    *w = (struct wide){.from = from, .columns = columns};
    made_start(&w->to);
    wide_config(w, ref->dir);
    remade(&w->to, ref, wide_tensor, w);
}

#endif
