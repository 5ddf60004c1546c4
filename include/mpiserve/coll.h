/* coll: what the engines of a replica say to each other: sums, gathers, broadcasts, messages.
 *
 * A replica is pp stages of tp engines; engine index = stage * tp + tp rank, and engine 0 is the root. Two
 * groups of engines talk: all of the replica, and those of one stage. Every member of a group makes the same
 * calls in the same order.
 *
 * Two transports behind one door, chosen by where the members are:
 *   shm    all members in one node: each writes into its own slot of a shared memory and reads the others' slots.
 *   relay  a group that spans nodes: messages; between nodes they go from an engine's outbound ring to its
 *          agent, which sends them to the other engine's agent (MPI is not known here), which puts them into
 *          an inbound ring.
 * Memory of GPUs moves through NCCL (below): a third transport, of the same members, that goes by a stream.
 *
 * Sums are exact in this sense: every element is added from member 0 to member n - 1, in f32, and rounded
 * once if the type is narrower; so the bits depend neither on the transport, nor on the algorithm (one-shot
 * for small sums, reduce-scatter and all-gather for large ones), nor on the length of the call an element was
 * part of.
 *
 * The group's memory (one per node) is made by an agent, zeroed, anew for every generation of the replica:
 * what an engine of an old generation still writes reaches nobody. Its layout is a pure function of the shape.
 *
 * Waiting: polls for spin_ns, then sleeps (futex); the caller's tick is called at least every tick_ns
 * meanwhile. Every wait has a deadline, which moves when the process itself stood still (a paused job). A member that does not come is named: "all_reduce 17: engine 1 (rank
 * 3) has not come within 20.0 s"; one that makes another call is named with both calls. After an error the
 * world is broken and every call returns that error again: the replica's engines have to be started anew.
 *
 * Trust: members are engines of one replica, and as trusted as each other. What an agent takes from an
 * engine's rings is checked.
 *
 * Life, engine: map the memory, coll_open, calls, coll_close. Agent, for engines whose replica spans nodes:
 * map the memory, coll_relay_open, {take, put}, coll_relay_close.
 * Thread rule: one thread at a time, but for calls made by a team (struct coll_how).
 * Level 1: no MPI, no processes. */
#ifndef MPISERVE_COLL_H
#define MPISERVE_COLL_H

#include "mpiserve/base.h"

enum { COLL_MAX = 64 }; /* engines of a replica */
struct coll_shape {     /* of a replica; all zero: one engine */
    u32 tp, pp;         /* engines of a stage, stages; tp * pp <= COLL_MAX */
    u32 rank[COLL_MAX]; /* by engine index: the world rank of its agent, for names and addresses */
    u32 node[COLL_MAX]; /* and its node, any numbers */
};
/* ERR_INPUT with both numbers when tp * pp is more than COLL_MAX, or 0 beside another. */
int coll_check(const struct coll_shape *s, struct error *err);
/* Bytes of the memory that the engines of a node share (memory_new with this size; pages are taken as they
 * are touched, so that most of it costs nothing). 0: a replica of one engine needs none. */
u64 coll_bytes(const struct coll_shape *s, u32 node);
/* Does the replica span nodes, so that agents have to relay? */
bool coll_relays(const struct coll_shape *s);

/* ---- for engines ----------------------------------------------------------------------------------------------*/
#define COLL_FOREVER UINT64_MAX
struct coll_spec {
    struct coll_shape shape;
    u32 me; /* engine index */
    void *memory;
    u64 bytes;   /* coll_bytes of this engine's node */
    u64 wait_ns; /* deadline of a call that names none */
    u64 spin_ns; /* 0 where cores are shared */
    u64 tick_ns;
    void (*tick)(void *arg);       /* a heartbeat; NULL: none */
    void (*wake_agent)(void *arg); /* something is in the outbound ring; NULL: nobody to wake */
    void *arg;                     /* of both */
};
struct coll_world;
/* Copies *spec; the memory stays the caller's. Does not wait for others. A shape of one engine needs no memory. */
struct coll_world *coll_open(const struct coll_spec *spec, struct error *err);
void coll_close(struct coll_world *w); /* NULL: nothing */

struct coll;                                   /* a group, owned by its world */
struct coll *coll_all(struct coll_world *w);   /* members by engine index */
struct coll *coll_stage(struct coll_world *w); /* the engines of this one's stage, by tp rank */
u32 coll_size(const struct coll *c);
u32 coll_me(const struct coll *c); /* this engine's number in the group: members are named by it below */

/* How a call is made. NULL: by one thread, with the world's deadline. A team: all `threads` threads make the
 * same call, each with its number; barrier waits for all of them. All return when all are done, with the same
 * result; err is filled for each. */
struct coll_how {
    u64 wait_ns; /* 0: the world's; COLL_FOREVER */
    bool
        lazy; /* coll_send: an agent that relays it is not woken before the next call that wakes it or waits, or coll_wake */
    u32 thread, threads;
    void (*barrier)(void *arg);
    void *arg;
};
enum coll_type { COLL_F32, COLL_BF16, COLL_F16 };
struct coll_reduce {
    const void *in; /* [count]; may be where coll_slot says: then nothing is copied */
    void *out;      /* [count]; may be in */
    size_t count;
    enum coll_type type;
    bool add; /* out += sum, as it is in its type, instead of out = sum; not with out = in */
};
/* out = sum of all members' in. Teams. */
int coll_all_reduce(struct coll *c, const struct coll_reduce *r, const struct coll_how *how,
                    struct error *err);
/* Where the in of the next call, an all_reduce of so many bytes, can be written in place (64-byte aligned),
 * or NULL: use own memory. Nothing is sent before that call. One thread; it may wait for a member that still
 * reads. */
void *coll_slot(struct coll *c, size_t bytes);
struct coll_gather { /* out [rows, n * bytes]: in each row, the row of member 0, of member 1, ... */
    const void *in;  /* [rows, bytes]; may be where it belongs in out */
    void *out;
    size_t rows, bytes;   /* of a row of one member */
    size_t ld_in, ld_out; /* bytes from row to row */
};
/* Teams. */
int coll_all_gather(struct coll *c, const struct coll_gather *g, const struct coll_how *how,
                    struct error *err);
/* To member root only; the others' out is not used. Teams. */
int coll_gather(struct coll *c, u32 root, const struct coll_gather *g, const struct coll_how *how,
                struct error *err);
/* The root's data to all. The root does not wait for the others, unless they are two calls behind. */
int coll_broadcast(struct coll *c, u32 root, void *data, size_t bytes, const struct coll_how *how,
                   struct error *err);
/* out [n, bytes]: block i is what member i had as block `me` of its in [n, bytes]. */
int coll_all_to_all(struct coll *c, const void *in, void *out, size_t bytes, const struct coll_how *how,
                    struct error *err);
/* Between two members of all (coll_all only). In order; send returns when the data may be changed, which may
 * be before the other has them. Both must name the same number of bytes. */
int coll_send(struct coll *c, u32 to, const void *data, size_t bytes, const struct coll_how *how,
              struct error *err);
int coll_receive(struct coll *c, u32 from, void *data, size_t bytes, const struct coll_how *how,
                 struct error *err);
/* What was sent lazily goes out, if nothing has taken it along. */
void coll_wake(struct coll_world *w);

/* ---- for engines with GPUs: NCCL -------------------------------------------------------------------------------
 * The same groups for memory of GPUs. Calls put work on the engine's one stream and return; the work of a call begins when
 * that of the calls before it on that stream is done, and nothing here waits for it. Who waits for the stream asks
 * coll_nccl_look meanwhile.
 *
 * NCCL moves bytes here and adds nothing up: ncclAllReduce promises no order of the members, and its order changes with
 * the length of a call and with its choice of algorithm. Sums in the order of members are made of all_to_all, all_gather and
 * additions of the caller's, so that they are those of the host's transports, bit for bit.
 *
 * The library, libnccl.so.2 (2.14 or later), is opened by coll_nccl_open; programs are built without it. Communicators are
 * made without blocking: the id that the group's first member makes travels through the group's own coll_broadcast, that
 * is through shared memory, and between nodes with the agents' MPI; then NCCL is asked until it is ready, with a
 * deadline. In the same way every call is asked about until NCCL has put it on the stream: that waits for no work of
 * the GPU, but for handshakes where a connection is used for the first time. (NCCL 2.28 starts a thread for each call of
 * such a communicator.)
 * Errors: a call that NCCL refuses, an asynchronous error, and a deadline that is over break all of it: every call
 * then returns that error, in NCCL's words with the call, and only coll_nccl_close is of use. Who is missing in a call
 * NCCL does not say: the members are named. Thread rule: one thread. */
struct coll_gpu {
    void *stream;     /* cudaStream_t, of the GPU that is the calling thread's */
    const char *uuid; /* that GPU's: no two members may have the same */
    u64 wait_ns;      /* until all members have come, and until they are connected */
};
/* Of the library here: 22809 is 2.28.9. ERR_NOT_FOUND says what to install. */
int coll_nccl_version(struct error *err);
struct coll_nccl;
/* Collective over all engines of w (at least two), which is used meanwhile and has to outlive it. Calls have w's deadline and
 * tick. Before NCCL is asked, members that have not come, have another version of the library or none, or a GPU that is
 * another member's, are named. */
struct coll_nccl *coll_nccl_open(struct coll_world *w, const struct coll_gpu *gpu, struct error *err);
/* Aborts what is on its way: work that waits for others ends, without a result. NULL: nothing. */
void coll_nccl_close(struct coll_nccl *n);
/* Of the stage's engines. out [tp, bytes]; in may be where it belongs in out. */
int coll_nccl_all_gather(struct coll_nccl *n, const void *in, void *out, size_t bytes, struct error *err);
/* The same, to member root only: its own block of out stays as it is, and its in is not used; nor is the others' out. */
int coll_nccl_gather(struct coll_nccl *n, u32 root, const void *in, void *out, size_t bytes,
                     struct error *err);
/* in, out [tp, bytes]: as coll_all_to_all. */
int coll_nccl_all_to_all(struct coll_nccl *n, const void *in, void *out, size_t bytes, struct error *err);
/* Between two engines of all, by engine index. The sender's stream may wait for the receiver's. */
int coll_nccl_send(struct coll_nccl *n, u32 to, const void *data, size_t bytes, struct error *err);
int coll_nccl_receive(struct coll_nccl *n, u32 from, void *data, size_t bytes, struct error *err);
/* Calls so far: the number of the last one. */
u64 coll_nccl_calls(const struct coll_nccl *n);
/* To be asked every now and then by who waits for the stream, for waited_ns so far, and knows that the first `done` calls
 * are done: asks NCCL for errors, and beats w's tick. Fails too when waited_ns are more than w's deadline, with the call that is not
 * done. */
int coll_nccl_look(struct coll_nccl *n, u64 done, u64 waited_ns, struct error *err);

/* ---- for agents: the relay between nodes ----------------------------------------------------------------------
 * For each engine that it has, an agent moves messages both ways, as opaque bytes:
 *   out: take -> send {generation, to, from, bytes} to rank[to] -> taken, until there is none;
 *   in:  a message of the current generation for this engine -> put. Messages of another generation are dropped.
 * A pair of engines has a bounded number of bytes under way: put finds room as long as the sender keeps the
 * contract, so agents keep no queue. The engine wakes its agent by spec.wake_agent; before it sleeps, the
 * agent looks at coll_relay_waiting once more after it has announced that. One thread. */
enum { COLL_RELAY_MOST = (128 << 10) + 64 }; /* bytes of a message */
struct coll_relay;
/* memory, bytes: the group memory of the engine's node. */
struct coll_relay *coll_relay_open(const struct coll_shape *s, u32 engine, void *memory, u64 bytes,
                                   struct error *err);
void coll_relay_close(struct coll_relay *r);
/* The engine's next message: a private copy, valid until the next call; NULL: none. *to: engine index. *len =
 * SIZE_MAX with NULL: the engine has written what it may not; kill it. */
const void *coll_relay_take(struct coll_relay *r, u32 *to, size_t *len);
void coll_relay_taken(struct coll_relay *r); /* it is on its way: room for the next */
bool coll_relay_waiting(struct coll_relay *r);
/* A message from another engine (`from` as its agent says). ERR_PEER: malformed, or more than may be under
 * way: the replica has to be started anew. */
int coll_relay_put(struct coll_relay *r, u32 from, const void *data, size_t len, struct error *err);

#endif
