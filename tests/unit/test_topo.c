/* CPU sets, and the division of synthetic machines. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "mpiserve/topo.h"

#include <stdio.h>
#include <string.h>

static struct cpuset set_of(const char *text)
{
    struct cpuset s;
    struct error err = {0};
    if (cpuset_parse(&s, text, &err)) fail_msg("%s", err.message);
    return s;
}

static void test_text(void **state)
{
    (void)state;
    static const struct {
        const char *in, *out;
    } rows[] = {
        {"", ""},           {"0", "0"},         {"0-3,8", "0-3,8"},
        {"8,0-3", "0-3,8"}, {"0,1,2", "0-2"},   {" 1 , 3 \n", "1,3"},
        {"63-64", "63-64"}, {"1023", "1023"},   {"0-1023", "0-1023"},
        {"5-5", "5"},       {"0-2,2-4", "0-4"},
    };
    char text[CPUSET_TEXT];
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct cpuset s = set_of(rows[i].in);
        assert_string_equal(cpuset_print(&s, text, sizeof text), rows[i].out);
    }
    struct cpuset odd = {0};
    for (u32 cpu = 1; cpu < CPUSET_BITS; cpu += 2) cpuset_add(&odd, cpu);
    struct cpuset again = set_of(cpuset_print(&odd, text, sizeof text));
    assert_true(cpuset_equal(&odd, &again));
    assert_string_equal(cpuset_print(&odd, text, 8), "1,3,5,7");
}

static void test_text_refused(void **state)
{
    (void)state;
    static const struct {
        const char *in, *byte;
    } rows[] = {
        {"a", "byte 0"},     {"1-", "byte 0"},  {"3-1", "byte 0"},
        {"1,,2", "byte 2"},  {"1;2", "byte 1"}, {"1024", "byte 0"},
        {"-1", "byte 0"},    {"1,", "byte 1"},  {"99999999999999999999", "byte 0"},
        {"0-3 x", "byte 4"},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct cpuset s;
        struct error err = {0};
        assert_int_equal(cpuset_parse(&s, rows[i].in, &err), ERR_INPUT);
        if (!strstr(err.message, rows[i].byte)) fail_msg("'%s': %s", rows[i].in, err.message);
    }
}

static void test_sets(void **state)
{
    (void)state;
    struct cpuset a = set_of("0-7,100"), b = set_of("4-11,1000"), x = a;
    cpuset_and(&x, &b);
    struct cpuset want = set_of("4-7");
    assert_true(cpuset_equal(&x, &want));
    x = a;
    cpuset_or(&x, &b);
    want = set_of("0-11,100,1000");
    assert_true(cpuset_equal(&x, &want));
    assert_int_equal(cpuset_count(&x), 14);
    cpuset_minus(&x, &a);
    want = set_of("8-11,1000");
    assert_true(cpuset_equal(&x, &want));
    assert_true(cpuset_meets(&a, &b));
    assert_false(cpuset_meets(&a, &x));
    assert_int_equal(cpuset_next(&x, -1), 8);
    assert_int_equal(cpuset_next(&x, 11), 1000);
    assert_int_equal(cpuset_next(&x, 1000), -1);
    assert_int_equal(cpuset_next(&x, 1023), -1);
    cpuset_add(&x, 5000);
    assert_false(cpuset_has(&x, 5000));
    struct cpuset none = {0};
    assert_true(cpuset_empty(&none));
    assert_false(cpuset_empty(&a));
}

/* Division of a whole machine, or of a part of it. */
static const struct share {
    const char *machine, *part; /* NULL: all */
    u32 n;
    bool shared;
    const char *out[8];
} shares[] = {
    {"core:2 pu:1", NULL, 1, false, {"0-1"}},
    {"core:2 pu:1", NULL, 2, false, {"0", "1"}},
    {"core:2 pu:1", NULL, 8, true, {"0", "1", "0", "1", "0", "1", "0", "1"}},
    {"core:8 pu:1", NULL, 3, false, {"0-1", "2-4", "5-7"}},
    {"core:4 pu:2", NULL, 2, false, {"0-3", "4-7"}},
    {"core:4 pu:2", NULL, 4, false, {"0-1", "2-3", "4-5", "6-7"}},
    {"core:4 pu:2", NULL, 6, true, {"0-1", "2-3", "4-5", "6-7", "0-1", "2-3"}},
    {"core:4 pu:2(indexes=0,4,1,5,2,6,3,7)", NULL, 2, false, {"0-1,4-5", "2-3,6-7"}},
    {"numa:2 core:4 pu:1", NULL, 1, false, {"0-7"}},
    {"numa:2 core:4 pu:1", NULL, 2, false, {"0-3", "4-7"}},
    {"numa:2 core:4 pu:1", NULL, 3, false, {"0-1", "2-3", "4-7"}}, /* none straddles */
    {"numa:2 core:4 pu:1", NULL, 5, false, {"0", "1", "2-3", "4-5", "6-7"}},
    {"numa:4 core:2 pu:1", NULL, 2, false, {"0-3", "4-7"}},
    {"pack:2 numa:2 core:2 pu:1", NULL, 4, false, {"0-1", "2-3", "4-5", "6-7"}},
    {"numa:2 core:4 pu:1", "2-7", 2, false, {"2-3", "4-7"}},
    {"numa:2 core:4 pu:1", "2-7", 3, false, {"2-3", "4-5", "6-7"}},
    {"numa:2 core:4 pu:1", "0,4-7", 3, false, {"0", "4-5", "6-7"}},
    {"core:4 pu:2", "1,3", 2, false, {"1", "3"}},    /* a thread each of two cores */
    {"core:4 pu:2", "0-1", 2, true, {"0-1", "0-1"}}, /* one core is never cut */
};

static void test_share(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(shares); i++) {
        const struct share *row = &shares[i];
        struct error err = {0};
        struct topo *t = topo_synthetic(row->machine, &err);
        if (!t) fail_msg("%s", err.message);
        struct cpuset part = row->part ? set_of(row->part) : t->allowed, out[8];
        assert_int_equal(topo_share(t, &part, row->n, out), row->shared);
        for (u32 k = 0; k < row->n; k++) {
            char text[CPUSET_TEXT];
            if (strcmp(cpuset_print(&out[k], text, sizeof text), row->out[k]))
                fail_msg("row %zu (%s): engine %u has %s, not %s", i, row->machine, k, text, row->out[k]);
        }
        topo_free(t);
    }
}

/* On every machine and for every number of engines: disjoint, all used, none empty, whole cores. */
static void test_share_invariants(void **state)
{
    (void)state;
    static const char *const machines[] = {"core:7 pu:2", "numa:2 core:6 pu:2", "pack:2 numa:4 core:3 pu:1",
                                           "numa:3 core:5 pu:2"};
    for (size_t m = 0; m < COUNT_OF(machines); m++) {
        struct topo *t = topo_synthetic(machines[m], NULL);
        struct cpuset out[64];
        for (u32 n = 1; n <= t->n_cores + 3; n++) {
            bool shared = topo_share(t, &t->allowed, n, out);
            assert_int_equal(shared, n > t->n_cores);
            struct cpuset seen = {0};
            for (u32 i = 0; i < n; i++) {
                assert_false(cpuset_empty(&out[i]));
                if (!shared) assert_false(cpuset_meets(&seen, &out[i]));
                cpuset_or(&seen, &out[i]);
                u32 threads = t->n_cpus / t->n_cores;
                assert_int_equal(topo_cores_of(t, &out[i]) * threads, cpuset_count(&out[i]));
            }
            assert_true(cpuset_equal(&seen, &t->allowed));
        }
        topo_free(t);
    }
}

static const struct divide {
    const char *machine;
    u32 n;
    const char *masks[4], *engines; /* '1' where a rank holds an engine */
    bool given, shared;
    const char *out[4];
} divides[] = {
    {"core:8 pu:1", 4, {"0-7", "0-7", "0-7", "0-7"}, "1111", false, false, {"0-1", "2-3", "4-5", "6-7"}},
    {"core:8 pu:1", 4, {"0-7", "0-7", "0-7", "0-7"}, "0110", false, false, {"", "0-3", "4-7", ""}},
    {"core:8 pu:1", 4, {"0-3", "0-3", "0-3", "0-3"}, "1111", false, false, {"0", "1", "2", "3"}},
    {"core:8 pu:1", 4, {"0-1", "2-3", "4-5", "6-7"}, "1111", true, false, {"0-1", "2-3", "4-5", "6-7"}},
    {"core:8 pu:1", 4, {"0", "1", "2", "3-7"}, "0111", true, false, {"", "1", "2", "3-7"}},
    {"core:8 pu:1", 4, {"0-3", "4-7", "0-3", "4-7"}, "1111", false, false, {"0-1", "2-3", "4-5", "6-7"}},
    {"core:2 pu:1", 4, {"0-1", "0-1", "0-1", "0-1"}, "1111", false, true, {"0", "1", "0", "1"}},
    {"core:4 pu:1",
     2,
     {"0-3,900", "900", "", ""},
     "11",
     false,
     false,
     {"0-1", "2-3"}}, /* 900 is not allowed */
    {"core:4 pu:1", 1, {"0-3", "", "", ""}, "1", false, false, {"0-3"}},
    {"core:4 pu:1", 2, {"0-3", "0-3", "", ""}, "00", false, false, {"", ""}},
};

static void test_divide(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(divides); i++) {
        const struct divide *row = &divides[i];
        struct topo *t = topo_synthetic(row->machine, NULL);
        struct cpuset masks[4], out[4];
        bool engine[4];
        for (u32 k = 0; k < row->n; k++) {
            masks[k] = set_of(row->masks[k]);
            engine[k] = row->engines[k] == '1';
        }
        struct topo_division how;
        struct error err = {0};
        if (topo_divide(t, masks, engine, row->n, out, &how, &err)) fail_msg("row %zu: %s", i, err.message);
        assert_int_equal(how.given, row->given);
        assert_int_equal(how.shared, row->shared);
        for (u32 k = 0; k < row->n; k++) {
            char text[CPUSET_TEXT];
            if (strcmp(cpuset_print(&out[k], text, sizeof text), row->out[k]))
                fail_msg("row %zu: rank %u has %s, not %s", i, k, text, row->out[k]);
        }
        topo_free(t);
    }
}

static void test_nothing_left(void **state)
{
    (void)state;
    struct topo *t = topo_synthetic("core:4 pu:1", NULL);
    struct cpuset mask = set_of("8-9"), out;
    struct topo_division how;
    struct error err = {0};
    bool engine = true;
    assert_int_equal(topo_divide(t, &mask, &engine, 1, &out, &how, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "(0-3)"));
    topo_free(t);
    assert_null(topo_synthetic("nonsense:x", &err));
    assert_int_equal(err.code, ERR_INPUT);
}

static void test_this_machine(void **state)
{
    (void)state;
    struct error err = {0};
    struct topo *t = topo_load(&err);
    if (!t) fail_msg("%s", err.message);
    assert_in_range(t->n_cores, 1, t->n_cpus);
    assert_int_equal(cpuset_count(&t->allowed), t->n_cpus);
    assert_int_equal(topo_cores_of(t, &t->allowed), t->n_cores);
    struct cpuset mine, one = {0}, now;
    assert_int_equal(cpuset_of_self(&mine, &err), 0);
    assert_true(cpuset_meets(&mine, &t->allowed));
    cpuset_add(&one, (u32)cpuset_next(&mine, -1));
    assert_int_equal(cpuset_bind_self(&one, &err), 0);
    assert_int_equal(cpuset_of_self(&now, &err), 0);
    assert_true(cpuset_equal(&now, &one));
    struct cpuset none = {0};
    assert_int_equal(cpuset_bind_self(&none, &err), 0);
    assert_int_equal(cpuset_bind_self(&mine, &err), 0);
    topo_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_text_refused),
        cmocka_unit_test(test_sets),
        cmocka_unit_test(test_share),
        cmocka_unit_test(test_share_invariants),
        cmocka_unit_test(test_divide),
        cmocka_unit_test(test_nothing_left),
        cmocka_unit_test(test_this_machine),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("topo", tests, NULL, NULL);
}
