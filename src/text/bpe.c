/* Byte pair encoding: merge the pair of lowest rank, leftmost first, until no pair is in the table. */
#include "text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const u32 NO_RANK = UINT32_MAX;

/* What SentencePiece writes for a blank. */
#define MARK "\xe2\x96\x81"
enum { MARK_LEN = 3 };

/* ---- the table of merges ---- */

static u64 pair_of(i32 left, i32 right)
{
    return (u64)(u32)left << 32 | (u32)right;
}

static u64 hash_of(u64 pair)
{
    pair *= 0x9E3779B97F4A7C15ull;
    return pair ^ pair >> 29;
}

static struct merge *merge_slot(const struct bpe *b, u64 pair)
{
    u64 at = hash_of(pair) & b->mask;
    while (b->merges[at].id >= 0 && b->merges[at].pair != pair) at = (at + 1) & b->mask;
    return &b->merges[at];
}

/* Most pairs are in no merge. A bit for each hash, in less memory than the table, says so. */
static u64 *maybe_word(const struct bpe *b, u64 pair, u64 *bit)
{
    u64 at = hash_of(pair) >> 26 & b->maybe_mask;
    *bit = 1ull << (at % 64);
    return &b->maybe[at / 64];
}

/* The merge of two symbols; NULL: none. */
static const struct merge *find_merge(const struct bpe *b, i32 left, i32 right)
{
    u64 pair = pair_of(left, right), bit;
    if (!(*maybe_word(b, pair, &bit) & bit)) return NULL;
    const struct merge *m = merge_slot(b, pair);
    return m->id >= 0 ? m : NULL;
}

/* A merge as the file writes it: "left right" or ["left", "right"]. */
struct written {
    const char *left, *right;
    size_t left_len, right_len;
};

static bool read_merge(const struct json *item, struct written *w)
{
    const char *text = json_text(item);
    if (text) {
        size_t len = json_len(item);
        const char *space = memchr(text, ' ', len);
        if (!space) return false;
        *w = (struct written){text, space + 1, (size_t)(space - text), len - (size_t)(space - text) - 1};
        return !memchr(w->right, ' ', w->right_len);
    }
    const struct json *left = json_item(item, 0), *right = json_item(item, 1);
    *w = (struct written){json_text(left), json_text(right), json_len(left), json_len(right)};
    return json_kind(item) == JK_ARRAY && json_len(item) == 2 && w->left && w->right;
}

/* Kinds of characters, for cuts: ASCII ones, the mark, all others. */
enum { KIND_MARK = 128, KIND_OTHER };

static u8 kind_at(const char *text, size_t len)
{
    if ((u8)text[0] < 128) return (u8)text[0];
    return len >= MARK_LEN && memcmp(text, MARK, MARK_LEN) == 0 ? KIND_MARK : KIND_OTHER;
}

/* Which kinds meet where the merge joins: between others a word can be cut before it is merged. */
static void note_join(struct bpe *b, const struct written *w)
{
    size_t last = (size_t)utf8_last(w->left, w->left_len);
    u8 left = kind_at(w->left + w->left_len - last, last), right = kind_at(w->right, w->right_len);
    b->joins[left][right / 64] |= 1ull << (right % 64);
}

/* What the pair becomes: left and right, the latter without continuing_subword_prefix. */
static int load_merge(struct bpe *b, const struct vocab *v, const struct json *item, u32 rank,
                      struct buf *joined, struct error *err)
{
    struct written w;
    char field[48];
    size_t skip = b->prefix ? strlen(b->prefix) : 0;
    snprintf(field, sizeof(field), "model.merges[%u]", rank);
    if (!read_merge(item, &w))
        return field_error(err, ERR_INPUT, field, "must be \"left right\" or [left, right]");
    skip = MIN_OF(skip, w.right_len);
    buf_clear(joined);
    buf_add(joined, w.left, w.left_len);
    buf_add(joined, w.right + skip, w.right_len - skip);
    i32 left = vocab_find(v, w.left, w.left_len), right = vocab_find(v, w.right, w.right_len);
    i32 id = vocab_find(v, joined->data, joined->len);
    if (left < 0 || right < 0 || id < 0)
        return field_error(err, ERR_INPUT, field, "\"%.100s\" is not in model.vocab",
                           left < 0    ? w.left
                           : right < 0 ? w.right
                                       : joined->data);
    if (w.left_len && w.right_len) note_join(b, &w);
    if (id == left || id == right)
        return field_error(err, ERR_INPUT, field, "adds nothing to \"%.100s\"", w.left);
    struct merge *slot = merge_slot(b, pair_of(left, right));
    u64 bit;
    *slot = (struct merge){pair_of(left, right), rank, id};
    *maybe_word(b, slot->pair, &bit) |= bit;
    return 0;
}

static int load_merges(struct bpe *b, const struct vocab *v, const struct json *list, struct error *err)
{
    if (json_kind(list) != JK_ARRAY) return field_error(err, ERR_INPUT, "model.merges", "must be an array");
    size_t n = json_len(list), slots = 64;
    if (n > VOCAB_MAX_ID) return field_error(err, ERR_INPUT, "model.merges", "%zu merges are too many", n);
    while (slots < n * 2) slots *= 2;
    b->merges = mem_alloc(slots * sizeof(*b->merges));
    b->mask = slots - 1;
    b->maybe_mask = slots * 8 - 1;
    b->maybe = mem_zero(slots / 8, sizeof(*b->maybe));
    for (size_t i = 0; i < slots; i++) b->merges[i].id = -1;
    b->cuts = !b->bytes && !b->ignore_merges && !b->prefix && !b->suffix;
    struct buf joined = {0};
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++) rc = load_merge(b, v, json_item(list, i), (u32)i, &joined, err);
    buf_release(&joined);
    return rc;
}

/* ---- the model's options ---- */

static bool is_off(const struct json *v)
{
    enum json_kind kind = json_kind(v);
    return kind == JK_NONE || kind == JK_NULL || (kind == JK_TEXT && json_len(v) == 0) ||
           ((kind == JK_REAL || kind == JK_INT) && json_real(v, 1) == 0);
}

static int load_affix(struct bpe *b, const struct json *model, const char *name, char **to, struct error *err)
{
    char field[64];
    const struct json *v = json_get(model, name);
    if (is_off(v)) return 0;
    snprintf(field, sizeof(field), "model.%s", name);
    if (json_kind(v) != JK_TEXT || strlen(json_text(v)) != json_len(v))
        return field_error(err, ERR_INPUT, field, "must be a string without NUL, not %s",
                           json_kind_name(json_kind(v)));
    /* A word is bytes then, which an affix of characters would have to be spelled in as well. */
    if (b->bytes && strcmp(name, "continuing_subword_prefix") == 0)
        return field_error(err, ERR_UNSUPPORTED, field, "with a ByteLevel pre-tokenizer is not supported");
    *to = mem_text(json_text(v));
    return 0;
}

static int load_options(struct tokenizer *t, const struct json *model, struct error *err)
{
    struct bpe *b = &t->bpe;
    if (!is_off(json_get(model, "dropout")))
        return field_error(err, ERR_UNSUPPORTED, "model.dropout", "is set: only training uses it");
    b->bytes = t->pre.bytes;
    b->ignore_merges = json_bool(json_get(model, "ignore_merges"), false);
    b->fuse_unk = json_bool(json_get(model, "fuse_unk"), false);
    b->byte_fallback = json_bool(json_get(model, "byte_fallback"), false);
    int rc = load_affix(b, model, "continuing_subword_prefix", &b->prefix, err);
    return rc ? rc : load_affix(b, model, "end_of_word_suffix", &b->suffix, err);
}

/* The ids of single bytes and of ASCII characters, which need no search then. */
static void find_symbols(struct bpe *b, const struct vocab *v)
{
    for (int byte = 0; byte < 256 && b->bytes; byte++) {
        char c[UTF8_MAX];
        b->byte_id[byte] = vocab_find(v, c, (size_t)utf8_put(alphabet_char((u8)byte), c));
    }
    if (!b->bytes) find_byte_tokens(v, b->byte_id);
    for (int c = 0; c < 128; c++) {
        b->ascii_id[c] = vocab_find(v, (char[]){(char)c}, 1);
        b->known[c] = b->ascii_id[c] >= 0;
    }
    b->known[KIND_MARK] = vocab_find(v, MARK, MARK_LEN) >= 0;
}

/* Marks the tokens that are what merging makes of their own word: most words of a text are found so, without merging. */
static void find_whole(struct tokenizer *t)
{
    struct ids ids = {0};
    struct encoding e = {.t = t, .out = &ids};
    struct vocab *v = &t->vocab;
    for (i32 id = 0; id < v->n_ids; id++) {
        struct token *token = &v->tokens[id];
        if (!(token->flags & TOKEN_MODEL) || token->word_len == 0) continue;
        if (!t->bpe.ignore_merges) {
            ids.len = 0;
            bpe_word(&e, v->pool.data + token->word, token->word_len);
            if (ids.len != 1 || ids.data[0] != id) continue;
        }
        token->flags |= TOKEN_WHOLE;
    }
    bpe_scratch_release(&e.bpe);
    ids_release(&ids);
    vocab_index_words(v);
}

int bpe_load(struct tokenizer *t, const struct json *model, struct error *err)
{
    struct bpe *b = &t->bpe;
    int rc = load_options(t, model, err);
    if (rc == 0) rc = vocab_load(&t->vocab, json_get(model, "vocab"), err);
    if (rc == 0) rc = load_merges(b, &t->vocab, json_get(model, "merges"), err);
    if (rc == 0) rc = load_unk(&t->vocab, model, &b->unk, err);
    if (rc) return rc;
    find_symbols(b, &t->vocab);
    vocab_set_words(&t->vocab, b->bytes);
    find_whole(t);
    return 0;
}

void bpe_release(struct bpe *b)
{
    free(b->merges);
    free(b->maybe);
    free(b->prefix);
    free(b->suffix);
    memset(b, 0, sizeof(*b));
}

/* ---- encoding a word ---- */

struct bpe_node {
    i32 id; /* -1: was merged into its left neighbour */
    i32 prev, next;
    u32 rank;   /* of the pair (this, next); NO_RANK: not in the table */
    i32 merged; /* what the pair becomes */
};

/* A word that was merged already, in one cache line. */
enum { MEMO_BYTES = 30, MEMO_IDS = 8, MEMO_MIN = 64, MEMO_MAX = 16384 };
struct word_memo {
    u8 len, n; /* len 0: free */
    char word[MEMO_BYTES];
    i32 ids[MEMO_IDS];
};

void bpe_scratch_release(struct bpe_scratch *s)
{
    free(s->symbols);
    free(s->nodes);
    free(s->memo);
    pair_queue_release(&s->queue);
    buf_release(&s->symbol);
    memset(s, 0, sizeof(*s));
}

static void set_rank(const struct bpe *b, struct bpe_node *node, i32 right)
{
    const struct merge *m = find_merge(b, node->id, right);
    node->rank = m ? m->rank : NO_RANK;
    node->merged = m ? m->id : -1;
}

/* Symbols of a word in the making. A symbol that is not in the vocabulary waits: the next unknown one may join it, and
 * symbols for its bytes go in front of it. */
struct symbols {
    i32 *ids;
    size_t n;
    bool unknown;
};

static void put_unknown(const struct bpe *b, struct symbols *s)
{
    if (b->unk < 0) return;
    if (s->unknown && !b->fuse_unk) s->ids[s->n++] = b->unk;
    s->unknown = true;
}

static void put_known(const struct bpe *b, struct symbols *s, i32 id)
{
    if (s->unknown) s->ids[s->n++] = b->unk;
    s->unknown = false;
    s->ids[s->n++] = id;
}

static bool put_bytes(const struct bpe *b, struct symbols *s, const char *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (b->byte_id[(u8)bytes[i]] < 0) return false;
    for (size_t i = 0; i < len; i++) s->ids[s->n++] = b->byte_id[(u8)bytes[i]];
    return true;
}

/* A character of a word of characters; symbol is scratch memory for it with its affixes. */
static void put_character(const struct bpe *b, const struct vocab *v, struct symbols *s, const char *c,
                          size_t len, bool first, bool last, struct buf *symbol)
{
    if ((b->prefix && !first) || (b->suffix && last)) {
        buf_clear(symbol);
        if (b->prefix && !first) buf_text(symbol, b->prefix);
        buf_add(symbol, c, len);
        if (b->suffix && last) buf_text(symbol, b->suffix);
        c = symbol->data;
        len = symbol->len;
    }
    i32 id = len == 1 ? b->ascii_id[(u8)c[0]] : vocab_find(v, c, len);
    if (id >= 0) {
        put_known(b, s, id);
    } else if (!b->byte_fallback || !put_bytes(b, s, c, len)) {
        put_unknown(b, s);
    }
}

static size_t first_symbols(const struct bpe *b, const struct vocab *v, struct bpe_scratch *scratch,
                            const char *word, size_t len)
{
    struct symbols s = {.ids = scratch->symbols};
    int used;
    for (size_t i = 0; i < len && b->bytes; i++) {
        i32 id = b->byte_id[(u8)word[i]];
        if (id >= 0) {
            put_known(b, &s, id);
        } else {
            put_unknown(b, &s);
        }
    }
    for (size_t i = 0; i < len && !b->bytes; i += (size_t)used) {
        utf8_at(word + i, &used);
        put_character(b, v, &s, word + i, (size_t)used, i == 0, i + (size_t)used == len, &scratch->symbol);
    }
    if (s.unknown) s.ids[s.n++] = b->unk;
    return s.n;
}

/* Few symbols: look at all of them for each merge. What is looked at lies close together. */
enum { SHORT_WORD = 32 };
struct pairs {
    u32 rank[SHORT_WORD + 1]; /* of the pair that begins here */
    i32 merged[SHORT_WORD + 1];
};

static void rank_short(const struct bpe *b, struct pairs *p, const i32 *ids, size_t at)
{
    const struct merge *m = find_merge(b, ids[at], ids[at + 1]);
    p->rank[at] = m ? m->rank : NO_RANK;
    p->merged[at] = m ? m->id : -1;
}

static size_t merge_short(const struct bpe *b, i32 *ids, size_t n)
{
    struct pairs p = {.rank = {0}};
    for (size_t i = 0; i + 1 < n; i++) rank_short(b, &p, ids, i);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++) best = p.rank[i] < p.rank[best] ? i : best;
        if (p.rank[best] == NO_RANK) break;
        ids[best] = p.merged[best];
        n--;
        for (size_t i = best + 1; i < n; i++) {
            ids[i] = ids[i + 1];
            p.rank[i] = p.rank[i + 1];
            p.merged[i] = p.merged[i + 1];
        }
        if (best + 1 < n) rank_short(b, &p, ids, best);
        if (best > 0) rank_short(b, &p, ids, best - 1);
    }
    return n;
}

static void rank_pair(const struct bpe *b, struct bpe_scratch *s, i32 left)
{
    struct bpe_node *node = &s->nodes[left];
    node->rank = NO_RANK;
    if (node->next >= 0) set_rank(b, node, s->nodes[node->next].id);
    if (node->rank != NO_RANK) pair_queue_push(&s->queue, node->rank, left);
}

/* Many symbols: a queue of pairs. An entry whose rank is not its node's any more is stale. */
static size_t merge_long(const struct bpe *b, struct bpe_scratch *s, size_t n)
{
    if (n > s->cap_nodes) {
        s->cap_nodes = n;
        s->nodes = mem_resize(s->nodes, n * sizeof(*s->nodes));
    }
    for (size_t i = 0; i < n; i++)
        s->nodes[i] = (struct bpe_node){s->symbols[i], (i32)i - 1, i + 1 < n ? (i32)i + 1 : -1, NO_RANK, -1};
    for (size_t i = 0; i < n; i++) rank_pair(b, s, (i32)i);
    u32 rank;
    i32 at;
    while (pair_queue_pop(&s->queue, &rank, &at)) {
        struct bpe_node *node = &s->nodes[at];
        if (node->id < 0 || node->rank != rank) continue;
        struct bpe_node *right = &s->nodes[node->next];
        node->id = node->merged;
        right->id = -1;
        node->next = right->next;
        if (node->next >= 0) s->nodes[node->next].prev = at;
        rank_pair(b, s, at);
        if (node->prev >= 0) rank_pair(b, s, node->prev);
    }
    size_t left = 0;
    for (size_t i = 0; i < n; i++)
        if (s->nodes[i].id >= 0) s->symbols[left++] = s->nodes[i].id;
    return left;
}

/* Room for a symbol a byte, affixes that are spelled in bytes included, and a last unknown one. */
static void reserve_symbols(const struct bpe *b, struct bpe_scratch *s, size_t len)
{
    size_t need = len * (1 + (b->prefix ? strlen(b->prefix) : 0)) + (b->suffix ? strlen(b->suffix) : 0) + 1;
    if (need <= s->cap) return;
    s->cap = MAX_OF(need, (size_t)64);
    s->symbols = mem_resize(s->symbols, s->cap * sizeof(*s->symbols));
}

/* The place for a word; NULL when it is too long for one. The table grows with the text: a short text has few words twice. */
static struct word_memo *memo_of(struct bpe_scratch *s, const char *word, size_t len)
{
    if (len > MEMO_BYTES || s->text_len < MEMO_MIN) return NULL;
    if (!s->memo) {
        size_t slots = MEMO_MIN;
        while (slots < MEMO_MAX && slots * 32 < s->text_len) slots *= 2;
        s->memo = mem_zero(slots, sizeof(*s->memo));
        s->memo_mask = slots - 1;
    }
    return &s->memo[hash_bytes(word, len, 0) & s->memo_mask];
}

static void merge_word(struct encoding *e, const char *word, size_t len)
{
    const struct bpe *b = &e->t->bpe;
    struct bpe_scratch *s = &e->bpe;
    i32 id = vocab_find_word(&e->t->vocab, word, len);
    if (id >= 0) {
        ids_add(e->out, id);
        return;
    }
    struct word_memo *memo = memo_of(s, word, len);
    if (memo && memo->len == len && memcmp(memo->word, word, len) == 0) {
        for (u8 i = 0; i < memo->n; i++) ids_add(e->out, memo->ids[i]);
        return;
    }
    reserve_symbols(b, s, len);
    size_t n = first_symbols(b, &e->t->vocab, s, word, len);
    n = n <= SHORT_WORD ? merge_short(b, s->symbols, n) : merge_long(b, s, n);
    for (size_t i = 0; i < n; i++) ids_add(e->out, s->symbols[i]);
    if (!memo || n > MEMO_IDS) return;
    memo->len = (u8)len;
    memo->n = (u8)n;
    memcpy(memo->word, word, len);
    if (n) memcpy(memo->ids, s->symbols, n * sizeof(*memo->ids));
}

/* Where the next part of a word begins that may be merged alone: between two known characters that no merge joins. */
static size_t next_cut(const struct bpe *b, const char *word, size_t len)
{
    u8 left = kind_at(word, len);
    for (size_t at = (size_t)utf8_width(word); at < len; at += (size_t)utf8_width(word + at)) {
        u8 right = kind_at(word + at, len - at);
        if (b->known[left] && b->known[right] && !(b->joins[left][right / 64] >> (right % 64) & 1)) return at;
        left = right;
    }
    return len;
}

int bpe_word(struct encoding *e, const char *word, size_t len)
{
    while (len) {
        size_t n = e->t->bpe.cuts ? next_cut(&e->t->bpe, word, len) : len;
        merge_word(e, word, n);
        word += n;
        len -= n;
    }
    return 0;
}
