/* The OpenAI API without HTTP: error objects, the fields of a request, stop strings. Inner door of ingress/.
 *
 * Nothing here knows of connections or threads; tests call it directly. */
#ifndef INGRESS_API_H
#define INGRESS_API_H

#include "mpiserve/json.h"
#include "mpiserve/request.h"

/* ---- errors: a case gives status, type and code; the caller says which field and what was wrong ----------------*/
enum api_case {
    API_BAD_VALUE,
    API_BAD_JSON,
    API_BAD_MEDIA,
    API_UNSUPPORTED,
    API_CONTEXT,
    API_NO_KEY,
    API_NO_MODEL,
    API_NO_ROUTE,
    API_BAD_METHOD,
    API_TIMEOUT,
    API_TOO_LARGE,
    API_LONG_TARGET,
    API_LARGE_HEADERS,
    API_TOO_MANY,
    API_INTERNAL,
    API_UNAVAILABLE,
    API_BAD_HTTP,
    API_NO_RESERVATION,
    API_RESERVATION_USED,
    API_RESERVATION_RELEASED,
    API_RESERVATION_EXPIRED,
    API_CASES,
};
enum { API_MESSAGE = 1000 };
struct api_error {
    enum api_case kind;
    char param[160]; /* field path; "": null */
    char message[API_MESSAGE];
    u32 retry_after_s;          /* 0: no header */
    bool no_retry;              /* x-should-retry: false */
    bool close;                 /* Connection: close */
    u32 n_prompt_tokens, n_ctx; /* API_CONTEXT */
};
/* Fills *e and returns -1, so that `return api_fail(...)` reads well. param NULL: none. */
int api_fail(struct api_error *e, enum api_case kind, const char *param, const char *fmt, ...)
    PRINTF_LIKE(4, 5);
int api_context_overflow(struct api_error *e, u32 n_prompt_tokens, u32 n_ctx);
int api_status(enum api_case kind);
void api_error_json(const struct api_error *e, struct buf *to); /* {"error":{...}} */

/* ---- one request's fields -------------------------------------------------------------------------------------*/
enum api { API_COMPLETIONS = 1, API_CHAT = 2, API_EMBEDDINGS = 4, API_RERANK = 8, API_SCORE = 16 };
/* Of those that ask for vectors or scores; nothing is generated. */
static inline bool api_pools(enum api api)
{
    return api == API_EMBEDDINGS || api == API_RERANK || api == API_SCORE;
}
enum {
    MAX_STOPS = 16,
    MAX_STOP_BYTES = 8192,
    MAX_N = 128,
    MAX_PROMPTS = 1024,
    MAX_INPUTS = 2048, /* of /v1/embeddings, /v1/rerank, /v1/score */
    MAX_CHOICES = 16384,
    MAX_IDS = 1024,
    MAX_BAD_WORDS = 128,
};
#define PARAM_NONE INT64_MIN /* an integer field that is absent */

struct api_limits {
    u32 vocab, max_len; /* ids below vocab; tokens of prompt and output together */
    i64 max_logprobs;
    u32 hidden; /* numbers of a vector; 0: the model generates */
};
struct api_text {
    const char *text;
    size_t len;
};
/* Numbers that are absent stay NAN or PARAM_NONE; pointers into the body live as long as it. */
struct params {
    enum api api;
    double temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    i64 top_k, seed, n, best_of, min_tokens, max_tokens, max_completion_tokens, logprobs, top_logprobs;
    i64 truncate_prompt_tokens, stream_interval, priority, dimensions, top_n;
    bool stream, include_usage, continuous_usage, want_logprobs, echo, ignore_eos, include_stop;
    bool skip_special, add_special, token_ids_as_text, return_token_ids, return_prompt_text;
    bool base64; /* vectors */
    bool return_documents;
    bool rendering; /* the prompt is all that is asked for: nothing will be generated */
    bool truncate_right, add_generation_prompt, set_generation_prompt, continue_final, tool_choice_none;
    struct api_text stops[MAX_STOPS]; /* in the arena */
    u32 n_stops;
    i32 *stop_ids, *allowed; /* in the arena */
    struct token_bias *bias;
    u32 n_stop_ids, n_allowed, n_bias;
    const struct json *prompt /* or `input`, `documents`, `text_2` */, *query /* or `text_1` */, *messages,
        *bad_words, *template_kwargs, *documents, *tools, *stream_options;
    const char *model, *request_id, *reasoning_effort, *session_id, *user;
};
/* Reads and checks all fields of body; 0, or -1 with *e naming the field. */
int params_read(struct params *p, const struct json *body, enum api api, const struct api_limits *limits,
                struct arena *mem, struct api_error *e);
/* The same for pages that only show the prompt of a chat: what generating cannot do (tools) is no error there. */
int params_read_prompt(struct params *p, const struct json *body, const struct api_limits *limits,
                       struct arena *mem, struct api_error *e);
/* An array of token ids in the arena; path names the array in errors. */
int api_ids(const struct json *array, const char *path, u32 vocab, struct arena *mem, i32 **ids, u32 *n,
            struct api_error *e);
/* What the field of the prompts is called. */
const char *api_prompt_name(enum api api);
/* And that of the first texts of pairs; NULL: there are none. */
const char *api_query_name(enum api api);
/* max_tokens the client asked for, by the rules of both APIs; PARAM_NONE: the rest of the context. */
i64 params_max_tokens(const struct params *p);

/* ---- stop strings ---------------------------------------------------------------------------------------------
 * Text goes in piece by piece; what can no longer be part of a match comes out. The earliest end of a match wins, ties go to
 * the first of the list. */
struct stop_scan {
    const struct api_text *stops;
    u32 n_stops;
    bool include;    /* the stop string stays in the text */
    struct buf tail; /* a suffix of the text so far that begins some stop string */
    size_t sent;     /* bytes of tail that are out already (include: all) */
};
void stop_scan_init(struct stop_scan *s, const struct api_text *stops, u32 n_stops, bool include);
void stop_scan_release(struct stop_scan *s);
/* Appends to *out what is certain; the index of the stop string that ended the text, or -1. may_stop false: matches that
 * end in this piece do not count. */
int stop_scan_push(struct stop_scan *s, const char *text, size_t len, bool may_stop, struct buf *out);
void stop_scan_flush(struct stop_scan *s, struct buf *out); /* the text is over: what was held comes out */

#endif
