/* The book of reservations. */
#include "mpiserve/route.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

static void add(struct reservation_book *b, u64 id, u64 deadline)
{
    struct reservation r = {.id = {{id, ~id}}, .num_ongoing = 3, .granted_ns = 1, .deadline_ns = deadline};
    selection_choose(&r.selection, 7, &(struct slot_token){.replica = 2, .slot = (u16)id, .epoch = 1});
    reservation_add(b, &r);
}

static struct reservation *find(const struct reservation_book *b, u64 id)
{
    return reservation_find(b, &(struct reservation_id){{id, ~id}});
}

static void test_ways(void **state)
{
    (void)state;
    struct reservation_book b = {0};
    assert_null(find(&b, 0));
    assert_int_equal(reservation_deadline(&b), UINT64_MAX);
    assert_null(reservation_due(&b, UINT64_MAX - 1));
    for (u64 id = 0; id < 4; id++) add(&b, id * RESERVATION_CHAINS, 100 + id); /* all in one chain */
    assert_int_equal(b.held.n, 4);
    assert_null(reservation_find(&b, &(struct reservation_id){{0, 0}})); /* half of it is right */
    struct reservation *r = find(&b, RESERVATION_CHAINS);
    assert_int_equal(r->state, RESERVATION_HELD);
    assert_int_equal(r->selection.leader, 7);
    assert_int_equal(r->selection.token.replica, 2);
    assert_int_equal(r->num_ongoing, 3);
    reservation_end(&b, r, RESERVATION_USED);
    assert_int_equal(find(&b, RESERVATION_CHAINS)->state, RESERVATION_USED);
    assert_int_equal(b.held.n, 3);
    assert_null(reservation_due(&b, 99));
    assert_int_equal(reservation_deadline(&b), 100);
    r = reservation_due(&b, 100);
    assert_ptr_equal(r, find(&b, 0));
    reservation_end(&b, r, RESERVATION_EXPIRED);
    assert_int_equal(reservation_deadline(&b), 102);
    reservation_end(&b, find(&b, 3 * RESERVATION_CHAINS), RESERVATION_RELEASED);
    assert_int_equal(reservation_deadline(&b), 102);
    assert_string_equal(reservation_state_name(RESERVATION_EXPIRED), "expired");
    reservation_book_release(&b);
    assert_int_equal(b.held.n + b.ended.n, 0);
}

/* The last ones that ended are known; none that is held is ever forgotten. */
static void test_memory(void **state)
{
    (void)state;
    struct reservation_book b = {0};
    enum { MORE = 100 };
    add(&b, 1, 5);
    for (u64 id = 2; id < 2 + RESERVATIONS_REMEMBERED + MORE; id++) {
        add(&b, id, 5);
        reservation_end(&b, find(&b, id), RESERVATION_RELEASED);
        assert_non_null(find(&b, id));
    }
    assert_int_equal(b.ended.n, RESERVATIONS_REMEMBERED);
    assert_null(find(&b, 2));
    assert_null(find(&b, 1 + MORE));
    assert_non_null(find(&b, 2 + MORE));
    assert_int_equal(find(&b, 1)->state, RESERVATION_HELD);
    reservation_book_release(&b);
}

/* Against a plain array, through a long random history. */
static void test_model(void **state)
{
    (void)state;
    enum { N = 2000, STEPS = 50000 };
    struct reservation_book b = {0};
    static u8 states[N]; /* 0: not there; else 1 + state */
    u64 now = 1, oldest = 0, next = 0;
    for (u64 step = 0; step < STEPS && next < N; step++) {
        u32 r[4];
        rng_block(3, step, 0, r);
        now += r[0] % 3;
        if (r[1] % 3 == 0) {
            add(&b, next, now + 50);
            states[next++] = 1 + RESERVATION_HELD;
        } else if (r[1] % 3 == 1 && next) {
            u64 id = r[2] % next;
            struct reservation *x = find(&b, id);
            assert_int_equal(1 + x->state, states[id]);
            if (x->state != RESERVATION_HELD) continue;
            u8 to = r[3] % 2 ? RESERVATION_USED : RESERVATION_RELEASED;
            reservation_end(&b, x, to);
            states[id] = 1 + to;
        }
        for (struct reservation *x; (x = reservation_due(&b, now));) {
            while (states[oldest] != 1 + RESERVATION_HELD) oldest++;
            assert_int_equal(x->id.bits[0], oldest);
            states[oldest] = 1 + RESERVATION_EXPIRED;
            reservation_end(&b, x, RESERVATION_EXPIRED);
        }
        u32 held = 0;
        for (u64 id = next > 80 ? next - 80 : 0; id < next; id++) held += states[id] == 1 + RESERVATION_HELD;
        if (next <= 80) assert_int_equal(b.held.n, held);
        assert_true(b.held.n >= held);
    }
    assert_int_equal(b.held.n + b.ended.n, next);
    reservation_book_release(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ways),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_model),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("route reservations", tests, NULL, NULL);
}
