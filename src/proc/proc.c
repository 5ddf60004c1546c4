/* One engine: started, watched, killed, reaped. */
#include "mpiserve/proc.h"
#include "proc/spawn.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct proc {
    char *program, *fault;
    struct engine_boot boot; /* the agent's own copy: an engine gone mad cannot touch it */
    struct proc_limits limits;
    struct channel *channel;
    int fds[SPAWN_FDS];
    enum proc_state state;
    int pid, pidfd;
    u32 gen;
    /* the watch's clocks */
    u64 polled_ns, floor_ns; /* floor: ages never count from before it */
    u64 looked_ns;           /* for the end of the process */
    u64 loaded, loaded_ns;
    /* of a kill by this agent */
    enum proc_cause cause;
    bool blame;
    u64 silent_ns;
    char why[256];
};

static const struct proc_limits default_limits = {30 * NS_PER_S, 120 * NS_PER_S, 10 * NS_PER_S,
                                                  30 * NS_PER_S};
static const u64 stopped_ns = NS_PER_S; /* between two polls: this process did not run */
static const u64 look_ns =
    NS_PER_MS; /* between two looks whether a ready engine has ended: busy loops poll far more often */

static u64 or_default(u64 value, u64 otherwise)
{
    return value ? value : otherwise;
}

struct proc *proc_new(const struct proc_spec *spec, struct error *err)
{
    struct proc *p = mem_zero(1, sizeof(*p));
    p->pidfd = -1;
    p->channel = channel_new(spec->ring_size, err);
    if (!p->channel) {
        free(p);
        return NULL;
    }
    p->program = mem_text(spec->program ? spec->program : "/proc/self/exe");
    p->fault = spec->fault ? mem_text(spec->fault) : NULL;
    p->boot = spec->boot;
    p->limits.start_ns = or_default(spec->limits.start_ns, default_limits.start_ns);
    p->limits.load_ns = or_default(spec->limits.load_ns, default_limits.load_ns);
    p->limits.idle_ns = or_default(spec->limits.idle_ns, default_limits.idle_ns);
    p->limits.step_ns = or_default(spec->limits.step_ns, default_limits.step_ns);
    for (int i = 0; FD_CHANNEL + i < FD_WEIGHTS; i++) p->fds[i] = channel_fd(p->channel, FD_CHANNEL + i);
    p->fds[FD_WEIGHTS - FD_CHANNEL] = spec->weights_fd;
    p->fds[FD_KV - FD_CHANNEL] = spec->kv_fd;
    p->fds[FD_GROUP - FD_CHANNEL] = -1;
    return p;
}

void proc_set_group(struct proc *p, int fd)
{
    p->fds[FD_GROUP - FD_CHANNEL] = fd;
}

int proc_start(struct proc *p, u32 gen, u64 now_ns, struct error *err)
{
    BUG_ON(p->state != PROC_NONE || gen <= p->gen);
    p->gen = p->boot.gen = gen;
    p->boot.agent_pid = (u32)getpid();
    channel_reset(p->channel, &p->boot);
    int pid = spawn_engine(p->program, p->boot.rank, p->fds, p->fault, err);
    if (pid < 0) return pid;
    p->pid = pid;
    p->pidfd = (int)syscall(SYS_pidfd_open, pid, 0); /* the kernel makes it O_CLOEXEC */
    p->state = PROC_STARTING;
    p->polled_ns = p->floor_ns = p->loaded_ns = now_ns;
    p->loaded = 0;
    p->cause = PROC_SIGNAL;
    p->why[0] = 0;
    return 0;
}

static u64 age(const struct proc *p, u64 now_ns, u64 since_ns)
{
    since_ns = MAX_OF(since_ns, p->floor_ns);
    return now_ns > since_ns ? now_ns - since_ns : 0;
}

/* Silence up to the last look: since then this process may have stood still, and its engine with it. */
static void kill_now(struct proc *p, enum proc_cause cause, bool blame, const char *why)
{
    if (p->state != PROC_STARTING && p->state != PROC_READY) return;
    p->silent_ns = age(p, p->polled_ns, atomic_load(&channel_head(p->channel)->heartbeat_ns));
    kill(p->pid, SIGKILL); /* not yet reaped, so the number is still its */
    p->state = PROC_DYING;
    p->cause = cause;
    p->blame = blame;
    snprintf(p->why, sizeof(p->why), "%s", why);
}

void proc_kill(struct proc *p, bool blame, const char *why)
{
    kill_now(p, PROC_KILLED, blame, why);
}

/* ---- watching ---- */

const char *proc_hung(const struct proc_vital *v, const struct proc_limits *limits)
{
    switch (v->state) {
    case ENGINE_STARTING: return v->heartbeat_age > limits->start_ns ? "it did not attach" : NULL;
    case ENGINE_LOADING:
        return MIN_OF(v->heartbeat_age, v->progress_age) > limits->load_ns ? "loading made no progress"
                                                                           : NULL;
    case ENGINE_READY:
        if (v->step_age) return v->step_age > limits->step_ns ? "a step was not answered" : NULL;
        return v->heartbeat_age > limits->idle_ns ? "no heartbeat" : NULL;
    case ENGINE_FAILED: return v->heartbeat_age > limits->start_ns ? "it failed and did not end" : NULL;
    }
    return "its state is no state";
}

static void watch(struct proc *p, u64 now_ns, u64 oldest_step_ns)
{
    struct channel_head *h = channel_head(p->channel);
    u64 loaded = atomic_load_explicit(&h->loaded_bytes, memory_order_relaxed);
    if (loaded != p->loaded) p->loaded_ns = now_ns;
    p->loaded = loaded;
    struct proc_vital v = {
        .state = (enum engine_state)atomic_load(&h->state),
        .heartbeat_age = age(p, now_ns, atomic_load(&h->heartbeat_ns)),
        .progress_age = age(p, now_ns, p->loaded_ns),
        .step_age = oldest_step_ns ? MAX_OF(age(p, now_ns, oldest_step_ns), 1u) : 0,
    };
    const char *why = proc_hung(&v, &p->limits);
    if (!why) return;
    char text[200];
    snprintf(text, sizeof(text), "%s (heartbeat %.1f s ago, oldest step %.1f s ago)", why,
             (double)v.heartbeat_age / NS_PER_S, (double)v.step_age / NS_PER_S);
    kill_now(p, PROC_HANG, v.state == ENGINE_READY && v.step_age, text);
}

/* ---- the end ---- */

/* Signals of the program's own making; any other came from outside, also the kernel's when memory ran out. */
static bool own_signal(int signal)
{
    return signal == SIGSEGV || signal == SIGBUS || signal == SIGABRT || signal == SIGILL ||
           signal == SIGFPE || signal == SIGSYS || signal == SIGTRAP;
}

static void judge(struct proc *p, const siginfo_t *info, struct proc_verdict *out)
{
    bool by_signal = info->si_code != CLD_EXITED;
    *out = (struct proc_verdict){.code = info->si_status, .gen = p->gen, .pid = p->pid};
    int n = snprintf(out->text, sizeof(out->text), "engine of rank %u (pid %d, generation %u) ", p->boot.rank,
                     p->pid, p->gen);
    char *to = out->text + n;
    size_t size = sizeof(out->text) - (size_t)n;
    if (p->state == PROC_DYING && by_signal && info->si_status == SIGKILL) {
        out->cause = p->cause;
        out->blame = p->blame;
        out->memory_trusted = p->cause == PROC_KILLED && !p->blame;
        out->silent_ns = p->silent_ns;
        snprintf(to, size, "was killed by its agent: %s", p->why);
    } else if (by_signal) {
        out->cause = PROC_SIGNAL;
        out->blame = own_signal(info->si_status);
        out->memory_trusted = !out->blame;
        const char *hint = info->si_status == SIGKILL ? "; from outside, or for want of memory" : "";
        snprintf(to, size, "ended by signal %d (%s%s)", info->si_status, strsignal(info->si_status), hint);
    } else {
        char why[sizeof(p->why)];
        out->cause = PROC_EXIT;
        out->blame = p->state == PROC_READY;
        channel_error(p->channel, why, sizeof(why));
        snprintf(to, size, "exited with %d%s%s", info->si_status, why[0] ? ": " : "", why);
    }
}

static bool reap(struct proc *p, int options, struct proc_verdict *died)
{
    siginfo_t info = {0};
    if (waitid(P_PID, (id_t)p->pid, &info, WEXITED | options) < 0) {
        if (errno != ECHILD) return false;
        /* somebody else has waited for it: gone, nobody knows how */
        info.si_code = CLD_KILLED;
        info.si_status = SIGKILL;
    } else if (info.si_pid == 0) {
        return false;
    }
    judge(p, &info, died);
    if (p->pidfd >= 0) close(p->pidfd);
    p->pidfd = -1;
    p->pid = 0;
    p->state = PROC_NONE;
    return true;
}

enum proc_event proc_poll(struct proc *p, u64 now_ns, u64 oldest_step_ns, struct proc_verdict *died)
{
    if (p->state == PROC_NONE) return PROC_EVENT_NONE;
    if (now_ns - p->polled_ns > stopped_ns) p->floor_ns = now_ns;
    p->polled_ns = now_ns;
    bool due = p->state != PROC_READY || now_ns - p->looked_ns >= look_ns;
    if (due) p->looked_ns = now_ns;
    if (due && reap(p, WNOHANG, died)) return PROC_EVENT_DIED;
    if (p->state == PROC_DYING) return PROC_EVENT_NONE;
    if (p->state == PROC_STARTING && atomic_load(&channel_head(p->channel)->state) == ENGINE_READY) {
        p->state = PROC_READY;
        return PROC_EVENT_READY;
    }
    watch(p, now_ns, oldest_step_ns);
    return PROC_EVENT_NONE;
}

void proc_free(struct proc *p)
{
    if (!p) return;
    struct proc_verdict verdict;
    proc_kill(p, false, "the agent ends");
    u64 until = clock_ns() + 2 * NS_PER_S;
    while (p->state != PROC_NONE && !reap(p, WNOHANG, &verdict) && clock_ns() < until)
        nanosleep(&(struct timespec){.tv_nsec = NS_PER_MS}, NULL);
    if (p->pidfd >= 0) close(p->pidfd);
    channel_free(p->channel);
    free(p->program);
    free(p->fault);
    free(p);
}

enum proc_state proc_state(const struct proc *p)
{
    return p->state;
}

u32 proc_gen(const struct proc *p)
{
    return p->gen;
}

int proc_pid(const struct proc *p)
{
    return p->pid;
}

int proc_pidfd(const struct proc *p)
{
    return p->pidfd;
}

struct channel *proc_channel(struct proc *p)
{
    return p->channel;
}
