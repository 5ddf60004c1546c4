#include "proc/spawn.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __GLIBC_PREREQ
#define HAVE_CLOSEFROM __GLIBC_PREREQ(2, 34)
#else
#define HAVE_CLOSEFROM 0
#endif

/* Nothing but 0..FD_GROUP: a descriptor that leaked into an engine would keep sockets and pipes of a dead agent open. */
static int close_others(posix_spawn_file_actions_t *actions)
{
#if HAVE_CLOSEFROM
    return posix_spawn_file_actions_addclosefrom_np(actions, FD_GROUP + 1);
#else
    DIR *dir = opendir("/proc/self/fd");
    if (!dir) return errno;
    int rc = 0;
    for (struct dirent *e; rc == 0 && (e = readdir(dir));) {
        int fd = atoi(e->d_name);
        if (fd > FD_GROUP && fd != dirfd(dir) && !(fcntl(fd, F_GETFD) & FD_CLOEXEC))
            rc = posix_spawn_file_actions_addclose(actions, fd);
    }
    closedir(dir);
    return rc;
#endif
}

static int add_actions(posix_spawn_file_actions_t *actions, const int high[SPAWN_FDS])
{
    /* the terminal's input is the agent's, or nobody's */
    int rc = posix_spawn_file_actions_addopen(actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    for (int i = 0; i < SPAWN_FDS && rc == 0; i++)
        rc = high[i] < 0 ? posix_spawn_file_actions_addclose(actions, FD_CHANNEL + i)
                         : posix_spawn_file_actions_adddup2(actions, high[i], FD_CHANNEL + i);
    return rc ? rc : close_others(actions);
}

/* All dispositions default. What the engine is going to ignore stays blocked until it does, so that a signal to the
 * group at the wrong moment does not end it. */
static int set_signals(posix_spawnattr_t *attr)
{
    sigset_t all, blocked;
    sigfillset(&all);
    sigemptyset(&blocked);
    const int later[] = {SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
    for (size_t i = 0; i < COUNT_OF(later); i++) sigaddset(&blocked, later[i]);
    int rc = posix_spawnattr_setsigdefault(attr, &all);
    if (rc == 0) rc = posix_spawnattr_setsigmask(attr, &blocked);
    if (rc == 0) rc = posix_spawnattr_setflags(attr, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
    return rc;
}

static int spawn(const char *program, u32 rank, const int high[SPAWN_FDS], const char *fault, pid_t *pid)
{
    char number[16];
    snprintf(number, sizeof(number), "%u", rank);
    char *argv[] = {"mpiserve", "engine", number, NULL}; /* the number is for readers of ps */
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    int rc = posix_spawn_file_actions_init(&actions);
    if (rc) return rc;
    rc = posix_spawnattr_init(&attr);
    if (rc == 0) {
        rc = add_actions(&actions, high);
        if (rc == 0) rc = set_signals(&attr);
        char **env = proc_environment(environ, fault);
        if (rc == 0) rc = posix_spawn(pid, program, &actions, &attr, argv, env);
        free(env);
        posix_spawnattr_destroy(&attr);
    }
    posix_spawn_file_actions_destroy(&actions);
    return rc;
}

int spawn_engine(const char *program, u32 rank, const int fds[SPAWN_FDS], const char *fault,
                 struct error *err)
{
    pid_t pid = 0;
    int high[SPAWN_FDS], n = 0, rc = 0;
    /* copies above the fixed numbers: no dup2 of the child can hit a source of a later one */
    for (; n < SPAWN_FDS; n++) {
        high[n] = fds[n] < 0 ? -1 : fcntl(fds[n], F_DUPFD_CLOEXEC, FD_GROUP + 1);
        if (fds[n] >= 0 && high[n] < 0) break;
    }
    if (n < SPAWN_FDS)
        rc = error_errno(err, program, "cannot copy descriptor %d for the engine", fds[n]);
    else if ((errno = spawn(program, rank, high, fault, &pid)))
        rc = error_errno(err, program, "cannot start the engine");
    while (n-- > 0)
        if (high[n] >= 0) close(high[n]);
    return rc < 0 ? rc : pid;
}
