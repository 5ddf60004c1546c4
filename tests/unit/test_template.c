/* Chat templates against the cases in tests/reference/templates (its README tells what the fields mean). A case passes
 * when the text is right, or when the error comes at the right time (raise_exception: with the right message). What the
 * engine refuses as unsupported is counted apart; wrong text never passes. */
#include "mpiserve/text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static const char *path_of(const char *name)
{
    static char path[512];
    const char *tests = getenv("MPISERVE_TESTS");
    snprintf(path, sizeof(path), "%s/reference/templates/%s", tests ? tests : "tests", name);
    return path;
}

/* Integers beyond 64 bits are refused where a request is read (json.h). The cases hold one such number, and the one that
 * follows it: they are made shorter, in contexts and in expected texts alike. */
static struct json *read_cases(const char *name)
{
    static const char *const big[] = {"12345678901234567890", "12345678901234567891"};
    static const char *const fits[] = {"1234567890123456789", "1234567890123456790"};
    struct error err = {0};
    struct buf text = {0};
    assert_int_equal(file_read(path_of(name), 16 << 20, &text, &err), 0);
    for (int i = 0; i < 2; i++) {
        struct buf out = {0};
        const char *at = text.data;
        for (const char *hit; (hit = strstr(at, big[i])); at = hit + strlen(big[i])) {
            buf_add(&out, at, (size_t)(hit - at));
            buf_text(&out, fits[i]);
        }
        buf_text(&out, at);
        buf_release(&text);
        text = out;
    }
    struct json *root = json_read(text.data, text.len, &err);
    if (!root) fail_msg("%s: %s: %s", name, err.where, err.message);
    buf_release(&text);
    return root;
}

static i64 time_of(const struct json *root)
{
    struct tm tm = {0};
    const char *now = json_text(json_get(root, "now"));
    if (!now) return 0;
    assert_non_null(strptime(now, "%Y-%m-%dT%H:%M:%S", &tm));
    return timegm(&tm);
}

struct tally {
    size_t passed, unsupported, late, wrong; /* late: refused as unsupported while rendering */
};

static void report(const char *id, const char *what, const char *got, const char *want)
{
    print_message("# %s: %s: \"%.300s\" instead of \"%.300s\"\n", id, what, got ? got : "", want ? want : "");
}

static void check_rendered(const struct json *c, const char *id, int rc, const struct buf *out,
                           const struct error *err, struct tally *tally)
{
    const struct json *expect = json_get(c, "expect");
    const char *kind = json_text(json_get(c, "error"));
    if (rc == ERR_UNSUPPORTED) {
        tally->late++;
        print_message("# %s: unsupported: %s\n", id, err->message);
    } else if (rc == 0 && expect && out->len == json_len(expect) &&
               memcmp(out->data, json_text(expect), out->len) == 0) {
        tally->passed++;
    } else if (rc && kind) {
        bool same = strcmp(kind, "TemplateError") != 0 ||
                    strcmp(err->message, json_text(json_get(c, "message"))) == 0;
        if (!same) report(id, "message", err->message, json_text(json_get(c, "message")));
        *(same ? &tally->passed : &tally->wrong) += 1;
    } else {
        report(id, "wrong", rc ? err->message : out->data, expect ? json_text(expect) : kind);
        tally->wrong++;
    }
}

static void check_case(const struct json *c, const char *id, const char *source, size_t len,
                       const struct json *context, i64 now, struct tally *tally)
{
    struct error err = {0};
    struct buf out = {0};
    const char *when = json_text(json_get(c, "when"));
    struct chat_template *t = chat_template_compile(source, len, &err);
    buf_reserve(&out, 1);
    if (!t && when && strcmp(when, "compile") == 0) {
        tally->passed++;
    } else if (!t && err.code == ERR_UNSUPPORTED) {
        tally->unsupported++;
        print_message("# %s: unsupported: %s\n", id, err.message);
    } else if (!t) {
        report(id, "does not compile", err.message, json_text(json_get(c, "expect")));
        tally->wrong++;
    } else if (when && strcmp(when, "compile") == 0) {
        report(id, "compiles", source, json_text(json_get(c, "message")));
        tally->wrong++;
    } else {
        int rc = chat_template_render(t, context, now, &out, NULL, &err);
        check_rendered(c, id, rc, &out, &err, tally);
    }
    chat_template_free(t);
    buf_release(&out);
}

/* What passes today, exactly: a change in either direction is to be looked at. */
struct expected {
    const char *name;
    struct tally tally;
};

static bool is_expected(const struct expected *e, const struct tally *got)
{
    print_message("# %s: %zu passed, %zu refused, %zu refused while rendering, %zu wrong\n", e->name,
                  got->passed, got->unsupported, got->late, got->wrong);
    return memcmp(got, &e->tally, sizeof(*got)) == 0;
}

static void test_templates(void **state)
{
    (void)state;
    static const struct expected files[] = {
        {"blocks", {7, 0, 0, 0}},        {"chatml", {23, 0, 0, 0}},     {"crlf", {6, 0, 0, 0}},
        {"dated_system", {12, 0, 0, 0}}, {"documents", {9, 0, 0, 0}},   {"generation", {8, 0, 0, 0}},
        {"loops", {12, 0, 0, 0}},        {"multimodal", {17, 0, 0, 0}}, {"reasoning", {27, 0, 0, 0}},
        {"strict_turns", {24, 0, 0, 0}}, {"tools_json", {16, 0, 0, 0}}, {"tools_schema", {12, 0, 0, 0}},
        {"whitespace", {20, 0, 0, 0}},
    };
    bool all = true;
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        char name[128];
        struct buf source = {0};
        struct tally tally = {0};
        snprintf(name, sizeof(name), "%s.cases.json", files[i].name);
        struct json *root = read_cases(name);
        assert_int_equal(file_read(path_of(json_text(json_get(root, "template"))), 1 << 20, &source, NULL),
                         0);
        const struct json *cases = json_get(root, "cases");
        for (size_t k = 0; k < json_len(cases); k++) {
            const struct json *c = json_item(cases, k);
            check_case(c, json_text(json_get(c, "id")), source.data, source.len, json_get(c, "context"),
                       time_of(root), &tally);
        }
        all = is_expected(&files[i], &tally) && all;
        buf_release(&source);
        json_drop(root);
    }
    assert_true(all);
}

static void test_micro(void **state)
{
    (void)state;
    static const struct expected groups[] = {
        {"print", {43, 0, 0, 0}}, {"lexer", {54, 0, 0, 0}},    {"index", {40, 0, 0, 0}},
        {"op", {76, 0, 1, 0}},    {"filter", {122, 16, 0, 0}}, {"json", {33, 0, 0, 0}},
        {"test", {27, 0, 0, 0}},  {"method", {44, 11, 0, 0}},  {"stmt", {56, 3, 0, 0}},
        {"date", {9, 0, 0, 0}},   {"error", {97, 3, 0, 0}},
    };
    struct json *root = read_cases("micro.cases.json");
    const struct json *cases = json_get(root, "cases");
    size_t seen = 0;
    bool all = true;
    for (size_t g = 0; g < COUNT_OF(groups); g++) {
        struct tally tally = {0};
        size_t n = strlen(groups[g].name);
        for (size_t k = 0; k < json_len(cases); k++) {
            const struct json *c = json_item(cases, k), *source = json_get(c, "template");
            const char *id = json_text(json_get(c, "id"));
            if (strncmp(id, groups[g].name, n) != 0 || id[n] != '-') continue;
            seen++;
            check_case(c, id, json_text(source), json_len(source), json_get(root, "context"), time_of(root),
                       &tally);
        }
        all = is_expected(&groups[g], &tally) && all;
    }
    assert_int_equal(seen, json_len(cases));
    assert_true(all);
    json_drop(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_templates),
        cmocka_unit_test(test_micro),
    };
    setenv("TZ", "UTC", 1);
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("template", tests, NULL, NULL);
}
