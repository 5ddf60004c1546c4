/* batch: the scheduler of a replica: continuous batching with chunked prefill over paged KV.
 *
 * Pure: no clock, no I/O, no randomness; time and events are arguments, so tests replay it. All state of
 * running requests lives here, outside the engine: when the engine dies, batch_engine_lost makes every
 * running sequence be sent anew (seq_new with prompt + emitted tokens) to the next one, and its output goes
 * on identically.
 *
 * One request makes n_samples sequences. A sequence waits, runs (has a row, blocks), or ends. Order: by
 * priority, then arrival. A step takes all decoding sequences first (one token each), then prompt chunks in
 * order, up to max_step_tokens tokens and rows. With in_flight = 2 the next step is planned before the last
 * one's tokens are known (positions only); a sequence that turns out to have ended drops the surplus result.
 * Blocks are reserved as a sequence grows; when none is free the youngest running sequence is preempted (its
 * blocks freed, it waits and is rebuilt later), never the oldest, so that the replica always progresses. A
 * freed block is reused only after every step planned before the free has been committed.
 *
 * Prefix cache (kv.h): a block full of committed tokens stays findable when its sequence ends or is preempted, until somebody needs
 * the memory; a sequence that gets a row starts behind the blocks that are cached of its tokens (prompt, and
 * what it has emitted), but always computes its last token, whose logits are needed. Samples of one request: those behind the first
 * wait until its prompt is committed, and share it. Only full blocks are shared, and nobody writes into those. With the
 * engine's memory (batch_engine_lost), or when a sequence gave numbers that are not finite, the cache goes as a whole.
 *
 * Pipeline stages (staged): only the last one samples, so a sequence whose last token is not known yet is in no further step, and the
 * step that goes on with it carries the token (SRC_RING). What decodes is dealt over the steps in flight, so that each stage has
 * one to work on; chunks of a prompt follow each other without waiting.
 *
 * Requests with pooling: the prompt is computed and nothing is sampled; the one result is a vector, then the sequence ends
 * (FINISH_STOP). One that needs all positions, or the first, finds nothing in the prefix cache, but fills it.
 *
 * Encoders (whole): each position sees all of them, so that a prompt is in one step as a whole, and no block of it is of use to another
 * one: prefix_cache must be off. A prompt longer than max_step_tokens is refused.
 *
 * A request that was in the steps when the engine died `max_kills` times (2) fails alone: crash blame goes to
 * the requests of the steps in flight at each death. */
#ifndef MPISERVE_BATCH_H
#define MPISERVE_BATCH_H

#include "mpiserve/base.h"
#include "mpiserve/kv.h" /* enum kv_change */
#include "mpiserve/request.h"
#include "mpiserve/step.h"

struct batch_spec {
    u32 max_rows, max_step_tokens, max_model_len;
    u32 block_size, n_blocks; /* block 0 is never handed out */
    u32 in_flight;            /* 1..STEP_IN_FLIGHT_MOST */
    bool staged;              /* several pipeline stages: see above */
    u32 max_kills;
    u32 numerics;
    u32 hidden;       /* numbers of a vector (requests with pooling); 0: the model makes none */
    size_t max_frame; /* largest step frame the channel takes */
    bool whole;       /* an encoder: see above */
    bool prefix_cache;
    /* Sequences of one adapter share cached blocks, where this is equal of their prompts' lengths; a pure function. NULL: always. */
    u32 (*prefix_kind)(const void *arg, u32 prompt_len);
    const void *prefix_arg;
    u32 n_changes; /* of the prefix cache that are kept for batch_next_change; 0: nobody asks */
};
struct batch_counts {
    u32 running, waiting;          /* sequences */
    u32 free_blocks, total_blocks; /* free: takeable, cached ones without users too */
    u64 prompt_tokens, generated_tokens, preemptions, steps, kills;
    u64 prefix_queries,
        prefix_hits; /* tokens: of sequences when they first got a row, and those found in the cache then */
};
struct batch;
struct batch *batch_new(const struct batch_spec *spec, struct error *err);
void batch_free(struct batch *b);
/* Takes a copy of the (checked) request. origin: the caller's own number (ingress), given back with chunks.
 */
int batch_add(struct batch *b, const struct request *r, u32 origin, u64 now_ns, struct error *err);
/* The request's sequences end with FINISH_ABORT, last set on the final chunk. Unknown ids: false. */
bool batch_cancel(struct batch *b, u64 request);
/* Ends every request, running or waiting, with this finish (drain deadline: FINISH_RETRY). */
void batch_end_all(struct batch *b, enum finish how);

/* The engine of generation gen is ready: all rows start empty. */
void batch_engine_ready(struct batch *b, u32 gen);
/* The engine died: steps in flight are forgotten, their requests blamed, all rows are to be rebuilt. */
void batch_engine_lost(struct batch *b, bool blame);
/* Anything to plan now? (engine ready, fewer steps in flight than allowed, work there) */
bool batch_wants_step(const struct batch *b);
/* Plans the next step. Returns the frame (valid until the next call on b) and its length, or NULL when there
 * is nothing to do now. The caller must send it, in order. */
const void *batch_plan(struct batch *b, u64 now_ns, size_t *len);
/* A step without work that proves that the engine makes progress; send it like a planned one. NULL when the engine is not up or
 * a step is in flight (which proves as much). */
const void *batch_canary(struct batch *b, size_t *len);
u32 batch_steps_in_flight(const struct batch *b);
/* A results frame of the engine (checked with results_view by the caller). Stale ones are dropped and
 * counted. */
int batch_commit(struct batch *b, const struct results_view *v, u64 now_ns, struct error *err);

/* Output since the last call: calls fn for each origin that has chunks, with a row of chunk blocks (one CHUNK
 * message). */
void batch_flush(struct batch *b, void (*fn)(void *arg, u32 origin, const void *msg, size_t len), void *arg);
bool batch_has_output(const struct batch *b);
/* Requests that ended (their last chunk was flushed) since the last call: the agent frees their slots. */
bool batch_next_ended(struct batch *b, u64 *request);
bool batch_idle(const struct batch *b);     /* no request left */
bool batch_computes(const struct batch *b); /* a sequence runs or waits */
/* What the prefix cache holds, for routing: kv_next_change and kv_hashes of its blocks. */
enum kv_change batch_next_change(struct batch *b, u64 *hash);
u32 batch_cached(const struct batch *b, u64 *out, u32 max);
void batch_counts(const struct batch *b, struct batch_counts *out);

#endif
