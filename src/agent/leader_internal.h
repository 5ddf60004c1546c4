/* Inside agent/: a replica's leader: its requests and slots (leader.c), steps and results (supervise.c), its engines' life (group.c). */
#ifndef MPISERVE_AGENT_LEADER_INTERNAL_H
#define MPISERVE_AGENT_LEADER_INTERNAL_H

#include "agent/agent_internal.h"
#include "agent/seat.h"
#include "mpiserve/batch.h"
#include "mpiserve/proc.h"
#include "mpiserve/step.h"

struct held { /* a slot in use */
    bool used;
    u32 origin;
    u64 request;
    struct slot_token token;
};
/* Another engine of the replica, as its agent says. WAITS: for its node's memory. */
enum member_state { MEMBER_GONE, MEMBER_WAITS, MEMBER_STARTING, MEMBER_UP };
struct hung { /* the one that was silent longest of those that are ended */
    u32 engine;
    i32 pid;
    u64 silent_ns;
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
    /* the engines */
    struct seat *seat;                   /* of the first one: the agent's */
    enum member_state members[COLL_MAX]; /* the others, by index */
    u32 gen;
    bool own_up, running;      /* running: all are up, steps flow */
    bool failing;              /* one has ended: the others follow */
    struct proc_verdict first; /* how it did */
    bool unanswered;           /* it is a step that was not answered: who hangs is known when all are gone */
    struct hung hung;
    struct restart restart;
    u64 start_ns; /* not before */
    enum replica_state state;
    char trouble[160];
    u64 progress_ns;                  /* last results frame, or ready */
    u64 sent_ns[STEP_IN_FLIGHT_MOST]; /* of steps and canaries without an answer, oldest first */
    u32 n_sent;
    u64 step_usec; /* what forward passes took, by the engine's clock */
};

/* group.c: one generation of engines after the other */
int group_turn(struct leader *l, u64 now_ns);
/* supervise.c */
int supervise_init(struct leader *l, struct error *err);
void supervise_ready(struct leader *l, u64 now_ns);
void supervise_lost(struct leader *l, const struct proc_verdict *v);
int supervise_turn(struct leader *l, u64 now_ns); /* births, deaths, steps out, results in */
/* publish.c */
void leader_publish(struct leader *l, u64 now_ns);
/* leader.c */
void leader_engine_changed(struct leader *l, enum replica_state state, const char *trouble);
void leader_flush(struct leader *l);

#endif
