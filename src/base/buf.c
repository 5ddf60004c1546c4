/* Bytes that grow. */
#include "mpiserve/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void buf_release(struct buf *b)
{
    free(b->data);
    *b = (struct buf){0};
}

void buf_clear(struct buf *b)
{
    b->len = 0;
    if (b->data) b->data[0] = 0;
}

void buf_reserve(struct buf *b, size_t more)
{
    BUG_ON(more > SIZE_MAX / 4 || b->len > SIZE_MAX / 4);
    size_t need = b->len + more + 1;
    if (need <= b->cap) return;
    size_t cap = MAX_OF(MAX_OF(b->cap * 2, need), (size_t)64);
    b->data = mem_resize(b->data, cap);
    b->cap = cap;
    b->data[b->len] = 0;
}

void buf_add(struct buf *b, const void *data, size_t len)
{
    buf_reserve(b, len);
    if (len) memcpy(b->data + b->len, data, len);
    b->len += len;
    b->data[b->len] = 0;
}

void buf_text(struct buf *b, const char *s)
{
    buf_add(b, s, strlen(s));
}

void buf_char(struct buf *b, char c)
{
    buf_add(b, &c, 1);
}

void buf_printf(struct buf *b, const char *fmt, ...)
{
    buf_reserve(b, 64);
    for (;;) {
        size_t room = b->cap - b->len;
        va_list args;
        va_start(args, fmt);
        int wrote = vsnprintf(b->data + b->len, room, fmt, args);
        va_end(args);
        BUG_ON(wrote < 0);
        if ((size_t)wrote < room) {
            b->len += (size_t)wrote;
            return;
        }
        buf_reserve(b, (size_t)wrote);
    }
}
