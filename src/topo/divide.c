/* Who gets which cores. Pure: works on the table alone. */
#include "mpiserve/topo.h"

#include <stdlib.h>
#include <string.h>

struct core {
    struct cpuset cpus; /* its CPUs inside the set that is divided */
    u16 core, numa;
};
struct domain {
    u32 first, n_cores; /* in the table of cores */
    u32 engines;        /* dealt to it */
};
struct cores {
    struct core *list;
    struct domain *domains;
    u32 n, n_domains;
};

/* The cores of the set and the NUMA domains they form, in the machine's order. */
static void cores_init(struct cores *c, const struct topo *t, const struct cpuset *set)
{
    *c = (struct cores){0};
    c->list = mem_alloc((t->n_cpus + 1) * sizeof *c->list);
    c->domains = mem_alloc((t->n_cpus + 1) * sizeof *c->domains);
    for (u32 i = 0; i < t->n_cpus; i++) {
        const struct topo_cpu *cpu = &t->cpus[i];
        if (!cpuset_has(set, cpu->cpu)) continue;
        if (!c->n || c->list[c->n - 1].core != cpu->core) {
            if (!c->n || c->list[c->n - 1].numa != cpu->numa)
                c->domains[c->n_domains++] = (struct domain){.first = c->n};
            c->domains[c->n_domains - 1].n_cores++;
            c->list[c->n++] = (struct core){.core = cpu->core, .numa = cpu->numa};
        }
        cpuset_add(&c->list[c->n - 1].cpus, cpu->cpu);
    }
}

static void cores_release(struct cores *c)
{
    free(c->list);
    free(c->domains);
}

u32 topo_cores_of(const struct topo *t, const struct cpuset *set)
{
    struct cores c;
    cores_init(&c, t, set);
    cores_release(&c);
    return c.n;
}

/* Cores [first, first + n_cores) among n engines in whole, neighbouring cores; sizes differ by one at most. */
static void share_run(const struct cores *c, u32 first, u32 n_cores, u32 n, struct cpuset *out)
{
    for (u32 i = 0; i < n; i++) {
        u32 from = first + (u32)((u64)n_cores * i / n), to = first + (u32)((u64)n_cores * (i + 1) / n);
        for (u32 k = from; k < to; k++) cpuset_or(&out[i], &c->list[k].cpus);
    }
}

/* Each engine goes where most cores a head are left: the smallest share becomes as large as it can be. False when
 * a small domain would be left without an engine, its cores idle. */
static bool deal_to_domains(struct cores *c, u32 n)
{
    for (u32 i = 0; i < n; i++) {
        struct domain *best = NULL;
        for (u32 d = 0; d < c->n_domains; d++) {
            struct domain *x = &c->domains[d];
            if (x->engines == x->n_cores) continue;
            if (!best || (u64)x->n_cores * (best->engines + 1) > (u64)best->n_cores * (x->engines + 1))
                best = x;
        }
        best->engines++; /* cores >= engines: there is room somewhere */
    }
    for (u32 d = 0; d < c->n_domains; d++)
        if (!c->domains[d].engines) return false;
    return true;
}

bool topo_share(const struct topo *t, const struct cpuset *node, u32 n, struct cpuset *out)
{
    struct cores c;
    cores_init(&c, t, node);
    memset(out, 0, n * sizeof *out);
    bool shared = c.n < n;
    if (shared) {
        for (u32 i = 0; i < n && c.n; i++) out[i] = c.list[i % c.n].cpus;
    } else if (n < c.n_domains || !deal_to_domains(&c, n)) {
        share_run(&c, 0, c.n, n, out);
    } else {
        for (u32 d = 0; d < c.n_domains; d++) {
            share_run(&c, c.domains[d].first, c.domains[d].n_cores, c.domains[d].engines, out);
            out += c.domains[d].engines;
        }
    }
    cores_release(&c);
    return shared;
}

static bool disjoint(const struct cpuset *masks, u32 n)
{
    struct cpuset seen = {0};
    for (u32 i = 0; i < n; i++) {
        if (cpuset_empty(&masks[i]) || cpuset_meets(&seen, &masks[i])) return false;
        cpuset_or(&seen, &masks[i]);
    }
    return n > 1;
}

int topo_divide(const struct topo *t, const struct cpuset *masks, const bool *engine, u32 n_ranks,
                struct cpuset *out, struct topo_division *how, struct error *err)
{
    *how = (struct topo_division){0};
    memset(out, 0, n_ranks * sizeof *out);
    struct cpuset *usable = mem_alloc((n_ranks + 1) * sizeof *usable); /* the masks, as far as allowed */
    u32 n = 0;
    for (u32 i = 0; i < n_ranks; i++) {
        usable[i] = masks[i];
        cpuset_and(&usable[i], &t->allowed);
        cpuset_or(&how->node, &usable[i]);
        n += engine[i];
    }
    how->cores = topo_cores_of(t, &how->node);
    how->given = disjoint(usable, n_ranks);
    int rc = 0;
    if (!how->cores) {
        char text[160];
        rc = error_set(err, ERR_INPUT, "",
                       "the ranks' CPU masks and the CPUs allowed here (%s) have none in common",
                       cpuset_print(&t->allowed, text, sizeof text));
    } else if (how->given) {
        for (u32 i = 0; i < n_ranks; i++)
            if (engine[i]) out[i] = usable[i];
    } else {
        struct cpuset *shares = mem_alloc((n + 1) * sizeof *shares);
        how->shared = topo_share(t, &how->node, n, shares);
        for (u32 i = 0, k = 0; i < n_ranks; i++)
            if (engine[i]) out[i] = shares[k++];
        free(shares);
    }
    free(usable);
    return rc;
}
