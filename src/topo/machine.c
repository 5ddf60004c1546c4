/* Reading the machine with hwloc, and copying what matters into a table. */
#include "mpiserve/topo.h"

#include <errno.h>
#include <hwloc.h>
#include <stdlib.h>
#include <string.h>

/* Only what the table needs: I/O, caches and groups cost time at start, on every rank. */
static int load_filtered(hwloc_topology_t h)
{
    return hwloc_topology_set_all_types_filter(h, HWLOC_TYPE_FILTER_KEEP_NONE) ||
           hwloc_topology_set_type_filter(h, HWLOC_OBJ_CORE, HWLOC_TYPE_FILTER_KEEP_ALL) ||
           hwloc_topology_set_type_filter(h, HWLOC_OBJ_PACKAGE, HWLOC_TYPE_FILTER_KEEP_ALL) ||
           /* NUMA nodes of synthetic machines hang on groups */
           hwloc_topology_set_type_filter(h, HWLOC_OBJ_GROUP, HWLOC_TYPE_FILTER_KEEP_STRUCTURE) ||
           hwloc_topology_load(h);
}

/* The number of the object of this type around pu, or the last seen one where the machine names none. */
static u16 ancestor_index(hwloc_topology_t h, hwloc_obj_t pu, hwloc_obj_type_t type, u16 otherwise)
{
    hwloc_obj_t obj = hwloc_get_ancestor_obj_by_type(h, type, pu);
    return obj ? (u16)obj->logical_index : otherwise;
}

static u16 numa_index(hwloc_topology_t h, hwloc_obj_t pu)
{
    hwloc_obj_t node = NULL;
    while ((node = hwloc_get_next_obj_by_type(h, HWLOC_OBJ_NUMANODE, node)))
        if (hwloc_bitmap_isset(node->cpuset, pu->os_index)) return (u16)node->logical_index;
    return 0;
}

static int by_numa_then_order(const void *x, const void *y)
{
    const struct topo_cpu *a = x, *b = y;
    if (a->numa != b->numa) return a->numa < b->numa ? -1 : 1;
    if (a->core != b->core) return a->core < b->core ? -1 : 1;
    return a->cpu < b->cpu ? -1 : a->cpu > b->cpu;
}

/* Makes a column dense from 0 in the table's order, and returns how many numbers there are. */
static u32 make_dense(struct topo *t, size_t column)
{
    u32 n = 0;
    u16 *to = mem_alloc((UINT16_MAX + 1) * sizeof *to);
    memset(to, 0xff, (UINT16_MAX + 1) * sizeof *to);
    for (u32 i = 0; i < t->n_cpus; i++) {
        u16 *value = (u16 *)((u8 *)&t->cpus[i] + column);
        if (to[*value] == UINT16_MAX) to[*value] = (u16)n++;
        *value = to[*value];
    }
    free(to);
    return n;
}

static void copy_table(struct topo *t, hwloc_topology_t h)
{
    hwloc_obj_t pu = NULL;
    hwloc_const_cpuset_t allowed = hwloc_topology_get_allowed_cpuset(h);
    while ((pu = hwloc_get_next_obj_by_type(h, HWLOC_OBJ_PU, pu))) {
        if (pu->os_index >= CPUSET_BITS || !hwloc_bitmap_isset(allowed, pu->os_index)) continue;
        cpuset_add(&t->allowed, pu->os_index);
        t->cpus[t->n_cpus++] = (struct topo_cpu){
            .cpu = (u16)pu->os_index,
            .core = ancestor_index(h, pu, HWLOC_OBJ_CORE, (u16)pu->logical_index),
            .numa = numa_index(h, pu),
            .package = ancestor_index(h, pu, HWLOC_OBJ_PACKAGE, 0),
        };
    }
    qsort(t->cpus, t->n_cpus, sizeof t->cpus[0], by_numa_then_order);
    t->n_cores = make_dense(t, offsetof(struct topo_cpu, core));
    t->n_numa = make_dense(t, offsetof(struct topo_cpu, numa));
    t->n_packages = make_dense(t, offsetof(struct topo_cpu, package));
}

static struct topo *load(const char *synthetic, struct error *err)
{
    hwloc_topology_t h;
    if (hwloc_topology_init(&h)) {
        error_errno(err, "", "hwloc");
        return NULL;
    }
    struct topo *t = NULL;
    if (synthetic && hwloc_topology_set_synthetic(h, synthetic))
        error_set(err, ERR_INPUT, "", "hwloc does not understand the machine '%.200s'", synthetic);
    else if (load_filtered(h))
        error_errno(err, "", "hwloc cannot read this machine");
    else {
        t = mem_zero(1, sizeof *t);
        copy_table(t, h);
    }
    hwloc_topology_destroy(h);
    if (t && !t->n_cpus) {
        error_set(err, ERR_STATE, "", "this process may use no CPU below number %d", CPUSET_BITS);
        topo_free(t);
        return NULL;
    }
    return t;
}

struct topo *topo_load(struct error *err)
{
    return load(NULL, err);
}

struct topo *topo_synthetic(const char *description, struct error *err)
{
    return load(description, err);
}

void topo_free(struct topo *t)
{
    free(t);
}
