#include "engine/sampler.h"
#include "engine/logits.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Below the first, the best token is taken; between the two, the second is used. */
#define TEMPERATURE_ZERO  1e-5f
#define TEMPERATURE_LEAST 0.01f

enum {
    BUCKET_SHIFT = 19,
    BUCKETS = (0x3f800000 >> BUCKET_SHIFT) + 1
}; /* of probabilities in (0, 1], 16 an octave */

struct view { /* a row of logits and what a scan said of it */
    const float *x;
    float *block_max, max;
};
struct sampler {
    u32 vocab;
    float *masked, *changed;                  /* [vocab] */
    float *e;                                 /* [vocab], whole blocks */
    float *raw_max, *changed_max, *block_sum; /* a number a block */
    u64 *keys, *spare;                        /* [vocab], a number a block */
    double mass[BUCKETS];
};

struct sampler *sampler_new(u32 vocab)
{
    u32 blocks = logit_blocks(vocab);
    struct sampler *s = mem_zero(1, sizeof *s);
    s->vocab = vocab;
    s->masked = mem_zero(vocab, sizeof(float));
    s->changed = mem_zero(vocab, sizeof(float));
    s->e = mem_zero((size_t)blocks * LOGIT_BLOCK, sizeof(float));
    s->raw_max = mem_zero(blocks, sizeof(float));
    s->changed_max = mem_zero(blocks, sizeof(float));
    s->block_sum = mem_zero(blocks, sizeof(float));
    s->keys = mem_zero(vocab, sizeof(u64));
    s->spare = mem_zero(blocks, sizeof(u64));
    return s;
}

size_t sampler_bytes(u32 vocab)
{
    size_t blocks = logit_blocks(vocab);
    return sizeof(struct sampler) + vocab * (2 * sizeof(float) + sizeof(u64)) +
           blocks * ((LOGIT_BLOCK + 3) * sizeof(float) + sizeof(u64));
}

void sampler_free(struct sampler *s)
{
    if (!s) return;
    void *const parts[] = {s->masked,      s->changed,   s->e,    s->raw_max,
                           s->changed_max, s->block_sum, s->keys, s->spare};
    for (size_t i = 0; i < COUNT_OF(parts); i++) free(parts[i]);
    free(s);
}

/* ---- changes to the logits, in the API's order ---------------------------------------------------------------*/
bool sampler_ends_masked(const struct sampler_row *r, u32 n)
{
    return r->n_ends && n - r->prompt_len < r->sampling.min_tokens;
}

bool sampler_changes(const struct sampler_row *r, u32 n)
{
    return r->n_bias || r->n_allowed || r->n_bad_words || r->n_counts || sampler_ends_masked(r, n);
}

static void apply_penalties(const struct sampler_row *r, float *x)
{
    const struct sampling *p = &r->sampling;
    for (u32 i = 0; i < r->n_counts; i++) {
        const struct token_count *c = &r->counts[i];
        float v = x[c->id];
        v = v > 0 ? v / p->repetition_penalty : v * p->repetition_penalty;
        v -= p->frequency_penalty * (float)c->n;
        if (c->n) v -= p->presence_penalty;
        x[c->id] = v;
    }
}

/* The last token of a word is forbidden when the output ends with the others. */
static bool completes(const struct sampler_row *r, const i32 *history, u32 n, const i32 *word, u32 len)
{
    return len - 1 <= n - r->prompt_len && !memcmp(history + n - (len - 1), word, (len - 1) * sizeof *word);
}

static void apply_bad_words(const struct sampler_row *r, const i32 *history, u32 n, float *x)
{
    for (u32 at = 0; at < r->n_bad_words; at += 1 + (u32)r->bad_words[at]) {
        u32 len = (u32)r->bad_words[at];
        const i32 *word = r->bad_words + at + 1;
        if (completes(r, history, n, word, len)) x[word[len - 1]] = -INFINITY;
    }
}

u32 sampler_forbidden(const struct sampler_row *r, const i32 *history, u32 n, i32 *out)
{
    u32 found = 0;
    for (u32 at = 0; at < r->n_bad_words; at += 1 + (u32)r->bad_words[at]) {
        u32 len = (u32)r->bad_words[at];
        const i32 *word = r->bad_words + at + 1;
        if (completes(r, history, n, word, len)) out[found++] = word[len - 1];
    }
    return found;
}

static void apply_changes(const struct sampler_row *r, const i32 *history, u32 n, const float *from, float *x,
                          u32 vocab)
{
    if (r->n_allowed) {
        for (u32 i = 0; i < vocab; i++) x[i] = -INFINITY;
        for (u32 i = 0; i < r->n_allowed; i++) x[r->allowed[i]] = from[r->allowed[i]];
    } else {
        memcpy(x, from, vocab * sizeof *x);
    }
    for (u32 i = 0; i < r->n_bias; i++) x[r->bias[i].id] += r->bias[i].bias;
    if (sampler_ends_masked(r, n))
        for (u32 i = 0; i < r->n_ends; i++) x[r->ends[i]] = -INFINITY;
    apply_penalties(r, x);
    apply_bad_words(r, history, n, x);
}

static void apply_grammar(const float *from, const u32 *grammar, float *x, u32 vocab)
{
    for (u32 i = 0; i < vocab; i++) x[i] = grammar[i / 32] >> (i % 32) & 1 ? from[i] : -INFINITY;
}

/* ---- draws ---------------------------------------------------------------------------------------------------*/
/* Uniform in (0, 1), keyed by (seed, position): the seed is the sample's own. */
double sampler_uniform(const struct sampler_row *r, u32 position)
{
    u32 bits[4];
    rng_block(r->sampling.seed, position, 0, bits);
    u64 wide = (u64)bits[0] << 32 | bits[1];
    return ((double)(wide >> 12) + 0.5) * 0x1p-52;
}

/* top_p drops from the smallest up. */
double sampler_drop(const struct sampling *p)
{
    return p->top_p < 1 ? 1.0 - (double)p->top_p : 0;
}

float sampler_scale(const struct sampling *p)
{
    return p->temperature < TEMPERATURE_ZERO ? 0 : 1 / fmaxf(p->temperature, TEMPERATURE_LEAST);
}

/* Few tokens left by top_k: they lie sorted in keys, the best first. */
static i32 draw_best(struct sampler *s, const struct sampler_row *r, const struct view *v, float scale,
                     double u)
{
    const struct sampling *p = &r->sampling;
    u32 n = logits_best(v->x, s->vocab, v->block_max, p->top_k, true, s->keys, s->spare), kept = 0;
    double total = 0, below = 0, sum = 0;
    for (; kept < n; kept++) {
        float e = logits_exp_one((v->x[key_id(s->keys[kept])] - v->max) * scale);
        if (kept && (e == 0 || e < p->min_p)) break;
        total += (double)(s->e[kept] = e);
    }
    double limit = sampler_drop(p) * total;
    while (kept > 1 && below + (double)s->e[kept - 1] <= limit) below += (double)s->e[--kept];
    for (u32 i = 0; i < kept; i++) {
        sum += (double)s->e[i];
        if (sum > u * (total - below)) return (i32)key_id(s->keys[i]);
    }
    return (i32)key_id(s->keys[kept - 1]);
}

static u32 bucket_of(float e)
{
    u32 bits;
    memcpy(&bits, &e, sizeof bits);
    return bits >> BUCKET_SHIFT;
}

static float bucket_floor(u32 bucket)
{
    u32 bits = bucket << BUCKET_SHIFT;
    float e;
    memcpy(&e, &bits, sizeof e);
    return e;
}

/* top_p over all of e without sorting it: whole buckets are dropped from the smallest up, and only the one in which the limit
 * falls is looked at token by token. Returns the mass left. */
static double cut_top_p(struct sampler *s, const struct view *v, double limit)
{
    double below = 0;
    memset(s->mass, 0, sizeof s->mass);
    for (u32 i = 0; i < s->vocab; i++) s->mass[bucket_of(s->e[i])] += (double)s->e[i];
    u32 cut = 0, n = 0;
    while (cut < BUCKETS - 1 && below + s->mass[cut] <= limit) below += s->mass[cut++];
    for (u32 i = 0; i < s->vocab; i++)
        if (s->e[i] > 0 && bucket_of(s->e[i]) == cut)
            s->keys[n++] = ~key_of(v->x[i], i); /* the worst first */
    keys_heap(s->keys, n);
    while (n && (n > 1 || cut < BUCKETS - 1)) {
        u32 id = key_id(~keys_pop(s->keys, &n));
        below += (double)s->e[id];
        if (below > limit) break;
        s->e[id] = 0;
    }
    return logits_floor(s->e, s->vocab, bucket_floor(cut), s->block_sum);
}

static i32 draw_all(struct sampler *s, const struct sampler_row *r, const struct view *v, float scale,
                    double u)
{
    const struct sampling *p = &r->sampling;
    double total = logits_exp(v->x, s->vocab, v->max, scale, p->min_p, s->e, s->block_sum), sum = 0;
    if (p->top_p < 1) total = cut_top_p(s, v, sampler_drop(p) * total);
    u32 last = 0,
        blocks = logit_blocks(s->vocab); /* last: the last block with anything in it, against rounding */
    for (u32 b = 0; b < blocks; b++) {
        if (s->block_sum[b] == 0) continue;
        last = b;
        if (sum + (double)s->block_sum[b] > u * total) break;
        sum += (double)s->block_sum[b];
    }
    i32 token = -1;
    for (u32 i = last * LOGIT_BLOCK; i < MIN_OF(s->vocab, (last + 1) * LOGIT_BLOCK); i++) {
        if (s->e[i] == 0) continue;
        token = (i32)i;
        sum += (double)s->e[i];
        if (sum > u * total) break;
    }
    return token;
}

static i32 draw(struct sampler *s, const struct sampler_row *r, const struct view *v, u32 n)
{
    const struct sampling *p = &r->sampling;
    float scale = sampler_scale(p);
    if (scale == 0) return (i32)logits_first(v->x, s->vocab, v->block_max, v->max);
    double u = sampler_uniform(r, n);
    return p->top_k && p->top_k < s->vocab ? draw_best(s, r, v, scale, u) : draw_all(s, r, v, scale, u);
}

/* ---- log-probabilities ---------------------------------------------------------------------------------------*/
static u32 list_logprobs(struct sampler *s, const struct view *raw, u32 n_best, u32 token,
                         struct token_logprob *out)
{
    double base = (double)raw->max + log(logits_sum_exp(raw->x, s->vocab, raw->max));
    out[0] = (struct token_logprob){(i32)token, (float)((double)raw->x[token] - base),
                                    (i32)logits_rank(raw->x, s->vocab, token)};
    if (!n_best) return 1;
    u32 found = logits_best(raw->x, s->vocab, raw->block_max, n_best, false, s->keys, s->spare);
    for (u32 i = 0; i < found; i++) {
        u32 id = key_id(s->keys[i]);
        out[1 + i] = (struct token_logprob){(i32)id, (float)((double)raw->x[id] - base), (i32)i + 1};
    }
    return 1 + found;
}

struct choice sampler_choose(struct sampler *s, const struct sampler_row *r, const float *logits,
                             const i32 *history, u32 n, const u32 *grammar, struct token_logprob *logprobs)
{
    struct view raw = {logits, s->raw_max, 0}, now;
    if (!logits_scan(raw.x, s->vocab, raw.block_max, &raw.max))
        return (struct choice){SAMPLER_NONFINITE, -1, 0};
    if (grammar) {
        apply_grammar(logits, grammar, s->masked, s->vocab);
        raw.x = s->masked;
        if (!logits_scan(raw.x, s->vocab, raw.block_max, &raw.max))
            return (struct choice){SAMPLER_NOTHING, -1, 0};
    }
    now = raw;
    if (sampler_changes(r, n)) {
        apply_changes(r, history, n, raw.x, s->changed, s->vocab);
        now = (struct view){s->changed, s->changed_max, 0};
        if (!logits_scan(now.x, s->vocab, now.block_max, &now.max))
            return (struct choice){now.max == -INFINITY ? SAMPLER_NOTHING : SAMPLER_NONFINITE, -1, 0};
    }
    struct choice c = {SAMPLER_OK, draw(s, r, &now, n), 0};
    if (r->sampling.n_logprobs >= 0)
        c.n_logprobs = list_logprobs(s, &raw, (u32)r->sampling.n_logprobs, (u32)c.token, logprobs);
    return c;
}
