#include "engine/execute.h"
#include "engine/device_sampler.h"
#include "engine/device_vectors.h"
#include "engine/null.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* One row's part of the work at hand. */
struct job {
    struct seq_row *row;
    const struct row *plan;
    u32 logits; /* row of the logits, or none */
    u32 result; /* index, or none */
    u32 asked;  /* index in the device's sampler, where there is one */
    bool nan;   /* a test wants its logits NaN */
    struct choice choice;
};
static const u32 none = UINT32_MAX;

struct execute {
    struct execute_spec spec;
    struct rows rows;
    u64 last_id;
    struct fwd_seq *seqs; /* [max_rows] */
    struct job *jobs;     /* [max_rows] */
    u32 n_seqs, n_jobs;
    struct sampler **samplers; /* one a thread */
    int n_samplers;
    struct device_sampler *device_sampler; /* or this one; where vectors are made: */
    struct device_vectors *device_vectors; /* [max_rows], and one for the canary */
    const float *logits;
    _Atomic u32 ticket;
    u8 *out; /* results frame */
    struct results_view results;
    float *canary;            /* [hidden]: a vector that nobody asked for */
    struct outcome *outcomes; /* [max_rows] */
    u32 n_outcomes;
    struct error broken; /* why the group is; code 0: it is not */
};

static u32 logprobs_bytes(u32 n_logprobs)
{
    return (u32)align8((1 + n_logprobs) * sizeof(struct token_logprob));
}

static u32 vector_bytes(u32 hidden)
{
    return (u32)align8(hidden * sizeof(float));
}

/* Data of a result: its token in 8 bytes, then its log-probabilities; or its vector. */
static u32 result_bytes(const struct execute *x, const struct seq_row *r)
{
    i32 n_logprobs = r->sampler.sampling.n_logprobs;
    if (r->pooled) return vector_bytes(x->spec.limits.hidden);
    return 8 + (n_logprobs < 0 ? 0 : logprobs_bytes((u32)n_logprobs));
}

size_t execute_results_max(u32 max_rows, u32 max_logprobs, u32 hidden)
{
    struct results h = {
        .n = max_rows, .data_len = max_rows * MAX_OF(8 + logprobs_bytes(max_logprobs), vector_bytes(hidden))};
    return results_frame_bytes(&h);
}

static bool start_on_device(struct execute *x, struct error *err)
{
    const struct rows_limits *l = &x->spec.limits;
    if (l->pooling)
        x->device_vectors = device_vectors_new(x->spec.device, l->max_rows + 1, l->hidden, err);
    else
        x->device_sampler = device_sampler_new(x->spec.device, l->max_rows, l->vocab, l->max_logprobs, err);
    return x->device_vectors || x->device_sampler;
}

struct execute *execute_new(const struct execute_spec *spec, struct error *err)
{
    const struct rows_limits *l = &spec->limits;
    if ((u64)l->max_rows * (8 + 12 * (1 + (u64)l->max_logprobs) + 4 * (u64)l->hidden) > 1u << 30) {
        error_set(err, ERR_INPUT, "max_logprobs", "%u, and vectors of %u, for %u rows are too much",
                  l->max_logprobs, l->hidden, l->max_rows);
        return NULL;
    }
    struct execute *x = mem_zero(1, sizeof(*x));
    x->spec = *spec;
    if (rows_init(&x->rows, l, err) < 0) {
        free(x);
        return NULL;
    }
    x->seqs = mem_zero(l->max_rows, sizeof(*x->seqs));
    x->jobs = mem_zero(l->max_rows, sizeof(*x->jobs));
    x->outcomes = mem_zero(l->max_rows, sizeof(*x->outcomes));
    x->canary = mem_zero(MAX_OF(l->hidden, 1u), sizeof(*x->canary));
    x->n_samplers = spec->follows || spec->device || l->pooling ? 0 : pool_threads(spec->pool);
    x->samplers = mem_zero((size_t)x->n_samplers, sizeof(*x->samplers));
    for (int i = 0; i < x->n_samplers; i++) x->samplers[i] = sampler_new(l->vocab);
    x->out = mem_alloc(execute_results_max(l->max_rows, l->max_logprobs, l->hidden));
    if (!spec->device || spec->follows || start_on_device(x, err)) return x;
    execute_free(x);
    return NULL;
}

void execute_free(struct execute *x)
{
    if (!x) return;
    rows_release(&x->rows);
    for (int i = 0; i < x->n_samplers; i++) sampler_free(x->samplers[i]);
    free(x->samplers);
    device_sampler_free(x->device_sampler);
    device_vectors_free(x->device_vectors);
    free(x->seqs);
    free(x->jobs);
    free(x->canary);
    free(x->outcomes);
    free(x->out);
    free(x);
}

/* ---- preparing ---- */

static void run_block_ops(struct execute *x, const struct step_view *v)
{
    if (!x->spec.forward) return;
    for (u32 i = 0; i < v->head->n_ops; i++) {
        const struct block_op *op = &v->ops[i];
        if (op->op == BLOCK_ZERO)
            forward_zero_block(x->spec.forward, op->dst);
        else
            forward_copy_block(x->spec.forward, op->dst, op->src);
    }
}

/* Which of the tokens the vector is made of. */
static void gather_hidden(const struct execute *x, const struct row *plan, const struct seq_row *r, bool nan,
                          struct fwd_seq *seq)
{
    enum pooling pooling = x->spec.limits.pooling;
    bool last = plan->want == WANT_HIDDEN, all = pooling == POOLING_MEAN;
    if (!r->pooled) return;
    if (nan) r->vector[0] = NAN; /* stays so, whatever is added */
    seq->hidden.sum = x->device_vectors ? device_vectors_sum(x->device_vectors, plan->row) : r->vector;
    seq->hidden.begins = x->device_vectors && (!all || plan->pos == 0);
    seq->hidden.first = pooling == POOLING_LAST ? plan->n_tok - 1u : 0;
    if (all || (pooling == POOLING_LAST ? last : plan->pos == 0)) seq->hidden.n = all ? plan->n_tok : 1;
}

/* Rows to sequences of the forward pass; dead rows take no part, but get their results. */
static void gather(struct execute *x, const struct step_view *v)
{
    u32 n_logits = 0, n_results = 0;
    x->n_seqs = x->n_jobs = 0;
    for (u32 i = 0; i < v->head->n_rows; i++) {
        const struct row *plan = &v->rows[i];
        struct seq_row *r = &x->rows.row[plan->row];
        struct job *job = &x->jobs[x->n_jobs++];
        bool sample = plan->want == WANT_SAMPLE;
        struct fwd_seq *seq = &x->seqs[x->n_seqs];
        *job = (struct job){.row = r, .plan = plan, .logits = none, .result = none};
        if (plan->want != WANT_NOTHING) job->result = n_results++;
        if (r->dead) continue;
        const i32 *tokens = r->history + plan->pos;
        if (sample) job->logits = n_logits++;
        job->nan = fault_tokens(&x->spec.fault, tokens, plan->n_tok);
        *seq = (struct fwd_seq){.tokens = tokens,
                                .pos = plan->pos,
                                .n_tok = plan->n_tok,
                                .blocks = r->blocks,
                                .want_logits = sample,
                                .prompt = r->sampler.prompt_len,
                                .second = r->second,
                                .adapter = r->adapter};
        gather_hidden(x, plan, r, job->nan, seq);
        x->n_seqs++;
    }
}

/* The results frame's head and tables; its length depends on the plan alone, not on what is sampled. */
static void layout_results(struct execute *x, const struct step *step)
{
    struct results h = {.step = step->id, .gen = step->gen, .kind = step->kind, .commit = step->id};
    for (u32 i = 0; i < x->n_jobs; i++) {
        if (x->jobs[i].result == none) continue;
        h.n++;
        h.data_len += result_bytes(x, x->jobs[i].row);
    }
    results_frame_layout(x->out, &h, &x->results);
    struct result *r = (struct result *)x->results.rows;
    u32 at = 0;
    for (u32 i = 0; i < x->n_jobs; i++) {
        const struct job *job = &x->jobs[i];
        if (job->result == none) continue;
        *r = (struct result){
            .row = job->plan->row, .row_gen = job->plan->row_gen, .pos0 = job->plan->pos + job->plan->n_tok};
        if (job->row->pooled)
            r->hidden.off = at;
        else
            r->tokens.off = at, r->logprobs.off = at + 8;
        at += result_bytes(x, job->row);
        r++;
    }
    memset((u8 *)x->results.data, 0, h.data_len);
}

/* ---- what ends the engine ---- */

static int break_group(struct execute *x, const struct error *why, struct error *err)
{
    x->broken = *why;
    return error_set(err, why->code, why->where, "%s", why->message);
}

/* What a device's queue had to do is long asked for when it fails: its words say in which step that was. */
static int break_step(struct execute *x, const struct error *why, struct error *err)
{
    struct error named;
    error_set(&named, why->code, why->where, "step %llu: %.700s", (unsigned long long)x->last_id,
              why->message);
    return break_group(x, &named, err);
}

/* ---- sampling ---- */

static struct token_logprob *logprobs_of(const struct execute *x, const struct job *job)
{
    bool wanted = job->row->sampler.sampling.n_logprobs >= 0;
    return wanted ? (void *)(x->results.data + x->results.rows[job->result].logprobs.off) : NULL;
}

static void sample_row(struct execute *x, struct sampler *sampler, struct job *job)
{
    u32 vocab = x->spec.limits.vocab;
    float *logits = x->logits ? (float *)x->logits + (size_t)job->logits * vocab : NULL;
    struct token_logprob *logprobs = logprobs_of(x, job);
    if (!x->spec.forward) {
        job->choice = null_choose(job->row->n_tok, vocab, &job->row->sampler.sampling, logprobs);
        return;
    }
    if (job->nan) logits[vocab - 1] = NAN;
    job->choice = sampler_choose(sampler, &job->row->sampler, logits, job->row->history, job->row->n_tok,
                                 NULL, logprobs);
}

static void sample_some(void *arg, int thread, int threads)
{
    struct execute *x = arg;
    (void)threads;
    for (u32 i; (i = atomic_fetch_add(&x->ticket, 1)) < x->n_jobs;)
        if (x->jobs[i].logits != none) sample_row(x, x->samplers[thread], &x->jobs[i]);
}

static void sample_all(struct execute *x)
{
    atomic_store(&x->ticket, 0);
    if (x->spec.forward && x->results.head->n > 1)
        pool_run(x->spec.pool, sample_some, x);
    else
        sample_some(x, 0, 1);
}

/* Waits for the device: whatever was wrong in the step shows here. Who follows has nothing to sample. */
static int finish_on_device(struct execute *x, struct error *err)
{
    struct error why;
    int rc = x->device_sampler ? device_sampler_run(x->device_sampler, x->logits, &why)
                               : device_finish(x->spec.device, &why);
    return rc ? break_step(x, &why, err) : 0;
}

static int sample_on_device(struct execute *x, struct error *err)
{
    device_sampler_clear(x->device_sampler);
    for (u32 i = 0; i < x->n_jobs; i++) {
        struct job *job = &x->jobs[i];
        const struct seq_row *r = job->row;
        if (job->logits == none) continue;
        job->asked = device_sampler_add(x->device_sampler, &r->sampler, r->history, r->n_tok, job->logits);
    }
    int rc = finish_on_device(x, err);
    for (u32 i = 0; i < x->n_jobs && rc == 0; i++) {
        struct job *job = &x->jobs[i];
        if (job->logits == none) continue;
        job->choice = device_sampler_choice(x->device_sampler, job->asked, logprobs_of(x, job));
        if (job->nan) job->choice.state = SAMPLER_NONFINITE;
    }
    return rc;
}

/* The sums of the prompts that end in this step, to their rows. */
static int vectors_on_device(struct execute *x, struct error *err)
{
    u32 first = x->spec.limits.max_rows, end = 0;
    for (u32 i = 0; i < x->n_jobs; i++) {
        const struct job *job = &x->jobs[i];
        if (job->result == none || job->row->dead) continue;
        first = MIN_OF(first, job->plan->row);
        end = MAX_OF(end, job->plan->row + 1);
    }
    if (end) device_vectors_fetch(x->device_vectors, first, end - first);
    int rc = finish_on_device(x, err);
    for (u32 i = 0; i < x->n_jobs && rc == 0; i++) {
        const struct job *job = &x->jobs[i];
        if (job->result == none || job->row->dead) continue;
        const float *sum = device_vectors_copy(x->device_vectors, job->plan->row);
        for (u32 k = 0; k < x->spec.limits.hidden; k++) job->row->vector[k] += sum[k];
    }
    return rc;
}

static u8 flags_of(enum sampler_state state)
{
    return state == SAMPLER_OK ? 0 : state == SAMPLER_NONFINITE ? RESULT_NONFINITE : RESULT_NOTHING;
}

/* The sum of the rows becomes the vector. */
static void conclude_vector(struct execute *x, const struct job *job, struct result *r)
{
    u32 n = x->spec.limits.hidden;
    float *to = (float *)(x->results.data + r->hidden.off), *sum = job->row->vector;
    float rows = x->spec.limits.pooling == POOLING_MEAN ? (float)job->row->n_tok : 1;
    bool finite = true;
    if (!x->spec.forward) null_vector(job->row->n_tok, sum, n), rows = 1;
    for (u32 i = 0; i < n; i++) {
        to[i] = sum[i] / rows;
        finite &= isfinite(to[i]) != 0;
    }
    if (!finite) job->row->dead = RESULT_NONFINITE;
    r->flags = job->row->dead;
    if (!r->flags) r->hidden.len = n;
}

/* In the step's order: choices into histories, results and outcomes. */
static void conclude(struct execute *x)
{
    for (u32 i = 0; i < x->n_jobs; i++) {
        struct job *job = &x->jobs[i];
        if (job->result == none) continue;
        struct result *r = (struct result *)&x->results.rows[job->result];
        if (job->row->pooled) {
            conclude_vector(x, job, r);
            continue;
        }
        if (job->logits != none) job->row->dead = flags_of(job->choice.state);
        r->flags = job->row->dead;
        x->outcomes[x->n_outcomes++] = (struct outcome){
            .row = r->row, .row_gen = r->row_gen, .token = job->choice.token, .flags = r->flags};
        if (r->flags) continue;
        memcpy((u8 *)x->results.data + r->tokens.off, &job->choice.token, sizeof(i32));
        r->n_out = 1;
        r->tokens.len = 1;
        r->logprobs.len = job->choice.n_logprobs;
        rows_append(job->row, job->choice.token);
    }
}

u32 execute_outcomes(const struct execute *x, const struct outcome **list)
{
    *list = x->outcomes;
    return x->n_outcomes;
}

int execute_learn(struct execute *x, const struct outcome *list, u32 n, struct error *err)
{
    for (u32 i = 0; i < n; i++) {
        const struct outcome *o = &list[i];
        struct seq_row *r = o->row < x->spec.limits.max_rows ? &x->rows.row[o->row] : NULL;
        if (!r || !r->used || r->gen != o->row_gen ||
            (!o->flags && (o->token < 0 || (u32)o->token >= x->spec.limits.vocab)))
            return error_set(err, ERR_PEER, "group", "an outcome of row %u, generation %u: token %d", o->row,
                             o->row_gen, o->token);
        r->dead = (u8)o->flags;
        if (!o->flags) rows_append(r, o->token);
    }
    return 0;
}

/* ---- steps ---- */

static int run_seqs(struct execute *x, const struct fwd_seq *seqs, u32 n, struct error *err)
{
    x->logits = forward_run(x->spec.forward, seqs, n);
    if (x->logits) return 0;
    const struct error *why = forward_error(x->spec.forward);
    return x->spec.device ? break_step(x, why, err) : break_group(x, why, err);
}

static int run_forward(struct execute *x, const struct step_view *v, struct error *err)
{
    run_block_ops(x, v);
    gather(x, v);
    layout_results(x, v->head);
    int rc = 0;
    if (!x->spec.forward)
        null_wait(x->spec.null_step_us);
    else if (x->n_seqs)
        rc = run_seqs(x, x->seqs, x->n_seqs, err);
    if (rc == 0 && x->spec.device && x->spec.follows) return finish_on_device(x, err);
    if (rc < 0 || x->spec.follows) return rc;
    if (x->device_vectors)
        rc = vectors_on_device(x, err);
    else if (x->spec.device)
        rc = sample_on_device(x, err);
    else
        sample_all(x);
    if (rc == 0) conclude(x);
    return rc;
}

/* One number from every engine. */
static int meet(struct execute *x, struct error *err)
{
    float one = 1, sum = 0;
    if (!x->spec.all) return 0;
    const struct coll_reduce r = {.in = &one, .out = &sum, .count = 1, .type = COLL_F32};
    struct error why;
    if (coll_all_reduce(x->spec.all, &r, NULL, &why) < 0) return break_group(x, &why, err);
    if (sum == (float)coll_size(x->spec.all)) return 0;
    return error_set(err, ERR_STATE, "canary", "%u engines add up to %g", coll_size(x->spec.all),
                     (double)sum);
}

static int check_numbers(const float *numbers, u32 n, struct error *err)
{
    for (u32 i = 0; i < n; i++)
        if (!isfinite(numbers[i]))
            return error_set(err, ERR_STATE, "canary", "the model gives numbers that are not finite");
    return 0;
}

/* The canary's vector; or the first row of the logits, as its sampling finds. */
static int check_on_device(struct execute *x, struct error *err)
{
    const struct rows_limits *l = &x->spec.limits;
    if (x->device_vectors) {
        device_vectors_fetch(x->device_vectors, l->max_rows, 1);
        int rc = finish_on_device(x, err);
        return rc ? rc : check_numbers(device_vectors_copy(x->device_vectors, l->max_rows), l->hidden, err);
    }
    static const struct sampler_row greedy = {
        .sampling = {.top_p = 1, .repetition_penalty = 1, .n_logprobs = -1}};
    device_sampler_clear(x->device_sampler);
    device_sampler_add(x->device_sampler, &greedy, NULL, 0, 0);
    int rc = finish_on_device(x, err);
    if (rc < 0 || device_sampler_choice(x->device_sampler, 0, NULL).state == SAMPLER_OK) return rc;
    return error_set(err, ERR_STATE, "canary", "the model gives numbers that are not finite");
}

/* One token on the scratch block: proves that the whole path still works, through all engines. */
static int run_canary(struct execute *x, struct error *err)
{
    static const i32 token = 0;
    static const u32 scratch = 0;
    int rc = meet(x, err);
    if (rc < 0 || !x->spec.forward) return rc;
    const struct rows_limits *l = &x->spec.limits;
    bool vector = l->pooling != POOLING_NONE;
    struct fwd_seq seq = {.tokens = &token, .n_tok = 1, .blocks = &scratch, .want_logits = !vector};
    seq.hidden.n = vector;
    seq.hidden.begins = true;
    seq.hidden.sum = x->device_vectors ? device_vectors_sum(x->device_vectors, l->max_rows) : x->canary;
    rc = run_seqs(x, &seq, 1, err);
    if (rc == 0 && x->spec.device)
        return x->spec.follows ? finish_on_device(x, err) : check_on_device(x, err);
    if (rc < 0 || x->spec.follows) return rc;
    return vector ? check_numbers(x->canary, l->hidden, err) : check_numbers(x->logits, l->vocab, err);
}

static int admit(struct execute *x, const struct step_view *v, struct error *err)
{
    const struct step *h = v->head;
    if (h->gen != x->spec.gen)
        return error_set(err, ERR_STATE, "step", "of generation %u, this engine is %u", h->gen, x->spec.gen);
    if (h->numerics != x->spec.numerics)
        return error_set(err, ERR_PEER, "step", "numerics class %08x, this engine has %08x", h->numerics,
                         x->spec.numerics);
    if (h->id != x->last_id + 1)
        return error_set(err, ERR_PEER, "step", "follows step %llu", (unsigned long long)x->last_id);
    return rows_check(&x->rows, v, err);
}

static int run(struct execute *x, const struct step_view *v, struct error *err)
{
    int rc = admit(x, v, err);
    if (rc < 0) return rc;
    x->last_id = v->head->id;
    if (x->spec.fault.kind) fault_step(&x->spec.fault, v->head);
    rc = rows_apply(&x->rows, v, err);
    if (rc < 0) return rc;
    x->n_jobs = x->n_seqs = 0;
    if (v->head->kind == STEP_FORWARD) return run_forward(x, v, err);
    layout_results(x, v->head);
    return v->head->kind == STEP_CANARY ? run_canary(x, err) : 0;
}

/* A refusal names the step as well as it can. */
static void refuse(struct execute *x, const void *frame, size_t len, const struct error *err)
{
    struct step head = {.kind = STEP_FORWARD};
    char text[1100];
    if (len >= sizeof(head)) memcpy(&head, frame, sizeof(head));
    if (head.kind < STEP_FORWARD || head.kind > STEP_CANARY) head.kind = STEP_FORWARD;
    log_error("step %llu refused: %s", (unsigned long long)head.id, error_text(err, text, sizeof(text)));
    struct results h = {.step = head.id, .gen = x->spec.gen, .kind = head.kind, .failed = 1};
    results_frame_layout(x->out, &h, &x->results);
}

const struct error *execute_error(const struct execute *x)
{
    return &x->broken;
}

const void *execute_step(struct execute *x, const void *frame, size_t len, size_t *out_len)
{
    struct step_view v;
    struct error err;
    u64 start = clock_ns();
    if (x->broken.code) return NULL;
    x->n_outcomes = 0;
    int rc = step_view(&v, frame, len, &err);
    if (rc == 0) rc = run(x, &v, &err);
    if (x->broken.code) return NULL;
    if (rc < 0) refuse(x, frame, len, &err);
    struct results *h = (struct results *)x->results.head;
    h->usec = (u32)((clock_ns() - start) / NS_PER_US);
    results_frame_seal(h);
    *out_len = h->bytes;
    return h;
}
