/* The inside of the coll room: where things lie in the group's memory, and how its files work together.
 *
 *   memory.c   the layout of a node's group memory, from the shape alone
 *   wait.c     waiting for a word to reach a value: polling, sleeping, deadline, ticks
 *   sum.c      sums in the order of the members
 *   shm.c      collectives of a group in one node: slots
 *   link.c     messages between two engines: in a node, or by the agents
 *   messages.c collectives of a group that spans nodes, made of messages
 *   relay.c    the agents' side of links between nodes
 *   coll.c     the door: worlds, groups, which transport, errors
 */
#ifndef MPISERVE_COLL_INNER_H
#define MPISERVE_COLL_INNER_H

#include "mpiserve/coll.h"
#include <stdatomic.h>

enum {
    SLOT_BYTES = 512 << 10, /* of a member in a group: longer calls go in pieces */
    LINK_SLOTS = 32,        /* messages under way between two engines */
    LINK_BYTES = 128 << 10, /* of a message */
    NOBODY = UINT16_MAX,
};

/* ---- words in shared memory ------------------------------------------------------------------------------------
 * A counter that one side raises and others wait for. It counts modulo 2^32. */
struct counter {
    _Alignas(CACHE_LINE) _Atomic u32 value;
    _Atomic u32 sleepers;
};
static inline bool reached(u32 value, u32 want)
{
    return (i32)(value - want) >= 0;
}
static inline u32 counter_value(const struct counter *c)
{
    return atomic_load_explicit(&c->value, memory_order_acquire);
}
void counter_raise(struct counter *c, u32 value); /* and wakes who sleeps */
/* Until it has reached want: 0, or ERR_STATE when wait_ns are over. */
int counter_wait(struct coll_world *w, struct counter *c, u32 want, u64 wait_ns);

/* ---- layout ----------------------------------------------------------------------------------------------------*/
struct member {            /* of a group in one node */
    struct counter posted; /* phases for which this member's slot is in place */
    struct counter done;   /* pieces that it has finished reading */
    _Atomic u64 call[2];   /* what piece k belongs to, by k % 2 */
};
struct message {
    u32 len, kind;
    u32 peer;  /* between nodes: engine index of the other end */
    u32 value; /* CREDIT: messages taken */
    u8 data[LINK_BYTES];
};
enum message_kind { MESSAGE_DATA, MESSAGE_CREDIT };
struct link { /* one writer, one reader */
    struct counter put, taken;
    struct message slots[LINK_SLOTS];
};
struct place {              /* byte offsets; 0: not here */
    u32 n, local[COLL_MAX]; /* engines of the node, by index */
    u32 at[COLL_MAX];       /* engine index -> its place in local, or NOBODY */
    u64 all;                /* the group of all, if it lies in this node */
    u64 stage[COLL_MAX];    /* by pp rank */
    u64 links;              /* [n, n]: from, to */
    u64 relays;             /* [n] */
    u64 bytes;
};
struct relay_area { /* of one engine whose replica spans nodes */
    struct link out;
    struct counter credit[COLL_MAX]; /* messages of this engine that another one has taken */
    struct link in[];                /* by engine index */
};
void place_of(struct place *p, const struct coll_shape *s, u32 node);
u64 group_area_bytes(u32 n); /* struct member [n], then slots [2, n] */
u64 relay_area_bytes(u32 engines);
static inline struct member *group_members(u8 *area)
{
    return (struct member *)(void *)area;
}
u8 *group_slot(u8 *area, u32 n, u32 piece, u32 member);
static inline struct link *link_at(u8 *memory, const struct place *p, u32 from, u32 to)
{
    return (struct link *)(void *)(memory + p->links) + (size_t)p->at[from] * p->n + p->at[to];
}
static inline struct relay_area *relay_at(u8 *memory, const struct place *p, u32 engines, u32 engine)
{
    return (struct relay_area *)(void *)(memory + p->relays + p->at[engine] * relay_area_bytes(engines));
}
static inline u32 engines_of(const struct coll_shape *s)
{
    return s->tp * s->pp;
}

/* ---- objects ---------------------------------------------------------------------------------------------------*/
enum call_kind {
    CALL_ALL_REDUCE,
    CALL_ALL_GATHER,
    CALL_GATHER,
    CALL_BROADCAST,
    CALL_ALL_TO_ALL,
    CALL_SEND,
    CALL_RECEIVE
};
struct call { /* what is being done, for messages and for comparison */
    enum call_kind kind;
    u32 root;
    u64 bytes, wait_ns;
    bool lazy;
};
struct coll {
    struct coll_world *world;
    u32 n, me, member[COLL_MAX]; /* engine indices */
    u8 *area;                    /* NULL: messages */
    u64 calls;
    u32 piece, phase;         /* of the next one; the same at all members */
    u32 known_done[COLL_MAX]; /* a lower bound of the member's done */
    int rc;                   /* of thread 0, for its team */
};
struct coll_world {
    struct coll_spec spec;
    struct place place;
    u8 *memory;
    struct relay_area *relay;            /* NULL: all in one node */
    u32 sent[COLL_MAX], taken[COLL_MAX]; /* messages to and from an engine of another node */
    struct coll all, stage;
    u8 *scratch;            /* messages.c: [engines, LINK_BYTES] */
    _Atomic bool owes_wake; /* to the agent, for what was sent lazily */
    bool broken;            /* world_look */
    struct error err;
};

/* The world is broken; fills its error and err. who: engine index. */
int fail_missing(struct coll *c, const struct call *call, u32 who, struct error *err);
int fail_other(struct coll *c, const struct call *call, u32 who, const char *what, struct error *err);
const char *call_name(enum call_kind k);
/* What broke the world before, if something did. For thread 0 of a team only: it may break the world while
 * others of its team are still on their way into the same call. */
int world_look(const struct coll *c, struct error *err);

/* ---- sums ------------------------------------------------------------------------------------------------------*/
/* out[i] (+)= in[0][i] + in[1][i] + ... for i in [0, count). */
void sum_members(const void *const *in, u32 n, void *out, size_t count, enum coll_type type, bool add);
size_t type_bytes(enum coll_type type);

/* ---- rows as one run of bytes ----------------------------------------------------------------------------------*/
/* Bytes [at, at + n) of a member's [rows, bytes] one behind the other, from in, or to member's columns of out. */
void gather_pack(const struct coll_gather *g, u64 at, size_t n, u8 *to);
void gather_unpack(const struct coll_gather *g, u32 member, u64 at, size_t n, const u8 *from);

/* ---- transports: both have these -------------------------------------------------------------------------------*/
struct transport {
    int (*all_reduce)(struct coll *, const struct coll_reduce *, const struct call *, const struct coll_how *,
                      struct error *);
    /* to one or, root = NOBODY, to all */
    int (*gather)(struct coll *, const struct coll_gather *, const struct call *, const struct coll_how *,
                  struct error *);
    int (*broadcast)(struct coll *, void *data, const struct call *, struct error *);
    int (*all_to_all)(struct coll *, const u8 *in, u8 *out, size_t bytes, const struct call *,
                      struct error *);
};
extern const struct transport transport_shm, transport_messages;
static inline u32 thread_of(const struct coll_how *how)
{
    return how && how->threads ? how->thread : 0;
}
static inline u32 threads_of(const struct coll_how *how)
{
    return how && how->threads ? how->threads : 1;
}
/* Ends what thread 0 did alone: all threads of the team get its result. */
int team_result(struct coll *c, const struct coll_how *how, int rc, struct error *err);
void team_barrier(const struct coll_how *how);

/* ---- messages --------------------------------------------------------------------------------------------------*/
/* At most LINK_BYTES each. */
int link_send(struct coll *c, u32 to, const void *data, size_t bytes, const struct call *call,
              struct error *err);
int link_receive(struct coll *c, u32 from, void *data, size_t bytes, const struct call *call,
                 struct error *err);

#endif
