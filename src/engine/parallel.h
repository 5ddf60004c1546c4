/* parallel: what the engines of a replica say to each other inside a forward pass. Inside the engine room.
 *
 * Tensor parallel: the engines of a stage have the same residual stream. Products into heads, MLP and
 * vocabulary need nothing of the others; products out of them (o, down) and rows of the embedding are partial
 * sums, which are added from engine 0 to tp - 1 and then to the stream. Pipeline parallel: the stream goes
 * from an engine of a stage to the one with its tp rank in the next. With one engine all of this is nothing.
 *
 * Calls of a team: all threads of the pool with their share. The first failure stays, and ends the pass: what
 * is in the buffers then means nothing, and the group is broken. */
#ifndef MPISERVE_ENGINE_PARALLEL_H
#define MPISERVE_ENGINE_PARALLEL_H

#include "engine/shard.h"
#include "mpiserve/coll.h"
#include "mpiserve/ops.h"

struct parallel {
    struct shard shard;
    struct coll *all, *stage; /* NULL: one engine */
    struct pool *pool;
    struct error err; /* of the first failure */
    bool broken;
};
static inline bool parallel_tensor(const struct parallel *p)
{
    return p->shard.tp > 1;
}
/* The row of this engine's part of the embedding, or -1: another one has it. */
static inline i32 parallel_id(const struct parallel *p, i32 id)
{
    u32 row = (u32)id - p->shard.vocab.first;
    return row < p->shard.vocab.n ? (i32)row : -1;
}
/* Where partial sums [n] may be written so that nothing needs to be copied, or otherwise. One thread. */
float *parallel_partial(struct parallel *p, size_t n, float *otherwise);
/* out [n] = the sum of all engines' in, or out += that. Team; out can be read when it returns. */
int parallel_sum(struct parallel *p, const float *in, float *out, size_t n, bool add, struct share s);
/* Every engine's columns of rows logits to engine 0 of the stage: there [rows, vocab] with its own in place,
 * elsewhere [rows, vocab.n]. Team. */
int parallel_logits(struct parallel *p, float *logits, u32 rows, struct share s);
/* The stream, n numbers, from the stage before and to the next one; nothing at the ends. One thread. */
int parallel_receive(struct parallel *p, float *x, size_t n);
int parallel_send(struct parallel *p, const float *x, size_t n);

#endif
