/* Life and counters of the object. */
#include "slots/slots_inner.h"

#include <stdlib.h>

struct slots *slots_new(const struct slots_spec *spec, struct error *err)
{
    if (!spec->epoch || spec->epoch > SLOT_EPOCH_MAX) {
        error_set(err, ERR_INPUT, "", "slot epoch %u: must be 1 to %d", spec->epoch, SLOT_EPOCH_MAX);
        return NULL;
    }
    struct slot_window *window = slot_window_new(spec, err);
    if (!window) return NULL;
    struct slots *s = mem_zero(1, sizeof *s);
    s->window = window;
    s->owner = spec->owner;
    s->epoch = spec->epoch;
    s->rank = slot_window_rank(window);
    s->n_ranks = slot_window_ranks(window);
    s->lease_ns[SLOT_CLASS_SHORT] = spec->lease_short_ns;
    s->lease_ns[SLOT_CLASS_LONG] = spec->lease_long_ns;
    s->far = mem_zero(s->n_ranks, sizeof *s->far);
    s->near.replica = -1;
    return s;
}

static void release(struct slots *s)
{
    for (u32 i = 0; i < s->n_ranks; i++) free(s->far[i].seen);
    free(s->far);
    free(s->near.words);
    free(s->near.since_ns);
    free(s);
}

void slots_free(struct slots *s)
{
    if (!s) return;
    slot_window_free(s->window);
    release(s);
}

void slots_abandon(struct slots *s)
{
    if (!s) return;
    slot_window_abandon(s->window);
    release(s);
}

const struct slots_counts *slots_counts(struct slots *s)
{
    s->counts.cas = slot_window_operations(s->window);
    return &s->counts;
}
