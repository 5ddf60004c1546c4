/* metrics: series, buckets, the page. */
#include "mpiserve/metrics.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static char *page(const struct metrics *m)
{
    struct buf text = {0};
    metrics_text(m, &text);
    buf_char(&text, '\n'); /* never NULL */
    return text.data;
}

static void test_counters_and_gauges(void **state)
{
    (void)state;
    static const struct metric_spec jobs = {"jobs", "Jobs.", METRIC_COUNTER, {"kind", "end"}, NULL, 0};
    static const struct metric_spec heat = {"heat", "Two\nlines \\.", METRIC_GAUGE, {0}, NULL, 0};
    struct metrics *m = metrics_new();
    struct metric *f = metrics_add(m, &jobs);
    struct series *a = metric_series(f, (const char *[]){"x", "good"});
    struct series *b = metric_series(f, (const char *[]){"x", "b\"a\\d\n"});
    assert_ptr_not_equal(a, b);
    assert_ptr_equal(a, metric_series(f, (const char *[]){"x", "good"}));
    series_add(a, 2);
    series_add(a, 3.5);
    struct series *g = metric_series(metrics_add(m, &heat), NULL);
    series_set(g, 7);
    series_add(g, -9.25);
    assert_true(series_value(a) == 5.5 && series_value(g) == -2.25 && series_count(g) == 0);
    char *text = page(m);
    assert_string_equal(text, "# HELP jobs_total Jobs.\n# TYPE jobs_total counter\n"
                              "jobs_total{kind=\"x\",end=\"b\\\"a\\\\d\\n\"} 0\n"
                              "jobs_total{kind=\"x\",end=\"good\"} 5.5\n"
                              "# HELP heat Two\\nlines \\\\.\n# TYPE heat gauge\nheat -2.25\n\n");
    free(text);
    metrics_free(m);
}

static void test_histogram(void **state)
{
    (void)state;
    static const double bounds[] = {.5, 1, 10};
    static const struct metric_spec spec = {"took", "Time.", METRIC_HISTOGRAM, {"who"}, bounds, 3};
    struct metrics *m = metrics_new();
    struct series *s = metric_series(metrics_add(m, &spec), (const char *[]){"me"});
    const double values[] = {.1, .5, .75, 1, 1.5, 11, 1e9};
    for (size_t i = 0; i < COUNT_OF(values); i++) series_observe(s, values[i]);
    assert_int_equal(series_count(s), 7);
    char *text = page(m);
    assert_string_equal(text, "# HELP took Time.\n# TYPE took histogram\n"
                              "took_bucket{who=\"me\",le=\"0.5\"} 2\ntook_bucket{who=\"me\",le=\"1\"} 4\n"
                              "took_bucket{who=\"me\",le=\"10\"} 5\ntook_bucket{who=\"me\",le=\"+Inf\"} 7\n"
                              "took_sum{who=\"me\"} 1000000014.85\ntook_count{who=\"me\"} 7\n\n");
    free(text);
    metrics_free(m);
    metrics_free(NULL);
}

static void test_vllm_rows(void **state)
{
    (void)state;
    for (int i = 0; i < VLLM_METRICS; i++) {
        const struct metric_spec *spec = metrics_vllm((enum vllm_metric)i);
        assert_non_null(spec->name);
        assert_int_equal(strncmp(spec->name, "vllm:", 5), 0);
        assert_string_equal(spec->labels[0], "model_name");
        assert_string_equal(spec->labels[1], "engine");
        assert_int_equal(spec->kind == METRIC_HISTOGRAM, spec->n_buckets > 0);
        assert_true(spec->n_buckets <= METRIC_MAX_BUCKETS);
        for (u32 b = 1; b < spec->n_buckets; b++) assert_true(spec->buckets[b - 1] < spec->buckets[b]);
        for (int other = 0; other < i; other++)
            assert_string_not_equal(spec->name, metrics_vllm((enum vllm_metric)other)->name);
    }
}

enum { WRITERS = 4, ROUNDS = 20000 };
static struct metric *shared;

static void *write_shared(void *arg)
{
    (void)arg;
    for (int i = 0; i < ROUNDS; i++) {
        char value[8];
        snprintf(value, sizeof(value), "%d", i % 10);
        series_observe(metric_series(shared, (const char *[]){value}), i % 3);
    }
    return NULL;
}

static void test_many_threads(void **state)
{
    (void)state;
    static const double bounds[] = {0, 1};
    static const struct metric_spec spec = {"shared", "", METRIC_HISTOGRAM, {"digit"}, bounds, 2};
    struct metrics *m = metrics_new();
    shared = metrics_add(m, &spec);
    pthread_t threads[WRITERS];
    for (int i = 0; i < WRITERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, write_shared, NULL), 0);
    free(page(m)); /* beside the writers */
    for (int i = 0; i < WRITERS; i++) pthread_join(threads[i], NULL);
    double sum = 0;
    u64 count = 0;
    for (int i = 0; i < 10; i++) {
        char value[8];
        snprintf(value, sizeof(value), "%d", i);
        struct series *s = metric_series(shared, (const char *[]){value});
        sum += series_value(s);
        count += series_count(s);
    }
    assert_int_equal(count, WRITERS * ROUNDS);
    double want = 0;
    for (int i = 0; i < ROUNDS; i++) want += i % 3;
    assert_true(sum == want * WRITERS);
    metrics_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counters_and_gauges),
        cmocka_unit_test(test_histogram),
        cmocka_unit_test(test_vllm_rows),
        cmocka_unit_test(test_many_threads),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("metrics", tests, NULL, NULL);
}
