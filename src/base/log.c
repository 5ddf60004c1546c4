/* One line a call, one write(2) a line: lines of many processes on one terminal do not mix. */
#include "mpiserve/base.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static atomic_int log_threshold = LOG_INFO;
static char log_who[64];

void log_setup(enum log_level level, const char *who)
{
    atomic_store(&log_threshold, (int)level);
    snprintf(log_who, sizeof(log_who), "%s%s", who, who[0] ? ": " : "");
}

bool log_wants(enum log_level level)
{
    return (int)level <= atomic_load_explicit(&log_threshold, memory_order_relaxed);
}

static void write_all(const char *data, size_t len)
{
    while (len) {
        ssize_t n = write(STDERR_FILENO, data, len);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return;
        data += n;
        len -= (size_t)n;
    }
}

void log_line(enum log_level level, const char *fmt, ...)
{
    if (!log_wants(level)) return;
    int saved_errno = errno;
    static const char letters[] = "EWID";
    char line[4096];
    size_t room = sizeof(line) - 1; /* one byte for the newline */
    struct timespec now;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &tm);
    size_t len = (size_t)snprintf(line, room, "%02d:%02d:%02d.%03d %c %s", tm.tm_hour, tm.tm_min, tm.tm_sec,
                                  (int)(now.tv_nsec / 1000000), letters[level], log_who);
    size_t start = len;
    errno = saved_errno; /* for %m */
    va_list args;
    va_start(args, fmt);
    int wrote = vsnprintf(line + len, room - len, fmt, args);
    va_end(args);
    if (wrote > 0) len += MIN_OF((size_t)wrote, room - len - 1);
    if (wrote > 0 && len == room - 1) memcpy(line + len - 3, "...", 3);
    /* Text from outside must not forge a second line or steer a terminal. */
    for (size_t i = start; i < len; i++)
        if ((u8)line[i] < 0x20 || line[i] == 0x7f) line[i] = ' ';
    line[len++] = '\n';
    write_all(line, len);
    errno = saved_errno;
}
