/* Inside agent/: this rank's engine: the memory it is handed, its process, its place in a replica.
 *
 * A replica of several engines (a group) lives and dies as one. The rank of its engine 0 leads (group.c); the others
 * follow (follower.c). For each generation the leader says START, with the memory that the engines of a node share, new each time;
 * when every engine is up, steps flow (step.h). When one ends, all are killed, and only when every agent has said that its
 * engine is gone does the next generation start: two generations never live at the same time.
 *
 * Who hangs? Engines that wait for another inside a step name it (coll.h). When nobody does, since the last stage is the one that is waited
 * for by the leader alone, a step is not answered in time; then each agent tells, as its engine goes, how long that had been silent. */
#ifndef MPISERVE_AGENT_SEAT_H
#define MPISERVE_AGENT_SEAT_H

#include "agent/agent_internal.h"
#include "mpiserve/coll.h"
#include "mpiserve/proc.h"
#include "mpiserve/step.h"

struct seat {
    struct agent *agent;
    i32 replica;
    u32 index; /* of this engine in its replica: pp_rank * tp + tp_rank */
    struct coll_shape shape;
    u32 n; /* engines of the replica */
    struct proc *proc;
    struct channel *channel; /* the proc's */
    struct engine_boot boot;
    int weights_fd, kv_fd;
    /* of the current generation of a group */
    int group_fd;
    void *group_memory; /* mapped where messages are relayed; else NULL */
    struct coll_relay *relay;
};

/* Collective, also for ranks without an engine: the memory of weights, which engines of a node with the same part share. */
int seat_open(struct agent *a, struct error *err);
void seat_close(struct seat *s); /* the engine is gone afterwards. NULL: nothing */
/* Of a step in the channel: how many may be unanswered. */
u32 seat_in_flight(const struct seat *s);
/* The engine that samples and answers. */
static inline u32 seat_sampler(const struct seat *s)
{
    return s->n - MAX_OF(s->shape.tp, 1u);
}
/* Does the replica span nodes? */
static inline bool seat_relays(const struct seat *s)
{
    return s->n > 1 && coll_relays(&s->shape);
}
/* Makes the memory of generation gen for this node, or opens it where another agent of the node has made it (pid >= 0). */
int seat_group_memory(struct seat *s, i32 pid, i32 fd, struct error *err);
/* The process of a generation; its pidfd is watched by the loop. */
int seat_start(struct seat *s, u32 gen, u64 now_ns, struct error *err);
/* The process is gone: so is its share of the group's memory. */
void seat_gone(struct seat *s);
/* Messages of the engine to engines on other nodes; returns how many. */
int seat_relay(struct seat *s);
void seat_relayed(struct seat *s, const void *body, size_t len); /* a RELAY message came */
int seat_watch(struct seat *s, int epoll, struct error *err);
bool seat_prepare_sleep(struct seat *s);
void seat_woke(struct seat *s);

/* ---- follower.c: a rank whose engine is not engine 0 */
void follower_new(struct agent *a);
void follower_free(struct follower *f);
int follower_turn(struct follower *f, u64 now_ns);
void follower_start(struct follower *f, u32 from, const struct msg_group_start *m);
void follower_kill(struct follower *f, u32 from, u32 gen);

#endif
