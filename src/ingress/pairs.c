/* /v1/rerank and /v1/score: pairs of texts become prompts, one numbers of a model's head become scores. */
#include "ingress/call.h"
#include "ingress/prompts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_LEN = 40 };

/* ---- from the body to prompts -------------------------------------------------------------------------------- */
/* A text, or of `documents` an object that has one. */
static int read_text(const struct params *p, const struct json *v, const char *name, struct api_text *out,
                     struct api_error *e)
{
    const struct json *text = json_kind(v) == JK_OBJECT && p->api == API_RERANK ? json_get(v, "text") : v;
    if (json_kind(text) != JK_TEXT)
        return api_fail(e, API_BAD_VALUE, name, "`%s` must be a string%s, but is %s.", name,
                        p->api == API_RERANK && strchr(name, '[') ? " or an object with a `text`" : "",
                        json_kind_name(json_kind(text)));
    *out = (struct api_text){json_text(text), json_len(text)};
    return out->len ? 0 : api_fail(e, API_BAD_VALUE, name, "`%s` is empty.", name);
}

/* Item i of a list of texts; of one text, in a list or not: that one. */
static int read_item(const struct params *p, const struct json *v, const char *name, size_t i,
                     struct api_text *out, struct api_error *e)
{
    char path[NAME_LEN];
    if (json_kind(v) != JK_ARRAY) return read_text(p, v, name, out, e);
    if (json_len(v) == 1) i = 0;
    snprintf(path, sizeof(path), "%s[%zu]", name, i);
    return read_text(p, json_item(v, i), path, out, e);
}

static size_t count_of(const struct json *v)
{
    return json_kind(v) == JK_ARRAY ? json_len(v) : 1;
}

/* How many pairs there are. */
static int check_counts(const struct params *p, size_t *n, struct api_error *e)
{
    const char *name = api_prompt_name(p->api), *first = api_query_name(p->api);
    size_t n_first = count_of(p->query), n_second = count_of(p->prompt);
    if (p->api == API_RERANK && json_kind(p->query) != JK_TEXT)
        return api_fail(e, API_BAD_VALUE, first, "`%s` must be a string, but is %s.", first,
                        json_kind_name(json_kind(p->query)));
    if (p->api == API_RERANK && json_kind(p->prompt) != JK_ARRAY)
        return api_fail(e, API_BAD_VALUE, name, "`%s` must be an array, but is %s.", name,
                        json_kind_name(json_kind(p->prompt)));
    if (!n_first || !n_second)
        return api_fail(e, API_BAD_VALUE, n_first ? name : first, "`%s` is empty.", n_first ? name : first);
    if (n_second > MAX_INPUTS)
        return api_fail(e, API_BAD_VALUE, name, "`%s` has %zu texts; at most %d are allowed.", name, n_second,
                        MAX_INPUTS);
    if (n_first != 1 && n_first != n_second)
        return api_fail(e, API_BAD_VALUE, first,
                        "`%s` has %zu texts and `%s` %zu: it must have one, or as many.", first, n_first,
                        name, n_second);
    *n = n_second;
    return 0;
}

/* Pair i. *a: the ids of its first text; where all have the same one, of the pair before. */
static int read_pair(const struct ingress *in, const struct params *p, size_t i, struct ids *a,
                     struct arena *mem, struct prompt *out, struct api_error *e)
{
    const char *name = api_prompt_name(p->api), *first = api_query_name(p->api);
    i64 most = p->truncate_prompt_tokens == -1 ? in->limits.max_len : MAX_OF(p->truncate_prompt_tokens, 0);
    struct api_text one, two;
    struct ids b = {0}, both = {0};
    struct error err;
    if (read_item(p, p->query, first, i, &one, e) < 0 || read_item(p, p->prompt, name, i, &two, e) < 0 ||
        prompts_check_size(in, p, one.len + two.len, e) < 0)
        return -1;
    int rc = 0;
    if (i == 0 || count_of(p->query) > 1) {
        a->len = 0;
        rc = prompts_encode(in, first, one.text, one.len, false, a, e);
    }
    if (rc == 0) rc = prompts_encode(in, name, two.text, two.len, false, &b, e);
    if (rc == 0 && tokenizer_join(in->tokenizer, a, &b, (u32)most, &both, &out->second, &err) < 0)
        rc = api_fail(e, API_BAD_VALUE, name, "`%s` cannot be tokenized: %s", name, err.message);
    ids_release(&b);
    if (in->spec.model->encoder.types < 2) out->second = 0; /* whatever the tokenizer's file says */
    out->ids = prompts_keep(mem, &both, &out->n);
    if (rc < 0 || prompts_fit(in, p, out, false, e) < 0) return -1;
    if (p->api == API_RERANK && p->return_documents)
        out->text = (struct api_text){arena_text(mem, two.text, two.len), two.len};
    return 0;
}

int prompts_pairs(const struct ingress *in, const struct params *p, struct arena *mem,
                  struct prompt **prompts, u32 *n, struct api_error *e)
{
    size_t count = 0;
    struct ids a = {0};
    int rc = check_counts(p, &count, e);
    *prompts = arena_alloc(mem, count * sizeof(**prompts));
    memset(*prompts, 0, count * sizeof(**prompts));
    for (size_t i = 0; rc == 0 && i < count; i++) rc = read_pair(in, p, i, &a, mem, &(*prompts)[i], e);
    ids_release(&a);
    *n = (u32)count;
    return rc;
}

/* ---- from numbers to the answer ------------------------------------------------------------------------------ */
struct scored {
    float score;
    u32 index;
};

static struct scored scored(const struct call *c, u32 index)
{
    float x;
    memcpy(&x, c->choices[index].vector.data, sizeof(x));
    if (c->in->spec.model->pooling.sigmoid) x = (float)(1 / (1 + exp(-(double)x)));
    return (struct scored){x, index};
}

/* The best first; of equal ones in the order of the request. */
static int by_score(const void *x, const void *y)
{
    const struct scored *a = x, *b = y;
    if (a->score > b->score || a->score < b->score) return a->score > b->score ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

static void add_head(const struct call *c, struct buf *to)
{
    buf_text(to, "{\"id\":");
    answer_text(to, c->id, strlen(c->id));
    buf_text(to, ",\"model\":");
    answer_text(to, call_model(c), strlen(call_model(c)));
    buf_printf(to, ",\"usage\":{\"prompt_tokens\":%llu,\"total_tokens\":%llu}",
               (unsigned long long)c->n_prompt_tokens, (unsigned long long)c->n_prompt_tokens);
}

static void add_results(struct call *c, struct buf *to)
{
    struct scored *list = arena_alloc(&c->mem, c->n_choices * sizeof(*list));
    u32 n = c->p.top_n > 0 && c->p.top_n < (i64)c->n_choices ? (u32)c->p.top_n : c->n_choices;
    for (u32 i = 0; i < c->n_choices; i++) list[i] = scored(c, i);
    qsort(list, c->n_choices, sizeof(*list), by_score);
    buf_text(to, ",\"results\":[");
    for (u32 i = 0; i < n; i++) {
        const struct api_text *document = &c->prompts[list[i].index].text;
        buf_printf(to, "%s{\"index\":%u,", i ? "," : "", list[i].index);
        if (c->p.return_documents) {
            buf_text(to, "\"document\":{\"text\":");
            answer_text(to, document->text, document->len);
            buf_text(to, "},");
        }
        buf_text(to, "\"relevance_score\":");
        answer_float(to, list[i].score);
        buf_char(to, '}');
    }
    buf_text(to, "]}");
}

static void add_scores(const struct call *c, struct buf *to)
{
    buf_printf(to, ",\"object\":\"list\",\"created\":%lld,\"data\":[", (long long)c->created);
    for (u32 i = 0; i < c->n_choices; i++) {
        buf_printf(to, "%s{\"index\":%u,\"object\":\"score\",\"score\":", i ? "," : "", i);
        answer_float(to, scored(c, i).score);
        buf_char(to, '}');
    }
    buf_text(to, "]}");
}

void answer_scores(struct call *c, struct buf *to)
{
    add_head(c, to);
    if (c->p.api == API_RERANK)
        add_results(c, to);
    else
        add_scores(c, to);
}
