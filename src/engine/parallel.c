#include "engine/parallel.h"

static void barrier(void *pool)
{
    pool_barrier(pool);
}

static struct coll_how team(const struct parallel *p, struct share s)
{
    return (struct coll_how){.thread = s.i, .threads = s.n, .barrier = barrier, .arg = p->pool};
}

/* All threads of a team get the same rc; the first keeps the words. */
static int conclude(struct parallel *p, int rc, const struct error *err, struct share s)
{
    if (s.i || rc == 0 || p->broken) return rc;
    p->err = *err;
    p->broken = true;
    return rc;
}

float *parallel_partial(struct parallel *p, size_t n, float *otherwise)
{
    if (p->device) return otherwise;
    float *slot = coll_slot(p->stage, n * sizeof *slot);
    return slot ? slot : otherwise;
}

int parallel_sum(struct parallel *p, float *in, float *out, size_t n, bool add, struct share s)
{
    const struct coll_how how = team(p, s);
    const struct coll_reduce r = {.in = in, .out = out, .count = n, .type = COLL_F32, .add = add};
    struct error err;
    int rc =
        p->device ? parallel_device_sum(p, in, out, n, add, &err) : coll_all_reduce(p->stage, &r, &how, &err);
    return conclude(p, rc, &err, s);
}

int parallel_logits(struct parallel *p, float *logits, u32 rows, struct share s)
{
    if (p->shard.tp == 1) return 0;
    const struct coll_how how = team(p, s);
    size_t part = p->shard.vocab.n * sizeof *logits, whole = p->shard.vocab.of * sizeof *logits;
    const struct coll_gather g = {.in = logits,
                                  .out = logits,
                                  .rows = rows,
                                  .bytes = part,
                                  .ld_in = p->shard.tp_rank ? part : whole,
                                  .ld_out = whole};
    struct error err;
    int rc =
        p->device ? parallel_device_logits(p, logits, rows, &err) : coll_gather(p->stage, 0, &g, &how, &err);
    return conclude(p, rc, &err, s);
}

int parallel_receive(struct parallel *p, float *x, size_t n)
{
    if (shard_first(&p->shard)) return 0;
    struct error err;
    u32 from = coll_me(p->all) - p->shard.tp;
    int rc = p->device ? parallel_device_receive(p, from, x, n, &err)
                       : coll_receive(p->all, from, x, n * sizeof *x, NULL, &err);
    return conclude(p, rc, &err, (struct share){0, 1, NULL});
}

int parallel_send(struct parallel *p, const float *x, size_t n)
{
    if (shard_last(&p->shard)) return 0;
    struct error err;
    u32 to = coll_me(p->all) + p->shard.tp;
    int rc = p->device ? parallel_device_send(p, to, x, n, &err)
                       : coll_send(p->all, to, x, n * sizeof *x, NULL, &err);
    return conclude(p, rc, &err, (struct share){0, 1, NULL});
}
