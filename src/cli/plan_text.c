/* A plan for people: nodes as boxes, then sizes, then the lines that start it. */
#include "cli/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LIKE_EACH_OTHER = 3, PERIOD_MOST = 16, BOX_LEAST = 44, ROWS_SHOWN = 16 };

static const char *size_text(u64 bytes, char *out, size_t size)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"};
    size_t unit = 0;
    double v = (double)bytes;
    for (; v >= 1024 && unit + 1 < COUNT_OF(units); unit++) v /= 1024;
    snprintf(out, size, unit ? "%.1f %s" : "%.0f %s", v, units[unit]);
    return out;
}

static const char *cores_text(u32 least, u32 most, char *out, size_t size)
{
    if (least == most)
        snprintf(out, size, "%u core%s", most, most == 1 ? "" : "s");
    else
        snprintf(out, size, "%u or %u cores", least, most);
    return out;
}

static u64 engines_a_replica(const struct plan *p)
{
    return (u64)(p->config.tensor_parallel_size * p->config.pipeline_parallel_size);
}

/* ---- the picture -----------------------------------------------------------------------------------------------*/
static void rank_row(const struct plan *p, u32 rank, u32 nth_engine, struct buf *to)
{
    const struct place_rank *r = &p->place.ranks[rank];
    buf_printf(to, "rank %u  ", rank);
    if (r->replica < 0) {
        buf_text(to, "no engine");
        return;
    }
    const struct replica_rank *x = &p->place.replicas[r->replica].rank;
    char cpus[CPUSET_TEXT];
    cpuset_print(&p->shares[p->engines_on[p->node_of[rank]]][nth_engine], cpus, sizeof cpus);
    buf_printf(to, "replica %d  ", r->replica);
    if (engines_a_replica(p) > 1) buf_printf(to, "stage %u, tensor part %u  ", r->pp, r->tp);
    if (r->is_leader)
        buf_printf(to, "ReplicaRank {rank %u, node_rank %u, local_rank %u}  ", x->rank, x->node_rank,
                   x->local_rank);
    buf_printf(to, "CPUs %.40s%s", cpus, strlen(cpus) > 40 ? "..." : "");
}

static void box_line(struct buf *to, const char *text, size_t width)
{
    buf_printf(to, "  | %-*s |\n", (int)width, text);
}

static void box_edge(struct buf *to, const char *title, size_t width)
{
    size_t used = strlen(title) + (title[0] ? 2 : 0);
    buf_printf(to, "  +%s%s%s", title[0] ? " " : "", title, title[0] ? " " : "");
    for (size_t i = used; i < width + 2; i++) buf_char(to, '-');
    buf_text(to, "+\n");
}

static void node_box(const struct plan *p, u32 node, struct buf *to)
{
    struct buf rows = {0};
    size_t width = BOX_LEAST;
    u32 first = node * p->ground.ranks_per_node, end = first + p->ground.ranks_per_node, engines = 0;
    char title[64], last[64];
    bool http = node == 0 || strcmp(p->config.ingress, "node") == 0;
    snprintf(title, sizeof title, http ? "node %u: HTTP on rank %u" : "node %u", node, first);
    for (u32 r = first; r < end && r - first < ROWS_SHOWN; r++) {
        size_t start = rows.len;
        rank_row(p, r, engines, &rows);
        engines += p->place.ranks[r].replica >= 0;
        width = MAX_OF(width, rows.len - start);
        buf_char(&rows, 0);
    }
    box_edge(to, title, width);
    for (size_t at = 0; at < rows.len; at += strlen(rows.data + at) + 1) box_line(to, rows.data + at, width);
    if (end - first > ROWS_SHOWN) {
        snprintf(last, sizeof last, "... and ranks %u to %u: %u engines on this node", first + ROWS_SHOWN,
                 end - 1, p->engines_on[node]);
        box_line(to, last, width);
    }
    box_edge(to, "", width);
    buf_release(&rows);
}

static bool alike(const struct plan *p, u32 a, u32 b)
{
    u32 each = p->ground.ranks_per_node;
    for (u32 i = 0; i < each; i++) {
        const struct place_rank *x = &p->place.ranks[a * each + i], *y = &p->place.ranks[b * each + i];
        if ((x->replica < 0) != (y->replica < 0) || x->tp != y->tp || x->pp != y->pp) return false;
    }
    return true;
}

/* Nodes from this one on that repeat the first `period` of them; their end. */
static u32 repeated(const struct plan *p, u32 node, u32 period)
{
    u32 end = node + period;
    while (end < p->ground.n_nodes && alike(p, end, end - period)) end++;
    return end;
}

static void likewise(const struct plan *p, u32 first, u32 end, struct buf *to)
{
    u32 each = p->ground.ranks_per_node, engines = 0;
    for (u32 node = first; node < end; node++) engines += p->engines_on[node];
    buf_printf(to, "    nodes %u to %u likewise: ranks %u to %u, ", first, end - 1, first * each,
               end * each - 1);
    if (engines % (end - first) == 0)
        buf_printf(to, "%u engine%s each", engines / (end - first), engines == end - first ? "" : "s");
    else
        buf_printf(to, "%u engines", engines);
    buf_printf(to, "%s\n", strcmp(p->config.ingress, "node") == 0 ? ", HTTP on the first rank of each" : "");
}

/* What repeats is drawn once, with a line for the others: nodes that are alike, or (replicas that lie on several) rows of them. */
static void picture(const struct plan *p, struct buf *to)
{
    u32 n = p->ground.n_nodes;
    for (u32 node = 0, end = 0; node < n; node = end) {
        u32 period = 1;
        while (period <= PERIOD_MOST && node + period <= n &&
               (end = repeated(p, node, period)) - node <= LIKE_EACH_OTHER * period)
            period++;
        bool repeats = period <= PERIOD_MOST && node + period <= n;
        if (!repeats) end = node + 1;
        for (u32 i = node; i < (repeats ? node + period : end); i++) node_box(p, i, to);
        if (repeats) likewise(p, node + period, end, to);
    }
}

/* ---- sizes -----------------------------------------------------------------------------------------------------*/
static void memory_row(struct buf *to, const char *what, u64 bytes)
{
    char text[32];
    buf_printf(to, "  %-44s %12s\n", what, size_text(bytes, text, sizeof text));
}

static void at_once(struct buf *to, u64 full, u32 len, u64 rows, u64 slots)
{
    buf_printf(to, "%llu sequence%s of %u tokens; at most %llu sequences, %llu requests\n",
               (unsigned long long)full, full == 1 ? "" : "s", len, (unsigned long long)rows,
               (unsigned long long)slots);
}

static void sizes(const struct plan *p, struct buf *to)
{
    char text[32], line[64];
    u64 replicas = p->place.n_replicas;
    buf_text(to, "\nMemory\n");
    if (p->gpu_needs) {
        memory_row(to, "a GPU: weights", p->needs.weights_bytes);
        memory_row(to, "a GPU: KV cache", p->kv);
        memory_row(to, "a GPU: activations, logits, tables", p->needs.work_bytes);
        memory_row(to, "a GPU needs", p->gpu_needs);
        snprintf(line, sizeof line, "and may use (%.2f of a GPU)", p->config.gpu_memory_utilization);
        if (p->ground.gpu_memory)
            memory_row(to, line, (u64)((double)p->ground.gpu_memory * p->config.gpu_memory_utilization));
    } else {
        memory_row(to, "weights, once on a node", p->node_weights);
        memory_row(to, "an engine: KV cache", p->kv);
        memory_row(to, "an engine: activations, logits, tables", p->needs.work_bytes);
    }
    memory_row(to, "an engine: rings between it and its agent", p->rings);
    memory_row(to, "a rank: programs and MPI (estimate)", p->agent);
    snprintf(line, sizeof line, "a node with %u engine%s needs", p->most_engines,
             p->most_engines == 1 ? "" : "s");
    memory_row(to, line, p->node_needs);
    if (p->ground.memory) memory_row(to, "and has", p->ground.memory);
    u32 len = p->needs.max_model_len;
    u64 rows = (u64)p->config.max_num_seqs, slots = (u64)p->config.max_ongoing_requests;
    buf_printf(to, "\nAt once\n  a replica: %llu tokens in its KV cache (%u blocks of %lld); ",
               (unsigned long long)p->tokens, p->n_blocks - 1, (long long)p->config.block_size);
    at_once(to, p->sequences, len, rows, slots);
    buf_printf(to, "  the job:   %llu tokens; ", (unsigned long long)(p->tokens * replicas));
    at_once(to, p->sequences * replicas, len, rows * replicas, slots * replicas);
    buf_printf(to, "  an engine: %s, %u thread%s\n",
               cores_text(p->least_cores, p->most_cores, text, sizeof text), p->threads,
               p->threads == 1 ? "" : "s");
}

void plan_text(const struct plan *p, struct buf *to)
{
    const struct ground *g = &p->ground;
    buf_printf(to, "%s: %u node%s, %u rank%s on each, %u cores in %u NUMA domain%s on each\n",
               p->config.served_model_name[0], g->n_nodes, g->n_nodes == 1 ? "" : "s", g->ranks_per_node,
               g->ranks_per_node == 1 ? "" : "s", g->topo->n_cores, g->topo->n_numa,
               g->topo->n_numa == 1 ? "" : "s");
    if (p->has_place) {
        u64 each = engines_a_replica(p);
        buf_printf(to, "%u replica%s of ", p->place.n_replicas, p->place.n_replicas == 1 ? "" : "s");
        if (each > 1)
            buf_printf(to, "%llu engines each (%lld stages of %lld)", (unsigned long long)each,
                       (long long)p->config.pipeline_parallel_size,
                       (long long)p->config.tensor_parallel_size);
        else
            buf_text(to, "one engine each");
        buf_printf(to, ", %s; an engine takes %s\n\n", p->config.placement_group_strategy,
                   strcmp(p->config.engine, "cuda") == 0 ? "a GPU" : "cores");
        picture(p, to);
    }
    if (p->has_engine) sizes(p, to);
    if (!p->n_refusals) {
        buf_text(to, "\nStart\n");
        if (g->n_nodes == 1) buf_printf(to, "  %s\n", p->up.data);
        buf_printf(to, "  %s\n  %s\n", p->mpirun.data, p->sbatch.data);
    }
    for (u32 i = 0; i < p->n_notes; i++) buf_printf(to, "%snote: %s\n", i ? "" : "\n", p->notes[i]);
}
