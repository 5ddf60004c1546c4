/* Coming up and going down: MPI, who is who, which one-sided component. */
#include "wire/wire_inner.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int wire_mpi_error(struct error *err, int code, const char *what)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int len;
    MPI_Error_string(code, text, &len);
    return error_set(err, ERR_PEER, "MPI", "%s: %s", what, text);
}

static bool node_has_infiniband(void)
{
    DIR *dir = opendir("/sys/class/infiniband");
    bool found = false;
    for (struct dirent *e; dir && !found && (e = readdir(dir));) found = e->d_name[0] != '.';
    if (dir) closedir(dir);
    return found;
}

/* Which components of MPI serve us, by the library's version, as measured; where there is no fast network, and unless the user chose.
 * With 8 ranks on 2 hosts of 2 cores those of 5 make the difference between 7 and 2 s until the job is up. */
static void choose_components(const char *library)
{
    static const struct {
        const char *library, *variable, *value;
    } rows[] = {
        /* Debian's system file excludes pt2pt, without which no window spans hosts over TCP */
        {"Open MPI v4.", "OMPI_MCA_osc", "sm,pt2pt"},
        /* ucx over TCP takes milliseconds an operation */
        {"Open MPI v5.", "OMPI_MCA_osc", "^ucx"},
        /* han splits communicators for each collective operation; ours are small and only at the start */
        {"Open MPI v5.", "OMPI_MCA_coll", "^han"},
        /* others look for networks, and sleep when they find none */
        {"Open MPI v5.", "OMPI_MCA_btl", "self,sm,tcp"},
    };
    if (node_has_infiniband()) return;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        if (!strncmp(library, rows[i].library, strlen(rows[i].library)))
            setenv(rows[i].variable, rows[i].value, 0);
}

static void read_library(struct wire *w)
{
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int len;
    MPI_Get_library_version(text, &len);
    text[strcspn(text, ",\n")] = 0;
    snprintf(w->library, sizeof w->library, "%s", text);
}

/* One's own line of the table of peers, as every rank sends it. */
struct card {
    u32 node_lowest; /* lowest world rank of its node */
    u32 local_rank;
    i32 pid;
    char host[64];
};

static int split_nodes(struct wire *w, struct card *mine, struct error *err)
{
    int rc = MPI_Comm_split_type(w->comm, MPI_COMM_TYPE_SHARED, (int)w->rank, MPI_INFO_NULL, &w->node_comm);
    if (rc) return wire_mpi_error(err, rc, "MPI_Comm_split_type");
    MPI_Comm_set_errhandler(w->node_comm, MPI_ERRORS_RETURN);
    int local, size;
    MPI_Comm_rank(w->node_comm, &local);
    MPI_Comm_size(w->node_comm, &size);
    w->node_size = (u32)size;
    w->node_ranks = mem_zero(w->node_size, sizeof *w->node_ranks);
    rc = MPI_Allgather(&w->rank, 1, MPI_UINT32_T, w->node_ranks, 1, MPI_UINT32_T, w->node_comm);
    if (rc) return wire_mpi_error(err, rc, "MPI_Allgather");
    *mine = (struct card){.node_lowest = w->node_ranks[0], .local_rank = (u32)local, .pid = (i32)getpid()};
    gethostname(mine->host, sizeof mine->host - 1);
    return 0;
}

static int learn_peers(struct wire *w, const struct card *mine, struct error *err)
{
    struct card *cards = mem_zero(w->size, sizeof *cards);
    int rc = wire_allgather(w, mine, sizeof *mine, cards, err);
    w->peers = mem_zero(w->size, sizeof *w->peers);
    w->first_ranks = mem_zero(w->size, sizeof *w->first_ranks);
    for (u32 r = 0; !rc && r < w->size; r++) {
        struct wire_peer *p = &w->peers[r];
        /* the lowest rank of a node comes before all others of it */
        p->node_rank = cards[r].node_lowest == r ? w->n_nodes++ : w->peers[cards[r].node_lowest].node_rank;
        p->local_rank = cards[r].local_rank;
        if (cards[r].node_lowest == r) w->first_ranks[p->node_rank] = r;
        p->pid = cards[r].pid;
        memcpy(p->host, cards[r].host, sizeof p->host);
        p->host[sizeof p->host - 1] = 0;
    }
    free(cards);
    return rc;
}

static int start_mpi(struct wire *w, int *argc, char ***argv, struct error *err)
{
    int provided = 0, rank, size;
    int rc = MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided);
    if (rc) return wire_mpi_error(err, rc, "MPI_Init_thread");
    if (provided < MPI_THREAD_FUNNELED)
        return error_set(
            err, ERR_UNSUPPORTED, "MPI",
            "%s gives thread level %d only; MPI_THREAD_FUNNELED (%d) is needed, since other threads run "
            "beside the one that calls MPI: use a library built with thread support",
            w->library, provided, MPI_THREAD_FUNNELED);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
    rc = MPI_Comm_dup(MPI_COMM_WORLD, &w->comm);
    if (rc) return wire_mpi_error(err, rc, "MPI_Comm_dup");
    MPI_Comm_set_errhandler(w->comm, MPI_ERRORS_RETURN);
    MPI_Comm_rank(w->comm, &rank);
    MPI_Comm_size(w->comm, &size);
    w->rank = (u32)rank;
    w->size = (u32)size;
    return 0;
}

static void release(struct wire *w)
{
    bell_release(w);
    packets_release(w);
    free(w->peers);
    free(w->first_ranks);
    free(w->node_ranks);
    free(w);
}

struct wire *wire_init(int *argc, char ***argv, struct error *err)
{
    struct wire *w = mem_zero(1, sizeof *w);
    struct card mine;
    read_library(w);
    choose_components(w->library);
    if (wire_check_shm(w->library, err) || start_mpi(w, argc, argv, err) || split_nodes(w, &mine, err) ||
        learn_peers(w, &mine, err) || packets_init(w, err)) {
        release(w);
        return NULL;
    }
    return w;
}

static void drop_message(void *ctx, u32 from, u16 type, const void *body, size_t len)
{
    (void)ctx, (void)from, (void)type, (void)body, (void)len;
}

/* Everyone keeps receiving until everyone has sent all: else a rendezvous would wait for a rank that has left. */
static bool quiesce(struct wire *w)
{
    enum { END_SECONDS = 10 };
    u64 until = clock_ns() + END_SECONDS * NS_PER_S;
    MPI_Request barrier = MPI_REQUEST_NULL;
    bool entered = false;
    for (int done = 0; !done;) {
        if (wire_poll(w, drop_message, NULL, NULL) < 0 || clock_ns() > until) return false;
        if (!entered && !wire_sends_pending(w)) entered = !MPI_Ibarrier(w->comm, &barrier);
        if (entered && MPI_Test(&barrier, &done, MPI_STATUS_IGNORE)) return false;
        if (!done) usleep(50);
    }
    return true;
}

void wire_end(struct wire *w)
{
    if (!w) return;
    if (!quiesce(w) || packets_cancel(w)) {
        log_warning("the other ranks did not come to the end in time: ending the job");
        wire_abort(w, 1);
    }
    MPI_Comm_free(&w->node_comm);
    MPI_Comm_free(&w->comm);
    MPI_Finalize();
    release(w);
}

void wire_abort(struct wire *w, int code)
{
    bell_release(w);
    int initialized = 0;
    MPI_Initialized(&initialized);
    if (w && initialized) MPI_Abort(MPI_COMM_WORLD, code);
    _exit(code);
}

/* ---- who is who ----------------------------------------------------------------------------------------------*/
u32 wire_rank(const struct wire *w)
{
    return w->rank;
}
u32 wire_size(const struct wire *w)
{
    return w->size;
}
u32 wire_n_nodes(const struct wire *w)
{
    return w->n_nodes;
}
u32 wire_first_rank(const struct wire *w, u32 node)
{
    BUG_ON(node >= w->n_nodes);
    return w->first_ranks[node];
}
const struct wire_peer *wire_peers(const struct wire *w)
{
    return w->peers;
}
u32 wire_node_size(const struct wire *w)
{
    return w->node_size;
}
const u32 *wire_node_ranks(const struct wire *w)
{
    return w->node_ranks;
}
bool wire_same_node(const struct wire *w, u32 rank)
{
    return w->peers[rank].node_rank == w->peers[w->rank].node_rank;
}
const char *wire_library(const struct wire *w)
{
    return w->library;
}
const struct wire_counts *wire_counts(struct wire *w)
{
    w->counts.bells_sent = atomic_load_explicit(&w->bells_sent, memory_order_relaxed);
    w->counts.bells_saved = atomic_load_explicit(&w->bells_saved, memory_order_relaxed);
    return &w->counts;
}
