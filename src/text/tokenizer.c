/* A tokenizer: reading a model folder's files, and what can be asked about tokens. */
#include "text/tokenizer.h"
#include "text/template.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENIZER_FILE_MAX = 256 << 20, CONFIG_FILE_MAX = 16 << 20 };

static const char *const names[TOKENIZER_NAMED] = {"bos", "eos", "pad", "unk"};

void ids_add(struct ids *ids, i32 id)
{
    if (ids->len == ids->cap) {
        ids->cap = ids->cap ? ids->cap * 2 : 64;
        ids->data = mem_resize(ids->data, ids->cap * sizeof(*ids->data));
    }
    ids->data[ids->len++] = id;
}

void ids_release(struct ids *ids)
{
    free(ids->data);
    *ids = (struct ids){0};
}

int field_error(struct error *err, int code, const char *field, const char *fmt, ...)
{
    char text[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    return error_set(err, code, field, "%s", text);
}

/* ---- tokenizer.json ---- */

static int load_added_token(struct tokenizer *t, const struct json *item, const char *field,
                            struct pattern_scratch *scratch, struct error *err)
{
    const struct json *content = json_get(item, "content"), *id = json_get(item, "id");
    const char *text = json_text(content);
    if (!text || json_kind(id) != JK_INT)
        return field_error(err, ERR_INPUT, field, "must have a content (string) and an id (integer)");
    int rc = vocab_add(&t->vocab, text, json_len(content), json_int(id, -1), field, err);
    if (rc) return rc;
    struct added_token token = {
        .id = (i32)json_int(id, -1),
        .special = json_bool(json_get(item, "special"), false),
        .single_word = json_bool(json_get(item, "single_word"), false),
        .lstrip = json_bool(json_get(item, "lstrip"), false),
        .rstrip = json_bool(json_get(item, "rstrip"), false),
    };
    struct token *known = &t->vocab.tokens[token.id];
    if (token.special) known->flags |= TOKEN_SPECIAL;
    if (!json_bool(json_get(item, "normalized"), !token.special)) {
        added_put(&t->raw, text, json_len(content), &token);
        return 0;
    }
    struct buf normal = {0};
    size_t len = json_len(content);
    rc = normalizer_run(&t->normalizer, scratch, &text, &len, &normal, err);
    if (rc == 0 && len) {
        added_put(&t->normalized, text, len, &token);
        known->bytes = (u32)t->vocab.pool.len; /* such a token is decoded to its normalized text */
        known->bytes_len = (u32)len;
        buf_add(&t->vocab.pool, text, len);
    }
    buf_release(&normal);
    return rc;
}

static int load_added(struct tokenizer *t, const struct json *list, struct error *err)
{
    if (json_kind(list) == JK_NONE || json_kind(list) == JK_NULL) return 0;
    if (json_kind(list) != JK_ARRAY) return field_error(err, ERR_INPUT, "added_tokens", "must be an array");
    struct pattern_scratch *scratch = pattern_scratch_new();
    int rc = scratch ? 0 : error_set(err, ERR_MEMORY, "added_tokens", "no memory for pattern matching");
    for (size_t i = 0; rc == 0 && i < json_len(list); i++) {
        char field[48];
        snprintf(field, sizeof(field), "added_tokens[%zu]", i);
        rc = load_added_token(t, json_item(list, i), field, scratch, err);
    }
    pattern_scratch_free(scratch);
    return rc;
}

static int load_parts(struct tokenizer *t, const struct json *root, struct error *err)
{
    if (json_kind(root) != JK_OBJECT) return field_error(err, ERR_INPUT, "", "must hold an object");
    int rc = pretokenizer_load(&t->pre, json_get(root, "pre_tokenizer"), err); /* says what a word is */
    if (rc == 0) rc = model_load(t, json_get(root, "model"), err);
    if (rc == 0) rc = normalizer_load(&t->normalizer, json_get(root, "normalizer"), err);
    if (rc == 0) rc = load_added(t, json_get(root, "added_tokens"), err);
    if (rc == 0) rc = decoder_load(t, json_get(root, "decoder"), err);
    if (rc == 0) rc = post_load(t, json_get(root, "post_processor"), err);
    return rc;
}

/* ---- tokenizer_config.json ---- */

static int load_names(struct tokenizer *t, const struct json *config, struct error *err)
{
    for (int i = 0; i < TOKENIZER_NAMED; i++) {
        char key[32];
        snprintf(key, sizeof(key), "%s_token", names[i]);
        const struct json *v = json_get(config, key);
        if (json_kind(v) == JK_OBJECT) v = json_get(v, "content");
        if (json_kind(v) == JK_NONE || json_kind(v) == JK_NULL) continue;
        if (json_kind(v) != JK_TEXT) return field_error(err, ERR_INPUT, key, "must be a string");
        t->named_text[i] = mem_textn(json_text(v), json_len(v));
        t->named_id[i] = vocab_find_json(&t->vocab, v);
    }
    return 0;
}

/* An error of a field gets the file's path in front. */
static int in_file(int rc, const char *path, struct error *err)
{
    if (rc == 0 || !err) return rc;
    char where[256];
    snprintf(where, sizeof(where), "%.160s%s%.90s", path, err->where[0] ? ": " : "", err->where);
    memcpy(err->where, where, sizeof(where));
    return rc;
}

static int load_files(struct tokenizer *t, const char *dir, struct error *err)
{
    char path[PATH_LEN];
    int rc = path_join(path, sizeof(path), err, "%s/tokenizer.json", dir);
    if (rc) return rc;
    struct json *root = json_read_file(path, TOKENIZER_FILE_MAX, err);
    if (!root) return -1;
    rc = in_file(load_parts(t, root, err), path, err);
    json_drop(root);
    if (rc) return rc;
    rc = path_join(path, sizeof(path), err, "%s/tokenizer_config.json", dir);
    if (rc || !file_exists(path)) return rc;
    root = json_read_file(path, CONFIG_FILE_MAX, err);
    if (!root) return -1;
    rc = in_file(load_names(t, root, err), path, err);
    json_drop(root);
    return rc;
}

static struct tokenizer *new_tokenizer(void)
{
    struct tokenizer *t = mem_zero(1, sizeof(*t));
    vocab_init(&t->vocab);
    added_init(&t->raw);
    added_init(&t->normalized);
    for (int i = 0; i < TOKENIZER_NAMED; i++) t->named_id[i] = -1;
    return t;
}

struct tokenizer *tokenizer_load(const char *dir, struct error *err)
{
    struct tokenizer *t = new_tokenizer();
    if (load_files(t, dir, err) == 0) return t;
    tokenizer_free(t);
    return NULL;
}

struct tokenizer *tokenizer_read(const char *text, size_t len, struct error *err)
{
    struct json *root = json_read(text, len, err);
    if (!root) return NULL;
    struct tokenizer *t = new_tokenizer();
    int rc = load_parts(t, root, err);
    json_drop(root);
    if (rc == 0) return t;
    tokenizer_free(t);
    return NULL;
}

void tokenizer_free(struct tokenizer *t)
{
    if (!t) return;
    vocab_release(&t->vocab);
    added_release(&t->raw);
    added_release(&t->normalized);
    normalizer_release(&t->normalizer);
    pretokenizer_release(&t->pre);
    bpe_release(&t->bpe);
    unigram_release(&t->unigram);
    wordpiece_release(&t->wordpiece);
    ids_release(&t->prefix);
    ids_release(&t->suffix);
    ids_release(&t->pair.before);
    ids_release(&t->pair.between);
    ids_release(&t->pair.behind);
    for (int i = 0; i < TOKENIZER_NAMED; i++) free(t->named_text[i]);
    free(t);
}

void tokenizer_guard(struct tokenizer *t, const struct chat_template *tmpl)
{
    added_guard(&t->raw, &t->vocab, tmpl->source, tmpl->source_len);
    added_guard(&t->normalized, &t->vocab, tmpl->source, tmpl->source_len);
}

/* ---- questions ---- */

static bool is_token(const struct tokenizer *t, i32 id)
{
    return id >= 0 && id < t->vocab.n_ids && t->vocab.tokens[id].flags & TOKEN_USED;
}

i32 tokenizer_vocab_size(const struct tokenizer *t)
{
    return t->vocab.n_ids;
}

i32 tokenizer_id(const struct tokenizer *t, const char *token)
{
    return vocab_find(&t->vocab, token, strlen(token));
}

const char *tokenizer_token_bytes(const struct tokenizer *t, i32 id, size_t *len)
{
    *len = is_token(t, id) ? t->vocab.tokens[id].bytes_len : 0;
    return is_token(t, id) ? t->vocab.pool.data + t->vocab.tokens[id].bytes : NULL;
}

bool tokenizer_is_special(const struct tokenizer *t, i32 id)
{
    return is_token(t, id) && t->vocab.tokens[id].flags & TOKEN_SPECIAL;
}

static int name_index(const char *name)
{
    for (int i = 0; i < TOKENIZER_NAMED; i++) {
        if (strcmp(name, names[i]) == 0) return i;
    }
    BUG("no such name: %s", name);
}

i32 tokenizer_named_id(const struct tokenizer *t, const char *name)
{
    return t->named_id[name_index(name)];
}

const char *tokenizer_named_text(const struct tokenizer *t, const char *name)
{
    return t->named_text[name_index(name)];
}
