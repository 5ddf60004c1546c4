/* mpiserve plan: the placement, the sizes and the refusals of a job that is not started. Nothing here is computed in another way
 * than the job does: the same options, place_plan, topo_share, engine_plan, engine_blocks. */
#include "cli/plan.h"
#include "mpiserve/cli.h"
#include "mpiserve/ops.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A rank with MPI, and its engine's program: twice what was measured with 8 ranks. */
static const u64 agent_bytes = 16ull << 20;

static void refuse(struct plan *p, struct error *err)
{
    config_blame(&p->config, err);
    if (p->n_refusals < PLAN_REFUSALS) p->refusals[p->n_refusals++] = *err;
}

static void note(struct plan *p, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void note(struct plan *p, const char *fmt, ...)
{
    va_list list;
    if (p->n_notes == PLAN_NOTES) return;
    va_start(list, fmt);
    vsnprintf(p->notes[p->n_notes++], PLAN_NOTE, fmt, list);
    va_end(list);
}

/* ---- placement -----------------------------------------------------------------------------------------------*/
/* Who gets which cores depends on the number of engines alone: it is computed once for each number. */
static void share_cores(struct plan *p)
{
    const struct topo *t = p->ground.topo;
    p->shares = mem_zero(p->most_engines + 1, sizeof *p->shares);
    p->least_cores = UINT32_MAX;
    for (u32 node = 0; node < p->ground.n_nodes; node++) {
        u32 n = p->engines_on[node];
        if (!n || p->shares[n]) continue;
        p->shares[n] = mem_zero(n, sizeof **p->shares);
        p->shared |= topo_share(t, &t->allowed, n, p->shares[n]);
        for (u32 i = 0; i < n; i++) {
            u32 cores = topo_cores_of(t, &p->shares[n][i]);
            p->least_cores = MIN_OF(p->least_cores, cores);
            p->most_cores = MAX_OF(p->most_cores, cores);
        }
    }
}

static int check_gpus(const struct plan *p, struct error *err)
{
    if (!p->ground.gpus_per_node || p->most_engines <= p->ground.gpus_per_node) return 0;
    return error_set(
        err, ERR_INPUT, "--gpus-per-node",
        "%u engines on a node, and it has %u GPUs: one engine takes one GPU; lower --ranks-per-node",
        p->most_engines, p->ground.gpus_per_node);
}

static int place(struct plan *p, struct error *err)
{
    const struct ground *g = &p->ground;
    const struct config *c = &p->config;
    u32 ranks = g->n_nodes * g->ranks_per_node; /* below 2^28: the options' ranges */
    p->node_of = mem_alloc(ranks * sizeof *p->node_of);
    p->engines_on = mem_zero(g->n_nodes, sizeof *p->engines_on);
    for (u32 r = 0; r < ranks; r++) p->node_of[r] = r / g->ranks_per_node;
    struct place_job job = {.n_ranks = ranks, .n_nodes = g->n_nodes, .node_of = p->node_of};
    struct place_spec spec;
    engine_place_of(c, &spec);
    int rc = place_plan(&p->place, &job, &spec, err);
    if (!rc) rc = place_check(p->place.replicas, p->place.n_replicas, err);
    if (rc) return rc;
    for (u32 r = 0; r < ranks; r++) {
        u32 *on = &p->engines_on[p->node_of[r]];
        *on += p->place.ranks[r].replica >= 0;
        p->most_engines = MAX_OF(p->most_engines, *on);
    }
    share_cores(p);
    return check_gpus(p, err);
}

/* ---- memory --------------------------------------------------------------------------------------------------*/
/* Parts differ in layers: what is shown holds for each. */
static void most_of(struct engine_needs *most, const struct engine_needs *part)
{
    struct engine_needs n = *part;
    n.weights_bytes = MAX_OF(n.weights_bytes, most->weights_bytes);
    n.kv_bytes_per_block = MAX_OF(n.kv_bytes_per_block, most->kv_bytes_per_block);
    n.work_bytes = MAX_OF(n.work_bytes, most->work_bytes);
    *most = n;
}

static bool on_gpus(const struct plan *p)
{
    return strcmp(p->config.engine, "cuda") == 0;
}

static int ask_engine(struct plan *p, struct error *err)
{
    const struct config *c = &p->config;
    int level = ops_isa_level(ops_cpu_best());
    if (strcmp(c->cpu_isa, "auto") != 0) level = MIN_OF(level, ops_isa_level(c->cpu_isa));
    p->threads = c->threads ? (u32)c->threads : MAX_OF(p->most_cores, 1u);
    struct engine_ask ask;
    engine_ask_of(c, on_gpus(p) ? "cuda" : ops_isa_name(level), &ask);
    ask.threads = p->threads;
    p->part_weights = mem_zero((size_t)ask.tp * ask.pp, sizeof *p->part_weights);
    for (ask.pp_rank = 0; ask.pp_rank < ask.pp; ask.pp_rank++)
        for (ask.tp_rank = 0; ask.tp_rank < ask.tp; ask.tp_rank++) {
            struct engine_needs part;
            int rc = engine_plan(&ask, &part, err);
            if (rc) return rc;
            p->part_weights[ask.pp_rank * ask.tp + ask.tp_rank] = part.weights_bytes;
            most_of(&p->needs, &part);
        }
    return 0;
}

/* Weights on a node: each part of the model that an engine there has, once. */
static u64 node_weights(const struct plan *p, u32 node)
{
    u32 each = p->ground.ranks_per_node, *ranks = mem_alloc(2 * each * sizeof *ranks), *parts = ranks + each;
    u64 sum = 0;
    for (u32 i = 0; i < each; i++) ranks[i] = node * each + i;
    for (u32 i = 0, n = place_parts(&p->place, ranks, each, parts); i < n; i++)
        sum += p->part_weights[parts[i]];
    free(ranks);
    return sum;
}

/* Bytes for the KV cache of an engine: UINT64_MAX where nothing says how many there are. */
static int find_room(struct plan *p, u64 *room, struct error *err)
{
    const struct config *c = &p->config;
    const struct ground *g = &p->ground;
    u64 asked = (u64)c->kv_cache_memory_bytes;
    const struct engine_device gpu = {g->gpu_memory, g->gpu_memory, c->gpu_memory_utilization, asked};
    *room = asked ? asked : UINT64_MAX;
    if (p->needs.device) return g->gpu_memory ? engine_device_room(&p->needs, &gpu, room, err) : 0;
    if (!asked && g->memory) *room = engine_kv_share(g->memory, g->ranks_per_node);
    return 0;
}

static int size_engine(struct plan *p, struct error *err)
{
    const struct config *c = &p->config;
    const struct ground *g = &p->ground;
    struct engine_limits limits = {(u32)c->max_num_seqs, p->needs.max_model_len, (u32)c->block_size};
    u64 room;
    int rc = find_room(p, &room, err);
    if (rc) return rc;
    rc = engine_blocks(&p->needs, &limits, room, &p->n_blocks, err);
    if (rc) {
        if (!c->kv_cache_memory_bytes && !p->needs.device)
            error_set(err, rc, "--memory-per-node",
                      "a KV cache for one sequence of %u tokens needs %llu bytes, and an engine's share is "
                      "%llu (half of "
                      "the %llu bytes of a node, divided by %u ranks): take fewer ranks a node, lower "
                      "--max-model-len, or give --kv-cache-memory-bytes",
                      limits.max_model_len,
                      (unsigned long long)(((limits.max_model_len + (u64)limits.block_size - 1) /
                                                limits.block_size +
                                            1) *
                                           p->needs.kv_bytes_per_block),
                      (unsigned long long)room, (unsigned long long)g->memory, g->ranks_per_node);
        return rc;
    }
    u64 per_seq = (limits.max_model_len + (u64)limits.block_size - 1) / limits.block_size;
    p->kv = p->needs.kv_bytes_per_block * p->n_blocks;
    u64 ring =
        2 * (u64)engine_ring_size(limits.max_rows, (u32)c->max_num_batched_tokens, limits.max_model_len,
                                  (u32)c->max_logprobs, p->needs.hidden, limits.block_size);
    p->rings = 2 * step_ring_bytes(ring, step_in_flight((u32)c->pipeline_parallel_size));
    p->agent = agent_bytes;
    p->tokens = (p->n_blocks - 1) * (u64)c->block_size;
    p->sequences = MIN_OF((p->n_blocks - 1) / per_seq, (u64)c->max_num_seqs);
    for (u32 node = 0; node < g->n_nodes && !p->needs.device; node++)
        p->node_weights = MAX_OF(p->node_weights, node_weights(p, node));
    u64 engine = p->needs.device ? 0 : p->kv + p->needs.work_bytes; /* in the node's memory */
    p->node_needs = p->node_weights + p->agent * g->ranks_per_node + p->most_engines * (engine + p->rings);
    if (p->needs.device) p->gpu_needs = p->needs.weights_bytes + p->kv + p->needs.work_bytes;
    return 0;
}

static int check_memory(const struct plan *p, struct error *err)
{
    const struct ground *g = &p->ground;
    if (!g->memory || p->node_needs <= g->memory) return 0;
    return error_set(
        err, ERR_MEMORY, "--memory-per-node",
        "a node needs %llu bytes (weights %llu, %u engines with %llu each, %u ranks with %llu each) and has "
        "%llu: take fewer ranks a node, lower --kv-cache-memory-bytes or --max-num-seqs, or nodes with more "
        "memory",
        (unsigned long long)p->node_needs, (unsigned long long)p->node_weights, p->most_engines,
        (unsigned long long)((p->node_needs - p->node_weights - p->agent * g->ranks_per_node) /
                             p->most_engines),
        g->ranks_per_node, (unsigned long long)p->agent, (unsigned long long)g->memory);
}

/* ---- the whole -----------------------------------------------------------------------------------------------*/
static void add_notes(struct plan *p)
{
    const struct ground *g = &p->ground;
    for (int i = 0; i < p->config.n_notes; i++) note(p, "%s", p->config.notes[i]);
    if (g->gpus_per_node && !on_gpus(p))
        note(p, "engines of --engine cpu take cores. What is shown is the placement of one engine a GPU; "
                "sizes "
                "are those of CPU engines, and the lines to start it ask for no GPU");
    if (p->needs.device)
        note(p, "what CUDA itself takes of a GPU, some hundred MiB, is not known here%s",
             g->gpu_memory ? "" : ", nor how much a GPU has: give --memory-per-gpu; nothing was judged");
    if (p->has_place && p->shared)
        note(p, "%u engines share %u cores on a node: they are bound round robin to single cores",
             p->most_engines, g->topo->n_cores);
    if (!g->memory)
        note(p, "the memory of a node is not known and was not judged: give --memory-per-node");
    else if (!p->config.memory_per_node)
        note(p, "the memory of a node is what is free on this machine now");
    if (g->this_machine && g->n_nodes > 1)
        note(p, "every node is taken to be like this machine: describe others with --cores or --topology");
    if (p->has_engine && !p->needs.device)
        note(p, "%s and %s are what this machine would choose; the job takes the least of its nodes",
             p->needs.compute, p->needs.isa);
}

static void make(struct plan *p)
{
    struct error err = {0};
    if (ground_find(&p->ground, &p->config, &err)) {
        refuse(p, &err);
        return;
    }
    p->has_ground = true;
    if (place(p, &err)) refuse(p, &err);
    p->has_place = p->most_engines > 0;
    int rc = ask_engine(p, &err);
    if (!rc && p->has_place) {
        rc = size_engine(p, &err);
        p->has_engine = !rc;
        if (!rc) rc = check_memory(p, &err);
    }
    if (rc) refuse(p, &err);
    add_notes(p);
}

static void release(struct plan *p)
{
    for (u32 i = 0; p->shares && i <= p->most_engines; i++) free(p->shares[i]);
    free(p->shares);
    free(p->node_of);
    free(p->part_weights);
    free(p->engines_on);
    place_release(&p->place);
    ground_release(&p->ground);
    buf_release(&p->up);
    buf_release(&p->mpirun);
    buf_release(&p->sbatch);
    free(p);
}

int cli_plan(int argc, char **argv)
{
    struct plan *p = mem_zero(1, sizeof *p);
    struct error err;
    char line[1100];
    struct buf out = {0};
    log_setup(LOG_INFO, "");
    int rc = config_load(&p->config, argc, argv, 2, &err);
    if (rc < 0) refuse(p, &err);
    if (rc == 0) {
        make(p);
        if (p->has_ground) plan_commands(p, argc, argv, 2);
    }
    if (rc <= 0 && p->config.json)
        plan_json(p, &out);
    else if (rc <= 0 && p->has_ground)
        plan_text(p, &out);
    fwrite(out.data ? out.data : "", 1, out.len, stdout);
    fflush(stdout);
    for (u32 i = 0; i < p->n_refusals; i++) log_error("%s", error_text(&p->refusals[i], line, sizeof line));
    rc = p->n_refusals > 0;
    buf_release(&out);
    release(p);
    return rc;
}
