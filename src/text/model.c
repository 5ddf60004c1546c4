/* Models: the table of them, and what they share. */
#include "text/tokenizer.h"

#include <stdio.h>
#include <string.h>

static const struct model_row rows[] = {
    {"BPE", bpe_load, bpe_word},
    {"Unigram", unigram_load, unigram_word},
    {"WordPiece", wordpiece_load, wordpiece_word},
    {"WordLevel", wordlevel_load, wordlevel_word},
};

/* Files of old have no type: then the fields tell. */
static const char *type_of(const struct json *model)
{
    const struct json *vocab = json_get(model, "vocab");
    if (json_get(model, "type")) return json_text(json_get(model, "type"));
    if (json_get(model, "merges")) return "BPE";
    if (json_kind(vocab) == JK_ARRAY) return "Unigram";
    if (json_get(model, "continuing_subword_prefix")) return "WordPiece";
    return vocab ? "WordLevel" : NULL;
}

int model_load(struct tokenizer *t, const struct json *model, struct error *err)
{
    if (json_kind(model) != JK_OBJECT)
        return field_error(err, ERR_INPUT, "model", "must be an object, not %s",
                           json_kind_name(json_kind(model)));
    const char *type = type_of(model);
    if (!type) return field_error(err, ERR_INPUT, "model.type", "must be a string");
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        if (strcmp(type, rows[i].type) != 0) continue;
        t->model = &rows[i];
        return rows[i].load(t, model, err);
    }
    return field_error(err, ERR_UNSUPPORTED, "model.type", "\"%.60s\" is not supported", type);
}

void find_byte_tokens(const struct vocab *v, i32 ids[256])
{
    for (int byte = 0; byte < 256; byte++) {
        char text[8];
        ids[byte] = vocab_find(v, text, (size_t)snprintf(text, sizeof(text), "<0x%02X>", byte));
    }
}

int load_unk(const struct vocab *v, const struct json *model, i32 *unk, struct error *err)
{
    const struct json *text = json_get(model, "unk_token");
    *unk = vocab_find_json(v, text);
    if (*unk >= 0 || json_kind(text) <= JK_NULL || (json_kind(text) == JK_TEXT && json_len(text) == 0))
        return 0;
    return field_error(err, ERR_INPUT, "model.unk_token", "is not in model.vocab");
}
