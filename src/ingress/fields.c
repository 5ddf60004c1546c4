/* The fields of /v1/completions, /v1/chat/completions, /v1/embeddings, /v1/rerank and /v1/score: one table, one row a field. Unknown fields are ignored, null is absent;
 * what would change the answer and is not offered is refused by name. */
#include "ingress/api.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    BOTH = API_COMPLETIONS | API_CHAT,
    PAIRS = API_RERANK | API_SCORE,
    POOLS = PAIRS | API_EMBEDDINGS,
    ALL = BOTH | POOLS,
    PATH_SIZE = 160
};

struct reader {
    struct params *p;
    const struct api_limits *limits;
    struct arena *mem;
    struct api_error *e;
};
struct field;
typedef int field_fn(struct reader *r, const struct field *f, const struct json *v);
struct field {
    const char *name;
    u8 apis;
    field_fn *read;
    double low, high; /* inclusive */
    size_t at;        /* where the value goes in struct params */
    const char *why;  /* refused fields: what is missing */
};

static int wrong_kind(struct reader *r, const char *path, const char *want, const struct json *v)
{
    return api_fail(r->e, API_BAD_VALUE, path, "`%s` must be %s, but is %s.", path, want,
                    json_kind_name(json_kind(v)));
}

static int out_of_range(struct reader *r, const struct field *f, double got)
{
    if (f->high >= 1e18)
        return api_fail(r->e, API_BAD_VALUE, f->name, "`%s` must be at least %g, but is %g.", f->name, f->low,
                        got);
    return api_fail(r->e, API_BAD_VALUE, f->name, "`%s` must be between %g and %g, but is %g.", f->name,
                    f->low, f->high, got);
}

/* ---- kinds of fields ---------------------------------------------------------------------------------------- */
static int read_real(struct reader *r, const struct field *f, const struct json *v)
{
    enum json_kind kind = json_kind(v);
    if (kind != JK_INT && kind != JK_REAL) return wrong_kind(r, f->name, "a number", v);
    double x = json_real(v, 0);
    if (!(x >= f->low && x <= f->high)) return out_of_range(r, f, x);
    memcpy((u8 *)r->p + f->at, &x, sizeof(x));
    return 0;
}

static int read_int(struct reader *r, const struct field *f, const struct json *v)
{
    if (json_kind(v) != JK_INT) return wrong_kind(r, f->name, "an integer", v);
    i64 x = json_int(v, 0);
    if ((double)x < f->low || (double)x > f->high) return out_of_range(r, f, (double)x);
    memcpy((u8 *)r->p + f->at, &x, sizeof(x));
    return 0;
}

static int read_bool(struct reader *r, const struct field *f, const struct json *v)
{
    if (json_kind(v) != JK_BOOL) return wrong_kind(r, f->name, "a boolean", v);
    bool x = json_bool(v, false);
    memcpy((u8 *)r->p + f->at, &x, sizeof(x));
    return 0;
}

static int read_text(struct reader *r, const struct field *f, const struct json *v)
{
    const char *x = json_text(v);
    if (!x) return wrong_kind(r, f->name, "a string", v);
    if (strlen(x) != json_len(v))
        return api_fail(r->e, API_BAD_VALUE, f->name, "`%s` holds a NUL character.", f->name);
    memcpy((u8 *)r->p + f->at, &x, sizeof(x));
    return 0;
}

static int read_value(struct reader *r, const struct field *f, const struct json *v)
{
    memcpy((u8 *)r->p + f->at, &v, sizeof(v));
    return 0;
}

static int read_object(struct reader *r, const struct field *f, const struct json *v)
{
    if (json_kind(v) != JK_OBJECT) return wrong_kind(r, f->name, "an object", v);
    return read_value(r, f, v);
}

static int read_array(struct reader *r, const struct field *f, const struct json *v)
{
    if (json_kind(v) != JK_ARRAY) return wrong_kind(r, f->name, "an array", v);
    return read_value(r, f, v);
}

/* false, "" and [] ask for nothing, so they need no refusal. */
static int refuse(struct reader *r, const struct field *f, const struct json *v)
{
    enum json_kind kind = json_kind(v);
    if ((kind == JK_BOOL && !json_bool(v, false)) || ((kind == JK_TEXT || kind == JK_ARRAY) && !json_len(v)))
        return 0;
    return api_fail(r->e, API_UNSUPPORTED, f->name, "`%s` is not supported by this server: %s.", f->name,
                    f->why);
}

/* ---- fields with rules of their own -------------------------------------------------------------------------- */
static int add_stop(struct reader *r, const char *path, const struct json *v)
{
    const char *text = json_text(v);
    size_t len = json_len(v);
    if (!text) return wrong_kind(r, path, "a string", v);
    if (!len || len > MAX_STOP_BYTES)
        return api_fail(r->e, API_BAD_VALUE, path, "`%s` must have 1 to %d bytes, but has %zu.", path,
                        MAX_STOP_BYTES, len);
    r->p->stops[r->p->n_stops++] = (struct api_text){arena_text(r->mem, text, len), len};
    return 0;
}

static int read_stop(struct reader *r, const struct field *f, const struct json *v)
{
    if (json_kind(v) == JK_TEXT) return add_stop(r, f->name, v);
    if (json_kind(v) != JK_ARRAY) return wrong_kind(r, f->name, "a string or an array of strings", v);
    if (json_len(v) > MAX_STOPS)
        return api_fail(r->e, API_BAD_VALUE, f->name, "`stop` has %zu strings; at most %d are allowed.",
                        json_len(v), MAX_STOPS);
    for (size_t i = 0; i < json_len(v); i++) {
        char path[PATH_SIZE];
        snprintf(path, sizeof(path), "stop[%zu]", i);
        if (add_stop(r, path, json_item(v, i)) < 0) return -1;
    }
    return 0;
}

int api_ids(const struct json *array, const char *path, u32 vocab, struct arena *mem, i32 **ids, u32 *n,
            struct api_error *e)
{
    size_t count = json_len(array);
    i32 *out = arena_alloc(mem, (count + 1) * sizeof(*out));
    for (size_t i = 0; i < count; i++) {
        const struct json *v = json_item(array, i);
        char at[PATH_SIZE];
        snprintf(at, sizeof(at), "%s[%zu]", path, i);
        if (json_kind(v) != JK_INT)
            return api_fail(e, API_BAD_VALUE, at, "`%s` must be a token id, but is %s.", at,
                            json_kind_name(json_kind(v)));
        i64 id = json_int(v, -1);
        if (id < 0 || id >= (i64)vocab)
            return api_fail(e, API_BAD_VALUE, at, "Token id %lld is out of vocabulary (0 to %u).",
                            (long long)id, vocab - 1);
        out[i] = (i32)id;
    }
    *ids = out;
    *n = (u32)count;
    return 0;
}

static int read_ids(struct reader *r, const struct field *f, const struct json *v)
{
    if (json_kind(v) != JK_ARRAY) return wrong_kind(r, f->name, "an array of token ids", v);
    if ((double)json_len(v) < f->low || json_len(v) > MAX_IDS)
        return api_fail(r->e, API_BAD_VALUE, f->name, "`%s` must have %g to %d token ids, but has %zu.",
                        f->name, f->low, MAX_IDS, json_len(v));
    bool stop = f->at == offsetof(struct params, stop_ids);
    return api_ids(v, f->name, r->limits->vocab, r->mem, stop ? &r->p->stop_ids : &r->p->allowed,
                   stop ? &r->p->n_stop_ids : &r->p->n_allowed, r->e);
}

static int read_logit_bias(struct reader *r, const struct field *f, const struct json *v)
{
    if (json_kind(v) != JK_OBJECT) return wrong_kind(r, f->name, "an object", v);
    if (json_len(v) > MAX_IDS)
        return api_fail(r->e, API_BAD_VALUE, f->name, "`logit_bias` has %zu entries; at most %d are allowed.",
                        json_len(v), MAX_IDS);
    r->p->bias = arena_alloc(r->mem, (json_len(v) + 1) * sizeof(*r->p->bias));
    for (void *it = json_first(v); it; it = json_next(v, it)) {
        const char *key = json_key(it);
        char path[PATH_SIZE], *end;
        snprintf(path, sizeof(path), "logit_bias.%.40s", key);
        long long id = strtoll(key, &end, 10);
        /* one spelling an id, so that ids are as distinct as keys */
        bool plain = *end == 0 && strlen(key) == json_key_len(it) && key[0] >= '0' && key[0] <= '9' &&
                     (key[0] != '0' || key[1] == 0);
        if (!plain || id >= (long long)r->limits->vocab)
            return api_fail(r->e, API_BAD_VALUE, path,
                            "`logit_bias` has a key that is no token id (0 to %u).", r->limits->vocab - 1);
        enum json_kind kind = json_kind(json_value(it));
        if (kind != JK_INT && kind != JK_REAL) return wrong_kind(r, path, "a number", json_value(it));
        double by = json_real(json_value(it), 0);
        r->p->bias[r->p->n_bias++] = (struct token_bias){(i32)id, (float)(by < -100  ? -100
                                                                          : by > 100 ? 100
                                                                                     : by)};
    }
    return 0;
}

static int read_bad_words(struct reader *r, const struct field *f, const struct json *v)
{
    if (json_kind(v) != JK_ARRAY) return wrong_kind(r, f->name, "an array of strings", v);
    if (json_len(v) > MAX_BAD_WORDS)
        return api_fail(r->e, API_BAD_VALUE, f->name, "`bad_words` has %zu words; at most %d are allowed.",
                        json_len(v), MAX_BAD_WORDS);
    for (size_t i = 0; i < json_len(v); i++) {
        char path[PATH_SIZE];
        snprintf(path, sizeof(path), "bad_words[%zu]", i);
        if (json_kind(json_item(v, i)) != JK_TEXT || !json_len(json_item(v, i)))
            return api_fail(r->e, API_BAD_VALUE, path, "`%s` must be a string that is not empty.", path);
    }
    return read_value(r, f, v);
}

static int read_stream_options(struct reader *r, const struct field *f, const struct json *v)
{
    static const struct field inner[] = {
        {"stream_options.include_usage", BOTH, read_bool, 0, 0, offsetof(struct params, include_usage), 0},
        {"stream_options.continuous_usage_stats", BOTH, read_bool, 0, 0,
         offsetof(struct params, continuous_usage), 0},
    };
    if (json_kind(v) != JK_OBJECT) return wrong_kind(r, f->name, "an object", v);
    for (size_t i = 0; i < COUNT_OF(inner); i++) {
        const struct json *x = json_get(v, strchr(inner[i].name, '.') + 1);
        if (json_kind(x) > JK_NULL && read_bool(r, &inner[i], x) < 0) return -1;
    }
    return read_value(r, f, v);
}

static int read_truncation_side(struct reader *r, const struct field *f, const struct json *v)
{
    const char *side = json_text(v);
    if (!side || (strcmp(side, "left") != 0 && strcmp(side, "right") != 0))
        return api_fail(r->e, API_BAD_VALUE, f->name, "`truncation_side` must be \"left\" or \"right\".");
    r->p->truncate_right = side[0] == 'r';
    return 0;
}

/* Of two texts the end of the second is cut. */
static int read_pair_side(struct reader *r, const struct field *f, const struct json *v)
{
    const char *side = json_text(v);
    if (side && strcmp(side, "right") == 0) return 0;
    return api_fail(r->e, API_UNSUPPORTED, f->name,
                    "`truncation_side` other than \"right\" is not supported for pairs of texts.");
}

static int read_response_format(struct reader *r, const struct field *f, const struct json *v)
{
    if (json_kind(v) != JK_OBJECT) return wrong_kind(r, f->name, "an object", v);
    const char *type = json_text(json_get(v, "type"));
    if (!type)
        return api_fail(r->e, API_BAD_VALUE, "response_format.type",
                        "`response_format.type` must be a string.");
    if (strcmp(type, "text") == 0) return 0;
    return api_fail(r->e, API_UNSUPPORTED, f->name,
                    "`response_format` other than {\"type\":\"text\"} is not supported by this server: %s.",
                    f->why);
}

static int read_thinking_budget(struct reader *r, const struct field *f, const struct json *v)
{
    if (json_kind(v) != JK_INT) return wrong_kind(r, f->name, "an integer", v);
    return json_int(v, 0) == -1 ? 0 : refuse(r, f, v);
}

static int read_encoding_format(struct reader *r, const struct field *f, const struct json *v)
{
    const char *format = json_text(v);
    if (!format || (strcmp(format, "float") != 0 && strcmp(format, "base64") != 0))
        return api_fail(r->e, API_BAD_VALUE, f->name, "`encoding_format` must be \"float\" or \"base64\".");
    r->p->base64 = format[0] == 'b';
    return 0;
}

static int read_dimensions(struct reader *r, const struct field *f, const struct json *v)
{
    struct field within = *f;
    within.high = r->limits->hidden;
    return read_int(r, &within, v);
}

static int read_cache_salt(struct reader *r, const struct field *f, const struct json *v)
{
    const char *salt = json_text(v);
    size_t len = json_len(v);
    if (!salt) return wrong_kind(r, f->name, "a string", v);
    if (len < 1 || len > 128 || strlen(salt) != len || strpbrk(salt, "@/\\"))
        return api_fail(r->e, API_BAD_VALUE, f->name,
                        "`cache_salt` must have 1 to 128 bytes, without @ / \\ and NUL.");
    return 0;
}

static int read_tool_choice(struct reader *r, const struct field *f, const struct json *v)
{
    const char *choice = json_text(v);
    if (!choice && json_kind(v) != JK_OBJECT) return wrong_kind(r, f->name, "a string or an object", v);
    r->p->tool_choice_none = choice && strcmp(choice, "none") == 0;
    if (r->p->tool_choice_none) return 0;
    if (choice && strcmp(choice, "auto") != 0 && strcmp(choice, "required") != 0)
        return api_fail(
            r->e, API_BAD_VALUE, f->name,
            "`tool_choice` must be \"none\", \"auto\", \"required\" or an object that names a function.");
    if (choice && choice[0] == 'a') return 0;
    return api_fail(r->e, API_UNSUPPORTED, f->name, "`tool_choice` is not supported by this server: %s.",
                    f->why);
}

static int read_function_call(struct reader *r, const struct field *f, const struct json *v)
{
    const char *call = json_text(v);
    return call && (strcmp(call, "none") == 0 || strcmp(call, "auto") == 0) ? 0 : refuse(r, f, v);
}

static int read_modalities(struct reader *r, const struct field *f, const struct json *v)
{
    if (json_kind(v) != JK_ARRAY) return wrong_kind(r, f->name, "an array of strings", v);
    for (size_t i = 0; i < json_len(v); i++) {
        const char *m = json_text(json_item(v, i));
        if (!m || strcmp(m, "text") != 0)
            return api_fail(r->e, API_UNSUPPORTED, f->name,
                            "`modalities` other than \"text\" are not supported.");
    }
    return 0;
}

static int read_reasoning_effort(struct reader *r, const struct field *f, const struct json *v)
{
    static const char *const levels[] = {"none", "minimal", "low", "medium", "high", "xhigh", "max"};
    const char *level = json_text(v);
    for (size_t i = 0; level && i < COUNT_OF(levels); i++)
        if (strcmp(level, levels[i]) == 0) return read_text(r, f, v);
    return api_fail(r->e, API_BAD_VALUE, f->name,
                    "`reasoning_effort` must be one of none, minimal, low, medium, high, xhigh, max.");
}

static int read_generation_prompt(struct reader *r, const struct field *f, const struct json *v)
{
    r->p->set_generation_prompt = true;
    return read_bool(r, f, v);
}

static int read_logprobs(struct reader *r, const struct field *f, const struct json *v)
{
    if (json_kind(v) != JK_INT) return wrong_kind(r, f->name, "an integer", v);
    i64 n = json_int(v, 0);
    if (n < 0 || n > r->limits->max_logprobs)
        return api_fail(r->e, API_BAD_VALUE, f->name,
                        "`%s` must be between 0 and %lld (--max-logprobs), but is %lld.", f->name,
                        (long long)r->limits->max_logprobs, (long long)n);
    memcpy((u8 *)r->p + f->at, &n, sizeof(n));
    return 0;
}

/* ---- the table ----------------------------------------------------------------------------------------------- */
#define AT(member) offsetof(struct params, member)
#define NO_GRAMMAR "output cannot be constrained; leave it out and describe the format in the prompt"
#define NO_TOOLS   "tool calls are not offered; leave it out"
#define NO_MEDIA   "the models served take text only"
enum { INT_LIMIT = INT32_MAX };
static const double ANY = 1e19; /* above every i64 */

/* clang-format off */
static const struct field FIELDS[] = {
    {"model",                          ALL, read_text, 0, 0, AT(model), 0},
    {"temperature",                   BOTH, read_real, 0, 2, AT(temperature), 0},
    {"top_p",                         BOTH, read_real, 0, 1, AT(top_p), 0},
    {"top_k",                         BOTH, read_int, -1, INT_LIMIT, AT(top_k), 0},
    {"min_p",                         BOTH, read_real, 0, 1, AT(min_p), 0},
    {"presence_penalty",              BOTH, read_real, -2, 2, AT(presence_penalty), 0},
    {"frequency_penalty",             BOTH, read_real, -2, 2, AT(frequency_penalty), 0},
    {"repetition_penalty",            BOTH, read_real, FLT_MIN, FLT_MAX, AT(repetition_penalty), 0},
    {"seed",                          BOTH, read_int, -ANY, ANY, AT(seed), 0},
    {"n",                             BOTH, read_int, 1, MAX_N, AT(n), 0},
    {"best_of",                       BOTH, read_int, 0, MAX_N, AT(best_of), 0},
    {"stop",                          BOTH, read_stop, 0, 0, 0, 0},
    {"stop_token_ids",                BOTH, read_ids, 0, 0, AT(stop_ids), 0},
    {"include_stop_str_in_output",    BOTH, read_bool, 0, 0, AT(include_stop), 0},
    {"ignore_eos",                    BOTH, read_bool, 0, 0, AT(ignore_eos), 0},
    {"min_tokens",                    BOTH, read_int, 0, INT_LIMIT, AT(min_tokens), 0},
    {"logit_bias",                    BOTH, read_logit_bias, 0, 0, 0, 0},
    {"allowed_token_ids",             BOTH, read_ids, 1, 0, AT(allowed), 0},
    {"bad_words",                     BOTH, read_bad_words, 0, 0, AT(bad_words), 0},
    {"skip_special_tokens",           BOTH, read_bool, 0, 0, AT(skip_special), 0},
    {"truncate_prompt_tokens",         ALL, read_int, -1, INT_LIMIT, AT(truncate_prompt_tokens), 0},
    {"truncation_side", BOTH | API_EMBEDDINGS, read_truncation_side, 0, 0, 0, 0},
    {"return_tokens_as_token_ids",    BOTH, read_bool, 0, 0, AT(token_ids_as_text), 0},
    {"return_token_ids",              BOTH, read_bool, 0, 0, AT(return_token_ids), 0},
    {"request_id",                     ALL, read_text, 0, 0, AT(request_id), 0},
    {"priority",                       ALL, read_int, -ANY, ANY, AT(priority), 0},
    {"session_id",                     ALL, read_text, 0, 0, AT(session_id), 0},
    {"user",                           ALL, read_text, 0, 0, AT(user), 0},
    {"cache_salt",                     ALL, read_cache_salt, 0, 0, 0, 0},
    {"stream",                        BOTH, read_bool, 0, 0, AT(stream), 0},
    {"stream_options",                BOTH, read_stream_options, 0, 0, AT(stream_options), 0},
    {"stream_interval",               BOTH, read_int, 1, INT_LIMIT, AT(stream_interval), 0},
    {"add_special_tokens", BOTH | API_EMBEDDINGS, read_bool, 0, 0, AT(add_special), 0},
    {"response_format",               BOTH, read_response_format, 0, 0, 0, NO_GRAMMAR},
    {"structured_outputs",            BOTH, refuse, 0, 0, 0, NO_GRAMMAR},
    {"guided_json",                   BOTH, refuse, 0, 0, 0, NO_GRAMMAR},
    {"guided_regex",                  BOTH, refuse, 0, 0, 0, NO_GRAMMAR},
    {"guided_choice",                 BOTH, refuse, 0, 0, 0, NO_GRAMMAR},
    {"guided_grammar",                BOTH, refuse, 0, 0, 0, NO_GRAMMAR},
    {"grammar",                       BOTH, refuse, 0, 0, 0, NO_GRAMMAR},
    {"json_schema",                   BOTH, refuse, 0, 0, 0, NO_GRAMMAR},
    {"n_predict",                     BOTH, refuse, 0, 0, 0, "use max_tokens"},
    {"use_beam_search",               BOTH, refuse, 0, 0, 0, "there is no beam search"},
    {"prompt_logprobs",               BOTH, refuse, 0, 0, 0, "log-probabilities are given for generated tokens only"},
    {"logprob_token_ids",             BOTH, refuse, 0, 0, 0, "log-probabilities are given for the best tokens only"},
    {"thinking_token_budget",         BOTH, read_thinking_budget, 0, 0, 0, "use max_tokens"},
    {"prompt_embeds",                 BOTH, refuse, 0, 0, 0, NO_MEDIA},

    {"prompt",             API_COMPLETIONS, read_value, 0, 0, AT(prompt), 0},
    {"max_tokens",         API_COMPLETIONS, read_int, 0, INT_LIMIT, AT(max_tokens), 0},
    {"logprobs",           API_COMPLETIONS, read_logprobs, 0, 0, AT(logprobs), 0},
    {"echo",               API_COMPLETIONS, read_bool, 0, 0, AT(echo), 0},
    {"suffix",             API_COMPLETIONS, refuse, 0, 0, 0, "text cannot be filled in before a suffix"},

    {"input",               API_EMBEDDINGS, read_value, 0, 0, AT(prompt), 0},
    {"encoding_format",     API_EMBEDDINGS, read_encoding_format, 0, 0, 0, 0},
    {"dimensions",          API_EMBEDDINGS, read_dimensions, 1, 0, AT(dimensions), 0},
    {"messages",            API_EMBEDDINGS, refuse, 0, 0, 0, "send the text as `input`"},

    {"query",                   API_RERANK, read_value, 0, 0, AT(query), 0},
    {"documents",               API_RERANK, read_value, 0, 0, AT(prompt), 0},
    {"top_n",                   API_RERANK, read_int, 0, INT_LIMIT, AT(top_n), 0},
    {"return_documents",        API_RERANK, read_bool, 0, 0, AT(return_documents), 0},
    {"max_tokens_per_doc",      API_RERANK, refuse, 0, 0, 0, "use truncate_prompt_tokens, which counts the query, too"},
    {"text_1",                   API_SCORE, read_value, 0, 0, AT(query), 0},
    {"text_2",                   API_SCORE, read_value, 0, 0, AT(prompt), 0},
    {"truncation_side",              PAIRS, read_pair_side, 0, 0, 0, 0},

    {"messages",                  API_CHAT, read_array, 0, 0, AT(messages), 0},
    {"max_completion_tokens",     API_CHAT, read_int, 1, INT_LIMIT, AT(max_completion_tokens), 0},
    {"max_tokens",                API_CHAT, read_int, 1, INT_LIMIT, AT(max_tokens), 0},
    {"logprobs",                  API_CHAT, read_bool, 0, 0, AT(want_logprobs), 0},
    {"top_logprobs",              API_CHAT, read_logprobs, 0, 0, AT(top_logprobs), 0},
    {"tools",                     API_CHAT, read_array, 0, 0, AT(tools), 0},
    {"tool_choice",               API_CHAT, read_tool_choice, 0, 0, 0, NO_TOOLS},
    {"functions",                 API_CHAT, refuse, 0, 0, 0, NO_TOOLS},
    {"function_call",             API_CHAT, read_function_call, 0, 0, 0, NO_TOOLS},
    {"reasoning_effort",          API_CHAT, read_reasoning_effort, 0, 0, AT(reasoning_effort), 0},
    {"echo",                      API_CHAT, refuse, 0, 0, 0, "use continue_final_message and put the texts together"},
    {"add_generation_prompt",     API_CHAT, read_generation_prompt, 0, 0, AT(add_generation_prompt), 0},
    {"continue_final_message",    API_CHAT, read_bool, 0, 0, AT(continue_final), 0},
    {"chat_template",             API_CHAT, refuse, 0, 0, 0, "the model's own template is used"},
    {"chat_template_kwargs",      API_CHAT, read_object, 0, 0, AT(template_kwargs), 0},
    {"documents",                 API_CHAT, read_array, 0, 0, AT(documents), 0},
    {"return_prompt_text",        API_CHAT, read_bool, 0, 0, AT(return_prompt_text), 0},
    {"modalities",                API_CHAT, read_modalities, 0, 0, 0, 0},
    {"mm_processor_kwargs",       API_CHAT, refuse, 0, 0, 0, NO_MEDIA},
    {"media_io_kwargs",           API_CHAT, refuse, 0, 0, 0, NO_MEDIA},
};
/* clang-format on */

static const struct field *field_find(const char *name, enum api api)
{
    for (size_t i = 0; i < COUNT_OF(FIELDS); i++)
        if ((FIELDS[i].apis & api) && strcmp(FIELDS[i].name, name) == 0) return &FIELDS[i];
    return NULL;
}

/* ---- rules between fields ------------------------------------------------------------------------------------ */
i64 params_max_tokens(const struct params *p)
{
    if (p->api == API_CHAT && p->max_completion_tokens != PARAM_NONE) return p->max_completion_tokens;
    if (p->max_tokens != PARAM_NONE) return p->max_tokens;
    return p->api == API_COMPLETIONS ? 16 : PARAM_NONE;
}

const char *api_prompt_name(enum api api)
{
    switch (api) {
    case API_EMBEDDINGS: return "input";
    case API_RERANK: return "documents";
    case API_SCORE: return "text_2";
    default: return "prompt";
    }
}

const char *api_query_name(enum api api)
{
    return api == API_RERANK ? "query" : api == API_SCORE ? "text_1" : NULL;
}

static const char *max_tokens_name(const struct params *p)
{
    return p->api == API_CHAT && p->max_completion_tokens != PARAM_NONE ? "max_completion_tokens"
                                                                        : "max_tokens";
}

static int check_lengths(const struct params *p, const struct api_limits *limits, struct api_error *e)
{
    i64 max = params_max_tokens(p);
    const char *name = max_tokens_name(p);
    if (max == 0 && !p->echo)
        return api_fail(e, API_BAD_VALUE, name, "`max_tokens` must be at least 1 (0 only with echo).");
    if (max != PARAM_NONE && max > (i64)limits->max_len)
        return api_fail(e, API_BAD_VALUE, name, "`%s` is %lld, but the model's context has %u tokens.", name,
                        (long long)max, limits->max_len);
    if (max != PARAM_NONE && p->min_tokens > max)
        return api_fail(e, API_BAD_VALUE, "min_tokens", "`min_tokens` (%lld) must not be above `%s` (%lld).",
                        (long long)p->min_tokens, name, (long long)max);
    if (p->truncate_prompt_tokens > (i64)limits->max_len)
        return api_fail(e, API_BAD_VALUE, "truncate_prompt_tokens",
                        "`truncate_prompt_tokens` is %lld, but the model's context has %u tokens.",
                        (long long)p->truncate_prompt_tokens, limits->max_len);
    if (p->truncate_prompt_tokens == 0)
        return api_fail(e, API_BAD_VALUE, "truncate_prompt_tokens",
                        "`truncate_prompt_tokens` must not be 0.");
    return 0;
}

static int check_chat(const struct params *p, struct api_error *e, bool has_tool_choice)
{
    if (!p->messages) return api_fail(e, API_BAD_VALUE, "messages", "`messages` is required.");
    if (p->top_logprobs > 0 && !p->want_logprobs)
        return api_fail(e, API_BAD_VALUE, "top_logprobs", "`top_logprobs` needs `logprobs`: true.");
    bool tools = json_len(p->tools) > 0;
    if (has_tool_choice && !p->tool_choice_none && !tools && !p->rendering)
        return api_fail(e, API_BAD_VALUE, "tool_choice", "`tool_choice` needs `tools`.");
    if (tools && !p->tool_choice_none && !p->rendering)
        return api_fail(e, API_UNSUPPORTED, "tools",
                        "`tools` is not supported by this server: " NO_TOOLS
                        ", or send `tool_choice`: \"none\".");
    if (p->continue_final && p->set_generation_prompt && p->add_generation_prompt)
        return api_fail(e, API_BAD_VALUE, "continue_final_message",
                        "`continue_final_message` and `add_generation_prompt` must not both be true.");
    return 0;
}

static int check_together(const struct params *p, const struct json *body, const struct api_limits *limits,
                          struct api_error *e)
{
    if (p->stream_options && !p->stream)
        return api_fail(e, API_BAD_VALUE, "stream_options", "`stream_options` needs `stream`: true.");
    if (p->best_of != PARAM_NONE && p->best_of != 1 && p->best_of != p->n)
        return api_fail(e, API_UNSUPPORTED, "best_of", "`best_of` must be absent, 1 or equal to `n`.");
    if (p->n_stop_ids > 128 && p->min_tokens > 0)
        return api_fail(e, API_BAD_VALUE, "stop_token_ids",
                        "`stop_token_ids` has %u ids; at most 128 with `min_tokens`.", p->n_stop_ids);
    if (check_lengths(p, limits, e) < 0) return -1;
    if (p->api == API_CHAT) return check_chat(p, e, json_kind(json_get(body, "tool_choice")) > JK_NULL);
    const char *name = api_prompt_name(p->api);
    if (api_query_name(p->api) && !p->query)
        return api_fail(e, API_BAD_VALUE, api_query_name(p->api), "`%s` is required.",
                        api_query_name(p->api));
    if (!p->prompt) return api_fail(e, API_BAD_VALUE, name, "`%s` is required.", name);
    if (p->echo && p->logprobs != PARAM_NONE)
        return api_fail(
            e, API_UNSUPPORTED, "echo",
            "`echo` with `logprobs` is not supported by this server: log-probabilities are given for "
            "generated tokens only.");
    return 0;
}

static int read_params(struct params *p, const struct json *body, enum api api, bool rendering,
                       const struct api_limits *limits, struct arena *mem, struct api_error *e)
{
    struct reader r = {p, limits, mem, e};
    *p = (struct params){.api = api,
                         .rendering = rendering,
                         .temperature = NAN,
                         .top_p = NAN,
                         .min_p = NAN,
                         .repetition_penalty = NAN,
                         .presence_penalty = NAN,
                         .frequency_penalty = NAN,
                         .top_k = PARAM_NONE,
                         .seed = PARAM_NONE,
                         .n = 1,
                         .best_of = PARAM_NONE,
                         .max_tokens = PARAM_NONE,
                         .max_completion_tokens = PARAM_NONE,
                         .logprobs = PARAM_NONE,
                         .truncate_prompt_tokens = PARAM_NONE,
                         .stream_interval = 1,
                         .skip_special = true,
                         .dimensions = PARAM_NONE,
                         .return_documents = true,
                         .add_special = api != API_CHAT,
                         .add_generation_prompt = true};
    if (json_kind(body) != JK_OBJECT)
        return api_fail(e, API_BAD_VALUE, NULL, "The body must be a JSON object, but is %s.",
                        json_kind_name(json_kind(body)));
    for (void *it = json_first(body); it; it = json_next(body, it)) {
        const struct json *v = json_value(it);
        const struct field *f = json_kind(v) == JK_NULL ? NULL : field_find(json_key(it), api);
        if (f && f->read(&r, f, v) < 0) return -1;
    }
    if (p->seed == -1) p->seed = PARAM_NONE;
    return check_together(p, body, limits, e);
}

int params_read(struct params *p, const struct json *body, enum api api, const struct api_limits *limits,
                struct arena *mem, struct api_error *e)
{
    return read_params(p, body, api, false, limits, mem, e);
}

int params_read_prompt(struct params *p, const struct json *body, const struct api_limits *limits,
                       struct arena *mem, struct api_error *e)
{
    return read_params(p, body, API_CHAT, true, limits, mem, e);
}
