/* The vocabulary: tokens by id, by the file's spelling and by the bytes they stand for. */
#include "text/tokenizer.h"
#include "text/utf8.h"

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

void vocab_release(struct vocab *v)
{
    free(v->tokens);
    free(v->by_text);
    free(v->by_bytes);
    buf_release(&v->pool);
    vocab_init(v);
}

static const char *token_text(const struct vocab *v, i32 id, size_t *len)
{
    *len = v->tokens[id].text_len;
    return v->pool.data + v->tokens[id].text;
}

static const char *token_bytes(const struct vocab *v, i32 id, size_t *len)
{
    *len = v->tokens[id].bytes_len;
    return v->pool.data + v->tokens[id].bytes;
}

typedef const char *key_of(const struct vocab *v, i32 id, size_t *len);

/* The slot that holds the key, or the free one where it belongs. */
static i32 *slot_of(const struct vocab *v, i32 *map, u32 mask, key_of *key, const char *k, size_t len)
{
    u32 at = (u32)hash_bytes(k, len, 0) & mask;
    for (;; at = (at + 1) & mask) {
        if (map[at] < 0) return &map[at];
        size_t n;
        const char *have = key(v, map[at], &n);
        if (n == len && memcmp(have, k, len) == 0) return &map[at];
    }
}

static i32 *map_new(u32 slots)
{
    i32 *map = mem_alloc(slots * sizeof(*map));
    memset(map, 0xFF, slots * sizeof(*map));
    return map;
}

/* Both maps hold at most one entry an id: half full at most. */
static void resize(struct vocab *v, i32 n_ids)
{
    v->tokens = mem_resize(v->tokens, (size_t)n_ids * sizeof(*v->tokens));
    memset(v->tokens + v->n_ids, 0, (size_t)(n_ids - v->n_ids) * sizeof(*v->tokens));
    v->n_ids = n_ids;
    if (v->by_text && (u32)n_ids <= v->mask / 2) return;
    u32 slots = 64;
    while (slots < (u32)n_ids * 2 + 2) slots *= 2;
    free(v->by_text);
    v->by_text = map_new(slots);
    v->mask = slots - 1;
    for (i32 id = 0; id < n_ids; id++) {
        if (!(v->tokens[id].flags & TOKEN_USED)) continue;
        size_t len;
        const char *text = token_text(v, id, &len);
        *slot_of(v, v->by_text, v->mask, token_text, text, len) = id;
    }
}

i32 vocab_find(const struct vocab *v, const char *text, size_t len)
{
    return v->by_text ? *slot_of(v, v->by_text, v->mask, token_text, text, len) : -1;
}

i32 vocab_find_bytes(const struct vocab *v, const char *bytes, size_t len)
{
    if (!v->by_bytes) return -1;
    return *slot_of(v, v->by_bytes, v->bytes_mask, token_bytes, bytes, len);
}

/* Only tokens spelled in the alphabet: words are, after the ByteLevel step. What is added later is not found here. */
void vocab_index_bytes(struct vocab *v)
{
    free(v->by_bytes);
    v->by_bytes = map_new(v->mask + 1);
    v->bytes_mask = v->mask;
    for (i32 id = 0; id < v->n_ids; id++) {
        if (!(v->tokens[id].flags & TOKEN_ALPHABET)) continue;
        size_t len;
        const char *key = token_bytes(v, id, &len);
        *slot_of(v, v->by_bytes, v->bytes_mask, token_bytes, key, len) = id;
    }
}

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
        const char *have = token_text(v, (i32)id, &n);
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
    if (id >= v->n_ids) resize(v, (i32)id + 1);
    struct token *t = &v->tokens[id];
    t->flags = TOKEN_USED;
    t->text = (u32)v->pool.len;
    t->text_len = (u32)len;
    buf_add(&v->pool, text, len);
    t->bytes = (u32)v->pool.len;
    if (alphabet_bytes(text, len, &v->pool)) t->flags |= TOKEN_ALPHABET;
    t->bytes_len = (u32)(v->pool.len - t->bytes);
    *slot_of(v, v->by_text, v->mask, token_text, text, len) = (i32)id;
    return 0;
}

int vocab_load(struct vocab *v, const struct json *object, struct error *err)
{
    if (json_kind(object) != JK_OBJECT)
        return field_error(err, ERR_INPUT, "model.vocab", "must be an object, not %s",
                           json_kind_name(json_kind(object)));
    size_t n = json_len(object);
    if (n > VOCAB_MAX_ID) return field_error(err, ERR_INPUT, "model.vocab", "%zu tokens are too many", n);
    if (n) resize(v, (i32)n);
    for (void *it = json_first(object); it; it = json_next(object, it)) {
        const struct json *id = json_value(it);
        if (json_kind(id) != JK_INT)
            return field_error(err, ERR_INPUT, "model.vocab",
                               "the id of \"%.100s\" must be an integer, not %s", json_key(it),
                               json_kind_name(json_kind(id)));
        int rc = vocab_add(v, json_key(it), json_key_len(it), json_int(id, -1), "model.vocab", err);
        if (rc) return rc;
    }
    while (v->n_ids > 0 && !(v->tokens[v->n_ids - 1].flags & TOKEN_USED)) v->n_ids--;
    return 0;
}
