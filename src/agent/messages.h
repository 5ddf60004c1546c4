/* What agents say to each other. Bodies are plain structs of the job's one build (wire_agree refuses others). */
#ifndef MPISERVE_AGENT_MESSAGES_H
#define MPISERVE_AGENT_MESSAGES_H

#include "mpiserve/request.h"

enum message_type {
    MSG_DISPATCH = 1, /* ingress -> leader: struct msg_dispatch, then the request block */
    MSG_CANCEL,       /* ingress -> leader: u64 request */
    MSG_CHUNK,        /* leader -> ingress: struct msg_chunk, then chunk blocks */
    MSG_REFUSED,      /* leader -> ingress: struct msg_refused */
    MSG_LOAD, /* leader -> ingress: struct msg_load, at changes, while busy, and every few seconds when idle */
    MSG_DRAIN,   /* any -> rank 0: a signal to drain came here; rank 0 -> other ingresses: drain */
    MSG_DRAINED, /* ingress -> rank 0: u32, enum drain_stage that it has reached */
    MSG_CLOSE,   /* rank 0 -> all: nothing waits for a slot any more, close those that are free */
    MSG_HURRY,   /* rank 0 -> all: the drain's time is over, end what runs */
    MSG_BEAT,    /* rank 0 -> first rank of other nodes: it is there */
    MSG_END,     /* rank 0 -> all: leave the loop and finalize */
    MSG_DEMAND, /* ingress -> other ingresses: struct msg_demand, while requests wait there, and when none does any more */
    MSG_CACHED, /* leader -> ingress: struct msg_cached, then n struct cached_change; where the router wants to know */
    MSG_YIELD,       /* ingress -> ingress: i32, a replica with a slot that the receiver may have first */
    MSG_GROUP_START, /* leader -> agent of another engine of its replica: struct msg_group_start */
    MSG_GROUP_KILL,  /* the same: u32, the generation whose engine has to go */
    MSG_GROUP_STATE, /* back: struct msg_group_state */
    MSG_RELAY, /* agent -> agent of an engine of the same replica on another node: struct msg_relay, then the engine's message */
    MSG_RESULTS, /* the sampler's agent -> leader: struct msg_results, then a results frame */
};
/* Of an ingress. QUIET: nobody waits for a slot or holds one without a request. DONE: nobody is served any more. */
enum drain_stage { DRAIN_SERVING, DRAIN_QUIET, DRAIN_DONE };
struct msg_demand {
    u32 waiting, in_use; /* requests that wait for a slot; slots that this ingress has */
};
/* Time between two LOAD of a leader, in ms: while it is busy, GAP for each ingress, since all get one, within these bounds. */
enum { LOAD_BUSY_MS = 200, LOAD_BUSY_MOST_MS = 1000, LOAD_IDLE_MS = 4000, LOAD_GAP_MS = 12 };
static inline u64 load_busy_ms(u32 n_ingresses)
{
    u64 every = MAX_OF((u64)LOAD_BUSY_MS, (u64)LOAD_GAP_MS * n_ingresses);
    return MIN_OF(every, (u64)LOAD_BUSY_MOST_MS);
}
struct msg_cached { /* what changed in a replica's prefix cache, in order */
    i32 replica;
    u32 anew; /* not 0: what was said before does not hold any more */
    u32 n, pad;
};
struct cached_change {
    u64 hash; /* of kv_prefix_hashes */
    u64 removed;
};
struct msg_dispatch {
    struct slot_token token;
    u32 origin; /* index of the ingress */
    u8 pad[16 - (sizeof(struct slot_token) + 4) % 16];
};
_Static_assert(sizeof(struct msg_dispatch) % 8 == 0, "the request block behind it is 8-byte aligned");
struct msg_chunk {
    u32 others; /* slots of this replica in use by other ingresses */
    u32 pad;
};
struct msg_group_start {
    u32 gen;
    i32 pid, fd; /* who on the receiver's node has the memory of this generation; -1: the receiver makes it */
    u32 pad;
};
/* HAS_MEMORY: for the other engines of its node. GONE: no engine of this generation runs there, or ever will. */
enum group_event { GROUP_HAS_MEMORY, GROUP_UP, GROUP_GONE };
struct msg_group_state {
    u32 gen, engine; /* index in the replica */
    u32 event;       /* enum group_event */
    i32 pid, fd;     /* HAS_MEMORY: of the memory. GONE: pid of the engine */
    u32 blame;       /* GONE: see proc_verdict, as for the next two */
    u64 silent_ns;
    char text[640];
};
struct msg_relay {
    u32 gen, from, to; /* engine indices */
    u32 pad;
};
struct msg_results {
    u32 gen, pad;
};
enum refusal { REFUSED_STALE, REFUSED_UNAVAILABLE };
struct msg_refused {
    u64 request;
    struct slot_token token;
    u32 why; /* enum refusal */
};
enum replica_state { REPLICA_LOADING, REPLICA_UP, REPLICA_RESTARTING, REPLICA_BROKEN, REPLICA_STATES };
struct msg_load {
    i32 replica;
    u32 state; /* enum replica_state */
    u32 others;
    u32 engine_gen, engine_pid;
    u32 running, waiting; /* sequences */
    u32 free_blocks, total_blocks;
    u32 slots_in_use;
    u64 prompt_tokens, generated_tokens, preemptions, steps, step_usec, deaths;
    u64 prefix_queries, prefix_hits; /* tokens */
    u64 slot_runs, slot_finishes, slot_reaped, slot_stale;
    char trouble[160]; /* why the state is not UP */
};

#endif
