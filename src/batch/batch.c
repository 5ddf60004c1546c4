/* Life of requests and sequences; the engine's coming and going. */
#include "batch/batch_internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct batch *batch_new(const struct batch_spec *spec, struct error *err)
{
    if (spec->max_rows == 0 || spec->max_step_tokens < spec->max_rows || spec->block_size == 0 ||
        spec->in_flight == 0 || spec->in_flight > STEP_IN_FLIGHT_MOST || spec->max_model_len == 0) {
        error_set(err, ERR_INPUT, "", "a step takes %u tokens: it must take one for each of the %u sequences",
                  spec->max_step_tokens, spec->max_rows);
        return NULL;
    }
    u64 needed = ((u64)spec->max_model_len + spec->block_size - 1) / spec->block_size;
    if (spec->n_blocks < needed + 1) {
        error_set(err, ERR_INPUT, "",
                  "the KV cache of %u blocks of %u tokens is too small for one sequence of %u",
                  spec->n_blocks, spec->block_size, spec->max_model_len);
        return NULL;
    }
    struct kv_spec kv_spec = {.n_blocks = spec->n_blocks,
                              .block_size = spec->block_size,
                              .prefix_cache = spec->prefix_cache,
                              .n_changes = spec->n_changes};
    struct kv_blocks *kv = kv_blocks_new(&kv_spec, err);
    if (!kv) return NULL;
    struct batch *b = mem_zero(1, sizeof *b);
    b->spec = *spec;
    b->kv = kv;
    b->rows = mem_zero(spec->max_rows, sizeof *b->rows);
    b->free_rows = mem_zero(spec->max_rows, sizeof *b->free_rows);
    for (u32 i = 0; i < spec->max_rows; i++) b->free_rows[i] = spec->max_rows - 1 - i;
    b->n_free_rows = spec->max_rows;
    b->plan = mem_zero(spec->max_rows, sizeof *b->plan);
    for (u32 i = 0; i < STEP_IN_FLIGHT_MOST; i++) b->notes[i] = mem_zero(spec->max_rows, sizeof *b->notes[i]);
    b->seen = mem_zero(spec->n_blocks, sizeof *b->seen);
    b->counts.total_blocks = kv_total_blocks(kv);
    return b;
}

void batch_free(struct batch *b)
{
    if (!b) return;
    while (b->first) job_drop(b, b->first);
    for (u32 i = 0; i < b->n_out; i++) buf_release(&b->out[i]);
    buf_release(&b->frame);
    kv_blocks_free(b->kv);
    free(b->out);
    free(b->rows);
    free(b->free_rows);
    free(b->to_free);
    free(b->plan);
    for (u32 i = 0; i < STEP_IN_FLIGHT_MOST; i++) free(b->notes[i]);
    free(b->seen);
    free(b->ended);
    free(b);
}

static void job_link(struct batch *b, struct job *j)
{
    struct job *after = b->last;
    while (after && after->request->priority > j->request->priority) after = after->prev;
    j->prev = after;
    j->next = after ? after->next : b->first;
    *(j->prev ? &j->prev->next : &b->first) = j;
    *(j->next ? &j->next->prev : &b->last) = j;
}

int batch_add(struct batch *b, const struct request *r, u32 origin, u64 now_ns, struct error *err)
{
    (void)now_ns;
    if (r->pooling && !b->spec.hidden)
        return error_set(err, ERR_INPUT, "pooling", "the model makes no vectors");
    if (b->spec.whole && r->prompt.len > b->spec.max_step_tokens)
        return error_set(err, ERR_INPUT, "prompt", "%u tokens, and a step takes %u", r->prompt.len,
                         b->spec.max_step_tokens);
    if (r->pooling ? r->prompt.len > b->spec.max_model_len : r->prompt.len >= b->spec.max_model_len)
        return error_set(err, ERR_INPUT, "prompt", "%u tokens do not fit a context of %u with an answer",
                         r->prompt.len, b->spec.max_model_len);
    size_t frame = sizeof(struct step) + sizeof(struct seq_new) + sizeof(struct row) + r->bytes + 4096 +
                   4ull * (b->spec.max_model_len + b->spec.max_model_len / b->spec.block_size);
    if (frame > b->spec.max_frame)
        return error_set(err, ERR_FULL, "", "the request of %u bytes does not fit the step ring", r->bytes);
    struct job *j = mem_zero(1, sizeof *j);
    j->request = mem_alloc(r->bytes);
    memcpy(j->request, r, r->bytes);
    j->origin = origin;
    j->n_live = r->n_samples;
    j->seqs = mem_zero(r->n_samples, sizeof *j->seqs);
    for (u32 i = 0; i < r->n_samples; i++) {
        struct seq *s = &j->seqs[i];
        s->job = j;
        s->sample = i;
        s->row = NO_ROW;
        s->stop_id = -1;
        s->n_tokens = r->prompt.len;
        s->cap_tokens = r->prompt.len + 64;
        s->tokens = mem_alloc(s->cap_tokens * sizeof *s->tokens);
        memcpy(s->tokens, request_at(r, r->prompt), r->prompt.len * sizeof *s->tokens);
    }
    job_link(b, j);
    b->counts.waiting += r->n_samples;
    b->counts.prompt_tokens += r->prompt.len;
    return 0;
}

static struct job *find_job(const struct batch *b, u64 request)
{
    struct job *j = b->first;
    while (j && j->request->id != request) j = j->next;
    return j;
}

static void job_end(struct batch *b, struct job *j, enum finish how)
{
    for (u32 i = 0; i < j->request->n_samples; i++)
        if (!j->seqs[i].ended) seq_end(b, &j->seqs[i], how, -1);
}

bool batch_cancel(struct batch *b, u64 request)
{
    struct job *j = find_job(b, request);
    if (!j || j->n_live == 0) return false;
    job_end(b, j, FINISH_ABORT);
    return true;
}

void batch_end_all(struct batch *b, enum finish how)
{
    for (struct job *j = b->first; j; j = j->next) job_end(b, j, how);
}

void job_fail(struct batch *b, struct job *j, const char *why)
{
    snprintf(j->error, sizeof j->error, "%s", why);
    job_end(b, j, FINISH_ERROR);
}

void job_clear_suspicion(struct batch *b, struct job *j)
{
    if (!j->suspect) return;
    j->suspect = false;
    b->n_suspects--;
}

void job_drop(struct batch *b, struct job *j)
{
    job_clear_suspicion(b, j);
    *(j->prev ? &j->prev->next : &b->first) = j->next;
    *(j->next ? &j->next->prev : &b->last) = j->prev;
    for (u32 i = 0; i < j->request->n_samples; i++) {
        free(j->seqs[i].tokens);
        free(j->seqs[i].blocks);
        buf_release(&j->seqs[i].logprobs);
        buf_release(&j->seqs[i].vector);
    }
    free(j->seqs);
    free(j->request);
    free(j);
}

void seq_dirty(struct batch *b, struct seq *s)
{
    if (s->dirty) return;
    s->dirty = true;
    b->n_dirty++;
}

static void seq_give_blocks(struct batch *b, struct seq *s)
{
    while (s->n_blocks > 0) kv_give(b->kv, s->blocks[--s->n_blocks], b->next_step - 1);
    kv_committed(b->kv, b->committed_step);
    s->n_blocks_sent = s->n_linked = 0;
    s->link = (struct kv_link){0};
    s->unlinked = false;
}

void seq_committed(struct batch *b, struct seq *s, u32 upto)
{
    s->committed = upto;
    for (u32 size = b->spec.block_size; !s->unlinked && (s->n_linked + 1) * size <= upto; s->n_linked++)
        s->unlinked =
            !kv_cache(b->kv, &s->link, s->tokens + (size_t)s->n_linked * size, s->blocks[s->n_linked]);
}

void seq_evict(struct batch *b, struct seq *s)
{
    if (s->row == NO_ROW) return;
    struct row_slot *slot = &b->rows[s->row];
    if (s->sent) {
        if (b->n_to_free == b->cap_to_free) {
            b->cap_to_free = b->cap_to_free ? 2 * b->cap_to_free : 64;
            b->to_free = mem_resize(b->to_free, b->cap_to_free * sizeof *b->to_free);
        }
        b->to_free[b->n_to_free++] = (struct seq_free){s->row, slot->gen};
    }
    slot->seq = NULL;
    slot->gen++;
    b->free_rows[b->n_free_rows++] = s->row;
    s->row = NO_ROW;
    s->sent = false;
    s->planned = s->pending = s->committed = 0;
    seq_give_blocks(b, s);
    b->counts.running--;
    b->counts.waiting++;
}

void seq_end(struct batch *b, struct seq *s, enum finish how, i32 stop_id)
{
    seq_evict(b, s);
    b->counts.waiting--;
    s->ended = true;
    s->finish = (u8)how;
    s->stop_id = stop_id;
    s->job->n_live--;
    seq_dirty(b, s);
    if (s->job->n_live == 0) job_clear_suspicion(b, s->job);
}

/* ---- the engine
 * ----------------------------------------------------------------------------------------------*/
static void forget_rows(struct batch *b)
{
    for (u32 i = 0; i < b->spec.max_rows; i++) {
        if (b->rows[i].seq) {
            b->rows[i].seq->sent = false; /* the engine knows no row: nothing to tell it */
            seq_evict(b, b->rows[i].seq);
        }
    }
    b->n_to_free = 0;
    memset(b->n_notes, 0, sizeof b->n_notes);
    b->next_step = 1;
    b->committed_step = 0;
    kv_settle(b->kv);
    kv_forget(b->kv);
}

void batch_engine_ready(struct batch *b, u32 gen)
{
    forget_rows(b);
    b->gen = gen;
    b->engine_up = true;
}

static bool job_in_flight(const struct batch *b, const struct job *j)
{
    for (u32 i = 0; i < j->request->n_samples; i++)
        if (j->seqs[i].row != NO_ROW && j->seqs[i].last_step > b->committed_step) return true;
    return false;
}

static void blame(struct batch *b)
{
    u32 n = 0;
    for (struct job *j = b->first; j; j = j->next) n += job_in_flight(b, j);
    for (struct job *j = b->first; j; j = j->next) {
        if (!job_in_flight(b, j)) continue;
        j->kills++;
        if (j->kills >= b->spec.max_kills && n == 1) {
            job_fail(b, j, "this request ended the engine repeatedly; it will not be tried again");
        } else if (!j->suspect) {
            j->suspect = true;
            b->n_suspects++;
        }
    }
}

void batch_engine_lost(struct batch *b, bool blame_requests)
{
    if (b->engine_up) {
        b->counts.kills++;
        if (blame_requests) blame(b);
    }
    b->engine_up = false;
    forget_rows(b);
}

/* ---- state
 * ---------------------------------------------------------------------------------------------------*/
u32 batch_steps_in_flight(const struct batch *b)
{
    return b->next_step ? (u32)(b->next_step - 1 - b->committed_step) : 0;
}

bool batch_idle(const struct batch *b)
{
    return b->first == NULL;
}

void batch_counts(const struct batch *b, struct batch_counts *out)
{
    *out = b->counts;
    out->free_blocks = kv_free_blocks(b->kv);
}

enum kv_change batch_next_change(struct batch *b, u64 *hash)
{
    return kv_next_change(b->kv, hash);
}

u32 batch_cached(const struct batch *b, u64 *out, u32 max)
{
    return kv_hashes(b->kv, out, max);
}

bool batch_computes(const struct batch *b)
{
    return b->counts.running + b->counts.waiting > 0;
}
