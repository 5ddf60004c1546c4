/* MPI as a job would find it: mpirun, then two ranks of this program under it. */
#include "cli/doctor.h"
#include "cli/up.h"
#include "mpiserve/json.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LIMIT_S = 20, OUTPUT_MAX = 1 << 20 };

/* Runs mpirun with these arguments, at most LIMIT_S; its output goes to out. Its exit status, or an error. */
static int run_mpirun(const char **arguments, const char *log, struct buf *out, struct error *err)
{
    const struct timespec pause = {.tv_nsec = 5 * NS_PER_MS};
    u64 end = clock_ns() + LIMIT_S * NS_PER_S;
    int status = 0, fd = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    pid_t pid;
    if (fd < 0) return error_errno(err, log, "cannot make the file");
    int rc = launch_start(arguments, fd, &pid, err);
    close(fd);
    if (rc < 0) return rc;
    bool killed = false;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (clock_ns() > end && !killed) killed = kill(-pid, SIGKILL) == 0;
        nanosleep(&pause, NULL);
    }
    rc = file_read(log, OUTPUT_MAX, out, err);
    if (killed) return error_set(err, ERR_PEER, arguments[0], "did not end within %d s", LIMIT_S);
    return rc < 0 ? rc : WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

/* The first line that says something: MPI puts its messages between lines of dashes. */
static void first_words(const struct buf *out, struct finding *f)
{
    const char *p = out->len ? out->data : "";
    while (*p == '-' || *p == '\n' || *p == ' ') p++;
    if (!*p) p = "it prints nothing";
    finding_say(f, "%.*s", (int)MIN_OF(strcspn(p, "\n"), 200ul), p);
}

static bool look_at_mpirun(struct report *r, const char *mpirun, const struct jobdir *d)
{
    struct finding *f = finding_add(r, "mpirun");
    const char *arguments[] = {mpirun, "--version", NULL};
    struct buf out = {0};
    struct error err;
    char log[PATH_LEN + 16];
    int rc = run_mpirun(arguments, jobdir_file(d, "doctor.log", log, sizeof(log)), &out, &err);
    if (rc == 0)
        first_words(&out, f);
    else if (rc < 0)
        finding_say(f, "%.60s: %.170s", err.where, err.message);
    else
        first_words(&out, f);
    if (rc)
        finding_judge(f, PROBLEM,
                      "install Open MPI (make deps), load its module, or name its mpirun in MPISERVE_MPIRUN");
    if (rc == 0 && geteuid() == 0)
        finding_say(
            f, "; as root `mpiserve up` allows it, mpirun alone needs OMPI_ALLOW_RUN_AS_ROOT(_CONFIRM)=1");
    buf_release(&out);
    return rc == 0;
}

static void say_latency(struct report *r, const char *name, const char *what, double us)
{
    struct finding *f = finding_add(r, name);
    finding_say(f, "%.2f us %s (median)", us, what);
    finding_number(f, "microseconds", us);
}

static void look_at_ranks(struct report *r, const char *mpirun, const struct jobdir *d)
{
    struct finding *f = finding_add(r, "two ranks");
    char program[PATH_LEN], log[PATH_LEN + 16];
    struct buf out = {0};
    struct error err = {0};
    ssize_t len = readlink("/proc/self/exe", program, sizeof(program) - 1);
    program[MAX_OF(len, (ssize_t)0)] = 0;
    const char *arguments[] = {mpirun,  "-np",          "2", "--bind-to", "none", "--oversubscribe",
                               program, "doctor-probe", NULL};
    int rc = run_mpirun(arguments, jobdir_file(d, "doctor.log", log, sizeof(log)), &out, &err);
    const char *mark = rc == 0 && out.data ? strstr(out.data, PROBE_MARK) : NULL;
    const char *text = mark ? mark + strlen(PROBE_MARK) : "";
    struct json *root = mark ? json_read(text, strcspn(text, "\n"), &err) : NULL;
    if (root) {
        const char *osc = json_text(json_get(root, "osc"));
        finding_say(f, "%s, one-sided component %s", json_text(json_get(root, "library")),
                    osc && *osc ? osc : "of MPI's choice");
        say_latency(r, "message latency", "there and back between two ranks",
                    json_real(json_get(root, "message_us"), 0));
        say_latency(r, "slot latency", "to reserve and release a slot of another rank",
                    json_real(json_get(root, "slot_us"), 0));
    } else {
        if (rc < 0)
            finding_say(f, "%.60s: %.170s", err.where, err.message);
        else
            first_words(&out, f);
        finding_judge(f, PROBLEM, "a job of two ranks does not run; by hand: %s -np 2 %.150s doctor-probe",
                      mpirun, program);
    }
    json_drop(root);
    buf_release(&out);
}

static void skip(struct report *r, const char *name, const char *why)
{
    struct finding *f = finding_add(r, name);
    finding_say(f, "not tried: %.200s", why);
    finding_judge(f, SKIPPED, "%s", "");
}

void doctor_mpi(struct report *r)
{
    const char *mpirun = getenv("MPISERVE_MPIRUN");
    struct jobdir d;
    struct error err;
    if (!mpirun || !*mpirun) mpirun = "mpirun";
    jobdir_sweep();
    int rc = jobdir_check_room(JOBDIR_ROOM, &err);
    if (rc == 0) rc = jobdir_make(&d, "", &err);
    if (rc == 0 && (rc = launch_environment(&d, &err)) < 0) jobdir_remove(&d);
    if (rc < 0) {
        skip(r, "mpirun", err.message);
        skip(r, "two ranks", err.message);
        return;
    }
    if (!look_at_mpirun(r, mpirun, &d))
        skip(r, "two ranks", "there is no mpirun");
    else if (getenv("OMPI_COMM_WORLD_RANK"))
        skip(r, "two ranks", "this is a rank of a job itself");
    else
        look_at_ranks(r, mpirun, &d);
    jobdir_remove(&d);
}
