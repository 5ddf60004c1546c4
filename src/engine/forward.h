/* forward: one forward pass of a model over an ops table. Inside the engine room.
 *
 * An encoder gets whole sequences: every position sees all of them, so they are in one call from position 0 on.
 *
 * A sequence's logits depend on its tokens and the numerics class alone: not on the batch, the chunking of its
 * prompt, the threads (batch invariance). With several engines in a replica each makes the same calls, with the same
 * sequences but for the ids of their tokens, which only the first stage looks at; the first engine of the
 * last stage gets the logits. Thread rule: one caller; work is spread over the pool it is given. */
#ifndef MPISERVE_ENGINE_FORWARD_H
#define MPISERVE_ENGINE_FORWARD_H

#include "engine/shard.h"
#include "engine/weights.h"
#include "mpiserve/base.h"
#include "mpiserve/coll.h"
#include "mpiserve/device.h"
#include "mpiserve/model.h"

struct fwd_seq {       /* the part of one sequence that a step computes */
    const i32 *tokens; /* [n_tok] */
    u32 pos, n_tok;    /* absolute position of tokens[0] */
    const u32 *blocks; /* block table: position p is in blocks[p / block_size]; covers pos + n_tok - 1 */
    bool want_logits;  /* of the last token */
    struct {
        u32 first, n; /* among these tokens */
        float *
            sum; /* [model_vector]: the final norm's rows of theirs (an encoder's: the last layer's), or what a
                         classifier's head makes of them, are added to it, in order; with a device: there */
        bool begins; /* whatever the sum was, it begins with the first of these */
    } hidden;        /* n 0: not wanted. As batch invariant as logits; only where forward_has_logits */
    u32 prompt;  /* tokens of its prompt: see rope_frequencies; where a length does not matter, anything */
    u32 second;  /* encoders: the position from which on tokens are of type 1; 0: none */
    u32 adapter; /* by number in config's load.adapters, from 1; 0: none */
};
struct forward;
struct forward_spec {
    const struct model_config *config;
    struct shard shard;       /* shard_whole, or this engine's part: of weights and KV too */
    struct coll *all, *stage; /* the replica's groups; NULL: one engine */
    struct coll_nccl *gpus;   /* the same between devices */
    const struct weights *weights;
    const struct ops *ops;
    enum compute compute;
    struct pool *pool;     /* not looked at with a device */
    struct device *device; /* weights, kv and all work are there, ops is ops_cuda(); NULL: on the host */
    bool on_device;        /* forward_work_bytes: of a device, whichever; forward_new looks at device */
    void *kv;              /* forward_kv_bytes of memory, 64-byte aligned, zeroed or not */
    u32 block_size, n_blocks, max_step_tokens, max_rows; /* block_size: a multiple of KV_TILE */
    u32 max_seq_blocks; /* with a device: of a sequence's block table, which travels there with each step */
};
/* K and V of all layers: f32 with COMPUTE_F32, else bf16 (half the memory and reads; sums stay f32). */
size_t forward_kv_bytes(const struct model_config *c, const struct shard *part, enum compute compute,
                        u32 n_blocks, u32 block_size);
/* Bytes that forward_new allocates where it works; looks at config, shard, on_device and max_* only. */
size_t forward_work_bytes(const struct forward_spec *spec);
/* Whether a device can run such a model; looks at config, shard and compute. ERR_UNSUPPORTED names the part or the size that it cannot. */
int forward_check_device(const struct forward_spec *spec, struct error *err);
/* The number format of a compute. */
static inline enum dtype compute_dtype(enum compute c)
{
    return c == COMPUTE_F32 ? DTYPE_F32 : c == COMPUTE_BF16 ? DTYPE_BF16 : DTYPE_F16;
}
/* Copies *spec; what it points to must outlive the forward. Allocates all working memory. */
struct forward *forward_new(const struct forward_spec *spec, struct error *err);
void forward_free(struct forward *f);
/* Computes n sequences (n_tok >= 1, sum <= max_step_tokens, at most max_rows want logits (of a model that makes vectors: one, of an encoder none); token ids < vocab); rows of logits for those that want them, in order, valid until the
 * next call: [n_wanted, vocab] f32. Of several engines only forward_has_logits gets them; elsewhere what is
 * returned is only not NULL.
 * NULL: the group is broken (forward_error), and the forward of no further use. With a device the logits are
 * there, and the work is only asked for: errors are device_finish's. */
const float *forward_run(struct forward *f, const struct fwd_seq *seqs, u32 n);
/* The same, logits of every position: [sum n_tok, vocab]; for tests and prompt log-probabilities. The first call
 * allocates max_step_tokens rows; NULL when there is no memory for them. */
const float *forward_run_all(struct forward *f, const struct fwd_seq *seqs, u32 n);
bool forward_has_logits(const struct forward_spec *s);
const struct error *forward_error(const struct forward *f);
/* Blocks of the KV pool, all layers together. */
void forward_copy_block(struct forward *f, u32 to, u32 from);
void forward_zero_block(struct forward *f, u32 block);
/* As bytes; on the host only. */
void *forward_block(const struct forward *f, u32 block);
size_t forward_block_bytes(const struct forward *f);

#endif
