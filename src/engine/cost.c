#include "engine/cost.h"

#include <math.h>

/* A weight's share of the cost: `met` products of it a step, read `read` times. */
static void add_weight(const struct cost_ask *a, struct engine_cost *sum, const struct packed *w, double met,
                       double read)
{
    if (!w->n_out) return;
    double numbers = (double)w->n_out * w->n_in;
    sum->flops += 2 * numbers * met;
    sum->bytes += read * (a->device ? numbers * (double)dtype_bytes(w->dtype) : (double)packed_size(w));
}

/* Experts that so many tokens meet on average, each of which chooses k of n evenly. */
static double experts_met(double tokens, double k, double n)
{
    return n * (1 - pow(1 - k / n, tokens));
}

static void add_layer(const struct cost_ask *a, struct engine_cost *sum, u32 layer)
{
    const struct model_config *c = a->config;
    const struct layer_weights *w = &a->weights->layer[layer];
    double tokens = (double)a->seqs * a->n_tok, heads = a->shard->heads.n;
    const struct packed *whole[] = {&w->qkv, &w->o,      &w->gate_up,    &w->down,
                                    &w->q_b, &w->router, &w->shared_gate};
    for (size_t i = 0; i < COUNT_OF(whole); i++) add_weight(a, sum, whole[i], tokens, 1);
    add_weight(a, sum, &w->absorb, tokens * heads, heads);
    add_weight(a, sum, &w->expand, tokens * heads, heads);
    double met = experts_met(tokens, c->moe.per_token, MAX_OF(c->moe.experts, 1u));
    add_weight(a, sum, &w->expert_gate_up, tokens * c->moe.per_token, met);
    add_weight(a, sum, &w->expert_down, tokens * c->moe.per_token, met);
    u32 window = c->window[layer], first = window && a->pos + 1 > window ? a->pos + 1 - window : 0;
    double seen = 0, d = c->arch->mla ? c->mla.kv_rank + c->mla.rope : c->head_dim,
           dv = c->arch->mla ? c->mla.kv_rank : c->head_dim;
    for (u32 i = 0; i < a->n_tok; i++) {
        u32 all = a->pos + i + 1;
        seen += window ? MIN_OF(all, window) : all;
    }
    sum->flops += a->seqs * seen * heads * 2 * (d + dv);
    sum->bytes += a->seqs * (double)(a->pos + a->n_tok - first) * (double)a->kv_token;
}

struct engine_cost cost_of(const struct cost_ask *a)
{
    struct engine_cost sum = {0};
    const struct slice *layers = &a->shard->layers;
    for (u32 layer = layers->first; layer < layers->first + layers->n; layer++) add_layer(a, &sum, layer);
    if (a->logits) add_weight(a, &sum, &a->weights->head, a->seqs, 1);
    return sum;
}
