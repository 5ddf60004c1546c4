/* Planning a step: who computes what, and the frame that says so. */
#include "batch/batch_internal.h"
#include <string.h>

bool batch_wants_step(const struct batch *b)
{
    u32 allowed = b->n_suspects ? 1 : b->spec.in_flight;
    return b->engine_up && batch_steps_in_flight(b) < allowed &&
           (b->counts.running + b->counts.waiting > 0 || b->n_to_free > 0);
}

/* Tokens of the row's history once all planned steps are done. */
static u32 history_after(const struct seq *s)
{
    return s->n_tokens + (seq_pooled(s) ? 0 : s->pending);
}

/* Does the sequence need more computation, as far as is known now? */
static bool seq_has_work(const struct batch *b, const struct seq *s)
{
    u32 history = history_after(s);
    if (b->spec.staged && s->pending) return false;
    return s->planned < history && (seq_pooled(s) || history < seq_limit(b, s));
}

static bool take_row(struct batch *b, struct seq *s)
{
    if (s->row != NO_ROW) return true;
    if (b->n_free_rows == 0) return false;
    s->row = b->free_rows[--b->n_free_rows];
    b->rows[s->row].seq = s;
    b->counts.waiting--;
    b->counts.running++;
    return true;
}

/* The youngest running sequence behind `than` in scheduling order; NULL when there is none. */
static struct seq *youngest_behind(struct batch *b, const struct seq *than)
{
    for (struct job *j = b->last; j; j = j->prev) {
        for (u32 i = j->request->n_samples; i-- > 0;) {
            struct seq *s = &j->seqs[i];
            if (s == than) return NULL;
            if (s->row != NO_ROW) return s;
        }
    }
    return NULL;
}

static void unplan(struct batch *b, const struct seq *s)
{
    for (u32 i = 0; i < b->n_plan; i++) {
        if (b->plan[i].seq != s) continue;
        memmove(&b->plan[i], &b->plan[i + 1], (b->n_plan - i - 1) * sizeof *b->plan);
        b->n_plan--;
        return;
    }
}

/* Blocks that nobody would use without the running sequences behind `than`. */
static u32 blocks_behind(struct batch *b, const struct seq *than)
{
    u32 n = 0;
    b->round++;
    for (const struct job *j = b->last; j; j = j->prev) {
        for (u32 i = j->request->n_samples; i-- > 0;) {
            const struct seq *s = &j->seqs[i];
            if (s == than) return n;
            for (u32 k = 0; k < s->n_blocks; k++) {
                struct block_seen *seen = &b->seen[s->blocks[k]];
                if (seen->round != b->round) *seen = (struct block_seen){b->round, 0};
                n += ++seen->times == kv_users(b->kv, s->blocks[k]);
            }
        }
    }
    return n;
}

static void add_block(struct seq *s, u32 block)
{
    if (s->n_blocks == s->cap_blocks) {
        s->cap_blocks = s->cap_blocks ? 2 * s->cap_blocks : 16;
        s->blocks = mem_resize(s->blocks, s->cap_blocks * sizeof *s->blocks);
    }
    s->blocks[s->n_blocks++] = block;
}

static void one_block(struct batch *b, struct seq *s)
{
    u32 block;
    BUG_ON(!kv_take(b->kv, &block));
    add_block(s, block);
}

/* Blocks for positions [0, upto), all or none. Younger sequences make room, where that is enough; what they lose is computed again
 * later. What they give up can be had when the steps in flight have ended: until then nobody else has to go. */
static bool take_blocks(struct batch *b, struct seq *s, u32 upto)
{
    u32 needed = (upto + b->spec.block_size - 1) / b->spec.block_size;
    if (needed <= s->n_blocks) return true;
    u32 more = needed - s->n_blocks, had = kv_free_blocks(b->kv) + kv_given_blocks(b->kv);
    if (more > had && more > had + blocks_behind(b, s)) return false;
    while (more > kv_free_blocks(b->kv) + kv_given_blocks(b->kv)) {
        struct seq *victim = youngest_behind(b, s);
        BUG_ON(!victim);
        unplan(b, victim);
        seq_evict(b, victim);
        b->counts.preemptions++;
    }
    if (more > kv_free_blocks(b->kv)) return false;
    while (s->n_blocks < needed) one_block(b, s);
    return true;
}

/* ---- the prefix cache -----------------------------------------------------------------------------------------*/
/* Samples behind the first running one use what it computes of their prompt. They wait for those before them only: never in a
 * circle. */
static bool waits_for_sibling(const struct batch *b, const struct seq *s)
{
    u32 shared = (s->job->request->prompt.len - 1) / b->spec.block_size * b->spec.block_size;
    for (u32 i = 0; i < s->sample && b->spec.prefix_cache; i++)
        if (s->job->seqs[i].row != NO_ROW) return s->job->seqs[i].committed < shared;
    return false;
}

/* A sequence that gets a row starts behind what is cached of its tokens; its last one is always computed. */
static void use_prefix(struct batch *b, struct seq *s)
{
    u32 block, size = b->spec.block_size, most = (s->n_tokens - 1) / size;
    enum pooling pooling = (enum pooling)s->job->request->pooling;
    if (pooling == POOLING_MEAN || pooling == POOLING_CLS) most = 0;
    u32 kind = b->spec.prefix_kind ? b->spec.prefix_kind(b->spec.prefix_arg, s->job->request->prompt.len) : 0;
    s->link.serial = kv_kind(s->job->request->adapter, kind);
    while (s->n_blocks < most && kv_find(b->kv, &s->link, s->tokens + (size_t)s->n_blocks * size, &block)) {
        kv_hold(b->kv, block);
        add_block(s, block);
    }
    s->n_linked = s->n_blocks;
    s->planned = s->committed = s->n_blocks * size;
}

/* It does not start now: the row goes back, too. */
static void leave_prefix(struct batch *b, struct seq *s)
{
    while (s->n_blocks > 0) kv_unhold(b->kv, s->blocks[--s->n_blocks]);
    seq_evict(b, s);
}

static void count_prefix(struct batch *b, struct seq *s)
{
    if (s->was_looked_up || !b->spec.prefix_cache) return;
    s->was_looked_up = true;
    s->n_cached = s->committed;
    b->counts.prefix_queries += s->n_tokens;
    b->counts.prefix_hits += s->n_cached;
}

/* Bytes of the data area for a new row, rounded up part by part. */
static size_t seq_new_data(const struct seq *s)
{
    const struct request *r = s->job->request;
    return align8(4ull * s->n_tokens) + align8(8ull * r->bias.len) + align8(4ull * r->allowed.len) +
           align8(4ull * r->bad_words.len) + align8(4ull * r->eos_ids.len) + align8(4ull * r->stop_ids.len);
}

/* Waiting sequences that found no room in a plan: after so many the others are not looked up any more, for the time it takes. */
enum { MAX_REFUSED = 8 };
struct plan_room {
    u32 tokens, n_refused;
    u32 decodes; /* sequences that may decode in this step */
    size_t bytes;
};

/* Of a sequence with a row. */
static bool plan_chunk(struct batch *b, struct seq *s, struct plan_room *room)
{
    u32 left = history_after(s) - s->planned, n = MIN_OF(left, room->tokens);
    n = MIN_OF(n, 0xffffu);
    if (b->spec.whole && n < left) return false;
    u32 upto = s->planned + n;
    size_t bytes =
        sizeof(struct row) + align8(4) + align8(4ull * (upto / b->spec.block_size + 1 - s->n_blocks_sent));
    if (!s->sent) bytes += sizeof(struct seq_new) + seq_new_data(s);
    if (bytes > room->bytes || !take_blocks(b, s, upto)) return false;
    room->tokens -= n;
    room->bytes -= bytes;
    b->plan[b->n_plan++] = (struct planned_row){s, n, s->n_blocks_sent, upto == history_after(s)};
    return true;
}

/* A waiting sequence starts only when its whole chunk fits; a running one waits where it is. */
static void plan_seq(struct batch *b, struct seq *s, struct plan_room *room)
{
    if (s->ended || !seq_has_work(b, s) || room->tokens == 0) return;
    if (s->row != NO_ROW) {
        plan_chunk(b, s, room);
        return;
    }
    if (room->n_refused == MAX_REFUSED || waits_for_sibling(b, s) || !take_row(b, s)) return;
    use_prefix(b, s);
    if (plan_chunk(b, s, room)) {
        count_prefix(b, s);
        return;
    }
    leave_prefix(b, s);
    room->n_refused++;
}

/* It goes on behind a token of its own: one row, one token. */
static bool decodes(const struct seq *s)
{
    return s->row != NO_ROW && s->sent && s->planned + 1 == history_after(s);
}

/* With stages, what decodes is dealt over the steps in flight. */
static u32 decodes_a_step(const struct batch *b)
{
    u32 n = 0;
    if (!b->spec.staged) return UINT32_MAX;
    for (u32 i = 0; i < b->spec.max_rows; i++) {
        const struct seq *s = b->rows[i].seq;
        n += s && (s->pending || decodes(s));
    }
    return MAX_OF(1u, (n + b->spec.in_flight - 1) / b->spec.in_flight);
}

/* Two passes in scheduling order: first every sequence that decodes (one token each), then prompt chunks. */
static void choose(struct batch *b, struct plan_room *room)
{
    for (int prompts = 0; prompts < 2; prompts++) {
        for (struct job *j = b->first; j; j = j->next) {
            for (u32 i = 0; i < j->request->n_samples && b->n_plan < b->spec.max_rows; i++) {
                struct seq *s = &j->seqs[i];
                if (decodes(s) != !prompts || (!prompts && b->n_plan >= room->decodes)) continue;
                plan_seq(b, s, room);
            }
        }
    }
}

/* After a death somebody is to blame: suspects run one request at a time until each has given a token. */
static void choose_suspect(struct batch *b, struct plan_room *room)
{
    for (struct job *j = b->first; j; j = j->next) {
        if (!j->suspect) continue;
        for (u32 i = 0; i < j->request->n_samples && b->n_plan < b->spec.max_rows; i++)
            plan_seq(b, &j->seqs[i], room);
        if (b->n_plan > 0) return;
    }
}

/* ---- the frame
 * -----------------------------------------------------------------------------------------------*/
struct data_fill {
    u8 *base;
    u32 used;
};
static struct span fill(struct data_fill *d, const void *from, u32 count, u32 item)
{
    struct span s = {d->used, count};
    if (count) memcpy(d->base + d->used, from, (size_t)count * item);
    d->used += (u32)align8((size_t)count * item);
    return s;
}

static void fill_new(const struct batch *b, const struct seq *s, struct seq_new *n, struct data_fill *d)
{
    const struct request *r = s->job->request;
    *n = (struct seq_new){.row = s->row,
                          .row_gen = b->rows[s->row].gen,
                          .request = r->id,
                          .prompt_len = r->prompt.len,
                          .n_tok = s->n_tokens,
                          .max_len = seq_limit(b, s),
                          .pooling = r->pooling,
                          .second = r->second,
                          .adapter = r->adapter,
                          .sampling = r->sampling};
    n->sampling.seed += s->sample;
    n->tokens = fill(d, s->tokens, s->n_tokens, 4);
    n->bias = fill(d, request_at(r, r->bias), r->bias.len, sizeof(struct token_bias));
    n->allowed = fill(d, request_at(r, r->allowed), r->allowed.len, 4);
    n->bad_words = fill(d, request_at(r, r->bad_words), r->bad_words.len, 4);
    n->eos_ids = fill(d, request_at(r, r->eos_ids), r->eos_ids.len, 4);
    n->stop_ids = fill(d, request_at(r, r->stop_ids), r->stop_ids.len, 4);
}

/* Its token was sampled by the last stage: the others learn it from the step. */
static bool carries_token(const struct batch *b, const struct seq *s, u32 n_tok)
{
    return b->spec.staged && s->sent && n_tok == 1 && s->planned + 1 == s->n_tokens;
}

static void fill_row(const struct batch *b, const struct planned_row *p, struct row *row, struct data_fill *d)
{
    const struct seq *s = p->seq;
    bool carries = carries_token(b, s, p->n_tok);
    *row = (struct row){.row = s->row,
                        .row_gen = b->rows[s->row].gen,
                        .pos = s->planned,
                        .n_tok = (u16)p->n_tok,
                        .src = carries ? SRC_RING : SRC_HISTORY,
                        .want = !p->want        ? WANT_NOTHING
                                : seq_pooled(s) ? WANT_HIDDEN
                                                : WANT_SAMPLE,
                        .mask_slot = -1};
    if (carries) row->tok_off = fill(d, s->tokens + s->planned, 1, 4).off;
    row->block_delta[0] = fill(d, s->blocks + s->n_blocks_sent, s->n_blocks - s->n_blocks_sent, 4);
}

static const void *build_frame(struct batch *b, size_t *len)
{
    struct step head = {.id = b->next_step,
                        .gen = b->gen,
                        .numerics = b->spec.numerics,
                        .kind = STEP_FORWARD,
                        .n_free = b->n_to_free,
                        .n_rows = b->n_plan,
                        .need_committed = b->committed_step};
    size_t data = 0;
    for (u32 i = 0; i < b->n_plan; i++) {
        const struct seq *s = b->plan[i].seq;
        head.n_tok += b->plan[i].n_tok;
        data += align8(4ull * (s->n_blocks - s->n_blocks_sent));
        if (carries_token(b, s, b->plan[i].n_tok)) data += align8(4);
        if (!s->sent) head.n_new++, data += seq_new_data(s);
    }
    head.data_len = (u32)data;
    *len = step_frame_bytes(&head);
    buf_clear(&b->frame);
    buf_reserve(&b->frame, *len);
    struct step_view v;
    step_frame_layout(b->frame.data, &head, &v);
    if (b->n_to_free) memcpy((void *)v.free, b->to_free, b->n_to_free * sizeof *b->to_free);
    struct data_fill d = {(u8 *)v.data, 0};
    u32 n_new = 0;
    for (u32 i = 0; i < b->n_plan; i++) {
        struct seq *s = b->plan[i].seq;
        if (!s->sent) fill_new(b, s, (struct seq_new *)v.new + n_new++, &d);
        fill_row(b, &b->plan[i], (struct row *)v.rows + i, &d);
    }
    BUG_ON(d.used != head.data_len);
    step_frame_seal(b->frame.data);
    return b->frame.data;
}

static void note_chunks(struct batch *b)
{
    u32 which = b->next_step % STEP_IN_FLIGHT_MOST;
    b->n_notes[which] = 0;
    for (u32 i = 0; i < b->n_plan; i++) {
        const struct seq *s = b->plan[i].seq;
        if (b->plan[i].want) continue;
        b->notes[which][b->n_notes[which]++] = (struct chunk_note){s->row, b->rows[s->row].gen, s->planned};
    }
}

const void *batch_plan(struct batch *b, u64 now_ns, size_t *len)
{
    (void)now_ns;
    if (!batch_wants_step(b)) return NULL;
    b->n_plan = 0;
    size_t fixed = sizeof(struct step) + 64 + align8(b->n_to_free * sizeof(struct seq_free));
    struct plan_room room = {.tokens = b->spec.max_step_tokens,
                             .decodes = decodes_a_step(b),
                             .bytes = b->spec.max_frame > fixed ? b->spec.max_frame - fixed : 0};
    if (b->n_suspects) choose_suspect(b, &room);
    if (b->n_plan == 0) choose(b, &room); /* also when the suspects wait for what others hold */
    if (b->n_plan == 0 && b->n_to_free == 0) return NULL;
    const void *frame = build_frame(b, len);
    for (u32 i = 0; i < b->n_plan; i++) {
        struct seq *s = b->plan[i].seq;
        s->sent = true;
        s->planned += b->plan[i].n_tok;
        s->pending += b->plan[i].want;
        s->n_blocks_sent = s->n_blocks;
        s->last_step = b->next_step;
    }
    note_chunks(b);
    b->n_to_free = 0;
    b->next_step++;
    b->counts.steps += b->n_plan > 0;
    return frame;
}

const void *batch_canary(struct batch *b, size_t *len)
{
    if (!b->engine_up || batch_steps_in_flight(b) > 0) return NULL;
    b->n_notes[b->next_step % STEP_IN_FLIGHT_MOST] = 0;
    struct step head = {
        .id = b->next_step++, .gen = b->gen, .numerics = b->spec.numerics, .kind = STEP_CANARY};
    *len = step_frame_bytes(&head);
    buf_clear(&b->frame);
    buf_reserve(&b->frame, *len);
    struct step_view v;
    step_frame_layout(b->frame.data, &head, &v);
    step_frame_seal(b->frame.data);
    return b->frame.data;
}
