/* model/: the files of sentence-transformers: which folders embed and how, and what is refused. */
#include "folder.h"
#include "mpiserve/model.h"

static const char CONFIG[] =
    "{\"architectures\":[\"%s\"],\"model_type\":\"qwen3\",\"vocab_size\":320,\"hidden_size\":64,"
    "\"intermediate_size\":128,\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
    "\"max_position_embeddings\":512,\"rms_norm_eps\":1e-6,\"tie_word_embeddings\":false}";
#define MODULE(path, type) "{\"idx\":0,\"name\":\"0\",\"path\":\"" path "\",\"type\":\"" type "\"}"
#define TRANSFORMER        MODULE("", "sentence_transformers.models.Transformer")
#define POOLING            MODULE("1_Pooling", "sentence_transformers.models.Pooling")
#define NORMALIZE          MODULE("2_Normalize", "sentence_transformers.models.Normalize")
#define PLAIN              "[" TRANSFORMER "," POOLING "]"
#define WITH_NORMALIZE     "[" TRANSFORMER "," POOLING "," NORMALIZE "]"
#define LAST               "{\"pooling_mode_mean_tokens\":false,\"pooling_mode_lasttoken\":true"

/* What lies in the folder beside config.json, and the class that it names; NULL: there is none. */
enum { MODULES, POOLING_FILE, PROMPTS, BERT, CLASS, N_FILES };

static void put_text(const char *name, const char *text)
{
    char path[PATH_LEN];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path);
    if (text) put(name, text, strlen(text));
}

static int read_files(const char *const f[N_FILES], struct model_config *c, struct error *err)
{
    char config[600], path[PATH_LEN];
    snprintf(path, sizeof path, "%s/1_Pooling", folder);
    mkdir(path, 0700);
    snprintf(config, sizeof config, CONFIG, f[CLASS] ? f[CLASS] : "Qwen3ForCausalLM");
    put_text("config.json", config);
    put_text("modules.json", f[MODULES]);
    put_text("1_Pooling/config.json", f[POOLING_FILE]);
    put_text("config_sentence_transformers.json", f[PROMPTS]);
    put_text("sentence_bert_config.json", f[BERT]);
    int rc = model_read_config(folder, c, err);
    put_text("1_Pooling/config.json", NULL);
    rmdir(path);
    return rc;
}

static void kinds(void **state)
{
    (void)state;
    static struct model_config c;
    static const struct {
        const char *files[N_FILES];
        enum pooling kind;
        bool normalize;
        const char *prompt;
        u32 max_position;
    } cases[] = {
        {{NULL}, POOLING_NONE, false, "", 512},
        {{[POOLING_FILE] = LAST "}"}, POOLING_NONE, false, "", 512}, /* nobody names it */
        {{WITH_NORMALIZE, LAST "}"}, POOLING_LAST, true, "", 512},
        {{PLAIN, LAST ",\"word_embedding_dimension\":64}"}, POOLING_LAST, false, "", 512},
        {{PLAIN, "{}"}, POOLING_MEAN, false, "", 512}, /* the library's default */
        {{PLAIN, "{\"pooling_mode\":\"cls\"}"}, POOLING_CLS, false, "", 512},
        {{PLAIN,
          "{\"pooling_mode_cls_token\":true,\"pooling_mode_mean_tokens\":false}", [CLASS] = "Qwen3Model"},
         POOLING_CLS,
         false,
         "",
         512},
        {{PLAIN, LAST "}",
          "{\"prompts\":{\"query\":\"Q: \",\"document\":\"\"},\"default_prompt_name\":\"query\"}",
          "{\"max_seq_length\":100,\"do_lower_case\":false}"},
         POOLING_LAST,
         false,
         "Q: ",
         100},
        {{PLAIN, LAST "}", "{\"prompts\":{\"query\":\"Q: \"},\"default_prompt_name\":null}",
          "{\"max_seq_length\":9999}"},
         POOLING_LAST,
         false,
         "",
         512},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct error err = {0};
        if (read_files(cases[i].files, &c, &err)) fail_msg("case %zu: %s: %s", i, err.where, err.message);
        if (c.pooling.kind != cases[i].kind || c.pooling.normalize != cases[i].normalize)
            fail_msg("case %zu: kind %d, normalize %d", i, (int)c.pooling.kind, c.pooling.normalize);
        assert_string_equal(c.pooling.prompt, cases[i].prompt);
        assert_int_equal(c.max_position, cases[i].max_position);
        assert_int_equal(c.tied, c.pooling.kind != POOLING_NONE);
        assert_false(c.pooling.lowercase);
    }
}

static void refusals(void **state)
{
    (void)state;
    static struct model_config c;
    static const struct {
        const char *files[N_FILES];
        int code;
        const char *part, *also;
    } cases[] = {
        {{"{}"}, ERR_INPUT, "modules.json", "array"},
        {{"[7]"}, ERR_INPUT, "modules.json", "object"},
        {{"[]"}, ERR_INPUT, "modules.json", "Pooling"},
        {{"[" TRANSFORMER "]"}, ERR_INPUT, "modules.json", "Pooling"},
        {{"[" POOLING "]", LAST "}"}, ERR_UNSUPPORTED, "modules.json", "\"Pooling\""},
        {{"[" MODULE("0_Transformer", "a.Transformer") "]"}, ERR_UNSUPPORTED, "0_Transformer", "folder"},
        {{"[" TRANSFORMER "," POOLING "," MODULE("2_Dense", "sentence_transformers.models.Dense") "]",
          LAST "}"},
         ERR_UNSUPPORTED,
         "\"Dense\"",
         "Normalize"},
        {{"[" TRANSFORMER "," POOLING "," NORMALIZE "," NORMALIZE "]", LAST "}"},
         ERR_UNSUPPORTED,
         "\"Normalize\"",
         ""},
        {{"[" TRANSFORMER "," MODULE("../x", "a.Pooling") "]"}, ERR_INPUT, "../x", "out of the folder"},
        {{PLAIN}, ERR_NOT_FOUND, "1_Pooling/config.json", "modules.json"},
        {{PLAIN, "[]"}, ERR_INPUT, "1_Pooling/config.json", "object"},
        {{PLAIN, LAST ",\"pooling_mode_cls_token\":true}"}, ERR_UNSUPPORTED, "several", ""},
        {{PLAIN, "{\"pooling_mode_max_tokens\":true,\"pooling_mode_mean_tokens\":false}"},
         ERR_UNSUPPORTED,
         "pooling_mode_max_tokens",
         "offered"},
        {{PLAIN, "{\"pooling_mode\":\"best\"}"}, ERR_UNSUPPORTED, "best", ""},
        {{PLAIN, "{\"pooling_mode_mean_tokens\":false}"}, ERR_INPUT, "no way", ""},
        {{PLAIN, "{\"pooling_mode_lasttoken\":1}"}, ERR_INPUT, "pooling_mode_lasttoken", ""},
        {{PLAIN, LAST ",\"word_embedding_dimension\":32}"}, ERR_INPUT, "32", "64"},
        {{PLAIN, LAST "}", "{\"default_prompt_name\":\"query\"}"}, ERR_INPUT, "default_prompt_name", "query"},
        {{PLAIN, LAST ",\"include_prompt\":false}",
          "{\"prompts\":{\"q\":\"Q\"},\"default_prompt_name\":\"q\"}"},
         ERR_UNSUPPORTED,
         "include_prompt",
         ""},
        {{PLAIN, LAST "}", NULL, "{\"do_lower_case\":1}"}, ERR_INPUT, "do_lower_case", ""},
        {{[CLASS] = "Qwen3Model"}, ERR_UNSUPPORTED, "Qwen3Model", "Qwen3ForCausalLM"},
        {{PLAIN, LAST "}", [CLASS] = "Qwen3Other"}, ERR_UNSUPPORTED, "Qwen3Other", ""},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct error err = {0};
        int rc = read_files(cases[i].files, &c, &err);
        if (rc != cases[i].code) fail_msg("case %zu: %d, %s: %s", i, rc, err.where, err.message);
        expect_error(&err, cases[i].part);
        expect_error(&err, cases[i].also);
    }
}

/* Ranks whose folders pool differently must not serve together. */
static void fingerprints(void **state)
{
    (void)state;
    static struct model_config c;
    struct model_files *none = model_open_none();
    static const char *const ways[][N_FILES] = {
        {NULL},
        {PLAIN, LAST "}"},
        {WITH_NORMALIZE, LAST "}"},
        {PLAIN, LAST "}", NULL, "{\"do_lower_case\":true}"},
        {PLAIN, "{}"},
        {PLAIN, "{}", "{\"prompts\":{\"q\":\"Q\"},\"default_prompt_name\":\"q\"}"},
    };
    u64 seen[COUNT_OF(ways)];
    for (size_t i = 0; i < COUNT_OF(ways); i++) {
        struct error err = {0};
        assert_int_equal(read_files(ways[i], &c, &err), 0);
        seen[i] = model_fingerprint(&c, none);
        for (size_t k = 0; k < i; k++) assert_true(seen[k] != seen[i]);
    }
    model_close(none);
}

/* Damaged files give errors and nothing worse. */
static void damage(void **state)
{
    (void)state;
    static struct model_config c;
    static const char modules[] = WITH_NORMALIZE,
                      pooling[] = LAST ",\"word_embedding_dimension\":64,\"include_prompt\":true}",
                      prompts[] = "{\"prompts\":{\"q\":\"Q: \"},\"default_prompt_name\":\"q\"}";
    const char *const from[] = {modules, pooling, prompts};
    struct mutator m = {0};
    for (int round = 0; round < 600; round++) {
        char text[600];
        struct error err = {0};
        const char *f[N_FILES] = {modules, pooling, prompts};
        size_t len = strlen(from[round % 3]);
        memcpy(text, from[round % 3], len);
        len = mutate(&m, text, len);
        text[len] = 0;
        f[round % 3] = text;
        int rc = read_files(f, &c, &err);
        assert_true(rc <= 0 && (rc == 0 || (err.message[0] && err.where[0])));
        assert_true(c.pooling.kind <= POOLING_CLS);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(kinds, folder_make, folder_drop),
        cmocka_unit_test_setup_teardown(refusals, folder_make, folder_drop),
        cmocka_unit_test_setup_teardown(fingerprints, folder_make, folder_drop),
        cmocka_unit_test_setup_teardown(damage, folder_make, folder_drop),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
