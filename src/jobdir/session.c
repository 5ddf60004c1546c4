/* What MPI's launcher has on this machine: written down, for whoever finds the folder when both are dead. */
#include "jobdir/owner.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Open MPI's names, 4 and 5; any other folder is none of our business. */
static bool is_session(const char *path)
{
    return path && path[0] == '/' && (strstr(path, "/ompi.") || strstr(path, "/prte"));
}

bool session_read(const char *folder, struct session *s)
{
    char path[PATH_LEN + 16];
    struct buf text = {0};
    unsigned long long start;
    snprintf(path, sizeof(path), "%s/session", folder);
    bool ok = file_read(path, 4096, &text, NULL) == 0 &&
              sscanf(text.data, "%d %llu %1000[^\n]", &s->launcher, &start, s->path) == 3 &&
              is_session(s->path);
    if (ok) s->start = start;
    buf_release(&text);
    return ok;
}

/* Where the launcher of this process keeps its files, for whoever finds the folder when both are dead. */
void session_write(const char *folder)
{
    const char *session = getenv("PMIX_SERVER_TMPDIR");
    char path[PATH_LEN + 16], line[PATH_LEN + 64];
    struct error err;
    if (!is_session(session)) return;
    snprintf(path, sizeof(path), "%s/session", folder);
    int len = snprintf(line, sizeof(line), "%d %llu %s\n", getppid(),
                       (unsigned long long)process_start(getppid(), NULL), session);
    if (len > 0 && (size_t)len < sizeof(line) && file_write_whole(path, line, (size_t)len, 0600, &err) < 0)
        log_warning("%s: %s", err.where, err.message);
}

bool session_ended(const struct session *s)
{
    return process_start(s->launcher, NULL) != s->start;
}
