/* Routing: the waiting queue against a plain model, the life of a selection. Choices: test_route_policies.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "mpiserve/route.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- the queue -----------------------------------------------------------------------------------------------*/
static void test_queue_order(void **state)
{
    (void)state;
    struct route_queue q;
    struct route_waiter w[6];
    static const i64 priorities[] = {0, 5, 0, -3, 5, 0};
    static const int turn[] = {3, 0, 2, 5, 1, 4};
    route_queue_init(&q, 6);
    assert_null(route_queue_first(&q, 0));
    assert_int_equal(route_queue_deadline(&q), UINT64_MAX);
    for (u32 i = 0; i < 6; i++) {
        route_waiter_init(&w[i], priorities[i], 100 - i);
        assert_false(route_queue_holds(&q, &w[i]));
        assert_int_equal(route_queue_put(&q, &w[i], NULL), 0);
        assert_true(route_queue_holds(&q, &w[i]));
    }
    struct route_waiter more;
    struct error err = {0};
    route_waiter_init(&more, -9, 1);
    assert_int_equal(route_queue_put(&q, &more, &err), ERR_FULL);
    assert_non_null(strstr(err.message, "6"));
    route_queue_remove(&q, &more); /* was never in: nothing */
    assert_int_equal(route_queue_deadline(&q), 95);
    for (u32 k = 0; k < 6; k++) {
        assert_ptr_equal(route_queue_first(&q, 0), &w[turn[k]]);
        route_queue_remove(&q, &w[turn[k]]);
        route_queue_remove(&q, &w[turn[k]]);
    }
    assert_int_equal(q.n, 0);
    route_queue_release(&q);
}

/* Who could not be served after all comes back to the place it had. */
static void test_queue_keeps_turn(void **state)
{
    (void)state;
    struct route_queue q;
    struct route_waiter w[3];
    route_queue_init(&q, 3);
    for (u32 i = 0; i < 3; i++) {
        route_waiter_init(&w[i], 0, UINT64_MAX);
        route_queue_put(&q, &w[i], NULL);
    }
    route_queue_remove(&q, &w[0]);
    assert_int_equal(route_queue_put(&q, &w[0], NULL), 0);
    assert_ptr_equal(route_queue_first(&q, 0), &w[0]);
    assert_null(route_queue_expired(&q, UINT64_MAX - 1));
    route_queue_release(&q);
    route_queue_init(&q, 0);
    struct error err = {0};
    assert_int_equal(route_queue_put(&q, &w[1], &err), ERR_FULL);
    route_queue_release(&q);
}

/* Who waited long enough is served, every second time, whatever arrives; the others go by priority. */
static void test_queue_patience(void **state)
{
    (void)state;
    enum { PATIENCE = 100, URGENT = 8 };
    struct route_queue q;
    struct route_waiter old[3], urgent[URGENT];
    route_queue_init(&q, 3 + URGENT);
    q.patience_ns = PATIENCE;
    for (u32 i = 0; i < 3; i++) {
        route_waiter_init(&old[i], 10 - (i64)i, UINT64_MAX);
        old[i].since_ns = 1000 + i;
        route_queue_put(&q, &old[i], NULL);
    }
    for (u32 i = 0; i < URGENT; i++) {
        route_waiter_init(&urgent[i], INT64_MIN, UINT64_MAX);
        urgent[i].since_ns = 1050;
        route_queue_put(&q, &urgent[i], NULL);
    }
    /* nobody is old: priority alone */
    for (u32 i = 0; i < 2; i++) {
        assert_ptr_equal(route_queue_first(&q, 1099), &urgent[i]);
        route_queue_serve(&q, &urgent[i]);
    }
    /* one is old, later all three: by turns */
    const struct {
        u64 now;
        struct route_waiter *next;
    } rows[] = {
        {1100, &old[0]},    {1100, &urgent[2]}, {1100, &urgent[3]}, /* the second oldest is not old yet */
        {1101, &old[1]},    {1150, &urgent[4]}, {1150, &old[2]},
        {1150, &urgent[5]}, {1150, &urgent[6]}, {1150, &urgent[7]},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        assert_ptr_equal(route_queue_first(&q, rows[i].now), rows[i].next);
        route_queue_serve(&q, rows[i].next);
    }
    assert_null(route_queue_first(&q, 2000));
    route_queue_release(&q);
}

/* The bound: with k old ones before it an old waiter is served by slot 2 (k + 1) at the latest. */
static void test_queue_bound(void **state)
{
    (void)state;
    enum { OLD = 20, N = 200 };
    struct route_queue q;
    static struct route_waiter w[N];
    route_queue_init(&q, N);
    q.patience_ns = 50;
    for (u32 i = 0; i < N; i++) {
        u32 r[4];
        rng_block(5, i, 0, r);
        route_waiter_init(&w[i], i < OLD ? 1000 : (i64)(r[0] % 100) - 50, UINT64_MAX);
        w[i].since_ns = i < OLD ? 1 : 60;
        if (i < OLD + 30) route_queue_put(&q, &w[i], NULL);
    }
    u32 slots = 0, arrived = OLD + 30, by_priority = 0;
    for (u32 k = 0; k < OLD; k++) {
        while (route_queue_holds(&q, &w[k])) {
            struct route_waiter *x = route_queue_first(&q, 100);
            by_priority += x >= &w[OLD];
            route_queue_serve(&q, x);
            if (arrived < N) route_queue_put(&q, &w[arrived++], NULL); /* urgent ones never end */
            slots++;
        }
        assert_true(slots <= 2 * (k + 1));
    }
    assert_true(by_priority >= slots / 2);
    route_queue_release(&q);
}

/* Against a plain array, through a long random history. */
static void test_queue_model(void **state)
{
    (void)state;
    enum { N = 64, STEPS = 60000 };
    struct route_queue q;
    static struct route_waiter w[N];
    bool in[N] = {false};
    u64 now = 1000;
    route_queue_init(&q, N - 8);
    for (u64 step = 0; step < STEPS; step++) {
        u32 r[4], n = 0;
        rng_block(11, step, 0, r);
        now += r[3] % 5;
        u32 i = r[0] % N;
        if (r[1] % 8 == 0) {
            struct route_waiter *x = route_queue_expired(&q, now);
            if (x) {
                assert_true(x->deadline_ns <= now);
                in[x - w] = false;
            }
        } else if (in[i]) {
            route_queue_remove(&q, &w[i]);
            in[i] = false;
        } else {
            route_waiter_init(&w[i], (i64)(r[1] % 3) - 1, now + r[2] % 500);
            in[i] = route_queue_put(&q, &w[i], NULL) == 0;
        }
        const struct route_waiter *first = NULL;
        u64 deadline = UINT64_MAX;
        for (u32 k = 0; k < N; k++) {
            assert_int_equal(route_queue_holds(&q, &w[k]), in[k]);
            if (!in[k]) continue;
            n++;
            deadline = MIN_OF(deadline, w[k].deadline_ns);
            if (!first || w[k].priority < first->priority ||
                (w[k].priority == first->priority && w[k].order < first->order))
                first = &w[k];
        }
        assert_int_equal(q.n, n);
        assert_ptr_equal(route_queue_first(&q, 0), first);
        assert_int_equal(route_queue_deadline(&q), deadline);
    }
    route_queue_release(&q);
}

/* ---- selections ----------------------------------------------------------------------------------------------*/
static void test_selection(void **state)
{
    (void)state;
    struct selection s = {0};
    const struct slot_token token = {.replica = 0, .slot = 0, .epoch = 1, .seq = 0};
    assert_false(selection_holds_slot(&s));
    selection_choose(&s, 0, &token);
    assert_true(selection_holds_slot(&s));
    selection_release(&s);
    assert_false(selection_holds_slot(&s));
    selection_choose(&s, 4, &token);
    selection_dispatch(&s);
    assert_false(selection_holds_slot(&s));
    assert_int_equal(s.leader, 4);
    assert_memory_equal(&s.token, &token, sizeof token);
    selection_end(&s); /* refused by the leader: select anew */
    selection_choose(&s, 5, &token);
    assert_int_equal(s.tries, 3);
}

typedef void (*selection_act)(struct selection *s);
static void choose_again(struct selection *s)
{
    selection_choose(s, 1, &(struct slot_token){0});
}

/* What may not happen ends the process: looked at in a child. */
static void test_selection_misuse(void **state)
{
    (void)state;
    static const struct {
        u8 from;
        selection_act act;
    } rows[] = {
        {SELECTION_NONE, selection_dispatch},
        {SELECTION_NONE, selection_release},
        {SELECTION_NONE, selection_end},
        {SELECTION_CHOSEN, selection_end},
        {SELECTION_CHOSEN, choose_again},
        {SELECTION_DISPATCHED, choose_again},
        {SELECTION_DISPATCHED, selection_dispatch},
        {SELECTION_DISPATCHED, selection_release},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct selection s = {.state = rows[i].from};
        pid_t pid = fork();
        if (pid == 0) {
            signal(SIGABRT, SIG_DFL);
            close(STDERR_FILENO);
            rows[i].act(&s);
            _exit(0);
        }
        int status = 0;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT) fail_msg("row %zu was allowed", i);
    }
}

/* ---- shares --------------------------------------------------------------------------------------------------*/
/* Slots given out one by one, each to who has least of those that still want one. */
static u32 share_by_hand(u32 slots, const struct route_demand *d, u32 n, u32 self)
{
    u32 *got = mem_zero(n, sizeof *got), most = 0;
    for (u32 given = 0; given < slots; given++) {
        u32 to = UINT32_MAX;
        for (u32 i = 0; i < n; i++)
            if ((d[i].waiting || i == self) && got[i] < d[i].waiting + d[i].in_use &&
                (to == UINT32_MAX || got[i] < got[to]))
                to = i;
        if (to == UINT32_MAX) { /* enough for all */
            most = slots;
            break;
        }
        got[to]++;
        most = MAX_OF(most, got[to]);
    }
    free(got);
    return most;
}

static void test_fair_share(void **state)
{
    (void)state;
    const struct route_demand two[] = {{20, 4}, {6, 0}}, one[] = {{20, 4}, {1, 0}},
                              none[] = {{0, 3}, {0, 60}};
    assert_int_equal(route_fair_share(4, two, 2, 0), 2);
    assert_int_equal(route_fair_share(4, two, 2, 1), 2);
    assert_int_equal(route_fair_share(4, one, 2, 0), 3);
    assert_int_equal(route_fair_share(64, none, 2, 0), 64);
    assert_int_equal(route_fair_share(0, two, 2, 0), 0);
    for (u32 run = 0; run < 3000; run++) {
        struct route_demand d[9];
        u32 draw[4], n = 1 + run % 9;
        for (u32 i = 0; i < n; i++) {
            rng_block(run, i, 0, draw);
            d[i] = (struct route_demand){draw[0] % 3 ? draw[1] % 12 : 0, draw[2] % 12};
        }
        u32 slots = draw[3] % 40;
        assert_int_equal(route_fair_share(slots, d, n, run % n), share_by_hand(slots, d, n, run % n));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fair_share),       cmocka_unit_test(test_queue_order),
        cmocka_unit_test(test_queue_keeps_turn), cmocka_unit_test(test_queue_patience),
        cmocka_unit_test(test_queue_bound),      cmocka_unit_test(test_queue_model),
        cmocka_unit_test(test_selection),        cmocka_unit_test(test_selection_misuse),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("route", tests, NULL, NULL);
}
