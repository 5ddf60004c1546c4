/* layout: offsets of a frame's parts; inside the step room. Counts may come from outside: all sums are 64
 * bits wide and cannot overflow (u32 counts times small items). */
#ifndef MPISERVE_STEP_LAYOUT_H
#define MPISERVE_STEP_LAYOUT_H

#include "mpiserve/step.h"

struct step_parts {
    u64 free, new, ops, rows, data, bytes;
};
struct results_parts {
    u64 rows, data, bytes;
};
void step_parts(const struct step *h, struct step_parts *p);
void results_parts(const struct results *h, struct results_parts *p);
void step_point(struct step_view *v, const void *frame, const struct step_parts *p);
void results_point(struct results_view *v, const void *frame, const struct results_parts *p);
u32 step_crc(const void *frame, size_t bytes);
u32 results_crc(const void *frame, size_t bytes);

#endif
