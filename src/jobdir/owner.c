/* Whose folder it is: written down so that any later process can tell whether that one still lives. */
#include "jobdir/owner.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void read_boot(char *out, size_t size)
{
    struct buf text = {0};
    snprintf(out, size, "-");
    if (file_read("/proc/sys/kernel/random/boot_id", 64, &text, NULL) == 0 && text.len >= 36)
        snprintf(out, size, "%.36s", text.data);
    buf_release(&text);
}

static void owner_here(struct owner *o)
{
    struct stat ns;
    read_boot(o->boot, sizeof(o->boot));
    o->pid_ns = stat("/proc/self/ns/pid", &ns) == 0 ? (u64)ns.st_ino : 0;
    if (gethostname(o->host, sizeof(o->host)) < 0 || !o->host[0]) snprintf(o->host, sizeof(o->host), "-");
    o->host[sizeof(o->host) - 1] = 0;
}

int owner_write(const char *folder, const char *job, struct error *err)
{
    struct owner o;
    char path[PATH_LEN + 16], line[512];
    owner_here(&o);
    snprintf(path, sizeof(path), "%s/owner", folder);
    int len = snprintf(line, sizeof(line), "%d %llu %s %llu %s %s\n", getpid(),
                       (unsigned long long)process_start(getpid(), NULL), o.boot,
                       (unsigned long long)o.pid_ns, o.host, job);
    return file_write_whole(path, line, (size_t)len, 0600, err);
}

bool owner_read(const char *folder, struct owner *o)
{
    char path[PATH_LEN + 16];
    struct buf text = {0};
    unsigned long long start, ns;
    snprintf(path, sizeof(path), "%s/owner", folder);
    bool ok =
        file_read(path, 4096, &text, NULL) == 0 && sscanf(text.data, "%d %llu %63s %llu %255s %23s", &o->pid,
                                                          &start, o->boot, &ns, o->host, o->job) == 6;
    if (ok) {
        o->start = start;
        o->pid_ns = ns;
    }
    buf_release(&text);
    return ok;
}

bool owner_is_near(const struct owner *o)
{
    struct owner here;
    owner_here(&here);
    return strcmp(o->host, here.host) == 0 && strcmp(o->boot, here.boot) == 0;
}

bool owner_gone(const struct owner *o)
{
    struct owner here;
    owner_here(&here);
    if (strcmp(o->host, here.host) != 0) return false; /* on a shared file system: cannot tell */
    if (strcmp(o->boot, here.boot) != 0) return true;  /* the machine was started again since */
    if (o->pid_ns != here.pid_ns) return false;        /* another container: cannot tell */
    return process_start(o->pid, NULL) != o->start;
}
