/* What is measured of selections. Names as Ray Serve's where it has them, with our prefix. */
#include "agent/head_internal.h"
#include <stdio.h>
#include <stdlib.h>

static const double router_ms[] = {1,   2,   5,   10,  20,   50,   100,   200,   300,  400,
                                   500, 1e3, 2e3, 5e3, 10e3, 60e3, 120e3, 300e3, 600e3};
static const double held_s[] = {1e-3, 2e-3, 5e-3, .01, .02, .05, .1,  .2,  .5,   1,   2,
                                5,    10,   20,   30,  60,  120, 300, 600, 1800, 3600};
static const char *const refusal_names[RESERVATION_REFUSALS] = {
    [REFUSED_FULL] = "full",           [REFUSED_LEAVING] = "leaving",
    [REFUSED_CONTENDED] = "contended", [REFUSED_NO_REPLICA] = "no_replica",
    [REFUSED_QUEUE] = "queue",         [REFUSED_DRAINING] = "draining",
};
enum { GRANTED, REFUSED, UNDISPATCHED, GAP, FULFILLMENT };
static const struct metric_spec specs[] = {
    [GRANTED] = {.name = "mpiserve_reservations_granted",
                 .help = "slots given to clients to hold",
                 .kind = METRIC_COUNTER,
                 .labels = {"deployment"}},
    [REFUSED] =
        {.name = "mpiserve_reservations_refused",
         .help = "reservations refused: all slots in use, replicas leaving, others faster, no replica up, "
                 "requests waiting, draining",
         .kind = METRIC_COUNTER,
         .labels = {"deployment", "reason"}},
    [UNDISPATCHED] = {.name = "mpiserve_selections_undispatched",
                      .help = "reservations that ended without a request: released by the client, or expired",
                      .kind = METRIC_COUNTER,
                      .labels = {"deployment", "reason"}},
    [GAP] = {.name = "mpiserve_selection_to_dispatch_seconds",
             .help = "from the grant of a reservation to the dispatch of its request",
             .kind = METRIC_HISTOGRAM,
             .labels = {"deployment"},
             .buckets = held_s,
             .n_buckets = COUNT_OF(held_s)},
    [FULFILLMENT] = {.name = "mpiserve_request_router_fulfillment_time_ms",
                     .help =
                         "from a request's arrival at the router to its first dispatch, waiting for a slot "
                         "included",
                     .kind = METRIC_HISTOGRAM,
                     .labels = {"deployment"},
                     .buckets = router_ms,
                     .n_buckets = COUNT_OF(router_ms)},
};

void measures_init(struct head *h)
{
    struct metric *m[COUNT_OF(specs)];
    struct measures *to = &h->measures;
    const char *labels[METRIC_MAX_LABELS] = {h->agent->config.served_model_name[0]};
    for (size_t i = 0; i < COUNT_OF(specs); i++) m[i] = metrics_add(h->latency, &specs[i]);
    to->granted = metric_series(m[GRANTED], labels);
    to->gap = metric_series(m[GAP], labels);
    to->fulfillment = metric_series(m[FULFILLMENT], labels);
    for (u32 i = 0; i < RESERVATION_REFUSALS; i++) {
        labels[1] = refusal_names[i];
        to->refused[i] = metric_series(m[REFUSED], labels);
    }
    for (u32 i = 0; i < COUNT_OF(to->undispatched); i++) {
        labels[1] = i ? "expired" : "released";
        to->undispatched[i] = metric_series(m[UNDISPATCHED], labels);
    }
}

void measures_gauges(struct head *h, struct metrics *m)
{
    static const struct metric_spec reserved = {.name = "mpiserve_reserved_slots_active",
                                                .help = "slots that clients hold by a reservation",
                                                .kind = METRIC_GAUGE,
                                                .labels = {"deployment", "replica"}};
    static const struct metric_spec ongoing = {.name = "mpiserve_num_ongoing_requests_at_replicas",
                                               .help = "requests that have a slot of the replica and run",
                                               .kind = METRIC_GAUGE,
                                               .labels = {"deployment", "replica"}};
    static const struct metric_spec predicted = {
        .name = "mpiserve_predicted_time_to_first_token_seconds",
        .help = "what admission would predict for a short prompt that came now; 0: not measured",
        .kind = METRIC_GAUGE,
        .labels = {"deployment"}};
    struct metric *f[] = {metrics_add(m, &reserved), metrics_add(m, &ongoing)};
    const char *deployment[] = {h->agent->config.served_model_name[0]};
    series_set(metric_series(metrics_add(m, &predicted), deployment), 1e-3 * gate_predicted_ms(h));
    u32 *held = mem_zero(h->n_replicas, sizeof *held);
    reservations_count(h, held);
    for (u32 i = 0; i < h->n_replicas; i++) {
        char replica[16];
        snprintf(replica, sizeof replica, "%u", i);
        const char *labels[] = {h->agent->config.served_model_name[0], replica};
        pthread_mutex_lock(&h->lock);
        const struct msg_load *load = &h->replicas[i].load;
        double running = (double)(load->slot_runs - load->slot_finishes);
        pthread_mutex_unlock(&h->lock);
        series_add(metric_series(f[0], labels), held[i]);
        series_add(metric_series(f[1], labels), running);
    }
    free(held);
}
