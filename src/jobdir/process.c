/* Facts about processes, from /proc. */
#include "mpiserve/jobdir.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

u64 process_start(int pid, int *parent)
{
    char path[32], text[1024];
    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t len = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (len <= 0) return 0;
    text[len] = 0;
    /* The name stands in parentheses and may hold any character: the last parenthesis ends it. */
    const char *rest = strrchr(text, ')');
    char state;
    int ppid;
    unsigned long long start;
    if (!rest ||
        sscanf(rest + 1, " %c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
               &state, &ppid, &start) != 3)
        return 0;
    if (parent) *parent = ppid;
    return state == 'Z' || state == 'X' ? 0 : (u64)start + 1; /* never 0 for a living process */
}
