/* The vocabulary: tokens by id, by the file's spelling and by the word that they are for the model. */
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

/* Printable Latin-1 characters stand for themselves, the other bytes for U+0100 and what follows, in order. */
static bool stands_for_itself(u32 c)
{
    return (c >= '!' && c <= '~') || (c >= 0xA1 && c <= 0xAC) || (c >= 0xAE && c <= 0xFF);
}

u32 alphabet_char(u8 byte)
{
    u32 others = 0;
    if (stands_for_itself(byte)) return byte;
    for (u32 c = 0; c < byte; c++) others += !stands_for_itself(c);
    return 256 + others;
}

static int alphabet_byte(u32 cp)
{
    enum { OTHERS = 68 };
    static const u8 other[OTHERS] = {
        0,   1,   2,   3,   4,   5,   6,   7,   8,   9,   10,  11,  12,  13,  14,  15,  16,
        17,  18,  19,  20,  21,  22,  23,  24,  25,  26,  27,  28,  29,  30,  31,  32,  127,
        128, 129, 130, 131, 132, 133, 134, 135, 136, 137, 138, 139, 140, 141, 142, 143, 144,
        145, 146, 147, 148, 149, 150, 151, 152, 153, 154, 155, 156, 157, 158, 159, 160, 173,
    };
    if (cp < 256) return stands_for_itself(cp) ? (int)cp : -1;
    return cp < 256 + OTHERS ? other[cp - 256] : -1;
}

bool alphabet_bytes(const char *text, size_t len, struct buf *out)
{
    size_t before = out->len;
    for (size_t at = 0; at < len;) {
        int n;
        int byte = alphabet_byte(utf8_at(text + at, &n));
        if (byte < 0) {
            out->len = before;
            buf_add(out, text, len);
            return false;
        }
        buf_char(out, (char)byte);
        at += (size_t)n;
    }
    return true;
}

void vocab_init(struct vocab *v)
{
    memset(v, 0, sizeof(*v));
}

/* A word of at most 8 bytes is compared in its slot. */
struct word_slot {
    u64 begin; /* its first 8 bytes, zeroes behind them */
    u32 len;   /* 0: free */
    i32 id;
};

void vocab_release(struct vocab *v)
{
    free(v->tokens);
    free(v->by_text);
    free(v->by_word);
    buf_release(&v->pool);
    vocab_init(v);
}

const char *vocab_text(const struct vocab *v, i32 id, size_t *len)
{
    *len = v->tokens[id].text_len;
    return v->pool.data + v->tokens[id].text;
}

/* ---- by text ---- */

/* The slot that holds the text, or the free one where it belongs. */
static i32 *text_slot(const struct vocab *v, const char *text, size_t len)
{
    u32 at = (u32)hash_bytes(text, len, 0) & v->mask;
    for (;; at = (at + 1) & v->mask) {
        if (v->by_text[at] < 0) return &v->by_text[at];
        size_t n;
        const char *have = vocab_text(v, v->by_text[at], &n);
        if (n == len && memcmp(have, text, len) == 0) return &v->by_text[at];
    }
}

/* The map holds at most one entry an id: half full at most. */
void vocab_resize(struct vocab *v, i32 n_ids)
{
    if (n_ids <= v->n_ids) return;
    v->tokens = mem_resize(v->tokens, (size_t)n_ids * sizeof(*v->tokens));
    memset(v->tokens + v->n_ids, 0, (size_t)(n_ids - v->n_ids) * sizeof(*v->tokens));
    v->n_ids = n_ids;
    if (v->by_text && (u32)n_ids <= v->mask / 2) return;
    u32 slots = 64;
    while (slots < (u32)n_ids * 2 + 2) slots *= 2;
    free(v->by_text);
    v->by_text = mem_alloc(slots * sizeof(*v->by_text));
    memset(v->by_text, 0xFF, slots * sizeof(*v->by_text));
    v->mask = slots - 1;
    for (i32 id = 0; id < n_ids; id++) {
        if (!(v->tokens[id].flags & TOKEN_USED)) continue;
        size_t len;
        const char *text = vocab_text(v, id, &len);
        *text_slot(v, text, len) = id;
    }
}

i32 vocab_find(const struct vocab *v, const char *text, size_t len)
{
    return v->by_text ? *text_slot(v, text, len) : -1;
}

i32 vocab_find_json(const struct vocab *v, const struct json *text)
{
    return json_text(text) ? vocab_find(v, json_text(text), json_len(text)) : -1;
}

/* ---- by word ---- */

static u64 begin_of(const char *word, size_t len)
{
    u64 begin = 0;
    memcpy(&begin, word, MIN_OF(len, sizeof(begin)));
    return begin;
}

static u32 word_hash(u64 begin, const char *word, size_t len)
{
    if (len > sizeof(begin)) return (u32)hash_bytes(word, len, 0);
    u64 h = (begin ^ len) * 0x9E3779B97F4A7C15u;
    h ^= h >> 32;
    return (u32)((h * 0xD6E8FEB86659FD93u) >> 32);
}

static struct word_slot *word_slot(const struct vocab *v, const char *word, size_t len)
{
    u64 begin = begin_of(word, len);
    u32 at = word_hash(begin, word, len) & v->word_mask;
    for (;; at = (at + 1) & v->word_mask) {
        struct word_slot *slot = &v->by_word[at];
        if (slot->len == 0) return slot;
        if (slot->len != len || slot->begin != begin) continue;
        if (len <= sizeof(begin)) return slot;
        if (memcmp(v->pool.data + v->tokens[slot->id].word + sizeof(begin), word + sizeof(begin),
                   len - sizeof(begin)) == 0)
            return slot;
    }
}

void vocab_set_words(struct vocab *v, bool alphabet)
{
    struct buf word = {0};
    for (i32 id = 0; id < v->n_ids; id++) {
        struct token *t = &v->tokens[id];
        if (!(t->flags & TOKEN_MODEL)) continue;
        t->word = t->text;
        t->word_len = t->text_len;
        if (!alphabet) continue;
        buf_clear(&word);
        bool spelled = alphabet_bytes(v->pool.data + t->text, t->text_len, &word);
        t->word = (u32)v->pool.len;
        t->word_len = spelled ? (u32)word.len : 0;
        buf_add(&v->pool, word.data, t->word_len);
    }
    buf_release(&word);
}

void vocab_index_words(struct vocab *v)
{
    u32 slots = 64;
    while (slots < (u32)v->n_ids * 2) slots *= 2;
    free(v->by_word);
    v->by_word = mem_zero(slots, sizeof(*v->by_word));
    v->word_mask = slots - 1;
    for (i32 id = 0; id < v->n_ids; id++) {
        const struct token *t = &v->tokens[id];
        if (!(t->flags & TOKEN_WHOLE) || t->word_len == 0) continue;
        const char *word = v->pool.data + t->word;
        *word_slot(v, word, t->word_len) = (struct word_slot){begin_of(word, t->word_len), t->word_len, id};
    }
}

i32 vocab_find_word(const struct vocab *v, const char *word, size_t len)
{
    if (!v->by_word || len == 0) return -1;
    const struct word_slot *slot = word_slot(v, word, len);
    return slot->len ? slot->id : -1;
}

/* ---- reading ---- */

static int check_new(const struct vocab *v, const char *text, size_t len, i64 id, const char *field,
                     struct error *err)
{
    if (id < 0 || id > VOCAB_MAX_ID)
        return field_error(err, ERR_INPUT, field, "id %lld of \"%.100s\" is not in 0..%d", (long long)id,
                           text, VOCAB_MAX_ID);
    if (len == 0 || len > TOKEN_MAX_BYTES)
        return field_error(err, ERR_INPUT, field, "the token with id %lld has %zu bytes, not 1..%d",
                           (long long)id, len, TOKEN_MAX_BYTES);
    if (id < v->n_ids && v->tokens[id].flags & TOKEN_USED) {
        size_t n;
        const char *have = vocab_text(v, (i32)id, &n);
        return field_error(err, ERR_INPUT, field, "id %lld is both \"%.*s\" and \"%.100s\"", (long long)id,
                           (int)MIN_OF(n, 100u), have, text);
    }
    return 0;
}

int vocab_add(struct vocab *v, const char *text, size_t len, i64 id, const char *field, struct error *err)
{
    i32 known = vocab_find(v, text, len);
    if (known >= 0 && known == id) return 0;
    if (known >= 0)
        return field_error(err, ERR_INPUT, field, "\"%.100s\" has id %lld here and id %d before", text,
                           (long long)id, known);
    int rc = check_new(v, text, len, id, field, err);
    if (rc) return rc;
    if (v->pool.len > UINT32_MAX / 2)
        return field_error(err, ERR_INPUT, field, "more than 2 GiB of token texts");
    vocab_resize(v, (i32)id + 1);
    struct token *t = &v->tokens[id];
    t->flags = TOKEN_USED;
    t->text = (u32)v->pool.len;
    t->text_len = (u32)len;
    buf_add(&v->pool, text, len);
    *text_slot(v, text, len) = (i32)id;
    return 0;
}

int vocab_load(struct vocab *v, const struct json *object, struct error *err)
{
    if (json_kind(object) != JK_OBJECT)
        return field_error(err, ERR_INPUT, "model.vocab", "must be an object, not %s",
                           json_kind_name(json_kind(object)));
    size_t n = json_len(object);
    if (n > VOCAB_MAX_ID) return field_error(err, ERR_INPUT, "model.vocab", "%zu tokens are too many", n);
    vocab_resize(v, (i32)n);
    for (void *it = json_first(object); it; it = json_next(object, it)) {
        const struct json *id = json_value(it);
        if (json_kind(id) != JK_INT)
            return field_error(err, ERR_INPUT, "model.vocab",
                               "the id of \"%.100s\" must be an integer, not %s", json_key(it),
                               json_kind_name(json_kind(id)));
        int rc = vocab_add(v, json_key(it), json_key_len(it), json_int(id, -1), "model.vocab", err);
        if (rc) return rc;
        v->tokens[json_int(id, -1)].flags |= TOKEN_MODEL;
    }
    while (v->n_ids > 0 && !(v->tokens[v->n_ids - 1].flags & TOKEN_USED)) v->n_ids--;
    return 0;
}
