/* The watcher: a thread that lets clients in, keeps the time and sees clients leave. The HTTP library does not look at connections that
 * sleep, so the descriptors of those that sleep for long are in an epoll set of our own, marked with the call's serial number: a
 * late event finds no call. Short calls are over before the first tick and cost nothing here. */
#include "ingress/http.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum { TICK_MS = 250, ACCEPT_MOST = 64 };
static const u64 stop_mark = 0, listen_mark = UINT64_MAX; /* no call has these serials */

/* A few at a time: ticks are not to wait for a crowd. */
static void let_in(struct ingress *in)
{
    for (int i = 0; i < ACCEPT_MOST && !connections_full(in, false); i++) {
        struct sockaddr_storage address;
        socklen_t len = sizeof(address);
        int fd = accept4(in->listen_fd, (struct sockaddr *)&address, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            loops_give(in, connection_open(in, fd, (struct sockaddr *)&address));
            continue;
        }
        if (errno == ECONNABORTED || errno == EINTR) continue; /* it has left again */
        if (errno != EAGAIN) {
            log_warning("http: a connection cannot be accepted: %s", strerror(errno));
            connections_full(in, true);
        }
        return;
    }
}

static void *watch_run(void *arg)
{
    struct ingress *in = arg;
    double interval = in->spec.config->sse_keep_alive_interval_s;
    int tick_ms = interval > 0 && interval * 500 < TICK_MS ? MAX_OF((int)(interval * 500), 1) : TICK_MS;
    u64 last_tick = clock_ns();
    for (;;) {
        struct epoll_event events[64];
        int n = epoll_wait(in->watch_fd, events, COUNT_OF(events), tick_ms);
        for (int i = 0; i < n; i++) {
            if (events[i].data.u64 == stop_mark) return NULL;
            if (events[i].data.u64 == listen_mark)
                let_in(in);
            else
                calls_client_gone(in, events[i].data.u64);
        }
        u64 now = clock_ns();
        if (now - last_tick < (u64)tick_ms * NS_PER_MS) continue;
        last_tick = now;
        calls_tick(in, now);
        connections_tick(in, now);
    }
}

int watch_start(struct ingress *in, struct error *err)
{
    in->watch_fd = epoll_create1(EPOLL_CLOEXEC);
    in->watch_stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event stop = {.events = EPOLLIN, .data.u64 = stop_mark};
    struct epoll_event clients = {.events = EPOLLIN, .data.u64 = listen_mark};
    if (in->watch_fd < 0 || in->watch_stop_fd < 0 ||
        epoll_ctl(in->watch_fd, EPOLL_CTL_ADD, in->watch_stop_fd, &stop) < 0 ||
        epoll_ctl(in->watch_fd, EPOLL_CTL_ADD, in->listen_fd, &clients) < 0)
        return error_errno(err, "ingress", "cannot watch connections");
    int rc = pthread_create(&in->watch_thread, NULL, watch_run, in);
    if (rc != 0) return error_set(err, ERR_IO, "ingress", "cannot start a thread (error %d)", rc);
    return 0;
}

void watch_stop(struct ingress *in)
{
    u64 one = 1;
    if (in->watch_thread && write(in->watch_stop_fd, &one, sizeof(one)) == sizeof(one))
        pthread_join(in->watch_thread, NULL);
    in->watch_thread = 0;
}

void watch_release(struct ingress *in)
{
    if (in->watch_fd >= 0) close(in->watch_fd);
    if (in->watch_stop_fd >= 0) close(in->watch_stop_fd);
    in->watch_fd = in->watch_stop_fd = -1;
}

void watch_accepts(struct ingress *in, bool accepts)
{
    struct epoll_event clients = {.events = accepts ? EPOLLIN : 0, .data.u64 = listen_mark};
    (void)epoll_ctl(in->watch_fd, EPOLL_CTL_MOD, in->listen_fd, &clients);
}

void watch_add(struct ingress *in, int fd, u64 serial)
{
    /* once is enough, and a client that has left would wake us for ever */
    struct epoll_event e = {.events = EPOLLRDHUP | EPOLLONESHOT, .data.u64 = serial};
    if (epoll_ctl(in->watch_fd, EPOLL_CTL_ADD, fd, &e) < 0)
        (void)epoll_ctl(in->watch_fd, EPOLL_CTL_MOD, fd, &e);
}

void watch_remove(struct ingress *in, int fd)
{
    (void)epoll_ctl(in->watch_fd, EPOLL_CTL_DEL, fd, NULL);
}
