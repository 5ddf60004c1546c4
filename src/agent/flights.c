/* A request's way at the head: slot, dispatch, chunks, end. Whatever happens on the way, the ingress gets exactly one end. */
#include "agent/head_internal.h"
#include <stdlib.h>
#include <string.h>

static struct flight **chain_of(struct head *h, u64 id)
{
    return &h->chains[id % FLIGHT_CHAINS];
}

struct flight *flight_find(struct head *h, u64 id)
{
    struct flight *f = *chain_of(h, id);
    while (f && f->id != id) f = f->next;
    return f;
}

void flight_drop(struct head *h, struct flight *f)
{
    gate_dropped(h, f);
    route_queue_remove(&h->waiting, &f->wait);
    struct flight **at = chain_of(h, f->id);
    while (*at != f) at = &(*at)->next;
    *at = f->next;
    h->n_flights--;
    atomic_fetch_sub(&h->outstanding, 1);
    atomic_store(&h->n_waiting, h->waiting.n);
    free(f->request);
    free(f->prefix);
    free(f->samples);
    free(f);
}

/* Ends every unfinished sample of the flight towards the client; the flight is gone afterwards. */
void flight_fail(struct head *h, struct flight *f, enum finish how, const char *why)
{
    buf_clear(&h->scratch);
    for (u32 s = 0; s < f->request->n_samples; s++) {
        if (f->samples[s].finished) continue;
        struct chunk c = {.request = f->id,
                          .sample = s,
                          .first = f->samples[s].delivered,
                          .n_top = CHUNK_NO_LOGPROBS,
                          .stop_id = -1,
                          .finish = (u8)how,
                          .last = --f->n_open == 0};
        chunk_add(&h->scratch, &c, NULL, NULL, why);
    }
    size_t pos = 0;
    const struct chunk *c;
    while ((c = chunk_next(h->scratch.data, h->scratch.len, &pos, NULL))) ingress_deliver(h->ingress, c);
    flight_drop(h, f);
}

/* ---- towards a replica ---------------------------------------------------------------------------------------*/
static struct route_ask ask_of(const struct flight *f)
{
    return (struct route_ask){.has_session = f->request->has_session,
                              .session = f->request->session,
                              .prefix = f->prefix,
                              .n_prefix = f->n_prefix};
}

static void dispatch(struct head *h, struct flight *f)
{
    struct agent *a = h->agent;
    const struct route_ask ask = ask_of(f);
    f->replica = f->selection.token.replica;
    router_chosen(h->router, (u32)f->replica, &ask);
    silence_dispatched(h, (u32)f->replica);
    selection_dispatch(&f->selection);
    struct msg_dispatch m = {.token = f->selection.token, .origin = (u32)a->ingress_index};
    latency_dispatched(h, f);
    agent_send(a, f->selection.leader, MSG_DISPATCH, &m, sizeof m, f->request, f->request->bytes);
    atomic_fetch_add(&h->routed, 1);
}

static bool ask_for_slot(struct head *h, u32 replica, enum slot_class lease, struct slots_answer *answer)
{
    const struct route_view *v = &h->views[replica];
    struct error err;
    if (slots_reserve(h->agent->slots, v->replica, v->leader, v->n_slots, lease, answer, &err))
        agent_die(h->agent, "slot window", &err);
    head_note_asked(h, replica, answer);
    return answer->accepted;
}

i32 flight_select(struct head *h, const struct route_ask *ask, enum slot_class lease,
                  struct slots_answer *answer)
{
    *answer = (struct slots_answer){.reason = h->n_full ? SLOTS_FULL : SLOTS_GRANTED};
    router_round(h->router);
    for (;;) {
        i32 r = router_choose(h->router, ask);
        if (r < 0) return -1;
        if (ask_for_slot(h, (u32)r, lease, answer)) return r;
        router_exclude(h->router, (u32)r);
    }
}

static void take(struct head *h, struct flight *f, u32 replica, const struct slots_answer *answer)
{
    selection_choose(&f->selection, h->views[replica].leader, &answer->token);
    dispatch(h, f);
}

bool flight_try_at(struct head *h, struct flight *f, u32 replica)
{
    struct slots_answer answer;
    if (h->views[replica].state != ROUTE_UP || !ask_for_slot(h, replica, SLOT_CLASS_SHORT, &answer))
        return false;
    take(h, f, replica, &answer);
    return true;
}

bool flight_try(struct head *h, struct flight *f)
{
    const struct route_ask ask = ask_of(f);
    struct slots_answer answer;
    i32 r = flight_select(h, &ask, SLOT_CLASS_SHORT, &answer);
    if (r < 0) return false;
    take(h, f, (u32)r, &answer);
    return true;
}

/* Why nobody who waits will get a slot any more; NULL: they may. */
static const char *hopeless(const struct head *h)
{
    if (h->closing) return "the server is shutting down";
    return atomic_load(&h->none_left) ? "every replica is out of service" : NULL;
}

static void enqueue(struct head *h, struct flight *f)
{
    struct error err;
    const char *why = hopeless(h);
    if (why)
        flight_fail(h, f, FINISH_RETRY, why);
    else if (route_queue_put(&h->waiting, &f->wait, &err))
        flight_fail(h, f, FINISH_RETRY, "all replicas are busy and the queue is full");
    else
        atomic_store(&h->n_waiting, h->waiting.n);
}

void flight_new(struct head *h, const struct command *command, const struct selection *held, u64 now_ns)
{
    const struct config *c = &h->agent->config;
    const struct request *r = command->request;
    struct flight *f = mem_zero(1, sizeof *f);
    f->id = r->id;
    f->request = command->request;
    f->prefix = command->prefix;
    f->n_prefix = command->n_prefix;
    f->submitted_ns = now_ns;
    f->n_open = r->n_samples;
    f->replica = -1;
    f->samples = mem_zero(r->n_samples, sizeof *f->samples);
    double wait = c->queue_timeout_s;
    route_waiter_init(&f->wait, r->priority, now_ns + (u64)(wait * (double)NS_PER_S));
    f->wait.since_ns = now_ns;
    f->next = *chain_of(h, f->id);
    *chain_of(h, f->id) = f;
    bool may_take = h->waiting.n == 0 && heads_may_take(h);
    h->n_flights++;
    gate_arrived(h, f, held, now_ns);
    if (held && !h->closing) {
        f->selection = *held;
        dispatch(h, f);
        return;
    }
    if (held) reservations_give_back(h, held);
    if (!may_take || !flight_try(h, f)) enqueue(h, f);
}

/* The replica does not run it (stale, unavailable, given up): it waits in its old place for another. */
void flight_put_back(struct head *h, struct flight *f, u64 now_ns)
{
    if (f->cancelled) {
        flight_fail(h, f, FINISH_ABORT, NULL);
        return;
    }
    atomic_fetch_add(&h->requeued, 1);
    if (h->closing || ++f->retries > MAX_RETRIES) {
        flight_fail(h, f, FINISH_RETRY,
                    h->closing ? "the server is shutting down" : "no replica could run the request");
        return;
    }
    if (f->wait.deadline_ns < now_ns + NS_PER_S) f->wait.deadline_ns = now_ns + NS_PER_S;
    if (!flight_try(h, f)) enqueue(h, f);
}

void flight_cancel(struct head *h, u64 id)
{
    struct flight *f = flight_find(h, id);
    if (!f) return;
    f->cancelled = true;
    if (route_queue_holds(&h->waiting, &f->wait))
        flight_fail(h, f, FINISH_ABORT, NULL);
    else
        agent_send(h->agent, f->selection.leader, MSG_CANCEL, &id, sizeof id, NULL, 0);
}

void flights_expire(struct head *h, u64 now_ns)
{
    struct route_waiter *w;
    while ((w = route_queue_expired(&h->waiting, now_ns)))
        flight_fail(h, (struct flight *)w, FINISH_RETRY, "no replica was free in time");
}

void flights_retry_queue(struct head *h, u64 now_ns)
{
    struct route_waiter *w;
    h->retry_due = false;
    flights_expire(h, now_ns);
    const char *why = hopeless(h);
    while (why && (w = route_queue_first(&h->waiting, now_ns)))
        flight_fail(h, (struct flight *)w, FINISH_RETRY, why);
    while ((w = route_queue_first(&h->waiting, now_ns)) && heads_may_take(h)) {
        struct flight *f = (struct flight *)w;
        if (!flight_try(h, f)) break;
        route_queue_serve(&h->waiting, w);
    }
    atomic_store(&h->n_waiting, h->waiting.n);
}
