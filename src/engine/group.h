/* group: an engine's place among the engines of its replica: the group's memory, and how a step reaches all of them.
 *
 * The root hands on a packet: what was sampled in the step before (where the root is the sampler), then the
 * frame as it is. Packets up to a page are one broadcast, or with several stages one message to each. Inside the engine
 * room; one thread. */
#ifndef MPISERVE_ENGINE_GROUP_H
#define MPISERVE_ENGINE_GROUP_H

#include "engine/execute.h"
#include "mpiserve/coll.h"
#include "mpiserve/device.h"
#include "mpiserve/step.h"

struct group {
    struct coll_world *world; /* NULL: one engine, and all below is nothing */
    struct coll *all, *stage;
    struct coll_nccl *gpus; /* and its way between GPUs */
    struct device *device;
    bool root, sampler; /* one engine is both */
    u64 wait_ns;        /* for another engine */
    void *memory;       /* mapping */
    size_t bytes;
    u8 *packet;
    size_t room;
};
struct group_step {
    const struct outcome *outcomes; /* [n] */
    u32 n;
    const void *frame; /* 8-byte aligned */
    size_t len;
};
/* By the boot parameters; fd: the group's memory. */
int group_open(struct group *g, struct channel *c, int fd, struct error *err);
void group_close(struct group *g);
/* Engines with GPUs: the way between these, and who looks after others while this one waits for its own. One engine: nothing.
 * group_disconnect: nothing waits for others any more; before the device's memory is freed. */
int group_connect(struct group *g, struct device *d, struct error *err);
void group_disconnect(struct group *g);
/* Root: to all others. The copy that *s then points to is valid until the next call. */
int group_hand_on(struct group *g, struct group_step *s, struct error *err);
void group_done(struct group *g); /* root: it has executed the step, and may have had nothing to send on */
/* The others: the next one, however long it takes (with ticks of the heartbeat). */
int group_take(struct group *g, struct group_step *s, struct error *err);

#endif
