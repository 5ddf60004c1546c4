/* Connections and their time. The HTTP library ends a connection that is silent; who sends a byte now and then could stay for ever,
 * so the watcher looks at every connection each tick. What a connection is doing is one atomic word: the HTTP thread that reads it
 * moves it on, the watcher may take it away (CUT) while a request is still coming in. Whoever changes the word may write to the socket. */
#include "ingress/http.h"

#include <linux/tcp.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum {
    OVER_MS = 2000,   /* a connection more than its client may have: time to ask, and be refused */
    CROWDED_MS = 1000 /* when there is little room: time that an idle connection has */
};

struct client { /* an address, while it has connections; under the lock of the list */
    struct client *next;
    u64 address[2];
    i64 n;
};

static u64 ms(u64 n)
{
    return n * NS_PER_MS;
}

static u64 seconds(double s)
{
    return (u64)(s * (double)NS_PER_S);
}

static u64 received(int fd)
{
    struct tcp_info info = {0};
    socklen_t len = sizeof(info);
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 ? info.tcpi_bytes_received : 0;
}

/* ---- clients ------------------------------------------------------------------------------------------------- */
/* A network of 64 bits is one client: whoever has an address of it has all. */
static void address_of(const struct sockaddr *a, u64 out[2])
{
    out[0] = out[1] = 0;
    if (a && a->sa_family == AF_INET) {
        out[1] = 1ull << 32 | ((const struct sockaddr_in *)a)->sin_addr.s_addr;
    } else if (a && a->sa_family == AF_INET6) {
        const struct in6_addr *six = &((const struct sockaddr_in6 *)a)->sin6_addr;
        if (IN6_IS_ADDR_V4MAPPED(six)) {
            u32 four;
            memcpy(&four, six->s6_addr + 12, sizeof(four));
            out[1] = 1ull << 32 | four;
        } else {
            memcpy(&out[0], six->s6_addr, sizeof(out[0]));
        }
    }
}

static struct client **client_of(struct connections *cs, const u64 address[2])
{
    struct client **at = &cs->clients[hash_bytes(address, 2 * sizeof(u64), 0) % COUNT_OF(cs->clients)];
    while (*at && memcmp((*at)->address, address, sizeof((*at)->address)) != 0) at = &(*at)->next;
    return at;
}

static i64 client_enters(struct connections *cs, const u64 address[2])
{
    struct client **at = client_of(cs, address);
    if (!*at) {
        *at = mem_zero(1, sizeof(**at));
        memcpy((*at)->address, address, sizeof((*at)->address));
    }
    return ++(*at)->n;
}

static void client_leaves(struct connections *cs, const u64 address[2])
{
    struct client **at = client_of(cs, address), *c = *at;
    if (--c->n) return;
    *at = c->next;
    free(c);
}

/* ---- what the watcher and the HTTP threads say ------------------------------------------------------------------------------- */
void connections_init(struct connections *cs)
{
    memset(cs, 0, sizeof(*cs));
    pthread_mutex_init(&cs->lock, NULL);
}

void connections_release(struct connections *cs)
{
    BUG_ON(cs->first);
    pthread_mutex_destroy(&cs->lock);
}

struct connection *connection_open(struct ingress *in, int fd, const struct sockaddr *address)
{
    struct connections *cs = &in->connections;
    struct connection *c = mem_zero(1, sizeof(*c));
    i64 most = in->spec.config->max_connections_per_client;
    c->fd = fd;
    address_of(address, c->address);
    pthread_mutex_lock(&cs->lock);
    c->over = most > 0 && client_enters(cs, c->address) > most;
    c->previous = cs->last;
    *(cs->last ? &cs->last->next : &cs->first) = c;
    cs->last = c;
    cs->n++;
    pthread_mutex_unlock(&cs->lock);
    return c;
}

void connection_close(struct ingress *in, struct connection *c)
{
    struct connections *cs = &in->connections;
    pthread_mutex_lock(&cs->lock); /* from here on the watcher does not know its descriptor */
    *(c->previous ? &c->previous->next : &cs->first) = c->next;
    *(c->next ? &c->next->previous : &cs->last) = c->previous;
    cs->n--;
    if (cs->full) watch_accepts(in, true);
    cs->full = false;
    if (in->spec.config->max_connections_per_client > 0) client_leaves(cs, c->address);
    pthread_mutex_unlock(&cs->lock);
    free(c);
}

bool connections_full(struct ingress *in, bool cannot)
{
    struct connections *cs = &in->connections;
    pthread_mutex_lock(&cs->lock);
    cs->full = cannot || cs->n >= in->spec.config->max_connections;
    bool full = cs->full;
    if (full) watch_accepts(in, false);
    pthread_mutex_unlock(&cs->lock);
    return full;
}

static bool move(struct connection *c, int from, int to)
{
    return atomic_compare_exchange_strong(&c->phase, &from, to) || from == to;
}

void connection_taken(struct connection *c)
{
    atomic_store(&c->since_ns, clock_ns());
    (void)move(c, CONNECTION_COMING, CONNECTION_IDLE);
}

bool connection_begins(struct connection *c, u64 now)
{
    atomic_store(&c->since_ns, now);
    return move(c, CONNECTION_IDLE, CONNECTION_BODY);
}

bool connection_answers(struct connection *c)
{
    return move(c, CONNECTION_BODY, CONNECTION_ANSWER);
}

void connection_rests(struct connection *c)
{
    c->base = received(c->fd);
    atomic_store(&c->since_ns, clock_ns());
    (void)move(c, CONNECTION_ANSWER, CONNECTION_IDLE);
}

/* ---- the watcher --------------------------------------------------------------------------------------------- */
/* Instead of the library, which has no request to answer. */
static void say(struct ingress *in, const struct connection *c, const struct api_error *e)
{
    struct buf body = {0}, answer = {0};
    unsigned status = (unsigned)api_status(e->kind);
    api_error_json(e, &body);
    buf_printf(&answer,
               "HTTP/1.1 %u %s\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: "
               "%zu\r\n\r\n",
               status, MHD_get_reason_phrase_for(status), body.len);
    buf_add(&answer, body.data, body.len);
    (void)!send(c->fd, answer.data, answer.len, MSG_DONTWAIT | MSG_NOSIGNAL);
    buf_release(&body);
    buf_release(&answer);
    series_add(metric_series(in->series.http_requests, (const char *[]){"none", "OTHER", "4xx"}), 1);
}

static void say_too_slow(struct ingress *in, const struct connection *c, const char *what, double limit_s)
{
    struct api_error e;
    api_fail(&e, API_TIMEOUT, NULL, "The %s of the request did not come within %g s.", what, limit_s);
    say(in, c, &e);
}

/* The library closes it when it sees the end: it is the only one that may. */
static void cut(struct connection *c)
{
    shutdown(c->fd, SHUT_RDWR);
}

void connection_refuse(struct ingress *in, struct connection *c, const struct api_error *e)
{
    if (!move(c, CONNECTION_IDLE, CONNECTION_CUT)) return;
    say(in, c, e);
    cut(c);
}

/* Since when a request has been coming in on a connection that waits for one; 0: nothing came. */
static u64 head_since(struct connection *c, u64 since, u64 now)
{
    if (c->looked_at != since) {
        c->looked_at = since;
        c->head_ns = 0;
    }
    if (!c->head_ns && received(c->fd) > c->base) c->head_ns = now;
    return c->head_ns;
}

static void look_at_idle(struct ingress *in, struct connection *c, u64 now, bool crowded)
{
    const struct config *config = in->spec.config;
    u64 since = atomic_load(&c->since_ns), head = head_since(c, since, now);
    u64 limit = c->over   ? ms(OVER_MS)
                : head    ? seconds(config->header_timeout_s)
                : crowded ? ms(CROWDED_MS)
                          : seconds(config->keep_alive_timeout_s);
    u64 start = head ? head : since;
    if (now < start + limit || !move(c, CONNECTION_IDLE, CONNECTION_CUT)) return;
    if (head) say_too_slow(in, c, "headers", config->header_timeout_s);
    cut(c);
}

static void look_at(struct ingress *in, struct connection *c, u64 now, bool crowded)
{
    double limit_s = in->spec.config->body_timeout_s;
    switch (atomic_load(&c->phase)) {
    case CONNECTION_IDLE: look_at_idle(in, c, now, crowded); break;
    case CONNECTION_BODY:
        if (now < atomic_load(&c->since_ns) + seconds(limit_s)) break;
        if (!move(c, CONNECTION_BODY, CONNECTION_CUT)) break;
        say_too_slow(in, c, "body", limit_s);
        cut(c);
        break;
    default: break;
    }
}

void connections_tick(struct ingress *in, u64 now)
{
    struct connections *cs = &in->connections;
    pthread_mutex_lock(&cs->lock);
    i64 most = in->spec.config->max_connections, left = cs->n;
    for (struct connection *c = cs->first; c; c = c->next) {
        look_at(in, c, now, left * 10 > most * 9); /* the oldest first */
        left -= atomic_load(&c->phase) == CONNECTION_CUT;
    }
    if (cs->full && cs->n < most) { /* it was the system that had no room */
        watch_accepts(in, true);
        cs->full = false;
    }
    pthread_mutex_unlock(&cs->lock);
}
