/* The assignment: which ranks may hold engines, how many replicas there are, and who belongs to which. */
#include "place/strategy.h"

#include <stdlib.h>
#include <string.h>

static bool may_hold(const struct place_job *job, const struct place_spec *spec, u32 rank)
{
    if (spec->dp_local != 0) return true;
    if (job->n_nodes == 1) return rank != 0;
    return job->node_of[rank] != job->node_of[0];
}

/* May a replica's stages lie on several nodes? */
static bool spans(const struct place_job *job, const struct place_spec *spec)
{
    return spec->pp > 1 && job->n_nodes > 1 && !place_is_strict(spec->strategy);
}

static int check_spec(const struct place_job *job, const struct place_spec *spec, struct error *err)
{
    if (!job->n_ranks || !job->n_nodes) return error_set(err, ERR_INPUT, "", "a job needs at least one rank");
    for (u32 r = 0; r < job->n_ranks; r++)
        if (job->node_of[r] >= job->n_nodes)
            return error_set(err, ERR_INPUT, "", "rank %u is on node %u of %u", r, job->node_of[r],
                             job->n_nodes);
    const struct {
        const char *name;
        i64 value, least;
    } rows[] = {
        {"tensor_parallel_size", spec->tp, 1},
        {"pipeline_parallel_size", spec->pp, 1},
        {"data_parallel_size", spec->dp, spec->dp == PLACE_ABSENT ? PLACE_ABSENT : 1},
        {"data_parallel_size_local", spec->dp_local, PLACE_ABSENT},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        if (rows[i].value < rows[i].least || rows[i].value > INT32_MAX)
            return error_set(err, ERR_INPUT, rows[i].name, "is %lld: must be at least %lld",
                             (long long)rows[i].value, (long long)MAX_OF(rows[i].least, 0));
    return 0;
}

static int check_divisible(const struct place_job *job, const struct place_spec *spec,
                           const struct node_room *nodes, u64 group, struct error *err)
{
    u64 eligible = 0;
    u32 head = job->node_of[0];
    bool head_fixed = spec->dp_local > 0; /* its surplus ranks idle by request */
    for (u32 i = 0; i < job->n_nodes; i++)
        if (!(head_fixed && i == head)) eligible += nodes[i].ranks;
    if (eligible % group)
        return error_set(err, ERR_INPUT, "tensor_parallel_size",
                         "%llu ranks%s are not divisible by tensor_parallel_size * pipeline_parallel_size = "
                         "%lld * %lld = %llu: start another number of ranks, or set data_parallel_size",
                         (unsigned long long)eligible,
                         spec->dp_local == 0
                             ? " (those that may hold an engine with data_parallel_size_local = 0)"
                         : head_fixed ? " outside the head node"
                                      : "",
                         (long long)spec->tp, (long long)spec->pp, (unsigned long long)group);
    u64 unit = spans(job, spec) ? (u64)spec->tp : group;
    for (u32 i = 0; i < job->n_nodes; i++)
        if (nodes[i].ranks % unit && !(head_fixed && i == head))
            return error_set(err, ERR_INPUT, "tensor_parallel_size",
                             "the %u ranks of node %u are not divisible by %s = %llu, and a %s stays in one "
                             "node",
                             nodes[i].ranks, i,
                             unit == group ? "tensor_parallel_size * pipeline_parallel_size"
                                           : "tensor_parallel_size",
                             (unsigned long long)unit, unit == group ? "replica" : "pipeline stage");
    return 0;
}

/* Nodes that have ranks, by their lowest rank: the head comes first. Returns how many. */
static u32 order_nodes(const struct place_job *job, u32 *order)
{
    u32 n = 0;
    bool *seen = mem_zero(job->n_nodes, sizeof *seen);
    for (u32 r = 0; r < job->n_ranks; r++) {
        if (seen[job->node_of[r]]) continue;
        seen[job->node_of[r]] = true;
        order[n++] = job->node_of[r];
    }
    free(seen);
    return n;
}

static int too_many(const struct place_job *job, const struct place_spec *spec, u64 group, u64 fit,
                    struct error *err)
{
    return error_set(
        err, ERR_INPUT, "data_parallel_size",
        "asks for %lld replicas of %llu ranks each, but the job's %u ranks on %u nodes allow %llu%s%s%s",
        (long long)spec->dp, (unsigned long long)group, job->n_ranks, job->n_nodes, (unsigned long long)fit,
        spec->dp_local == PLACE_ABSENT ? "" : " with this data_parallel_size_local",
        place_is_strict(spec->strategy) ? " under " : "",
        place_is_strict(spec->strategy) ? place_strategy_name(spec->strategy) : "");
}

/* Resolves the numbers and deals the replicas: fills room and take of the nodes. */
static int deal(const struct place_job *job, const struct place_spec *spec, struct node_room *nodes,
                const u32 *order, u32 n, u64 group, struct error *err)
{
    struct node_room *head = &nodes[order[0]];
    bool fixed = spec->dp_local > 0;
    if (spec->dp == PLACE_ABSENT && !place_is_strict(spec->strategy)) {
        int rc = check_divisible(job, spec, nodes, group, err);
        if (rc) return rc;
    }
    for (u32 i = 0; i < job->n_nodes; i++) nodes[i].room = (u32)(nodes[i].ranks / group);
    /* dp_local = 0 took the head node's ranks away in may_hold; in a one-node job others than rank 0 remain there. */
    if (fixed && spec->dp_local > head->room)
        return error_set(err, ERR_INPUT, "data_parallel_size_local",
                         "asks for %lld replicas of %llu ranks on the head node, whose %u ranks allow %u",
                         (long long)spec->dp_local, (unsigned long long)group, head->ranks, head->room);
    if (fixed && spec->dp != PLACE_ABSENT && spec->dp < spec->dp_local)
        return error_set(err, ERR_INPUT, "data_parallel_size_local",
                         "is %lld, more than data_parallel_size = %lld", (long long)spec->dp_local,
                         (long long)spec->dp);
    int rc = strategy_narrow(nodes, order, n, spec, group, err);
    if (rc) return rc;
    if (fixed) head->take = head->room = (u32)spec->dp_local;
    u64 whole = 0, stages = 0;
    for (u32 i = 0; i < n; i++) {
        struct node_room *node = &nodes[order[i]];
        whole += node->room;
        if (spans(job, spec) && !(fixed && i == 0))
            stages += node->ranks / (u64)spec->tp - node->room * (u64)spec->pp;
    }
    u64 fit = whole + stages / (u64)spec->pp, dp = spec->dp == PLACE_ABSENT ? fit : (u64)spec->dp;
    if (dp > fit) return too_many(job, spec, group, fit, err);
    if (!dp)
        return error_set(
            err, ERR_INPUT, spec->dp_local == 0 ? "data_parallel_size_local" : "",
            "no rank is left for an engine: the job has %u ranks on %u nodes and a replica needs "
            "%llu%s",
            job->n_ranks, job->n_nodes, (unsigned long long)group,
            spec->dp_local == 0 ? " outside rank 0 (data_parallel_size_local = 0)" : "");
    strategy_deal(nodes, order + fixed, n - fixed, spec->strategy, MIN_OF(dp, whole) - head->take);
    for (u64 i = fixed, left = (dp - MIN_OF(dp, whole)) * (u64)spec->pp; left; i++) {
        struct node_room *node = &nodes[order[i]];
        node->stages = (u32)MIN_OF(left, node->ranks / (u64)spec->tp - node->room * (u64)spec->pp);
        left -= node->stages;
    }
    return 0;
}

static void seat(struct place_plan *plan, const struct place_spec *spec, u32 replica, u32 at, u32 rank)
{
    u32 tp = (u32)spec->tp, group = tp * (u32)spec->pp;
    plan->engines[replica * group + at] = rank;
    plan->ranks[rank] =
        (struct place_rank){.replica = (i32)replica, .tp = at % tp, .pp = at / tp, .is_leader = at == 0};
}

/* Each node gives its lowest ranks to the replicas that lie on it alone, the next ones, a stage at a time, to those that lie on
 * several: these follow each other through the nodes' stages. */
static void assign(struct place_plan *plan, const struct place_job *job, const struct place_spec *spec,
                   const struct node_room *nodes, const u32 *order, u32 n)
{
    u32 tp = (u32)spec->tp, group = tp * (u32)spec->pp, whole = 0, stages = 0;
    u32 *used = mem_zero(job->n_nodes, sizeof *used); /* ranks given so far */
    u32 *first = mem_zero(job->n_nodes, sizeof *first), *stage = mem_zero(job->n_nodes, sizeof *stage);
    for (u32 i = 0; i < n; i++) {
        first[order[i]] = whole;
        stage[order[i]] = stages;
        whole += nodes[order[i]].take;
        stages += nodes[order[i]].stages;
    }
    plan->n_replicas = whole + stages / (u32)spec->pp;
    for (u32 rank = 0; rank < job->n_ranks; rank++) {
        u32 node = job->node_of[rank], i = used[node], own = nodes[node].take * group;
        if (!may_hold(job, spec, rank) || i == own + nodes[node].stages * tp) continue;
        used[node]++;
        if (i < own) {
            seat(plan, spec, first[node] + i / group, i % group, rank);
        } else {
            u32 at = stage[node] * tp + i - own; /* in the row of all stages */
            seat(plan, spec, whole + at / group, at % group, rank);
        }
    }
    free(used);
    free(first);
    free(stage);
}

struct by_leader {
    u32 leader, replica;
};

static int compare_leaders(const void *x, const void *y)
{
    const struct by_leader *a = x, *b = y;
    return (a->leader > b->leader) - (a->leader < b->leader);
}

/* Replicas get the order of their leaders' ranks. */
static void number(struct place_plan *plan, const struct place_job *job, u32 group)
{
    u32 n = plan->n_replicas, *old = plan->engines;
    struct by_leader *all = mem_alloc(n * sizeof *all);
    for (u32 i = 0; i < n; i++) all[i] = (struct by_leader){old[i * group], i};
    qsort(all, n, sizeof *all, compare_leaders);
    plan->engines = mem_zero(job->n_ranks, sizeof *plan->engines);
    for (u32 i = 0; i < n; i++) {
        plan->replicas[i] = (struct place_replica){.leader = all[i].leader,
                                                   .first_engine = i * group,
                                                   .n_engines = group,
                                                   .node = job->node_of[all[i].leader],
                                                   .live = true};
        memcpy(plan->engines + i * group, old + all[i].replica * group, group * sizeof *old);
        for (u32 e = 0; e < group; e++) plan->ranks[plan->engines[i * group + e]].replica = (i32)i;
    }
    free(all);
    free(old);
}

int place_plan(struct place_plan *plan, const struct place_job *job, const struct place_spec *spec,
               struct error *err)
{
    *plan = (struct place_plan){0};
    int rc = check_spec(job, spec, err);
    if (rc) return rc;
    u64 group = (u64)spec->tp * (u64)spec->pp;
    struct node_room *nodes = mem_zero(job->n_nodes, sizeof *nodes);
    u32 *order = mem_zero(job->n_nodes, sizeof *order), n = order_nodes(job, order);
    for (u32 r = 0; r < job->n_ranks; r++) nodes[job->node_of[r]].ranks += may_hold(job, spec, r);
    rc = deal(job, spec, nodes, order, n, group, err);
    if (!rc && group > spec->max_group)
        rc = error_set(
            err, ERR_UNSUPPORTED, "tensor_parallel_size",
            "tensor_parallel_size * pipeline_parallel_size = %lld * %lld = %llu engines a replica: this "
            "build runs %u; use data_parallel_size to serve with more ranks",
            (long long)spec->tp, (long long)spec->pp, (unsigned long long)group, spec->max_group);
    if (!rc) {
        plan->n_ranks = job->n_ranks;
        plan->tp = (u32)spec->tp;
        plan->pp = (u32)spec->pp;
        plan->ranks = mem_zero(job->n_ranks, sizeof *plan->ranks);
        plan->replicas = mem_zero(job->n_ranks, sizeof *plan->replicas);
        plan->engines = mem_zero(job->n_ranks, sizeof *plan->engines);
        for (u32 r = 0; r < job->n_ranks; r++) plan->ranks[r].replica = -1;
        assign(plan, job, spec, nodes, order, n);
        number(plan, job, (u32)group);
        place_rerank(plan->replicas, plan->n_replicas);
        for (u32 i = 0; job->cores_of && i < job->n_nodes; i++)
            plan->oversubscribed |=
                nodes[i].take * group + nodes[i].stages * (u64)spec->tp > job->cores_of[i];
    }
    free(order);
    free(nodes);
    return rc;
}

u32 place_parts(const struct place_plan *plan, const u32 *ranks, u32 n, u32 *out)
{
    u32 found = 0;
    bool *seen = mem_zero(plan->tp * plan->pp, sizeof *seen);
    for (u32 i = 0; i < n; i++) {
        const struct place_rank *r = &plan->ranks[ranks[i]];
        u32 part = r->pp * plan->tp + r->tp;
        if (r->replica < 0 || seen[part]) continue;
        seen[part] = true;
        out[found++] = part;
    }
    free(seen);
    return found;
}

u32 place_least(const struct place_plan *plan, u32 rank, const u32 *values)
{
    u32 least = values[rank];
    i32 replica = plan->ranks[rank].replica;
    if (replica < 0) return least;
    const struct place_replica *r = &plan->replicas[replica];
    for (u32 i = 0; i < r->n_engines; i++) least = MIN_OF(least, values[plan->engines[r->first_engine + i]]);
    return least;
}

void place_release(struct place_plan *plan)
{
    free(plan->ranks);
    free(plan->replicas);
    free(plan->engines);
    *plan = (struct place_plan){0};
}
