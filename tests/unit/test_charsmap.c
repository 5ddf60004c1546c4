/* text/: SentencePiece's character map as files of others have it: refused, or used within its bounds. What it does to texts is in the
 * cases of test_tokenizer.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mpiserve/text.h"

#define FILE_BEGIN                                                                                           \
    "{\"model\":{\"type\":\"WordLevel\",\"unk_token\":\"u\",\"vocab\":{\"u\":0,\"a\":1}},\"normalizer\":{"   \
    "\"type\":"                                                                                              \
    "\"Precompiled\""
#define WITH_MAP(map) FILE_BEGIN ",\"precompiled_charsmap\":\"" map "\"}}"

static void refused(void **state)
{
    (void)state;
    static const char *const files[] = {
        FILE_BEGIN "}}",
        FILE_BEGIN ",\"precompiled_charsmap\":7}}",
        WITH_MAP(""),
        WITH_MAP("BAAAAAAAAA"),   /* not in fours */
        WITH_MAP("BA=AAAAAAAA="), /* padding in the middle */
        WITH_MAP("BA==AAAAAAA="),
        WITH_MAP("BAAA\\u00e9AAAAA"),
        WITH_MAP("BAAA\\u0000AAAAA"),
        WITH_MAP("BAAAAA=="),     /* a trie of 4 bytes, and none there */
        WITH_MAP("AwAAAAAAAAA="), /* of 3 */
        WITH_MAP("AAAAAAAAAAA="), /* of none */
        WITH_MAP("/////wAAAAA="), /* of 2^32 - 1 */
        WITH_MAP("BAAAAAAAAAD/"), /* a text that is not UTF-8 */
    };
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        struct error err = {0};
        struct tokenizer *t = tokenizer_read(files[i], strlen(files[i]), &err);
        if (t || err.code != ERR_INPUT || !strstr(err.where, "normalizer.precompiled_charsmap"))
            fail_msg("%s: %s: %s", files[i], err.where, err.message);
    }
}

/* A node whose children would lie beyond the array; a value beyond the texts. */
static void leads_out(void **state)
{
    (void)state;
    static const char *const files[] = {
        WITH_MAP("BAAAAAAEAAA="), /* one unit, offset 1: every character's child is beyond */
        WITH_MAP("EAAAAAAEAAAAAAAAAAAAAAAAAAA="),
    };
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        struct error err = {0};
        struct ids ids = {0};
        struct tokenizer *t = tokenizer_read(files[i], strlen(files[i]), &err);
        if (!t) fail_msg("%s: %s: %s", files[i], err.where, err.message);
        assert_int_equal(tokenizer_encode(t, "\xc3\xa9", 2, 0, &ids, &err), ERR_INPUT);
        assert_non_null(strstr(err.where, "precompiled_charsmap"));
        assert_int_equal(ids.len, 0);
        assert_int_equal(tokenizer_encode(t, "", 0, 0, &ids, &err), 0);
        ids_release(&ids);
        tokenizer_free(t);
    }
}

/* A character map whose bytes were changed: an error when it is read or used, or other ids; nothing is read beyond it. */
static void damaged(void **state)
{
    (void)state;
    static const char key[] = "precompiled_charsmap\":\"",
                      text[] = "e\xcc\x81 \xef\xac\x81\xe2\x91\xa0\r\nX\x7f\xea\xb0\x80";
    const char *dir = getenv("MPISERVE_TESTS");
    char path[600];
    struct error err = {0};
    struct buf whole = {0};
    u32 n_loaded = 0, n_damaged = 0;
    snprintf(path, sizeof(path), "%s/reference/tokenizers/precompiled/tokenizer.json", (dir ? dir : "tests"));
    assert_int_equal(file_read(path, 1 << 24, &whole, &err), 0);
    char *map = memmem(whole.data, whole.len, key, sizeof(key) - 1);
    assert_non_null(map);
    map += sizeof(key) - 1;
    size_t len = (size_t)((char *)memchr(map, '"', whole.len - (size_t)(map - whole.data)) - map);
    for (u64 i = 0; i < 400; i++) {
        u32 r[4];
        rng_block(2, i, 0, r);
        char *at = map + (i % 4 ? r[0] % (i % 2 ? 4096 : len) : r[0] % 64), was = *at;
        *at = "ABCDabcd0123+/zZ"[r[1] % 16];
        struct tokenizer *t = tokenizer_read(whole.data, whole.len, &err);
        struct ids ids = {0};
        n_loaded += t != NULL;
        if (!t) assert_non_null(strstr(err.where, "precompiled_charsmap"));
        int rc = t ? tokenizer_encode(t, text, sizeof(text) - 1, TOKENIZE_ADD_SPECIAL, &ids, &err) : 0;
        if (rc) assert_non_null(strstr(err.where, "precompiled_charsmap"));
        n_damaged += rc != 0;
        ids_release(&ids);
        tokenizer_free(t);
        *at = was;
    }
    print_message("# 400 damaged maps: %u are read, %u of these lead out of themselves\n", n_loaded,
                  n_damaged);
    assert_true(n_loaded > 100 && n_damaged > 0);
    buf_release(&whole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(refused), cmocka_unit_test(leads_out),
                                       cmocka_unit_test(damaged)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("charsmap", tests, NULL, NULL);
}
