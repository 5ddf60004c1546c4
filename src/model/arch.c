/* The architectures that are offered. */
#include "model/config.h"
#include <string.h>

static const struct arch ARCHS[] = {
    {.model_type = "llama",
     .class_name = "LlamaForCausalLM",
     .attention_bias = true,
     .o_bias = true,
     .mlp_bias = true,
     .eps_default = 1e-6,
     .kv_heads_optional = true},
    {.model_type = "mistral",
     .class_name = "MistralForCausalLM",
     .window_all = true,
     .eps_default = 1e-6,
     .window_default = 4096},
    {.model_type = "qwen2",
     .class_name = "Qwen2ForCausalLM",
     .qkv_bias = true,
     .window_opt = true,
     .eps_default = 1e-6},
    {.model_type = "qwen3",
     .class_name = "Qwen3ForCausalLM",
     .attention_bias = true,
     .o_bias = true,
     .qk_norm = true,
     .window_opt = true,
     .eps_default = 1e-6,
     .head_dim_default = 128},
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
