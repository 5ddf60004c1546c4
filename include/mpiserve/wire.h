/* wire: messages between the agents of a job, over MPI; and doorbells, which wake an agent that sleeps.
 *
 * Messages are typed, up to WIRE_MAX_MESSAGE bytes, copied when sent, delivered whole, once, and per pair of
 * ranks in the order of sending (also a rank's messages to itself). Inside: bodies over WIRE_FRAGMENT travel
 * in fragments; every packet has a sequence number of its pair and is processed strictly in that order,
 * because preposted receives complete out of order. A doorbell is a datagram (AF_UNIX in the node, UDP with a
 * nonce between nodes): only a hint, never data. Who sleeps says so to its node first, in shared memory, and is rung then only, once.
 * Ranks on other nodes are rung at the end of each poll for the messages sent since the last one; the bell says how many packets there were,
 * and who hears it polls until they have come (10 ms at most), and sleeps again. Other bells keep who hears them polling for
 * WIRE_BELL_NS, or, where the job has one node, until a message has come.
 *
 * Life cycle, collective where marked (every rank of the job calls it, in the same order):
 *   wire_init (c) -> wire_agree (c) -> wire_bells (c) -> { wire_send, wire_poll, ... } -> wire_end (c), or
 * wire_abort. Before wire_init: signals are blocked by the caller, no thread was started. MPI calls exit
 * handlers of nobody: after an error of wire_init the process can print it and exit; other ranks are ended by
 * the launcher. After start-up nothing here is collective but wire_barrier and wire_end.
 *
 * The main loop's way to sleep:
 *   1. wire_poll until it returns 0; wire_sleep(true), and wire_poll once more: 0 again;
 *   2. if wire_busy: nap (50 us at most), since MPI moves those bytes only while it is called; if wire_listens: nap; else
 *   3. epoll on wire_fd and the rest; then wire_sleep(false), wire_drain_bell, and step 1. Thread rule: only the thread that called wire_init may call anything here
 * (MPI_THREAD_FUNNELED), except wire_ring, which any thread may call after wire_bells. Handlers may send, but
 * not poll. */
#ifndef MPISERVE_WIRE_H
#define MPISERVE_WIRE_H

#include "mpiserve/base.h"

enum {
    WIRE_FRAGMENT = 16 << 10,
    WIRE_MAX_MESSAGE = 256 << 20,
    WIRE_MAX_PENDING = 512 << 20, /* bytes waiting for one peer; beyond: ERR_FULL */
    WIRE_BELL_NS = 200000,
    WIRE_MAX_ITEMS = 16,
    WIRE_ITEM_NAME = 32,
    WIRE_ITEM_TEXT = 96,
};

struct wire;
/* MPI_Init_thread (FUNNELED; works without mpirun as a job of one), node split, host names and pids of all.
 * Chooses components of Open MPI before (OMPI_MCA_osc and others), unless the environment has them or the node has InfiniBand; makes MPI's segments in /dev/shm fit
 * where it is small. ERR_IO when it is too small, which MPI itself would answer with SIGBUS. */
struct wire *wire_init(int *argc, char ***argv, struct error *err); /* collective */
u64 wire_shm_least(u32 ranks); /* bytes that so many ranks of a machine need in /dev/shm, at least */
/* Waits until all ranks are here and own sends are done (messages that come are dropped), then MPI_Finalize.
 * Windows of other rooms must be gone. Frees w. */
void wire_end(struct wire *w); /* collective */
/* MPI_Abort: ends the job, all ranks. w may be NULL (before wire_init: plain exit). */
_Noreturn void wire_abort(struct wire *w, int code);

/* ---- who is who
 * ----------------------------------------------------------------------------------------------*/
struct wire_peer {
    u32 node_rank, local_rank; /* nodes ordered by their lowest world rank */
    i32 pid;
    char host[64];
};
u32 wire_rank(const struct wire *w);
u32 wire_size(const struct wire *w);
u32 wire_n_nodes(const struct wire *w);
u32 wire_first_rank(const struct wire *w, u32 node_rank); /* the lowest rank of a node: its local_rank is 0 */
const struct wire_peer *wire_peers(const struct wire *w); /* [wire_size] */
u32 wire_node_size(const struct wire *w);                 /* ranks on this node */
const u32 *wire_node_ranks(const struct wire *w);         /* [wire_node_size] world ranks, by local_rank */
bool wire_same_node(const struct wire *w, u32 rank);
const char *wire_library(const struct wire *w); /* "Open MPI v4.1.4, ..." first line of its own words */

/* ---- start-up (all collective; they wait with naps, so that waiting ranks leave the cores to the others)
 * -----*/
struct wire_item {
    const char *name; /* "build", "configuration", "model" */
    const char *text; /* NULL: compare hash */
    u64 hash;
};
/* Refuses a job whose ranks differ: on every rank the same ERR_PEER, naming up to four ranks, their hosts,
 * the items and both values. */
int wire_agree(struct wire *w, const struct wire_item *items, u32 n, struct error *err);
int wire_barrier(struct wire *w, struct error *err);
int wire_allgather(struct wire *w, const void *mine, size_t size, void *all,
                   struct error *err); /* all [wire_size][size] */
int wire_bcast(struct wire *w, u32 root, void *data, size_t size, struct error *err);
int wire_node_bcast(struct wire *w, u32 root_local_rank, void *data, size_t size, struct error *err);
int wire_node_barrier(struct wire *w, struct error *err);

/* ---- messages
 * ------------------------------------------------------------------------------------------------*/
/* Copies body and rings the receiver. Returns at once; 0 or ERR_INPUT (length, rank), ERR_FULL, ERR_PEER
 * (MPI's words). */
int wire_send(struct wire *w, u32 to, u16 type, const void *body, size_t len, struct error *err);
/* The same with the body in two parts (a head and what follows it): one copy less for the caller. */
int wire_send2(struct wire *w, u32 to, u16 type, const void *head, size_t head_len, const void *body,
               size_t len, struct error *err);
/* body: 16-byte aligned, valid during the call only. */
typedef void (*wire_handler)(void *ctx, u32 from, u16 type, const void *body, size_t len);
/* Progress and delivery. Returns the number of messages delivered (bounded per call), or ERR_PEER: a
 * malformed packet (the message names the rank) or an error of MPI. */
int wire_poll(struct wire *w, wire_handler handler, void *ctx, struct error *err);
u64 wire_sends_pending(const struct wire *w);            /* packets that MPI has not finished */
u64 wire_sends_pending_to(const struct wire *w, u32 to); /* bytes, for one peer */
bool wire_busy(
    const struct wire *w); /* sends, half-received messages, packets held back or own messages are waiting */
/* Nothing is sent to, received from or waited for from this rank any more (its agent is dead); what waits for
 * it is dropped. */
void wire_forget(struct wire *w, u32 rank);

/* ---- doorbells
 * -----------------------------------------------------------------------------------------------*/
/* dir: a folder of mode 0700 on this node, the same for all its ranks. Errors: path too long for a socket,
 * folder missing or open to others; then on all ranks. Without it (never called) messages still arrive, after
 * the receiver's sleep. */
int wire_bells(struct wire *w, const char *dir, struct error *err); /* collective */
int wire_fd(const struct wire
                *w); /* readable when this rank was rung; -1 before wire_bells. For epoll, level-triggered */
void wire_sleep(struct wire *w, bool sleeps);        /* see "way to sleep" above */
void wire_drain_bell(struct wire *w);                /* empties wire_fd */
bool wire_listens(const struct wire *w, u64 now_ns); /* what a bell has announced may still be on its way */
/* For what is no message, which rings by itself. Rings a rank of this node if it sleeps; of another one at most once in 50 us (a bell
 * keeps its receiver awake for 200 us). Self: nothing. A bell costs about 2 us. */
void wire_ring(struct wire *w, u32 rank);

struct wire_counts {
    u64 sent, received, sent_bytes, received_bytes;          /* messages, self included */
    u64 packets_held;                                        /* came before an earlier one */
    u64 bells_sent, bells_saved, bells_heard, bells_foreign; /* foreign: wrong nonce */
};
const struct wire_counts *wire_counts(struct wire *w);

#endif
