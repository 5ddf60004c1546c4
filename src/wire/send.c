/* Sending: a message is cut into packets, at most SENDS_PER_PEER of them are with MPI per peer, the rest waits in the peer's
 * backlog. So a peer that does not receive holds up nobody else. */
#include "wire/wire_inner.h"

#include <stdlib.h>
#include <string.h>

static int post(struct wire *w, struct packet *p, struct error *err)
{
    if (w->n_sends == w->cap_sends) {
        w->cap_sends = MAX_OF(32, 2 * w->cap_sends);
        w->sends = mem_resize(w->sends, w->cap_sends * sizeof *w->sends);
        w->send_packets = mem_resize(w->send_packets, w->cap_sends * sizeof *w->send_packets);
        w->sends_done = mem_resize(w->sends_done, w->cap_sends * sizeof *w->sends_done);
    }
    int bytes = (int)(sizeof p->head + p->head.len);
    int rc = MPI_Isend(&p->head, bytes, MPI_BYTE, (int)p->to, PACKET_TAG, w->comm, &w->sends[w->n_sends]);
    if (rc) return wire_mpi_error(err, rc, "MPI_Isend");
    w->send_packets[w->n_sends++] = p;
    w->states[p->to].active++;
    w->states[p->to].posted++;
    return 0;
}

static int post_backlog(struct wire *w, u32 to, struct error *err)
{
    struct peer_state *s = &w->states[to];
    bool any = false;
    while (s->active < SENDS_PER_PEER && s->backlog.first) {
        w->n_backlog--;
        int rc = post(w, packet_shift(&s->backlog), err);
        if (rc) return rc;
        any = true;
    }
    if (any) bell_packets(w, to);
    return 0;
}

int wire_finish_sends(struct wire *w, struct error *err)
{
    if (!w->n_sends) return 0;
    int n;
    int rc = MPI_Testsome((int)w->n_sends, w->sends, &n, w->sends_done, MPI_STATUSES_IGNORE);
    if (rc) return wire_mpi_error(err, rc, "sending");
    if (n == MPI_UNDEFINED) return 0;
    for (int i = 0; i < n; i++) {
        u32 k = (u32)w->sends_done[i];
        struct packet *p = w->send_packets[k];
        w->states[p->to].active--;
        w->states[p->to].pending_bytes -= p->head.len;
        w->send_packets[k] = NULL;
        rc = post_backlog(w, p->to, err);
        packet_give(w, p);
        if (rc) return rc;
    }
    u32 kept = 0;
    for (u32 i = 0; i < w->n_sends; i++) {
        if (!w->send_packets[i]) continue;
        w->send_packets[kept] = w->send_packets[i];
        w->sends[kept++] = w->sends[i];
    }
    w->n_sends = kept;
    /* what is not done yet may wait for its receiver, which fell asleep in the middle of it */
    for (u32 i = 0; i < kept; i++)
        if (wire_same_node(w, w->send_packets[i]->to)) bell_packets(w, w->send_packets[i]->to);
    return 0;
}

/* A body in two parts. */
struct parts {
    const u8 *head, *body;
    size_t head_len, len;
};

static void copy_out(u8 *to, const struct parts *m, size_t from, size_t n)
{
    size_t first = from < m->head_len ? MIN_OF(n, m->head_len - from) : 0;
    if (first) memcpy(to, m->head + from, first);
    if (n > first) memcpy(to + first, m->body + (from + first - m->head_len), n - first);
}

static void keep_for_self(struct wire *w, u16 type, const struct parts *m, size_t total)
{
    struct packet *p = packet_take(w, total);
    p->head = (struct packet_head){.type = type, .total = (u32)total};
    copy_out(p->body, m, 0, total);
    packet_append(&w->self, p);
}

int wire_send2(struct wire *w, u32 to, u16 type, const void *head, size_t head_len, const void *body,
               size_t len, struct error *err)
{
    size_t total = head_len + len;
    if (to >= w->size) return error_set(err, ERR_INPUT, "", "message to rank %u of %u", to, w->size);
    if (total < len || total > WIRE_MAX_MESSAGE)
        return error_set(err, ERR_INPUT, "", "message of %zu bytes to rank %u: at most %d", total, to,
                         WIRE_MAX_MESSAGE);
    struct peer_state *s = &w->states[to];
    if (s->forgotten) return 0;
    if (s->pending_bytes + total > WIRE_MAX_PENDING)
        return error_set(err, ERR_FULL, "", "rank %u (%s) has left %llu bytes unread", to, w->peers[to].host,
                         (unsigned long long)s->pending_bytes);
    const struct parts m = {head, body, head_len, len};
    w->counts.sent++;
    w->counts.sent_bytes += total;
    if (to == w->rank) {
        keep_for_self(w, type, &m, total);
        return 0;
    }
    size_t offset = 0;
    do {
        size_t part = MIN_OF(total - offset, (size_t)WIRE_FRAGMENT);
        struct packet *p = packet_take(w, part);
        p->to = to;
        p->head = (struct packet_head){.magic = PACKET_MAGIC,
                                       .type = type,
                                       .seq = s->send_seq++,
                                       .total = (u32)total,
                                       .offset = (u32)offset,
                                       .len = (u32)part};
        copy_out(p->body, &m, offset, part);
        packet_append(&s->backlog, p);
        w->n_backlog++;
        offset += part;
    } while (offset < total);
    s->pending_bytes += total;
    return post_backlog(w, to, err);
}

int wire_send(struct wire *w, u32 to, u16 type, const void *body, size_t len, struct error *err)
{
    return wire_send2(w, to, type, NULL, 0, body, len, err);
}

u64 wire_sends_pending(const struct wire *w)
{
    return w->n_sends + w->n_backlog;
}

u64 wire_sends_pending_to(const struct wire *w, u32 to)
{
    return w->states[to].pending_bytes;
}

bool wire_busy(const struct wire *w)
{
    return w->n_sends || w->n_backlog || w->n_held || w->n_assemblies || w->self.first;
}
