/* mpiserve sweep, and how `up` runs it on the other nodes of a Slurm job: Slurm kills whatever is left of a step, tidiers too. */
#include "cli/up.h"
#include "mpiserve/cli.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { JOB_MS = 5000, NODES_MS = 10000, LOOK_MS = 10 };

int cli_sweep(int argc, char **argv)
{
    log_setup(LOG_INFO, "");
    if (argc == 2) {
        printf("%d folders of dead jobs removed\n", jobdir_sweep());
        return 0;
    }
    if (argc == 4 && strcmp(argv[2], "--job") == 0 && argv[3][0])
        return jobdir_sweep_job(argv[3], JOB_MS) > 0;
    log_error("%s: is no option of sweep; it has --job JOB", argv[2]);
    return 2;
}

static int wait_or_kill(pid_t pid)
{
    int status;
    for (int ms = 0; ms < NODES_MS; ms += LOOK_MS) {
        if (waitpid(pid, &status, WNOHANG) == pid) return status;
        nanosleep(&(struct timespec){.tv_nsec = LOOK_MS * NS_PER_MS}, NULL);
    }
    kill(-pid, SIGKILL);
    waitpid(pid, &status, 0);
    return status;
}

void sweep_nodes(const char *job)
{
    const char *nodes = getenv("SLURM_JOB_NUM_NODES");
    int others = nodes ? atoi(nodes) - 1 : 0;
    char program[PATH_LEN], n[16];
    ssize_t len = readlink("/proc/self/exe", program, sizeof(program) - 1);
    if (others < 1 || len < 0) return;
    program[len] = 0;
    snprintf(n, sizeof(n), "%d", others);
    /* The first node is this one. --overlap and --mem=0: it takes nothing that a step which still ends may hold. */
    const char *arguments[] = {
        "srun",      "--relative=1", "-N",         n,       "-n",    n,       "--ntasks-per-node=1",
        "--overlap", "--mem=0",      "--mpi=none", program, "sweep", "--job", job,
        NULL};
    struct error err;
    char text[1100];
    pid_t pid;
    int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
    int rc = launch_start(arguments, nowhere, &pid, &err);
    if (nowhere >= 0) close(nowhere);
    if (rc < 0) {
        log_warning("nodes not looked at for files left there: %s", error_text(&err, text, sizeof(text)));
        return;
    }
    int status = wait_or_kill(pid);
    if (status != 0)
        log_warning("some node of the job may still have files of it in /dev/shm or the temporary folder; "
                    "the next job there "
                    "removes them, or `mpiserve sweep`");
}
