/* A plan for programs. */
#include "cli/plan.h"
#include "mpiserve/json.h"

#include <string.h>

/* null where it was not given or is not known. */
static void member_known(struct json_out *o, const char *key, bool known, u64 v)
{
    json_out_key(o, key);
    known ? json_out_int(o, (i64)v) : json_out_null(o);
}

static void open_object(struct json_out *o, const char *key)
{
    json_out_key(o, key);
    json_out_object(o);
}

static void verdict(const struct plan *p, struct json_out *o)
{
    json_out_key_bool(o, "fits", p->n_refusals == 0);
    json_out_key(o, "refusals");
    json_out_array(o);
    for (u32 i = 0; i < p->n_refusals; i++) {
        json_out_object(o);
        json_out_key_str(o, "where", p->refusals[i].where);
        json_out_key_str(o, "message", p->refusals[i].message);
        json_out_end_object(o);
    }
    json_out_end_array(o);
    json_out_key(o, "notes");
    json_out_array(o);
    for (u32 i = 0; i < p->n_notes; i++) json_out_str(o, p->notes[i]);
    json_out_end_array(o);
}

static void ground(const struct plan *p, struct json_out *o)
{
    const struct ground *g = &p->ground;
    open_object(o, "ground");
    json_out_key_int(o, "nodes", g->n_nodes);
    json_out_key_int(o, "ranks_per_node", g->ranks_per_node);
    json_out_key_int(o, "cores_per_node", g->topo->n_cores);
    json_out_key_int(o, "numa_per_node", g->topo->n_numa);
    json_out_key_int(o, "gpus_per_node", g->gpus_per_node);
    member_known(o, "memory_per_node_bytes", g->memory != 0, g->memory);
    json_out_key_bool(o, "this_machine", g->this_machine);
    json_out_end_object(o);
}

static void one_rank(const struct plan *p, u32 rank, u32 nth_engine, struct json_out *o)
{
    const struct place_rank *r = &p->place.ranks[rank];
    json_out_object(o);
    json_out_key_int(o, "rank", rank);
    member_known(o, "replica", r->replica >= 0, (u64)MAX_OF(r->replica, 0));
    if (r->replica >= 0) {
        const struct replica_rank *x = &p->place.replicas[r->replica].rank;
        char cpus[CPUSET_TEXT];
        json_out_key_int(o, "tp_rank", r->tp);
        json_out_key_int(o, "pp_rank", r->pp);
        open_object(o, "replica_rank");
        json_out_key_int(o, "rank", x->rank);
        json_out_key_int(o, "node_rank", x->node_rank);
        json_out_key_int(o, "local_rank", x->local_rank);
        json_out_end_object(o);
        json_out_key_str(
            o, "cpus",
            cpuset_print(&p->shares[p->engines_on[p->node_of[rank]]][nth_engine], cpus, sizeof cpus));
    }
    json_out_end_object(o);
}

static void placement(const struct plan *p, struct json_out *o)
{
    const struct config *c = &p->config;
    open_object(o, "placement");
    json_out_key_str(o, "strategy", c->placement_group_strategy);
    json_out_key_int(o, "tensor_parallel_size", (u64)c->tensor_parallel_size);
    json_out_key_int(o, "pipeline_parallel_size", (u64)c->pipeline_parallel_size);
    json_out_key_int(o, "data_parallel_size", p->place.n_replicas);
    member_known(o, "data_parallel_size_local", c->data_parallel_size_local != ABSENT,
                 (u64)c->data_parallel_size_local);
    json_out_key_str(o, "engine_takes", strcmp(c->engine, "cuda") == 0 ? "gpu" : "cores");
    json_out_key_bool(o, "cores_shared", p->shared);
    json_out_key(o, "nodes");
    json_out_array(o);
    for (u32 node = 0; node < p->ground.n_nodes; node++) {
        u32 each = p->ground.ranks_per_node, engines = 0;
        json_out_object(o);
        json_out_key_int(o, "node", node);
        json_out_key_int(o, "engines", p->engines_on[node]);
        json_out_key(o, "ranks");
        json_out_array(o);
        for (u32 r = node * each; r < (node + 1) * each; r++) {
            one_rank(p, r, engines, o);
            engines += p->place.ranks[r].replica >= 0;
        }
        json_out_end_array(o);
        json_out_end_object(o);
    }
    json_out_end_array(o);
    json_out_end_object(o);
}

static void engine(const struct plan *p, struct json_out *o)
{
    open_object(o, "engine");
    json_out_key_str(o, "compute", p->needs.compute);
    json_out_key_str(o, "isa", p->needs.isa);
    json_out_key_int(o, "least_cores", p->least_cores);
    json_out_key_int(o, "most_cores", p->most_cores);
    json_out_key_int(o, "threads", p->threads);
    json_out_key_int(o, "weights_bytes", p->needs.weights_bytes);
    json_out_key_int(o, "kv_cache_bytes", p->kv);
    json_out_key_int(o, "activation_bytes", p->needs.work_bytes);
    json_out_key_int(o, "ring_bytes", p->rings);
    json_out_end_object(o);
    if (p->gpu_needs) {
        open_object(o, "gpu");
        json_out_key_int(o, "needed_bytes", p->gpu_needs);
        member_known(o, "memory_bytes", p->ground.gpu_memory != 0, p->ground.gpu_memory);
        json_out_end_object(o);
    }
    open_object(o, "node");
    json_out_key_int(o, "weights_bytes", p->node_weights);
    json_out_key_int(o, "rank_bytes", p->agent);
    json_out_key_int(o, "most_engines", p->most_engines);
    json_out_key_int(o, "needed_bytes", p->node_needs);
    json_out_end_object(o);
}

static void capacity(const struct plan *p, struct json_out *o, const char *key, u64 replicas)
{
    open_object(o, key);
    json_out_key_int(o, "kv_tokens", replicas * p->tokens);
    json_out_key_int(o, "full_sequences", replicas * p->sequences);
    json_out_key_int(o, "max_num_seqs", replicas * (u64)p->config.max_num_seqs);
    json_out_key_int(o, "max_ongoing_requests", replicas * (u64)p->config.max_ongoing_requests);
    json_out_end_object(o);
}

void plan_json(const struct plan *p, struct buf *to)
{
    struct json_out o;
    json_out_init(&o, to);
    json_out_object(&o);
    json_out_key_str(&o, "mpiserve", MPISERVE_VERSION);
    verdict(p, &o);
    json_out_key_str(&o, "model", p->config.model);
    if (p->has_ground) ground(p, &o);
    if (p->has_place) placement(p, &o);
    if (p->has_engine) {
        engine(p, &o);
        json_out_key_int(&o, "max_model_len", p->needs.max_model_len);
        json_out_key_int(&o, "kv_blocks", p->n_blocks - 1);
        json_out_key_int(&o, "block_size", (u64)p->config.block_size);
        capacity(p, &o, "replica", 1);
        capacity(p, &o, "job", p->place.n_replicas);
    }
    if (!p->n_refusals) {
        open_object(&o, "commands");
        json_out_key_str(&o, "up", p->ground.n_nodes == 1 ? p->up.data : NULL);
        json_out_key_str(&o, "mpirun", p->mpirun.data);
        json_out_key_str(&o, "sbatch", p->sbatch.data);
        json_out_end_object(&o);
    }
    json_out_end_object(&o);
    buf_char(to, '\n');
}
