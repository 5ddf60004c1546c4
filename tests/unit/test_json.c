#include "mpiserve/json.h"

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static struct json *parse(const char *text)
{
    struct error err = {0};
    struct json *v = json_read(text, strlen(text), &err);
    if (!v) fail_msg("%s: %s: %s", text, err.where, err.message);
    return v;
}

static void reads_values(void **state)
{
    (void)state;
    struct json *v = parse(
        " {\"z\": [1, -2.5, \"t\\u00e9\\u0000x\", true, false, null], \"a\": {\"b\": 9223372036854775807}} ");
    const struct json *z = json_get(v, "z");
    assert_int_equal(json_kind(v), JK_OBJECT);
    assert_int_equal(json_len(v), 2);
    assert_int_equal(json_kind(z), JK_ARRAY);
    assert_int_equal(json_len(z), 6);
    assert_int_equal(json_kind(json_item(z, 0)), JK_INT);
    assert_int_equal(json_int(json_item(z, 0), 7), 1);
    assert_true(json_real(json_item(z, 0), 7) == 1.0);
    assert_int_equal(json_kind(json_item(z, 1)), JK_REAL);
    assert_true(json_real(json_item(z, 1), 7) == -2.5);
    assert_int_equal(json_int(json_item(z, 1), 7), 7);
    assert_int_equal(json_len(json_item(z, 2)), 5);
    assert_memory_equal(json_text(json_item(z, 2)), "t\xC3\xA9\0x", 6);
    assert_true(json_bool(json_item(z, 3), false));
    assert_false(json_bool(json_item(z, 4), true));
    assert_int_equal(json_kind(json_item(z, 4)), JK_BOOL);
    assert_int_equal(json_kind(json_item(z, 5)), JK_NULL);
    assert_null(json_item(z, 6));
    assert_true(json_int(json_get(json_get(v, "a"), "b"), 0) == INT64_MAX);
    /* members come in the order of the text */
    void *it = json_first(v);
    assert_string_equal(json_key(it), "z");
    assert_int_equal(json_key_len(it), 1);
    assert_ptr_equal(json_value(it), z);
    it = json_next(v, it);
    assert_string_equal(json_key(it), "a");
    assert_null(json_next(v, it));
    json_drop(v);
}

static void nothing_is_quiet(void **state)
{
    (void)state;
    assert_int_equal(json_kind(NULL), JK_NONE);
    assert_null(json_get(json_item(json_get(NULL, "a"), 3), "b"));
    assert_int_equal(json_len(NULL), 0);
    assert_null(json_text(NULL));
    assert_int_equal(json_int(NULL, 5), 5);
    assert_true(json_real(NULL, 0.5) == 0.5);
    assert_true(json_bool(NULL, true));
    assert_null(json_first(NULL));
    assert_null(json_value(NULL));
    json_drop(NULL);
    struct json *text = parse("\"s\"");
    assert_null(json_get(text, "a"));
    assert_null(json_item(text, 0));
    assert_null(json_first(text));
    json_drop(text);
    assert_string_equal(json_kind_name(JK_TEXT), "a string");
}

static void any_root(void **state)
{
    (void)state;
    static const char *const roots[] = {"1",    "-0", "1.5e3", "\"\"",       "true",
                                        "null", "[]", "{}",    "\t[1 ]\r\n", "1e-400"};
    for (size_t i = 0; i < COUNT_OF(roots); i++) json_drop(parse(roots[i]));
    struct error err;
    struct json *part = json_read("[1]garbage", 3, &err); /* the text ends where len says */
    assert_non_null(part);
    json_drop(part);
}

/* Integers beyond 64 bits are kept as they are, wherever they stand. */
static void keeps_big_integers(void **state)
{
    (void)state;
    static const char text[] =
        "{\"a\":9223372036854775808,\"b\":[1,-9223372036854775809,\"18446744073709551616\",2.5,-3,{\"c\\\"\":"
        "123456789012345678901234567890}],\"d\":9223372036854775807,\"e\":1e20,\"f\":-9223372036854775808}";
    struct error err = {0};
    struct json *root = json_read(text, strlen(text), &err);
    if (!root) fail_msg("%s: %s", err.where, err.message);
    const struct json *a = json_get(root, "a"), *b = json_get(root, "b");
    assert_int_equal(json_kind(a), JK_BIG);
    assert_string_equal(json_digits(a), "9223372036854775808");
    assert_null(json_text(a));
    assert_int_equal(json_len(a), 0);
    assert_int_equal(json_int(a, 7), 7);
    assert_string_equal(json_kind_name(JK_BIG), "an integer beyond 64 bits");
    assert_string_equal(json_digits(json_item(b, 1)), "-9223372036854775809");
    assert_int_equal(json_kind(json_item(b, 2)), JK_TEXT);
    assert_int_equal(json_int(json_item(b, 4), 0), -3);
    assert_int_equal(json_int(json_get(root, "d"), 0), INT64_MAX);
    assert_int_equal(json_int(json_get(root, "f"), 0), INT64_MIN);
    assert_null(json_digits(json_get(root, "d")));
    struct buf copy = {0};
    struct json_out o;
    json_out_init(&o, &copy);
    json_out_value(&o, root);
    buf_char(&copy, 0);
    assert_non_null(strstr(copy.data, "\"a\":9223372036854775808,"));
    assert_non_null(strstr(copy.data, "123456789012345678901234567890}"));
    buf_release(&copy);
    json_drop(root);
    root = json_read("-12345678901234567890", 21, &err);
    assert_string_equal(json_digits(root), "-12345678901234567890");
    json_drop(root);
    char *many = mem_alloc(5001); /* Python reads 4300 digits */
    memset(many, '9', 5001);
    assert_null(json_read(many, 5001, &err));
    root = json_read(many, 4300, &err);
    assert_int_equal(json_kind(root), JK_BIG);
    json_drop(root);
    free(many);
}

static void refuses(void **state)
{
    (void)state;
    static const struct {
        const char *text, *where, *message;
    } bad[] = {
        {"", "line 1, column 0 (byte 0)", "empty"},
        {"  ", "line 1, column 2 (byte 2)", ""},
        {"{\"a\":1,}", "line 1, column 8 (byte 8)", "string or '}' expected"},
        {"{\n  \"a\": 1,\n  \"b\": tru\n}", "line 3, column 10 (byte 22)", "tru"},
        {"[\"\xC3\xA9\xC3\xA9\", x]", "line 1, column 8 (byte 10)", "x"},
        {"{\"a\":1,\"a\":2}", "line 1, column 10 (byte 10)", "duplicate object key"},
        {"[\"\xFF\"]", "line 1, column", "decode byte 0xff"},
        {"[\"\xC0\xAF\"]", "line 1, column", "decode byte 0xc0"},
        {"[\"\xED\xA0\x80\"]", "line 1, column", "decode byte 0xed"},
        {"[\"\\ud800\"]", "line 1, column", "\\uD800"},
        {"1e400", "line 1, column 5 (byte 5)", "overflow"},
        {"-1e400", "line 1, column 6 (byte 6)", "overflow"},
        {"[9223372036854775808x]", "line 1", ""},
        {"[09223372036854775808]", "line 1", ""},
        {"[9223372036854775808, 1e400]", "line 1, column 27 (byte 27)", "overflow"},
        {"[1] 2", "line 1, column 5 (byte 5)", "end of file expected"},
        {"[1", "line 1, column 2 (byte 2)", "']' expected"},
        {"\"a\nb\"", "line 1, column 2 (byte 2)", "newline"},
        {"01", "line 1", ""},
        {"+1", "line 1", ""},
        {"1.", "line 1", ""},
        {".5", "line 1", ""},
        {"NaN", "line 1", ""},
        {"Infinity", "line 1", ""},
        {"'a'", "line 1", ""},
        {"[1,]", "line 1", ""},
        {"// x\n1", "line 1", ""},
        {"\"\\x\"", "line 1", ""},
        {"\xEF\xBB\xBF{}", "line 1", ""},
        {"]", "line 1", ""},
        {"\"\\", "line 1", ""},
        {"{\"a\\u0000b\":1}", "line 1", "NUL"},
    };
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        struct error err = {0};
        struct json *v = json_read(bad[i].text, strlen(bad[i].text), &err);
        if (v || err.code != ERR_INPUT || strncmp(err.where, bad[i].where, strlen(bad[i].where)) ||
            !strstr(err.message, bad[i].message))
            fail_msg("%s: %s: %s", bad[i].text, err.where, err.message);
    }
    struct error err;
    assert_null(json_read("1\0", 2, &err)); /* a NUL outside of a string */
    assert_null(json_read("\"\0\"", 3, &err));
    assert_null(json_read(NULL, 0, &err));
    assert_null(json_read("[", 1, NULL));
}

static void bounds_depth(void **state)
{
    (void)state;
    struct error err;
    struct buf b = {0};
    for (int i = 0; i < 64; i++) buf_char(&b, '[');
    for (int i = 0; i < 64; i++) buf_char(&b, ']');
    json_drop(parse(b.data));
    buf_clear(&b);
    buf_text(&b, "[\"[[{{\\\"[\\\\\",\n");
    for (int i = 0; i < 70; i++) buf_text(&b, "{\"a\":");
    assert_null(json_read(b.data, b.len, &err));
    assert_non_null(strstr(err.message, "64 levels"));
    assert_string_equal(err.where, "line 2, column 316 (byte 330)");
    buf_clear(&b);
    for (int i = 0; i < 1000000; i++) buf_char(&b, '[');
    assert_null(json_read(b.data, b.len, &err));
    buf_clear(&b); /* brackets in strings, and side by side, are no depth */
    buf_char(&b, '[');
    for (int i = 0; i < 100; i++) buf_text(&b, "\"[{\",[],{},");
    buf_text(&b, "0]");
    json_drop(parse(b.data));
    buf_release(&b);
}

static void reads_files(void **state)
{
    (void)state;
    char path[] = "/tmp/mpiserve-test-XXXXXX";
    struct error err;
    int fd = mkstemp(path);
    assert_int_equal(write(fd, "{\"a\":\n!}", 8), 8);
    assert_null(json_read_file(path, 100, &err));
    assert_int_equal(strncmp(err.where, path, strlen(path)), 0);
    assert_string_equal(err.where + strlen(path), ": line 2, column 1 (byte 7)");
    assert_null(json_read_file(path, 7, &err));
    assert_int_equal(ftruncate(fd, 0), 0);
    assert_null(json_read_file(path, 100, &err));
    assert_int_equal(pwrite(fd, "[2]", 3, 0), 3);
    struct json *v = json_read_file(path, 3, &err);
    assert_int_equal(json_int(json_item(v, 0), 0), 2);
    json_drop(v);
    close(fd);
    unlink(path);
    assert_null(json_read_file(path, 100, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
}

static void writes(void **state)
{
    (void)state;
    struct buf b = {0};
    struct json_out o;
    json_out_init(&o, &b);
    json_out_object(&o);
    json_out_key(&o, "a");
    json_out_array(&o);
    json_out_int(&o, INT64_MIN);
    json_out_real(&o, 0.1);
    json_out_bool(&o, true);
    json_out_null(&o);
    json_out_array(&o);
    json_out_end_array(&o);
    json_out_object(&o);
    json_out_end_object(&o);
    json_out_str(&o, NULL);
    json_out_end_array(&o);
    json_out_key(&o, "k\"\n");
    json_out_text(&o, "q\"\\/\b\t\x01\0\x7f\xC3\xA9", 11);
    json_out_key(&o, "c");
    json_out_str(&o, "d");
    json_out_end_object(&o);
    assert_string_equal(b.data, "{\"a\":[-9223372036854775808,0.1,true,null,[],{},null],"
                                "\"k\\\"\\n\":\"q\\\"\\\\/\\b\\t\\u0001\\u0000\x7f\xC3\xA9\",\"c\":\"d\"}");
    json_drop(parse(b.data));
    buf_clear(&b);
    json_out_init(&o, &b);
    json_out_object(&o);
    json_out_key_str(&o, "s", "t");
    json_out_key_str(&o, "none", NULL);
    json_out_key_int(&o, "i", -7);
    json_out_key_real(&o, "r", 0.5);
    json_out_key_bool(&o, "b", false);
    json_out_end_object(&o);
    assert_string_equal(b.data, "{\"s\":\"t\",\"none\":null,\"i\":-7,\"r\":0.5,\"b\":false}");
    buf_clear(&b);
    json_out_init(&o, &b);
    for (int i = 0; i < 63; i++) json_out_array(&o);
    for (int i = 0; i < 63; i++) json_out_end_array(&o);
    json_drop(parse(b.data));
    buf_release(&b);
}

static void mends_utf8(void **state)
{
    (void)state;
#define BAD "\xEF\xBF\xBD"
    static const char *const pairs[][2] = {
        {"a\xFFz", "a" BAD "z"},
        {"\xC0\xAF", BAD BAD},
        {"\xE2\x82", BAD},
        {"\xE2\x82z", BAD "z"},
        {"\xF0\x9F\x98\x80", "\xF0\x9F\x98\x80"},
        {"\xF0\x9F\x98", BAD},
        {"\xED\xA0\x80", BAD BAD BAD},
        {"\xF4\x90\x80\x80", BAD BAD BAD BAD},
        {"\x80\xC3", BAD BAD},
        {"\xC3\"", BAD "\\\""},
    };
    for (size_t i = 0; i < COUNT_OF(pairs); i++) {
        struct buf b = {0};
        struct json_out o;
        char want[64];
        json_out_init(&o, &b);
        json_out_str(&o, pairs[i][0]);
        snprintf(want, sizeof(want), "\"%s\"", pairs[i][1]);
        assert_string_equal(b.data, want);
        json_drop(parse(b.data));
        buf_release(&b);
    }
}

static void writes_reals(void **state)
{
    (void)state;
    static const struct {
        double v;
        const char *text;
    } known[] = {
        {0, "0.0"},
        {-0.0, "-0.0"},
        {1, "1.0"},
        {0.1, "0.1"},
        {0.3, "0.3"},
        {1e21, "1e+21"},
        {5e-324, "5e-324"},
        {NAN, "-9999.0"},
        {INFINITY, "-9999.0"},
        {-INFINITY, "-9999.0"},
        {1e300, "1e+300"},
        {123456.75, "123456.75"},
        {0.1 + 0.2, "0.30000000000000004"},
    };
    struct buf b = {0};
    struct json_out o;
    for (size_t i = 0; i < COUNT_OF(known); i++) {
        buf_clear(&b);
        json_out_init(&o, &b);
        json_out_real(&o, known[i].v);
        assert_string_equal(b.data, known[i].text);
    }
    for (u64 i = 0; i < 20000; i++) {
        u32 bits[4];
        double v;
        rng_block(3, i, 0, bits);
        memcpy(&v, bits, 8);
        if (!isfinite(v)) continue;
        buf_clear(&b);
        json_out_init(&o, &b);
        json_out_real(&o, v);
        struct json *back = json_read(b.data, b.len, NULL);
        assert_int_equal(json_kind(back), JK_REAL);
        assert_true(json_real(back, 0) == v);
        json_drop(back);
    }
    buf_release(&b);
}

static void copies_trees(void **state)
{
    (void)state;
    static const char text[] =
        "{\"z\":[1,2.5,\"a\\u0000\\n\",true,false,null,[],{}],\"a\":{\"b\":-1,\"c\":\"\xC3\xA9\"}}";
    struct json *v = parse(text);
    struct buf b = {0};
    struct json_out o;
    json_out_init(&o, &b);
    json_out_array(&o);
    json_out_value(&o, v);
    json_out_value(&o, json_get(v, "absent"));
    json_out_int(&o, 1);
    json_out_end_array(&o);
    char want[256];
    snprintf(want, sizeof(want), "[%s,null,1]", text);
    assert_string_equal(b.data, want);
    json_drop(v);
    /* a tree as deep as the reader allows, inside a writer as deep as it allows */
    buf_clear(&b);
    for (int i = 0; i < 64; i++) buf_char(&b, '[');
    for (int i = 0; i < 64; i++) buf_char(&b, ']');
    v = parse(b.data);
    buf_clear(&b);
    json_out_init(&o, &b);
    for (int i = 0; i < 63; i++) json_out_array(&o);
    json_out_value(&o, v);
    for (int i = 0; i < 63; i++) json_out_end_array(&o);
    assert_int_equal(b.len, 2 * (63 + 64));
    json_drop(v);
    buf_release(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_values), cmocka_unit_test(nothing_is_quiet),
        cmocka_unit_test(any_root),     cmocka_unit_test(keeps_big_integers),
        cmocka_unit_test(refuses),      cmocka_unit_test(bounds_depth),
        cmocka_unit_test(reads_files),  cmocka_unit_test(writes),
        cmocka_unit_test(mends_utf8),   cmocka_unit_test(writes_reals),
        cmocka_unit_test(copies_trees),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("json", tests, NULL, NULL);
}
