/* The log of the ranks, as it grows. */
#include "cli/up.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int tail_init(struct tail *t, const char *path, struct error *err)
{
    memset(t, 0, sizeof(*t));
    loading_init(&t->loading, isatty(STDERR_FILENO));
    t->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (t->fd >= 0 && lseek(t->fd, 0, SEEK_END) >= 0) return 0;
    return error_errno(err, path, "cannot read the log");
}

void tail_release(struct tail *t)
{
    if (t->fd >= 0) close(t->fd);
    buf_release(&t->line);
    loading_release(&t->loading);
}

/* "12:34:56.789 I rank 3: text" -> 'I'; 0 when it is no log line. */
static char level_of(const char *line, size_t len)
{
    static const char form[] = "dd:dd:dd.ddd ";
    if (len < sizeof(form) + 1) return 0;
    for (size_t i = 0; form[i]; i++)
        if (form[i] == 'd' ? !isdigit((unsigned char)line[i]) : line[i] != form[i]) return 0;
    char level = line[sizeof(form) - 1];
    return line[sizeof(form)] == ' ' && strchr("EWID", level) ? level : 0;
}

/* What ranks print may hold anything; a terminal must not be steered by it. */
static void show(const char *line, size_t len)
{
    struct buf out = {0};
    for (size_t i = 0; i < len; i++) buf_char(&out, (u8)line[i] < 0x20 && line[i] != '\t' ? '?' : line[i]);
    buf_char(&out, '\n');
    fwrite(out.data, 1, out.len, stderr);
    buf_release(&out);
}

/* mpirun puts its messages between lines of dashes; once a rank has said why, they only repeat that it ended. */
static bool is_box(struct tail *t)
{
    enum { BOX_WIDTH = 60 };
    bool edge = t->line.len >= BOX_WIDTH && strspn(t->line.data, "-") == t->line.len;
    bool inside = t->in_box || edge;
    if (edge) t->in_box = !t->in_box;
    return inside;
}

static bool is_noise(struct tail *t, char level)
{
    static const char forwarding[] = "mpirun: Forwarding signal";
    if (level == 'I' || level == 'D' || t->line.len == 0) return true;
    if (level) return false;
    return (is_box(t) && t->errors) || strncmp(t->line.data, forwarding, sizeof(forwarding) - 1) == 0;
}

static void judge(struct tail *t)
{
    char level = t->line.len ? level_of(t->line.data, t->line.len) : 0;
    if (level == 'I') loading_note(&t->loading, t->line.data);
    if (!is_noise(t, level)) {
        show(t->line.data, t->line.len);
        t->shown++;
        t->errors += level == 'E';
    }
    buf_clear(&t->line);
}

void tail_more(struct tail *t)
{
    char block[4096];
    ssize_t n;
    while ((n = read(t->fd, block, sizeof(block))) > 0 || (n < 0 && errno == EINTR))
        for (ssize_t i = 0; i < n; i++) {
            if (block[i] == '\n' || t->line.len >= sizeof(block)) judge(t);
            if (block[i] != '\n') buf_char(&t->line, block[i]);
        }
}

void tail_last(const struct tail *t, int n)
{
    char block[8192];
    off_t end = lseek(t->fd, 0, SEEK_CUR), from = MAX_OF(end - (off_t)sizeof(block), (off_t)0);
    ssize_t len = pread(t->fd, block, sizeof(block), from);
    if (len <= 0) return;
    if (block[len - 1] == '\n') len--;
    ssize_t start = len;
    for (; start > 0; start--)
        if (block[start - 1] == '\n' && --n == 0) break;
    for (const char *p = block + start, *stop = block + len; p < stop;) {
        const char *newline = memchr(p, '\n', (size_t)(stop - p));
        size_t size = newline ? (size_t)(newline - p) : (size_t)(stop - p);
        show(p, size);
        p += size + 1;
    }
}
