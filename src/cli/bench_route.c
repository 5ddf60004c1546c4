/* mpiserve bench route: routers in simulation, beside what theory says. */
#include "cli/bench.h"
#include "cli/route_prompts.h"
#include "cli/route_sim.h"
#include "mpiserve/json.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EXIT_FINE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, SLOTS_MOST = 1024, TRACE_MOST = 1 << 28 };
static const double REQUESTS_LEAST = 200e3, REQUESTS_MOST = 2e6, REQUESTS_A_SLOT = 200;

static const char usage[] =
    "mpiserve bench route [--replicas N] [--slots N] [--load X] [--policy NAME|all] [--json] ...\n"
    "\n"
    "Simulates the routers of --router under an open load: how long requests wait, how uneven replicas are, "
    "what a\n"
    "decision costs on this machine; beside it what queueing theory says for one slot and exponential "
    "service.\n"
    "  --replicas N    10000\n"
    "  --slots N       1: requests that a replica runs at the same time\n"
    "  --load X        0.8: what comes in, as a share of what all slots can do; above 0, below 1\n"
    "  --policy NAME   all, or one of them\n"
    "  --seed N        1: equal seeds give equal requests, whatever the policy\n"
    "  --requests N    half of them warm up; without it 200 a slot, at least 200 thousand and at most 2 "
    "million\n"
    "  --stale X       0: ends of requests are seen every X mean service times only, as of other ingresses\n"
    "  --refuse        a full replica refuses and the router chooses again, as in a job; without it the "
    "replica\n"
    "                  queues, as in the theorems\n"
    "  --prefixes N    0, none. Else a replica has a cache of N blocks (64 to 4096), half of the service "
    "time "
    "is for\n"
    "                  reading what of a prompt is not in there, and sessions are conversations of 8 turns: "
    "a "
    "prompt\n"
    "                  has 16 blocks that 100 sessions share, 4 of each turn before, and 2 new ones\n"
    "  --trace FILE    a recorded load: lines `ARRIVAL SERVICE [SESSION]`, in seconds; then times are "
    "seconds\n"
    "  --json          {\"runs\": [...]}; include/mpiserve/cli.h describes it\n"
    "Service times: exponential, then lognormal (sigma 1.2), as answers of a language model spread. Arrivals "
    "are\n"
    "Poisson; ten sessions a replica, all equally busy. Exit status: 0, 1 a trace that cannot be read, 2 "
    "wrong usage.\n";

struct asked {
    double replicas, slots, load, seed, requests, stale, prefixes;
    const char *policy, *trace;
    bool json, refuse, help;
    struct sim_request *recorded;
};

/* ---- arguments ----------------------------------------------------------------------------------------------------*/
static int read_number(const char *name, const char *text, double low, double high, bool whole, double *out,
                       struct error *err)
{
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    if (*end || end == text || errno || !(v >= low && v <= high) || (whole && v != floor(v)))
        return error_set(err, ERR_INPUT, name, "`%.40s` is not a %snumber from %g to %g", text,
                         whole ? "whole " : "", low, high);
    *out = v;
    return 0;
}

static int set_value(struct asked *a, const char *name, const char *value, struct error *err)
{
    const struct {
        const char *name;
        double *at, low, high;
        bool whole;
    } numbers[] = {{"--replicas", &a->replicas, 1, ROUTE_MAX_REPLICAS, true},
                   {"--slots", &a->slots, 1, SLOTS_MOST, true},
                   {"--load", &a->load, 0.001, 0.999, false},
                   {"--seed", &a->seed, 0, 1e15, true},
                   {"--requests", &a->requests, 100, 1e9, true},
                   {"--prefixes", &a->prefixes, CACHE_LEAST, CACHE_MOST, true},
                   {"--stale", &a->stale, 0, 1e6, false}};
    for (size_t i = 0; i < COUNT_OF(numbers); i++)
        if (strcmp(name, numbers[i].name) == 0)
            return read_number(name, value, numbers[i].low, numbers[i].high, numbers[i].whole, numbers[i].at,
                               err);
    if (strcmp(name, "--policy") == 0)
        a->policy = value;
    else if (strcmp(name, "--trace") == 0)
        a->trace = value;
    else
        return error_set(err, ERR_INPUT, name,
                         "is no option of bench route; see mpiserve bench route --help");
    return 0;
}

static int read_arguments(struct asked *a, int argc, char **argv, struct error *err)
{
    *a = (struct asked){.replicas = 10000, .slots = 1, .load = 0.8, .seed = 1, .policy = "all"};
    const struct {
        const char *name;
        bool *at;
    } flags[] = {{"--json", &a->json}, {"--refuse", &a->refuse}, {"--help", &a->help}, {"-h", &a->help}};
    for (int i = 3; i < argc; i++) {
        char name[32];
        size_t k = 0;
        while (k < COUNT_OF(flags) && strcmp(argv[i], flags[k].name) != 0) k++;
        if (k < COUNT_OF(flags)) {
            *flags[k].at = true;
            continue;
        }
        const char *equals = strchr(argv[i], '=');
        snprintf(name, sizeof name, "%.*s", equals ? (int)(equals - argv[i]) : 31, argv[i]);
        const char *value = equals ? equals + 1 : i + 1 < argc ? argv[++i] : "";
        if (set_value(a, name, value, err)) return err->code;
    }
    if (strcmp(a->policy, "all") != 0 && !route_policy_find(a->policy, err)) return err->code;
    if (a->trace && a->prefixes > 0)
        return error_set(err, ERR_INPUT, "--prefixes",
                         "is not for a recorded load: a trace says nothing of prompts");
    if (a->requests == 0)
        a->requests = fmin(REQUESTS_MOST, fmax(REQUESTS_LEAST, REQUESTS_A_SLOT * a->replicas * a->slots));
    return 0;
}

/* ---- a recorded load ----------------------------------------------------------------------------------------------*/
/* 1: a request; 0: an empty line or a comment; else an error. */
static int read_line(const char *path, u64 number, const char *text, double before, struct sim_request *r,
                     struct error *err)
{
    char where[256], *end;
    snprintf(where, sizeof where, "%.200s:%llu", path, (unsigned long long)number);
    text += strspn(text, " \t\r");
    if (!*text || *text == '#') return 0;
    *r = (struct sim_request){.session = number};
    r->at = strtod(text, &end);
    bool ok = end > text && isfinite(r->at) && r->at >= 0;
    text = end;
    r->service = strtod(text, &end);
    ok = ok && end > text && isfinite(r->service) && r->service >= 0;
    text = end + strspn(end, " \t");
    size_t len = strcspn(text, " \t\r");
    if (len) r->session = hash_bytes(text, len, 0);
    if (!ok || text[len + strspn(text + len, " \t\r")])
        return error_set(err, ERR_INPUT, where, "is not `ARRIVAL SERVICE [SESSION]`, in seconds");
    if (r->at < before)
        return error_set(err, ERR_INPUT, where, "comes before the line above it: sort the file by arrival");
    return 1;
}

static int read_trace(struct asked *a, struct error *err)
{
    struct buf text = {0};
    u64 n = 0, number = 0, room = 0;
    double before = 0;
    int rc = file_read(a->trace, TRACE_MOST, &text, err);
    for (char *line = text.data, *next; rc >= 0 && line && *line; line = next) {
        size_t len = strcspn(line, "\n");
        next = line + len + (line[len] == '\n');
        line[len] = 0;
        if (n == room) a->recorded = mem_resize(a->recorded, (room = 2 * room + 1024) * sizeof *a->recorded);
        rc = read_line(a->trace, ++number, line, before, &a->recorded[n], err);
        if (rc > 0) before = a->recorded[n++].at;
    }
    buf_release(&text);
    if (rc >= 0 && n == 0) rc = error_set(err, ERR_INPUT, a->trace, "holds no requests");
    a->requests = (double)n;
    return MIN_OF(rc, 0);
}

/* ---- the answer ---------------------------------------------------------------------------------------------------*/
struct run {
    const struct route_policy *policy;
    enum sim_service service;
    struct sim_result result;
    struct theory theory;
};
static const char *const service_names[SIM_SERVICES] = {"exponential", "lognormal", "recorded"};

static void run_one(const struct asked *a, const struct route_policy *policy, enum sim_service service,
                    struct run *out)
{
    const struct sim_spec spec = {.policy = policy,
                                  .replicas = (u32)a->replicas,
                                  .slots = (u32)a->slots,
                                  .load = a->load,
                                  .stale = a->stale,
                                  .refuse = a->refuse,
                                  .prefixes = (u32)a->prefixes,
                                  .seed = (u64)a->seed,
                                  .service = service,
                                  .recorded = a->recorded,
                                  .requests = (u64)a->requests};
    *out = (struct run){.policy = policy, .service = service};
    sim_run(&spec, &out->result);
    bool known = service == SIM_EXPONENTIAL && !a->refuse && a->stale <= 0 && a->prefixes <= 0;
    out->theory = known ? theory_of(route_policy_name(policy), spec.replicas, spec.slots, spec.load)
                        : (struct theory){NAN, NAN, NAN};
}

static void print_theory(double v)
{
    isnan(v) ? printf("%9s", "-") : printf("%9.2f", v);
}

static void print_head(const struct asked *a, enum sim_service service)
{
    if (service == SIM_RECORDED)
        printf("\n%s: %.0f requests, waits in seconds%36s|\n", a->trace, a->requests, "");
    else
        printf("\n%s service, waits in mean service times%*s|          theory\n", service_names[service],
               (int)(60 - strlen(service_names[service])), "");
    printf("%-13s%9s%9s%9s%8s%7s%7s%9s%9s%9s  |%9s%9s%9s\n", "policy", "p50 wait", "p99 wait", "max/mean",
           "max", "kept", "hits", "choices", "ns", "p99 ns", "p50 wait", "p99 wait", "max");
}

static void print_run(const struct asked *a, const struct run *x, bool first)
{
    const struct sim_result *r = &x->result;
    if (first) print_head(a, x->service);
    printf("%-13s%9.2f%9.2f%9.2f%8.1f%6.1f%%", route_policy_name(x->policy), r->wait_p50, r->wait_p99,
           r->imbalance, r->most_ongoing, 100 * r->kept);
    isnan(r->hits) ? printf("%7s", "-") : printf("%6.1f%%", 100 * r->hits);
    printf("%9.2f%9.0f%9.0f  |", r->choices, r->decision_ns, r->decision_p99_ns);
    print_theory(x->theory.wait_p50);
    print_theory(x->theory.wait_p99);
    print_theory(x->theory.most_ongoing);
    puts("");
    fflush(stdout);
}

static void add_number(struct json_out *o, const char *key, double v)
{
    json_out_key(o, key);
    if (isnan(v))
        json_out_null(o);
    else if (v == floor(v) && fabs(v) < 1e15)
        json_out_int(o, (i64)v);
    else
        json_out_real(o, v);
}

static void add_theory(struct json_out *o, const struct theory *t)
{
    json_out_key(o, "theory");
    if (isnan(t->wait_p99)) {
        json_out_null(o);
        return;
    }
    json_out_object(o);
    add_number(o, "wait_p50", t->wait_p50);
    add_number(o, "wait_p99", t->wait_p99);
    add_number(o, "most_ongoing", t->most_ongoing);
    json_out_end_object(o);
}

static void add_run(struct json_out *o, const struct run *x)
{
    const struct sim_result *r = &x->result;
    const struct {
        const char *key;
        double value;
    } numbers[] = {{"requests", (double)r->measured},
                   {"wait_p50", r->wait_p50},
                   {"wait_p99", r->wait_p99},
                   {"wait_mean", r->wait_mean},
                   {"imbalance", r->imbalance},
                   {"most_ongoing", r->most_ongoing},
                   {"kept", r->kept},
                   {"hits", r->hits},
                   {"choices", r->choices},
                   {"decision_ns_p50", r->decision_ns},
                   {"decision_ns_p99", r->decision_p99_ns}};
    json_out_object(o);
    json_out_key(o, "policy");
    json_out_str(o, route_policy_name(x->policy));
    json_out_key(o, "service");
    json_out_str(o, service_names[x->service]);
    for (size_t i = 0; i < COUNT_OF(numbers); i++) add_number(o, numbers[i].key, numbers[i].value);
    add_theory(o, &x->theory);
    json_out_end_object(o);
}

static void begin(const struct asked *a, struct json_out *o, struct buf *text)
{
    json_out_init(o, text);
    json_out_object(o);
    json_out_key(o, "mpiserve");
    json_out_str(o, MPISERVE_VERSION);
    add_number(o, "replicas", a->replicas);
    add_number(o, "slots", a->slots);
    add_number(o, "load", a->trace ? NAN : a->load);
    add_number(o, "seed", a->seed);
    add_number(o, "stale", a->stale);
    add_number(o, "prefixes", a->prefixes);
    json_out_key(o, "refuse");
    json_out_bool(o, a->refuse);
    json_out_key(o, "runs");
    json_out_array(o);
    if (a->json) return;
    printf("%.0f replicas of %.0f slot%s, ", a->replicas, a->slots, a->slots > 1 ? "s" : "");
    if (!a->trace) printf("load %g, %.0f requests, ", a->load, a->requests);
    printf("seed %.0f; a full replica %s", a->seed, a->refuse ? "refuses" : "queues");
    if (a->stale > 0) printf("; ends are seen every %g", a->stale);
    if (a->prefixes > 0) printf("; prefixes, caches of %.0f blocks", a->prefixes);
    puts("");
}

static void bench(const struct asked *a)
{
    struct buf text = {0};
    struct json_out o;
    enum sim_service from = a->trace ? SIM_RECORDED : SIM_EXPONENTIAL,
                     to = a->trace ? SIM_RECORDED : SIM_LOGNORMAL;
    begin(a, &o, &text);
    for (enum sim_service service = from; service <= to; service++) {
        bool first = true;
        const struct route_policy *p;
        for (u32 i = 0; (p = route_policy_at(i)); i++) {
            struct run run;
            if (strcmp(a->policy, "all") != 0 && strcmp(a->policy, route_policy_name(p)) != 0) continue;
            run_one(a, p, service, &run);
            add_run(&o, &run);
            if (!a->json) print_run(a, &run, first);
            first = false;
        }
    }
    json_out_end_array(&o);
    json_out_end_object(&o);
    if (a->json) puts(text.data);
    buf_release(&text);
}

int bench_route(int argc, char **argv)
{
    struct asked a;
    struct error err = {0};
    char line[1100];
    int status = EXIT_FINE;
    if (read_arguments(&a, argc, argv, &err)) status = EXIT_USAGE;
    if (a.help) {
        fputs(usage, stdout);
        return EXIT_FINE;
    }
    if (status == EXIT_FINE && a.trace && read_trace(&a, &err)) status = EXIT_FAILED;
    if (status == EXIT_FINE)
        bench(&a);
    else
        log_error("%s", error_text(&err, line, sizeof line));
    free(a.recorded);
    return status;
}
