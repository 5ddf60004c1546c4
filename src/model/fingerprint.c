/* One number for "the same model": what two ranks must agree on before they serve together. */
#include "mpiserve/model.h"
#include <stdlib.h>
#include <string.h>

static void add_rope(struct buf *b, const struct rope_config *r)
{
    buf_printf(b, "rope %d %u %d %a %a %a %a %a %a %d %a %u\n", (int)r->kind, r->dims, r->interleaved,
               r->theta, r->factor, r->low_freq_factor, r->high_freq_factor, r->beta_fast, r->beta_slow,
               r->truncate, r->attention, r->original_max_position);
    for (u32 i = 0; r->kind == ROPE_LONGROPE && i < r->dims / 2; i++)
        buf_printf(b, " %a %a", (double)r->short_factor[i], (double)r->long_factor[i]);
}

static void add_experts(struct buf *b, const struct model_config *c)
{
    const struct moe_config *m = &c->moe;
    buf_printf(b, "moe %u %u %u %u %u %u %d%d%d%d%d %a %d\n", m->experts, m->per_token, m->ffn, m->shared_ffn,
               m->groups, m->top_groups, m->pair_groups, m->correction, m->renormalise, m->shared_gate,
               m->bias, (double)m->scale, (int)m->score);
    buf_printf(b, "mla %u %u %u %u %u\n", c->mla.q_rank, c->mla.kv_rank, c->mla.nope, c->mla.rope,
               c->mla.value);
}

static void add_config(struct buf *b, const struct model_config *c)
{
    buf_printf(b, "%s %u %u %u %u %u %u %u %u %a %d%d%d%d%d\n", c->arch->model_type, c->vocab, c->hidden,
               c->layers, c->heads, c->kv_heads, c->head_dim, c->ffn, c->max_position, (double)c->eps,
               c->tied, c->q_bias, c->o_bias, c->mlp_bias, (int)c->qk_norm);
    buf_printf(b, "%a %a %a %a %a %a\n", (double)c->score_scale, (double)c->score_cap, (double)c->logit_cap,
               (double)c->embed_scale, (double)c->act_limit, (double)c->act_alpha);
    add_rope(b, &c->rope);
    if (c->arch->two_ropes) add_rope(b, &c->rope_local);
    add_experts(b, c);
    buf_printf(b, "quant %d %u %d %u %d %d %d\nwindow", (int)c->quant.method, c->quant.block, c->quant.v2,
               c->quant.bits, c->quant.scattered, (int)c->load.weights, c->load.dummy);
    for (u32 i = 0; i < c->layers; i++) buf_printf(b, " %u%s", c->window[i], c->sparse[i] ? "s" : "");
    buf_printf(b, "\npooling %d %d%d%d%d %s", (int)c->pooling.kind, c->pooling.normalize,
               c->pooling.lowercase, c->pooling.scores, c->pooling.sigmoid, c->pooling.prompt);
    if (c->arch->encoder)
        buf_printf(b, "\nencoder %u %u %u", c->encoder.positions, c->encoder.first, c->encoder.types);
    buf_printf(b, "\nbos %d eos", c->bos);
    for (u32 i = 0; i < c->n_eos; i++) buf_printf(b, " %d", c->eos[i]);
    buf_printf(b, "\n%d %a %d %a %d %a %d %d\n", c->has_temperature, (double)c->temperature, c->has_top_p,
               (double)c->top_p, c->has_repetition_penalty, (double)c->repetition_penalty, c->has_top_k,
               c->top_k);
}

static void add_tensor(struct buf *b, const char *name, const struct tensor *t)
{
    buf_printf(b, "%s %s", name, t->stored);
    for (u32 i = 0; i < MIN_OF(t->n_dims, (u32)COUNT_OF(t->dims)); i++)
        buf_printf(b, " %llu", (unsigned long long)t->dims[i]);
    buf_printf(b, " %llu\n", (unsigned long long)t->bytes);
}

/* Other weights of the same shape are another model. A few bytes of some tensors tell, where reading all would take minutes;
 * which ones depends on names alone. A file that cannot be read shows when it is loaded. */
static u64 sample(const struct model_files *f, size_t i)
{
    enum { SAMPLES = 64, SAMPLE_BYTES = 64 };
    const struct tensor *t = model_tensor_at(f, i);
    const char *name = model_tensor_name(f, i);
    u64 h = hash_bytes(name, strlen(name), 2), len = MIN_OF(t->bytes, (u64)SAMPLE_BYTES);
    u8 bytes[SAMPLE_BYTES] = {0};
    if (h % (1 + model_tensor_count(f) / SAMPLES)) return 0;
    if (model_read(f, t, (t->bytes - len) / 2, bytes, len, NULL)) return 0;
    return hash_bytes(bytes, sizeof bytes, h);
}

/* A sum: the same tensors in other files or another order are the same model. */
static u64 tensors_of(const struct model_files *f)
{
    struct buf b = {0};
    u64 sum = 0;
    for (size_t i = 0; i < model_tensor_count(f); i++) {
        buf_clear(&b);
        add_tensor(&b, model_tensor_name(f, i), model_tensor_at(f, i));
        sum += hash_bytes(b.data, b.len, 1) + sample(f, i);
    }
    buf_release(&b);
    return sum;
}

/* Their order counts: requests name them by number. */
static u64 with_adapters(const struct adapters *list, u64 h)
{
    for (u32 i = 0; list && i < list->n; i++) {
        const struct adapter *a = &list->list[i];
        const u64 parts[] = {a->config_hash, tensors_of(a->files)};
        h = hash_bytes(a->name, strlen(a->name), h);
        h = hash_bytes(parts, sizeof parts, h);
    }
    return h;
}

u64 model_fingerprint(const struct model_config *c, const struct model_files *f)
{
    struct buf b = {0};
    add_config(&b, c);
    u64 h = hash_bytes(b.data, b.len, tensors_of(f));
    buf_release(&b);
    return with_adapters(c->load.adapters, h);
}
