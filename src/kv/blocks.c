#include "mpiserve/kv.h"
#include <stdlib.h>

struct given {
    u32 block;
    u64 after_step;
};
struct kv_blocks {
    u32 total;
    u32 n_free;
    u32 *free;           /* a stack */
    struct given *given; /* a queue, in order of after_step; every block is in at most one place */
    u32 first, n_given;
};

struct kv_blocks *kv_blocks_new(u32 n_blocks, struct error *err)
{
    if (n_blocks < 2) {
        error_set(err, ERR_INPUT, "", "a KV pool needs at least 2 blocks, not %u", n_blocks);
        return NULL;
    }
    struct kv_blocks *p = mem_zero(1, sizeof *p);
    p->total = n_blocks - 1;
    p->free = mem_zero(p->total, sizeof *p->free);
    p->given = mem_zero(p->total, sizeof *p->given);
    for (u32 i = 0; i < p->total; i++) p->free[i] = p->total - i; /* the lowest number is taken first */
    p->n_free = p->total;
    return p;
}

void kv_blocks_free(struct kv_blocks *p)
{
    if (!p) return;
    free(p->free);
    free(p->given);
    free(p);
}

u32 kv_free_blocks(const struct kv_blocks *p)
{
    return p->n_free;
}
u32 kv_given_blocks(const struct kv_blocks *p)
{
    return p->n_given;
}
u32 kv_total_blocks(const struct kv_blocks *p)
{
    return p->total;
}

bool kv_take(struct kv_blocks *p, u32 *block)
{
    if (p->n_free == 0) return false;
    *block = p->free[--p->n_free];
    return true;
}

void kv_give(struct kv_blocks *p, u32 block, u64 after_step)
{
    BUG_ON(block == 0 || block > p->total || p->n_free + p->n_given >= p->total);
    p->given[(p->first + p->n_given) % p->total] = (struct given){block, after_step};
    p->n_given++;
}

void kv_committed(struct kv_blocks *p, u64 step)
{
    while (p->n_given > 0 && p->given[p->first].after_step <= step) {
        p->free[p->n_free++] = p->given[p->first].block;
        p->first = (p->first + 1) % p->total;
        p->n_given--;
    }
}

void kv_settle(struct kv_blocks *p)
{
    kv_committed(p, UINT64_MAX);
}
