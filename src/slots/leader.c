/* The leader side: running, ending, reaping, closing and opening its own words. Through MPI as well: the memory is
 * never touched directly. */
#include "slots/slots_inner.h"

#include <stdlib.h>

enum { LOOKS_A_LEASE = 8, TRIES = 16 };

/* Notes a word and keeps the counts. */
static void note(struct slots_near *m, u32 slot, u64 word)
{
    u64 before = m->words[slot];
    bool was_reserved = slot_word_reserved(before), is_reserved = slot_word_reserved(word);
    bool was_used = was_reserved || slot_word_state(before) == SLOT_RUNNING;
    bool is_used = is_reserved || slot_word_state(word) == SLOT_RUNNING;
    bool same =
        slot_word_seq(before) == slot_word_seq(word) && slot_word_epoch(before) == slot_word_epoch(word);
    m->reserved += is_reserved - was_reserved;
    m->in_use += is_used - was_used;
    if (!is_reserved || !same) m->since_ns[slot] = 0;
    m->words[slot] = word;
}

typedef struct slot_move (*move_fn)(u64 old, u32 epoch, u32 seq);

static struct slot_move close_move(u64 old, u32 epoch, u32 seq)
{
    (void)epoch, (void)seq;
    return slot_close(old);
}

static struct slot_move open_move(u64 old, u32 epoch, u32 seq)
{
    (void)seq;
    return slot_open(old, epoch);
}

/* Applies a transition: first to the word as last seen; a refusal counts only after the word was looked at. Returns the
 * verdict or an error. */
static int apply(struct slots *s, u32 slot, move_fn move, u32 epoch, u32 seq, struct error *err)
{
    struct slots_near *m = &s->near;
    bool looked = false;
    for (int i = 0; i < TRIES; i++) {
        u64 expected = m->words[slot], old;
        struct slot_move step = move(expected, epoch, seq);
        if (step.verdict && looked) return (int)step.verdict;
        u64 ask = step.verdict ? SLOT_NEVER : expected;
        int rc =
            slot_window_cas(s->window, s->rank, slot, ask, step.verdict ? SLOT_NEVER : step.word, &old, err);
        if (rc) return rc;
        bool done = !step.verdict && old == expected;
        note(m, slot, done ? step.word : old);
        if (done) return SLOT_OK;
        if (!slot_word_valid(old))
            return error_set(err, ERR_PEER, "slot window",
                             "own slot %u holds %#llx, which is not a slot word", slot,
                             (unsigned long long)old);
        looked = true;
    }
    /* Each failure is another's success on this one word: ingresses fighting over a slot that is being closed. */
    return SLOT_BUSY;
}

int slots_open(struct slots *s, i32 replica, u32 n_slots, struct error *err)
{
    struct slots_near *m = &s->near;
    if (!n_slots || n_slots > SLOTS_PER_RANK)
        return error_set(err, ERR_INPUT, "max_ongoing_requests", "is %u: must be 1 to %d", n_slots,
                         SLOTS_PER_RANK);
    BUG_ON(m->replica >= 0 && (m->replica != replica || m->n != n_slots));
    if (m->replica < 0) {
        m->replica = replica;
        m->n = n_slots;
        m->words = mem_zero(n_slots, sizeof *m->words);
        m->since_ns = mem_zero(n_slots, sizeof *m->since_ns);
        for (u32 i = 0; i < n_slots; i++) m->words[i] = slot_word(s->epoch, SLOT_CLOSED, 0, 0);
    }
    for (u32 i = 0; i < n_slots; i++) {
        int rc = apply(s, i, open_move, s->epoch, 0, err);
        if (rc < 0) return rc; /* one that is open already stays as it is */
    }
    return 0;
}

static bool is_mine(const struct slots *s, const struct slot_token *token)
{
    return s->near.replica >= 0 && token->replica == s->near.replica && token->slot < s->near.n;
}

int slots_run(struct slots *s, const struct slot_token *token, struct error *err)
{
    int rc = is_mine(s, token) ? apply(s, token->slot, slot_run, token->epoch, token->seq, err) : SLOT_STALE;
    s->counts.runs += rc == SLOT_OK;
    s->counts.stale += rc > SLOT_OK;
    return rc;
}

int slots_finish(struct slots *s, const struct slot_token *token, struct error *err)
{
    int rc =
        is_mine(s, token) ? apply(s, token->slot, slot_finish, token->epoch, token->seq, err) : SLOT_STALE;
    s->counts.finishes += rc == SLOT_OK;
    return rc;
}

/* Reads all own words with one flush. */
static int look(struct slots *s, struct error *err)
{
    struct slots_near *m = &s->near;
    u64 words[SLOTS_PER_RANK];
    int rc = slot_window_read(s->window, s->rank, 0, m->n, words, err);
    for (u32 i = 0; !rc && i < m->n; i++)
        if (words[i] != m->words[i]) note(m, i, words[i]);
    return rc;
}

int slots_reap(struct slots *s, u64 now_ns, struct error *err)
{
    struct slots_near *m = &s->near;
    if (m->replica < 0 || now_ns - m->looked_ns < s->lease_ns[SLOT_CLASS_SHORT] / LOOKS_A_LEASE) return 0;
    m->looked_ns = now_ns;
    int rc = look(s, err), reaped = 0;
    for (u32 i = 0; !rc && m->reserved && i < m->n; i++) {
        u64 word = m->words[i];
        if (!slot_word_reserved(word)) continue;
        if (!m->since_ns[i]) m->since_ns[i] = MAX_OF(now_ns, 1);
        enum slot_class lease =
            slot_word_state(word) == SLOT_RESERVED_LONG ? SLOT_CLASS_LONG : SLOT_CLASS_SHORT;
        if (now_ns - m->since_ns[i] < s->lease_ns[lease]) continue;
        int verdict = apply(s, i, slot_reap, slot_word_epoch(word), slot_word_seq(word), err);
        if (verdict < 0) rc = verdict;
        reaped += verdict == SLOT_OK;
    }
    s->counts.reaped += (u64)reaped;
    return rc ? rc : reaped;
}

int slots_close_free(struct slots *s, struct error *err)
{
    struct slots_near *m = &s->near;
    if (m->replica < 0) return 0;
    int rc = look(s, err), open = 0;
    for (u32 i = 0; !rc && i < m->n; i++) {
        if (slot_word_state(m->words[i]) != SLOT_FREE) {
            open += slot_word_state(m->words[i]) != SLOT_CLOSED;
            continue;
        }
        int verdict = apply(s, i, close_move, 0, 0, err);
        if (verdict < 0) rc = verdict;
        open += verdict > 0 && verdict != SLOT_SHUT;
    }
    return rc ? rc : open;
}

u32 slots_in_use(const struct slots *s)
{
    return s->near.in_use;
}

u32 slots_in_use_by_others(const struct slots *s, u16 owner)
{
    u32 n = 0;
    for (u32 i = 0; i < s->near.n; i++) {
        u64 word = s->near.words[i];
        bool used = slot_word_reserved(word) || slot_word_state(word) == SLOT_RUNNING;
        n += used && slot_word_owner(word) != owner;
    }
    return n;
}

bool slots_reserved_seen(const struct slots *s)
{
    return s->near.reserved > 0;
}
