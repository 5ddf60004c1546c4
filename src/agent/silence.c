/* Leaders that are late. A slot is reserved by an operation on the leader's memory that between nodes, and in a job of several, only the
 * leader itself can complete: to ask one that stands still is to stand still with it. A leader with a request speaks several times a second; one
 * that misses two of its LOADs is not asked until it is heard of. (An idle one may be silent for long: who asks that one first may have to wait for it.) */
#include "agent/head_internal.h"

enum { LOOK_MS = 50, GRACE_MS = 100 };

void silence_dispatched(struct head *h, u32 replica)
{
    if (h->watches[replica].dispatched++ == 0) h->watches[replica].since_ns = clock_ns();
}

void silence_ended(struct head *h, u32 replica)
{
    h->watches[replica].dispatched--;
}

void silence_heard(struct head *h, u32 replica)
{
    h->watches[replica].late = false; /* its view is set anew behind this */
}

static u64 longest_ns(const struct head *h)
{
    return (2 * load_busy_ms(h->agent->n_ingresses) + GRACE_MS) * NS_PER_MS;
}

void silence_turn(struct head *h, u64 now_ns)
{
    if (now_ns < h->watched_ns + LOOK_MS * NS_PER_MS) return;
    h->watched_ns = now_ns;
    for (u32 i = 0; i < h->n_replicas; i++) {
        struct replica_watch *w = &h->watches[i];
        const struct replica_view *v = &h->replicas[i];
        bool was_busy =
            v->load.slots_in_use > 0; /* when it last spoke: with requests of other ingresses, too */
        u64 since = was_busy ? v->heard_ns : MAX_OF(w->since_ns, v->heard_ns);
        if (w->late || !(was_busy || w->dispatched) || now_ns < since + longest_ns(h)) continue;
        w->late = true;
        head_note_ongoing(h, i);
        log_debug("replica %u: its leader is late", i);
    }
}
