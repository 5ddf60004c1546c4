/* The pairs of a long word that wait to be merged, lowest rank first, then leftmost. Pairs of one rank mostly arrive from left to
 * right, so each rank has a plain list; what arrives out of order goes into a heap. */
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

enum { WAYS = 4, NO_LIST = -1 };

struct rank_list {
    u32 rank;
    bool waits; /* is in q->ranks */
    i32 *at;    /* [n], ascending from head on */
    size_t head, n, cap;
};

/* ---- a heap of numbers ---- */

static void heap_push(struct pair_heap *h, u64 entry)
{
    if (h->n == h->cap) {
        h->cap = h->cap ? h->cap * 2 : 256;
        h->entries = mem_resize(h->entries, h->cap * sizeof(*h->entries));
    }
    size_t at = h->n++;
    for (; at > 0 && h->entries[(at - 1) / WAYS] > entry; at = (at - 1) / WAYS)
        h->entries[at] = h->entries[(at - 1) / WAYS];
    h->entries[at] = entry;
}

static u64 heap_pop(struct pair_heap *h)
{
    u64 top = h->entries[0], last = h->entries[--h->n];
    size_t at = 0;
    for (;;) {
        size_t best = at * WAYS + 1, end = MIN_OF(best + WAYS, h->n);
        for (size_t i = best + 1; i < end; i++) {
            if (h->entries[i] < h->entries[best]) best = i;
        }
        if (best >= h->n || h->entries[best] >= last) break;
        h->entries[at] = h->entries[best];
        at = best;
    }
    h->entries[at] = last;
    return top;
}

/* ---- lists by rank ---- */

static i32 *list_slot(const struct pair_queue *q, u32 rank)
{
    for (u32 at = rank * 0x9E3779B9u >> 7 & q->slot_mask;; at = (at + 1) & q->slot_mask)
        if (q->slots[at] == NO_LIST || q->lists[q->slots[at]].rank == rank) return &q->slots[at];
}

static void grow(struct pair_queue *q)
{
    q->cap_lists = q->cap_lists ? q->cap_lists * 2 : 64;
    q->lists = mem_resize(q->lists, q->cap_lists * sizeof(*q->lists));
    memset(q->lists + q->n_lists, 0, (q->cap_lists - q->n_lists) * sizeof(*q->lists));
    q->slot_mask = (u32)q->cap_lists * 2 - 1;
    q->slots = mem_resize(q->slots, ((size_t)q->slot_mask + 1) * sizeof(*q->slots));
    memset(q->slots, 0xFF, ((size_t)q->slot_mask + 1) * sizeof(*q->slots));
    for (size_t i = 0; i < q->n_lists; i++) *list_slot(q, q->lists[i].rank) = (i32)i;
}

static size_t list_of(struct pair_queue *q, u32 rank)
{
    if (q->n_lists == q->cap_lists) grow(q);
    i32 *slot = list_slot(q, rank);
    if (*slot == NO_LIST) {
        *slot = (i32)q->n_lists++;
        q->lists[*slot].rank = rank;
    }
    return (size_t)*slot;
}

void pair_queue_push(struct pair_queue *q, u32 rank, i32 at)
{
    size_t index = list_of(q, rank);
    struct rank_list *l = &q->lists[index];
    if (l->n > l->head && at < l->at[l->n - 1]) {
        heap_push(&q->late, (u64)rank << 32 | (u32)at);
        return;
    }
    if (l->n == l->cap) {
        l->cap = l->cap ? l->cap * 2 : 16;
        l->at = mem_resize(l->at, l->cap * sizeof(*l->at));
    }
    l->at[l->n++] = at;
    if (!l->waits) heap_push(&q->ranks, (u64)rank << 32 | index);
    l->waits = true;
}

bool pair_queue_pop(struct pair_queue *q, u32 *rank, i32 *at)
{
    struct rank_list *l = NULL;
    while (q->ranks.n && !l) {
        l = &q->lists[(u32)q->ranks.entries[0]];
        if (l->head < l->n) break;
        heap_pop(&q->ranks);
        l->waits = false;
        l->head = l->n = 0;
        l = NULL;
    }
    if (!l && !q->late.n) return false;
    u64 entry = l ? (u64)l->rank << 32 | (u32)l->at[l->head] : UINT64_MAX;
    if (q->late.n && q->late.entries[0] < entry) {
        entry = heap_pop(&q->late);
    } else {
        l->head++;
    }
    *rank = (u32)(entry >> 32);
    *at = (i32)(u32)entry;
    return true;
}

void pair_queue_release(struct pair_queue *q)
{
    for (size_t i = 0; i < q->n_lists; i++) free(q->lists[i].at);
    free(q->lists);
    free(q->slots);
    free(q->ranks.entries);
    free(q->late.entries);
    memset(q, 0, sizeof(*q));
}
