/* Experts, their routing, and the sizes of latent attention. */
#include "model/config.h"
#include <math.h>
#include <string.h>

enum { MAX_EXPERTS = 1024 };

/* What a family does that no key says, and what is assumed of absent keys. */
static const struct family {
    enum moe_score score;
    bool renormalise, renormalise_default; /* always; if the key is absent */
    bool correction, pair_groups, bias;
    const char *count[2]; /* keys of the number of experts */
    const char *size;     /* key of an expert's size */
    double scale_default; /* routed_scaling_factor */
    i64 first_default;    /* first_k_dense_replace */
    i64 groups_default[2], shared_default;
    const char *scoring, *method[2]; /* scoring_func, topk_method: what is offered */
} FAMILIES[] = {
    [MOE_MIXTRAL] = {.renormalise = true, .count = {"num_local_experts"}, .size = "intermediate_size"},
    [MOE_QWEN2] = {.count = {"num_experts", "num_local_experts"}, .size = "moe_intermediate_size"},
    [MOE_QWEN3] = {.count = {"num_experts", "num_local_experts"}, .size = "moe_intermediate_size"},
    [MOE_DEEPSEEK2] = {.count = {"n_routed_experts"},
                       .size = "moe_intermediate_size",
                       .scale_default = 1,
                       .groups_default = {1, 1},
                       .shared_default = 2,
                       .scoring = "softmax",
                       .method = {"greedy", "group_limited_greedy"}},
    [MOE_DEEPSEEK3] = {.score = SCORE_SIGMOID,
                       .renormalise_default = true,
                       .correction = true,
                       .pair_groups = true,
                       .count = {"n_routed_experts"},
                       .size = "moe_intermediate_size",
                       .scale_default = 2.5,
                       .first_default = 3,
                       .groups_default = {8, 4},
                       .shared_default = 1,
                       .scoring = "sigmoid",
                       .method = {"noaux_tc", "noaux_tc"}},
    [MOE_GPT_OSS] = {.score = SCORE_CHOSEN,
                     .bias = true,
                     .count = {"num_local_experts"},
                     .size = "intermediate_size"},
};

/* A key whose value must be one of two words; answers which. */
static int word(struct fields *f, const char *key, const char *const offered[2])
{
    char name[SHOWN_LEN];
    const char *value = fields_text(f, key, offered[0]);
    if (!strcmp(value, offered[0])) return 0;
    if (!strcmp(value, offered[1])) return 1;
    bool two = strcmp(offered[0], offered[1]) != 0;
    fields_fail(f, ERR_UNSUPPORTED, "\"%s\" %s is not offered; offered: %s%s%s", key, shown(value, name),
                offered[0], two ? ", " : "", two ? offered[1] : "");
    return 0;
}

static void read_deepseek(struct fields *f, const struct family *k, struct moe_config *m)
{
    word(f, "scoring_func", (const char *const[2]){k->scoring, k->scoring});
    bool limited = word(f, "topk_method", k->method) || k->correction;
    m->groups = (u32)fields_int(f, "n_group", 1, m->experts, k->groups_default[0]);
    m->top_groups =
        (u32)fields_int(f, "topk_group", 1, m->groups, MIN_OF((i64)m->groups, k->groups_default[1]));
    if (!limited) m->groups = m->top_groups = 1;
    m->pair_groups = k->pair_groups;
    m->scale = (float)fields_real(f, "routed_scaling_factor", 1e-6, 1e6, k->scale_default);
    m->shared_ffn = m->ffn * (u32)fields_int(f, "n_shared_experts", 0, 64, k->shared_default);
    if (m->experts % m->groups)
        fields_fail(f, ERR_INPUT, "\"n_routed_experts\" (%u) is not a multiple of \"n_group\" (%u)",
                    m->experts, m->groups);
    else if (m->per_token > m->experts / m->groups * m->top_groups)
        fields_fail(f, ERR_INPUT, "\"num_experts_per_tok\" (%u) is more than %u groups of %u experts have",
                    m->per_token, m->top_groups, m->experts / m->groups);
    else if (m->pair_groups && m->experts / m->groups < 2)
        fields_fail(f, ERR_INPUT, "\"n_group\" (%u) leaves groups of one expert", m->groups);
}

/* "mlp_layer_types", the newest spelling: item i. */
static bool sparse_item(struct fields *f, const struct json *types, u32 i)
{
    const char *type = json_text(json_item(types, i));
    bool yes = type && !strcmp(type, "sparse");
    if (!yes && (!type || strcmp(type, "dense")))
        fields_fail(f, ERR_UNSUPPORTED, "\"mlp_layer_types\" item %u must be \"dense\" or \"sparse\"", i);
    return yes;
}

static bool listed(const struct json *list, i64 layer)
{
    for (size_t i = 0; i < json_len(list); i++)
        if (json_int(json_item(list, i), -1) == layer) return true;
    return false;
}

static void read_sparse(struct fields *f, const struct family *k, struct model_config *out)
{
    enum moe_kind kind = out->arch->moe;
    bool qwen = kind == MOE_QWEN2 || kind == MOE_QWEN3;
    i64 step = fields_int(f, "decoder_sparse_step", 1, MODEL_MAX_LAYERS, 1);
    i64 first = fields_int(f, "first_k_dense_replace", 0, MODEL_MAX_LAYERS, k->first_default);
    const struct json *dense =
        fields_has(f, "mlp_only_layers") ? json_get(f->object, "mlp_only_layers") : NULL;
    const struct json *types =
        fields_has(f, "mlp_layer_types") ? json_get(f->object, "mlp_layer_types") : NULL;
    if (dense && json_kind(dense) != JK_ARRAY)
        fields_fail(f, ERR_INPUT, "\"mlp_only_layers\" must be a list of layers");
    if (types && (json_kind(types) != JK_ARRAY || json_len(types) != out->layers))
        fields_fail(f, ERR_INPUT, "\"mlp_layer_types\" must be a list of %u strings, one a layer",
                    out->layers);
    for (u32 i = 0; i < out->layers && !f->rc; i++)
        out->sparse[i] = types  ? sparse_item(f, types, i)
                         : qwen ? (i + 1) % step == 0 && !listed(dense, i)
                                : i >= first;
}

int config_moe(struct fields *f, struct model_config *out)
{
    const struct family *k = &FAMILIES[out->arch->moe];
    struct moe_config *m = &out->moe;
    if (out->arch->moe == MOE_NONE) return f->rc;
    const char *count =
        k->count[1] && !fields_has(f, k->count[0]) && fields_has(f, k->count[1]) ? k->count[1] : k->count[0];
    m->experts = (u32)fields_need_int(f, count, 1, MAX_EXPERTS);
    m->per_token = (u32)fields_need_int(f, "num_experts_per_tok", 1, m->experts);
    m->ffn = (u32)fields_need_int(f, k->size, 1, MAX_WIDTH);
    m->groups = m->top_groups = 1;
    m->scale = 1;
    m->score = k->score;
    m->correction = k->correction;
    m->bias = k->bias;
    m->renormalise = k->renormalise || fields_bool(f, "norm_topk_prob", k->renormalise_default);
    if (k->scoring) read_deepseek(f, k, m);
    if (out->arch->moe == MOE_DEEPSEEK2 && m->renormalise)
        fields_fail(f, ERR_UNSUPPORTED,
                    "\"norm_topk_prob\" true is not offered for a deepseek_v2 model: readers of it disagree");
    if (out->arch->moe == MOE_QWEN2) {
        m->shared_gate = true;
        m->shared_ffn = (u32)fields_need_int(f, "shared_expert_intermediate_size", 1, MAX_WIDTH);
    }
    if (out->arch->moe == MOE_GPT_OSS &&
        fields_int(f, "experts_per_token", 1, m->experts, m->per_token) != m->per_token)
        fields_fail(f, ERR_INPUT, "\"experts_per_token\" and \"num_experts_per_tok\" differ");
    if ((u64)m->per_token * m->ffn > MAX_WIDTH || m->shared_ffn > MAX_WIDTH)
        fields_fail(f, ERR_INPUT, "%u experts of %u a token are wider than %d", m->per_token, m->ffn,
                    MAX_WIDTH);
    read_sparse(f, k, out);
    return f->rc;
}

int config_mla(struct fields *f, struct model_config *out)
{
    struct mla_config *m = &out->mla;
    bool listed_rank = json_get(f->object, "q_lora_rank") != NULL; /* null says "one product" */
    m->q_rank = (u32)fields_int(f, "q_lora_rank", 1, MAX_WIDTH, listed_rank ? 0 : 1536);
    m->kv_rank = (u32)fields_int(f, "kv_lora_rank", 2, MAX_WIDTH, 512);
    m->nope = (u32)fields_int(f, "qk_nope_head_dim", 2, MODEL_MAX_HEAD / 2, 128);
    m->rope = (u32)fields_int(f, "qk_rope_head_dim", 2, MODEL_MAX_HEAD / 2, 64);
    m->value = (u32)fields_int(f, "v_head_dim", 2, MODEL_MAX_HEAD, 128);
    out->head_dim = m->nope + m->rope;
    if (m->kv_rank % 2 || m->nope % 2 || m->rope % 2 || m->value % 2)
        fields_fail(
            f, ERR_UNSUPPORTED,
            "\"kv_lora_rank\", \"qk_nope_head_dim\", \"qk_rope_head_dim\" and \"v_head_dim\" must be even");
    if (fields_int(f, "qk_head_dim", 1, 2 * MODEL_MAX_HEAD, out->head_dim) != out->head_dim)
        fields_fail(f, ERR_INPUT, "\"qk_head_dim\" is not \"qk_nope_head_dim\" + \"qk_rope_head_dim\" (%u)",
                    out->head_dim);
    if ((u64)out->heads * MAX_OF(m->value, m->kv_rank + m->rope) > 4 * (u64)MAX_WIDTH)
        fields_fail(f, ERR_INPUT, "%u heads of %u latent numbers are too wide", out->heads, m->kv_rank);
    return f->rc;
}
