#include "engine/device_sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct device_sampler {
    struct device *device;
    u32 max_rows, vocab, max_logprobs;
    u32 rows, asked;        /* of this step: rows; most log-probabilities beside the chosen one's, of a row */
    struct sample_row *row; /* [max_rows] */
    u32 *lists;
    u32 n_lists, cap_lists;
    /* on the device */
    struct sample_row *device_row;
    u32 *device_lists, device_cap;
    void *scratch;
    u8 *results; /* choices, then log-probabilities */
    u8 *copy;    /* of results, pinned */
};
enum { FIRST_LISTS = 1 << 16 }; /* words */

static size_t choices_bytes(u32 max_rows)
{
    return (max_rows * sizeof(struct sample_choice) + 255) / 256 * 256;
}

static size_t results_bytes(u32 max_rows, u32 max_logprobs)
{
    return choices_bytes(max_rows) + max_rows * (1 + (size_t)max_logprobs) * sizeof(struct token_logprob);
}

size_t device_sampler_bytes(u32 max_rows, u32 vocab, u32 max_logprobs)
{
    return max_rows * sizeof(struct sample_row) + FIRST_LISTS * sizeof(u32) +
           device_sample_bytes(max_rows, vocab) + results_bytes(max_rows, max_logprobs);
}

struct device_sampler *device_sampler_new(struct device *d, u32 max_rows, u32 vocab, u32 max_logprobs,
                                          struct error *err)
{
    struct device_sampler *s = mem_zero(1, sizeof *s);
    *s = (struct device_sampler){
        .device = d, .max_rows = max_rows, .vocab = vocab, .max_logprobs = max_logprobs};
    s->row = mem_zero(max_rows, sizeof *s->row);
    s->cap_lists = s->device_cap = FIRST_LISTS;
    s->lists = mem_alloc(s->cap_lists * sizeof *s->lists);
    s->device_row = device_alloc(d, max_rows * sizeof *s->row, err);
    if (s->device_row) s->device_lists = device_alloc(d, s->device_cap * sizeof *s->lists, err);
    if (s->device_lists) s->scratch = device_alloc(d, device_sample_bytes(max_rows, vocab), err);
    if (s->scratch) s->results = device_alloc(d, results_bytes(max_rows, max_logprobs), err);
    if (s->results) s->copy = device_host_alloc(d, results_bytes(max_rows, max_logprobs), err);
    if (s->copy) return s;
    device_sampler_free(s);
    return NULL;
}

void device_sampler_free(struct device_sampler *s)
{
    if (!s) return;
    void *const parts[] = {s->device_row, s->device_lists, s->scratch, s->results};
    for (size_t i = 0; i < COUNT_OF(parts); i++) device_free(s->device, parts[i]);
    device_host_free(s->device, s->copy);
    free(s->row);
    free(s->lists);
    free(s);
}

/* ---- rows */
/* Room for n words; what is written there is the list. */
static u32 *list_room(struct device_sampler *s, struct sample_list *list, u32 n)
{
    if (s->n_lists + n > s->cap_lists) {
        while (s->n_lists + n > s->cap_lists) s->cap_lists *= 2;
        s->lists = mem_resize(s->lists, s->cap_lists * sizeof *s->lists);
    }
    *list = (struct sample_list){s->n_lists, n};
    s->n_lists += n;
    return s->lists + list->at;
}

static void list_copy(struct device_sampler *s, struct sample_list *list, const void *words, u32 n)
{
    u32 *to = list_room(s, list, n);
    if (n) memcpy(to, words, n * sizeof *to);
}

static void add_changes(struct device_sampler *s, struct sample_row *to, const struct sampler_row *r,
                        const i32 *history, u32 n)
{
    struct sample_list bad;
    to->edits = 1;
    to->repetition = r->sampling.repetition_penalty;
    to->presence = r->sampling.presence_penalty;
    to->frequency = r->sampling.frequency_penalty;
    list_copy(s, &to->allowed, r->allowed, r->n_allowed);
    list_copy(s, &to->bias, r->bias, 2 * r->n_bias);
    list_copy(s, &to->ends, r->ends, sampler_ends_masked(r, n) ? r->n_ends : 0);
    list_copy(s, &to->counts, r->counts, 2 * r->n_counts);
    i32 *words = (i32 *)list_room(s, &bad, r->n_bad_words / 2);
    bad.n = sampler_forbidden(r, history, n, words);
    to->bad = bad;
    s->n_lists = bad.at + bad.n;
}

void device_sampler_clear(struct device_sampler *s)
{
    s->rows = s->asked = s->n_lists = 0;
}

u32 device_sampler_add(struct device_sampler *s, const struct sampler_row *r, const i32 *history, u32 n,
                       u32 logits)
{
    _Static_assert(sizeof(struct token_bias) == 8 && sizeof(struct token_count) == 8, "both are two words");
    const struct sampling *p = &r->sampling;
    BUG_ON(s->rows == s->max_rows);
    struct sample_row *to = &s->row[s->rows];
    float scale = sampler_scale(p);
    *to = (struct sample_row){.logits = logits,
                              .top_k = p->top_k,
                              .n_logprobs = MIN_OF(p->n_logprobs, (i32)s->max_logprobs),
                              .greedy = scale == 0,
                              .draw = scale == 0 ? 0 : sampler_uniform(r, n),
                              .drop = sampler_drop(p),
                              .scale = scale,
                              .min_p = p->min_p};
    if (sampler_changes(r, n)) add_changes(s, to, r, history, n);
    s->asked = MAX_OF(s->asked, (u32)MAX_OF(to->n_logprobs, 0));
    return s->rows++;
}

/* ---- running */
static int grow_lists(struct device_sampler *s, struct error *err)
{
    if (s->n_lists <= s->device_cap) return 0;
    int rc =
        device_finish(s->device, err); /* freeing waits for all work, and looks after nothing meanwhile */
    if (rc) return rc;
    device_free(s->device, s->device_lists);
    s->device_cap = s->cap_lists;
    s->device_lists = device_alloc(s->device, s->device_cap * sizeof *s->lists, err);
    return s->device_lists ? 0 : ERR_MEMORY;
}

int device_sampler_run(struct device_sampler *s, const float *logits, struct error *err)
{
    struct device *d = s->device;
    int rc = grow_lists(s, err);
    if (rc) return rc;
    bool any = false;
    for (u32 i = 0; i < s->rows; i++) any |= s->row[i].n_logprobs >= 0;
    size_t logprobs = choices_bytes(s->max_rows), entries = any ? s->rows * (1 + (size_t)s->asked) : 0;
    device_upload(d, s->device_row, s->row, s->rows * sizeof *s->row);
    device_upload(d, s->device_lists, s->lists, s->n_lists * sizeof *s->lists);
    device_sample(d, &(struct sample_args){.logits = logits,
                                           .vocab = s->vocab,
                                           .rows = s->rows,
                                           .row = s->device_row,
                                           .lists = s->device_lists,
                                           .choices = (struct sample_choice *)s->results,
                                           .logprobs = (struct token_logprob *)(s->results + logprobs),
                                           .max_logprobs = s->asked,
                                           .scratch = s->scratch});
    device_download(d, s->copy, s->results, s->rows * sizeof(struct sample_choice));
    device_download(d, s->copy + logprobs, s->results + logprobs, entries * sizeof(struct token_logprob));
    return device_finish(d, err);
}

struct choice device_sampler_choice(const struct device_sampler *s, u32 index, struct token_logprob *logprobs)
{
    static const enum sampler_state states[] = {
        [SAMPLE_OK] = SAMPLER_OK, [SAMPLE_NONFINITE] = SAMPLER_NONFINITE, [SAMPLE_NOTHING] = SAMPLER_NOTHING};
    const struct sample_choice *c = (const struct sample_choice *)s->copy + index;
    const struct token_logprob *from = (const struct token_logprob *)(s->copy + choices_bytes(s->max_rows));
    if (c->n_logprobs)
        memcpy(logprobs, from + index * (1 + (size_t)s->asked), c->n_logprobs * sizeof *logprobs);
    return (struct choice){states[c->state], c->token, c->n_logprobs};
}
