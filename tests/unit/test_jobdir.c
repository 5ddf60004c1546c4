/* jobdir/: folders and their owners, the endpoint file, pids, keys, and what a sweep removes. */
#include "jobdir/owner.h"
#include "mpiserve/jobdir.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static char place[64]; /* TMPDIR of these tests */

static int set_up(void **state)
{
    (void)state;
    snprintf(place, sizeof(place), "/tmp/test_jobdir-%d", getpid());
    setenv("TMPDIR", place, 1);
    return mkdir(place, 0700);
}

static int tear_down(void **state)
{
    (void)state;
    return rmdir(place); /* every test removes what it made */
}

static void write_text(const char *folder, const char *name, const char *text)
{
    char path[PATH_LEN + 32];
    struct error err;
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    assert_int_equal(file_write_whole(path, text, strlen(text), 0600, &err), 0);
}

static bool exists(const char *folder, const char *name)
{
    char path[PATH_LEN + 32];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return file_exists(path);
}

static void a_new_folder_is_private_and_goes_away(void **state)
{
    (void)state;
    struct jobdir d;
    struct error err;
    struct stat st;
    assert_int_equal(jobdir_make(&d, "", &err), 0);
    assert_int_equal(stat(d.path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_true(exists(d.path, "owner") && (!d.shm[0] || exists(d.shm, "owner")));
    jobdir_sweep(); /* others may have left something; we live */
    assert_true(exists(d.path, "owner"));
    jobdir_remove(&d);
    assert_false(file_exists(d.path) || (d.shm[0] && file_exists(d.shm)));
}

static void attaching(void **state)
{
    (void)state;
    struct jobdir d, other;
    struct error err;
    assert_int_equal(jobdir_attach(&other, &err), 0);
    assert_int_equal(jobdir_make(&d, "", &err), 0);
    assert_int_equal(jobdir_export(&d, &err), 0);
    assert_int_equal(jobdir_attach(&other, &err), 1);
    assert_string_equal(other.path, d.path);
    assert_string_equal(other.job, d.job);
    unsetenv("MPISERVE_JOB");
    unsetenv("MPISERVE_RUN_DIR");
    jobdir_remove(&d);
}

/* An owner file as another machine would have written it. */
static void owner_elsewhere(const char *folder)
{
    struct owner o;
    char line[600];
    assert_true(owner_read(folder, &o));
    snprintf(line, sizeof(line), "%d %llu %s %llu elsewhere %s\n", o.pid, (unsigned long long)o.start, o.boot,
             (unsigned long long)o.pid_ns, o.job);
    write_text(folder, "owner", line);
}

static void another_machine_of_the_job(void **state)
{
    (void)state;
    struct jobdir d, here;
    struct error err;
    assert_int_equal(jobdir_make(&d, "", &err), 0);
    assert_int_equal(jobdir_export(&d, &err), 0);
    owner_elsewhere(d.path);
    assert_int_equal(jobdir_attach(&here, &err), 0);
    assert_string_equal(here.job, d.job);
    assert_string_equal(here.path, "");
    assert_int_equal(jobdir_make_node(&here, here.job, 3, &err), 0);
    assert_non_null(strstr(here.path, "-node3"));
    assert_true(exists(here.path, "owner"));
    unsetenv("MPISERVE_JOB");
    unsetenv("MPISERVE_RUN_DIR");
    jobdir_remove(&here);
    jobdir_remove(&d);
}

/* A rank that dies without a word: its folder and its launcher's go, once both are dead. */
static void the_tidier_removes_what_the_dead_leave(void **state)
{
    (void)state;
    char session[128], top[100];
    int told[2];
    struct jobdir d;
    struct error err;
    snprintf(top, sizeof(top), "%s/ompi.here.0", place);
    snprintf(session, sizeof(session), "%s/jf.1", top);
    assert_true(mkdir(top, 0700) == 0 && mkdir(session, 0700) == 0);
    write_text(session, "contact.txt", "x");
    setenv("PMIX_SERVER_TMPDIR", session, 1);
    assert_int_equal(pipe(told), 0);
    pid_t launcher = fork();
    if (launcher == 0) {
        if (fork() == 0) {
            memset(&d, 0, sizeof(d));
            int tidier = jobdir_tidier_start(&d, &err), rank = 0, pid = getpid();
            bool ok = tidier >= 0 && jobdir_make(&d, "", &err) == 0 &&
                      jobdir_write_pids(&d, &rank, &pid, 1, &err) == 0;
            jobdir_tidier_tell(tidier, &d);
            _exit(!ok || write(told[1], &d, sizeof(d)) < 0);
        }
        pause();
    }
    assert_int_equal(read(told[0], &d, sizeof(d)), sizeof(d));
    usleep(200000);
    assert_true(file_exists(d.path) && file_exists(session)); /* the launcher lives */
    assert_true(d.shm[0] && !file_exists(d.shm));             /* the ranks do not */
    kill(launcher, SIGKILL);
    waitpid(launcher, NULL, 0);
    for (int ms = 0; ms < 5000 && (file_exists(top) || file_exists(d.path)); ms += 10) usleep(10000);
    assert_false(file_exists(top) || file_exists(d.path) || file_exists(d.shm));
    unsetenv("PMIX_SERVER_TMPDIR");
    close(told[0]);
    close(told[1]);
}

static void endpoint_there_and_back(void **state)
{
    (void)state;
    struct jobdir d;
    struct error err;
    struct endpoint e = {.state = ENDPOINT_DRAINING,
                         .url = "http://[::1]:0",
                         .host = "::1",
                         .port = 0,
                         .key_file = "/a \"b\"/key",
                         .model = "m\n",
                         .does = "rerank",
                         .job = "x",
                         .pid = 1,
                         .ranks = 8},
                    back;
    assert_int_equal(jobdir_make(&d, "", &err), 0);
    assert_int_equal(endpoint_read(&d, &back, &err), ERR_NOT_FOUND);
    assert_int_equal(endpoint_write(&d, &e, &err), 0);
    assert_int_equal(endpoint_read(&d, &back, &err), 0);
    assert_memory_equal(&e, &back, sizeof(e));
    static const char *const broken[] = {"", "{", "[]", "{\"state\":1}", "{\"state\":\"HAPPY\"}"};
    for (size_t i = 0; i < COUNT_OF(broken); i++) {
        write_text(d.path, "endpoint.json", broken[i]);
        assert_int_equal(endpoint_read(&d, &back, &err), ERR_PEER);
    }
    jobdir_remove(&d);
}

/* The end of another job removes the folder of all jobs whenever it is empty. */
static void a_start_while_others_end(void **state)
{
    (void)state;
    struct jobdir d;
    struct error err;
    char parent[PATH_LEN];
    snprintf(parent, sizeof(parent), "%s/mpiserve-%u", place, geteuid());
    pid_t child = fork();
    if (child == 0)
        for (;; usleep(100)) rmdir(parent);
    int rc = 0;
    for (int i = 0; i < 3000 && rc == 0; i++) {
        rc = jobdir_make(&d, "", &err);
        if (rc == 0) jobdir_remove(&d);
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    if (rc) print_message("# %s: %s\n", err.where, err.message);
    assert_int_equal(rc, 0);
}

static void pids_there_and_back(void **state)
{
    (void)state;
    struct jobdir d;
    struct error err;
    const int ranks[] = {0, 3, 7}, pids[] = {100, 200, 300};
    int r[4], p[4];
    assert_int_equal(jobdir_make(&d, "", &err), 0);
    assert_int_equal(jobdir_read_pids(&d, r, p, 4, &err), ERR_NOT_FOUND);
    assert_int_equal(jobdir_write_pids(&d, ranks, pids, 3, &err), 0);
    assert_int_equal(jobdir_read_pids(&d, r, p, 4, &err), 3);
    assert_memory_equal(r, ranks, sizeof(ranks));
    assert_memory_equal(p, pids, sizeof(pids));
    assert_int_equal(jobdir_read_pids(&d, r, p, 2, &err), 2);
    jobdir_remove(&d);
}

static void keys(void **state)
{
    (void)state;
    struct jobdir d;
    struct error err;
    char a[64], b[64], path[PATH_LEN + 32];
    struct stat st;
    struct buf text = {0};
    assert_int_equal(jobdir_new_key(a, sizeof(a), &err), 0);
    assert_int_equal(jobdir_new_key(b, sizeof(b), &err), 0);
    assert_int_equal(strlen(a), 40);
    assert_string_not_equal(a, b);
    assert_int_equal(jobdir_make(&d, "", &err), 0);
    assert_int_equal(jobdir_write_key(&d, a, &err), 0);
    assert_int_equal(stat(jobdir_file(&d, "key", path, sizeof(path)), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(file_read(path, 1000, &text, &err), 0);
    assert_memory_equal(text.data, "Authorization: Bearer ", 22);
    assert_memory_equal(text.data + 22, a, 40);
    buf_release(&text);
    jobdir_remove(&d);
}

/* A child makes folders and dies, after ms, without removing them. */
static pid_t job_that_dies(struct jobdir *d, int ms)
{
    int pipe_fd[2];
    assert_int_equal(pipe(pipe_fd), 0);
    pid_t child = fork();
    if (child == 0) {
        struct error err;
        int rc = jobdir_make(d, "", &err);
        write_text(d->path, "run.log", "x");
        bool ok = rc == 0 && write(pipe_fd[1], d, sizeof(*d)) == (ssize_t)sizeof(*d);
        usleep((useconds_t)ms * 1000);
        _exit(!ok);
    }
    assert_int_equal(read(pipe_fd[0], d, sizeof(*d)), sizeof(*d));
    close(pipe_fd[0]);
    close(pipe_fd[1]);
    return child;
}

static void wait_for_status(pid_t child, int wanted)
{
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, wanted);
}

static void what_a_dead_owner_leaves_is_swept(void **state)
{
    (void)state;
    struct jobdir d;
    wait_for_status(job_that_dies(&d, 0), 0);
    assert_true(exists(d.path, "run.log"));
    assert_true(jobdir_sweep() >= 1);
    assert_false(file_exists(d.path) || (d.shm[0] && file_exists(d.shm)));
    char parent[PATH_LEN];
    snprintf(parent, sizeof(parent), "%s", d.path);
    *strrchr(parent, '/') = 0;
    assert_int_equal(rmdir(parent), 0);
}

/* Made by somebody who died before the name of its owner was in it; or by somebody who is about to write that. */
static void a_folder_without_owner_is_swept_when_it_is_old(void **state)
{
    (void)state;
    char old[PATH_LEN], young[PATH_LEN];
    const struct timespec long_ago[2] = {{.tv_sec = time(NULL) - 3600}, {.tv_sec = time(NULL) - 3600}};
    snprintf(old, sizeof(old), "/dev/shm/mpiserve-%u-0ld%d", geteuid(), getpid());
    snprintf(young, sizeof(young), "/dev/shm/mpiserve-%u-y0ung%d", geteuid(), getpid());
    assert_int_equal(mkdir(old, 0700) | mkdir(young, 0700), 0);
    assert_int_equal(utimensat(AT_FDCWD, old, long_ago, 0), 0);
    jobdir_sweep();
    assert_false(file_exists(old));
    assert_true(file_exists(young));
    assert_int_equal(rmdir(young), 0);
}

/* A job that is just ending is waited for; one that lives is left alone, as are others. */
static void one_job_is_swept(void **state)
{
    (void)state;
    struct jobdir d, other;
    struct error err;
    assert_int_equal(jobdir_make(&other, "", &err), 0);
    job_that_dies(&d, 200);
    assert_true(jobdir_sweep_job(d.job, 20) > 0);
    assert_true(file_exists(d.path));
    signal(SIGCHLD, SIG_IGN); /* no zombie */
    assert_int_equal(jobdir_sweep_job(d.job, 5000), 0);
    signal(SIGCHLD, SIG_DFL);
    assert_false(file_exists(d.path) || (d.shm[0] && file_exists(d.shm)));
    assert_true(file_exists(other.path));
    jobdir_remove(&other);
}

static void who_counts_as_dead(void **state)
{
    (void)state;
    struct jobdir d;
    struct error err;
    struct owner o, other;
    assert_int_equal(jobdir_make(&d, "", &err), 0);
    assert_true(owner_read(d.path, &o));
    assert_int_equal(o.pid, getpid());
    assert_string_equal(o.job, d.job);
    assert_false(owner_gone(&o));
    other = o;
    other.start++; /* the pid was given away again */
    assert_true(owner_gone(&other));
    other = o;
    other.pid = 1 << 30;
    assert_true(owner_gone(&other));
    other.pid_ns++; /* in another container: unknown */
    assert_false(owner_gone(&other));
    other.boot[0] ^= 1; /* before the machine was started again */
    assert_true(owner_gone(&other));
    other.host[0] ^= 1; /* on another machine: unknown */
    assert_false(owner_gone(&other));
    write_text(d.path, "owner", "12 nonsense");
    assert_false(owner_read(d.path, &o));
    jobdir_remove(&d);
}

static void a_given_folder(void **state)
{
    (void)state;
    static const char *const of_a_job[] = {"endpoint.json", "key", "pids", "bell.3", "owner"};
    struct jobdir d, second;
    struct error err;
    char given[128];
    snprintf(given, sizeof(given), "%s/given", place);
    assert_int_equal(jobdir_make(&d, given, &err), 0);
    assert_int_equal(jobdir_make(&second, given, &err), ERR_STATE); /* its owner lives */
    for (size_t i = 0; i + 1 < COUNT_OF(of_a_job); i++) write_text(given, of_a_job[i], "x");
    write_text(given, "mine", "x");
    write_text(given, "run.log", "x");
    jobdir_remove(&d);
    for (size_t i = 0; i < COUNT_OF(of_a_job); i++) assert_false(exists(given, of_a_job[i]));
    assert_true(exists(given, "mine") && exists(given, "run.log"));
    char file[160];
    snprintf(file, sizeof(file), "%s/mine", given);
    unlink(file);
    snprintf(file, sizeof(file), "%s/run.log", given);
    unlink(file);
    assert_int_equal(rmdir(given), 0);
}

static void places_that_cannot_be_used(void **state)
{
    (void)state;
    struct jobdir d;
    struct error err;
    char path[128];
    snprintf(path, sizeof(path), "%s/file", place);
    write_text(place, "file", "x");
    assert_int_equal(jobdir_make(&d, path, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "not a folder"));
    unlink(path);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(chmod(path, 0777), 0);
    assert_int_equal(jobdir_make(&d, path, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "other users"));
    rmdir(path);
    char deep[JOBDIR_PATH_MAX + 128];
    snprintf(deep, sizeof(deep), "%s/%0*d", place, JOBDIR_PATH_MAX, 0);
    assert_int_equal(jobdir_make(&d, deep, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "too long"));
    rmdir(deep);
}

static void processes(void **state)
{
    (void)state;
    int parent = -1;
    assert_true(process_start(getpid(), &parent) > 0);
    assert_int_equal(parent, getppid());
    assert_int_equal(process_start(1 << 30, NULL), 0);
    pid_t child = fork();
    if (child == 0) _exit(0);
    siginfo_t info;
    assert_int_equal(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT), 0);
    assert_int_equal(process_start(child, NULL), 0); /* dead, and not waited for yet */
    waitpid(child, NULL, 0);
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_new_folder_is_private_and_goes_away),
        cmocka_unit_test(attaching),
        cmocka_unit_test(another_machine_of_the_job),
        cmocka_unit_test(the_tidier_removes_what_the_dead_leave),
        cmocka_unit_test(endpoint_there_and_back),
        cmocka_unit_test(a_start_while_others_end),
        cmocka_unit_test(pids_there_and_back),
        cmocka_unit_test(keys),
        cmocka_unit_test(what_a_dead_owner_leaves_is_swept),
        cmocka_unit_test(a_folder_without_owner_is_swept_when_it_is_old),
        cmocka_unit_test(one_job_is_swept),
        cmocka_unit_test(who_counts_as_dead),
        cmocka_unit_test(a_given_folder),
        cmocka_unit_test(places_that_cannot_be_used),
        cmocka_unit_test(processes),
    };
    return cmocka_run_group_tests_name("jobdir", tests, set_up, tear_down);
}
