/* The replica side of a rank: DISPATCH becomes a running request, tokens become CHUNK messages, the end frees the slot. */
#include "agent/leader_internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int leader_new(struct agent *a, struct error *err)
{
    struct leader *l = mem_zero(1, sizeof *l);
    a->leader = l;
    l->agent = a;
    l->replica = a->plan.ranks[agent_rank(a)].replica;
    l->held = mem_zero(a->max_ongoing, sizeof *l->held);
    l->seat = a->seat;
    snprintf(l->trouble, sizeof l->trouble, "its engine is starting");
    return supervise_init(l, err);
}

void leader_start(struct leader *l)
{
    struct error err;
    if (slots_open(l->agent->slots, l->replica, l->agent->max_ongoing, &err))
        agent_die(l->agent, "slot window", &err);
    l->load_due = true;
}

void leader_free(struct leader *l)
{
    if (!l) return;
    batch_free(l->batch);
    free(l->held);
    free(l);
}

/* ---- towards the ingress -------------------------------------------------------------------------------------*/
static void free_slots_of_ended(struct leader *l)
{
    u64 request;
    struct error err;
    while (batch_next_ended(l->batch, &request)) {
        for (u32 s = 0; s < l->agent->max_ongoing; s++) {
            if (!l->held[s].used || l->held[s].request != request) continue;
            int verdict = slots_finish(l->agent->slots, &l->held[s].token, &err);
            if (verdict < 0) agent_die(l->agent, "slot window", &err);
            if (verdict != SLOT_OK)
                log_warning("slot %u of replica %d: finish answered %s", s, l->replica,
                            slot_verdict_name((enum slot_verdict)verdict));
            l->held[s].used = false;
            l->n_held--;
            break;
        }
    }
}

/* Slots are freed before the last chunk leaves: whoever reads it finds the slot free. */
static void send_chunks(void *arg, u32 origin, const void *msg, size_t len)
{
    struct leader *l = arg;
    free_slots_of_ended(l);
    struct msg_chunk head = {.others = slots_in_use_by_others(l->agent->slots, (u16)origin)};
    agent_send(l->agent, agent_ingress_rank(l->agent, origin), MSG_CHUNK, &head, sizeof head, msg, len);
}

void leader_flush(struct leader *l)
{
    if (batch_has_output(l->batch)) batch_flush(l->batch, send_chunks, l);
}

static void send_load(struct leader *l, u64 now)
{
    struct batch_counts n;
    batch_counts(l->batch, &n);
    const struct slots_counts *s = slots_counts(l->agent->slots);
    struct msg_load m = {.replica = l->replica,
                         .state = l->state,
                         .engine_gen = l->gen,
                         .engine_pid = (u32)proc_pid(l->seat->proc),
                         .running = n.running,
                         .waiting = n.waiting,
                         .free_blocks = n.free_blocks,
                         .total_blocks = n.total_blocks,
                         .slots_in_use = slots_in_use(l->agent->slots),
                         .prompt_tokens = n.prompt_tokens,
                         .generated_tokens = n.generated_tokens,
                         .preemptions = n.preemptions,
                         .prefix_queries = n.prefix_queries,
                         .prefix_hits = n.prefix_hits,
                         .steps = n.steps,
                         .step_usec = l->step_usec,
                         .deaths = n.kills,
                         .slot_runs = s->runs,
                         .slot_finishes = s->finishes,
                         .slot_reaped = s->reaped,
                         .slot_stale = s->stale};
    snprintf(m.trouble, sizeof m.trouble, "%s", l->trouble);
    for (u32 i = 0; i < l->agent->n_ingresses; i++) {
        m.others = slots_in_use_by_others(l->agent->slots, (u16)i);
        agent_send(l->agent, agent_ingress_rank(l->agent, i), MSG_LOAD, &m, sizeof m, NULL, 0);
    }
    l->load_sent_ns = now;
    l->load_due = false;
}

void leader_engine_changed(struct leader *l, enum replica_state state, const char *trouble)
{
    l->state = state;
    snprintf(l->trouble, sizeof l->trouble, "%s", trouble);
    l->load_due = true;
}

/* ---- from the ingress ----------------------------------------------------------------------------------------*/
static void refuse(struct leader *l, u32 to, u64 request, const struct slot_token *token, enum refusal why)
{
    struct msg_refused m = {.request = request, .token = *token, .why = why};
    agent_send(l->agent, to, MSG_REFUSED, &m, sizeof m, NULL, 0);
}

/* The request cannot run: its one end goes out at once and the slot is free. */
static void fail_at_once(struct leader *l, const struct msg_dispatch *m, const struct request *r,
                         const struct error *why)
{
    struct buf out = {0};
    for (u32 s = 0; s < r->n_samples; s++) {
        struct chunk c = {.request = r->id,
                          .sample = s,
                          .n_top = CHUNK_NO_LOGPROBS,
                          .stop_id = -1,
                          .finish = FINISH_ERROR,
                          .last = s + 1 == r->n_samples};
        chunk_add(&out, &c, NULL, NULL, why->message);
    }
    struct error err;
    if (slots_finish(l->agent->slots, &m->token, &err) < 0) agent_die(l->agent, "slot window", &err);
    struct msg_chunk head = {.others = slots_in_use_by_others(l->agent->slots, (u16)m->origin)};
    agent_send(l->agent, agent_ingress_rank(l->agent, m->origin), MSG_CHUNK, &head, sizeof head, out.data,
               out.len);
    buf_release(&out);
}

void leader_dispatch(struct leader *l, u32 from, const void *body, size_t len)
{
    const struct msg_dispatch *m = body;
    struct error err = {0};
    if (len < sizeof *m || request_check(m + 1, len - sizeof *m, l->agent->model.vocab, &err)) {
        if (!err.code) error_set(&err, ERR_PEER, "", "%zu bytes", len);
        agent_die(l->agent, "message DISPATCH", &err);
    }
    const struct request *r = (const struct request *)(m + 1);
    if (r->pooling != l->agent->model.pooling.kind) {
        error_set(&err, ERR_PEER, "", "asks for pooling %u, and the model has %d", r->pooling,
                  (int)l->agent->model.pooling.kind);
        agent_die(l->agent, "message DISPATCH", &err);
    }
    if (r->adapter > (u32)l->agent->config.n_lora_modules) {
        error_set(&err, ERR_PEER, "", "asks for adapter %u of %d", r->adapter,
                  l->agent->config.n_lora_modules);
        agent_die(l->agent, "message DISPATCH", &err);
    }
    if (m->origin >= l->agent->n_ingresses) {
        error_set(&err, ERR_PEER, "", "of ingress %u, there are %u", m->origin, l->agent->n_ingresses);
        agent_die(l->agent, "message DISPATCH", &err);
    }
    if (m->token.replica != l->replica || m->token.slot >= l->agent->max_ongoing) {
        refuse(l, from, r->id, &m->token, REFUSED_STALE);
        return;
    }
    const struct held *here = &l->held[m->token.slot];
    if (here->used && here->request == r->id) {
        /* Delivered twice: what runs will answer. A refusal would have the head run it once more. */
        log_debug("request %llx: dispatched again, and it runs", (unsigned long long)r->id);
        return;
    }
    int verdict = slots_run(l->agent->slots, &m->token, &err);
    if (verdict < 0) agent_die(l->agent, "slot window", &err);
    if (verdict != SLOT_OK) {
        log_debug("request %llx: dispatch refused: %s", (unsigned long long)r->id,
                  slot_verdict_name((enum slot_verdict)verdict));
        refuse(l, from, r->id, &m->token, REFUSED_STALE);
        return;
    }
    if (l->state == REPLICA_BROKEN || l->hurried) {
        if (slots_finish(l->agent->slots, &m->token, &err) < 0) agent_die(l->agent, "slot window", &err);
        refuse(l, from, r->id, &m->token, REFUSED_UNAVAILABLE);
        return;
    }
    if (batch_add(l->batch, r, m->origin, clock_ns(), &err)) {
        fail_at_once(l, m, r, &err);
        return;
    }
    l->held[m->token.slot] = (struct held){true, m->origin, r->id, m->token};
    l->n_held++;
}

void leader_cancel(struct leader *l, u64 request)
{
    batch_cancel(l->batch, request);
}

void leader_close(struct leader *l)
{
    l->closing = true;
}

void leader_hurry(struct leader *l)
{
    l->hurried = true; /* an ingress may have reserved a slot before it closed, and not know yet */
    batch_end_all(l->batch, FINISH_RETRY);
}

/* ---- the loop's side -----------------------------------------------------------------------------------------*/
int leader_turn(struct leader *l, u64 now_ns)
{
    struct error err;
    int n = supervise_turn(l, now_ns);
    leader_flush(l);
    free_slots_of_ended(l);
    if (slots_reap(l->agent->slots, now_ns, &err) < 0) agent_die(l->agent, "slot window", &err);
    if (l->closing && slots_close_free(l->agent->slots, &err) < 0) agent_die(l->agent, "slot window", &err);
    bool busy = leader_busy(l);
    if (l->was_busy && !busy) l->load_due = true; /* so that idle looks idle at once */
    l->was_busy = busy;
    leader_publish(l, now_ns);
    u64 period = (busy ? load_busy_ms(l->agent->n_ingresses) : LOAD_IDLE_MS) * NS_PER_MS;
    if (l->load_due || now_ns - l->load_sent_ns >= period) send_load(l, now_ns);
    return n;
}

bool leader_busy(const struct leader *l)
{
    return l->n_held > 0 || l->n_sent > 0 || slots_reserved_seen(l->agent->slots);
}
