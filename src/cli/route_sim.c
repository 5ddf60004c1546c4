/* Routers under load, event by event. */
#include "cli/route_sim.h"
#include "cli/route_prompts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { NS_MOST = 1 << 16, CLOCK_LOOKS = 1001, SESSIONS_A_REPLICA = 10, NOBODY = -1 };

struct end { /* of a running request */
    double at;
    u32 replica, turn;
    u64 session;
};
struct waiting {
    struct sim_request request;
    i32 next;
    bool counts;
};
struct line { /* of those who wait, in a replica or for any */
    i32 first, last;
};
struct sim {
    const struct sim_spec *spec;
    struct router *router;
    struct route_view *views; /* as the router sees them */
    u32 *running, *ongoing;   /* [replicas] as they are; ongoing: with those who wait there */
    struct line *lines;       /* [replicas], and one more for those who wait for any */
    struct waiting *pool;
    u32 n_pool, max_pool;
    i32 free;         /* in the pool */
    struct end *ends; /* a heap */
    u32 n_ends, max_ends;
    i32 *home;             /* [sessions] where it was last */
    u64 n_sessions, total; /* total: ongoing */
    struct caches *caches; /* NULL: no prefixes */
    struct prompt prompt;
    u32 *turns; /* [sessions] requests so far */
    u64 n_blocks, n_hits;
    double now, next_look;
    bool warm;
    float *waits;
    u64 n_waits, n_chosen, n_choices, n_kept, n_again, n_moments;
    double sum_most, sum_imbalance;
    u64 clock_ns; /* what looking at the clock costs */
    u32 *times;   /* [NS_MOST] decisions by ns */
    u64 n_times;
};

/* ---- the load -----------------------------------------------------------------------------------------------------*/
static double unit(u32 a, u32 b)
{
    return ((double)(((u64)a << 32 | b) >> 11) + 0.5) * 0x1p-53;
}

static double draw_service(const struct sim_spec *p, u64 i)
{
    u32 x[4];
    rng_block(p->seed, i, 1, x);
    double u = unit(x[0], x[1]), v = unit(x[2], x[3]);
    if (p->service == SIM_EXPONENTIAL) return -log(u);
    return exp(SIM_SIGMA * sqrt(-2 * log(u)) * cos(2 * 3.14159265358979323846 * v) -
               SIM_SIGMA * SIM_SIGMA / 2);
}

/* The same requests for every policy. */
static struct sim_request next_request(struct sim *s, u64 i, double before)
{
    const struct sim_spec *p = s->spec;
    u32 x[4];
    if (p->service == SIM_RECORDED) return p->recorded[i];
    rng_block(p->seed, i, 2, x);
    double gap = -log(unit(x[0], x[1])) / ((double)p->replicas * p->slots * p->load);
    u64 session = (u64)x[2] * s->n_sessions >> 32;
    u32 turn = s->caches ? s->turns[session]++ : SIM_NO_PROMPT;
    return (struct sim_request){before + gap, draw_service(p, i), session, turn};
}

/* ---- ends, earliest first -----------------------------------------------------------------------------------------*/
static void ends_put(struct sim *s, struct end e)
{
    if (s->n_ends == s->max_ends) {
        s->max_ends = MAX_OF(1024u, 2 * s->max_ends);
        s->ends = mem_resize(s->ends, s->max_ends * sizeof *s->ends);
    }
    u32 at = s->n_ends++;
    for (; at > 0 && e.at < s->ends[(at - 1) / 2].at; at = (at - 1) / 2) s->ends[at] = s->ends[(at - 1) / 2];
    s->ends[at] = e;
}

static struct end ends_take(struct sim *s)
{
    struct end first = s->ends[0], e = s->ends[--s->n_ends];
    u32 at = 0;
    for (u32 child; (child = 2 * at + 1) < s->n_ends; at = child) {
        child += child + 1 < s->n_ends && s->ends[child + 1].at < s->ends[child].at;
        if (s->ends[child].at >= e.at) break;
        s->ends[at] = s->ends[child];
    }
    s->ends[at] = e;
    return first;
}

/* ---- those who wait -----------------------------------------------------------------------------------------------*/
static void line_put(struct sim *s, struct line *line, const struct sim_request *r)
{
    i32 i = s->free;
    if (i == NOBODY) {
        if (s->n_pool == s->max_pool) {
            s->max_pool = MAX_OF(1024u, 2 * s->max_pool);
            s->pool = mem_resize(s->pool, s->max_pool * sizeof *s->pool);
        }
        i = (i32)s->n_pool++;
    } else {
        s->free = s->pool[i].next;
    }
    s->pool[i] = (struct waiting){*r, NOBODY, s->warm};
    *(line->first == NOBODY ? &line->first : &s->pool[line->last].next) = i;
    line->last = i;
}

static struct waiting line_take(struct sim *s, struct line *line)
{
    i32 i = line->first;
    struct waiting w = s->pool[i];
    line->first = w.next;
    s->pool[i].next = s->free;
    s->free = i;
    return w;
}

/* ---- requests -----------------------------------------------------------------------------------------------------*/
/* What is in the caches is told at once, or with the next look. */
static struct router *told(const struct sim *s)
{
    return s->spec->stale > 0 ? NULL : s->router;
}

/* How long it takes, now that it is known which blocks are there. */
static double read_prompt(struct sim *s, u32 replica, const struct sim_request *r, bool counts)
{
    if (!s->caches || r->turn == SIM_NO_PROMPT) return r->service;
    prompt_make(r->session, r->turn, &s->prompt);
    u32 n = s->prompt.n, found = caches_use(s->caches, told(s), replica, s->prompt.hashes, n);
    if (counts) {
        s->n_blocks += n;
        s->n_hits += found;
    }
    return r->service * (1 - SIM_PREFILL + SIM_PREFILL * (n - found) / PROMPT_MEAN);
}

static void keep_answer(struct sim *s, const struct end *e)
{
    if (!s->caches || e->turn == SIM_NO_PROMPT) return;
    prompt_make(e->session, e->turn, &s->prompt);
    caches_use(s->caches, told(s), e->replica, s->prompt.hashes, s->prompt.n_then);
}

static void start(struct sim *s, u32 replica, const struct sim_request *r, bool counts)
{
    double takes = read_prompt(s, replica, r, counts);
    s->running[replica]++;
    ends_put(s, (struct end){s->now + takes, replica, r->turn, r->session});
    if (counts) s->waits[s->n_waits++] = (float)(s->now - r->at);
}

static void note_time(struct sim *s, u64 ns)
{
    ns -= MIN_OF(ns, s->clock_ns);
    s->times[MIN_OF(ns, NS_MOST - 1u)]++;
    s->n_times++;
}

/* What the head does for a request: choose until one accepts; what it answers is what the view is from now on. */
static i32 decide(struct sim *s, const struct sim_request *r)
{
    struct route_ask ask = {.has_session = true, .session = r->session};
    bool refuse = s->spec->refuse;
    if (s->caches && r->turn != SIM_NO_PROMPT) {
        prompt_make(r->session, r->turn, &s->prompt);
        ask.prefix = s->prompt.hashes;
        ask.n_prefix = s->prompt.n;
    }
    u64 begin = clock_ns();
    router_round(s->router);
    for (i32 i; (i = router_choose(s->router, &ask)) >= 0; router_exclude(s->router, (u32)i)) {
        bool taken = !refuse || s->ongoing[i] < s->spec->slots;
        s->n_choices += s->warm;
        s->ongoing[i] += taken;
        s->views[i].ongoing = s->ongoing[i];
        router_update(s->router, (u32)i);
        if (!taken) continue;
        router_chosen(s->router, (u32)i, &ask);
        if (s->warm) note_time(s, clock_ns() - begin);
        return i;
    }
    return NOBODY;
}

static void note_home(struct sim *s, u64 session, i32 replica)
{
    i32 *home = &s->home[session % s->n_sessions];
    if (s->warm && *home != NOBODY) {
        s->n_again++;
        s->n_kept += *home == replica;
    }
    *home = replica;
}

static bool place(struct sim *s, const struct sim_request *r, bool counts)
{
    i32 i = decide(s, r);
    if (i == NOBODY) return false;
    note_home(s, r->session, i);
    s->total++;
    if (s->running[i] < s->spec->slots)
        start(s, (u32)i, r, counts);
    else
        line_put(s, &s->lines[i], r);
    return true;
}

static void arrive(struct sim *s, const struct sim_request *r)
{
    struct line *any = &s->lines[s->spec->replicas];
    s->n_chosen += s->warm;
    if (any->first != NOBODY || !place(s, r, s->warm)) line_put(s, any, r);
}

static void end(struct sim *s)
{
    struct end e = ends_take(s);
    u32 i = e.replica;
    struct line *own = &s->lines[i], *any = &s->lines[s->spec->replicas];
    keep_answer(s, &e);
    s->running[i]--;
    s->ongoing[i]--;
    s->total--;
    if (s->spec->stale <= 0) {
        s->views[i].ongoing = s->ongoing[i];
        router_update(s->router, i);
    }
    if (own->first != NOBODY) {
        struct waiting w = line_take(s, own);
        start(s, i, &w.request, w.counts);
    } else if (any->first != NOBODY) {
        const struct waiting *w = &s->pool[any->first];
        if (place(s, &w->request, w->counts)) line_take(s, any);
    }
}

/* What leaders say of themselves. */
static void look(struct sim *s)
{
    for (u32 i = 0; i < s->spec->replicas; i++) {
        if (s->caches) caches_tell(s->caches, s->router, i);
        if (s->views[i].ongoing == s->ongoing[i]) continue;
        s->views[i].ongoing = s->ongoing[i];
        router_update(s->router, i);
    }
    s->next_look += s->spec->stale;
}

/* All that happens before this time. */
static void advance(struct sim *s, double to)
{
    for (;;) {
        double next = s->n_ends ? s->ends[0].at : INFINITY;
        if (MIN_OF(next, s->next_look) > to) break;
        s->now = MIN_OF(next, s->next_look);
        next <= s->next_look ? end(s) : look(s);
    }
    s->now = to;
}

static void note_moment(struct sim *s)
{
    u32 most = 0;
    for (u32 i = 0; i < s->spec->replicas; i++) most = MAX_OF(most, s->ongoing[i]);
    if (!s->total) return;
    s->n_moments++;
    s->sum_most += most;
    s->sum_imbalance += most * (double)s->spec->replicas / (double)s->total;
}

/* ---- a run --------------------------------------------------------------------------------------------------------*/
static int by_value(const void *a, const void *b)
{
    u64 p = *(const u64 *)a, q = *(const u64 *)b;
    return p < q ? -1 : p > q;
}
static int by_wait(const void *a, const void *b)
{
    float p = *(const float *)a, q = *(const float *)b;
    return p < q ? -1 : p > q;
}

static u64 clock_cost(void)
{
    u64 looks[CLOCK_LOOKS];
    for (int i = 0; i < CLOCK_LOOKS; i++) {
        u64 begin = clock_ns();
        looks[i] = clock_ns() - begin;
    }
    qsort(looks, CLOCK_LOOKS, sizeof *looks, by_value);
    return looks[CLOCK_LOOKS / 2];
}

/* Slots are busy as they will be on average, so that warming up takes less. */
static void fill(struct sim *s)
{
    const struct sim_spec *p = s->spec;
    if (p->service == SIM_RECORDED) return;
    for (u32 i = 0; i < p->replicas; i++) {
        u32 x[4];
        rng_block(p->seed, i, 3, x);
        u32 n = (u32)(p->slots * p->load + unit(x[0], x[1]));
        for (u32 k = 0; k < n; k++) {
            struct sim_request r = {0, draw_service(p, p->requests + (u64)i * p->slots + k), 0,
                                    SIM_NO_PROMPT};
            start(s, i, &r, false);
        }
        s->views[i].ongoing = s->ongoing[i] = n;
        s->total += n;
    }
}

static void init(struct sim *s, const struct sim_spec *p)
{
    *s = (struct sim){.spec = p, .free = NOBODY, .next_look = p->stale > 0 ? p->stale : INFINITY};
    s->views = mem_zero(p->replicas, sizeof *s->views);
    s->running = mem_zero(p->replicas, sizeof *s->running);
    s->ongoing = mem_zero(p->replicas, sizeof *s->ongoing);
    s->lines = mem_zero(p->replicas + 1, sizeof *s->lines);
    s->n_sessions = (u64)SESSIONS_A_REPLICA * p->replicas;
    s->home = mem_zero(s->n_sessions, sizeof *s->home);
    s->waits = mem_zero(p->requests, sizeof *s->waits);
    s->times = mem_zero(NS_MOST, sizeof *s->times);
    if (p->prefixes) {
        s->caches = caches_new(p->replicas, p->prefixes);
        s->turns = mem_zero(s->n_sessions, sizeof *s->turns);
    }
    for (u32 i = 0; i < p->replicas; i++)
        s->views[i] = (struct route_view){.replica = (i32)i, .leader = i, .n_slots = p->slots};
    for (u32 i = 0; i <= p->replicas; i++) s->lines[i].first = NOBODY;
    for (u64 i = 0; i < s->n_sessions; i++) s->home[i] = NOBODY;
    fill(s);
    s->router = router_new(p->policy, s->views, p->replicas, p->seed, p->prefixes);
    s->clock_ns = clock_cost();
}

static void release(struct sim *s)
{
    void *all[] = {s->views, s->running, s->ongoing, s->lines, s->pool,
                   s->ends,  s->home,    s->turns,   s->waits, s->times};
    router_free(s->router);
    caches_free(s->caches);
    for (size_t i = 0; i < COUNT_OF(all); i++) free(all[i]);
}

static double time_quantile(const struct sim *s, double q)
{
    u64 below = 0;
    u32 ns = 0;
    while (ns + 1 < NS_MOST && (below += s->times[ns]) < q * (double)s->n_times) ns++;
    return ns;
}

static void judge(struct sim *s, struct sim_result *out)
{
    *out = (struct sim_result){.measured = s->n_waits,
                               .decision_ns = time_quantile(s, 0.5),
                               .decision_p99_ns = time_quantile(s, 0.99)};
    if (s->n_moments) {
        out->imbalance = s->sum_imbalance / (double)s->n_moments;
        out->most_ongoing = s->sum_most / (double)s->n_moments;
    }
    if (s->n_again) out->kept = (double)s->n_kept / (double)s->n_again;
    out->hits = s->n_blocks ? (double)s->n_hits / (double)s->n_blocks : NAN;
    if (s->n_chosen) out->choices = (double)s->n_choices / (double)s->n_chosen;
    if (!s->n_waits) return;
    qsort(s->waits, s->n_waits, sizeof *s->waits, by_wait);
    out->wait_p50 = (double)s->waits[s->n_waits / 2];
    out->wait_p99 = (double)s->waits[s->n_waits * 99 / 100];
    for (u64 i = 0; i < s->n_waits; i++) out->wait_mean += (double)s->waits[i] / (double)s->n_waits;
}

void sim_run(const struct sim_spec *spec, struct sim_result *out)
{
    struct sim s;
    double at = 0;
    u64 between = MAX_OF(spec->replicas, 1000u); /* arrivals between two looks at all replicas */
    init(&s, spec);
    for (u64 i = 0; i < spec->requests; i++) {
        s.warm = spec->service == SIM_RECORDED || i >= spec->requests / 2;
        struct sim_request r = next_request(&s, i, at);
        advance(&s, at = r.at);
        arrive(&s, &r);
        if (s.warm && i % between == 0) note_moment(&s);
    }
    s.warm = false;
    while (s.n_ends) advance(&s, s.ends[0].at); /* who still waits gets its turn */
    judge(&s, out);
    release(&s);
}
