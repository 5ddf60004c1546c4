/* text: work grows with the text, whatever the text is, and patterns that explode end. No clock: the room is compiled once more so
 * that it counts its steps here (Makefile), and what it takes for the time is made up. */
#include "mpiserve/text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

/* ---- steps: the compiler calls this in every basic block of src/text -------------------------------------*/
static u64 steps;
void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_pc(void)
{
    steps++;
}

/* ---- time: every look at the clock takes as long as is said here -------------------------------------------------*/
static struct {
    u64 wall_ns, cpu_ns; /* they pass at each look at the wall clock */
    u64 looks;
} pretended;

int clock_gettime(clockid_t id, struct timespec *t)
{
    u64 ns = pretended.looks * pretended.cpu_ns;
    if (id != CLOCK_THREAD_CPUTIME_ID) ns = ++pretended.looks * pretended.wall_ns;
    *t = (struct timespec){.tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S)};
    return 0;
}

/* ---- texts -----------------------------------------------------------------------------------------------------*/
static struct tokenizer *load(const char *set)
{
    const char *dir = getenv("MPISERVE_TESTS");
    char path[512];
    struct error err = {0};
    snprintf(path, sizeof path, "%s/reference/tokenizers/%s", dir ? dir : "tests", set);
    struct tokenizer *t = tokenizer_load(path, &err);
    if (!t) fail_msg("%s: %s", err.where, err.message);
    return t;
}

static struct buf repeated(const char *unit, size_t bytes)
{
    struct buf text = {0};
    while (text.len < bytes) buf_text(&text, unit);
    return text;
}

/* Steps to tokens and back. */
static u64 steps_of(const struct tokenizer *t, const char *unit, size_t bytes, bool comes_back)
{
    struct buf text = repeated(unit, bytes), back = {0};
    struct ids ids = {0};
    steps = 0;
    assert_int_equal(tokenizer_encode(t, text.data, text.len, 0, &ids, NULL), 0);
    tokenizer_decode(t, ids.data, ids.len, false, &back);
    u64 n = steps;
    if (comes_back) assert_int_equal(back.len, text.len);
    if (comes_back) assert_memory_equal(back.data, text.data, text.len);
    buf_release(&back);
    buf_release(&text);
    ids_release(&ids);
    return n;
}

/* Eight times the text takes eight times the steps; with the square of its length they would be 64 times. */
static void test_long_texts(void **state)
{
    static const struct {
        const char *name;
        bool comes_back; /* others normalize, strip and know not every character */
    } sets[] = {{"gpt2", true},     {"llama3", true},       {"qwen", true},      {"deepseek", true},
                {"o200k", true},    {"llama2", false},      {"mistral", false},  {"gemma", false},
                {"unigram", false}, {"precompiled", false}, {"wordpiece", false}};
    static const char *const units[] = {
        "a", " ", "\n", "1", ".", "ab", "\xcc\x81\xcc\xa7", "<", "the quick brown fox, 42! "};
    (void)state;
    double worst = 0;
    for (size_t s = 0; s < COUNT_OF(sets); s++) {
        struct tokenizer *t = load(sets[s].name);
        for (size_t i = 0; i < COUNT_OF(units); i++) {
            bool marks = (u8)units[i][0] == 0xCC, reordered = marks && strcmp(sets[s].name, "qwen") == 0;
            bool back = sets[s].comes_back && !reordered;
            u64 small = steps_of(t, units[i], 1 << 16, back), large = steps_of(t, units[i], 1 << 19, back);
            double ratio = (double)large / (double)small;
            worst = MAX_OF(worst, ratio);
            if (ratio > 9) fail_msg("%s, unit %zu: %.1f times the steps", sets[s].name, i, ratio);
            assert_true(small > 1 << 10); /* they are counted */
        }
        tokenizer_free(t);
    }
    print_message("# at most %.2f times the steps for eight times the text\n", worst);
}

/* ---- patterns --------------------------------------------------------------------------------------------------*/
static int encode(const struct tokenizer *t, const char *unit, size_t bytes, struct error *err)
{
    struct buf text = repeated(unit, bytes);
    struct ids ids = {0};
    pretended.looks = 0;
    int rc = tokenizer_encode(t, text.data, text.len, 0, &ids, err);
    print_message("# %zu bytes: %s, %llu looks at the clock\n", text.len, rc ? err->message : "done",
                  (unsigned long long)pretended.looks);
    if (rc) assert_int_equal(ids.len, 0);
    buf_release(&text);
    ids_release(&ids);
    return rc;
}

/* One error, after so many steps at one place, or after so much time for all places; never silence. */
static void test_exploding_patterns(void **state)
{
    static const char file[] =
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2},\"merges\":[]},\"pre_tokenizer\":"
        "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a+)+b\"},\"behavior\":\"Isolated\",\"invert\":false}}";
    static const struct {
        const char *unit;
        size_t bytes;
        const char *says; /* NULL: fine */
    } texts[] = {{"a", 64, NULL},
                 {"aaaaaaaaaaaaaaaaaaaaaaac", 512, NULL},
                 {"a", 1 << 20, "match limit exceeded"},
                 {"aaaaaaaaaaaaaaaaaaaac", 1 << 20, "its time is up"}};
    (void)state;
    struct error err = {0};
    struct tokenizer *t = tokenizer_read(file, strlen(file), &err);
    if (!t) fail_msg("%s: %s", err.where, err.message);
    const u64 look_ns = pretended.wall_ns = pretended.cpu_ns = 200 * NS_PER_MS;
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        int rc = encode(t, texts[i].unit, texts[i].bytes, &err);
        assert_int_equal(rc, texts[i].says ? ERR_FULL : 0);
        if (rc) assert_non_null(strstr(err.message, texts[i].says));
        if (rc) assert_non_null(strstr(err.where, "byte "));
        u64 allowed_ns = 2 * NS_PER_S + texts[i].bytes * 2000;
        assert_true(pretended.looks <= 2 + (allowed_ns + look_ns) / look_ns); /* two: when it begins */
    }
    tokenizer_free(t);
}

/* Who has to wait for a processor has not worked. */
static void test_waiting_is_no_work(void **state)
{
    (void)state;
    struct error err = {0};
    struct tokenizer *t = load("gpt2");
    pretended.wall_ns = NS_PER_S;
    pretended.cpu_ns = 0;
    assert_int_equal(encode(t, "the quick brown fox, 42! ", 1 << 17, &err), 0);
    assert_true(pretended.looks > 100);
    pretended.cpu_ns = NS_PER_S;
    assert_int_equal(encode(t, "the quick brown fox, 42! ", 1 << 17, &err), ERR_FULL);
    tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_long_texts),
        cmocka_unit_test(test_exploding_patterns),
        cmocka_unit_test(test_waiting_is_no_work),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("text_work", tests, NULL, NULL);
}
