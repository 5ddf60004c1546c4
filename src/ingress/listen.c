/* The listening socket. */
#include "ingress/http.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BACKLOG = 1024 };

/* Accepted sockets inherit these: a client whose host is gone is noticed after about a minute. */
static void set_options(int fd)
{
    const struct {
        int level, name, value;
    } options[] = {{SOL_SOCKET, SO_REUSEADDR, 1},   {SOL_SOCKET, SO_KEEPALIVE, 1},
                   {IPPROTO_TCP, TCP_KEEPIDLE, 30}, {IPPROTO_TCP, TCP_KEEPINTVL, 10},
                   {IPPROTO_TCP, TCP_KEEPCNT, 3},   {IPPROTO_TCP, TCP_NODELAY, 1}};
    for (size_t i = 0; i < COUNT_OF(options); i++)
        (void)setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof(int));
}

static int try_address(const struct addrinfo *a)
{
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    set_options(fd);
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0) return fd;
    int why = errno;
    close(fd);
    errno = why;
    return -1;
}

static int real_port_of(int fd)
{
    struct sockaddr_storage at;
    socklen_t len = sizeof(at);
    if (getsockname(fd, (struct sockaddr *)&at, &len) < 0) return -1;
    return ntohs(at.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&at)->sin6_port
                                          : ((struct sockaddr_in *)&at)->sin_port);
}

int listen_open(const char *host, int port, int *fd, int *real_port, struct error *err)
{
    struct addrinfo want = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *found;
    char service[16], where[300];
    snprintf(service, sizeof(service), "%d", port);
    snprintf(where, sizeof(where), "%.256s port %d", host[0] ? host : "any address", port);
    int rc = getaddrinfo(host[0] ? host : NULL, service, &want, &found);
    if (rc != 0)
        return error_set(err, ERR_INPUT, where,
                         "no such address (%s); give --host an address or a name of this host",
                         gai_strerror(rc));
    *fd = -1;
    for (struct addrinfo *a = found; a && *fd < 0; a = a->ai_next) *fd = try_address(a);
    int why = errno;
    freeaddrinfo(found);
    if (*fd >= 0) {
        *real_port = real_port_of(*fd);
        return 0;
    }
    errno = why;
    if (why == EADDRINUSE)
        return error_set(
            err, ERR_IO, where,
            "is in use by another program: stop that one, or choose another with --port (0: any free one)");
    if (why == EACCES)
        return error_set(err, ERR_IO, where, "ports below 1024 need privileges: choose another with --port");
    if (why == EADDRNOTAVAIL)
        return error_set(err, ERR_INPUT, where, "is no address of this host: give --host one of its own");
    return error_errno(err, where, "cannot listen");
}
