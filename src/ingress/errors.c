/* Error objects. Clients match on status, on code and, for a prompt that is too long, on the words. */
#include "ingress/api.h"

#include <stdio.h>
#include <string.h>

static const struct {
    int status;
    const char *type, *code; /* code NULL: the status as a number */
} CASES[API_CASES] = {
    [API_BAD_VALUE] = {400, "BadRequestError", NULL},
    [API_BAD_JSON] = {400, "BadRequestError", NULL},
    [API_BAD_MEDIA] = {400, "BadRequestError", NULL},
    [API_UNSUPPORTED] = {400, "BadRequestError", NULL},
    [API_CONTEXT] = {400, "invalid_request_error", "context_length_exceeded"},
    [API_NO_KEY] = {401, "invalid_request_error", "invalid_api_key"},
    [API_NO_MODEL] = {404, "NotFoundError", "model_not_found"},
    [API_NO_ROUTE] = {404, "Not Found", NULL},
    [API_BAD_METHOD] = {405, "Method Not Allowed", NULL},
    [API_TIMEOUT] = {408, "TimeoutError", NULL},
    [API_LONG_TARGET] = {414, "URI Too Long", NULL},
    [API_LARGE_HEADERS] = {431, "RequestHeaderFieldsTooLarge", NULL},
    [API_TOO_MANY] = {429, "RateLimitError", NULL},
    [API_TOO_LARGE] = {413, "RequestTooLargeError", NULL},
    [API_INTERNAL] = {500, "InternalServerError", NULL},
    [API_UNAVAILABLE] = {503, "ServiceUnavailableError", NULL},
    [API_BAD_HTTP] = {400, "Bad Request", NULL},
    [API_NO_RESERVATION] = {404, "NotFoundError", "reservation_not_found"},
    [API_RESERVATION_USED] = {409, "ConflictError", "reservation_used"},
    [API_RESERVATION_RELEASED] = {410, "GoneError", "reservation_released"},
    [API_RESERVATION_EXPIRED] = {410, "GoneError", "reservation_expired"},
};

int api_status(enum api_case kind)
{
    return CASES[kind].status;
}

int api_fail(struct api_error *e, enum api_case kind, const char *param, const char *fmt, ...)
{
    *e = (struct api_error){.kind = kind};
    if (param) snprintf(e->param, sizeof(e->param), "%s", param);
    va_list args;
    va_start(args, fmt);
    vsnprintf(e->message, sizeof(e->message), fmt, args);
    va_end(args);
    if (kind == API_UNAVAILABLE || kind == API_TOO_MANY) e->retry_after_s = 1;
    return -1;
}

int api_context_overflow(struct api_error *e, u32 n_prompt_tokens, u32 n_ctx)
{
    /* Several clients search for parts of this text: it never changes. */
    api_fail(e, API_CONTEXT, "input_tokens",
             "This model's maximum context length is %u tokens. However, your prompt contains %u input "
             "tokens, which "
             "exceeds the available context size (%u tokens). The prompt is too long; please shorten it.",
             n_ctx, n_prompt_tokens, n_ctx);
    e->n_prompt_tokens = n_prompt_tokens;
    e->n_ctx = n_ctx;
    return -1;
}

void api_error_json(const struct api_error *e, struct buf *to)
{
    struct json_out o;
    json_out_init(&o, to);
    json_out_object(&o);
    json_out_key(&o, "error");
    json_out_object(&o);
    json_out_key(&o, "message");
    json_out_str(&o, e->message);
    json_out_key(&o, "type");
    json_out_str(&o, CASES[e->kind].type);
    json_out_key(&o, "param");
    json_out_str(&o, e->param[0] ? e->param : NULL);
    json_out_key(&o, "code");
    if (CASES[e->kind].code)
        json_out_str(&o, CASES[e->kind].code);
    else
        json_out_int(&o, CASES[e->kind].status);
    if (e->kind == API_CONTEXT) {
        json_out_key(&o, "n_prompt_tokens");
        json_out_int(&o, e->n_prompt_tokens);
        json_out_key(&o, "n_ctx");
        json_out_int(&o, e->n_ctx);
    }
    json_out_end_object(&o);
    json_out_end_object(&o);
}
