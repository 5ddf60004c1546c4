/* Stop strings in a text that comes in pieces. Only a suffix that begins some stop string is held back, so most text leaves with the
 * token that made it. Text and stop strings are whole UTF-8 characters, so no character is ever cut. */
#include "ingress/api.h"

#include <string.h>

void stop_scan_init(struct stop_scan *s, const struct api_text *stops, u32 n_stops, bool include)
{
    *s = (struct stop_scan){.stops = stops, .n_stops = n_stops, .include = include};
}

void stop_scan_release(struct stop_scan *s)
{
    buf_release(&s->tail);
}

/* The match with the earliest end behind the first `old` bytes of tail; -1: none. */
static int find(const struct stop_scan *s, size_t old, size_t *start)
{
    int best = -1;
    size_t best_end = SIZE_MAX;
    for (u32 i = 0; i < s->n_stops; i++) {
        const struct api_text *stop = &s->stops[i];
        size_t from = old >= stop->len ? old - stop->len + 1 : 0;
        const char *at = memmem(s->tail.data + from, s->tail.len - from, stop->text, stop->len);
        if (!at) continue;
        size_t end = (size_t)(at - s->tail.data) + stop->len;
        if (end >= best_end) continue;
        best = (int)i;
        best_end = end;
        *start = end - stop->len;
    }
    return best;
}

/* Length of the longest suffix of tail that is a proper prefix of a stop string. */
static size_t held(const struct stop_scan *s)
{
    size_t longest = 0;
    for (u32 i = 0; i < s->n_stops; i++) {
        const struct api_text *stop = &s->stops[i];
        for (size_t k = MIN_OF(stop->len - 1, s->tail.len); k > longest; k--)
            if (memcmp(s->tail.data + s->tail.len - k, stop->text, k) == 0) longest = k;
    }
    return longest;
}

static void emit(struct stop_scan *s, size_t upto, struct buf *out)
{
    if (upto > s->sent) buf_add(out, s->tail.data + s->sent, upto - s->sent);
    s->sent = MAX_OF(upto, s->sent);
}

int stop_scan_push(struct stop_scan *s, const char *text, size_t len, bool may_stop, struct buf *out)
{
    if (!s->n_stops) {
        buf_add(out, text, len);
        return -1;
    }
    if (!len) return -1;
    size_t old = s->tail.len, start = 0;
    buf_add(&s->tail, text, len);
    int which = may_stop ? find(s, old, &start) : -1;
    if (which >= 0) {
        emit(s, s->include ? start + s->stops[which].len : start, out);
        buf_clear(&s->tail);
        s->sent = 0;
        return which;
    }
    size_t keep = held(s), gone = s->tail.len - keep;
    emit(s, s->include ? s->tail.len : gone, out);
    memmove(s->tail.data, s->tail.data + gone, keep);
    s->tail.len = keep;
    s->tail.data[keep] = 0;
    s->sent = s->include ? keep : 0;
    return -1;
}

void stop_scan_flush(struct stop_scan *s, struct buf *out)
{
    emit(s, s->tail.len, out);
    buf_clear(&s->tail);
    s->sent = 0;
}
