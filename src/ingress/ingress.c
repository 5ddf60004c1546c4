/* The ingress as the agent sees it: from the open port to the last answer. */
#include "ingress/http.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char NO_TEMPLATE[] = "This model has no chat template: use /v1/completions.";

static void add_metrics(struct ingress *in)
{
    static const double seconds[] = {.001, .005, .01, .025, .05, .1, .25, .5,
                                     1,    2.5,  5,   10,   30,  60, 120, 300};
    static const struct metric_spec requests = {
        "http_requests", "Answered HTTP requests.", METRIC_COUNTER, {"handler", "method", "status"}, NULL, 0};
    static const struct metric_spec duration = {"http_request_duration_seconds",
                                                "From a request's headers to the end of "
                                                "its answer.",
                                                METRIC_HISTOGRAM,
                                                {"handler", "method"},
                                                seconds,
                                                COUNT_OF(seconds)};
    const char *labels[METRIC_MAX_LABELS] = {in->model_name, "0"};
    struct ingress_series *s = &in->series;
    const struct {
        struct series **to;
        enum vllm_metric which;
    } rows[] = {
        {&s->prompt_cached, VLLM_PROMPT_TOKENS_CACHED},
        {&s->request_prompt, VLLM_REQUEST_PROMPT_TOKENS},
        {&s->request_generation, VLLM_REQUEST_GENERATION_TOKENS},
        {&s->request_max, VLLM_REQUEST_MAX_TOKENS},
        {&s->request_n, VLLM_REQUEST_N},
        {&s->first_token, VLLM_TIME_TO_FIRST_TOKEN},
        {&s->inter_token, VLLM_INTER_TOKEN_LATENCY},
        {&s->per_token, VLLM_TIME_PER_OUTPUT_TOKEN},
        {&s->e2e, VLLM_E2E_LATENCY},
    };
    in->metrics = metrics_new();
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        *rows[i].to = metric_series(metrics_add(in->metrics, metrics_vllm(rows[i].which)), labels);
    struct metric *success = metrics_add(in->metrics, metrics_vllm(VLLM_REQUEST_SUCCESS));
    for (size_t i = 0; i < COUNT_OF(METRICS_FINISHED_REASONS); i++) {
        labels[2] = METRICS_FINISHED_REASONS[i];
        s->success[i] = metric_series(success, labels);
    }
    levels_init(in);
    s->http_requests = metrics_add(in->metrics, &requests);
    s->http_seconds = metrics_add(in->metrics, &duration);
}

static size_t longest_token(const struct tokenizer *t)
{
    size_t longest = 1, len;
    for (i32 id = 0; id < tokenizer_vocab_size(t); id++)
        if (tokenizer_token_bytes(t, id, &len)) longest = MAX_OF(longest, len);
    return longest;
}

/* Errors that every request would meet end the start. One that the template raises itself, or that only some conversations
 * meet, is told. */
static int try_template(const struct ingress *in, const char *file, struct error *err)
{
    static const char *const whats[] = {[TRY_USER] = "a user's message",
                                        [TRY_TURNS] = "a conversation with a system message",
                                        [TRY_TOOLS] = "a conversation with tools"};
    for (int what = TRY_USER; what <= TRY_TOOLS; what++) {
        struct error why;
        int rc = chat_template_try(in->chat_template, in->tokenizer, (enum try)what, &why);
        if (rc == 0 || (rc == ERR_STATE && what != TRY_USER)) continue;
        if (rc != ERR_STATE && what == TRY_USER)
            return error_set(err, why.code, file, "%.60s: %s", why.where, why.message);
        log_warning("the chat template %s %s %s: %s: %s", file, rc == ERR_STATE ? "refuses" : "fails for",
                    whats[what], why.where, why.message);
    }
    return 0;
}

static int no_template(struct ingress *in, const struct error *why, struct error *err)
{
    if (why->code == ERR_NOT_FOUND) {
        strcpy(in->none_why, NO_TEMPLATE);
        return 0;
    }
    if (why->code != ERR_UNSUPPORTED) return error_set(err, why->code, why->where, "%s", why->message);
    log_warning("chat is not offered: %s: %s", why->where, why->message);
    snprintf(in->none_why, sizeof(in->none_why), "This model's chat template is not supported: %.300s",
             why->message);
    return 0;
}

static int load_text(struct ingress *in, struct error *err)
{
    const char *dir = in->spec.model->dir, *file = in->spec.config->chat_template;
    in->tokenizer = tokenizer_load(dir, err);
    if (!in->tokenizer) return err->code;
    in->longest_token = longest_token(in->tokenizer);
    if (in->spec.model->pooling.scores && tokenizer_check_pairs(in->tokenizer, err)) return err->code;
    struct error why;
    in->chat_template = file[0] ? chat_template_read(file, &why) : chat_template_find(dir, &why);
    if (!in->chat_template && file[0]) return error_set(err, why.code, why.where, "%s", why.message);
    if (!in->chat_template) return no_template(in, &why, err);
    tokenizer_guard(in->tokenizer, in->chat_template);
    return try_template(in, file[0] ? file : dir, err);
}

static const char *first_name(const struct ingress *in)
{
    const struct config *c = in->spec.config;
    if (c->n_served_model_names > 0) return c->served_model_name[0];
    const char *slash = strrchr(in->spec.model->dir, '/');
    return slash && slash[1] ? slash + 1 : in->spec.model->dir;
}

struct ingress *ingress_new(const struct ingress_spec *spec, struct error *err)
{
    struct error local;
    struct ingress *in = mem_zero(1, sizeof(*in));
    if (!err) err = &local;
    in->spec = *spec;
    in->model_name = first_name(in);
    in->limits = (struct api_limits){spec->model->vocab, spec->max_model_len, spec->config->max_logprobs,
                                     model_vector(spec->model)};
    in->started_unix = clock_unix();
    in->listen_fd = in->watch_fd = in->watch_stop_fd = -1;
    for (int i = 0; i < SHARDS; i++) pthread_mutex_init(&in->shards[i].lock, NULL);
    connections_init(&in->connections);
    asks_init(in);
    add_metrics(in);
    if (listen_open(spec->config->host, (int)spec->config->port, &in->listen_fd, &in->port, err) < 0 ||
        load_text(in, err) < 0 || loops_start(in, err) < 0 || watch_start(in, err) < 0) {
        ingress_free(in);
        return NULL;
    }
    return in;
}

int ingress_port(const struct ingress *in)
{
    return in->port;
}

static void set_state(struct ingress *in, int state)
{
    int old = atomic_load(&in->state);
    while (old < state && !atomic_compare_exchange_weak(&in->state, &old, state)) {}
}

void ingress_ready(struct ingress *in)
{
    set_state(in, IN_READY);
}

void ingress_drain(struct ingress *in)
{
    set_state(in, IN_DRAINING);
}

bool ingress_idle(struct ingress *in)
{
    return atomic_load(&in->n_answering) == 0 && atomic_load(&in->n_parts) == 0;
}

void ingress_abort(struct ingress *in, const char *why)
{
    if (atomic_load(&in->state) == IN_ABORTED) return;
    snprintf(in->abort_why, sizeof(in->abort_why), "%s", why); /* read only after the state says so */
    set_state(in, IN_ABORTED);
    calls_wake_all(in);
    asks_wake_all(in);
}

void ingress_free(struct ingress *in)
{
    if (!in) return;
    ingress_abort(in, "The server is ending.");
    watch_stop(in);
    calls_wake_all(in); /* the library must not be stopped while a connection sleeps */
    asks_wake_all(in);
    loops_stop(in);
    watch_release(in);
    if (in->listen_fd >= 0) close(in->listen_fd);
    connections_release(&in->connections);
    calls_release(in);
    asks_release(in);
    metrics_free(in->metrics);
    chat_template_free(in->chat_template);
    tokenizer_free(in->tokenizer);
    for (int i = 0; i < SHARDS; i++) pthread_mutex_destroy(&in->shards[i].lock);
    free(in);
}
