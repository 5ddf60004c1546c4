/* One window for the whole life of the job; compare-and-swap and flush are the only things done to its memory. */
#include "slots/window.h"

#include <mpi.h>
#include <stdlib.h>
#include <string.h>

struct slot_window {
    MPI_Comm comm;
    MPI_Win win;
    u32 rank, n_ranks;
    u32 *node_of, *first_of; /* of a rank: its node, and the lowest rank there */
    bool spans;  /* several nodes: an operation is a message, which its target serves, on the own node too */
    bool served; /* and so do others before the flush */
    u64 operations;
    u64 *words; /* own */
    void (*ring)(void *ctx, u32 rank);
    void *ctx;
};

static int mpi_error(struct error *err, int code, const char *what)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int len;
    MPI_Error_string(code, text, &len);
    return error_set(err, ERR_PEER, "slot window", "%s: %s", what, text);
}

/* The memory is written before anyone can reach it: no epoch is open, and the barrier comes after. */
static int allocate(struct slot_window *w, u32 epoch, struct error *err)
{
    MPI_Info info;
    u64 *words;
    MPI_Info_create(&info);
    MPI_Info_set(info, "acc_single_intrinsic", "true");
    MPI_Info_set(info, "same_size", "true");
    MPI_Info_set(info, "same_disp_unit", "true");
    int rc = MPI_Win_allocate(SLOTS_PER_RANK * sizeof *words, sizeof *words, info, w->comm, &words, &w->win);
    MPI_Info_free(&info);
    w->words = words;
    if (rc) {
        w->win = MPI_WIN_NULL;
        return mpi_error(
            err, rc,
            "MPI_Win_allocate failed; between hosts Open MPI 4.1 needs OMPI_MCA_osc=sm,pt2pt in the "
            "environment");
    }
    MPI_Win_set_errhandler(w->win, MPI_ERRORS_RETURN);
    rc = MPI_Win_lock(MPI_LOCK_EXCLUSIVE, (int)w->rank, 0, w->win);
    if (rc) return mpi_error(err, rc, "MPI_Win_lock");
    for (u32 i = 0; i < SLOTS_PER_RANK; i++) words[i] = slot_word(epoch, SLOT_CLOSED, 0, 0);
    rc = MPI_Win_unlock((int)w->rank, w->win);
    if (rc) return mpi_error(err, rc, "MPI_Win_unlock");
    rc = MPI_Barrier(w->comm);
    if (rc) return mpi_error(err, rc, "MPI_Barrier");
    rc = MPI_Win_lock_all(MPI_MODE_NOCHECK, w->win);
    return rc ? mpi_error(err, rc, "MPI_Win_lock_all") : 0;
}

/* In a window that spans nodes there are no processor atomics: the target applies every operation, even if it is on our own node. Open
 * MPI 4 (osc/pt2pt) asks the target only; with Open MPI 5 (osc/rdma) locks lie at the first rank of the target's node. */
static void find_servers(struct slot_window *w)
{
    char library[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int len;
    w->first_of = mem_zero(w->n_ranks, sizeof *w->first_of);
    for (u32 r = 0; r < w->n_ranks; r++) {
        while (w->node_of[w->first_of[r]] != w->node_of[r]) w->first_of[r]++;
        w->spans |= w->node_of[r] != w->node_of[0];
    }
    MPI_Get_library_version(library, &len);
    w->served = w->spans && strncmp(library, "Open MPI v4", 11) != 0;
}

struct slot_window *slot_window_new(const struct slots_spec *spec, struct error *err)
{
    struct slot_window *w = mem_zero(1, sizeof *w);
    w->win = MPI_WIN_NULL;
    w->ring = spec->ring;
    w->ctx = spec->ctx;
    int rank, size;
    int rc = MPI_Comm_dup(MPI_COMM_WORLD, &w->comm);
    if (rc) {
        mpi_error(err, rc, "MPI_Comm_dup");
        slot_window_abandon(w);
        return NULL;
    }
    MPI_Comm_set_errhandler(w->comm, MPI_ERRORS_RETURN);
    MPI_Comm_rank(w->comm, &rank);
    MPI_Comm_size(w->comm, &size);
    w->rank = (u32)rank;
    w->n_ranks = (u32)size;
    w->node_of = mem_zero(w->n_ranks, sizeof *w->node_of);
    if (spec->node_of) memcpy(w->node_of, spec->node_of, w->n_ranks * sizeof *w->node_of);
    find_servers(w);
    if (allocate(w, spec->epoch, err)) {
        slot_window_abandon(w); /* not collective here: other ranks may be further */
        return NULL;
    }
    return w;
}

void slot_window_free(struct slot_window *w)
{
    if (!w) return;
    MPI_Win_unlock_all(w->win);
    MPI_Win_free(&w->win);
    MPI_Comm_free(&w->comm);
    slot_window_abandon(w);
}

void slot_window_abandon(struct slot_window *w)
{
    if (!w) return;
    free(w->node_of);
    free(w->first_of);
    free(w);
}

u32 slot_window_ranks(const struct slot_window *w)
{
    return w->n_ranks;
}

u32 slot_window_rank(const struct slot_window *w)
{
    return w->rank;
}

u64 slot_window_operations(const struct slot_window *w)
{
    return w->operations;
}

/* Who must call MPI for an operation to end is woken before we wait for it. */
static void wake(struct slot_window *w, u32 rank)
{
    if (!w->ring || !w->spans) return;
    w->ring(w->ctx, rank);
    if (w->served && w->first_of[rank] != rank) w->ring(w->ctx, w->first_of[rank]);
}

static int flush(struct slot_window *w, u32 rank, struct error *err)
{
    wake(w, rank);
    int rc = MPI_Win_flush((int)rank, w->win);
    return rc ? mpi_error(err, rc, "MPI_Win_flush") : 0;
}

int slot_window_cas(struct slot_window *w, u32 rank, u32 slot, u64 expected, u64 desired, u64 *old,
                    struct error *err)
{
    BUG_ON(rank >= w->n_ranks || slot >= SLOTS_PER_RANK);
    w->operations++;
    if (w->served) wake(w, rank); /* such an operation waits before the flush */
    int rc = MPI_Compare_and_swap(&desired, &expected, old, MPI_UINT64_T, (int)rank, (MPI_Aint)slot, w->win);
    return rc ? mpi_error(err, rc, "MPI_Compare_and_swap") : flush(w, rank, err);
}

/* Where every operation is a message to other ranks, a look at own memory is no operation: the words change only while this rank calls
 * MPI, and what is done on a look is a compare-and-swap. */
static void look_at_own(struct slot_window *w, u32 first, u32 n, u64 *out)
{
    MPI_Win_sync(w->win);
    for (u32 i = 0; i < n; i++) out[i] = __atomic_load_n(&w->words[first + i], __ATOMIC_RELAXED);
}

int slot_window_read(struct slot_window *w, u32 rank, u32 first, u32 n, u64 *out, struct error *err)
{
    static const u64 never = SLOT_NEVER;
    BUG_ON(rank >= w->n_ranks || first + n > SLOTS_PER_RANK);
    if (w->served && rank == w->rank) {
        look_at_own(w, first, n, out);
        return 0;
    }
    w->operations += n;
    for (u32 i = 0; i < n; i++) {
        int rc = MPI_Compare_and_swap(&never, &never, &out[i], MPI_UINT64_T, (int)rank, (MPI_Aint)(first + i),
                                      w->win);
        if (rc) return mpi_error(err, rc, "MPI_Compare_and_swap");
    }
    return flush(w, rank, err);
}
