/* Packets under way: buffers, Isends with a window per peer, preposted receives. */
#include "wire/wire_inner.h"

#include <stdlib.h>
#include <string.h>

enum { FREE_SMALL_MAX = 256, FREE_FULL_MAX = 64 };
static const size_t packet_full = sizeof(struct packet_head) + WIRE_FRAGMENT;

/* ---- buffers -------------------------------------------------------------------------------------------------*/
struct packet *packet_take(struct wire *w, size_t body)
{
    bool small = body <= PACKET_SMALL;
    struct packet **list = small ? &w->free_small : &w->free_full;
    struct packet *p = body <= WIRE_FRAGMENT ? *list : NULL;
    if (p) {
        *list = p->next;
        *(small ? &w->n_free_small : &w->n_free_full) -= 1;
    } else {
        size_t cap = small ? PACKET_SMALL : MAX_OF(body, (size_t)WIRE_FRAGMENT);
        p = mem_alloc(sizeof *p + cap); /* malloc's 16-byte alignment is what the body needs */
        p->cap = (u32)cap;
    }
    p->next = NULL;
    return p;
}

void packet_give(struct wire *w, struct packet *p)
{
    bool small = p->cap == PACKET_SMALL, full = p->cap == WIRE_FRAGMENT;
    u32 *n = small ? &w->n_free_small : &w->n_free_full;
    if ((!small && !full) || *n >= (small ? FREE_SMALL_MAX : FREE_FULL_MAX)) {
        free(p);
        return;
    }
    struct packet **list = small ? &w->free_small : &w->free_full;
    p->next = *list;
    *list = p;
    *n += 1;
}

void packet_append(struct packet_list *list, struct packet *p)
{
    p->next = NULL;
    if (list->last)
        list->last->next = p;
    else
        list->first = p;
    list->last = p;
}

struct packet *packet_shift(struct packet_list *list)
{
    struct packet *p = list->first;
    if (!p) return NULL;
    list->first = p->next;
    if (!list->first) list->last = NULL;
    return p;
}

static void free_list(struct packet *p)
{
    while (p) {
        struct packet *next = p->next;
        free(p);
        p = next;
    }
}

/* ---- receives ------------------------------------------------------------------------------------------------*/
int packets_receive(struct wire *w, u32 i, struct error *err)
{
    int rc = MPI_Irecv(w->recv_memory + i * packet_full, (int)packet_full, MPI_BYTE, MPI_ANY_SOURCE,
                       PACKET_TAG, w->comm, &w->recvs[i]);
    return rc ? wire_mpi_error(err, rc, "MPI_Irecv") : 0;
}

int packets_init(struct wire *w, struct error *err)
{
    w->states = mem_zero(w->size, sizeof *w->states);
    w->owed = mem_zero(w->size, sizeof *w->owed);
    for (u32 i = 0; i < RECEIVES; i++) w->recvs[i] = MPI_REQUEST_NULL;
    if (w->size == 1) return 0; /* nobody sends */
    w->recv_memory = mem_alloc(RECEIVES * packet_full);
    for (u32 i = 0; i < RECEIVES; i++) {
        int rc = packets_receive(w, i, err);
        if (rc) return rc;
    }
    return 0;
}

int packets_cancel(struct wire *w)
{
    int rc = 0;
    for (u32 i = 0; i < RECEIVES; i++)
        if (w->recvs[i] != MPI_REQUEST_NULL) rc |= MPI_Cancel(&w->recvs[i]);
    return rc | MPI_Waitall(RECEIVES, w->recvs, MPI_STATUSES_IGNORE);
}

void packets_release(struct wire *w)
{
    for (u32 r = 0; w->states && r < w->size; r++) {
        free_list(w->states[r].backlog.first);
        free_list(w->states[r].held);
        free(w->states[r].assembly);
    }
    for (u32 i = 0; i < w->n_sends; i++) free(w->send_packets[i]);
    free_list(w->self.first);
    free_list(w->free_small);
    free_list(w->free_full);
    free(w->states);
    free(w->owed);
    free(w->recv_memory);
    free(w->sends);
    free(w->send_packets);
    free(w->sends_done);
}
