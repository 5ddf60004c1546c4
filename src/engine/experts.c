/* A layer of experts: tokens are sorted by expert, so that each expert's rows are one product; a token's results are added in the order
 * of its choices, whatever the batch. Tensor parallel: every engine has columns of every expert, and chooses alike. */
#include "engine/forward_inner.h"

/* The format of the layer's input: several weights take it. */
static enum dtype input_dtype(const struct forward *f, const struct layer_weights *w)
{
    if (f->spec.device) return w->router.dtype; /* of all weights there */
    bool half = forward_act(f, &w->router) == DTYPE_BF16 &&
                forward_act(f, &w->expert_gate_up) == DTYPE_BF16 &&
                (!w->gate_up.data || w->gate_up.dtype == DTYPE_BF16) &&
                (!w->shared_gate.data || w->shared_gate.dtype == DTYPE_BF16);
    return half ? DTYPE_BF16 : DTYPE_F32;
}

static void choose(struct forward *f, const struct layer_weights *w, struct rows_in in, struct share s)
{
    const struct model_config *c = f->spec.config;
    u32 pairs = f->rows * c->moe.per_token;
    forward_linear(f, &w->router, w->router_bias, in,
                   (struct rows_out){f->moe.logits, c->moe.experts, f->rows, false}, s);
    f->spec.ops->route(&(struct route_args){.moe = &c->moe,
                                            .logits = f->moe.logits,
                                            .correction = w->correction,
                                            .ids = f->moe.ids,
                                            .weights = f->moe.weights,
                                            .rows = f->rows,
                                            .ld = c->moe.experts},
                       s);
    forward_wait(f, s);
    f->spec.ops->group(&(struct group_args){.ids = f->moe.ids,
                                            .start = f->moe.start,
                                            .order = f->moe.order,
                                            .place = f->moe.place,
                                            .pairs = pairs,
                                            .experts = c->moe.experts},
                       s);
    forward_wait(f, s);
    f->spec.ops->gather(&(struct gather_args){.x = in.x,
                                              .y = f->moe.sorted,
                                              .dtype = in.dtype,
                                              .order = f->moe.order,
                                              .pairs = pairs,
                                              .per_token = c->moe.per_token,
                                              .n = c->hidden,
                                              .ld_x = in.ld,
                                              .ld_y = f->act_ld},
                        s);
    forward_wait(f, s);
}

/* The expert that every token goes to; f->act is used up. */
static void shared(struct forward *f, const struct layer_weights *w, struct rows_in in, struct share s)
{
    u32 hidden = f->spec.config->hidden;
    enum dtype dtype = forward_act(f, &w->down);
    if (w->shared_gate.data)
        forward_linear(f, &w->shared_gate, NULL, in, (struct rows_out){f->moe.shared_gate, 1, f->rows, false},
                       s);
    forward_linear(f, &w->gate_up, NULL, in, (struct rows_out){f->wide, w->gate_up.n_out, f->rows, false}, s);
    forward_glu(f, f->wide, w->gate_up.n_out, f->act, dtype, f->act_ld, f->rows, w->down.n_in, s);
    forward_linear(f, &w->down, NULL, (struct rows_in){f->act, dtype, f->act_ld},
                   (struct rows_out){f->moe.shared, hidden, f->rows, false}, s);
}

static void products(struct forward *f, const struct packed *w, const float *bias, struct rows_in in,
                     float *y, _Atomic u32 *ticket, struct share s)
{
    f->spec.ops->experts(&(struct experts_args){.w = *w,
                                                .stride = forward_stride(f, w),
                                                .bias = bias,
                                                .bias_stride = forward_vector_stride(f, w->n_out),
                                                .x = in.x,
                                                .x_dtype = in.dtype,
                                                .start = f->moe.start,
                                                .experts = f->spec.config->moe.experts,
                                                .pairs = f->rows * f->spec.config->moe.per_token,
                                                .ld_x = in.ld,
                                                .ld_y = w->n_out,
                                                .y = y,
                                                .ticket = ticket},
                         s);
    forward_wait(f, s);
}

static int combine(struct forward *f, const struct layer_weights *w, struct share s)
{
    const struct model_config *c = f->spec.config;
    bool alone = !parallel_tensor(&f->parallel);
    f->spec.ops->combine(
        &(struct combine_args){.x = f->moe.out,
                               .weights = f->moe.weights,
                               .place = f->moe.place,
                               .shared = w->gate_up.data ? f->moe.shared : NULL,
                               .shared_gate = w->shared_gate.data ? f->moe.shared_gate : NULL,
                               .y = alone ? f->x : f->partial_to,
                               .rows = f->rows,
                               .per_token = c->moe.per_token,
                               .n = c->hidden,
                               .ld_x = c->hidden,
                               .ld_shared = c->hidden,
                               .ld_y = c->hidden,
                               .add = alone},
        s);
    forward_wait(f, s);
    return alone ? 0 : forward_sum(f, s);
}

int forward_experts(struct forward *f, u32 layer, const struct layer_weights *w, struct share s)
{
    const struct model_config *c = f->spec.config;
    enum dtype dtype = input_dtype(f, w), inner = forward_act(f, &w->expert_down);
    u32 pairs = f->rows * c->moe.per_token;
    forward_prepare(f, s);
    struct rows_in in = forward_norm(f, w->mlp_norm, dtype, s);
    choose(f, w, in, s);
    if (w->gate_up.data) shared(f, w, in, s);
    products(f, &w->expert_gate_up, w->expert_gate_up_bias, (struct rows_in){f->moe.sorted, dtype, f->act_ld},
             f->moe.wide, forward_ticket(f, layer, TICKET_GATE_UP), s);
    forward_glu(f, f->moe.wide, w->expert_gate_up.n_out, f->moe.act, inner, f->moe.ffn_ld, pairs,
                w->expert_down.n_in, s);
    products(f, &w->expert_down, f->part.tp_rank ? NULL : w->expert_down_bias,
             (struct rows_in){f->moe.act, inner, f->moe.ffn_ld}, f->moe.out,
             forward_ticket(f, layer, TICKET_DOWN), s);
    return combine(f, w, s);
}
