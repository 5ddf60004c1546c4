/* Calls: a client's request from its first token to its last, without HTTP. Inner door of ingress/.
 *
 * A call has a part for each prompt (a request to the agent) and n choices for each part. The main thread and the watcher touch only
 * what is under `lock` (the mailbox and its flags); all else belongs to the HTTP thread that answers the call, one at a time.
 *
 * Life: call_new -> call_start -> { call_advance, call_sleep } until over -> call_close. Open parts keep the memory of a closed call
 * until their last chunk has come. */
#ifndef INGRESS_CALL_H
#define INGRESS_CALL_H

#include "ingress/api.h"
#include "mpiserve/ingress.h"
#include "mpiserve/metrics.h"
#include "mpiserve/text.h"

#include <pthread.h>
#include <stdatomic.h>

struct call;
struct prompt {
    i32 *ids; /* in the call's arena */
    u32 n;
    u32 before, behind;   /* of these, what the tokenizer put around a text */
    u32 second;           /* as in struct request */
    struct api_text text; /* what echo shows (NULL: the decoded ids), or a document */
};
struct part {
    u64 id; /* of the request block */
    struct part *next;
    struct call *call;
    u32 index;            /* of the prompt */
    u32 n_done;           /* choices that ended; HTTP thread */
    bool cut;             /* one of them by a stop string, which the agent cannot know; HTTP thread */
    bool open, cancelled; /* under the call's lock */
};
enum { LP_TOKENS, LP_VALUES, LP_TOP, LP_OFFSETS, LP_LISTS }; /* chat uses the first only */
struct choice {
    struct detok detok;
    struct stop_scan stops;
    struct buf text;          /* unary: all of it; stream: what was not sent yet */
    struct buf lp[LP_LISTS];  /* JSON items, the same way */
    struct buf ids;           /* the same, when asked for */
    struct buf vector;        /* float[]: of embeddings, when it has ended */
    u32 n_received, n_tokens; /* tokens that came; tokens that count */
    u32 n_unsent;             /* tokens since the last event */
    u64 chars;                /* characters decoded so far */
    u64 first_ns, last_ns;    /* arrival of the first and of the last token */
    enum finish finish;
    i32 stop_id, stop_string; /* -1: none */
    bool started;             /* its first event was written */
};
struct call {
    struct ingress *in;
    u64 serial;
    struct call *next; /* live calls of a shard, under its lock */
    _Atomic u32 refs;
    void (*wake)(void *http); /* lets the sleeping HTTP side run again */
    void *http;
    int fd; /* of the connection, open until call_close */
    struct arena mem;
    struct params p;
    struct sampling sampling; /* max_tokens and min_tokens are of each part */
    bool has_reservation;
    struct reservation_id reservation;
    bool has_session;
    u64 session; /* as in struct request */
    u32 adapter; /* the same */
    i32 *bad_words;
    u32 n_bad_words;
    struct prompt *prompts;
    struct part *parts;
    struct choice *choices; /* [n_prompts, n] */
    u32 n_prompts, n_choices;
    char id[160];
    struct api_text prompt_text; /* chat, when asked for */
    i64 created;
    u64 started_ns, deadline_ns; /* deadline 0: none */
    _Atomic u64 last_write_ns;

    pthread_mutex_t lock;
    struct buf mail; /* {u64 arrival, chunk} ... */
    u32 n_open;      /* parts with the agent */
    bool sleeping, closed, gone, timed_out, ping, poke;
    bool watched; /* fd is in the watcher's set */

    struct buf batch, piece, head, out; /* mail being read; scratch; begin of an event; events not sent yet */
    size_t out_at;
    u32 n_submitted, n_ended;
    u64 n_prompt_tokens, n_cached;
    bool failed, over, event_sent; /* over: nothing more will be written to out */
    struct api_error error;        /* failed */
};

struct shard {
    pthread_mutex_t lock;
    struct part *parts[64];
    struct call *live;
};
enum { SHARDS = 64 };
enum ingress_state { IN_LOADING, IN_READY, IN_DRAINING, IN_ABORTED };

struct ingress_series { /* looked up once */
    struct series *prompt_cached, *success[COUNT_OF(METRICS_FINISHED_REASONS)];
    struct series *request_prompt, *request_generation, *request_max, *request_n;
    struct series *first_token, *inter_token, *per_token, *e2e;
    struct metric *http_requests, *http_seconds;
    struct series *too_late, *first_level[2], *token_level[2]; /* met, missed; NULL: no level is set */
};

/* What an HTTP thread is told by others. */
enum errand_what { ERRAND_GO_ON, ERRAND_ARRIVAL, ERRAND_STOP }; /* with an exchange; serve a connection */
struct errand {
    struct queue_node node;
    enum errand_what what;
};

/* connections.c: open connections, oldest first. */
enum connection_phase {
    CONNECTION_COMING,
    CONNECTION_IDLE,
    CONNECTION_BODY,
    CONNECTION_ANSWER,
    CONNECTION_CUT
};
struct connection {
    struct errand errand;               /* on its way to the thread that will serve it */
    struct connection *next, *previous; /* under the list's lock */
    u64 address[2];
    int fd;
    bool over; /* its client has too many */
    _Atomic int phase;
    _Atomic u64 since_ns; /* begin of the phase */
    _Atomic u64 base;     /* bytes that came before the request that is awaited */
    u64 looked_at,
        head_ns; /* the watcher's: since_ns of the phase it saw; first sight of the request's bytes */
};
struct client;
struct connections {
    pthread_mutex_t lock;
    struct connection *first, *last;
    i64 n;
    bool full; /* nobody is let in until one leaves */
    struct client *clients[256];
};
void connections_init(struct connections *cs);
void connections_release(struct connections *cs);
void connections_tick(struct ingress *in, u64 now); /* the watcher: ends those that take too long */
/* The watcher: true: there are as many as may be, or one more cannot be had; nobody is let in until one has left, or the next tick. */
bool connections_full(struct ingress *in, bool cannot);

struct ask;
struct asks { /* POST /v1/reservations that wait for the main thread */
    pthread_mutex_t lock;
    struct ask *first;
    u64 last_id;
};

struct http_loop;
struct ingress {
    struct ingress_spec spec;
    struct tokenizer *tokenizer;
    struct chat_template *chat_template; /* NULL: none_why says why */
    char none_why[512];
    struct api_limits limits;
    size_t longest_token; /* bytes */
    const char *model_name;
    _Atomic int state; /* enum ingress_state */
    char abort_why[256];
    struct shard shards[SHARDS];
    struct connections connections;
    struct asks asks;
    _Atomic u64 next_id, next_serial;
    _Atomic u32 n_answering, n_parts;
    struct metrics *metrics;
    struct ingress_series series;
    struct http_loop *loops; /* [config.http_threads] */
    i64 started_unix;
    int listen_fd, port;
    int watch_fd, watch_stop_fd;
    pthread_t watch_thread;
};

/* ---- calls.c ---- */
struct call *call_new(struct ingress *in);
/* The first of the names that is neither NULL nor empty is the session. */
struct route_ask session_of(const char *const *names, size_t n);
void call_set_session(struct call *c, const char *const *names, size_t n);
void call_unref(struct call *c);
/* p, sampling, prompts are set: makes the parts and hands them to the agent; -1 with *e: nothing runs. */
int call_start(struct call *c, struct api_error *e);
/* Reads the mailbox and flags; true when the client has gone (then only close is left). */
bool call_advance(struct call *c);
/* suspend(http) is called, under the lock, when nothing is waiting to be read: then true. */
bool call_sleep(struct call *c, void (*suspend)(void *http));
void call_close(
    struct call *c); /* the HTTP side is done with it: cancels what runs, gives its reference back */
void call_fail(struct call *c, const struct api_error *e);
/* Deadlines, keep-alive comments, calls that wait for room; and connections that sleep from one tick to the next get watched. */
void calls_tick(struct ingress *in, u64 now);
void calls_wake_all(struct ingress *in);
void calls_client_gone(struct ingress *in, u64 serial);
void calls_release(struct ingress *in); /* parts that never got their last chunk */

/* ---- reservations.c ---- */
/* 32 hex digits; false: it is no id. */
bool reservation_id_read(const char *text, struct reservation_id *id);
/* What submit said of a reservation, as an error; -1. */
int reservation_fail(int rc, struct api_error *e);
void asks_init(struct ingress *in);
void asks_release(struct ingress *in);
void asks_wake_all(struct ingress *in);

/* ---- watch.c: the thread that lets clients in, ticks and sees clients leave ---- */
int watch_start(struct ingress *in, struct error *err);
void watch_stop(struct ingress *in);    /* no ticks any more */
void watch_release(struct ingress *in); /* after the last connection */
void watch_add(struct ingress *in, int fd, u64 serial);
void watch_remove(struct ingress *in, int fd);
void watch_accepts(struct ingress *in, bool accepts);

/* ---- levels.c: times that clients saw, and who of them got the service levels that are promised ---- */
void levels_init(struct ingress *in); /* after in->metrics was made */
void levels_first_token(struct ingress *in, double seconds);
void levels_per_token(struct ingress *in, double seconds); /* mean of a choice's tokens after the first */

/* ---- choice.c ---- */
void choice_init(struct call *c, struct choice *ch, const struct prompt *prompt);
void choice_release(struct choice *ch);
/* New tokens of the choice; -1: the chunk does not follow what came before. */
int choice_feed(struct call *c, struct choice *ch, const struct chunk *chunk, u64 now);
const char *choice_finish_reason(const struct choice *ch);

/* ---- answer.c, stream.c ---- */
/* The name in answers: the model's first one, or the adapter's. */
static inline const char *call_model(const struct call *c)
{
    return c->adapter ? c->in->spec.config->lora_modules[c->adapter - 1].name : c->in->model_name;
}
void answer_json(struct call *c, struct buf *to); /* the whole answer of a call that is over */
void answer_usage(const struct call *c, struct buf *to,
                  bool whole); /* {"prompt_tokens":...}; whole: with details */
void answer_logprobs(const struct call *c, const struct choice *ch, struct buf *to);
void answer_stop_reason(const struct call *c, const struct choice *ch, struct buf *to);
void answer_vectors(struct call *c, struct buf *to); /* embeddings.c: the same of /v1/embeddings */
void answer_scores(struct call *c, struct buf *to);  /* pairs.c: of /v1/rerank and /v1/score */
void answer_base64(const void *from, size_t len, struct buf *to);
void answer_float(struct buf *to,
                  float v); /* the shortest decimal that reads back as v; what is not finite: -9999 */
void answer_text(struct buf *to, const char *s, size_t len); /* a JSON string; s NULL: empty */
void answer_id_list(const i32 *ids, u32 n, struct buf *to);  /* [1,2] */
void stream_begin(struct call *c);
void stream_choice(struct call *c, struct choice *ch); /* what the choice has to say now, into c->out */
void stream_end(struct call *c);                       /* usage, or the error, and [DONE] */

#endif
