/* One producer, one consumer, in memory that another process can write to.
 *
 * Positions count bytes for ever and are masked to find the place. A frame is a header of 8 bytes and its
 * data, padded to 8; it never runs over the end of the memory: a WRAP header fills what is left there. A
 * frame is visible only once `tail` has passed it. Whatever is read from the shared memory is read once, into
 * a local variable, and checked there: the peer may change it at any time. */
#include "mpiserve/base.h"

#include <stdatomic.h>
#include <string.h>

enum { RING_HEADER = 8, RING_DATA = 0x44415441, RING_WRAP = 0x57524150 };
static const u64 ring_magic = 0x31474E495253504Du; /* MPSRING1 */

struct ring_head {
    u64 magic, size;
    _Alignas(CACHE_LINE) _Atomic u64 tail; /* written by the producer */
    _Alignas(CACHE_LINE) _Atomic u64 head; /* written by the consumer */
    _Alignas(CACHE_LINE) u8 data[];
};

static bool valid_size(u64 size)
{
    return size >= 4096 && size <= 1ull << 32 && !(size & (size - 1));
}

size_t ring_bytes(size_t data_size)
{
    return sizeof(struct ring_head) + data_size;
}

void ring_format(void *mem, size_t data_size)
{
    BUG_ON(!valid_size(data_size) || (uintptr_t)mem % CACHE_LINE);
    struct ring_head *h = mem;
    h->magic = ring_magic;
    h->size = data_size;
    atomic_store(&h->tail, 0);
    atomic_store(&h->head, 0);
}

int ring_attach(struct ring *r, void *mem, size_t mem_size, struct error *err)
{
    *r = (struct ring){0};
    if ((uintptr_t)mem % CACHE_LINE || mem_size < sizeof(struct ring_head))
        return error_set(err, ERR_INPUT, "", "no ring fits into %zu bytes at %p", mem_size, mem);
    struct ring_head *h = mem;
    u64 size = *(volatile u64 *)&h->size;
    if (h->magic != ring_magic || !valid_size(size) || size > mem_size - sizeof(*h))
        return error_set(err, ERR_PEER, "", "the memory of %zu bytes holds no ring", mem_size);
    r->head = h;
    r->data = h->data;
    r->size = size;
    return 0;
}

size_t ring_max_frame(const struct ring *r)
{
    return r->size / 2 - RING_HEADER;
}

static void header_write(struct ring *r, u64 pos, u32 len, u32 kind)
{
    u64 *at = (u64 *)(r->data + (pos & (r->size - 1)));
    __atomic_store_n(at, len | (u64)kind << 32, __ATOMIC_RELAXED);
}

static u64 header_read(const struct ring *r, u64 pos)
{
    return __atomic_load_n((const u64 *)(r->data + (pos & (r->size - 1))), __ATOMIC_RELAXED);
}

static bool sane(const struct ring *r, u64 head, u64 tail)
{
    return tail - head <= r->size && !(head & 7) && !(tail & 7);
}

void *ring_claim(struct ring *r, size_t len)
{
    BUG_ON(len > ring_max_frame(r));
    u64 tail = atomic_load_explicit(&r->head->tail, memory_order_relaxed);
    u64 head = atomic_load_explicit(&r->head->head, memory_order_acquire);
    r->open = false;
    if (!sane(r, head, tail)) return NULL;
    u64 need = RING_HEADER + align8(len), to_end = r->size - (tail & (r->size - 1));
    u64 skip = need > to_end ? to_end : 0;
    if (skip + need > r->size - (tail - head)) return NULL;
    if (skip) header_write(r, tail, (u32)(skip - RING_HEADER), RING_WRAP);
    r->at = tail + skip;
    r->claimed = len;
    r->open = true;
    return r->data + (r->at & (r->size - 1)) + RING_HEADER;
}

void ring_publish(struct ring *r, size_t len)
{
    BUG_ON(!r->open || len > r->claimed);
    header_write(r, r->at, (u32)len, RING_DATA);
    atomic_store_explicit(&r->head->tail, r->at + RING_HEADER + align8(len), memory_order_release);
    r->open = false;
}

static const void *corrupt(struct ring *r, size_t *len)
{
    r->open = false;
    *len = SIZE_MAX;
    return NULL;
}

const void *ring_peek(struct ring *r, size_t *len)
{
    u64 head = atomic_load_explicit(&r->head->head, memory_order_relaxed);
    u64 tail = atomic_load_explicit(&r->head->tail, memory_order_acquire);
    if (!sane(r, head, tail)) return corrupt(r, len);
    r->open = false;
    *len = 0;
    if (head == tail) return NULL;
    u64 to_end = r->size - (head & (r->size - 1)), header = header_read(r, head);
    if (header >> 32 == RING_WRAP) {
        if ((u32)header != to_end - RING_HEADER || tail - head <= to_end) return corrupt(r, len);
        head += to_end;
        to_end = r->size;
        header = header_read(r, head);
    }
    u64 bytes = (u32)header, need = RING_HEADER + align8(bytes);
    if (header >> 32 != RING_DATA || bytes > ring_max_frame(r) || need > tail - head || need > to_end)
        return corrupt(r, len);
    r->at = head + need;
    r->open = true;
    *len = bytes;
    return r->data + (head & (r->size - 1)) + RING_HEADER;
}

void ring_consume(struct ring *r)
{
    BUG_ON(!r->open);
    atomic_store_explicit(&r->head->head, r->at, memory_order_release);
    r->open = false;
}
