/* kv: which blocks of an engine's KV pool belong to whom.
 *
 * Pure bookkeeping on block numbers; the memory is the engine's. A block that is given back may still be read
 * or written by steps that were planned before: it becomes free when all of those are committed (ids rise by
 * one, so `after_step` = id of the last step planned so far). Block 0 is the engine's scratch block and is
 * never handed out. Level 1 (batch/ stands on it). Thread rule: one thread. */
#ifndef MPISERVE_KV_H
#define MPISERVE_KV_H

#include "mpiserve/base.h"

struct kv_blocks;
struct kv_blocks *kv_blocks_new(u32 n_blocks, struct error *err); /* n_blocks >= 2, block 0 included */
void kv_blocks_free(struct kv_blocks *p);
u32 kv_free_blocks(const struct kv_blocks *p);  /* takeable now */
u32 kv_given_blocks(const struct kv_blocks *p); /* given back, free once the steps in flight have ended */
u32 kv_total_blocks(const struct kv_blocks *p); /* without block 0 */
bool kv_take(struct kv_blocks *p, u32 *block);  /* false: none free now */
void kv_give(struct kv_blocks *p, u32 block, u64 after_step);
void kv_committed(struct kv_blocks *p, u64 step); /* this step and all before are done */
void kv_settle(struct kv_blocks *p); /* no step is in flight any more: everything given is free */

#endif
