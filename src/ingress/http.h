/* An exchange: one HTTP request and its answer. Inner door of ingress/: handlers see this, and no HTTP library.
 *
 * A handler answers with one of the reply functions, or puts the exchange to sleep; it is called by one HTTP thread at a time. */
#ifndef INGRESS_HTTP_H
#define INGRESS_HTTP_H

#include "ingress/call.h"

struct MHD_Connection;
struct exchange;
enum {
    METHOD_GET = 1,
    METHOD_POST = 2,
    METHOD_DELETE = 4,
    ROUTE_OPEN = 1,
    ROUTE_WORK = 2,
    ROUTE_UNCOUNTED = 4,
    ROUTE_TAIL = 8,
    ROUTE_ADMIN = 16,
    ROUTE_RESERVED = 32
};
struct route {
    const char *path;
    u8 methods;
    u8 flags; /* OPEN: no key asked; WORK: refused while loading or draining; UNCOUNTED: not in the HTTP metrics; TAIL: prefix; ADMIN: only with --enable-admin; RESERVED: not refused while draining when it has a reservation */
    int (*answer)(struct exchange *x);
};
struct exchange {
    struct errand errand; /* it was woken */
    struct ingress *in;
    struct http_loop *loop; /* the thread that has its connection */
    struct MHD_Connection *connection;
    struct connection *link;
    const struct route *route; /* NULL: none */
    const char *method;        /* a constant */
    char tail[256];            /* of the path, behind a ROUTE_TAIL route */
    char request_id[132];
    struct buf body;
    u64 n_body;             /* bytes that came, kept or not */
    struct api_error error; /* refused: what to say when the body has been read */
    bool named;             /* request_id is the client's own */
    bool refused, answering, replied;
    u64 started_ns;
    int status;
    struct call *call;
    struct ask *ask;
};

/* All return 0, or -1: the connection is to be closed. body is taken (empty afterwards). */
int reply_json(struct exchange *x, int status, struct buf *body);
int reply_text(struct exchange *x, int status, const char *media_type, struct buf *body);
int reply_error(struct exchange *x, const struct api_error *e);
int reply_stream(struct exchange *x); /* events of x->call, until it is over */
bool request_id_ok(const char *id);   /* printable, at most 128 bytes */
const char *exchange_header(const struct exchange *x, const char *name); /* NULL: absent */
int exchange_fd(const struct exchange *x);
void exchange_suspend(void *exchange); /* call_sleep calls it */
void exchange_wake(void *exchange);    /* any thread, once for each suspend */

/* routes.c: the table; the methods of a path that is known are in *allow. */
const struct route *route_find(const char *path, const char *method, const char **tail, u8 *methods);

/* connections.c: what each connection is doing. The watcher opens them; HTTP threads say what comes then; false: the watcher has ended
 * it, and it is to be closed. */
struct sockaddr;
struct connection *connection_open(struct ingress *in, int fd, const struct sockaddr *address);
void connection_close(struct ingress *in, struct connection *c);
void connection_taken(struct connection *c);           /* its thread has it: from here on its time counts */
bool connection_begins(struct connection *c, u64 now); /* the headers of a request are here */
bool connection_answers(struct connection *c);         /* all of it is */
void connection_rests(struct connection *c);           /* its answer has gone out */
/* Answers and ends a connection whose request cannot be read; no exchange comes of it. */
void connection_refuse(struct ingress *in, struct connection *c, const struct api_error *e);

/* framing.c: sizes and meaning of the headers; -1: x->error says why, and the connection is to be closed. */
int framing_check(struct exchange *x, const char *url, const char *version, u64 *length, bool *chunked);

/* auth.c */
bool auth_ok(const char *key, const char *authorization, const char *x_api_key);

/* Handlers. generate.c */
int answer_drain(struct exchange *x);
int answer_completions(struct exchange *x);
int answer_chat(struct exchange *x);
int answer_embeddings(struct exchange *x);
int answer_rerank(struct exchange *x);
int answer_score(struct exchange *x);
int generate_go_on(struct exchange *x); /* the connection was resumed */
/* reservations.c */
int answer_reserve(struct exchange *x);
int answer_reservation(struct exchange *x);
int reserve_go_on(struct exchange *x); /* the connection was resumed */
/* The exchange is over; a reservation that its client was not told of is given back. */
void ask_close(struct exchange *x, bool told);
/* tokens.c */
int answer_tokenize(struct exchange *x);
int answer_detokenize(struct exchange *x);
int answer_apply_template(struct exchange *x);
/* pages.c */
int answer_models(struct exchange *x);
int answer_model(struct exchange *x);
int answer_health(struct exchange *x);
int answer_live(struct exchange *x);
int answer_load(struct exchange *x);
int answer_metrics(struct exchange *x);
int answer_version(struct exchange *x);
int answer_topology(struct exchange *x);

/* generate.c: the body as JSON, or -1 with *e; `model` of a body is one of ours: the model
 * itself (*adapter 0) or an adapter, by number; adapter may be NULL. */
struct json *body_read(struct exchange *x, struct api_error *e);
bool header_integer(const char *text, i64 *value);
int model_check(const struct ingress *in, const char *name, u32 *adapter, struct api_error *e);

/* listen.c: a listening socket on host and port; *port is the real one. */
int listen_open(const char *host, int port, int *fd, int *real_port, struct error *err);

/* http.c: the library, for one thread. */
struct MHD_Daemon *http_daemon(struct http_loop *loop, struct ingress *in, struct error *err);

/* loops.c: the HTTP threads. */
int loops_start(struct ingress *in, struct error *err);
void loops_stop(struct ingress *in); /* whoever sleeps has been woken; closes what is open */
void loops_give(struct ingress *in, struct connection *c); /* the watcher: to the thread that has fewest */
void loop_wake(struct http_loop *l, struct errand *e);     /* any thread */
struct ingress *loop_ingress(const struct http_loop *l);   /* from here on: the thread itself */
struct connection *loop_arriving(struct http_loop *l);     /* whose begin the library tells */
void loop_served(struct http_loop *l);                     /* there was something to do */
void loop_lost(struct http_loop *l);                       /* one of its connections has ended */

#endif
