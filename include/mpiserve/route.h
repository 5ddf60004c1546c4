/* route: which replica gets a request, who waits when all are full, and the life of one choice. Pure: time
 * and random numbers are arguments.
 *
 *   selection: NONE -> choose -> CHOSEN -> dispatch -> DISPATCHED -> end | back (the leader refused: select
 * anew) CHOSEN -> release -> NONE Each selection is dispatched or released exactly once; anything else is a
 * broken invariant. The dispatched flag is set before the message is sent.
 *
 * Thread rule: one thread per object. Views are plain data that the caller keeps. */
#ifndef MPISERVE_ROUTE_H
#define MPISERVE_ROUTE_H

#include "mpiserve/base.h"
#include "mpiserve/request.h" /* struct slot_token */

/* ---- the choice
 * ----------------------------------------------------------------------------------------------*/
enum route_state { ROUTE_UP, ROUTE_DRAINING, ROUTE_DOWN }; /* only UP is chosen */
struct route_view {
    i32 replica;
    u32 leader; /* world rank */
    u32 n_slots;
    u32 ongoing; /* estimate, own and others' */
    u8 state;    /* enum route_state */
};
enum { ROUTE_MAX_REPLICAS = 4096 };
/* Replicas that refused this request in this round: not chosen again. All zero: none. Indexes into the view.
 */
struct route_excluded {
    u64 bits[ROUTE_MAX_REPLICAS / 64];
    u32 n;
};
void route_exclude(struct route_excluded *x, u32 index);
void route_exclude_clear(struct route_excluded *x); /* O(number excluded / 64) */
bool route_is_excluded(const struct route_excluded *x, u32 index);
/* key, counter: a draw is a pure function of both; use the ingress index and a counter of choices. x may be
 * NULL. Index into the view, or -1: nobody is up and not excluded. */
typedef i32 (*route_fn)(const struct route_view *view, u32 n, const struct route_excluded *x, u64 key,
                        u64 counter);
struct route_policy {
    const char *name, *help;
    route_fn choose;
};
const struct route_policy *route_policy_find(const char *name,
                                             struct error *err); /* ERR_NOT_FOUND lists the names */
const struct route_policy *route_policies(u32 *n);
/* Two distinct random candidates, the one with fewer ongoing wins, a tie is drawn. O(1) expected. */
i32 route_power_of_two(const struct route_view *view, u32 n, const struct route_excluded *x, u64 key,
                       u64 counter);

/* ---- the queue of those who wait for a slot ------------------------------------------------------------------
 * Bounded; each waiter has a deadline. Order: priority (lower first), then arrival; but nobody starves: a waiter that has waited
 * patience_ns is old, and after a slot went past the oldest waiter, the next one is the oldest's if that one is old. So with k old
 * waiters before it an old waiter gets at most the 2 (k + 1)th slot handed out, whatever else arrives, and at least every
 * second slot still goes by priority. Intrusive: put a struct route_waiter into your struct. */
struct route_waiter {
    i64 priority;
    u64 deadline_ns; /* UINT64_MAX: none */
    u64 since_ns;    /* when it came; 0 after init */
    u64 order;       /* set by put */
    u32 at[3];       /* places in the queue's heaps; UINT32_MAX: not in the queue */
};
struct route_queue {
    struct route_waiter **heaps[3]; /* by turn, by deadline, by arrival */
    u32 n, max;
    u64 arrivals;
    u64 patience_ns;
    bool passed_over; /* the last slot handed out was not the oldest's */
};
/* max 0: nobody waits. Patience is without end; set patience_ns to change that. */
void route_queue_init(struct route_queue *q, u32 max);
void route_queue_release(struct route_queue *q); /* waiters are the caller's */
int route_queue_put(struct route_queue *q, struct route_waiter *x,
                    struct error *err); /* O(log n); ERR_FULL names the bound */
/* Next to serve, stays inside; NULL: empty. */
struct route_waiter *route_queue_first(const struct route_queue *q, u64 now_ns);
/* It has a slot: removes it and notes whose turn that was. O(log n). */
void route_queue_serve(struct route_queue *q, struct route_waiter *x);
/* Cancelled; O(log n); not inside: nothing. */
void route_queue_remove(struct route_queue *q, struct route_waiter *x);
bool route_queue_holds(const struct route_queue *q,
                       const struct route_waiter *x); /* false for a waiter never put: at = UINT32_MAX */
void route_waiter_init(struct route_waiter *x, i64 priority, u64 deadline_ns);
u64 route_queue_deadline(const struct route_queue *q); /* earliest, UINT64_MAX: none */
struct route_waiter *route_queue_expired(struct route_queue *q,
                                         u64 now_ns); /* removes one whose deadline is <= now; NULL: none */

/* ---- a selection
 * ---------------------------------------------------------------------------------------------*/
enum selection_state { SELECTION_NONE, SELECTION_CHOSEN, SELECTION_DISPATCHED };
struct selection {
    u8 state;   /* enum selection_state; all zero = none */
    u32 leader; /* world rank */
    struct slot_token token;
    u32 tries; /* choices so far, for this request */
};
void selection_choose(struct selection *s, u32 leader, const struct slot_token *token);
void selection_dispatch(struct selection *s); /* before the message is sent */
void selection_release(struct selection *s);  /* CHOSEN -> NONE; the caller releases the slot */
void selection_end(struct selection *s);      /* DISPATCHED -> NONE: finished, or refused by the leader */
bool selection_holds_slot(const struct selection *s); /* CHOSEN: a slot must be given back on this path */

/* ---- reservations: selections that clients hold ----------------------------------------------------------------
 *   HELD -> USED (dispatched) | RELEASED (by the client) | EXPIRED (its time was over)
 *
 * The book knows what became of each id: all that are held, and the last RESERVATIONS_REMEMBERED that ended. Whoever takes one
 * out of HELD with reservation_end owns its slot from then on: nobody gets HELD twice, so the slot is used or given back once.
 * All have the same lease and are added in the order of their deadlines. O(1). */
enum reservation_state { RESERVATION_HELD, RESERVATION_USED, RESERVATION_RELEASED, RESERVATION_EXPIRED };
enum { RESERVATIONS_REMEMBERED = 4096, RESERVATION_CHAINS = 1024 };
struct reservation {
    struct reservation_id id;
    struct selection selection; /* CHOSEN while it is held; later what it was */
    u32 num_ongoing;            /* as slots_reserve said */
    u64 granted_ns, deadline_ns;
    u8 state;                            /* enum reservation_state */
    struct reservation *chain;           /* of its hash */
    struct reservation *next, *previous; /* oldest first: of the held, or of the ended */
};
struct reservation_list {
    struct reservation *first, *last;
    u32 n;
};
struct reservation_book {
    struct reservation *chains[RESERVATION_CHAINS];
    struct reservation_list held, ended;
};
void reservation_book_release(struct reservation_book *b); /* all zero: empty */
/* what: id, selection, num_ongoing and times are copied. The id is new. */
void reservation_add(struct reservation_book *b, const struct reservation *what);
struct reservation *reservation_find(const struct reservation_book *b, const struct reservation_id *id);
/* HELD -> state. The oldest ended one may be forgotten; r itself stays until others end. */
void reservation_end(struct reservation_book *b, struct reservation *r, enum reservation_state state);
/* One that is held and whose deadline is <= now; NULL: none. It stays held. */
struct reservation *reservation_due(const struct reservation_book *b, u64 now_ns);
u64 reservation_deadline(const struct reservation_book *b); /* earliest; UINT64_MAX: none is held */
const char *reservation_state_name(enum reservation_state state);

#endif
