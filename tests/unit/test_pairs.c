/* text/: what encoders ask of texts: pairs as the post-processor puts them together; lower case. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mpiserve/text.h"

/* Words: a b c d; 4 is [C], 5 is [S]. */
#define MODEL                                                                                                \
    "{\"model\":{\"type\":\"WordLevel\",\"unk_token\":\"a\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"d\":3,\"["  \
    "C]\":4,\"[S]\":5}},"                                                                                    \
    "\"pre_tokenizer\":{\"type\":\"WhitespaceSplit\"}"
#define POST(p)     MODEL ",\"post_processor\":" p "}"
#define C(type)     "{\"SpecialToken\":{\"id\":\"[C]\",\"type_id\":" #type "}}"
#define S(type)     "{\"SpecialToken\":{\"id\":\"[S]\",\"type_id\":" #type "}}"
#define TEXT(t, ty) "{\"Sequence\":{\"id\":\"" t "\",\"type_id\":" #ty "}}"
#define TEMPLATE(pair)                                                                                       \
    POST("{\"type\":\"TemplateProcessing\",\"single\":[" C(0) "," TEXT(                                      \
        "A", 0) "],\"pair\":" pair ",\"special_tokens\":{\"[C]\":{\"ids\":[4]},\"[S]\":{\"ids\":[5]}}}")
#define AROUND(type) POST("{\"type\":\"" type "\",\"cls\":[\"[C]\",4],\"sep\":[\"[S]\",5]}")

static struct tokenizer *read_file(const char *file)
{
    struct error err = {0};
    struct tokenizer *t = tokenizer_read(file, strlen(file), &err);
    if (!t) fail_msg("%s: %s: %s", file, err.where, err.message);
    return t;
}

static void expect_ids(const struct ids *got, const char *want, const char *what)
{
    char text[200] = "";
    size_t n = 0;
    for (size_t i = 0; i < got->len; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%d", got->data[i]);
    if (strcmp(text, want)) fail_msg("%s: %s, wanted %s", what, text, want);
}

struct text_pair {
    const char *a, *b;
    u32 most;
};

static int encode_pair(const struct tokenizer *t, const struct text_pair *pair, struct ids *out, u32 *second,
                       struct error *err)
{
    struct ids a = {0}, b = {0};
    int rc = tokenizer_encode(t, pair->a, strlen(pair->a), 0, &a, err);
    if (rc == 0) rc = tokenizer_encode(t, pair->b, strlen(pair->b), 0, &b, err);
    if (rc == 0) rc = tokenizer_join(t, &a, &b, pair->most, out, second, err);
    ids_release(&a);
    ids_release(&b);
    return rc;
}

static void forms(void **state)
{
    (void)state;
    static const struct {
        const char *file, *ids; /* of "a b" with "c d" */
        u32 second;
    } cases[] = {
        {TEMPLATE("[" C(0) "," TEXT("A", 0) "," S(0) "," TEXT("B", 1) "," S(1) "]"), "4015235", 4},
        {TEMPLATE("[" C(0) "," TEXT("A", 0) "," S(0) "," S(1) "," TEXT("B", 1) "]"), "4015523", 4},
        {TEMPLATE("[" TEXT("A", 0) "," S(1) "," S(1) "," TEXT("B", 1) "," C(1) "]"), "0155234", 2},
        {TEMPLATE("[" C(0) "," TEXT("A", 0) "," S(0) "," S(0) "," TEXT("B", 0) "," S(0) "]"), "40155235", 0},
        {TEMPLATE("[" TEXT("A", 0) "," TEXT("B", 1) "]"), "0123", 2},
        {AROUND("BertProcessing"), "4015235", 4},
        {AROUND("RobertaProcessing"), "40155235", 0},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct tokenizer *t = read_file(cases[i].file);
        struct error err = {0};
        struct ids ids = {0};
        u32 second = 99;
        const struct text_pair pair = {"a b", "c d", 0};
        assert_int_equal(tokenizer_check_pairs(t, &err), 0);
        assert_int_equal(encode_pair(t, &pair, &ids, &second, &err), 0);
        expect_ids(&ids, cases[i].ids, cases[i].file);
        assert_int_equal(second, cases[i].second);
        ids_release(&ids);
        tokenizer_free(t);
    }
}

/* Files that say nothing of pairs, or something odd, are good for single texts. */
static void not_offered(void **state)
{
    (void)state;
    static const char *const files[] = {
        MODEL "}",
        POST("null"),
        POST("{\"type\":\"ByteLevel\"}"),
        TEMPLATE("7"),
        TEMPLATE("[]"),
        TEMPLATE("[" TEXT("A", 0) "]"),
        TEMPLATE("[" TEXT("B", 0) "," TEXT("A", 1) "]"),
        TEMPLATE("[" TEXT("A", 0) "," TEXT("B", 0) "," TEXT("B", 0) "]"),
        TEMPLATE("[" TEXT("A", 1) "," TEXT("B", 1) "]"), /* type 1 before the second text's begin */
        TEMPLATE("[" C(1) "," TEXT("A", 0) "," TEXT("B", 1) "]"),
        TEMPLATE("[" TEXT("A", 0) "," S(1) "," TEXT("B", 0) "]"), /* back to 0 */
        TEMPLATE("[" TEXT("A", 0) "," TEXT("B", 1) "," S(0) "]"),
        TEMPLATE("[" TEXT("A", 0) "," TEXT("B", 0) "," S(1) "]"),
        TEMPLATE("[" TEXT("A", 0) "," TEXT("B", 2) "]"),
        TEMPLATE("[" TEXT("A", 0) ",{\"SpecialToken\":{\"id\":\"[X]\"}}," TEXT("B", 1) "]"),
    };
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        struct tokenizer *t = read_file(files[i]);
        struct error err = {0};
        struct ids ids = {0};
        u32 second;
        const struct text_pair pair = {"a", "b", 0};
        int rc = tokenizer_check_pairs(t, &err);
        if (!rc || !strstr(err.where, "post_processor") || !err.message[0])
            fail_msg("%s: %d, %s: %s", files[i], rc, err.where, err.message);
        assert_int_equal(encode_pair(t, &pair, &ids, &second, &err), rc);
        assert_int_equal(ids.len, 0);
        assert_int_equal(tokenizer_encode(t, "b", 1, 0, &ids, &err), 0);
        expect_ids(&ids, "1", files[i]);
        ids_release(&ids);
        tokenizer_free(t);
    }
}

static void lengths(void **state)
{
    (void)state;
    struct tokenizer *t = read_file(AROUND("BertProcessing"));
    static const struct {
        const char *a, *b;
        u32 most;
        const char *ids; /* NULL: too long */
    } cases[] = {
        {"a b", "c d", 7, "4015235"}, {"a b", "c d", 6, "401525"},    {"a b", "c d", 5, "40155"},
        {"a b", "c d", 4, NULL},      {"a b", "c d", 99, "4015235"},  {"", "c", 0, "4525"},
        {"a", "", 0, "4055"},         {"a", "c c c c c", 5, "40525"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct error err = {0};
        struct ids ids = {0};
        u32 second, before, behind;
        const struct text_pair pair = {cases[i].a, cases[i].b, cases[i].most};
        int rc = encode_pair(t, &pair, &ids, &second, &err);
        assert_int_equal(rc, cases[i].ids ? 0 : ERR_FULL);
        if (rc == 0) expect_ids(&ids, cases[i].ids, cases[i].b);
        tokenizer_around(t, &before, &behind);
        assert_true(before == 1 && behind == 1);
        ids_release(&ids);
    }
    struct ids ids = {0};
    struct error err = {0};
    u32 second;
    ids_add(&ids, 3);
    assert_int_equal(encode_pair(t, &(struct text_pair){"a", "\xff", 0}, &ids, &second, &err), ERR_INPUT);
    assert_int_equal(ids.len, 1);
    assert_int_equal(encode_pair(t, &(struct text_pair){"a", "b", 0}, &ids, &second, &err), 0);
    expect_ids(&ids, "340515", "behind what is there");
    assert_int_equal(second, 4); /* counted from the list's begin */
    ids_release(&ids);
    tokenizer_free(t);
}

static void lower_case(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"", ""},
        {"Hello, WORLD 1\xe2\x91\xa0", "hello, world 1\xe2\x91\xa0"},
        {"\xc3\x84\xc3\x96\xe1\xba\x9e", "\xc3\xa4\xc3\xb6\xc3\x9f"},
        {"\xce\xa3\xce\x8a\xce\xa3\xce\xa5\xce\xa6\xce\x9f\xce\xa3",
         "\xcf\x83\xce\xaf\xcf\x83\xcf\x85\xcf\x86\xce\xbf\xcf\x82"}, /* ends in a final sigma */
        {"\xce\x91\xce\xa3. \xce\xa3", "\xce\xb1\xcf\x82. \xcf\x83"},
        {"\xc4\xb0", "i\xcc\x87"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct buf out = {0};
        buf_char(&out, '>');
        text_lower_case(cases[i][0], strlen(cases[i][0]), &out);
        assert_int_equal(out.len, strlen(cases[i][1]) + 1);
        assert_memory_equal(out.data + 1, cases[i][1], out.len - 1);
        buf_release(&out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(forms), cmocka_unit_test(not_offered),
                                       cmocka_unit_test(lengths), cmocka_unit_test(lower_case)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("pairs", tests, NULL, NULL);
}
