/* Users of blocks, and where blocks without users wait. */
#include "kv/kv_internal.h"
#include <stdlib.h>

struct kv_blocks *kv_blocks_new(const struct kv_spec *spec, struct error *err)
{
    if (spec->n_blocks < 2 || spec->block_size < 1) {
        error_set(err, ERR_INPUT, "", "a KV pool needs at least 2 blocks of at least 1 token, not %u of %u",
                  spec->n_blocks, spec->block_size);
        return NULL;
    }
    struct kv_blocks *p = mem_zero(1, sizeof *p);
    p->spec = *spec;
    p->total = spec->n_blocks - 1;
    p->block = mem_zero(spec->n_blocks, sizeof *p->block);
    if (spec->prefix_cache) kv_prefix_init(p);
    for (u32 i = p->total; i >= 1; i--) kv_rest(p, i); /* the lowest number is taken first */
    return p;
}

void kv_blocks_free(struct kv_blocks *p)
{
    if (!p) return;
    kv_prefix_release(p);
    free(p->block);
    free(p);
}

u32 kv_free_blocks(const struct kv_blocks *p)
{
    return p->list[KV_FREE].n + p->list[KV_IDLE].n;
}
u32 kv_given_blocks(const struct kv_blocks *p)
{
    return p->n_given;
}
u32 kv_total_blocks(const struct kv_blocks *p)
{
    return p->total;
}
u32 kv_users(const struct kv_blocks *p, u32 block)
{
    BUG_ON(block == 0 || block > p->total);
    return p->block[block].users;
}

/* ---- lists ---------------------------------------------------------------------------------------------------*/
static void list_first(struct kv_blocks *p, u32 block, enum kv_place place)
{
    struct kv_list *l = &p->list[place];
    struct kv_block *b = &p->block[block];
    b->place = (u8)place;
    b->previous = 0;
    b->next = l->first;
    *(l->first ? &p->block[l->first].previous : &l->last) = block;
    l->first = block;
    l->n++;
}

static void list_last(struct kv_blocks *p, u32 block, enum kv_place place)
{
    struct kv_list *l = &p->list[place];
    struct kv_block *b = &p->block[block];
    b->place = (u8)place;
    b->next = 0;
    b->previous = l->last;
    *(l->last ? &p->block[l->last].next : &l->first) = block;
    l->last = block;
    l->n++;
}

void kv_list_remove(struct kv_blocks *p, u32 block)
{
    struct kv_block *b = &p->block[block];
    struct kv_list *l = &p->list[b->place];
    BUG_ON(b->place == KV_USED);
    *(b->previous ? &p->block[b->previous].next : &l->first) = b->next;
    *(b->next ? &p->block[b->next].previous : &l->last) = b->previous;
    b->place = KV_USED;
    l->n--;
}

void kv_rest(struct kv_blocks *p, u32 block)
{
    if (p->block[block].serial)
        list_last(p, block, KV_IDLE);
    else
        list_first(p, block, KV_FREE);
}

/* ---- users ---------------------------------------------------------------------------------------------------*/
bool kv_take(struct kv_blocks *p, u32 *block)
{
    if (p->list[KV_FREE].n == 0 && p->list[KV_IDLE].n > 0) kv_uncache(p, p->list[KV_IDLE].first);
    if (p->list[KV_FREE].n == 0) return false;
    *block = p->list[KV_FREE].first;
    kv_list_remove(p, *block);
    p->block[*block].users = 1;
    return true;
}

void kv_give(struct kv_blocks *p, u32 block, u64 after_step)
{
    BUG_ON(block == 0 || block > p->total || p->block[block].users == 0);
    struct kv_block *b = &p->block[block];
    if (--b->users > 0) return; /* who gives it back last does so behind at least as many steps */
    if (b->place == KV_GIVEN) kv_list_remove(p, block);
    const struct kv_list *l = &p->list[KV_GIVEN];
    BUG_ON(l->n && p->block[l->last].after_step > after_step);
    b->after_step = after_step;
    list_last(p, block, KV_GIVEN);
    p->n_given++;
}

void kv_hold(struct kv_blocks *p, u32 block)
{
    BUG_ON(block == 0 || block > p->total || !p->block[block].serial);
    struct kv_block *b = &p->block[block];
    if (b->users++ > 0) return;
    if (b->place == KV_IDLE)
        kv_list_remove(p, block);
    else
        p->n_given--;
}

void kv_unhold(struct kv_blocks *p, u32 block)
{
    BUG_ON(block == 0 || block > p->total || p->block[block].users == 0);
    struct kv_block *b = &p->block[block];
    if (--b->users > 0) return;
    if (b->place == KV_GIVEN)
        p->n_given++;
    else
        kv_rest(p, block);
}

void kv_committed(struct kv_blocks *p, u64 step)
{
    const struct kv_list *l = &p->list[KV_GIVEN];
    for (u32 i; (i = l->first) && p->block[i].after_step <= step;) {
        kv_list_remove(p, i);
        if (p->block[i].users > 0) continue; /* it was found again */
        p->n_given--;
        kv_rest(p, i);
    }
}

void kv_settle(struct kv_blocks *p)
{
    kv_committed(p, UINT64_MAX);
}
