/* Reading frames: everything is checked before anybody follows an offset. */
#include "step/layout.h"

static int refuse(struct error *err, const char *what, u64 number)
{
    return error_set(err, ERR_PEER, "frame", "%s (%llu)", what, (unsigned long long)number);
}

/* Magic, length and place in memory, common to both kinds of frames. */
static int check_head(const void *frame, size_t len, size_t head, u32 magic, u32 got_magic, u32 bytes,
                      struct error *err)
{
    if ((uintptr_t)frame % 8 != 0) return refuse(err, "is not aligned", (uintptr_t)frame % 8);
    if (got_magic != magic) return refuse(err, "wrong magic number", got_magic);
    if (bytes != len || len < head) return refuse(err, "says another length than it has", bytes);
    return 0;
}

static int check_new(const struct step_view *v, const struct seq_new *n, struct error *err)
{
    u64 area = v->head->data_len;
    const struct {
        struct span span;
        size_t item;
    } spans[] = {{n->tokens, sizeof(i32)},  {n->bias, sizeof(struct token_bias)},
                 {n->allowed, sizeof(i32)}, {n->bad_words, sizeof(i32)},
                 {n->eos_ids, sizeof(i32)}, {n->stop_ids, sizeof(i32)}};
    for (size_t i = 0; i < COUNT_OF(spans); i++)
        if (!span_fits(spans[i].span, area, spans[i].item, 4))
            return refuse(err, "seq_new: a list leaves the data area, list", i);
    if (n->tokens.len != n->n_tok) return refuse(err, "seq_new: tokens.len is not n_tok", n->tokens.len);
    if (n->prompt_len < 1 || n->prompt_len > n->n_tok)
        return refuse(err, "seq_new: prompt_len", n->prompt_len);
    if (n->max_len < n->n_tok) return refuse(err, "seq_new: max_len", n->max_len);
    if (n->pooling > POOLING_CLS || (n->pooling && n->prompt_len != n->n_tok))
        return refuse(err, "seq_new: pooling", n->pooling);
    if (n->second >= n->prompt_len) return refuse(err, "seq_new: second", n->second);
    const char *fault = sampling_fault(&n->sampling);
    if (fault) return error_set(err, ERR_PEER, "frame", "seq_new: sampling.%s is out of range", fault);
    return 0;
}

static int check_row(const struct step_view *v, const struct row *r, struct error *err)
{
    u64 area = v->head->data_len;
    if (r->src > SRC_RING || r->want > WANT_HIDDEN) return refuse(err, "row: src or want", r->row);
    if (r->n_tok < 1) return refuse(err, "row: n_tok", r->n_tok);
    if (r->n_draft >= r->n_tok) return refuse(err, "row: n_draft", r->n_draft);
    if (r->mask_slot < -1) return refuse(err, "row: mask_slot", (u32)r->mask_slot);
    if (r->pos > UINT32_MAX - r->n_tok) return refuse(err, "row: pos", r->pos);
    if (r->src == SRC_RING && !span_fits((struct span){r->tok_off, r->n_tok}, area, sizeof(i32), 4))
        return refuse(err, "row: tokens leave the data area, offset", r->tok_off);
    for (int g = 0; g < STEP_KV_GROUPS; g++)
        if (!span_fits(r->block_delta[g], area, sizeof(u32), 4))
            return refuse(err, "row: a block list leaves the data area, group", (u64)g);
    return 0;
}

static int check_step_items(const struct step_view *v, struct error *err)
{
    const struct step *h = v->head;
    u64 sum = 0;
    for (u32 i = 0; i < h->n_new; i++) {
        int rc = check_new(v, &v->new[i], err);
        if (rc < 0) return rc;
    }
    for (u32 i = 0; i < h->n_ops; i++)
        if (v->ops[i].op > BLOCK_IN || v->ops[i].group >= STEP_KV_GROUPS) return refuse(err, "block_op", i);
    for (u32 i = 0; i < h->n_rows; i++) {
        int rc = check_row(v, &v->rows[i], err);
        if (rc < 0) return rc;
        sum += v->rows[i].n_tok;
    }
    return sum == h->n_tok ? 0 : refuse(err, "n_tok is not the sum of its rows'", h->n_tok);
}

int step_view(struct step_view *v, const void *frame, size_t len, struct error *err)
{
    const struct step *h = frame;
    struct step_parts p;
    if (len < sizeof(*h)) return refuse(err, "shorter than a step's head", len);
    int rc = check_head(frame, len, sizeof(*h), STEP_MAGIC, h->magic, h->bytes, err);
    if (rc < 0) return rc;
    step_parts(h, &p);
    if (p.bytes != len) return refuse(err, "counts do not add up to its length", p.bytes);
    if (step_crc(frame, len) != h->crc) return refuse(err, "wrong checksum", h->crc);
    if (h->kind < STEP_FORWARD || h->kind > STEP_CANARY) return refuse(err, "unknown kind", h->kind);
    if (h->kind != STEP_FORWARD && (h->n_new | h->n_free | h->n_rows | h->n_ops | h->n_tok | h->data_len))
        return refuse(err, "a dummy or canary step carries nothing, kind", h->kind);
    step_point(v, frame, &p);
    return check_step_items(v, err);
}

static int check_result(const struct results_view *v, const struct result *r, struct error *err)
{
    u64 area = v->head->data_len;
    if (r->flags & ~(RESULT_NONFINITE | RESULT_NOTHING)) return refuse(err, "result: flags", r->flags);
    if (r->tokens.len != r->n_out || r->n_accepted > r->n_out || (r->flags && r->n_out > 0))
        return refuse(err, "result: n_out", r->n_out);
    if (!span_fits(r->tokens, area, sizeof(i32), 4) ||
        !span_fits(r->logprobs, area, sizeof(struct token_logprob), 4))
        return refuse(err, "result: a list leaves the data area, row", r->row);
    if (!span_fits(r->hidden, area, sizeof(float), 4)) return refuse(err, "result: hidden, row", r->row);
    if (r->hidden.len && (r->n_out || r->flags)) return refuse(err, "result: hidden.len", r->hidden.len);
    if (r->logprobs.len && (!r->n_out || r->logprobs.len % r->n_out != 0))
        return refuse(err, "result: logprobs.len", r->logprobs.len);
    return 0;
}

int results_view(struct results_view *v, const void *frame, size_t len, struct error *err)
{
    const struct results *h = frame;
    struct results_parts p;
    if (len < sizeof(*h)) return refuse(err, "shorter than a results' head", len);
    int rc = check_head(frame, len, sizeof(*h), RESULTS_MAGIC, h->magic, h->bytes, err);
    if (rc < 0) return rc;
    results_parts(h, &p);
    if (p.bytes != len) return refuse(err, "counts do not add up to its length", p.bytes);
    if (results_crc(frame, len) != h->crc) return refuse(err, "wrong checksum", h->crc);
    if (h->kind < STEP_FORWARD || h->kind > STEP_CANARY) return refuse(err, "unknown kind", h->kind);
    if (h->failed > 1 || (h->failed && h->n)) return refuse(err, "failed", h->failed);
    results_point(v, frame, &p);
    for (u32 i = 0; i < h->n; i++) {
        rc = check_result(v, &v->rows[i], err);
        if (rc < 0) return rc;
    }
    return 0;
}
