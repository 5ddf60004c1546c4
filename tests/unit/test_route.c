/* Routing: the choice and its fairness, the waiting queue against a plain model, the life of a selection. */
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

enum { KEY = 3 };

static void make_view(struct route_view *v, u32 n)
{
    for (u32 i = 0; i < n; i++) v[i] = (struct route_view){.replica = (i32)i, .leader = i, .n_slots = 64};
}

/* ---- the choice ----------------------------------------------------------------------------------------------*/
static void test_table(void **state)
{
    (void)state;
    u32 n;
    const struct route_policy *all = route_policies(&n);
    assert_true(n >= 1);
    for (u32 i = 0; i < n; i++) assert_ptr_equal(route_policy_find(all[i].name, NULL), &all[i]);
    struct error err = {0};
    assert_null(route_policy_find("nearest", &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_non_null(strstr(err.message, "power_of_two"));
}

static void test_few(void **state)
{
    (void)state;
    struct route_view v[3];
    struct route_excluded x = {0};
    make_view(v, 3);
    for (u64 i = 0; i < 100; i++) {
        assert_int_equal(route_power_of_two(v, 0, &x, KEY, i), -1);
        assert_int_equal(route_power_of_two(v, 1, NULL, KEY, i), 0);
        v[0].ongoing = 5;
        assert_int_equal(route_power_of_two(v, 2, NULL, KEY, i),
                         1); /* both are always seen: the better one */
        v[0].ongoing = 0;
    }
    v[0].state = ROUTE_DOWN;
    v[2].state = ROUTE_DRAINING;
    v[1].ongoing = 1000; /* full or not is for the slots to say */
    for (u64 i = 0; i < 100; i++) assert_int_equal(route_power_of_two(v, 3, &x, KEY, i), 1);
    route_exclude(&x, 1);
    assert_int_equal(route_power_of_two(v, 3, &x, KEY, 1), -1);
    route_exclude_clear(&x);
    assert_int_equal(route_power_of_two(v, 3, &x, KEY, 1), 1);
}

static void test_excluded(void **state)
{
    (void)state;
    struct route_excluded x = {0};
    assert_false(route_is_excluded(&x, 0));
    route_exclude(&x, 0);
    route_exclude(&x, 0);
    route_exclude(&x, ROUTE_MAX_REPLICAS - 1);
    assert_int_equal(x.n, 2);
    assert_true(route_is_excluded(&x, 0) && route_is_excluded(&x, ROUTE_MAX_REPLICAS - 1));
    assert_false(route_is_excluded(&x, 1) || route_is_excluded(NULL, 0));
    route_exclude_clear(&x);
    assert_int_equal(x.n, 0);
    assert_false(route_is_excluded(&x, 0));
    /* excluding the refused ones visits every replica once */
    enum { N = 200 };
    static struct route_view v[N];
    make_view(v, N);
    bool seen[N] = {false};
    for (u32 k = 0; k < N; k++) {
        i32 i = route_power_of_two(v, N, &x, KEY, 1000 + k);
        assert_in_range(i, 0, N - 1);
        assert_false(seen[i]);
        seen[i] = true;
        route_exclude(&x, (u32)i);
    }
    assert_int_equal(route_power_of_two(v, N, &x, KEY, 1), -1);
}

/* Equal replicas get equal shares, also with some down; the least loaded of n is taken with 2/n, the most loaded never. */
static void test_shares(void **state)
{
    (void)state;
    enum { N = 8, DRAWS = 80000 };
    struct route_view v[N];
    make_view(v, N);
    u32 count[N] = {0};
    for (u64 i = 0; i < DRAWS; i++) count[route_power_of_two(v, N, NULL, KEY, i)]++;
    for (u32 i = 0; i < N; i++) assert_in_range(count[i], DRAWS / N * 95 / 100, DRAWS / N * 105 / 100);
    memset(count, 0, sizeof count);
    for (u32 i = 0; i < N; i++) v[i].ongoing = i;
    for (u64 i = 0; i < DRAWS; i++) count[route_power_of_two(v, N, NULL, KEY, i)]++;
    assert_in_range(count[0], DRAWS * 2 / N * 95 / 100, DRAWS * 2 / N * 105 / 100);
    assert_int_equal(count[N - 1], 0);
    memset(count, 0, sizeof count);
    make_view(v, N);
    v[2].state = v[5].state = v[6].state = ROUTE_DOWN;
    for (u64 i = 0; i < DRAWS; i++) count[route_power_of_two(v, N, NULL, KEY, i)]++;
    assert_int_equal(count[2] + count[5] + count[6], 0);
    for (u32 i = 0; i < N; i++)
        if (v[i].state == ROUTE_UP) assert_in_range(count[i], DRAWS / 5 * 90 / 100, DRAWS / 5 * 110 / 100);
}

static void test_pure(void **state)
{
    (void)state;
    struct route_view v[16];
    make_view(v, 16);
    u32 same = 0;
    for (u64 i = 0; i < 1000; i++) {
        assert_int_equal(route_power_of_two(v, 16, NULL, KEY, i), route_power_of_two(v, 16, NULL, KEY, i));
        same += route_power_of_two(v, 16, NULL, KEY, i) == route_power_of_two(v, 16, NULL, KEY + 1, i);
    }
    assert_in_range(same, 20, 150); /* ingresses draw on their own */
}

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_few),
        cmocka_unit_test(test_excluded),
        cmocka_unit_test(test_shares),
        cmocka_unit_test(test_pure),
        cmocka_unit_test(test_queue_order),
        cmocka_unit_test(test_queue_keeps_turn),
        cmocka_unit_test(test_queue_patience),
        cmocka_unit_test(test_queue_bound),
        cmocka_unit_test(test_queue_model),
        cmocka_unit_test(test_selection),
        cmocka_unit_test(test_selection_misuse),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("route", tests, NULL, NULL);
}
