#include "mpiserve/kv.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
// cmocka wants the four above first
#include <cmocka.h>

static void too_small_is_refused(void **state)
{
    (void)state;
    struct error err;
    assert_null(kv_blocks_new(1, &err));
    assert_int_equal(err.code, ERR_INPUT);
}

static void scratch_block_is_never_handed_out(void **state)
{
    (void)state;
    struct kv_blocks *p = kv_blocks_new(5, NULL);
    bool seen[5] = {false};
    u32 block;
    for (int i = 0; i < 4; i++) {
        assert_true(kv_take(p, &block));
        assert_in_range(block, 1, 4);
        assert_false(seen[block]);
        seen[block] = true;
    }
    assert_false(kv_take(p, &block));
    kv_blocks_free(p);
}

static void given_blocks_wait_for_their_steps(void **state)
{
    (void)state;
    struct kv_blocks *p = kv_blocks_new(3, NULL);
    u32 a, b, c;
    assert_true(kv_take(p, &a) && kv_take(p, &b));
    kv_give(p, a, 4);
    kv_give(p, b, 6);
    kv_committed(p, 3);
    assert_false(kv_take(p, &c));
    kv_committed(p, 4);
    assert_true(kv_take(p, &c));
    assert_int_equal(c, a);
    assert_int_equal(kv_free_blocks(p), 0);
    kv_settle(p);
    assert_int_equal(kv_free_blocks(p), 1);
    kv_blocks_free(p);
}

/* Random takes and gives against a plain model: no block has two owners, none is lost. */
static void random_use_keeps_every_block(void **state)
{
    (void)state;
    enum { N = 40 };
    struct kv_blocks *p = kv_blocks_new(N + 1, NULL);
    u32 held[N], n_held = 0;
    u64 step = 0, committed = 0;
    for (u32 i = 0; i < 20000; i++) {
        u32 r[4];
        rng_block(7, i, 0, r);
        if (r[0] % 3 == 0 && n_held > 0) {
            u32 k = r[1] % n_held;
            kv_give(p, held[k], step);
            held[k] = held[--n_held];
        } else if (r[0] % 3 == 1) {
            u32 block;
            if (kv_take(p, &block)) {
                for (u32 k = 0; k < n_held; k++) assert_int_not_equal(held[k], block);
                held[n_held++] = block;
            }
        } else if (committed < step && r[1] % 2) {
            kv_committed(p, ++committed);
        } else {
            step++;
        }
    }
    kv_settle(p);
    assert_int_equal(kv_free_blocks(p) + n_held, N);
    kv_blocks_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(too_small_is_refused),
        cmocka_unit_test(scratch_block_is_never_handed_out),
        cmocka_unit_test(given_blocks_wait_for_their_steps),
        cmocka_unit_test(random_use_keeps_every_block),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
