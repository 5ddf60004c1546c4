/* Chunks: rows of small blocks in one message. */
#include "mpiserve/request.h"

#include <string.h>

static u64 logprob_count(const struct chunk *c)
{
    return c->n_top == CHUNK_NO_LOGPROBS ? 0 : c->n_tokens * (1 + (u64)c->n_top);
}

struct contents {
    const i32 *tokens;
    const struct token_logprob *logprobs;
    const float *vector;
    u32 n_vector;
    const char *error;
};

static void add_padded(struct buf *to, const void *items, size_t bytes)
{
    static const u8 zeros[8];
    if (bytes) buf_add(to, items, bytes);
    buf_add(to, zeros, align8(bytes) - bytes);
}

static void add(struct buf *to, const struct chunk *head, const struct contents *with)
{
    struct chunk c = *head;
    u64 n_logprobs = logprob_count(&c);
    size_t error_len = with->error ? strnlen(with->error, CHUNK_MAX_ERROR) : 0;
    u64 at_tokens = align8(sizeof(c));
    u64 at_logprobs = at_tokens + align8(c.n_tokens * (u64)sizeof(i32));
    u64 at_vector = at_logprobs + align8(n_logprobs * sizeof(struct token_logprob));
    u64 at_error = at_vector + align8(with->n_vector * (u64)sizeof(float));
    u64 bytes = at_error + align8(error_len);
    BUG_ON(bytes > CHUNK_MAX_BYTES);
    BUG_ON(to->len % 8 != 0);
    c.magic = CHUNK_MAGIC;
    c.bytes = (u32)bytes;
    c.error_len = (u16)error_len;
    c.tokens = (struct span){(u32)at_tokens, c.n_tokens};
    c.logprobs = (struct span){(u32)at_logprobs, (u32)n_logprobs};
    c.vector = (struct span){(u32)at_vector, with->n_vector};
    c.error = (struct span){(u32)at_error, (u32)error_len};
    buf_reserve(to, bytes);
    add_padded(to, &c, sizeof(c));
    add_padded(to, with->tokens, c.n_tokens * sizeof(i32));
    add_padded(to, with->logprobs, n_logprobs * sizeof(struct token_logprob));
    add_padded(to, with->vector, with->n_vector * sizeof(float));
    add_padded(to, with->error, error_len);
}

void chunk_add(struct buf *to, const struct chunk *head, const i32 *tokens,
               const struct token_logprob *logprobs, const char *error)
{
    add(to, head, &(struct contents){.tokens = tokens, .logprobs = logprobs, .error = error});
}

void chunk_add_vector(struct buf *to, const struct chunk *head, const float *vector, u32 n)
{
    BUG_ON(head->n_tokens || head->finish != FINISH_STOP);
    add(to, head, &(struct contents){.vector = vector, .n_vector = n});
}

static bool chunk_ok(const struct chunk *c, size_t left)
{
    if (left < sizeof(*c) || (uintptr_t)c % 8 != 0) return false;
    if (c->magic != CHUNK_MAGIC || c->bytes < sizeof(*c) || c->bytes > left || c->bytes % 8 != 0)
        return false;
    if (c->finish > FINISH_RETRY || c->last > 1) return false;
    if (c->tokens.len != c->n_tokens || c->logprobs.len != logprob_count(c) || c->error.len != c->error_len)
        return false;
    if (c->vector.len && (c->n_tokens || c->finish != FINISH_STOP)) return false;
    if (!span_fits(c->vector, c->bytes, sizeof(float), 4) || c->vector.off < sizeof(*c)) return false;
    return span_fits(c->tokens, c->bytes, sizeof(i32), 4) && c->tokens.off >= sizeof(*c) &&
           span_fits(c->logprobs, c->bytes, sizeof(struct token_logprob), 4) &&
           c->logprobs.off >= sizeof(*c) && span_fits(c->error, c->bytes, 1, 1) && c->error.off >= sizeof(*c);
}

const struct chunk *chunk_next(const void *msg, size_t len, size_t *pos, struct error *err)
{
    if (err) err->code = 0;
    if (*pos == len) return NULL;
    const struct chunk *c = *pos < len ? (const void *)((const u8 *)msg + *pos) : NULL;
    if (!c || !chunk_ok(c, len - *pos)) {
        error_set(err, ERR_PEER, "chunk", "malformed block at byte %zu of %zu", *pos, len);
        return NULL;
    }
    *pos += c->bytes;
    return c;
}
