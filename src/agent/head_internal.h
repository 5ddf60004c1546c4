/* Inside agent/: the head's flights (requests between HTTP and replicas) and its view of the replicas. */
#ifndef MPISERVE_AGENT_HEAD_INTERNAL_H
#define MPISERVE_AGENT_HEAD_INTERNAL_H

#include "agent/agent_internal.h"
#include "agent/gate.h"
#include "agent/reservations.h"
#include "mpiserve/ingress.h"
#include "mpiserve/kv.h"
#include "mpiserve/metrics.h"
#include "mpiserve/route.h"
#include <pthread.h>
#include <stdatomic.h>

struct command { /* from an HTTP thread */
    struct queue_node node;
    enum { COMMAND_SUBMIT, COMMAND_CANCEL, COMMAND_DRAIN, COMMAND_RESERVE, COMMAND_RELEASE } what;
    struct request *request; /* SUBMIT */
    u64 *prefix;             /* SUBMIT: [n_prefix] hashes of its prompt, if the router wants them */
    u32 n_prefix;
    u64 id;                            /* of the request; RESERVE: the ingress's number */
    struct reservation_id reservation; /* RESERVE: its name */
    struct route_ask about;            /* RESERVE */
    struct selection selection; /* SUBMIT of a reservation, RELEASE: whose slot now is the main thread's */
    u64 granted_ns;
};
struct flight {
    struct route_waiter wait; /* first: the queue hands it back */
    struct flight *next;      /* of its hash chain */
    struct request *request;
    u64 *prefix; /* [n_prefix], or NULL */
    u32 n_prefix;
    u64 id, submitted_ns, dispatched_ns; /* 0: the first chunk has come */
    struct selection selection;
    i32 replica; /* of the selection */
    struct gate_mark gate;
    u32 retries;
    u32 n_open;     /* samples whose end the client does not have */
    bool cancelled; /* nobody waits for it */
    struct sample_progress {
        u32 delivered; /* output tokens handed to the ingress */
        bool finished;
    } * samples;
};
struct replica_view {
    struct msg_load load;
    u64 heard_ns; /* last LOAD or CHUNK */
};
struct replica_watch { /* is its leader late? see silence.c */
    u32 dispatched;    /* requests that run there */
    u64 since_ns;      /* since when there are some */
    bool late;
};
enum { FLIGHT_CHAINS = 4096, MAX_RETRIES = 3 };
struct head {
    struct agent *agent;
    struct ingress *ingress;
    struct queue *commands;
    struct flight *chains[FLIGHT_CHAINS];
    u32 n_flights;
    struct route_queue waiting;
    struct route_view *views;      /* [n_replicas] */
    struct replica_watch *watches; /* [n_replicas] */
    u64 watched_ns;
    u32 n_replicas, n_full; /* full: ROUTE_FULL */
    struct router *router;  /* told of every change of views */
    bool retry_due;         /* a slot may have come free since the queue was tried */
    u32 retry_gap_ms;
    u64 retry_queue_ns, drain_started_ns, hurry_ns;
    bool wants_prefix;
    bool ready, all_up, draining, closing, hurried; /* closing: no slot can be had any more */
    /* several ingresses: heads.c. Arrays by ingress index */
    bool close_sent;
    u32 *stages;                  /* how far each is in the drain, as far as it was told */
    struct route_demand *demands; /* as each said last */
    u32 n_others_wait;
    bool told_waiting;
    u64 demand_ns, yielded_ns;
    char (*urls)[320];          /* NULL: there is one ingress */
    double seconds_per_request; /* smoothed, for Retry-After */
    u32 slots_up, replicas_up;
    char url[320], key_file[PATH_LEN], fingerprint[64];
    struct buf scratch;
    struct reservation_book book; /* HTTP threads look at it too: under book_lock */
    pthread_mutex_t book_lock;
    struct measures measures;
    struct gate gate;
    struct metrics *latency;     /* measured here; the rest is reported by leaders */
    struct series **first_chunk; /* [n_replicas] */
    /* read by HTTP threads */
    pthread_mutex_t lock;          /* replicas[] */
    struct replica_view *replicas; /* [n_replicas] */
    _Atomic u32 outstanding;       /* taken from HTTP threads, not ended */
    _Atomic u32 capacity;          /* slots of replicas that are up, plus the queue */
    _Atomic u32 n_waiting;
    _Atomic u32 n_held;        /* reservations; who uses one is in `outstanding` before it leaves this */
    _Atomic u32 retry_after_s; /* when a slot is likely to be free */
    _Atomic bool refuse;       /* draining */
    _Atomic bool none_left;    /* every replica is out of service for good */
    _Atomic u64 routed, refused_full, requeued, yielded;
};
/* Slots that this ingress has: of requests that run, and held by clients. */
static inline u32 head_own_use(const struct head *h)
{
    return h->n_flights - h->waiting.n + atomic_load(&h->n_held);
}
/* flights.c */
struct flight *flight_find(struct head *h, u64 id);
/* held NULL: it is routed; else a reservation's CHOSEN selection, which is its own from now on. */
void flight_new(struct head *h, const struct command *c, const struct selection *held, u64 now_ns);
void flight_cancel(struct head *h, u64 id);
/* Reserves a slot at the replica that the policy says, or else at the next: its index, or -1: answer has the last refusal; when nobody
 * could be asked, SLOTS_FULL if a replica is up, else SLOTS_GRANTED. */
i32 flight_select(struct head *h, const struct route_ask *ask, enum slot_class lease,
                  struct slots_answer *answer);
bool flight_try(struct head *h, struct flight *f); /* reserve and dispatch; false: it must wait */
bool flight_try_at(struct head *h, struct flight *f, u32 replica);
void flight_fail(struct head *h, struct flight *f, enum finish how, const char *why);
void flight_put_back(struct head *h, struct flight *f, u64 now_ns);
void flight_drop(struct head *h, struct flight *f);
void flights_expire(struct head *h, u64 now_ns); /* those whose deadline is over */
void flights_retry_queue(struct head *h, u64 now_ns);
void head_note_ongoing(struct head *h, u32 replica); /* after a slot of it came or went */
void head_note_asked(struct head *h, u32 replica, const struct slots_answer *answer);
void head_push(struct head *h, const struct command *c); /* from any thread */
/* heads.c */
void heads_init(struct head *h);
void heads_release(struct head *h);
void heads_turn(struct head *h, u64 now_ns);
void heads_turn_drain(struct head *h, u64 now_ns);
bool heads_may_take(struct head *h);               /* a slot more would not be another's share */
void heads_slot_free(struct head *h, u32 replica); /* one of ours has come free there */
/* silence.c */
void silence_dispatched(struct head *h, u32 replica);
void silence_ended(struct head *h, u32 replica);
void silence_heard(struct head *h, u32 replica);
void silence_turn(struct head *h, u64 now_ns);
/* latency.c: from a dispatch to the first chunk, by replica */
void latency_init(struct head *h);
void latency_release(struct head *h);
void latency_dispatched(struct head *h, struct flight *f);
void latency_answered(struct head *h, struct flight *f, u64 now_ns);
/* status.c: what HTTP threads ask */
void status_health(void *head, struct ingress_health *out);
void status_topology(void *head, struct buf *json);
void status_metrics(void *head, struct buf *text);
u32 status_in_flight(void *head);

#endif
