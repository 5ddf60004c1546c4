/* /v1/completions, /v1/chat/completions and what makes vectors and scores: from the body to a running call, and from the call to an answer. */
#include "ingress/http.h"
#include "ingress/prompts.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool media_type_ok(const char *type)
{
    static const char json[] = "application/json";
    if (!type) return true; /* small clients send none */
    if (strncasecmp(type, json, sizeof(json) - 1) != 0) return false;
    char after = type[sizeof(json) - 1];
    return after == 0 || after == ';' || after == ' ' || after == '\t';
}

struct json *body_read(struct exchange *x, struct api_error *e)
{
    struct error err;
    if (!media_type_ok(exchange_header(x, "Content-Type"))) {
        api_fail(e, API_BAD_MEDIA, NULL, "Only 'application/json' is allowed as Content-Type.");
        return NULL;
    }
    const char *coding = exchange_header(x, "Content-Encoding");
    if (coding && strcasecmp(coding, "identity") != 0) {
        api_fail(e, API_BAD_MEDIA, NULL,
                 "The body must not be compressed: Content-Encoding is not understood.");
        return NULL;
    }
    struct json *body = json_read(x->body.data, x->body.len, &err);
    if (!body) api_fail(e, API_BAD_JSON, NULL, "The body is not valid JSON: %s: %s.", err.where, err.message);
    buf_release(&x->body);
    return body;
}

int model_check(const struct ingress *in, const char *name, u32 *adapter, struct api_error *e)
{
    const struct config *c = in->spec.config;
    u32 unused;
    if (!adapter) adapter = &unused;
    *adapter = 0;
    if (!name || !name[0] || strcmp(name, in->model_name) == 0) return 0;
    for (int i = 0; i < c->n_served_model_names; i++)
        if (strcmp(name, c->served_model_name[i]) == 0) return 0;
    for (int i = 0; i < c->n_lora_modules; i++) {
        if (strcmp(name, c->lora_modules[i].name)) continue;
        *adapter = (u32)i + 1;
        return 0;
    }
    return api_fail(e, API_NO_MODEL, "model", "The model `%.200s` does not exist.", name);
}

/* ---- sampling ------------------------------------------------------------------------------------------------ */
static float real_or(double asked, bool suggested, float suggestion, float otherwise)
{
    return !isnan(asked) ? (float)asked : suggested ? suggestion : otherwise;
}

static u64 draw_seed(struct ingress *in, u64 serial)
{
    if (in->spec.config->seed != ABSENT)
        return (u64)in->spec.config->seed + hash_bytes(&serial, sizeof(serial), 0);
    return random_u64();
}

static void set_sampling(struct call *c)
{
    const struct params *p = &c->p;
    const struct model_config *m = c->in->spec.model;
    bool suggest = c->in->spec.config->generation_config;
    struct sampling *s = &c->sampling;
    float t = real_or(p->temperature, suggest && m->has_temperature, m->temperature, 1);
    float top_p = real_or(p->top_p, suggest && m->has_top_p, m->top_p, 1);
    i64 top_k = p->top_k != PARAM_NONE ? p->top_k : suggest && m->has_top_k ? m->top_k : 0;
    s->temperature = t < 1e-5f ? 0 : MAX_OF(t, 0.01f);
    s->top_p = top_p > 0 ? top_p : 1e-9f; /* 0 asks for the best token alone */
    s->top_k = top_k > 0 ? (u32)top_k : 0;
    s->min_p = real_or(p->min_p, false, 0, 0);
    s->repetition_penalty =
        real_or(p->repetition_penalty, suggest && m->has_repetition_penalty, m->repetition_penalty, 1);
    s->presence_penalty = real_or(p->presence_penalty, false, 0, 0);
    s->frequency_penalty = real_or(p->frequency_penalty, false, 0, 0);
    s->ignore_eos = p->ignore_eos;
    s->seed = p->seed != PARAM_NONE ? (u64)p->seed : draw_seed(c->in, c->serial);
    if (p->api == API_CHAT)
        s->n_logprobs = p->want_logprobs ? (i32)p->top_logprobs : -1;
    else
        s->n_logprobs = p->logprobs != PARAM_NONE ? (i32)p->logprobs : -1;
}

/* ---- a call -------------------------------------------------------------------------------------------------- */
static int set_prompts(struct call *c, struct api_error *e)
{
    struct ingress *in = c->in;
    if (c->p.api == API_CHAT) {
        c->prompts = arena_alloc(&c->mem, sizeof(*c->prompts));
        c->n_prompts = 1;
        if (prompts_chat(in, &c->p, &c->mem, c->prompts, e) < 0) return -1;
        if (c->p.return_prompt_text) c->prompt_text = c->prompts->text;
    } else if (api_query_name(c->p.api)) {
        if (prompts_pairs(in, &c->p, &c->mem, &c->prompts, &c->n_prompts, e) < 0) return -1;
    } else if (prompts_read(in, &c->p, &c->mem, &c->prompts, &c->n_prompts, e) < 0) {
        return -1;
    }
    bool generating = params_max_tokens(&c->p) != 0 && !api_pools(c->p.api);
    for (u32 i = 0; i < c->n_prompts; i++)
        if (prompts_fit(in, &c->p, &c->prompts[i], generating, e) < 0) return -1;
    return prompts_bad_words(in, &c->p, &c->mem, &c->bad_words, &c->n_bad_words, e);
}

/* `chatcmpl-` and what the client named the request, in a header or else in the body. */
static void set_id(struct call *c, const struct exchange *x)
{
    bool by_body = !x->named && request_id_ok(c->p.request_id);
    const char *name = by_body ? c->p.request_id : x->request_id;
    static const char *const kinds[] = {[API_COMPLETIONS] = "cmpl",
                                        [API_CHAT] = "chatcmpl",
                                        [API_EMBEDDINGS] = "embd",
                                        [API_RERANK] = "rerank",
                                        [API_SCORE] = "score"};
    snprintf(c->id, sizeof(c->id), "%s-%.128s", kinds[c->p.api], name);
}

/* The whole text is a number that fits. */
bool header_integer(const char *text, i64 *value)
{
    size_t sign = *text == '-' || *text == '+', digits = strspn(text + sign, "0123456789");
    if (!digits || text[sign + digits]) return false;
    errno = 0;
    *value = strtoll(text, NULL, 10);
    return errno == 0;
}

/* The header wins over the body; what is no integer is ignored, as in vLLM. */
static void set_priority(struct call *c, const struct exchange *x)
{
    const char *header = exchange_header(x, "X-Vllm-Priority");
    i64 priority;
    if (header && header_integer(header, &priority)) c->p.priority = priority;
}

static void set_session(struct call *c, const struct exchange *x)
{
    const char *names[] = {c->p.session_id, exchange_header(x, "X-Session-ID"), c->p.user};
    call_set_session(c, names, COUNT_OF(names));
}

/* The files of the model's folder say which of the three it can do. */
static int check_kind(const struct ingress *in, enum api api, struct api_error *e)
{
    bool vectors = in->limits.hidden > 0, scores = in->spec.model->pooling.scores;
    u32 can = scores ? API_RERANK | API_SCORE : vectors ? API_EMBEDDINGS : API_COMPLETIONS | API_CHAT;
    if (can & api) return 0;
    const char *does = scores    ? "scores pairs of texts: use /v1/rerank or /v1/score"
                       : vectors ? "makes embeddings: use /v1/embeddings"
                                 : "generates text: use /v1/chat/completions or /v1/completions";
    const char *why = api_query_name(api) ? "A model that scores is a classifier with one label."
                      : api == API_EMBEDDINGS
                          ? "A model that makes embeddings has a modules.json in its folder, which says how."
                          : "It generates no text.";
    return api_fail(e, API_UNSUPPORTED, "model", "The model `%s` %s. %s", in->model_name, does, why);
}

static int prepare(struct call *c, struct exchange *x, enum api api, struct api_error *e)
{
    struct json *body = body_read(x, e);
    if (!body) return -1;
    int rc = check_kind(c->in, api, e);
    if (rc == 0) rc = params_read(&c->p, body, api, &c->in->limits, &c->mem, e);
    if (rc == 0) rc = model_check(c->in, c->p.model, &c->adapter, e);
    if (rc == 0) rc = set_prompts(c, e);
    if (rc == 0) {
        set_id(c, x);
        set_sampling(c);
        set_priority(c, x);
        set_session(c, x);
    }
    c->p.prompt = c->p.query = c->p.messages = c->p.bad_words = c->p.template_kwargs = c->p.documents =
        c->p.tools = NULL;
    c->p.model = c->p.request_id = c->p.reasoning_effort = c->p.session_id = c->p.user = NULL;
    json_drop(body);
    return rc;
}

static int set_reservation(struct call *c, const struct exchange *x, struct api_error *e)
{
    const char *header = exchange_header(x, "X-Reservation");
    if (!header) return 0;
    if (c->n_prompts > 1)
        return api_fail(e, API_BAD_VALUE, "X-Reservation",
                        "A reservation is for one prompt; this request has %u.", c->n_prompts);
    c->has_reservation = true;
    return reservation_id_read(header, &c->reservation) ? 0 : reservation_fail(ERR_NOT_FOUND, e);
}

static int generate(struct exchange *x, enum api api)
{
    struct api_error e;
    struct call *c = call_new(x->in);
    double timeout_s = x->in->spec.config->request_timeout_s;
    x->call = c;
    c->http = x;
    c->wake = exchange_wake;
    c->fd = exchange_fd(x);
    c->created = clock_unix();
    c->started_ns = x->started_ns;
    if (timeout_s > 0) c->deadline_ns = c->started_ns + (u64)(timeout_s * (double)NS_PER_S);
    if (prepare(c, x, api, &e) < 0 || set_reservation(c, x, &e) < 0 || call_start(c, &e) < 0)
        return reply_error(x, &e);
    return generate_go_on(x);
}

int answer_completions(struct exchange *x)
{
    return generate(x, API_COMPLETIONS);
}

int answer_chat(struct exchange *x)
{
    return generate(x, API_CHAT);
}

int answer_embeddings(struct exchange *x)
{
    return generate(x, API_EMBEDDINGS);
}

int answer_rerank(struct exchange *x)
{
    return generate(x, API_RERANK);
}

int answer_score(struct exchange *x)
{
    return generate(x, API_SCORE);
}

int generate_go_on(struct exchange *x)
{
    struct call *c = x->call;
    do {
        if (call_advance(c)) return -1; /* the client has left */
        if (c->failed && !c->event_sent) return reply_error(x, &c->error);
        if (c->p.stream && c->out.len) return reply_stream(x);
        if (c->over) {
            struct buf body = {0};
            if (c->p.api == API_EMBEDDINGS)
                answer_vectors(c, &body);
            else if (api_query_name(c->p.api))
                answer_scores(c, &body);
            else
                answer_json(c, &body);
            return reply_json(x, 200, &body);
        }
    } while (!call_sleep(c, exchange_suspend));
    return 0;
}
