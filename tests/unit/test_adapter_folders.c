/* Folders of adapters: what is read, what is refused and in which words, and that damage gives errors, not crashes. */
#include "engine/weights.h"
#include "folder.h"
#include "mpiserve/json.h"
#include "mpiserve/model.h"

#include <math.h>

/* Of llama_tied_llama3: hidden 64, q 64, k and v 32, ffn 192, two layers. */
#define HEAD(name, shape, from, to)                                                                          \
    "\"base_model.model." name "\":{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to  \
    "]}"
#define Q_A   HEAD("model.layers.0.self_attn.q_proj.lora_A.weight", "[2,64]", 0, 512)
#define Q_B   HEAD("model.layers.0.self_attn.q_proj.lora_B.weight", "[64,2]", 512, 1024)
#define PLAIN "{" Q_A "," Q_B "}"
#define CONFIG(more)                                                                                         \
    "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"bias\":\"none\",\"target_modules\":[\"q_"            \
    "proj\"]" more "}"

/* Reads the folder and plans it into the reference model's weights. */
static int try_folder(const char *config, const char *header, size_t bytes, struct error *err)
{
    static struct model_config c;
    static struct adapters list;
    size_t image;
    *err = (struct error){0};
    folder_empty();
    if (config) put("adapter_config.json", config, strlen(config));
    if (header) put_tensors("adapter_model.safetensors", header, 0, bytes);
    int rc = adapter_open(&list.list[0], "a", folder, err);
    if (rc) return rc;
    list.n = 1;
    assert_int_equal(model_read_config(data_dir("llama_tied_llama3"), &c, err), 0);
    c.load.adapters = &list;
    struct shard part = shard_whole(&c);
    struct model_files *f = model_open(data_dir("llama_tied_llama3"), err);
    assert_non_null(f);
    rc = weights_plan(&c, &part, f, NULL, &image, err);
    model_close(f);
    adapter_close(&list.list[0]);
    return rc;
}

static void accepted(void **state)
{
    (void)state;
    static const char *const configs[] = {
        CONFIG(""),
        CONFIG(
            ",\"modules_to_save\":null,\"use_dora\":false,\"layers_to_transform\":[0],\"rank_pattern\":{}"),
        CONFIG(",\"init_lora_weights\":\"gaussian\",\"lora_dropout\":0.1,\"loftq_config\":{},\"x\":null"),
        CONFIG(",\"rank_pattern\":{\"k_proj\":7},\"a_field_of_tomorrow\":false"),
        CONFIG(",\"init_lora_weights\":\"eva\",\"eva_config\":{\"rho\":2.0,\"tau\":0.99,\"whiten\":false}"),
    };
    struct error err;
    for (size_t i = 0; i < COUNT_OF(configs); i++)
        if (try_folder(configs[i], PLAIN, 1024, &err)) fail_msg("config %zu: %s", i, err.message);
    /* of a model without a head */
    assert_int_equal(try_folder(CONFIG(""),
                                "{" HEAD("layers.1.mlp.down_proj.lora_A.weight", "[2,192]", 0, 1536) "," HEAD(
                                    "layers.1.mlp.down_proj.lora_B.weight", "[64,2]", 1536, 2048) "}",
                                2048, &err),
                     0);
}

static void refused(void **state)
{
    (void)state;
    static const struct {
        const char *config, *says;
    } cases[] = {
        {NULL, "adapter_config.json"},
        {"{", "adapter_config.json"},
        {"[]", "must be an object"},
        {"{\"r\":2}", "\"peft_type\" is \"\"; offered: LORA"},
        {"{\"peft_type\":\"IA3\"}", "\"peft_type\" is \"IA3\"; offered: LORA"},
        {"{\"peft_type\":\"LORA\",\"bias\":\"all\"}", "\"bias\" is \"all\"; offered: none"},
        {CONFIG(",\"use_dora\":true"), "\"use_dora\" is not offered"},
        {CONFIG(",\"modules_to_save\":[\"lm_head\"]"), "\"modules_to_save\" is not offered"},
        {CONFIG(",\"fan_in_fan_out\":true"), "\"fan_in_fan_out\" is not offered"},
        {CONFIG(",\"layer_replication\":[[0,2]]"), "\"layer_replication\" is not offered"},
        {CONFIG(",\"target_parameters\":[\"mlp.experts\"]"), "\"target_parameters\" is not offered"},
        {CONFIG(",\"lora_bias\":true"), "\"lora_bias\" is not offered"},
        {CONFIG(",\"a_field_of_tomorrow\":3"), "\"a_field_of_tomorrow\" is not offered"},
        {CONFIG(",\"init_lora_weights\":\"pissa\""), "\"init_lora_weights\" is \"pissa\""},
        {CONFIG(",\"rank_pattern\":{\".*q_proj\":4}"),
         "\"rank_pattern\" has the regular expression \".*q_proj\""},
        {CONFIG(",\"rank_pattern\":{\"q_proj\":1.5}"),
         "\"rank_pattern\": \"q_proj\" must be a number from 1 to 1024"},
        {CONFIG(",\"alpha_pattern\":[1]"), "\"alpha_pattern\" is an array"},
        {"{\"peft_type\":\"LORA\",\"r\":0}", "\"r\" is 0; it must be from 1 to 1024"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":\"x\"}", "\"lora_alpha\" is a string"},
        {CONFIG(",\"rank_pattern\":{\"layers.0.self_attn.q_proj\":3}"),
         "lora_A.weight has shape [2, 64]; adapter_config.json and the model ask for [3, 64]"},
    };
    struct error err;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        if (!try_folder(cases[i].config, PLAIN, 1024, &err)) fail_msg("taken: %s", cases[i].config);
        expect_error(&err, cases[i].says);
        expect_error(&err, folder);
    }
}

static void tensors_refused(void **state)
{
    (void)state;
    static const struct {
        const char *header, *says;
    } cases[] = {
        {NULL, "adapter_model.safetensors"},
        {"{}", "holds no tensors"},
        {"{" Q_A "," HEAD("model.layers.0.self_attn.q_proj.lora_B.bias", "[64,2]", 512, 1024) "}",
         "q_proj.lora_B.weight is missing"},
        {"{" Q_A "," HEAD("model.layers.0.self_attn.q_proj.lora_B.weight", "[2,64]", 512, 1024) "}",
         "lora_B.weight has shape [2, 64]; adapter_config.json and the model ask for [64, 2]"},
        {"{" HEAD("model.layers.7.self_attn.q_proj.lora_A.weight", "[2,64]", 0, 512) "}",
         "tensor base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight is not offered; of llama "
         "models, "
         "adapters may change self_attn.q_proj, self_attn.k_proj, self_attn.v_proj, self_attn.o_proj, "
         "mlp.gate_proj, mlp.up_proj, mlp.down_proj (of 2 layers)"},
        {"{" HEAD("lm_head.lora_A.weight", "[2,64]", 0, 512) "}", "lm_head.lora_A.weight is not offered"},
        {"{" Q_A "," Q_B "," HEAD("model.embed_tokens.lora_embedding_A", "[2,64]", 1024, 1536) "}",
         "lora_embedding_A is not offered"},
        {"{\"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight\":{\"dtype\":\"I32\",\"shape\":["
         "2,64],"
         "\"data_offsets\":[0,512]}," Q_B "}",
         "lora_A.weight is stored as I32; offered: F32, BF16, F16"},
    };
    struct error err;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        size_t bytes = 0;
        for (size_t at = 512; at <= 1536 && cases[i].header; at += 512) {
            char text[16];
            snprintf(text, sizeof text, ",%zu]", at);
            if (strstr(cases[i].header, text)) bytes = at;
        }
        if (!try_folder(CONFIG(""), cases[i].header, bytes, &err)) fail_msg("taken: %s", cases[i].header);
        expect_error(&err, cases[i].says);
        expect_error(&err, folder);
    }
}

static void scales(void **state)
{
    (void)state;
    static const struct {
        const char *config, *module;
        u32 rank;
        double scale;
    } cases[] = {
        {CONFIG(""), "model.layers.0.self_attn.q_proj", 2, 2},
        {CONFIG(",\"use_rslora\":true"), "model.layers.0.self_attn.q_proj", 2, 4 / sqrt(2)},
        {CONFIG(",\"alpha_pattern\":{\"q_proj\":10,\"layers.0.self_attn.q_proj\":3}"),
         "model.layers.0.self_attn.q_proj", 2, 5},
        {CONFIG(",\"alpha_pattern\":{\"model.layers.0.self_attn.q_proj\":3}"),
         "model.layers.0.self_attn.q_proj", 2, 1.5},
        {CONFIG(",\"alpha_pattern\":{\"roj\":3,\"k_proj\":5,\"x.model.layers.0.self_attn.q_proj\":7}"),
         "model.layers.0.self_attn.q_proj", 2, 2},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct adapter a;
        struct adapter_module m;
        struct error err = {0};
        folder_empty();
        put("adapter_config.json", cases[i].config, strlen(cases[i].config));
        put_tensors("adapter_model.safetensors", PLAIN, 0, 1024);
        assert_int_equal(adapter_open(&a, "a", folder, &err), 0);
        assert_int_equal(adapter_module(&a, cases[i].module, 64, 64, &m, &err), 1);
        assert_int_equal(m.rank, cases[i].rank);
        assert_true(fabs(m.scale - cases[i].scale) < 1e-6);
        assert_int_equal(adapter_module(&a, "model.layers.1.self_attn.q_proj", 64, 64, &m, &err), 0);
        adapter_close(&a);
    }
}

static void damaged(void **state)
{
    (void)state;
    struct mutator m = {0};
    struct error err;
    for (int i = 0; i < 400; i++) {
        char config[512], header[768];
        size_t len = strlen(CONFIG(",\"rank_pattern\":{\"k_proj\":7}"));
        snprintf(config, sizeof config, "%s", CONFIG(",\"rank_pattern\":{\"k_proj\":7}"));
        snprintf(header, sizeof header, "%s", PLAIN);
        if (i % 2)
            config[mutate(&m, config, len)] = 0;
        else
            header[mutate(&m, header, strlen(PLAIN))] = 0;
        if (try_folder(config, header, 1024, &err)) assert_true(err.message[0] != 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accepted), cmocka_unit_test(refused), cmocka_unit_test(tensors_refused),
        cmocka_unit_test(scales),   cmocka_unit_test(damaged),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("adapter folders", tests, folder_make, folder_drop);
}
