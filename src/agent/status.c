/* What HTTP threads ask of the head: health, topology, the agent's part of the metrics. They read snapshots and never wait for the loop. */
#include "agent/head_internal.h"
#include "mpiserve/json.h"
#include "mpiserve/metrics.h"
#include <stdio.h>
#include <string.h>

enum { SILENT_S = 10, SILENT_BUSY_S = 2, TICK_S = 2 };
static const char *const state_names[REPLICA_STATES] = {"loading", "up", "restarting", "broken"};

static struct replica_view read_replica(struct head *h, u32 i)
{
    pthread_mutex_lock(&h->lock);
    struct replica_view v = h->replicas[i];
    pthread_mutex_unlock(&h->lock);
    return v;
}

static bool loop_turns(const struct head *h, u64 now)
{
    u64 tick = atomic_load(&h->agent->watchdog.tick_ns);
    return now < tick + TICK_S * NS_PER_S;
}

/* Up, and its leader was heard of lately: leaders speak several times a second while a slot is in use, and every few seconds when idle. */
static bool makes_progress(const struct replica_view *v, u64 now)
{
    u64 silent_s = v->load.slots_in_use ? SILENT_BUSY_S : SILENT_S;
    return v->load.state == REPLICA_UP && now < v->heard_ns + silent_s * NS_PER_S;
}

void status_health(void *arg, struct ingress_health *out)
{
    struct head *h = arg;
    u64 now = clock_ns();
    memset(out, 0, sizeof *out);
    bool loading = false;
    u32 up = 0;
    char why[160] = "";
    for (u32 i = 0; i < h->n_replicas; i++) {
        struct replica_view v = read_replica(h, i);
        up += makes_progress(&v, now);
        loading |= v.load.state == REPLICA_LOADING;
        if (!makes_progress(&v, now) && !why[0])
            snprintf(why, sizeof why, "no replica makes progress: replica %u is %s%s%.*s", i,
                     v.load.state == REPLICA_UP ? "silent" : state_names[v.load.state],
                     v.load.trouble[0] ? ": " : "", (int)(sizeof why - 64), v.load.trouble);
    }
    out->draining = atomic_load(&h->refuse);
    out->loading = up == 0 && loading;
    out->ok = up > 0 && loop_turns(h, now) && !out->draining;
    if (out->draining)
        snprintf(out->reason, sizeof out->reason, "draining");
    else if (!loop_turns(h, now))
        snprintf(out->reason, sizeof out->reason, "the main loop does not turn");
    else if (up == 0)
        snprintf(out->reason, sizeof out->reason, "%s", why);
}

u32 status_in_flight(void *arg)
{
    return atomic_load(&((struct head *)arg)->outstanding);
}

/* ---- topology ------------------------------------------------------------------------------------------------*/
static void write_replica(struct json_out *o, struct head *h, u32 i)
{
    const struct agent *a = h->agent;
    const struct place_replica *p = &a->plan.replicas[i];
    struct replica_view v = read_replica(h, i);
    const struct {
        const char *key;
        i64 value;
    } numbers[] = {{"replica", i},
                   {"leader", p->leader},
                   {"num_slots", h->views[i].n_slots},
                   {"slots_in_use", v.load.slots_in_use},
                   {"running", v.load.running},
                   {"waiting", v.load.waiting},
                   {"engine_pid", v.load.engine_pid},
                   {"engine_generation", v.load.engine_gen}};
    json_out_object(o);
    for (size_t k = 0; k < COUNT_OF(numbers); k++) {
        json_out_key(o, numbers[k].key);
        json_out_int(o, numbers[k].value);
    }
    json_out_key(o, "state");
    bool late = v.load.state == REPLICA_UP && h->views[i].state == ROUTE_LATE;
    json_out_str(o, late ? "late" : state_names[v.load.state]);
    json_out_key(o, "replica_rank");
    json_out_object(o);
    const struct {
        const char *key;
        i64 value;
    } rank[] = {{"rank", p->rank.rank}, {"node_rank", p->rank.node_rank}, {"local_rank", p->rank.local_rank}};
    for (size_t k = 0; k < COUNT_OF(rank); k++) {
        json_out_key(o, rank[k].key);
        json_out_int(o, rank[k].value);
    }
    json_out_end_object(o);
    json_out_end_object(o);
}

static void write_rank(struct json_out *o, const struct agent *a, u32 r)
{
    const struct wire_peer *p = &wire_peers(a->wire)[r];
    const struct {
        const char *key;
        i64 value;
    } numbers[] = {{"rank", r}, {"node_rank", p->node_rank}, {"local_rank", p->local_rank}, {"pid", p->pid}};
    json_out_object(o);
    for (size_t k = 0; k < COUNT_OF(numbers); k++) {
        json_out_key(o, numbers[k].key);
        json_out_int(o, numbers[k].value);
    }
    json_out_key(o, "host");
    json_out_str(o, p->host);
    const struct place_rank *place = &a->plan.ranks[r];
    json_out_key(o, "replica");
    if (place->replica < 0) {
        json_out_null(o);
    } else {
        json_out_int(o, place->replica);
        json_out_key(o, "tp_rank");
        json_out_int(o, place->tp);
        json_out_key(o, "pp_rank");
        json_out_int(o, place->pp);
    }
    json_out_end_object(o);
}

static void write_ingress(struct json_out *o, const struct head *h, u32 i)
{
    const struct agent *a = h->agent;
    u32 rank = agent_ingress_rank(a, i);
    json_out_object(o);
    json_out_key(o, "ingress");
    json_out_int(o, i);
    json_out_key(o, "rank");
    json_out_int(o, rank);
    json_out_key(o, "host");
    json_out_str(o, wire_peers(a->wire)[rank].host);
    json_out_key(o, "url");
    json_out_str(o, h->urls ? h->urls[i] : h->url);
    json_out_end_object(o);
}

void status_topology(void *arg, struct buf *json)
{
    struct head *h = arg;
    const struct agent *a = h->agent;
    struct json_out o;
    json_out_init(&o, json);
    json_out_object(&o);
    json_out_key(&o, "deployment");
    json_out_str(&o, a->config.served_model_name[0]);
    const struct {
        const char *key, *value;
    } texts[] = {{"compute", a->needs.compute}, {"cpu_isa", a->needs.isa}, {"mpi", wire_library(a->wire)}};
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        json_out_key(&o, texts[i].key);
        json_out_str(&o, texts[i].value);
    }
    const struct {
        const char *key;
        i64 value;
    } numbers[] = {{"nodes", wire_n_nodes(a->wire)},
                   {"tensor_parallel_size", a->config.tensor_parallel_size},
                   {"pipeline_parallel_size", a->config.pipeline_parallel_size},
                   {"data_parallel_size", h->n_replicas}};
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        json_out_key(&o, numbers[i].key);
        json_out_int(&o, numbers[i].value);
    }
    json_out_key(&o, "replicas");
    json_out_array(&o);
    for (u32 i = 0; i < h->n_replicas; i++) write_replica(&o, h, i);
    json_out_end_array(&o);
    json_out_key(&o, "ingresses");
    json_out_array(&o);
    for (u32 i = 0; i < a->n_ingresses; i++) write_ingress(&o, h, i);
    json_out_end_array(&o);
    json_out_key(&o, "ranks");
    json_out_array(&o);
    for (u32 r = 0; r < wire_size(a->wire); r++) write_rank(&o, a, r);
    json_out_end_array(&o);
    json_out_end_object(&o);
}

/* ---- metrics -------------------------------------------------------------------------------------------------*/
static double kv_usage(const struct msg_load *m)
{
    return m->total_blocks ? 1 - (double)m->free_blocks / m->total_blocks : 0;
}
#define LOAD_FIELD(name, expression)                                                                         \
    static double name(const struct msg_load *m)                                                             \
    {                                                                                                        \
        return (double)(expression);                                                                         \
    }
LOAD_FIELD(load_running, m->running)
LOAD_FIELD(load_waiting, m->waiting)
LOAD_FIELD(load_prompt, m->prompt_tokens)
LOAD_FIELD(load_generated, m->generated_tokens)
LOAD_FIELD(load_preemptions, m->preemptions)
LOAD_FIELD(load_prefix_queries, m->prefix_queries)
LOAD_FIELD(load_prefix_hits, m->prefix_hits)
LOAD_FIELD(load_up, m->state == REPLICA_UP)
LOAD_FIELD(load_starts, m->engine_gen)
LOAD_FIELD(load_deaths, m->deaths)
LOAD_FIELD(load_slots, m->slots_in_use)
LOAD_FIELD(load_runs, m->slot_runs)
LOAD_FIELD(load_finishes, m->slot_finishes)
LOAD_FIELD(load_reaped, m->slot_reaped)
LOAD_FIELD(load_stale, m->slot_stale)
LOAD_FIELD(load_steps, m->steps)
LOAD_FIELD(load_step_seconds, 1e-6 * (double)m->step_usec)

static const struct metric_spec own[] = {
    {.name = "mpiserve_replica_healthy",
     .help = "1 while the replica's engine is up",
     .kind = METRIC_GAUGE,
     .labels = {"model_name", "engine"}},
    {.name = "mpiserve_engine_starts",
     .help = "engines started",
     .kind = METRIC_COUNTER,
     .labels = {"model_name", "engine"}},
    {.name = "mpiserve_engine_deaths",
     .help = "engines that died while serving",
     .kind = METRIC_COUNTER,
     .labels = {"model_name", "engine"}},
    {.name = "mpiserve_slots_in_use",
     .help = "slots reserved or running",
     .kind = METRIC_GAUGE,
     .labels = {"model_name", "engine"}},
    {.name = "mpiserve_slot_dispatches",
     .help = "slots that went from reserved to running",
     .kind = METRIC_COUNTER,
     .labels = {"model_name", "engine"}},
    {.name = "mpiserve_slot_finishes",
     .help = "slots freed at a request's end",
     .kind = METRIC_COUNTER,
     .labels = {"model_name", "engine"}},
    {.name = "mpiserve_slots_reaped",
     .help = "reservations whose lease ended",
     .kind = METRIC_COUNTER,
     .labels = {"model_name", "engine"}},
    {.name = "mpiserve_dispatches_stale",
     .help = "dispatches refused as stale",
     .kind = METRIC_COUNTER,
     .labels = {"model_name", "engine"}},
    {.name = "mpiserve_engine_steps",
     .help = "forward passes planned",
     .kind = METRIC_COUNTER,
     .labels = {"model_name", "engine"}},
    {.name = "mpiserve_engine_step_seconds",
     .help = "time that forward passes took in the engine, sampling included",
     .kind = METRIC_COUNTER,
     .labels = {"model_name", "engine"}},
};
static const struct {
    i32 vllm; /* enum vllm_metric, or -1 - index in own[] */
    double (*of)(const struct msg_load *m);
} rows[] = {
    {VLLM_REQUESTS_RUNNING, load_running},
    {VLLM_REQUESTS_WAITING, load_waiting},
    {VLLM_KV_CACHE_USAGE, kv_usage},
    {VLLM_PREEMPTIONS, load_preemptions},
    {VLLM_PREFIX_CACHE_QUERIES, load_prefix_queries},
    {VLLM_PREFIX_CACHE_HITS, load_prefix_hits},
    {-1 - 0, load_up},
    {-1 - 1, load_starts},
    {-1 - 2, load_deaths},
    {-1 - 3, load_slots},
    {-1 - 4, load_runs},
    {-1 - 5, load_finishes},
    {-1 - 6, load_reaped},
    {-1 - 7, load_stale},
    {-1 - 8, load_steps},
    {-1 - 9, load_step_seconds},
    {VLLM_PROMPT_TOKENS, load_prompt},
    {VLLM_GENERATION_TOKENS, load_generated},
};

static void head_metrics(struct head *h, struct metrics *m)
{
    const struct {
        struct metric_spec spec;
        double value;
    } plain[] = {
        {{.name = "mpiserve_requests_in_flight",
          .help = "requests taken and not ended",
          .kind = METRIC_GAUGE},
         atomic_load(&h->outstanding)},
        {{.name = "mpiserve_queue_length", .help = "requests that wait for a slot", .kind = METRIC_GAUGE},
         atomic_load(&h->n_waiting)},
        {{.name = "mpiserve_requests_routed",
          .help = "requests dispatched to a replica",
          .kind = METRIC_COUNTER},
         (double)atomic_load(&h->routed)},
        {{.name = "mpiserve_requests_requeued",
          .help = "dispatches that came back for another replica",
          .kind = METRIC_COUNTER},
         (double)atomic_load(&h->requeued)},
        {{.name = "mpiserve_slots_yielded",
          .help = "slots left to another ingress whose requests wait, for its share",
          .kind = METRIC_COUNTER},
         (double)atomic_load(&h->yielded)},
        {{.name = "mpiserve_requests_refused_full",
          .help = "requests refused because slots and queue were full",
          .kind = METRIC_COUNTER},
         (double)atomic_load(&h->refused_full)},
    };
    for (size_t i = 0; i < COUNT_OF(plain); i++)
        series_add(metric_series(metrics_add(m, &plain[i].spec), NULL), plain[i].value);
}

void status_metrics(void *arg, struct buf *text)
{
    struct head *h = arg;
    struct metrics *m = metrics_new();
    for (size_t k = 0; k < COUNT_OF(rows); k++) {
        struct metric *f = metrics_add(m, rows[k].vllm >= 0 ? metrics_vllm((enum vllm_metric)rows[k].vllm)
                                                            : &own[-1 - rows[k].vllm]);
        for (u32 i = 0; i < h->n_replicas; i++) {
            struct replica_view v = read_replica(h, i);
            char engine[16];
            snprintf(engine, sizeof engine, "%u", i);
            series_add(metric_series(f, (const char *const[]){h->agent->config.served_model_name[0], engine}),
                       rows[k].of(&v.load));
        }
        if (rows[k].vllm == VLLM_REQUESTS_WAITING) /* before any replica has them */
            series_add(
                metric_series(f, (const char *const[]){h->agent->config.served_model_name[0], "ingress"}),
                atomic_load(&h->n_waiting));
    }
    head_metrics(h, m);
    measures_gauges(h, m);
    metrics_text(m, text);
    metrics_text(h->latency, text);
    metrics_free(m);
}
