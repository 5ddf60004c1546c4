/* Several ingresses in one job: they drain as one, and while slots are scarce each leaves the others their share.
 *
 * Drain. Rank 0 leads: it tells the others to drain and learns how far each is (DRAINED). When all are QUIET the slots close, when all
 * are DONE the job ends. A stage is only reported when it is higher than before; what falls back behind QUIET (a request that a
 * replica gave back) fails when the slots close, as with one ingress.
 *
 * Shares. An ingress whose requests wait says so to the others (DEMAND), again every few milliseconds, and once when none waits any
 * more. While others wait, an ingress takes no slot beyond its max-min fair share (route_fair_share), and when one of its own ends
 * above the share, it names the replica to the one that has least (YIELD), which takes the slot at once: no slot lies idle for
 * fairness. A slot that nobody took for a while may be had by whoever waits. */
#include "agent/head_internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEMAND_MS = 20, DEMAND_GAP_US = 2500, IDLE_SLOT_MS = 100 }; /* GAP: for each ingress, all get one */

void heads_init(struct head *h)
{
    h->stages = mem_zero(h->agent->n_ingresses, sizeof *h->stages);
    h->demands = mem_zero(h->agent->n_ingresses, sizeof *h->demands);
}

void heads_release(struct head *h)
{
    free(h->stages);
    free(h->demands);
    free(h->urls);
}

int heads_meet(struct agent *a, struct error *err)
{
    enum { URL = sizeof a->head->url };
    char mine[URL] = "", (*all)[URL] = mem_zero(wire_size(a->wire), sizeof *all);
    if (a->head) snprintf(mine, sizeof mine, "%s", a->head->url);
    int rc = wire_allgather(a->wire, mine, sizeof mine, all, err);
    if (!rc && a->head) {
        char(*urls)[URL] = mem_zero(a->n_ingresses, URL);
        for (u32 i = 0; i < a->n_ingresses; i++) memcpy(urls[i], all[agent_ingress_rank(a, i)], URL);
        a->head->urls = urls;
    }
    free(all);
    return rc;
}

static void tell_others(struct head *h, enum message_type type, const void *body, size_t len)
{
    struct agent *a = h->agent;
    for (u32 i = 0; i < a->n_ingresses; i++)
        if ((i32)i != a->ingress_index) agent_send(a, agent_ingress_rank(a, i), type, body, len, NULL, 0);
}

/* ---- drain ---------------------------------------------------------------------------------------------------*/
static void send_all(struct head *h, enum message_type type)
{
    for (u32 r = 0; r < wire_size(h->agent->wire); r++) agent_send(h->agent, r, type, NULL, 0, NULL, 0);
}

static void close_slots(struct head *h)
{
    if (h->close_sent) return;
    h->close_sent = h->closing = true;
    send_all(h, MSG_CLOSE);
}

void head_close(struct head *h)
{
    h->closing = true;
    h->retry_queue_ns = 0;
}

void head_hurry(struct head *h)
{
    if (h->hurried) return;
    h->hurried = true;
    h->hurry_ns = clock_ns();
    reservations_end_all(h);
    h->closing = true;
}

/* Who was let in to wait gets a slot, and who holds one may use it; only then the slots close. */
static enum drain_stage own_stage(struct head *h, u64 now)
{
    bool held = atomic_load(&h->n_held) > 0; /* first: see there */
    u32 outstanding = atomic_load(&h->outstanding);
    if (held) return DRAIN_SERVING;
    if (h->n_flights == 0 && outstanding == 0 &&
        (ingress_idle(h->ingress) || (h->hurried && now > h->hurry_ns + 2 * NS_PER_S)))
        return DRAIN_DONE;
    return h->waiting.n == 0 && h->n_flights == outstanding ? DRAIN_QUIET : DRAIN_SERVING;
}

static void lead_drain(struct head *h, u64 now)
{
    u32 lowest = h->stages[0];
    u64 limit = (u64)(h->agent->config.graceful_shutdown_timeout_s * (double)NS_PER_S);
    for (u32 i = 1; i < h->agent->n_ingresses; i++) lowest = MIN_OF(lowest, h->stages[i]);
    if (lowest >= DRAIN_QUIET) close_slots(h);
    if (lowest == DRAIN_DONE) {
        send_all(h, MSG_END);
        h->agent->ended = true;
    } else if (!h->hurried && now > h->drain_started_ns + limit) {
        log_warning("drain: %u requests%s have not finished within %g s and are ended", h->n_flights,
                    h->agent->n_ingresses > 1 ? " here, or others elsewhere," : "",
                    h->agent->config.graceful_shutdown_timeout_s);
        head_hurry(h);
        close_slots(h);
        send_all(h, MSG_HURRY);
    }
}

void heads_turn_drain(struct head *h, u64 now)
{
    u32 own = (u32)h->agent->ingress_index, stage = own_stage(h, now);
    if (own == 0) {
        h->stages[0] = stage;
        lead_drain(h, now);
    } else if (stage > h->stages[own]) {
        h->stages[own] = stage;
        agent_send(h->agent, 0, MSG_DRAINED, &stage, sizeof stage, NULL, 0);
    }
}

void head_drained(struct head *h, u32 from, u32 stage)
{
    i32 i = agent_ingress_of(h->agent, from);
    if (i >= 0 && stage <= DRAIN_DONE) h->stages[i] = stage;
}

/* ---- shares --------------------------------------------------------------------------------------------------*/
static u32 own_share(struct head *h)
{
    h->demands[h->agent->ingress_index] = (struct route_demand){h->waiting.n, head_own_use(h)};
    return route_fair_share(h->slots_up, h->demands, h->agent->n_ingresses, (u32)h->agent->ingress_index);
}

bool heads_may_take(struct head *h)
{
    return !h->n_others_wait || head_own_use(h) < own_share(h);
}

void head_demand(struct head *h, u32 from, const struct msg_demand *m)
{
    i32 i = agent_ingress_of(h->agent, from);
    if (i < 0 || i == h->agent->ingress_index) return;
    h->n_others_wait += (m->waiting > 0) - (h->demands[i].waiting > 0);
    h->demands[i] = (struct route_demand){m->waiting, m->in_use};
    if (!h->n_others_wait) flights_retry_queue(h, clock_ns());
}

/* Among the others that wait, who has least; there is one. */
static u32 neediest(const struct head *h)
{
    u32 best = UINT32_MAX;
    for (u32 i = 0; i < h->agent->n_ingresses; i++) {
        const struct route_demand *d = &h->demands[i];
        if ((i32)i == h->agent->ingress_index || !d->waiting) continue;
        if (best == UINT32_MAX || d->in_use < h->demands[best].in_use) best = i;
    }
    BUG_ON(best == UINT32_MAX);
    return best;
}

void heads_slot_free(struct head *h, u32 replica)
{
    if (!h->n_others_wait || head_own_use(h) < own_share(h)) return;
    u32 to = neediest(h);
    i32 body = (i32)replica;
    struct route_demand *d = &h->demands[to];
    /* As it will be; its next message says what is. That none waits only it can say: else we would take back what we have just yielded. */
    d->in_use++;
    d->waiting -= d->waiting > 1;
    h->yielded_ns = clock_ns();
    atomic_fetch_add(&h->yielded, 1);
    agent_send(h->agent, agent_ingress_rank(h->agent, to), MSG_YIELD, &body, sizeof body, NULL, 0);
}

void head_yielded(struct head *h, i32 replica)
{
    u64 now = clock_ns();
    struct route_waiter *w = route_queue_first(&h->waiting, now);
    if (replica < 0 || (u32)replica >= h->n_replicas || !w) return;
    if (flight_try_at(h, (struct flight *)w, (u32)replica)) {
        route_queue_serve(&h->waiting, w);
        atomic_store(&h->n_waiting, h->waiting.n);
    } else {
        flights_retry_queue(h, now);
    }
}

/* Tells the others, and takes a slot above the share when none was left to others for a while: they would have taken it. */
void heads_turn(struct head *h, u64 now)
{
    if (h->agent->n_ingresses == 1) return;
    bool waits = h->waiting.n > 0 && h->slots_up > 0; /* else it could not take what others leave to it */
    if (!waits && !h->told_waiting) return;
    if (waits && h->told_waiting && now < h->demand_ns) return;
    struct msg_demand m = {waits ? h->waiting.n : 0, head_own_use(h)};
    u64 every = MAX_OF(DEMAND_MS * NS_PER_MS, (u64)DEMAND_GAP_US * NS_PER_US * h->agent->n_ingresses);
    tell_others(h, MSG_DEMAND, &m, sizeof m);
    h->told_waiting = waits;
    h->demand_ns = now + every;
    struct route_waiter *w = route_queue_first(&h->waiting, now);
    bool idle_slots = now > h->yielded_ns + IDLE_SLOT_MS * NS_PER_MS;
    if (!w || !idle_slots || heads_may_take(h) || !flight_try(h, (struct flight *)w)) return;
    route_queue_serve(&h->waiting, w);
    atomic_store(&h->n_waiting, h->waiting.n);
}
