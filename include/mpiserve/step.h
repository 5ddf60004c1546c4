/* step: the contract between a replica's scheduler (in its leader's agent) and its engines.
 *
 * A step is one forward pass. The scheduler writes step frames into the step ring, the engine answers each
 * with one results frame in the result ring, in order. Steps are deltas over the engine's row table: the
 * table is only a cache, which seq_new rebuilds exactly (prompt + emitted tokens), so an engine's death loses
 * nothing. At most STEP_IN_FLIGHT steps are unanswered, with several
 * stages one more than there are stages, STEP_IN_FLIGHT_MOST at most. All integers are little-endian; a frame is checked by
 * the reader (step_view/results_view) before use.
 *
 * A row's tokens live in the engine's history of that row: seq_new puts prompt + emitted tokens there,
 * sampling appends. So a step names positions, not tokens, and the next step can be planned before the last
 * one's tokens are known; a prompt travels once. (SRC_RING: tokens that travel with the step, for drafts.)
 * Rows of a sequence follow each other without gap. The first one may begin behind full blocks (pos > 0, a multiple of block_size)
 * that already hold what another sequence computed of the same tokens: blocks before pos are only read, so that many rows
 * can name them.
 * Only committed results count. Results of an old generation or row_gen are dropped by the scheduler; steps
 * of another generation are refused by the engine. Block ops run before KV writes, so that running a step
 * again gives the same state.
 *
 * The channel is the shared memory of one agent and its engine: boot parameters, state words, the two rings.
 *
 * Groups: a replica of pp x tp engines (boot.group; engine index = pp_rank * tp + tp_rank) gets its steps in
 * the channel of engine 0, the root, which hands every frame to the others through the group (coll.h) as it
 * takes it. All keep the same row table. The engine of the last stage with tp_rank 0, the sampler, samples
 * and answers in its own channel; the others answer nothing: their channels have no frames, only boot and
 * state words.
 *   pp = 1: root and sampler are one. It hands on with each step what it sampled in the one before, so that
 *           histories agree, and two steps may be in flight as with one engine.
 *   pp > 1: a row whose last token is not committed is not planned. A row of one sampled token carries it
 *           (SRC_RING, n_tok 1): who has no such token appends it to its history; who has it (the sampler)
 *           checks that it is the same.
 * A canary goes through all engines. An engine that waits for others ticks heartbeat_ns; one that waits inside a step
 * longer than group_wait_ms, or whose group is broken, ends with the reason in its channel.
 */
#ifndef MPISERVE_STEP_H
#define MPISERVE_STEP_H

#include "mpiserve/base.h"
#include "mpiserve/coll.h"
#include "mpiserve/request.h"
#include <stdatomic.h>

enum {
    STEP_KV_GROUPS = 4,
    STEP_IN_FLIGHT = 2,
    STEP_IN_FLIGHT_MOST = 8
}; /* one engine or stage; several stages */
enum { STEP_MAGIC = 0x5045544d, RESULTS_MAGIC = 0x5453524d, CHANNEL_MAGIC = 0x4e48434d, CHANNEL_VERSION = 5 };

/* Steps that may be unanswered with so many stages. */
static inline u32 step_in_flight(u32 stages)
{
    return stages > 1 ? MIN_OF(stages + 1, (u32)STEP_IN_FLIGHT_MOST) : STEP_IN_FLIGHT;
}
/* The ring of a channel with more than two steps in flight, and the largest step: whatever they hold, all steps in flight have room, with
 * as much again for what does not fit before the ring's end. two: the ring for two steps. */
static inline u32 step_ring_share(u32 in_flight)
{
    u32 room = STEP_IN_FLIGHT;
    while (room < in_flight) room *= 2;
    return room;
}
static inline size_t step_ring_bytes(size_t two, u32 in_flight)
{
    return two * (step_ring_share(in_flight) / STEP_IN_FLIGHT);
}
/* most: of the ring, see ring_max_frame. */
static inline size_t step_most_bytes(size_t most, u32 in_flight)
{
    return most / step_ring_share(in_flight);
}

enum step_kind {
    STEP_FORWARD = 1,
    STEP_DUMMY,
    STEP_CANARY
}; /* DUMMY: answered without work (gang padding). CANARY: one
token on the scratch block, proves progress. Both carry nothing (all n_* and data_len 0) */
enum row_src { SRC_HISTORY, SRC_RING };
enum row_want {
    WANT_NOTHING, /* a prompt chunk that is not the last */
    WANT_SAMPLE,
    WANT_HIDDEN /* the vector of a sequence with pooling: with the prompt's last token */
};

struct step {
    u32 magic, bytes;  /* of the frame */
    u64 id, gang_step; /* id rises by 1 within a generation, from 1 */
    u32 gen;           /* engine generation */
    u32 numerics;      /* numerics class (hash); must equal the channel's */
    u32 crc;           /* crc32c of the frame with this field 0 */
    u8 kind;           /* enum step_kind */
    u8 pad[3];
    u32 n_new, n_free, n_rows, n_ops, n_tok; /* n_tok = sum of rows' n_tok */
    u32 gang_max_tok, bucket;
    u32 data_len; /* bytes of the data area */
    u64 need_committed;
    /* then: seq_free[n_free], seq_new[n_new], block_op[n_ops], row[n_rows], data (each 8-byte aligned);
     * executed in this order */
};
struct seq_free {
    u32 row, row_gen;
};
struct seq_new {
    u32 row, row_gen; /* row < channel max_rows */
    u64 request;
    u32 prompt_len; /* of the n_tok tokens, those of the prompt (the rest was emitted before) */
    u32 n_tok;      /* history now: prompt + emitted */
    u32 max_len;    /* history never grows beyond this */
    u32 pooling;    /* enum pooling: only where the model's files say the same. Else than NONE: no tokens are
                                 sampled; MEAN and CLS: the first row begins at position 0. Of an encoder
                                 one row is the whole prompt */
    u32 second;     /* as in struct request */
    u32 adapter;    /* of the boot, from 1; 0: none */
    struct sampling sampling; /* seed is the sample's own */
    struct span tokens;       /* i32[n_tok], in the data area */
    struct span bias, allowed, bad_words, eos_ids,
        stop_ids; /* as in struct request; eos/stop ids are for min_tokens masks */
};
struct row {
    u32 row, row_gen;
    u32 pos; /* absolute position of the first token of this step */
    u16 n_tok, n_draft;
    u8 src, want, pad[2];
    u32 tok_off;                             /* SRC_RING: bytes into the data area */
    i32 mask_slot;                           /* -1: no grammar mask */
    struct span block_delta[STEP_KV_GROUPS]; /* u32 block numbers appended to the row's table */
};
enum block_op_kind { BLOCK_COPY, BLOCK_ZERO, BLOCK_OUT, BLOCK_IN };
struct block_op {
    u8 op, group, pad[2];
    u32 src, dst;
};

struct results {
    u32 magic, bytes;
    u64 step; /* id of the step answered */
    u32 gen, crc;
    u8 kind, failed,
        pad[2]; /* failed: the engine refuses the step (stale generation, malformed): nothing was done */
    u32 n;      /* rows with want = SAMPLE or HIDDEN, in the step's order */
    u32 usec;   /* time of the forward pass */
    u32 data_len;
    u64 commit;
    /* then: result[n], data */
};
enum result_flags {
    RESULT_NONFINITE = 1, /* logits, or numbers of a vector, that are not finite */
    RESULT_NOTHING = 2,   /* bias, allowed, min_tokens and bad words leave no token */
};
struct result {
    u32 row, row_gen;
    u32 pos0; /* position of the first output token */
    u8 n_out, n_accepted, flags, pad;
    struct span tokens;   /* i32[n_out] */
    struct span logprobs; /* struct token_logprob[n_out][1 + n_logprobs]; len counts entries; 0: none */
    struct span hidden;   /* f32[hidden_size], want = HIDDEN (n_out = 0); len 0: none */
    /* any flag: n_out = 0, hidden.len = 0; the row is dead until seq_free, its later rows are answered the same way */
};

/* ---- frames: building and reading -------------------------------------------------------------------------------*/
/* Where the parts of a checked frame are. Pointers go into the frame. */
struct step_view {
    const struct step *head;
    const struct seq_free *free;
    const struct seq_new *new;
    const struct block_op *ops;
    const struct row *rows;
    const u8 *data;
};
/* Checks everything that can be checked without the row table: magic, sizes, crc, spans inside the data area,
 * enum values, lengths that belong together. Not checked: row and block numbers, token ids, positions (the
 * engine does). frame: 8-byte aligned, not changed by anybody while the view is used. ERR_PEER. */
int step_view(struct step_view *v, const void *frame, size_t len, struct error *err);
struct results_view {
    const struct results *head;
    const struct result *rows;
    const u8 *data;
};
static inline const void *step_at(const struct step_view *v, struct span s)
{
    return v->data + s.off;
}
static inline const void *results_at(const struct results_view *v, struct span s)
{
    return v->data + s.off;
}
int results_view(struct results_view *v, const void *frame, size_t len, struct error *err);
/* Frames are built in two passes, so that nothing moves: count, then lay out in memory of step_frame_bytes()
 * (8-byte aligned, usually a claim of the ring), fill through the view's pointers (cast), then seal (sets
 * magic, bytes, crc). Layout copies head and zeroes the tables, not the data area. An array in the data area
 * should start at a multiple of 8 (4 is demanded). */
size_t step_frame_bytes(
    const struct step *head); /* from the n_* and data_len of head; may pass channel_max_frame() */
void step_frame_layout(void *frame, const struct step *head, struct step_view *v);
void step_frame_seal(void *frame);
size_t results_frame_bytes(const struct results *head);
void results_frame_layout(void *frame, const struct results *head, struct results_view *v);
void results_frame_seal(void *frame);

/* ---- the channel ---------------------------------------------------------------------------------------------
 * One memfd made by the agent (sealed against resizing, kept out of core dumps). boot is written before the
 * engine starts and read-only afterwards. The engine maps what it is handed and allocates nothing else of size.
 * File descriptors are passed at fixed numbers.
 *
 * Life: agent: channel_new; for each engine: no engine alive, channel_reset, spawn; work; kill and reap; ...
 * channel_free. (proc does the middle part.) Engine: channel_attach, work, exit.
 * Trust: the engine may go mad. The agent takes nothing from the shared memory without a check, and reads results
 * as a private copy, so that what it has checked stays so. Offsets and sizes are the agent's own.
 * Sleep: a side announces that it will block, looks at its ring once more, then blocks; the other side looks at
 * the announcement after it has published. So no wake-up is lost, and towards a busy peer nothing costs a system
 * call. */
enum channel_fd {
    FD_CHANNEL = 3,
    FD_TO_ENGINE = 4,
    FD_TO_AGENT = 5,
    FD_WEIGHTS = 6,
    FD_KV = 7,
    FD_GROUP = 8 /* only where a replica has several engines */
};               /* 4, 5: eventfds */

enum { BOOT_ADAPTERS = 32 };
struct boot_adapter {
    char name[128], path[PATH_LEN];
};
struct engine_boot { /* the reservation: all an engine may use */
    char model[PATH_LEN];
    char compute[16]; /* "f32", "bf16" or (cuda) "f16": resolved, never "auto"; "null": no maths */
    char isa[16];     /* "portable", "avx2", "avx512", "avx512bf16": the job's level; "cuda": the device */
    char quantization[8], load_format[8], kv_cache_dtype[8]; /* as in engine_ask */
    struct boot_adapter adapters[BOOT_ADAPTERS];             /* rows name them by number, from 1 */
    u32 n_adapters;
    u64 weights_bytes, kv_bytes;
    u32 gen, numerics;
    u32 rank; /* for names in messages */
    char device
        [48]; /* cuda: the UUID; weights_bytes and kv_bytes are then the device's, and the two memories only 4096 bytes */
    u32 agent_pid; /* compared with getppid after PR_SET_PDEATHSIG */
    u32 block_size,
        n_blocks; /* of KV group 0; block 0 is the scratch block of canaries and is never handed out */
    u32 max_rows, max_step_tokens, max_model_len, max_logprobs;
    u32 threads;
    u32 spin_us; /* how long to poll the ring before sleeping; 0 where cores are shared */
    u8 loader;   /* 1: this engine fills the weights image; 0: it waits for it */
    u8 log_level, pad[2];
    u32 null_step_us; /* "null": how long a step takes */
    u64 cpus[16];     /* cpuset bits; all zero: do not bind */
    /* the replica, see "groups" below; all zero for one engine */
    struct coll_shape group;
    u32 tp_rank, pp_rank;
    u64 group_bytes;   /* of the memory at FD_GROUP: coll_bytes of this engine's node */
    u32 group_wait_ms; /* how long to wait for another engine inside a step; 0: 20 s */
};
enum engine_state { ENGINE_STARTING, ENGINE_LOADING, ENGINE_READY, ENGINE_FAILED };
struct channel_head {
    u32 magic, version;
    u64 ring_off[2], ring_size[2]; /* steps, results */
    struct engine_boot boot;
    _Atomic u32 state;        /* enum engine_state, by the engine */
    _Atomic u64 heartbeat_ns; /* clock_ns() of the engine's last sign of life: every 100 ms at most in long
                                 work and when idle >= 1 s */
    _Atomic u64 loaded_bytes; /* progress of the loader */
    _Atomic u32 engine_sleeps, agent_sleeps; /* announced before blocking: the other side rings only then */
    _Atomic u64
        steps_done; /* id of the last step that this engine has executed: progress of those that answer none */
    _Atomic u32 error_set;
    char error[768]; /* why the state is FAILED */
};
/* Header of the weights memfd (image follows at 4096): the loader sets ready when all is in place. */
struct weights_head {
    _Atomic u32 ready; /* 0 empty, 1 loading, 2 ready */
    u32 pad;
    u64 bytes, fingerprint;
};
enum { WEIGHTS_IMAGE_OFFSET = 4096 };

struct channel; /* one side's handle */
/* Agent: makes memfd and eventfds. ring_size: power of two; a frame may be half of it. */
struct channel *channel_new(size_t ring_size, struct error *err);
/* Engine: from the fixed descriptors. */
struct channel *channel_attach(struct error *err);
void channel_free(struct channel *c);
struct channel_head *channel_head(struct channel *c);
int channel_fd(const struct channel *c,
               enum channel_fd which); /* FD_WEIGHTS, FD_KV: -1, they are not the channel's */
/* Agent, before each (re)start, when no engine is alive: empties rings and eventfds, clears all state words,
 * state STARTING, heartbeat now, boot as given. */
void channel_reset(struct channel *c, const struct engine_boot *boot);
/* Engine: the reason, then state FAILED. */
void channel_fail(struct channel *c, const struct error *err);
/* Agent: the engine's reason, NUL-terminated whatever is in the memory; "" when it gave none. Returns out. */
const char *channel_error(struct channel *c, char *out, size_t size);
/* Agent side. */
void *channel_step_claim(struct channel *c, size_t len);  /* NULL: no room */
void channel_step_publish(struct channel *c, size_t len); /* rings the engine if it sleeps */
/* See ring_peek: NULL with *len = SIZE_MAX when the ring is corrupt (kill the engine). A private copy, 8-byte
 * aligned, valid until the next peek. */
const void *channel_result_peek(struct channel *c, size_t *len);
void channel_result_consume(struct channel *c);
bool channel_agent_prepare_sleep(
    struct channel *c);                     /* before epoll on FD_TO_AGENT; false: a result is waiting */
void channel_agent_woke(struct channel *c); /* after every epoll that followed it: empties the eventfd */
/* Engine side. */
const void *channel_step_peek(struct channel *c, size_t *len);
void channel_step_consume(struct channel *c);
void *channel_result_claim(struct channel *c, size_t len);
void channel_result_publish(struct channel *c, size_t len);
/* Returns when a step is there, after max_ns, or for no reason; polls for spin_ns, and dwells after a step (base.h), before it
 * blocks. */
void channel_engine_wait(struct channel *c, u64 spin_ns, u64 max_ns);
/* Wakes the agent if it has announced that it sleeps: something else than a result is waiting (coll_relay). */
void channel_wake_agent(struct channel *c);
size_t channel_max_frame(const struct channel *c); /* bytes, of steps and of results */

#endif
