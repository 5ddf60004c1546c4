/* Ids to text: bytes of tokens to characters, all at once or as they arrive. */
#include "text/tokenizer.h"

#include <string.h>

/* Whole characters on their way out. The first ones may be of the kind that the decoder strips. */
static void emit(struct detok *d, const char *text, size_t len, struct buf *out)
{
    const char *strip = d->tokenizer->decoder.strip_char;
    size_t n = strlen(strip);
    for (; d->strip && len >= n && memcmp(text, strip, n) == 0; d->strip--) {
        text += n;
        len -= n;
    }
    if (len) d->strip = 0;
    buf_add(out, text, len);
}

static void emit_bad(struct detok *d, int times, struct buf *out)
{
    for (; times > 0; times--) emit(d, "\xef\xbf\xbd", 3, out);
}

/* Held bytes that nothing will complete: one U+FFFD, of a run of tokens for bytes one each. */
static void give_up(struct detok *d, struct buf *out)
{
    emit_bad(d, d->tokenizer->decoder.byte_runs ? d->n_held + d->n_bad : d->n_held > 0, out);
    d->n_held = 0;
    d->n_bad = 0;
}

/* One byte more. Appends the character that it completes. */
static void put_byte(struct detok *d, char byte, struct buf *out)
{
    char c[UTF8_MAX];
    u32 cp;
    memcpy(c, d->held, (size_t)d->n_held);
    c[d->n_held] = byte;
    int n = utf8_next(c, (size_t)d->n_held + 1, &cp);
    if (n > 0) {
        emit(d, c, (size_t)n, out);
        d->n_held = 0;
    } else if (n == 0) {
        d->held[d->n_held++] = (u8)byte;
    } else if (d->n_held) { /* the held bytes are ill-formed and the new one begins something else */
        give_up(d, out);
        put_byte(d, byte, out);
    } else {
        emit_bad(d, 1, out);
    }
}

/* A token for a byte. From the first bad byte on all of a run is bad, up to its end. */
static void put_run_byte(struct detok *d, char byte, struct buf *out)
{
    char c[UTF8_MAX];
    u32 cp;
    memcpy(c, d->held, (size_t)d->n_held);
    c[d->n_held] = byte;
    if (d->n_bad || utf8_next(c, (size_t)d->n_held + 1, &cp) < 0) {
        d->n_bad += d->n_held + 1;
        d->n_held = 0;
    } else {
        put_byte(d, byte, out);
    }
}

/* Appends the characters of bytes; the begin of one at the end stays in d. */
static void put_bytes(struct detok *d, const char *bytes, size_t len, struct buf *out)
{
    u32 cp;
    for (; d->n_held && len; len--) put_byte(d, *bytes++, out);
    while (len) {
        int n = utf8_next(bytes, len, &cp);
        if (n == 0) {
            memcpy(d->held, bytes, len);
            d->n_held = (int)len;
            return;
        }
        size_t used = (size_t)(n > 0 ? n : -n);
        if (n > 0) {
            emit(d, bytes, used, out);
        } else {
            emit_bad(d, 1, out);
        }
        bytes += used;
        len -= used;
    }
}

static bool is_shown(const struct detok *d, i32 id)
{
    size_t len;
    return tokenizer_token_bytes(d->tokenizer, id, &len) &&
           !(d->skip_special && tokenizer_is_special(d->tokenizer, id));
}

void detok_init(struct detok *d, const struct tokenizer *t, const i32 *prompt, size_t n, bool skip_special)
{
    size_t head = 0, tail = n, bytes = 0, len;
    struct buf gone = {0};
    *d = (struct detok){.tokenizer = t, .skip_special = skip_special, .strip = t->decoder.strip};
    /* What counts of the prompt is its begin, until nothing is stripped any more, and its end: a held character takes at
     * most 3 bytes, so what tokens before the last few non-empty ones gave does not matter; a run of bytes counts as a whole. */
    while (head < n && (!d->begun || d->strip)) detok_push(d, prompt[head++], &gone);
    while (tail > head && bytes < UTF8_MAX) {
        tail--;
        if (!is_shown(d, prompt[tail])) continue;
        tokenizer_token_bytes(t, prompt[tail], &len);
        bytes += t->decoder.byte_runs ? UTF8_MAX * !(t->vocab.tokens[prompt[tail]].flags & TOKEN_BYTE) : len;
    }
    if (tail > head) d->n_held = d->n_bad = 0;
    for (size_t i = tail; i < n; i++) detok_push(d, prompt[i], &gone);
    buf_release(&gone);
}

void detok_push(struct detok *d, i32 id, struct buf *out)
{
    if (!is_shown(d, id)) return;
    const struct vocab *v = &d->tokenizer->vocab;
    const struct token *t = &v->tokens[id];
    const char *bytes = v->pool.data + (d->begun ? t->bytes : t->first);
    size_t len = d->begun ? t->bytes_len : t->first_len;
    d->begun = true;
    if (t->flags & TOKEN_BYTE) {
        put_run_byte(d, bytes[0], out);
        return;
    }
    if (d->tokenizer->decoder.byte_runs) give_up(d, out);
    put_bytes(d, bytes, len, out);
}

void detok_finish(struct detok *d, struct buf *out)
{
    give_up(d, out);
}

/* A run of tokens for bytes: characters if all of them are, else one U+FFFD a byte. */
static void put_run(struct detok *d, struct buf *run, struct buf *out)
{
    if (run->len && utf8_valid(run->data, run->len) == run->len) {
        emit(d, run->data, run->len, out);
    } else {
        emit_bad(d, (int)run->len, out);
    }
    buf_clear(run);
}

void tokenizer_decode(const struct tokenizer *t, const i32 *ids, size_t n, bool skip_special, struct buf *out)
{
    struct detok d;
    struct buf run = {0};
    detok_init(&d, t, NULL, 0, skip_special);
    for (size_t i = 0; i < n; i++) {
        if (!is_shown(&d, ids[i])) continue;
        const struct token *token = &t->vocab.tokens[ids[i]];
        if (token->flags & TOKEN_BYTE) {
            buf_char(&run, t->vocab.pool.data[token->bytes]);
            d.begun = true;
            continue;
        }
        put_run(&d, &run, out);
        detok_push(&d, ids[i], out);
    }
    put_run(&d, &run, out);
    detok_finish(&d, out);
    buf_release(&run);
}
