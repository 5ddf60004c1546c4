/* Inside of cli/: the parts of `mpiserve plan`. */
#ifndef CLI_PLAN_H
#define CLI_PLAN_H

#include "mpiserve/config.h"
#include "mpiserve/engine.h"
#include "mpiserve/place.h"
#include "mpiserve/topo.h"

enum { PLAN_REFUSALS = 4, PLAN_NOTES = CONFIG_MAX_NOTES + 4, PLAN_NOTE = 256 };

/* ---- ground.c: the machines, without a question to any but this one --------------------------------------------*/
struct ground {
    u32 n_nodes, ranks_per_node, gpus_per_node;
    struct topo *topo; /* of every node */
    u64 memory;        /* of a node, free for the job; 0: not known, not judged */
    u64 gpu_memory;    /* of a GPU, with --engine cuda; 0: not known, not judged */
    bool this_machine; /* the topology is that of this machine */
};
int ground_find(struct ground *g, const struct config *c, struct error *err);
void ground_release(struct ground *g);

/* ---- plan.c: what the job would be --------------------------------------------------------------------------------*/
struct plan {
    struct config config;
    struct ground ground;
    bool has_ground, has_place, has_engine; /* what could be computed; after a refusal the rest is missing */
    /* placement */
    u32 *node_of, *engines_on; /* [ranks], [nodes] */
    struct place_plan place;
    u32 most_engines; /* on a node */
    struct cpuset **
        shares; /* [most_engines + 1]: the CPUs of each of so many engines, or NULL; same order as the ranks */
    u32 least_cores, most_cores; /* of an engine */
    bool shared;                 /* some engines share a core */
    /* an engine, and a node with most_engines of them; bytes */
    struct engine_needs needs; /* of the engine that needs most, where a replica has several */
    u64 *part_weights;         /* [tp * pp]: of each engine of a replica */
    u64 node_weights;          /* of the node with most of them: each part lies there once */
    u32 n_blocks, threads;
    u64 kv, rings, agent; /* of an engine, an engine, a rank */
    u64 node_needs;
    u64 gpu_needs; /* of a GPU; 0: engines compute on CPUs */
    /* a replica */
    u64 tokens, sequences; /* in the KV cache; sequences of full length, at most max_num_seqs */
    struct error refusals[PLAN_REFUSALS];
    u32 n_refusals;
    char notes[PLAN_NOTES][PLAN_NOTE];
    u32 n_notes;
    struct buf up, mpirun, sbatch; /* command lines; up: for one node */
};

void plan_text(const struct plan *p, struct buf *to);
void plan_json(const struct plan *p, struct buf *to); /* the object that cli.h describes */

/* ---- command.c: the lines that start it ---------------------------------------------------------------------------*/
void plan_commands(struct plan *p, int argc, char **argv, int first);

#endif
