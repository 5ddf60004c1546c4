/* Slots that clients hold: granted and given back by the main thread, used and ended by HTTP threads. */
#include "agent/head_internal.h"

enum {
    USABLE_PERCENT = 80
}; /* of the lease: the leader's clock starts later, and takes the slot back by itself */

static u64 usable_ns(const struct head *h)
{
    return (u64)(h->agent->config.reservation_lease_s * (double)NS_PER_S) / 100 * USABLE_PERCENT;
}

/* With the lock held. HELD -> state; the selection is the caller's. */
static struct selection end(struct head *h, struct reservation *r, enum reservation_state state)
{
    struct selection s = r->selection;
    reservation_end(&h->book, r, state);
    atomic_fetch_sub(&h->n_held, 1);
    if (state != RESERVATION_USED) series_add(h->measures.undispatched[state == RESERVATION_EXPIRED], 1);
    return s;
}

/* ---- HTTP threads --------------------------------------------------------------------------------------------*/
int reservations_ask(void *arg, u64 ask, const struct route_ask *about)
{
    struct head *h = arg;
    struct command c = {.what = COMMAND_RESERVE, .id = ask, .about = *about};
    bool none_left = atomic_load(&h->none_left);
    if (none_left || atomic_load(&h->refuse)) {
        series_add(h->measures.refused[none_left ? REFUSED_NO_REPLICA : REFUSED_DRAINING], 1);
        return ERR_STATE;
    }
    if (random_bytes(&c.reservation, sizeof c.reservation, NULL)) return ERR_IO;
    head_push(h, &c);
    return 0;
}

/* With the lock held: the reservation, or NULL. The main thread may not have come to end it in time. */
static struct reservation *find(struct head *h, const struct reservation_id *id, u64 now)
{
    struct reservation *r = reservation_find(&h->book, id);
    if (!r || r->state != RESERVATION_HELD || now < r->deadline_ns) return r;
    struct command c = {.what = COMMAND_RELEASE, .selection = end(h, r, RESERVATION_EXPIRED)};
    head_push(h, &c);
    return r;
}

static void describe(const struct head *h, const struct reservation *r, u64 now,
                     struct ingress_reservation *out)
{
    i32 replica = r->selection.token.replica;
    const struct replica_rank *rank = &h->agent->plan.replicas[replica].rank;
    *out = (struct ingress_reservation){.id = r->id,
                                        .state = (enum reservation_state)r->state,
                                        .replica = replica,
                                        .rank = (i32)rank->rank,
                                        .node_rank = (i32)rank->node_rank,
                                        .local_rank = (i32)rank->local_rank,
                                        .num_ongoing = r->num_ongoing};
    if (r->state == RESERVATION_HELD && now < r->deadline_ns)
        out->expires_in_ms = (u32)((r->deadline_ns - now) / NS_PER_MS);
}

int reservations_look(void *arg, const struct reservation_id *id, bool release,
                      struct ingress_reservation *out)
{
    struct head *h = arg;
    u64 now = clock_ns();
    pthread_mutex_lock(&h->book_lock);
    struct reservation *r = find(h, id, now);
    if (r && release && r->state == RESERVATION_HELD) {
        struct command c = {.what = COMMAND_RELEASE, .selection = end(h, r, RESERVATION_RELEASED)};
        head_push(h, &c);
    }
    if (r) describe(h, r, now, out);
    pthread_mutex_unlock(&h->book_lock);
    return r ? 0 : ERR_NOT_FOUND;
}

int reservations_use(struct head *h, const struct reservation_id *id, struct command *c)
{
    int rc = ERR_NOT_FOUND;
    pthread_mutex_lock(&h->book_lock);
    struct reservation *r = find(h, id, clock_ns());
    if (r) rc = r->state;
    if (r && r->state == RESERVATION_HELD) {
        c->granted_ns = r->granted_ns;
        c->selection = end(h, r, RESERVATION_USED);
    }
    pthread_mutex_unlock(&h->book_lock);
    return rc; /* 0 is HELD */
}

void reservations_count(struct head *h, u32 *by_replica)
{
    pthread_mutex_lock(&h->book_lock);
    for (const struct reservation *r = h->book.held.first; r; r = r->next)
        by_replica[r->selection.token.replica]++;
    pthread_mutex_unlock(&h->book_lock);
}

/* ---- the main thread -----------------------------------------------------------------------------------------*/
static const char *const refusals[RESERVATION_REFUSALS] = {
    [REFUSED_FULL] = "All slots of all replicas are in use. Try again later.",
    [REFUSED_LEAVING] = "The replicas are leaving. Try again later.",
    [REFUSED_CONTENDED] = "Others were faster. Try again.",
    [REFUSED_NO_REPLICA] = "No replica can take reservations now. Try again later.",
    [REFUSED_QUEUE] = "Requests are waiting for a slot; they come first. Try again later.",
    [REFUSED_DRAINING] = "This node is being drained.",
};

static void refuse(struct head *h, u64 ask, enum reservation_refusal why)
{
    series_add(h->measures.refused[why], 1);
    ingress_reserved(h->ingress, ask, NULL, refusals[why], atomic_load(&h->retry_after_s));
}

static enum reservation_refusal refusal_of(u8 reason)
{
    return reason == SLOTS_FULL        ? REFUSED_FULL
           : reason == SLOTS_LEAVING   ? REFUSED_LEAVING
           : reason == SLOTS_CONTENDED ? REFUSED_CONTENDED
                                       : REFUSED_NO_REPLICA;
}

void reservations_grant(struct head *h, const struct command *c)
{
    struct reservation r = {.id = c->reservation, .granted_ns = clock_ns()};
    struct slots_answer answer;
    struct ingress_reservation out;
    /* Who waits comes first: else those who only hold slots could keep them from all others. */
    if (h->draining || h->waiting.n > 0 || !heads_may_take(h)) {
        refuse(h, c->id, h->draining ? REFUSED_DRAINING : REFUSED_QUEUE);
        return;
    }
    i32 replica = flight_select(h, &c->about, SLOT_CLASS_LONG, &answer);
    if (replica < 0) {
        refuse(h, c->id, refusal_of(answer.reason));
        return;
    }
    selection_choose(&r.selection, h->views[replica].leader, &answer.token);
    r.deadline_ns = r.granted_ns + usable_ns(h);
    r.num_ongoing = answer.num_ongoing;
    series_add(h->measures.granted, 1);
    describe(h, &r, clock_ns(), &out);
    pthread_mutex_lock(&h->book_lock);
    reservation_add(&h->book, &r);
    atomic_fetch_add(&h->n_held, 1);
    pthread_mutex_unlock(&h->book_lock);
    if (!ingress_reserved(h->ingress, c->id, &out, NULL, 0))
        (void)reservations_look(h, &r.id, true, &out); /* its client has left */
}

void reservations_give_back(struct head *h, const struct selection *s)
{
    struct selection held = *s;
    struct error err;
    selection_release(&held);
    bool late = h->views[held.token.replica].state == ROUTE_LATE;
    /* To ask a leader that is late might take long: it takes the slot back itself. */
    if (late)
        slots_ended(h->agent->slots, held.leader, &held.token);
    else if (slots_release(h->agent->slots, held.leader, &held.token, &err) < 0)
        agent_die(h->agent, "slot window", &err);
    head_note_ongoing(h, (u32)held.token.replica);
    heads_slot_free(h, (u32)held.token.replica);
    flights_retry_queue(h, clock_ns());
}

static void end_due(struct head *h, u64 now_ns)
{
    for (;;) {
        pthread_mutex_lock(&h->book_lock);
        struct reservation *r = reservation_due(&h->book, now_ns);
        struct selection s = {0};
        if (r) s = end(h, r, RESERVATION_EXPIRED);
        pthread_mutex_unlock(&h->book_lock);
        if (!r) return;
        reservations_give_back(h, &s);
    }
}

void reservations_turn(struct head *h, u64 now_ns)
{
    if (atomic_load(&h->n_held) > 0) end_due(h, now_ns);
}

void reservations_end_all(struct head *h)
{
    end_due(h, UINT64_MAX);
}

u64 reservations_deadline(struct head *h)
{
    if (atomic_load(&h->n_held) == 0) return UINT64_MAX;
    pthread_mutex_lock(&h->book_lock);
    u64 deadline = reservation_deadline(&h->book);
    pthread_mutex_unlock(&h->book_lock);
    return deadline;
}
