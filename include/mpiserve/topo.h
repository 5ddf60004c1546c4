/* topo: what a node has (CPUs, cores, NUMA domains) and how its cores are divided among engines. The only
 * room that knows hwloc; what it read is copied into plain tables, so that the division is pure and tests
 * feed synthetic machines.
 *
 * CPU numbers are the kernel's. A core is a physical core; its hardware threads are never given to two
 * engines unless cores are short. Life cycle: topo_load (or topo_synthetic) -> topo_divide -> topo_free.
 * Thread rule: read-only after loading. */
#ifndef MPISERVE_TOPO_H
#define MPISERVE_TOPO_H

#include "mpiserve/base.h"

/* ---- sets of CPUs
 * -------------------------------------------------------------------------------------------- Plain data of
 * 128 bytes, all zero = empty; the layout of step.h's engine_boot.cpus. */
enum { CPUSET_BITS = 1024, CPUSET_WORDS = CPUSET_BITS / 64, CPUSET_TEXT = 4096 };
struct cpuset {
    u64 bits[CPUSET_WORDS];
};
void cpuset_add(struct cpuset *s, u32 cpu); /* numbers from CPUSET_BITS on are ignored */
bool cpuset_has(const struct cpuset *s, u32 cpu);
u32 cpuset_count(const struct cpuset *s);
bool cpuset_empty(const struct cpuset *s);
bool cpuset_equal(const struct cpuset *a, const struct cpuset *b);
bool cpuset_meets(const struct cpuset *a, const struct cpuset *b); /* some CPU is in both */
void cpuset_and(struct cpuset *s, const struct cpuset *other);
void cpuset_or(struct cpuset *s, const struct cpuset *other);
void cpuset_minus(struct cpuset *s, const struct cpuset *other);
i32 cpuset_next(const struct cpuset *s, i32 after); /* lowest CPU > after (start with -1); -1: none */
/* "0-3,8", as the kernel writes it; "" for the empty set. Cut at size; CPUSET_TEXT bytes hold any set.
 * Returns out. */
const char *cpuset_print(const struct cpuset *s, char *out, size_t size);
/* The same form, spaces and a final newline allowed. ERR_INPUT names the byte. */
int cpuset_parse(struct cpuset *s, const char *text, struct error *err);
int cpuset_of_self(struct cpuset *s, struct error *err);         /* the calling thread's mask */
int cpuset_bind_self(const struct cpuset *s, struct error *err); /* empty: nothing is changed */

/* ---- the machine
 * ---------------------------------------------------------------------------------------------*/
struct topo_cpu {                 /* in the machine's order: neighbours in this table are near each other */
    u16 cpu, core, numa, package; /* core, numa, package: dense from 0 */
};
struct topo {
    struct cpuset allowed;                   /* what the cgroup allows */
    u32 n_cpus, n_cores, n_numa, n_packages; /* of the allowed part */
    struct topo_cpu cpus[CPUSET_BITS];
};
/* Only CPUs, cores and NUMA domains are looked at, no I/O (some 4 ms). The result is plain data of fixed size: one rank
 * of a node may load it and hand it to the others as bytes. */
struct topo *topo_load(struct error *err);
/* hwloc's words, e.g. "numa:2 core:4 pu:2". */
struct topo *topo_synthetic(const char *description, struct error *err);
void topo_free(struct topo *t);
u32 topo_cores_of(const struct topo *t,
                  const struct cpuset *set); /* cores with at least one CPU in the set */

/* ---- division
 * -------------------------------------------------------------------------------------------------*/
struct topo_division {
    struct cpuset node; /* all that was divided */
    u32 cores;
    bool shared; /* fewer cores than engines: single cores, round robin */
    bool given;  /* the launcher's disjoint masks were kept */
};
/* Pure. masks [n_ranks]: the masks that the launcher gave the ranks of this node; engine [n_ranks]: does that
 * rank hold one; out [n_ranks]: the engines' CPUs (empty for ranks without one). The node's CPUs are allowed
 * ∩ union of masks. Disjoint masks are kept. Else whole cores, disjoint, near each other: engines are dealt
 * to NUMA domains so that none straddles two when there are at least as many engines as domains. ERR_INPUT
 * when nothing is left of the masks. */
int topo_divide(const struct topo *t, const struct cpuset *masks, const bool *engine, u32 n_ranks,
                struct cpuset *out, struct topo_division *how, struct error *err);
/* The division itself: `node` among n engines; returns true when cores are shared. */
bool topo_share(const struct topo *t, const struct cpuset *node, u32 n, struct cpuset *out);

#endif
