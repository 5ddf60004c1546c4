/* fake_server [options of mpiserve] MODEL: the ingress with a pretended agent, so that HTTP can be tested without MPI and engines.
 *
 * The agent answers with the prompt's own tokens (sample s starts at token s), then with the end of sequence; one token a
 * sample and step. Some seeds make it behave in other ways, see enum manner. Lines on stdin: ready, drain, abort, ill, well, quit.
 * Prints "port N" when it listens. */
#include "mpiserve/config.h"
#include "mpiserve/ingress.h"
#include "mpiserve/model.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum manner {
    FAILS = 9001,       /* error after 3 tokens */
    RETRY_FIRST = 9002, /* goes away before the first token */
    RETRY_LATER = 9003, /* goes away after 2 tokens */
    SLOW = 9004,        /* a token every 100 ms */
    TWICE = 9005,       /* every chunk is delivered twice */
    GAP = 9006,         /* token 2 is never delivered */
    BUNDLES = 9007,     /* 5 tokens a chunk */
    FULL = 9008,        /* the queue is full */
    HANGS = 9009,       /* no token, ever */
    FEW = 9010,         /* takes 2 requests at a time */
    SHORT = 9011,       /* says that it is over while samples still run */
};
enum { MOST = 128 };

struct run {
    struct queue_node node; /* first */
    struct run *next;
    struct request *r;
    u32 sent[MOST];
    bool ended[MOST], cancelled;
    u64 due_ns;
};
struct agent {
    struct queue *arrivals;
    struct run *runs;
    struct ingress *in;
    u32 vocab;
    u64 step_ns;
    _Atomic u32 submitted, running, few;
    _Atomic u32 cancels;
    pthread_mutex_t lock; /* the ids below */
    u64 wanted[4096];     /* cancels not seen yet */
    u32 n_wanted;
    _Atomic bool ill, quit;
};

/* ---- called by the ingress ----------------------------------------------------------------------------------- */
static int submit(void *agent, struct request *r, const struct reservation_id *reservation,
                  struct ingress_refusal *why)
{
    if (reservation) return ERR_NOT_FOUND;
    struct agent *a = agent;
    struct error err;
    if (request_check(r, r->bytes, a->vocab, &err) < 0) BUG("bad request: %s: %s", err.where, err.message);
    why->retry_after_s = 7;
    if (r->sampling.seed == FULL) return ERR_FULL;
    if (r->sampling.seed == FEW && atomic_fetch_add(&a->few, 1) >= 2) {
        atomic_fetch_sub(&a->few, 1);
        return ERR_FULL;
    }
    struct run *run = mem_zero(1, sizeof(*run));
    run->r = r;
    atomic_fetch_add(&a->submitted, 1);
    atomic_fetch_add(&a->running, 1);
    queue_push(a->arrivals, &run->node);
    return 0;
}

static void cancel(void *agent, u64 request)
{
    struct agent *a = agent;
    atomic_fetch_add(&a->cancels, 1);
    pthread_mutex_lock(&a->lock);
    BUG_ON(a->n_wanted == COUNT_OF(a->wanted));
    a->wanted[a->n_wanted++] = request;
    pthread_mutex_unlock(&a->lock);
}

/* Never answers. */
static int reserve(void *agent, u64 ask, const struct route_ask *about)
{
    (void)agent, (void)ask, (void)about;
    return 0;
}

static int reservation(void *agent, const struct reservation_id *id, bool release,
                       struct ingress_reservation *out)
{
    (void)agent, (void)id, (void)release, (void)out;
    return ERR_NOT_FOUND;
}

static void health(void *agent, struct ingress_health *out)
{
    struct agent *a = agent;
    out->ok = !atomic_load(&a->ill);
    if (!out->ok) snprintf(out->reason, sizeof(out->reason), "The fake agent is ill.");
}

static void topology(void *agent, struct buf *json)
{
    struct agent *a = agent;
    buf_printf(json, "{\"submitted\":%u,\"running\":%u,\"cancels\":%u}", atomic_load(&a->submitted),
               atomic_load(&a->running), atomic_load(&a->cancels));
}

static void metrics(void *agent, struct buf *text)
{
    (void)agent;
    buf_text(text, "fake_agent 1\n");
}

static void drain(void *agent)
{
    ingress_drain(((struct agent *)agent)->in);
}

static u32 in_flight(void *agent)
{
    return atomic_load(&((struct agent *)agent)->running);
}

/* ---- the main thread ----------------------------------------------------------------------------------------- */
static bool has(const i32 *ids, u32 n, i32 id)
{
    for (u32 i = 0; i < n; i++)
        if (ids[i] == id) return true;
    return false;
}

/* The next token of a sample, and whether it ends it. */
static i32 next_token(const struct request *r, u32 sample, u32 index, enum finish *finish, i32 *stop_id)
{
    const i32 *prompt = request_at(r, r->prompt), *eos = request_at(r, r->eos_ids),
              *stop = request_at(r, r->stop_ids);
    bool may_end = index >= r->sampling.min_tokens;
    i32 id = index < r->prompt.len ? prompt[(index + sample) % r->prompt.len] : eos[0];
    bool ends = has(eos, r->eos_ids.len, id) && !r->sampling.ignore_eos;
    if (ends && !may_end) {
        id = 33; /* what a mask would leave */
        ends = false;
    }
    *finish = ends ? FINISH_STOP : FINISH_NONE;
    if (!ends && may_end && has(stop, r->stop_ids.len, id)) {
        *finish = FINISH_STOP;
        *stop_id = id;
    }
    if (*finish == FINISH_NONE && index + 1 >= r->sampling.max_tokens) *finish = FINISH_LENGTH;
    return id;
}

static void deliver(struct agent *a, const struct chunk *head, const i32 *tokens,
                    const struct token_logprob *lp, const char *error)
{
    struct buf message = {0};
    struct error err;
    size_t at = 0;
    chunk_add(&message, head, tokens, lp, error);
    const struct chunk *c = chunk_next(message.data, message.len, &at, &err);
    BUG_ON(!c);
    ingress_deliver(a->in, c);
    buf_release(&message);
}

static void set_logprobs(const struct request *r, struct token_logprob *lp, i32 id, u32 index, u32 vocab)
{
    u32 n = 1 + (u32)r->sampling.n_logprobs;
    lp[0] = (struct token_logprob){id, -0.125f * (float)(1 + index % 7), 1};
    for (u32 i = 1; i < n; i++)
        lp[i] =
            (struct token_logprob){(i32)(((u32)id + i - 1) % vocab), lp[0].logprob - (float)(i - 1), (i32)i};
}

/* A chunk for one sample. */
static void step_sample(struct agent *a, struct run *run, u32 sample)
{
    const struct request *r = run->r;
    u64 seed = r->sampling.seed;
    u32 most = seed == BUNDLES ? 5 : 1;
    i32 ids[5];
    struct token_logprob *lp =
        r->sampling.n_logprobs >= 0 ? mem_zero(5 * (1 + (size_t)r->sampling.n_logprobs), sizeof(*lp)) : NULL;
    struct chunk c = {.request = r->id,
                      .sample = sample,
                      .first = run->sent[sample],
                      .stop_id = -1,
                      .n_cached = sample == 0 && run->sent[sample] == 0 ? r->prompt.len / 2 : 0,
                      .n_top = lp ? (u32)r->sampling.n_logprobs : CHUNK_NO_LOGPROBS};
    enum finish finish = FINISH_NONE;
    while (c.n_tokens < most && finish == FINISH_NONE) {
        u32 index = run->sent[sample]++;
        ids[c.n_tokens] = next_token(r, sample, index, &finish, &c.stop_id);
        if (lp) set_logprobs(r, &lp[c.n_tokens * (1 + c.n_top)], ids[c.n_tokens], index, a->vocab);
        c.n_tokens++;
    }
    const char *error = NULL;
    if (seed == FAILS && c.first >= 3) error = "the fake engine fell over";
    bool gone = (seed == RETRY_FIRST) || (seed == RETRY_LATER && c.first >= 2);
    if (error || gone) {
        finish = error ? FINISH_ERROR : FINISH_RETRY;
        c.n_tokens = 0;
    }
    c.finish = (u8)finish;
    run->ended[sample] = finish != FINISH_NONE;
    c.last = true;
    for (u32 s = 0; s < r->n_samples; s++) c.last &= run->ended[s];
    if (error || gone || seed == SHORT) {
        c.last = true;
        for (u32 s = 0; s < r->n_samples; s++) run->ended[s] = true;
    }
    if (seed != GAP || c.first != 2) {
        if (seed == TWICE && !c.last) deliver(a, &c, ids, lp, error);
        deliver(a, &c, ids, lp, error);
    }
    free(lp);
}

/* True when the run is over. */
static bool step_run(struct agent *a, struct run *run, u64 now)
{
    const struct request *r = run->r;
    if (run->cancelled) {
        struct chunk c = {.request = r->id,
                          .finish = FINISH_ABORT,
                          .last = true,
                          .stop_id = -1,
                          .n_top = CHUNK_NO_LOGPROBS,
                          .first = run->sent[0]};
        deliver(a, &c, NULL, NULL, NULL);
        return true;
    }
    if (r->sampling.seed == HANGS || now < run->due_ns) return false;
    run->due_ns = now + (r->sampling.seed == SLOW ? 100 * NS_PER_MS : a->step_ns);
    bool over = true;
    for (u32 s = 0; s < r->n_samples; s++) {
        if (!run->ended[s]) step_sample(a, run, s);
        over &= run->ended[s];
    }
    return over;
}

static void take_arrivals(struct agent *a)
{
    struct run *oldest = (struct run *)queue_take_all(a->arrivals);
    for (struct run *run = oldest; run;) {
        struct run *next = (struct run *)run->node.next;
        run->next = a->runs;
        a->runs = run;
        run = next;
    }
}

/* Cancels are read before arrivals: so the request of each of them is here. */
static void take_cancels(struct agent *a)
{
    static u64 wanted[COUNT_OF(a->wanted)];
    pthread_mutex_lock(&a->lock);
    u32 n = a->n_wanted;
    memcpy(wanted, a->wanted, n * sizeof(wanted[0]));
    a->n_wanted = 0;
    pthread_mutex_unlock(&a->lock);
    take_arrivals(a);
    for (u32 i = 0; i < n; i++)
        for (struct run *run = a->runs; run; run = run->next)
            if (run->r->id == wanted[i]) run->cancelled = true;
}

static void turn(struct agent *a)
{
    take_cancels(a);
    u64 now = clock_ns();
    for (struct run **at = &a->runs; *at;) {
        struct run *run = *at;
        if (!step_run(a, run, now)) {
            at = &run->next;
            continue;
        }
        *at = run->next;
        if (run->r->sampling.seed == FEW) atomic_fetch_sub(&a->few, 1);
        free(run->r);
        free(run);
        atomic_fetch_sub(&a->running, 1);
    }
}

static void *read_commands(void *arg)
{
    struct agent *a = arg;
    char line[64];
    while (fgets(line, sizeof(line), stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (strcmp(line, "ready") == 0) ingress_ready(a->in);
        if (strcmp(line, "drain") == 0) ingress_drain(a->in);
        if (strcmp(line, "abort") == 0) ingress_abort(a->in, "The fake job is ending.");
        if (strcmp(line, "ill") == 0 || strcmp(line, "well") == 0) atomic_store(&a->ill, line[0] == 'i');
        if (strcmp(line, "quit") == 0) break;
        printf("done %s, %s\n", line, ingress_idle(a->in) ? "idle" : "busy");
        fflush(stdout);
    }
    atomic_store(&a->quit, true);
    return NULL;
}

int main(int argc, char **argv)
{
    static struct agent a;
    static struct config config;
    static struct model_config model;
    struct error err;
    char text[1200], key[256];
    const char *step = getenv("FAKE_STEP_US");
    a.step_ns = step ? strtoull(step, NULL, 10) * NS_PER_US : 0;
    log_setup(LOG_WARNING, "fake");
    int has_key = -1;
    if (config_load(&config, argc, argv, 1, &err) != 0 || model_read_config(config.model, &model, &err) < 0 ||
        (has_key = config_key(&config, key, sizeof(key), &err)) < 0 || !(a.arrivals = queue_new(&err))) {
        fprintf(stderr, "%s\n", error_text(&err, text, sizeof(text)));
        return 1;
    }
    pthread_mutex_init(&a.lock, NULL);
    a.vocab = model.vocab;
    struct ingress_spec spec = {
        .config = &config,
        .model = &model,
        .ingress_index = 3,
        .key = has_key ? key : NULL,
        .max_model_len = config.max_model_len ? (u32)config.max_model_len : model.max_position,
        .fingerprint = "fake-1",
        .agent = {&a, submit, cancel, reserve, reservation, health, topology, metrics, drain, in_flight}};
    a.in = ingress_new(&spec, &err);
    if (!a.in) {
        fprintf(stderr, "%s\n", error_text(&err, text, sizeof(text)));
        return 1;
    }
    printf("port %d\n", ingress_port(a.in));
    fflush(stdout);
    pthread_t commands;
    if (pthread_create(&commands, NULL, read_commands, &a) != 0) return 1;
    while (!atomic_load(&a.quit)) {
        turn(&a);
        struct pollfd p = {.fd = queue_fd(a.arrivals), .events = POLLIN};
        if (a.runs) {
            if (a.step_ns) usleep((useconds_t)(a.step_ns / NS_PER_US));
        } else if (queue_prepare_sleep(a.arrivals)) {
            poll(&p, 1, 20);
            queue_woke(a.arrivals);
        }
    }
    pthread_join(commands, NULL);
    ingress_free(a.in);
    while (a.runs) {
        struct run *run = a.runs;
        a.runs = run->next;
        free(run->r);
        free(run);
    }
    queue_free(a.arrivals);
    return 0;
}
