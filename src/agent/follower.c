/* A rank whose engine is not the first of its replica: it starts and ends it as the leader says, and says what became of it. */
#include "agent/seat.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct follower {
    struct agent *agent;
    struct seat *seat;
    u32 gen; /* of the engine that is here, or was last */
};

void follower_new(struct agent *a)
{
    struct follower *f = a->follower = mem_zero(1, sizeof *f);
    f->agent = a;
    f->seat = a->seat;
}

void follower_free(struct follower *f)
{
    free(f);
}

static void tell(struct follower *f, struct msg_group_state m)
{
    m.gen = f->gen;
    m.engine = f->seat->index;
    agent_send(f->agent, f->seat->shape.rank[0], MSG_GROUP_STATE, &m, sizeof m, NULL, 0);
}

static void tell_gone(struct follower *f, const struct proc_verdict *v)
{
    struct msg_group_state m = {
        .event = GROUP_GONE, .pid = v->pid, .blame = v->blame, .silent_ns = v->silent_ns};
    snprintf(m.text, sizeof m.text, "%s", v->text);
    tell(f, m);
}

void follower_start(struct follower *f, u32 from, const struct msg_group_start *m)
{
    struct seat *s = f->seat;
    struct error err = {0};
    if (from != s->shape.rank[0] || m->gen <= f->gen || proc_state(s->proc) != PROC_NONE)
        error_set(&err, ERR_PEER, "", "generation %u of rank %u, while generation %u is here", m->gen, from,
                  f->gen);
    if (err.code) agent_die(f->agent, "message GROUP_START", &err);
    f->gen = m->gen;
    if (seat_group_memory(s, m->pid, m->fd, &err) || seat_start(s, m->gen, clock_ns(), &err)) {
        char text[600];
        struct proc_verdict v = {.gen = m->gen};
        snprintf(v.text, sizeof v.text, "engine of rank %u: %s", s->boot.rank,
                 error_text(&err, text, sizeof text));
        seat_gone(s);
        tell_gone(f, &v);
        return;
    }
    if (m->pid < 0)
        tell(f, (struct msg_group_state){.event = GROUP_HAS_MEMORY, .pid = getpid(), .fd = s->group_fd});
}

/* When the process is gone, follower_turn says so. One that is gone already was told of. */
void follower_kill(struct follower *f, u32 from, u32 gen)
{
    if (from != f->seat->shape.rank[0] || gen != f->gen) return;
    proc_kill(f->seat->proc, false, "another engine of its replica ended");
}

/* The sampler's results are the leader's. No more in a turn than there are steps in flight: an engine gone mad may write without end, and
 * the leader, which knows what it asked for, has to be heard. */
static int hand_on(struct follower *f)
{
    int n = 0;
    size_t len = 0;
    const void *frame = NULL;
    struct msg_results head = {.gen = f->gen};
    if (proc_state(f->seat->proc) != PROC_READY) return 0;
    while (n < STEP_IN_FLIGHT_MOST && (frame = channel_result_peek(f->seat->channel, &len))) {
        agent_send(f->agent, f->seat->shape.rank[0], MSG_RESULTS, &head, sizeof head, frame, len);
        channel_result_consume(f->seat->channel);
        n++;
    }
    if (!frame && len == SIZE_MAX) proc_kill(f->seat->proc, true, "the result ring is corrupt");
    return n;
}

int follower_turn(struct follower *f, u64 now)
{
    struct seat *s = f->seat;
    struct proc_verdict died;
    int n = hand_on(f) + seat_relay(s);
    switch (proc_poll(s->proc, now, 0, &died)) {
    case PROC_EVENT_READY: tell(f, (struct msg_group_state){.event = GROUP_UP}); return n + 1;
    case PROC_EVENT_DIED:
        seat_gone(s);
        tell_gone(f, &died);
        return n + 1;
    case PROC_EVENT_NONE: break;
    }
    return n;
}
