/* Ids to text: bytes of tokens to characters, all at once or as they arrive. */
#include "text/tokenizer.h"
#include "text/utf8.h"

#include <string.h>

/* Appends the characters of bytes; the begin of one at the end stays in d. */
static void put_bytes(struct detok *d, const char *bytes, size_t len, struct buf *out)
{
    u32 cp;
    while (d->n_held && len) { /* complete the held character byte by byte */
        char c[UTF8_MAX];
        memcpy(c, d->held, (size_t)d->n_held);
        c[d->n_held] = bytes[0];
        int n = utf8_next(c, (size_t)d->n_held + 1, &cp);
        if (n < 0) { /* the held bytes are ill-formed and the new one begins something else */
            utf8_add(out, REPLACEMENT);
            d->n_held = 0;
            break;
        }
        d->held[d->n_held++] = (u8)bytes[0];
        bytes++;
        len--;
        if (n == 0) continue;
        buf_add(out, c, (size_t)n);
        d->n_held = 0;
    }
    while (len) {
        int n = utf8_next(bytes, len, &cp);
        if (n == 0) {
            memcpy(d->held, bytes, len);
            d->n_held = (int)len;
            return;
        }
        size_t used = (size_t)(n > 0 ? n : -n);
        if (n > 0) {
            buf_add(out, bytes, used);
        } else {
            utf8_add(out, REPLACEMENT);
        }
        bytes += used;
        len -= used;
    }
}

void detok_init(struct detok *d, const struct tokenizer *t, const i32 *prompt, size_t n, bool skip_special)
{
    /* A held character takes at most 3 bytes: what tokens before the last few non-empty ones gave does not matter. */
    size_t from = n, bytes = 0, len;
    struct buf gone = {0};
    *d = (struct detok){.tokenizer = t, .skip_special = skip_special};
    while (from > 0 && bytes < UTF8_MAX) {
        from--;
        tokenizer_token_bytes(t, prompt[from], &len);
        if (!skip_special || !tokenizer_is_special(t, prompt[from])) bytes += len;
    }
    for (size_t i = from; i < n; i++) detok_push(d, prompt[i], &gone);
    buf_release(&gone);
}

void detok_push(struct detok *d, i32 id, struct buf *out)
{
    size_t len;
    if (d->skip_special && tokenizer_is_special(d->tokenizer, id)) return;
    const char *bytes = tokenizer_token_bytes(d->tokenizer, id, &len);
    put_bytes(d, bytes, len, out);
}

void detok_finish(struct detok *d, struct buf *out)
{
    if (d->n_held) utf8_add(out, REPLACEMENT);
    d->n_held = 0;
}

void tokenizer_decode(const struct tokenizer *t, const i32 *ids, size_t n, bool skip_special, struct buf *out)
{
    struct detok d;
    detok_init(&d, t, NULL, 0, skip_special);
    for (size_t i = 0; i < n; i++) detok_push(&d, ids[i], out);
    detok_finish(&d, out);
}
