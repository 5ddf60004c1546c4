/* Which GPU is whose. Every rank with an engine asks `mpiserve devices` what it may use: a process of its own, since agents do not use
 * CUDA. So CUDA_VISIBLE_DEVICES counts, whoever set it: the user for all, or Slurm for a job, a node or a task. Then all ranks of a node
 * deal the GPUs out in the same way: in order of ranks, each takes the nearest to its cores that is left. */
#include "agent/gpus.h"
#include "agent/agent_internal.h"
#include "mpiserve/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

enum { OUTPUT_MAX = 1 << 16 };

/* ---- asking ----------------------------------------------------------------------------------------------------*/
bool gpus_near(const char *sysfs, const char *bus, const struct cpuset *cpus)
{
    char path[PATH_LEN + 64], lower[32];
    struct buf text = {0};
    struct cpuset local;
    size_t n = 0;
    for (; bus[n] && n + 1 < sizeof lower; n++)
        lower[n] = bus[n] >= 'A' && bus[n] <= 'F' ? bus[n] + 32 : bus[n];
    lower[n] = 0;
    snprintf(path, sizeof path, "%s/bus/pci/devices/%s/local_cpulist", sysfs, lower);
    bool known = file_read(path, 1 << 14, &text, NULL) == 0 && cpuset_parse(&local, text.data, NULL) == 0;
    buf_release(&text);
    return known && cpuset_meets(&local, cpus);
}

static const char *text_of(const struct json *d, const char *key)
{
    const char *text = json_text(json_get(d, key));
    return text ? text : "";
}

static int read_devices(const char *text, size_t len, const struct cpuset *cpus, struct gpu_view *out,
                        struct error *err)
{
    struct json *root = json_read(text, len, err);
    const struct json *list = json_get(root, "devices");
    if (!root) return err->code;
    out->nccl = (u32)json_int(json_get(root, "nccl"), 0);
    for (size_t i = 0; i < json_len(list) && out->n < GPUS_MAX; i++) {
        const struct json *d = json_item(list, i);
        struct gpu *g = &out->gpu[out->n++];
        snprintf(g->uuid, sizeof g->uuid, "%s", text_of(d, "uuid"));
        g->total = (u64)json_int(json_get(d, "total_bytes"), 0);
        g->free = (u64)json_int(json_get(d, "free_bytes"), 0);
        g->near = gpus_near("/sys", text_of(d, "bus"), cpus);
    }
    json_drop(root);
    return 0;
}

/* All that this rank may use, or what is free on one. Errors of CUDA are on this rank's stderr. */
static int ask(const char *uuid, const struct cpuset *cpus, struct gpu_view *out, struct error *err)
{
    char text[OUTPUT_MAX], command[128];
    snprintf(command, sizeof command, "/proc/$PPID/exe devices --json %s", uuid);
    FILE *from = popen(command, "r");
    if (!from) return error_errno(err, "--engine cuda", "cannot start `mpiserve devices`");
    size_t len = fread(text, 1, sizeof text, from);
    int status = pclose(from);
    *out = (struct gpu_view){0};
    if (status == 0) return read_devices(text, len, cpus, out, err);
    return error_set(err, ERR_UNSUPPORTED, "--engine cuda",
                     "there is no GPU that an engine here could use (`mpiserve devices`)");
}

/* ---- dealing out -----------------------------------------------------------------------------------------------*/
static bool taken(const struct gpu *g, const struct gpu *const *out, u32 n)
{
    for (u32 i = 0; i < n; i++)
        if (out[i] && strcmp(out[i]->uuid, g->uuid) == 0) return true;
    return false;
}

void gpus_deal(const struct gpu_view *views, u32 n, const struct gpu **out)
{
    for (u32 i = 0; i < n; i++) {
        const struct gpu *best = NULL;
        for (u32 k = 0; k < views[i].n; k++) {
            const struct gpu *g = &views[i].gpu[k];
            if (!taken(g, out, i) && (!best || g->near > best->near)) best = g;
        }
        out[i] = best;
    }
}

/* ---- the ranks -------------------------------------------------------------------------------------------------*/
static int take(struct agent *a, const struct gpu_view *all, struct error *err)
{
    u32 n = wire_node_size(a->wire), me = wire_peers(a->wire)[agent_rank(a)].local_rank;
    struct gpu_view *here = mem_zero(n, sizeof *here);
    const struct gpu **dealt = mem_zero(n, sizeof *dealt);
    int rc = 0;
    for (u32 i = 0; i < n; i++) here[i] = all[wire_node_ranks(a->wire)[i]];
    gpus_deal(here, n, dealt);
    if (dealt[me])
        a->gpu = *dealt[me];
    else
        rc = error_set(err, ERR_INPUT, "--engine cuda",
                       "the %u GPUs that rank %u may use are other engines' already: one engine takes one "
                       "GPU; start fewer ranks on "
                       "a node",
                       here[me].n, agent_rank(a));
    free(here);
    free(dealt);
    return rc;
}

/* Where a replica has several engines. */
static int check_nccl(const struct agent *a, const struct gpu_view *mine, struct error *err)
{
    if (mine->nccl || a->config.tensor_parallel_size * a->config.pipeline_parallel_size < 2) return 0;
    return error_set(
        err, ERR_NOT_FOUND, "--engine cuda",
        "a model on several GPUs needs NCCL, and rank %u finds none: install it (libnccl2), or add "
        "the folder of libnccl.so.2 to LD_LIBRARY_PATH (`mpiserve devices`)",
        agent_rank(a));
}

int gpus_choose(struct agent *a, struct error *err)
{
    struct gpu_view mine = {0}, *all = mem_zero(wire_size(a->wire), sizeof *all);
    bool engine = a->plan.ranks[agent_rank(a)].replica >= 0;
    int rc = engine ? ask("", &a->cpus, &mine, err) : 0;
    if (!rc && engine) rc = check_nccl(a, &mine, err);
    struct error trouble;
    if (wire_allgather(a->wire, &mine, sizeof mine, all, rc ? &trouble : err)) rc = rc ? rc : err->code;
    if (!rc && engine) rc = take(a, all, err);
    if (!rc && engine) rc = ask(a->gpu.uuid, &a->cpus, &mine, err);
    if (!rc && engine) a->gpu = mine.gpu[0];
    free(all);
    return rc;
}
