/* Added tokens: a trie of their texts; leftmost first, then longest. */
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

static i32 node_new(struct added *a, u8 byte)
{
    if (a->n_nodes == a->cap_nodes) {
        a->cap_nodes = a->cap_nodes ? a->cap_nodes * 2 : 64;
        a->nodes = mem_resize(a->nodes, (size_t)a->cap_nodes * sizeof(*a->nodes));
    }
    a->nodes[a->n_nodes] = (struct trie_node){.token = -1, .child = -1, .next = -1, .byte = byte};
    return a->n_nodes++;
}

void added_init(struct added *a)
{
    memset(a, 0, sizeof(*a));
    node_new(a, 0);
}

void added_release(struct added *a)
{
    free(a->tokens);
    free(a->nodes);
    memset(a, 0, sizeof(*a));
}

static i32 child_of(const struct added *a, i32 node, u8 byte)
{
    i32 c = a->nodes[node].child;
    while (c >= 0 && a->nodes[c].byte != byte) c = a->nodes[c].next;
    return c;
}

void added_put(struct added *a, const char *text, size_t len, const struct added_token *token)
{
    i32 node = 0;
    for (size_t i = 0; i < len; i++) {
        i32 next = child_of(a, node, (u8)text[i]);
        if (next < 0) {
            next = node_new(a, (u8)text[i]);
            a->nodes[next].next = a->nodes[node].child;
            a->nodes[node].child = next;
        }
        node = next;
    }
    a->first[(u8)text[0] / 64] |= 1ull << ((u8)text[0] % 64);
    a->nodes[node].token = a->n_tokens;
    a->tokens = mem_resize(a->tokens, (size_t)(a->n_tokens + 1) * sizeof(*a->tokens));
    a->tokens[a->n_tokens++] = *token;
}

/* The longest token at text[at] that mode allows; -1: none. */
static i32 longest(const struct added *a, const char *text, size_t len, size_t at,
                   const struct added_mode *mode, size_t *to)
{
    i32 best = -1;
    i32 node = child_of(a, 0, (u8)text[at]);
    for (size_t i = at + 1; node >= 0; i++) {
        i32 token = a->nodes[node].token;
        if (token >= 0) {
            const struct added_token *t = &a->tokens[token];
            bool plain = (t->special && mode->split_special) ||
                         ((t->special || t->control) && spans_overlap(mode->content, at, i));
            if (!plain) {
                best = token;
                *to = i;
            }
        }
        node = i < len ? child_of(a, node, (u8)text[i]) : -1;
    }
    return best;
}

static bool is_alone(const char *text, size_t len, size_t from, size_t to)
{
    int n;
    if (from > 0 && utf8_is_word(utf8_at(text + from - utf8_last(text, from), &n))) return false;
    return to == len || !utf8_is_word(utf8_at(text + to, &n));
}

struct added_match added_find(const struct added *a, const char *text, size_t len, size_t at,
                              const struct added_mode *mode)
{
    int n;
    for (size_t i = at; i < len; i++) {
        size_t from = i, to = 0;
        if (!(a->first[(u8)text[i] / 64] >> ((u8)text[i] % 64) & 1)) continue;
        i32 index = longest(a, text, len, i, mode, &to);
        if (index < 0) continue;
        const struct added_token *token = &a->tokens[index];
        if (token->single_word && !is_alone(text, len, from, to)) {
            i = to - 1;
            continue;
        }
        while (token->lstrip && from > at && utf8_is_space(utf8_at(text + from - utf8_last(text, from), &n)))
            from -= (size_t)utf8_last(text, from);
        for (; token->rstrip && to < len && utf8_is_space(utf8_at(text + to, &n)); to += (size_t)n) {}
        return (struct added_match){from, to, token->id};
    }
    return (struct added_match){len, len, -1};
}

/* White space and marks for it are content wherever they stand. */
static bool is_blank(const char *text, size_t len)
{
    int n;
    for (size_t at = 0; at < len; at += (size_t)n) {
        u32 cp = utf8_at(text + at, &n);
        if (!utf8_is_space(cp) && cp != 0x2581) return false;
    }
    return true;
}

void added_guard(struct added *a, const struct vocab *v, const char *source, size_t len)
{
    for (i32 i = 0; i < a->n_tokens; i++) {
        size_t n;
        const char *text = vocab_text(v, a->tokens[i].id, &n);
        a->tokens[i].control = !is_blank(text, n) && memmem(source, len, text, n) != NULL;
    }
}
