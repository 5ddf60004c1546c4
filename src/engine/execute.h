/* execute: one step after the other over a row table and a forward pass. No process, no channel: frames in,
 * frames out, so that tests drive it directly. */
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
    u32 gen, numerics;
    struct fault fault;
};
struct execute;
/* What spec points to stays the caller's and must outlive it. */
struct execute *execute_new(const struct execute_spec *spec, struct error *err);
void execute_free(struct execute *x);
/* Runs the step in frame and returns its results frame (sealed), valid until the next call. A step of another generation or numerics
 * class, out of order, malformed or not executable changes nothing and is answered with failed = 1, and a log line. */
const void *execute_step(struct execute *x, const void *frame, size_t len, size_t *out_len);
/* Longest results frame with these limits. */
size_t execute_results_max(u32 max_rows, u32 max_logprobs);
/* "f32" or "bf16"; else ERR_INPUT. */
int compute_parse(const char *name, enum compute *out);

#endif
