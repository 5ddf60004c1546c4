/* What all ranks do together at start-up. Waiting ranks nap: with more ranks than cores a spinning one would keep the cores from
 * those it waits for. */
#include "wire/wire_inner.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NAP_US = 50, NAMED_MAX = 4 };

int wire_wait(MPI_Request *request, const char *what, struct error *err)
{
    for (;;) {
        int done = 0, rc = MPI_Test(request, &done, MPI_STATUS_IGNORE);
        if (rc) return wire_mpi_error(err, rc, what);
        if (done) return 0;
        usleep(NAP_US);
    }
}

int wire_barrier(struct wire *w, struct error *err)
{
    MPI_Request r;
    int rc = MPI_Ibarrier(w->comm, &r);
    return rc ? wire_mpi_error(err, rc, "MPI_Ibarrier") : wire_wait(&r, "barrier", err);
}

int wire_node_barrier(struct wire *w, struct error *err)
{
    MPI_Request r;
    int rc = MPI_Ibarrier(w->node_comm, &r);
    return rc ? wire_mpi_error(err, rc, "MPI_Ibarrier") : wire_wait(&r, "barrier of the node", err);
}

static bool too_large(size_t size, struct error *err)
{
    if (size <= INT32_MAX) return false;
    error_set(err, ERR_INPUT, "", "%zu bytes are too many for a collective", size);
    return true;
}

int wire_allgather(struct wire *w, const void *mine, size_t size, void *all, struct error *err)
{
    MPI_Request r;
    if (too_large(size, err)) return ERR_INPUT;
    int rc = MPI_Iallgather(mine, (int)size, MPI_BYTE, all, (int)size, MPI_BYTE, w->comm, &r);
    return rc ? wire_mpi_error(err, rc, "MPI_Iallgather") : wire_wait(&r, "gathering", err);
}

static int bcast(MPI_Comm comm, u32 root, void *data, size_t size, struct error *err)
{
    MPI_Request r;
    if (too_large(size, err)) return ERR_INPUT;
    int rc = MPI_Ibcast(data, (int)size, MPI_BYTE, (int)root, comm, &r);
    return rc ? wire_mpi_error(err, rc, "MPI_Ibcast") : wire_wait(&r, "broadcast", err);
}

int wire_bcast(struct wire *w, u32 root, void *data, size_t size, struct error *err)
{
    return bcast(w->comm, root, data, size, err);
}

int wire_node_bcast(struct wire *w, u32 root_local_rank, void *data, size_t size, struct error *err)
{
    return bcast(w->node_comm, root_local_rank, data, size, err);
}

/* ---- the agreement -------------------------------------------------------------------------------------------
 * This layout is never changed, so that builds that differ can still find out that they do. */
struct item_record {
    char name[WIRE_ITEM_NAME];
    char value[WIRE_ITEM_TEXT];
};
struct agreement {
    u32 n;
    u32 spare[3];
    struct item_record items[WIRE_MAX_ITEMS];
};

static void fill(struct agreement *a, const struct wire_item *items, u32 n)
{
    memset(a, 0, sizeof *a);
    a->n = n;
    for (u32 i = 0; i < n; i++) {
        struct item_record *r = &a->items[i];
        snprintf(r->name, sizeof r->name, "%s", items[i].name);
        if (items[i].text && strlen(items[i].text) < sizeof r->value)
            strcpy(r->value, items[i].text);
        else if (items[i].text) /* too long to be shown whole: its start, and a hash of all of it */
            snprintf(r->value, sizeof r->value, "%.70s... %016llx", items[i].text,
                     (unsigned long long)hash_bytes(items[i].text, strlen(items[i].text), 0));
        else
            snprintf(r->value, sizeof r->value, "%016llx", (unsigned long long)items[i].hash);
    }
}

/* Adds what rank r has otherwise than rank 0; false when nothing. */
static bool describe(const struct wire *w, const struct agreement *all, u32 r, struct buf *out)
{
    const struct agreement *a = &all[r], *first = &all[0];
    if (a->n != first->n) {
        buf_printf(out, "%srank %u (%s) compares %u things and rank 0 (%s) %u", out->len ? "; " : "", r,
                   w->peers[r].host, a->n, w->peers[0].host, first->n);
        return true;
    }
    bool differs = false;
    for (u32 i = 0; i < MIN_OF(a->n, WIRE_MAX_ITEMS); i++) {
        const struct item_record *x = &a->items[i], *y = &first->items[i];
        if (!memcmp(x, y, sizeof *x)) continue;
        if (differs)
            buf_printf(out, ", %.*s %.*s and not %.*s", WIRE_ITEM_NAME, x->name, WIRE_ITEM_TEXT, x->value,
                       WIRE_ITEM_TEXT, y->value);
        else
            buf_printf(out, "%srank %u (%s) has %.*s %.*s, rank 0 (%s) has %.*s", out->len ? "; " : "", r,
                       w->peers[r].host, WIRE_ITEM_NAME, x->name, WIRE_ITEM_TEXT, x->value, w->peers[0].host,
                       WIRE_ITEM_TEXT, y->value);
        differs = true;
    }
    return differs;
}

int wire_agree(struct wire *w, const struct wire_item *items, u32 n, struct error *err)
{
    BUG_ON(n > WIRE_MAX_ITEMS);
    struct agreement mine, *all = mem_zero(w->size, sizeof *all);
    fill(&mine, items, n);
    int rc = wire_allgather(w, &mine, sizeof mine, all, err);
    struct buf text = {0};
    u32 differ = 0;
    for (u32 r = 1; !rc && r < w->size; r++) {
        if (!memcmp(&all[r], &all[0], sizeof all[0])) continue;
        if (differ < NAMED_MAX && !describe(w, all, r, &text)) continue;
        differ++;
    }
    if (differ > NAMED_MAX) buf_printf(&text, "; and %u more ranks", differ - NAMED_MAX);
    if (differ)
        rc = error_set(
            err, ERR_PEER, "start",
            "the ranks of this job differ: %s. Start all ranks with the same program, options and model "
            "files",
            text.data);
    buf_release(&text);
    free(all);
    return rc;
}
