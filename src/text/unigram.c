/* Unigram: of all ways to cut a word into tokens the one with the highest sum of scores (Viterbi). */
#include "text/tokenizer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A character without a token of its own costs as much more than the rarest token (SentencePiece). */
static const double UNKNOWN_PENALTY = 10.0;

/* ---- the trie of token texts ---- */

struct trie_edge {
    u32 parent;
    u32 child_byte; /* child << 8 | byte; child 0: free */
};
enum { NODE_MAX = 1 << 24 };

static struct trie_edge *edge_slot(const struct unigram *u, u32 parent, u8 byte)
{
    u64 h = ((u64)parent << 8 | byte) * 0x9E3779B97F4A7C15u;
    for (u32 at = (u32)(h >> 32) & u->mask;; at = (at + 1) & u->mask) {
        struct trie_edge *edge = &u->edges[at];
        if (edge->child_byte == 0 || (edge->parent == parent && (u8)edge->child_byte == byte)) return edge;
    }
}

static u32 node_new(struct unigram *u)
{
    if (u->n_nodes == u->cap_nodes) {
        u->cap_nodes = u->cap_nodes ? u->cap_nodes * 2 : 1024;
        u->ends = mem_resize(u->ends, (size_t)u->cap_nodes * sizeof(*u->ends));
    }
    u->ends[u->n_nodes] = -1;
    return (u32)u->n_nodes++;
}

static void grow_edges(struct unigram *u)
{
    struct unigram old = *u;
    if (u->edges && (u32)u->n_nodes <= u->mask / 2) return;
    u->mask = u->edges ? u->mask * 2 + 1 : 4095;
    u->edges = mem_zero((size_t)u->mask + 1, sizeof(*u->edges));
    for (u32 i = 0; old.edges && i <= old.mask; i++) {
        struct trie_edge *edge = &old.edges[i];
        if (edge->child_byte) *edge_slot(u, edge->parent, (u8)edge->child_byte) = *edge;
    }
    free(old.edges);
}

static bool trie_put(struct unigram *u, const char *text, size_t len, i32 id)
{
    u32 node = 0;
    for (size_t i = 0; i < len; i++) {
        grow_edges(u);
        struct trie_edge *edge = edge_slot(u, node, (u8)text[i]);
        if (edge->child_byte == 0) {
            if (u->n_nodes == NODE_MAX) return false;
            *edge = (struct trie_edge){node, node_new(u) << 8 | (u8)text[i]};
        }
        node = edge->child_byte >> 8;
    }
    u->ends[node] = id;
    return true;
}

/* ---- reading ---- */

/* A score as the Rust library reads it from the file: its digits as an integer, times or by a power of ten, each rounded. Scores
 * that are the last bit apart decide between paths that cost the same. */
static double rust_score(double exact)
{
    char text[40];
    int digits = 15;
    if (exact == 0 || fabs(exact) < 1e-200 || fabs(exact) > 1e200) return exact;
    do snprintf(text, sizeof(text), "%.*e", digits - 1, exact);
    while (strtod(text, NULL) != exact && digits++ < 17);
    char *e = strchr(text, 'e');
    int exponent = atoi(e + 1) - (digits - 1);
    u64 number = 0;
    for (const char *c = text; c < e; c++)
        if (*c >= '0' && *c <= '9') number = number * 10 + (u64)(*c - '0');
    for (; number % 10 == 0 && exponent < 0; number /= 10) exponent++;
    double score = exponent < 0 ? (double)number / pow(10, -exponent) : (double)number * pow(10, exponent);
    return exact < 0 ? -score : score;
}

static int load_piece(struct tokenizer *t, const struct json *piece, i32 id, struct error *err)
{
    struct unigram *u = &t->unigram;
    char field[48];
    snprintf(field, sizeof(field), "model.vocab[%d]", id);
    const struct json *text = json_item(piece, 0), *score = json_item(piece, 1);
    bool number = json_kind(score) == JK_REAL || json_kind(score) == JK_INT;
    if (json_len(piece) != 2 || json_kind(text) != JK_TEXT || !number)
        return field_error(err, ERR_INPUT, field, "must be [token, score]");
    int rc = vocab_add(&t->vocab, json_text(text), json_len(text), id, field, err);
    if (rc) return rc;
    t->vocab.tokens[id].flags |= TOKEN_MODEL;
    u->scores[id] = rust_score(json_real(score, 0));
    u->unk_score = MIN_OF(u->unk_score, u->scores[id] - UNKNOWN_PENALTY);
    if (!trie_put(u, json_text(text), json_len(text), id))
        return field_error(err, ERR_INPUT, field, "the texts of all tokens are too long");
    return 0;
}

int unigram_load(struct tokenizer *t, const struct json *model, struct error *err)
{
    struct unigram *u = &t->unigram;
    const struct json *vocab = json_get(model, "vocab"), *unk = json_get(model, "unk_id");
    if (t->pre.bytes)
        return field_error(err, ERR_UNSUPPORTED, "pre_tokenizer",
                           "ByteLevel before Unigram is not supported");
    if (json_kind(vocab) != JK_ARRAY) return field_error(err, ERR_INPUT, "model.vocab", "must be an array");
    if (json_len(vocab) > VOCAB_MAX_ID)
        return field_error(err, ERR_INPUT, "model.vocab", "%zu tokens are too many", json_len(vocab));
    u->n_ids = (i32)json_len(vocab);
    u->scores = mem_zero(json_len(vocab) + 1, sizeof(*u->scores));
    u->unk_score = -UNKNOWN_PENALTY;
    vocab_resize(&t->vocab, u->n_ids);
    node_new(u);
    grow_edges(u);
    for (i32 id = 0; id < u->n_ids; id++) {
        int rc = load_piece(t, json_item(vocab, (size_t)id), id, err);
        if (rc) return rc;
    }
    u->byte_fallback = json_bool(json_get(model, "byte_fallback"), false);
    u->unk = (i32)MIN_OF(json_int(unk, -1), (i64)INT32_MAX);
    if (json_kind(unk) > JK_NULL && (u->unk < 0 || u->unk >= u->n_ids))
        return field_error(err, ERR_INPUT, "model.unk_id", "is no index of model.vocab");
    find_byte_tokens(&t->vocab, u->byte_id);
    vocab_set_words(&t->vocab, false);
    return 0;
}

void unigram_release(struct unigram *u)
{
    free(u->scores);
    free(u->edges);
    free(u->ends);
    memset(u, 0, sizeof(*u));
}

/* ---- encoding a word ---- */

struct best_path { /* to a place between two characters */
    double score;
    u32 from;
    i32 id; /* NOWHERE: no path leads here yet */
};
enum { NOWHERE = -2, UNKNOWN = -1 };

static void offer(struct best_path *to, double score, u32 from, i32 id)
{
    if (to->id != NOWHERE && !(score > to->score)) return;
    *to = (struct best_path){score, from, id};
}

static void find_best(const struct unigram *u, struct best_path *best, const char *word, size_t len)
{
    int used;
    for (size_t at = 0; at <= len; at++) best[at].id = NOWHERE;
    best[0].score = 0;
    for (size_t at = 0; at < len; at += (size_t)used) {
        bool alone = false; /* the character is a token */
        u32 node = 0;
        utf8_at(word + at, &used);
        for (size_t to = at; to < len; to++) {
            u32 edge = edge_slot(u, node, (u8)word[to])->child_byte;
            if (edge == 0) break;
            node = edge >> 8;
            i32 id = u->ends[node];
            if (id < 0) continue;
            offer(&best[to + 1], best[at].score + u->scores[id], (u32)at, id);
            alone = alone || to + 1 == at + (size_t)used;
        }
        if (!alone) offer(&best[at + (size_t)used], best[at].score + u->unk_score, (u32)at, UNKNOWN);
    }
}

static int put_unknown(struct encoding *e, const char *text, size_t len)
{
    const struct unigram *u = &e->t->unigram;
    bool all = u->byte_fallback;
    if (u->unk >= 0 && vocab_find(&e->t->vocab, text, len) == u->unk) all = false; /* spelled out */
    for (size_t i = 0; i < len && all; i++) all = u->byte_id[(u8)text[i]] >= 0;
    for (size_t i = 0; i < len && all; i++) ids_add(e->out, u->byte_id[(u8)text[i]]);
    if (all) return 0;
    if (u->unk < 0)
        return error_set(e->err, ERR_INPUT, "",
                         "the tokenizer knows no token for \"%.*s\", and none for what is unknown",
                         (int)MIN_OF(len, (size_t)40), text);
    ids_add(e->out, u->unk);
    return 0;
}

/* Unknown characters in a row are one token. Its text may be a token's: "unknown" as the file has it is not excluded. */
int unigram_word(struct encoding *e, const char *word, size_t len)
{
    struct unigram_scratch *s = &e->unigram;
    const struct unigram *u = &e->t->unigram;
    if (len + 1 > s->cap) {
        s->cap = MAX_OF(len + 1, (size_t)256);
        s->best = mem_resize(s->best, s->cap * sizeof(*s->best));
    }
    find_best(u, s->best, word, len);
    /* Backwards to the begin; the chain is turned around in `from`. */
    u32 next = (u32)len, at = (u32)len;
    while (at > 0) {
        u32 from = s->best[at].from;
        s->best[at].from = next;
        next = at;
        at = from;
    }
    for (at = 0; at < len;) {
        u32 to = at == 0 ? next : s->best[at].from;
        i32 id = s->best[to].id;
        if (id == u->unk) id = UNKNOWN;
        if (id != UNKNOWN) {
            ids_add(e->out, id);
            at = to;
            continue;
        }
        while (to < len) {
            i32 after = s->best[s->best[to].from].id;
            if (after != UNKNOWN && after != u->unk) break;
            to = s->best[to].from;
        }
        int rc = put_unknown(e, word + at, to - at);
        if (rc) return rc;
        at = to;
    }
    return 0;
}
