/* The HTTP library's side: connections come in, exchanges go through, answers leave. */
#include "ingress/http.h"

#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

enum {
    CONNECTION_MEMORY = 32 * 1024, /* at least; more is mapped by the library for each connection anew */
    HEADER_MEMORY = 80,            /* that the library needs for each header, beside its text */
    ANSWER_MEMORY = 8 * 1024,
    BLOCK = 16 * 1024, /* bytes of a stream written at once */
    READ_ANYWAY =
        64 * 1024, /* a refused body up to this is read, so that the client sees the answer and can go on */
};

/* ---- replies ------------------------------------------------------------------------------------------------- */
static void add_header(struct MHD_Response *r, const char *name, const char *value)
{
    if (MHD_add_response_header(r, name, value) != MHD_YES) log_debug("http: header %s was not taken", name);
}

static void add_error_headers(struct MHD_Response *r, const struct api_error *e)
{
    char seconds[16];
    snprintf(seconds, sizeof(seconds), "%u", e->retry_after_s);
    if (e->retry_after_s) add_header(r, MHD_HTTP_HEADER_RETRY_AFTER, seconds);
    if (e->no_retry) add_header(r, "x-should-retry", "false");
    if (e->close) add_header(r, MHD_HTTP_HEADER_CONNECTION, "close");
    if (e->kind == API_NO_KEY) add_header(r, MHD_HTTP_HEADER_WWW_AUTHENTICATE, "Bearer");
    if (e->kind == API_BAD_METHOD) add_header(r, MHD_HTTP_HEADER_ALLOW, e->param);
}

static int queue(struct exchange *x, int status, struct MHD_Response *r)
{
    if (!connection_answers(x->link)) { /* too late: it was told so */
        MHD_destroy_response(r);
        return -1;
    }
    x->status = status;
    x->replied = true;
    add_header(r, "x-request-id", x->request_id);
    enum MHD_Result ok = MHD_queue_response(x->connection, (unsigned)status, r);
    MHD_destroy_response(r);
    return ok == MHD_YES ? 0 : -1;
}

static struct MHD_Response *response(const char *media_type, struct buf *body)
{
    if (!body->data) buf_reserve(body, 1);
    struct MHD_Response *r = MHD_create_response_from_buffer(body->len, body->data, MHD_RESPMEM_MUST_FREE);
    if (!r) {
        buf_release(body);
        return NULL;
    }
    *body = (struct buf){0};
    if (media_type) add_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, media_type);
    return r;
}

int reply_text(struct exchange *x, int status, const char *media_type, struct buf *body)
{
    struct MHD_Response *r = response(media_type, body);
    return r ? queue(x, status, r) : -1;
}

int reply_json(struct exchange *x, int status, struct buf *body)
{
    return reply_text(x, status, "application/json", body);
}

int reply_error(struct exchange *x, const struct api_error *e)
{
    struct api_error shown = *e;
    struct buf body = {0};
    if (e->kind == API_BAD_METHOD) shown.param[0] = 0; /* there it holds what Allow says */
    api_error_json(&shown, &body);
    struct MHD_Response *r = response("application/json", &body);
    if (!r) return -1;
    add_error_headers(r, e);
    return queue(x, api_status(e->kind), r);
}

static ssize_t read_stream(void *cls, uint64_t pos, char *to, size_t max)
{
    struct exchange *x = cls;
    struct call *c = x->call;
    (void)pos;
    loop_served(x->loop); /* a long stream is not to wait for naps between its blocks */
    for (;;) {
        if (c->out.len > c->out_at) {
            size_t n = MIN_OF(max, c->out.len - c->out_at);
            memcpy(to, c->out.data + c->out_at, n);
            c->out_at += n;
            if (c->out_at == c->out.len) {
                buf_clear(&c->out);
                c->out_at = 0;
            }
            atomic_store(&c->last_write_ns, clock_ns());
            return (ssize_t)n;
        }
        if (c->over) return MHD_CONTENT_READER_END_OF_STREAM;
        if (call_advance(c)) return MHD_CONTENT_READER_END_WITH_ERROR;
        if (!c->out.len && !c->over && call_sleep(c, exchange_suspend)) return 0;
    }
}

int reply_stream(struct exchange *x)
{
    struct MHD_Response *r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK, read_stream, x, NULL);
    if (!r) return -1;
    add_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, "text/event-stream; charset=utf-8");
    add_header(r, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache");
    add_header(r, "X-Accel-Buffering", "no");
    return queue(x, 200, r);
}

static const char *allowed(u8 methods)
{
    static const char *const texts[] = {
        [0] = "GET, HEAD, POST, OPTIONS",
        [METHOD_GET] = "GET, HEAD, OPTIONS",
        [METHOD_POST] = "POST, OPTIONS",
        [METHOD_GET | METHOD_POST] = "GET, HEAD, POST, OPTIONS",
        [METHOD_GET | METHOD_DELETE] = "GET, HEAD, DELETE, OPTIONS",
    };
    return texts[methods];
}

static int reply_options(struct exchange *x, u8 methods)
{
    struct buf none = {0};
    struct MHD_Response *r = response(NULL, &none);
    if (!r) return -1;
    add_header(r, MHD_HTTP_HEADER_ALLOW, allowed(methods));
    return queue(x, 204, r);
}

const char *exchange_header(const struct exchange *x, const char *name)
{
    return MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, name);
}

/* ---- sleeping ------------------------------------------------------------------------------------------------ */
int exchange_fd(const struct exchange *x)
{
    return x->link->fd;
}

static struct connection *link_of(struct MHD_Connection *connection)
{
    return MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
}

void exchange_suspend(void *exchange)
{
    MHD_suspend_connection(((struct exchange *)exchange)->connection);
}

void exchange_wake(void *exchange)
{
    struct exchange *x = exchange;
    loop_wake(x->loop, &x->errand);
}

/* ---- what is refused before the body is read ------------------------------------------------------------------*/
static int check_client(struct exchange *x)
{
    if (!x->link->over) return 0;
    api_fail(&x->error, API_TOO_MANY, NULL,
             "This client has more than %lld connections (--max-connections-per-client).",
             (long long)x->in->spec.config->max_connections_per_client);
    x->error.close = true;
    return -1;
}

static int check_key(struct exchange *x)
{
    if (x->route && (x->route->flags & ROUTE_OPEN)) return 0;
    const char *bearer = exchange_header(x, MHD_HTTP_HEADER_AUTHORIZATION);
    const char *api_key = exchange_header(x, "x-api-key");
    if (auth_ok(x->in->spec.key, bearer, api_key)) return 0;
    return api_fail(&x->error, API_NO_KEY, NULL, "%s",
                    bearer || api_key ? "The API key is not right."
                                      : "An API key is needed: send `Authorization: Bearer KEY`.");
}

static int check_route(struct exchange *x, u8 methods)
{
    bool closed = x->route && (x->route->flags & ROUTE_ADMIN) && !x->in->spec.config->enable_admin;
    if (closed)
        return api_fail(&x->error, API_NO_ROUTE, NULL, "Administration is off; --enable-admin offers it.");
    if (x->route) return 0;
    if (!methods) return api_fail(&x->error, API_NO_ROUTE, NULL, "There is no such page; see /v1/models.");
    api_fail(&x->error, API_BAD_METHOD, allowed(methods), "This page does not know that method.");
    return -1;
}

static int check_length(struct exchange *x, u64 length)
{
    i64 most = x->in->spec.config->max_request_bytes;
    if (length <= (u64)most) return 0;
    api_fail(&x->error, API_TOO_LARGE, NULL, "The body has more than %lld bytes (--max-request-bytes).",
             (long long)most);
    x->error.close = true;
    return -1;
}

static int check_state(struct exchange *x)
{
    int state = atomic_load(&x->in->state);
    if (state == IN_READY || !x->route || !(x->route->flags & ROUTE_WORK)) return 0;
    bool reserved = (x->route->flags & ROUTE_RESERVED) && exchange_header(x, "X-Reservation");
    if (state == IN_DRAINING && reserved) return 0;
    if (state == IN_LOADING)
        return api_fail(&x->error, API_UNAVAILABLE, NULL, "The model is being loaded. Try again soon.");
    api_fail(&x->error, API_UNAVAILABLE, NULL, "This node is being drained.");
    x->error.close = true;
    return -1;
}

bool request_id_ok(const char *id)
{
    size_t len = id ? strlen(id) : 0;
    bool ok = len >= 1 && len <= 128;
    for (size_t i = 0; i < len; i++) ok &= id[i] > ' ' && id[i] < 0x7f;
    return ok;
}

static void choose_request_id(struct exchange *x)
{
    const char *given = exchange_header(x, "X-Request-Id");
    x->named = request_id_ok(given);
    if (x->named) {
        strcpy(x->request_id, given);
        return;
    }
    for (size_t half = 0; half < 2; half++)
        for (u64 i = 0, draw = random_u64(); i < 16; i++, draw >>= 4)
            x->request_id[16 * half + i] = "0123456789abcdef"[draw & 15];
}

static const char *known_method(const char *method)
{
    static const char *const known[] = {"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"};
    for (size_t i = 0; i < COUNT_OF(known); i++)
        if (strcmp(method, known[i]) == 0) return known[i];
    return "OTHER";
}

static enum MHD_Result begin(struct exchange *x, const char *url, const char *version)
{
    u64 length;
    bool chunked;
    u8 methods;
    const char *tail;
    choose_request_id(x);
    x->route = route_find(url, x->method, &tail, &methods);
    if (strlen(tail) < sizeof(x->tail)) strcpy(x->tail, tail);
    int framing = framing_check(x, url, version, &length, &chunked);
    if (framing == 0 && strcmp(x->method, "OPTIONS") == 0)
        return reply_options(x, methods) == 0 ? MHD_YES : MHD_NO;
    x->refused = framing < 0 || check_client(x) < 0 || check_key(x) < 0 || check_route(x, methods) < 0 ||
                 check_length(x, length) < 0 || check_state(x) < 0;
    if (!x->refused) return MHD_YES;
    bool waits = exchange_header(x, MHD_HTTP_HEADER_EXPECT) != NULL;
    if (!x->error.close && !waits && !chunked && length <= READ_ANYWAY) return MHD_YES;
    x->error.close = true;
    return reply_error(x, &x->error) == 0 ? MHD_YES : MHD_NO;
}

/* ---- the library's calls ------------------------------------------------------------------------------------- */
static enum MHD_Result take_body(struct exchange *x, const char *data, size_t *size)
{
    size_t len = *size;
    *size = 0;
    x->n_body += len;
    if (!x->refused && check_length(x, x->n_body) < 0) {
        x->refused = true;
        buf_release(&x->body);
    }
    if (!x->refused) buf_add(&x->body, data, len);
    /* read on for a while, so that the answer is not lost in a reset */
    return x->n_body <= 2 * (u64)x->in->spec.config->max_request_bytes + READ_ANYWAY ? MHD_YES : MHD_NO;
}

static enum MHD_Result handle(void *cls, struct MHD_Connection *connection, const char *url,
                              const char *method, const char *version, const char *upload,
                              size_t *upload_size, void **con_cls)
{
    struct exchange *x = *con_cls;
    loop_served(cls);
    if (!x) {
        u64 now = clock_ns();
        struct connection *link = link_of(connection);
        if (!connection_begins(link, now)) return MHD_NO;
        x = mem_zero(1, sizeof(*x));
        x->link = link;
        x->loop = cls;
        x->in = loop_ingress(cls);
        x->connection = connection;
        x->method = known_method(method);
        x->started_ns = now;
        *con_cls = x;
        return begin(x, url, version);
    }
    if (x->replied) return MHD_YES;
    if (*upload_size) return take_body(x, upload, upload_size);
    if (x->call) return generate_go_on(x) == 0 ? MHD_YES : MHD_NO;
    if (x->ask) return reserve_go_on(x) == 0 ? MHD_YES : MHD_NO;
    if (!x->answering && !connection_answers(x->link)) return MHD_NO;
    if (!x->answering) atomic_fetch_add(&x->in->n_answering, 1);
    x->answering = true;
    if (x->refused) return reply_error(x, &x->error) == 0 ? MHD_YES : MHD_NO;
    return x->route->answer(x) == 0 ? MHD_YES : MHD_NO;
}

static void count(const struct exchange *x)
{
    static const char *const classes[] = {"1xx", "2xx", "3xx", "4xx", "5xx"};
    int status = x->status ? x->status : x->answering ? 499 : 0; /* 499: the client left before its answer */
    if (!status || (x->route && (x->route->flags & ROUTE_UNCOUNTED))) return;
    const char *handler = x->route ? x->route->path : "none";
    struct ingress_series *s = &x->in->series;
    series_add(
        metric_series(s->http_requests, (const char *[]){handler, x->method, classes[status / 100 - 1]}), 1);
    series_observe(metric_series(s->http_seconds, (const char *[]){handler, x->method}),
                   (double)(clock_ns() - x->started_ns) / NS_PER_S);
}

static void completed(void *cls, struct MHD_Connection *connection, void **con_cls,
                      enum MHD_RequestTerminationCode code)
{
    struct exchange *x = *con_cls;
    (void)cls, (void)connection;
    if (!x) return;
    *con_cls = NULL;
    log_debug("http: %s %s %d, ended with %d", x->method, x->route ? x->route->path : "none", x->status,
              (int)code);
    count(x);
    if (x->call) call_close(x->call);
    if (x->ask) ask_close(x, x->status == 201 && code == MHD_REQUEST_TERMINATED_COMPLETED_OK);
    if (x->answering) atomic_fetch_sub(&x->in->n_answering, 1);
    buf_release(&x->body);
    connection_rests(x->link);
    free(x);
}

static void connection_changed(void *cls, struct MHD_Connection *connection, void **link,
                               enum MHD_ConnectionNotificationCode what)
{
    (void)connection;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        *link = loop_arriving(cls);
        return;
    }
    connection_close(loop_ingress(cls), *link);
    loop_lost(cls);
}

static void log_library(void *cls, const char *fmt, va_list args)
{
    char text[300];
    (void)cls;
    if (!log_wants(LOG_DEBUG)) return;
    vsnprintf(text, sizeof(text), fmt, args);
    log_debug("http library: %s", text);
}

/* Before the library makes room for each argument: it ends a connection without a word when there is none. */
static void *look_at_target(void *cls, const char *target, struct MHD_Connection *connection)
{
    struct ingress *in = loop_ingress(cls);
    i64 most = in->spec.config->max_header_count, n = 1;
    for (const char *at = strchr(target, '&'); at; at = strchr(at + 1, '&')) n++;
    if (n <= most) return NULL;
    struct api_error e;
    api_fail(&e, API_LONG_TARGET, NULL,
             "The target of the request has more than %lld arguments (--max-header-count).", (long long)most);
    connection_refuse(in, link_of(connection), &e);
    return NULL; /* what belongs to an exchange that begins */
}

/* %XX to bytes, but %00 stays: it would cut the path short. */
static size_t unescape(void *cls, struct MHD_Connection *connection, char *s)
{
    char *to = s;
    (void)cls, (void)connection;
    for (const char *at = s; *at;) {
        unsigned value;
        bool hex = at[0] == '%' && strspn(at + 1, "0123456789abcdefABCDEF") >= 2 &&
                   sscanf(at + 1, "%2x", &value) == 1;
        *to++ = hex && value ? (char)value : *at;
        at += hex && value ? 3 : 1;
    }
    *to = 0;
    return (size_t)(to - s);
}

/* ---- life ---------------------------------------------------------------------------------------------------- */
struct MHD_Daemon *http_daemon(struct http_loop *loop, struct ingress *in, struct error *err)
{
    const struct config *c = in->spec.config;
    size_t memory = (size_t)c->max_header_bytes + (size_t)c->max_header_count * HEADER_MEMORY + ANSWER_MEMORY;
    /* Whoever is slow with a request or idle is ended by the watcher; this one is for those that do not read. */
    double silence_s = MAX_OF(MAX_OF(c->keep_alive_timeout_s, c->body_timeout_s), c->header_timeout_s) + 2;
    /* Exchanges are resumed by the thread itself: the library need not wake it. */
    unsigned suspend = MHD_ALLOW_SUSPEND_RESUME & ~(unsigned)MHD_USE_ITC;
    struct MHD_Daemon *d = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_USE_NO_LISTEN_SOCKET | MHD_USE_ERROR_LOG | suspend, 0, NULL, NULL, handle, loop,
        MHD_OPTION_EXTERNAL_LOGGER, log_library, NULL, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)c->max_connections, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)silence_s,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, MAX_OF(memory, (size_t)CONNECTION_MEMORY),
        MHD_OPTION_NOTIFY_CONNECTION, connection_changed, loop, MHD_OPTION_NOTIFY_COMPLETED, completed, NULL,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, MHD_OPTION_URI_LOG_CALLBACK,
        look_at_target, loop, MHD_OPTION_UNESCAPE_CALLBACK, unescape, NULL, MHD_OPTION_END);
    if (!d) error_set(err, ERR_IO, "ingress", "the HTTP library could not start");
    return d;
}
