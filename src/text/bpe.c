/* Byte pair encoding: merge the pair of lowest rank, leftmost first, until no pair is in the table. */
#include "text/tokenizer.h"
#include "text/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const u32 NO_RANK = UINT32_MAX;

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

static int load_merge(struct bpe *b, const struct vocab *v, const struct json *item, u32 rank,
                      struct buf *joined, struct error *err)
{
    struct written w;
    char field[48];
    snprintf(field, sizeof(field), "model.merges[%u]", rank);
    if (!read_merge(item, &w))
        return field_error(err, ERR_INPUT, field, "must be \"left right\" or [left, right]");
    buf_clear(joined);
    buf_add(joined, w.left, w.left_len);
    buf_add(joined, w.right, w.right_len);
    i32 left = vocab_find(v, w.left, w.left_len), right = vocab_find(v, w.right, w.right_len);
    i32 id = vocab_find(v, joined->data, joined->len);
    if (left < 0 || right < 0 || id < 0)
        return field_error(err, ERR_INPUT, field, "\"%.100s\" is not in model.vocab",
                           left < 0    ? w.left
                           : right < 0 ? w.right
                                       : joined->data);
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
    return kind == JK_NONE || kind == JK_NULL || (kind == JK_BOOL && !json_bool(v, false)) ||
           (kind == JK_TEXT && json_len(v) == 0) ||
           ((kind == JK_REAL || kind == JK_INT) && json_real(v, 1) == 0);
}

static int check_options(const struct json *model, struct error *err)
{
    static const char *const off[] = {"dropout", "continuing_subword_prefix", "end_of_word_suffix",
                                      "byte_fallback"};
    const char *type = json_text(json_get(model, "type"));
    if (json_kind(model) != JK_OBJECT) return field_error(err, ERR_INPUT, "model", "must be an object");
    if (type && strcmp(type, "BPE") != 0)
        return field_error(err, ERR_UNSUPPORTED, "model.type", "\"%.60s\" is not supported, only BPE", type);
    if (!type && json_kind(json_get(model, "merges")) == JK_NONE)
        return field_error(err, ERR_UNSUPPORTED, "model.type",
                           "is not given and model.merges is missing: not BPE");
    for (size_t i = 0; i < COUNT_OF(off); i++) {
        char field[64];
        snprintf(field, sizeof(field), "model.%s", off[i]);
        if (!is_off(json_get(model, off[i])))
            return field_error(err, ERR_UNSUPPORTED, field, "is set: not supported");
    }
    return 0;
}

int bpe_load(struct bpe *b, struct vocab *v, const struct json *model, struct error *err)
{
    int rc = check_options(model, err);
    if (rc == 0) rc = vocab_load(v, json_get(model, "vocab"), err);
    if (rc == 0) rc = load_merges(b, v, json_get(model, "merges"), err);
    if (rc) return rc;
    b->ignore_merges = json_bool(json_get(model, "ignore_merges"), false);
    b->fuse_unk = json_bool(json_get(model, "fuse_unk"), false);
    b->unk = -1;
    const struct json *unk = json_get(model, "unk_token");
    if (!is_off(unk)) {
        b->unk = json_text(unk) ? vocab_find(v, json_text(unk), json_len(unk)) : -1;
        if (b->unk < 0) return field_error(err, ERR_INPUT, "model.unk_token", "is not in model.vocab");
    }
    for (int byte = 0; byte < 256; byte++) {
        char c[UTF8_MAX];
        b->byte_id[byte] = vocab_find(v, c, (size_t)utf8_put(alphabet_char((u8)byte), c));
    }
    if (b->ignore_merges && v->n_ids) vocab_index_bytes(v);
    return 0;
}

void bpe_release(struct bpe *b)
{
    free(b->merges);
    b->merges = NULL;
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
    memset(s, 0, sizeof(*s));
}

static u32 rank_of(const struct bpe *b, i32 left, i32 right)
{
    const struct merge *m = merge_slot(b, pair_of(left, right));
    return m->id >= 0 ? m->rank : NO_RANK;
}

static size_t first_symbols(const struct bpe *b, const char *word, size_t len, struct bpe_node *nodes)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        i32 id = b->byte_id[(u8)word[i]];
        bool known = id >= 0;
        if (!known) id = b->unk;
        if (id < 0) continue;
        if (!known && b->fuse_unk && n && nodes[n - 1].id == b->unk) continue;
        nodes[n++].id = id;
    }
    for (size_t i = 0; i < n; i++) {
        nodes[i].prev = (i32)i - 1;
        nodes[i].next = i + 1 < n ? (i32)i + 1 : -1;
        nodes[i].rank = i + 1 < n ? rank_of(b, nodes[i].id, nodes[i + 1].id) : NO_RANK;
    }
    return n;
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

void bpe_word(const struct bpe *b, const struct vocab *v, struct bpe_scratch *s, const char *word, size_t len,
              struct ids *out)
{
    enum { SHORT_WORD = 32 };
    if (b->ignore_merges) {
        i32 id = vocab_find_bytes(v, word, len);
        if (id >= 0) {
            ids_add(out, id);
            return;
        }
    }
    if (len > s->cap) {
        s->cap = MAX_OF(len, (size_t)64);
        s->nodes = mem_resize(s->nodes, s->cap * sizeof(*s->nodes));
    }
    size_t n = first_symbols(b, word, len, s->nodes);
    if (n <= SHORT_WORD) {
        n = merge_short(b, s->nodes, n);
    } else {
        merge_long(b, s, n);
    }
    for (size_t i = 0; i < n; i++) {
        if (s->nodes[i].id >= 0) ids_add(out, s->nodes[i].id);
    }
}
