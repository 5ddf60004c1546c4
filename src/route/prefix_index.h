/* Who holds which block of a prefix: a table of (hash, replica) of fixed size that forgets what was not used for longest. Inside of
 * route/.
 *
 * A hash has one bucket of two cache lines, roughly in the order of use: who is put, or looked at in the rear half, comes to the
 * front with all of its hash, and what does not fit falls out at the end. At most HOLDERS places are of one hash, so that a few
 * popular ones leave room for others. Hashes of a bucket that agree in 32 bits are taken for one: a look finds with a chance of 2^-28
 * a block that is not there. */
#ifndef ROUTE_PREFIX_INDEX_H
#define ROUTE_PREFIX_INDEX_H

#include "route/router.h"

enum { PLACES = 16, HOLDERS = ROUTE_PREFIX_HOLDERS };
struct bucket {
    u32 tags[PLACES];  /* of the hash; 0: free, and so are all behind it */
    u32 whose[PLACES]; /* the replica, its life << 16 */
};
struct prefix_index {
    struct bucket *buckets;
    void *memory;  /* where they are aligned in */
    u64 n_buckets; /* 0: nothing is ever found */
    u16 *lives;    /* [replicas] counts clears, from 1; what was put in an earlier life is stale */
};
struct holders { /* of a hash, as far as they are eligible now; who was put last comes first */
    u16 replicas[HOLDERS];
    u32 n;
};
void prefix_index_init(struct prefix_index *x, u32 replicas, u32 blocks);
void prefix_index_release(struct prefix_index *x);
void prefix_index_ready(const struct prefix_index *x, u64 hash); /* it will be asked soon */
/* How many holders are known, eligible or not. HOLDERS: there may be others. */
u32 prefix_index_use(struct prefix_index *x, u64 hash);
void prefix_index_holders(const struct prefix_index *x, const struct router *r, u64 hash,
                          struct holders *out);
void prefix_index_put(struct prefix_index *x, const struct router *r, u64 hash, u32 replica);
void prefix_index_remove(struct prefix_index *x, u64 hash, u32 replica);
void prefix_index_clear(struct prefix_index *x, u32 replica);

#endif
