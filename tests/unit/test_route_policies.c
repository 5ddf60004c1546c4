/* Routing policies: what all of them keep, and each against what it promises. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "mpiserve/route.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEY = 3, SLOTS = 64, BLOCKS = 64 };

static struct route_view *make_views(u32 n)
{
    struct route_view *v = mem_zero(n + 1, sizeof *v);
    for (u32 i = 0; i < n; i++) v[i] = (struct route_view){.replica = (i32)i, .leader = i, .n_slots = SLOTS};
    return v;
}

static struct router *make(const char *policy, const struct route_view *v, u32 n, u64 key)
{
    const struct route_policy *p = route_policy_find(policy, NULL);
    assert_non_null(p);
    return router_new(p, v, n, key, BLOCKS);
}

static void set_ongoing(struct router *r, struct route_view *v, u32 i, u32 ongoing)
{
    v[i].ongoing = ongoing;
    router_update(r, i);
}

static void set_state(struct router *r, struct route_view *v, u32 i, enum route_state state)
{
    v[i].state = (u8)state;
    router_update(r, i);
}

static u32 draw(u64 i, u32 below)
{
    u32 x[4];
    rng_block(77, i, 0, x);
    return (u32)((u64)x[0] * below >> 32);
}

/* A request of a session, all that routers can know of it: sessions share parts of their prompts. Good until the next call. */
static struct route_ask session(u64 id)
{
    static u64 prefix[6];
    for (u64 k = 0; k < COUNT_OF(prefix); k++) {
        const u64 of[] = {k < 2 ? 0 : k < 4 ? id / 8 : id, k};
        prefix[k] = hash_bytes(of, sizeof of, 0);
    }
    return (struct route_ask){
        .has_session = true, .session = id, .prefix = prefix, .n_prefix = COUNT_OF(prefix)};
}

/* ---- all of them ----------------------------------------------------------------------------------------------*/
static void test_table(void **state)
{
    (void)state;
    static const char *const names[] = {"power_of_two", "least_loaded", "round_robin",
                                        "session",      "prefix_aware", "random"};
    struct error err = {0};
    assert_null(route_policy_find("nearest", &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    for (u32 i = 0; i < COUNT_OF(names); i++) {
        assert_string_equal(route_policy_name(route_policy_at(i)), names[i]);
        assert_true(strlen(route_policy_help(route_policy_at(i))) > 10);
        assert_ptr_equal(route_policy_find(names[i], NULL), route_policy_at(i));
        assert_non_null(strstr(err.message, names[i]));
    }
    assert_null(route_policy_at(COUNT_OF(names)));
}

static void few(const char *policy)
{
    struct route_view *v = make_views(3);
    struct route_ask ask = session(0);
    struct router *r = make(policy, v, 0, KEY);
    assert_int_equal(router_choose(r, &ask), -1);
    router_round(r);
    router_free(r);
    r = make(policy, v, 1, KEY);
    for (int i = 0; i < 100; i++) assert_int_equal(router_choose(r, NULL), 0);
    router_free(r);
    r = make(policy, v, 3, KEY);
    set_state(r, v, 0, ROUTE_DOWN);
    set_state(r, v, 2, ROUTE_DRAINING);
    set_ongoing(r, v, 1, 1000); /* full or not is for the slots to say */
    for (int i = 0; i < 100; i++) assert_int_equal(router_choose(r, i % 2 ? &ask : NULL), 1);
    router_exclude(r, 1);
    router_exclude(r, 1);
    assert_int_equal(router_choose(r, &ask), -1);
    set_ongoing(r, v, 1, 5); /* news of a refused one do not bring it back */
    assert_int_equal(router_choose(r, NULL), -1);
    set_state(r, v, 1, ROUTE_DOWN);
    router_round(r);
    assert_int_equal(router_choose(r, &ask), -1);
    set_state(r, v, 1, ROUTE_UP);
    assert_int_equal(router_choose(r, &ask), 1);
    router_free(r);
    free(v);
}

static void test_few(void **state)
{
    (void)state;
    for (u32 p = 0; route_policy_at(p); p++) few(route_policy_name(route_policy_at(p)));
}

/* Excluding the refused ones visits every replica that is up once, whatever the policy; then nobody is left. */
static void visits_all(const char *policy)
{
    enum { N = 300, DOWN = 40 };
    struct route_view *v = make_views(N);
    for (u32 i = 0; i < N; i++) v[i].ongoing = draw(i, SLOTS + 1);
    for (u32 i = 0; i < DOWN; i++) v[i * 7].state = i % 2 ? ROUTE_DOWN : ROUTE_DRAINING;
    struct router *r = make(policy, v, N, KEY);
    for (u64 round = 0; round < 20; round++) {
        bool seen[N] = {false};
        struct route_ask ask = session(round);
        router_round(r);
        for (u32 k = 0; k < N - DOWN; k++) {
            i32 i = router_choose(r, round % 2 ? &ask : NULL);
            assert_in_range(i, 0, N - 1);
            assert_false(seen[i]);
            assert_int_equal(v[i].state, ROUTE_UP);
            seen[i] = true;
            router_chosen(r, (u32)i, &ask);
            router_exclude(r, (u32)i);
        }
        assert_int_equal(router_choose(r, &ask), -1);
        assert_int_equal(router_choose(r, NULL), -1);
    }
    router_free(r);
    free(v);
}

static void test_exclusion(void **state)
{
    (void)state;
    for (u32 p = 0; route_policy_at(p); p++) visits_all(route_policy_name(route_policy_at(p)));
}

/* A long random history: states, loads, refusals. Never one that is down or refused; -1 only when there is none; and the same
 * history gives the same choices. */
static void history(const char *policy, u64 key, i32 *choices, u32 steps)
{
    enum { N = 130 };
    struct route_view *v = make_views(N);
    struct router *r = make(policy, v, N, key);
    bool refused[N] = {false};
    for (u32 step = 0; step < steps; step++) {
        u32 i = draw(4ull * step, N), what = draw(4ull * step + 1, 8), by = draw(4ull * step + 2, SLOTS + 1);
        if (step % 3000 > 2900) what = 1; /* now and then most of them go down */
        if (what == 0) set_state(r, v, i, ROUTE_UP);
        if (what == 1) set_state(r, v, i, by % 2 ? ROUTE_DOWN : ROUTE_DRAINING);
        if (what == 2 && by % 4 == 0) {
            router_round(r);
            memset(refused, 0, sizeof refused);
        }
        if (what == 3 || what == 4) set_ongoing(r, v, i, by);
        struct route_ask ask = session(draw(4ull * step + 3, 50));
        if (what == 4) router_prefix_add(r, i, ask.prefix[by % ask.n_prefix]);
        if (what == 5) router_prefix_remove(r, i, ask.prefix[by % ask.n_prefix]);
        if (what == 6 && by == 0) router_prefix_clear(r, i);
        i32 c = choices[step] = router_choose(r, what % 2 ? &ask : NULL);
        bool any = false;
        for (u32 k = 0; k < N; k++) any |= v[k].state == ROUTE_UP && !refused[k];
        assert_int_equal(c >= 0, any);
        if (c < 0) continue;
        assert_true(c < N && v[c].state == ROUTE_UP && !refused[c]);
        if (what == 5) {
            refused[c] = true;
            router_exclude(r, (u32)c);
        } else if (what > 5) {
            router_chosen(r, (u32)c, &ask);
            set_ongoing(r, v, (u32)c, v[c].ongoing + 1);
        }
    }
    router_free(r);
    free(v);
}

static void test_history(void **state)
{
    (void)state;
    enum { STEPS = 20000 };
    static i32 first[STEPS], again[STEPS];
    for (u32 p = 0; route_policy_at(p); p++) {
        const char *name = route_policy_name(route_policy_at(p));
        history(name, KEY, first, STEPS);
        history(name, KEY, again, STEPS);
        assert_memory_equal(first, again, sizeof first);
    }
}

/* As many as the door allows. */
static void test_many(void **state)
{
    (void)state;
    struct route_view *v = make_views(ROUTE_MAX_REPLICAS);
    for (u32 p = 0; route_policy_at(p); p++) {
        struct router *r = make(route_policy_name(route_policy_at(p)), v, ROUTE_MAX_REPLICAS, KEY);
        for (u32 i = 0; i < ROUTE_MAX_REPLICAS; i++)
            if (i != 70 && i != ROUTE_MAX_REPLICAS - 1) set_state(r, v, i, ROUTE_DOWN);
        struct route_ask ask = session(5);
        router_chosen(r, ROUTE_MAX_REPLICAS - 1, &ask);
        i32 a = router_choose(r, &ask);
        router_exclude(r, (u32)a);
        i32 b = router_choose(r, &ask);
        assert_int_equal(a + b, 70 + ROUTE_MAX_REPLICAS - 1);
        for (u32 i = 0; i < ROUTE_MAX_REPLICAS; i++) set_state(r, v, i, ROUTE_UP);
        router_free(r);
    }
    free(v);
}

/* ---- those that draw ------------------------------------------------------------------------------------------*/
enum { FEW = 8, DRAWS = 80000 };
static void count_draws(struct router *r, u32 count[FEW])
{
    memset(count, 0, FEW * sizeof *count);
    for (u64 i = 0; i < DRAWS; i++) count[router_choose(r, NULL)]++;
}

static void test_power_of_two_shares(void **state)
{
    (void)state;
    struct route_view *v = make_views(FEW);
    struct router *r = make("power_of_two", v, FEW, KEY);
    u32 count[FEW];
    count_draws(r, count);
    for (u32 i = 0; i < FEW; i++) assert_in_range(count[i], DRAWS / FEW * 95 / 100, DRAWS / FEW * 105 / 100);
    for (u32 i = 0; i < FEW; i++) set_ongoing(r, v, i, i);
    count_draws(r, count); /* the least loaded of n is taken with 2/n, the most loaded never */
    assert_in_range(count[0], DRAWS * 2 / FEW * 95 / 100, DRAWS * 2 / FEW * 105 / 100);
    assert_int_equal(count[FEW - 1], 0);
    for (u32 i = 0; i < FEW; i++) {
        set_ongoing(r, v, i, 0);
        set_state(r, v, i, i == 2 || i == 5 || i == 6 ? ROUTE_DOWN : ROUTE_UP);
    }
    count_draws(r, count);
    for (u32 i = 0; i < FEW; i++)
        if (v[i].state == ROUTE_UP)
            assert_in_range(count[i], DRAWS / 5 * 95 / 100, DRAWS / 5 * 105 / 100);
        else
            assert_int_equal(count[i], 0);
    router_free(r);
    free(v);
}

/* Home takes what comes while it is idle and eligible, and is a replica like others when it is not. */
static void test_power_of_two_home(void **state)
{
    (void)state;
    struct route_view *v = make_views(FEW);
    v[3].home = true;
    struct router *r = make("power_of_two", v, FEW, KEY);
    u32 count[FEW];
    count_draws(r, count);
    assert_int_equal(count[3], DRAWS);
    set_ongoing(r, v, 3, 1);
    count_draws(r, count);
    assert_int_equal(count[3], 0);
    for (u32 i = 0; i < FEW; i++) set_ongoing(r, v, i, 1);
    count_draws(r, count);
    for (u32 i = 0; i < FEW; i++) assert_in_range(count[i], DRAWS / FEW * 95 / 100, DRAWS / FEW * 105 / 100);
    set_ongoing(r, v, 3, 0);
    set_state(r, v, 3, ROUTE_FULL);
    count_draws(r, count);
    assert_int_equal(count[3], 0);
    set_state(r, v, 3, ROUTE_UP);
    router_exclude(r, 3);
    assert_int_not_equal(router_choose(r, NULL), 3);
    router_round(r);
    assert_int_equal(router_choose(r, NULL), 3);
    router_free(r);
    free(v);
}

static void test_random_shares(void **state)
{
    (void)state;
    struct route_view *v = make_views(FEW);
    struct router *r = make("random", v, FEW, KEY);
    u32 count[FEW];
    for (u32 i = 0; i < FEW; i++) set_ongoing(r, v, i, i * 9); /* whatever the load */
    set_state(r, v, 0, ROUTE_DOWN);
    router_exclude(r, 4);
    count_draws(r, count);
    for (u32 i = 0; i < FEW; i++)
        if (i % 4)
            assert_in_range(count[i], DRAWS / 6 * 95 / 100, DRAWS / 6 * 105 / 100);
        else
            assert_int_equal(count[i], 0);
    router_free(r);
    free(v);
}

/* Ingresses draw on their own. */
static void test_keys_differ(void **state)
{
    (void)state;
    static const char *const names[] = {"power_of_two", "least_loaded", "prefix_aware", "random"};
    struct route_view *v = make_views(16);
    for (size_t p = 0; p < COUNT_OF(names); p++) {
        struct router *a = make(names[p], v, 16, KEY), *b = make(names[p], v, 16, KEY + 1);
        u32 same = 0;
        for (u64 i = 0; i < 1000; i++) same += router_choose(a, NULL) == router_choose(b, NULL);
        assert_in_range(same, 20, 150);
        router_free(a);
        router_free(b);
    }
    free(v);
}

/* ---- round robin ----------------------------------------------------------------------------------------------*/
static void test_round_robin(void **state)
{
    (void)state;
    enum { N = 200 };
    struct route_view *v = make_views(N);
    struct router *r = make("round_robin", v, N, 0);
    for (u32 i = 0; i < 3 * N; i++) assert_int_equal(router_choose(r, NULL), i % N);
    for (u32 i = 0; i < N; i++)
        if (i % 50 != 7) set_state(r, v, i, ROUTE_DOWN);
    static const i32 turn[] = {7, 57, 107, 157, 7, 57};
    for (size_t i = 0; i < COUNT_OF(turn); i++) assert_int_equal(router_choose(r, NULL), turn[i]);
    router_exclude(r, 107); /* refused: the next one; another request finds it in its turn */
    assert_int_equal(router_choose(r, NULL), 157);
    router_round(r);
    assert_int_equal(router_choose(r, NULL), 7);
    assert_int_equal(router_choose(r, NULL), 57);
    assert_int_equal(router_choose(r, NULL), 107);
    router_free(r);
    r = make("round_robin", v, N, 150);
    assert_int_equal(router_choose(r, NULL), 157);
    router_free(r);
    free(v);
}

/* ---- least loaded ---------------------------------------------------------------------------------------------*/
/* Against a look at all of them, through a long random history. */
static void test_least_loaded_oracle(void **state)
{
    (void)state;
    enum { N = 97, STEPS = 100000 };
    struct route_view *v = make_views(N);
    struct router *r = make("least_loaded", v, N, KEY);
    bool refused[N] = {false};
    for (u64 step = 0; step < STEPS; step++) {
        u32 i = draw(3 * step, N), what = draw(3 * step + 1, 10), by = draw(3 * step + 2, SLOTS + 1);
        if (what == 0) set_state(r, v, i, by % 8 ? ROUTE_UP : ROUTE_DOWN);
        if (what == 1) set_ongoing(r, v, i, by);
        if (what == 2 && v[i].ongoing) set_ongoing(r, v, i, v[i].ongoing - 1);
        if (what == 3 && by % 8 == 0) {
            router_round(r);
            memset(refused, 0, sizeof refused);
        }
        u32 least = UINT32_MAX;
        for (u32 k = 0; k < N; k++)
            if (v[k].state == ROUTE_UP && !refused[k]) least = MIN_OF(least, v[k].ongoing);
        i32 c = router_choose(r, NULL);
        if (least == UINT32_MAX) {
            assert_int_equal(c, -1);
            continue;
        }
        assert_in_range(c, 0, N - 1);
        assert_int_equal(v[c].ongoing, least);
        assert_true(v[c].state == ROUTE_UP && !refused[c]);
        if (what == 4) {
            refused[c] = true;
            router_exclude(r, (u32)c);
        } else if (v[c].ongoing < SLOTS) {
            set_ongoing(r, v, (u32)c, v[c].ongoing + 1);
        }
    }
    router_free(r);
    free(v);
}

static void test_least_loaded_ties(void **state)
{
    (void)state;
    struct route_view *v = make_views(FEW);
    struct router *r = make("least_loaded", v, FEW, KEY);
    u32 count[FEW];
    for (u32 i = 0; i < FEW; i++) set_ongoing(r, v, i, 3 + (i % 2));
    count_draws(r, count);
    for (u32 i = 0; i < FEW; i++)
        if (i % 2)
            assert_int_equal(count[i], 0);
        else
            assert_in_range(count[i], DRAWS / 4 * 95 / 100, DRAWS / 4 * 105 / 100);
    router_free(r);
    free(v);
}

/* ---- sessions -------------------------------------------------------------------------------------------------*/
static void test_session_stays(void **state)
{
    (void)state;
    enum { N = 50, SESSIONS = 5000 };
    struct route_view *v = make_views(N);
    struct router *r = make("session", v, N, KEY), *other = make("session", v, N, KEY + 9);
    static i32 home[SESSIONS];
    u32 count[N] = {0}, moved = 0, gone = 17;
    for (u64 s = 0; s < SESSIONS; s++) {
        struct route_ask ask = session(s);
        home[s] = router_choose(r, &ask);
        count[home[s]]++;
        assert_int_equal(router_choose(r, &ask), home[s]);
        assert_int_equal(router_choose(other, &ask), home[s]); /* every ingress agrees */
    }
    for (u32 i = 0; i < N; i++) assert_in_range(count[i], SESSIONS / N / 2, SESSIONS / N * 2);
    set_state(r, v, gone, ROUTE_DOWN);
    for (u64 s = 0; s < SESSIONS; s++) {
        struct route_ask ask = session(s);
        i32 i = router_choose(r, &ask);
        if (home[s] == (i32)gone)
            moved += i != (i32)gone;
        else
            assert_int_equal(i, home[s]);
    }
    assert_int_equal(moved, count[gone]);
    set_state(r, v, gone, ROUTE_UP);
    for (u64 s = 0; s < SESSIONS; s++) {
        struct route_ask ask = session(s);
        assert_int_equal(router_choose(r, &ask), home[s]);
        router_exclude(r, (u32)home[s]); /* refused: another one, and back with the next request */
        assert_true(router_choose(r, &ask) != home[s]);
        router_round(r);
        assert_int_equal(router_choose(r, &ask), home[s]);
    }
    router_free(r);
    router_free(other);
    free(v);
}

/* No choice takes a replica above ceil(1.25 * mean), the new request among them; who is not above it stays at home, where an idle
 * router sends its session. */
static void test_session_bound(void **state)
{
    (void)state;
    enum { N = 64, STEPS = 40000 };
    struct route_view *v = make_views(N);
    struct route_view *idle_v = make_views(N);
    struct router *r = make("session", v, N, KEY), *idle = make("session", idle_v, N, KEY);
    static u32 where[STEPS];
    u64 total = 0;
    for (u64 step = 0; step < STEPS; step++) {
        struct route_ask ask = session(draw(2 * step, 9)); /* a few hot ones */
        if (step == STEPS / 2) {
            set_state(r, v, 3, ROUTE_DOWN);
            set_state(idle, idle_v, 3, ROUTE_DOWN);
        }
        i32 i = router_choose(r, &ask), home = router_choose(idle, &ask);
        u64 ongoing = total - (v[3].state == ROUTE_DOWN ? v[3].ongoing : 0);
        u64 n = N - (v[3].state == ROUTE_DOWN);
        u64 bound = (5 * (ongoing + 1) + 4 * n - 1) / (4 * n);
        assert_true(v[i].ongoing + 1 <= bound);
        assert_int_equal(i == home, v[home].ongoing + 1 <= bound);
        set_ongoing(r, v, (u32)i, v[i].ongoing + 1);
        where[step] = (u32)i;
        total++;
        if (step >= 500) { /* an end for each begin */
            u32 end = where[step - 500];
            set_ongoing(r, v, end, v[end].ongoing - 1);
            total--;
        }
    }
    router_free(r);
    router_free(idle);
    free(v);
    free(idle_v);
}

/* The mean is that of the eligible alone, whatever happens to the others. */
static void test_session_mean(void **state)
{
    (void)state;
    struct route_view *v = make_views(4);
    struct router *r = make("session", v, 4, KEY);
    struct route_ask ask = session(1);
    i32 home = router_choose(r, &ask);
    u32 down = ((u32)home + 1) % 4;
    set_state(r, v, down, ROUTE_DOWN);
    set_ongoing(r, v, down, 1000);
    assert_int_equal(router_choose(r, &ask), home); /* ceil(1.25 * 1 / 3) = 1 */
    set_ongoing(r, v, (u32)home, 1);
    i32 next = router_choose(r, &ask); /* ceil(1.25 * 2 / 3) = 1 */
    assert_true(next != home && next != (i32)down);
    set_ongoing(r, v, down, 1);
    set_state(r, v, down, ROUTE_UP);
    set_ongoing(r, v, (u32)next, 1);
    set_ongoing(r, v, down, 0);
    set_ongoing(r, v, down, 1); /* ceil(1.25 * 4 / 4) = 2 */
    assert_int_equal(router_choose(r, &ask), home);
    router_free(r);
    free(v);
}

/* Without a session it is power_of_two. 0 is a session like any other. */
static void test_session_absent(void **state)
{
    (void)state;
    struct route_view *v = make_views(FEW);
    struct router *r = make("session", v, FEW, KEY), *two = make("power_of_two", v, FEW, KEY);
    struct route_ask none = {.session = 5}, zero = session(0);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(router_choose(r, i % 2 ? &none : NULL), router_choose(two, NULL));
    i32 home = router_choose(r, &zero);
    for (int i = 0; i < 100; i++) assert_int_equal(router_choose(r, &zero), home);
    router_free(r);
    router_free(two);
    free(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_few),
        cmocka_unit_test(test_exclusion),
        cmocka_unit_test(test_history),
        cmocka_unit_test(test_many),
        cmocka_unit_test(test_power_of_two_shares),
        cmocka_unit_test(test_power_of_two_home),
        cmocka_unit_test(test_random_shares),
        cmocka_unit_test(test_keys_differ),
        cmocka_unit_test(test_round_robin),
        cmocka_unit_test(test_least_loaded_oracle),
        cmocka_unit_test(test_least_loaded_ties),
        cmocka_unit_test(test_session_stays),
        cmocka_unit_test(test_session_bound),
        cmocka_unit_test(test_session_mean),
        cmocka_unit_test(test_session_absent),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("route policies", tests, NULL, NULL);
}
