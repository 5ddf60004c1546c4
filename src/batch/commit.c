/* Results of steps become tokens; tokens become chunks. */
#include "batch/batch_internal.h"
#include <stdlib.h>
#include <string.h>

static void append_token(struct seq *s, i32 id)
{
    if (s->n_tokens == s->cap_tokens) {
        s->cap_tokens *= 2;
        s->tokens = mem_resize(s->tokens, s->cap_tokens * sizeof *s->tokens);
    }
    s->tokens[s->n_tokens++] = id;
}

static bool in_list(const struct request *r, struct span list, i32 id)
{
    const i32 *ids = request_at(r, list);
    for (u32 i = 0; i < list.len; i++)
        if (ids[i] == id) return true;
    return false;
}

/* End conditions, in the order of the API: end of sequence, stop ids, length. */
static void check_end(struct batch *b, struct seq *s, i32 id)
{
    const struct request *r = s->job->request;
    if (!r->sampling.ignore_eos && in_list(r, r->eos_ids, id))
        seq_end(b, s, FINISH_STOP, -1);
    else if (in_list(r, r->stop_ids, id))
        seq_end(b, s, FINISH_STOP, id);
    else if (s->n_tokens >= seq_limit(b, s))
        seq_end(b, s, FINISH_LENGTH, -1);
}

/* Always 1 + n_logprobs entries a token: where fewer tokens are possible at all, the last one stands for the rest. */
static void keep_logprobs(struct seq *s, const struct token_logprob *lp, u32 n)
{
    u32 entries = 1 + (u32)s->job->request->sampling.n_logprobs;
    for (u32 i = 0; i < entries; i++) buf_add(&s->logprobs, &lp[MIN_OF(i, n - 1)], sizeof *lp);
}

static void commit_token(struct batch *b, struct seq *s, i32 id)
{
    append_token(s, id);
    s->pending--;
    b->counts.generated_tokens++;
    job_clear_suspicion(b, s->job);
    seq_dirty(b, s);
    check_end(b, s, id);
}

static int commit_vector(struct batch *b, struct seq *s, const struct results_view *v, const struct result *r,
                         struct error *err)
{
    if (r->n_out || r->hidden.len != b->spec.hidden || r->pos0 != s->n_tokens || s->pending == 0)
        return error_set(err, ERR_PEER, "",
                         "result of row %u: a vector of %u at position %u, expected %u at %u", r->row,
                         r->hidden.len, r->pos0, b->spec.hidden, s->n_tokens);
    buf_add(&s->vector, results_at(v, r->hidden), r->hidden.len * sizeof(float));
    seq_committed(b, s, s->n_tokens);
    seq_end(b, s, FINISH_STOP, -1);
    return 0;
}

static int commit_row(struct batch *b, const struct results_view *v, const struct result *r,
                      struct error *err)
{
    if (r->row >= b->spec.max_rows)
        return error_set(err, ERR_PEER, "", "result for row %u of %u", r->row, b->spec.max_rows);
    struct seq *s = b->rows[r->row].seq;
    if (!s || b->rows[r->row].gen != r->row_gen) return 0; /* it has ended or was preempted meanwhile */
    if (r->flags) {
        if (r->flags & RESULT_NONFINITE)
            kv_forget(b->kv); /* whatever it came from, it may be in its blocks */
        job_fail(b, s->job,
                 r->flags & RESULT_NONFINITE ? "the model gave numbers that are not finite for this request"
                                             : "the request's constraints leave no token to choose");
        return 0;
    }
    if (seq_pooled(s)) return commit_vector(b, s, v, r, err);
    i32 wanted = s->job->request->sampling.n_logprobs;
    u32 entries = wanted < 0 ? 0 : 1 + (u32)wanted;
    if (r->n_out != 1 || r->tokens.len != 1 || r->pos0 != s->n_tokens || s->pending == 0 ||
        r->logprobs.len > entries || (entries > 0 && r->logprobs.len == 0))
        return error_set(err, ERR_PEER, "", "result of row %u: %u tokens at position %u, expected 1 at %u",
                         r->row, r->n_out, r->pos0, s->n_tokens);
    const i32 *ids = (const i32 *)(v->data + r->tokens.off);
    if (entries) keep_logprobs(s, (const struct token_logprob *)(v->data + r->logprobs.off), r->logprobs.len);
    seq_committed(b, s, s->n_tokens);
    commit_token(b, s, ids[0]);
    return 0;
}

static void commit_chunks(struct batch *b, u64 step)
{
    const struct chunk_note *notes = b->notes[step % STEP_IN_FLIGHT_MOST];
    for (u32 i = 0; i < b->n_notes[step % STEP_IN_FLIGHT_MOST]; i++) {
        struct row_slot *slot = &b->rows[notes[i].row];
        if (slot->seq && slot->gen == notes[i].row_gen) seq_committed(b, slot->seq, notes[i].end);
    }
}

int batch_commit(struct batch *b, const struct results_view *v, u64 now_ns, struct error *err)
{
    (void)now_ns;
    const struct results *h = v->head;
    if (!b->engine_up || h->gen != b->gen) return 0;
    if (h->step != b->committed_step + 1 || h->step >= b->next_step)
        return error_set(err, ERR_PEER, "", "results of step %llu, expected %llu",
                         (unsigned long long)h->step, (unsigned long long)b->committed_step + 1);
    if (h->failed)
        return error_set(err, ERR_PEER, "", "the engine refused step %llu", (unsigned long long)h->step);
    commit_chunks(b, h->step);
    for (u32 i = 0; i < h->n; i++) {
        int rc = commit_row(b, v, &v->rows[i], err);
        if (rc) return rc;
    }
    b->committed_step = h->step;
    kv_committed(b->kv, h->step);
    return 0;
}

/* ---- output
 * --------------------------------------------------------------------------------------------------*/
bool batch_has_output(const struct batch *b)
{
    return b->n_dirty > 0;
}

static struct buf *out_of(struct batch *b, u32 origin)
{
    if (origin >= b->n_out) {
        b->out = mem_resize(b->out, (origin + 1) * sizeof *b->out);
        memset(b->out + b->n_out, 0, (origin + 1 - b->n_out) * sizeof *b->out);
        b->n_out = origin + 1;
    }
    return &b->out[origin];
}

static void flush_seq(struct batch *b, struct seq *s)
{
    struct job *j = s->job;
    u32 n_dirty_live = 0;
    for (u32 i = 0; i < j->request->n_samples; i++) n_dirty_live += j->seqs[i].dirty;
    i32 n_top = j->request->sampling.n_logprobs;
    struct chunk head = {.request = j->request->id,
                         .sample = s->sample,
                         .first = s->flushed,
                         .n_tokens = seq_n_out(s) - s->flushed,
                         .n_top = n_top < 0 ? 0xffffffffu : (u32)n_top,
                         .n_cached = s->flushed == 0 && s->sample == 0 ? s->n_cached : 0,
                         .stop_id = s->stop_id,
                         .finish = s->ended ? s->finish : FINISH_NONE,
                         .last = j->n_live == 0 && n_dirty_live == 1};
    if (s->vector.len)
        chunk_add_vector(out_of(b, j->origin), &head, (const float *)s->vector.data, b->spec.hidden);
    else
        chunk_add(out_of(b, j->origin), &head, s->tokens + j->request->prompt.len + s->flushed,
                  (const struct token_logprob *)s->logprobs.data, j->error[0] ? j->error : NULL);
    s->flushed = seq_n_out(s);
    buf_clear(&s->logprobs);
    buf_clear(&s->vector);
    s->dirty = false;
    b->n_dirty--;
    j->last_set = head.last;
}

static void note_ended(struct batch *b, u64 request)
{
    if (b->n_ended == b->cap_ended) {
        b->cap_ended = b->cap_ended ? 2 * b->cap_ended : 64;
        b->ended = mem_resize(b->ended, b->cap_ended * sizeof *b->ended);
    }
    b->ended[b->n_ended++] = request;
}

void batch_flush(struct batch *b, void (*fn)(void *arg, u32 origin, const void *msg, size_t len), void *arg)
{
    if (b->n_dirty == 0) return;
    for (struct job *j = b->first, *next; j; j = next) {
        next = j->next;
        for (u32 i = 0; i < j->request->n_samples; i++)
            if (j->seqs[i].dirty) flush_seq(b, &j->seqs[i]);
        if (j->last_set) {
            note_ended(b, j->request->id);
            job_drop(b, j);
        }
    }
    for (u32 o = 0; o < b->n_out; o++) {
        if (b->out[o].len == 0) continue;
        fn(arg, o, b->out[o].data, b->out[o].len);
        buf_clear(&b->out[o]);
    }
}

bool batch_next_ended(struct batch *b, u64 *request)
{
    if (b->n_ended == 0) return false;
    *request = b->ended[--b->n_ended];
    return true;
}
