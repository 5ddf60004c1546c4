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

static struct merge *merge_slot(const struct bpe *b, u64 pair)
{
    u64 at = (pair * 0x9E3779B97F4A7C15ull) >> 20 & b->mask;
    while (b->merges[at].id >= 0 && b->merges[at].pair != pair) at = (at + 1) & b->mask;
    return &b->merges[at];
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
    if (w.right_len >= MARK_LEN && memcmp(w.right, MARK, MARK_LEN) == 0 &&
        (w.left_len < MARK_LEN || memcmp(w.left + w.left_len - MARK_LEN, MARK, MARK_LEN) != 0))
        b->cuts = false;
    struct merge *slot = merge_slot(b, pair_of(left, right));
    *slot = (struct merge){pair_of(left, right), rank, id};
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
    for (size_t i = 0; i < slots; i++) b->merges[i].id = -1;
    b->cuts =
        !b->bytes && !b->ignore_merges && !b->prefix && !b->suffix && vocab_find(v, MARK, MARK_LEN) >= 0;
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
    for (int c = 0; c < 128; c++) b->ascii_id[c] = vocab_find(v, (char[]){(char)c}, 1);
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
    free(b->prefix);
    free(b->suffix);
    memset(b, 0, sizeof(*b));
}

/* ---- encoding a word ---- */

struct bpe_node {
    i32 id; /* -1: was merged into its left neighbour */
    i32 prev, next;
    u32 rank; /* of the pair (this, next); NO_RANK: not in the table */
};

void bpe_scratch_release(struct bpe_scratch *s)
{
    free(s->nodes);
    free(s->heap.entries);
    buf_release(&s->symbol);
    memset(s, 0, sizeof(*s));
}

static u32 rank_of(const struct bpe *b, i32 left, i32 right)
{
    const struct merge *m = merge_slot(b, pair_of(left, right));
    return m->id >= 0 ? m->rank : NO_RANK;
}

/* Symbols of a word in the making. A symbol that is not in the vocabulary waits: the next unknown one may join it, and
 * symbols for its bytes go in front of it. */
struct symbols {
    struct bpe_node *nodes;
    size_t n;
    bool unknown;
};

static void put_unknown(const struct bpe *b, struct symbols *s)
{
    if (b->unk < 0) return;
    if (s->unknown && !b->fuse_unk) s->nodes[s->n++].id = b->unk;
    s->unknown = true;
}

static void put_known(const struct bpe *b, struct symbols *s, i32 id)
{
    if (s->unknown) s->nodes[s->n++].id = b->unk;
    s->unknown = false;
    s->nodes[s->n++].id = id;
}

static bool put_bytes(const struct bpe *b, struct symbols *s, const char *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (b->byte_id[(u8)bytes[i]] < 0) return false;
    for (size_t i = 0; i < len; i++) s->nodes[s->n++].id = b->byte_id[(u8)bytes[i]];
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
    struct symbols s = {.nodes = scratch->nodes};
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
    if (s.unknown) s.nodes[s.n++].id = b->unk;
    for (size_t i = 0; i < s.n; i++) {
        s.nodes[i].prev = (i32)i - 1;
        s.nodes[i].next = i + 1 < s.n ? (i32)i + 1 : -1;
        s.nodes[i].rank = i + 1 < s.n ? rank_of(b, s.nodes[i].id, s.nodes[i + 1].id) : NO_RANK;
    }
    return s.n;
}

/* Few symbols: look at all of them for each merge. */
static size_t merge_short(const struct bpe *b, struct bpe_node *nodes, size_t n)
{
    for (;;) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++) {
            if (nodes[i].rank < nodes[best].rank) best = i;
        }
        if (n < 2 || nodes[best].rank == NO_RANK) return n;
        nodes[best].id = merge_slot(b, pair_of(nodes[best].id, nodes[best + 1].id))->id;
        n--;
        for (size_t i = best + 1; i < n; i++) nodes[i] = nodes[i + 1];
        nodes[best].rank = best + 1 < n ? rank_of(b, nodes[best].id, nodes[best + 1].id) : NO_RANK;
        if (best > 0) nodes[best - 1].rank = rank_of(b, nodes[best - 1].id, nodes[best].id);
    }
}

enum { WAYS = 4 };

static void heap_push(struct bpe_heap *h, u64 entry)
{
    if (h->n == h->cap) {
        h->cap = h->cap ? h->cap * 2 : 256;
        h->entries = mem_resize(h->entries, h->cap * sizeof(*h->entries));
    }
    size_t at = h->n++;
    for (; at > 0 && h->entries[(at - 1) / WAYS] > entry; at = (at - 1) / WAYS)
        h->entries[at] = h->entries[(at - 1) / WAYS];
    h->entries[at] = entry;
}

static u64 heap_pop(struct bpe_heap *h)
{
    u64 top = h->entries[0], last = h->entries[--h->n];
    size_t at = 0;
    for (;;) {
        size_t best = at * WAYS + 1, end = MIN_OF(best + WAYS, h->n);
        for (size_t i = best + 1; i < end; i++) {
            if (h->entries[i] < h->entries[best]) best = i;
        }
        if (best >= h->n || h->entries[best] >= last) break;
        h->entries[at] = h->entries[best];
        at = best;
    }
    h->entries[at] = last;
    return top;
}

static void rank_pair(const struct bpe *b, struct bpe_scratch *s, i32 left)
{
    struct bpe_node *node = &s->nodes[left];
    node->rank = node->next < 0 ? NO_RANK : rank_of(b, node->id, s->nodes[node->next].id);
    if (node->rank != NO_RANK) heap_push(&s->heap, (u64)node->rank << 32 | (u32)left);
}

/* Many symbols: a heap of pairs. An entry whose rank is not its node's any more is stale. */
static void merge_long(const struct bpe *b, struct bpe_scratch *s, size_t n)
{
    s->heap.n = 0;
    for (size_t i = 0; i < n; i++) {
        if (s->nodes[i].rank != NO_RANK) heap_push(&s->heap, (u64)s->nodes[i].rank << 32 | i);
    }
    while (s->heap.n) {
        u64 entry = heap_pop(&s->heap);
        i32 at = (i32)(u32)entry;
        struct bpe_node *node = &s->nodes[at];
        if (node->id < 0 || node->rank != entry >> 32) continue;
        struct bpe_node *right = &s->nodes[node->next];
        node->id = merge_slot(b, pair_of(node->id, right->id))->id;
        right->id = -1;
        node->next = right->next;
        if (node->next >= 0) s->nodes[node->next].prev = at;
        rank_pair(b, s, at);
        if (node->prev >= 0) rank_pair(b, s, node->prev);
    }
}

/* Room for a node a byte, affixes that are spelled in bytes included, and a last unknown one. */
static void reserve_nodes(const struct bpe *b, struct bpe_scratch *s, size_t len)
{
    size_t need = len * (1 + (b->prefix ? strlen(b->prefix) : 0)) + (b->suffix ? strlen(b->suffix) : 0) + 1;
    if (need <= s->cap) return;
    s->cap = MAX_OF(need, (size_t)64);
    s->nodes = mem_resize(s->nodes, s->cap * sizeof(*s->nodes));
}

static void merge_word(struct encoding *e, const char *word, size_t len)
{
    enum { SHORT_WORD = 32 };
    const struct bpe *b = &e->t->bpe;
    struct bpe_scratch *s = &e->bpe;
    i32 id = vocab_find_word(&e->t->vocab, word, len);
    if (id >= 0) {
        ids_add(e->out, id);
        return;
    }
    reserve_nodes(b, s, len);
    size_t n = first_symbols(b, &e->t->vocab, s, word, len);
    if (n <= SHORT_WORD) {
        n = merge_short(b, s->nodes, n);
    } else {
        merge_long(b, s, n);
    }
    for (size_t i = 0; i < n; i++) {
        if (s->nodes[i].id >= 0) ids_add(e->out, s->nodes[i].id);
    }
}

/* Where the next word of a word begins that may be cut: at a mark behind something else. */
static size_t next_cut(const char *word, size_t len)
{
    size_t at = 0;
    while (at + MARK_LEN <= len && memcmp(word + at, MARK, MARK_LEN) == 0) at += MARK_LEN;
    const char *mark = memmem(word + at, len - at, MARK, MARK_LEN);
    return mark ? (size_t)(mark - word) : len;
}

int bpe_word(struct encoding *e, const char *word, size_t len)
{
    while (len) {
        size_t n = e->t->bpe.cuts ? next_cut(word, len) : len;
        merge_word(e, word, n);
        word += n;
        len -= n;
    }
    return 0;
}
