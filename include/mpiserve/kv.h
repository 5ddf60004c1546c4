/* kv: which blocks of an engine's KV pool belong to whom, and which of them can be used again: the prefix cache.
 *
 * Pure bookkeeping on block numbers; the memory is the engine's. Block 0 is the engine's scratch block and is never handed out.
 *
 * A block has users (references). Only who took a block writes into it, and only as long as it is not cached; a cached block
 * may have many users. A block whose last user gives it back may still be read or written by steps that were planned before:
 * it can be taken anew when all of those are committed (ids rise by one, so `after_step` = id of the last step planned so far).
 *
 * Prefix cache: a block that is full of committed tokens becomes cached behind the cached block of the tokens before it
 * (struct kv_link names that one). What it holds is a function of these tokens and all before them, so whoever has the same
 * tokens from position 0 uses it instead of computing it. The key is (the cached block before it, its own tokens) and is
 * compared in full; the hash finds the bucket, nothing else. Cached blocks without users stay until somebody needs
 * a block: then the one goes that has been without users for longest, together with all that is cached behind it, since nothing
 * can find that any more. Give blocks back last one first: then the ends of sequences go before what they have in common.
 *
 * Everything is O(1) or O(blocks touched); nothing is allocated after kv_blocks_new. Level 1 (batch/ stands on it).
 * Thread rule: one thread. */
#ifndef MPISERVE_KV_H
#define MPISERVE_KV_H

#include "mpiserve/base.h"

struct kv_spec {
    u32 n_blocks;      /* >= 2, block 0 included */
    u32 block_size;    /* tokens of a block, >= 1 */
    bool prefix_cache; /* false: nothing is ever cached or found */
    u32 n_changes;     /* room for changes that were not read, 0: KV_ALL_CHANGED is the only answer */
    u64 (*hash)(u64 before, const i32 *tokens, u32 n); /* NULL: that of kv_prefix_hashes */
};
struct kv_blocks;
struct kv_blocks *kv_blocks_new(const struct kv_spec *spec, struct error *err);
void kv_blocks_free(struct kv_blocks *p);
u32 kv_free_blocks(const struct kv_blocks *p); /* takeable now; cached blocks without users are */
u32 kv_given_blocks(
    const struct kv_blocks *p); /* without users, takeable once the steps in flight have ended */
u32 kv_total_blocks(const struct kv_blocks *p);  /* without block 0 */
u32 kv_cached_blocks(const struct kv_blocks *p); /* with users or without */
u32 kv_users(const struct kv_blocks *p, u32 block);
bool kv_take(struct kv_blocks *p,
             u32 *block); /* it has one user now, and is not cached; false: none is takeable */
void kv_give(struct kv_blocks *p, u32 block, u64 after_step); /* one user less; after_step never falls */
void kv_committed(struct kv_blocks *p, u64 step);             /* this step and all before are done */
void kv_settle(struct kv_blocks *p); /* no step is in flight any more: everything given can be taken */

/* ---- the prefix cache -------------------------------------------------------------------------------------------*/
/* The end of a row of cached blocks; {0}: the begin of a sequence. Stays good when its block goes: then nothing is behind it. What the
 * same tokens make of a block may differ by the kind of a sequence; {0, kind} begins one that shares with its kind only. */
/* The kind of sequences with an adapter (0: none); other: what else it depends on, below 2^32. */
static inline u64 kv_kind(u32 adapter, u32 other)
{
    return (u64)adapter << 32 | other;
}
struct kv_link {
    u32 block;
    u64 serial; /* of this stay in the cache; with block 0: the kind */
};
/* The cached block behind *at with these block_size tokens; *at moves on to it. It gets no user by that. */
bool kv_find(struct kv_blocks *p, struct kv_link *at, const i32 *tokens, u32 *block);
/* One more user of a cached block. kv_unhold takes that back, as if it had never been: no step was planned with it. */
void kv_hold(struct kv_blocks *p, u32 block);
void kv_unhold(struct kv_blocks *p, u32 block);
/* The caller's block, full of these committed tokens, is cached behind *at, and *at moves on. If these tokens are cached there
 * already, *at moves on to that block, and the caller's stays as it is, its own. false: *at is no longer cached,
 * and so nothing behind it can be. */
bool kv_cache(struct kv_blocks *p, struct kv_link *at, const i32 *tokens, u32 block);
/* The memory cannot be trusted any more: nothing is cached. Users keep their blocks. */
void kv_forget(struct kv_blocks *p);

/* ---- for routing: what is cached where, as hashes ---------------------------------------------------------------*/
/* out[i] = f(out[i - 1], tokens of block i) for each full block: [n_tokens / block_size]; before the first: the sequence's kind. The
 * same on all ranks of a job. Equal hashes are a hint, no proof. */
void kv_prefix_hashes(u64 kind, const i32 *tokens, u32 n_tokens, u32 block_size, u64 *out);
enum kv_change { KV_UNCHANGED, KV_ADDED, KV_REMOVED, KV_ALL_CHANGED };
/* The oldest change that was not read. KV_ALL_CHANGED: more than could be kept, those in the queue are dropped: what holds is
 * kv_hashes, called before anything else changes. */
enum kv_change kv_next_change(struct kv_blocks *p, u64 *hash);
/* The hashes of all cached blocks, at most max of them, in no order; returns how many there are. */
u32 kv_hashes(const struct kv_blocks *p, u64 *out, u32 max);

#endif
