/* Slot words: what each actor may turn a word into. Pure: the same functions serve the window and, when an agent was lost,
 * messages to the leader. */
#include "mpiserve/slots.h"

enum { OWNER_SHIFT = 32, STATE_SHIFT = 48, EPOCH_SHIFT = 52, STATE_MASK = 15 };

u64 slot_word(u32 epoch, enum slot_state state, u16 owner, u32 seq)
{
    return (u64)(epoch & SLOT_EPOCH_MAX) << EPOCH_SHIFT | (u64)state << STATE_SHIFT |
           (u64)owner << OWNER_SHIFT | seq;
}

u32 slot_word_epoch(u64 word)
{
    return (u32)(word >> EPOCH_SHIFT);
}

u32 slot_word_state(u64 word)
{
    return (u32)(word >> STATE_SHIFT) & STATE_MASK;
}

u16 slot_word_owner(u64 word)
{
    return (u16)(word >> OWNER_SHIFT);
}

u32 slot_word_seq(u64 word)
{
    return (u32)word;
}

bool slot_word_reserved(u64 word)
{
    u32 state = slot_word_state(word);
    return state == SLOT_RESERVED_SHORT || state == SLOT_RESERVED_LONG;
}

bool slot_word_valid(u64 word)
{
    u32 state = slot_word_state(word);
    bool owned = slot_word_reserved(word) || state == SLOT_RUNNING;
    return state >= SLOT_CLOSED && state <= SLOT_RUNNING && slot_word_epoch(word) &&
           (owned || !slot_word_owner(word));
}

u32 slot_epoch_after(u32 epoch)
{
    return epoch >= SLOT_EPOCH_MAX ? 1 : epoch + 1;
}

const char *slot_verdict_name(enum slot_verdict v)
{
    static const char *const names[] = {"ok",      "busy",    "shut",  "stale",
                                        "foreign", "started", "wrong", "broken"};
    return (size_t)v < COUNT_OF(names) ? names[v] : "?";
}

/* ---- transitions ---------------------------------------------------------------------------------------------*/
static struct slot_move no(u64 old, enum slot_verdict why)
{
    return (struct slot_move){why, old};
}

static struct slot_move to(u64 old, enum slot_state state, u16 owner, u32 seq)
{
    return (struct slot_move){SLOT_OK, slot_word(slot_word_epoch(old), state, owner, seq)};
}

/* Is the word that very reservation, reserved or running? */
static enum slot_verdict names(u64 word, u32 epoch, u32 seq)
{
    if (!slot_word_valid(word)) return SLOT_BROKEN;
    bool same = slot_word_epoch(word) == epoch && slot_word_seq(word) == seq;
    u32 state = slot_word_state(word);
    return same && state != SLOT_FREE && state != SLOT_CLOSED ? SLOT_OK : SLOT_STALE;
}

struct slot_move slot_reserve(u64 old, u16 owner, enum slot_class lease)
{
    if (!slot_word_valid(old)) return no(old, SLOT_BROKEN);
    u32 state = slot_word_state(old);
    if (state != SLOT_FREE) return no(old, state == SLOT_CLOSED ? SLOT_SHUT : SLOT_BUSY);
    return to(old, lease == SLOT_CLASS_LONG ? SLOT_RESERVED_LONG : SLOT_RESERVED_SHORT, owner,
              slot_word_seq(old));
}

struct slot_move slot_release(u64 old, u16 owner, u32 epoch, u32 seq)
{
    enum slot_verdict v = names(old, epoch, seq);
    if (v) return no(old, v);
    if (slot_word_owner(old) != owner) return no(old, SLOT_FOREIGN);
    if (slot_word_state(old) == SLOT_RUNNING) return no(old, SLOT_STARTED);
    return to(old, SLOT_FREE, 0, seq + 1);
}

struct slot_move slot_run(u64 old, u32 epoch, u32 seq)
{
    enum slot_verdict v = names(old, epoch, seq);
    if (v) return no(old, v);
    if (slot_word_state(old) == SLOT_RUNNING) return no(old, SLOT_STARTED);
    return to(old, SLOT_RUNNING, slot_word_owner(old), seq);
}

struct slot_move slot_finish(u64 old, u32 epoch, u32 seq)
{
    enum slot_verdict v = names(old, epoch, seq);
    if (v) return no(old, v);
    if (slot_word_state(old) != SLOT_RUNNING) return no(old, SLOT_WRONG);
    return to(old, SLOT_FREE, 0, seq + 1);
}

struct slot_move slot_reap(u64 old, u32 epoch, u32 seq)
{
    enum slot_verdict v = names(old, epoch, seq);
    if (v) return no(old, v);
    if (slot_word_state(old) == SLOT_RUNNING) return no(old, SLOT_STARTED);
    return to(old, SLOT_FREE, 0, seq + 1);
}

struct slot_move slot_close(u64 old)
{
    if (!slot_word_valid(old)) return no(old, SLOT_BROKEN);
    u32 state = slot_word_state(old);
    if (state == SLOT_CLOSED) return no(old, SLOT_SHUT);
    if (state != SLOT_FREE) return no(old, SLOT_BUSY);
    return to(old, SLOT_CLOSED, 0, slot_word_seq(old));
}

struct slot_move slot_open(u64 old, u32 epoch)
{
    if (!slot_word_valid(old)) return no(old, SLOT_BROKEN);
    if (slot_word_state(old) != SLOT_CLOSED || !epoch || epoch > SLOT_EPOCH_MAX) return no(old, SLOT_WRONG);
    return (struct slot_move){SLOT_OK, slot_word(epoch, SLOT_FREE, 0, slot_word_seq(old))};
}
