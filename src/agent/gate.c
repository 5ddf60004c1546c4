/* Who is let in. What the main thread measures is copied for HTTP threads when it changes; what is before a request they count
 * themselves, so that those who come at the same time see each other. */
#include "agent/head_internal.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

void gate_init(struct head *h)
{
    struct gate *g = &h->gate;
    admission_init(&g->measured, (u32)h->agent->config.max_num_batched_tokens);
    g->replicas = mem_zero(h->n_replicas, sizeof *g->replicas);
    g->shown.measured = g->measured;
    pthread_mutex_init(&g->lock, NULL);
}

void gate_release(struct head *h)
{
    free(h->gate.replicas);
    pthread_mutex_destroy(&h->gate.lock);
}

/* ---- HTTP threads --------------------------------------------------------------------------------------------*/
static bool predict(struct head *h, u32 own, u32 taken, double allowed_ms, double *predicted_ms)
{
    struct gate *g = &h->gate;
    pthread_mutex_lock(&g->lock);
    struct gate_shown s = g->shown;
    pthread_mutex_unlock(&g->lock);
    struct admission_load load = {.others = taken + atomic_load(&h->n_held),
                                  .slots = s.slots,
                                  .replicas = s.replicas,
                                  .own = own,
                                  .unread = atomic_load(&g->unread)};
    return admission_allows(&s.measured, &load, allowed_ms, clock_ns(), predicted_ms);
}

bool gate_admits(struct head *h, const struct request *r, u32 taken, struct ingress_refusal *why)
{
    enum { MOST_S = 60 };
    const struct config *c = &h->agent->config;
    if (strcmp(c->admission, "slo") != 0) return true;
    double ms, allowed = (double)c->slo_ttft_ms;
    if (predict(h, r->prompt.len, taken, allowed, &ms)) return true;
    double wait_s = ceil((ms - allowed) * 1e-3);
    *why = (struct ingress_refusal){.retry_after_s = (u32)MIN_OF(MAX_OF(wait_s, 1.0), (double)MOST_S),
                                    .predicted_ms = (u32)ceil(ms),
                                    .allowed_ms = (u32)c->slo_ttft_ms};
    return false;
}

void gate_entered(struct head *h, const struct request *r)
{
    atomic_fetch_add(&h->gate.unread, r->prompt.len);
}

double gate_predicted_ms(struct head *h)
{
    double ms;
    (void)predict(h, 0, atomic_load(&h->outstanding), 0, &ms);
    return ms;
}

/* ---- the main thread -----------------------------------------------------------------------------------------*/
void gate_note(struct head *h, u32 replica)
{
    u32 ongoing = h->views[replica].state != ROUTE_DOWN ? h->views[replica].ongoing : 0;
    h->gate.busy += ongoing - h->gate.replicas[replica].ongoing;
    h->gate.replicas[replica].ongoing = ongoing;
}

/* Slots that this ingress can have: not those that others use, but its equal part at least, which they leave to it when it waits. An
 * ingress that went by the slots it happens to have would refuse what brings it more. */
static u32 own_slots(const struct head *h, u32 own)
{
    u32 others = h->gate.busy > own ? h->gate.busy - own : 0, n = h->agent->n_ingresses;
    return MAX_OF(h->slots_up - MIN_OF(others, h->slots_up), (h->slots_up + n - 1) / n);
}

void gate_arrived(struct head *h, struct flight *f, bool held, u64 now_ns)
{
    struct gate *g = &h->gate;
    struct admission_load load = {.others = h->n_flights - 1 + atomic_load(&h->n_held),
                                  .slots = own_slots(h, head_own_use(h) - 1),
                                  .replicas = h->replicas_up,
                                  .own = f->request->prompt.len,
                                  .unread = g->unread_here};
    f->gate.unread = f->request->prompt.len;
    f->gate.expected_s = held ? -1 : admission_expect_s(&g->measured, &load, now_ns);
    g->unread_here += f->gate.unread;
}

void gate_dispatched(struct head *h, struct flight *f)
{
    struct gate_replica *r = &h->gate.replicas[f->replica];
    if (!f->gate.unread) return; /* it goes on after its replica was given up */
    if (r->unread == 0) {
        r->since_ns = f->dispatched_ns;
        r->start = f->gate.unread;
    }
    r->unread += f->gate.unread;
    f->gate.tokens = r->unread;
    f->gate.at_replica = true;
}

static double seconds(u64 from_ns, u64 to_ns)
{
    return (double)(to_ns - MIN_OF(to_ns, from_ns)) * 1e-9;
}

static void leave_replica(struct head *h, struct flight *f)
{
    if (f->gate.at_replica) h->gate.replicas[f->replica].unread -= f->gate.unread;
    f->gate.at_replica = false;
}

static void forget_prompt(struct head *h, struct flight *f)
{
    leave_replica(h, f);
    h->gate.unread_here -= f->gate.unread;
    atomic_fetch_sub(&h->gate.unread, f->gate.unread);
    f->gate.unread = 0;
}

void gate_answered(struct head *h, struct flight *f, u64 now_ns)
{
    struct gate *g = &h->gate;
    struct gate_replica *r = &g->replicas[f->replica];
    if (!f->gate.at_replica) return;
    if (now_ns > r->since_ns) r->last_start = r->start; /* else of the same message as the one before */
    if (!f->cancelled) {
        admission_observe_prefill(&g->measured, now_ns, r->last_start, f->gate.unread,
                                  seconds(r->since_ns, now_ns));
        admission_observe_first(&g->measured, now_ns, f->gate.tokens, seconds(f->dispatched_ns, now_ns));
        if (f->retries == 0)
            admission_observe_outcome(&g->measured, f->gate.expected_s, seconds(f->submitted_ns, now_ns));
        g->changed = true;
    }
    forget_prompt(h, f);
    r->since_ns = now_ns;
    r->start = r->unread;
}

void gate_slot_freed(struct head *h, struct flight *f)
{
    leave_replica(h, f);
    h->gate.freed++;
}

void gate_dropped(struct head *h, struct flight *f)
{
    forget_prompt(h, f);
}

void gate_turn(struct head *h, u64 now_ns)
{
    struct gate *g = &h->gate;
    bool full = h->slots_up > 0 && g->busy >= h->slots_up;
    u32 slots = own_slots(h, head_own_use(h));
    if (g->freed || full != g->measured.full) {
        /* as many as would have come free of all that it can have */
        double part = (double)slots / MAX_OF(head_own_use(h) + g->freed, 1u);
        admission_observe_slots(&g->measured, now_ns, g->freed * MAX_OF(part, 1.0), full);
        g->freed = 0;
        g->changed = true;
    }
    if (!g->changed && slots == g->shown.slots && h->replicas_up == g->shown.replicas) return;
    g->changed = false;
    pthread_mutex_lock(&g->lock);
    g->shown = (struct gate_shown){g->measured, slots, h->replicas_up};
    pthread_mutex_unlock(&g->lock);
}
