/* model/: config.json and generation_config.json: the reference folders, defaults, what is refused. */
#include "folder.h"
#include "mpiserve/model.h"

#include <math.h>

/* ---- reference folders ---------------------------------------------------------------------------------------*/
static void read_reference(const char *name, struct model_config *c)
{
    struct error e = {0};
    if (model_read_config(data_dir(name), c, &e)) fail_msg("%s: %s", name, e.message);
}

static void test_reference_configs(void **state)
{
    (void)state;
    static struct model_config c;
    read_reference("llama_tied_llama3", &c);
    assert_string_equal(c.arch->model_type, "llama");
    assert_int_equal(c.vocab, 384);
    assert_int_equal(c.hidden, 64);
    assert_int_equal(c.ffn, 192);
    assert_int_equal(c.kv_heads, 2);
    assert_true(c.tied);
    assert_int_equal(c.rope.kind, ROPE_LLAMA3);
    assert_true(c.rope.theta == 500000 && c.rope.factor == 8 && c.rope.high_freq_factor == 4);
    assert_int_equal(c.rope.original_max_position, 64);
    assert_int_equal(c.n_eos, 2);
    assert_int_equal(c.eos[1], 16);
    assert_int_equal(c.bos, 1);
    read_reference("llama_v5style", &c);
    assert_int_equal(c.rope.kind, ROPE_LLAMA3);
    assert_true(c.rope.theta == 500000 && !c.tied);
    assert_int_equal(c.head_dim, 8);
    read_reference("llama_untied_sharded", &c);
    assert_int_equal(c.rope.kind, ROPE_DEFAULT);
    assert_false(c.tied);
    read_reference("mistral_swa16", &c);
    assert_int_equal(c.window[0], 16);
    assert_int_equal(c.window[1], 16);
    assert_true(c.eps == 0.01f);
    read_reference("qwen2_bias", &c);
    assert_int_equal(c.window[1], 0);
    assert_true(c.q_bias && !c.o_bias && !c.qk_norm);
    read_reference("qwen3_headdim32", &c);
    assert_int_equal(c.head_dim, 32);
    assert_true(c.qk_norm && !c.q_bias && c.tied);
}

static void test_reference_attention(void **state)
{
    (void)state;
    static struct model_config c;
    read_reference("llama_dynamic", &c);
    assert_int_equal(c.rope.kind, ROPE_DYNAMIC);
    assert_int_equal(c.rope.original_max_position, 64);
    assert_int_equal(c.max_position, 256);
    assert_int_equal(c.kv_heads, 4);
    read_reference("gemma2", &c);
    assert_true(c.tied && c.window[0] == 16 && c.window[1] == 0 && c.window[2] == 16);
    assert_true(c.score_cap == 4 && c.logit_cap == 12 && c.embed_scale == 8);
    assert_true(fabsf(c.score_scale - 1 / sqrtf(24)) < 1e-7f);
    read_reference("gemma3_text", &c);
    assert_true(c.window[0] == 16 && c.window[1] == 16 && c.window[2] == 0 && c.window[3] == 16);
    assert_true(c.rope.kind == ROPE_LINEAR && c.rope.theta == 1e6 && c.rope.factor == 8);
    assert_true(c.rope_local.kind == ROPE_DEFAULT && c.rope_local.theta == 10000);
    assert_true(c.qk_norm == QK_NORM_HEAD && !(c.score_cap > 0) && !(c.logit_cap > 0));
    read_reference("phi3_swa", &c);
    assert_true(c.arch->fused && c.window[0] == 47 && c.rope.dims == 16);
    read_reference("phi3_longrope_partial", &c);
    assert_true(c.rope.kind == ROPE_LONGROPE && c.rope.dims == 12 && c.rope.original_max_position == 64);
    assert_true(c.rope.long_factor[5] == 7.9f && fabs(c.rope.attention - sqrt(1.5)) < 1e-12);
    read_reference("olmo2", &c);
    assert_true(c.qk_norm == QK_NORM_WHOLE && c.arch->norms == NORMS_POST);
    read_reference("deepseek_v2", &c);
    assert_true(c.mla.q_rank == 48 && c.mla.kv_rank == 32 && c.mla.nope == 16 && c.mla.rope == 8 &&
                c.mla.value == 16);
    assert_true(c.head_dim == 24 && c.rope.dims == 8 && c.rope.interleaved && c.rope.kind == ROPE_YARN);
    double m = 0.1 * 0.6 * log(4) + 1;
    assert_true(fabs(c.score_scale - m * m / sqrt(24)) < 1e-7);
    assert_true(fabs(c.rope.attention - (0.1 * log(4) + 1) / m) < 1e-12);
    read_reference("deepseek_v2_lite", &c);
    assert_int_equal(c.mla.q_rank, 0);
    read_reference("gpt_oss", &c);
    assert_true(c.q_bias && c.o_bias && c.arch->sinks && c.window[0] == 16 && c.window[1] == 0);
    assert_true(c.rope.kind == ROPE_YARN && !c.rope.truncate && c.act_limit == 2 && c.act_alpha == 1.702f);
    read_reference("qwen3_fp8block", &c);
    assert_true(c.quant.method == QUANT_FP8 && c.quant.block == 128);
}

static void test_reference_experts(void **state)
{
    (void)state;
    static struct model_config c;
    read_reference("mixtral", &c);
    assert_true(c.moe.experts == 8 && c.moe.per_token == 2 && c.moe.ffn == 48 && c.moe.renormalise);
    assert_true(c.sparse[0] && c.sparse[1] && c.moe.score == SCORE_SOFTMAX);
    read_reference("qwen2_moe", &c);
    assert_true(c.sparse[0] && !c.sparse[1] && c.sparse[2] && c.moe.shared_ffn == 64 && c.moe.shared_gate);
    assert_true(!c.moe.renormalise && c.q_bias && c.window[0] == 0);
    read_reference("qwen3_moe", &c);
    assert_true(!c.sparse[0] && c.sparse[1] && !c.sparse[2] && c.moe.renormalise && c.moe.ffn == 24);
    read_reference("qwen3_moe_v5fused", &c);
    assert_true(c.moe.experts == 8 && c.sparse[0]);
    read_reference("deepseek_v2", &c);
    assert_true(!c.sparse[0] && c.sparse[1] && c.moe.groups == 4 && c.moe.top_groups == 2 &&
                !c.moe.pair_groups);
    assert_true(c.moe.scale == 4 && c.moe.shared_ffn == 16 && !c.moe.correction);
    read_reference("deepseek_v2_lite", &c);
    assert_true(c.moe.groups == 1 && c.moe.shared_ffn == 64);
    read_reference("deepseek_v3", &c);
    assert_true(c.moe.score == SCORE_SIGMOID && c.moe.correction && c.moe.pair_groups && c.moe.renormalise);
    read_reference("gpt_oss", &c);
    assert_true(c.moe.score == SCORE_CHOSEN && c.moe.bias && c.moe.ffn == 24);
}

/* ---- frequencies */
static struct rope_config plain(enum rope_kind kind)
{
    return (struct rope_config){
        .kind = kind, .dims = 8, .theta = 10000, .factor = 4, .original_max_position = 64};
}

static void test_frequencies(void **state)
{
    (void)state;
    float inv[4], other[4];
    struct rope_config r = plain(ROPE_DEFAULT);
    rope_frequencies(&r, 1000, inv);
    for (u32 m = 0; m < 4; m++) assert_true(fabs(inv[m] - pow(10000, -2.0 * m / 8)) < 1e-7);
    r = plain(ROPE_DYNAMIC); /* as default up to the original length, slower behind it */
    rope_frequencies(&r, 64, other);
    assert_memory_equal(inv, other, sizeof inv);
    rope_frequencies(&r, 128, other);
    assert_true(other[0] == 1 && fabs(other[3] - pow(10000 * pow(5, 8.0 / 6), -6.0 / 8)) < 1e-8);
    r = plain(ROPE_YARN);
    r.beta_fast = 32;
    r.beta_slow = 1;
    r.truncate = true; /* the ramp runs over pairs 0 to 2: none, a half, all of the division */
    rope_frequencies(&r, 1, other);
    assert_true(other[0] == inv[0] && fabs(other[1] - 0.1 * (0.5 / 4 + 0.5)) < 1e-7);
    assert_true(fabs(other[2] - 0.0025) < 1e-8 && fabs(other[3] - 0.00025) < 1e-9);
    r.truncate = false;
    rope_frequencies(&r, 1, other);
    double high = 8 * log(64 / (2 * M_PI)) / (2 * log(10000)); /* low is below 0 */
    assert_true(fabs(other[1] - 0.1 * (1 / high / 4 + (1 - fmin(1 / high, 1)))) < 1e-6);
    r = plain(ROPE_LONGROPE);
    for (u32 m = 0; m < 4; m++) {
        r.short_factor[m] = 1 + (float)m;
        r.long_factor[m] = 3;
    }
    rope_frequencies(&r, 64, other);
    assert_true(fabs(other[3] - inv[3] / 4) < 1e-9);
    rope_frequencies(&r, 65, other);
    assert_true(fabs(other[3] - inv[3] / 3) < 1e-9);
}

/* Prompts of one class share the rotation of a common beginning. */
static void test_rope_class(void **state)
{
    (void)state;
    struct rope_config r = plain(ROPE_DYNAMIC);
    assert_true(rope_class(&r, 1) == 0 && rope_class(&r, 64) == 0);
    assert_true(rope_class(&r, 65) != 0 && rope_class(&r, 65) != rope_class(&r, 66));
    r = plain(ROPE_LONGROPE);
    assert_true(rope_class(&r, 64) == 0 && rope_class(&r, 65) == 1 && rope_class(&r, 500) == 1);
    r = plain(ROPE_YARN);
    assert_true(rope_class(&r, 65) == 0);
}

static void test_fingerprint(void **state)
{
    (void)state;
    static const char *const names[] = {"llama_tied_llama3", "llama_untied_sharded", "qwen2_bias"};
    u64 seen[COUNT_OF(names)];
    struct error e = {0};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        static struct model_config c;
        read_reference(names[i], &c);
        struct model_files *f = model_open(data_dir(names[i]), &e);
        assert_non_null(f);
        seen[i] = model_fingerprint(&c, f);
        memset(c.dir, 'x', sizeof c.dir - 1); /* where a copy lies does not matter */
        assert_int_equal(seen[i], model_fingerprint(&c, f));
        c.rope.theta += 1;
        assert_int_not_equal(seen[i], model_fingerprint(&c, f));
        for (size_t j = 0; j < i; j++) assert_int_not_equal(seen[i], seen[j]);
        model_close(f);
    }
}

/* ---- config.json ---------------------------------------------------------------------------------------------*/
#define SIZES                                                                                                \
    "\"hidden_size\":64,\"num_hidden_layers\":2,\"num_attention_heads\":4,\"vocab_size\":320,"               \
    "\"intermediate_size\":128,\"max_position_embeddings\":512"
#define LLAMA    "\"model_type\":\"llama\"," SIZES
#define MISTRAL  "\"model_type\":\"mistral\",\"num_key_value_heads\":2," SIZES
#define PHI3     "\"model_type\":\"phi3\"," SIZES
#define GEMMA2   "\"model_type\":\"gemma2\",\"num_key_value_heads\":2," SIZES
#define GEMMA3   "\"model_type\":\"gemma3_text\",\"num_key_value_heads\":2," SIZES
#define QWEN3MOE "\"model_type\":\"qwen3_moe\",\"num_key_value_heads\":2," SIZES
#define DEEPSEEK2                                                                                            \
    "\"model_type\":\"deepseek_v2\",\"n_routed_experts\":8,\"num_experts_per_tok\":3,\"moe_intermediate_"    \
    "size\":16," SIZES
#define QWEN3 "\"model_type\":\"qwen3\",\"num_key_value_heads\":2," SIZES

static int read_text(const char *config, const char *generation, struct model_config *c, struct error *e)
{
    folder_empty();
    put("config.json", config, strlen(config));
    if (generation) put("generation_config.json", generation, strlen(generation));
    memset(e, 0, sizeof *e);
    return model_read_config(folder, c, e);
}

static void accept(const char *config, struct model_config *c)
{
    struct error e;
    if (read_text(config, NULL, c, &e)) fail_msg("%s: %s", config, e.message);
}

static void test_config_defaults(void **state)
{
    (void)state;
    static struct model_config c;
    accept("{" LLAMA "}", &c);
    assert_int_equal(c.kv_heads, 4);
    assert_int_equal(c.head_dim, 16);
    assert_true(c.rope.theta == 10000 && c.eps == 1e-6f && !c.tied);
    assert_int_equal(c.n_eos, 0);
    assert_int_equal(c.bos, -1);
    accept("{" LLAMA ",\"attention_bias\":true,\"mlp_bias\":true}", &c);
    assert_true(c.q_bias && c.o_bias && c.mlp_bias);
    accept("{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":4},\"head_dim\":null}", &c);
    assert_int_equal(c.rope.kind, ROPE_LINEAR);
    assert_true(c.rope.factor == 4);
    accept("{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"rope_type\":\"default\"}}", &c);
    assert_int_equal(c.rope.kind, ROPE_DEFAULT);
    accept("{" LLAMA ",\"num_key_value_heads\":null,\"unheard_of\":null,\"torch_dtype\":\"float16\"}", &c);
    assert_int_equal(c.kv_heads, 4);
    accept("{" MISTRAL "}", &c);
    assert_int_equal(c.window[1], 4096);
    accept("{" MISTRAL ",\"sliding_window\":null}", &c);
    assert_int_equal(c.window[1], 0);
    accept("{" QWEN3 "}", &c);
    assert_int_equal(c.head_dim, 128);
    accept("{" QWEN3 ",\"use_sliding_window\":true,\"sliding_window\":9,\"max_window_layers\":1}", &c);
    assert_int_equal(c.window[0], 0);
    assert_int_equal(c.window[1], 9);
    accept("{" GEMMA2 "}", &c);
    assert_true(c.tied && c.score_cap == 50 && c.logit_cap == 30 && c.head_dim == 256 && c.window[0] == 4096);
    accept("{" GEMMA2 ",\"attn_logit_softcapping\":null,\"final_logit_softcapping\":null}", &c);
    assert_true(!(c.score_cap > 0) && !(c.logit_cap > 0));
    accept("{" GEMMA3
           ",\"rope_parameters\":{\"sliding_attention\":{\"rope_type\":\"default\",\"rope_theta\":9000},"
           "\"full_attention\":{\"rope_type\":\"linear\",\"factor\":8,\"rope_theta\":2e6}},"
           "\"_sliding_window_pattern\":2}",
           &c);
    assert_true(c.rope.theta == 2e6 && c.rope.kind == ROPE_LINEAR && c.rope_local.theta == 9000);
    assert_true(c.window[0] == 4096 && c.window[1] == 0);
    accept("{" PHI3 ",\"rope_scaling\":{\"type\":\"su\",\"short_factor\":[1,1,1,1,1,1,1,1],\"long_factor\":"
           "[2,2,2,2,2,2,2,2]},\"full_attn_mod\":1,\"lm_head_bias\":false}",
           &c);
    assert_true(c.rope.kind == ROPE_LONGROPE && c.rope.original_max_position == 4096 &&
                c.rope.attention == 1);
    accept("{" QWEN3
           ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,\"original_max_position_embeddings\":128}}",
           &c);
    assert_true(c.rope.kind == ROPE_YARN && fabs(c.rope.attention - 0.1 * log(4) - 1) < 1e-12 &&
                c.rope.truncate);
    accept("{\"model_type\":\"gpt_oss\",\"num_key_value_heads\":2,\"num_local_experts\":8,\"num_experts_per_"
           "tok\":4,"
           "\"initial_context_length\":4096," SIZES "}",
           &c);
    assert_true(c.rope.kind == ROPE_YARN && c.rope.factor == 32 && c.rope.theta == 150000 &&
                !c.rope.truncate);
    assert_true(c.head_dim == 64 && c.window[0] == 128 && c.act_limit == 7);
    accept("{" QWEN3MOE ",\"num_experts\":4,\"num_experts_per_tok\":2,\"moe_intermediate_size\":16,"
           "\"mlp_layer_types\":[\"sparse\",\"dense\"]}",
           &c);
    assert_true(c.sparse[0] && !c.sparse[1]);
    accept("{" DEEPSEEK2 "}", &c);
    assert_true(c.mla.q_rank == 1536 && c.mla.kv_rank == 512 && c.head_dim == 192 && c.sparse[0] &&
                c.moe.scale == 1);
    assert_int_equal(c.moe.shared_ffn, 32);
    accept("{" QWEN3 ",\"use_sliding_window\":true,\"sliding_window\":9,"
           "\"layer_types\":[\"sliding_attention\",\"full_attention\"]}",
           &c);
    assert_int_equal(c.window[0], 9);
    assert_int_equal(c.window[1], 0);
}

static void test_generation(void **state)
{
    (void)state;
    static struct model_config c;
    struct error e;
    assert_int_equal(read_text("{" LLAMA ",\"eos_token_id\":5}",
                               "{\"temperature\":0.3,\"top_k\":40,\"do_sample\":true}", &c, &e),
                     0);
    assert_int_equal(c.n_eos, 1);
    assert_int_equal(c.eos[0], 5);
    assert_true(c.has_temperature && c.temperature == 0.3f && c.has_top_k && c.top_k == 40);
    assert_false(c.has_top_p || c.has_repetition_penalty);
    assert_int_equal(
        read_text("{" LLAMA ",\"eos_token_id\":5}", "{\"eos_token_id\":[7,8,9],\"top_p\":0.9}", &c, &e), 0);
    assert_int_equal(c.n_eos, 3);
    assert_int_equal(c.eos[2], 9);
    assert_true(c.has_top_p && c.top_p == 0.9f);
    assert_int_equal(read_text("{" LLAMA ",\"eos_token_id\":5}", "{\"eos_token_id\":null}", &c, &e), 0);
    assert_int_equal(c.eos[0], 5);
    static const struct {
        const char *text, *part;
    } bad[] = {
        {"[]", "must be an object"},
        {"{\"temperature\":-1}", "\"temperature\""},
        {"{\"temperature\":\"hot\"}", "a number"},
        {"{\"top_p\":0}", "\"top_p\""},
        {"{\"top_k\":1.5}", "an integer"},
        {"{\"repetition_penalty\":0}", "\"repetition_penalty\""},
        {"{\"eos_token_id\":320}", "token 320"},
        {"{\"eos_token_id\":[1,-2]}", "token -2"},
        {"{\"eos_token_id\":[[1]]}", "a list of them"},
        {"{\"eos_token_id\":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]}", "at most 16"},
        {"{\"temperature\":", "generation_config.json"},
    };
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        assert_true(read_text("{" LLAMA "}", bad[i].text, &c, &e) < 0);
        expect_error(&e, bad[i].part);
        expect_error(&e, "generation_config.json");
    }
}

struct refusal {
    const char *text, *part; /* of config.json; of the message */
};

static void refused(const struct refusal *bad, size_t n)
{
    static struct model_config c;
    struct error e;
    for (size_t i = 0; i < n; i++) {
        if (read_text(bad[i].text, NULL, &c, &e) >= 0) fail_msg("accepted: %s", bad[i].text);
        expect_error(&e, bad[i].part);
        expect_error(&e, "config.json");
    }
}

static void test_config_refused(void **state)
{
    (void)state;
    static const struct refusal bad[] = {
        {"", "empty"},
        {"[1]", "must be an object"},
        {"{\"model_type\":3}", "\"model_type\" is an integer"},
        {"{}", "\"model_type\" is missing"},
        {"{\"model_type\":\"gpt_neox\"}", "\"gpt_neox\" is not offered; offered: llama, mistral, qwen2, "
                                          "qwen3, gemma2, gemma3_text, phi3, olmo2, "
                                          "mixtral, qwen2_moe, qwen3_moe, deepseek_v2, deepseek_v3, gpt_oss"},
        {"{\"model_type\":\"gemma3\"}", "\"gemma3\" is not offered"},
        {"{" LLAMA ",\"architectures\":[\"LlamaForSequenceClassification\"]}",
         "LlamaForSequenceClassification"},
        {"{" LLAMA ",\"architectures\":[]}", "\"architectures\" must be"},
        {"{\"model_type\":\"llama\"}", "\"hidden_size\" is missing"},
        {"{" LLAMA ",\"hidden_size\":65}", "duplicate"},
        {"{\"model_type\":\"llama\",\"hidden_size\":0}",
         "\"hidden_size\" is 0; it must be from 1 to 1048576"},
        {"{\"model_type\":\"llama\",\"hidden_size\":-64}", "\"hidden_size\" is -64"},
        {"{\"model_type\":\"llama\",\"hidden_size\":\"64\"}",
         "\"hidden_size\" is a string; it must be an integer"},
        {"{\"model_type\":\"llama\",\"hidden_size\":4294967360}", "\"hidden_size\" is 4294967360"},
        {"{\"model_type\":\"llama\",\"hidden_size\":64,\"num_hidden_layers\":257}", "from 1 to 256"},
        {"{" LLAMA ",\"num_key_value_heads\":3}", "not a multiple of \"num_key_value_heads\" (3)"},
        {"{" LLAMA ",\"num_key_value_heads\":8}", "from 1 to 4"},
        {"{\"model_type\":\"qwen2\"," SIZES "}", "\"num_key_value_heads\" is missing"},
        {"{" LLAMA ",\"head_dim\":15}", "even"},
        {"{" LLAMA ",\"head_dim\":2048}", "\"head_dim\" is 2048"},
        {"{" LLAMA ",\"rms_norm_eps\":-1}", "\"rms_norm_eps\""},
        {"{" LLAMA ",\"hidden_act\":\"gelu\"}", "gelu is not offered"},
        {"{" LLAMA ",\"tie_word_embeddings\":1}", "true or false"},
        {"{" LLAMA ",\"sliding_window\":16}", "\"sliding_window\" is not known of a llama model"},
        {"{" MISTRAL ",\"attention_bias\":true}", "\"attention_bias\" true is not known of a mistral"},
        {"{" QWEN3 ",\"mlp_bias\":true}", "\"mlp_bias\""},
        {"{" QWEN3 ",\"layer_types\":[\"full_attention\"]}", "a list of 2 strings"},
        {"{" QWEN3 ",\"layer_types\":[\"full_attention\",\"linear_attention\"]}", "item 1"},
        {"{" LLAMA ",\"layer_types\":[\"sliding_attention\",\"full_attention\"]}", "a window is not known"},
        {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"fp8\"}}", "\"weight_block_size\""},
        {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"bitsandbytes\"}}",
         "(bitsandbytes): weights stored so are not offered; offered: fp8, awq, gptq, mxfp4"},
        {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"mxfp4\"}}", "for gpt_oss only"},
        {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":3,\"group_size\":128}}",
         "\"bits\" 3"},
        {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":128,\"desc_"
         "act\":2}}",
         "true or false"},
        {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":12}}",
         "\"group_size\" 12"},
        {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"awq\",\"bits\":4}}",
         "\"group_size\" is missing"},
        {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":64,"
         "\"version\":\"gemv\"}}",
         "\"version\" gemv"},
        {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128,64]}}",
         "must be [n, n]"},
        {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128],"
         "\"activation_scheme\":\"static\"}}",
         "\"activation_scheme\" static"},
        {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128],"
         "\"rotation\":true}}",
         "\"rotation\" in \"quantization_config\""},
        {"{" LLAMA ",\"quantization_config\":3}", "\"quantization_config\" is an integer"},
        {"{" LLAMA ",\"residual_multiplier\":2}", "\"residual_multiplier\" is not understood"},
        {"{" LLAMA ",\"bad\\nkey\":2}", "\"bad?key\""},
        {"{" LLAMA ",\"partial_rotary_factor\":0.5}",
         "\"partial_rotary_factor\" is not offered with a value other than 1"},
        {"{" LLAMA ",\"rope_theta\":0}", "\"rope_theta\""},
        {"{" LLAMA ",\"rope_scaling\":[]}", "\"rope_scaling\" is an array"},
        {"{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}}", "\"factor\" is missing"},
        {"{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2,\"mrope_section\":[1]}}",
         "\"mrope_section\""},
        {"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}}",
         "\"low_freq_factor\" is missing"},
        {"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_"
         "freq_factor\":4}}",
         "must be above"},
        {"{" LLAMA
         ",\"rope_parameters\":{\"rope_theta\":5e5},\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}",
         "keep one"},
        {"{" LLAMA ",\"eos_token_id\":320}", "token 320"},
    };
    refused(bad, COUNT_OF(bad));
    static struct model_config c;
    struct error e;
    folder_empty();
    assert_true(model_read_config(folder, &c, &e) < 0);
    expect_error(&e, "no config.json");
}

static void test_families_refused(void **state)
{
    (void)state;
    static const struct refusal bad[] = {
        {"{" LLAMA ",\"rope_scaling\":{\"type\":\"spiral\",\"factor\":4}}",
         "rope type \"spiral\" in \"rope_scaling\" is not offered; offered: default, linear, dynamic, "
         "llama3, yarn, "
         "longrope"},
        {"{" LLAMA ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,\"finetuned\":true}}", "\"finetuned\""},
        {"{" LLAMA ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,\"truncate\":1}}", "\"truncate\""},
        {"{" LLAMA ",\"rope_scaling\":{\"type\":\"dynamic\"}}", "\"factor\" is missing"},
        {"{" PHI3 ",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,1],\"long_factor\":[1]}}",
         "\"short_factor\" must be a list of 8 numbers"},
        {"{" PHI3 ",\"partial_rotary_factor\":0.75,\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":"
         "[1,1,1,1,1,1],\"long_factor\":[1,1,1,1,1,0]}}",
         "\"long_factor\" item 5"},
        {"{" PHI3 ",\"partial_rotary_factor\":0.7}", "11 of 16 numbers of a head would be rotated"},
        {"{" PHI3 ",\"rope_scaling\":{\"type\":\"longrope\",\"short_mscale\":1.1}}", "\"short_mscale\""},
        {"{" GEMMA3 ",\"rope_parameters\":{\"full_attention\":{\"rope_theta\":1e6}}}",
         "\"sliding_attention\" only"},
        {"{" GEMMA3 ",\"attn_logit_softcapping\":50}", "\"attn_logit_softcapping\" is not offered"},
        {"{" GEMMA3 ",\"use_bidirectional_attention\":true}", "\"use_bidirectional_attention\""},
        {"{" GEMMA3 ",\"hidden_activation\":\"gelu\"}", "gelu is not offered; offered: gelu_pytorch_tanh"},
        {"{" LLAMA ",\"final_logit_softcapping\":30}", "\"final_logit_softcapping\" is not understood"},
        {"{" LLAMA ",\"num_experts\":8}", "\"num_experts\" is not understood"},
        {"{\"model_type\":\"mixtral\",\"num_key_value_heads\":2," SIZES "}",
         "\"num_local_experts\" is missing"},
        {"{" QWEN3MOE ",\"num_experts\":4}", "\"num_experts_per_tok\" is missing"},
        {"{" QWEN3MOE ",\"num_experts\":4,\"num_experts_per_tok\":5}", "from 1 to 4"},
        {"{" QWEN3MOE ",\"num_experts\":4,\"num_experts_per_tok\":2}",
         "\"moe_intermediate_size\" is missing"},
        {"{" QWEN3MOE ",\"num_experts\":4,\"num_experts_per_tok\":2,\"moe_intermediate_size\":16,"
         "\"mlp_only_layers\":1}",
         "\"mlp_only_layers\" must be a list"},
        {"{" QWEN3MOE ",\"num_experts\":4,\"num_experts_per_tok\":2,\"moe_intermediate_size\":16,"
         "\"mlp_layer_types\":[\"sparse\",\"thick\"]}",
         "\"mlp_layer_types\" item 1"},
        {"{" DEEPSEEK2 ",\"norm_topk_prob\":true}", "\"norm_topk_prob\" true"},
        {"{" DEEPSEEK2 ",\"topk_method\":\"noaux_tc\"}", "offered: greedy, group_limited_greedy"},
        {"{" DEEPSEEK2 ",\"scoring_func\":\"sigmoid\"}", "offered: softmax"},
        {"{" DEEPSEEK2 ",\"moe_layer_freq\":2}", "\"moe_layer_freq\""},
        {"{" DEEPSEEK2 ",\"topk_method\":\"group_limited_greedy\",\"n_group\":3}",
         "\"n_routed_experts\" (8) is not a multiple of \"n_group\" (3)"},
        {"{" DEEPSEEK2 ",\"topk_method\":\"group_limited_greedy\",\"n_group\":8,\"topk_group\":2}",
         "(3) is more than 2 groups of 1 experts have"},
        {"{" DEEPSEEK2 ",\"qk_nope_head_dim\":15}", "must be even"},
        {"{" DEEPSEEK2 ",\"qk_head_dim\":15}", "\"qk_head_dim\""},
        {"{" DEEPSEEK2 ",\"attention_bias\":true,\"q_lora_rank\":null}", "without \"q_lora_rank\""},
        {"{\"model_type\":\"gpt_oss\",\"num_key_value_heads\":2,\"num_local_experts\":8,\"num_experts_per_"
         "tok\":4,"
         "\"experts_per_token\":2," SIZES "}",
         "differ"},
    };
    refused(bad, COUNT_OF(bad));
}

/* ---- mutations: whatever the bytes, an answer and no crash ----------*/
static void test_mutated_config(void **state)
{
    (void)state;
    static const char config[] =
        "{" LLAMA ",\"architectures\":[\"LlamaForCausalLM\"],\"num_key_value_heads\":2,\"head_dim\":16,"
        "\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_"
        "factor\":1.0,"
        "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":64},\"eos_token_id\":[2,3],\"layer_"
        "types\":"
        "[\"full_attention\",\"full_attention\"],\"rms_norm_eps\":1e-05}";
    struct mutator m = {.round = 1u << 20};
    u32 refused = 0;
    for (int i = 0; i < 4000; i++) {
        char text[sizeof config + 16];
        static struct model_config c;
        struct error e = {0};
        memcpy(text, config, sizeof config);
        size_t len = mutate(&m, text, sizeof config - 1);
        put("config.json", text, len);
        int rc = model_read_config(folder, &c, &e);
        refused += rc < 0;
        assert_true(rc == 0 || e.message[0]);
        if (rc) continue;
        assert_true(c.layers && c.layers <= MODEL_MAX_LAYERS && c.heads && c.kv_heads &&
                    c.heads % c.kv_heads == 0);
        assert_true(c.head_dim && c.head_dim % 2 == 0 && c.hidden && c.ffn && c.vocab && c.max_position);
    }
    assert_true(refused > 2000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference_configs), cmocka_unit_test(test_reference_attention),
        cmocka_unit_test(test_reference_experts), cmocka_unit_test(test_frequencies),
        cmocka_unit_test(test_rope_class),        cmocka_unit_test(test_fingerprint),
        cmocka_unit_test(test_config_defaults),   cmocka_unit_test(test_generation),
        cmocka_unit_test(test_config_refused),    cmocka_unit_test(test_families_refused),
        cmocka_unit_test(test_mutated_config),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("model", tests, folder_make, folder_drop);
}
