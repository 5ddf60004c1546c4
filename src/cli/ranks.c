/* The processes of the job: noticing at once that one died, and ending them all. */
#include "cli/up.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { RANKS_MAX = 4096 };

void ranks_init(struct ranks *r)
{
    memset(r, 0, sizeof(*r));
    r->first_gone = -1;
}

int ranks_watch(struct ranks *r, const struct jobdir *d, int epoll_fd, u64 base)
{
    if (r->list) return r->n;
    int *ranks = mem_zero(RANKS_MAX, sizeof(int)), *pids = mem_zero(RANKS_MAX, sizeof(int));
    int n = jobdir_read_pids(d, ranks, pids, RANKS_MAX, NULL);
    if (n > 0) r->list = mem_zero((size_t)n, sizeof(*r->list));
    for (int i = 0; i < n; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = base + (u64)i};
        int fd = (int)syscall(SYS_pidfd_open, pids[i], 0);
        r->list[i] = (struct watched){ranks[i], pids[i], fd};
        r->n++;
        if (fd >= 0)
            epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
        else if (errno == ESRCH) /* any other reason: an old kernel, and mpirun is the only one to notice */
            ranks_gone(r, i, epoll_fd);
    }
    free(ranks);
    free(pids);
    return r->n;
}

void ranks_gone(struct ranks *r, int index, int epoll_fd)
{
    struct watched *w = &r->list[index];
    if (w->fd >= 0) {
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, w->fd, NULL);
        close(w->fd);
    }
    w->fd = -1;
    if (r->n_gone++ == 0) r->first_gone = index;
}

void ranks_signal(const struct ranks *r, int sig)
{
    for (int i = 0; i < r->n; i++)
        if (r->list[i].fd >= 0) syscall(SYS_pidfd_send_signal, r->list[i].fd, sig, NULL, 0);
}

void ranks_release(struct ranks *r)
{
    for (int i = 0; i < r->n; i++)
        if (r->list[i].fd >= 0) close(r->list[i].fd);
    free(r->list);
    ranks_init(r);
}

/* Sends SIGKILL to the children of this process; orphans of the job are among them (it is their subreaper). */
static int kill_children(void)
{
    int n = 0, parent;
    DIR *dir = opendir("/proc");
    for (struct dirent *e; dir && (e = readdir(dir));) {
        if (!isdigit((unsigned char)e->d_name[0])) continue;
        int pid = atoi(e->d_name);
        if (process_start(pid, &parent) && parent == getpid()) n += kill(pid, SIGKILL) == 0;
    }
    if (dir) closedir(dir);
    return n;
}

int children_end(int limit_ms)
{
    const struct timespec pause = {.tv_nsec = 2 * NS_PER_MS};
    u64 end = clock_ns() + (u64)limit_ms * NS_PER_MS;
    int killed = 0;
    for (;;) {
        pid_t pid;
        while ((pid = waitpid(-1, NULL, WNOHANG)) > 0) continue;
        if (pid < 0 || clock_ns() > end) return killed; /* no child is left */
        killed += kill_children();
        nanosleep(&pause, NULL);
    }
}
