/* What the machine gives to a job: cores, memory and how fast it is, GPUs. */
#include "cli/doctor.h"
#include "mpiserve/device.h"
#include "mpiserve/ops.h"
#include "mpiserve/proc.h"
#include "mpiserve/topo.h"

#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const double GB = 1e9;

/* ---- cores --------------------------------------------------------------------------------------------------------*/
/* CPUs' worth of time that the cgroup grants (cpu.max), or 0: no limit. */
static double cpu_quota(void)
{
    struct buf text = {0};
    char path[PATH_LEN], group[512] = "/";
    double quota = 0, period = 0, least = 0;
    if (file_read("/proc/self/cgroup", 65536, &text, NULL) == 0 && text.data) {
        const char *line = strstr(text.data, "0::");
        if (line) snprintf(group, sizeof(group), "%.*s", (int)strcspn(line + 3, "\n"), line + 3);
    }
    for (;;) { /* limits of groups above count too */
        if (path_join(path, sizeof(path), NULL, "/sys/fs/cgroup%s/cpu.max", group) == 0 &&
            file_read(path, 256, &text, NULL) == 0 && text.data &&
            sscanf(text.data, "%lf %lf", &quota, &period) == 2 && period > 0)
            least = least > 0 ? MIN_OF(least, quota / period) : quota / period;
        char *slash = strrchr(group, '/');
        if (!slash || !slash[1]) break;
        slash[slash == group] = 0;
    }
    buf_release(&text);
    return least;
}

static void look_at_instructions(struct report *r)
{
    struct finding *f = finding_add(r, "instruction set");
    const char *best = ops_cpu_best();
    const struct ops *ops = ops_cpu(best);
    finding_say(f, "%s; with bf16 weights `--compute auto` is %s", best,
                ops && ops->native_bf16 ? "bf16" : "f32");
    if (strcmp(best, "portable") == 0)
        finding_judge(
            f, WARNING,
            "only portable kernels run here, several times slower: x86-64 with AVX2 or AVX-512 is better");
}

void doctor_cpus(struct report *r)
{
    struct finding *f = finding_add(r, "cores");
    struct error err;
    struct cpuset mine;
    char set[CPUSET_TEXT];
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    struct topo *t = topo_load(&err);
    if (!t || cpuset_of_self(&mine, &err) < 0) {
        finding_say(f, "%.230s", err.message);
        finding_judge(f, PROBLEM, "the topology must be readable (/sys, hwloc)");
        topo_free(t);
        return;
    }
    cpuset_and(&mine, &t->allowed);
    u32 allowed = cpuset_count(&mine), cores = topo_cores_of(t, &mine);
    double quota = cpu_quota();
    finding_say(f, "%u of %ld CPUs allowed (%.60s): %u cores in %u NUMA domain%s", allowed, online,
                cpuset_print(&mine, set, sizeof(set)), cores, t->n_numa, t->n_numa == 1 ? "" : "s");
    finding_number(f, "allowed", allowed);
    finding_number(f, "online", (double)online);
    finding_number(f, "cores", cores);
    finding_number(f, "numa", t->n_numa);
    if (quota > 0) {
        finding_say(f, "; the cgroup grants the time of %.3g", quota);
        finding_number(f, "cgroup_cpus", quota);
        if (quota < allowed)
            finding_judge(f, WARNING,
                          "engines use all CPUs that they may, and are stopped when their time is used up: "
                          "bind the container to "
                          "CPUs (docker run --cpuset-cpus) rather than limit its time (--cpus)");
    }
    topo_free(t);
    look_at_instructions(r);
}

/* ---- memory -------------------------------------------------------------------------------------------------------*/
void doctor_memory(struct report *r)
{
    struct finding *f = finding_add(r, "memory");
    double total = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    u64 left = memory_left();
    finding_number(f, "total_bytes", total);
    if (left == UINT64_MAX) {
        finding_say(f, "%.1f GB; how much is left cannot be told", total / GB);
        return;
    }
    finding_number(f, "left_bytes", (double)left);
    finding_say(f, "%.1f of %.1f GB left, limits of the cgroup counted", (double)left / GB, total / GB);
    if (left < 1u << 30)
        finding_judge(f, WARNING,
                      "only small models fit: end other programs, or raise the container's limit");
}

/* a = b + s c, each thread its part; 24 bytes for each element, as is the custom. */
struct triad {
    double *a, *b, *c;
    size_t n;
    int fill; /* first touch: pages lie near who uses them */
};

static void triad_part(void *arg, int thread, int threads)
{
    const struct triad *t = arg;
    size_t from = t->n / (size_t)threads * (size_t)thread, to = from + t->n / (size_t)threads;
    for (size_t i = from; i < to && t->fill; i++) t->a[i] = 0, t->b[i] = 1, t->c[i] = 2;
    if (t->fill) return;
    for (size_t i = from; i < to; i++) t->a[i] = t->b[i] + 3 * t->c[i];
}

static double measure_triad(struct triad *t, struct pool *p)
{
    enum { ROUNDS = 12, LIMIT_S = 2 };
    u64 end = clock_ns() + LIMIT_S * NS_PER_S;
    double best = 0;
    t->fill = 1;
    pool_run(p, triad_part, t);
    t->fill = 0;
    for (int i = 0; i < ROUNDS && (i < 2 || clock_ns() < end); i++) {
        u64 start = clock_ns();
        pool_run(p, triad_part, t);
        double rate = 3.0 * sizeof(double) * (double)t->n / (double)(clock_ns() - start);
        best = MAX_OF(best, rate);
    }
    return best;
}

void doctor_bandwidth(struct report *r)
{
    enum { MOST = 16 << 20, LEAST = 1 << 20, THREADS = 256 };
    struct finding *f = finding_add(r, "memory bandwidth");
    struct cpuset mine = {0};
    struct error err;
    u64 left = memory_left();
    size_t n = left / 8 / (3 * sizeof(double)) < MOST ? (size_t)(left / 8 / (3 * sizeof(double))) : MOST;
    int threads = cpuset_of_self(&mine, NULL) == 0 ? (int)MIN_OF(cpuset_count(&mine), (u32)THREADS) : 1;
    struct triad t = {.n = n};
    t.a = malloc(n * sizeof(double));
    t.b = malloc(n * sizeof(double));
    t.c = malloc(n * sizeof(double));
    struct pool *p = pool_new(threads, 0, &err);
    if (n < LEAST || !t.a || !t.b || !t.c || !p) {
        finding_say(f, "not measured: too little memory is left");
        finding_judge(f, SKIPPED, "%s", "");
    } else {
        double rate = measure_triad(&t, p);
        finding_say(
            f, "%.1f GB/s with %d threads (triad): at most that many bytes of weights and cache a second",
            rate, threads);
        finding_number(f, "gigabytes_per_second", rate);
        finding_number(f, "threads", threads);
    }
    if (p) pool_free(p);
    free(t.a);
    free(t.b);
    free(t.c);
}

/* ---- GPUs ---------------------------------------------------------------------------------------------------------*/
void doctor_gpus(struct report *r)
{
    struct finding *f = finding_add(r, "GPUs");
    glob_t found = {0};
    size_t n = glob("/dev/nvidia[0-9]*", 0, NULL, &found) == 0 ? found.gl_pathc : 0;
    globfree(&found);
    finding_number(f, "nvidia", (double)n);
    const char *build =
        ops_cuda() ? "--engine cuda takes one for each engine" : "this build has no engine for them";
    if (n)
        finding_say(f, "%zu of NVIDIA; %s", n, build);
    else
        finding_say(f, "none; %s", build);
    if (n && !ops_cuda())
        finding_judge(f, WARNING,
                      "engines run on the CPU only: the GPUs stay idle; make CUDA=1 builds one for them");
}
