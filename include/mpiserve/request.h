/* request: what travels with a client's call inside the job: the request towards a replica, chunks of tokens
 * back.
 *
 * Both are flat: one block of memory without pointers, so that they go through MPI and queues as they are.
 * All offsets count bytes from the start of the block. What arrives is checked once with request_check /
 * chunk_check; after that the getters need no bounds checks. Level 1: known to ingress (builds requests,
 * reads chunks), batch (the reverse) and agent. Thread rule: plain data. */
#ifndef MPISERVE_REQUEST_H
#define MPISERVE_REQUEST_H

#include "mpiserve/base.h"

struct span {
    u32 off, len; /* bytes from the start of the block (or of a step's data area); number of items */
};
/* s lies in an area of that many bytes and starts aligned; no sum can overflow. */
bool span_fits(struct span s, u64 area, size_t item_size, size_t align);

/* How tokens are chosen; values are valid (ranges of the API) and defaults resolved when a request is built.
 * The order of the steps is: bias, allowed, min_tokens; repetition, frequency, presence penalty; bad words;
 * temperature (0: argmax, lowest id of a tie); min_p, top_k, top_p; draw keyed by (seed of the
 * sample, absolute position). */
struct sampling {
    float temperature, top_p, min_p; /* top_p in (0,1], 1 = off; min_p 0 = off */
    float repetition_penalty, presence_penalty, frequency_penalty; /* 1, 0, 0 = off */
    u32 top_k;                                                     /* 0 = off */
    i32 n_logprobs; /* -1: none wanted; else the chosen token's and that many best */
    u64 seed;
    u32 min_tokens, max_tokens; /* of the output; max_tokens >= 1 and already limited by the context */
    u8 ignore_eos, pad[7];
};
struct token_bias {
    i32 id;
    float bias;
};
/* NULL, or the name of the first field that is out of range. */
const char *sampling_fault(const struct sampling *s);
/* words: lengths and ids as in struct request; every length inside, every id in [0, vocab). */
bool bad_words_ok(const i32 *words, u32 len, u32 vocab);

/* What is asked for instead of new tokens: one vector, made of the final norm's outputs at the prompt's positions. */
enum pooling {
    POOLING_NONE, /* tokens */
    POOLING_LAST, /* of the last position */
    POOLING_MEAN, /* the mean of all positions */
    POOLING_CLS,  /* of the first position */
};

enum { REQUEST_MAGIC = 0x5152504d, CHUNK_MAGIC = 0x4b48434d, REQUEST_MAX_SAMPLES = 128 };
struct request {
    u32 magic, bytes; /* of the whole block */
    u64 id;           /* unique in the job: ingress index << 48 | counter from 1 */
    i64 priority;     /* lower runs earlier */
    u64 deadline_ns;  /* time left when it was sent, 0: none */
    u32 n_samples;    /* sequences to make, >= 1; sample s draws with seed + s */
    u32 has_session;  /* 0, 1 */
    u64 session;      /* for routing: hash of what the client calls its session; any value */
    u32 pooling;      /* enum pooling; else than NONE: n_samples 1, sampling plays no part */
    u32 second;       /* of two texts, the token from which on tokens are of type 1; 0: all are of type 0 */
    u32 adapter, pad; /* of the deployment, from 1; 0: the model as it is */
    struct sampling sampling;
    struct span prompt;    /* i32 token ids, len >= 1 */
    struct span bias;      /* struct token_bias, ids distinct */
    struct span allowed;   /* i32 ids; len 0: all */
    struct span bad_words; /* i32: for each word its length, then its ids */
    struct span eos_ids;   /* i32: end of sequence (finish "stop", no stop_reason) unless ignore_eos */
    struct span stop_ids;  /* i32: stop_token_ids (finish "stop", stop_reason = id) */
};
/* Builds a block: head's scalars are copied (session: 0 without has_session), spans are set from the arrays. Returns malloc'd memory (free());
 * NULL when it would pass 2 GiB. Contents are request_check's business. */
struct request_parts {
    const i32 *prompt, *allowed, *bad_words, *eos_ids, *stop_ids;
    const struct token_bias *bias;
    u32 n_prompt, n_allowed, n_bad_words, n_eos_ids, n_stop_ids, n_bias;
};
struct request *request_build(const struct request *head, const struct request_parts *parts);
/* Every span inside the block and aligned, ids within [0, vocab), bad_words well formed,
 * n_samples 1..REQUEST_MAX_SAMPLES (1 for a vector), sampling values in range. ERR_PEER: not a block; ERR_INPUT: a value,
 * where = the API's name of the field. block: 8-byte aligned. */
int request_check(const void *block, size_t len, u32 vocab, struct error *err);
static inline const void *request_at(const struct request *r, struct span s)
{
    return (const u8 *)r + s.off;
}

/* ---- chunks: new tokens of one sample, or a vector, or an end ------------------------------------------------------------*/
enum finish {
    FINISH_NONE,   /* more will come */
    FINISH_STOP,   /* EOS, or stop_id >= 0 */
    FINISH_LENGTH, /* max_tokens or context */
    FINISH_ABORT,  /* cancelled: nobody waits for it */
    FINISH_ERROR,  /* this request alone failed; error text in the chunk */
    FINISH_RETRY,  /* the replica goes away (drain deadline, given up): run it elsewhere or answer 503 */
};
struct token_logprob {
    i32 id;
    float logprob; /* natural, of the distribution before bias, penalties and temperature */
    i32 rank;      /* 1 + number of better tokens */
};
#define CHUNK_NO_LOGPROBS 0xffffffffu
enum { CHUNK_MAX_ERROR = 1024, CHUNK_MAX_BYTES = 1 << 30 };
struct chunk {
    u32 magic, bytes;
    u64 request;
    u32 sample;
    u32 first; /* output index of the first token here: chunks are deduplicated by (request, sample, first) */
    u32 n_tokens; /* >= 0 */
    u32 n_top;    /* logprobs: each token has 1 + n_top entries (chosen first, then the best, descending);
                     CHUNK_NO_LOGPROBS */
    u32 n_cached; /* prompt tokens taken from the prefix cache */
    i32 stop_id;  /* -1: none */
    u8 finish;    /* enum finish */
    u8 last;      /* no more chunks for the whole request: its slot is free */
    u16 error_len;
    struct span tokens, logprobs, error;
    struct span vector; /* f32; of a request with pooling, once: with FINISH_STOP and without tokens */
};
/* Appends one chunk block, 8-byte aligned, to a buf (a CHUNK message is a row of such blocks). Spans are set
 * here; an error text (NULL: none) is cut at CHUNK_MAX_ERROR bytes and has no NUL in the block. */
void chunk_add(struct buf *to, const struct chunk *head, const i32 *tokens,
               const struct token_logprob *logprobs, const char *error);
/* The same of a chunk whose only content is a vector of n numbers. */
void chunk_add_vector(struct buf *to, const struct chunk *head, const float *vector, u32 n);
/* The chunk at *pos of a message, advancing *pos; NULL at the end (err->code = 0) or on a malformed block
 * (err->code < 0). msg: 8-byte aligned. */
const struct chunk *chunk_next(const void *msg, size_t len, size_t *pos, struct error *err);
static inline const void *chunk_at(const struct chunk *c, struct span s)
{
    return (const u8 *)c + s.off;
}

/* ---- slot token: names one reservation of a slot (slots.h), valid once; travels in front of a request -----------*/
struct slot_token {
    i32 replica; /* -1: none */
    u16 slot, epoch;
    u32 seq;
};

/* ---- reservation id: 128 random bits; names a slot that a client holds (route.h). Outside 32 hex digits ----------------*/
struct reservation_id {
    u64 bits[2];
};

#endif
