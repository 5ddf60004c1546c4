/* slots: the right to run a request on a replica, kept in one MPI window.
 *
 * Every rank exposes SLOTS_PER_RANK words of 64 bits; a replica's slots are the first n words of its leader's
 * rank, the rest is CLOSED. word = epoch:12 | state:4 | owner:16 | seq:32 (high to low).
 *
 *   FREE -> RESERVED(owner)               that ingress   slots_reserve
 *   RESERVED -> FREE, seq+1               that ingress   slots_release (before dispatch)
 *   RESERVED -> RUNNING                   leader         slots_run (on DISPATCH)
 *   RUNNING -> FREE, seq+1                leader         slots_finish
 *   RESERVED -> FREE, seq+1 (lease over)  leader         slots_reap
 *   FREE -> CLOSED, CLOSED -> FREE        leader         slots_close_free, slots_open
 *
 * Invariants: the only operation ever done on a word is MPI_Compare_and_swap followed by a flush, on one's
 * own words too (a read is CAS(x, x) with a never valid x); at most one owner of (slot, epoch, seq); one
 * acquire <-> exactly one release (grants == releases + finishes + reaped when all is quiet); reserve never
 * waits for a slot; slot 0, replica 0, owner 0 are ordinary. Epoch is never 0 and changes only when a leader
 * gives up its replica or the window is rebuilt; seq wraps. A CAS can only be ended by a blocking flush: do
 * not reserve on a leader that leaves messages unanswered. tests/model/slots.pml is the same as a SPIN model, with what breaks
 * when a guard is missing.
 *
 * Life cycle: slots_new (collective, after wire_init) -> leaders: slots_open -> ... -> slots_free
 * (collective, before wire_end). In a job that lost an agent the window is not touched again: slots_abandon
 * instead of slots_free. Thread rule: only the MPI thread. The pure functions: any. */
#ifndef MPISERVE_SLOTS_H
#define MPISERVE_SLOTS_H

#include "mpiserve/base.h"
#include "mpiserve/request.h" /* struct slot_token */

enum { SLOTS_PER_RANK = 1024, SLOT_EPOCH_MAX = 4095 };

/* ---- words: pure
 * -------------------------------------------------------------------------------------------*/
enum slot_state {
    SLOT_CLOSED = 1,
    SLOT_FREE,
    SLOT_RESERVED_SHORT,
    SLOT_RESERVED_LONG,
    SLOT_RUNNING
};                                                     /* 0, 6..15: invalid */
enum slot_class { SLOT_CLASS_SHORT, SLOT_CLASS_LONG }; /* of the lease: routing; held by a client */
enum slot_verdict {
    SLOT_OK,
    SLOT_BUSY,    /* reserve: somebody has it */
    SLOT_SHUT,    /* the word is CLOSED */
    SLOT_STALE,   /* epoch or seq is not the word's: the reservation is over */
    SLOT_FOREIGN, /* release: another ingress's */
    SLOT_STARTED, /* release, run, reap: it runs already */
    SLOT_WRONG,   /* not possible in this state (finish of what does not run, open of what is not CLOSED, ...)
                   */
    SLOT_BROKEN,  /* not a valid word */
};
struct slot_move {
    enum slot_verdict verdict;
    u64 word; /* SLOT_OK: the new word; else the old one */
};
#define SLOT_NEVER UINT64_MAX /* no valid word */
u64 slot_word(u32 epoch, enum slot_state state, u16 owner, u32 seq);
u32 slot_word_epoch(u64 word);
u32 slot_word_state(u64 word);
u16 slot_word_owner(u64 word);
u32 slot_word_seq(u64 word);
bool slot_word_valid(u64 word); /* known state, epoch not 0, owner 0 where nobody owns */
bool slot_word_reserved(u64 word);
u32 slot_epoch_after(u32 epoch); /* 4095 -> 1 */
const char *slot_verdict_name(enum slot_verdict v);
struct slot_move slot_reserve(u64 old, u16 owner, enum slot_class lease);
struct slot_move slot_release(u64 old, u16 owner, u32 epoch, u32 seq);
struct slot_move slot_run(u64 old, u32 epoch, u32 seq);
struct slot_move slot_finish(u64 old, u32 epoch, u32 seq);
struct slot_move slot_reap(u64 old, u32 epoch, u32 seq);
struct slot_move slot_close(u64 old);
struct slot_move slot_open(u64 old, u32 epoch);

/* ---- the window
 * ----------------------------------------------------------------------------------------------*/
struct slots_spec {
    u16 owner;                         /* this rank's ingress index; any number where there is none */
    u32 epoch;                         /* the job's: 1..SLOT_EPOCH_MAX */
    const u32 *node_of;                /* [ranks of the job] node of each; copied */
    u64 lease_short_ns, lease_long_ns; /* reservations older than that are reaped */
    /* Called before waiting for an RMA in a job of several nodes, so that the rank wakes up and serves it, on
     * the own node too. NULL: none. */
    void (*ring)(void *ctx, u32 rank);
    void *ctx;
};
struct slots;
struct slots *slots_new(const struct slots_spec *spec, struct error *err); /* collective */
void slots_free(struct slots *s);                                          /* collective */
void slots_abandon(struct slots *s); /* frees own memory only, no MPI call */

/* ---- ingress side
 * --------------------------------------------------------------------------------------------*/
enum slots_refusal {
    SLOTS_GRANTED,
    SLOTS_FULL,    /* exact: every word was seen in use */
    SLOTS_LEAVING, /* exact: every word was seen in use or closed, and at least one closed: the replica leaves
                   */
    SLOTS_CONTENDED, /* others were faster, too often in one pass; nothing is known for sure */
    SLOTS_REASONS
};
struct slots_answer {
    bool accepted;
    u8 reason;               /* enum slots_refusal */
    struct slot_token token; /* accepted: valid until released, dispatched or reaped */
    u32 num_ongoing; /* accepted: own outstanding (with this one) + others' as last published; refused: words
                        seen in use */
    u32 n_cas;
};
/* One pass, at most 2 * n_slots + 16 CAS; 1 or 2 as a rule. The clock of the lease starts before it: give up
 * at lease - 20 %. n_slots: 1..SLOTS_PER_RANK. Returns 0 or ERR_PEER (MPI's words). */
int slots_reserve(struct slots *s, i32 replica, u32 leader, u32 n_slots, enum slot_class lease,
                  struct slots_answer *answer, struct error *err);
/* Before dispatch. Idempotent: 1 = released now; 0 = was not there any more (released before, reaped,
 * unknown, of an old epoch) and nothing was done; ERR_STATE = it runs already (was dispatched): the leader
 * ends it; ERR_PEER. */
int slots_release(struct slots *s, u32 leader, const struct slot_token *token, struct error *err);
/* The leader said that it ended the request (last chunk) or refused the dispatch as STALE: bookkeeping only,
 * no RMA. */
void slots_ended(struct slots *s, u32 leader, const struct slot_token *token);
void slots_published(struct slots *s, u32 leader,
                     u32 others); /* from CHUNK/LOAD: slots in use by other ingresses */
u32 slots_outstanding(const struct slots *s, u32 leader); /* own, reserved or dispatched */
u32 slots_ongoing(const struct slots *s, u32 leader);     /* own, and others' as last published */
/* The leader is gone or was given up: forgets what is outstanding there. */
void slots_forget(struct slots *s, u32 leader);

/* ---- leader side
 * ---------------------------------------------------------------------------------------------*/
/* CLOSED -> FREE for words [0, n_slots). */
int slots_open(struct slots *s, i32 replica, u32 n_slots, struct error *err);
/* SLOT_OK: the request may run. SLOT_STALE: refuse it as STALE. SLOT_STARTED: this token was dispatched
 * before: if it was for the same request, do not refuse it, or it is run once more. Negative: error. */
int slots_run(struct slots *s, const struct slot_token *token, struct error *err);
/* SLOT_OK, or the verdict why nothing was done. */
int slots_finish(struct slots *s, const struct slot_token *token, struct error *err);
/* Looks at the words (at most every eighth of the short lease; else returns 0 at once) and frees reservations
 * whose lease, counted from when they were first seen here, is over. Returns how many, or an error. */
int slots_reap(struct slots *s, u64 now_ns, struct error *err);
/* Drain: FREE -> CLOSED. Returns how many words of the replica are not CLOSED yet; call again after each
 * finish and reap. */
int slots_close_free(struct slots *s, struct error *err);
/* In use (reserved or running) at the last look of slots_reap/slots_close_free, corrected by own run/finish;
 * of others = without that owner's. */
u32 slots_in_use(const struct slots *s);
u32 slots_in_use_by_others(const struct slots *s, u16 owner);
bool slots_reserved_seen(
    const struct slots *s); /* some word was RESERVED at the last look: do not sleep longer than 10 ms */

struct slots_counts {
    u64 grants, releases, releases_void; /* ingress; void: nothing was there to release */
    u64 refusals[SLOTS_REASONS];         /* by enum slots_refusal */
    u64 runs, finishes, reaped, stale;   /* leader; stale: dispatches refused */
    u64 cas;                             /* operations of this rank */
};
const struct slots_counts *slots_counts(struct slots *s);

#endif
