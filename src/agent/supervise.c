/* The engines of a replica, as its scheduler sees them: ready or lost, steps out, results in, and a canary when idle. */
#include "agent/leader_internal.h"
#include "mpiserve/route.h"
#include <stdio.h>
#include <string.h>

enum { CANARY_MS = 4500, CHANGES_KEPT = 8192 };

/* Rotation may depend on a prompt's length. */
static u32 prefix_kind(const void *rope, u32 prompt_len)
{
    return rope_class(rope, prompt_len);
}

int supervise_init(struct leader *l, struct error *err)
{
    struct agent *a = l->agent;
    const struct engine_boot *boot = &l->seat->boot;
    const struct route_policy *router = route_policy_find(a->config.router, err);
    if (!router) return err->code;
    bool caches = a->config.enable_prefix_caching && !a->model.arch->encoder;
    l->publishes = route_policy_wants_prefix(router) && caches;
    struct batch_spec b = {.n_changes = l->publishes ? CHANGES_KEPT : 0,
                           .max_rows = boot->max_rows,
                           .max_step_tokens = boot->max_step_tokens,
                           .max_model_len = a->max_model_len,
                           .block_size = boot->block_size,
                           .n_blocks = a->n_blocks,
                           .in_flight = seat_in_flight(l->seat),
                           .staged = l->seat->shape.pp > 1,
                           .max_kills = 2,
                           .numerics = a->numerics,
                           .hidden = a->needs.hidden,
                           .whole = a->model.arch->encoder,
                           .prefix_cache = caches,
                           .prefix_kind = prefix_kind,
                           .prefix_arg = &a->model.rope,
                           .max_frame =
                               step_most_bytes(channel_max_frame(l->seat->channel), seat_in_flight(l->seat))};
    if (!(l->batch = batch_new(&b, err))) return err->code;
    restart_init(&l->restart, NULL);
    return 0;
}

/* ---- births and deaths ---------------------------------------------------------------------------------------*/
void supervise_ready(struct leader *l, u64 now)
{
    restart_ready(&l->restart, now);
    batch_engine_ready(l->batch, l->gen);
    l->n_sent = 0;
    l->progress_ns = now;
    if (l->gen > 1) log_info("the engine%s back (generation %u)", l->seat->n > 1 ? "s are" : " is", l->gen);
    leader_engine_changed(l, REPLICA_UP, "");
}

void supervise_lost(struct leader *l, const struct proc_verdict *v)
{
    log_warning("%s", v->text);
    batch_engine_lost(l->batch, v->blame);
    l->n_sent = 0;
    leader_engine_changed(l, REPLICA_RESTARTING, v->text);
}

/* ---- steps and results ---------------------------------------------------------------------------------------*/
static void send_frame(struct leader *l, const void *frame, size_t len, u64 now)
{
    void *to = channel_step_claim(l->seat->channel, len);
    if (!to) BUG("no room for a step of %zu bytes in the ring", len);
    memcpy(to, frame, len);
    channel_step_publish(l->seat->channel, len);
    l->sent_ns[l->n_sent++] = now;
}

static int send_steps(struct leader *l, u64 now)
{
    int n = 0;
    size_t len;
    const void *frame;
    while (l->n_sent < seat_in_flight(l->seat) && (frame = batch_plan(l->batch, now, &len))) {
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

/* One frame; an error: the engine does not keep the contract. */
static int take_frame(struct leader *l, const void *frame, size_t len, u64 now, struct error *err)
{
    struct results_view v;
    int rc = results_view(&v, frame, len, err);
    if (rc || v.head->gen != l->gen) return rc;
    if (l->n_sent == 0) return error_set(err, ERR_PEER, "", "results that nobody asked for");
    memmove(l->sent_ns, l->sent_ns + 1, --l->n_sent * sizeof *l->sent_ns);
    l->progress_ns = now;
    if (v.head->kind == STEP_FORWARD) l->step_usec += v.head->usec;
    return batch_commit(l->batch, &v, now, err);
}

static int take_results(struct leader *l, u64 now)
{
    int n = 0;
    size_t len;
    const void *frame;
    struct error err = {0};
    while ((frame = channel_result_peek(l->seat->channel, &len))) {
        if (take_frame(l, frame, len, now, &err)) break;
        channel_result_consume(l->seat->channel);
        n++;
    }
    if (!frame && len == SIZE_MAX) error_set(&err, ERR_PEER, "", "the result ring is corrupt");
    if (err.code) proc_kill(l->seat->proc, true, err.message);
    return n;
}

void leader_results(struct leader *l, u32 from, const void *body, size_t len)
{
    const struct msg_results *m = body;
    struct error err = {0};
    if (len < sizeof *m || from != l->seat->shape.rank[seat_sampler(l->seat)]) {
        error_set(&err, ERR_PEER, "", "%zu bytes of rank %u", len, from);
        agent_die(l->agent, "message RESULTS", &err);
    }
    if (!l->running || m->gen != l->gen) return;
    if (!take_frame(l, m + 1, len - sizeof *m, clock_ns(), &err)) return;
    char why[sizeof err.message + 48];
    snprintf(why, sizeof why, "engine of rank %u, which answers: %s", from, err.message);
    proc_kill(l->seat->proc, true, why);
}

int supervise_turn(struct leader *l, u64 now_ns)
{
    int n = group_turn(l, now_ns) + seat_relay(l->seat);
    if (l->running) n += take_results(l, now_ns);
    if (!l->running || proc_state(l->seat->proc) != PROC_READY) return n;
    if (!batch_computes(l->batch)) leader_flush(l); /* the step to come only frees: the answers go first */
    n += send_steps(l, now_ns);
    if (l->n_sent == 0 && now_ns - l->progress_ns > CANARY_MS * NS_PER_MS) send_canary(l, now_ns);
    return n;
}
