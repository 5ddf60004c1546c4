/* A model folder with random numbers, made from a config.json: for divisions that the reference checkpoints
 * do not have. */
#ifndef MPISERVE_TESTS_MADE_H
#define MPISERVE_TESTS_MADE_H

#include "mpiserve/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct made {
    char dir[64];
    struct buf header, data;
    u32 n; /* tensors so far */
};

static inline void made_file(const struct made *m, const char *name, const void *data, size_t len)
{
    char path[128];
    struct error err;
    snprintf(path, sizeof path, "%s/%s", m->dir, name);
    if (file_write_whole(path, data, len, 0600, &err)) {
        fprintf(stderr, "%s\n", err.message);
        abort();
    }
}

/* f32, uniform in middle +- width. */
static inline void made_tensor(struct made *m, const char *name, u32 rows, u32 cols, float middle,
                               float width)
{
    size_t from = m->data.len, n = (size_t)rows * MAX_OF(cols, 1u);
    for (size_t i = 0; i < n; i++) {
        u32 bits[4];
        rng_block(m->n, i, 0, bits);
        float v = middle + width * (2 * rng_unit(bits[0]) - 1);
        buf_add(&m->data, &v, sizeof v);
    }
    buf_printf(&m->header, "%c\"%s\":{\"dtype\":\"F32\",\"shape\":[%u", m->n++ ? ',' : '{', name, rows);
    if (cols) buf_printf(&m->header, ",%u", cols);
    buf_printf(&m->header, "],\"data_offsets\":[%zu,%zu]}", from, m->data.len);
}

static inline void made_linear(struct made *m, u32 layer, const char *name, u32 rows, u32 cols, bool bias)
{
    char full[128];
    snprintf(full, sizeof full, "model.layers.%u.%s.weight", layer, name);
    made_tensor(m, full, rows, cols, 0, 0.25f);
    snprintf(full, sizeof full, "model.layers.%u.%s.bias", layer, name);
    if (bias) made_tensor(m, full, rows, 0, 0, 0.5f);
}

static inline void made_layer(struct made *m, const struct model_config *c, u32 i)
{
    char name[128];
    u32 q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    snprintf(name, sizeof name, "model.layers.%u.input_layernorm.weight", i);
    made_tensor(m, name, c->hidden, 0, 1, 0.1f);
    snprintf(name, sizeof name, "model.layers.%u.post_attention_layernorm.weight", i);
    made_tensor(m, name, c->hidden, 0, 1, 0.1f);
    made_linear(m, i, "self_attn.q_proj", q, c->hidden, c->q_bias);
    made_linear(m, i, "self_attn.k_proj", kv, c->hidden, c->q_bias);
    made_linear(m, i, "self_attn.v_proj", kv, c->hidden, c->q_bias);
    made_linear(m, i, "self_attn.o_proj", c->hidden, q, c->o_bias);
    made_linear(m, i, "mlp.gate_proj", c->ffn, c->hidden, c->mlp_bias);
    made_linear(m, i, "mlp.up_proj", c->ffn, c->hidden, c->mlp_bias);
    made_linear(m, i, "mlp.down_proj", c->hidden, c->ffn, c->mlp_bias);
}

static inline void made_start(struct made *m)
{
    *m = (struct made){0};
    snprintf(m->dir, sizeof m->dir, "/tmp/mpiserve-test-XXXXXX");
    if (!mkdtemp(m->dir)) abort();
}

/* The tensors so far become the model's. */
static inline void made_finish(struct made *m)
{
    struct buf file = {0};
    buf_char(&m->header, '}');
    u64 len = m->header.len;
    buf_add(&file, &len, sizeof len);
    buf_add(&file, m->header.data, m->header.len);
    buf_add(&file, m->data.data, m->data.len);
    made_file(m, "model.safetensors", file.data, file.len);
    buf_release(&file);
    buf_release(&m->header);
    buf_release(&m->data);
}

/* Models without norms of q and k. made_drop removes the folder. */
static inline void made_model(struct made *m, const char *config)
{
    struct model_config c;
    struct error err;
    made_start(m);
    made_file(m, "config.json", config, strlen(config));
    if (model_read_config(m->dir, &c, &err)) {
        fprintf(stderr, "%s: %s\n", err.where, err.message);
        abort();
    }
    made_tensor(m, "model.embed_tokens.weight", c.vocab, c.hidden, 0, 1);
    if (!c.tied) made_tensor(m, "lm_head.weight", c.vocab, c.hidden, 0, 1);
    made_tensor(m, "model.norm.weight", c.hidden, 0, 1, 0.1f);
    for (u32 i = 0; i < c.layers; i++) made_layer(m, &c, i);
    made_finish(m);
}

static inline void made_drop(struct made *m)
{
    char path[128];
    static const char *const names[] = {"config.json", "model.safetensors"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        snprintf(path, sizeof path, "%s/%s", m->dir, names[i]);
        unlink(path);
    }
    rmdir(m->dir);
}

#endif
