/* Calls between two sides: HTTP threads that answer, and the agent's main thread that delivers. They meet in a call's
 * mailbox. Nothing here calls the agent while it holds a lock. */
#include "ingress/call.h"

#include <stdlib.h>
#include <string.h>

enum { MAIL_ENOUGH = 256 * 1024 };

static struct shard *shard_of(struct ingress *in, u64 number)
{
    return &in->shards[number % SHARDS];
}

static struct part **bucket_of(struct shard *s, u64 id)
{
    return &s->parts[id / SHARDS % COUNT_OF(s->parts)];
}

/* ---- life ---------------------------------------------------------------------------------------------------- */
struct call *call_new(struct ingress *in)
{
    struct call *c = mem_zero(1, sizeof(*c));
    c->in = in;
    c->serial = atomic_fetch_add(&in->next_serial, 1) + 1;
    atomic_init(&c->refs, 1);
    pthread_mutex_init(&c->lock, NULL);
    arena_init(&c->mem, 4096);
    c->started_ns = clock_ns();
    atomic_init(&c->last_write_ns, c->started_ns);
    return c;
}

void call_unref(struct call *c)
{
    if (atomic_fetch_sub(&c->refs, 1) != 1) return;
    for (u32 i = 0; c->choices && i < c->n_choices; i++) choice_release(&c->choices[i]);
    struct buf *bufs[] = {&c->mail, &c->batch, &c->piece, &c->head, &c->out};
    for (size_t i = 0; i < COUNT_OF(bufs); i++) buf_release(bufs[i]);
    arena_release(&c->mem);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

struct route_ask session_of(const char *const *names, size_t n)
{
    size_t i = 0;
    while (i < n && (!names[i] || !names[i][0])) i++;
    if (i == n) return (struct route_ask){0};
    return (struct route_ask){.has_session = true, .session = hash_bytes(names[i], strlen(names[i]), 0)};
}

void call_set_session(struct call *c, const char *const *names, size_t n)
{
    struct route_ask ask = session_of(names, n);
    c->has_session = ask.has_session;
    c->session = ask.session;
}

static void live_add(struct call *c)
{
    struct shard *s = shard_of(c->in, c->serial);
    pthread_mutex_lock(&s->lock);
    c->next = s->live;
    s->live = c;
    pthread_mutex_unlock(&s->lock);
}

static void live_remove(struct call *c)
{
    struct shard *s = shard_of(c->in, c->serial);
    pthread_mutex_lock(&s->lock);
    for (struct call **at = &s->live; *at; at = &(*at)->next) {
        if (*at != c) continue;
        *at = c->next;
        break;
    }
    pthread_mutex_unlock(&s->lock);
}

static void part_add(struct ingress *in, struct part *p)
{
    struct shard *s = shard_of(in, p->id);
    pthread_mutex_lock(&s->lock);
    struct part **bucket = bucket_of(s, p->id);
    p->next = *bucket;
    *bucket = p;
    pthread_mutex_unlock(&s->lock);
    atomic_fetch_add(&in->n_parts, 1);
}

static void part_remove(struct ingress *in, struct part *p)
{
    struct shard *s = shard_of(in, p->id);
    pthread_mutex_lock(&s->lock);
    for (struct part **at = bucket_of(s, p->id); *at; at = &(*at)->next) {
        if (*at != p) continue;
        *at = p->next;
        break;
    }
    pthread_mutex_unlock(&s->lock);
    atomic_fetch_sub(&in->n_parts, 1);
}

/* ---- towards the agent --------------------------------------------------------------------------------------- */
static u32 part_max_tokens(const struct call *c, const struct prompt *prompt)
{
    i64 room = (i64)c->in->limits.max_len - prompt->n, asked = params_max_tokens(&c->p);
    if (api_pools(c->p.api)) return 1; /* sampling plays no part, but its values are checked */
    return (u32)(asked == PARAM_NONE ? room : MIN_OF(room, asked));
}

static struct request *build(const struct call *c, const struct part *part, u64 now)
{
    const struct prompt *prompt = &c->prompts[part->index];
    const struct model_config *model = c->in->spec.model;
    struct request head = {.id = part->id,
                           .n_samples = (u32)c->p.n,
                           .has_session = c->has_session,
                           .session = c->session,
                           .pooling = api_pools(c->p.api) ? model->pooling.kind : POOLING_NONE,
                           .second = prompt->second,
                           .adapter = c->adapter,
                           .sampling = c->sampling};
    if (strcmp(c->in->spec.config->scheduling_policy, "priority") == 0) head.priority = c->p.priority;
    head.sampling.max_tokens = part_max_tokens(c, prompt);
    head.sampling.min_tokens = (u32)MIN_OF(c->p.min_tokens, (i64)head.sampling.max_tokens);
    if (c->p.seed == PARAM_NONE) head.sampling.seed += (u64)part->index * (u64)c->p.n;
    if (c->deadline_ns) head.deadline_ns = c->deadline_ns > now ? c->deadline_ns - now : 1;
    struct request_parts parts = {.prompt = prompt->ids,
                                  .n_prompt = prompt->n,
                                  .allowed = c->p.allowed,
                                  .n_allowed = c->p.n_allowed,
                                  .bad_words = c->bad_words,
                                  .n_bad_words = c->n_bad_words,
                                  .eos_ids = model->eos,
                                  .n_eos_ids = model->n_eos,
                                  .stop_ids = c->p.stop_ids,
                                  .n_stop_ids = c->p.n_stop_ids,
                                  .bias = c->p.bias,
                                  .n_bias = c->p.n_bias};
    return request_build(&head, &parts);
}

static void set_open(struct call *c, struct part *part, bool open)
{
    pthread_mutex_lock(&c->lock);
    part->open = open;
    c->n_open += open ? 1 : -1u;
    pthread_mutex_unlock(&c->lock);
}

/* 0, or what submit said; nothing is left of the part then. */
static int submit(struct call *c, struct part *part, struct ingress_refusal *why)
{
    struct ingress *in = c->in;
    part->id = (u64)in->spec.ingress_index << 48 | (atomic_fetch_add(&in->next_id, 1) + 1);
    struct request *r = build(c, part, clock_ns());
    if (!r) return ERR_MEMORY;
    atomic_fetch_add(&c->refs, 1);
    set_open(c, part, true);
    part_add(in, part); /* before: the first chunk may come before submit returns */
    const struct reservation_id *reservation = c->has_reservation ? &c->reservation : NULL;
    int rc = in->spec.agent.submit(in->spec.agent.agent, r, reservation, why);
    if (rc == 0) return 0;
    free(r);
    part_remove(in, part);
    set_open(c, part, false);
    call_unref(c);
    return rc;
}

static int refused(struct ingress *in, struct api_error *e, int rc, const struct ingress_refusal *why)
{
    if (rc == ERR_NOT_FOUND || rc > 0) return reservation_fail(rc, e);
    if (rc == ERR_FULL && why->allowed_ms) {
        series_add(in->series.too_late, 1);
        api_fail(e, API_TOO_MANY, NULL,
                 "The first token is predicted to take %u ms, and %u ms are allowed. Try again later.",
                 why->predicted_ms, why->allowed_ms);
    } else {
        api_fail(e, API_UNAVAILABLE, NULL,
                 rc == ERR_FULL
                     ? "The server is full: all replicas are busy and the queue has no room. Try again later."
                 : rc == ERR_MEMORY ? "The request is too large to be passed on."
                                    : "No replica can take requests now. Try again later.");
    }
    e->retry_after_s = MAX_OF(why->retry_after_s, 1u);
    return -1;
}

/* Hands over the parts that wait. A full queue is an error only for a call that has nothing running. */
static int submit_waiting(struct call *c, struct api_error *e)
{
    while (c->n_submitted < c->n_prompts) {
        struct ingress_refusal why = {.retry_after_s = 1};
        struct part *part = &c->parts[c->n_submitted];
        int rc = submit(c, part, &why);
        if (rc == ERR_FULL && c->n_submitted > 0) return 0;
        if (rc != 0) return refused(c->in, e, rc, &why);
        c->n_submitted++;
    }
    return 0;
}

static void cancel_part(struct call *c, struct part *part)
{
    pthread_mutex_lock(&c->lock);
    bool now = part->open && !part->cancelled;
    part->cancelled = true;
    pthread_mutex_unlock(&c->lock);
    if (now) c->in->spec.agent.cancel(c->in->spec.agent.agent, part->id);
}

static void cancel_all(struct call *c)
{
    for (u32 i = 0; i < c->n_submitted; i++) cancel_part(c, &c->parts[i]);
}

int call_start(struct call *c, struct api_error *e)
{
    struct ingress *in = c->in;
    c->n_choices = c->n_prompts * (u32)c->p.n;
    c->parts = arena_alloc(&c->mem, c->n_prompts * sizeof(*c->parts));
    c->choices = arena_alloc(&c->mem, c->n_choices * sizeof(*c->choices));
    for (u32 i = 0; i < c->n_prompts; i++) {
        c->parts[i] = (struct part){.call = c, .index = i};
        c->n_prompt_tokens += c->prompts[i].n;
    }
    for (u32 i = 0; i < c->n_choices; i++) choice_init(c, &c->choices[i], &c->prompts[i / (u32)c->p.n]);
    if (c->p.stream) stream_begin(c);
    live_add(c);
    if (params_max_tokens(&c->p) == 0) { /* echo alone: nothing is to be run */
        for (u32 i = 0; i < c->n_choices; i++) {
            c->choices[i].finish = FINISH_LENGTH;
            if (c->p.stream) stream_choice(c, &c->choices[i]);
        }
        c->n_ended = c->n_choices;
    } else if (submit_waiting(c, e) < 0) {
        cancel_all(c);
        return -1;
    }
    const struct ingress_series *s = &in->series;
    series_observe(s->request_prompt, (double)c->n_prompt_tokens);
    series_observe(s->request_n, (double)c->p.n);
    if (params_max_tokens(&c->p) != PARAM_NONE)
        series_observe(s->request_max, (double)params_max_tokens(&c->p));
    return 0;
}

void call_fail(struct call *c, const struct api_error *e)
{
    if (c->failed) return;
    c->failed = true;
    c->error = *e;
    cancel_all(c);
}

void call_close(struct call *c)
{
    pthread_mutex_lock(&c->lock);
    c->closed = true;
    if (c->watched) watch_remove(c->in, c->fd);
    buf_release(&c->mail);
    pthread_mutex_unlock(&c->lock);
    live_remove(c);
    bool whole = c->over && !c->failed;
    if (!whole) cancel_all(c);
    for (u32 i = 0; i < c->n_submitted * (u32)c->p.n; i++)
        if (c->choices[i].finish == FINISH_NONE) series_add(c->in->series.success[c->failed ? 3 : 2], 1);
    if (whole) series_observe(c->in->series.e2e, (double)(clock_ns() - c->started_ns) / NS_PER_S);
    call_unref(c);
}

/* ---- the HTTP side reads ------------------------------------------------------------------------------------- */
static void choice_ended(struct call *c, struct part *part, struct choice *ch)
{
    static const u8 row[] = {
        [FINISH_STOP] = 0, [FINISH_LENGTH] = 1, [FINISH_ABORT] = 2, [FINISH_ERROR] = 3, [FINISH_RETRY] = 3};
    const struct ingress_series *s = &c->in->series;
    c->n_ended++;
    part->n_done++;
    part->cut |= ch->stop_string >= 0;
    if (part->cut && part->n_done == c->p.n) cancel_part(c, part);
    series_add(s->success[row[ch->finish]], 1);
    series_observe(s->request_generation, ch->n_tokens);
    if (ch->n_tokens > 1)
        levels_per_token(c->in, (double)(ch->last_ns - ch->first_ns) / NS_PER_S / (ch->n_tokens - 1));
}

static void broken(struct call *c, const char *why)
{
    struct api_error e;
    log_error("request %s: %s", c->id, why);
    api_fail(&e, API_INTERNAL, NULL, "The server had an error while processing request %s: %s.", c->id, why);
    e.no_retry = true;
    call_fail(c, &e);
}

static void failed_by_agent(struct call *c, const struct chunk *chunk)
{
    struct api_error e;
    if (chunk->finish == FINISH_RETRY) {
        if (chunk->error_len)
            api_fail(&e, API_UNAVAILABLE, NULL, "Request %s was not finished: %.*s. Try again later.", c->id,
                     (int)chunk->error_len, (const char *)chunk_at(chunk, chunk->error));
        else
            api_fail(&e, API_UNAVAILABLE, NULL, "The replica that ran request %s has gone away. Try again.",
                     c->id);
        call_fail(c, &e);
        return;
    }
    api_fail(&e, API_INTERNAL, NULL, "The server had an error while processing request %s: %.*s", c->id,
             (int)chunk->error_len, (const char *)chunk_at(chunk, chunk->error));
    e.no_retry = true;
    call_fail(c, &e);
}

static void take_chunk(struct call *c, const struct chunk *chunk, u64 arrived)
{
    struct part *part = NULL;
    for (u32 i = 0; i < c->n_submitted && !part; i++)
        if (c->parts[i].id == chunk->request) part = &c->parts[i];
    if (!part || chunk->sample >= (u64)c->p.n) {
        broken(c, "a result names an unknown sample");
        return;
    }
    struct choice *ch = &c->choices[part->index * (u32)c->p.n + chunk->sample];
    u32 before = ch->n_tokens;
    bool first = before == 0 && chunk->sample == 0;
    if (first && chunk->n_cached) {
        c->n_cached += chunk->n_cached;
        series_add(c->in->series.prompt_cached, chunk->n_cached);
    }
    bool ended = ch->finish != FINISH_NONE;
    if (part->n_done < c->p.n && (chunk->finish == FINISH_ERROR || chunk->finish == FINISH_RETRY)) {
        failed_by_agent(c, chunk);
        return;
    }
    bool whole =
        !api_pools(c->p.api) || chunk->finish != FINISH_STOP || chunk->vector.len == c->in->limits.hidden;
    if (!whole || choice_feed(c, ch, chunk, arrived) < 0) {
        broken(c, "results are missing");
        return;
    }
    if (first && ch->n_tokens) levels_first_token(c->in, (double)(arrived - c->started_ns) / NS_PER_S);
    if (!ended && ch->finish != FINISH_NONE) choice_ended(c, part, ch);
    if (!ended && c->p.stream) stream_choice(c, ch);
    if (chunk->last && part->n_done < c->p.n) broken(c, "it ended before all of its samples had");
}

static void take_flags(struct call *c, bool timed_out)
{
    struct api_error e;
    if (timed_out) {
        api_fail(&e, API_TIMEOUT, NULL, "Request %s timed out after %g s.", c->id,
                 c->in->spec.config->request_timeout_s);
        e.no_retry = true;
        call_fail(c, &e);
    } else if (atomic_load(&c->in->state) == IN_ABORTED) {
        api_fail(&e, API_UNAVAILABLE, NULL, "%s", c->in->abort_why);
        e.close = true;
        call_fail(c, &e);
    }
}

bool call_advance(struct call *c)
{
    buf_clear(&c->batch);
    pthread_mutex_lock(&c->lock);
    struct buf mail = c->mail;
    c->mail = c->batch;
    c->batch = mail;
    bool ping = c->ping, gone = c->gone, timed_out = c->timed_out;
    c->ping = c->poke = false;
    pthread_mutex_unlock(&c->lock);
    if (gone) return true;
    if (c->over) return false;
    for (size_t at = 0; at < c->batch.len && !c->failed && c->n_ended < c->n_choices;) {
        const u64 *arrived = (const void *)(c->batch.data + at);
        const struct chunk *chunk = (const void *)(arrived + 1);
        take_chunk(c, chunk, *arrived);
        at += sizeof(*arrived) + chunk->bytes;
    }
    if (!c->failed && c->n_ended < c->n_choices) {
        take_flags(c, timed_out);
        struct api_error e;
        if (!c->failed && c->n_submitted < c->n_prompts && submit_waiting(c, &e) < 0) call_fail(c, &e);
    }
    c->over = c->failed || c->n_ended == c->n_choices;
    if (!c->p.stream) return false;
    if (c->over) stream_end(c);
    if (ping && !c->out.len && !c->over) buf_text(&c->out, ": keep-alive\n\n");
    return false;
}

bool call_sleep(struct call *c, void (*suspend)(void *http))
{
    pthread_mutex_lock(&c->lock);
    bool idle = !c->mail.len && !c->gone && !c->ping && !c->poke && !c->timed_out &&
                atomic_load(&c->in->state) != IN_ABORTED;
    if (idle) {
        c->sleeping = true;
        suspend(c->http);
    }
    pthread_mutex_unlock(&c->lock);
    return idle;
}

/* ---- others write -------------------------------------------------------------------------------------------- */
/* Call it with the lock held; the caller wakes after it let go of the lock, if this says so: nobody else will then. */
static bool claim_wake(struct call *c)
{
    bool was = c->sleeping;
    c->sleeping = false;
    return was;
}

/* Whole answers without stop strings need no attention before the end, unless mail piles up: text is smaller. */
static bool worth_waking(const struct call *c, const struct chunk *chunk)
{
    if (c->p.stream) return chunk->n_tokens > 0 || chunk->finish != FINISH_NONE || chunk->last;
    if (chunk->finish == FINISH_ERROR || chunk->finish == FINISH_RETRY) return true;
    return c->p.n_stops > 0 || chunk->last || c->mail.len > MAIL_ENOUGH;
}

void ingress_deliver(struct ingress *in, const struct chunk *chunk)
{
    struct shard *s = shard_of(in, chunk->request);
    pthread_mutex_lock(&s->lock);
    struct part *part = *bucket_of(s, chunk->request);
    while (part && part->id != chunk->request) part = part->next;
    pthread_mutex_unlock(&s->lock);
    if (!part) return;
    struct call *c =
        part->call; /* stays: its part holds a reference until the last chunk, and that comes from this thread */
    bool last = chunk->last, wake = false;
    u64 now = clock_ns();
    pthread_mutex_lock(&c->lock);
    if (last) {
        part->open = false;
        c->n_open--;
    }
    if (!c->closed) {
        buf_add(&c->mail, &now, sizeof(now));
        buf_add(&c->mail, chunk, chunk->bytes);
        wake = worth_waking(c, chunk) && claim_wake(c);
    }
    pthread_mutex_unlock(&c->lock);
    if (wake) c->wake(c->http);
    if (!last) return;
    part_remove(in, part);
    call_unref(c);
}

void calls_client_gone(struct ingress *in, u64 serial)
{
    struct shard *s = shard_of(in, serial);
    pthread_mutex_lock(&s->lock);
    struct call *c = s->live;
    while (c && c->serial != serial) c = c->next;
    if (c) atomic_fetch_add(&c->refs, 1);
    pthread_mutex_unlock(&s->lock);
    if (!c) return;
    pthread_mutex_lock(&c->lock);
    c->gone = true;
    bool wake = claim_wake(c);
    pthread_mutex_unlock(&c->lock);
    if (wake) c->wake(c->http);
    call_unref(c);
}

static bool tick_one(struct call *c, u64 now)
{
    double interval = c->in->spec.config->sse_keep_alive_interval_s;
    bool idle = c->p.stream && interval > 0 &&
                (double)(now - MIN_OF(now, atomic_load(&c->last_write_ns))) >= interval * (double)NS_PER_S;
    pthread_mutex_lock(&c->lock);
    if (c->deadline_ns && now >= c->deadline_ns) c->timed_out = true;
    if (idle) c->ping = true;
    if (c->n_open == 0 && c->sleeping) c->poke = true;
    if (c->sleeping && !c->watched) watch_add(c->in, c->fd, c->serial);
    c->watched |= c->sleeping; /* a connection that sleeps is open */
    bool wake = (c->timed_out || c->ping || c->poke) && claim_wake(c);
    pthread_mutex_unlock(&c->lock);
    return wake;
}

void calls_tick(struct ingress *in, u64 now)
{
    for (int i = 0; i < SHARDS; i++) {
        pthread_mutex_lock(&in->shards[i].lock);
        for (struct call *c = in->shards[i].live; c; c = c->next)
            if (tick_one(c, now)) c->wake(c->http);
        pthread_mutex_unlock(&in->shards[i].lock);
    }
}

void calls_wake_all(struct ingress *in)
{
    for (int i = 0; i < SHARDS; i++) {
        pthread_mutex_lock(&in->shards[i].lock);
        for (struct call *c = in->shards[i].live; c; c = c->next) {
            pthread_mutex_lock(&c->lock);
            bool wake = claim_wake(c);
            pthread_mutex_unlock(&c->lock);
            if (wake) c->wake(c->http);
        }
        pthread_mutex_unlock(&in->shards[i].lock);
    }
}

void calls_release(struct ingress *in)
{
    for (int i = 0; i < SHARDS; i++)
        for (size_t b = 0; b < COUNT_OF(in->shards[i].parts); b++)
            while (in->shards[i].parts[b]) {
                struct part *part = in->shards[i].parts[b];
                part_remove(in, part);
                call_unref(part->call);
            }
}
