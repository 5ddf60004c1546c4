#include "engine/shard.h"

static struct slice even(u32 of, u32 parts, u32 part)
{
    return (struct slice){of / parts * part, of / parts, of};
}

static struct slice some_more(u32 of, u32 parts, u32 part)
{
    u32 n = of / parts, more = of % parts;
    return (struct slice){n * part + MIN_OF(part, more), n + (part < more), of};
}

/* Query heads in the order of the KV heads that they share, so an engine's KV heads are a run too. */
static struct slice kv_slice(u32 kv_heads, u32 tp, u32 tp_rank)
{
    if (kv_heads >= tp) return even(kv_heads, tp, tp_rank);
    return (struct slice){tp_rank / (tp / kv_heads), 1, kv_heads};
}

static int check(const struct model_config *c, u32 tp, u32 pp, struct error *err)
{
    const struct {
        const char *what;
        u32 n;
    } divided[] = {{"attention heads", c->heads},
                   {"ffn columns", c->ffn},
                   {"columns of an expert", c->moe.ffn},
                   {"columns of the shared expert", c->moe.shared_ffn},
                   {"vocabulary entries", c->vocab}};
    if (tp > 1 && c->qk_norm == QK_NORM_WHOLE)
        return error_set(err, ERR_UNSUPPORTED, "--tensor-parallel-size",
                         "%s norms q and k over all heads: %s models are offered with 1 only", c->dir,
                         c->arch->model_type);
    for (size_t i = 0; i < COUNT_OF(divided); i++)
        if (divided[i].n % tp)
            return error_set(err, ERR_UNSUPPORTED, "--tensor-parallel-size",
                             "%u engines cannot share the %u %s of %s evenly", tp, divided[i].n,
                             divided[i].what, c->dir);
    if (c->kv_heads % tp && tp % c->kv_heads)
        return error_set(err, ERR_UNSUPPORTED, "--tensor-parallel-size",
                         "neither of %u engines and the %u KV heads of %s divides the other", tp, c->kv_heads,
                         c->dir);
    if (c->layers < pp)
        return error_set(err, ERR_UNSUPPORTED, "--pipeline-parallel-size",
                         "%s has %u layers, fewer than %u stages", c->dir, c->layers, pp);
    return 0;
}

int shard_of(struct shard *s, const struct model_config *c, u32 tp, u32 pp, u32 tp_rank, u32 pp_rank,
             struct error *err)
{
    BUG_ON(!tp || !pp || tp_rank >= tp || pp_rank >= pp);
    int rc = check(c, tp, pp, err);
    if (rc) return rc;
    *s = (struct shard){.tp = tp,
                        .pp = pp,
                        .tp_rank = tp_rank,
                        .pp_rank = pp_rank,
                        .layers = some_more(c->layers, pp, pp_rank),
                        .heads = even(c->heads, tp, tp_rank),
                        .kv_heads = kv_slice(c->kv_heads, tp, tp_rank),
                        .ffn = even(c->ffn, tp, tp_rank),
                        .expert_ffn = even(c->moe.ffn, tp, tp_rank),
                        .shared_ffn = even(c->moe.shared_ffn, tp, tp_rank),
                        .vocab = even(c->vocab, tp, tp_rank)};
    return 0;
}

struct shard shard_whole(const struct model_config *c)
{
    struct shard s;
    BUG_ON(shard_of(&s, c, 1, 1, 0, 0, NULL));
    return s;
}
