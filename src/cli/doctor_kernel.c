/* What the kernel offers: each thing is tried, since versions alone do not tell (containers forbid). */
#include "cli/doctor.h"
#include "mpiserve/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void read_line(const char *path, char *out, size_t size)
{
    struct buf text = {0};
    *out = 0;
    if (file_read(path, 4096, &text, NULL) == 0 && text.data)
        snprintf(out, size, "%.*s", (int)strcspn(text.data, "\n"), text.data);
    buf_release(&text);
}

static void try_memfd(struct report *r)
{
    struct finding *f = finding_add(r, "memfd");
    struct error err;
    int fd = memory_new("doctor", 1 << 20, false, &err);
    finding_say(f, fd >= 0 ? "memory files can be made and sealed" : "%.200s", err.message);
    if (fd < 0)
        finding_judge(
            f, PROBLEM,
            "engines share weights in such files: use a kernel from 3.17 on, or allow memfd_create");
    if (fd >= 0) close(fd);
}

static void try_pidfd(struct report *r)
{
    struct finding *f = finding_add(r, "pidfd");
    int fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    finding_say(f, fd >= 0 ? "deaths of processes are seen at once" : "pidfd_open: %s", strerror(errno));
    if (fd < 0)
        finding_judge(f, PROBLEM, "engines are watched by it: use a kernel from 5.3 on, or allow pidfd_open");
    if (fd >= 0) close(fd);
}

static void try_epoll(struct report *r)
{
    struct finding *f = finding_add(r, "epoll_pwait2");
    struct epoll_event event;
    struct timespec nap = {.tv_nsec = 50 * NS_PER_US};
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    bool ok = epoll >= 0 && syscall(SYS_epoll_pwait2, epoll, &event, 1, &nap, NULL, 0) == 0;
    finding_say(f, ok ? "naps of 50 us are possible" : "epoll_pwait2: %s", strerror(errno));
    if (!ok)
        finding_judge(f, WARNING,
                      "messages between ranks may wait a millisecond: a kernel from 5.11 on has it");
    if (epoll >= 0) close(epoll);
}

static void look_at_huge_pages(struct report *r)
{
    struct finding *f = finding_add(r, "huge pages");
    char line[128], *chosen, *end;
    read_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled", line, sizeof(line));
    chosen = strchr(line, '[');
    end = chosen ? strchr(chosen, ']') : NULL;
    if (!end) {
        finding_say(f, "this kernel has none for memory files");
        return;
    }
    *end = 0;
    finding_say(f, "for memory files: %s", chosen + 1);
    if (strcmp(chosen + 1, "never") == 0)
        finding_say(f, " (the usual; large models may gain from `advise` in "
                       "/sys/kernel/mm/transparent_hugepage/shmem_enabled)");
}

void doctor_kernel(struct report *r)
{
    struct utsname name;
    struct finding *f = finding_add(r, "kernel");
    if (uname(&name) == 0) finding_say(f, "%s %s, %s", name.sysname, name.release, name.machine);
    try_memfd(r);
    try_pidfd(r);
    try_epoll(r);
    look_at_huge_pages(r);
}

/* ---- copies between ranks -----------------------------------------------------------------------------------------*/
/* A child that shows a page and sleeps until its end. */
static pid_t show_memory(const u64 *page)
{
    pid_t parent = getpid(), pid = fork();
    if (pid) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (getppid() == parent && *page) pause();
    _exit(0);
}

/* Ranks are brothers, not parent and child: so a second child reads the first one's memory. */
static int read_brother(pid_t brother, u64 *page)
{
    u64 got = 0;
    struct iovec to = {&got, sizeof(got)}, from = {page, sizeof(got)};
    pid_t pid = fork();
    int status = 0;
    if (pid == 0) {
        ssize_t n = process_vm_readv(brother, &to, 1, &from, 1, 0);
        _exit(n < 0 ? errno : got == *page ? 0 : EIO);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status)) return EIO;
    return WEXITSTATUS(status);
}

void doctor_copies(struct report *r)
{
    struct finding *f = finding_add(r, "copies of ranks");
    char yama[16];
    u64 page = 0x6d70697365727665ull;
    pid_t pid = show_memory(&page);
    int why = pid > 0 ? read_brother(pid, &page) : errno;
    if (pid > 0) {
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    read_line("/proc/sys/kernel/yama/ptrace_scope", yama, sizeof(yama));
    if (why == 0)
        finding_say(f, "one rank may read another's memory (process_vm_readv)");
    else
        finding_say(f, "process_vm_readv: %s", strerror(why));
    if (yama[0]) finding_say(f, "; yama.ptrace_scope is %s", yama);
    if (why)
        finding_judge(
            f, WARNING,
            "large messages between ranks are copied twice: sysctl kernel.yama.ptrace_scope=0, in containers "
            "--cap-add SYS_PTRACE");
}
