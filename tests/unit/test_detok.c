/* Streams: token by token against the cases in tests/reference/tokenizers. */
#include "mpiserve/text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *const sets[] = {"gpt2",    "llama3", "qwen",    "deepseek",    "o200k",    "llama2",
                                   "mistral", "gemma",  "unigram", "precompiled", "wordpiece"};

static struct tokenizer *load(const char *set, struct json **cases)
{
    const char *tests = getenv("MPISERVE_TESTS");
    char path[512];
    struct error err = {0};
    snprintf(path, sizeof(path), "%s/reference/tokenizers/%s", tests ? tests : "tests", set);
    struct tokenizer *t = tokenizer_load(path, &err);
    if (!t) fail_msg("%s: %s", err.where, err.message);
    strcat(path, "/cases.json");
    *cases = json_read_file(path, 64 << 20, &err);
    if (!*cases) fail_msg("%s: %s", err.where, err.message);
    return t;
}

static void list_ids(const struct json *list, struct ids *out)
{
    for (size_t i = 0; i < json_len(list); i++) ids_add(out, (i32)json_int(json_item(list, i), -1));
}

/* pieces[0..n) belong to the ids, the last one to the end of the stream. */
static void check_stream(struct detok *d, const struct ids *ids, const struct json *pieces, const char *what)
{
    struct buf got = {0};
    assert_int_equal(json_len(pieces), ids->len + 1);
    for (size_t i = 0; i <= ids->len; i++) {
        const struct json *want = json_item(pieces, i);
        buf_clear(&got);
        buf_reserve(&got, 1);
        if (i < ids->len) {
            detok_push(d, ids->data[i], &got);
        } else {
            detok_finish(d, &got);
        }
        if (got.len != json_len(want) || memcmp(got.data, json_text(want), got.len) != 0)
            fail_msg("%s: piece %zu is \"%s\" instead of \"%s\"", what, i, got.data, json_text(want));
    }
    buf_release(&got);
}

static void test_pieces(void **state)
{
    (void)state;
    for (size_t s = 0; s < COUNT_OF(sets); s++) {
        struct json *root;
        struct tokenizer *t = load(sets[s], &root);
        const struct json *cases = json_get(root, "cases");
        size_t n = 0;
        for (size_t i = 0; i < json_len(cases); i++) {
            const struct json *c = json_item(cases, i), *pieces = json_get(c, "pieces");
            struct ids ids = {0};
            struct detok d;
            if (!pieces) continue;
            list_ids(json_get(c, "ids"), &ids);
            detok_init(&d, t, NULL, 0, true);
            check_stream(&d, &ids, pieces, json_text(json_get(c, "text")));
            ids_release(&ids);
            n++;
        }
        assert_true(n > 150);
        print_message("# %s: %zu streams\n", sets[s], n);
        json_drop(root);
        tokenizer_free(t);
    }
}

static void test_id_cases(void **state)
{
    (void)state;
    for (size_t s = 0; s < COUNT_OF(sets); s++) {
        struct json *root;
        struct tokenizer *t = load(sets[s], &root);
        const struct json *cases = json_get(root, "id_cases");
        assert_true(json_len(cases) >= 40);
        for (size_t i = 0; i < json_len(cases); i++) {
            const struct json *c = json_item(cases, i), *want = json_get(c, "decode_skip");
            struct ids ids = {0};
            struct buf whole = {0};
            struct detok d;
            list_ids(json_get(c, "ids"), &ids);
            detok_init(&d, t, NULL, 0, true);
            const struct json *early = json_get(c, "pieces_early");
            check_stream(&d, &ids, early ? early : json_get(c, "pieces"), json_text(json_get(c, "note")));
            buf_reserve(&whole, 1);
            tokenizer_decode(t, ids.data, ids.len, true, &whole);
            assert_int_equal(whole.len, json_len(want));
            assert_memory_equal(whole.data, json_text(want), whole.len);
            buf_release(&whole);
            ids_release(&ids);
        }
        json_drop(root);
        tokenizer_free(t);
    }
}

static void test_continuations(void **state)
{
    (void)state;
    for (size_t s = 0; s < COUNT_OF(sets); s++) {
        struct json *root;
        struct tokenizer *t = load(sets[s], &root);
        const struct json *cases = json_get(root, "continuation_cases");
        assert_true(json_len(cases) >= 40);
        for (size_t i = 0; i < json_len(cases); i++) {
            const struct json *c = json_item(cases, i);
            struct ids prompt = {0}, output = {0};
            struct detok d;
            list_ids(json_get(c, "prompt_ids"), &prompt);
            list_ids(json_get(c, "output_ids"), &output);
            detok_init(&d, t, prompt.data, prompt.len, true);
            check_stream(&d, &output, json_get(c, "pieces"), json_text(json_get(c, "output_text")));
            ids_release(&prompt);
            ids_release(&output);
        }
        json_drop(root);
        tokenizer_free(t);
    }
}

static i32 byte_token(const struct tokenizer *t, int byte)
{
    char text[8];
    snprintf(text, sizeof(text), "<0x%02X>", byte);
    return tokenizer_id(t, text);
}

/* A run of tokens for bytes: good characters leave at once; from the first bad byte on each byte of the run is a U+FFFD, at
 * its end. A stream that goes on from a prompt in the middle of a run is in the same state. */
static void test_byte_runs(void **state)
{
    (void)state;
    static const u8 bytes[] = {0xC3, 0xA9, 0xE2, 0x82, 0xFF, 0x41};
    static const char *const want[] = {"", "\xc3\xa9", "", "", "", ""};
    struct json *root;
    struct tokenizer *t = load("gemma", &root);
    i32 ids[COUNT_OF(bytes)];
    for (size_t i = 0; i < COUNT_OF(bytes); i++) ids[i] = byte_token(t, bytes[i]);
    for (size_t prompt = 0; prompt <= COUNT_OF(bytes); prompt++) {
        struct detok d;
        struct buf out = {0};
        detok_init(&d, t, ids, prompt, true);
        for (size_t i = prompt; i < COUNT_OF(bytes); i++) {
            size_t before = out.len;
            detok_push(&d, ids[i], &out);
            buf_char(&out, 0);
            assert_string_equal(out.data + before, want[i]);
            out.len--;
        }
        struct detok end = d;
        buf_clear(&out);
        detok_push(&d, tokenizer_id(t, "\xe2\x96\x81"), &out);
        buf_char(&out, 0);
        assert_string_equal(out.data, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd ");
        buf_clear(&out);
        detok_finish(&end, &out);
        assert_int_equal(out.len, 12);
        buf_release(&out);
    }
    struct buf whole = {0};
    tokenizer_decode(t, ids, COUNT_OF(ids), true, &whole);
    assert_int_equal(whole.len, 18); /* all at once the good character is bad too */
    buf_release(&whole);
    json_drop(root);
    tokenizer_free(t);
}

/* Any ids, ids that do not exist among them: every piece is whole characters, and together they are the decoding. */
static void test_random_ids(void **state)
{
    (void)state;
    struct json *root;
    struct tokenizer *t = load("qwen", &root);
    i32 n_ids = tokenizer_vocab_size(t);
    for (u64 run = 0; run < 300; run++) {
        struct ids ids = {0};
        struct buf joined = {0}, whole = {0};
        struct detok d, copy;
        u32 r[4];
        detok_init(&d, t, NULL, 0, false);
        for (u64 i = 0; i < 40; i++) {
            rng_block(run, i, 0, r);
            i32 id = (i32)(r[0] % (u32)(n_ids + 20)) - 10;
            if (r[1] % 2) id = (i32)(r[0] % 256); /* single bytes */
            ids_add(&ids, id);
            size_t before = joined.len;
            copy = d;
            detok_push(&d, id, &joined);
            buf_reserve(&joined, 1);
            assert_true(joined.len == before || ((u8)joined.data[before] & 0xC0) != 0x80);
            struct buf again = {0};
            detok_push(&copy, id, &again);
            assert_int_equal(again.len, joined.len - before);
            buf_release(&again);
        }
        detok_finish(&d, &joined);
        detok_finish(&d, &joined); /* a second end adds nothing */
        tokenizer_decode(t, ids.data, ids.len, false, &whole);
        assert_int_equal(whole.len, joined.len);
        assert_memory_equal(whole.data, joined.data, whole.len);
        ids_release(&ids);
        buf_release(&joined);
        buf_release(&whole);
    }
    json_drop(root);
    tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces),        cmocka_unit_test(test_id_cases),
        cmocka_unit_test(test_continuations), cmocka_unit_test(test_byte_runs),
        cmocka_unit_test(test_random_ids),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("detok", tests, NULL, NULL);
}
