/* Pages about the server itself. None of them waits for an engine. */
#include "ingress/http.h"

#include <stdio.h>
#include <string.h>

/* path: of an adapter; NULL: the model itself. */
static void model_card(struct json_out *o, const struct ingress *in, const char *name, const char *path)
{
    json_out_object(o);
    json_out_key(o, "id");
    json_out_str(o, name);
    json_out_key(o, "object");
    json_out_str(o, "model");
    json_out_key(o, "created");
    json_out_int(o, in->started_unix);
    json_out_key(o, "owned_by");
    json_out_str(o, "mpiserve");
    json_out_key(o, "root");
    json_out_str(o, path ? path : in->model_name);
    json_out_key(o, "parent");
    json_out_str(o, path ? in->model_name : NULL);
    json_out_key(o, "max_model_len");
    json_out_int(o, in->limits.max_len);
    json_out_key(o, "permission");
    json_out_array(o);
    json_out_end_array(o);
    json_out_end_object(o);
}

int answer_models(struct exchange *x)
{
    const struct config *c = x->in->spec.config;
    struct buf body = {0};
    struct json_out o;
    json_out_init(&o, &body);
    json_out_object(&o);
    json_out_key(&o, "object");
    json_out_str(&o, "list");
    json_out_key(&o, "data");
    json_out_array(&o);
    model_card(&o, x->in, x->in->model_name, NULL);
    for (int i = 1; i < c->n_served_model_names; i++) model_card(&o, x->in, c->served_model_name[i], NULL);
    for (int i = 0; i < c->n_lora_modules; i++)
        model_card(&o, x->in, c->lora_modules[i].name, c->lora_modules[i].path);
    json_out_end_array(&o);
    json_out_end_object(&o);
    return reply_json(x, 200, &body);
}

int answer_model(struct exchange *x)
{
    struct api_error e;
    u32 adapter;
    if (model_check(x->in, x->tail[0] ? x->tail : "?", &adapter, &e) < 0) return reply_error(x, &e);
    struct buf body = {0};
    struct json_out o;
    json_out_init(&o, &body);
    model_card(&o, x->in, x->tail, adapter ? x->in->spec.config->lora_modules[adapter - 1].path : NULL);
    return reply_json(x, 200, &body);
}

/* Why requests are not taken now, or NULL. */
static const char *not_ready(const struct ingress *in, struct ingress_health *h)
{
    int state = atomic_load(&in->state);
    *h = (struct ingress_health){0};
    in->spec.agent.health(in->spec.agent.agent, h);
    if (state == IN_DRAINING || state == IN_ABORTED || h->draining) return "draining";
    if (state == IN_LOADING || h->loading) return "loading";
    return h->ok ? NULL : "unavailable";
}

int answer_health(struct exchange *x)
{
    struct ingress_health h;
    const char *why = not_ready(x->in, &h);
    if (!why) {
        struct buf body = {0};
        buf_text(&body, "{\"status\":\"ok\"}");
        return reply_json(x, 200, &body);
    }
    struct api_error e;
    h.reason[sizeof(h.reason) - 1] = 0;
    const char *text = why[0] == 'd'   ? "This node is being drained."
                       : h.reason[0]   ? h.reason
                       : why[0] == 'l' ? "The model is being loaded."
                                       : "No replica makes progress.";
    api_fail(&e, API_UNAVAILABLE, NULL, "%s", text);
    return reply_error(x, &e);
}

int answer_live(struct exchange *x)
{
    struct buf body = {0};
    buf_text(&body, "{\"status\":\"ok\"}");
    return reply_json(x, 200, &body);
}

int answer_load(struct exchange *x)
{
    struct buf body = {0};
    buf_printf(&body, "{\"server_load\":%u}", x->in->spec.agent.in_flight(x->in->spec.agent.agent));
    return reply_json(x, 200, &body);
}

int answer_version(struct exchange *x)
{
    struct buf body = {0};
    buf_text(&body, "{\"version\":\"" MPISERVE_VERSION "\"}");
    return reply_json(x, 200, &body);
}

int answer_topology(struct exchange *x)
{
    struct buf body = {0};
    x->in->spec.agent.topology(x->in->spec.agent.agent, &body);
    return reply_json(x, 200, &body);
}

int answer_metrics(struct exchange *x)
{
    struct buf body = {0};
    metrics_text(x->in->metrics, &body);
    x->in->spec.agent.metrics(x->in->spec.agent.agent, &body);
    return reply_text(x, 200, "text/plain; version=0.0.4; charset=utf-8", &body);
}

/* The answer says that the drain has begun; its end is the server's. */
int answer_drain(struct exchange *x)
{
    struct buf body = {0};
    x->in->spec.agent.drain(x->in->spec.agent.agent);
    buf_text(&body, "{\"status\":\"draining\"}");
    return reply_json(x, 202, &body);
}
