/* cost: what a step has to compute and to read, at the least. Inside the engine room. Pure.
 *
 * Operations: 2 for every product of a weight that a token meets, and 4 for every number of K that a token's q heads see (scores, and the
 * sum of V). Bytes: weights once a step, of experts as many as tokens that choose evenly meet on average; K and V that are seen, once
 * for each sequence. Activations, norms and the rows of the embedding are left out: they are little beside. */
#ifndef MPISERVE_ENGINE_COST_H
#define MPISERVE_ENGINE_COST_H

#include "engine/forward.h"
#include "mpiserve/engine.h"

struct cost_ask {
    const struct model_config *config;
    const struct shard *shard;
    const struct weights *weights;
    bool device;          /* weights are row-major there */
    size_t kv_token;      /* bytes of a token's K and V in one layer */
    u32 seqs, pos, n_tok; /* so many sequences, each with n_tok tokens behind pos others */
    bool logits;          /* of each sequence's last token */
};
struct engine_cost cost_of(const struct cost_ask *a);

#endif
