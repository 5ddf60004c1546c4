/* shard: which part of a model an engine of a replica has: layers of its stage, and in each of them heads,
 * columns of the MLP and rows of the vocabulary. Inside the engine room. Pure. */
#ifndef MPISERVE_ENGINE_SHARD_H
#define MPISERVE_ENGINE_SHARD_H

#include "mpiserve/base.h"
#include "mpiserve/model.h"

struct slice { /* [first, first + n) of a whole of so many */
    u32 first, n, of;
};
struct shard {
    u32 tp, pp, tp_rank, pp_rank;
    struct slice layers;
    struct slice expert_ffn, shared_ffn;      /* of each expert, of the shared one */
    struct slice heads, kv_heads, ffn, vocab; /* with more engines than KV heads, several have the same one */
};
/* Stages have layers in order, as many as each other; the first ones one more where that does not come out
 * even, since the last one has the head. ERR_UNSUPPORTED with the numbers where the model cannot be divided so. */
int shard_of(struct shard *s, const struct model_config *c, u32 tp, u32 pp, u32 tp_rank, u32 pp_rank,
             struct error *err);
/* All of it. */
struct shard shard_whole(const struct model_config *c);
static inline bool shard_first(const struct shard *s) /* has the embedding */
{
    return s->pp_rank == 0;
}
static inline bool shard_last(const struct shard *s) /* has the last norm and the head */
{
    return s->pp_rank + 1 == s->pp;
}

#endif
