/* The tidier: a child of the machine's first rank that sleeps until that rank is gone, waits for the other ranks and the launcher, and
 * removes what nobody is left to remove. It is in a session of its own, so that what ends the ranks does not end it. */
#include "jobdir/owner.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { RANKS_MAX = 4096, LAUNCHER_MS = 10000, LOOK_MS = 20 };

static void pause_ms(int ms)
{
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000l}, NULL);
}

struct process {
    int pid;
    u64 start;
};

static bool lives(struct process p)
{
    return p.start && process_start(p.pid, NULL) == p.start;
}

/* For at most limit_ms (-1: for ever). At once when it ends, since Slurm may kill what is left of a step within milliseconds. */
static void wait_for(struct process p, int limit_ms)
{
    int fd = lives(p) ? (int)syscall(SYS_pidfd_open, p.pid, 0) : -1;
    struct pollfd end = {.fd = fd, .events = POLLIN};
    if (fd >= 0 && lives(p))
        poll(&end, 1, limit_ms); /* looked at again: the pid may have been given away between */
    if (fd >= 0) close(fd);
    for (int ms = 0; lives(p) && (limit_ms < 0 || ms < limit_ms) && fd < 0; ms += LOOK_MS) pause_ms(LOOK_MS);
}

static void wait_for_ranks(const struct jobdir *d)
{
    int *ranks = mem_zero(RANKS_MAX, sizeof(int)), *pids = mem_zero(RANKS_MAX, sizeof(int));
    struct process *processes = mem_zero(RANKS_MAX, sizeof(*processes));
    int n = jobdir_read_pids(d, ranks, pids, RANKS_MAX, NULL);
    for (int i = 0; i < n; i++) processes[i] = (struct process){pids[i], process_start(pids[i], NULL)};
    for (int i = 0; i < n; i++) wait_for(processes[i], -1);
    free(ranks);
    free(pids);
    free(processes);
}

static _Noreturn void tidy(const struct jobdir *known, int told, struct session launcher, struct process rank)
{
    struct jobdir d = *known, next;
    while (read(told, &next, sizeof(next)) == sizeof(next)) d = next; /* until the rank ends */
    wait_for(rank, -1);
    if (d.path[0]) {
        wait_for_ranks(&d);
        session_read(d.path, &launcher);
        jobdir_remove_dead_shm(&d); /* all ranks are dead; Slurm ends this process with the launcher */
    }
    /* A launcher that outlives its job for long serves others too: its folder stays. */
    wait_for((struct process){launcher.launcher, launcher.start}, LAUNCHER_MS);
    jobdir_remove_dead(&d);
    _exit(0);
}

/* Not a descriptor of the rank's may stay open here: others wait for their ends. */
static _Noreturn void become_tidier(const struct jobdir *known, int told, struct session launcher,
                                    struct process rank)
{
    enum { TOLD = 3, DESCRIPTORS = 1024 };
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL); /* Slurm signals every process of a step */
    int null = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < TOLD; fd++) dup2(null, fd);
    dup2(told, TOLD);
    for (int fd = TOLD + 1; fd < DESCRIPTORS; fd++) close(fd);
    setsid();
    prctl(PR_SET_PDEATHSIG, 0);
    prctl(PR_SET_NAME, "mpiserve-tidy");
    if (chdir("/") < 0) _exit(1);
    tidy(known, TOLD, launcher, rank);
}

int jobdir_tidier_start(const struct jobdir *known, struct error *err)
{
    struct session launcher = {.launcher = getppid()};
    /* Asked here and not in the child, whose parent may be another by then: a rank can end at once. */
    struct process rank = {getpid(), process_start(getpid(), NULL)};
    int told[2];
    launcher.start = process_start(launcher.launcher, NULL);
    if (pipe2(told, O_CLOEXEC) < 0) return error_errno(err, "pipe", "cannot make one");
    pid_t pid = fork();
    if (pid == 0) become_tidier(known, told[0], launcher, rank);
    close(told[0]);
    if (pid > 0) return told[1];
    error_errno(err, "mpiserve-tidy", "cannot start a process");
    close(told[1]);
    return err->code;
}

void jobdir_tidier_tell(int tidier, const struct jobdir *d)
{
    if (tidier < 0) return;
    session_write(d->path);
    if (write(tidier, d, sizeof(*d)) != sizeof(*d))
        log_warning("the process that tidies up after this job is gone");
}
