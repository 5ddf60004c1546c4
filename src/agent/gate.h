/* Inside agent/: who is let in (--admission slo). The main thread measures, HTTP threads ask; the formula is route.h's admission. */
#ifndef MPISERVE_AGENT_GATE_H
#define MPISERVE_AGENT_GATE_H

#include "mpiserve/ingress.h"
#include "mpiserve/route.h"
#include <pthread.h>
#include <stdatomic.h>

struct head;
struct flight;
struct gate_mark { /* of a flight */
    u32 unread;    /* prompt tokens; 0: the first chunk has come */
    bool at_replica;
    double expected_s; /* from its arrival to the first chunk; < 0: not known, or it came another way */
    u64 tokens;        /* unread ones of its replica at the dispatch, with its own */
};
struct gate {
    struct admission measured;
    struct gate_replica {
        u32 ongoing; /* 0 while it is not up */
        u64 unread;
        u64 since_ns;          /* the last first chunk, or the first dispatch to an empty replica */
        u64 start, last_start; /* unread then; and at the start of the time that ended then */
    } * replicas;
    u64 unread_here; /* prompt tokens of all flights */
    u32 busy, freed; /* sum of ongoing; slots that came free since the last turn */
    bool changed;
    /* for HTTP threads */
    pthread_mutex_t lock;
    struct gate_shown {
        struct admission measured;
        u32 slots, replicas;
    } shown;
    _Atomic u64 unread; /* prompt tokens taken from HTTP threads whose first chunk has not come */
};
void gate_init(struct head *h);
void gate_release(struct head *h);
/* HTTP threads. taken: requests of others. False: *why says what is predicted. */
bool gate_admits(struct head *h, const struct request *r, u32 taken, struct ingress_refusal *why);
void gate_entered(struct head *h, const struct request *r); /* before the main thread gets it */
double gate_predicted_ms(struct head *h);                   /* for a short prompt that came now */
/* Main thread. */
void gate_note(struct head *h, u32 replica);                                /* after a change of its view */
void gate_arrived(struct head *h, struct flight *f, bool held, u64 now_ns); /* f is in n_flights */
void gate_dispatched(struct head *h, struct flight *f);
void gate_answered(struct head *h, struct flight *f, u64 now_ns); /* before dispatched_ns is reset */
void gate_slot_freed(struct head *h, struct flight *f);
void gate_dropped(struct head *h, struct flight *f);
void gate_turn(struct head *h, u64 now_ns);

#endif
