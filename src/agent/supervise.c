/* The engine of a replica: births, deaths, steps out, results in, and a canary when idle. */
#include "agent/leader_internal.h"
#include "mpiserve/route.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { CANARY_MS = 4500, CHANGES_KEPT = 8192 };

/* ---- memory --------------------------------------------------------------------------------------------------*/
struct shared_fd {
    i32 pid, fd;
};

/* Collective in the node: its first engine's agent owns the weights, the others open them. */
static int share_weights(struct leader *l, bool *loader, struct error *err)
{
    struct agent *a = l->agent;
    const struct wire_peer *me = &wire_peers(a->wire)[agent_rank(a)];
    struct shared_fd s = {-1, -1};
    u32 root = agent_loader_rank(a);
    *loader = me->local_rank == root;
    int rc = 0;
    if (*loader) {
        l->weights_fd = memory_new("mpiserve-weights", a->needs.weights_bytes, true, err);
        s = (struct shared_fd){getpid(), l->weights_fd};
        rc = l->weights_fd < 0 ? err->code : 0;
    }
    struct error trouble;
    if (wire_node_bcast(a->wire, root, &s, sizeof s, &trouble)) agent_die(a, "start", &trouble);
    if (*loader || s.fd < 0) return rc;
    l->weights_fd = memory_open(s.pid, s.fd, a->needs.weights_bytes, err);
    if (l->weights_fd >= 0) return 0;
    log_warning("the node's weights cannot be shared (%s): this engine loads its own copy", err->message);
    *loader = true;
    l->weights_fd = memory_new("mpiserve-weights", a->needs.weights_bytes, true, err);
    return l->weights_fd < 0 ? err->code : 0;
}

static void fill_boot(struct leader *l, bool loader)
{
    const struct agent *a = l->agent;
    struct engine_boot *b = &l->boot;
    *b = (struct engine_boot){.weights_bytes = a->needs.weights_bytes,
                              .kv_bytes = a->needs.kv_bytes_per_block * a->n_blocks,
                              .numerics = a->numerics,
                              .rank = agent_rank(a),
                              .block_size = (u32)a->config.block_size,
                              .n_blocks = a->n_blocks,
                              .max_rows = a->max_num_seqs,
                              .max_step_tokens =
                                  (u32)MAX_OF(a->config.max_num_batched_tokens, (i64)a->max_num_seqs),
                              .max_model_len = a->max_model_len,
                              .max_logprobs = (u32)MAX_OF(a->config.max_logprobs, 0),
                              .threads = a->config.threads ? (u32)a->config.threads : a->cores,
                              .spin_us = a->cores_shared ? 0 : 50,
                              .loader = loader,
                              .null_step_us = (u32)a->config.null_step_us,
                              .log_level = (u8)(log_wants(LOG_DEBUG) ? LOG_DEBUG : LOG_INFO)};
    snprintf(b->model, sizeof b->model, "%s", a->config.model);
    snprintf(b->compute, sizeof b->compute, "%s", a->needs.compute);
    snprintf(b->isa, sizeof b->isa, "%s", a->needs.isa);
    memcpy(b->cpus, a->cpus.bits, sizeof b->cpus);
}

int supervise_init(struct leader *l, struct error *err)
{
    struct agent *a = l->agent;
    bool loader;
    if (share_weights(l, &loader, err)) return err->code;
    fill_boot(l, loader);
    l->kv_fd = memory_new("mpiserve-kv", l->boot.kv_bytes, false, err);
    if (l->kv_fd < 0) return err->code;
    struct proc_spec spec = {
        .fault = getenv("MPISERVE_FAULT"),
        .boot = l->boot,
        .weights_fd = l->weights_fd,
        .kv_fd = l->kv_fd,
        .ring_size = 2 * engine_ring_size(l->boot.max_rows, l->boot.max_step_tokens, a->max_model_len,
                                          l->boot.max_logprobs,
                                          l->boot.block_size), /* a step takes at most a quarter */
        .limits = {.step_ns = (u64)(a->config.step_timeout_s * (double)NS_PER_S)}};
    if (!(l->proc = proc_new(&spec, err))) return err->code;
    l->channel = proc_channel(l->proc);
    const struct route_policy *router = route_policy_find(a->config.router, err);
    if (!router) return err->code;
    l->publishes = route_policy_wants_prefix(router) && a->config.enable_prefix_caching;
    struct batch_spec b = {.n_changes = l->publishes ? CHANGES_KEPT : 0,
                           .max_rows = l->boot.max_rows,
                           .max_step_tokens = l->boot.max_step_tokens,
                           .max_model_len = a->max_model_len,
                           .block_size = l->boot.block_size,
                           .n_blocks = a->n_blocks,
                           .in_flight = STEP_IN_FLIGHT,
                           .max_kills = 2,
                           .numerics = a->numerics,
                           .prefix_cache = a->config.enable_prefix_caching,
                           .max_frame = channel_max_frame(l->channel) / 2};
    if (!(l->batch = batch_new(&b, err))) return err->code;
    restart_init(&l->restart, NULL);
    return 0;
}

void supervise_release(struct leader *l)
{
    proc_free(l->proc);
    if (l->weights_fd >= 0) close(l->weights_fd);
    if (l->kv_fd >= 0) close(l->kv_fd);
}

void leader_kill_engine(struct leader *l)
{
    proc_kill(l->proc, false, "the agent ends");
}

/* ---- births and deaths ---------------------------------------------------------------------------------------*/
static void watch_pidfd(struct leader *l)
{
    int fd = proc_pidfd(l->proc); /* closing it at the end takes it out of the epoll set */
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
    if (fd >= 0) epoll_ctl(l->agent->epoll, EPOLL_CTL_ADD, fd, &e);
}

static void start_engine(struct leader *l, u64 now)
{
    struct error err;
    l->boot.gen++;
    if (proc_start(l->proc, l->boot.gen, now, &err)) {
        log_error("engine of rank %u: %s", l->boot.rank, err.message);
        l->start_ns = restart_died(&l->restart, now);
        return;
    }
    watch_pidfd(l);
}

static void forget_steps(struct leader *l)
{
    l->n_sent = 0;
}

static void engine_ready(struct leader *l, u64 now)
{
    restart_ready(&l->restart, now);
    batch_engine_ready(l->batch, l->boot.gen);
    forget_steps(l);
    l->progress_ns = now;
    if (l->boot.gen > 1) log_info("the engine is back (generation %u)", l->boot.gen);
    leader_engine_changed(l, REPLICA_UP, "");
}

static void engine_died(struct leader *l, const struct proc_verdict *v, u64 now)
{
    log_warning("%s", v->text);
    batch_engine_lost(l->batch, v->blame);
    forget_steps(l);
    l->start_ns = restart_died(&l->restart, now);
    if (!restart_broken(&l->restart)) {
        leader_engine_changed(l, REPLICA_RESTARTING, v->text);
        return;
    }
    log_error("the engine of rank %u died too often; replica %d is out of service", l->boot.rank, l->replica);
    batch_end_all(l->batch, FINISH_RETRY);
    leader_engine_changed(l, REPLICA_BROKEN, v->text);
}

static int watch_engine(struct leader *l, u64 now)
{
    if (proc_state(l->proc) == PROC_NONE) {
        if (restart_broken(&l->restart) || now < l->start_ns) return 0;
        start_engine(l, now);
        return 1;
    }
    struct proc_verdict died;
    switch (proc_poll(l->proc, now, l->n_sent ? l->sent_ns[0] : 0, &died)) {
    case PROC_EVENT_READY: engine_ready(l, now); return 1;
    case PROC_EVENT_DIED: engine_died(l, &died, now); return 1;
    case PROC_EVENT_NONE: break;
    }
    return 0;
}

/* ---- steps and results ---------------------------------------------------------------------------------------*/
static void send_frame(struct leader *l, const void *frame, size_t len, u64 now)
{
    void *to = channel_step_claim(l->channel, len);
    if (!to) BUG("no room for a step of %zu bytes in the ring", len);
    memcpy(to, frame, len);
    channel_step_publish(l->channel, len);
    l->sent_ns[l->n_sent++] = now;
}

static int send_steps(struct leader *l, u64 now)
{
    int n = 0;
    size_t len;
    const void *frame;
    while (l->n_sent < STEP_IN_FLIGHT && (frame = batch_plan(l->batch, now, &len))) {
        send_frame(l, frame, len, now);
        n++;
    }
    return n;
}

static void send_canary(struct leader *l, u64 now)
{
    size_t len;
    const void *frame = batch_canary(l->batch, &len);
    if (frame) send_frame(l, frame, len, now);
}

static int take_results(struct leader *l, u64 now)
{
    int n = 0;
    size_t len;
    const void *frame;
    struct error err = {0};
    while ((frame = channel_result_peek(l->channel, &len))) {
        struct results_view v;
        if (results_view(&v, frame, len, &err)) break;
        if (v.head->gen == l->boot.gen) {
            if (l->n_sent == 0 && error_set(&err, ERR_PEER, "", "results that nobody asked for")) break;
            memmove(l->sent_ns, l->sent_ns + 1, --l->n_sent * sizeof *l->sent_ns);
            l->progress_ns = now;
            if (v.head->kind == STEP_FORWARD) l->step_usec += v.head->usec;
            if (batch_commit(l->batch, &v, now, &err)) break;
        }
        channel_result_consume(l->channel);
        n++;
    }
    if (!frame && len == SIZE_MAX) error_set(&err, ERR_PEER, "", "the result ring is corrupt");
    if (err.code) proc_kill(l->proc, true, err.message);
    return n;
}

int supervise_turn(struct leader *l, u64 now_ns)
{
    int n = watch_engine(l, now_ns);
    if (proc_state(l->proc) != PROC_READY) return n;
    n += take_results(l, now_ns);
    if (proc_state(l->proc) != PROC_READY) return n;
    if (!batch_computes(l->batch)) leader_flush(l); /* the step to come only frees: the answers go first */
    n += send_steps(l, now_ns);
    if (l->n_sent == 0 && now_ns - l->progress_ns > CANARY_MS * NS_PER_MS) send_canary(l, now_ns);
    return n;
}

/* ---- sleep ---------------------------------------------------------------------------------------------------*/
int leader_watch(struct leader *l, int epoll, struct error *err)
{
    int fd = channel_fd(l->channel, FD_TO_AGENT);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) ? error_errno(err, "", "epoll") : 0;
}

bool leader_prepare_sleep(struct leader *l)
{
    return channel_agent_prepare_sleep(l->channel);
}
void leader_woke(struct leader *l)
{
    channel_agent_woke(l->channel);
}
