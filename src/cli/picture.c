/* A job as text and as JSON. */
#include "cli/status.h"

#include <stdio.h>
#include <string.h>

#define GENERATED "vllm:generation_tokens_total"
#define PROMPT    "vllm:prompt_tokens_total"
#define QUEUE     "mpiserve_queue_length"
#define KV_USAGE  "vllm:kv_cache_usage_perc"

/* What the file says may be older than the job's last breath; what it answers now counts. */
const char *view_state(const struct job_view *v)
{
    enum endpoint_state s = v->file->endpoint.state;
    if (v->gone) return endpoint_state_name(ENDPOINT_DOWN);
    if (s != ENDPOINT_READY || v->ready) return endpoint_state_name(s);
    return v->now.status ? "UNAVAILABLE" : "SILENT";
}

static void print_heading(const struct job_view *v)
{
    const struct endpoint *e = &v->file->endpoint;
    printf("%s  %s", e->job[0] ? e->job : e->slurm_job, view_state(v));
    if (e->url[0]) printf("  %s at %s", e->model, e->url);
    if (e->slurm_job[0])
        printf("  (Slurm job %s%s%s)", e->slurm_job, v->slurm[0] ? ", there " : "", v->slurm);
    printf("\n");
    if (v->now.reason[0]) printf("  %s\n", v->now.reason);
}

static void print_rates(const struct job_view *v)
{
    const struct json *t = v->now.topology;
    const char *compute = json_text(json_get(t, "compute")), *isa = json_text(json_get(t, "cpu_isa"));
    printf("  %lld nodes, %zu ranks, %zu replicas; %s on %s\n", (long long)json_int(json_get(t, "nodes"), 0),
           json_len(json_get(t, "ranks")), json_len(json_get(t, "replicas")), compute ? compute : "?",
           isa ? isa : "?");
    printf("  queue %.0f, %.0f tokens/s generated, %.0f tokens/s of prompts\n",
           sample_metric(&v->now, QUEUE, METRIC_SUM), sample_rate(&v->before, &v->now, GENERATED, METRIC_SUM),
           sample_rate(&v->before, &v->now, PROMPT, METRIC_SUM));
}

static const struct json *rank_of(const struct json *topology, i64 rank)
{
    const struct json *ranks = json_get(topology, "ranks");
    for (size_t i = 0; i < json_len(ranks); i++)
        if (json_int(json_get(json_item(ranks, i), "rank"), -1) == rank) return json_item(ranks, i);
    return NULL;
}

static const char *host_of(const struct json *rank)
{
    const char *host = json_text(json_get(rank, "host"));
    return host ? host : "?";
}

/* ReplicaRank as rank/node_rank/local_rank. */
static void print_replica(const struct job_view *v, const struct json *r)
{
    const struct json *rr = json_get(r, "replica_rank");
    i64 replica = json_int(json_get(r, "replica"), -1), leader = json_int(json_get(r, "leader"), -1);
    const char *state = json_text(json_get(r, "state"));
    char place[64], slots[48];
    snprintf(place, sizeof(place), "%lld/%lld/%lld", (long long)json_int(json_get(rr, "rank"), -1),
             (long long)json_int(json_get(rr, "node_rank"), -1),
             (long long)json_int(json_get(rr, "local_rank"), -1));
    snprintf(slots, sizeof(slots), "%lld of %lld", (long long)json_int(json_get(r, "slots_in_use"), 0),
             (long long)json_int(json_get(r, "num_slots"), 0));
    printf("  %7lld  %-11s  %5lld  %-16s  %-10s  %-12s  %7lld  %7lld  %8.0f  %5.1f %%\n", (long long)replica,
           place, (long long)leader, host_of(rank_of(v->now.topology, leader)), state ? state : "?", slots,
           (long long)json_int(json_get(r, "running"), 0), (long long)json_int(json_get(r, "waiting"), 0),
           sample_rate(&v->before, &v->now, GENERATED, (int)replica),
           100 * sample_metric(&v->now, KV_USAGE, (int)replica));
}

static void print_ranks_without(const struct json *topology)
{
    const struct json *ranks = json_get(topology, "ranks");
    for (size_t i = 0; i < json_len(ranks); i++) {
        const struct json *r = json_item(ranks, i);
        if (json_kind(json_get(r, "replica")) == JK_NULL)
            printf("  rank %lld on %s has no engine\n", (long long)json_int(json_get(r, "rank"), -1),
                   host_of(r));
    }
}

void picture_text(const struct job_view *v)
{
    print_heading(v);
    if (!v->now.topology) return;
    const struct json *replicas = json_get(v->now.topology, "replicas");
    print_rates(v);
    printf("\n  %7s  %-11s  %5s  %-16s  %-10s  %-12s  %7s  %7s  %8s  %7s\n", "replica", "ReplicaRank", "rank",
           "host", "state", "slots", "running", "waiting", "tokens/s", "KV");
    for (size_t i = 0; i < json_len(replicas); i++) print_replica(v, json_item(replicas, i));
    print_ranks_without(v->now.topology);
}

/* ---- JSON --------------------------------------------------------------------------------------------------------*/
static void put_rates(const struct job_view *v, struct json_out *o, int replica)
{
    json_out_key_real(o, "generated_tokens_per_s", sample_rate(&v->before, &v->now, GENERATED, replica));
    json_out_key_real(o, "prompt_tokens_per_s", sample_rate(&v->before, &v->now, PROMPT, replica));
}

static void put_replicas(const struct job_view *v, struct json_out *o)
{
    const struct json *replicas = json_get(v->now.topology, "replicas");
    json_out_key(o, "rates");
    json_out_array(o);
    for (size_t i = 0; i < json_len(replicas); i++) {
        i64 replica = json_int(json_get(json_item(replicas, i), "replica"), -1);
        json_out_object(o);
        json_out_key_int(o, "replica", replica);
        put_rates(v, o, (int)replica);
        json_out_key_real(o, "kv_cache_usage", sample_metric(&v->now, KV_USAGE, (int)replica));
        json_out_end_object(o);
    }
    json_out_end_array(o);
}

void picture_json(const struct job_view *v, struct json_out *o)
{
    const struct endpoint *e = &v->file->endpoint;
    const struct {
        const char *key, *value;
    } texts[] = {
        {"job", e->job},           {"state", view_state(v)},
        {"reason", v->now.reason}, {"url", e->url},
        {"model", e->model},       {"key_file", e->key_file},
        {"node", e->node},         {"slurm_job", e->slurm_job},
        {"slurm_state", v->slurm}, {"folder", v->file->folder},
    };
    json_out_object(o);
    for (size_t i = 0; i < COUNT_OF(texts); i++) json_out_key_str(o, texts[i].key, texts[i].value);
    json_out_key_bool(o, "ready", v->ready);
    json_out_key_int(o, "health", v->now.status);
    if (v->now.topology) {
        json_out_key_int(o, "queue_length", (i64)sample_metric(&v->now, QUEUE, METRIC_SUM));
        put_rates(v, o, METRIC_SUM);
        put_replicas(v, o);
        json_out_key(o, "topology");
        json_out_value(o, v->now.topology);
    }
    json_out_end_object(o);
}
