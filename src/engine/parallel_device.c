/* parallel, where the engines have devices. Sums are made in the order of the engines, as on the host: all parts come here and a kernel adds
 * them up; or, where that would be many bytes, each engine adds up a slice of all and hands it on. Both give the same bits. */
#include "engine/parallel.h"

/* Sums up to this are made by everybody. Not measured yet: about where fewer bytes begin to weigh more than one message less. */
enum { ONE_SHOT_BYTES = 256 << 10, UNIT = 4 /* numbers of an access */ };
static const size_t one_shot = ONE_SHOT_BYTES / sizeof(float);

static size_t slice_of(u32 tp, size_t n)
{
    return (n + tp * UNIT - 1) / (tp * UNIT) * UNIT;
}

size_t parallel_padded(u32 tp, size_t n)
{
    return tp * slice_of(tp, n);
}

size_t parallel_parts(u32 tp, size_t n, size_t vocab)
{
    size_t sums = MAX_OF(tp * MIN_OF(n, one_shot), parallel_padded(tp, n));
    return MAX_OF(sums, vocab);
}

static int sum_small(struct parallel *p, const float *in, float *out, size_t n, bool add, struct error *err)
{
    int rc = coll_nccl_all_gather(p->gpus, in, p->parts, n * sizeof *in, err);
    if (rc) return rc;
    device_sum(p->device, &(struct sum_args){.parts = p->parts,
                                             .ld = n,
                                             .n = p->shard.tp,
                                             .count = n,
                                             .out = out,
                                             .add = add,
                                             .mark = coll_nccl_calls(p->gpus)});
    return 0;
}

/* The slice goes back to where it belongs in `in`, and what is behind n is of no meaning. */
static int sum_large(struct parallel *p, float *in, float *out, size_t n, bool add, struct error *err)
{
    size_t slice = slice_of(p->shard.tp, n);
    float *own = in + p->shard.tp_rank * slice;
    int rc = coll_nccl_all_to_all(p->gpus, in, p->parts, slice * sizeof *in, err);
    if (rc) return rc;
    device_sum(p->device, &(struct sum_args){.parts = p->parts,
                                             .ld = slice,
                                             .n = p->shard.tp,
                                             .count = slice,
                                             .out = own,
                                             .mark = coll_nccl_calls(p->gpus)});
    rc = coll_nccl_all_gather(p->gpus, own, in, slice * sizeof *in, err);
    if (rc) return rc;
    device_sum(p->device, &(struct sum_args){.parts = in,
                                             .ld = n,
                                             .n = 1,
                                             .count = n,
                                             .out = out,
                                             .add = add,
                                             .mark = coll_nccl_calls(p->gpus)});
    return 0;
}

int parallel_device_sum(struct parallel *p, float *in, float *out, size_t n, bool add, struct error *err)
{
    int rc = device_check(p->device, err); /* what it could not do is not sent to others */
    if (rc) return rc;
    return n <= one_shot ? sum_small(p, in, out, n, add, err) : sum_large(p, in, out, n, add, err);
}

/* As many rows at a time as there is room for; the root puts the others' columns where they belong. */
int parallel_device_logits(struct parallel *p, float *logits, u32 rows, struct error *err)
{
    const struct slice *v = &p->shard.vocab;
    u32 tp = p->shard.tp, most = (u32)MIN_OF(p->parts_n / v->of, (size_t)rows);
    bool root = p->shard.tp_rank == 0;
    size_t part = v->n * sizeof *logits, whole = v->of * sizeof *logits;
    int rc = device_check(p->device, err);
    for (u32 row = 0; row < rows && !rc; row += most) {
        u32 n = MIN_OF(most, rows - row);
        float *at = logits + (size_t)row * (root ? v->of : v->n);
        rc = coll_nccl_gather(p->gpus, 0, at, p->parts, n * part, err);
        for (u32 i = 1; i < tp && root && !rc; i++)
            device_copy_rows(p->device, at + i * v->n, whole, p->parts + (size_t)i * n * v->n, part, part, n);
        device_mark(p->device, coll_nccl_calls(p->gpus));
    }
    return rc;
}

static int sent(struct parallel *p, int rc)
{
    device_mark(p->device, coll_nccl_calls(p->gpus));
    return rc;
}

int parallel_device_receive(struct parallel *p, u32 from, float *x, size_t n, struct error *err)
{
    int rc = device_check(p->device, err);
    return rc ? rc : sent(p, coll_nccl_receive(p->gpus, from, x, n * sizeof *x, err));
}

int parallel_device_send(struct parallel *p, u32 to, const float *x, size_t n, struct error *err)
{
    int rc = device_check(p->device, err);
    return rc ? rc : sent(p, coll_nccl_send(p->gpus, to, x, n * sizeof *x, err));
}
