/* proc: an engine's life, from its agent's side: start, watch, kill, reap, when to start again; and the
 * shared memory that agents own and engines map.
 *
 * An engine is this program started as `mpiserve engine` with posix_spawn. It gets: an environment without the launcher's
 * variables, /dev/null as stdin, the agent's stdout and stderr, the descriptors FD_CHANNEL..FD_GROUP and no other,
 * a clean signal mask (the engine ignores INT, TERM, HUP, USR1, USR2: a Ctrl-C reaches the whole foreground group, and
 * engines shall go on while their agent drains). It stays in the agent's process group and dies with the
 * agent (PR_SET_PDEATHSIG).
 *
 * Life: proc_new; proc_start(gen); in every turn of the loop proc_poll, which reports READY once and DIED once
 * per start; after DIED: restart_died says when to start the next generation; ...; proc_free.
 * Engines are never asked to end: they hold nothing that is not elsewhere too. proc_kill, then DIED comes.
 *
 * Thread rule: one thread, and it must be the one that lives as long as the process (the main thread): the kernel
 * kills the engine when the thread that started it ends. */
#ifndef MPISERVE_PROC_H
#define MPISERVE_PROC_H

#include "mpiserve/base.h"
#include "mpiserve/step.h"

/* ---- the process ---------------------------------------------------------------------------------------------*/
struct proc_limits { /* how long without a sign of life; 0: default in brackets */
    u64 start_ns;    /* until the engine has attached [30 s] */
    u64 load_ns;     /* loading, neither heartbeat nor a byte more [120 s] */
    u64 idle_ns;     /* ready, no step out, no heartbeat [10 s] */
    u64 step_ns;     /* the oldest step out [30 s] */
};
struct proc_spec {
    const char *program; /* NULL: this program (/proc/self/exe) */
    const char *fault;   /* test hook, see engine.h; NULL: none. Never taken from the environment by itself */
    struct engine_boot boot; /* gen and agent_pid are set at each start */
    int weights_fd, kv_fd;   /* the caller's; must stay open */
    size_t ring_size;        /* of the channel; a frame may be half of it */
    struct proc_limits limits;
};
enum proc_state {
    PROC_NONE,     /* no process */
    PROC_STARTING, /* started, attaching or loading */
    PROC_READY,
    PROC_DYING, /* killed, not yet reaped */
};
enum proc_event { PROC_EVENT_NONE, PROC_EVENT_READY, PROC_EVENT_DIED };
enum proc_cause {
    PROC_SIGNAL, /* by a signal that was not this agent's */
    PROC_EXIT,   /* by itself */
    PROC_HANG,   /* killed: a limit was passed; with blame: of a step's answer */
    PROC_KILLED, /* killed: proc_kill */
};
struct proc_verdict {
    enum proc_cause cause;
    int code; /* signal number or exit status */
    u32 gen;
    int pid;
    bool blame; /* by what it was computing, perhaps: the steps in flight are suspect (batch_engine_lost) */
    bool memory_trusted; /* killed from outside: what it wrote to KV is what it meant to write */
    u64 silent_ns;  /* killed by its agent: its heartbeat's age when the agent last looked before; else 0 */
    char text[640]; /* "engine of rank 3 (pid 71, generation 2) ...", for log and /health */
};

struct proc;
/* Copies spec (strings too) and makes the channel. */
struct proc *proc_new(const struct proc_spec *spec, struct error *err);
/* Kills and waits up to 2 s (an engine in an uninterruptible read of a file system may outlast that). NULL: nothing. */
void proc_free(struct proc *p);
/* The memory that the next generation shares with the other engines of its replica, as FD_GROUP; the caller's, open until that is started.
 * -1 (at first): none. */
void proc_set_group(struct proc *p, int fd);
/* Starts generation gen (>= 1, never used before). State must be PROC_NONE. ERR_IO: could not start; try again as
 * after a death. */
int proc_start(struct proc *p, u32 gen, u64 now_ns, struct error *err);
/* One look: reaps, notices READY, kills what hangs. oldest_step_ns: when the oldest unanswered step was sent, 0: none
 * is out. Calls more than 1 s apart mean that this process was stopped itself: all clocks of the engine start anew. */
enum proc_event proc_poll(struct proc *p, u64 now_ns, u64 oldest_step_ns, struct proc_verdict *died);
/* SIGKILL, with the reason for the verdict; blame as there. No process: nothing. */
void proc_kill(struct proc *p, bool blame, const char *why);
enum proc_state proc_state(const struct proc *p);
u32 proc_gen(const struct proc *p); /* of the last start; 0: none */
int proc_pid(const struct proc *p); /* 0: none */
/* For epoll: readable when the process has ended; changes with every start, closed by proc_poll at DIED. -1: no process,
 * or a kernel before 5.3 (proc_poll finds out all the same). */
int proc_pidfd(const struct proc *p);
struct channel *proc_channel(struct proc *p);

/* Pure: the reason why an engine counts as hung, or NULL. Ages in ns, as of now. */
struct proc_vital {
    enum engine_state state;
    u64 heartbeat_age, progress_age; /* progress: of loaded_bytes */
    u64 step_age;                    /* 0: none out */
};
const char *proc_hung(const struct proc_vital *v, const struct proc_limits *limits);
/* Pure: the environment of an engine, one allocation (free()): no OMPI_ PMIX_ PMI_ PRTE_ ORTE_ SLURM MPISERVE_ variables;
 * plus MPISERVE_FAULT when fault is not NULL. */
char **proc_environment(char *const *env, const char *fault);

/* ---- when to start again: pure -------------------------------------------------------------------------------
 * Exponential back-off between starts, and a circuit breaker: `most` deaths within `window_ns` end it. An engine that
 * was ready for `calm_ns` resets the back-off. */
enum { RESTART_MOST = 32 };
struct restart_policy {
    u64 first_ns, longest_ns, window_ns, calm_ns;
    u32 most; /* <= RESTART_MOST */
};
extern const struct restart_policy restart_default; /* 50 ms doubling to 10 s; 8 deaths in 120 s; calm 30 s */
struct restart {
    struct restart_policy policy;
    u64 deaths[RESTART_MOST]; /* a ring of times */
    u32 n_deaths, streak;
    u64 ready_ns; /* 0: not ready since the last death */
    bool broken;
};
void restart_init(struct restart *r, const struct restart_policy *policy); /* NULL: the default */
void restart_ready(struct restart *r, u64 now_ns);
/* When to start the next one (an absolute time), or UINT64_MAX: broken, start no more. */
u64 restart_died(struct restart *r, u64 now_ns);
bool restart_broken(const struct restart *r);

/* ---- memory that outlives engines ----------------------------------------------------------------------------
 * memfds: sealed against resizing, freed by the kernel with their last user. Pages are taken when they are touched;
 * engines map them with MADV_DONTDUMP. */
/* A descriptor (O_CLOEXEC). left: check first that so much memory is available (see memory_left). */
int memory_new(const char *name, u64 bytes, bool check_left, struct error *err);
/* Another agent's memfd on this host, by pid and descriptor number; must be this user's, a memfd of this program, of
 * exactly that size and sealed. A descriptor (O_CLOEXEC), or an error: then make an own copy. */
int memory_open(int pid, int fd, u64 bytes, struct error *err);
/* Bytes that can still be had: the least of the machine's and all cgroups above this process. UINT64_MAX: unknown. */
u64 memory_left(void);

#endif
