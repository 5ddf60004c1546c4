/* place: which ranks hold the engines of which replica. Pure: the job (mpiserve) and `mpiserve plan` call the
 * same function with the same input and get the same answer; nothing is asked of the machine.
 *
 * Rules:
 *  - a replica is tp x pp engines, one a rank; they lie on one node, on the lowest free ranks there that may
 * hold an engine; the first of them leads. Replicas are numbered by their leaders' ranks.
 *  - a pipeline stage (tp engines) never leaves its node. Where more replicas are wanted than fit on single nodes, PACK and SPREAD
 * make the others of the stages that are left over, in the order of the nodes (by lowest rank); strict strategies do not.
 *  - the strategy says how replicas lie over the nodes. PACK: on the fewest (the ones with most room first, then by lowest
 * rank). STRICT_PACK: all on one node. SPREAD: one to each node in turn. STRICT_SPREAD: at most one on a node. A strict one
 * that cannot be kept is an error, never something else.
 *  - data_parallel_size absent: as many as ranks and strategy allow; where the strategy uses all ranks, they must divide by
 * tp * pp, and each node's by tp (by tp * pp where replicas do not leave their node).
 *  - data_parallel_size_local: replicas on the head node (rank 0's). 0: its ranks hold no engine; when there
 * is no other node, only rank 0 holds none. Absent: no constraint, which is not 0.
 *  - ReplicaRank {rank, node_rank, local_rank}: each dense from 0, scoped to the deployment, taken from the
 * leader.
 *
 * Life cycle: place_plan -> read -> place_release. Thread rule: plain data. */
#ifndef MPISERVE_PLACE_H
#define MPISERVE_PLACE_H

#include "mpiserve/base.h"

enum { PLACE_ABSENT = -1 };

enum place_strategy { PLACE_PACK, PLACE_STRICT_PACK, PLACE_SPREAD, PLACE_STRICT_SPREAD };
const char *place_strategy_name(enum place_strategy s);               /* "STRICT_PACK" */
int place_strategy_parse(const char *name, enum place_strategy *out); /* ERR_INPUT: none of them */

struct place_job {
    u32 n_ranks, n_nodes;
    const u32 *node_of;  /* [n_ranks] node of each world rank, < n_nodes */
    const u32 *cores_of; /* [n_nodes] cores of each node; NULL: not known */
};
struct place_spec {
    i64 tp, pp;    /* >= 1 */
    i64 dp;        /* data_parallel_size or PLACE_ABSENT */
    i64 dp_local;  /* data_parallel_size_local or PLACE_ABSENT */
    u32 max_group; /* engines that a replica may have (what this build runs): above it, ERR_UNSUPPORTED */
    enum place_strategy strategy;
};
struct replica_rank {
    u32 rank, node_rank, local_rank;
};
/* What a rank does. */
struct place_rank {
    i32 replica; /* -1: no engine here */
    u32 tp, pp;  /* this engine's place in its replica */
    bool is_leader;
};
struct place_replica {
    u32 leader;       /* world rank */
    u32 first_engine; /* its engines' world ranks: plan->engines[first_engine .. + n_engines), in order pp *
                         tp_size + tp */
    u32 n_engines;
    u32 node;    /* the leader's */
    bool live;   /* false: given up */
    bool ranked; /* rank below is held */
    struct replica_rank rank;
};
struct place_plan {
    u32 n_ranks, n_replicas;
    u32 tp, pp;                     /* of a replica */
    struct place_rank *ranks;       /* [n_ranks] */
    struct place_replica *replicas; /* [n_replicas] */
    u32 *engines;                   /* [n_replicas * tp * pp] */
    bool oversubscribed;            /* some node has fewer cores than engines (needs cores_of) */
};

/* Errors: ERR_INPUT naming the option and the numbers that do not fit, ERR_UNSUPPORTED for tp * pp >
 * max_group. *plan is released by place_release; after an error it is empty. */
int place_plan(struct place_plan *plan, const struct place_job *job, const struct place_spec *spec,
               struct error *err);
void place_release(struct place_plan *plan);

/* The parts of a model that the engines on these ranks [n] have, each once: their indices pp * tp_size + tp in a replica, to out [n].
 * Returns how many. */
u32 place_parts(const struct place_plan *plan, const u32 *ranks, u32 n, u32 *out);

/* The least of values [n_ranks] that this rank's replica has; its own where it has no engine. */
u32 place_least(const struct place_plan *plan, u32 rank, const u32 *values);

/* Proves the ReplicaRanks: every live replica is ranked, no other is, each number is unique and dense from 0
 * (local_rank within its node). Else ERR_STATE, and the message names the entry and what is wrong with it:
 * stale (held by a replica that was given up), unranked, duplicate, or beyond the number of live replicas. */
int place_check(const struct place_replica *replicas, u32 n, struct error *err);
/* After `live` changed: those given up lose their rank, the others keep theirs where this stays dense; a live
 * replica without one takes the lowest free; one that holds a number beyond the live count moves into the
 * lowest gap. */
void place_rerank(struct place_replica *replicas, u32 n);

#endif
