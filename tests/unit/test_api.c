/* The OpenAI API without HTTP: every field at its bounds, error objects, stop strings, keys, routes. */
#include "ingress/http.h"

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum {
    C = API_COMPLETIONS,
    X = API_CHAT,
    B = API_COMPLETIONS | API_CHAT,
    E = API_EMBEDDINGS,
    R = API_RERANK,
    S = API_SCORE,
    P = R | S,
};
static const struct api_limits LIMITS = {.vocab = 1000, .max_len = 512, .max_logprobs = 20, .hidden = 64};

struct parsed {
    struct params p;
    struct api_error e;
    struct arena mem;
    struct json *body;
    int rc;
};

/* fields: members without braces; the required ones are added. */
static void parse(struct parsed *r, enum api api, const char *fields)
{
    char text[70000];
    struct error err;
    static const struct {
        const char *name, *needed;
    } all[] = {[C] = {"\"prompt\"", "\"prompt\":\"x\""},
               [X] = {"\"messages\"", "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]"},
               [E] = {"\"input\"", "\"input\":\"x\""},
               [R] = {"\"documents\"", "\"query\":\"x\",\"documents\":[\"y\"]"},
               [S] = {"\"text_2\"", "\"text_1\":\"x\",\"text_2\":\"y\""}};
    const char *needed = all[api].needed;
    bool has = strstr(fields, all[api].name) != NULL;
    snprintf(text, sizeof(text), "{%s%s%s}", has ? "" : needed, has || !fields[0] ? "" : ",", fields);
    arena_init(&r->mem, 0);
    r->body = json_read(text, strlen(text), &err);
    if (!r->body) fail_msg("%s: %s", text, err.message);
    r->rc = params_read(&r->p, r->body, api, &LIMITS, &r->mem, &r->e);
}

static void release(struct parsed *r)
{
    json_drop(r->body);
    arena_release(&r->mem);
}

static const struct {
    int apis;
    const char *fields, *param; /* param NULL: accepted; "-": refused without one */
} CASES[] = {
    {B, "", NULL},
    {B, "\"no_such_field\":{\"a\":[1]}", NULL},
    {B,
     "\"user\":\"u\",\"metadata\":{\"a\":1},\"store\":true,\"service_tier\":\"auto\",\"prompt_cache_key\":"
     "\"k\"",
     NULL},
    {B, "\"priority\":-9223372036854775808", NULL},
    {B, "\"priority\":9223372036854775807", NULL},
    {B, "\"priority\":1.0", "priority"},
    {B, "\"priority\":\"1\"", "priority"},
    {B, "\"session_id\":\"a\",\"user\":\"\"", NULL},
    {B, "\"session_id\":null,\"user\":null", NULL},
    {B, "\"session_id\":7", "session_id"},
    {B, "\"user\":{}", "user"},
    {B, "\"temperature\":0", NULL},
    {B, "\"temperature\":2.0", NULL},
    {B, "\"temperature\":null", NULL},
    {B, "\"temperature\":2.0001", "temperature"},
    {B, "\"temperature\":-0.1", "temperature"},
    {B, "\"temperature\":\"1\"", "temperature"},
    {B, "\"temperature\":true", "temperature"},
    {B, "\"top_p\":0", NULL},
    {B, "\"top_p\":1", NULL},
    {B, "\"top_p\":1.01", "top_p"},
    {B, "\"top_p\":-0.01", "top_p"},
    {B, "\"top_k\":-1", NULL},
    {B, "\"top_k\":0", NULL},
    {B, "\"top_k\":5", NULL},
    {B, "\"top_k\":-2", "top_k"},
    {B, "\"top_k\":1.5", "top_k"},
    {B, "\"top_k\":4294967296", "top_k"},
    {B, "\"min_p\":0.5", NULL},
    {B, "\"min_p\":1.5", "min_p"},
    {B, "\"min_p\":-0.5", "min_p"},
    {B, "\"presence_penalty\":-2", NULL},
    {B, "\"presence_penalty\":2", NULL},
    {B, "\"presence_penalty\":2.1", "presence_penalty"},
    {B, "\"frequency_penalty\":-2.1", "frequency_penalty"},
    {B, "\"repetition_penalty\":0.1", NULL},
    {B, "\"repetition_penalty\":0", "repetition_penalty"},
    {B, "\"repetition_penalty\":-1", "repetition_penalty"},
    {B, "\"repetition_penalty\":1e200", "repetition_penalty"},
    {B, "\"repetition_penalty\":1e-200", "repetition_penalty"},
    {B, "\"seed\":-9223372036854775808", NULL},
    {B, "\"seed\":9223372036854775807", NULL},
    {B, "\"seed\":1.5", "seed"},
    {B, "\"n\":1", NULL},
    {B, "\"n\":128", NULL},
    {B, "\"n\":0", "n"},
    {B, "\"n\":129", "n"},
    {B, "\"best_of\":1,\"n\":3", NULL},
    {B, "\"best_of\":3,\"n\":3", NULL},
    {B, "\"best_of\":4,\"n\":3", "best_of"},
    {B, "\"best_of\":null", NULL},
    {B, "\"best_of\":0", "best_of"},
    {B, "\"stop\":\"a\"", NULL},
    {B, "\"stop\":[]", NULL},
    {B, "\"stop\":\"\"", "stop"},
    {B, "\"stop\":5", "stop"},
    {B, "\"stop\":[\"a\",\"\"]", "stop[1]"},
    {B, "\"stop\":[\"a\",5]", "stop[1]"},
    {B,
     "\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"a\",\"b\",\"c\",\"d\",\"e\",\"f\","
     "\"g\"]",
     NULL},
    {B,
     "\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"a\",\"b\",\"c\",\"d\",\"e\",\"f\","
     "\"g\",\"h\"]",
     "stop"},
    {B, "\"stop_token_ids\":[0,999]", NULL},
    {B, "\"stop_token_ids\":[5,1000]", "stop_token_ids[1]"},
    {B, "\"stop_token_ids\":[-1]", "stop_token_ids[0]"},
    {B, "\"stop_token_ids\":7", "stop_token_ids"},
    {B, "\"allowed_token_ids\":[1]", NULL},
    {B, "\"allowed_token_ids\":[]", "allowed_token_ids"},
    {B, "\"allowed_token_ids\":[1.5]", "allowed_token_ids[0]"},
    {B, "\"ignore_eos\":true,\"include_stop_str_in_output\":true,\"skip_special_tokens\":false", NULL},
    {B, "\"ignore_eos\":1", "ignore_eos"},
    {B, "\"skip_special_tokens\":\"no\"", "skip_special_tokens"},
    {B, "\"min_tokens\":3,\"max_tokens\":3", NULL},
    {B, "\"min_tokens\":4,\"max_tokens\":3", "min_tokens"},
    {B, "\"min_tokens\":-1", "min_tokens"},
    {C, "\"min_tokens\":17", "min_tokens"},
    {X, "\"min_tokens\":17", NULL},
    {B, "\"logit_bias\":{\"0\":-100,\"999\":1e9}", NULL},
    {B, "\"logit_bias\":{\"1000\":1}", "logit_bias.1000"},
    {B, "\"logit_bias\":{\"x\":1}", "logit_bias.x"},
    {B, "\"logit_bias\":{\"07\":1}", "logit_bias.07"},
    {B, "\"logit_bias\":{\"-1\":1}", "logit_bias.-1"},
    {B, "\"logit_bias\":{\"\":1}", "logit_bias."},
    {B, "\"logit_bias\":{\"5\":\"1\"}", "logit_bias.5"},
    {B, "\"logit_bias\":[1]", "logit_bias"},
    {B, "\"bad_words\":[\"a\"]", NULL},
    {B, "\"bad_words\":[\"\"]", "bad_words[0]"},
    {B, "\"bad_words\":\"a\"", "bad_words"},
    {B, "\"truncate_prompt_tokens\":-1", NULL},
    {B, "\"truncate_prompt_tokens\":512", NULL},
    {B, "\"truncate_prompt_tokens\":513", "truncate_prompt_tokens"},
    {B, "\"truncate_prompt_tokens\":0", "truncate_prompt_tokens"},
    {B, "\"truncate_prompt_tokens\":-2", "truncate_prompt_tokens"},
    {B, "\"truncation_side\":\"left\"", NULL},
    {B, "\"truncation_side\":\"up\"", "truncation_side"},
    {B, "\"stream\":true,\"stream_options\":{\"include_usage\":true,\"include_obfuscation\":false}", NULL},
    {B, "\"stream_options\":{\"include_usage\":true}", "stream_options"},
    {B, "\"stream_options\":null", NULL},
    {B, "\"stream\":true,\"stream_options\":{\"include_usage\":1}", "stream_options.include_usage"},
    {B, "\"stream\":true,\"stream_options\":5", "stream_options"},
    {B, "\"stream\":1", "stream"},
    {B, "\"stream_interval\":1", NULL},
    {B, "\"stream_interval\":0", "stream_interval"},
    {B, "\"cache_salt\":\"abc\"", NULL},
    {B, "\"cache_salt\":\"a/b\"", "cache_salt"},
    {B, "\"cache_salt\":\"\"", "cache_salt"},
    {B, "\"thinking_token_budget\":-1", NULL},
    {B, "\"thinking_token_budget\":5", "thinking_token_budget"},
    {B, "\"model\":5", "model"},
    {B, "\"request_id\":\"abc\"", NULL},
    {B, "\"request_id\":\"a\\u0000b\"", "request_id"},
    {B, "\"response_format\":{\"type\":\"text\"}", NULL},
    {B, "\"response_format\":{}", "response_format.type"},
    {B, "\"response_format\":{\"type\":\"json_schema\"}", "response_format"},
    {B, "\"structured_outputs\":{\"regex\":\"a\"}", "structured_outputs"},
    {B, "\"guided_json\":{}", "guided_json"},
    {B, "\"guided_regex\":\"a\"", "guided_regex"},
    {B, "\"guided_choice\":[\"a\"]", "guided_choice"},
    {B, "\"guided_grammar\":\"a\"", "guided_grammar"},
    {B, "\"guided_decoding_backend\":\"x\"", NULL},
    {B, "\"grammar\":\"root ::= x\"", "grammar"},
    {B, "\"grammar\":\"\"", NULL},
    {B, "\"json_schema\":{}", "json_schema"},
    {B, "\"use_beam_search\":true", "use_beam_search"},
    {B, "\"use_beam_search\":false,\"length_penalty\":1", NULL},
    {B, "\"prompt_logprobs\":0", "prompt_logprobs"},
    {B, "\"prompt_logprobs\":null", NULL},
    {B, "\"logprob_token_ids\":[1]", "logprob_token_ids"},
    {B, "\"n_predict\":5", "n_predict"},
    {B, "\"max_tokens\":512", NULL},
    {B, "\"max_tokens\":513", "max_tokens"},
    {B, "\"max_tokens\":0", "max_tokens"},
    {B, "\"max_tokens\":-1", "max_tokens"},
    {B, "\"max_tokens\":\"5\"", "max_tokens"},
    {B, "\"max_tokens\":5.0", "max_tokens"},

    {C, "\"prompt\":null", "prompt"},
    {C, "\"max_tokens\":0,\"echo\":true", NULL},
    {C, "\"logprobs\":0", NULL},
    {C, "\"logprobs\":20", NULL},
    {C, "\"logprobs\":21", "logprobs"},
    {C, "\"logprobs\":-1", "logprobs"},
    {C, "\"logprobs\":true", "logprobs"},
    {C, "\"echo\":true,\"logprobs\":1", "echo"},
    {C, "\"suffix\":\"a\"", "suffix"},
    {C, "\"suffix\":\"\"", NULL},

    {E, "", NULL},
    {E, "\"input\":null", "input"},
    {E, "\"encoding_format\":\"float\",\"dimensions\":1", NULL},
    {E, "\"encoding_format\":\"base64\",\"dimensions\":64", NULL},
    {E, "\"encoding_format\":null,\"dimensions\":null,\"user\":\"u\"", NULL},
    {E, "\"encoding_format\":\"ubinary\"", "encoding_format"},
    {E, "\"encoding_format\":1", "encoding_format"},
    {E, "\"dimensions\":0", "dimensions"},
    {E, "\"dimensions\":65", "dimensions"},
    {E, "\"dimensions\":\"3\"", "dimensions"},
    {E, "\"truncate_prompt_tokens\":513", "truncate_prompt_tokens"},
    {E, "\"truncate_prompt_tokens\":-1,\"truncation_side\":\"right\",\"priority\":1", NULL},
    {E, "\"temperature\":9,\"prompt\":1,\"n\":0", NULL}, /* unknown here */
    {B, "\"dimensions\":0,\"encoding_format\":7", NULL},
    {X, "\"messages\":null", "messages"},
    {X, "\"messages\":\"a\"", "messages"},
    {X, "\"max_completion_tokens\":512", NULL},
    {X, "\"max_completion_tokens\":0", "max_completion_tokens"},
    {X, "\"max_completion_tokens\":513", "max_completion_tokens"},
    {X, "\"max_completion_tokens\":3,\"min_tokens\":4", "min_tokens"},
    {X, "\"logprobs\":true,\"top_logprobs\":20", NULL},
    {X, "\"logprobs\":true,\"top_logprobs\":21", "top_logprobs"},
    {X, "\"top_logprobs\":1", "top_logprobs"},
    {X, "\"top_logprobs\":0", NULL},
    {X, "\"logprobs\":1", "logprobs"},
    {X, "\"tools\":[]", NULL},
    {X, "\"tools\":[{\"type\":\"function\"}]", "tools"},
    {X, "\"tools\":{}", "tools"},
    {X, "\"tools\":[{}],\"tool_choice\":\"none\"", NULL},
    {X, "\"tool_choice\":\"none\"", NULL},
    {X, "\"tool_choice\":\"auto\"", "tool_choice"},
    {X, "\"tools\":[{}],\"tool_choice\":\"required\"", "tool_choice"},
    {X, "\"tools\":[{}],\"tool_choice\":\"some\"", "tool_choice"},
    {X, "\"parallel_tool_calls\":true", NULL},
    {X, "\"tools\":[{}],\"tool_choice\":{\"type\":\"function\"}", "tool_choice"},
    {X, "\"functions\":[{}]", "functions"},
    {X, "\"function_call\":\"none\"", NULL},
    {X, "\"function_call\":{\"name\":\"f\"}", "function_call"},
    {X, "\"reasoning_effort\":\"high\"", NULL},
    {X, "\"reasoning_effort\":\"huge\"", "reasoning_effort"},
    {X, "\"echo\":true", "echo"},
    {X, "\"chat_template\":\"x\"", "chat_template"},
    {X, "\"chat_template_kwargs\":{\"a\":1}", NULL},
    {X, "\"chat_template_kwargs\":5", "chat_template_kwargs"},
    {X, "\"continue_final_message\":true", NULL},
    {X, "\"continue_final_message\":true,\"add_generation_prompt\":true", "continue_final_message"},
    {X, "\"continue_final_message\":true,\"add_generation_prompt\":false", NULL},
    {X, "\"modalities\":[\"text\"]", NULL},
    {X, "\"modalities\":[\"audio\"]", "modalities"},
    {X, "\"mm_processor_kwargs\":{\"a\":1}", "mm_processor_kwargs"},
    {X, "\"web_search_options\":{},\"verbosity\":\"low\"", NULL},
    {P, "", NULL},
    {P, "\"temperature\":7,\"n\":0,\"stream\":true", NULL}, /* not fields of theirs */
    {P, "\"model\":\"m\",\"user\":\"u\",\"priority\":3,\"truncate_prompt_tokens\":-1", NULL},
    {P, "\"truncate_prompt_tokens\":0", "truncate_prompt_tokens"},
    {P, "\"truncate_prompt_tokens\":513", "truncate_prompt_tokens"},
    {P, "\"truncation_side\":\"right\"", NULL},
    {P, "\"truncation_side\":\"left\"", "truncation_side"},
    {P, "\"model\":1", "model"},
    {R, "\"top_n\":0", NULL},
    {R, "\"top_n\":3,\"return_documents\":false", NULL},
    {R, "\"top_n\":-1", "top_n"},
    {R, "\"top_n\":1.5", "top_n"},
    {R, "\"return_documents\":1", "return_documents"},
    {R, "\"max_tokens_per_doc\":64", "max_tokens_per_doc"},
    {R, "\"documents\":[\"a\"]", "query"},
    {R, "\"query\":\"a\",\"documents\":null", "documents"},
    {S, "\"text_2\":\"a\"", "text_1"},
    {S, "\"text_1\":\"a\",\"text_2\":null", "text_2"},
    {S, "\"top_n\":-1", NULL},
};

static void test_every_field(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(CASES); i++) {
        for (int api = API_COMPLETIONS; api <= API_SCORE; api *= 2) {
            if (!(CASES[i].apis & api)) continue;
            struct parsed r;
            parse(&r, (enum api)api, CASES[i].fields);
            if ((r.rc < 0) != (CASES[i].param != NULL))
                fail_msg("%s (api %d): %s", CASES[i].fields, api, r.rc < 0 ? r.e.message : "was accepted");
            if (r.rc < 0) {
                assert_string_equal(r.e.param, CASES[i].param);
                assert_int_equal(api_status(r.e.kind), 400);
                assert_true(strlen(r.e.message) > 10);
                assert_null(strstr(r.e.message, "rate limit"));
            }
            release(&r);
        }
    }
}

static void test_values(void **state)
{
    (void)state;
    struct parsed r;
    parse(&r, API_COMPLETIONS,
          "\"logit_bias\":{\"5\":-200,\"6\":3.5},\"seed\":-1,\"stop\":[\"ab\",\"c\\u0000d\"],"
          "\"temperature\":1,\"stop_token_ids\":[7,8]");
    assert_int_equal(r.rc, 0);
    assert_int_equal(r.p.n_bias, 2);
    assert_true(r.p.bias[0].id == 5 && r.p.bias[0].bias == -100 && r.p.bias[1].id == 6 &&
                r.p.bias[1].bias == 3.5f);
    assert_true(r.p.seed == PARAM_NONE && r.p.temperature == 1 && isnan(r.p.top_p) &&
                r.p.top_k == PARAM_NONE);
    assert_true(r.p.n_stops == 2 && r.p.stops[1].len == 3 && memcmp(r.p.stops[1].text, "c\0d", 3) == 0);
    assert_true(r.p.n_stop_ids == 2 && r.p.stop_ids[1] == 8 && r.p.add_special && r.p.skip_special);
    assert_int_equal(params_max_tokens(&r.p), 16);
    release(&r);
    parse(&r, API_CHAT, "");
    assert_true(params_max_tokens(&r.p) == PARAM_NONE && !r.p.add_special && r.p.add_generation_prompt);
    release(&r);
    parse(&r, API_CHAT, "\"max_tokens\":5,\"max_completion_tokens\":6");
    assert_int_equal(params_max_tokens(&r.p), 6);
    release(&r);
}

static void test_body_kinds(void **state)
{
    (void)state;
    const char *const bodies[] = {"[]", "5", "\"x\"", "null", "true"};
    for (size_t i = 0; i < COUNT_OF(bodies); i++) {
        struct params p;
        struct api_error e;
        struct arena mem;
        arena_init(&mem, 0);
        struct json *body = json_read(bodies[i], strlen(bodies[i]), NULL);
        assert_int_equal(params_read(&p, body, API_CHAT, &LIMITS, &mem, &e), -1);
        assert_string_equal(e.param, "");
        json_drop(body);
        arena_release(&mem);
    }
}

/* ---- errors -------------------------------------------------------------------------------------------------- */
static void check_error(const struct api_error *e, const char *want)
{
    struct buf text = {0};
    api_error_json(e, &text);
    assert_string_equal(text.data, want);
    buf_release(&text);
}

static void test_errors(void **state)
{
    (void)state;
    struct api_error e;
    assert_int_equal(api_fail(&e, API_BAD_VALUE, "n", "`n` is \"%d\".", 5), -1);
    check_error(&e, "{\"error\":{\"message\":\"`n` is "
                    "\\\"5\\\".\",\"type\":\"BadRequestError\",\"param\":\"n\",\"code\":400}}");
    api_fail(&e, API_NO_KEY, NULL, "No.");
    check_error(&e, "{\"error\":{\"message\":\"No.\",\"type\":\"invalid_request_error\",\"param\":null,"
                    "\"code\":\"invalid_api_key\"}}");
    api_fail(&e, API_UNAVAILABLE, NULL, "Full.");
    assert_int_equal(api_status(e.kind), 503);
    assert_true(e.retry_after_s >= 1);
    api_context_overflow(&e, 9000, 8192);
    check_error(
        &e,
        "{\"error\":{\"message\":\"This model's maximum context length is 8192 tokens. However, your prompt "
        "contains 9000 input tokens, which exceeds the available context size (8192 tokens). The prompt is "
        "too long; please shorten it.\",\"type\":\"invalid_request_error\",\"param\":\"input_tokens\","
        "\"code\":\"context_length_exceeded\",\"n_prompt_tokens\":9000,\"n_ctx\":8192}}");
    char longer[3000];
    memset(longer, 'x', sizeof(longer));
    longer[sizeof(longer) - 1] = 0;
    api_fail(&e, API_INTERNAL, longer, "%s", longer);
    assert_true(strlen(e.message) < API_MESSAGE && strlen(e.param) < sizeof(e.param));
}

/* ---- stop strings -------------------------------------------------------------------------------------------- */
/* Feeds text in pieces of the given size; the result is "what came out|index". */
static void scan(const char *text, size_t piece, const struct api_text *stops, u32 n, bool include,
                 size_t blind, const char *want)
{
    struct stop_scan s;
    struct buf out = {0};
    int which = -1;
    stop_scan_init(&s, stops, n, include);
    for (size_t at = 0; at < strlen(text) && which < 0; at += piece)
        which = stop_scan_push(&s, text + at, MIN_OF(piece, strlen(text) - at), at >= blind, &out);
    if (which < 0) stop_scan_flush(&s, &out);
    buf_printf(&out, "|%d", which);
    if (strcmp(out.data, want) != 0) fail_msg("pieces of %zu: got %s, want %s", piece, out.data, want);
    buf_release(&out);
    stop_scan_release(&s);
}

static void test_stop_strings(void **state)
{
    (void)state;
    static const struct api_text a[] = {{"STOP", 4}, {"ST", 2}}, b[] = {{"abcd", 4}, {"bc", 2}},
                                 c[] = {{"aab", 3}}, d[] = {{"xy", 2}, {"axy", 3}}, e[] = {{"\n\nUser:", 7}};
    for (size_t piece = 1; piece <= 12; piece++) {
        scan("hello STOP now", piece, a, 1, false, 0, "hello |0");
        scan("hello STOP now", piece, a, 1, true, 0, "hello STOP|0");
        scan("a S b ST", piece, a, 1, false, 0, "a S b ST|-1");
        scan("zabcd", piece, b, 2, false, 0, "za|1");
        scan("aaab", piece, c, 1, false, 0, "a|0");
        scan("aaaaab", piece, c, 1, true, 0, "aaaaab|0");
        scan("zaxy", piece, d, 2, false, 0, "za|0");
        scan("one\n\nUsed\n\nUser: two", piece, e, 1, false, 0, "one\n\nUsed|0");
        scan("none at all", piece, NULL, 0, false, 0, "none at all|-1");
        scan("", piece, a, 2, false, 0, "|-1");
    }
    scan("STOPSTOP", 2, a, 1, false, 4, "STOP|0"); /* the first match ends too early to count */
    scan("xSTOP", 1, a, 1, false, 4, "x|0");       /* it may begin before */
    scan("xSTOP", 1, a, 1, false, 5, "xSTOP|-1");
    scan("xSTOP", 1, a, 1, true, 5, "xSTOP|-1");
}

static void test_stop_hold_back(void **state)
{
    (void)state;
    static const struct api_text stops[] = {{"END", 3}};
    struct stop_scan s;
    struct buf out = {0};
    stop_scan_init(&s, stops, 1, false);
    stop_scan_push(&s, "abc E", 5, true, &out);
    assert_string_equal(out.data, "abc "); /* only what may begin a match is held */
    stop_scan_push(&s, "N", 1, true, &out);
    assert_string_equal(out.data, "abc ");
    stop_scan_push(&s, "ENx", 3, true, &out);
    assert_string_equal(out.data, "abc ENENx");
    buf_release(&out);
    stop_scan_release(&s);
}

/* ---- keys and routes ----------------------------------------------------------------------------------------- */
static void test_keys(void **state)
{
    (void)state;
    assert_true(auth_ok(NULL, NULL, NULL));
    assert_true(auth_ok("secret", "Bearer secret", NULL));
    assert_true(auth_ok("secret", "bEARER  secret", NULL));
    assert_true(auth_ok("secret", NULL, "secret"));
    assert_true(auth_ok("secret", "Bearer wrong", "secret"));
    const char *const wrong[] = {"",
                                 "Bearer",
                                 "Bearer ",
                                 "Bearer secre",
                                 "Bearer secrets",
                                 "Bearer secretsecret",
                                 "Basic secret",
                                 "secret",
                                 "Bearer Secret"};
    for (size_t i = 0; i < COUNT_OF(wrong); i++) assert_false(auth_ok("secret", wrong[i], NULL));
    assert_false(auth_ok("secret", NULL, ""));
    assert_false(auth_ok("secret", NULL, NULL));
}

static void test_routes(void **state)
{
    (void)state;
    const char *tail;
    u8 methods;
    assert_non_null(route_find("/v1/models", "GET", &tail, &methods));
    assert_non_null(route_find("/v1/models", "HEAD", &tail, &methods));
    assert_null(route_find("/v1/models", "POST", &tail, &methods));
    assert_int_equal(methods, METHOD_GET);
    assert_non_null(route_find("/v1/models/a/b", "GET", &tail, &methods));
    assert_string_equal(tail, "a/b");
    const char *const unknown[] = {"/",          "", "/v1", "/v1/models/", "/v1/modelsx", "/v1/completions/",
                                   "//v1/models"};
    for (size_t i = 0; i < COUNT_OF(unknown); i++) {
        assert_null(route_find(unknown[i], "GET", &tail, &methods));
        assert_int_equal(methods, 0);
    }
}

static void test_reservations(void **state)
{
    (void)state;
    const char *tail;
    u8 methods;
    struct reservation_id id;
    assert_true(reservation_id_read("0123456789abcdeffedcba9876543210", &id));
    assert_true(id.bits[0] == 0x0123456789abcdef && id.bits[1] == 0xfedcba9876543210);
    const char *const wrong[] = {"",
                                 "0",
                                 "0123456789abcdeffedcba987654321",
                                 "0123456789abcdeffedcba98765432100",
                                 "0123456789ABCDEFFEDCBA9876543210",
                                 "0123456789abcdeffedcba987654321g",
                                 "0x23456789abcdeffedcba9876543210",
                                 " 123456789abcdeffedcba9876543210",
                                 "-123456789abcdeffedcba9876543210"};
    for (size_t i = 0; i < COUNT_OF(wrong); i++) assert_false(reservation_id_read(wrong[i], &id));
    static const struct {
        int rc, status;
        const char *code;
    } rows[] = {{ERR_NOT_FOUND, 404, "\"reservation_not_found\""},
                {RESERVATION_USED, 409, "\"reservation_used\""},
                {RESERVATION_RELEASED, 410, "\"reservation_released\""},
                {RESERVATION_EXPIRED, 410, "\"reservation_expired\""}};
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct api_error e;
        struct buf text = {0};
        assert_int_equal(reservation_fail(rows[i].rc, &e), -1);
        api_error_json(&e, &text);
        buf_char(&text, 0);
        assert_int_equal(api_status(e.kind), rows[i].status);
        assert_non_null(strstr(text.data, rows[i].code));
        assert_true(e.no_retry);
        buf_release(&text);
    }
    assert_non_null(route_find("/v1/reservations", "POST", &tail, &methods));
    assert_null(route_find("/v1/reservations", "DELETE", &tail, &methods));
    assert_non_null(route_find("/v1/reservations/ab", "DELETE", &tail, &methods));
    assert_non_null(route_find("/v1/reservations/ab", "GET", &tail, &methods));
    assert_string_equal(tail, "ab");
    assert_null(route_find("/v1/reservations/ab", "POST", &tail, &methods));
    assert_int_equal(methods, METHOD_GET | METHOD_DELETE);
    assert_null(route_find("/v1/models", "DELETE", &tail, &methods));
}

static void test_header_integer(void **state)
{
    (void)state;
    i64 v;
    static const struct {
        const char *text;
        i64 value;
    } good[] = {{"0", 0},
                {"-7", -7},
                {"+12", 12},
                {"007", 7},
                {"9223372036854775807", INT64_MAX},
                {"-9223372036854775808", INT64_MIN}};
    for (size_t i = 0; i < COUNT_OF(good); i++)
        assert_true(header_integer(good[i].text, &v) && v == good[i].value);
    const char *const wrong[] = {"",
                                 "-",
                                 "+",
                                 "1.5",
                                 "1e3",
                                 "0x1",
                                 " 1",
                                 "1 ",
                                 "--1",
                                 "high",
                                 "9223372036854775808",
                                 "-9223372036854775809"};
    for (size_t i = 0; i < COUNT_OF(wrong); i++) assert_false(header_integer(wrong[i], &v));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_field),  cmocka_unit_test(test_values),
        cmocka_unit_test(test_body_kinds),   cmocka_unit_test(test_errors),
        cmocka_unit_test(test_stop_strings), cmocka_unit_test(test_stop_hold_back),
        cmocka_unit_test(test_keys),         cmocka_unit_test(test_routes),
        cmocka_unit_test(test_reservations), cmocka_unit_test(test_header_integer),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("api", tests, NULL, NULL);
}
