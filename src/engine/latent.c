/* Multi-head latent attention, absorbed: q is taken to the latent's side, so that all heads share one key and value a token, which
 * are the latent itself. Prompts and single tokens are computed alike. */
#include "engine/forward_inner.h"

static const float inner_eps = 1e-6f; /* of both inner norms, whatever the model's is */

/* Each head of x, step apart, through its weight of a bank. */
struct heads {
    const struct packed *bank;
    const float *x;
    float *y;
    size_t ld_x, ld_y, x_step, y_step;
};
static void run_heads(struct forward *f, const struct heads *h, struct share s)
{
    f->spec.ops->heads(&(struct heads_args){.w = *h->bank,
                                            .stride = forward_stride(f, h->bank),
                                            .x = h->x,
                                            .y = h->y,
                                            .heads = f->part.heads.n,
                                            .rows = f->rows,
                                            .ld_x = h->ld_x,
                                            .ld_y = h->ld_y,
                                            .x_step = h->x_step,
                                            .y_step = h->y_step},
                       s);
    forward_wait(f, s);
}

/* q [rows, heads, head_dim] from the first columns of the first product. */
static void run_q(struct forward *f, const struct layer_weights *w, struct share s)
{
    const struct model_config *c = f->spec.config;
    enum dtype dtype = forward_act(f, &w->q_b);
    f->spec.ops->norm(&(struct norm_args){.x = f->wide,
                                          .w = w->q_a_norm,
                                          .eps = inner_eps,
                                          .y = f->act,
                                          .y_dtype = dtype,
                                          .rows = f->rows,
                                          .n = c->mla.q_rank,
                                          .ld_x = w->qkv.n_out,
                                          .ld_y = f->act_ld},
                      s);
    forward_wait(f, s);
    const struct rows_in in = {f->act, dtype, f->act_ld};
    const struct rows_out out = {f->mla.q, w->q_b.n_out, f->rows, false};
    forward_linear(f, &w->q_b, NULL, in, out, s);
    forward_adapt(f, w, ADAPTED_Q_B, in, out, s);
}

int forward_latent(struct forward *f, u32 layer, const struct layer_weights *w, struct share s)
{
    const struct model_config *c = f->spec.config;
    const struct mla_config *m = &c->mla;
    u32 heads = f->part.heads.n, d = m->kv_rank + m->rope, here = layer - f->part.layers.first;
    float *q = m->q_rank ? f->mla.q : f->wide;
    size_t ld_q = m->q_rank ? w->q_b.n_out : w->qkv.n_out;
    forward_prepare(f, s);
    struct rows_in in = forward_norm(f, w->attn_norm, forward_act(f, &w->qkv), s);
    const struct rows_out out = {f->wide, w->qkv.n_out, f->rows, false};
    forward_linear(f, &w->qkv, w->qkv_bias, in, out, s);
    forward_adapt(f, w, ADAPTED_QKV, in, out, s);
    if (m->q_rank) run_q(f, w, s);
    f->spec.ops->latent(&(struct latent_args){.q = q,
                                              .absorbed = f->mla.absorbed,
                                              .latent = f->wide + w->qkv.n_out - d,
                                              .norm = w->latent_norm,
                                              .angles = f->angles[0],
                                              .eps = inner_eps,
                                              .scale = c->score_scale,
                                              .interleaved = c->rope.interleaved,
                                              .kv = &f->kv,
                                              .places = f->seen.places,
                                              .layer = here,
                                              .heads = heads,
                                              .rows = f->rows,
                                              .nope = m->nope,
                                              .rope = m->rope,
                                              .rank = m->kv_rank,
                                              .ld_q = ld_q,
                                              .ld_absorbed = heads * d,
                                              .ld_latent = w->qkv.n_out},
                        s);
    forward_wait(f, s);
    run_heads(f, &(struct heads){&w->absorb, q, f->mla.absorbed, ld_q, heads * d, c->head_dim, d}, s);
    f->spec.ops->attn(&(struct attn_args){.q = f->mla.absorbed,
                                          .out = f->mla.sums,
                                          .out_dtype = DTYPE_F32,
                                          .kv = &f->kv,
                                          .spans = f->seen.spans,
                                          .n_spans = f->n_spans,
                                          .layer = here,
                                          .heads = heads,
                                          .n_single = f->n_single,
                                          .longest = f->longest,
                                          .ld_q = heads * d,
                                          .ld_out = heads * m->kv_rank,
                                          .ticket = forward_ticket(f, layer, TICKET_ATTENTION)},
                      s);
    forward_wait(f, s);
    size_t values = heads * m->value, sums = heads * m->kv_rank;
    run_heads(f, &(struct heads){&w->expand, f->mla.sums, f->mla.values, sums, values, m->kv_rank, m->value},
              s);
    return forward_out(f, w, (struct product_out){&w->o, w->o_bias, {w->attn_post, NULL}, ADAPTED_O},
                       (struct rows_in){f->mla.values, DTYPE_F32, values}, s);
}
