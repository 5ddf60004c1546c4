/* Memory that agents own and engines map. */
#include "mpiserve/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const char memory_prefix[] = "mpiserve-";
enum { MEMORY_SEALS = F_SEAL_SHRINK | F_SEAL_GROW };

int memory_new(const char *name, u64 bytes, bool check_left, struct error *err)
{
    u64 left = check_left ? memory_left() : UINT64_MAX;
    if (bytes > left)
        return error_set(err, ERR_MEMORY, name,
                         "needs %llu MiB, and %llu MiB are left here (machine and cgroup limits)",
                         (unsigned long long)(bytes >> 20), (unsigned long long)(left >> 20));
    char full[64];
    snprintf(full, sizeof(full), "%s%s", memory_prefix, name);
    int fd = memfd_create(full, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return error_errno(err, name, "cannot make shared memory");
    if (bytes > INT64_MAX || ftruncate(fd, (off_t)bytes) < 0 ||
        fcntl(fd, F_ADD_SEALS, MEMORY_SEALS | F_SEAL_SEAL) < 0) {
        error_errno(err, name, "cannot make shared memory of %llu bytes", (unsigned long long)bytes);
        close(fd);
        return ERR_IO;
    }
    return fd;
}

static int check_memory(int fd, const char *path, u64 bytes, struct error *err)
{
    static const char link_prefix[] = "/memfd:mpiserve-";
    char link[128] = "";
    struct stat st;
    if (fstat(fd, &st) < 0) return error_errno(err, path, "cannot look at it");
    if (readlink(path, link, sizeof(link) - 1) < 0 ||
        strncmp(link, link_prefix, sizeof(link_prefix) - 1) != 0)
        return error_set(err, ERR_PEER, path, "is not shared memory of this program (%s)", link);
    if (st.st_uid != geteuid()) return error_set(err, ERR_PEER, path, "belongs to user %u", st.st_uid);
    if (st.st_size < 0 || (u64)st.st_size != bytes)
        return error_set(err, ERR_PEER, path, "has %lld bytes instead of %llu", (long long)st.st_size,
                         (unsigned long long)bytes);
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & MEMORY_SEALS) != MEMORY_SEALS)
        return error_set(err, ERR_PEER, path, "is not sealed against resizing");
    return 0;
}

int memory_open(int pid, int fd, u64 bytes, struct error *err)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, fd);
    int own = open(path, O_RDWR | O_CLOEXEC);
    if (own < 0) return error_errno(err, path, "cannot open another rank's memory");
    int rc = check_memory(own, path, bytes, err);
    if (rc == 0) return own;
    close(own);
    return rc;
}

/* ---- what is left ---- */

/* The number in a file of one line; UINT64_MAX when there is none ("max", no such file). */
static u64 number_in(const char *path)
{
    char text[32] = "";
    FILE *f = fopen(path, "re");
    if (!f) return UINT64_MAX;
    bool ok = fgets(text, sizeof(text), f) && text[0] >= '0' && text[0] <= '9';
    fclose(f);
    return ok ? strtoull(text, NULL, 10) : UINT64_MAX;
}

/* The number after a key at a line's start. */
static u64 number_after(const char *path, const char *key)
{
    char line[256];
    u64 n = UINT64_MAX;
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof(line), f))
        if (strncmp(line, key, strlen(key)) == 0) {
            n = strtoull(line + strlen(key), NULL, 10);
            break;
        }
    if (f) fclose(f);
    return n;
}

/* Limit minus use of one group of version 2; file pages that the kernel can drop do not count as use. */
static u64 group_left(const char *folder)
{
    char path[PATH_LEN + 32];
    snprintf(path, sizeof(path), "%s/memory.max", folder);
    u64 most = number_in(path);
    if (most == UINT64_MAX) return most;
    snprintf(path, sizeof(path), "%s/memory.current", folder);
    u64 used = number_in(path);
    snprintf(path, sizeof(path), "%s/memory.stat", folder);
    u64 clean = number_after(path, "inactive_file ");
    if (used == UINT64_MAX) return UINT64_MAX;
    used -= clean == UINT64_MAX ? 0 : MIN_OF(clean, used);
    return most > used ? most - used : 0;
}

static u64 groups_left(void)
{
    char line[PATH_LEN] = "", folder[PATH_LEN + 16];
    u64 left = UINT64_MAX;
    FILE *f = fopen("/proc/self/cgroup", "re");
    while (f && fgets(line, sizeof(line), f)) {
        if (strncmp(line, "0::/", 4) != 0) continue;
        line[strcspn(line, "\n")] = 0;
        int len = snprintf(folder, sizeof(folder), "/sys/fs/cgroup%s", line + 3);
        /* from this group up to the root: each limit counts */
        for (char *slash; len > 0; *slash = 0) {
            u64 here = group_left(folder);
            left = MIN_OF(left, here);
            slash = strrchr(folder, '/');
            if (!slash || slash - folder < (long)strlen("/sys/fs/cgroup")) break;
        }
    }
    if (f) fclose(f);
    return left;
}

u64 memory_left(void)
{
    u64 kib = number_after("/proc/meminfo", "MemAvailable:"), groups = groups_left();
    return kib == UINT64_MAX ? groups : MIN_OF(kib << 10, groups);
}
