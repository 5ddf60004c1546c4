/* A reference checkpoint that has each head of attention twice, and each of the two gives half of what the one gave: the same model, to the
 * bit (a half is exact), for twice as many engines. One file, attention in bf16. */
#ifndef MPISERVE_TESTS_DOUBLED_H
#define MPISERVE_TESTS_DOUBLED_H

#include "remade.h"

struct doubled {
    struct made to;
    struct model_config from;
};
struct doubled_part { /* of a tensor [rows, cols]: what belongs to the heads, one behind the other */
    u64 unit;         /* rows, or columns, of a head; 0: no head has any */
    bool across;      /* columns: what is added up */
};

static inline bool doubled_ends(const char *name, const char *end)
{
    size_t n = strlen(name), e = strlen(end);
    return n >= e && !strcmp(name + n - e, end);
}

/* Heads come first in the rows of phi3's qkv_proj. */
static inline struct doubled_part doubled_part(const struct doubled *d, const char *name)
{
    const struct mla_config *mla = &d->from.mla;
    u32 size = d->from.head_dim;
    const struct {
        const char *end;
        struct doubled_part part;
    } parts[] = {
        {".self_attn.q_proj.weight", {size, false}},
        {".self_attn.q_proj.bias", {size, false}},
        {".self_attn.qkv_proj.weight", {size, false}},
        {".self_attn.q_b_proj.weight", {size, false}},
        {".self_attn.kv_b_proj.weight", {mla->nope + mla->value, false}},
        {".self_attn.sinks", {1, false}},
        {".self_attn.o_proj.weight", {mla->kv_rank ? mla->value : size, true}},
    };
    for (size_t i = 0; i < COUNT_OF(parts); i++)
        if (doubled_ends(name, parts[i].end)) return parts[i].part;
    return (struct doubled_part){0};
}

static inline void doubled_rows(struct made *m, const char *from, u64 unit, u64 heads, u64 all)
{
    for (u64 h = 0; h < heads; h++)
        for (int copy = 0; copy < 2; copy++) buf_add(&m->data, from + h * unit, unit);
    buf_add(&m->data, from + heads * unit, all - heads * unit);
}

static inline void doubled_columns(struct made *m, const u16 *from, u64 unit, u64 heads, u64 rows)
{
    for (u64 h = 0; h < rows * heads; h++)
        for (u64 k = 0; k < 2 * unit; k++) {
            u16 half = bf16_from_f32(f32_from_bf16(from[h * unit + k % unit]) / 2);
            buf_add(&m->data, &half, sizeof half);
        }
}

static inline void doubled_tensor(void *model, const char *name, const struct json *entry, const char *data)
{
    struct doubled *d = model;
    struct made *m = &d->to;
    const struct json *shape = json_get(entry, "shape"), *range = json_get(entry, "data_offsets");
    i64 begin = json_int(json_item(range, 0), -1), end = json_int(json_item(range, 1), -1);
    u64 heads = d->from.heads, bytes = (u64)(end - begin), rows = (u64)json_int(json_item(shape, 0), 0);
    const struct doubled_part p = doubled_part(d, name);
    size_t at = m->data.len;
    assert_true(!p.unit || !strcmp(json_text(json_get(entry, "dtype")), "BF16"));
    if (p.across)
        doubled_columns(m, (const u16 *)(const void *)(data + begin), p.unit, heads, rows);
    else
        doubled_rows(m, data + begin, p.unit * (bytes / rows), heads, bytes);
    buf_printf(&m->header, "%c\"%s\":{\"dtype\":\"%s\",\"shape\":[", m->n++ ? ',' : '{', name,
               json_text(json_get(entry, "dtype")));
    for (size_t i = 0; i < json_len(shape); i++)
        buf_printf(&m->header, "%s%llu", i ? "," : "",
                   (unsigned long long)json_int(json_item(shape, i), 0) +
                       (i == p.across ? heads * p.unit : 0));
    buf_printf(&m->header, "],\"data_offsets\":[%zu,%zu]}", at, m->data.len);
}

/* Twice the heads, of the same size. KV heads stay, so that more query heads share one; of latent attention all are query heads. */
static inline void doubled_config(struct doubled *d)
{
    const struct model_config *c = &d->from;
    struct error err = {0};
    struct buf config = {0}, wide = {0};
    char path[PATH_LEN + 32], heads[64], kv_heads[64];
    snprintf(path, sizeof path, "%s/config.json", c->dir);
    runner_need(!file_read(path, 1 << 20, &config, &err), &err);
    snprintf(heads, sizeof heads, "\"num_attention_heads\": %u", c->heads);
    snprintf(kv_heads, sizeof kv_heads, "\"num_key_value_heads\": %u", c->kv_heads);
    char *at = strstr(config.data, heads), *kv = strstr(config.data, kv_heads);
    assert_true(at && c->heads < 5 && (kv || c->kv_heads == c->heads));
    at[strlen(heads) - 1] = (char)('0' + 2 * c->heads);
    if (c->mla.kv_rank) kv[strlen(kv_heads) - 1] = (char)('0' + 2 * c->heads);
    buf_add(&wide, config.data, (size_t)(at - config.data));
    if (!strstr(config.data, "\"head_dim\"") && !c->mla.kv_rank)
        buf_printf(&wide, "\"head_dim\": %u, ", c->head_dim);
    if (!kv) buf_printf(&wide, "\"num_key_value_heads\": %u, ", c->kv_heads);
    buf_text(&wide, at);
    made_file(&d->to, "config.json", wide.data, wide.len);
    buf_release(&config);
    buf_release(&wide);
}

/* ref, with the doubled model's folder. made_drop(&d->to) removes it. */
static inline void doubled_make(struct doubled *d, struct reference *ref)
{
    d->from = reference_config(ref);
    made_start(&d->to);
    doubled_config(d);
    remade(&d->to, ref, doubled_tensor, d);
}

#endif
