/* quantization_config: how weights are stored. Which tensors are quantised shows in their types. */
#include "model/config.h"
#include <string.h>

/* Keys that say nothing about the numbers. */
static const char PASSED_OVER[] = " quant_method modules_to_not_convert ignored_layers ";

static int check_keys(struct fields *d, const char *read)
{
    char name[SHOWN_LEN];
    for (void *it = json_first(d->object); it; it = json_next(d->object, it)) {
        const char *key = json_key(it);
        if (json_kind(json_value(it)) != JK_NULL && !word_listed(key, PASSED_OVER) && !word_listed(key, read))
            return fields_fail(
                d, ERR_UNSUPPORTED,
                "\"%s\" in \"quantization_config\" is not understood and may change the results",
                shown(key, name));
    }
    return d->rc;
}

/* A key that has one value only. */
static void need_word(struct fields *d, const char *key, const char *only)
{
    char name[SHOWN_LEN];
    const char *value = fields_text(d, key, only);
    if (strcmp(value, only))
        fields_fail(d, ERR_UNSUPPORTED, "\"%s\" %s in \"quantization_config\" is not offered; offered: %s",
                    key, shown(value, name), only);
}

/* Weights e4m3 with a scale for each block. Activations are computed unrounded, whatever activation_scheme says of them at training. */
static void read_fp8(struct fields *d, struct quant_config *q)
{
    if (check_keys(d, " weight_block_size fmt activation_scheme scale_fmt ")) return;
    need_word(d, "fmt", "e4m3");
    need_word(d, "activation_scheme", "dynamic");
    const struct json *size = json_get(d->object, "weight_block_size");
    i64 rows = json_int(json_item(size, 0), -1), cols = json_int(json_item(size, 1), -1);
    if (json_kind(size) != JK_ARRAY || json_len(size) != 2 || rows != cols || rows < 1 || rows > 4096)
        fields_fail(
            d, ERR_UNSUPPORTED,
            "\"weight_block_size\" in \"quantization_config\" must be [n, n]: fp8 weights are offered with a "
            "scale for each block of n x n");
    q->block = (u32)rows;
}

static const struct method {
    const char *name;
    enum quant_method method;
    void (*read)(struct fields *d, struct quant_config *q);
} METHODS[] = {{"fp8", QUANT_FP8, read_fp8}};

static int unknown_method(struct fields *f, const char *method)
{
    char name[SHOWN_LEN];
    struct buf list = {0};
    for (size_t i = 0; i < COUNT_OF(METHODS); i++) buf_printf(&list, "%s%s", i ? ", " : "", METHODS[i].name);
    fields_fail(f, ERR_UNSUPPORTED,
                "\"quantization_config\" (%s): weights stored so are not offered; offered: %s, or a folder "
                "with bf16, f16 or "
                "f32 weights",
                method ? shown(method, name) : "no quant_method", list.data);
    buf_release(&list);
    return f->rc;
}

int config_quant(struct fields *f, struct model_config *out)
{
    if (!fields_has(f, "quantization_config")) return f->rc;
    struct fields d = {
        .path = f->path, .object = json_get(f->object, "quantization_config"), .err = f->err, .rc = f->rc};
    if (json_kind(d.object) != JK_OBJECT)
        return fields_fail(f, ERR_INPUT, "\"quantization_config\" is %s; it must be an object",
                           json_kind_name(json_kind(d.object)));
    const char *method = fields_text(&d, "quant_method", NULL);
    const struct method *m = NULL;
    for (size_t i = 0; method && i < COUNT_OF(METHODS); i++)
        if (!strcmp(method, METHODS[i].name)) m = &METHODS[i];
    if (!m) return unknown_method(f, method);
    out->quant.method = m->method;
    m->read(&d, &out->quant);
    return f->rc = d.rc;
}
