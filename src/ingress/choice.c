/* A choice: tokens become text, stop strings end it, log-probabilities become JSON. */
#include "ingress/call.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static u64 count_chars(const char *s, size_t len)
{
    u64 n = 0;
    for (size_t i = 0; i < len; i++) n += ((u8)s[i] & 0xC0) != 0x80;
    return n;
}

void choice_init(struct call *c, struct choice *ch, const struct prompt *prompt)
{
    const struct params *p = &c->p;
    *ch = (struct choice){.stop_id = -1, .stop_string = -1};
    stop_scan_init(&ch->stops, p->stops, p->n_stops, p->include_stop);
    bool echo_ids = p->echo && !prompt->text.text;
    detok_init(&ch->detok, c->in->tokenizer, echo_ids ? NULL : prompt->ids, echo_ids ? 0 : prompt->n,
               p->skip_special);
    if (!p->echo) return;
    if (prompt->text.text) buf_add(&ch->text, prompt->text.text, prompt->text.len);
    for (u32 i = 0; echo_ids && i < prompt->n; i++) detok_push(&ch->detok, prompt->ids[i], &ch->text);
    ch->chars = count_chars(ch->text.data, ch->text.len);
}

void choice_release(struct choice *ch)
{
    stop_scan_release(&ch->stops);
    buf_release(&ch->text);
    buf_release(&ch->ids);
    buf_release(&ch->vector);
    for (int i = 0; i < LP_LISTS; i++) buf_release(&ch->lp[i]);
}

/* ---- log-probabilities --------------------------------------------------------------------------------------- */
static struct buf *next_item(struct buf *list)
{
    if (list->len) buf_char(list, ',');
    return list;
}

static void add_token_text(const struct call *c, i32 id, struct buf *to)
{
    if (c->p.token_ids_as_text) {
        buf_printf(to, "\"token_id:%d\"", id);
        return;
    }
    size_t len;
    const char *bytes = tokenizer_token_bytes(c->in->tokenizer, id, &len);
    struct json_out o;
    json_out_init(&o, to);
    json_out_text(&o, bytes ? bytes : "", len);
}

static void add_chat_token(const struct call *c, const struct token_logprob *lp, struct buf *to)
{
    size_t len;
    const char *bytes = tokenizer_token_bytes(c->in->tokenizer, lp->id, &len);
    buf_text(to, "{\"token\":");
    add_token_text(c, lp->id, to);
    buf_text(to, ",\"logprob\":");
    answer_float(to, lp->logprob);
    buf_text(to, ",\"bytes\":[");
    for (size_t i = 0; i < len; i++) buf_printf(to, i ? ",%u" : "%u", (u8)bytes[i]);
    buf_char(to, ']');
}

static void add_chat_logprobs(const struct call *c, struct choice *ch, const struct token_logprob *lp,
                              u32 n_top)
{
    struct buf *to = next_item(&ch->lp[LP_TOKENS]);
    add_chat_token(c, &lp[0], to);
    buf_text(to, ",\"top_logprobs\":[");
    for (u32 i = 1; i <= n_top; i++) {
        if (i > 1) buf_char(to, ',');
        add_chat_token(c, &lp[i], to);
        buf_char(to, '}');
    }
    buf_text(to, "]}");
}

/* The object of a token's best: tokens that print alike share a key, which keeps the larger value. */
static void add_top_map(struct call *c, const struct token_logprob *lp, u32 n_top, struct buf *to)
{
    enum { MOST = 64 };
    size_t from[MOST + 1];
    float value[MOST];
    u32 n = 0;
    struct buf *keys = &c->piece;
    buf_clear(keys);
    for (u32 i = 0; i <= n_top && n < MOST; i++) {
        from[n] = keys->len;
        add_token_text(c, lp[i].id, keys);
        from[n + 1] = keys->len;
        u32 same = 0;
        size_t len = from[n + 1] - from[n];
        while (same < n && (from[same + 1] - from[same] != len ||
                            memcmp(keys->data + from[same], keys->data + from[n], len)))
            same++;
        value[same] = same < n ? MAX_OF(value[same], lp[i].logprob) : lp[i].logprob;
        if (same == n)
            n++;
        else
            keys->len = from[n];
    }
    buf_char(to, '{');
    for (u32 i = 0; i < n; i++) {
        if (i) buf_char(to, ',');
        buf_add(to, keys->data + from[i], from[i + 1] - from[i]);
        buf_char(to, ':');
        answer_float(to, value[i]);
    }
    buf_char(to, '}');
}

static void add_logprobs(struct call *c, struct choice *ch, const struct token_logprob *lp, u32 n_top)
{
    n_top = MIN_OF(n_top, (u32)c->sampling.n_logprobs);
    if (c->p.api == API_CHAT) {
        add_chat_logprobs(c, ch, lp, n_top);
        return;
    }
    add_token_text(c, lp->id, next_item(&ch->lp[LP_TOKENS]));
    answer_float(next_item(&ch->lp[LP_VALUES]), lp->logprob);
    add_top_map(c, lp, n_top, next_item(&ch->lp[LP_TOP]));
    buf_printf(next_item(&ch->lp[LP_OFFSETS]), "%llu", (unsigned long long)ch->chars);
}

/* ---- tokens -------------------------------------------------------------------------------------------------- */
static void take_token(struct call *c, struct choice *ch, i32 id, const struct token_logprob *lp, u32 n_top,
                       bool is_stop)
{
    ch->n_tokens++;
    ch->n_unsent++;
    if (lp && c->sampling.n_logprobs >= 0) add_logprobs(c, ch, lp, n_top);
    if (c->p.return_token_ids) buf_printf(next_item(&ch->ids), "%d", id);
    if (is_stop && !c->p.include_stop) return;
    buf_clear(&c->piece);
    detok_push(&ch->detok, id, &c->piece);
    ch->chars += count_chars(c->piece.data, c->piece.len);
    bool may_stop = ch->n_tokens > c->p.min_tokens;
    ch->stop_string = stop_scan_push(&ch->stops, c->piece.data, c->piece.len, may_stop, &ch->text);
    if (ch->stop_string >= 0) ch->finish = FINISH_STOP;
}

int choice_feed(struct call *c, struct choice *ch, const struct chunk *chunk, u64 now)
{
    const i32 *tokens = chunk_at(chunk, chunk->tokens);
    const struct token_logprob *lp = chunk->logprobs.len ? chunk_at(chunk, chunk->logprobs) : NULL;
    u32 n_top = lp ? chunk->n_top : 0, before = ch->n_tokens;
    if (ch->finish != FINISH_NONE) return 0;
    if (chunk->first > ch->n_received) return -1;
    for (u32 i = ch->n_received - chunk->first; i < chunk->n_tokens && ch->finish == FINISH_NONE; i++) {
        bool is_stop = chunk->finish == FINISH_STOP && i + 1 == chunk->n_tokens;
        take_token(c, ch, tokens[i], lp ? &lp[(size_t)i * (1 + n_top)] : NULL, n_top, is_stop);
    }
    if (chunk->vector.len)
        buf_add(&ch->vector, chunk_at(chunk, chunk->vector), chunk->vector.len * sizeof(float));
    ch->n_received = MAX_OF(ch->n_received, chunk->first + chunk->n_tokens);
    if (ch->finish == FINISH_NONE && chunk->finish != FINISH_NONE) {
        stop_scan_flush(&ch->stops, &ch->text);
        ch->finish = chunk->finish;
        ch->stop_id = chunk->stop_id;
    }
    if (ch->n_tokens > before) {
        if (ch->last_ns) series_observe(c->in->series.inter_token, (double)(now - ch->last_ns) / NS_PER_S);
        if (!ch->first_ns) ch->first_ns = now;
        ch->last_ns = now;
    }
    return 0;
}

const char *choice_finish_reason(const struct choice *ch)
{
    static const char *const reasons[] = {[FINISH_STOP] = "stop",
                                          [FINISH_LENGTH] = "length",
                                          [FINISH_ABORT] = "abort",
                                          [FINISH_ERROR] = "error",
                                          [FINISH_RETRY] = "error"};
    return ch->finish == FINISH_NONE ? NULL : reasons[ch->finish];
}
