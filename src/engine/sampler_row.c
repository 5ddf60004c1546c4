/* What a row keeps between steps: its lists and how often tokens appeared, so that a step costs as much as there are
 * different tokens and not as long as the history is. */
#include "engine/sampler.h"
#include <stdlib.h>
#include <string.h>

/* ---- counts --------------------------------------------------------------------------------------------------*/
static u32 *slot_of(const struct sampler_row *r, i32 id)
{
    u32 mask = 2 * r->cap_counts - 1,
        at = ((u32)id * 2654435761u >> 7) & mask; /* an odd factor near 2^32 / golden ratio */
    while (r->table[at] && r->counts[r->table[at] - 1].id != id) at = (at + 1) & mask;
    return &r->table[at];
}

static void grow(struct sampler_row *r)
{
    r->cap_counts = r->cap_counts ? 2 * r->cap_counts : 64;
    r->counts = mem_resize(r->counts, r->cap_counts * sizeof *r->counts);
    free(r->table);
    r->table = mem_zero(2 * (size_t)r->cap_counts, sizeof *r->table);
    for (u32 i = 0; i < r->n_counts; i++) *slot_of(r, r->counts[i].id) = i + 1;
}

static void count(struct sampler_row *r, i32 id, u32 times)
{
    if (r->n_counts == r->cap_counts) grow(r);
    u32 *slot = slot_of(r, id);
    if (!*slot) {
        r->counts[r->n_counts] = (struct token_count){id, 0};
        *slot = ++r->n_counts;
    }
    r->counts[*slot - 1].n += times;
}

void sampler_row_push(struct sampler_row *r, i32 token)
{
    if (r->penalties) count(r, token, 1);
}

/* ---- a row ---------------------------------------------------------------------------------------------------*/
static bool ids_inside(const i32 *ids, u32 n, u32 vocab)
{
    for (u32 i = 0; i < n; i++)
        if (ids[i] < 0 || (u32)ids[i] >= vocab) return false;
    return true;
}

/* Words: a length, then as many ids. */
static bool words_formed(const i32 *words, u32 n, u32 vocab)
{
    for (u32 at = 0; at < n;) {
        i32 len = words[at++];
        if (len < 1 || (u32)len > n - at || !ids_inside(words + at, (u32)len, vocab)) return false;
        at += (u32)len;
    }
    return true;
}

static bool valid(const struct sampler_spec *s, u32 vocab)
{
    for (u32 i = 0; i < s->n_bias; i++)
        if (!ids_inside(&s->bias[i].id, 1, vocab)) return false;
    return s->prompt_len <= s->n && ids_inside(s->history, s->n, vocab) &&
           ids_inside(s->allowed, s->n_allowed, vocab) && ids_inside(s->eos_ids, s->n_eos_ids, vocab) &&
           ids_inside(s->stop_ids, s->n_stop_ids, vocab) && words_formed(s->bad_words, s->n_bad_words, vocab);
}

static i32 *copy_ids(i32 **at, const i32 *ids, u32 n)
{
    i32 *start = *at;
    if (n) memcpy(start, ids, n * sizeof *ids);
    *at += n;
    return start;
}

static void copy_lists(struct sampler_row *r, const struct sampler_spec *s)
{
    size_t ids = (size_t)s->n_allowed + s->n_bad_words + s->n_eos_ids + s->n_stop_ids;
    r->lists = mem_alloc(s->n_bias * sizeof *s->bias + ids * sizeof(i32) + 1);
    r->bias = r->lists;
    if (s->n_bias) memcpy(r->bias, s->bias, s->n_bias * sizeof *s->bias);
    i32 *at = (i32 *)(r->bias + s->n_bias);
    r->allowed = copy_ids(&at, s->allowed, s->n_allowed);
    r->bad_words = copy_ids(&at, s->bad_words, s->n_bad_words);
    r->ends = copy_ids(&at, s->eos_ids, s->n_eos_ids);
    copy_ids(&at, s->stop_ids, s->n_stop_ids);
    r->n_bias = s->n_bias;
    r->n_allowed = s->n_allowed;
    r->n_bad_words = s->n_bad_words;
    r->n_ends = s->n_eos_ids + s->n_stop_ids;
}

int sampler_row_init(struct sampler_row *r, const struct sampler_spec *spec, u32 vocab, struct error *err)
{
    const struct sampling *p = spec->sampling;
    memset(r, 0, sizeof *r);
    if (!valid(spec, vocab))
        return error_set(err, ERR_PEER, "sampler",
                         "a token id outside of the vocabulary (%u), or malformed lists", vocab);
    r->sampling = *p;
    r->prompt_len = spec->prompt_len;
    copy_lists(r, spec);
    r->penalties = p->repetition_penalty != 1 || p->presence_penalty != 0 || p->frequency_penalty != 0;
    /* only the repetition penalty looks at the prompt */
    for (u32 i = p->repetition_penalty != 1 ? 0 : spec->prompt_len; r->penalties && i < spec->n; i++)
        count(r, spec->history[i], i >= spec->prompt_len);
    return 0;
}

void sampler_row_release(struct sampler_row *r)
{
    free(r->lists);
    free(r->counts);
    free(r->table);
    memset(r, 0, sizeof *r);
}
