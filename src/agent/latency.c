/* How long a replica takes to answer: from the DISPATCH message to its first CHUNK. It shows what the way between nodes adds. */
#include "agent/head_internal.h"
#include <stdio.h>
#include <stdlib.h>

static const double bounds_s[] = {
    10e-6,  20e-6,  30e-6,  40e-6,  60e-6,  80e-6,  100e-6, 125e-6, 150e-6, 200e-6, 250e-6,
    300e-6, 350e-6, 400e-6, 500e-6, 600e-6, 800e-6, 1e-3,   1.5e-3, 2e-3,   3e-3,   5e-3,
    10e-3,  20e-3,  50e-3,  100e-3, 200e-3, 500e-3, 1,      2,      5,      30,
};
static const struct metric_spec spec = {.name = "mpiserve_dispatch_to_first_chunk_seconds",
                                        .help =
                                            "from the dispatch of a request to the replica's first answer",
                                        .kind = METRIC_HISTOGRAM,
                                        .labels = {"model_name", "engine"},
                                        .buckets = bounds_s,
                                        .n_buckets = COUNT_OF(bounds_s)};

void latency_init(struct head *h)
{
    h->latency = metrics_new();
    h->first_chunk = mem_zero(h->n_replicas, sizeof *h->first_chunk);
    struct metric *m = metrics_add(h->latency, &spec);
    for (u32 i = 0; i < h->n_replicas; i++) {
        char engine[16];
        snprintf(engine, sizeof engine, "%u", i);
        h->first_chunk[i] =
            metric_series(m, (const char *const[]){h->agent->config.served_model_name[0], engine});
    }
}

void latency_release(struct head *h)
{
    metrics_free(h->latency);
    free(h->first_chunk);
}

void latency_dispatched(struct head *h, struct flight *f)
{
    f->dispatched_ns = clock_ns();
    gate_dispatched(h, f);
    if (f->selection.tries == 1)
        series_observe(h->measures.fulfillment, (double)(f->dispatched_ns - f->submitted_ns) * 1e-6);
}

void latency_answered(struct head *h, struct flight *f, u64 now_ns)
{
    if (!f->dispatched_ns) return;
    series_observe(h->first_chunk[f->replica], (double)(now_ns - f->dispatched_ns) * 1e-9);
    gate_answered(h, f, now_ns);
    f->dispatched_ns = 0;
}
