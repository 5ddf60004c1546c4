/* speed: what memory and products give here, measured: the limits that steps are compared with. Inside the engine room. */
#ifndef MPISERVE_ENGINE_SPEED_H
#define MPISERVE_ENGINE_SPEED_H

#include "mpiserve/device.h"
#include "mpiserve/engine.h"
#include "mpiserve/ops.h"

struct speed_ask {
    const struct ops *ops;
    enum dtype dtype; /* of weights and activations */
    struct pool *pool;
    struct device *device; /* NULL: the host */
};
/* On the host: large memory read by all threads. On a device: copied there, both ways counted. Products: squares of weights that grow
 * until one takes long enough, times as many rows as a chunk of a prompt has. The best of some tries each, about a second in all. */
int speed_measure(const struct speed_ask *a, struct engine_speed *out, struct error *err);

#endif
