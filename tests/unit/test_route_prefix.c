/* The router prefix_aware: whom it finds, when load is more important, and what it forgets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "mpiserve/route.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

enum { KEY = 5, SLOTS = 64, MANY = 1024, LONG = 64 };

struct fixture {
    struct route_view *views;
    struct router *router, *two; /* prefix_aware, and power_of_two with the same draws */
};

static struct fixture make(u32 n, u32 blocks)
{
    struct fixture f = {.views = mem_zero(n, sizeof *f.views)};
    for (u32 i = 0; i < n; i++)
        f.views[i] = (struct route_view){.replica = (i32)i, .leader = i, .n_slots = SLOTS};
    f.router = router_new(route_policy_find("prefix_aware", NULL), f.views, n, KEY, blocks);
    f.two = router_new(route_policy_find("power_of_two", NULL), f.views, n, KEY, blocks);
    return f;
}

static void release(struct fixture *f)
{
    router_free(f->router);
    router_free(f->two);
    free(f->views);
}

static void update(struct fixture *f, u32 i, u32 ongoing, enum route_state state)
{
    f->views[i].ongoing = ongoing;
    f->views[i].state = (u8)state;
    router_update(f->router, i);
    router_update(f->two, i);
}

static u32 draw(u64 i, u32 below)
{
    u32 x[4];
    rng_block(99, i, 0, x);
    return (u32)((u64)x[0] * below >> 32);
}

/* Prompts of n blocks; those of two texts are equal in the blocks below `common`. The hashes are good until the next call. */
static struct route_ask prompt(u64 text, u32 common, u32 n)
{
    static u64 hashes[LONG];
    for (u32 k = 0; k < n; k++) {
        const u64 of[] = {k < common ? 0 : text, k};
        hashes[k] = hash_bytes(of, sizeof of, 0);
    }
    return (struct route_ask){.prefix = hashes, .n_prefix = n};
}

static void add(struct fixture *f, u32 i, const struct route_ask *ask, u32 from, u32 to)
{
    for (u32 k = from; k < to; k++) router_prefix_add(f->router, i, ask->prefix[k]);
}

/* The choice, and whether it was one of power_of_two. */
static i32 choose(struct fixture *f, const struct route_ask *ask, bool *drawn)
{
    i32 i = router_choose(f->router, ask);
    *drawn = router_choose(f->two, NULL) == i;
    return i;
}

#define FOUND(f, ask) router_choose((f)->router, ask)
/* None of the few choices need differ from those of power_of_two; of 40 in a row one would. */
static void expect_drawn(struct fixture *f, const struct route_ask *ask)
{
    for (int i = 0; i < 40; i++) {
        bool drawn;
        choose(f, ask, &drawn);
        assert_true(drawn);
    }
}

static void expect(struct fixture *f, const struct route_ask *ask, i32 wanted)
{
    bool drawn;
    for (int i = 0; i < 10; i++) assert_int_equal(choose(f, ask, &drawn), wanted);
}

/* ---- whom it finds --------------------------------------------------------------------------------------------------------*/
static void test_longest(void **state)
{
    (void)state;
    struct fixture f = make(50, MANY);
    struct route_ask ask = prompt(1, 0, 20), other = {0};
    expect_drawn(&f, &ask);
    expect_drawn(&f, &other);
    expect_drawn(&f, NULL);
    add(&f, 7, &ask, 0, 5);
    expect(&f, &ask, 7);
    add(&f, 9, &ask, 0, 8);
    expect(&f, &ask, 9);
    add(&f, 11, &ask, 0, 8); /* as much; of these the one with fewer ongoing */
    update(&f, 9, 2, ROUTE_UP);
    update(&f, 11, 1, ROUTE_UP);
    expect(&f, &ask, 11);
    update(&f, 9, 0, ROUTE_UP);
    expect(&f, &ask, 9);
    ask = prompt(2, 3, 20); /* the first three blocks are others' too */
    add(&f, 20, &ask, 0, 3);
    ask = prompt(3, 3, 20);
    expect(&f, &ask, 20);
    ask = prompt(1, 0, 3);
    expect(&f, &ask,
           11 - 2); /* all three of 7, 9, 11 hold it: 9 and 7 have none ongoing, and 9 was used last */
    release(&f);
}

/* Whoever lacks a block counts up to there, whatever lies behind. */
static void test_hole(void **state)
{
    (void)state;
    struct fixture f = make(50, MANY);
    struct route_ask ask = prompt(1, 0, 20);
    add(&f, 3, &ask, 0, 20);
    add(&f, 4, &ask, 0, 6);
    expect(&f, &ask, 3);
    router_prefix_remove(f.router, 3, ask.prefix[5]);
    router_prefix_remove(f.router, 3, ask.prefix[5]); /* twice is once */
    expect(&f, &ask, 4);
    router_prefix_remove(f.router, 4, ask.prefix[4]);
    expect(&f, &ask, 3);
    router_prefix_remove(f.router, 3, ask.prefix[0]);
    expect(&f, &ask, 4);
    router_prefix_remove(f.router, 4, ask.prefix[0]);
    expect_drawn(&f, &ask);
    router_prefix_add(f.router, 3, ask.prefix[0]);
    router_prefix_add(f.router, 3, ask.prefix[5]);
    expect(&f, &ask, 3);
    release(&f);
}

static void test_not_eligible(void **state)
{
    (void)state;
    struct fixture f = make(50, MANY);
    struct route_ask ask = prompt(1, 0, 10);
    add(&f, 3, &ask, 0, 10);
    add(&f, 4, &ask, 0, 5);
    update(&f, 3, 0, ROUTE_DRAINING);
    expect(&f, &ask, 4);
    update(&f, 3, 0, ROUTE_UP);
    router_exclude(f.router, 3);
    expect(&f, &ask, 4);
    router_exclude(f.router, 4);
    for (int i = 0; i < 100; i++) assert_true(FOUND(&f, &ask) != 3 && FOUND(&f, &ask) != 4);
    router_round(f.router);
    assert_int_equal(FOUND(&f, &ask), 3);
    release(&f);
}

/* A match of less than a tenth is not worth it. */
static void test_worth(void **state)
{
    (void)state;
    struct fixture f = make(50, MANY);
    struct route_ask ask = prompt(1, 0, 41);
    add(&f, 3, &ask, 0, 4);
    expect_drawn(&f, &ask);
    add(&f, 3, &ask, 4, 5);
    expect(&f, &ask, 3);
    release(&f);
}

/* A system prompt that is everywhere hides no conversation: the index knows a few holders of it only. */
static void test_popular(void **state)
{
    (void)state;
    enum { N = 200, COMMON = 6 };
    struct fixture f = make(N, MANY);
    for (u32 i = 0; i < N; i++) {
        struct route_ask ask = prompt(i + 1, COMMON, 12);
        router_chosen(f.router, i, &ask);
    }
    for (u32 i = 0; i < N; i++) {
        struct route_ask ask = prompt(i + 1, COMMON, 14);
        expect(&f, &ask, (i32)i);
    }
    u32 count[N] = {0}, holders = 0;
    struct route_ask fresh = prompt(N + 1, COMMON, 14);
    for (u32 i = 0; i < 1000; i++) { /* a new conversation: the less busy of those who are known */
        u32 k = (u32)FOUND(&f, &fresh);
        update(&f, k, f.views[k].ongoing + 1, ROUTE_UP);
        count[k]++;
    }
    for (u32 i = 0; i < N; i++) holders += count[i] >= 10;
    assert_int_equal(holders, ROUTE_PREFIX_HOLDERS);
    release(&f);
}

/* Of a popular block the less busy holders are remembered. */
static void test_popular_holders(void **state)
{
    (void)state;
    enum { N = 40 };
    struct fixture f = make(N, MANY);
    struct route_ask ask = prompt(1, 0, 4);
    for (u32 i = 0; i < N; i++) update(&f, i, 20 + i % 10, ROUTE_UP);
    for (u32 i = 0; i < N; i++) add(&f, i, &ask, 0, 4);
    for (u32 k = 0; k < ROUTE_PREFIX_HOLDERS; k++) { /* 4 with 20, 4 with 21 */
        i32 i = FOUND(&f, &ask);
        assert_int_equal(f.views[i].ongoing, 20 + k / 4);
        router_exclude(f.router, (u32)i);
    }
    router_round(f.router);
    for (u32 i = 0; i < N; i++)
        if (i % 10 < 2) update(&f, i, 20, ROUTE_DOWN);
    update(&f, 39, 60, ROUTE_UP);
    add(&f, 39, &ask, 0, 4); /* busier than all, but these are down */
    update(&f, 39, 20, ROUTE_UP);
    expect(&f, &ask, 39);
    release(&f);
}

/* ---- a burst --------------------------------------------------------------------------------------------------------------*/
static void test_burst(void **state)
{
    (void)state;
    enum { N = 100, BURST = 9 }; /* mean 0.09: more than 8 + mean is too much */
    struct fixture f = make(N, MANY);
    struct route_ask ask = prompt(1, 0, 10);
    i32 home = FOUND(&f, &ask);
    router_chosen(f.router, (u32)home, &ask);
    update(&f, (u32)home, 1, ROUTE_UP);
    for (u32 i = 1; i < BURST - 1; i++) {
        assert_int_equal(FOUND(&f, &ask), home);
        router_chosen(f.router, (u32)home, &ask);
        update(&f, (u32)home, f.views[home].ongoing + 1, ROUTE_UP);
    }
    i32 next = FOUND(&f, &ask);
    assert_true(next != home);
    router_chosen(f.router, (u32)next, &ask);
    update(&f, (u32)next, 1, ROUTE_UP);
    expect(&f, &ask, next); /* it holds it, too */
    release(&f);
}

/* Whatever was asked last: chosen notes what was sent, from the first block on. */
static void test_chosen(void **state)
{
    (void)state;
    struct fixture f = make(50, MANY);
    struct route_ask ask = prompt(1, 0, 10);
    router_chosen(f.router, 3, &ask); /* a slot that was reserved before: nobody chose */
    expect(&f, &ask, 3);
    ask = prompt(1, 0, 12);
    assert_int_equal(FOUND(&f, &ask), 3);
    router_chosen(f.router, 4, &ask); /* 3 refused */
    update(&f, 3, 0, ROUTE_DOWN);
    expect(&f, &ask, 4);
    ask = prompt(2, 0, 12);
    router_chosen(f.router, 4, &ask); /* another one than the last that was asked */
    expect(&f, &ask, 4);
    router_prefix_remove(f.router, 4, ask.prefix[2]); /* between choice and dispatch */
    router_chosen(f.router, 4, &ask);
    router_chosen(f.router, 5, &(struct route_ask){.prefix = ask.prefix, .n_prefix = 4});
    expect(&f, &ask, 4);
    router_prefix_clear(f.router, 4);
    router_chosen(f.router, 4, &ask);
    expect(&f, &ask, 4);
    router_chosen(f.router, 5, NULL);
    release(&f);
}

/* ---- load -----------------------------------------------------------------------------------------------------------------*/
/* Both thresholds: against slots, and against the mean. */
static void test_overloaded(void **state)
{
    (void)state;
    enum { N = 100 };
    struct fixture f = make(N, MANY);
    struct route_ask ask = prompt(1, 0, 10);
    add(&f, 0, &ask, 0, 10);
    static const struct {
        u32 others, here;
        bool stays;
    } cases[] = {{0, 7, true},    {0, 8, false},  {40, 58, true},
                 {40, 61, false}, {10, 17, true}, {10, 19, false}};
    for (size_t c = 0; c < COUNT_OF(cases); c++) {
        for (u32 i = 1; i < N; i++) update(&f, i, cases[c].others, ROUTE_UP);
        update(&f, 0, cases[c].here, ROUTE_UP);
        bool drawn;
        if (cases[c].stays)
            expect(&f, &ask, 0);
        else
            for (int k = 0; k < 40; k++) assert_true(choose(&f, &ask, &drawn) != 0 && drawn);
    }
    for (u32 i = 0; i < N; i++) { /* 1 slot: whoever is busy is overloaded */
        f.views[i].n_slots = 1;
        update(&f, i, 0, ROUTE_UP);
    }
    expect(&f, &ask, 0);
    update(&f, 0, 1, ROUTE_UP);
    assert_true(FOUND(&f, &ask) != 0);
    release(&f);
}

/* Then the next best prefix comes before a draw. */
static void test_overloaded_next(void **state)
{
    (void)state;
    struct fixture f = make(100, MANY);
    struct route_ask ask = prompt(1, 0, 12);
    add(&f, 1, &ask, 0, 12);
    add(&f, 2, &ask, 0, 9);
    add(&f, 3, &ask, 0, 5);
    for (u32 i = 10; i < 20; i++) add(&f, i, &ask, 0, 3); /* a popular begin: these are at the maximum */
    expect(&f, &ask, 1);
    update(&f, 1, 30, ROUTE_UP);
    expect(&f, &ask, 2);
    update(&f, 2, 30, ROUTE_UP);
    expect(&f, &ask, 3);
    update(&f, 3, 30, ROUTE_UP);
    for (int k = 0; k < 20; k++) assert_in_range(FOUND(&f, &ask), 10, 19);
    for (u32 i = 10; i < 20; i++) update(&f, i, 30, ROUTE_UP);
    for (int k = 0; k < 100; k++) assert_int_equal(f.views[FOUND(&f, &ask)].ongoing, 0);
    release(&f);
}

/* ---- against a look at everything -----------------------------------------------------------------------------------------*/
enum {
    ORACLE_N = 7,
    TEXTS = 12,
    DEEP = 10,
    SHARED = 4
}; /* fewer replicas than holders of a block: the index is complete */

static u32 oracle_length(const bool holds[DEEP], u32 n)
{
    u32 k = 0;
    while (k < n && holds[k]) k++;
    return k;
}

static bool oracle_busy(const struct fixture *f, u32 i)
{
    double total = 0, n = 0, then = f->views[i].ongoing + 1.0;
    for (u32 k = 0; k < ORACLE_N; k++) {
        if (f->views[k].state != ROUTE_UP) continue;
        total += f->views[k].ongoing;
        n++;
    }
    return then > (total + 1) / n + SLOTS / 8.0 && then > 1.5 * (total + 1) / n;
}

static void oracle_hold(bool held[ORACLE_N][TEXTS][DEEP], u32 i, u32 text, u32 k, bool value)
{
    for (u32 t = 0; t < TEXTS; t++)
        if (k < SHARED || t == text) held[i][t][k] = value;
}

static void test_oracle(void **state)
{
    (void)state;
    static bool held[ORACLE_N][TEXTS][DEEP];
    struct fixture f = make(ORACLE_N, MANY);
    u32 found = 0, drawn_ones = 0;
    memset(held, 0, sizeof held);
    for (u64 step = 0; step < 60000; step++) {
        u64 at = 8 * step;
        u32 i = draw(at, ORACLE_N), text = draw(at + 1, TEXTS), what = draw(at + 2, 16),
            k = draw(at + 3, DEEP);
        struct route_ask ask = prompt(text + 1, SHARED, DEEP);
        if (what < 5) {
            router_prefix_add(f.router, i, ask.prefix[k]);
            oracle_hold(held, i, text, k, true);
        } else if (what < 10) {
            router_prefix_remove(f.router, i, ask.prefix[k]);
            oracle_hold(held, i, text, k, false);
        } else if (what == 10 && k == 0) {
            router_prefix_clear(f.router, i);
            memset(held[i], 0, sizeof held[i]);
        } else if (what < 13) {
            update(&f, i, draw(at + 4, draw(at + 5, 2) ? 4 : SLOTS), draw(at + 6, 9) ? ROUTE_UP : ROUTE_DOWN);
        }
        ask.n_prefix = 1 + draw(at + 7, DEEP);
        u32 best = 0, least = UINT32_MAX;
        for (u32 c = 0; c < ORACLE_N; c++) {
            if (f.views[c].state != ROUTE_UP || oracle_busy(&f, c)) continue;
            u32 length = oracle_length(held[c][text], ask.n_prefix);
            if (length > best) least = UINT32_MAX;
            best = MAX_OF(best, length);
            if (length == best) least = MIN_OF(least, f.views[c].ongoing);
        }
        bool drawn;
        i32 c = choose(&f, &ask, &drawn);
        if (c < 0) continue;
        if (best == 0) {
            assert_true(drawn);
            drawn_ones++;
        } else {
            assert_int_equal(oracle_length(held[c][text], ask.n_prefix), best);
            assert_int_equal(f.views[c].ongoing, least);
            found++;
        }
        if (what >= 13) {
            router_chosen(f.router, (u32)c, &ask);
            for (k = 0; k < ask.n_prefix; k++) oracle_hold(held, (u32)c, text, k, true);
        }
    }
    assert_true(found > 10000 && drawn_ones > 1000);
    release(&f);
}

/* ---- what it forgets ------------------------------------------------------------------------------------------------------*/
static void test_clear(void **state)
{
    (void)state;
    struct fixture f = make(50, MANY);
    struct route_ask ask = prompt(1, 0, 10);
    add(&f, 3, &ask, 0, 10);
    add(&f, 4, &ask, 0, 4);
    router_prefix_clear(f.router, 3);
    expect(&f, &ask, 4);
    add(&f, 3, &ask, 0, 6); /* a snapshot of what is there now */
    expect(&f, &ask, 3);
    for (u32 i = 0; i < 65534; i++) router_prefix_clear(f.router, 3); /* its lives are counted in 16 bits */
    expect(&f, &ask, 4);
    add(&f, 3, &ask, 0, 6);
    expect(&f, &ask, 3);
    release(&f);
}

/* As many as were asked for are remembered, nearly; then what is new pushes out what is old. Nothing is allocated. */
static void test_bounded(void **state)
{
    (void)state;
    enum { N = 20, BLOCKS = 500, FULL = N * BLOCKS };
    struct fixture f = make(N, BLOCKS);
    size_t before = mallinfo2().uordblks;
    for (u64 text = 0; text < FULL; text++) {
        struct route_ask ask = prompt(text + 1, 0, 1);
        router_chosen(f.router, (u32)(text % N), &ask);
    }
    u32 known = 0;
    for (u64 text = 0; text < FULL; text++) {
        struct route_ask ask = prompt(text + 1, 0, 1);
        bool drawn;
        i32 i = choose(&f, &ask, &drawn);
        known += i == (i32)(text % N) && !drawn;
    }
    assert_true(known > FULL / 100 * 93); /* a draw meets it with 1 in 20 */
    for (u64 text = FULL; text < 11 * FULL; text++) {
        struct route_ask ask = prompt(text + 1, 0, 1);
        router_prefix_add(f.router, (u32)(text % N), ask.prefix[0]);
    }
    u32 old = 0, fresh = 0;
    for (u64 text = 0; text < FULL / 2; text++) {
        struct route_ask ask = prompt(text + 1, 0, 1);
        old += FOUND(&f, &ask) == (i32)(text % N);
        ask = prompt(10 * FULL + FULL / 2 + text + 1, 0, 1);
        fresh += FOUND(&f, &ask) == (i32)(text % N);
    }
    assert_true(old < FULL / 2 / 100 * 10);
    assert_true(fresh > FULL / 2 / 100 * 98);
    assert_int_equal(mallinfo2().uordblks, before);
    release(&f);
}

/* What is asked for stays, though it was added first. */
static void test_used_stays(void **state)
{
    (void)state;
    enum { N = 20, BLOCKS = 50 };
    struct fixture f = make(N, BLOCKS);
    struct route_ask ask = prompt(1, 0, 10);
    add(&f, 3, &ask, 0, 10);
    for (u64 text = 2; text < 100000; text++) {
        struct route_ask other = prompt(text, 0, 1);
        router_prefix_add(f.router, (u32)(text % N), other.prefix[0]);
        if (text % 50) continue;
        ask = prompt(1, 0, 10);
        assert_int_equal(FOUND(&f, &ask), 3);
    }
    release(&f);
}

/* Without memory for hints, and for those that want none: as if nothing was said. */
static void test_not_interested(void **state)
{
    (void)state;
    struct fixture f = make(50, 0);
    struct route_ask ask = prompt(1, 0, 10);
    add(&f, 3, &ask, 0, 10);
    router_chosen(f.router, 3, &ask);
    expect_drawn(&f, &ask);
    router_prefix_remove(f.router, 3, ask.prefix[0]);
    router_prefix_clear(f.router, 3);
    release(&f);
    f = make(50, MANY);
    const struct route_policy *p;
    for (u32 k = 0; (p = route_policy_at(k)); k++) {
        if (strcmp(route_policy_name(p), "prefix_aware") == 0) continue;
        struct router *told = router_new(p, f.views, 50, KEY, MANY),
                      *plain = router_new(p, f.views, 50, KEY, 0);
        for (u32 i = 0; i < 100; i++) {
            router_prefix_add(told, i % 50, ask.prefix[i % 10]);
            router_prefix_remove(told, i % 50, ask.prefix[i % 7]);
            router_prefix_clear(told, i % 50);
            router_chosen(told, i % 50, &ask);
            assert_int_equal(router_choose(told, &ask), router_choose(plain, &ask));
        }
        router_free(told);
        router_free(plain);
    }
    release(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_longest),        cmocka_unit_test(test_hole),
        cmocka_unit_test(test_not_eligible),   cmocka_unit_test(test_worth),
        cmocka_unit_test(test_popular),        cmocka_unit_test(test_popular_holders),
        cmocka_unit_test(test_burst),          cmocka_unit_test(test_chosen),
        cmocka_unit_test(test_overloaded),     cmocka_unit_test(test_overloaded_next),
        cmocka_unit_test(test_oracle),         cmocka_unit_test(test_clear),
        cmocka_unit_test(test_bounded),        cmocka_unit_test(test_used_stays),
        cmocka_unit_test(test_not_interested),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("route prefixes", tests, NULL, NULL);
}
