/* coll: members that do not come, die or call something else are named, by every thread of a team; who stood still itself is patient. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "coll/coll_inner.h"
#include "crew.h"

enum { WORDS = sizeof(((struct error *)0)->message) };
struct absence {
    u32 who;
    enum { SKIPS, LEAVES, OTHER_CALL, OTHER_LENGTH } what;
    char said[COLL_MAX][WORDS];
    int codes[COLL_MAX];
};

static int one_sum(struct coll *c, size_t n, struct error *err)
{
    float *v = calloc(n, sizeof *v);
    const struct coll_reduce r = {v, v, n, COLL_F32, false};
    int rc = coll_all_reduce(c, &r, NULL, err);
    free(v);
    return rc;
}

static void absent(struct coll_world *w, u32 me, void *arg)
{
    struct absence *a = arg;
    struct error err = {0};
    u8 byte = 0;
    for (u32 i = 0; i < 5; i++) crew_need(one_sum(coll_all(w), 100, &err) == 0, &err);
    if (me == a->who && a->what == LEAVES) return;
    int rc = 0;
    if (me == a->who && a->what == OTHER_CALL)
        rc = coll_broadcast(coll_all(w), me, &byte, 1, NULL, &err);
    else if (me != a->who || a->what == OTHER_LENGTH)
        rc = one_sum(coll_all(w), me == a->who ? 90 : 100, &err);
    if (!rc) rc = one_sum(coll_all(w), 64, &err);
    a->codes[me] = rc;
    snprintf(a->said[me], WORDS, "%s", err.message);
    if (!rc) return;
    struct error again = {0}; /* and so it stays */
    crew_need(one_sum(coll_all(w), 100, &again) == rc && !strcmp(again.message, err.message), &again);
    crew_need(coll_broadcast(coll_all(w), 0, &byte, 1, NULL, &again) == rc, &again);
    crew_need(coll_slot(coll_all(w), 100) == NULL, NULL);
}

static void check_absence(u32 n, const char *nodes, u32 who, int what, const char *words)
{
    struct absence a = {.who = who, .what = what};
    struct crew c = {.shape = crew_shape(n, 1, nodes), .fn = absent, .arg = &a, .wait_ns = 300 * NS_PER_MS};
    u32 named = 0;
    crew_run(&c);
    for (u32 i = 0; i < n; i++) {
        if (i == who) continue;
        assert_int_equal(a.codes[i], ERR_PEER);
        named += strstr(a.said[i], words) != NULL;
    }
    if (named == 0) fail_msg("\"%s\" is not \"%s\"", a.said[who ? 0 : 1], words);
}

static void test_absent(void **state)
{
    (void)state;
    check_absence(2, NULL, 1, LEAVES,
                  "all_reduce 6 of 400 bytes: engine 1 (rank 101) has not come within 0.3 s");
    check_absence(4, NULL, 2, LEAVES, "engine 2 (rank 102) has not come");
    check_absence(3, NULL, 0, LEAVES, "engine 0 (rank 100) has not come");
    check_absence(3, NULL, 1, SKIPS, "engine 1 (rank 101) is in all_reduce of 256 bytes");
    check_absence(3, NULL, 2, OTHER_CALL, "engine 2 (rank 102) is in broadcast of 1 bytes");
    check_absence(2, NULL, 1, OTHER_LENGTH, "engine 1 (rank 101) is in all_reduce of 360 bytes");
    check_absence(2, "01", 1, LEAVES,
                  "all_reduce 6 of 400 bytes: engine 1 (rank 101) has not come within 0.3 s");
    check_absence(3, "001", 2, OTHER_LENGTH, "has sent 360 bytes where 400 belong");
}

static void test_silent_agent(void **state)
{
    (void)state;
    struct crew c = {.shape = crew_shape(2, 1, "01"), .wait_ns = 50 * NS_PER_MS};
    struct error err = {0};
    u8 data[20 << 10] = {0};
    crew_map(&c);
    struct coll_world *w = crew_world(&c, 0, &err);
    int rc = 0;
    for (u32 i = 0; i < 2 * LINK_SLOTS && !rc; i++)
        rc = coll_send(coll_all(w), 1, data, sizeof data, NULL, &err);
    assert_int_equal(rc, ERR_PEER); /* as many as may be under way, then the other one's word is waited for */
    assert_non_null(strstr(err.message, "send 33 of 20480 bytes: engine 1 (rank 101) has not come"));
    coll_close(w);
    crew_unmap(&c);
}

/* A team whose second thread is late: it comes into the call when the first one has found that engine 1 is missing. */
struct late_team {
    struct coll *c;
    pthread_barrier_t both;
    _Atomic bool failed; /* thread 0 is behind what it does alone */
    int rc[2];
    struct error err[2];
};

static void late_barrier(void *arg)
{
    struct late_team *t = arg;
    t->failed = true;
    pthread_barrier_wait(&t->both);
}

static void late_gather(struct late_team *t, u32 thread)
{
    u8 byte = 0;
    const struct coll_gather g = {.in = &byte, .rows = 1, .bytes = 1, .ld_in = 1};
    const struct coll_how how = {.thread = thread, .threads = 2, .barrier = late_barrier, .arg = t};
    t->rc[thread] = coll_gather(t->c, 1, &g, &how, &t->err[thread]);
}

static void *late_thread(void *arg)
{
    struct late_team *t = arg;
    while (!t->failed) usleep(1000);
    late_gather(t, 1);
    return NULL;
}

static void test_late_thread(void **state)
{
    (void)state;
    struct crew c = {.shape = crew_shape(2, 1, NULL), .wait_ns = 20 * NS_PER_MS};
    struct late_team t = {0};
    struct error err = {0};
    u8 byte = 0;
    pthread_t second;
    crew_map(&c);
    struct coll_world *w = crew_world(&c, 0, &err);
    t.c = coll_all(w);
    for (u32 i = 0; i < 2; i++) /* nobody reads them: the third one finds no room */
        assert_int_equal(coll_gather(t.c, 1,
                                     &(struct coll_gather){.in = &byte, .rows = 1, .bytes = 1, .ld_in = 1},
                                     NULL, &err),
                         0);
    pthread_barrier_init(&t.both, NULL, 2);
    alarm(60); /* where the two do not meet, none comes back */
    assert_int_equal(pthread_create(&second, NULL, late_thread, &t), 0);
    late_gather(&t, 0);
    pthread_join(second, NULL);
    alarm(0);
    for (u32 i = 0; i < 2; i++) {
        assert_int_equal(t.rc[i], ERR_PEER);
        assert_non_null(strstr(t.err[i].message, "engine 1 (rank 101) has not come"));
    }
    pthread_barrier_destroy(&t.both);
    coll_close(w);
    crew_unmap(&c);
}

/* Engines that are processes; one is killed in the middle of a long run of sums. */
static void test_killed(void **state)
{
    (void)state;
    struct crew c = {.shape = crew_shape(3, 1, NULL), .wait_ns = NS_PER_S};
    int pipes[2];
    pid_t pids[3];
    crew_map(&c);
    assert_int_equal(pipe(pipes), 0);
    for (u32 i = 0; i < 3; i++) {
        pids[i] = fork();
        assert_true(pids[i] >= 0);
        if (pids[i]) continue;
        struct error err = {0};
        struct coll_world *w = crew_world(&c, i, &err);
        for (u32 k = 0; one_sum(coll_all(w), 1000 + k % 7 * 10000, &err) == 0; k++)
            if (k == 20 && i == 1 && write(pipes[1], "x", 1) != 1) _exit(9);
        _exit(strstr(err.message, "engine 1 (rank 101) has not come within 1.0 s") ? 0 : 1);
    }
    char byte;
    assert_int_equal(read(pipes[0], &byte, 1), 1);
    kill(pids[1], SIGKILL);
    for (u32 i = 0; i < 3; i++) {
        int status;
        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        if (i != 1) assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    close(pipes[0]);
    close(pipes[1]);
    crew_unmap(&c);
}

/* A job that is paused (SIGSTOP, a frozen cgroup) is not late: an engine that stood still itself waits for the others as long as before. */
static void test_paused(void **state)
{
    (void)state;
    struct crew c = {.shape = crew_shape(2, 1, NULL), .wait_ns = 2 * NS_PER_S};
    struct error err = {0};
    int pipes[2], status;
    u32 word = 7;
    char byte;
    crew_map(&c);
    assert_int_equal(pipe(pipes), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct coll_world *w = crew_world(&c, 1, &err);
        if (write(pipes[1], "x", 1) != 1) _exit(9);
        _exit(coll_broadcast(coll_all(w), 0, &word, sizeof word, NULL, &err) ? 1 : 0);
    }
    struct coll_world *w = crew_world(&c, 0, &err);
    assert_int_equal(read(pipes[0], &byte, 1), 1);
    usleep(100000); /* it waits */
    kill(pid, SIGSTOP);
    usleep(3500000);
    kill(pid, SIGCONT);
    usleep(300000); /* this one is as slow to come back */
    assert_int_equal(coll_broadcast(coll_all(w), 0, &word, sizeof word, NULL, &err), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    close(pipes[0]);
    close(pipes[1]);
    coll_close(w);
    crew_unmap(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_absent),      cmocka_unit_test(test_silent_agent),
        cmocka_unit_test(test_late_thread), cmocka_unit_test(test_killed),
        cmocka_unit_test(test_paused),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("coll_lost", tests, NULL, NULL);
}
