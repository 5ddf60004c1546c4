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

static void need_int(struct fields *d, const char *key, i64 only)
{
    i64 value = fields_int(d, key, INT32_MIN, INT32_MAX, only);
    if (value != only)
        fields_fail(d, ERR_UNSUPPORTED,
                    "\"%s\" %lld in \"quantization_config\" is not offered; offered: %lld", key,
                    (long long)value, (long long)only);
}

static void need_bool(struct fields *d, const char *key, bool only)
{
    if (fields_bool(d, key, only) != only)
        fields_fail(d, ERR_UNSUPPORTED, "\"%s\" %s in \"quantization_config\" is not offered", key,
                    only ? "false" : "true");
}

/* group_size: -1 is one group. */
static void read_groups(struct fields *d, struct quant_config *q)
{
    i64 size = fields_need_int(d, "group_size", -1, 1 << 20);
    if (size != -1 && (size < 8 || size % 8))
        fields_fail(
            d, ERR_UNSUPPORTED,
            "\"group_size\" %lld in \"quantization_config\" is not offered; offered: multiples of 8, or -1",
            (long long)size);
    q->block = size > 0 ? (u32)size : 0;
}

static void read_awq(struct fields *d, struct quant_config *q)
{
    if (check_keys(d, " bits group_size zero_point version backend do_fuse exllama_config "
                      "fuse_max_seq_len modules_to_fuse "))
        return;
    need_int(d, "bits", 4);
    need_bool(d, "zero_point", true);
    need_word(d, "version", "gemm");
    q->bits = 4;
    read_groups(d, q);
}

static void read_gptq(struct fields *d, struct quant_config *q)
{
    char name[SHOWN_LEN];
    if (check_keys(
            d,
            " bits group_size desc_act sym damp_percent static_groups true_sequential checkpoint_format "
            "lm_head dataset tokenizer batch_size block_name_to_quantize cache_block_outputs exllama_config "
            "max_input_length model_seqlen module_name_preceding_first_block modules_in_block_to_quantize "
            "pad_token_id use_cuda_fp16 use_exllama disable_exllama model_name_or_path model_file_base_name "
            "meta pack_dtype is_marlin_format damp_auto_increment backend "))
        return;
    i64 bits = fields_need_int(d, "bits", 1, 32);
    if (bits != 4 && bits != 8)
        fields_fail(d, ERR_UNSUPPORTED,
                    "\"bits\" %lld in \"quantization_config\" is not offered; offered: 4, 8",
                    (long long)bits);
    q->bits = (u32)bits;
    need_bool(d, "lm_head", false);
    need_bool(d, "is_marlin_format", false);
    const char *format = fields_text(d, "checkpoint_format", "gptq");
    q->v2 = !strcmp(format, "gptq_v2");
    if (strcmp(format, "gptq") && !q->v2)
        fields_fail(
            d, ERR_UNSUPPORTED,
            "\"checkpoint_format\" %s in \"quantization_config\" is not offered; offered: gptq, gptq_v2",
            shown(format, name));
    read_groups(d, q);
    q->scattered = fields_bool(d, "desc_act", false) && q->block; /* one group has no order */
}

static void read_mxfp4(struct fields *d, struct quant_config *q)
{
    (void)q;
    check_keys(d, " dequantize ");
}

static const struct method {
    const char *name;
    enum quant_method method;
    void (*read)(struct fields *d, struct quant_config *q);
} METHODS[] = {{"fp8", QUANT_FP8, read_fp8},
               {"awq", QUANT_AWQ, read_awq},
               {"gptq", QUANT_GPTQ, read_gptq},
               {"mxfp4", QUANT_MXFP4, read_mxfp4}};

const char *quant_method_name(enum quant_method m)
{
    for (size_t i = 0; i < COUNT_OF(METHODS); i++)
        if (METHODS[i].method == m) return METHODS[i].name;
    return NULL;
}

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
    if (m->method == QUANT_MXFP4 && out->arch->moe != MOE_GPT_OSS)
        return fields_fail(f, ERR_UNSUPPORTED, "\"quantization_config\" (mxfp4) is offered for gpt_oss only");
    m->read(&d, &out->quant);
    return f->rc = d.rc;
}
