/* Inside agent/: a replica's leader: its requests and slots (leader.c), its engine's life (supervise.c). */
#ifndef MPISERVE_AGENT_LEADER_INTERNAL_H
#define MPISERVE_AGENT_LEADER_INTERNAL_H

#include "agent/agent_internal.h"
#include "mpiserve/batch.h"
#include "mpiserve/proc.h"
#include "mpiserve/step.h"

struct held { /* a slot in use */
    bool used;
    u32 origin;
    u64 request;
    struct slot_token token;
};
struct leader {
    struct agent *agent;
    i32 replica;
    struct batch *batch;
    struct held *held; /* [max_ongoing], by slot */
    u32 n_held;
    bool closing, hurried, was_busy;
    u64 load_sent_ns;
    bool publishes; /* what is cached, since the router wants to know */
    u64 published_ns;
    bool load_due;
    /* the engine */
    struct proc *proc;
    struct channel *channel; /* the proc's */
    int weights_fd, kv_fd;
    struct engine_boot boot;
    struct restart restart;
    u64 start_ns; /* not before */
    enum replica_state state;
    char trouble[160];
    u64 progress_ns;             /* last results frame, or ready */
    u64 sent_ns[STEP_IN_FLIGHT]; /* of steps and canaries without an answer, oldest first */
    u32 n_sent;
    u64 step_usec; /* what forward passes took, by the engine's clock */
};

/* supervise.c */
int supervise_init(struct leader *l, struct error *err);
void supervise_release(struct leader *l);
int supervise_turn(struct leader *l, u64 now_ns); /* births, deaths, steps out, results in */
/* publish.c */
void leader_publish(struct leader *l, u64 now_ns);
/* leader.c */
void leader_engine_changed(struct leader *l, enum replica_state state, const char *trouble);
void leader_flush(struct leader *l);

#endif
