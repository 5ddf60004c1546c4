/* GET over a socket of its own for each call, bounded in time and size. */
#include "cli/http.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

struct place {
    char host[256], port[8];
};

static int read_url(const char *url, struct place *p, struct error *err)
{
    int end = 0;
    snprintf(p->port, sizeof(p->port), "80");
    bool v6 = strncmp(url, "http://[", 8) == 0;
    if (sscanf(url, v6 ? "http://[%255[^]/]]%n" : "http://%255[^:/]%n", p->host, &end) != 1 || !end)
        return error_set(err, ERR_INPUT, url, "is no address of the form http://HOST:PORT");
    const char *rest = url + end;
    if (*rest == ':' && sscanf(rest, ":%5[0-9]%n", p->port, &end) == 1) rest += end;
    if (*rest && strcmp(rest, "/") != 0)
        return error_set(err, ERR_INPUT, url, "is no address of the form http://HOST:PORT");
    return 0;
}

/* Until fd is ready or the time is over: 0, or an error. */
static int wait_for(int fd, short events, u64 end_ns, const char *url, struct error *err)
{
    struct pollfd p = {.fd = fd, .events = events};
    for (;;) {
        u64 now = clock_ns();
        if (now >= end_ns) return error_set(err, ERR_IO, url, "no answer in time");
        int n = poll(&p, 1, (int)((end_ns - now) / NS_PER_MS + 1));
        if (n > 0) return 0;
        if (n < 0 && errno != EINTR) return error_errno(err, url, "poll");
    }
}

static int open_one(const struct addrinfo *a, u64 end_ns, const char *url, int *fd, struct error *err)
{
    int rc = 0, why = 0;
    socklen_t size = sizeof(why);
    *fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (*fd < 0) return error_errno(err, url, "socket");
    if (connect(*fd, a->ai_addr, a->ai_addrlen) < 0) {
        why = errno;
        if (why == EINPROGRESS && (rc = wait_for(*fd, POLLOUT, end_ns, url, err)) == 0)
            getsockopt(*fd, SOL_SOCKET, SO_ERROR, &why, &size);
    }
    if (rc == 0 && why) {
        errno = why;
        rc = error_errno(err, url, "cannot connect");
    }
    if (rc < 0) close(*fd);
    return rc;
}

static int open_connection(const struct http_ask *ask, const struct place *p, u64 end_ns, struct error *err)
{
    struct addrinfo want = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *found;
    int fd = -1, rc = getaddrinfo(p->host, p->port, &want, &found);
    if (rc != 0) return error_set(err, ERR_IO, ask->url, "no such host (%s)", gai_strerror(rc));
    rc = ERR_IO;
    for (struct addrinfo *a = found; a && rc < 0; a = a->ai_next)
        rc = open_one(a, end_ns, ask->url, &fd, err);
    freeaddrinfo(found);
    return rc < 0 ? rc : fd;
}

static int send_all(int fd, const struct buf *text, u64 end_ns, const char *url, struct error *err)
{
    for (size_t at = 0; at < text->len;) {
        int rc = wait_for(fd, POLLOUT, end_ns, url, err);
        if (rc < 0) return rc;
        ssize_t n = send(fd, text->data + at, text->len - at, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN && errno != EINTR) return error_errno(err, url, "cannot send");
        if (n > 0) at += (size_t)n;
    }
    return 0;
}

static int read_all(int fd, const struct http_ask *ask, u64 end_ns, struct buf *out, struct error *err)
{
    char block[8192];
    for (;;) {
        int rc = wait_for(fd, POLLIN, end_ns, ask->url, err);
        if (rc < 0) return rc;
        ssize_t n = recv(fd, block, sizeof(block), 0);
        if (n == 0) return 0;
        if (n < 0 && errno != EAGAIN && errno != EINTR) return error_errno(err, ask->url, "cannot read");
        if (n > 0) buf_add(out, block, (size_t)n);
        if (out->len > ask->max_bytes)
            return error_set(err, ERR_PEER, ask->url, "the answer is longer than %zu bytes", ask->max_bytes);
    }
}

/* Splits head and body; the body must be plain: to the end of the connection, or as long as it says. */
static int take_apart(const struct buf *answer, const char *url, struct buf *body, struct error *err)
{
    int status = 0;
    const char *text = answer->len ? answer->data : "", *end = strstr(text, "\r\n\r\n");
    if (!end || sscanf(text, "HTTP/1.%*1[01] %3d ", &status) != 1 || status < 100)
        return error_set(err, ERR_PEER, url, "what answers there does not speak HTTP");
    size_t at = (size_t)(end - text) + 4, len = answer->len - at;
    for (const char *line = strstr(text, "\r\n"); line && line < end; line = strstr(line + 2, "\r\n")) {
        unsigned long long said;
        if (strncasecmp(line + 2, "Transfer-Encoding:", 18) == 0)
            return error_set(err, ERR_PEER, url, "answers in chunks, which a page of mpiserve never is");
        if (strncasecmp(line + 2, "Content-Length:", 15) == 0 && sscanf(line + 17, " %llu", &said) == 1 &&
            said != len)
            return error_set(err, ERR_PEER, url, "the answer ends after %zu of %llu bytes", len, said);
    }
    buf_add(body, answer->data + at, len);
    return status;
}

int http_get(const struct http_ask *ask, const char *path, struct buf *body, struct error *err)
{
    struct place p;
    struct buf request = {0}, answer = {0};
    u64 end_ns = clock_ns() + (u64)ask->limit_ms * NS_PER_MS;
    buf_clear(body);
    int rc = read_url(ask->url, &p, err);
    int fd = rc < 0 ? rc : open_connection(ask, &p, end_ns, err);
    if (fd < 0) return fd;
    bool v6 = strchr(p.host, ':') != NULL;
    buf_printf(&request, "GET %s HTTP/1.1\r\nHost: %s%s%s:%s\r\nConnection: close\r\n%s%s\r\n", path,
               v6 ? "[" : "", p.host, v6 ? "]" : "", p.port, ask->header, ask->header[0] ? "\r\n" : "");
    rc = send_all(fd, &request, end_ns, ask->url, err);
    if (rc == 0) rc = read_all(fd, ask, end_ns, &answer, err);
    if (rc == 0) rc = take_apart(&answer, ask->url, body, err);
    close(fd);
    explicit_bzero(request.data, request.len); /* the key */
    buf_release(&request);
    buf_release(&answer);
    return rc;
}
