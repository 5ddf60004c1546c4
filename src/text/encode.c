/* Text to ids: added tokens first, what lies between them through normalizer, pre-tokenizer and model. */
#include "text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>

static const size_t TEXT_MAX = (size_t)1 << 28; /* the model numbers the bytes of a word with 32 bits */

void text_spans_add(struct text_spans *spans, size_t from, size_t to)
{
    if (from == to) return;
    if (spans->len && spans->data[spans->len - 1].to == from) {
        spans->data[spans->len - 1].to = to;
        return;
    }
    if (spans->len == spans->cap) {
        spans->cap = spans->cap ? spans->cap * 2 : 16;
        spans->data = mem_resize(spans->data, spans->cap * sizeof(*spans->data));
    }
    spans->data[spans->len++] = (struct text_span){from, to};
}

void text_spans_release(struct text_spans *spans)
{
    free(spans->data);
    *spans = (struct text_spans){0};
}

bool spans_overlap(const struct text_spans *spans, size_t from, size_t to)
{
    if (!spans) return false;
    size_t low = 0, high = spans->len; /* the first span that ends after from */
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (spans->data[mid].to > from) {
            high = mid;
        } else {
            low = mid + 1;
        }
    }
    return low < spans->len && spans->data[low].from < to;
}

/* Cuts text at the added tokens of one of the two sets and gives the sections between them to `plain`. */
typedef int section_of(struct encoding *e, const char *text, size_t len);

static int by_added(struct encoding *e, const struct added *added, const struct added_mode *mode,
                    const char *text, size_t len, section_of *plain)
{
    size_t done = 0;
    while (done < len) {
        struct added_match m = {len, len, -1};
        if (added->n_tokens) m = added_find(added, text, len, done, mode);
        if (m.from > done) {
            int rc = plain(e, text + done, m.from - done);
            if (rc) return rc;
        }
        if (m.id >= 0) ids_add(e->out, m.id);
        done = m.to;
    }
    return 0;
}

/* A section without tokens of the raw set. Where the normalizer moves bytes, nobody knows which of them came from the
 * messages: then no special token of the normalized set is found in a section that holds any. */
static int raw_section(struct encoding *e, const char *text, size_t len)
{
    const struct tokenizer *t = e->t;
    size_t from = (size_t)(text - e->text);
    struct added_mode mode = {
        .split_special = e->flags & TOKENIZE_SPLIT_SPECIAL || spans_overlap(e->content, from, from + len),
    };
    int rc = normalizer_run(&t->normalizer, e->patterns, &text, &len, &e->normalized, e->err);
    if (rc) return rc;
    e->begin = from == 0 ? text : NULL;
    return by_added(e, &t->normalized, &mode, text, len, pretokenize);
}

static void add_ids(struct ids *to, const struct ids *from, size_t n)
{
    for (size_t i = 0; i < n; i++) ids_add(to, from->data[i]);
}

static int encode(struct encoding *e, const char *text, size_t len)
{
    const struct tokenizer *t = e->t;
    struct added_mode mode = {e->flags & TOKENIZE_SPLIT_SPECIAL, e->content};
    if (e->flags & TOKENIZE_ADD_SPECIAL) add_ids(e->out, &t->prefix, t->prefix.len);
    int rc = by_added(e, &t->raw, &mode, text, len, raw_section);
    if (rc == 0 && e->flags & TOKENIZE_ADD_SPECIAL) add_ids(e->out, &t->suffix, t->suffix.len);
    return rc;
}

int tokenizer_encode_spans(const struct tokenizer *t, const char *text, size_t len, unsigned flags,
                           const struct text_spans *content, struct ids *out, struct error *err)
{
    size_t good = utf8_valid(text, len), before = out->len;
    if (good < len) {
        char where[32];
        snprintf(where, sizeof(where), "byte %zu", good);
        return error_set(err, ERR_INPUT, where, "the text is not UTF-8");
    }
    if (len > TEXT_MAX)
        return error_set(err, ERR_INPUT, "", "a text of %zu bytes is too long to encode", len);
    struct encoding e = {.t = t, .text = text, .content = content, .flags = flags, .out = out, .err = err};
    e.bpe.text_len = len;
    e.patterns = pattern_scratch_new();
    if (!e.patterns) return error_set(err, ERR_MEMORY, "", "no memory for pattern matching");
    int rc = encode(&e, text, len);
    if (rc) out->len = before;
    pattern_scratch_free(e.patterns);
    bpe_scratch_release(&e.bpe);
    free(e.unigram.best);
    buf_release(&e.normalized);
    for (int i = 0; i < PRE_STEPS; i++) buf_release(&e.written[i]);
    buf_release(&e.joined);
    return rc;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, unsigned flags, struct ids *out,
                     struct error *err)
{
    return tokenizer_encode_spans(t, text, len, flags, NULL, out, err);
}

/* ---- pairs ---- */
int tokenizer_check_pairs(const struct tokenizer *t, struct error *err)
{
    const struct error *why = &t->pair.why;
    return t->pair.offered ? 0 : error_set(err, why->code, why->where, "%s", why->message);
}

void tokenizer_around(const struct tokenizer *t, u32 *before, u32 *behind)
{
    *before = (u32)t->prefix.len;
    *behind = (u32)t->suffix.len;
}

int tokenizer_join(const struct tokenizer *t, const struct ids *a, const struct ids *b, u32 most,
                   struct ids *out, u32 *second, struct error *err)
{
    const struct pair_form *p = &t->pair;
    int rc = tokenizer_check_pairs(t, err);
    if (rc) return rc;
    size_t fixed = a->len + p->before.len + p->between.len + p->behind.len, n_b = b->len;
    if (most && fixed > most)
        return error_set(err, ERR_FULL, "",
                         "the first text and what is put around both have %zu tokens, of %u", fixed, most);
    if (most) n_b = MIN_OF(n_b, most - fixed);
    add_ids(out, &p->before, p->before.len);
    add_ids(out, a, a->len);
    *second = p->typed ? (u32)(out->len + p->n_first) : 0;
    add_ids(out, &p->between, p->between.len);
    add_ids(out, b, n_b);
    add_ids(out, &p->behind, p->behind.len);
    return 0;
}
