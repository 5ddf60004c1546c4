/* A step that the stepper has planned, executed here. */
#ifndef MPISERVE_TESTS_STEPPER_RUN_H
#define MPISERVE_TESTS_STEPPER_RUN_H

#include "engine/execute.h"
#include "stepper.h"

/* Its results, seen through *out, until the next step; NULL when the engine would end (execute_error). */
static inline const void *stepper_run(struct stepper *s, u32 kind, struct execute *x,
                                      struct results_view *out)
{
    size_t len, out_len;
    void *frame = stepper_seal(s, kind, &len);
    const void *results = execute_step(x, frame, len, &out_len);
    free(frame);
    if (results) assert_int_equal(results_view(out, results, out_len, NULL), 0);
    return results;
}

#endif
