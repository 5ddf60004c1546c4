/* The request block: built once by an ingress, checked once by the replica that runs it. */
#include "mpiserve/request.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

bool span_fits(struct span s, u64 area, size_t item_size, size_t align)
{
    return s.off <= area && s.len <= (area - s.off) / item_size && s.off % align == 0;
}

const char *sampling_fault(const struct sampling *s)
{
    if (!(s->temperature >= 0) || !isfinite(s->temperature)) return "temperature";
    if (!(s->top_p > 0 && s->top_p <= 1)) return "top_p";
    if (!(s->min_p >= 0 && s->min_p <= 1)) return "min_p";
    if (!(s->repetition_penalty > 0) || !isfinite(s->repetition_penalty)) return "repetition_penalty";
    if (!isfinite(s->presence_penalty)) return "presence_penalty";
    if (!isfinite(s->frequency_penalty)) return "frequency_penalty";
    if (s->n_logprobs < -1) return "n_logprobs";
    if (s->max_tokens < 1) return "max_tokens";
    if (s->min_tokens > s->max_tokens) return "min_tokens";
    if (s->ignore_eos > 1) return "ignore_eos";
    return NULL;
}

/* Puts an array at *end of the block and moves *end. */
static struct span put(void *block, u64 *end, const void *items, u32 n, size_t item_size)
{
    struct span s = {(u32)*end, n};
    if (n > 0) memcpy((u8 *)block + *end, items, n * item_size);
    u64 next = align8(*end + n * item_size);
    memset((u8 *)block + *end + n * item_size, 0, next - *end - n * item_size);
    *end = next;
    return s;
}

struct request *request_build(const struct request *head, const struct request_parts *p)
{
    const u64 ids = sizeof(i32);
    u64 bytes = align8(sizeof(struct request)) + align8(p->n_prompt * ids) + align8(p->n_allowed * ids) +
                align8(p->n_bad_words * ids) + align8(p->n_eos_ids * ids) + align8(p->n_stop_ids * ids) +
                align8(p->n_bias * (u64)sizeof(struct token_bias));
    if (bytes > INT_MAX) return NULL; /* an MPI message's count is an int */
    struct request *r = mem_alloc(bytes);
    *r = *head;
    r->magic = REQUEST_MAGIC;
    r->bytes = (u32)bytes;
    if (!r->has_session) r->session = 0;
    u64 end = align8(sizeof(*r));
    r->prompt = put(r, &end, p->prompt, p->n_prompt, sizeof(i32));
    r->bias = put(r, &end, p->bias, p->n_bias, sizeof(struct token_bias));
    r->allowed = put(r, &end, p->allowed, p->n_allowed, sizeof(i32));
    r->bad_words = put(r, &end, p->bad_words, p->n_bad_words, sizeof(i32));
    r->eos_ids = put(r, &end, p->eos_ids, p->n_eos_ids, sizeof(i32));
    r->stop_ids = put(r, &end, p->stop_ids, p->n_stop_ids, sizeof(i32));
    return r;
}

static int check_ids(const struct request *r, struct span s, const char *field, u32 vocab, struct error *err)
{
    const i32 *ids = request_at(r, s);
    for (u32 i = 0; i < s.len; i++)
        if (ids[i] < 0 || (u32)ids[i] >= vocab)
            return error_set(err, ERR_INPUT, field, "token id %d (item %u) is not in the vocabulary of %u",
                             ids[i], i, vocab);
    return 0;
}

bool bad_words_ok(const i32 *words, u32 len, u32 vocab)
{
    for (u32 i = 0; i < len;) {
        i32 n = words[i++];
        if (n < 1 || (u32)n > len - i) return false;
        for (; n > 0; n--, i++)
            if (words[i] < 0 || (u32)words[i] >= vocab) return false;
    }
    return true;
}

static int check_lists(const struct request *r, u32 vocab, struct error *err)
{
    const struct {
        struct span span;
        const char *field;
    } ids[] = {{r->prompt, "prompt"},
               {r->allowed, "allowed_token_ids"},
               {r->eos_ids, "eos"},
               {r->stop_ids, "stop_token_ids"}};
    for (size_t i = 0; i < COUNT_OF(ids); i++) {
        int rc = check_ids(r, ids[i].span, ids[i].field, vocab, err);
        if (rc < 0) return rc;
    }
    const struct token_bias *bias = request_at(r, r->bias);
    for (u32 i = 0; i < r->bias.len; i++)
        if (bias[i].id < 0 || (u32)bias[i].id >= vocab || !isfinite(bias[i].bias))
            return error_set(err, ERR_INPUT, "logit_bias", "item %u (token id %d) is not valid", i,
                             bias[i].id);
    if (!bad_words_ok(request_at(r, r->bad_words), r->bad_words.len, vocab))
        return error_set(err, ERR_INPUT, "bad_words", "not a list of words of token ids");
    return 0;
}

int request_check(const void *block, size_t len, u32 vocab, struct error *err)
{
    const struct request *r = block;
    if (len < sizeof(*r) || (uintptr_t)block % 8 != 0)
        return error_set(err, ERR_PEER, "request", "%zu bytes are no request (alignment %u)", len,
                         (unsigned)((uintptr_t)block % 8));
    if (r->magic != REQUEST_MAGIC || r->bytes != len)
        return error_set(err, ERR_PEER, "request", "magic %08x, %u bytes said and %zu received", r->magic,
                         r->bytes, len);
    const struct {
        struct span span;
        size_t item;
    } spans[] = {{r->prompt, sizeof(i32)},  {r->bias, sizeof(struct token_bias)},
                 {r->allowed, sizeof(i32)}, {r->bad_words, sizeof(i32)},
                 {r->eos_ids, sizeof(i32)}, {r->stop_ids, sizeof(i32)}};
    for (size_t i = 0; i < COUNT_OF(spans); i++)
        if (!span_fits(spans[i].span, len, spans[i].item, 4) || spans[i].span.off < sizeof(*r))
            return error_set(err, ERR_PEER, "request", "list %zu (offset %u, %u items) leaves the block", i,
                             spans[i].span.off, spans[i].span.len);
    if (r->n_samples < 1 || r->n_samples > REQUEST_MAX_SAMPLES)
        return error_set(err, ERR_INPUT, "n", "%u is not in 1..%u", r->n_samples, REQUEST_MAX_SAMPLES);
    if (r->pooling > POOLING_CLS || (r->pooling && r->n_samples != 1))
        return error_set(err, ERR_INPUT, "pooling", "%u, with %u samples", r->pooling, r->n_samples);
    if (r->second && (r->second >= r->prompt.len || !r->pooling))
        return error_set(err, ERR_INPUT, "second", "token %u of %u, pooling %u", r->second, r->prompt.len,
                         r->pooling);
    if (r->has_session > 1)
        return error_set(err, ERR_INPUT, "session_id", "the mark of a session is %u", r->has_session);
    if (r->prompt.len < 1) return error_set(err, ERR_INPUT, "prompt", "has no tokens");
    const char *fault = sampling_fault(&r->sampling);
    if (fault) return error_set(err, ERR_INPUT, fault, "out of range");
    return check_lists(r, vocab, err);
}
