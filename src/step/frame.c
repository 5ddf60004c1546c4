/* Building frames: where the parts lie is a pure function of the counts in the head. */
#include "step/layout.h"

#include <string.h>

void step_parts(const struct step *h, struct step_parts *p)
{
    p->free = align8(sizeof(struct step));
    p->new = p->free + align8(h->n_free * (u64)sizeof(struct seq_free));
    p->ops = p->new + align8(h->n_new * (u64)sizeof(struct seq_new));
    p->rows = p->ops + align8(h->n_ops * (u64)sizeof(struct block_op));
    p->data = p->rows + align8(h->n_rows * (u64)sizeof(struct row));
    p->bytes = p->data + align8(h->data_len);
}

void results_parts(const struct results *h, struct results_parts *p)
{
    p->rows = align8(sizeof(struct results));
    p->data = p->rows + align8(h->n * (u64)sizeof(struct result));
    p->bytes = p->data + align8(h->data_len);
}

void step_point(struct step_view *v, const void *frame, const struct step_parts *p)
{
    const u8 *at = frame;
    v->head = frame;
    v->free = (const void *)(at + p->free);
    v->new = (const void *)(at + p->new);
    v->ops = (const void *)(at + p->ops);
    v->rows = (const void *)(at + p->rows);
    v->data = at + p->data;
}

void results_point(struct results_view *v, const void *frame, const struct results_parts *p)
{
    v->head = frame;
    v->rows = (const void *)((const u8 *)frame + p->rows);
    v->data = (const u8 *)frame + p->data;
}

/* The crc of a frame as if its crc field were 0. */
static u32 crc_without(const void *frame, size_t bytes, size_t field)
{
    static const u32 zero;
    u32 crc = crc32c(frame, field, 0);
    crc = crc32c(&zero, sizeof(zero), crc);
    return crc32c((const u8 *)frame + field + sizeof(u32), bytes - field - sizeof(u32), crc);
}

u32 step_crc(const void *frame, size_t bytes)
{
    return crc_without(frame, bytes, offsetof(struct step, crc));
}

u32 results_crc(const void *frame, size_t bytes)
{
    return crc_without(frame, bytes, offsetof(struct results, crc));
}

size_t step_frame_bytes(const struct step *head)
{
    struct step_parts p;
    step_parts(head, &p);
    return p.bytes;
}

void step_frame_layout(void *frame, const struct step *head, struct step_view *v)
{
    struct step_parts p;
    step_parts(head, &p);
    BUG_ON((uintptr_t)frame % 8 != 0);
    memset(frame, 0, p.data);
    memset((u8 *)frame + p.data + head->data_len, 0, p.bytes - p.data - head->data_len);
    memcpy(frame, head, sizeof(*head));
    step_point(v, frame, &p);
}

void step_frame_seal(void *frame)
{
    struct step *h = frame;
    size_t bytes = step_frame_bytes(h);
    BUG_ON(bytes > UINT32_MAX);
    h->magic = STEP_MAGIC;
    h->bytes = (u32)bytes;
    h->crc = step_crc(frame, bytes);
}

size_t results_frame_bytes(const struct results *head)
{
    struct results_parts p;
    results_parts(head, &p);
    return p.bytes;
}

void results_frame_layout(void *frame, const struct results *head, struct results_view *v)
{
    struct results_parts p;
    results_parts(head, &p);
    BUG_ON((uintptr_t)frame % 8 != 0);
    memset(frame, 0, p.data);
    memset((u8 *)frame + p.data + head->data_len, 0, p.bytes - p.data - head->data_len);
    memcpy(frame, head, sizeof(*head));
    results_point(v, frame, &p);
}

void results_frame_seal(void *frame)
{
    struct results *h = frame;
    size_t bytes = results_frame_bytes(h);
    BUG_ON(bytes > UINT32_MAX);
    h->magic = RESULTS_MAGIC;
    h->bytes = (u32)bytes;
    h->crc = results_crc(frame, bytes);
}
