/* process: what an engine is made of, for the process that serves (main.c) and for one that only measures (solo.c). Inside the engine
 * room. */
#ifndef MPISERVE_ENGINE_PROCESS_H
#define MPISERVE_ENGINE_PROCESS_H

#include "engine/execute.h"
#include "engine/group.h"
#include "engine/load.h"

struct engine {
    struct channel *channel; /* NULL: nobody is at its other end */
    struct channel_head *head;
    const struct engine_boot *boot;
    int weights_fd, kv_fd; /* the memories; not looked at with a device */
    struct fault fault;
    struct device *device; /* NULL: CPUs compute */
    struct loaded model;
    struct pool *pool;
    struct forward *forward;
    struct execute *execute;
    struct group group;
};
/* The model, its forward pass and what executes steps, as the boot says. engine_release is the caller's, on an error too. */
int engine_build(struct engine *e, struct error *err);
void engine_release(struct engine *e);

#endif
