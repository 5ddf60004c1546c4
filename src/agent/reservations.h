/* Inside agent/: slots that clients hold (reservations.c), and what is measured of selections (measures.c).
 *
 * A reservation's slot word stays RESERVED_LONG at its leader, whatever its engine does. Its state lies in a book that HTTP threads
 * read and change under a lock; slots are the main thread's alone. So an HTTP thread ends a reservation in the book and
 * sends a command with its selection; whoever ended it there owns the slot, and gives it back or dispatches to it, once. */
#ifndef MPISERVE_AGENT_RESERVATIONS_H
#define MPISERVE_AGENT_RESERVATIONS_H

#include "mpiserve/ingress.h"
#include "mpiserve/metrics.h"
#include "mpiserve/route.h"

struct head;
struct command;
/* HTTP threads; as in struct ingress_agent. */
int reservations_ask(void *head, u64 ask, const struct route_ask *about);
int reservations_look(void *head, const struct reservation_id *id, bool release,
                      struct ingress_reservation *out);
/* HELD -> USED: 0, and c has its selection; else as submit says. */
int reservations_use(struct head *h, const struct reservation_id *id, struct command *c);
/* Main thread. */
void reservations_grant(struct head *h, const struct command *c);
/* Gives its slot back: it will not be dispatched. */
void reservations_give_back(struct head *h, const struct selection *s);
void reservations_turn(struct head *h, u64 now_ns); /* those whose time is over */
void reservations_end_all(struct head *h);          /* the drain's time is over */
u64 reservations_deadline(struct head *h);
void reservations_count(struct head *h, u32 *by_replica); /* any thread; [n_replicas] held now, added */

enum reservation_refusal {
    REFUSED_FULL,
    REFUSED_LEAVING,
    REFUSED_CONTENDED,
    REFUSED_NO_REPLICA,
    REFUSED_QUEUE,
    REFUSED_DRAINING,
    RESERVATION_REFUSALS
};
struct measures {
    struct series *granted, *refused[RESERVATION_REFUSALS], *undispatched[2]; /* released, expired */
    struct series *gap, *fulfillment;
};
void measures_init(struct head *h); /* after latency_init */
void measures_gauges(struct head *h, struct metrics *m);

#endif
