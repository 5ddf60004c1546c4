/* Engines of a replica, each a process on a core of its own, without agents and steps. Prints one JSON object.
 *   coll reduce ENGINES BYTES CALLS ROUNDS          all_reduce: median and p99 of a call, microseconds, for each round
 *   coll forward MODEL COMPUTE ENGINES PROMPT TOKENS ROUNDS
 *                                                   a prompt and a continuation, one thread an engine: milliseconds,
 *                                                   of the first engine */
#include "../unit/crew.h"
#include "../unit/runner.h"

#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static const u64 spin_ns = 50 * NS_PER_US; /* as engines that have their cores to themselves */

struct bench {
    u32 n;
    void (*engine)(struct bench *b, struct coll_world *w, u32 me);
    char **args;
};

static void pin(u32 i)
{
    cpu_set_t allowed, own;
    u32 seen = 0;
    CPU_ZERO(&own);
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && seen++ == i % (u32)CPU_COUNT(&allowed)) CPU_SET(cpu, &own);
    sched_setaffinity(0, sizeof own, &own);
}

static int run(struct bench *b)
{
    struct crew c = {.shape = crew_shape(b->n, 1, NULL), .spin_ns = spin_ns};
    int failed = 0;
    crew_map(&c);
    for (u32 i = 0; i < b->n; i++) {
        pid_t pid = fork();
        if (pid) continue;
        struct error err;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pin(i);
        struct coll_world *w = crew_world(&c, i, &err);
        crew_need(w != NULL, &err);
        b->engine(b, w, i);
        fflush(stdout);
        _exit(0);
    }
    for (int status; wait(&status) > 0;) failed |= status;
    crew_unmap(&c);
    return failed != 0;
}

static int by_size(const void *x, const void *y)
{
    u64 a = *(const u64 *)x, b = *(const u64 *)y;
    return (a > b) - (a < b);
}

static void reduce(struct bench *b, struct coll_world *w, u32 me)
{
    struct error err;
    size_t bytes = (size_t)atol(b->args[0]), n = bytes / 4;
    int calls = atoi(b->args[1]), rounds = atoi(b->args[2]);
    u64 *times = malloc((size_t)calls * sizeof *times);
    float *own = calloc(n + 1, 4), *out = calloc(n + 1, 4);
    for (int r = 0; r < rounds; r++) {
        for (int i = 0; i < calls; i++) {
            u64 start = clock_ns();
            float *slot = coll_slot(coll_all(w), bytes);
            const struct coll_reduce args = {slot ? slot : own, out, n, COLL_F32, true};
            crew_need(coll_all_reduce(coll_all(w), &args, NULL, &err) == 0, &err);
            times[i] = clock_ns() - start;
        }
        qsort(times, (size_t)calls, sizeof *times, by_size);
        if (me == 0)
            printf("%s{\"median_us\": %.3f, \"p99_us\": %.3f}", r ? ", " : "{\"runs\": [",
                   (double)times[calls / 2] / 1e3, (double)times[calls * 99 / 100] / 1e3);
    }
    if (me == 0) printf("]}\n");
}

/* Of this process: what a busy machine takes away is not in it, spins while waiting are. */
static u64 cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (u64)t.tv_sec * NS_PER_S + (u64)t.tv_nsec;
}

static void forward(struct bench *b, struct coll_world *w, u32 me)
{
    static struct runner r;
    static i32 history[RUNNER_LENGTH];
    u32 prompt = (u32)atoi(b->args[3]), tokens = (u32)atoi(b->args[4]);
    int rounds = atoi(b->args[5]);
    const struct ops *ops = ops_cpu(ops_cpu_best());
    bool f32 = !strcmp(b->args[1], "f32") || (!strcmp(b->args[1], "auto") && !ops->native_bf16);
    runner_load_part(&r, b->args[0], b->n, 1, me, 0);
    r.all = coll_all(w);
    r.stage = coll_stage(w);
    runner_start(&r, ops->name, f32 ? COMPUTE_F32 : COMPUTE_BF16, 1, prompt);
    for (u32 i = 0; i < RUNNER_LENGTH; i++) history[i] = (i32)((i * 7 + 3) % r.config.vocab);
    for (int i = 0; i < rounds; i++) {
        u64 start = clock_ns(), cpu = cpu_ns();
        struct fwd_seq all = runner_seq(&r, 0, history, 0, prompt);
        crew_need(forward_run(r.forward, &all, 1) != NULL, forward_error(r.forward));
        u64 prefill = clock_ns();
        cpu = cpu_ns() - cpu;
        for (u32 t = 0; t < tokens; t++) {
            struct fwd_seq one = runner_seq(&r, 0, history + prompt + t, prompt + t, 1);
            crew_need(forward_run(r.forward, &one, 1) != NULL, forward_error(r.forward));
        }
        if (me) continue;
        printf("%s{\"prefill_ms\": %.4f, \"prefill_cpu_ms\": %.4f, \"token_ms\": %.4f}",
               i ? ", " : "{\"runs\": [", (double)(prefill - start) / 1e6, (double)cpu / 1e6,
               (double)(clock_ns() - prefill) / 1e6 / MAX_OF(tokens, 1u));
    }
    if (me == 0) printf("]}\n");
}

int main(int argc, char **argv)
{
    struct bench b = {0};
    if (argc == 6 && !strcmp(argv[1], "reduce"))
        b = (struct bench){(u32)atoi(argv[2]), reduce, argv + 3};
    else if (argc == 8 && !strcmp(argv[1], "forward"))
        b = (struct bench){(u32)atoi(argv[4]), forward, argv + 2};
    if (!b.n || b.n > COLL_MAX) {
        fprintf(stderr, "coll reduce ENGINES BYTES CALLS ROUNDS\n"
                        "coll forward MODEL auto|f32|bf16 ENGINES PROMPT TOKENS ROUNDS\n");
        return 2;
    }
    return run(&b);
}
