/* The main loop: one thread, the only one that calls MPI. Idle means asleep, after a moment of dwelling (base.h): see the rules in
 * wire.h. */
#include "agent/agent_internal.h"
#include "agent/seat.h"
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { NAP_US = 50, BUSY_SLEEP_MS = 10, IDLE_SLEEP_MS = 100 };

/* ---- messages ------------------------------------------------------------------------------------------------*/
void agent_send(struct agent *a, u32 to, enum message_type type, const void *head, size_t head_len,
                const void *body, size_t len)
{
    struct error err;
    if (wire_send2(a->wire, to, (u16)type, head, head_len, body, len, &err))
        agent_die(a, "sending a message", &err);
}

static void on_chunk(struct agent *a, u32 from, const void *body, size_t len)
{
    if (a->head) head_chunks(a->head, from, body, len);
}
static void on_refused(struct agent *a, u32 from, const void *body, size_t len)
{
    if (a->head && len == sizeof(struct msg_refused)) head_refused(a->head, from, body);
}
static void on_load(struct agent *a, u32 from, const void *body, size_t len)
{
    a->notices++;
    if (a->head && len == sizeof(struct msg_load)) head_load(a->head, from, body);
}
static void on_dispatch(struct agent *a, u32 from, const void *body, size_t len)
{
    if (a->leader) leader_dispatch(a->leader, from, body, len);
}
static void on_cancel(struct agent *a, u32 from, const void *body, size_t len)
{
    (void)from;
    u64 id;
    if (!a->leader || len != sizeof id) return;
    memcpy(&id, body, sizeof id);
    leader_cancel(a->leader, id);
}
static void on_drain(struct agent *a, u32 from, const void *body, size_t len)
{
    (void)body, (void)len;
    if (agent_rank(a) == 0) {
        agent_drain(a);
    } else if (from == 0) {
        a->draining = true;
        if (a->head) head_drain(a->head);
    }
}
static void on_drained(struct agent *a, u32 from, const void *body, size_t len)
{
    u32 stage;
    if (!a->head || len != sizeof stage) return;
    memcpy(&stage, body, sizeof stage);
    head_drained(a->head, from, stage);
}
static void on_close(struct agent *a, u32 from, const void *body, size_t len)
{
    (void)from, (void)body, (void)len;
    if (a->head) head_close(a->head);
    if (a->leader) leader_close(a->leader);
}
static void on_hurry(struct agent *a, u32 from, const void *body, size_t len)
{
    (void)from, (void)body, (void)len;
    if (a->head) head_hurry(a->head);
    if (a->leader) leader_hurry(a->leader);
}
static void on_demand(struct agent *a, u32 from, const void *body, size_t len)
{
    if (a->head && len == sizeof(struct msg_demand)) head_demand(a->head, from, body);
}
static void on_cached(struct agent *a, u32 from, const void *body, size_t len)
{
    const struct msg_cached *m = body;
    if (a->head && len >= sizeof *m && len == sizeof *m + (u64)m->n * sizeof(struct cached_change))
        head_cached(a->head, from, m, (const struct cached_change *)(m + 1));
}
static void on_yield(struct agent *a, u32 from, const void *body, size_t len)
{
    (void)from;
    i32 replica;
    if (!a->head || len != sizeof replica) return;
    memcpy(&replica, body, sizeof replica);
    head_yielded(a->head, replica);
}
static void on_group_start(struct agent *a, u32 from, const void *body, size_t len)
{
    if (a->follower && len == sizeof(struct msg_group_start)) follower_start(a->follower, from, body);
}
static void on_group_kill(struct agent *a, u32 from, const void *body, size_t len)
{
    u32 gen;
    if (!a->follower || len != sizeof gen) return;
    memcpy(&gen, body, sizeof gen);
    follower_kill(a->follower, from, gen);
}
static void on_group_state(struct agent *a, u32 from, const void *body, size_t len)
{
    if (a->leader && len == sizeof(struct msg_group_state)) leader_group_state(a->leader, from, body);
}
static void on_relay(struct agent *a, u32 from, const void *body, size_t len)
{
    (void)from;
    if (a->seat) seat_relayed(a->seat, body, len);
}
static void on_results(struct agent *a, u32 from, const void *body, size_t len)
{
    if (a->leader) leader_results(a->leader, from, body, len);
}
static void on_beat(struct agent *a, u32 from, const void *body, size_t len)
{
    (void)body, (void)len;
    a->notices++;
    if (from == 0) beat_heard(a);
}
static void on_end(struct agent *a, u32 from, const void *body, size_t len)
{
    (void)from, (void)body, (void)len;
    a->ended = true;
}

static void on_message(void *arg, u32 from, u16 type, const void *body, size_t len)
{
    static void (*const handlers[])(struct agent *, u32, const void *, size_t) = {
        [MSG_DISPATCH] = on_dispatch,
        [MSG_CANCEL] = on_cancel,
        [MSG_CHUNK] = on_chunk,
        [MSG_REFUSED] = on_refused,
        [MSG_LOAD] = on_load,
        [MSG_DRAIN] = on_drain,
        [MSG_CLOSE] = on_close,
        [MSG_HURRY] = on_hurry,
        [MSG_END] = on_end,
        [MSG_CACHED] = on_cached,
        [MSG_BEAT] = on_beat,
        [MSG_DRAINED] = on_drained,
        [MSG_DEMAND] = on_demand,
        [MSG_YIELD] = on_yield,
        [MSG_GROUP_START] = on_group_start,
        [MSG_GROUP_KILL] = on_group_kill,
        [MSG_GROUP_STATE] = on_group_state,
        [MSG_RELAY] = on_relay,
        [MSG_RESULTS] = on_results,
    };
    if (type < COUNT_OF(handlers) && handlers[type]) handlers[type](arg, from, body, len);
}

static int poll_wire(struct agent *a)
{
    struct error err;
    int n = wire_poll(a->wire, on_message, a, &err);
    if (n < 0) agent_die(a, "messages", &err);
    return n;
}

/* ---- signals -------------------------------------------------------------------------------------------------*/
void agent_drain(struct agent *a)
{
    if (a->draining) return;
    a->draining = true;
    if (agent_rank(a) != 0) {
        agent_send(a, 0, MSG_DRAIN, NULL, 0, NULL, 0); /* rank 0 may not have had the signal */
        return;
    }
    for (u32 i = 1; i < a->n_ingresses; i++)
        agent_send(a, agent_ingress_rank(a, i), MSG_DRAIN, NULL, 0, NULL, 0);
    head_drain(a->head);
}

/* INT or TERM: the launcher gives us 0.9 s. */
_Noreturn static void leave_at_once(struct agent *a, int sig)
{
    if (a->head) {
        log_info("signal %d: ending at once", sig);
        head_abort(a->head, "the server was stopped");
    }
    agent_kill_engine(a);
    _exit(128 + sig);
}

static int take_signals(struct agent *a, u64 now)
{
    struct signalfd_siginfo s;
    int n = 0;
    if (now - a->signals_ns < NS_PER_MS) return 0; /* a busy loop turns far more often */
    a->signals_ns = now;
    while (read(a->signals, &s, sizeof s) == sizeof s) {
        n++;
        if (s.ssi_signo != SIGUSR1) leave_at_once(a, (int)s.ssi_signo);
        agent_drain(a);
    }
    return n;
}

/* ---- sleep ---------------------------------------------------------------------------------------------------*/
static bool busy(const struct agent *a)
{
    return (a->head && head_busy(a->head)) || (a->leader && leader_busy(a->leader));
}

static u64 sleep_ns(const struct agent *a, u64 now)
{
    if (wire_listens(a->wire, now) || wire_busy(a->wire)) return NAP_US * NS_PER_US;
    u64 ns = (busy(a) ? BUSY_SLEEP_MS : IDLE_SLEEP_MS) * NS_PER_MS;
    u64 deadline = a->head ? head_deadline(a->head) : UINT64_MAX;
    if (deadline != UINT64_MAX) ns = deadline <= now ? NAP_US * NS_PER_US : MIN_OF(ns, deadline - now);
    return ns;
}

static void wait_ready(struct agent *a, u64 ns)
{
    struct epoll_event events[8];
    struct timespec t = {.tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S)};
#ifdef SYS_epoll_pwait2
    if (syscall(SYS_epoll_pwait2, a->epoll, events, COUNT_OF(events), &t, NULL, 0) >= 0 || errno != ENOSYS)
        return;
#endif
    if (ns < NS_PER_MS)
        nanosleep(&t, NULL); /* before kernel 5.11: a bell does not end a nap */
    else
        epoll_wait(a->epoll, events, COUNT_OF(events), (int)(ns / NS_PER_MS));
}

static void rest(struct agent *a, u64 now)
{
    bool may = !a->head || head_prepare_sleep(a->head);
    if (may && a->seat) may = seat_prepare_sleep(a->seat);
    if (may) {
        wire_sleep(a->wire, true);
        if (poll_wire(a) == 0) {
            watchdog_turn(&a->watchdog, now, "sleep");
            wait_ready(a, sleep_ns(a, now));
        }
        wire_sleep(a->wire, false);
    }
    if (a->head) head_woke(a->head);
    if (a->seat) seat_woke(a->seat);
    wire_drain_bell(a->wire);
}

int agent_loop(struct agent *a)
{
    prctl(PR_SET_TIMERSLACK, NS_PER_US); /* the default doubles a nap */
    while (!a->ended) {
        u64 now = clock_ns();
        watchdog_turn(&a->watchdog, now, "messages");
        a->notices = 0;
        int n = poll_wire(a);
        if (a->head) {
            watchdog_turn(&a->watchdog, now, "requests and routing");
            n += head_turn(a->head, now);
        }
        if (a->leader && !a->ended) {
            watchdog_turn(&a->watchdog, now, "scheduler and engine");
            n += leader_turn(a->leader, now);
        }
        if (a->follower && !a->ended) {
            watchdog_turn(&a->watchdog, now, "engine");
            n += follower_turn(a->follower, now);
        }
        n += take_signals(a, now);
        beat_turn(a, now);
        if (n > a->notices) dwell_worked(&a->dwell, now);
        if (n == 0 && !a->ended && !dwell_on(&a->dwell, now)) rest(a, now);
    }
    return a->exit_code;
}
