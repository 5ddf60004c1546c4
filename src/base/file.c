/* Whole files: read with a bound, written so that nobody sees half of one. */
#include "mpiserve/base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static int too_large(const char *path, size_t size, size_t max, struct error *err)
{
    return error_set(err, ERR_INPUT, path, "the file has %zu bytes or more, the limit is %zu", size, max);
}

static int read_open(int fd, const char *path, size_t max, struct buf *out, struct error *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0) return error_errno(err, path, "cannot look at the file");
    if (S_ISDIR(st.st_mode)) return error_set(err, ERR_INPUT, path, "is a folder, not a file");
    if (S_ISREG(st.st_mode) && (u64)st.st_size > max) return too_large(path, (size_t)st.st_size, max, err);
    if (S_ISREG(st.st_mode)) buf_reserve(out, (size_t)st.st_size);
    for (;;) {
        /* A file may grow while it is read, and one in /proc has no size: the end is where read says so. */
        buf_reserve(out, out->cap - out->len > 1 ? 1 : 4096);
        ssize_t n = read(fd, out->data + out->len, out->cap - out->len - 1);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return error_errno(err, path, "cannot read after %zu bytes", out->len);
        out->len += (size_t)n;
        out->data[out->len] = 0;
        if (out->len > max) return too_large(path, out->len, max, err);
        if (n == 0) return 0;
    }
}

int file_read(const char *path, size_t max, struct buf *out, struct error *err)
{
    buf_clear(out);
    /* a pipe that nobody writes is empty, and not waited for; one of a shell's <(...) is read to its end */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd >= 0) (void)fcntl(fd, F_SETFL, O_RDONLY);
    if (fd < 0 && errno == ENOENT) return error_set(err, ERR_NOT_FOUND, path, "there is no such file");
    if (fd < 0) return error_errno(err, path, "cannot open the file");
    int rc = read_open(fd, path, max, out, err);
    close(fd);
    if (rc < 0) buf_clear(out);
    return rc;
}

static int write_fd(int fd, const u8 *data, size_t len)
{
    while (len) {
        ssize_t n = write(fd, data, len);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        data += n;
        len -= (size_t)n;
    }
    return fsync(fd);
}

/* The rename itself is durable only once the folder is; not every file system can do that, so it is no error.
 */
static void sync_folder(const char *path)
{
    char folder[PATH_LEN];
    const char *slash = strrchr(path, '/');
    size_t len = slash ? (size_t)(slash - path) : 0;
    if (len >= sizeof(folder)) return;
    memcpy(folder, path, len);
    folder[len] = 0;
    int fd = open(len ? folder : slash ? "/" : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

int file_write_whole(const char *path, const void *data, size_t len, unsigned mode, struct error *err)
{
    char fresh[PATH_LEN];
    int rc = path_join(fresh, sizeof(fresh), err, "%s.new", path);
    if (rc < 0) return rc;
    /* A leftover may be a link or have another mode: never write through it. */
    if (unlink(fresh) < 0 && errno != ENOENT) return error_errno(err, fresh, "cannot remove the old file");
    int fd = open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, (mode_t)mode);
    if (fd < 0) return error_errno(err, fresh, "cannot create the file");
    bool bad = write_fd(fd, data, len) < 0;
    if (bad) rc = error_errno(err, fresh, "cannot write %zu bytes", len);
    if (close(fd) < 0 && !bad) rc = error_errno(err, fresh, "cannot close the file");
    if (rc == 0 && rename(fresh, path) < 0) rc = error_errno(err, path, "cannot rename %s to it", fresh);
    if (rc < 0)
        unlink(fresh);
    else
        sync_folder(path);
    return rc;
}

bool file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

int path_join(char *out, size_t size, struct error *err, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    int len = vsnprintf(out, size, fmt, args);
    va_end(args);
    if (len >= 0 && (size_t)len < size) return 0;
    return error_set(err, ERR_INPUT, out, "the path is longer than %zu bytes", size - 1);
}

i64 file_limit(u64 need, struct error *err)
{
    enum { ENOUGH = 65536 };
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) < 0) return error_errno(err, "ulimit -n", "cannot ask for it");
    rlim_t most = r.rlim_max == RLIM_INFINITY || r.rlim_max > ENOUGH ? ENOUGH : r.rlim_max;
    if (r.rlim_cur < most) {
        r.rlim_cur = most;
        if (setrlimit(RLIMIT_NOFILE, &r) < 0) getrlimit(RLIMIT_NOFILE, &r);
    }
    if (r.rlim_cur >= need) return (i64)MIN_OF(r.rlim_cur, (rlim_t)INT32_MAX);
    return error_set(
        err, ERR_IO, "ulimit -n",
        "%llu open files are allowed, %llu are needed: raise the hard limit (limits.conf, LimitNOFILE= of a "
        "service, docker run --ulimit nofile=65536)",
        (unsigned long long)r.rlim_cur, (unsigned long long)need);
}

u64 file_room(const char *folder)
{
    struct statvfs fs;
    return statvfs(folder, &fs) < 0 || !fs.f_blocks ? UINT64_MAX : (u64)fs.f_bavail * fs.f_frsize;
}
