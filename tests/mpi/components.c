/* Which one-sided components MPI was told to use when it started: its own word for it, by the tool interface, and not only what the
 * environment says now.
 * ranks: 2
 * By hand: mpirun -np 2 build/tests/mpi/components [LIST]: what it should be */
#include "tap.h"

#include <mpi.h>
#include <string.h>

static struct tap tap;

/* "" when nothing was chosen. */
static void chosen(char *out, size_t size)
{
    MPI_T_cvar_handle handle;
    int index, provided, n;
    char *value;
    out[0] = 0;
    MPI_T_init_thread(MPI_THREAD_SINGLE, &provided);
    CHECK(&tap, MPI_T_cvar_get_index("osc", &index) == MPI_SUCCESS, "MPI does not know the variable osc");
    CHECK(&tap, MPI_T_cvar_handle_alloc(index, NULL, &handle, &n) == MPI_SUCCESS);
    value = mem_zero((size_t)n + 1, 1); /* n: the longest text it may ever hold */
    CHECK(&tap, MPI_T_cvar_read(handle, value) == MPI_SUCCESS);
    MPI_T_cvar_handle_free(&handle);
    MPI_T_finalize();
    snprintf(out, size, "%s", value);
    free(value);
}

int main(int argc, char **argv)
{
    char users[512] = "", now[512];
    const char *before = getenv("OMPI_MCA_osc"), *wanted = argc > 1 ? argv[1] : NULL;
    if (before) snprintf(users, sizeof users, "%s", before);
    struct wire *w = tap_start(&tap, &argc, &argv);
    const char *after = getenv("OMPI_MCA_osc");
    chosen(now, sizeof now);
    CHECK(&tap, after == NULL || !strcmp(now, after), "\"%s\" is in the environment, and MPI has \"%s\"",
          after, now);
    CHECK(&tap, !before || !strcmp(now, users), "the user chose \"%s\", and MPI has \"%s\"", users, now);
    CHECK(&tap, !wanted || !strcmp(now, wanted), "\"%s\" is wanted, and MPI has \"%s\"", wanted, now);
    if (wire_rank(w) == 0) printf("# %s: osc = %s\n", wire_library(w), now);
    tap_case(&tap, "the list of one-sided components was there before MPI started");
    return tap_end(&tap);
}
