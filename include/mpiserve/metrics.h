/* metrics: counters, gauges and histograms with labels, and their page in the Prometheus text format 0.0.4.
 *
 * A registry holds families (a name, a kind, label names, bucket bounds); a family holds series (one a set of label
 * values). The rows of enum vllm_metric are the families that dashboards made for vLLM ask for; everything of our own
 * is declared with a struct metric_spec where it is measured. Two registries may write to one page if they share no family.
 *
 * Life cycle: metrics_new -> metrics_add (a family) -> metric_series (keep the pointer) -> series_* ... -> metrics_free.
 * Thread rule: series_* are atomic and take no lock; metric_series takes a lock only when the series is new; metrics_text
 * may run beside both and shows every series at some moment near now. metrics_new, metrics_add and metrics_free: one thread. */
#ifndef MPISERVE_METRICS_H
#define MPISERVE_METRICS_H

#include "mpiserve/base.h"

enum metric_kind { METRIC_COUNTER, METRIC_GAUGE, METRIC_HISTOGRAM };
enum { METRIC_MAX_LABELS = 4, METRIC_MAX_BUCKETS = 32 };

/* name: without "_total", which counters get on the page. labels: names, the rest NULL. buckets: upper bounds, ascending, without
 * +Inf (histograms only). All texts are constants or outlive the registry. */
struct metric_spec {
    const char *name, *help;
    enum metric_kind kind;
    const char *labels[METRIC_MAX_LABELS];
    const double *buckets;
    u32 n_buckets;
};
struct metrics;
struct metric;
struct series;

struct metrics *metrics_new(void);
void metrics_free(struct metrics *m); /* NULL: nothing; series are gone with it */
struct metric *metrics_add(struct metrics *m, const struct metric_spec *spec);
/* The series with these label values (as many as spec has labels; copied), made at 0 if it is new. */
struct series *metric_series(struct metric *f, const char *const *values);

void series_add(struct series *s, double by);        /* counters (by >= 0) and gauges */
void series_set(struct series *s, double value);     /* gauges */
void series_observe(struct series *s, double value); /* histograms */
double series_value(const struct series *s);         /* histograms: the sum */
u64 series_count(const struct series *s);            /* histograms: the number of observations; else 0 */

/* Appends HELP, TYPE and all series of all families. Families without series show nothing. */
void metrics_text(const struct metrics *m, struct buf *to);

/* ---- what vLLM's dashboards ask for ------------------------------------------------------------------------- */
enum vllm_metric {
    VLLM_REQUESTS_RUNNING, /* gauges, a replica */
    VLLM_REQUESTS_WAITING,
    VLLM_KV_CACHE_USAGE,       /* 0..1 */
    VLLM_PREFIX_CACHE_QUERIES, /* counters, tokens */
    VLLM_PREFIX_CACHE_HITS,
    VLLM_PREEMPTIONS,
    VLLM_PROMPT_TOKENS,
    VLLM_GENERATION_TOKENS,
    VLLM_PROMPT_TOKENS_CACHED,
    VLLM_REQUEST_SUCCESS,       /* one more label: finished_reason */
    VLLM_REQUEST_PROMPT_TOKENS, /* histograms */
    VLLM_REQUEST_GENERATION_TOKENS,
    VLLM_REQUEST_MAX_TOKENS,
    VLLM_REQUEST_N,
    VLLM_ITERATION_TOKENS,
    VLLM_TIME_TO_FIRST_TOKEN,
    VLLM_INTER_TOKEN_LATENCY,
    VLLM_TIME_PER_OUTPUT_TOKEN,
    VLLM_E2E_LATENCY,
    VLLM_QUEUE_TIME,
    VLLM_PREFILL_TIME,
    VLLM_DECODE_TIME,
    VLLM_METRICS,
};
/* Labels model_name and engine first, then those of the row. */
const struct metric_spec *metrics_vllm(enum vllm_metric which);
/* The finished_reason values of VLLM_REQUEST_SUCCESS; all are shown from the start. */
extern const char *const METRICS_FINISHED_REASONS[4]; /* stop, length, abort, error */

#endif
