/* Receiving: packets are checked, put in the order of their pair, and joined into messages. */
#include "wire/wire_inner.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 4 }; /* of a poll: bounded, since handlers share the thread with everything else */
static const size_t packet_full = sizeof(struct packet_head) + WIRE_FRAGMENT;

struct delivery {
    wire_handler handler;
    void *ctx;
    int n;
};

static void deliver(struct wire *w, struct delivery *d, u32 from, u16 type, const void *body, size_t len)
{
    w->counts.received++;
    w->counts.received_bytes += len;
    d->n++;
    d->handler(d->ctx, from, type, body, len);
}

static void drop_assembly(struct wire *w, struct peer_state *s)
{
    if (!s->assembly) return;
    free(s->assembly);
    s->assembly = NULL;
    w->n_assemblies--;
}

static int malformed(const struct wire *w, u32 from, const struct packet_head *h, const char *what,
                     struct error *err)
{
    return error_set(
        err, ERR_PEER, "wire",
        "rank %u (%s, pid %d) sent a malformed packet: %s (type %u, seq %u, %u bytes at %u of %u)", from,
        w->peers[from].host, w->peers[from].pid, what, h->type, h->seq, h->len, h->offset, h->total);
}

static const char *packet_fault(const struct packet_head *h, size_t bytes)
{
    if (bytes < sizeof *h || h->magic != PACKET_MAGIC) return "no packet header";
    if (h->len != bytes - sizeof *h) return "length does not agree with what came";
    if (h->total > WIRE_MAX_MESSAGE) return "message too long";
    if (h->offset > h->total || h->len > h->total - h->offset) return "part outside the message";
    if (!h->len && h->total) return "empty part";
    return NULL;
}

/* The next packet of its pair, in order. */
static int join(struct wire *w, u32 from, const struct packet_head *h, const u8 *body, struct delivery *d,
                struct error *err)
{
    struct peer_state *s = &w->states[from];
    s->recv_seq++;
    bell_packet_came(w, s);
    if (!s->assembly) {
        if (h->offset) return malformed(w, from, h, "middle of a message without its start", err);
        if (h->len == h->total) {
            deliver(w, d, from, h->type, body, h->len);
            return 0;
        }
        s->assembly = malloc(h->total);
        if (!s->assembly)
            return error_set(err, ERR_MEMORY, "wire", "no memory for a message of %u bytes from rank %u",
                             h->total, from);
        w->n_assemblies++;
        s->assembled = 0;
        s->total = h->total;
        s->assembly_type = h->type;
    }
    if (h->offset != s->assembled || h->total != s->total || h->type != s->assembly_type)
        return malformed(w, from, h, "part of another message", err);
    memcpy(s->assembly + h->offset, body, h->len);
    s->assembled += h->len;
    if (s->assembled < s->total) return 0;
    u8 *whole = s->assembly;
    s->assembly = NULL; /* before the handler: it may forget this peer */
    w->n_assemblies--;
    deliver(w, d, from, h->type, whole, h->total);
    free(whole);
    return 0;
}

/* A packet that overtook others, kept sorted by how far ahead it is. */
static int hold(struct wire *w, u32 from, const struct packet_head *h, const u8 *body, struct error *err)
{
    struct peer_state *s = &w->states[from];
    u32 ahead = h->seq - s->recv_seq;
    if (ahead > SEQ_AHEAD_MAX) return malformed(w, from, h, "sequence number out of range", err);
    struct packet **at = &s->held;
    while (*at && (*at)->head.seq - s->recv_seq < ahead) at = &(*at)->next;
    if (*at && (*at)->head.seq == h->seq) return malformed(w, from, h, "sequence number used twice", err);
    struct packet *p = packet_take(w, h->len);
    p->head = *h;
    memcpy(p->body, body, h->len);
    p->next = *at;
    *at = p;
    w->n_held++;
    w->counts.packets_held++;
    return 0;
}

static int take(struct wire *w, u32 from, const struct packet_head *h, size_t bytes, struct delivery *d,
                struct error *err)
{
    struct peer_state *s = &w->states[from];
    if (s->forgotten) return 0;
    const char *fault = packet_fault(h, bytes);
    if (fault) return malformed(w, from, h, fault, err);
    const u8 *body = (const u8 *)(h + 1);
    if (h->seq != s->recv_seq) return hold(w, from, h, body, err);
    int rc = join(w, from, h, body, d, err);
    while (!rc && s->held && s->held->head.seq == s->recv_seq) {
        struct packet *p = s->held;
        s->held = p->next;
        w->n_held--;
        rc = join(w, from, &p->head, p->body, d, err);
        packet_give(w, p);
    }
    return rc;
}

/* One look at all preposted receives; returns how many had ended. */
static int receive_round(struct wire *w, struct delivery *d, struct error *err)
{
    int n, index[RECEIVES];
    MPI_Status status[RECEIVES];
    int rc = MPI_Testsome(RECEIVES, w->recvs, &n, index, status);
    if (rc && rc != MPI_ERR_IN_STATUS) return wire_mpi_error(err, rc, "receiving");
    if (n == MPI_UNDEFINED || n == 0) return 0;
    bell_answered(w);
    bool failed = rc == MPI_ERR_IN_STATUS;
    for (int i = 0; i < n; i++) {
        u32 from = (u32)status[i].MPI_SOURCE;
        int bytes = 0;
        if (failed && status[i].MPI_ERROR) {
            char what[64];
            snprintf(what, sizeof what, "receiving from rank %u", from);
            return wire_mpi_error(err, status[i].MPI_ERROR, what);
        }
        MPI_Get_count(&status[i], MPI_BYTE, &bytes);
        u8 *packet = w->recv_memory + (size_t)index[i] * packet_full;
        rc = take(w, from, (const struct packet_head *)packet, (size_t)bytes, d, err);
        int again = packets_receive(w, (u32)index[i], rc ? NULL : err);
        if (rc || again) return rc ? rc : again;
    }
    return n;
}

/* Those that were waiting when the poll began: a handler that sends to its own rank does not keep the poll busy. */
static void deliver_own(struct wire *w, struct delivery *d)
{
    struct packet_list now = w->self;
    w->self = (struct packet_list){0};
    for (struct packet *p; (p = packet_shift(&now));) {
        deliver(w, d, w->rank, p->head.type, p->body, p->head.total);
        packet_give(w, p);
    }
}

int wire_poll(struct wire *w, wire_handler handler, void *ctx, struct error *err)
{
    BUG_ON(w->polling);
    w->polling = true;
    struct delivery d = {handler, ctx, 0};
    deliver_own(w, &d);
    int rc = wire_finish_sends(w, err);
    bell_owed(w);
    /* MPI_Testsome looks, and then lets messages in: before a sleep, a second look sees what the first let in */
    u32 looks = w->asleep ? 2 : 1;
    for (int round = 0; rc >= 0 && w->size > 1 && looks && round < ROUNDS; round++)
        if ((rc = receive_round(w, &d, err)) == 0) looks--;
    bell_owed(w); /* of handlers */
    w->polling = false;
    return rc < 0 ? rc : d.n;
}

void wire_forget(struct wire *w, u32 rank)
{
    struct peer_state *s = &w->states[rank];
    BUG_ON(rank == w->rank);
    s->forgotten = true;
    w->n_awaited -= s->awaited;
    s->awaited = false;
    drop_assembly(w, s);
    for (struct packet *p; (p = packet_shift(&s->backlog));) {
        packet_give(w, p);
        w->n_backlog--;
    }
    while (s->held) {
        struct packet *p = s->held;
        s->held = p->next;
        packet_give(w, p);
        w->n_held--;
    }
    u32 kept = 0;
    for (u32 i = 0; i < w->n_sends; i++) {
        if (w->send_packets[i]->to == rank) {
            MPI_Request_free(&w->sends[i]); /* MPI may still read the buffer: it is never given back */
            continue;
        }
        w->sends[kept] = w->sends[i];
        w->send_packets[kept++] = w->send_packets[i];
    }
    w->n_sends = kept;
    s->active = 0;
    s->pending_bytes = 0;
}
