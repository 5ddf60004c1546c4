/* The prefix cache: a tree of blocks, found through buckets. */
#include "kv/kv_internal.h"
#include <stdlib.h>
#include <string.h>

static u64 standard_hash(u64 before, const i32 *tokens, u32 n)
{
    return hash_bytes(tokens, (size_t)n * sizeof *tokens, before);
}

void kv_prefix_hashes(u64 kind, const i32 *tokens, u32 n_tokens, u32 block_size, u64 *out)
{
    u64 hash = kind;
    for (u32 i = 0; i < n_tokens / block_size; i++)
        out[i] = hash = standard_hash(hash, tokens + (size_t)i * block_size, block_size);
}

void kv_prefix_init(struct kv_blocks *p)
{
    u32 n_buckets = 1;
    while (n_buckets < p->total && n_buckets < 1u << 31) n_buckets *= 2;
    p->bucket_mask = n_buckets - 1;
    p->bucket = mem_zero(n_buckets, sizeof *p->bucket);
    p->tokens = mem_zero((size_t)p->total + 1, p->spec.block_size * sizeof *p->tokens);
    p->changes = mem_zero(MAX_OF(p->spec.n_changes, 1u), sizeof *p->changes);
    if (!p->spec.hash) p->spec.hash = standard_hash;
}

void kv_prefix_release(struct kv_blocks *p)
{
    free(p->bucket);
    free(p->tokens);
    free(p->changes);
}

/* ---- changes -------------------------------------------------------------------------------------------------*/
static void note_change(struct kv_blocks *p, u64 hash, bool removed)
{
    if (p->all_changed) return;
    if (p->n_changes == p->spec.n_changes) {
        p->all_changed = true;
        p->n_changes = 0;
        return;
    }
    p->changes[(p->first_change + p->n_changes++) % p->spec.n_changes] = (struct kv_changed){hash, removed};
}

enum kv_change kv_next_change(struct kv_blocks *p, u64 *hash)
{
    if (p->all_changed) {
        p->all_changed = false;
        return KV_ALL_CHANGED;
    }
    if (p->n_changes == 0) return KV_UNCHANGED;
    const struct kv_changed *c = &p->changes[p->first_change];
    p->first_change = (p->first_change + 1) % p->spec.n_changes;
    p->n_changes--;
    *hash = c->hash;
    return c->removed ? KV_REMOVED : KV_ADDED;
}

u32 kv_cached_blocks(const struct kv_blocks *p)
{
    return p->n_cached;
}

u32 kv_hashes(const struct kv_blocks *p, u64 *out, u32 max)
{
    u32 n = 0;
    for (u32 i = 1; i <= p->total && n < max; i++)
        if (p->block[i].serial) out[n++] = p->block[i].hash;
    return p->n_cached;
}

/* ---- the tree ------------------------------------------------------------------------------------------------*/
static i32 *tokens_of(const struct kv_blocks *p, u32 block)
{
    return p->tokens + (size_t)block * p->spec.block_size;
}

static bool link_stands(const struct kv_blocks *p, const struct kv_link *at)
{
    return p->spec.prefix_cache && (at->block == 0 || p->block[at->block].serial == at->serial);
}

/* Kinds of sequences differ in what is behind nothing. */
static u64 kind_of(const struct kv_link *at)
{
    return at->block ? 0 : at->serial;
}

static u64 hash_behind(const struct kv_blocks *p, const struct kv_link *at, const i32 *tokens)
{
    return p->spec.hash(at->block ? p->block[at->block].hash : at->serial, tokens, p->spec.block_size);
}

/* 0: none. The hash only saves comparisons. */
static u32 find(const struct kv_blocks *p, const struct kv_link *at, const i32 *tokens, u64 hash)
{
    u32 i = p->bucket[hash & p->bucket_mask];
    for (; i; i = p->block[i].next_in_bucket) {
        const struct kv_block *b = &p->block[i];
        if (b->hash == hash && b->before == at->block && b->kind == kind_of(at) &&
            memcmp(tokens_of(p, i), tokens, p->spec.block_size * sizeof *tokens) == 0)
            break;
    }
    return i;
}

bool kv_find(struct kv_blocks *p, struct kv_link *at, const i32 *tokens, u32 *block)
{
    if (!link_stands(p, at)) return false;
    u32 found = find(p, at, tokens, hash_behind(p, at, tokens));
    if (!found) return false;
    *block = found;
    *at = (struct kv_link){found, p->block[found].serial};
    return true;
}

static void add(struct kv_blocks *p, u32 block, const struct kv_link *at, const i32 *tokens, u64 hash)
{
    struct kv_block *b = &p->block[block], *up = &p->block[at->block];
    u32 *bucket = &p->bucket[hash & p->bucket_mask];
    b->serial = ++p->last_serial;
    b->hash = hash;
    b->before = at->block;
    b->kind = kind_of(at);
    memcpy(tokens_of(p, block), tokens, p->spec.block_size * sizeof *tokens);
    b->first_behind = b->previous_behind = b->previous_in_bucket = 0;
    b->next_behind = up->first_behind;
    if (up->first_behind) p->block[up->first_behind].previous_behind = block;
    up->first_behind = block;
    b->next_in_bucket = *bucket;
    if (*bucket) p->block[*bucket].previous_in_bucket = block;
    *bucket = block;
    p->n_cached++;
    note_change(p, hash, false);
}

bool kv_cache(struct kv_blocks *p, struct kv_link *at, const i32 *tokens, u32 block)
{
    BUG_ON(block == 0 || block > p->total || p->block[block].users == 0 || p->block[block].serial);
    if (!link_stands(p, at)) return false;
    u64 hash = hash_behind(p, at, tokens);
    u32 found = find(p, at, tokens, hash);
    if (!found) add(p, found = block, at, tokens, hash);
    *at = (struct kv_link){found, p->block[found].serial};
    return true;
}

/* A block with nothing behind it. */
static void drop(struct kv_blocks *p, u32 block)
{
    struct kv_block *b = &p->block[block], *up = &p->block[b->before];
    *(b->previous_behind ? &p->block[b->previous_behind].next_behind : &up->first_behind) = b->next_behind;
    if (b->next_behind) p->block[b->next_behind].previous_behind = b->previous_behind;
    *(b->previous_in_bucket ? &p->block[b->previous_in_bucket].next_in_bucket
                            : &p->bucket[b->hash & p->bucket_mask]) = b->next_in_bucket;
    if (b->next_in_bucket) p->block[b->next_in_bucket].previous_in_bucket = b->previous_in_bucket;
    b->serial = 0;
    p->n_cached--;
    note_change(p, b->hash, true);
    if (b->place != KV_IDLE) return;
    kv_list_remove(p, block);
    kv_rest(p, block);
}

void kv_uncache(struct kv_blocks *p, u32 block)
{
    u32 i = block, before;
    do {
        while (p->block[i].first_behind) i = p->block[i].first_behind;
        before = p->block[i].before;
        drop(p, i);
    } while (i != block && (i = before));
}

void kv_forget(struct kv_blocks *p)
{
    if (p->n_cached == 0) return;
    p->all_changed = true; /* one word instead of one a block */
    p->n_changes = 0;
    while (p->block[0].first_behind) kv_uncache(p, p->block[0].first_behind);
}
