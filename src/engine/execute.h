/* execute: one step after the other over a row table and a forward pass. No process, no channel: frames in,
 * frames out, so that tests drive it directly.
 *
 * Of several engines in a replica all execute the same steps; one of them, the sampler, chooses tokens, and
 * the others learn them: as outcomes before the next step (execute_learn), or with the step itself (SRC_RING). */
#ifndef MPISERVE_ENGINE_EXECUTE_H
#define MPISERVE_ENGINE_EXECUTE_H

#include "engine/fault.h"
#include "engine/forward.h"
#include "engine/rows.h"

struct execute_spec {
    struct rows_limits limits;
    struct forward *forward; /* NULL: no maths (compute "null") */
    u32 null_step_us;
    struct pool *pool;
    struct device
        *device; /* where the forward pass works; NULL: on the host. Each step ends with device_finish */
    u32 gen, numerics;
    struct fault fault;
    struct coll *all; /* the replica's engines; NULL: one */
    bool follows;     /* another engine is the sampler */
};
struct outcome { /* of a row that was to be sampled */
    u32 row, row_gen;
    i32 token;
    u32 flags; /* enum result_flags; any: no token */
};
struct execute;
/* What spec points to stays the caller's and must outlive it. */
struct execute *execute_new(const struct execute_spec *spec, struct error *err);
void execute_free(struct execute *x);
/* Runs the step in frame and returns its results frame (sealed), valid until the next call; one that follows
 * has no tokens in it, and it is of no use. NULL: the group is broken (execute_error). A step of another
 * generation or numerics class, out of order, malformed or not executable changes nothing and is answered
 * with failed = 1, and a log line. */
const void *execute_step(struct execute *x, const void *frame, size_t len, size_t *out_len);
const struct error *execute_error(const struct execute *x);
/* Of the last step, in its order; valid until the next one. */
u32 execute_outcomes(const struct execute *x, const struct outcome **list);
/* Follower: what the sampler chose in the step before. ERR_PEER for rows that were not to be sampled. */
int execute_learn(struct execute *x, const struct outcome *list, u32 n, struct error *err);
/* Longest results frame with these limits; hidden: numbers of a vector, 0: none are made. */
size_t execute_results_max(u32 max_rows, u32 max_logprobs, u32 hidden);
/* "f32", "bf16" or "f16"; else ERR_INPUT. */
int compute_parse(const char *name, enum compute *out);

#endif
