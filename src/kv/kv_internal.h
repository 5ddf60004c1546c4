/* Inside kv/: a block's record. blocks.c: users and lists; prefix.c: what is cached. */
#ifndef MPISERVE_KV_INTERNAL_H
#define MPISERVE_KV_INTERNAL_H

#include "mpiserve/kv.h"

enum kv_place {
    KV_USED, /* has users */
    KV_FREE, /* neither users nor tokens worth keeping */
    KV_GIVEN, /* steps in flight may use it. Found again meanwhile it has users, and stays in this list until they end */
    KV_IDLE, /* cached, without users: longest without first */
    KV_PLACES
};
struct kv_block {
    u32 users;
    u32 next, previous; /* in its place; 0: none */
    u8 place;
    u64 after_step; /* KV_GIVEN */
    /* cached */
    u64 serial; /* 0: it is not */
    u64 hash;
    u32 before; /* the cached block before it; 0: none */
    u64 kind;   /* of a block behind none */
    u32 first_behind, next_behind,
        previous_behind; /* those cached behind it; its neighbours behind `before` */
    u32 next_in_bucket, previous_in_bucket;
};
struct kv_list {
    u32 first, last, n;
};
struct kv_blocks {
    struct kv_spec spec;
    u32 total;
    struct kv_block *block; /* [total + 1]; [0] is what the first blocks of sequences are behind */
    struct kv_list list[KV_PLACES];
    u32 n_given; /* in KV_GIVEN and without users */
    /* prefix cache */
    i32 *tokens; /* [total + 1, block_size], of cached blocks */
    u32 *bucket; /* first block; 0: none */
    u32 bucket_mask, n_cached;
    u64 last_serial;
    struct kv_changed {
        u64 hash;
        bool removed;
    } * changes; /* a ring */
    u32 first_change, n_changes;
    bool all_changed;
};

void kv_list_remove(struct kv_blocks *p, u32 block);
/* The block has no users and no step needs it: where it waits now depends on whether it is cached. */
void kv_rest(struct kv_blocks *p, u32 block);
void kv_prefix_init(struct kv_blocks *p);
void kv_prefix_release(struct kv_blocks *p);
/* The block and all behind it are not cached any more; those of them that were idle are free, this block on top. */
void kv_uncache(struct kv_blocks *p, u32 block);

#endif
