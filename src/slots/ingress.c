/* The ingress side: one pass over a leader's words for a free one, and giving it back. */
#include "slots/slots_inner.h"

#include <stdlib.h>
#include <string.h>

enum {
    PROBES = 8,
    TRIES = 3
}; /* words asked one by one before the rest is read at once; CAS on one word in a pass */

static bool holds(const struct slots_far *f, u32 slot)
{
    return f->own[slot / 64] >> slot % 64 & 1;
}

static void set_own(struct slots_far *f, u32 slot, bool own)
{
    u64 bit = 1ull << slot % 64;
    if (holds(f, slot) == own) return;
    f->own[slot / 64] ^= bit;
    f->n_own += own ? 1 : -1u;
}

/* The table of a leader; made at the first use, with the guess that nobody was there before. */
static struct slots_far *far_of(struct slots *s, u32 leader, u32 n)
{
    struct slots_far *f = &s->far[leader];
    if (f->n >= n) return f;
    f->seen = mem_resize(f->seen, n * sizeof *f->seen);
    for (u32 i = f->n; i < n; i++) f->seen[i] = slot_word(s->epoch, SLOT_FREE, 0, 0);
    if (!f->n) f->hint = (u32)(hash_bytes(&s->owner, sizeof s->owner, leader) % n);
    f->n = n;
    return f;
}

/* What the word is if whoever had it has left: a wrong guess costs no more than a read. */
static u64 guess_free(u64 seen)
{
    u32 state = slot_word_state(seen), epoch = slot_word_epoch(seen), seq = slot_word_seq(seen);
    bool gone_up = state != SLOT_FREE && state != SLOT_CLOSED;
    return slot_word(epoch, SLOT_FREE, 0, seq + gone_up);
}

/* One pass over the words. */
struct pass {
    struct slots *s;
    struct slots_far *f;
    u32 leader, n_slots;
    enum slot_class lease;
    u32 n_cas, busy, shut, contended;
    i32 got; /* slot, or -1 */
};

static void count_verdict(struct pass *p, enum slot_verdict v)
{
    p->busy += v == SLOT_BUSY;
    p->shut += v == SLOT_SHUT;
    p->contended += v == SLOT_OK; /* free when seen, taken when asked for */
}

static int broken_word(const struct pass *p, u32 slot, struct error *err)
{
    return error_set(err, ERR_PEER, "slot window", "rank %u, slot %u holds %#llx, which is not a slot word",
                     p->leader, slot, (unsigned long long)p->f->seen[slot]);
}

static int try_slot(struct pass *p, u32 slot, struct error *err)
{
    enum slot_verdict v = SLOT_OK;
    for (int i = 0; i < TRIES && v == SLOT_OK && p->n_cas < 2 * p->n_slots + 16; i++) {
        u64 expected = guess_free(p->f->seen[slot]), old;
        struct slot_move move = slot_reserve(expected, p->s->owner, p->lease);
        int rc = slot_window_cas(p->s->window, p->leader, slot, expected, move.word, &old, err);
        if (rc) return rc;
        p->n_cas++;
        if (old == expected) {
            p->f->seen[slot] = move.word;
            p->got = (i32)slot;
            return 0;
        }
        p->f->seen[slot] = old;
        v = slot_reserve(old, p->s->owner, p->lease).verdict;
        if (v == SLOT_BROKEN) return broken_word(p, slot, err);
    }
    count_verdict(p, v);
    return 0;
}

/* All words at once (one flush), from the k-th of the pass to its end; own ones are read too, and left alone. */
static int read_rest(struct pass *p, u32 start, u32 k, struct error *err)
{
    u32 from = (start + k) % p->n_slots, n = p->n_slots - k;
    u32 head = MIN_OF(n, p->n_slots - from);
    u64 kept[SLOTS_PER_RANK];
    memcpy(kept, p->f->seen, p->n_slots * sizeof *kept);
    int rc = slot_window_read(p->s->window, p->leader, from, head, p->f->seen + from, err);
    if (!rc && n > head) rc = slot_window_read(p->s->window, p->leader, 0, n - head, p->f->seen, err);
    if (rc) return rc;
    p->n_cas += n;
    for (u32 slot = 0; slot < p->n_slots; slot++)
        if (holds(p->f, slot)) p->f->seen[slot] = kept[slot];
    return 0;
}

static int run_pass(struct pass *p, struct error *err)
{
    u32 start = p->f->hint % p->n_slots, probed = 0;
    bool fresh = false; /* the words were all read in this pass */
    for (u32 k = 0; k < p->n_slots && p->got < 0; k++) {
        u32 slot = (start + k) % p->n_slots;
        if (holds(p->f, slot)) {
            p->busy++;
            continue;
        }
        if (!fresh && probed++ == PROBES) {
            int rc = read_rest(p, start, k, err);
            if (rc) return rc;
            fresh = true;
        }
        enum slot_verdict v = fresh ? slot_reserve(p->f->seen[slot], p->s->owner, p->lease).verdict : SLOT_OK;
        if (v == SLOT_BROKEN) return broken_word(p, slot, err);
        int rc = 0;
        if (v == SLOT_OK)
            rc = try_slot(p, slot, err);
        else
            count_verdict(p, v);
        if (rc) return rc;
    }
    return 0;
}

int slots_reserve(struct slots *s, i32 replica, u32 leader, u32 n_slots, enum slot_class lease,
                  struct slots_answer *answer, struct error *err)
{
    BUG_ON(leader >= s->n_ranks || !n_slots || n_slots > SLOTS_PER_RANK);
    struct slots_far *f = far_of(s, leader, n_slots);
    struct pass p = {.s = s, .f = f, .leader = leader, .n_slots = n_slots, .lease = lease, .got = -1};
    *answer = (struct slots_answer){.token.replica = -1};
    int rc = run_pass(&p, err);
    if (rc) return rc;
    answer->n_cas = p.n_cas;
    answer->accepted = p.got >= 0;
    if (answer->accepted) {
        u32 slot = (u32)p.got;
        set_own(f, slot, true);
        f->hint = slot + 1;
        answer->num_ongoing = f->n_own + f->others;
        answer->token = (struct slot_token){.replica = replica,
                                            .slot = (u16)slot,
                                            .epoch = (u16)slot_word_epoch(f->seen[slot]),
                                            .seq = slot_word_seq(f->seen[slot])};
        s->counts.grants++;
        return 0;
    }
    answer->num_ongoing = p.busy;
    answer->reason = p.contended ? SLOTS_CONTENDED : p.shut ? SLOTS_LEAVING : SLOTS_FULL;
    s->counts.refusals[answer->reason]++;
    return 0;
}

/* ---- giving back ---------------------------------------------------------------------------------------------*/
/* The table of the leader if this ingress holds that very reservation. */
static struct slots_far *held_in(struct slots *s, u32 leader, const struct slot_token *token)
{
    if (leader >= s->n_ranks) return NULL;
    struct slots_far *f = &s->far[leader];
    if (token->slot >= f->n || !holds(f, token->slot)) return NULL;
    u64 word = f->seen[token->slot];
    return slot_word_epoch(word) == token->epoch && slot_word_seq(word) == token->seq ? f : NULL;
}

static void drop(struct slots_far *f, u32 slot, u64 word)
{
    set_own(f, slot, false);
    f->seen[slot] = word;
    f->hint = slot;
}

int slots_release(struct slots *s, u32 leader, const struct slot_token *token, struct error *err)
{
    struct slots_far *f = held_in(s, leader, token);
    if (!f) {
        s->counts.releases_void++;
        return 0;
    }
    u64 expected = f->seen[token->slot], old;
    struct slot_move move = slot_release(expected, s->owner, token->epoch, token->seq);
    BUG_ON(move.verdict != SLOT_OK); /* held words are RESERVED in this table, also after dispatch */
    int rc = slot_window_cas(s->window, leader, token->slot, expected, move.word, &old, err);
    if (rc) return rc;
    if (old == expected) {
        drop(f, token->slot, move.word);
        s->counts.releases++;
        return 1;
    }
    enum slot_verdict v = slot_release(old, s->owner, token->epoch, token->seq).verdict;
    if (v == SLOT_STARTED)
        return error_set(err, ERR_STATE, "",
                         "replica %d, slot %u, seq %u was dispatched and runs: its leader ends it",
                         token->replica, token->slot, token->seq);
    drop(f, token->slot, old); /* its lease was over */
    s->counts.releases_void++;
    return 0;
}

void slots_ended(struct slots *s, u32 leader, const struct slot_token *token)
{
    struct slots_far *f = held_in(s, leader, token);
    if (f) drop(f, token->slot, guess_free(f->seen[token->slot]));
}

void slots_published(struct slots *s, u32 leader, u32 others)
{
    if (leader < s->n_ranks) s->far[leader].others = others;
}

u32 slots_outstanding(const struct slots *s, u32 leader)
{
    return leader < s->n_ranks ? s->far[leader].n_own : 0;
}

u32 slots_ongoing(const struct slots *s, u32 leader)
{
    return leader < s->n_ranks ? s->far[leader].n_own + s->far[leader].others : 0;
}

void slots_forget(struct slots *s, u32 leader)
{
    struct slots_far *f = &s->far[leader];
    free(f->seen);
    *f = (struct slots_far){0};
}
