/* Who gets which GPU: none twice, near ones first, whatever each rank may see. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "agent/gpus.h"

/* "AbC": devices A, b and C, of which A and C are near. */
static struct gpu_view view(const char *letters)
{
    struct gpu_view v = {0};
    for (; *letters; letters++) {
        struct gpu *g = &v.gpu[v.n++];
        g->near = *letters < 'a';
        snprintf(g->uuid, sizeof g->uuid, "GPU-%c", *letters | 32);
    }
    return v;
}

/* seen: a word a rank; dealt: a letter a rank, '-' for none. */
static void check(const char *const seen[], const char *dealt)
{
    struct gpu_view views[8] = {0};
    const struct gpu *out[8];
    u32 n = (u32)strlen(dealt);
    for (u32 i = 0; i < n; i++) views[i] = view(seen[i]);
    gpus_deal(views, n, out);
    for (u32 i = 0; i < n; i++) {
        char got = out[i] ? out[i]->uuid[4] : '-';
        if (got != dealt[i]) fail_msg("rank %u got %c, not %c", i, got, dealt[i]);
    }
}

static void test_deal(void **state)
{
    (void)state;
    check((const char *const[]){"abcd", "abcd", "abcd", "abcd"}, "abcd"); /* nothing is known of nearness */
    check((const char *const[]){"abCD", "abCD", "ABcd", "ABcd"}, "cdab"); /* two domains */
    check((const char *const[]){"ABcd", "ABcd", "ABcd", "abCD"}, "abcd"); /* one more than its domain has */
    check((const char *const[]){"d", "c", "b", "a"}, "dcba");   /* each sees its own (Slurm's tasks) */
    check((const char *const[]){"ab", "", "ab", "ab"}, "a-b-"); /* a rank without an engine; one too many */
    check((const char *const[]){"B", "AB"}, "ba");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_deal)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("gpus", tests, NULL, NULL);
}
