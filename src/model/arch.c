/* The architectures that are offered. */
#include "model/config.h"
#include <string.h>

#define MOE_KEYS "num_experts_per_tok mlp_layer_types "
#define QWEN_MOE_KEYS                                                                                        \
    MOE_KEYS "num_experts num_local_experts moe_intermediate_size norm_topk_prob decoder_sparse_step "       \
             "mlp_only_layers "
#define DEEPSEEK_KEYS                                                                                        \
    MOE_KEYS "q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim qk_head_dim v_head_dim "            \
             "n_routed_experts n_shared_experts moe_intermediate_size first_k_dense_replace n_group "        \
             "topk_group topk_method norm_topk_prob routed_scaling_factor scoring_func "                     \
             "num_nextn_predict_layers "
#define ENCODER_KEYS                                                                                         \
    "layer_norm_eps type_vocab_size position_embedding_type hidden_dropout_prob "                            \
    "attention_probs_dropout_prob classifier_dropout output_past directionality pooler_fc_size "             \
    "pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type "                      \
    "sentence_transformers sbert_ce_default_activation_function "
#define GEMMA_KEYS "hidden_activation query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping "

static const struct arch ARCHS[] = {
    {.model_type = "llama",
     .class_name = "LlamaForCausalLM",
     .attention_bias = true,
     .o_bias = true,
     .mlp_bias = true,
     .kv_heads_optional = true},
    {.model_type = "mistral",
     .class_name = "MistralForCausalLM",
     .windows = WINDOW_ALL,
     .window_default = 4096},
    {.model_type = "qwen2", .class_name = "Qwen2ForCausalLM", .qkv_bias = true, .windows = WINDOW_ASKED_FROM},
    {.model_type = "qwen3",
     .class_name = "Qwen3ForCausalLM",
     .attention_bias = true,
     .o_bias = true,
     .qk_norm = QK_NORM_HEAD,
     .windows = WINDOW_ASKED_FROM,
     .head_dim_default = 128},
    {.model_type = "gemma2",
     .class_name = "Gemma2ForCausalLM",
     .keys = " " GEMMA_KEYS,
     .attention_bias = true,
     .o_bias = true,
     .plus_one = true,
     .tied_default = true,
     .norms = NORMS_AROUND,
     .windows = WINDOW_EVEN,
     .act = ACT_GELU_TANH,
     .head_dim_default = 256,
     .window_default = 4096,
     .score_cap = 50,
     .logit_cap = 30},
    {.model_type = "gemma3_text",
     .class_name = "Gemma3ForCausalLM",
     .keys = " " GEMMA_KEYS "rope_local_base_freq sliding_window_pattern _sliding_window_pattern ",
     .attention_bias = true,
     .o_bias = true,
     .plus_one = true,
     .two_ropes = true,
     .tied_default = true,
     .norms = NORMS_AROUND,
     .qk_norm = QK_NORM_HEAD,
     .windows = WINDOW_PATTERN,
     .act = ACT_GELU_TANH,
     .theta_default = 1e6,
     .head_dim_default = 256,
     .window_default = 4096},
    {.model_type = "phi3",
     .class_name = "Phi3ForCausalLM",
     .keys = " partial_rotary_factor ",
     .fused = true,
     .kv_heads_optional = true,
     .windows = WINDOW_ALL,
     .eps_default = 1e-5},
    {.model_type = "olmo2",
     .class_name = "Olmo2ForCausalLM",
     .attention_bias = true,
     .o_bias = true,
     .kv_heads_optional = true,
     .norms = NORMS_POST,
     .qk_norm = QK_NORM_WHOLE,
     .eps_default = 1e-5},
    {.model_type = "mixtral",
     .class_name = "MixtralForCausalLM",
     .keys = " " MOE_KEYS "num_local_experts ",
     .windows = WINDOW_ALL,
     .moe = MOE_MIXTRAL,
     .eps_default = 1e-5,
     .theta_default = 1e6},
    {.model_type = "qwen2_moe",
     .class_name = "Qwen2MoeForCausalLM",
     .keys = " " QWEN_MOE_KEYS "shared_expert_intermediate_size qkv_bias ",
     .qkv_bias = true,
     .windows = WINDOW_ASKED_EVEN,
     .moe = MOE_QWEN2},
    {.model_type = "qwen3_moe",
     .class_name = "Qwen3MoeForCausalLM",
     .keys = " " QWEN_MOE_KEYS,
     .attention_bias = true,
     .o_bias = true,
     .qk_norm = QK_NORM_HEAD,
     .windows = WINDOW_ASKED_ALL,
     .moe = MOE_QWEN3},
    {.model_type = "deepseek_v2",
     .class_name = "DeepseekV2ForCausalLM",
     .keys = " " DEEPSEEK_KEYS,
     .attention_bias = true,
     .o_bias = true,
     .mla = true,
     .kv_heads_optional = true,
     .moe = MOE_DEEPSEEK2},
    {.model_type = "deepseek_v3",
     .class_name = "DeepseekV3ForCausalLM",
     .keys = " " DEEPSEEK_KEYS "rope_interleave ",
     .attention_bias = true,
     .o_bias = true,
     .mla = true,
     .kv_heads_optional = true,
     .moe = MOE_DEEPSEEK3},
    {.model_type = "gpt_oss",
     .class_name = "GptOssForCausalLM",
     .keys = " " MOE_KEYS "experts_per_token num_local_experts swiglu_limit swiglu_alpha "
             "initial_context_length ",
     .attention_bias = true,
     .o_bias = true,
     .bias_default = true,
     .sinks = true,
     .windows = WINDOW_EVEN,
     .act = ACT_CLAMPED,
     .moe = MOE_GPT_OSS,
     .eps_default = 1e-5,
     .theta_default = 150000,
     .head_dim_default = 64,
     .window_default = 128},
    {.model_type = "bert",
     .class_name = "BertModel",
     .keys = " " ENCODER_KEYS,
     .encoder = true,
     .prefix = "bert.",
     .norms = NORMS_SUM,
     .act = ACT_GELU},
    {.model_type = "roberta",
     .class_name = "RobertaModel",
     .keys = " " ENCODER_KEYS,
     .encoder = true,
     .padded = true,
     .prefix = "roberta.",
     .norms = NORMS_SUM,
     .act = ACT_GELU},
    {.model_type = "xlm-roberta",
     .class_name = "XLMRobertaModel",
     .keys = " " ENCODER_KEYS,
     .encoder = true,
     .padded = true,
     .prefix = "roberta.",
     .norms = NORMS_SUM,
     .act = ACT_GELU},
};

const struct arch *model_arch(const char *model_type)
{
    for (size_t i = 0; i < COUNT_OF(ARCHS); i++)
        if (!strcmp(ARCHS[i].model_type, model_type)) return &ARCHS[i];
    return NULL;
}

void arch_list(struct buf *out)
{
    for (size_t i = 0; i < COUNT_OF(ARCHS); i++) buf_printf(out, "%s%s", i ? ", " : "", ARCHS[i].model_type);
}
