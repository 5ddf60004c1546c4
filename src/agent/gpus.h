/* gpus: which GPU is whose. Inside the agent room. */
#ifndef MPISERVE_AGENT_GPUS_H
#define MPISERVE_AGENT_GPUS_H

#include "mpiserve/base.h"
#include "mpiserve/topo.h"

enum { GPUS_MAX = 16 };
struct gpu {
    char uuid[48]; /* "": none */
    u64 total, free;
    u32 near, pad; /* 1: its PCI bus is on the NUMA domain of the engine's cores */
};
struct gpu_view { /* what a rank may use; n 0: nothing, or it has no engine */
    u32 n, nccl;  /* its version; 0: there is none */
    struct gpu gpu[GPUS_MAX];
};
/* Pure. views [n]: of the ranks of a node, in order; out [n]: one for each, none twice, near ones first; NULL: none is left. */
void gpus_deal(const struct gpu_view *views, u32 n, const struct gpu **out);
/* Whether some of these CPUs are local to the device at this address of PCI ("0000:3b:00.0", in either case), as the kernel's files in sysfs
 * say; false where they say nothing. */
bool gpus_near(const char *sysfs, const char *bus, const struct cpuset *cpus);
struct agent;
/* Collective, behind the division of cores: a->gpu of each rank with an engine. */
int gpus_choose(struct agent *a, struct error *err);

#endif
