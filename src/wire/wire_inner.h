/* The object behind wire.h, shared by the files of the room. Inner header. */
#ifndef MPISERVE_WIRE_INNER_H
#define MPISERVE_WIRE_INNER_H

#include "mpiserve/wire.h"

#include <mpi.h>
#include <stdatomic.h>

enum {
    PACKET_MAGIC = 0x5057504d,
    PACKET_TAG = 1,
    PACKET_SMALL = 1024, /* body bytes of the small kind of send buffer */
    /* Preposted, 16 KB each. 8, 16, 32 and 64 could not be told apart by rate (8 ranks on 2 busy cores, 6 interleaved
     * runs, spread of 2x); more of them only complete further out of order. So memory decides. */
    RECEIVES = 16,
    SENDS_PER_PEER = 16, /* Isends under way to one peer; what is beyond waits in its backlog */
    SEQ_AHEAD_MAX = 1 << 20,
};

/* In front of every packet. A message is one packet, or several with rising offset. */
struct packet_head {
    u32 magic;
    u16 type, pad;
    u32 seq;    /* of this pair of ranks, from 0, wraps */
    u32 total;  /* bytes of the message */
    u32 offset; /* of this packet's part */
    u32 len;    /* bytes of this packet's part */
    u32 spare[2];
};

/* A send buffer, or a copy of a packet held back. */
struct packet {
    struct packet *next;
    u32 to, cap; /* cap: body bytes that fit */
    _Alignas(16) struct packet_head head;
    _Alignas(16) u8 body[];
};
struct packet_list {
    struct packet *first, *last;
};

struct peer_state {
    u32 send_seq, recv_seq;        /* next */
    u32 posted, active;            /* Isends so far, and under way */
    u32 announced;                 /* packets that its bells have told of */
    bool forgotten, owed, awaited; /* owed: a bell; awaited: not all that was announced is here */
    u64 pending_bytes;
    struct packet_list backlog;
    struct packet *held; /* came too early, by rising seq */
    u8 *assembly;        /* a message in the making, or NULL */
    u32 assembled, total;
    u16 assembly_type;
};

struct bell;

struct wire {
    MPI_Comm comm, node_comm;
    u32 rank, size, n_nodes, node_size;
    u32 *first_ranks;        /* [n_nodes] lowest of each node */
    struct wire_peer *peers; /* [size] */
    u32 *node_ranks;         /* [node_size] */
    char library[128];
    struct wire_counts counts;
    _Atomic u64 bells_sent, bells_saved; /* any thread rings */
    bool polling, asleep;                /* asleep: it says so */

    struct peer_state *states; /* [size] */
    u8 *recv_memory;           /* [RECEIVES] packets of full size */
    MPI_Request recvs[RECEIVES];
    MPI_Request *sends;           /* [size * SENDS_PER_PEER at most] */
    struct packet **send_packets; /* beside sends */
    int *sends_done;              /* [cap_sends] answer of MPI_Testsome */
    u32 n_sends, cap_sends;
    u64 n_backlog; /* packets */
    u32 n_held, n_assemblies;
    struct packet_list self; /* own messages, whole */
    struct packet *free_small, *free_full;
    u32 n_free_small, n_free_full;

    struct bell *bell;
    u32 *owed; /* [size] ranks */
    u32 n_owed, n_awaited;
};

int wire_mpi_error(struct error *err, int code, const char *what);
/* shm.c: before MPI_Init */
int wire_check_shm(const char *library, struct error *err);
/* packets.c */
int packets_init(struct wire *w, struct error *err);
void packets_release(struct wire *w);                          /* after MPI has given all buffers back */
int packets_cancel(struct wire *w);                            /* the preposted receives */
int packets_receive(struct wire *w, u32 i, struct error *err); /* preposts the i-th receive */
struct packet *packet_take(struct wire *w, size_t body);
void packet_give(struct wire *w, struct packet *p);
void packet_append(struct packet_list *list, struct packet *p);
struct packet *packet_shift(struct packet_list *list);
/* send.c */
int wire_finish_sends(struct wire *w, struct error *err);
/* bell.c */
void bell_release(struct wire *w);
void bell_answered(struct wire *w);                          /* a message has come */
void bell_packets(struct wire *w, u32 rank);                 /* packets were posted to it */
void bell_owed(struct wire *w);                              /* rings those that were */
void bell_packet_came(struct wire *w, struct peer_state *s); /* recv_seq is one higher */
/* together.c: waits for a non-blocking collective with naps */
int wire_wait(MPI_Request *request, const char *what, struct error *err);

#endif
