/* What queueing theory says about the simulated routers. */
#include "cli/route_sim.h"

#include <math.h>
#include <string.h>

/* ---- random: M/M/c ------------------------------------------------------------------------------------------------*/
/* Probability that all servers are busy, by the recursion of Erlang's B. */
static double erlang_c(u32 servers, double load)
{
    double b = 1, offered = servers * load;
    for (u32 k = 1; k <= servers; k++) b = offered * b / (k + offered * b);
    return b / (1 - load * (1 - b));
}

static struct theory of_random(u32 n, u32 slots, double load)
{
    double busy = erlang_c(slots, load), rate = slots * (1 - load);
    double longest = log(n) / log(1 / load);
    return (struct theory){fmax(0, log(busy / 0.5) / rate), fmax(0, log(busy / 0.01) / rate),
                           slots == 1 ? longest : NAN};
}

/* ---- power of two -------------------------------------------------------------------------------------------------*/
static double share_with(int k, double load)
{
    return pow(load, exp2(k) - 1);
}

/* Who comes finds k ahead when both looks find k or more, and not both more than k; each of them takes one mean time. */
static double two_wait_beyond(double t, double load)
{
    double beyond = 0, term = exp(-t), erlang = 0; /* Erlang: P(sum of k > t) */
    for (int k = 1; k < 64 && share_with(k, load) > 1e-12; k++) {
        erlang += term;
        term *= t / k;
        beyond += (pow(share_with(k, load), 2) - pow(share_with(k + 1, load), 2)) * erlang;
    }
    return beyond;
}

static double two_quantile(double q, double load)
{
    double low = 0, high = 1000;
    if (two_wait_beyond(0, load) <= 1 - q) return 0;
    for (int i = 0; i < 60; i++) {
        double middle = (low + high) / 2;
        *(two_wait_beyond(middle, load) > 1 - q ? &low : &high) = middle;
    }
    return low;
}

static struct theory of_two(u32 n, u32 slots, double load)
{
    if (slots > 1) return (struct theory){NAN, NAN, NAN};
    return (struct theory){two_quantile(0.5, load), two_quantile(0.99, load),
                           log2(1 + log(n) / log(1 / load))};
}

/* ---- round robin --------------------------------------------------------------------------------------------------*/
static struct theory of_turns(u32 n, u32 slots, double load)
{
    double rate = n * load, s = load; /* GI/M/1: s is the root below 1 of s = E[exp(-(1 - s) gap)] */
    if (slots > 1) return (struct theory){NAN, NAN, NAN};
    for (int i = 0; i < 10000; i++) s = exp(-(double)n * log1p((1 - s) / rate));
    return (struct theory){fmax(0, log(s / 0.5) / (1 - s)), fmax(0, log(s / 0.01) / (1 - s)),
                           1 + log(n * load) / log(1 / s)};
}

/* ---- least loaded -------------------------------------------------------------------------------------------------*/
static struct theory of_least(u32 n, u32 slots, double load)
{
    (void)n, (void)load;
    return (struct theory){0, 0, slots == 1 ? 1 : NAN};
}

struct theory theory_of(const char *policy, u32 replicas, u32 slots, double load)
{
    static const struct {
        const char *policy;
        struct theory (*of)(u32 n, u32 slots, double load);
    } rows[] = {{"random", of_random},
                {"power_of_two", of_two},
                {"round_robin", of_turns},
                {"least_loaded", of_least}};
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        if (strcmp(rows[i].policy, policy) == 0) return rows[i].of(replicas, slots, load);
    return (struct theory){NAN, NAN, NAN};
}
