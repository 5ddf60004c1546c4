/* fault: deliberate failures for tests of the rest of the system; the list is in mpiserve/engine.h. */
#ifndef MPISERVE_ENGINE_FAULT_H
#define MPISERVE_ENGINE_FAULT_H

#include "mpiserve/step.h"

enum fault_kind {
    FAULT_NONE,
    FAULT_CRASH_STEP,
    FAULT_STALL_STEP,
    FAULT_CRASH_TOKEN,
    FAULT_NAN_TOKEN,
    FAULT_SLOW_STEP,
    FAULT_CRASH_LOAD,
};
struct fault {
    enum fault_kind kind;
    u64 number;
};
/* text: the variable's value, or NULL. ERR_INPUT for one that is not in the list. */
int fault_parse(struct fault *f, const char *text, struct error *err);
void fault_load(const struct fault *f);
void fault_step(const struct fault *f, const struct step *head);
/* Before a row is computed; true: its logits are to be made NaN. */
bool fault_tokens(const struct fault *f, const i32 *tokens, u32 n);

#endif
