/* The emulation of CUDA finds what it is for: kernels with one fault each, beside the same without. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../cudasim/cudasim.h"
#include "../cudasim/faults.h"

enum { N = FAULT_THREADS, ORDERS = 20 };
static float from[N], to[N];

static void fill(void)
{
    for (int i = 0; i < N; i++) from[i] = (float)(i % 7);
}

/* In how many orders of threads, the ascending one first, the result is not `want`. */
static int wrong_orders(enum fault_kernel which, float (*want)(int))
{
    int wrong = 0;
    fill();
    for (uint64_t seed = 0; seed < ORDERS; seed++) {
        cudasim_order(seed);
        assert_int_equal(fault_run(which, from, to), 0);
        int bad = 0;
        for (int i = 0; i < N; i++) bad |= !(to[i] == want(i));
        wrong += bad;
    }
    cudasim_order(0);
    return wrong;
}

static float next_one(int i)
{
    return from[(i + 1) % N];
}
static float three_rounds(int i)
{
    return 3 * from[(i + 1) % N] + 3;
}
static float one_more(int i)
{
    (void)i;
    return from[0] + 1;
}
static float sum_of_warp(int i)
{
    float sum = 0;
    for (int k = i / 32 * 32; k < i / 32 * 32 + 32; k++) sum += from[k] + (from[k] > 3);
    return sum;
}

static void test_right(void **state)
{
    (void)state;
    assert_int_equal(wrong_orders(FAULT_NONE_NEIGHBOUR, next_one), 0);
    assert_int_equal(wrong_orders(FAULT_NONE_ROUNDS, three_rounds), 0);
    assert_int_equal(wrong_orders(FAULT_NONE_WARP_SUM, sum_of_warp), 0);
}

static void test_missing_barrier(void **state)
{
    (void)state;
    assert_int_equal(wrong_orders(FAULT_NO_BARRIER, next_one), ORDERS);
    assert_true(wrong_orders(FAULT_NO_SECOND_BARRIER, three_rounds) > ORDERS / 2);
}

/* Right in ascending order, so that only other orders show it. */
static void test_race_by_order(void **state)
{
    (void)state;
    int wrong = wrong_orders(FAULT_LOST_UPDATE, one_more);
    assert_true(wrong > 0 && wrong < ORDERS);
}

/* How a child that runs the kernel ends, and what it says. */
static int child(enum fault_kernel which, char *said, size_t size)
{
    int fds[2], status;
    assert_int_equal(pipe(fds), 0);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(fds[1], 2);
        fault_run(which, from, to);
        _exit(0);
    }
    close(fds[1]);
    size_t n = 0;
    for (ssize_t got; n + 1 < size && (got = read(fds[0], said + n, size - 1 - n)) > 0;) n += (size_t)got;
    said[n] = 0;
    close(fds[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void test_hang(void **state)
{
    char said[4096];
    (void)state;
    assert_true(child(FAULT_HALF_BARRIER, said, sizeof said) != 0);
    assert_non_null(strstr(said, "of 128 threads 64 wait at a barrier"));
    assert_true(child(FAULT_HALF_WARP, said, sizeof said) != 0);
    assert_non_null(strstr(said, "64 for their warp"));
}

static void test_host_does_not_wait(void **state)
{
    float out = 0;
    (void)state;
    assert_int_equal(fault_host_race(&out), 0);
    assert_true(out == 2);
}

static void test_failure(void **state)
{
    (void)state;
    size_t before = cudasim_allocated();
    for (uint64_t n = 1; n <= 7; n++) {
        cudasim_fail(n, 2);
        assert_int_equal(fault_run(FAULT_NONE_NEIGHBOUR, from, to), 2);
        cudasim_fail(0, 0);
    }
    assert_int_equal(fault_run(FAULT_NONE_NEIGHBOUR, from, to), 0);
    assert_true(cudasim_allocated() == before);
}

#ifdef __SANITIZE_ADDRESS__
static void test_out_of_bounds(void **state)
{
    char said[65536];
    (void)state;
    assert_true(child(FAULT_BEYOND_SHARED, said, sizeof said) != 0);
    assert_non_null(strstr(said, "heap-buffer-overflow"));
    assert_true(child(FAULT_BEYOND_GLOBAL, said, sizeof said) != 0);
    assert_non_null(strstr(said, "heap-buffer-overflow"));
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_right),
        cmocka_unit_test(test_missing_barrier),
        cmocka_unit_test(test_race_by_order),
        cmocka_unit_test(test_hang),
        cmocka_unit_test(test_host_does_not_wait),
        cmocka_unit_test(test_failure),
#ifdef __SANITIZE_ADDRESS__
        cmocka_unit_test(test_out_of_bounds),
#endif
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("cudasim", tests, NULL, NULL);
}
