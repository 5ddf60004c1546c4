/* request: blocks and chunks survive the way there and back; whatever is damaged is refused. */
#include "mpiserve/request.h"

#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { VOCAB = 1000 };
static const i32 prompt[] = {1, 2, 3, 999, 5}, allowed[] = {7, 8}, words[] = {2, 10, 11, 1, 12}, eos[] = {0},
                 stop[] = {42, 43};
static const struct token_bias bias[] = {{5, 1.5f}, {6, -100}};

static struct request *make(void)
{
    struct request head = {.id = 1ull << 48 | 7, .priority = -3, .deadline_ns = 5, .n_samples = 2};
    head.sampling = (struct sampling){.temperature = 0.7f,
                                      .top_p = 0.9f,
                                      .repetition_penalty = 1,
                                      .n_logprobs = -1,
                                      .seed = 99,
                                      .max_tokens = 16};
    struct request_parts p = {prompt, allowed, words, eos, stop, bias, 5, 2, 5, 1, 2, 2};
    return request_build(&head, &p);
}

static void round_trip(void **state)
{
    (void)state;
    struct request *r = make();
    struct error err;
    assert_int_equal(request_check(r, r->bytes, VOCAB, &err), 0);
    assert_true(r->id == (1ull << 48 | 7) && r->priority == -3 && r->n_samples == 2 &&
                r->sampling.seed == 99);
    assert_int_equal(r->prompt.len, 5);
    assert_memory_equal(request_at(r, r->prompt), prompt, sizeof(prompt));
    assert_memory_equal(request_at(r, r->allowed), allowed, sizeof(allowed));
    assert_memory_equal(request_at(r, r->bad_words), words, sizeof(words));
    assert_memory_equal(request_at(r, r->eos_ids), eos, sizeof(eos));
    assert_memory_equal(request_at(r, r->stop_ids), stop, sizeof(stop));
    assert_memory_equal(request_at(r, r->bias), bias, sizeof(bias));
    free(r);
}

/* 0 is a session like any other; without one there is no number. */
static void sessions(void **state)
{
    (void)state;
    static const struct {
        u32 has;
        u64 given, kept;
    } cases[] = {{1, 0, 0}, {1, UINT64_MAX, UINT64_MAX}, {0, 7, 0}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct request *from = make(), *r;
        struct request_parts p = {.prompt = prompt, .n_prompt = 5};
        from->has_session = cases[i].has;
        from->session = cases[i].given;
        r = request_build(from, &p);
        assert_int_equal(request_check(r, r->bytes, VOCAB, NULL), 0);
        assert_int_equal(r->has_session, cases[i].has);
        assert_true(r->session == cases[i].kept);
        free(from);
        free(r);
    }
}

static void values_out_of_range(void **state)
{
    (void)state;
    struct {
        const char *where;
        size_t off;
        u32 value;
    } cases[] = {
        {"n", offsetof(struct request, n_samples), 0},
        {"n", offsetof(struct request, n_samples), REQUEST_MAX_SAMPLES + 1},
        {"prompt", offsetof(struct request, prompt.len), 0},
        {"temperature", offsetof(struct request, sampling.temperature), 0x7fc00000},
        {"top_p", offsetof(struct request, sampling.top_p), 0},
        {"max_tokens", offsetof(struct request, sampling.max_tokens), 0},
        {"min_tokens", offsetof(struct request, sampling.min_tokens), 17},
        {"n_logprobs", offsetof(struct request, sampling.n_logprobs), (u32)-2},
        {"session_id", offsetof(struct request, has_session), 2},
        {"pooling", offsetof(struct request, pooling), POOLING_CLS + 1},
        {"pooling", offsetof(struct request, pooling), POOLING_LAST}, /* two samples of it */
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct request *r = make();
        struct error err;
        memcpy((u8 *)r + cases[i].off, &cases[i].value, 4);
        assert_int_equal(request_check(r, r->bytes, VOCAB, &err), ERR_INPUT);
        assert_string_equal(err.where, cases[i].where);
        free(r);
    }
    struct request *r = make();
    assert_int_equal(request_check(r, r->bytes, 999, NULL), ERR_INPUT); /* id 999 */
    i32 *w = (i32 *)((u8 *)r + r->bad_words.off);
    i32 bad[] = {0, -1, 3 + 2, INT_MAX, INT_MIN};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        w[0] = bad[i];
        assert_int_equal(request_check(r, r->bytes, VOCAB, NULL), ERR_INPUT);
    }
    free(r);
}

static void spans_leaving_the_block(void **state)
{
    (void)state;
    size_t spans[] = {offsetof(struct request, prompt),  offsetof(struct request, bias),
                      offsetof(struct request, allowed), offsetof(struct request, bad_words),
                      offsetof(struct request, eos_ids), offsetof(struct request, stop_ids)};
    struct span bad[] = {{0, 1},   {UINT32_MAX & ~3u, 1}, {200, UINT32_MAX},
                         {201, 1}, {1u << 31, 1u << 31},  {200, 1u << 30}};
    for (size_t i = 0; i < COUNT_OF(spans); i++)
        for (size_t j = 0; j < COUNT_OF(bad); j++) {
            struct request *r = make();
            memcpy((u8 *)r + spans[i], &bad[j], sizeof(bad[j]));
            assert_int_equal(request_check(r, r->bytes, VOCAB, NULL), ERR_PEER);
            free(r);
        }
}

/* Any byte to any of a few values, any length: an answer, never an access outside (run under the sanitizer).
 */
static void damage(void **state)
{
    (void)state;
    struct request *r = make();
    u32 bytes = r->bytes;
    static const u8 masks[] = {0x01, 0x80, 0xff};
    for (u32 i = 0; i < bytes; i++)
        for (size_t m = 0; m < COUNT_OF(masks); m++) {
            struct request *copy = mem_alloc(bytes);
            memcpy(copy, r, bytes);
            ((u8 *)copy)[i] ^= masks[m];
            request_check(copy, bytes, VOCAB, NULL);
            free(copy);
        }
    for (u32 len = 0; len < bytes; len++) {
        struct request *copy = mem_alloc(len + 1);
        memcpy(copy, r, len);
        assert_int_equal(request_check(copy, len, VOCAB, NULL), ERR_PEER);
        free(copy);
    }
    free(r);
}

static void chunks(void **state)
{
    (void)state;
    struct buf b = {0};
    const i32 tokens[] = {4, 5, 6};
    const struct token_logprob lp[6] = {{4, -0.5f, 1}, {4, -0.5f, 1}, {5, -1, 2},
                                        {9, -0.1f, 1}, {6, -3, 3},    {1, -0.2f, 1}};
    struct chunk a = {.request = 1, .n_tokens = 3, .n_top = 1, .n_cached = 16, .stop_id = -1};
    const float vector[] = {0.5f, -1, 2};
    struct chunk v = {
        .request = 3, .n_top = CHUNK_NO_LOGPROBS, .stop_id = -1, .finish = FINISH_STOP, .last = 1};
    struct chunk e = {
        .request = 2, .n_top = CHUNK_NO_LOGPROBS, .stop_id = -1, .finish = FINISH_ERROR, .last = 1};
    chunk_add(&b, &a, tokens, lp, NULL);
    chunk_add(&b, &e, NULL, NULL, "non-finite logits");
    chunk_add_vector(&b, &v, vector, 3);
    size_t pos = 0;
    struct error err;
    const struct chunk *c = chunk_next(b.data, b.len, &pos, &err);
    assert_non_null(c);
    assert_true(c->request == 1 && c->n_tokens == 3 && c->n_cached == 16 && c->logprobs.len == 6);
    assert_memory_equal(chunk_at(c, c->tokens), tokens, sizeof(tokens));
    assert_memory_equal(chunk_at(c, c->logprobs), lp, sizeof(lp));
    c = chunk_next(b.data, b.len, &pos, &err);
    assert_non_null(c);
    assert_true(c->finish == FINISH_ERROR && c->last && c->error_len == 17);
    assert_memory_equal(chunk_at(c, c->error), "non-finite logits", 17);
    assert_int_equal(c->vector.len, 0);
    c = chunk_next(b.data, b.len, &pos, &err);
    assert_non_null(c);
    assert_true(c->request == 3 && c->vector.len == 3 && c->n_tokens == 0 && c->finish == FINISH_STOP);
    assert_memory_equal(chunk_at(c, c->vector), vector, sizeof(vector));
    assert_null(chunk_next(b.data, b.len, &pos, &err));
    assert_int_equal(err.code, 0);
    for (size_t i = 0; i < b.len; i++)
        for (int bit = 0; bit < 8; bit++) {
            char *copy = mem_alloc(b.len);
            memcpy(copy, b.data, b.len);
            copy[i] ^= (char)(1 << bit);
            for (pos = 0; chunk_next(copy, b.len, &pos, &err);) assert_true(pos <= b.len);
            free(copy);
        }
    struct buf lone = {0}; /* a vector comes alone, and ends its sample */
    chunk_add_vector(&lone, &v, vector, 3);
    struct chunk *head = (struct chunk *)lone.data;
    head->finish = FINISH_NONE;
    pos = 0;
    assert_null(chunk_next(lone.data, lone.len, &pos, &err));
    head->finish = FINISH_STOP;
    head->vector.len = 30;
    pos = 0;
    assert_null(chunk_next(lone.data, lone.len, &pos, &err));
    buf_release(&lone);
    pos = 0;
    assert_null(chunk_next(b.data, 40, &pos, &err));
    assert_int_equal(err.code, ERR_PEER);
    buf_release(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),
        cmocka_unit_test(sessions),
        cmocka_unit_test(values_out_of_range),
        cmocka_unit_test(spans_leaving_the_block),
        cmocka_unit_test(damage),
        cmocka_unit_test(chunks),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
