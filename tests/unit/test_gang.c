/* The life of a replica of several engines, as its agents lead it: leader and followers are the real ones, engines and messages are this
 * file's. Whatever happens in whatever order, two generations never live at the same time, and all is up again in the end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "agent/leader_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ENGINES = 4, QUEUE = 64, STEPS = 4000, RUNS = 200 };

/* ---- engines -------------------------------------------------------------------------------------------------*/
struct proc {
    enum proc_state state;
    u32 gen, starts;
    bool comes_up, ends;   /* what proc_poll finds next */
    u64 oldest_step_ns;    /* as asked for last */
    enum proc_cause cause; /* of its end */
    u64 silent_ns;
};
struct mail {
    enum message_type type;
    _Alignas(u64) u8 body[sizeof(struct msg_group_state)]; /* as wire.h has them */
};
static struct proc procs[ENGINES];
static struct agent agents[ENGINES];
static struct seat seats[ENGINES];
static struct leader leader;
static struct mail mails[ENGINES][ENGINES][QUEUE]; /* from, to */
static u32 n_mails[ENGINES][ENGINES], n_ended_all, n_results, starts_fail;
static bool blamed; /* what the engines computed when they were lost */
static u64 rng;

static u32 roll(u32 n)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (u32)(rng >> 33) % n;
}

enum proc_state proc_state(const struct proc *p)
{
    return p->state;
}
int proc_pid(const struct proc *p)
{
    return (int)p->gen;
}
void proc_kill(struct proc *p, bool blame, const char *why)
{
    (void)blame, (void)why;
    if (p->state != PROC_NONE) p->state = PROC_DYING;
}
enum proc_event proc_poll(struct proc *p, u64 now_ns, u64 oldest_step_ns, struct proc_verdict *died)
{
    (void)now_ns;
    p->oldest_step_ns = oldest_step_ns;
    if (p->state == PROC_NONE) return PROC_EVENT_NONE;
    if (p->ends) {
        p->state = PROC_NONE;
        *died = (struct proc_verdict){.cause = p->cause,
                                      .gen = p->gen,
                                      .pid = 70 + (int)(p - procs),
                                      .blame = p->cause == PROC_HANG,
                                      .silent_ns = p->silent_ns,
                                      .text = "it ended"};
        return PROC_EVENT_DIED;
    }
    if (p->state != PROC_STARTING || !p->comes_up) return PROC_EVENT_NONE;
    p->state = PROC_READY;
    return PROC_EVENT_READY;
}

/* ---- seats ---------------------------------------------------------------------------------------------------*/
u32 seat_in_flight(const struct seat *s)
{
    (void)s;
    return STEP_IN_FLIGHT;
}
int seat_group_memory(struct seat *s, i32 pid, i32 fd, struct error *err)
{
    (void)s, (void)pid, (void)fd, (void)err;
    return 0;
}
int seat_start(struct seat *s, u32 gen, u64 now_ns, struct error *err)
{
    (void)now_ns;
    if (starts_fail && roll(starts_fail) == 0) return error_set(err, ERR_IO, "program", "no process");
    for (u32 i = 0; i < ENGINES; i++)
        if (procs[i].state != PROC_NONE) assert_int_equal(procs[i].gen, gen);
    assert_true(s->proc->state == PROC_NONE && s->proc->gen < gen);
    *s->proc = (struct proc){.state = PROC_STARTING, .gen = gen, .starts = s->proc->starts + 1};
    return 0;
}
void seat_gone(struct seat *s)
{
    assert_int_equal(s->proc->state, PROC_NONE);
}
int seat_relay(struct seat *s)
{
    (void)s;
    return 0;
}
void *channel_step_claim(struct channel *c, size_t len)
{
    (void)c, (void)len;
    return NULL;
}
void channel_step_publish(struct channel *c, size_t len)
{
    (void)c, (void)len;
}
const void *channel_result_peek(struct channel *c, size_t *len)
{
    static const u64 frame;
    (void)c;
    *len = n_results ? sizeof frame : 0;
    return n_results ? &frame : NULL;
}
void channel_result_consume(struct channel *c)
{
    (void)c;
    n_results--;
}
size_t channel_max_frame(const struct channel *c)
{
    (void)c;
    return 4096;
}

/* ---- what else a leader stands on ----------------------------------------------------------------------------*/
void agent_send(struct agent *a, u32 to, enum message_type type, const void *head, size_t head_len,
                const void *body, size_t len)
{
    u32 from = (u32)(a - agents);
    struct mail *m = &mails[from][to][n_mails[from][to]];
    (void)body, (void)len;
    assert_true(n_mails[from][to]++ < QUEUE && head_len <= sizeof m->body);
    m->type = type;
    memcpy(m->body, head, head_len);
}
void agent_die(struct agent *a, const char *what, const struct error *err)
{
    (void)a;
    fail_msg("%s: %s", what, err->message);
    abort();
}
void leader_engine_changed(struct leader *l, enum replica_state state, const char *trouble)
{
    l->state = state;
    snprintf(l->trouble, sizeof l->trouble, "%s", trouble);
}
void leader_flush(struct leader *l)
{
    (void)l;
}
struct batch *batch_new(const struct batch_spec *spec, struct error *err)
{
    (void)spec, (void)err;
    return NULL;
}
void batch_engine_ready(struct batch *b, u32 gen)
{
    (void)b;
    for (u32 i = 0; i < ENGINES; i++) /* up means all, and of this generation */
        assert_true(procs[i].gen == gen && procs[i].starts > 0);
}
void batch_engine_lost(struct batch *b, bool blame)
{
    (void)b;
    blamed = blame;
}
void batch_end_all(struct batch *b, enum finish how)
{
    (void)b, (void)how;
    n_ended_all++;
}
const void *batch_plan(struct batch *b, u64 now_ns, size_t *len)
{
    (void)b, (void)now_ns, (void)len;
    return NULL;
}
const void *batch_canary(struct batch *b, size_t *len)
{
    (void)b, (void)len;
    return NULL;
}
bool batch_computes(const struct batch *b)
{
    (void)b;
    return false;
}
int batch_commit(struct batch *b, const struct results_view *v, u64 now_ns, struct error *err)
{
    (void)b, (void)v, (void)now_ns, (void)err;
    return 0;
}

/* ---- the world -----------------------------------------------------------------------------------------------*/
static void deliver(u32 from, u32 to)
{
    struct mail m = mails[from][to][0];
    memmove(mails[from][to], mails[from][to] + 1, --n_mails[from][to] * sizeof m);
    u32 gen;
    switch (m.type) {
    case MSG_GROUP_START: follower_start(agents[to].follower, from, (const void *)m.body); break;
    case MSG_GROUP_KILL:
        memcpy(&gen, m.body, sizeof gen);
        follower_kill(agents[to].follower, from, gen);
        break;
    case MSG_GROUP_STATE: leader_group_state(&leader, from, (const void *)m.body); break;
    default: break;
    }
}

static void turn(u32 i, u64 now)
{
    if (i)
        follower_turn(agents[i].follower, now);
    else
        supervise_turn(&leader, now);
}

static int world_open(void **state)
{
    (void)state;
    n_ended_all = n_results = starts_fail = 0;
    memset(n_mails, 0, sizeof n_mails);
    for (u32 i = 0; i < ENGINES; i++) {
        procs[i] = (struct proc){0};
        agents[i] = (struct agent){.seat = &seats[i]};
        seats[i] = (struct seat){.agent = &agents[i],
                                 .index = i,
                                 .n = ENGINES,
                                 .shape = {.tp = 2, .pp = 2, .rank = {0, 1, 2, 3}, .node = {0, 0, 1, 1}},
                                 .proc = &procs[i],
                                 .boot.rank = i};
        if (i) follower_new(&agents[i]);
    }
    leader = (struct leader){.agent = &agents[0], .seat = &seats[0]};
    restart_init(&leader.restart, NULL);
    return 0;
}

static int world_close(void **state)
{
    (void)state;
    for (u32 i = 1; i < ENGINES; i++) follower_free(agents[i].follower);
    return 0;
}

/* Without trouble everything comes up from wherever it stands. */
static void settle(u64 now)
{
    starts_fail = 0;
    for (u32 k = 0; k < 200; k++) {
        now += NS_PER_S;
        for (u32 i = 0; i < ENGINES; i++) {
            procs[i].comes_up = true;
            procs[i].ends |= procs[i].state == PROC_DYING;
            turn(i, now);
            for (u32 to = 0; to < ENGINES; to++)
                while (n_mails[i][to]) deliver(i, to);
        }
    }
    assert_true(leader.running && leader.state == REPLICA_UP);
    for (u32 i = 0; i < ENGINES; i++) assert_true(procs[i].state == PROC_READY && procs[i].gen == leader.gen);
}

static void test_generations_never_meet(void **state)
{
    u32 generations = 0;
    for (u32 run = 1; run <= RUNS; run++) {
        u64 now = NS_PER_S;
        rng = run;
        world_open(state);
        for (u32 step = 0; step < STEPS; step++) {
            u32 i = roll(ENGINES), to = roll(ENGINES);
            starts_fail = 10;
            switch (roll(8)) {
            case 0: procs[i].comes_up = true; break;
            case 1: procs[i].ends |= procs[i].state == PROC_DYING || roll(20) == 0; break;
            case 2: now += roll(40) * NS_PER_S; break; /* past every pause, and no eight deaths in a window */
            case 3:
            case 4:
                if (n_mails[i][to]) deliver(i, to);
                break;
            default: turn(i, now); break;
            }
            if (leader.running)
                for (u32 k = 0; k < ENGINES; k++) assert_int_equal(procs[k].gen, leader.gen);
        }
        if (!restart_broken(&leader.restart)) settle(now);
        generations += leader.gen;
        if (run < RUNS) world_close(state);
    }
    assert_true(generations > RUNS);
}

/* What never starts is given up as what always dies is: nobody waits for it. */
static void test_never_starts(void **state)
{
    (void)state;
    starts_fail = 1;
    for (u64 now = NS_PER_S; now < 200 * NS_PER_S; now += NS_PER_S) turn(0, now);
    assert_true(restart_broken(&leader.restart));
    assert_int_equal(leader.state, REPLICA_BROKEN);
    assert_int_equal(n_ended_all, 1);
    assert_non_null(strstr(leader.trouble, "engine of rank 0: program: no process"));
}

static void test_first_failure_is_told(void **state)
{
    (void)state;
    starts_fail = 1;
    turn(0, NS_PER_S);
    assert_int_equal(leader.state, REPLICA_RESTARTING);
    assert_non_null(strstr(leader.trouble, "no process"));
}

/* A step that has waited for the steps before it is not late before its own time is over. */
static void test_age_of_a_step(void **state)
{
    (void)state;
    settle(NS_PER_S);
    leader.n_sent = 3;
    leader.sent_ns[0] = leader.sent_ns[1] = leader.sent_ns[2] = 1000 * NS_PER_S;
    leader.progress_ns = 1020 * NS_PER_S;
    turn(0, 1021 * NS_PER_S);
    assert_int_equal(procs[0].oldest_step_ns, 1020 * NS_PER_S);
    leader.progress_ns = 900 * NS_PER_S;
    turn(0, 1021 * NS_PER_S);
    assert_int_equal(procs[0].oldest_step_ns, 1000 * NS_PER_S);
    leader.n_sent = 0;
    turn(0, 1021 * NS_PER_S);
    assert_int_equal(procs[0].oldest_step_ns, 0);
}

/* All is up, then engine `first` ends; the others go in order. silent: ms that each had been. */
static void end_group(u32 first, enum proc_cause cause, const u64 *silent)
{
    settle(NS_PER_S);
    for (u32 i = 0; i < ENGINES; i++) procs[i].silent_ns = silent[i] * NS_PER_MS;
    procs[first].cause = cause;
    procs[first].ends = true;
    turn(first, 300 * NS_PER_S);
    if (first) deliver(first, 0);
    assert_true(leader.failing && leader.state == REPLICA_RESTARTING);
    assert_int_equal(blamed, cause == PROC_HANG);
}

static void others_end(void)
{
    turn(0, 300 * NS_PER_S);
    for (u32 i = 0; i < ENGINES; i++) {
        while (n_mails[0][i]) deliver(0, i);
        procs[i].ends |= procs[i].state == PROC_DYING;
        turn(i, 300 * NS_PER_S);
        while (n_mails[i][0]) deliver(i, 0);
    }
    turn(0, 300 * NS_PER_S);
    assert_true(!leader.failing && leader.state == REPLICA_RESTARTING);
}

/* A step is not answered: the leader's engine is named only if it is the one that was silent. */
static void test_who_hangs(void **state)
{
    static const u64 silent[][ENGINES] = {
        {500, 250, 240, 6100}, {500, 0, 6100, 6000}, {6000, 250, 0, 250}, {500, 7000, 6900, 250}};
    static const u32 hangs[] = {3, 2, 0, 1};
    for (u32 i = 0; i < COUNT_OF(hangs); i++) {
        char who[64];
        if (i) world_open(state);
        end_group(0, PROC_HANG, silent[i]);
        assert_non_null(strstr(leader.trouble, "a step was not answered"));
        assert_null(strstr(leader.trouble, "engine of rank"));
        others_end();
        snprintf(who, sizeof who, "engine of rank %u (pid %u, generation 1) hung", hangs[i], 70 + hangs[i]);
        assert_non_null(strstr(leader.trouble, who));
        settle(301 * NS_PER_S);
        if (i + 1 < COUNT_OF(hangs)) world_close(state);
    }
}

/* All had a heartbeat, as after a host that stood still: none is accused. */
static void test_nobody_hangs(void **state)
{
    static const u64 silent[ENGINES] = {500, 250, 0, 520};
    (void)state;
    end_group(0, PROC_HANG, silent);
    others_end();
    assert_non_null(strstr(leader.trouble, "none is known to hang"));
    assert_null(strstr(leader.trouble, "rank"));
}

/* Who ends by itself is the cause, however silent another was. */
static void test_silence_is_no_cause(void **state)
{
    static const u64 silent[ENGINES] = {500, 9000, 250, 250};
    for (u32 first = 0; first < ENGINES; first += 2) {
        if (first) world_open(state);
        end_group(first, PROC_EXIT, silent);
        others_end();
        assert_string_equal(leader.trouble, "it ended");
        if (first == 0) world_close(state);
    }
}

/* Results without end do not keep their agent from its messages. */
static void test_results_without_end(void **state)
{
    (void)state;
    settle(NS_PER_S);
    n_results = UINT32_MAX;
    turn(2, 300 * NS_PER_S);
    assert_true(UINT32_MAX - n_results <= STEP_IN_FLIGHT_MOST);
    n_results = 0;
}

/* Steps in flight of any sizes have room in the ring, wherever it stands. */
static void test_room_for_steps(void **state)
{
    (void)state;
    for (u32 in_flight = STEP_IN_FLIGHT; in_flight <= STEP_IN_FLIGHT_MOST; in_flight++) {
        size_t size = step_ring_bytes(1 << 14, in_flight), len;
        void *memory = aligned_alloc(CACHE_LINE, ring_bytes(size));
        struct ring to, from;
        ring_format(memory, size);
        assert_int_equal(ring_attach(&to, memory, ring_bytes(size), NULL), 0);
        assert_int_equal(ring_attach(&from, memory, ring_bytes(size), NULL), 0);
        size_t most = step_most_bytes(ring_max_frame(&to), in_flight);
        assert_true(most >= (1 << 14) / 4 - 64);
        for (u32 n = 0, sent = 0; n < 20000; n++) {
            if (sent == in_flight) {
                assert_non_null(ring_peek(&from, &len));
                ring_consume(&from);
                sent--;
            }
            len = roll(3) ? most : 1 + roll((u32)most);
            assert_non_null(ring_claim(&to, len));
            ring_publish(&to, len);
            sent++;
        }
        free(memory);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_generations_never_meet, NULL, world_close),
        cmocka_unit_test_setup_teardown(test_never_starts, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_first_failure_is_told, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_age_of_a_step, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_who_hangs, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_nobody_hangs, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_silence_is_no_cause, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_results_without_end, world_open, world_close),
        cmocka_unit_test(test_room_for_steps),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("gang", tests, NULL, NULL);
}
