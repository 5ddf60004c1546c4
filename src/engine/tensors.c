#include "engine/tensors.h"

static struct slice whole(u32 n)
{
    return (struct slice){0, n, n};
}

static struct slice times(struct slice s, u32 n)
{
    return (struct slice){s.first * n, s.n * n, s.of * n};
}

struct slice dim_slice(const struct model_config *c, const struct shard *part, enum dim d)
{
    const struct slice slices[DIM_COUNT] = {
        [DIM_ONE] = whole(1),
        [DIM_HIDDEN] = whole(c->hidden),
        [DIM_Q] = times(part->heads, c->head_dim),
        [DIM_KV] = times(part->kv_heads, c->head_dim),
        [DIM_FFN] = part->ffn,
        [DIM_HEAD] = whole(c->head_dim),
        [DIM_HEADS] = part->heads,
        [DIM_VOCAB] = part->vocab,
        [DIM_Q_RANK] = whole(c->mla.q_rank),
        [DIM_KV_RANK] = whole(c->mla.kv_rank),
        [DIM_LATENT] = whole(c->mla.kv_rank + c->mla.rope),
        [DIM_VALUES] = times(part->heads, c->mla.value),
        [DIM_EXPERTS] = whole(c->moe.experts),
        [DIM_EXPERT_FFN] = part->expert_ffn,
        [DIM_SHARED_FFN] = part->shared_ffn,
        [DIM_POSITIONS] = whole(c->encoder.positions),
        [DIM_TYPES] = whole(c->encoder.types),
    };
    return slices[d];
}

/* ---- conditions */
static bool q_bias(const struct model_config *c, u32 layer)
{
    (void)layer;
    return c->q_bias;
}
static bool o_bias(const struct model_config *c, u32 layer)
{
    (void)layer;
    return c->o_bias;
}
static bool mlp_bias(const struct model_config *c, u32 layer)
{
    (void)layer;
    return c->mlp_bias;
}
static bool qk_head(const struct model_config *c, u32 layer)
{
    (void)layer;
    return c->qk_norm == QK_NORM_HEAD;
}
static bool qk_whole(const struct model_config *c, u32 layer)
{
    (void)layer;
    return c->qk_norm == QK_NORM_WHOLE;
}
static bool norms_before(const struct model_config *c, u32 layer)
{
    (void)layer;
    return c->arch->norms == NORMS_PRE || c->arch->norms == NORMS_AROUND;
}
static bool norms_behind(const struct model_config *c, u32 layer)
{
    (void)layer;
    return c->arch->norms == NORMS_POST || c->arch->norms == NORMS_AROUND;
}
static bool norms_around(const struct model_config *c, u32 layer)
{
    (void)layer;
    return c->arch->norms == NORMS_AROUND;
}
static bool norms_pre(const struct model_config *c, u32 layer)
{
    (void)layer;
    return c->arch->norms == NORMS_PRE;
}
static bool three(const struct model_config *c, u32 layer) /* q, k and v */
{
    (void)layer;
    return !c->arch->fused && !c->arch->mla && !c->arch->encoder;
}
static bool fused(const struct model_config *c, u32 layer)
{
    (void)layer;
    return c->arch->fused;
}
static bool mla(const struct model_config *c, u32 layer)
{
    (void)layer;
    return c->arch->mla;
}
static bool heads(const struct model_config *c, u32 layer) /* of a decoder, not latent */
{
    (void)layer;
    return !c->arch->mla && !c->arch->encoder;
}
static bool encoder(const struct model_config *c, u32 layer)
{
    (void)layer;
    return c->arch->encoder;
}
static bool mla_ranked(const struct model_config *c, u32 layer)
{
    (void)layer;
    return c->arch->mla && c->mla.q_rank;
}
static bool mla_plain(const struct model_config *c, u32 layer)
{
    (void)layer;
    return c->arch->mla && !c->mla.q_rank;
}
static bool sinks(const struct model_config *c, u32 layer)
{
    (void)layer;
    return c->arch->sinks;
}
static bool dense(const struct model_config *c, u32 layer)
{
    return !c->sparse[layer] && !c->arch->fused && !c->arch->encoder;
}
static bool dense_fused(const struct model_config *c, u32 layer)
{
    return !c->sparse[layer] && c->arch->fused;
}
static bool dense_any(const struct model_config *c, u32 layer)
{
    return !c->sparse[layer] && !c->arch->encoder;
}
static bool sparse(const struct model_config *c, u32 layer)
{
    return c->sparse[layer] && !c->moe.bias;
}
static bool sparse_biased(const struct model_config *c, u32 layer)
{
    return c->sparse[layer] && c->moe.bias;
}
static bool correction(const struct model_config *c, u32 layer)
{
    return c->sparse[layer] && c->moe.correction;
}
static bool shared(const struct model_config *c, u32 layer)
{
    return c->sparse[layer] && c->moe.shared_ffn && !c->moe.shared_gate;
}
static bool shared_gated(const struct model_config *c, u32 layer)
{
    return c->sparse[layer] && c->moe.shared_ffn && c->moe.shared_gate;
}

/* ---- tables */
#define LAYER(field) offsetof(struct layer_weights, field)

const struct tensor_linear TENSOR_LINEARS[] = {
    {.when = three,
     .biased = q_bias,
     .weight = LAYER(qkv),
     .bias = LAYER(qkv_bias),
     .cols = DIM_HIDDEN,
     .parts = {{"self_attn.q_proj", NULL, DIM_Q},
               {"self_attn.k_proj", NULL, DIM_KV},
               {"self_attn.v_proj", NULL, DIM_KV}}},
    {.when = fused,
     .weight = LAYER(qkv),
     .cols = DIM_HIDDEN,
     .fused = true,
     .parts = {{"self_attn.qkv_proj", NULL, DIM_Q},
               {"self_attn.qkv_proj", NULL, DIM_KV},
               {"self_attn.qkv_proj", NULL, DIM_KV}}},
    {.when = mla_ranked,
     .biased = q_bias,
     .weight = LAYER(qkv),
     .bias = LAYER(qkv_bias),
     .cols = DIM_HIDDEN,
     .parts = {{"self_attn.q_a_proj", NULL, DIM_Q_RANK}, {"self_attn.kv_a_proj_with_mqa", NULL, DIM_LATENT}}},
    {.when = mla_ranked,
     .weight = LAYER(q_b),
     .cols = DIM_Q_RANK,
     .parts = {{"self_attn.q_b_proj", NULL, DIM_Q}}},
    {.when = mla_plain,
     .weight = LAYER(qkv),
     .cols = DIM_HIDDEN,
     .parts = {{"self_attn.q_proj", NULL, DIM_Q}, {"self_attn.kv_a_proj_with_mqa", NULL, DIM_LATENT}}},
    {.when = heads,
     .biased = o_bias,
     .weight = LAYER(o),
     .bias = LAYER(o_bias),
     .cols = DIM_Q,
     .parts = {{"self_attn.o_proj", NULL, DIM_HIDDEN}}},
    {.when = mla,
     .biased = o_bias,
     .weight = LAYER(o),
     .bias = LAYER(o_bias),
     .cols = DIM_VALUES,
     .parts = {{"self_attn.o_proj", NULL, DIM_HIDDEN}}},
    {.when = dense,
     .biased = mlp_bias,
     .weight = LAYER(gate_up),
     .bias = LAYER(gate_up_bias),
     .cols = DIM_HIDDEN,
     .parts = {{"mlp.gate_proj", NULL, DIM_FFN}, {"mlp.up_proj", NULL, DIM_FFN}}},
    {.when = dense_fused,
     .weight = LAYER(gate_up),
     .cols = DIM_HIDDEN,
     .fused = true,
     .parts = {{"mlp.gate_up_proj", NULL, DIM_FFN}, {"mlp.gate_up_proj", NULL, DIM_FFN}}},
    {.when = dense_any,
     .biased = mlp_bias,
     .weight = LAYER(down),
     .bias = LAYER(down_bias),
     .cols = DIM_FFN,
     .parts = {{"mlp.down_proj", NULL, DIM_HIDDEN}}},
    {.when = sparse,
     .exact = true,
     .weight = LAYER(router),
     .cols = DIM_HIDDEN,
     .parts = {{"mlp.gate", "block_sparse_moe.gate", DIM_EXPERTS}}},
    {.when = sparse_biased,
     .biased = sparse_biased,
     .exact = true,
     .weight = LAYER(router),
     .bias = LAYER(router_bias),
     .cols = DIM_HIDDEN,
     .parts = {{"mlp.router", NULL, DIM_EXPERTS}}},
    {.when = shared,
     .weight = LAYER(gate_up),
     .cols = DIM_HIDDEN,
     .parts = {{"mlp.shared_experts.gate_proj", NULL, DIM_SHARED_FFN},
               {"mlp.shared_experts.up_proj", NULL, DIM_SHARED_FFN}}},
    {.when = shared,
     .weight = LAYER(down),
     .cols = DIM_SHARED_FFN,
     .parts = {{"mlp.shared_experts.down_proj", NULL, DIM_HIDDEN}}},
    {.when = shared_gated,
     .weight = LAYER(gate_up),
     .cols = DIM_HIDDEN,
     .parts = {{"mlp.shared_expert.gate_proj", NULL, DIM_SHARED_FFN},
               {"mlp.shared_expert.up_proj", NULL, DIM_SHARED_FFN}}},
    {.when = shared_gated,
     .weight = LAYER(down),
     .cols = DIM_SHARED_FFN,
     .parts = {{"mlp.shared_expert.down_proj", NULL, DIM_HIDDEN}}},
    {.when = shared_gated,
     .exact = true,
     .weight = LAYER(shared_gate),
     .cols = DIM_HIDDEN,
     .parts = {{"mlp.shared_expert_gate", NULL, DIM_ONE}}},
    {.when = encoder,
     .biased = encoder,
     .weight = LAYER(qkv),
     .bias = LAYER(qkv_bias),
     .cols = DIM_HIDDEN,
     .parts = {{"attention.self.query", NULL, DIM_Q},
               {"attention.self.key", NULL, DIM_KV},
               {"attention.self.value", NULL, DIM_KV}}},
    {.when = encoder,
     .biased = encoder,
     .weight = LAYER(o),
     .bias = LAYER(o_bias),
     .cols = DIM_Q,
     .parts = {{"attention.output.dense", NULL, DIM_HIDDEN}}},
    {.when = encoder,
     .biased = encoder,
     .weight = LAYER(gate_up),
     .bias = LAYER(gate_up_bias),
     .cols = DIM_HIDDEN,
     .parts = {{"intermediate.dense", NULL, DIM_FFN}}},
    {.when = encoder,
     .biased = encoder,
     .weight = LAYER(down),
     .bias = LAYER(down_bias),
     .cols = DIM_FFN,
     .parts = {{"output.dense", NULL, DIM_HIDDEN}}},
};
const size_t TENSOR_LINEARS_N = COUNT_OF(TENSOR_LINEARS);

const struct tensor_vector TENSOR_VECTORS[] = {
    {norms_before, LAYER(attn_norm), "input_layernorm.weight", DIM_HIDDEN, true},
    {norms_pre, LAYER(mlp_norm), "post_attention_layernorm.weight", DIM_HIDDEN, true},
    {norms_around, LAYER(mlp_norm), "pre_feedforward_layernorm.weight", DIM_HIDDEN, true},
    {norms_behind, LAYER(attn_post), "post_attention_layernorm.weight", DIM_HIDDEN, true},
    {norms_behind, LAYER(mlp_post), "post_feedforward_layernorm.weight", DIM_HIDDEN, true},
    {qk_head, LAYER(q_norm), "self_attn.q_norm.weight", DIM_HEAD, true},
    {qk_head, LAYER(k_norm), "self_attn.k_norm.weight", DIM_HEAD, true},
    {qk_whole, LAYER(q_norm), "self_attn.q_norm.weight", DIM_Q, true},
    {qk_whole, LAYER(k_norm), "self_attn.k_norm.weight", DIM_KV, true},
    {mla_ranked, LAYER(q_a_norm), "self_attn.q_a_layernorm.weight", DIM_Q_RANK, true},
    {mla, LAYER(latent_norm), "self_attn.kv_a_layernorm.weight", DIM_KV_RANK, true},
    {sinks, LAYER(sinks), "self_attn.sinks", DIM_HEADS, false},
    {correction, LAYER(correction), "mlp.gate.e_score_correction_bias", DIM_EXPERTS, false},
    {encoder, LAYER(attn_post), "attention.output.LayerNorm.weight", DIM_HIDDEN, true},
    {encoder, LAYER(attn_post_bias), "attention.output.LayerNorm.bias", DIM_HIDDEN, false},
    {encoder, LAYER(mlp_post), "output.LayerNorm.weight", DIM_HIDDEN, true},
    {encoder, LAYER(mlp_post_bias), "output.LayerNorm.bias", DIM_HIDDEN, false},
};
const size_t TENSOR_VECTORS_N = COUNT_OF(TENSOR_VECTORS);
