/* Starting mpirun: its arguments and environment for Open MPI 4 and 5, and the fork. What the user has set in the
 * environment wins over what is set here. */
#include "cli/up.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

struct variable {
    const char *name, *value;
};

static int set_all(const struct variable *list, size_t n, struct error *err)
{
    for (size_t i = 0; i < n; i++)
        if (setenv(list[i].name, list[i].value, 0) < 0)
            return error_errno(err, list[i].name, "cannot add to the environment");
    return 0;
}

/* Session files and shared memory of MPI go where they are found again if the job is killed. */
int launch_environment(const struct jobdir *d, struct error *err)
{
    static const struct variable for_root[] = {
        {"OMPI_ALLOW_RUN_AS_ROOT", "1"},
        {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
        {"PRTE_ALLOW_RUN_AS_ROOT", "1"},
        {"PRTE_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
    };
    /* A machine that is lost without a word is noticed in seconds, not in minutes. */
    static const struct variable keep_alive[] = {
        {"OMPI_MCA_oob_tcp_keepalive_time", "2"},   {"OMPI_MCA_oob_tcp_keepalive_intvl", "1"},
        {"OMPI_MCA_oob_tcp_keepalive_probes", "3"}, {"PRTE_MCA_oob_tcp_keepalive_time", "2"},
        {"PRTE_MCA_oob_tcp_keepalive_intvl", "1"},  {"PRTE_MCA_oob_tcp_keepalive_probes", "3"},
    };
    int rc = jobdir_session(d, err);
    if (rc == 0) rc = jobdir_export(d, err);
    if (rc == 0) jobdir_name_shm(d);
    if (rc == 0) rc = set_all(keep_alive, COUNT_OF(keep_alive), err);
    if (rc == 0 && geteuid() == 0) rc = set_all(for_root, COUNT_OF(for_root), err);
    return rc;
}

/* In the child: everything up to exec. The error goes through the pipe, which exec closes. */
static _Noreturn void become(const char **arguments, pid_t parent, int log, int report)
{
    sigset_t none;
    sigemptyset(&none);
    setpgid(0, 0); /* Ctrl-C is for `up`, which drains; the job must not see it */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    int null = open("/dev/null", O_RDONLY);
    if (null >= 0 && dup2(null, 0) >= 0 && dup2(log, 1) >= 0 && dup2(log, 2) >= 0) {
        sigprocmask(SIG_SETMASK, &none, NULL);
        execvp(arguments[0], (char **)arguments);
    }
    int why = errno;
    ssize_t n = write(report, &why, sizeof(why));
    _exit(n == sizeof(why) ? 127 : 126);
}

int launch_start(const char **arguments, int log, pid_t *pid, struct error *err)
{
    int report[2], why = 0;
    if (pipe2(report, O_CLOEXEC) < 0) return error_errno(err, "pipe", "cannot make one");
    pid_t parent = getpid();
    *pid = fork();
    if (*pid == 0) become(arguments, parent, log, report[1]);
    close(report[1]);
    ssize_t n = *pid < 0 ? 0 : read(report[0], &why, sizeof(why));
    close(report[0]);
    if (*pid < 0) return error_errno(err, arguments[0], "cannot start a process");
    if (n != sizeof(why)) return 0;
    if (why == ENOENT)
        return error_set(err, ERR_NOT_FOUND, arguments[0],
                         "no such program in PATH: install Open MPI (make deps), load its module, or name it "
                         "with --mpirun");
    errno = why;
    return error_errno(err, arguments[0], "cannot run it");
}

struct words {
    const char **list; /* ends with NULL */
    size_t n;
};

static void add_word(struct words *w, const char *word)
{
    w->list = mem_resize(w->list, (w->n + 2) * sizeof(*w->list));
    w->list[w->n++] = word;
    w->list[w->n] = NULL;
}

/* Options in the environment are for all ranks, and mpirun hands only its own variables to other machines. A key stays here,
 * where rank 0 is. names: the texts, to be freed after the words. */
static void add_variables(struct words *w, struct buf *names)
{
    static const char prefix[] = "MPISERVE_", key[] = "MPISERVE_API_KEY=";
    for (char **e = environ; *e; e++) {
        if (strncmp(*e, prefix, sizeof(prefix) - 1) != 0 || strncmp(*e, key, sizeof(key) - 1) == 0) continue;
        buf_add(names, *e, strcspn(*e, "="));
        buf_char(names, 0);
    }
    for (size_t at = 0; at < names->len; at += strlen(names->data + at) + 1) {
        add_word(w, "-x");
        add_word(w, names->data + at);
    }
}

int launch(const struct config *c, const struct jobdir *d, int log, const struct command_line *line,
           pid_t *pid, struct error *err)
{
    char program[PATH_LEN], count[24];
    ssize_t len = readlink("/proc/self/exe", program, sizeof(program) - 1);
    if (len < 0) return error_errno(err, "/proc/self/exe", "cannot find the program's own name");
    program[len] = 0;
    snprintf(count, sizeof(count), "%lld", (long long)c->ranks);
    /* Engines bind themselves. mpirun counts cores where threads of a core would do, so it is always told that ranks may share
     * them; it treats a machine as crowded only when it is. */
    const char *const fixed[] = {c->mpirun, "-np", count, "--bind-to", "none", "--oversubscribe"};
    const char **passed = mem_zero((size_t)line->argc + 1, sizeof(*passed));
    struct words w = {0};
    struct buf names = {0};
    int rc = launch_environment(d, err);
    for (size_t i = 0; i < COUNT_OF(fixed); i++) add_word(&w, fixed[i]);
    if (c->hostfile[0]) {
        add_word(&w, "--hostfile");
        add_word(&w, c->hostfile);
    }
    add_variables(&w, &names);
    for (int i = 0; i < line->n_mpirun; i++) add_word(&w, line->mpirun[i]);
    add_word(&w, program);
    int n = config_passed(line->argc, line->argv, line->first, passed, line->argc);
    for (int i = 0; i < n; i++) add_word(&w, passed[i]);
    if (rc == 0) rc = launch_start(w.list, log, pid, err);
    buf_release(&names);
    free(passed);
    free(w.list);
    return rc;
}
