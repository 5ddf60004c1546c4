/* model/: config.json and generation_config.json: the reference folders, defaults, what is refused. */
#include "folder.h"
#include "mpiserve/model.h"

/* ---- reference folders ---------------------------------------------------------------------------------------*/
static void read_reference(const char *name, struct model_config *c)
{
    struct error e = {0};
    if (model_read_config(data_dir(name), c, &e)) fail_msg("%s: %s", name, e.message);
}

static void test_reference_configs(void **state)
{
    (void)state;
    struct model_config c;
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

static void test_fingerprint(void **state)
{
    (void)state;
    static const char *const names[] = {"llama_tied_llama3", "llama_untied_sharded", "qwen2_bias"};
    u64 seen[COUNT_OF(names)];
    struct error e = {0};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        struct model_config c;
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
#define LLAMA   "\"model_type\":\"llama\"," SIZES
#define MISTRAL "\"model_type\":\"mistral\",\"num_key_value_heads\":2," SIZES
#define QWEN3   "\"model_type\":\"qwen3\",\"num_key_value_heads\":2," SIZES

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
    struct model_config c;
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
    accept("{" QWEN3 ",\"use_sliding_window\":true,\"sliding_window\":9,"
           "\"layer_types\":[\"sliding_attention\",\"full_attention\"]}",
           &c);
    assert_int_equal(c.window[0], 9);
    assert_int_equal(c.window[1], 0);
}

static void test_generation(void **state)
{
    (void)state;
    struct model_config c;
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

static void test_config_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *part;
    } bad[] = {
        {"", "empty"},
        {"[1]", "must be an object"},
        {"{\"model_type\":3}", "\"model_type\" is an integer"},
        {"{}", "\"model_type\" is missing"},
        {"{\"model_type\":\"gpt_oss\"}", "\"gpt_oss\" is not offered; offered: llama, mistral, qwen2, qwen3"},
        {"{\"model_type\":\"qwen3_moe\"}", "qwen3_moe"},
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
        {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"fp8\"}}", "(fp8): quantised weights"},
        {"{" LLAMA ",\"residual_multiplier\":2}", "\"residual_multiplier\" is not understood"},
        {"{" LLAMA ",\"bad\\nkey\":2}", "\"bad?key\""},
        {"{" LLAMA ",\"partial_rotary_factor\":0.5}",
         "\"partial_rotary_factor\" is not offered with a value other than 1"},
        {"{" LLAMA ",\"rope_theta\":0}", "\"rope_theta\""},
        {"{" LLAMA ",\"rope_scaling\":[]}", "\"rope_scaling\" is an array"},
        {"{" LLAMA ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,\"beta_fast\":32}}", "\"yarn\""},
        {"{" LLAMA ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":4}}", "\"dynamic\""},
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
    struct model_config c;
    struct error e;
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        if (read_text(bad[i].text, NULL, &c, &e) >= 0) fail_msg("accepted: %s", bad[i].text);
        expect_error(&e, bad[i].part);
        expect_error(&e, "config.json");
    }
    folder_empty();
    assert_true(model_read_config(folder, &c, &e) < 0);
    expect_error(&e, "no config.json");
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
        struct model_config c;
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
        cmocka_unit_test(test_reference_configs), cmocka_unit_test(test_fingerprint),
        cmocka_unit_test(test_config_defaults),   cmocka_unit_test(test_generation),
        cmocka_unit_test(test_config_refused),    cmocka_unit_test(test_mutated_config),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("model", tests, folder_make, folder_drop);
}
