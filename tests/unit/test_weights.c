/* engine/weights: every number of the files is found where the layout says, and folders that do not fit are refused. */
#include "engine/layout.h"
#include "engine/weights.h"
#include "folder.h"

struct loaded {
    struct model_config config;
    struct shard shard;
    struct model_files *files;
    struct weights weights;
    void *image;
    size_t bytes;
};

static void load_part(const char *dir, struct loaded *x, u32 tp, u32 pp, u32 tp_rank, u32 pp_rank)
{
    struct error e = {0};
    _Atomic u64 read = 0;
    u64 stored = 0;
    if (model_read_config(dir, &x->config, &e)) fail_msg("%s: %s", e.where, e.message);
    if (shard_of(&x->shard, &x->config, tp, pp, tp_rank, pp_rank, &e)) fail_msg("%s", e.message);
    x->files = model_open(dir, &e);
    if (!x->files) fail_msg("%s: %s", e.where, e.message);
    if (weights_plan(&x->config, &x->shard, x->files, NULL, &x->bytes, &e)) fail_msg("%s", e.message);
    x->image = aligned_alloc(64, x->bytes);
    memset(x->image, 0xaa, x->bytes);
    if (weights_fill(&x->config, &x->shard, x->files, NULL, x->image, x->bytes, &read, &e))
        fail_msg("%s", e.message);
    if (weights_bind(&x->config, &x->shard, x->files, NULL, x->image, &x->weights, &e))
        fail_msg("%s", e.message);
    for (size_t i = 0; i < model_tensor_count(x->files); i++) stored += model_tensor_at(x->files, i)->bytes;
    /* of a model with many parts little is read: what nobody divides is small */
    assert_true(read <= stored && read > stored / 2 / (tp * pp) && read < stored / (tp * pp) * 2 + 20000);
}

static void load(const char *dir, struct loaded *x)
{
    load_part(dir, x, 1, 1, 0, 0);
}

static void unload(struct loaded *x)
{
    free(x->image);
    model_close(x->files);
}

/* ---- a second opinion on the layout --------------------------------------------------------------------------*/
static float number(const void *data, enum dtype t, size_t i)
{
    if (t == DTYPE_F32) return ((const float *)data)[i];
    return t == DTYPE_BF16 ? f32_from_bf16(((const u16 *)data)[i]) : f32_from_f16(((const u16 *)data)[i]);
}

static float packed_number(const struct packed *p, u32 o, u32 k)
{
    size_t wide = p->n_in + (p->n_in & 1), panel = (size_t)(o / 16) * 16 * wide;
    if (p->dtype == DTYPE_BF16)
        return number(p->data, DTYPE_BF16, panel + (k / 2) * 32 + (o % 16) * 2 + k % 2);
    return number(p->data, DTYPE_F32, panel + (size_t)k * 16 + o % 16);
}

static void *stored(const struct loaded *x, const char *name, const struct tensor **t)
{
    struct error e;
    *t = model_tensor(x->files, name);
    if (!*t) fail_msg("no tensor %s", name);
    void *data = malloc((*t)->bytes);
    assert_int_equal(model_read(x->files, *t, 0, data, (*t)->bytes, &e), 0);
    return data;
}

static void same_rows(const struct loaded *x, const struct packed *p, u32 row0, const char *name)
{
    const struct tensor *t;
    void *data = stored(x, name, &t);
    assert_int_equal((uintptr_t)p->data % 64, 0);
    assert_int_equal(t->dims[1], p->n_in);
    assert_true(row0 + t->dims[0] <= p->n_out);
    for (u32 o = 0; o < t->dims[0]; o++)
        for (u32 k = 0; k < p->n_in; k++)
            if (packed_number(p, row0 + o, k) != number(data, t->dtype, (size_t)o * p->n_in + k))
                fail_msg("%s[%u, %u]", name, o, k);
    free(data);
}

static void same_vector(const struct loaded *x, const float *v, const char *name)
{
    const struct tensor *t;
    void *data = stored(x, name, &t);
    assert_non_null(v);
    for (u32 i = 0; i < t->dims[0]; i++) assert_true(v[i] == number(data, t->dtype, i));
    free(data);
}

static void check_layer(const struct loaded *x, u32 i)
{
    const struct model_config *c = &x->config;
    const struct layer_weights *l = &x->weights.layer[i];
    u32 q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    const struct {
        const struct packed *p;
        const float *bias;
        u32 row0;
        const char *name;
    } rows[] = {
        {&l->qkv, l->qkv_bias, 0, "self_attn.q_proj"},
        {&l->qkv, l->qkv_bias, q, "self_attn.k_proj"},
        {&l->qkv, l->qkv_bias, q + kv, "self_attn.v_proj"},
        {&l->o, l->o_bias, 0, "self_attn.o_proj"},
        {&l->gate_up, l->gate_up_bias, 0, "mlp.gate_proj"},
        {&l->gate_up, l->gate_up_bias, c->ffn, "mlp.up_proj"},
        {&l->down, l->down_bias, 0, "mlp.down_proj"},
    };
    char name[128];
    for (size_t r = 0; r < COUNT_OF(rows); r++) {
        snprintf(name, sizeof name, "model.layers.%u.%s.weight", i, rows[r].name);
        same_rows(x, rows[r].p, rows[r].row0, name);
        snprintf(name, sizeof name, "model.layers.%u.%s.bias", i, rows[r].name);
        if (rows[r].bias) same_vector(x, rows[r].bias + rows[r].row0, name);
    }
    assert_int_equal(l->qkv.n_out, q + 2 * kv);
    assert_int_equal(l->gate_up.n_out, 2 * c->ffn);
    snprintf(name, sizeof name, "model.layers.%u.input_layernorm.weight", i);
    same_vector(x, l->attn_norm, name);
    snprintf(name, sizeof name, "model.layers.%u.post_attention_layernorm.weight", i);
    same_vector(x, l->mlp_norm, name);
    assert_true(!l->q_norm == !c->qk_norm && !l->qkv_bias == !c->q_bias && !l->o_bias == !c->o_bias);
    assert_true(!l->gate_up_bias == !c->mlp_bias && !l->down_bias == !c->mlp_bias);
    if (!c->qk_norm) return;
    snprintf(name, sizeof name, "model.layers.%u.self_attn.k_norm.weight", i);
    same_vector(x, l->k_norm, name);
}

static void check_all(const struct loaded *x)
{
    const struct model_config *c = &x->config;
    const struct tensor *t;
    void *embed = stored(x, "model.embed_tokens.weight", &t);
    assert_int_equal(x->weights.embed.data == NULL, c->tied);
    for (size_t i = 0; x->weights.embed.data && i < (size_t)c->vocab * c->hidden; i++)
        if (number(x->weights.embed.data, x->weights.embed.dtype, i) != number(embed, t->dtype, i))
            fail_msg("embed %zu", i);
    free(embed);
    same_rows(x, &x->weights.head, 0, c->tied ? "model.embed_tokens.weight" : "lm_head.weight");
    assert_int_equal(x->weights.head.n_out, c->vocab);
    same_vector(x, x->weights.norm, "model.norm.weight");
    for (u32 i = 0; i < c->layers; i++) check_layer(x, i);
}

static void test_reference_folders(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        enum dtype dtype;
    } rows[] = {
        {"llama_tied_llama3", DTYPE_BF16}, {"llama_untied_sharded", DTYPE_F32},
        {"llama_v5style", DTYPE_BF16},     {"mistral_swa16", DTYPE_BF16},
        {"qwen2_bias", DTYPE_BF16},        {"qwen3_headdim32", DTYPE_BF16},
    };
    static struct loaded x;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        load(data_dir(rows[i].name), &x);
        assert_int_equal(x.weights.head.dtype, rows[i].dtype);
        assert_int_equal(x.weights.layer[1].gate_up.dtype, rows[i].dtype);
        assert_int_equal(x.weights.layer[1].qkv_bias != NULL, !strcmp(rows[i].name, "qwen2_bias"));
        check_all(&x);
        unload(&x);
    }
}

/* ---- parts: the same numbers, cut out of the tensors ------------------------------------------------------------*/
static void same_cut(const struct loaded *x, const struct packed *p, u32 row0, const char *name,
                     struct slice rows, struct slice cols)
{
    const struct tensor *t;
    void *data = stored(x, name, &t);
    assert_true(t->dims[0] == rows.of && t->dims[1] == cols.of && p->n_in == cols.n);
    for (u32 o = 0; o < rows.n; o++)
        for (u32 k = 0; k < cols.n; k++)
            if (packed_number(p, row0 + o, k) !=
                number(data, t->dtype, (size_t)(rows.first + o) * cols.of + cols.first + k))
                fail_msg("%s[%u, %u]", name, o, k);
    free(data);
}

static void same_cut_vector(const struct loaded *x, const float *v, const char *name, struct slice rows)
{
    const struct tensor *t;
    void *data = stored(x, name, &t);
    for (u32 i = 0; i < rows.n; i++) assert_true(v[i] == number(data, t->dtype, rows.first + i));
    free(data);
}

static void check_part_layer(const struct loaded *x, u32 i)
{
    const struct model_config *c = &x->config;
    const struct shard *s = &x->shard;
    const struct layer_weights *l = &x->weights.layer[i];
    u32 d = c->head_dim;
    const struct slice hidden = {0, c->hidden, c->hidden}, ffn = s->ffn,
                       q = {s->heads.first * d, s->heads.n * d, c->heads * d},
                       kv = {s->kv_heads.first * d, s->kv_heads.n * d, c->kv_heads * d};
    const struct {
        const struct packed *p;
        const float *bias;
        u32 row0;
        const char *name;
        struct slice rows, cols;
    } all[] = {
        {&l->qkv, l->qkv_bias, 0, "self_attn.q_proj", q, hidden},
        {&l->qkv, l->qkv_bias, q.n, "self_attn.k_proj", kv, hidden},
        {&l->qkv, l->qkv_bias, q.n + kv.n, "self_attn.v_proj", kv, hidden},
        {&l->o, l->o_bias, 0, "self_attn.o_proj", hidden, q},
        {&l->gate_up, l->gate_up_bias, 0, "mlp.gate_proj", ffn, hidden},
        {&l->gate_up, l->gate_up_bias, ffn.n, "mlp.up_proj", ffn, hidden},
        {&l->down, l->down_bias, 0, "mlp.down_proj", hidden, ffn},
    };
    char name[128];
    for (size_t r = 0; r < COUNT_OF(all); r++) {
        snprintf(name, sizeof name, "model.layers.%u.%s.weight", i, all[r].name);
        same_cut(x, all[r].p, all[r].row0, name, all[r].rows, all[r].cols);
        snprintf(name, sizeof name, "model.layers.%u.%s.bias", i, all[r].name);
        if (all[r].bias) same_cut_vector(x, all[r].bias + all[r].row0, name, all[r].rows);
    }
    assert_true(l->qkv.n_out == q.n + 2 * kv.n && l->gate_up.n_out == 2 * ffn.n);
    snprintf(name, sizeof name, "model.layers.%u.post_attention_layernorm.weight", i);
    same_vector(x, l->mlp_norm, name);
}

static void check_part(const struct loaded *x)
{
    const struct shard *s = &x->shard;
    const struct slice hidden = {0, x->config.hidden, x->config.hidden};
    const char *embed = "model.embed_tokens.weight";
    bool first = s->pp_rank == 0, last = s->pp_rank + 1 == s->pp, shared = first && last && x->config.tied;
    assert_int_equal(x->weights.embed.data != NULL, first && !shared);
    if (first && !shared) {
        const struct tensor *t;
        void *data = stored(x, embed, &t);
        for (size_t i = 0; i < (size_t)s->vocab.n * hidden.n; i++)
            assert_true(number(x->weights.embed.data, x->weights.embed.dtype, i) ==
                        number(data, t->dtype, (size_t)s->vocab.first * hidden.n + i));
        free(data);
    }
    assert_int_equal(x->weights.head.data != NULL, last);
    assert_int_equal(x->weights.norm != NULL, last);
    if (last) same_cut(x, &x->weights.head, 0, x->config.tied ? embed : "lm_head.weight", s->vocab, hidden);
    for (u32 i = 0; i < x->config.layers; i++) {
        bool here = i >= s->layers.first && i < s->layers.first + s->layers.n;
        assert_int_equal(x->weights.layer[i].attn_norm != NULL, here);
        if (here) check_part_layer(x, i);
    }
}

static void test_parts(void **state)
{
    (void)state;
    static const char *const names[] = {"llama_tied_llama3", "llama_untied_sharded", "qwen2_bias"};
    static struct loaded x;
    for (size_t i = 0; i < COUNT_OF(names); i++)
        for (u32 tp = 1; tp <= 4; tp *= 2)
            for (u32 pp = 1; pp <= 2; pp++)
                for (u32 e = 0; e < tp * pp; e++) {
                    load_part(data_dir(names[i]), &x, tp, pp, e % tp, e / tp);
                    check_part(&x);
                    unload(&x);
                }
}

/* ---- folders made here: odd sizes, mixed types, too much and too little --------------------------------------*/
struct made {
    const char *name, *dtype;
    u32 rows, cols; /* cols 0: a vector */
};
/* hidden 6, 3 heads of 2, 1 kv head, ffn 5, biases everywhere */
static const struct made SMALL[] = {
    {"model.embed_tokens.weight", "F16", 9, 6},
    {"lm_head.weight", "BF16", 9, 6},
    {"model.norm.weight", "BF16", 6, 0},
    {"model.layers.0.input_layernorm.weight", "F32", 6, 0},
    {"model.layers.0.post_attention_layernorm.weight", "F16", 6, 0},
    {"model.layers.0.self_attn.q_proj.weight", "BF16", 6, 6},
    {"model.layers.0.self_attn.k_proj.weight", "F16", 2, 6},
    {"model.layers.0.self_attn.v_proj.weight", "F32", 2, 6},
    {"model.layers.0.self_attn.o_proj.weight", "BF16", 6, 6},
    {"model.layers.0.mlp.gate_proj.weight", "BF16", 5, 6},
    {"model.layers.0.mlp.up_proj.weight", "BF16", 5, 6},
    {"model.layers.0.mlp.down_proj.weight", "F16", 6, 5},
    {"model.layers.0.self_attn.q_proj.bias", "BF16", 6, 0},
    {"model.layers.0.self_attn.k_proj.bias", "F32", 2, 0},
    {"model.layers.0.self_attn.v_proj.bias", "F16", 2, 0},
    {"model.layers.0.self_attn.o_proj.bias", "BF16", 6, 0},
    {"model.layers.0.mlp.gate_proj.bias", "BF16", 5, 0},
    {"model.layers.0.mlp.up_proj.bias", "BF16", 5, 0},
    {"model.layers.0.mlp.down_proj.bias", "BF16", 6, 0},
};

static void put_config(u32 vocab, u32 hidden, bool tied)
{
    char text[600];
    snprintf(text, sizeof text,
             "{\"model_type\":\"llama\",\"hidden_size\":%u,\"num_hidden_layers\":1,\"num_attention_heads\":3,"
             "\"num_key_value_heads\":1,\"head_dim\":2,\"vocab_size\":%u,\"intermediate_size\":5,"
             "\"max_position_embeddings\":64,\"attention_bias\":true,\"mlp_bias\":true,\"tie_word_"
             "embeddings\":%s}",
             hidden, vocab, tied ? "true" : "false");
    put("config.json", text, strlen(text));
}

/* Writes the tensors except those called skip, with finite numbers that differ from one to the next. */
static void put_model(const struct made *m, size_t n, const char *skip)
{
    struct buf header = {0}, data = {0}, file = {0};
    for (size_t i = 0; i < n; i++) {
        size_t size = strcmp(m[i].dtype, "F32") ? strcmp(m[i].dtype, "F8_E4M3") ? 2 : 1 : 4, from = data.len;
        size_t count = (size_t)m[i].rows * (m[i].cols ? m[i].cols : 1);
        if (!strcmp(m[i].name, skip)) continue;
        for (size_t k = 0; k < count; k++) {
            u32 bits = 0x3c003c00u + ((u32)(k * 7919 + i * 31) & 0x00ff03ffu);
            buf_add(&data, &bits, size);
        }
        buf_printf(&header, "%c\"%s\":{\"dtype\":\"%s\",\"shape\":[%u", header.len ? ',' : '{', m[i].name,
                   m[i].dtype, m[i].rows);
        if (m[i].cols) buf_printf(&header, ",%u", m[i].cols);
        buf_printf(&header, "],\"data_offsets\":[%zu,%zu]}", from, data.len);
    }
    buf_char(&header, '}');
    u64 len = header.len;
    buf_add(&file, &len, sizeof len);
    buf_add(&file, header.data, header.len);
    buf_add(&file, data.data, data.len);
    put("model.safetensors", file.data, file.len);
    buf_release(&header);
    buf_release(&data);
    buf_release(&file);
}

static void test_mixed_types(void **state)
{
    (void)state;
    static struct loaded x;
    folder_empty();
    put_config(9, 6, false);
    put_model(SMALL, COUNT_OF(SMALL), "");
    load(folder, &x);
    assert_int_equal(x.weights.embed.dtype, DTYPE_F32);
    assert_int_equal(x.weights.head.dtype, DTYPE_BF16);
    assert_int_equal(x.weights.layer[0].qkv.dtype, DTYPE_F32);
    assert_int_equal(x.weights.layer[0].gate_up.dtype, DTYPE_BF16);
    check_all(&x);
    for (u32 o = 9; o < 16; o++) /* the padding rows */
        for (u32 k = 0; k < 6; k++) assert_true(packed_number(&x.weights.head, o, k) == 0);
    for (u32 o = 0; o < 16; o++) /* the padding input of down [6, 5] */
        assert_true(((const float *)x.weights.layer[0].down.data)[5 * 16 + o] == 0);
    unload(&x);
}

static void test_tied(void **state)
{
    (void)state;
    static struct loaded x;
    folder_empty();
    put_config(9, 6, true);
    put_model(SMALL, COUNT_OF(SMALL), "");
    load(folder, &x);
    check_all(&x);
    assert_int_equal(x.weights.head.dtype, DTYPE_F32); /* of the embedding's f16, not of lm_head */
    unload(&x);
}

/* Tensors larger than what is read at a time. */
static void test_large(void **state)
{
    (void)state;
    static struct loaded x;
    struct made m[COUNT_OF(SMALL)];
    memcpy(m, SMALL, sizeof SMALL);
    m[0].rows = m[1].rows = 1450007;
    m[0].dtype = "BF16";
    folder_empty();
    put_config(1450007, 6, false);
    put_model(m, COUNT_OF(m), "");
    load(folder, &x);
    check_all(&x);
    unload(&x);
}

static int plan(struct error *e)
{
    struct model_config c;
    size_t bytes;
    memset(e, 0, sizeof *e);
    assert_int_equal(model_read_config(folder, &c, e), 0);
    struct model_files *f = model_open(folder, e);
    if (!f) fail_msg("%s", e->message);
    const struct shard all = shard_whole(&c);
    int rc = weights_plan(&c, &all, f, NULL, &bytes, e);
    assert_int_equal(weights_plan(&c, &all, f, NULL, &bytes, NULL) < 0, rc < 0);
    model_close(f);
    return rc;
}

static void test_refused(void **state)
{
    (void)state;
    struct error e;
    for (size_t i = 0; i < COUNT_OF(SMALL); i++) {
        char part[256];
        struct made m[COUNT_OF(SMALL)];
        folder_empty();
        put_config(9, 6, false);
        put_model(SMALL, COUNT_OF(SMALL), SMALL[i].name);
        assert_true(plan(&e) < 0);
        snprintf(part, sizeof part, "tensor %s is missing", SMALL[i].name);
        expect_error(&e, part);

        memcpy(m, SMALL, sizeof m);
        m[i].rows++;
        put_model(m, COUNT_OF(m), "");
        assert_true(plan(&e) < 0);
        snprintf(part, sizeof part, "tensor %s has shape [%u", SMALL[i].name, m[i].rows);
        expect_error(&e, part);

        m[i].rows--;
        m[i].cols = m[i].cols ? 0 : 1; /* another number of dimensions */
        put_model(m, COUNT_OF(m), "");
        assert_true(plan(&e) < 0);
        expect_error(&e, "has shape [");

        m[i] = SMALL[i];
        m[i].dtype = "F8_E4M3";
        put_model(m, COUNT_OF(m), "");
        assert_int_equal(plan(&e), ERR_UNSUPPORTED);
        expect_error(&e, "is stored as F8_E4M3");
    }
}

static void test_unused(void **state)
{
    (void)state;
    struct made m[COUNT_OF(SMALL) + 3];
    struct model_config c;
    struct layout l;
    struct error e;
    const char *first = NULL;
    memcpy(m, SMALL, sizeof SMALL);
    m[COUNT_OF(SMALL)] = (struct made){"model.layers.0.self_attn.rotary_emb.inv_freq", "F32", 1, 0};
    m[COUNT_OF(SMALL) + 1] = (struct made){"model.layers.1.mlp.up_proj.weight", "F8_E4M3", 5, 6};
    m[COUNT_OF(SMALL) + 2] = (struct made){"vision.patch.weight", "BF16", 5, 6};
    for (int tied = 0; tied < 2; tied++) {
        folder_empty();
        put_config(9, 6, tied);
        put_model(m, COUNT_OF(m), "");
        assert_int_equal(model_read_config(folder, &c, &e), 0);
        struct model_files *f = model_open(folder, &e);
        assert_non_null(f);
        const struct shard all = shard_whole(&c);
        assert_int_equal(layout_build(&l, &c, &all, f, NULL, &e), 0);
        assert_int_equal(layout_unused(&l, &c, f, &first), 2);
        assert_string_equal(first, "model.layers.1.mlp.up_proj.weight");
        layout_release(&l);
        model_close(f);
    }
}

static void test_fill_fails(void **state)
{
    (void)state;
    struct model_config c;
    struct error e;
    size_t bytes;
    char path[PATH_LEN];
    folder_empty();
    put_config(9, 6, false);
    put_model(SMALL, COUNT_OF(SMALL), "");
    assert_int_equal(model_read_config(folder, &c, &e), 0);
    struct model_files *f = model_open(folder, &e);
    const struct shard all = shard_whole(&c);
    assert_int_equal(weights_plan(&c, &all, f, NULL, &bytes, &e), 0);
    void *image = aligned_alloc(64, bytes);
    assert_int_equal(weights_fill(&c, &all, f, NULL, image, bytes - 64, NULL, &e), ERR_INPUT);
    expect_error(&e, "are set aside");
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    assert_int_equal(truncate(path, 2200), 0);
    assert_int_equal(weights_fill(&c, &all, f, NULL, image, bytes, NULL, &e), ERR_IO);
    expect_error(&e, "model.safetensors");
    free(image);
    model_close(f);
}

/* ---- gptq: the group of each input */
static void copy_file(const char *from, const char *name)
{
    char path[PATH_LEN + 32];
    struct buf data = {0};
    struct error e;
    snprintf(path, sizeof path, "%s/%s", from, name);
    assert_int_equal(file_read(path, 1 << 24, &data, &e), 0);
    put(name, data.data, data.len);
    buf_release(&data);
}

/* Fills all of the weights, or those of the second of two engines. */
static int fill_folder(u32 tp, struct error *e)
{
    struct model_config c;
    struct shard part;
    size_t bytes;
    assert_int_equal(model_read_config(folder, &c, e), 0);
    assert_int_equal(shard_of(&part, &c, tp, 1, tp - 1, 0, e), 0);
    struct model_files *f = model_open(folder, e);
    if (!f) fail_msg("%s", e->message);
    int rc = weights_plan(&c, &part, f, NULL, &bytes, e);
    if (rc == 0) {
        void *image = aligned_alloc(64, bytes);
        rc = weights_fill(&c, &part, f, NULL, image, bytes, NULL, e);
        free(image);
    }
    model_close(f);
    return rc;
}

/* The group of an input of layer 1's down_proj, [128] in groups of 16, is written over. */
static void put_group(u32 input, i32 group)
{
    static const char name[] = "model.layers.1.mlp.down_proj.g_idx";
    char path[PATH_LEN];
    struct error e;
    struct model_files *f = model_open(folder, &e);
    if (!f) fail_msg("%s", e.message);
    const struct tensor *t = model_tensor(f, name);
    assert_true(t && t->dims[0] == 128);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, &group, sizeof group, (off_t)(t->offset + input * sizeof group)),
                     sizeof group);
    close(fd);
    model_close(f);
}

static void test_groups(void **state)
{
    static const struct {
        const char *from;
        u32 input;
        i32 group;
        const char *words; /* NULL: taken */
    } cases[] = {
        {"llama_gptq_act", 70, 7, NULL},
        {"llama_gptq_act", 70, 8, "model.layers.1.mlp.down_proj.g_idx: input 70 is in group 8; there are 8"},
        {"llama_gptq_act", 127, -1, "input 127 is in group -1; there are 8"},
        {"llama_gptq", 70, 4, NULL},
        {"llama_gptq", 70, 5, "input 70 is in group 5, not 4 as \"desc_act\" false in config.json says"},
        {"llama_gptq", 70, INT32_MIN, "input 70 is in group -2147483648; there are 8"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        for (u32 tp = 1; tp <= 2; tp++) {
            struct error e = {0};
            folder_empty();
            copy_file(data_dir(cases[i].from), "config.json");
            copy_file(data_dir(cases[i].from), "model.safetensors");
            put_group(cases[i].input, cases[i].group);
            int rc = fill_folder(tp, &e);
            if (rc == 0 && cases[i].words) fail_msg("taken: %s", cases[i].words);
            assert_int_equal(rc, cases[i].words ? ERR_INPUT : 0);
            if (rc) expect_error(&e, cases[i].words);
        }
}

static void test_groups_missing(void **state)
{
    struct error e = {0};
    char path[PATH_LEN + 32];
    struct buf text = {0};
    (void)state;
    folder_empty();
    copy_file(data_dir("llama_gptq_act"), "config.json");
    snprintf(path, sizeof path, "%s/model.safetensors", data_dir("llama_gptq_act"));
    assert_int_equal(file_read(path, 1 << 24, &text, &e), 0);
    char *name = memmem(text.data, text.len, "k_proj.g_idx", 12);
    assert_non_null(name);
    name[0] = 'x';
    put("model.safetensors", text.data, text.len);
    buf_release(&text);
    assert_int_equal(fill_folder(1, &e), ERR_INPUT);
    expect_error(&e, "self_attn.k_proj.g_idx is missing");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference_folders),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_mixed_types),
        cmocka_unit_test(test_tied),
        cmocka_unit_test(test_large),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_unused),
        cmocka_unit_test(test_fill_fails),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_groups_missing),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("weights", tests, folder_make, folder_drop);
}
