/* Products around the residual stream; attention with heads, and the dense MLP. */
#include "engine/forward_inner.h"

void forward_linear(struct forward *f, const struct packed *w, const float *bias, struct rows_in in,
                    struct rows_out out, struct share s)
{
    f->spec.ops->linear(&(struct linear_args){.w = w,
                                              .bias = bias,
                                              .x = in.x,
                                              .x_dtype = in.dtype,
                                              .rows = out.rows,
                                              .ld_x = in.ld,
                                              .ld_y = out.ld,
                                              .y = out.y,
                                              .add = out.add},
                        s);
    forward_wait(f, s);
}

struct rows_in forward_norm(struct forward *f, const float *weight, enum dtype dtype, struct share s)
{
    const struct model_config *c = f->spec.config;
    if (!weight) return (struct rows_in){f->x, DTYPE_F32, c->hidden};
    f->spec.ops->norm(&(struct norm_args){.x = f->x,
                                          .w = weight,
                                          .eps = c->eps,
                                          .y = f->act,
                                          .y_dtype = dtype,
                                          .rows = f->rows,
                                          .n = c->hidden,
                                          .ld_x = c->hidden,
                                          .ld_y = f->act_ld},
                      s);
    forward_wait(f, s);
    return (struct rows_in){f->act, dtype, f->act_ld};
}

void forward_glu(struct forward *f, const float *x, size_t ld_x, void *y, enum dtype dtype, size_t ld_y,
                 u32 rows, u32 n, struct share s)
{
    const struct model_config *c = f->spec.config;
    f->spec.ops->glu(&(struct glu_args){.x = x,
                                        .y = y,
                                        .y_dtype = dtype,
                                        .rows = rows,
                                        .n = n,
                                        .ld_x = ld_x,
                                        .ld_y = ld_y,
                                        .act = c->arch->act,
                                        .limit = c->act_limit,
                                        .alpha = c->act_alpha},
                     s);
    forward_wait(f, s);
}

/* ---- back to the stream */
void forward_prepare(struct forward *f, struct share s)
{
    if (s.i == 0 && parallel_tensor(&f->parallel))
        f->partial_to = parallel_partial(&f->parallel, (size_t)f->rows * f->spec.config->hidden, f->partial);
}

int forward_sum(struct forward *f, struct share s)
{
    return parallel_sum(&f->parallel, f->partial_to, f->x, (size_t)f->rows * f->spec.config->hidden, true, s);
}

static void add_normed(struct forward *f, const float *weight, struct share s)
{
    const struct model_config *c = f->spec.config;
    f->spec.ops->norm(&(struct norm_args){.x = f->branch,
                                          .w = weight,
                                          .eps = c->eps,
                                          .y = f->x,
                                          .y_dtype = DTYPE_F32,
                                          .rows = f->rows,
                                          .n = c->hidden,
                                          .ld_x = c->hidden,
                                          .ld_y = c->hidden,
                                          .add = true},
                      s);
    forward_wait(f, s);
}

void forward_centre(struct forward *f, struct behind norm, struct share s)
{
    u32 hidden = f->spec.config->hidden;
    f->spec.ops->norm(&(struct norm_args){.x = f->x,
                                          .w = norm.norm,
                                          .bias = norm.bias,
                                          .eps = f->spec.config->eps,
                                          .y = f->x,
                                          .y_dtype = DTYPE_F32,
                                          .rows = f->rows,
                                          .n = hidden,
                                          .ld_x = hidden,
                                          .ld_y = hidden},
                      s);
    forward_wait(f, s);
}

int forward_out(struct forward *f, const struct layer_weights *layer, struct product_out p, struct rows_in in,
                struct share s)
{
    u32 hidden = f->spec.config->hidden;
    bool alone = !parallel_tensor(&f->parallel);
    bool sum = f->spec.config->arch->norms == NORMS_SUM, apart = p.behind.norm && !sum;
    struct rows_out out = {alone ? apart ? f->branch : f->x : f->partial_to, hidden, f->rows,
                           alone && !apart};
    int rc = 0;
    forward_linear(f, p.w, f->part.tp_rank ? NULL : p.bias, in, out, s);
    forward_adapt(f, layer, p.adapted, in, out, s);
    if (!alone)
        rc = apart ? parallel_sum(&f->parallel, f->partial_to, f->branch, (size_t)f->rows * hidden, false, s)
                   : forward_sum(f, s);
    if (apart && !rc) add_normed(f, p.behind.norm, s);
    if (sum && !rc) forward_centre(f, p.behind, s);
    return rc;
}

/* ---- attention */
/* One norm over all heads of q, and one over all of k. */
static void norm_whole(struct forward *f, const struct layer_weights *w, struct share s)
{
    const struct model_config *c = f->spec.config;
    u32 q = f->part.heads.n * c->head_dim, k = f->part.kv_heads.n * c->head_dim;
    struct norm_args a = {.x = f->wide,
                          .w = w->q_norm,
                          .eps = c->eps,
                          .y = f->wide,
                          .y_dtype = DTYPE_F32,
                          .rows = f->rows,
                          .n = q,
                          .ld_x = w->qkv.n_out,
                          .ld_y = w->qkv.n_out};
    f->spec.ops->norm(&a, s);
    a.x = a.y = f->wide + q;
    a.w = w->k_norm;
    a.n = k;
    f->spec.ops->norm(&a, s);
    forward_wait(f, s);
}

static void rotate(struct forward *f, u32 layer, const struct layer_weights *w, struct share s)
{
    const struct model_config *c = f->spec.config;
    bool heads = c->qk_norm == QK_NORM_HEAD, local = c->arch->two_ropes && c->window[layer];
    f->spec.ops->rope(&(struct rope_args){.qkv = f->wide,
                                          .angles = c->arch->encoder ? NULL : f->angles[local],
                                          .rotary = f->rotary[local].config->dims,
                                          .q_norm = heads ? w->q_norm : NULL,
                                          .k_norm = heads ? w->k_norm : NULL,
                                          .eps = c->eps,
                                          .scale = c->score_scale,
                                          .kv = &f->kv,
                                          .places = f->seen.places,
                                          .layer = layer - f->part.layers.first,
                                          .heads = f->part.heads.n,
                                          .rows = f->rows,
                                          .ld = w->qkv.n_out},
                      s);
    forward_wait(f, s);
}

int forward_attention(struct forward *f, u32 layer, const struct layer_weights *w, struct share s)
{
    const struct model_config *c = f->spec.config;
    forward_prepare(f, s);
    struct rows_in in = forward_norm(f, w->attn_norm, forward_act(f, &w->qkv), s);
    const struct rows_out out = {f->wide, w->qkv.n_out, f->rows, false};
    forward_linear(f, &w->qkv, w->qkv_bias, in, out, s);
    forward_adapt(f, w, ADAPTED_QKV, in, out, s);
    if (c->qk_norm == QK_NORM_WHOLE) norm_whole(f, w, s);
    rotate(f, layer, w, s);
    enum dtype dtype = forward_act(f, &w->o);
    f->spec.ops->attn(&(struct attn_args){.q = f->wide,
                                          .out = f->act,
                                          .out_dtype = dtype,
                                          .kv = &f->kv,
                                          .spans = f->seen.spans,
                                          .n_spans = f->n_spans,
                                          .layer = layer - f->part.layers.first,
                                          .heads = f->part.heads.n,
                                          .window = c->window[layer],
                                          .n_single = f->n_single,
                                          .longest = f->longest,
                                          .ld_q = w->qkv.n_out,
                                          .ld_out = f->act_ld,
                                          .soft_cap = c->score_cap,
                                          .sinks = w->sinks,
                                          .ticket = forward_ticket(f, layer, TICKET_ATTENTION)},
                      s);
    forward_wait(f, s);
    return forward_out(f, w,
                       (struct product_out){&w->o, w->o_bias, {w->attn_post, w->attn_post_bias}, ADAPTED_O},
                       (struct rows_in){f->act, dtype, f->act_ld}, s);
}

/* ---- the MLP */
int forward_mlp(struct forward *f, const struct layer_weights *w, struct share s)
{
    forward_prepare(f, s);
    struct rows_in in = forward_norm(f, w->mlp_norm, forward_act(f, &w->gate_up), s);
    const struct rows_out out = {f->wide, w->gate_up.n_out, f->rows, false};
    forward_linear(f, &w->gate_up, w->gate_up_bias, in, out, s);
    forward_adapt(f, w, ADAPTED_GATE_UP, in, out, s);
    enum dtype dtype = forward_act(f, &w->down);
    forward_glu(f, f->wide, w->gate_up.n_out, f->act, dtype, f->act_ld, f->rows, w->down.n_in, s);
    return forward_out(
        f, w, (struct product_out){&w->down, w->down_bias, {w->mlp_post, w->mlp_post_bias}, ADAPTED_DOWN},
        (struct rows_in){f->act, dtype, f->act_ld}, s);
}
