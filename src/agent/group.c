/* The engines of a replica, one generation after the other: started together, ended together. For one engine it is all local. */
#include "agent/leader_internal.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static u32 member_rank(const struct leader *l, u32 i)
{
    return l->seat->shape.rank[i];
}

static u32 member_node(const struct leader *l, u32 i)
{
    return l->seat->shape.node[i];
}

static bool first_of_node(const struct leader *l, u32 i)
{
    for (u32 k = 0; k < i; k++)
        if (member_node(l, k) == member_node(l, i)) return false;
    return true;
}

/* ---- the start -----------------------------------------------------------------------------------------------*/
static void start_member(struct leader *l, u32 i, i32 pid, i32 fd)
{
    struct msg_group_start m = {.gen = l->gen, .pid = pid, .fd = fd};
    agent_send(l->agent, member_rank(l, i), MSG_GROUP_START, &m, sizeof m, NULL, 0);
    l->members[i] = MEMBER_STARTING;
}

/* This node's engines get the memory that was made here; the first of every other node makes one for its node. */
static void start_others(struct leader *l)
{
    for (u32 i = 1; i < l->seat->n; i++) {
        if (member_node(l, i) == member_node(l, 0))
            start_member(l, i, getpid(), l->seat->group_fd);
        else if (first_of_node(l, i))
            start_member(l, i, -1, -1);
        else
            l->members[i] = MEMBER_WAITS;
    }
}

/* After so many ends that more make no sense. */
static void give_up(struct leader *l, const char *why)
{
    log_error("the engine%s of rank %u died too often; replica %d is out of service",
              l->seat->n > 1 ? "s" : "", l->seat->boot.rank, l->replica);
    batch_end_all(l->batch, FINISH_RETRY);
    leader_engine_changed(l, REPLICA_BROKEN, why);
}

static void did_not_start(struct leader *l, u64 now, const struct error *err)
{
    char text[1100], why[1200];
    snprintf(why, sizeof why, "engine of rank %u: %s", l->seat->boot.rank,
             error_text(err, text, sizeof text));
    log_error("%s", why);
    seat_gone(l->seat);
    leader_engine_changed(l, REPLICA_RESTARTING, why);
    l->start_ns = restart_died(&l->restart, now);
    if (restart_broken(&l->restart)) give_up(l, why);
}

static void start_group(struct leader *l, u64 now)
{
    struct error err;
    struct seat *s = l->seat;
    l->gen++;
    l->own_up = l->failing = l->unanswered = false;
    if ((s->n > 1 && seat_group_memory(s, -1, -1, &err)) || seat_start(s, l->gen, now, &err)) {
        did_not_start(l, now, &err);
        return;
    }
    start_others(l);
}

static bool all_up(const struct leader *l)
{
    for (u32 i = 1; i < l->seat->n; i++)
        if (l->members[i] != MEMBER_UP) return false;
    return l->own_up;
}

/* ---- the end -------------------------------------------------------------------------------------------------*/
static bool all_gone(const struct leader *l)
{
    for (u32 i = 1; i < l->seat->n; i++)
        if (l->members[i] != MEMBER_GONE) return false;
    return proc_state(l->seat->proc) == PROC_NONE;
}

static void fail(struct leader *l, const struct proc_verdict *v)
{
    if (l->failing) return; /* what comes after the first is its consequence */
    l->failing = true;
    l->running = l->own_up = false;
    l->first = *v;
    proc_kill(l->seat->proc, false, "another engine of its replica ended");
    for (u32 i = 1; i < l->seat->n; i++) {
        if (l->members[i] == MEMBER_WAITS) l->members[i] = MEMBER_GONE;
        if (l->members[i] == MEMBER_GONE) continue;
        agent_send(l->agent, member_rank(l, i), MSG_GROUP_KILL, &l->gen, sizeof l->gen, NULL, 0);
    }
    supervise_lost(l, v);
}

/* ---- who hangs -----------------------------------------------------------------------------------------------*/
/* An engine that waits for others or for work gives a sign of life every 500 ms at least. */
enum { SILENT_MS = 750 };

static void was_silent(struct leader *l, u32 engine, i32 pid, u64 silent_ns)
{
    if (l->unanswered && silent_ns > l->hung.silent_ns) l->hung = (struct hung){engine, pid, silent_ns};
}

/* The leader's own engine only takes steps: that one is not answered does not mean that it is the one that hangs. */
static void not_answered(struct leader *l, struct proc_verdict *own)
{
    l->unanswered = true;
    l->hung = (struct hung){0};
    was_silent(l, 0, own->pid, own->silent_ns);
    snprintf(own->text, sizeof own->text,
             "the engines of replica %d are ended: a step was not answered within %.1f s", l->replica,
             l->agent->config.step_timeout_s);
}

static void name_the_hung(struct leader *l)
{
    const struct hung *h = &l->hung;
    struct proc_verdict *v = &l->first;
    if (h->silent_ns >= SILENT_MS * NS_PER_MS)
        snprintf(v->text, sizeof v->text,
                 "engine of rank %u (pid %d, generation %u) hung: no heartbeat for %.1f s",
                 member_rank(l, h->engine), h->pid, l->gen, (double)h->silent_ns / NS_PER_S);
    else
        snprintf(
            v->text, sizeof v->text,
            "replica %d: a step was not answered, and all its engines had a heartbeat: none is known to hang",
            l->replica);
    log_warning("%s", v->text);
    leader_engine_changed(l, REPLICA_RESTARTING, v->text);
}

static void after_the_end(struct leader *l, u64 now)
{
    if (l->unanswered) name_the_hung(l);
    l->failing = false;
    seat_gone(l->seat);
    l->start_ns = restart_died(&l->restart, now);
    if (restart_broken(&l->restart)) give_up(l, l->first.text);
}

/* ---- what comes ----------------------------------------------------------------------------------------------*/
static void start_node_mates(struct leader *l, u32 host, const struct msg_group_state *m)
{
    for (u32 i = 1; i < l->seat->n; i++)
        if (l->members[i] == MEMBER_WAITS && member_node(l, i) == member_node(l, host))
            start_member(l, i, m->pid, m->fd);
}

void leader_group_state(struct leader *l, u32 from, const struct msg_group_state *m)
{
    if (m->engine == 0 || m->engine >= l->seat->n || member_rank(l, m->engine) != from ||
        m->event > GROUP_GONE) {
        struct error err;
        error_set(&err, ERR_PEER, "", "engine %u, event %u, of rank %u", m->engine, m->event, from);
        agent_die(l->agent, "message GROUP_STATE", &err);
    }
    if (m->gen != l->gen || l->members[m->engine] == MEMBER_GONE) return;
    struct proc_verdict v = {.gen = m->gen, .blame = m->blame};
    switch ((enum group_event)m->event) {
    case GROUP_HAS_MEMORY:
        if (!l->failing) start_node_mates(l, m->engine, m);
        break;
    case GROUP_UP: l->members[m->engine] = MEMBER_UP; break;
    case GROUP_GONE:
        l->members[m->engine] = MEMBER_GONE;
        was_silent(l, m->engine, m->pid, m->silent_ns);
        snprintf(v.text, sizeof v.text, "%.*s", (int)sizeof m->text - 1, m->text);
        fail(l, &v);
        break;
    }
}

/* Since when the oldest step out is the one to answer: with several stages it has waited for all before it. */
static u64 oldest_step_ns(const struct leader *l)
{
    return l->n_sent ? MAX_OF(l->sent_ns[0], l->progress_ns) : 0;
}

static int watch_own(struct leader *l, u64 now)
{
    struct proc_verdict died;
    switch (proc_poll(l->seat->proc, now, oldest_step_ns(l), &died)) {
    case PROC_EVENT_READY: l->own_up = true; return 1;
    case PROC_EVENT_DIED:
        if (l->seat->n > 1 && !l->failing && died.cause == PROC_HANG && died.blame) not_answered(l, &died);
        fail(l, &died);
        return 1;
    case PROC_EVENT_NONE: break;
    }
    return 0;
}

int group_turn(struct leader *l, u64 now)
{
    int n = watch_own(l, now);
    if (l->failing && all_gone(l)) {
        after_the_end(l, now);
        n++;
    } else if (!l->failing && !l->running && proc_state(l->seat->proc) == PROC_NONE && now >= l->start_ns &&
               !restart_broken(&l->restart)) {
        start_group(l, now);
        n++;
    } else if (!l->running && !l->failing && all_up(l)) {
        l->running = true;
        supervise_ready(l, now);
        n++;
    }
    return n;
}
