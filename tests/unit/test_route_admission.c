/* Admission: what is predicted, that it falls again, and who is never refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "mpiserve/route.h"

#include <math.h>

enum { STEP = 512, SLOTS = 4 };
static const u64 START = 1000 * 1000000000ull;

static u64 at(double seconds)
{
    return START + (u64)(seconds * 1e9);
}

static bool near(double a, double b)
{
    return fabs(a - b) <= 1e-6 * fmax(1, fabs(b));
}

static bool about(double a, double b)
{
    return fabs(a - b) <= 0.02 * b;
}

/* All slots in use since 0, one comes free every `gap` seconds, n times; the time then. */
static double serve(struct admission *a, double from, double gap, int n)
{
    admission_observe_slots(a, at(from), 0, true);
    for (int i = 1; i <= n; i++) admission_observe_slots(a, at(from + i * gap), 1, true);
    return from + n * gap;
}

static struct admission_load with(u32 others)
{
    return (struct admission_load){.others = others, .slots = SLOTS, .replicas = 1, .own = 10};
}

static double predict(const struct admission *a, struct admission_load load, double now)
{
    return admission_predict_ms(a, &load, at(now));
}

static void test_nothing_measured(void **state)
{
    (void)state;
    struct admission a;
    double ms;
    struct admission_load load = with(1000000);
    load.unread = 1ull << 40;
    admission_init(&a, STEP);
    assert_true(admission_allows(&a, &load, 0.001, at(0), &ms) && ms == 0);
    double now = serve(&a, 0, 1, 3); /* too few */
    assert_true(predict(&a, load, now) == 0);
    now = serve(&a, now, 1, 1);
    assert_true(predict(&a, load, now) > 1e3);
    load.replicas = 0; /* nobody can say how long a start takes */
    assert_true(predict(&a, load, now) == 0);
}

static void test_places(void **state)
{
    (void)state;
    struct admission a;
    admission_init(&a, STEP);
    double now = serve(&a, 0, 0.25, 20);
    for (u32 others = 0; others < SLOTS; others++) assert_true(predict(&a, with(others), now) == 0);
    for (u32 k = 1; k < 40; k++) assert_true(near(predict(&a, with(SLOTS - 1 + k), now), 250. * k));
    /* several come free in one message */
    admission_init(&a, STEP);
    admission_observe_slots(&a, at(0), 0, true);
    for (int i = 1; i < 10; i++) admission_observe_slots(&a, at(i), 8, true);
    assert_true(near(predict(&a, with(SLOTS), 9), 125));
}

static void test_unread(void **state)
{
    (void)state;
    struct admission a;
    admission_init(&a, STEP);
    struct admission_load load = with(SLOTS - 1);
    /* less than a step's worth to read says nothing of how fast it could be */
    for (int i = 1; i < 10; i++) admission_observe_prefill(&a, at(i), STEP, 500, 1);
    load.unread = 100000;
    assert_true(predict(&a, load, 9) == 0);
    for (int i = 1; i < 10; i++) {
        admission_observe_prefill(&a, at(i), 4000, 1500, 1);
        admission_observe_prefill(&a, at(i), 4000, 500, 0); /* of the same step */
    }
    assert_true(about(predict(&a, load, 9), (100000 + 10) / 2.));
    load.replicas = 5;
    assert_true(about(predict(&a, load, 9), 20000 / 2. + 5));
    load.own = 4000;
    assert_true(about(predict(&a, load, 9), 20000 / 2. + 2000));
    /* prompts are read while it waits for a slot: the longer of the two */
    double now = serve(&a, 8, 0.1, 10);
    load = with(SLOTS);
    load.unread = 10;
    assert_true(predict(&a, load, now) < 106 && predict(&a, load, now) > 100);
    load.unread = 4000;
    assert_true(predict(&a, load, now) > 1950 && predict(&a, load, now) < 2050);
}

static void test_base(void **state)
{
    (void)state;
    struct admission a;
    admission_init(&a, STEP);
    admission_observe_first(&a, at(0), 10, NAN);
    assert_true(predict(&a, with(0), 0) == 0);
    admission_init(&a, STEP);
    admission_observe_first(&a, at(0), 10, 0.1);
    assert_true(near(predict(&a, with(0), 0), 100));
    admission_observe_first(&a, at(0), 10, 0.9); /* rises slowly */
    assert_true(near(predict(&a, with(0), 0), 200));
    admission_observe_first(&a, at(0), 10, 0); /* falls fast */
    assert_true(near(predict(&a, with(0), 0), 100));
    /* what reading took is not in it */
    admission_observe_prefill(&a, at(0), 1000, 1000, 1);
    for (int i = 0; i < 200; i++) admission_observe_first(&a, at(0), 500, 0.6);
    assert_true(fabs(predict(&a, (struct admission_load){.replicas = 1, .slots = 1}, 0) - 100) < 0.1);
    admission_observe_first(&a, at(0), 1u << 31, 0.6); /* never below 0 */
    assert_true(predict(&a, with(0), 0) >= 0);
}

/* What is expected is judged by what came, and what it was wrong by is added. */
static void test_margin(void **state)
{
    (void)state;
    struct admission a;
    struct admission_load free_slot = with(0), waits = with(SLOTS);
    admission_init(&a, STEP);
    assert_true(admission_expect_s(&a, &free_slot, at(0)) < 0); /* nothing is known */
    admission_observe_first(&a, at(0), 10, 0.1);
    assert_true(near(admission_expect_s(&a, &free_slot, at(0)), 0.1));
    assert_true(admission_expect_s(&a, &waits, at(0)) < 0); /* slots are not */
    double now = serve(&a, 0, 0.2, 10);
    admission_observe_first(&a, at(now), 10, 0.1);
    assert_true(near(admission_expect_s(&a, &waits, at(now)), 0.3));
    waits.unread = 10 * STEP; /* reading is not */
    assert_true(admission_expect_s(&a, &waits, at(now)) < 0);
    waits.unread = 0;
    waits.replicas = 0;
    assert_true(admission_expect_s(&a, &waits, at(now)) < 0);
    waits.replicas = 1;

    admission_observe_outcome(&a, -1, 5); /* was not known: says nothing */
    assert_true(near(predict(&a, waits, now), 300));
    for (int i = 0; i < 1000; i++) admission_observe_outcome(&a, 0.3, 0.3 + (i % 2 ? 0.03 : -0.01));
    assert_true(about(predict(&a, waits, now), 300 + 10 + 2 * 20));
    assert_true(near(admission_expect_s(&a, &waits, at(now)), 0.3)); /* or errors would hide themselves */
    for (int i = 0; i < 1000; i++) admission_observe_outcome(&a, 0.3, 0.1); /* too careful: no promise */
    assert_true(about(predict(&a, waits, now), 300));
    /* great errors (an engine that died) keep nobody out for long */
    for (int i = 0; i < 1000; i++) admission_observe_outcome(&a, 0.3, 20 + i % 40);
    assert_true(predict(&a, with(1), now) > 10e3);
    assert_true(predict(&a, with(1), now + 10) < 100);
}

/* The larger the load, the later. */
static void test_monotone(void **state)
{
    (void)state;
    struct admission a;
    admission_init(&a, STEP);
    double now = serve(&a, 0, 0.03, 100);
    admission_observe_prefill(&a, at(now), 3000, 2000, 0.7);
    admission_observe_first(&a, at(now), 100, 0.2);
    for (u32 i = 0; i < 20000; i++) {
        u32 x[4];
        rng_block(5, i, 0, x);
        struct admission_load small = {x[0] % 100, SLOTS, 1 + x[1] % 4, x[2] % 5000, x[3] % 100000},
                              large = small;
        u32 by = 1 + x[0] / 100 % 50;
        if (i % 4 == 0) large.others += by;
        if (i % 4 == 1) large.own += by;
        if (i % 4 == 2) large.unread += by;
        if (i % 4 == 3) small.slots += by;
        assert_true(predict(&a, large, now) >= predict(&a, small, now));
        if (i % 4 == 1) assert_true(predict(&a, large, now) > predict(&a, small, now));
    }
}

static void test_recovers(void **state)
{
    (void)state;
    struct admission a;
    double ms, allowed = 500;
    admission_init(&a, STEP);
    double now = serve(&a, 0, 10, 30); /* slow: whoever has to wait comes too late */
    struct admission_load waits = with(SLOTS), fits = with(SLOTS - 1);
    assert_false(admission_allows(&a, &waits, allowed, at(now), &ms));
    assert_true(admission_allows(&a, &fits, allowed, at(now), &ms)); /* at once, when a slot is free */
    /* Much faster now, and only those who find a slot are let in: they are enough to learn it. */
    int more = 0;
    while (!admission_allows(&a, &waits, allowed, at(now), &ms) && more++ < 1000) {
        admission_observe_slots(&a, at(now), 0, true);
        admission_observe_slots(&a, at(now += 0.01), 1, false);
        now += 5; /* not in use: this does not count */
    }
    assert_true(more > 10 && more < 300);
    /* Measurements that only those let in could renew are not believed for ever. */
    for (int i = 0; i < 100; i++) {
        admission_observe_first(&a, at(now), 10, 3);
        admission_observe_prefill(&a, at(now), 1000, 100, 1);
    }
    struct admission_load busy = with(1);
    busy.own = 100;
    assert_false(admission_allows(&a, &busy, allowed, at(now), &ms));
    double before = ms;
    assert_true(predict(&a, busy, now + 1) < before);
    assert_true(admission_allows(&a, &busy, allowed, at(now + 15), &ms));
    /* Nor a service rate of long ago. */
    now = serve(&a, now, 10, 300);
    admission_observe_slots(&a, at(now), 0, false);
    assert_false(admission_allows(&a, &waits, allowed, at(now + ADMISSION_FORGET_S - 1), &ms));
    assert_true(admission_allows(&a, &waits, allowed, at(now + ADMISSION_FORGET_S + 1), &ms));
    now += ADMISSION_FORGET_S + 1;
    admission_observe_slots(&a, at(now), 0, true);
    assert_true(admission_allows(&a, &waits, allowed, at(now), &ms) && ms < allowed);
}

/* Nothing comes free any more: what was measured before is no comfort. */
static void test_a_halt_is_seen(void **state)
{
    (void)state;
    struct admission a;
    admission_init(&a, STEP);
    double now = serve(&a, 0, 0.01, 100), before = predict(&a, with(SLOTS + 10), now);
    assert_true(near(predict(&a, with(SLOTS + 10), now + 0.01), before)); /* that is its time */
    assert_true(predict(&a, with(SLOTS + 10), now + 60) > 5 * before);
    admission_observe_slots(&a, at(now + 60), 1, true);
    assert_true(predict(&a, with(SLOTS + 10), now + 60) > 5 * before);
}

static void test_an_empty_system_is_open(void **state)
{
    (void)state;
    struct admission a;
    double ms;
    admission_init(&a, STEP);
    double now = serve(&a, 0, 100, 100);
    for (int i = 0; i < 100; i++) {
        admission_observe_first(&a, at(now), 10, 3000);
        admission_observe_prefill(&a, at(now), 1000, 10, 1000);
    }
    struct admission_load alone = {.slots = 0, .replicas = 1, .own = 1000000, .unread = 1ull << 60};
    assert_true(admission_allows(&a, &alone, 1, at(now), &ms));
    assert_true(ms == ADMISSION_MAX_MS); /* it is shown, and not held against it */
    alone.others = 1;
    assert_false(admission_allows(&a, &alone, 1, at(now), &ms));
}

/* Any row of events, time that stands or goes back: finite, not negative, and an empty system is open. */
static void test_any_events(void **state)
{
    (void)state;
    struct admission a;
    admission_init(&a, 0);
    u64 now = 0;
    for (u32 i = 0; i < 200000; i++) {
        u32 x[4];
        rng_block(9, i, 0, x);
        double odd[] = {0, 1e-9, 0.01, 1, 1e9, NAN, INFINITY, -1}, s = odd[x[1] % COUNT_OF(odd)];
        u64 huge[] = {0, 1, 100, 1u << 20, UINT32_MAX, UINT64_MAX}, n = huge[x[2] % COUNT_OF(huge)];
        now += x[3] % 8 == 0 ? -(u64)MIN_OF(now, 1000000) : x[3] % 8 == 1 ? 1ull << 40 : x[3] % 1000000;
        if (x[0] % 4 == 0) admission_observe_slots(&a, now, (u32)n, x[3] & 16);
        if (x[0] % 4 == 1) admission_observe_prefill(&a, now, huge[x[3] % COUNT_OF(huge)], n, s);
        if (x[0] % 4 == 2) admission_observe_first(&a, now, n, s);
        if (x[0] % 4 == 3) admission_observe_outcome(&a, odd[x[3] % COUNT_OF(odd)], s);
        struct admission_load load = {(u32)huge[x[2] % 5], (u32)huge[x[3] % 5], 1, (u32)n, n};
        double ms, alone_ms;
        bool in = admission_allows(&a, &load, 100, now, &ms);
        assert_true(ms >= 0 && ms <= ADMISSION_MAX_MS); /* false for NaN */
        assert_true(in == (load.others == 0 || ms <= 100));
        load.others = 0;
        assert_true(admission_allows(&a, &load, 0, now, &alone_ms));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_measured),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_unread),
        cmocka_unit_test(test_base),
        cmocka_unit_test(test_monotone),
        cmocka_unit_test(test_margin),
        cmocka_unit_test(test_recovers),
        cmocka_unit_test(test_a_halt_is_seen),
        cmocka_unit_test(test_an_empty_system_is_open),
        cmocka_unit_test(test_any_events),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("route_admission", tests, NULL, NULL);
}
