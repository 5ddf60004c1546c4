/* The ingress side: commands of the HTTP threads in, chunks of the leaders back, readiness, drain. */
#include "agent/address.h"
#include "agent/head_internal.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { QUEUE_RETRY_MS = 20, QUEUE_RETRY_MOST_MS = 160, ABORT_MS = 300 };

/* ---- called by HTTP threads ----------------------------------------------------------------------------------*/
void head_push(struct head *h, const struct command *command)
{
    struct command *c = mem_alloc(sizeof *c);
    *c = *command;
    queue_push(h->commands, &c->node);
}

/* taken: by others. A slot that is held is one that they cannot have. */
static int admit(struct head *h, u32 taken)
{
    if (atomic_load(&h->refuse) || atomic_load(&h->none_left)) return ERR_STATE;
    if (taken + atomic_load(&h->n_held) < atomic_load(&h->capacity)) return 0;
    atomic_fetch_add(&h->refused_full, 1);
    return ERR_FULL;
}

/* Hashes of the prompt's blocks, for a router that looks where they are cached. Computed here: the main thread has other things to do. */
static void hash_prompt(const struct head *h, struct command *c)
{
    const struct request *r = c->request;
    u32 size = (u32)h->agent->config.block_size;
    if (!h->wants_prefix || r->prompt.len < size) return;
    c->n_prefix = r->prompt.len / size;
    c->prefix = mem_alloc(c->n_prefix * sizeof *c->prefix);
    u64 kind = kv_kind(r->adapter, rope_class(&h->agent->model.rope, r->prompt.len));
    kv_prefix_hashes(kind, request_at(r, r->prompt), r->prompt.len, size, c->prefix);
}

static int submit(void *arg, struct request *r, const struct reservation_id *reservation,
                  struct ingress_refusal *why)
{
    struct head *h = arg;
    struct command c = {.what = COMMAND_SUBMIT, .request = r, .id = r->id};
    *why = (struct ingress_refusal){.retry_after_s = atomic_load(&h->retry_after_s)};
    u32 taken = atomic_fetch_add(&h->outstanding, 1); /* first: a drain looks at it after it says `refuse` */
    int rc = reservation ? reservations_use(h, reservation, &c) : admit(h, taken);
    if (rc == 0 && !reservation && !gate_admits(h, r, taken, why)) rc = ERR_FULL;
    if (rc == 0) {
        hash_prompt(h, &c);
        gate_entered(h, r);
        head_push(h, &c);
    } else {
        atomic_fetch_sub(&h->outstanding, 1);
    }
    return rc;
}

static void cancel(void *arg, u64 request)
{
    head_push(arg, &(struct command){.what = COMMAND_CANCEL, .id = request});
}

static void drain(void *arg)
{
    head_push(arg, &(struct command){.what = COMMAND_DRAIN});
}

/* ---- life ----------------------------------------------------------------------------------------------------*/
static bool is_up(const struct route_view *v)
{
    return v->state == ROUTE_UP || v->state == ROUTE_FULL || v->state == ROUTE_LATE;
}

static void recount_capacity(struct head *h)
{
    u32 slots = 0, of_late = 0, up = 0, broken = 0;
    for (u32 i = 0; i < h->n_replicas; i++) {
        const struct route_view *v = &h->views[i];
        if (v->state == ROUTE_LATE) {
            of_late += v->n_slots;
        } else if (is_up(v)) {
            slots += v->n_slots;
            up++;
        }
        broken += h->replicas[i].load.state == REPLICA_BROKEN;
    }
    h->slots_up = slots; /* what can be had now */
    h->replicas_up = up;
    atomic_store(&h->capacity, slots + of_late + (u32)h->agent->config.max_queued_requests);
    atomic_store(&h->none_left, broken == h->n_replicas);
}

/* From the measured time of a request: how long until one of the slots is free for who comes last. */
static void estimate_wait(struct head *h, double took_s)
{
    h->seconds_per_request += 0.05 * (took_s - h->seconds_per_request);
    double s = ceil(h->seconds_per_request * (h->waiting.n + 1) / MAX_OF(h->slots_up, 1u));
    atomic_store(&h->retry_after_s, s < 1 ? 1 : s > 60 ? 60 : (u32)s);
}

static void write_endpoint(struct head *h, enum endpoint_state state)
{
    const struct agent *a = h->agent;
    if (a->ingress_index != 0) return; /* the job's file is rank 0's */
    struct endpoint e = {
        .state = state, .port = ingress_port(h->ingress), .pid = getpid(), .ranks = wire_size(a->wire)};
    snprintf(e.url, sizeof e.url, "%s", h->url);
    snprintf(e.host, sizeof e.host, "%s", a->config.host);
    snprintf(e.key_file, sizeof e.key_file, "%s", h->key_file);
    snprintf(e.model, sizeof e.model, "%s", a->config.served_model_name[0]);
    const struct pooling_config *pooling = &a->model.pooling;
    snprintf(e.does, sizeof e.does, "%s", pooling->scores ? "rerank" : pooling->kind ? "embeddings" : "chat");
    snprintf(e.job, sizeof e.job, "%s", a->dir.job);
    snprintf(e.node, sizeof e.node, "%s", wire_peers(a->wire)[0].host);
    const char *slurm = getenv("SLURM_JOB_ID");
    snprintf(e.slurm_job, sizeof e.slurm_job, "%s", slurm ? slurm : "");
    struct error err;
    if (endpoint_write(&a->dir, &e, &err)) log_warning("%s: %s", err.where, err.message);
}

static void make_url(struct head *h)
{
    const char *host = h->agent->config.host, *named = h->agent->config.data_parallel_address;
    char own[256];
    bool any = strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0;
    if (any && named[0] && !address_is_loopback(named) && h->agent->ingress_index == 0) {
        host = named;
    } else if (any) {
        if (gethostname(own, sizeof own)) snprintf(own, sizeof own, "localhost");
        own[sizeof own - 1] = 0;
        host = own;
    }
    bool v6 = strchr(host, ':') != NULL;
    snprintf(h->url, sizeof h->url, "http://%s%s%s:%d", v6 ? "[" : "", host, v6 ? "]" : "",
             ingress_port(h->ingress));
}

/* As many as a replica's cache has, within what this rank should spend on it. */
static u32 prefix_blocks(const struct agent *a)
{
    enum { BLOCK_BYTES = 16, MOST_BYTES = 256 << 20 };
    u32 most = MOST_BYTES / BLOCK_BYTES / MAX_OF(a->plan.n_replicas, 1u);
    return MAX_OF(MIN_OF(a->n_blocks, most), 64u);
}

int head_new(struct agent *a, struct error *err)
{
    struct head *h = mem_zero(1, sizeof *h);
    a->head = h;
    h->agent = a;
    h->n_replicas = a->plan.n_replicas;
    h->views = mem_zero(h->n_replicas, sizeof *h->views);
    h->replicas = mem_zero(h->n_replicas, sizeof *h->replicas);
    h->watches = mem_zero(h->n_replicas, sizeof *h->watches);
    for (u32 i = 0; i < h->n_replicas; i++) {
        h->views[i] = (struct route_view){.replica = (i32)i,
                                          .leader = a->plan.replicas[i].leader,
                                          .n_slots = a->max_ongoing,
                                          .home = a->plan.replicas[i].leader == agent_rank(a),
                                          .state = ROUTE_DOWN};
        snprintf(h->replicas[i].load.trouble, sizeof h->replicas[i].load.trouble, "its engine is starting");
    }
    pthread_mutex_init(&h->lock, NULL);
    pthread_mutex_init(&h->book_lock, NULL);
    heads_init(h);
    latency_init(h);
    measures_init(h);
    gate_init(h);
    route_queue_init(&h->waiting, (u32)a->config.max_queued_requests + h->n_replicas * a->max_ongoing);
    h->waiting.patience_ns = (u64)(a->config.queue_timeout_s / 2 * (double)NS_PER_S);
    h->seconds_per_request = 1;
    h->retry_gap_ms = QUEUE_RETRY_MS;
    atomic_store(&h->retry_after_s, 1);
    const struct route_policy *policy = route_policy_find(a->config.router, err);
    if (!policy) return err->code;
    h->wants_prefix = route_policy_wants_prefix(policy);
    h->router = router_new(policy, h->views, h->n_replicas, (u64)a->ingress_index, prefix_blocks(a));
    h->commands = queue_new(err);
    if (!h->commands) return -1;
    snprintf(h->fingerprint, sizeof h->fingerprint, "mpiserve-%s-%08x", MPISERVE_VERSION,
             (u32)a->fingerprint);
    struct ingress_spec spec = {.config = &a->config,
                                .model = &a->model,
                                .max_model_len = a->max_model_len,
                                .ingress_index = (u32)a->ingress_index,
                                .key = a->key[0] ? a->key : NULL,
                                .agent = {h, submit, cancel, reservations_ask, reservations_look,
                                          status_health, status_topology, status_metrics, drain,
                                          status_in_flight}};
    snprintf(spec.fingerprint, sizeof spec.fingerprint, "%s", h->fingerprint);
    h->ingress = ingress_new(&spec, err);
    if (!h->ingress) return err->code;
    make_url(h);
    if (a->key[0]) {
        jobdir_file(&a->dir, "key", h->key_file, sizeof h->key_file);
        if (jobdir_write_key(&a->dir, a->key, err)) return err->code;
    }
    write_endpoint(h, ENDPOINT_LOADING);
    return 0;
}

void head_free(struct head *h)
{
    if (!h) return;
    if (h->ingress) {
        write_endpoint(h, ENDPOINT_DOWN);
        ingress_free(h->ingress);
    }
    for (u32 i = 0; i < FLIGHT_CHAINS; i++)
        while (h->chains[i]) flight_drop(h, h->chains[i]);
    route_queue_release(&h->waiting);
    if (h->commands) {
        struct queue_node *n = queue_take_all(h->commands);
        while (n) {
            struct command *c = (struct command *)n;
            n = n->next;
            free(c->request);
            free(c->prefix);
            free(c);
        }
        queue_free(h->commands);
    }
    reservation_book_release(&h->book);
    pthread_mutex_destroy(&h->book_lock);
    pthread_mutex_destroy(&h->lock);
    buf_release(&h->scratch);
    latency_release(h);
    heads_release(h);
    gate_release(h);
    router_free(h->router);
    free(h->views);
    free(h->replicas);
    free(h->watches);
    free(h);
}

/* ---- messages of leaders -------------------------------------------------------------------------------------*/
static i32 replica_of(const struct head *h, u32 rank)
{
    return rank < h->agent->plan.n_ranks ? h->agent->plan.ranks[rank].replica : -1;
}

/* What of the chunk is new to the client: a request that was started again on another replica repeats its tokens, and its samples
 * may end there in another order. */
static void deliver(struct head *h, struct flight *f, const struct chunk *c)
{
    struct sample_progress *p = &f->samples[c->sample];
    u32 skip = p->delivered > c->first ? p->delivered - c->first : 0;
    if (p->finished || (skip >= c->n_tokens && c->finish == FINISH_NONE)) return;
    p->finished = c->finish != FINISH_NONE;
    f->n_open -= p->finished;
    bool last = f->n_open == 0;
    if (skip == 0 && last == c->last) {
        p->delivered += c->n_tokens;
        ingress_deliver(h->ingress, c);
        return;
    }
    skip = MIN_OF(skip, c->n_tokens);
    struct chunk part = *c;
    part.first += skip;
    part.n_tokens -= skip;
    part.last = last;
    p->delivered = MAX_OF(p->delivered, part.first + part.n_tokens);
    const struct token_logprob *lp = c->logprobs.len ? chunk_at(c, c->logprobs) : NULL;
    char text[CHUNK_MAX_ERROR + 1];
    snprintf(text, sizeof text, "%.*s", (int)c->error_len, (const char *)chunk_at(c, c->error));
    buf_clear(&h->scratch);
    chunk_add(&h->scratch, &part, (const i32 *)chunk_at(c, c->tokens) + skip,
              lp ? lp + (size_t)skip * (1 + c->n_top) : NULL, c->error_len ? text : NULL);
    size_t pos = 0;
    ingress_deliver(h->ingress, chunk_next(h->scratch.data, h->scratch.len, &pos, NULL));
}

static void set_view(struct head *h, u32 replica, u32 ongoing, bool up)
{
    struct route_view *v = &h->views[replica];
    bool late = up && h->watches[replica].late, turned = late != (v->state == ROUTE_LATE);
    bool full = up && !late && slots_outstanding(h->agent->slots, v->leader) >= v->n_slots;
    h->n_full += full - (v->state == ROUTE_FULL);
    v->state = late ? ROUTE_LATE : full ? ROUTE_FULL : up ? ROUTE_UP : ROUTE_DOWN;
    v->ongoing = ongoing;
    router_update(h->router, replica);
    gate_note(h, replica);
    if (turned) recount_capacity(h);
}

void head_note_asked(struct head *h, u32 replica, const struct slots_answer *answer)
{
    set_view(h, replica, answer->num_ongoing, is_up(&h->views[replica]));
}

/* Its load, as well as it is known: own slots are exact, those of other ingresses as the leader said last. */
void head_note_ongoing(struct head *h, u32 replica)
{
    struct route_view *v = &h->views[replica];
    set_view(h, replica, slots_ongoing(h->agent->slots, v->leader), is_up(v));
}

/* Who waits tries again when somebody has left: to ask full replicas at every message would cost more than it brings. */
static void note_published(struct head *h, u32 replica, u32 others)
{
    u32 leader = h->views[replica].leader, before = slots_ongoing(h->agent->slots, leader);
    slots_published(h->agent->slots, leader, others);
    h->retry_due |= slots_ongoing(h->agent->slots, leader) < before || h->views[replica].state == ROUTE_LATE;
}

static void slot_is_free(struct head *h, struct flight *f)
{
    slots_ended(h->agent->slots, f->selection.leader, &f->selection.token);
    selection_end(&f->selection);
    h->retry_due = true;
    gate_slot_freed(h, f);
    silence_ended(h, (u32)f->replica);
    head_note_ongoing(h, (u32)f->replica);
}

static void take_chunk(struct head *h, u32 from, const struct chunk *c, u64 now)
{
    struct flight *f = flight_find(h, c->request);
    if (!f || f->selection.state != SELECTION_DISPATCHED || f->selection.leader != from ||
        c->sample >= f->request->n_samples)
        return;
    if (c->n_tokens > 0 || c->vector.len > 0) latency_answered(h, f, now);
    bool was_open = f->n_open > 0;
    if (c->finish != FINISH_RETRY) deliver(h, f, c);
    if (!c->last) {
        if (was_open && f->n_open == 0) flight_cancel(h, f->id); /* what is left only repeats */
        return;
    }
    u32 replica = (u32)f->replica;
    slot_is_free(h, f);
    if (f->n_open > 0) {
        flight_put_back(h, f, now);
        return;
    }
    estimate_wait(h, (double)(now - f->submitted_ns) * 1e-9);
    flight_drop(h, f);
    heads_slot_free(h, replica);
}

void head_chunks(struct head *h, u32 from, const void *body, size_t len)
{
    i32 r = replica_of(h, from);
    if (r < 0 || len < sizeof(struct msg_chunk)) return;
    const struct msg_chunk *m = body;
    u64 now = clock_ns();
    pthread_mutex_lock(&h->lock);
    h->replicas[r].heard_ns = now;
    pthread_mutex_unlock(&h->lock);
    silence_heard(h, (u32)r);
    note_published(h, (u32)r, m->others);
    head_note_ongoing(h, (u32)r);
    size_t pos = 0;
    struct error err = {0};
    const struct chunk *c;
    while ((c = chunk_next(m + 1, len - sizeof *m, &pos, &err))) take_chunk(h, from, c, now);
    if (err.code) agent_die(h->agent, "message CHUNK", &err);
    if (h->retry_due) flights_retry_queue(h, now);
}

void head_refused(struct head *h, u32 from, const struct msg_refused *m)
{
    struct flight *f = flight_find(h, m->request);
    if (!f || f->selection.state != SELECTION_DISPATCHED || f->selection.leader != from ||
        memcmp(&f->selection.token, &m->token, sizeof m->token))
        return;
    slot_is_free(h, f);
    flight_put_back(h, f, clock_ns());
}

/* Until all replicas were there once, one that is given up is a start that failed: an engine that loads the weights may be what the
 * others wait for. */
static void check_start(struct head *h, u32 rank, const struct msg_load *m)
{
    if (h->all_up || m->state != REPLICA_BROKEN) return;
    struct error err;
    error_set(&err, ERR_STATE, "", "the engine of rank %u cannot be started: %s", rank, m->trouble);
    agent_die(h->agent, "start", &err);
}

static void note_ready(struct head *h)
{
    u32 up = 0;
    for (u32 i = 0; i < h->n_replicas; i++) up += is_up(&h->views[i]);
    if (up > 0 && !h->ready) {
        h->ready = true;
        ingress_ready(h->ingress);
    }
    if (up == h->n_replicas && !h->all_up && !h->draining) {
        h->all_up = true;
        write_endpoint(h, ENDPOINT_READY);
        log_info("ready: %s serves %s with %u replica%s", h->url, h->agent->config.served_model_name[0],
                 h->n_replicas, h->n_replicas == 1 ? "" : "s");
        if (h->key_file[0]) log_info("try: curl -sS -H @%s %s/v1/models", h->key_file, h->url);
    }
}

void head_load(struct head *h, u32 from, const struct msg_load *m)
{
    i32 r = replica_of(h, from);
    if (r < 0 || m->replica != r || m->state >= REPLICA_STATES) return;
    pthread_mutex_lock(&h->lock);
    h->replicas[r].load = *m;
    h->replicas[r].heard_ns = clock_ns();
    pthread_mutex_unlock(&h->lock);
    silence_heard(h, (u32)r);
    check_start(h, from, m);
    note_published(h, (u32)r, m->others);
    h->retry_due |= (m->state == REPLICA_UP) != is_up(&h->views[r]) || m->state == REPLICA_BROKEN;
    set_view(h, (u32)r, slots_ongoing(h->agent->slots, from), m->state == REPLICA_UP);
    recount_capacity(h);
    note_ready(h);
    if (h->retry_due) flights_retry_queue(h, clock_ns());
}

void head_cached(struct head *h, u32 from, const struct msg_cached *m, const struct cached_change *changes)
{
    i32 r = replica_of(h, from);
    if (r < 0 || m->replica != r) return;
    if (m->anew) router_prefix_clear(h->router, (u32)r);
    for (u32 i = 0; i < m->n; i++)
        (changes[i].removed ? router_prefix_remove : router_prefix_add)(h->router, (u32)r, changes[i].hash);
}

/* ---- the loop's side -----------------------------------------------------------------------------------------*/
int head_fd(const struct head *h)
{
    return queue_fd(h->commands);
}
bool head_prepare_sleep(struct head *h)
{
    return queue_prepare_sleep(h->commands);
}
void head_woke(struct head *h)
{
    queue_woke(h->commands);
}
bool head_busy(const struct head *h)
{
    return h->n_flights > 0 || h->draining;
}
u64 head_deadline(struct head *h)
{
    return MIN_OF(route_queue_deadline(&h->waiting), reservations_deadline(h));
}

static void take_request(struct head *h, const struct command *c, u64 now)
{
    bool held = selection_holds_slot(&c->selection);
    flight_new(h, c, held ? &c->selection : NULL, now);
    if (held) series_observe(h->measures.gap, (double)(clock_ns() - c->granted_ns) * 1e-9);
}

static int take_commands(struct head *h, u64 now)
{
    int n = 0;
    for (struct queue_node *node = queue_take_all(h->commands), *next; node; node = next, n++) {
        next = node->next;
        struct command *c = (struct command *)node;
        switch (c->what) {
        case COMMAND_SUBMIT: take_request(h, c, now); break;
        case COMMAND_CANCEL: flight_cancel(h, c->id); break;
        case COMMAND_DRAIN: agent_drain(h->agent); break;
        case COMMAND_RESERVE: reservations_grant(h, c); break;
        case COMMAND_RELEASE: reservations_give_back(h, &c->selection); break;
        }
        free(c);
    }
    return n;
}

int head_turn(struct head *h, u64 now_ns)
{
    int n = take_commands(h, now_ns);
    reservations_turn(h, now_ns);
    if (h->waiting.n > 0 && now_ns >= route_queue_deadline(&h->waiting)) flights_expire(h, now_ns);
    if (h->waiting.n > 0 && now_ns >= h->retry_queue_ns) {
        u32 before = h->waiting.n;
        flights_retry_queue(h, now_ns);
        bool vain = h->waiting.n == before;
        h->retry_gap_ms = vain ? MIN_OF(2 * h->retry_gap_ms, (u32)QUEUE_RETRY_MOST_MS) : QUEUE_RETRY_MS;
        h->retry_queue_ns = now_ns + h->retry_gap_ms * NS_PER_MS;
    }
    silence_turn(h, now_ns);
    gate_turn(h, now_ns);
    heads_turn(h, now_ns);
    if (h->draining && !h->agent->ended) heads_turn_drain(h, now_ns);
    return n;
}

void head_drain(struct head *h)
{
    if (h->draining) return;
    h->draining = true;
    h->drain_started_ns = clock_ns();
    atomic_store(&h->refuse, true);
    ingress_drain(h->ingress);
    write_endpoint(h, ENDPOINT_DRAINING);
    log_info("draining: new requests get 503, %u running ones may take up to %g s", h->n_flights,
             h->agent->config.graceful_shutdown_timeout_s);
}

void head_abort(struct head *h, const char *why)
{
    atomic_store(&h->refuse, true);
    ingress_abort(h->ingress, why);
    for (int ms = 0; ms < ABORT_MS && !ingress_idle(h->ingress); ms += 5)
        nanosleep(&(struct timespec){.tv_nsec = 5 * 1000000}, NULL);
    write_endpoint(h, ENDPOINT_DOWN);
}
