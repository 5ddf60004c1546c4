/* The machines of a plan: from options, or this one. */
#include "cli/plan.h"
#include "mpiserve/device.h"
#include "mpiserve/proc.h"

#include <stdio.h>
#include <string.h>

static int find_topology(struct ground *g, const struct config *c, struct error *err)
{
    char text[64];
    const char *words = c->topology;
    u32 numa = c->numa ? (u32)c->numa : 1;
    if (c->topology[0] && (c->cores || c->numa))
        return error_set(err, ERR_INPUT, "--topology",
                         "says it all: leave --cores and --numa out, or describe a node with them alone");
    if (c->numa && !c->cores) return error_set(err, ERR_INPUT, "--numa", "needs --cores");
    if (c->cores % numa)
        return error_set(err, ERR_INPUT, "--numa",
                         "%lld cores are not divisible by %u domains: describe such a node with --topology",
                         (long long)c->cores, numa);
    if (c->cores) {
        snprintf(text, sizeof text, "numa:%u core:%lld pu:1", numa, (long long)c->cores / numa);
        words = text;
    }
    g->this_machine = !words[0];
    g->topo = words[0] ? topo_synthetic(words, err) : topo_load(err);
    if (g->topo) return 0;
    if (c->topology[0]) snprintf(err->where, sizeof err->where, "--topology");
    return err->code;
}

static int find_ranks(struct ground *g, const struct config *c, struct error *err)
{
    i64 nodes = c->nodes, each = c->ranks_per_node;
    if (c->ranks && c->ranks % nodes)
        return error_set(err, ERR_INPUT, "--ranks", "%lld ranks are not divisible by --nodes %lld",
                         (long long)c->ranks, (long long)nodes);
    if (c->ranks && each && c->ranks != nodes * each)
        return error_set(
            err, ERR_INPUT, "--ranks",
            "is %lld, and --nodes %lld times --ranks-per-node %lld is %lld: leave one of them out",
            (long long)c->ranks, (long long)nodes, (long long)each, (long long)(nodes * each));
    if (!each && c->ranks) each = c->ranks / nodes;
    bool as_up = g->this_machine && nodes == 1;
    if (!each) each = c->gpus_per_node ? c->gpus_per_node : as_up ? CONFIG_RANKS : (i64)g->topo->n_numa;
    g->n_nodes = (u32)nodes;
    g->ranks_per_node = (u32)each;
    g->gpus_per_node = (u32)c->gpus_per_node;
    return 0;
}

/* The least of this machine's GPUs; 0: there is none. */
static u64 memory_of_gpus(void)
{
    struct device_info list[DEVICE_MAX];
    int n = device_list(list, DEVICE_MAX, NULL);
    u64 least = n > 0 ? list[0].total : 0;
    for (int i = 1; i < n; i++) least = MIN_OF(least, list[i].total);
    return least;
}

int ground_find(struct ground *g, const struct config *c, struct error *err)
{
    *g = (struct ground){0};
    int rc = find_topology(g, c, err);
    if (!rc) rc = find_ranks(g, c, err);
    if (rc) {
        ground_release(g);
        return rc;
    }
    g->memory = (u64)c->memory_per_node;
    if (!g->memory && g->this_machine) g->memory = memory_left();
    if (g->memory == UINT64_MAX) g->memory = 0;
    g->gpu_memory = (u64)c->memory_per_gpu;
    if (!g->gpu_memory && strcmp(c->engine, "cuda") == 0) g->gpu_memory = memory_of_gpus();
    return 0;
}

void ground_release(struct ground *g)
{
    topo_free(g->topo);
    *g = (struct ground){0};
}
