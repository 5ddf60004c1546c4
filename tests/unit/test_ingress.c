/* Calls without HTTP: chunks in, answers out, and what the agent is asked. */
#include "ingress/call.h"
#include "ingress/prompts.h"

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct config config;
static struct model_config model;
static struct ingress *in;
static struct {
    u64 ids[8], cancelled[8];
    struct request *last;
    u32 n, n_cancelled, room;
    bool late;
} agent;
static int wakes;
static bool asleep;

static int submit(void *a, struct request *r, const struct reservation_id *reservation,
                  struct ingress_refusal *why)
{
    (void)a, (void)reservation;
    *why = (struct ingress_refusal){.retry_after_s = 3};
    if (agent.late) {
        why->predicted_ms = 700;
        why->allowed_ms = 500;
        return ERR_FULL;
    }
    if (agent.n >= agent.room) return ERR_FULL;
    free(agent.last);
    agent.last = r;
    agent.ids[agent.n++] = r->id;
    return 0;
}
static void cancel(void *a, u64 id)
{
    (void)a;
    agent.cancelled[agent.n_cancelled++] = id;
}
static void wake(void *http)
{
    (void)http;
    wakes++;
    asleep = false;
}
static void suspend(void *http)
{
    (void)http;
    asleep = true;
}

/* A call for these members of a completion's body, started; token ids are those of the demo model. */
static struct call *start_as(enum api api, const char *fields, i32 n_logprobs)
{
    char text[1000];
    struct api_error e;
    struct call *c = call_new(in);
    snprintf(text, sizeof(text), "{%s}", fields);
    struct json *body = json_read(text, strlen(text), NULL);
    assert_non_null(body);
    c->wake = wake;
    c->fd = -1;
    strcpy(c->id, "cmpl-1");
    agent.n = agent.n_cancelled = 0;
    agent.room = 8;
    wakes = 0;
    if (params_read(&c->p, body, api, &in->limits, &c->mem, &e) < 0 ||
        prompts_read(in, &c->p, &c->mem, &c->prompts, &c->n_prompts, &e) < 0)
        fail_msg("%s", e.message);
    c->sampling = (struct sampling){.top_p = 1, .repetition_penalty = 1, .n_logprobs = n_logprobs};
    call_set_session(c, (const char *[]){c->p.session_id, c->p.user}, 2);
    json_drop(body);
    if (call_start(c, &e) < 0) fail_msg("%s", e.message);
    return c;
}

static struct call *start(const char *fields, i32 n_logprobs)
{
    return start_as(API_COMPLETIONS, fields, n_logprobs);
}

static void feed_with(u64 id, u32 sample, u32 first, const char *text, enum finish finish, bool last,
                      const struct token_logprob *lp, u32 n_top)
{
    struct ids ids = {0};
    struct buf message = {0};
    size_t at = 0;
    tokenizer_encode(in->tokenizer, text, strlen(text), 0, &ids, NULL);
    struct chunk head = {.request = id,
                         .sample = sample,
                         .first = first,
                         .n_tokens = (u32)ids.len,
                         .stop_id = -1,
                         .finish = (u8)finish,
                         .last = last,
                         .n_top = lp ? n_top : CHUNK_NO_LOGPROBS};
    chunk_add(&message, &head, ids.data, lp, finish == FINISH_ERROR ? "broken" : NULL);
    const struct chunk *c = chunk_next(message.data, message.len, &at, NULL);
    assert_non_null(c);
    ingress_deliver(in, c);
    buf_release(&message);
    ids_release(&ids);
}

static void feed(u64 id, u32 sample, u32 first, const char *text, enum finish finish, bool last)
{
    feed_with(id, sample, first, text, finish, last, NULL, 0);
}

static void test_whole_answer(void **state)
{
    (void)state;
    struct call *c = start("\"prompt\":\"Hello\",\"n\":2,\"max_tokens\":9", -1);
    assert_int_equal(agent.n, 1);
    assert_true(agent.last->n_samples == 2 && agent.last->sampling.max_tokens == 9 &&
                agent.ids[0] >> 48 == 5);
    assert_false(call_advance(c));
    assert_true(call_sleep(c, suspend) && asleep);
    feed(agent.ids[0], 0, 0, "Hello", FINISH_NONE, false); /* one token */
    feed(agent.ids[0], 0, 1, " wor", FINISH_LENGTH, false);
    assert_int_equal(wakes, 0);                           /* nobody needs to look before the end */
    feed(agent.ids[0], 1, 0, "Hello", FINISH_STOP, true); /* the end of sequence: its text is dropped */
    assert_int_equal(wakes, 1);
    assert_false(call_advance(c));
    assert_true(c->over && !c->failed);
    struct buf text = {0};
    answer_json(c, &text);
    struct json *answer = json_read(text.data, text.len, NULL);
    const struct json *choices = json_get(answer, "choices");
    assert_string_equal(json_text(json_get(json_item(choices, 0), "text")), "Hello wor");
    assert_string_equal(json_text(json_get(json_item(choices, 0), "finish_reason")), "length");
    assert_string_equal(json_text(json_get(json_item(choices, 1), "text")), "");
    assert_int_equal(json_int(json_get(json_get(answer, "usage"), "completion_tokens"), 0), 3);
    json_drop(answer);
    buf_release(&text);
    call_close(c);
    assert_int_equal(agent.n_cancelled, 0);
    assert_true(ingress_idle(in));
}

/* The first that is there and not empty; it travels in the request. */
static void test_session(void **state)
{
    (void)state;
    static const struct {
        const char *fields, *session; /* NULL: none */
    } cases[] = {{"\"prompt\":\"Hello\"", NULL},
                 {"\"prompt\":\"Hello\",\"session_id\":\"\",\"user\":\"\"", NULL},
                 {"\"prompt\":\"Hello\",\"user\":\"u\"", "u"},
                 {"\"prompt\":\"Hello\",\"session_id\":\"\",\"user\":\"u\"", "u"},
                 {"\"prompt\":\"Hello\",\"session_id\":\"s\",\"user\":\"u\"", "s"}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        const char *name = cases[i].session;
        struct call *c = start(cases[i].fields, -1);
        assert_int_equal(agent.last->has_session, name != NULL);
        assert_true(agent.last->session == (name ? hash_bytes(name, strlen(name), 0) : 0));
        feed(agent.ids[0], 0, 0, "Hello", FINISH_LENGTH, true);
        assert_false(call_advance(c));
        call_close(c);
    }
}

static void test_duplicates_and_gaps(void **state)
{
    (void)state;
    struct call *c = start("\"prompt\":\"Hello\",\"max_tokens\":9", -1);
    feed(agent.ids[0], 0, 0, "Hello wor", FINISH_NONE, false);
    feed(agent.ids[0], 0, 0, "Hello wor", FINISH_NONE, false);
    feed(agent.ids[0], 0, 1, " world", FINISH_NONE, false); /* one old token, one new */
    call_advance(c);
    assert_string_equal(c->choices[0].text.data, "Hello world");
    assert_int_equal(c->choices[0].n_tokens, 3);
    feed(agent.ids[0], 0, 4, "x", FINISH_NONE, false);
    call_advance(c);
    assert_true(c->failed && c->over && c->error.kind == API_INTERNAL && agent.n_cancelled == 1);
    call_close(c);
    assert_int_equal(agent.n_cancelled, 1);
    assert_false(ingress_idle(in)); /* the agent still has it */
    feed(agent.ids[0], 0, 5, "", FINISH_ABORT, true);
    assert_true(ingress_idle(in));
    feed(agent.ids[0], 0, 5, "", FINISH_ABORT, true); /* unknown by now */
}

static void test_stop_strings_cancel(void **state)
{
    (void)state;
    struct call *c = start("\"prompt\":[\"Hello\",\"x\"],\"n\":2,\"stop\":[\"world\"],\"max_tokens\":9", -1);
    assert_int_equal(agent.n, 2);
    feed(agent.ids[0], 0, 0, "Hello world how", FINISH_NONE, false);
    call_advance(c);
    assert_true(c->choices[0].finish == FINISH_STOP && c->choices[0].stop_string == 0);
    assert_string_equal(c->choices[0].text.data, "Hello ");
    assert_int_equal(c->choices[0].n_tokens, 3); /* up to the token that completes it */
    assert_int_equal(agent.n_cancelled, 0);      /* the other sample still runs */
    feed(agent.ids[0], 0, 4, " are", FINISH_NONE, false);
    feed(agent.ids[0], 1, 0, "a world", FINISH_NONE, false);
    call_advance(c);
    assert_true(agent.n_cancelled == 1 && agent.cancelled[0] == agent.ids[0] && !c->over);
    feed(agent.ids[1], 0, 0, "x", FINISH_STOP, false);
    feed(agent.ids[1], 1, 0, "y", FINISH_STOP, true);
    call_advance(c);
    assert_true(c->over && !c->failed && agent.n_cancelled == 1);
    call_close(c);
    feed(agent.ids[0], 1, 9, "", FINISH_ABORT, true);
    assert_true(ingress_idle(in));
}

static void test_logprobs(void **state)
{
    (void)state;
    struct call *c = start("\"prompt\":\"Hello\",\"logprobs\":2,\"max_tokens\":2", 2);
    i32 hello = c->prompts[0].ids[0], exclamation = 3, special = 2;
    struct token_logprob lp[] = {{hello, -1.5f, 2},     {special, -0.25f, 1},    {hello, -1.5f, 2},
                                 {hello, -INFINITY, 9}, {exclamation, -0.1f, 1}, {special, -3, 2}};
    feed_with(agent.ids[0], 0, 0, "HelloHello", FINISH_LENGTH, true, lp, 2);
    call_advance(c);
    struct buf text = {0};
    answer_logprobs(c, &c->choices[0], &text);
    assert_string_equal(text.data,
                        "{\"tokens\":[\"Hello\",\"Hello\"],\"token_logprobs\":[-1.5,-9999.0],"
                        "\"top_logprobs\":[{\"Hello\":-1.5,\"<|im_end|>\":-0.25},"
                        "{\"Hello\":-9999.0,\"!\":-0.1,\"<|im_end|>\":-3.0}],\"text_offset\":[0,5]}");
    buf_release(&text);
    call_close(c);
}

static void test_sleep_and_wake(void **state)
{
    (void)state;
    struct call *c = start("\"prompt\":\"Hello\",\"stream\":true,\"max_tokens\":9", -1);
    assert_true(call_sleep(c, suspend));
    feed(agent.ids[0], 0, 0, "Hello", FINISH_NONE, false);
    feed(agent.ids[0], 0, 1, " wor", FINISH_NONE, false);
    assert_int_equal(wakes, 1);           /* once a sleep */
    assert_false(call_sleep(c, suspend)); /* mail is waiting */
    assert_false(call_advance(c));
    assert_int_equal(strncmp(c->out.data, "data: {\"id\":\"cmpl-1\",", 20), 0);
    assert_non_null(strstr(c->out.data, "\"text\":\" wor\""));
    assert_true(call_sleep(c, suspend));
    calls_client_gone(in, c->serial + 1000); /* a call that is over */
    assert_int_equal(wakes, 1);
    calls_client_gone(in, c->serial);
    assert_int_equal(wakes, 2);
    assert_true(call_advance(c));
    call_close(c);
    assert_int_equal(agent.n_cancelled, 1);
    feed(agent.ids[0], 0, 2, "", FINISH_ABORT, true);
    assert_true(ingress_idle(in));
}

/* What a call of two prompts is told that cannot start. */
static struct api_error refusal(void)
{
    struct api_error e;
    struct call *c = call_new(in);
    c->p =
        (struct params){.api = API_COMPLETIONS, .n = 1, .max_tokens = 1, .max_completion_tokens = PARAM_NONE};
    i32 id = 40;
    struct prompt prompts[2] = {{.ids = &id, .n = 1}, {.ids = &id, .n = 1}};
    c->prompts = prompts;
    c->n_prompts = 2;
    c->wake = wake;
    c->sampling.n_logprobs = -1;
    assert_int_equal(call_start(c, &e), -1);
    call_close(c);
    return e;
}

static void test_waiting_for_room(void **state)
{
    (void)state;
    agent.room = 8;
    struct call *c = start("\"prompt\":[\"a\",\"b\",\"c\"],\"max_tokens\":1", -1);
    assert_int_equal(agent.n, 3);
    for (u32 i = 0; i < 3; i++) feed(agent.ids[i], 0, 0, "x", FINISH_LENGTH, true);
    call_advance(c);
    assert_true(c->over);
    call_close(c);
    /* no room at all is an error, a little makes them take turns */
    agent.n = agent.room = 0;
    struct api_error e = refusal();
    assert_true(e.kind == API_UNAVAILABLE && e.retry_after_s == 3);
    agent.late = true;
    e = refusal();
    agent.late = false;
    assert_true(e.kind == API_TOO_MANY && e.retry_after_s == 3);
    assert_string_equal(
        e.message, "The first token is predicted to take 700 ms, and 500 ms are allowed. Try again later.");
    assert_true(ingress_idle(in));
}

static int setup(void **state)
{
    (void)state;
    struct error err;
    char text[1200];
    char *argv[] = {"test", "--port", "0", "--api-key", "none", "jobs/demo-model", NULL};
    struct ingress_spec spec = {.config = &config,
                                .model = &model,
                                .max_model_len = 100,
                                .ingress_index = 5,
                                .fingerprint = "test",
                                .agent = {.submit = submit, .cancel = cancel}};
    if (config_load(&config, 6, argv, 1, &err) != 0 ||
        model_read_config("jobs/demo-model", &model, &err) < 0 || !(in = ingress_new(&spec, &err))) {
        printf("# %s\n", error_text(&err, text, sizeof(text)));
        return -1;
    }
    ingress_ready(in);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    ingress_free(in);
    free(agent.last);
    return 0;
}

/* ---- vectors ---------------------------------------------------------------------------------------------------*/
static void feed_vector(u64 id, const float *vector, u32 n)
{
    struct buf message = {0};
    size_t at = 0;
    struct chunk head = {
        .request = id, .stop_id = -1, .finish = FINISH_STOP, .last = 1, .n_top = CHUNK_NO_LOGPROBS};
    chunk_add_vector(&message, &head, vector, n);
    ingress_deliver(in, chunk_next(message.data, message.len, &at, NULL));
    buf_release(&message);
}

static void embeddings(void **state)
{
    (void)state;
    static const float first[] = {0.5f, -1, 0.1f}, second[] = {3, 0, 4};
    struct buf json = {0};
    in->limits.hidden = 3;
    struct call *c = start_as(API_EMBEDDINGS, "\"input\":[[1,2],[3]]", -1);
    u64 ids[] = {c->parts[0].id, c->parts[1].id};
    feed_vector(ids[1], second, 3); /* in any order */
    assert_false(call_advance(c));
    assert_false(c->over);
    feed_vector(ids[0], first, 3);
    assert_false(call_advance(c));
    assert_true(c->over && !c->failed);
    answer_vectors(c, &json);
    assert_non_null(strstr(json.data, "{\"object\":\"embedding\",\"index\":0,\"embedding\":[0.5,-1.0,0.1]},"
                                      "{\"object\":\"embedding\",\"index\":1,\"embedding\":[3.0,0.0,4.0]}"));
    assert_non_null(strstr(json.data, "\"usage\":{\"prompt_tokens\":3,\"total_tokens\":3}}"));
    call_close(c);
    c = start_as(API_EMBEDDINGS, "\"input\":[1],\"dimensions\":2,\"encoding_format\":\"base64\"", -1);
    feed_vector(c->parts[0].id, second, 3);
    call_advance(c);
    buf_clear(&json);
    answer_vectors(c, &json);
    assert_non_null(strstr(json.data, "\"embedding\":\"AABAQAAAAAA=\"")); /* 3, 0 */
    call_close(c);
    c = start_as(API_EMBEDDINGS, "\"input\":[1]", -1);
    feed_vector(c->parts[0].id, second, 2); /* not what the model has */
    call_advance(c);
    assert_true(c->failed && c->error.kind == API_INTERNAL);
    call_close(c);
    in->limits.hidden = 0;
    buf_release(&json);
}

static void scores(void **state)
{
    (void)state;
    static struct model_config classifier;
    const struct model_config *before = in->spec.model;
    struct buf json = {0};
    static const float numbers[] = {-2, 0, 3, 0};
    classifier = *before;
    classifier.pooling = (struct pooling_config){.kind = POOLING_CLS, .scores = true};
    in->spec.model = &classifier;
    in->limits.hidden = 1;
    for (int sigmoid = 0; sigmoid < 2; sigmoid++) {
        classifier.pooling.sigmoid = sigmoid;
        struct call *c =
            start_as(API_RERANK, "\"query\":\"q\",\"documents\":[[1],[2,3],[4],[5]],\"top_n\":3", -1);
        for (u32 i = 0; i < 4; i++) feed_vector(c->parts[i].id, &numbers[i], 1);
        assert_false(call_advance(c));
        assert_true(c->over && !c->failed);
        c->prompts[1].text = (struct api_text){"a \"b\"", 5};
        buf_clear(&json);
        answer_scores(c, &json);
        assert_non_null(strstr(
            json.data,
            sigmoid
                ? "\"results\":[{\"index\":2,\"document\":{\"text\":\"\"},\"relevance_score\":0.95257413},"
                  "{\"index\":1,\"document\":{\"text\":\"a \\\"b\\\"\"},\"relevance_score\":0.5},"
                  "{\"index\":3,\"document\":{\"text\":\"\"},\"relevance_score\":0.5}]}"
                : "\"results\":[{\"index\":2,\"document\":{\"text\":\"\"},\"relevance_score\":3.0},"));
        assert_non_null(strstr(json.data, "\"usage\":{\"prompt_tokens\":5,\"total_tokens\":5}"));
        c->p.api = API_SCORE; /* the same numbers */
        buf_clear(&json);
        answer_scores(c, &json);
        assert_non_null(strstr(json.data, "\"data\":[{\"index\":0,\"object\":\"score\",\"score\":"));
        assert_non_null(strstr(json.data, sigmoid ? "\"score\":0.11920292}" : "\"score\":-2.0}"));
        call_close(c);
    }
    in->spec.model = before;
    in->limits.hidden = 0;
    buf_release(&json);
}

static void base64(void **state)
{
    (void)state;
    static const char *const cases[][2] = {{"", ""},
                                           {"f", "Zg=="},
                                           {"fo", "Zm8="},
                                           {"foo", "Zm9v"},
                                           {"foob", "Zm9vYg=="},
                                           {"fooba", "Zm9vYmE="},
                                           {"foobar", "Zm9vYmFy"},
                                           {"\xff\xef\xbe", "/+++"}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) { /* RFC 4648, section 10, and the last digits */
        struct buf out = {0};
        buf_text(&out, ">");
        answer_base64(cases[i][0], strlen(cases[i][0]), &out);
        assert_string_equal(out.data + 1, cases[i][1]);
        buf_release(&out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_session),
        cmocka_unit_test(embeddings),
        cmocka_unit_test(scores),
        cmocka_unit_test(base64),
        cmocka_unit_test(test_whole_answer),
        cmocka_unit_test(test_duplicates_and_gaps),
        cmocka_unit_test(test_stop_strings_cancel),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_sleep_and_wake),
        cmocka_unit_test(test_waiting_for_room),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("ingress", tests, setup, teardown);
}
