/* Inside of cli/: a simulation of routers under an open load, and what theory says about it.
 *
 * n replicas of some slots; requests come one by one, a router places each. Without `refuse` a full replica queues what it
 * gets (the model of the theorems); with it, as in a job, it refuses, the router chooses again, and who finds no slot at all
 * waits in one queue. With prefixes a replica has a cache of blocks (route_prompts.h): SIM_PREFILL of the mean service time are for
 * reading a prompt, in proportion to its blocks that are not in the cache; the load offered is that without caches. Times are in mean
 * service times, those of a recorded load in seconds. Pure but for the clock that
 * measures decisions. */
#ifndef CLI_ROUTE_SIM_H
#define CLI_ROUTE_SIM_H

#include "mpiserve/route.h"

enum sim_service { SIM_EXPONENTIAL, SIM_LOGNORMAL, SIM_RECORDED, SIM_SERVICES };
#define SIM_PREFILL   0.5
#define SIM_SIGMA     1.2 /* of the logarithm: squared coefficient of variation 3.2 */
#define SIM_NO_PROMPT UINT32_MAX
struct sim_request {
    double at, service;
    u64 session;
    u32 turn; /* with prefixes: which of its session's requests; SIM_NO_PROMPT */
};
struct sim_spec {
    const struct route_policy *policy;
    u32 replicas, slots;
    double load;  /* offered, of all slots; below 1 */
    double stale; /* ends of requests are seen only so often; 0: at once */
    bool refuse;
    u32 prefixes; /* blocks of a replica's cache; 0: there are none */
    u64 seed;
    enum sim_service service;
    const struct sim_request *recorded; /* [requests], by time */
    u64 requests;                       /* the first half warms up; of a recorded load all are measured */
};
struct sim_result {
    u64 measured;
    double wait_p50, wait_p99, wait_mean;
    double imbalance;    /* most ongoing on a replica / mean, on average over moments */
    double most_ongoing; /* the same without the division */
    double kept;         /* share of requests that went where their session was before */
    double hits;         /* share of the prompts' blocks that were in the replica's cache */
    double choices;      /* a request; above 1 only with refuse */
    double decision_ns,
        decision_p99_ns; /* median: router_round, choices, refusals, router_update, router_chosen */
};
void sim_run(const struct sim_spec *spec, struct sim_result *out);

/* What theory says about one slot a replica and exponential service; NAN: nothing known to this program. policy: by name.
 *   random         M/M/1; with more slots M/M/c (Erlang C)
 *   power_of_two   the limit of many replicas: a share rho^(2^k - 1) of them has k or more (Vvedenskaya, Dobrushin, Karpelevich
 *                  1996; Mitzenmacher 1996)
 *   round_robin    E_n/M/1: every n-th arrival of a Poisson stream
 *   least_loaded   the limit of many replicas: nobody waits */
struct theory {
    double wait_p50, wait_p99;
    double most_ongoing; /* k where the expected number of replicas with k or more is 1 */
};
struct theory theory_of(const char *policy, u32 replicas, u32 slots, double load);

#endif
