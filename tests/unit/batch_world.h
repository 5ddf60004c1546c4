/* The scheduler against an engine in miniature: it keeps rows and histories as a real one does, checks
 * everything the contract promises (a block that is written has one owner, positions follow each other, rows and generations
 * match, a block holds what its reader's history says), and its tokens are a hash of the whole history, so that any
 * wrong history, order or replay changes the text. Included once, by tests of batch/, which include cmocka first. */
#ifndef MPISERVE_BATCH_WORLD_H
#define MPISERVE_BATCH_WORLD_H

#include "mpiserve/batch.h"

enum { ROWS = 8, BLOCK = 4, LEN = 64, EOS = 3, VOCAB = 50, MAX_REQ = 64, MAX_SAMPLES = 3, MAX_BLOCKS = 300 };

static i32 next_token(u64 seed, const i32 *history, u32 n)
{
    return (i32)(hash_bytes(history, n * 4ull, seed) % VOCAB);
}

/* ---- the miniature engine ----*/
struct mini_row {
    bool used, started;
    u32 gen, n, computed, n_blocks, max_len, n_logprobs_entries;
    u32 told; /* tokens that a first stage, which does not sample, has been told */
    u64 seed;
    i32 history[LEN + 1];
    u32 blocks[LEN];
    u32 adapter;
};
struct mini {
    u32 gen;
    u64 last_step;
    struct mini_row rows[ROWS];
    bool staged;
    u8 *queue[STEP_IN_FLIGHT_MOST];
    size_t queue_len[STEP_IN_FLIGHT_MOST];
    u32 n_queue;
    u64 kv[MAX_BLOCKS][BLOCK]; /* what was written there: a hash of the history up to that token */
    u32 n_computed, first_pos; /* tokens; first_pos: where the last new row began */
    u32 last_adapter;          /* of the last new row */
    u64 nan_seed;              /* of a sequence without finite numbers; 0: none */
};

static void mini_new_seq(struct mini *m, const struct step_view *v, const struct seq_new *n)
{
    assert_in_range(n->row, 0, ROWS - 1);
    struct mini_row *r = &m->rows[n->row];
    assert_false(r->used);
    assert_true(n->n_tok <= n->max_len && n->max_len <= LEN);
    *r = (struct mini_row){.used = true,
                           .gen = n->row_gen,
                           .n = n->n_tok,
                           .told = n->n_tok,
                           .max_len = n->max_len,
                           .adapter = n->adapter,
                           .seed = n->sampling.seed};
    m->last_adapter = n->adapter;
    r->n_logprobs_entries = n->sampling.n_logprobs < 0 ? 0 : 1 + (u32)n->sampling.n_logprobs;
    memcpy(r->history, v->data + n->tokens.off, n->n_tok * 4);
    assert_int_equal(n->eos_ids.len, 1);
}

/* Writes positions [pos, pos + n), into blocks that nobody else has, and reads all before. */
static void mini_compute(struct mini *m, const struct mini_row *r, u32 pos, u32 n)
{
    assert_true(pos + n <= r->n_blocks * BLOCK);
    for (u32 i = 0; i < ROWS; i++) {
        const struct mini_row *o = &m->rows[i];
        if (!o->used || o == r) continue;
        for (u32 a = pos / BLOCK; a < r->n_blocks; a++)
            for (u32 b = 0; b < o->n_blocks; b++) assert_int_not_equal(r->blocks[a], o->blocks[b]);
    }
    for (u32 p = 0; p < pos + n; p++) {
        u64 *at = &m->kv[r->blocks[p / BLOCK]][p % BLOCK],
            hash = hash_bytes(r->history, (p + 1) * 4ull, r->adapter);
        if (p >= pos) *at = hash;
        assert_true(*at == hash);
    }
    m->n_computed += n;
}

/* A first stage computes what it was told in time; what it is told is what the last one sampled. */
static void mini_tell(const struct mini *m, struct mini_row *r, const struct row *w, const u8 *data)
{
    assert_int_equal(w->src == SRC_RING, w->src == SRC_RING && m->staged);
    if (!m->staged) return;
    if (w->src == SRC_RING) {
        assert_int_equal(w->n_tok, 1);
        assert_true(w->pos == r->told || w->pos + 1 == r->told);
        assert_memory_equal(data + w->tok_off, &r->history[w->pos], 4);
        r->told = w->pos + 1;
    }
    assert_true(w->pos + w->n_tok <= r->told);
}

/* Runs the oldest queued step; returns the results frame (malloc). */
static u8 *mini_run(struct mini *m, size_t *len)
{
    struct step_view v;
    struct error err;
    assert_int_equal(step_view(&v, m->queue[0], m->queue_len[0], &err), 0);
    assert_int_equal(v.head->gen, m->gen);
    assert_int_equal(v.head->id, m->last_step + 1);
    m->last_step = v.head->id;
    for (u32 i = 0; i < v.head->n_free; i++) {
        struct mini_row *r = &m->rows[v.free[i].row];
        assert_true(r->used && r->gen == v.free[i].row_gen);
        r->used = false;
    }
    for (u32 i = 0; i < v.head->n_new; i++) mini_new_seq(m, &v, &v.new[i]);
    struct results head = {.step = v.head->id, .gen = m->gen, .kind = STEP_FORWARD};
    for (u32 i = 0; i < v.head->n_rows; i++) {
        if (v.rows[i].want != WANT_SAMPLE) continue;
        head.n++;
        head.data_len += 8 + 16 * ((m->rows[v.rows[i].row].n_logprobs_entries * 12 + 15) / 16);
    }
    *len = results_frame_bytes(&head);
    u8 *frame = calloc(1, *len);
    struct results_view out;
    results_frame_layout(frame, &head, &out);
    u32 k = 0, off = 0;
    for (u32 i = 0; i < v.head->n_rows; i++) {
        const struct row *w = &v.rows[i];
        struct mini_row *r = &m->rows[w->row];
        assert_true(r->used && r->gen == w->row_gen);
        if (!r->started) r->computed = m->first_pos = w->pos; /* behind blocks that are there */
        assert_int_equal(w->pos, r->computed);
        assert_true(r->started || w->pos % BLOCK == 0);
        r->started = true;
        assert_true(w->n_tok >= 1 && w->pos + w->n_tok <= r->n);
        const u32 *more = (const u32 *)(v.data + w->block_delta[0].off);
        for (u32 b = 0; b < w->block_delta[0].len; b++) r->blocks[r->n_blocks++] = more[b];
        mini_tell(m, r, w, v.data);
        r->computed += w->n_tok;
        mini_compute(m, r, w->pos, w->n_tok);
        if (w->want != WANT_SAMPLE) continue;
        assert_int_equal(r->computed, r->n);
        assert_true(r->n < r->max_len);
        i32 id = next_token(r->seed, r->history, r->n);
        struct result *res = (struct result *)out.rows + k++;
        *res = (struct result){
            .row = w->row, .row_gen = w->row_gen, .pos0 = r->n, .n_out = 1, .tokens = {off, 1}};
        memcpy((u8 *)out.data + off, &id, 4);
        if (m->nan_seed && r->seed == m->nan_seed) {
            *res = (struct result){
                .row = w->row, .row_gen = w->row_gen, .pos0 = r->n, .flags = RESULT_NONFINITE};
            r->n++; /* a step that is in flight goes on from here */
            continue;
        }
        off += 8;
        res->logprobs = (struct span){off, r->n_logprobs_entries};
        struct token_logprob lp = {id, -1.5f, 1};
        for (u32 e = 0; e < r->n_logprobs_entries; e++) memcpy((u8 *)out.data + off + e * 12, &lp, 12);
        off += 16 * ((r->n_logprobs_entries * 12 + 15) / 16);
        r->history[r->n++] = id;
    }
    results_frame_seal(frame);
    free(m->queue[0]);
    m->n_queue--;
    memmove(m->queue, m->queue + 1, m->n_queue * sizeof *m->queue);
    memmove(m->queue_len, m->queue_len + 1, m->n_queue * sizeof *m->queue_len);
    return frame;
}

/* ---- the client side ----*/
struct client {
    u64 id;
    u32 n_prompt, max_tokens, n_samples, got[MAX_SAMPLES];
    i32 prompt[LEN], out[MAX_SAMPLES][LEN];
    u8 finish[MAX_SAMPLES];
    u64 seed;
    u32 n_cached; /* as the first chunk says */
    bool added, cancelled, last, freed, wants_logprobs;
};
struct world {
    struct batch *b;
    struct mini m;
    struct client c[MAX_REQ];
    u32 n_added, n_freed;
};

static void take_chunks(void *arg, u32 origin, const void *msg, size_t len)
{
    struct world *w = arg;
    size_t pos = 0;
    struct error err = {0};
    const struct chunk *c;
    while ((c = chunk_next(msg, len, &pos, &err))) {
        struct client *cl = &w->c[c->request - 1];
        assert_int_equal(origin, cl->id % 3);
        assert_false(cl->last);
        assert_int_equal(c->first, cl->got[c->sample]);
        assert_int_equal(cl->finish[c->sample], FINISH_NONE);
        memcpy(cl->out[c->sample] + c->first, chunk_at(c, c->tokens), c->n_tokens * 4);
        cl->got[c->sample] += c->n_tokens;
        cl->finish[c->sample] = c->finish;
        cl->n_cached += c->n_cached;
        cl->last = c->last;
        if (cl->wants_logprobs) assert_int_equal(c->logprobs.len, c->n_tokens * 3);
    }
    assert_int_equal(err.code, 0);
}

static void collect(struct world *w)
{
    batch_flush(w->b, take_chunks, w);
    u64 id;
    while (batch_next_ended(w->b, &id)) {
        assert_true(w->c[id - 1].last);
        assert_false(w->c[id - 1].freed);
        w->c[id - 1].freed = true;
        w->n_freed++;
    }
}

static u32 world_adapter; /* of the next clients */

static void submit_client(struct world *w, struct client *c, u32 priority)
{
    struct request head = {
        .id = c->id, .n_samples = c->n_samples, .priority = priority, .adapter = world_adapter};
    head.sampling = (struct sampling){.top_p = 1,
                                      .repetition_penalty = 1,
                                      .seed = c->seed,
                                      .max_tokens = c->max_tokens,
                                      .n_logprobs = c->wants_logprobs ? 2 : -1};
    i32 eos = EOS;
    struct request_parts parts = {
        .prompt = c->prompt, .n_prompt = c->n_prompt, .eos_ids = &eos, .n_eos_ids = 1};
    struct request *req = request_build(&head, &parts);
    struct error err;
    assert_int_equal(batch_add(w->b, req, c->id % 3, 0, &err), 0);
    free(req);
    c->added = true;
    w->n_added++;
}

static void add_client(struct world *w, u32 i, const u32 r[4])
{
    struct client *c = &w->c[i];
    c->id = i + 1;
    c->n_prompt = 1 + r[0] % 40;
    c->max_tokens = 1 + r[1] % 20;
    c->n_samples = 1 + r[2] % MAX_SAMPLES;
    c->seed = r[3];
    c->wants_logprobs = r[3] & 1;
    /* of a few families, each with a few ways to go on */
    for (u32 k = 0; k < c->n_prompt; k++)
        c->prompt[k] = (i32)((r[0] / 40 % 3 * 31 + k * 7 + (k < 10 ? 0 : r[1] / 20 % 2 + 1)) % VOCAB);
    submit_client(w, c, r[2] % 2);
}

/* What a single sequence alone would give. */
static void check_client(const struct client *c)
{
    for (u32 s = 0; s < c->n_samples; s++) {
        i32 h[LEN + 1];
        memcpy(h, c->prompt, c->n_prompt * 4);
        u32 n = c->n_prompt;
        u8 finish = FINISH_NONE;
        while (finish == FINISH_NONE) {
            i32 id = next_token(c->seed + s, h, n);
            h[n++] = id;
            if (id == EOS)
                finish = FINISH_STOP;
            else if (n - c->n_prompt == c->max_tokens || n == LEN)
                finish = FINISH_LENGTH;
        }
        if (c->cancelled && c->finish[s] == FINISH_ABORT) {
            assert_true(c->got[s] <= n - c->n_prompt);
        } else {
            assert_int_equal(c->finish[s], finish);
            assert_int_equal(c->got[s], n - c->n_prompt);
        }
        assert_memory_equal(c->out[s], h + c->n_prompt, c->got[s] * 4);
    }
}

static u32 (*world_kind)(const void *arg, u32 prompt_len); /* of the next world */

static void world_init_as(struct world *w, u32 n_blocks, u32 in_flight, u32 max_step_tokens,
                          bool prefix_cache)
{
    memset(w, 0, sizeof *w);
    struct batch_spec spec = {.max_rows = ROWS,
                              .max_step_tokens = max_step_tokens,
                              .max_model_len = LEN,
                              .block_size = BLOCK,
                              .n_blocks = n_blocks,
                              .in_flight = in_flight,
                              .staged = in_flight > STEP_IN_FLIGHT,
                              .max_kills = 2,
                              .max_frame = 1 << 16,
                              .prefix_cache = prefix_cache,
                              .prefix_kind = world_kind};
    struct error err;
    w->b = batch_new(&spec, &err);
    assert_non_null(w->b);
    w->m.gen = 1;
    w->m.staged = spec.staged;
    batch_engine_ready(w->b, 1);
}

static inline void world_init(struct world *w, u32 n_blocks, u32 in_flight, u32 max_step_tokens)
{
    world_init_as(w, n_blocks, in_flight, max_step_tokens, false);
}

static inline void engine_dies(struct world *w, bool blame)
{
    for (u32 i = 0; i < w->m.n_queue; i++) free(w->m.queue[i]);
    u32 gen = w->m.gen + 1;
    bool staged = w->m.staged;
    memset(&w->m, 0, sizeof w->m);
    w->m.staged = staged;
    batch_engine_lost(w->b, blame);
    assert_false(batch_wants_step(w->b));
    w->m.gen = gen;
    batch_engine_ready(w->b, gen);
}

static void plan_one(struct world *w)
{
    size_t len;
    const void *frame = batch_plan(w->b, 0, &len);
    if (!frame) return;
    assert_true(w->m.n_queue < STEP_IN_FLIGHT_MOST);
    w->m.queue[w->m.n_queue] = malloc(len);
    memcpy(w->m.queue[w->m.n_queue], frame, len);
    w->m.queue_len[w->m.n_queue++] = len;
}

static void run_one(struct world *w)
{
    if (w->m.n_queue == 0) return;
    size_t len;
    u8 *frame = mini_run(&w->m, &len);
    struct results_view v;
    struct error err;
    assert_int_equal(results_view(&v, frame, len, &err), 0);
    assert_int_equal(batch_commit(w->b, &v, 0, &err), 0);
    free(frame);
    if (w->m.gen % 2) collect(w);
}

static inline void finish_all(struct world *w)
{
    for (int i = 0; !batch_idle(w->b) || w->m.n_queue; i++) {
        plan_one(w);
        if (i % 2) run_one(w);
        collect(w);
        assert_true(i < 10000);
    }
}

#endif
