/* Inside agent/: one rank's parts and how they know each other. */
#ifndef MPISERVE_AGENT_INTERNAL_H
#define MPISERVE_AGENT_INTERNAL_H

#include "agent/gpus.h"
#include "agent/messages.h"
#include "agent/watchdog.h"
#include "mpiserve/agent.h"
#include "mpiserve/config.h"
#include "mpiserve/engine.h"
#include "mpiserve/jobdir.h"
#include "mpiserve/model.h"
#include "mpiserve/ops.h"
#include "mpiserve/place.h"
#include "mpiserve/slots.h"
#include "mpiserve/topo.h"
#include "mpiserve/wire.h"

struct head;
struct leader;
struct seat;
struct follower;

struct agent {
    struct config config;
    struct model_config model;
    struct engine_needs needs;                              /* what an engine of this model takes */
    u32 max_model_len, max_num_seqs, max_ongoing, n_blocks; /* resolved */
    u32 numerics;
    u64 fingerprint; /* of configuration and model */
    struct wire *wire;
    struct slots *slots;
    struct place_plan plan;
    struct cpuset cpus; /* this rank's engine's share */
    struct gpu gpu;     /* and its GPU, with --engine cuda */
    u32 cores, node_cores;
    bool cores_shared;
    struct jobdir dir;
    u32 n_ingresses;              /* 1, or one on the first rank of every node; the first is rank 0's */
    i32 ingress_index;            /* of this rank: node_rank, also the owner in slot words; -1: it has none */
    char key[CONFIG_KEY_MAX + 1]; /* "": none is asked for; ranks with an ingress */
    bool owns_dir;                /* this rank made it */
    int tidier;                   /* see jobdir.h; -1: this rank has none */
    struct head *head;            /* the ingress side: ranks with an ingress */
    struct seat *seat;            /* ranks with an engine */
    struct leader *leader;        /* the replica side: ranks with the first engine of a replica */
    struct follower *follower;    /* ranks with another one */
    struct watchdog watchdog;
    int signals;    /* signalfd */
    u64 signals_ns; /* when it was last read */
    struct dwell dwell;
    int notices; /* messages of this turn that come by the clock: nothing follows them soon */
    int epoll;
    u64 beat_ns, turned_ns, listening_ns; /* beat.c: last BEAT sent or heard; of the loop */
    bool draining, ended;
    int exit_code;
};

static inline u32 agent_rank(const struct agent *a)
{
    return wire_rank(a->wire);
}
/* Rank of the ingress with this index. */
u32 agent_ingress_rank(const struct agent *a, u32 index);
i32 agent_ingress_of(const struct agent *a, u32 rank); /* its index; -1: the rank has none */
/* Sends; a message that cannot be sent breaks the job's bookkeeping, so the rank (and with it the job) ends. */
void agent_send(struct agent *a, u32 to, enum message_type type, const void *head, size_t head_len,
                const void *body, size_t len);
/* Ends the job at once: the message says why. */
_Noreturn void agent_die(struct agent *a, const char *what, const struct error *err);
/* The way into a drain, from a signal or a message; repeated calls do nothing. */
void agent_drain(struct agent *a);

/* start.c: everything up to the loop. 0, or the exit status; errors are printed. */
int agent_start(struct agent *a, int argc, char **argv);
void agent_finish(struct agent *a);
/* agree.c: what the ranks tell each other before they serve together; all collective. */
/* Every rank tells whether its last step went well; the first one that failed prints why. True: one did. */
bool agent_together(struct agent *a, int rc, const struct error *err);
/* Before anything else: the same program (other builds may do other things next), the same options. */
int agree_on_start(struct agent *a, struct error *err);
/* The same model, wherever each has its copy. Fills a->fingerprint. */
int agree_on_model(struct agent *a, struct error *err);
void agent_print(const struct error *err);
/* beat.c: between rank 0 and the first ranks of other nodes */
void beat_turn(struct agent *a, u64 now_ns);
void beat_heard(struct agent *a);
/* loop.c */
int agent_loop(struct agent *a);

/* ---- head: the ingress side ----------------------------------------------------------------------------------*/
int head_new(struct agent *a, struct error *err);
void head_free(struct head *h);
int heads_meet(struct agent *a, struct error *err); /* collective, where there are several: their URLs */
int head_fd(const struct head *h);                  /* commands of the HTTP threads */
int head_turn(struct head *h, u64 now_ns);          /* returns how much it did */
bool head_prepare_sleep(struct head *h);
void head_woke(struct head *h);
bool head_busy(const struct head *h); /* requests are on their way */
u64 head_deadline(struct head *h);
void head_chunks(struct head *h, u32 from, const void *body, size_t len);
void head_refused(struct head *h, u32 from, const struct msg_refused *m);
void head_load(struct head *h, u32 from, const struct msg_load *m);
void head_drain(struct head *h);
void head_close(struct head *h); /* slots close: who still waits gets none */
void head_hurry(struct head *h); /* the drain's time is over */
void head_drained(struct head *h, u32 from, u32 stage);
void head_demand(struct head *h, u32 from, const struct msg_demand *m);
void head_cached(struct head *h, u32 from, const struct msg_cached *m, const struct cached_change *changes);
void head_yielded(struct head *h, i32 replica);
void head_abort(struct head *h, const char *why); /* SIGTERM: final error chunks, at most 300 ms */

/* ---- leader: the replica side --------------------------------------------------------------------------------*/
int leader_new(struct agent *a, struct error *err);
void leader_start(struct leader *l); /* opens the slots once the window is there */
void leader_free(struct leader *l);  /* the engine is gone afterwards */
int leader_turn(struct leader *l, u64 now_ns);
bool leader_busy(const struct leader *l);
void leader_dispatch(struct leader *l, u32 from, const void *body, size_t len);
void leader_cancel(struct leader *l, u64 request);
void leader_close(struct leader *l);
void leader_hurry(struct leader *l);
void leader_group_state(struct leader *l, u32 from, const struct msg_group_state *m);
void leader_results(struct leader *l, u32 from, const void *body, size_t len);
void agent_kill_engine(struct agent *a); /* at once, for the way out */

#endif
