/* WordPiece: the longest token that the rest of a word begins with, until nothing is left. WordLevel: whole words only. */
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

static int load_vocab(struct tokenizer *t, const struct json *model, struct error *err)
{
    struct wordpiece *w = &t->wordpiece;
    if (t->pre.bytes)
        return field_error(err, ERR_UNSUPPORTED, "pre_tokenizer",
                           "ByteLevel before this model is not supported");
    int rc = vocab_load(&t->vocab, json_get(model, "vocab"), err);
    if (rc == 0) rc = load_unk(&t->vocab, model, &w->unk, err);
    if (rc) return rc;
    for (i32 id = 0; id < t->vocab.n_ids; id++) {
        w->longest_token = MAX_OF(w->longest_token, (size_t)t->vocab.tokens[id].text_len);
        if (t->vocab.tokens[id].flags & TOKEN_MODEL) t->vocab.tokens[id].flags |= TOKEN_WHOLE;
    }
    vocab_set_words(&t->vocab, false);
    vocab_index_words(&t->vocab);
    return 0;
}

int wordpiece_load(struct tokenizer *t, const struct json *model, struct error *err)
{
    struct wordpiece *w = &t->wordpiece;
    const struct json *prefix = json_get(model, "continuing_subword_prefix");
    i64 max_chars = json_int(json_get(model, "max_input_chars_per_word"), 100);
    if (json_kind(prefix) > JK_NULL && json_kind(prefix) != JK_TEXT)
        return field_error(err, ERR_INPUT, "model.continuing_subword_prefix", "must be a string");
    if (max_chars < 1 || max_chars > 10000)
        return field_error(err, ERR_INPUT, "model.max_input_chars_per_word", "must be in 1..10000");
    w->prefix = json_text(prefix) ? mem_textn(json_text(prefix), json_len(prefix)) : mem_text("##");
    w->prefix_len = json_text(prefix) ? json_len(prefix) : 2;
    w->max_chars = (size_t)max_chars;
    return load_vocab(t, model, err);
}

int wordlevel_load(struct tokenizer *t, const struct json *model, struct error *err)
{
    return load_vocab(t, model, err);
}

void wordpiece_release(struct wordpiece *w)
{
    free(w->prefix);
    memset(w, 0, sizeof(*w));
}

static int put_unknown(struct encoding *e, const char *word, size_t len)
{
    if (e->t->wordpiece.unk < 0)
        return error_set(e->err, ERR_INPUT, "",
                         "the tokenizer knows no token for \"%.*s\", and none for what is unknown",
                         (int)MIN_OF(len, (size_t)40), word);
    ids_add(e->out, e->t->wordpiece.unk);
    return 0;
}

int wordlevel_word(struct encoding *e, const char *word, size_t len)
{
    i32 id = vocab_find_word(&e->t->vocab, word, len);
    if (id < 0) return put_unknown(e, word, len);
    ids_add(e->out, id);
    return 0;
}

/* The longest token at the begin of rest[0..len), with the prefix in front unless it begins the word. -1: none. */
static i32 longest(struct encoding *e, const char *rest, size_t len, bool first, size_t *used)
{
    const struct wordpiece *w = &e->t->wordpiece;
    size_t prefix = first ? 0 : w->prefix_len;
    if (!first) {
        buf_clear(&e->joined);
        buf_add(&e->joined, w->prefix, prefix);
        buf_add(&e->joined, rest, len);
        rest = e->joined.data;
    }
    while (len > 0 && len + prefix > w->longest_token) len -= (size_t)utf8_last(rest + prefix, len);
    for (; len > 0; len -= (size_t)utf8_last(rest + prefix, len)) {
        i32 id = vocab_find_word(&e->t->vocab, rest, prefix + len);
        *used = len;
        if (id >= 0) return id;
    }
    return -1;
}

static size_t characters(const char *word, size_t len)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++) n += ((u8)word[i] & 0xC0) != 0x80;
    return n;
}

int wordpiece_word(struct encoding *e, const char *word, size_t len)
{
    size_t before = e->out->len, used;
    if (characters(word, len) > e->t->wordpiece.max_chars) return put_unknown(e, word, len);
    for (size_t at = 0; at < len; at += used) {
        i32 id = longest(e, word + at, len - at, at == 0, &used);
        if (id < 0) {
            e->out->len = before;
            return put_unknown(e, word, len);
        }
        ids_add(e->out, id);
    }
    return 0;
}
