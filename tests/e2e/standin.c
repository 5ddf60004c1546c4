/* A stand-in for the real program, to test `mpiserve up` alone: ranks that keep the contract of the job folder (endpoint
 * file, pids, SIGUSR1), each with a child in the role of its engine, and fail in the way that STANDIN says:
 *   abort     rank 0 says why and aborts before the job is ready
 *   exit      rank 0 says why and exits before MPI starts
 *   linger    rank 0 says why before the job is ready; rank 1 exits, and the others take seconds to
 *   silent    every rank exits with 3 without a word
 *   crash     rank 1 dies of SIGSEGV 100 ms after the job is ready
 *   slow      the job is never ready
 *   loading   two engines say how far they are with their weights, half a second before the job is ready
 *   deaf      SIGUSR1 is not obeyed */
#include "mpiserve/cli.h"
#include "mpiserve/config.h"
#include "mpiserve/jobdir.h"

#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

static const char *mode(void)
{
    const char *m = getenv("STANDIN");
    return m ? m : "";
}

static bool is_mode(const char *name)
{
    return strcmp(mode(), name) == 0;
}

static void tie_to_parent(int signal_on_death)
{
    int parent = getppid();
    prctl(PR_SET_PDEATHSIG, signal_on_death);
    if (getppid() != parent) _exit(1);
}

static void start_engine(void)
{
    int parent = getpid();
    if (fork() != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NAME, "mpiserve-eng");
    if (getppid() != parent) _exit(1);
    for (;;) pause();
}

static void write_state(const struct jobdir *d, const struct config *c, enum endpoint_state state, int ranks)
{
    struct endpoint e = {.state = state, .port = c->port, .pid = getpid(), .ranks = ranks};
    struct error err;
    snprintf(e.url, sizeof(e.url), "http://%s:%lld", c->host, (long long)c->port);
    snprintf(e.host, sizeof(e.host), "%s", c->host);
    snprintf(e.model, sizeof(e.model), "%s", c->served_model_name[0]);
    snprintf(e.job, sizeof(e.job), "%s", d->job);
    const char *slurm = getenv("SLURM_JOB_ID");
    snprintf(e.slurm_job, sizeof(e.slurm_job), "%s", slurm ? slurm : "");
    jobdir_file(d, "key", e.key_file, sizeof(e.key_file));
    if (endpoint_write(d, &e, &err) < 0) log_error("%s: %s", err.where, err.message);
}

static void write_files(const struct jobdir *d, const struct config *c, int rank, int ranks)
{
    int mine[2] = {rank, getpid()}, all[2 * 64], numbers[64], pids[64];
    struct error err;
    MPI_Gather(mine, 2, MPI_INT, all, 2, MPI_INT, 0, MPI_COMM_WORLD);
    if (rank != 0) return;
    for (int i = 0; i < ranks; i++) {
        numbers[i] = all[2 * i];
        pids[i] = all[2 * i + 1];
    }
    jobdir_write_key(d, "mps-standin", &err);
    jobdir_write_pids(d, numbers, pids, ranks, &err);
    write_state(d, c, ENDPOINT_LOADING, ranks);
    if (is_mode("abort")) {
        log_error("127.0.0.1:%lld: the port is in use", (long long)c->port);
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    if (is_mode("loading")) {
        static const char *const said[][2] = {{"engine 0", "500 of 2000 MB, 1.00"},
                                              {"engine 1", "1000 of 2000 MB, 2.00"},
                                              {"engine 0", "700 of 2000 MB, 1.50"}};
        for (size_t i = 0; i < COUNT_OF(said); i++) {
            log_setup(LOG_INFO, said[i][0]);
            log_info("loading weights: %s GB/s", said[i][1]);
        }
        usleep(500000);
    }
    if (is_mode("linger")) log_error("models/none: there is no such file");
    if (!is_mode("slow") && !is_mode("linger")) write_state(d, c, ENDPOINT_READY, ranks);
}

static int rank_main(int argc, char **argv)
{
    struct config c;
    struct jobdir d;
    struct error err;
    sigset_t set;
    int rank, ranks;
    tie_to_parent(SIGKILL);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    if (is_mode("silent")) return 3;
    if (config_load(&c, argc, argv, 1, &err) != 0 || jobdir_attach(&d, &err) != 1) return 2;
    const char *number = getenv("OMPI_COMM_WORLD_RANK");
    if (is_mode("exit") && number && strcmp(number, "0") == 0) {
        log_error("models/none: there is no such folder");
        return 1;
    }
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    start_engine();
    write_files(&d, &c, rank, ranks);
    if (is_mode("linger")) {
        usleep(rank == 1 ? 300000 : 5000000);
        _exit(1);
    }
    if (is_mode("crash") && rank == 1) {
        usleep(100000);
        signal(SIGSEGV, SIG_DFL);
        raise(SIGSEGV);
    }
    for (int sig; sigwait(&set, &sig) == 0;) {
        if (sig == SIGTERM) _exit(0);
        if (!is_mode("deaf")) break;
    }
    log_info("rank %d drains", rank);
    MPI_Finalize();
    return 0;
}

int main(int argc, char **argv)
{
    return argc > 1 && strcmp(argv[1], "up") == 0 ? cli_up(argc, argv) : rank_main(argc, argv);
}
