/* One number for "the same model": what two ranks must agree on before they serve together. */
#include "mpiserve/model.h"
#include <stdlib.h>
#include <string.h>

static void add_config(struct buf *b, const struct model_config *c)
{
    buf_printf(b, "%s %u %u %u %u %u %u %u %u %a %d%d%d%d%d\n", c->arch->model_type, c->vocab, c->hidden,
               c->layers, c->heads, c->kv_heads, c->head_dim, c->ffn, c->max_position, (double)c->eps,
               c->tied, c->q_bias, c->o_bias, c->mlp_bias, c->qk_norm);
    buf_printf(b, "rope %d %a %a %a %a %u\nwindow", (int)c->rope.kind, c->rope.theta, c->rope.factor,
               c->rope.low_freq_factor, c->rope.high_freq_factor, c->rope.original_max_position);
    for (u32 i = 0; i < c->layers; i++) buf_printf(b, " %u", c->window[i]);
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

u64 model_fingerprint(const struct model_config *c, const struct model_files *f)
{
    struct buf b = {0};
    u64 tensors = 0; /* a sum: the same tensors in other files or another order are the same model */
    for (size_t i = 0; i < model_tensor_count(f); i++) {
        buf_clear(&b);
        add_tensor(&b, model_tensor_name(f, i), model_tensor_at(f, i));
        tensors += hash_bytes(b.data, b.len, 1) + sample(f, i);
    }
    buf_clear(&b);
    add_config(&b, c);
    u64 h = hash_bytes(b.data, b.len, tensors);
    buf_release(&b);
    return h;
}
