/* The life of slots (include/mpiserve/slots.h) as a SPIN model: ingresses and one leader over a window of words, messages that
 * are late, leases that end at any time, and faults after any step. t_slots.py checks it, and that each guard is needed.
 *
 * Every step of an actor is one d_step of its loop: between any two of them all others may act, and a fault may come.
 *
 *   slots.h                          here                  by
 *   slot_word, slot_word_*           WORD, EPOCH, STATE..  -
 *   slot_epoch_after                 EPOCH_AFTER           -
 *   (names, in words.c)              NAMES                 -
 *   slot_reserve   slots_reserve     SLOT_RESERVE          Flight: look at a word, later compare-and-swap
 *   slot_release   slots_release     SLOT_RELEASE          Flight: also a second time
 *   slots_ended                      end_attempt           Flight
 *   slot_run       slots_run         SLOT_RUN              Leader, on DISPATCH
 *   slot_finish    slots_finish      SLOT_FINISH           Leader, on a result or CANCEL
 *   slot_reap      slots_reap        SLOT_REAP             Leader: look at a word, later compare-and-swap
 *   slot_close     slots_close_free  SLOT_CLOSE            Leader: look at a word, later compare-and-swap
 *   slot_open      slots_open        SLOT_OPEN             Leader
 *   slots_new in a later epoch       rebuild               Leader: words are written before anybody reaches the window; today's
 *                                                          agents end the job instead, so this is ahead of its C
 *
 * A transition answers the new word, or NEVER where slots.h has another verdict than SLOT_OK. slots_run and slots_finish repeat
 * their compare-and-swap until it hits or a word just read refuses; both are one moment in which the pure function is applied
 * to the word that is there, hence one step here. RESERVED_SHORT and RESERVED_LONG are one state: a lease ends at any time.
 *
 * A flight is a request's way at an ingress (agent/flights.c, route/selection.c); FLIGHTS of them, each REQS requests (the last
 * flight REQS_OF_LAST) one after the other, each tried again RETRIES times. FAULTS is the number of faults; they are: the death
 * of an ingress (all that it knew is lost, its messages still arrive; it goes on with its next request as one newly started), of
 * the leader (a successor opens a new window), of the engine, a window rebuilt in a new epoch, a replica given up and opened in
 * a new epoch, a DISPATCH delivered twice. Besides them one drain at any time (unless NO_DRAIN), one CANCEL a request at any time
 * (ONE_LEAVES: only of the last flight's). Messages of one flight arrive in order, as wire.h promises.
 *
 * Properties, as assertions where they could break, and at the end (nothing more can happen: the graph of states has no cycle,
 * which t_slots.py lets SPIN check, so every run ends): 1 a slot never has two owners. 2 No request runs twice in one epoch.
 * 3 Nothing of an old epoch, and no result of an old engine, counts. 4 Every reservation ends, every request ends. 5 A drain
 * completes, and nothing runs after it. 6 A release that does something ends the releaser's own reservation, before it runs.
 *
 * The macros NO_..., and others that t_slots.py names, each take one guard away. */
#ifndef FLIGHTS
#define FLIGHTS 2
#endif
#ifndef REQS
#define REQS 2
#endif
#ifndef REQS_OF_LAST
#define REQS_OF_LAST REQS
#endif
#ifndef RETRIES
#define RETRIES 1
#endif
#ifndef FAULTS
#define FAULTS 2
#endif
/* The last flight is of ingress 1, the others (ONE_INGRESS: all) of ingress 0. */
#ifdef ONE_INGRESS
#define OWNER_OF(f) 0
#else
#define OWNER_OF(f) (f == FLIGHTS - 1)
#endif
#define SLOTS 2

/* ---- words: epoch:2 state:2 owner:1 seq:3; all ranges begin at their end, so that they wrap -----------------*/
#define CLOSED   0
#define FREE     1
#define RESERVED 2
#define RUNNING  3
#define NEVER    0 /* epoch 0 */
#ifndef SEQ_MAX
#define SEQ_MAX 7
#endif
#define EPOCH_MAX             3
#define WORD(e, st, owner, q) ((e) << 6 | (st) << 4 | (owner) << 3 | ((q) & SEQ_MAX))
#define EPOCH(w)              ((w) >> 6)
#define STATE(w)              (((w) >> 4) & 3)
#define OWNER(w)              (((w) >> 3) & 1)
#define SEQ(w)                ((w) & 7)
#define EPOCH_AFTER(e)        ((e) >= EPOCH_MAX -> 1 : (e) + 1)

#ifdef NO_EPOCH_CHECK
#define SAME_EPOCH(w, e) 1
#else
#define SAME_EPOCH(w, e) (EPOCH(w) == (e))
#endif
#ifdef NO_SEQ_CHECK
#define SAME_SEQ(w, q) 1
#else
#define SAME_SEQ(w, q) (SEQ(w) == (q))
#endif
#ifdef NO_SEQ_RISE
#define NEXT(q) (q)
#else
#define NEXT(q) ((q) + 1)
#endif
#define NAMES(w, e, q)  (SAME_EPOCH(w, e) && SAME_SEQ(w, q) && STATE(w) >= RESERVED)
#define FREED(w)        WORD(EPOCH(w), FREE, 0, NEXT(SEQ(w)))

#define SLOT_RESERVE(w, owner) (STATE(w) == FREE -> WORD(EPOCH(w), RESERVED, owner, SEQ(w)) : NEVER)
#ifdef NO_RELEASE_CHECK
#define SLOT_RELEASE(w, owner, e, q) FREED(w)
#elif defined(RELEASES_BY_OWNER)
#define SLOT_RELEASE(w, owner, e, q) (OWNER(w) == (owner) && STATE(w) == RESERVED -> FREED(w) : w)
#else
#define SLOT_RELEASE(w, owner, e, q)                                                                                              \
    (NAMES(w, e, q) && OWNER(w) == (owner) && STATE(w) == RESERVED -> FREED(w) : NEVER)
#endif
#ifdef NO_STARTED_CHECK
#define SLOT_RUN(w, e, q) (NAMES(w, e, q) -> WORD(EPOCH(w), RUNNING, OWNER(w), SEQ(w)) : NEVER)
#else
#define SLOT_RUN(w, e, q) (NAMES(w, e, q) && STATE(w) == RESERVED -> WORD(EPOCH(w), RUNNING, OWNER(w), SEQ(w)) : NEVER)
#endif
#define SLOT_FINISH(w, e, q) (NAMES(w, e, q) && STATE(w) == RUNNING -> FREED(w) : NEVER)
#ifdef REAPS_RUNNING
#define SLOT_REAP(w, e, q) (NAMES(w, e, q) -> FREED(w) : NEVER)
#else
#define SLOT_REAP(w, e, q) (NAMES(w, e, q) && STATE(w) == RESERVED -> FREED(w) : NEVER)
#endif
#define SLOT_CLOSE(w)   (STATE(w) == FREE -> WORD(EPOCH(w), CLOSED, 0, SEQ(w)) : NEVER)
#define SLOT_OPEN(w, e) (STATE(w) == CLOSED -> WORD(e, FREE, 0, SEQ(w)) : NEVER)

/* ---- the world ----------------------------------------------------------------------------------------------*/
mtype = { DISPATCH, CANCEL, END, REFUSED }

byte window[SLOTS] = WORD(EPOCH_MAX, FREE, 0, SEQ_MAX);
byte epoch = EPOCH_MAX, faults;
bool draining, drained, asked;
chan down[FLIGHTS] = [3] of { mtype, byte, byte, byte }; /* to the leader: request, slot, word that was reserved */
chan up[FLIGHTS] = [2] of { mtype, byte, byte, byte };   /* END: request, -, life; REFUSED: request, slot, word */

/* what a flight knows */
#define WAITS   0 /* for a free slot; or all its requests have ended */
#define TRIES   1 /* a word was seen free */
#define HOLDS   2 /* reserved */
#define SENT    3 /* says the flag, and the message was sent */
#define GIVEN   4 /* released; whoever else cleans up may release it again */
#define UNFLAGGED 5 /* only in FLAG_LATE: sent, and the flag does not say so yet */
byte at[FLIGHTS], done[FLIGHTS], tries[FLIGHTS], slot[FLIGHTS], word[FLIGHTS], sent_to[FLIGHTS];
bool impatient[FLIGHTS], cancelled[FLIGHTS]; /* its client leaves at some time; has left */

/* what the leader knows */
bool alive = true;
byte life;             /* which leader, as its rank tells the ingress */
byte holds[SLOTS];     /* request of the running one + 1 */
byte token[SLOTS];     /* its word */
byte looked, expected; /* slot + 1 and the word seen there, while a compare-and-swap is on its way */
bool engine = true;
byte generation;
byte job[SLOTS], result[SLOTS]; /* in the engine's memory, in the ring of results: generation << 4 | request + 1 */

/* the book, which no actor reads */
byte owner[SLOTS];         /* request that has the slot + 1 */
byte ran[FLIGHTS * REQS];  /* epochs in which it ran */

/* scratch of a step, always set before it is read; pan's C has a `t` of its own */
hidden byte s, r, at_slot, w, old, new;
hidden mtype kind;

#define REQUEST(f)     (f * REQS + done[f])
#define FLIGHT_OF(r)   ((r) / REQS)
#define OPEN(f)        (done[f] < (f == FLIGHTS - 1 -> REQS_OF_LAST : REQS))
#define MAY_FAIL       (faults < FAULTS)
#define ALL_CLOSED     (STATE(window[0]) == CLOSED && STATE(window[1]) == CLOSED)

/* ---- ingress ------------------------------------------------------------------------------------------------*/
/* slots_ended, selection_end: nothing of the attempt is left. */
inline end_attempt(f)
{
    at[f] = WAITS; slot[f] = 0; word[f] = 0; sent_to[f] = 0
}

inline end_request(f)
{
    end_attempt(f);
    done[f]++; tries[f] = 0; cancelled[f] = false; impatient[f] = false
}

inline put_back(f)
{
    if
    :: cancelled[f] || tries[f] == RETRIES -> end_request(f)
    :: else -> tries[f]++; impatient[f] = false; end_attempt(f)
    fi
}

inline reserve(f)
{
    old = window[slot[f]];
    if
#ifdef PLAIN_STORE
    :: true ->
#else
    :: old == word[f] ->
#endif
        assert(owner[slot[f]] == 0); /* 1 */
        owner[slot[f]] = REQUEST(f) + 1;
        word[f] = SLOT_RESERVE(word[f], OWNER_OF(f));
        window[slot[f]] = word[f];
        at[f] = HOLDS
    :: else -> end_attempt(f)
    fi
}

/* A compare-and-swap of the word that was reserved. The book is asked when the word changes. */
inline release(f)
{
#if defined(NO_RELEASE_CHECK) || defined(RELEASES_BY_OWNER)
    old = window[slot[f]];
#else
    old = word[f];
#endif
    new = SLOT_RELEASE(old, OWNER_OF(f), EPOCH(word[f]), SEQ(word[f]));
    assert(window[slot[f]] != WORD(EPOCH(word[f]), RUNNING, OWNER_OF(f), SEQ(word[f]))); /* 6: the verdict STARTED */
    if
    :: window[slot[f]] == old && new != old ->
        assert(owner[slot[f]] == REQUEST(f) + 1); /* 6, and 1 */
        owner[slot[f]] = 0;
        window[slot[f]] = new
    :: else
    fi
}

inline receive(f)
{
    up[f]?kind, r, at_slot, w;
    if
#ifdef NO_SENDER_CHECK
    :: kind == END && at[f] == SENT && r == REQUEST(f) ->
#else
    :: kind == END && at[f] == SENT && r == REQUEST(f) && w == sent_to[f] ->
#endif
        assert(owner[0] != r + 1 && owner[1] != r + 1); /* 4: whoever reads the end finds the slot free */
        end_request(f)
    :: kind == REFUSED && at[f] == SENT && r == REQUEST(f) && at_slot == slot[f] && w == word[f] -> put_back(f)
    :: else /* of an attempt that is over */
    fi
}

/* Slots are alike: the first of all to be looked at is slot 0. */
inline see_free(f, n)
{
    at[f] == WAITS && (n == 0 || asked) && OPEN(f) && STATE(window[n]) == FREE ->
    word[f] = window[n]; slot[f] = n; at[f] = TRIES; asked = true
}

inline dispatch(f, leaves)
{
    at[f] == HOLDS && nfull(down[f]) ->
    sent_to[f] = life; at[f] = SENT; impatient[f] = leaves; down[f]!DISPATCH, REQUEST(f), slot[f], word[f]
}

#define f _pid /* they are the first processes */
active [FLIGHTS] proctype Flight()
{
end:
    do
    :: d_step { see_free(f, 0) }
    :: d_step { see_free(f, 1) }
    :: d_step { at[f] == WAITS && OPEN(f) -> end_request(f) } /* the client left, or waited long enough */
    :: d_step { at[f] == TRIES -> reserve(f) }
    :: d_step { at[f] == HOLDS -> release(f); at[f] = GIVEN } /* the client left, or the lease is nearly over */
    :: d_step { at[f] == GIVEN -> release(f); end_request(f) }
    :: d_step { at[f] == GIVEN -> end_request(f) }
#ifdef FLAG_LATE
    :: d_step { at[f] == HOLDS && nfull(down[f]) ->
                sent_to[f] = life; at[f] = UNFLAGGED; down[f]!DISPATCH, REQUEST(f), slot[f], word[f] }
    :: d_step { at[f] == UNFLAGGED -> at[f] = SENT }
    :: d_step { at[f] == UNFLAGGED -> release(f); at[f] = GIVEN }
#else
    :: d_step { dispatch(f, false) } /* the flag first; nobody sees what is between */
#ifdef ONE_LEAVES
    :: d_step { f == FLIGHTS - 1 && at[f] == HOLDS && nfull(down[f]) -> dispatch(f, true) }
#else
    :: d_step { dispatch(f, true) }
#endif
#endif
    :: d_step { at[f] == SENT && impatient[f] && !cancelled[f] && nfull(down[f]) ->
                cancelled[f] = true; down[f]!CANCEL, REQUEST(f), 0, 0 }
    :: d_step { nempty(up[f]) -> receive(f) }
    :: d_step { at[f] == SENT && life != sent_to[f] -> put_back(f) } /* its heartbeats are missed */
    od
}

#undef f

/* ---- leader -------------------------------------------------------------------------------------------------*/
inline finish(n)
{
    new = SLOT_FINISH(window[n], EPOCH(token[n]), SEQ(token[n]));
    if
    :: new != NEVER -> window[n] = new; owner[n] = 0
    :: else
    fi;
    up[FLIGHT_OF(holds[n] - 1)]!END, holds[n] - 1, 0, life;
    holds[n] = 0; token[n] = 0
}

inline dispatched(f)
{
    new = SLOT_RUN(window[at_slot], EPOCH(w), SEQ(w));
    if
    :: new != NEVER ->
        assert(EPOCH(w) == epoch);           /* 3 */
        assert(owner[at_slot] == r + 1);     /* 1 */
        assert(!(ran[r] >> EPOCH(new) & 1)); /* 2 */
        assert(!drained);                    /* 5 */
        ran[r] = ran[r] | 1 << EPOCH(new);
        window[at_slot] = new;
        token[at_slot] = new;
        holds[at_slot] = r + 1;
        job[at_slot] = (engine -> generation << 4 | r + 1 : 0)
#ifndef REFUSES_DUPLICATES
    :: new == NEVER && holds[at_slot] == r + 1 /* STARTED: delivered twice; what runs will answer */
#endif
    :: else ->
#ifndef NO_REFUSAL
        up[f]!REFUSED, r, at_slot, w;
#endif
        skip
    fi
}

inline take(f)
{
    alive && !looked && nempty(down[f]) && nfull(up[f]) ->
    down[f]?kind, r, at_slot, w;
    if
    :: kind == DISPATCH -> dispatched(f)
    :: kind == CANCEL && holds[0] == r + 1 -> finish(0)
    :: kind == CANCEL && holds[1] == r + 1 -> finish(1)
    :: else /* ended already, or refused */
    fi
}

inline take_result(n)
{
    alive && !looked && result[n] && (holds[n] == 0 || nfull(up[FLIGHT_OF(holds[n] - 1)])) ->
    w = result[n]; result[n] = 0;
    if
#ifdef NO_ROW_CHECK
    :: holds[n] && w >> 4 == generation ->
#else
#ifdef NO_GENERATION_CHECK
    :: holds[n] && (w & 15) == holds[n] ->
#else
    :: holds[n] && (w & 15) == holds[n] && w >> 4 == generation ->
#endif
#endif
        assert((w & 15) == holds[n] && w >> 4 == generation); /* 3 */
        finish(n)
    :: else
    fi
}

/* Words of the new window are closed, with seq 0; then the table is written in, and the others open. */
inline rebuild()
{
#ifndef KEEPS_EPOCH
    epoch = EPOCH_AFTER(epoch);
#endif
    s = 0;
    do
    :: s < SLOTS ->
        if
#ifndef FORGETS_RUNNING
        :: holds[s] ->
            window[s] = WORD(epoch, RUNNING, OWNER(token[s]), SEQ(token[s]));
#ifndef KEEPS_TOKENS
            token[s] = window[s]
#endif
#endif
        :: else -> window[s] = SLOT_OPEN(WORD(epoch, CLOSED, 0, 0), epoch); owner[s] = (holds[s] -> owner[s] : 0)
        fi;
        s++
    :: else -> break
    od;
    s = 0
}

inline look(may, n, state)
{
    may && alive && !looked && STATE(window[n]) == state -> looked = n + 1; expected = window[n]
}

inline swap()
{
    s = looked - 1; old = window[s];
    if
    :: STATE(expected) != FREE -> new = SLOT_REAP(old, EPOCH(expected), SEQ(expected))
    :: else -> new = (old == expected -> SLOT_CLOSE(old) : NEVER)
    fi;
#ifdef CLOSES_BY_STORE
    if :: STATE(expected) == FREE -> new = SLOT_CLOSE(expected) :: else fi;
#endif
    if
    :: new != NEVER && STATE(expected) != FREE -> owner[s] = 0; window[s] = new
    :: new != NEVER && STATE(expected) == FREE -> assert(owner[s] == 0); window[s] = new
    :: else
    fi;
    looked = 0; expected = 0
}

inline reopen(n)
{
    alive && !looked && !draining && STATE(window[n]) == CLOSED -> window[n] = SLOT_OPEN(window[n], epoch)
}

active proctype Leader()
{
end:
    do
    :: d_step { take(0) }
    :: d_step { take(1) }
#if FLIGHTS > 2
    :: d_step { take(2) }
#endif
    :: d_step { take_result(0) }
    :: d_step { take_result(1) }
#ifndef NO_REAP
    :: d_step { look(true, 0, RESERVED) } /* its lease is over */
    :: d_step { look(true, 1, RESERVED) }
#endif
#ifdef REAPS_RUNNING
    :: d_step { look(true, 0, RUNNING) }
    :: d_step { look(true, 1, RUNNING) }
#endif
    :: d_step { look(draining, 0, FREE) }
    :: d_step { look(draining, 1, FREE) }
    :: d_step { alive && looked -> swap() }
#ifdef DRAIN_FORGETS_RESERVED
    :: d_step { alive && draining && !drained && !looked && STATE(window[0]) != RUNNING && STATE(window[1]) != RUNNING ->
#else
    :: d_step { alive && draining && !drained && !looked && ALL_CLOSED ->
#endif
                drained = true; assert(ALL_CLOSED) } /* 5 */
    :: d_step { alive && !engine -> engine = true; generation++; /* resumes what ran */
#ifndef ENGINE_FORGETS
                job[0] = (holds[0] -> generation << 4 | holds[0] : 0);
                job[1] = (holds[1] -> generation << 4 | holds[1] : 0);
#endif
                skip }
    :: d_step { !alive -> alive = true; rebuild() } /* the successor; its table is empty */
    :: d_step { reopen(0) }
    :: d_step { reopen(1) }
    od
}

active proctype Engine()
{
end:
    do
    :: d_step { engine && job[0] && !result[0] -> result[0] = job[0]; job[0] = 0 }
    :: d_step { engine && job[1] && !result[1] -> result[1] = job[1]; job[1] = 0 }
    od
}

/* ---- faults, the drain, the end -----------------------------------------------------------------------------*/
inline ingress_dies(who)
{
    faults++; s = 0;
    do
    :: s < FLIGHTS ->
        if
        :: OWNER_OF(s) == who && at[s] != WAITS -> end_request(s)
        :: else
        fi;
        s++
    :: else -> break
    od;
    s = 0
}

inline leader_dies()
{
    faults++; alive = false; life++; looked = 0; expected = 0;
    engine = true; generation = 0; /* with it; the successor's is another */
    s = 0;
    do
    :: s < SLOTS -> holds[s] = 0; token[s] = 0; job[s] = 0; result[s] = 0; s++
    :: else -> break
    od;
    s = 0
}

inline deliver_twice(f)
{
    MAY_FAIL && down[f]?[DISPATCH, _, _, _] && nfull(down[f]) ->
    faults++; down[f]?<kind, r, at_slot, w>; down[f]!kind, r, at_slot, w
}

#define BUSY(f) (at[f] != WAITS)
#if FLIGHTS > 2
#define BUSY_INGRESS(who) (BUSY(0) && OWNER_OF(0) == who || BUSY(1) && OWNER_OF(1) == who || BUSY(2) && OWNER_OF(2) == who)
#else
#define BUSY_INGRESS(who) (BUSY(0) && OWNER_OF(0) == who || BUSY(1) && OWNER_OF(1) == who)
#endif
#define NEW_EPOCH (MAY_FAIL && EPOCH_AFTER(epoch) != EPOCH_MAX) /* the first one does not come again */

active proctype Faults()
{
end:
    do
    :: d_step { MAY_FAIL && BUSY_INGRESS(0) -> ingress_dies(0) }
    :: d_step { MAY_FAIL && BUSY_INGRESS(1) -> ingress_dies(1) }
    :: d_step { NEW_EPOCH && alive && !drained -> leader_dies() }
    :: d_step { NEW_EPOCH && alive && !drained && !looked -> faults++; rebuild() }
    :: d_step { NEW_EPOCH && drained -> faults++; epoch = EPOCH_AFTER(epoch); draining = false; drained = false }
    :: d_step { MAY_FAIL && alive && engine -> faults++; engine = false; job[0] = 0; job[1] = 0 }
    :: d_step { deliver_twice(0) }
    :: d_step { deliver_twice(1) }
#if FLIGHTS > 2
    :: d_step { deliver_twice(2) }
#endif
    od
}

#ifndef NO_DRAIN
active proctype Drain()
{
    d_step { draining = true }
}
#endif

/* Nothing can happen any more. */
active proctype Judge()
{
end:
    timeout;
    d_step {
        s = 0;
        do
        :: s < FLIGHTS -> assert(!OPEN(s) && at[s] == WAITS); s++ /* 4 */
        :: else -> break
        od;
        s = 0;
        do
        :: s < SLOTS -> assert(STATE(window[s]) < RESERVED && owner[s] == 0 && holds[s] == 0); s++ /* 4 */
        :: else -> break
        od;
        assert(!draining || drained && ALL_CLOSED) /* 5 */
    }
}
