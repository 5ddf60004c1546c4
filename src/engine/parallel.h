/* parallel: what the engines of a replica say to each other inside a forward pass. Inside the engine room.
 *
 * Tensor parallel: the engines of a stage have the same residual stream. Products into heads, MLP and
 * vocabulary need nothing of the others; products out of them (o, down) and rows of the embedding are partial
 * sums, which are added from engine 0 to tp - 1 and then to the stream. Pipeline parallel: the stream goes
 * from an engine of a stage to the one with its tp rank in the next. With one engine all of this is nothing.
 *
 * On devices the same in their memory: NCCL moves, a kernel adds, both on the device's stream (parallel_device.c). Calls return when
 * the work is asked for; what goes wrong later shows in device_finish.
 *
 * Calls of a team: all threads of the pool with their share. The first failure stays, and ends the pass: what
 * is in the buffers then means nothing, and the group is broken. */
#ifndef MPISERVE_ENGINE_PARALLEL_H
#define MPISERVE_ENGINE_PARALLEL_H

#include "engine/shard.h"
#include "mpiserve/coll.h"
#include "mpiserve/device.h"
#include "mpiserve/ops.h"

struct parallel {
    struct shard shard;
    struct coll *all, *stage; /* NULL: one engine */
    struct pool *pool;
    struct device *device;  /* NULL: all is on the host, and so is none of the next ones */
    struct coll_nccl *gpus; /* of several engines */
    float *parts;           /* [parts_n] of the device's: parallel_parts() */
    size_t parts_n;
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
/* out [n] = the sum of all engines' in, or out += that. Team; out can be read when it returns. On devices in is not
 * out, has room for parallel_padded(n), and may be changed; n is a multiple of 4. */
int parallel_sum(struct parallel *p, float *in, float *out, size_t n, bool add, struct share s);
/* Every engine's columns of rows logits to engine 0 of the stage: there [rows, vocab] with its own in place,
 * elsewhere [rows, vocab.n]. Team. */
int parallel_logits(struct parallel *p, float *logits, u32 rows, struct share s);
/* The stream, n numbers, from the stage before and to the next one; nothing at the ends. One thread. */
int parallel_receive(struct parallel *p, float *x, size_t n);
int parallel_send(struct parallel *p, const float *x, size_t n);

/* ---- on devices */
/* Numbers of parts, where at most n are added up and rows of logits have `vocab`. */
size_t parallel_parts(u32 tp, size_t n, size_t vocab);
size_t parallel_padded(u32 tp, size_t n);
int parallel_device_sum(struct parallel *p, float *in, float *out, size_t n, bool add, struct error *err);
int parallel_device_logits(struct parallel *p, float *logits, u32 rows, struct error *err);
int parallel_device_receive(struct parallel *p, u32 from, float *x, size_t n, struct error *err);
int parallel_device_send(struct parallel *p, u32 to, const float *x, size_t n, struct error *err);

#endif
