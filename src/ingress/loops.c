/* The HTTP threads. Each drives a daemon of the HTTP library that has no thread and no listening socket of its own: the watcher gives
 * it connections and others wake its sleeping exchanges through a queue. So a wake-up is a system call only while the thread
 * sleeps, and connections are spread evenly. A daemon is touched by its thread alone. */
#include "ingress/http.h"

#include <errno.h>
#include <microhttpd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum {
    LONG_SLEEP_MS = 60000,
    TURNS = 8, /* in vain, before what the library calls ready is looked at less often */
    NAP_MS = 5
};

struct http_loop {
    struct ingress *in;
    struct MHD_Daemon *daemon;
    struct queue *errands;
    struct errand stop;
    struct connection *arriving; /* given to the library, which has not told its begin yet */
    struct dwell dwell;
    _Atomic u32 n; /* connections given to it that have not ended */
    int epoll;
    bool served, stopped, runs;
    u32 vain; /* turns in a row that did nothing although the library was ready */
    pthread_t thread;
};

struct ingress *loop_ingress(const struct http_loop *l)
{
    return l->in;
}

struct connection *loop_arriving(struct http_loop *l)
{
    struct connection *c = l->arriving;
    l->arriving = NULL;
    connection_taken(c);
    return c;
}

void loop_served(struct http_loop *l)
{
    l->served = true;
}

void loop_lost(struct http_loop *l)
{
    atomic_fetch_sub(&l->n, 1);
}

void loop_wake(struct http_loop *l, struct errand *e)
{
    queue_push(l->errands, &e->node);
}

void loops_give(struct ingress *in, struct connection *c)
{
    struct http_loop *least = &in->loops[0];
    for (i64 i = 1; i < in->spec.config->http_threads; i++)
        if (atomic_load(&in->loops[i].n) < atomic_load(&least->n)) least = &in->loops[i];
    atomic_fetch_add(&least->n, 1);
    c->errand.what = ERRAND_ARRIVAL;
    loop_wake(least, &c->errand);
}

/* ---- a thread ------------------------------------------------------------------------------------------------ */
static void take_in(struct http_loop *l, struct connection *c)
{
    static const struct sockaddr nobody = {.sa_family = AF_UNSPEC}; /* connections.c knows who it is */
    l->arriving = c;
    if (MHD_add_connection(l->daemon, c->fd, &nobody, sizeof(nobody)) == MHD_YES) return;
    log_warning("http: a connection is lost, the HTTP library could not take it: %s", strerror(errno));
    if (!l->arriving) return; /* the library has told its end */
    l->arriving = NULL;
    connection_close(l->in, c);
    loop_lost(l);
}

static bool run_errands(struct http_loop *l)
{
    struct queue_node *n = queue_take_all(l->errands);
    bool any = n != NULL;
    while (n) {
        struct errand *e = CONTAINER_OF(n, struct errand, node);
        n = n->next; /* an exchange may be gone when it has been gone on with */
        switch (e->what) {
        case ERRAND_ARRIVAL: take_in(l, CONTAINER_OF(e, struct connection, errand)); break;
        case ERRAND_GO_ON: MHD_resume_connection(CONTAINER_OF(e, struct exchange, errand)->connection); break;
        case ERRAND_STOP: l->stopped = true; break;
        }
    }
    return any;
}

static bool turn(struct http_loop *l)
{
    bool any = run_errands(l);
    l->served = false;
    MHD_run(l->daemon);
    return any || l->served;
}

static void rest(struct http_loop *l)
{
    struct epoll_event events[2];
    MHD_UNSIGNED_LONG_LONG ms = LONG_SLEEP_MS;
    bool ready = MHD_get_timeout(l->daemon, &ms) == MHD_YES && ms == 0;
    l->vain = ready ? l->vain + 1 : 0;
    if (ready && l->vain <= TURNS) return;
    if (ready)
        ms = NAP_MS; /* for example a line of a chunked body that is longer than the library's memory */
    if (!queue_prepare_sleep(l->errands)) return;
    epoll_wait(l->epoll, events, COUNT_OF(events), (int)MIN_OF(ms, (MHD_UNSIGNED_LONG_LONG)LONG_SLEEP_MS));
    queue_woke(l->errands);
}

static void *run(void *arg)
{
    struct http_loop *l = arg;
    while (!l->stopped) {
        bool any = turn(l);
        u64 now = clock_ns();
        if (any) {
            l->vain = 0;
            dwell_worked(&l->dwell, now);
        } else if (!dwell_on(&l->dwell, now)) {
            rest(l);
        }
    }
    return NULL; /* the turn that brought the end went on with all that had slept */
}

/* ---- life ---------------------------------------------------------------------------------------------------- */
static int open_loop(struct http_loop *l, struct error *err)
{
    l->errands = queue_new(err);
    if (!l->errands) return err->code;
    l->daemon = http_daemon(l, l->in, err);
    if (!l->daemon) return err->code;
    int fd = MHD_get_daemon_info(l->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
    struct epoll_event e = {.events = EPOLLIN};
    l->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (l->epoll < 0 || epoll_ctl(l->epoll, EPOLL_CTL_ADD, fd, &e) < 0 ||
        epoll_ctl(l->epoll, EPOLL_CTL_ADD, queue_fd(l->errands), &e) < 0)
        return error_errno(err, "ingress", "cannot watch the sockets of an HTTP thread");
    return 0;
}

static int start_thread(struct http_loop *l, u32 index, struct error *err)
{
    char name[16];
    sigset_t pipe, before; /* a client that has left is an error of a call, not a signal */
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe, &before);
    int rc = pthread_create(&l->thread, NULL, run, l);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0) return error_set(err, ERR_IO, "ingress", "cannot start an HTTP thread (error %d)", rc);
    snprintf(name, sizeof(name), "http-%u", index);
    pthread_setname_np(l->thread, name);
    l->runs = true;
    return 0;
}

int loops_start(struct ingress *in, struct error *err)
{
    u32 n = (u32)in->spec.config->http_threads;
    in->loops = mem_zero(n, sizeof(*in->loops));
    for (u32 i = 0; i < n; i++)
        in->loops[i] = (struct http_loop){.in = in, .stop.what = ERRAND_STOP, .epoll = -1};
    int rc = 0;
    for (u32 i = 0; rc == 0 && i < n; i++) rc = open_loop(&in->loops[i], err);
    for (u32 i = 0; rc == 0 && i < n; i++) rc = start_thread(&in->loops[i], i, err);
    return rc;
}

static void close_loop(struct http_loop *l)
{
    if (l->runs) {
        loop_wake(l, &l->stop);
        pthread_join(l->thread, NULL);
    }
    if (l->daemon) MHD_stop_daemon(l->daemon);
    if (l->epoll >= 0) close(l->epoll);
    queue_free(l->errands);
}

void loops_stop(struct ingress *in)
{
    for (i64 i = 0; in->loops && i < in->spec.config->http_threads; i++) close_loop(&in->loops[i]);
    free(in->loops);
    in->loops = NULL;
}
