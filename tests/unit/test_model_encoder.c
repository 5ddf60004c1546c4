/* model/: encoders' config.json: what is read, and what is refused. */
#include "folder.h"
#include "mpiserve/model.h"

#include <math.h>

#define SIZES                                                                                                \
    "\"vocab_size\":320,\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":2,\"num_"         \
    "attention_heads\":4,"                                                                                   \
    "\"max_position_embeddings\":130"
#define BERT      "\"model_type\":\"bert\"," SIZES
#define ROBERTA   "\"model_type\":\"roberta\"," SIZES
#define XLMR      "\"model_type\":\"xlm-roberta\"," SIZES
#define CLASS(c)  ",\"architectures\":[\"" c "\"]"
#define ONE_LABEL ",\"id2label\":{\"0\":\"LABEL_0\"}"
#define SCORER    BERT CLASS("BertForSequenceClassification") ONE_LABEL

static int read_config(const char *config, bool vectors, struct model_config *c, struct error *err)
{
    static const char modules[] = "[{\"path\":\"\",\"type\":\"sentence_transformers.models.Transformer\"},"
                                  "{\"path\":\"\",\"type\":\"sentence_transformers.models.Pooling\"}]";
    folder_empty();
    put("config.json", config, strlen(config));
    if (vectors) put("modules.json", modules, strlen(modules));
    return model_read_config(folder, c, err);
}

static void kinds(void **state)
{
    (void)state;
    static struct model_config c;
    static const struct {
        const char *config;
        bool vectors;
        u32 max_position, first, types;
        bool scores, sigmoid;
        float eps;
    } cases[] = {
        {"{" BERT "}", true, 130, 0, 2, false, false, 1e-12f},
        {"{" BERT CLASS("BertModel") ",\"layer_norm_eps\":1e-5,\"type_vocab_size\":3,\"position_embedding_"
                                     "type\":\"absolute\"}",
         true, 130, 0, 3, false, false, 1e-5f},
        {"{" BERT CLASS(
             "BertForMaskedLM") ",\"pad_token_id\":5,\"hidden_act\":\"gelu\",\"is_decoder\":false}",
         true, 130, 0, 2, false, false, 1e-12f},
        {"{" ROBERTA CLASS("RobertaModel") ",\"pad_token_id\":1,\"type_vocab_size\":1}", true, 128, 2, 1,
         false, false, 1e-12f},
        {"{" XLMR CLASS("XLMRobertaModel") "}", true, 128, 2, 2, false, false, 1e-12f},
        {"{" XLMR CLASS("XLMRobertaModel") ",\"pad_token_id\":0}", true, 129, 1, 2, false, false, 1e-12f},
        {"{" SCORER "}", false, 130, 0, 2, true, true, 1e-12f},
        {"{" BERT CLASS("BertForSequenceClassification") ",\"num_labels\":1}", false, 130, 0, 2, true, true,
         1e-12f},
        {"{" SCORER ",\"sbert_ce_default_activation_function\":\"torch.nn.modules.linear.Identity\"}", false,
         130, 0, 2, true, false, 1e-12f},
        {"{" SCORER ",\"sentence_transformers\":{\"activation_fn\":\"torch.nn.modules.activation.Sigmoid\","
         "\"version\":\"5\"},"
         "\"sbert_ce_default_activation_function\":\"torch.nn.modules.linear.Identity\"}",
         false, 130, 0, 2, true, true, 1e-12f}, /* the newer key counts */
        {"{" XLMR CLASS("XLMRobertaForSequenceClassification") ONE_LABEL "}", false, 128, 2, 2, true, true,
         1e-12f},
        {"{" ROBERTA CLASS("RobertaForSequenceClassification") ONE_LABEL "}", false, 128, 2, 2, true, true,
         1e-12f},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct error err = {0};
        if (read_config(cases[i].config, cases[i].vectors, &c, &err))
            fail_msg("case %zu: %s: %s", i, err.where, err.message);
        const struct encoder_config *e = &c.encoder;
        if (c.max_position != cases[i].max_position || e->first != cases[i].first ||
            e->types != cases[i].types || e->positions != 130 || c.pooling.scores != cases[i].scores ||
            c.pooling.sigmoid != cases[i].sigmoid || c.eps != cases[i].eps)
            fail_msg("case %zu: %u positions, first %u, %u types, %d%d, %g", i, c.max_position, e->first,
                     e->types, c.pooling.scores, c.pooling.sigmoid, (double)c.eps);
        assert_true(c.arch->encoder && c.head_dim == 16 && c.kv_heads == 4 && c.q_bias && c.o_bias &&
                    c.mlp_bias);
        assert_true(c.score_scale == 0.25f && c.rope.dims == 0);
        assert_int_equal(c.pooling.kind, c.pooling.scores ? POOLING_CLS : POOLING_MEAN);
        assert_int_equal(model_vector(&c), c.pooling.scores ? 1 : 64);
    }
}

static void refusals(void **state)
{
    (void)state;
    static struct model_config c;
    static const struct {
        const char *config;
        bool vectors;
        int code;
        const char *part, *also;
    } cases[] = {
        {"{" BERT CLASS("BertModel") "}", false, ERR_UNSUPPORTED, "modules.json", "generates nothing"},
        {"{" BERT "}", false, ERR_UNSUPPORTED, "modules.json", ""},
        {"{" BERT CLASS("BertForQuestionAnswering") "}", true, ERR_UNSUPPORTED, "BertForQuestionAnswering",
         "BertModel"},
        {"{" BERT CLASS("RobertaModel") "}", true, ERR_UNSUPPORTED, "RobertaModel", "bert"},
        {"{" BERT CLASS("BertForSequenceClassification") "}", false, ERR_UNSUPPORTED, "2 labels", "one"},
        {"{" BERT CLASS(
             "BertForSequenceClassification") ",\"id2label\":{\"0\":\"a\",\"1\":\"b\",\"2\":\"c\"}}",
         false, ERR_UNSUPPORTED, "3 labels", ""},
        {"{" SCORER "}", true, ERR_UNSUPPORTED, "classifier", "modules.json"},
        {"{" SCORER ",\"sbert_ce_default_activation_function\":\"torch.nn.modules.activation.Tanh\"}", false,
         ERR_UNSUPPORTED, "sbert_ce_default_activation_function", "Tanh"},
        {"{" SCORER ",\"sentence_transformers\":{\"activation_fn\":7}}", false, ERR_INPUT, "activation_fn",
         "integer"},
        {"{" BERT ",\"position_embedding_type\":\"relative_key\"}", true, ERR_UNSUPPORTED,
         "position_embedding_type", "relative_key"},
        {"{" BERT ",\"hidden_act\":\"relu\"}", true, ERR_UNSUPPORTED, "relu", "gelu"},
        {"{" BERT ",\"hidden_act\":\"gelu_new\"}", true, ERR_UNSUPPORTED, "gelu_new", ""},
        {"{" BERT ",\"is_decoder\":true}", true, ERR_UNSUPPORTED, "is_decoder", "bert"},
        {"{" BERT ",\"add_cross_attention\":true}", true, ERR_UNSUPPORTED, "add_cross_attention", ""},
        {"{" BERT ",\"quantization_config\":{\"quant_method\":\"fp8\"}}", true, ERR_UNSUPPORTED,
         "quantization_config", ""},
        {"{" BERT ",\"embedding_size\":32}", true, ERR_UNSUPPORTED, "embedding_size", "not understood"},
        {"{" BERT ",\"layer_norm_eps\":0}", true, ERR_INPUT, "layer_norm_eps", ""},
        {"{" BERT ",\"type_vocab_size\":0}", true, ERR_INPUT, "type_vocab_size", ""},
        {"{" ROBERTA ",\"pad_token_id\":129}", true, ERR_INPUT, "max_position_embeddings", "130"},
        {"{" ROBERTA ",\"pad_token_id\":-1}", true, ERR_INPUT, "pad_token_id", ""},
        {"{\"model_type\":\"bert\",\"vocab_size\":320,\"hidden_size\":66,\"intermediate_size\":128,\"num_"
         "hidden_layers\":2,"
         "\"num_attention_heads\":4,\"max_position_embeddings\":130}",
         true, ERR_INPUT, "num_attention_heads", "66"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct error err = {0};
        int rc = read_config(cases[i].config, cases[i].vectors, &c, &err);
        if (rc != cases[i].code) fail_msg("case %zu: %d, %s: %s", i, rc, err.where, err.message);
        expect_error(&err, cases[i].part);
        expect_error(&err, cases[i].also);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(kinds, folder_make, folder_drop),
        cmocka_unit_test_setup_teardown(refusals, folder_make, folder_drop),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("model_encoder", tests, NULL, NULL);
}
