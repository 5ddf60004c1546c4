/* probe: what the lab's selftest runs on its hosts.
 *   probe nodes        how many nodes the job sees (MPI_COMM_TYPE_SHARED)
 *   probe cas [COUNT]  compare-and-swap from the last rank on a window of rank 0, which naps 50 us
 *   probe serve SECS   all answer rank 0; it says who still answers at the end */
#define _GNU_SOURCE
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ASK = 1, REPLY = 2, MAX = 256 };

static int rank, size;

static void nodes(void)
{
    MPI_Comm node;
    int k, lead, total;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
    MPI_Comm_rank(node, &k);
    lead = k == 0;
    MPI_Reduce(&lead, &total, 1, MPI_INT, MPI_SUM, 0, MPI_COMM_WORLD);
    if (rank == 0) printf("ranks %d nodes %d\n", size, total);
    MPI_Comm_free(&node);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void cas(int count)
{
    MPI_Win win;
    long *word, old, next, seen;
    int bad = 0;
    MPI_Win_allocate(sizeof *word, 1, MPI_INFO_NULL, MPI_COMM_WORLD, &word, &win);
    *word = 0;
    MPI_Barrier(MPI_COMM_WORLD);
    MPI_Win_lock_all(0, win);
    if (rank == size - 1) {
        double *t = malloc((size_t)count * sizeof *t);
        for (int i = 0; i < count; i++) {
            old = i;
            next = i + 1;
            t[i] = MPI_Wtime();
            MPI_Compare_and_swap(&next, &old, &seen, MPI_LONG, 0, 0, win);
            MPI_Win_flush(0, win);
            t[i] = (MPI_Wtime() - t[i]) * 1e6;
            bad += seen != old;
        }
        qsort(t, (size_t)count, sizeof *t, by_value);
        printf("cas %d wrong %d us median %.0f p90 %.0f max %.0f\n", count, bad, t[count / 2],
               t[count * 9 / 10], t[count - 1]);
        free(t);
    }
    MPI_Request done;
    int flag = 0;
    MPI_Ibarrier(MPI_COMM_WORLD, &done);
    while (!flag) {
        MPI_Test(&done, &flag, MPI_STATUS_IGNORE);
        usleep(50);
    }
    MPI_Win_unlock_all(win);
    MPI_Win_free(&win);
}

static volatile sig_atomic_t usr1;

static void on_usr1(int sig)
{
    (void)sig;
    usr1 = 1;
}

/* Rank 0 asks every other rank every 50 ms; one that owes an answer is not asked again. */
static void serve(double secs)
{
    MPI_Comm c;
    MPI_Comm_dup(MPI_COMM_WORLD, &c);
    MPI_Comm_set_errhandler(c, MPI_ERRORS_RETURN);
    static MPI_Request ask[MAX], reply[MAX];
    static double last[MAX];
    static long out[MAX], in[MAX], word;
    int flag, told = 0;
    signal(SIGUSR1, on_usr1);
    double end = MPI_Wtime() + secs, next = 0;
    if (rank == 0) printf("serving\n"), fflush(stdout);
    for (int i = 0; i < size; i++) ask[i] = reply[i] = MPI_REQUEST_NULL;
    while (MPI_Wtime() < end) {
        if (usr1 && !told++ && rank == 0) printf("usr1\n"), fflush(stdout);
        if (rank != 0) {
            MPI_Iprobe(0, ASK, c, &flag, MPI_STATUS_IGNORE);
            if (flag) {
                MPI_Recv(&word, 1, MPI_LONG, 0, ASK, c, MPI_STATUS_IGNORE);
                MPI_Send(&word, 1, MPI_LONG, 0, REPLY, c);
            }
        } else if (MPI_Wtime() >= next) {
            next = MPI_Wtime() + 0.05;
            for (int i = 1; i < size; i++) {
                MPI_Test(&reply[i], &flag, MPI_STATUS_IGNORE);
                if (flag) {
                    last[i] = MPI_Wtime();
                    MPI_Test(&ask[i], &flag, MPI_STATUS_IGNORE);
                    if (!flag) continue;
                    MPI_Isend(&out[i], 1, MPI_LONG, i, ASK, c, &ask[i]);
                    MPI_Irecv(&in[i], 1, MPI_LONG, i, REPLY, c, &reply[i]);
                }
            }
        }
        usleep(200);
    }
    if (rank == 0) {
        printf("alive 0");
        for (int i = 1; i < size; i++)
            if (MPI_Wtime() - last[i] < 1) printf(" %d", i);
        printf("\n");
        fflush(stdout);
    }
    _exit(0); /* MPI_Finalize may wait for the dead */
}

int main(int argc, char **argv)
{
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (argc > 1 && size <= MAX && !strcmp(argv[1], "nodes"))
        nodes();
    else if (argc > 1 && size > 1 && !strcmp(argv[1], "cas"))
        cas(argc > 2 ? atoi(argv[2]) : 200);
    else if (argc > 2 && size <= MAX && !strcmp(argv[1], "serve"))
        serve(atof(argv[2]));
    else
        MPI_Abort(MPI_COMM_WORLD, 2);
    MPI_Finalize();
    return 0;
}
