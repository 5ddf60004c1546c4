/* route: which replica gets a request, who waits when all are full, who is not let in, and the life of one choice. Pure: time
 * is an argument, random numbers are drawn from a key and a count of choices.
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

/* ---- the choice ----------------------------------------------------------------------------------------------
 * A policy is a row of a table; a router is a policy at work over one deployment's replicas, with what it must remember.
 *
 *   router_new -> { router_update | router_prefix_* | router_round -> { router_choose -> router_exclude | router_chosen } } ->
 *   router_free
 *
 * The router sees a view as it was at the last router_update of its index: change the view, then call it. A round is one
 * request's search for a slot. A replica that refuses is excluded and not chosen again in this round; the next round forgets it.
 * Every choice is an eligible replica (UP and not excluded), or -1 when there is none. Whether it is full is for its slots to
 * say, not for the view.
 *
 * Cost, in the number n of replicas: power_of_two, random O(1); round_robin O(log64 n); least_loaded O(1), its updates
 * O(change of ongoing); session O(1) expected; prefix_aware O(blocks of the prompt that are found, + 1), so is its router_chosen,
 * in the blocks of the prompt, and router_prefix_* O(1), whatever n is. router_update and router_exclude O(1), for round_robin and
 * session O(log64 n); router_round O(number excluded). Nothing is allocated after router_new.
 *
 *   power_of_two   home when it is eligible and idle: the shortest way, and caches that are still warm. Else two distinct eligible
 *                  replicas at random, the one with fewer ongoing; a tie is drawn.
 *   least_loaded   of all with the fewest ongoing one at random. More ongoing than the largest n_slots count as that many.
 *   round_robin    one after the other, by index; ingresses start at different ones (key).
 *   session        equal sessions to the same replica, as long as it is eligible and not overloaded: consistent hashing with
 *                  bounded loads (Mirrokni, Thorup, Zadimoghaddam, SODA 2018, arXiv:1608.01350). ROUTE_RING_POINTS points a
 *                  replica lie on a ring of hashes; a session goes to the first point behind its own whose replica has, with
 *                  this request, at most ceil(c * (m + 1) / n) ongoing: c = 1.25, n eligible replicas, m ongoing on them
 *                  all. Such a replica always exists. When a replica leaves, its sessions alone move (but for what the bound
 *                  moves). Without a session: power_of_two. The ring is the same for every key: all ingresses agree.
 *   prefix_aware   the eligible replica that holds the longest prefix of the prompt in its cache, of several the one with the
 *                  fewest ongoing, unless it is overloaded; see below.
 *   random         one eligible replica at random, for comparison.
 *
 * prefix_aware. A prompt is a row of full blocks with chained hashes: equal hashes are equal prefixes. A replica holds a prefix of
 * i blocks when it holds the blocks 0 .. i - 1; one that lost a block in the middle counts up to there. So the row is walked from
 * its begin (a search by halves would be wrong), and the walk ends where nobody is left.
 *   The index says of a hash which replicas hold its block: of each at most ROUTE_PREFIX_HOLDERS, the less busy ones. When that
 * many are known there may be others, so such a block (of a system prompt, say) excludes nobody: who is found behind it counts
 * as a holder of it. The index learns from router_chosen, and from what leaders publish (router_prefix_*). router_chosen is early:
 * the replica will hold these blocks soon, so equal prompts that come at the same time meet at one replica. Where that was wrong
 * (a request was cancelled), it makes itself true with the next request; a published removal corrects it.
 *   The index is a hint and never more. It takes 16 bytes * prefix_blocks * n, fixed, and has room for prefix_blocks * n entries
 * (a block at a replica), whoever's they are; when it is full, what was neither put nor asked for since longest is forgotten. A
 * wrong hint costs a prefix that is computed anew.
 *   Overloaded: the replica would have, with this request, more than the mean of the eligible plus 1 / ROUTE_PREFIX_SLOTS_MORE of its
 * slots (at least 1), and more than 1.5 times that mean. Then the next best: another with as much, or one with a shorter prefix; of
 * the walk's up to 2 * ROUTE_PREFIX_HOLDERS candidates. A match of less than 1 / ROUTE_PREFIX_WORTH of the prompt is not worth it.
 * When nobody is left, and without hashes: power_of_two. An absolute and a relative threshold together are what SGLang's router
 * has (--balance-abs-threshold, --balance-rel-threshold 1.5; there between the busiest and the idlest), the least match is that of
 * Ray Serve's PrefixCacheAffinityRouter (10 %). */
/* Only UP is chosen. FULL: up, and known to have no slot left for this ingress, because it holds all of them itself: asking would be
 * in vain. LATE: up, but its leader has not answered for a while: asking might wait for it. */
enum route_state { ROUTE_UP, ROUTE_DRAINING, ROUTE_DOWN, ROUTE_FULL, ROUTE_LATE };
struct route_view {
    i32 replica;
    u32 leader; /* world rank */
    u32 n_slots;
    u32 ongoing; /* estimate, own and others' */
    u8 state;    /* enum route_state */
    bool
        home; /* its leader is the ingress's own rank: no message between processes. At most one; does not change */
};
enum { ROUTE_MAX_REPLICAS = 65536, ROUTE_RING_POINTS = 64 };
enum { ROUTE_PREFIX_HOLDERS = 8, ROUTE_PREFIX_SLOTS_MORE = 8, ROUTE_PREFIX_WORTH = 10 };
enum { ROUTE_PREFIX_BLOCKS = 4096 }; /* a good prefix_blocks where nothing better is known */
struct route_ask {                   /* what a policy may know of a request */
    bool has_session;
    u64 session; /* hash of the client's session; any value */
    const u64 *
        prefix; /* [n_prefix] chained hashes of the prompt's full blocks, well mixed; read during the call only */
    u32 n_prefix; /* 0: unknown, or less than a block */
};
struct route_policy; /* a row */
struct router;
const struct route_policy *route_policy_find(const char *name,
                                             struct error *err); /* ERR_NOT_FOUND lists the names */
const struct route_policy *route_policy_at(u32 i);               /* in the table's order; NULL: no more */
const char *route_policy_name(const struct route_policy *p);
const char *route_policy_help(const struct route_policy *p);
bool route_policy_wants_prefix(const struct route_policy *p); /* an ask's hashes, and what is cached where */

/* views: [n], kept by the caller for the router's life; n_slots does not change. n <= ROUTE_MAX_REPLICAS, may be 0. key: draws are
 * a pure function of it and of what was asked before; use the ingress index. prefix_blocks: how many blocks a replica may be known
 * to hold, on average; best as many as its cache has. 0: none. Only prefix_aware takes memory for them. */
struct router *router_new(const struct route_policy *policy, const struct route_view *views, u32 n, u64 key,
                          u32 prefix_blocks);
void router_free(struct router *r); /* NULL: nothing */
void router_update(struct router *r, u32 index);
void router_round(struct router *r);
/* Index into the views, or -1: nobody is eligible. ask NULL: nothing is known. */
i32 router_choose(struct router *r, const struct route_ask *ask);
void router_exclude(struct router *r, u32 index); /* until the next round; twice is once */
/* The replica accepted: it will get what was asked. Call it for every request that is sent, however its replica was found. */
void router_chosen(struct router *r, u32 index, const struct route_ask *ask);
/* What a leader publishes: its replica now holds this block, or no longer; clear: it holds none (its engine is new, or all that it
 * holds follows). In any order, twice is once. Policies without interest ignore them. */
void router_prefix_add(struct router *r, u32 index, u64 hash);
void router_prefix_remove(struct router *r, u32 index, u64 hash);
void router_prefix_clear(struct router *r, u32 index);

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

/* ---- shares of several ingresses ------------------------------------------------------------------------------
 * Max-min fairness: the level L at which the sum of min(demand, L) over all who wait, and self, reaches the slots; who wants less than
 * L gets that, the others L. Rounded up, so that no slot is nobody's. Others that do not wait are left out: what they have is not
 * known exactly, and they ask for nothing. O(n log slots). L = slots when there is enough for all. */
struct route_demand {
    u32 waiting, in_use;
};
u32 route_fair_share(u32 slots, const struct route_demand *d, u32 n, u32 self);

/* ---- admission: when would the first token of a request come? ----------------------------------------------------
 *
 *   expected = base + own / prefill + max(places / service, unread / (replicas * prefill))
 *   predicted = expected + max(0, error + 2 * spread)
 *
 *   base      time from dispatch to first token, less what reading the prompts took; smoothed: falls by half of a difference,
 *             rises by an eighth. Step times under the present load are in it.
 *   own       tokens of its prompt; unread: prompt tokens of requests let in before it whose first token has not come
 *   prefill   prompt tokens that a replica reads a second, measured while it has more than a step's worth to read
 *   places    how many requests must give their slot back before it has one; 0 while a slot is free. As if all came in order:
 *             priorities are not looked at.
 *   service   slots that come free a second, measured while all are in use
 *   error, spread   smoothed mean of (what it took - what was expected), and of how far that is from its mean; as TCP's retransmission
 *             timer does it (Jacobson, SIGCOMM 1988). Under overload those are let in who just fit: without this, half of them would not.
 *
 * Both terms of the maximum are lower bounds of the wait, and they run at the same time: prompts before it are read while it
 * waits for a slot. Rates are sums of events by sums of time, of which old ones fade: about the last 64 slots, and 32 steps' worth of
 * tokens. A term that was not measured yet (fewer than 4 slots, less than a step's worth) is 0, so that nobody is refused for
 * what is not known.
 *
 * No refusal for ever: places falls with every request that ends, and so does unread with every first token. base, error, spread and
 * 1 / prefill, which only requests that are let in can measure, count half after a half-life without a measurement, a quarter after two, and so on.
 * A service rate is forgotten when for ADMISSION_FORGET_S no slot came free. When nobody has come too long to give a slot back, the
 * time that passed counts. Who finds the system empty is always let in. */
enum { ADMISSION_BASE_HALF_LIFE_S = 1, ADMISSION_PREFILL_HALF_LIFE_S = 10, ADMISSION_FORGET_S = 60 };
struct admission_rate {
    double n, seconds; /* fading sums */
};
struct admission { /* see admission_init; may be copied, to predict in another thread */
    struct admission_rate service, prefill;
    double error_s, spread_s;
    double base_s, waited_s;             /* waited_s: all slots in use since the last one came free */
    u64 service_ns, prefill_ns, base_ns; /* of the last measurement */
    u32 step_tokens;
    bool full, has_base, has_error;
};
struct admission_load { /* what a request finds */
    u32 others;         /* requests that were let in and have not ended, and slots that are held */
    u32 slots;          /* of replicas that are up */
    u32 replicas;       /* that are up */
    u32 own;            /* prompt tokens */
    u64 unread;
};
void admission_init(struct admission *a, u32 step_tokens /* of a replica, at most */);
/* So many slots came free since the last call, and now all are in use or not. Call it when either changes. */
void admission_observe_slots(struct admission *a, u64 now_ns, double freed, bool full);
/* A replica had `unread` prompt tokens to read and read some of them in the time given (0: in the same step as those of the
 * last call). Counts if unread is more than a step's worth. */
void admission_observe_prefill(struct admission *a, u64 now_ns, u64 unread, u64 read, double seconds);
/* From a dispatch to its first token; tokens: its own and those its replica had to read before. */
void admission_observe_first(struct admission *a, u64 now_ns, u64 tokens, double seconds);
/* What is expected, for admission_observe_outcome when it has its first token; < 0: something that matters was not measured yet. */
double admission_expect_s(const struct admission *a, const struct admission_load *load, u64 now_ns);
void admission_observe_outcome(struct admission *a, double expected_s, double seconds);
/* >= 0 and finite, at most ADMISSION_MAX_MS; without replicas or measurements 0. */
#define ADMISSION_MAX_MS 3.6e6
double admission_predict_ms(const struct admission *a, const struct admission_load *load, u64 now_ns);
/* *predicted_ms is set in any case. */
bool admission_allows(const struct admission *a, const struct admission_load *load, double allowed_ms,
                      u64 now_ns, double *predicted_ms);

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
