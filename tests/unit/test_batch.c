/* The scheduler against an engine in miniature: it keeps rows and histories as a real one does, checks
 * everything the contract promises (a block that is written has one owner, positions follow each other, rows and generations
 * match, a block holds what its reader's history says), and its tokens are a hash of the whole history, so that any
 * wrong history, order or replay changes the text. */
#include "mpiserve/batch.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants the four above first
#include <cmocka.h>

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
                           .seed = n->sampling.seed};
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
        u64 *at = &m->kv[r->blocks[p / BLOCK]][p % BLOCK], hash = hash_bytes(r->history, (p + 1) * 4ull, 0);
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

static void submit_client(struct world *w, struct client *c, u32 priority)
{
    struct request head = {.id = c->id, .n_samples = c->n_samples, .priority = priority};
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

static u64 (*world_kind)(const void *arg, u32 prompt_len); /* of the next world */

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

static void world_init(struct world *w, u32 n_blocks, u32 in_flight, u32 max_step_tokens)
{
    world_init_as(w, n_blocks, in_flight, max_step_tokens, false);
}

static void engine_dies(struct world *w, bool blame)
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

/* Returns the number of preemptions. */
static u64 drive_as(u64 seed, u32 n_blocks, u32 in_flight, u32 max_step_tokens, u32 death_per_mille,
                    u32 cancel_per_mille, bool prefix_cache)
{
    struct world w;
    world_init_as(&w, n_blocks, in_flight, max_step_tokens, prefix_cache);
    u32 quiet = 0;
    for (u64 i = 0; quiet < 50; i++) {
        u32 r[4], q[4];
        rng_block(seed, i, 0, r);
        rng_block(seed, i, 1, q);
        if (w.n_added < MAX_REQ && r[0] % 4 == 0) add_client(&w, w.n_added, q);
        if (r[1] % 1000 < death_per_mille) engine_dies(&w, false);
        if (r[2] % 1000 < cancel_per_mille && w.n_added) {
            struct client *c = &w.c[q[0] % w.n_added];
            if (batch_cancel(w.b, c->id)) c->cancelled = true;
        }
        if (r[3] % 2) plan_one(&w);
        if (r[3] % 3) run_one(&w);
        if (r[3] % 5 == 0) collect(&w);
        quiet = w.n_added == MAX_REQ && batch_idle(w.b) && w.m.n_queue == 0 ? quiet + 1 : 0;
        assert_true(i < 200000);
    }
    collect(&w);
    assert_int_equal(w.n_freed, MAX_REQ);
    for (u32 i = 0; i < MAX_REQ; i++) check_client(&w.c[i]);
    struct batch_counts n;
    batch_counts(w.b, &n);
    assert_int_equal(n.running + n.waiting, 0);
    plan_one(&w);
    run_one(&w);
    batch_counts(w.b, &n);
    assert_int_equal(n.free_blocks, n.total_blocks);
    assert_true(n.prefix_hits <= n.prefix_queries && (n.prefix_hits > 0) == prefix_cache);
    batch_free(w.b);
    return n.preemptions;
}

/* With and without the prefix cache: the answers are what a sequence alone would give. */
static u64 drive(u64 seed, u32 n_blocks, u32 in_flight, u32 max_step_tokens, u32 death_per_mille,
                 u32 cancel_per_mille)
{
    u64 with = drive_as(seed, n_blocks, in_flight, max_step_tokens, death_per_mille, cancel_per_mille, true);
    u64 without =
        drive_as(seed, n_blocks, in_flight, max_step_tokens, death_per_mille, cancel_per_mille, false);
    return MIN_OF(with, without);
}

static void every_answer_is_its_own(void **state)
{
    (void)state;
    for (u64 s = 1; s <= 10; s++) drive(s, 300, 1 + s % 2, 32, 0, 0);
}
static void small_cache_preempts_and_finishes(void **state)
{
    (void)state;
    u64 preemptions = 0;
    for (u64 s = 1; s <= 10; s++) preemptions += drive(100 + s, LEN / BLOCK + 2, 1 + s % 2, ROWS + s, 0, 0);
    assert_true(preemptions > 0);
}
static void deaths_change_no_byte(void **state)
{
    (void)state;
    for (u64 s = 1; s <= 10; s++) drive(200 + s, 40, 2, 24, 60, 0);
}
static void cancels_lose_nothing(void **state)
{
    (void)state;
    for (u64 s = 1; s <= 10; s++) drive(300 + s, 40, 2, 24, 20, 40);
}

/* A request that ends the engine whenever it is in a step is found and fails alone. */
static void a_poison_request_fails_alone(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 300, 2, 64);
    for (u32 i = 0; i < 6; i++) add_client(&w, i, (const u32[]){10 + i, 9, 0, 2 * i});
    const u64 poison = 4;
    for (int i = 0; i < 1000 && !batch_idle(w.b); i++) {
        plan_one(&w);
        bool dead = false;
        for (u32 k = 0; k < w.m.n_queue; k++) {
            struct step_view v;
            assert_int_equal(step_view(&v, w.m.queue[k], w.m.queue_len[k], NULL), 0);
            for (u32 n = 0; n < v.head->n_new; n++) dead |= v.new[n].request == poison;
        }
        if (dead)
            engine_dies(&w, true);
        else
            run_one(&w);
        collect(&w);
    }
    assert_true(batch_idle(w.b));
    for (u32 i = 0; i < 6; i++) {
        if (w.c[i].id == poison)
            assert_int_equal(w.c[i].finish[0], FINISH_ERROR);
        else
            check_client(&w.c[i]);
    }
    batch_free(w.b);
}

/* Suspects run one request at a time; one that finds no row because those before it hold them all waits, it does not stop them. */
static void a_suspect_without_a_row_waits_its_turn(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 300, 2, 256);
    add_client(&w, 0, (const u32[]){10, 19, 5, 0});
    add_client(&w, 1, (const u32[]){11, 19, 5, 2});
    add_client(&w, 2, (const u32[]){12, 19, 3, 4});
    plan_one(&w);
    add_client(&w, 3, (const u32[]){13, 19, 2, 6}); /* more urgent, and more than the one row left */
    plan_one(&w);
    engine_dies(&w, true);
    for (int i = 0; i < 1000 && !batch_idle(w.b); i++) {
        plan_one(&w);
        run_one(&w);
        collect(&w);
    }
    assert_true(batch_idle(w.b));
    for (u32 i = 0; i < 4; i++) check_client(&w.c[i]);
    batch_free(w.b);
}

/* What is given up becomes free only when the steps in flight have ended: until then nobody else has to go. */
static u32 one_block_short(bool prefix_cache)
{
    struct world w;
    world_init_as(&w, LEN / BLOCK + 2, 2, 64, prefix_cache);
    for (u32 i = 0; i < 6; i++) add_client(&w, i, (const u32[]){7, 19, 0, 2 * i});
    struct batch_counts n = {0};
    u32 steps = 0, most = 0;
    for (; !batch_idle(w.b); steps++) {
        u64 before = n.preemptions;
        u32 queued = w.m.n_queue;
        plan_one(&w);
        if (w.m.n_queue == STEP_IN_FLIGHT || w.m.n_queue == queued) run_one(&w);
        collect(&w);
        batch_counts(w.b, &n);
        most = MAX_OF(most, (u32)(n.preemptions - before));
        assert_true(steps < 10000);
    }
    for (u32 i = 0; i < 6; i++) check_client(&w.c[i]);
    assert_int_equal(most, 1);
    assert_in_range(n.preemptions, 1, 5);
    batch_free(w.b);
    return w.m.n_computed;
}

static void one_block_short_costs_one_sequence(void **state)
{
    (void)state;
    assert_true(one_block_short(true) < one_block_short(false)); /* who was preempted finds its own blocks */
}

static void end_all_ends_running_and_waiting(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 300, 2, 64);
    for (u32 i = 0; i < 20; i++) add_client(&w, i, (const u32[]){10 + i, 9, 1, 2 * i});
    plan_one(&w);
    batch_end_all(w.b, FINISH_RETRY);
    collect(&w);
    for (u32 i = 0; i < 20; i++) assert_int_equal(w.c[i].finish[0], FINISH_RETRY);
    assert_int_equal(w.n_freed, 20);
    run_one(&w);
    assert_true(batch_idle(w.b));
    batch_free(w.b);
}

static void impossible_specs_are_refused(void **state)
{
    (void)state;
    struct error err;
    struct batch_spec spec = {.max_rows = 8,
                              .max_step_tokens = 4,
                              .max_model_len = 64,
                              .block_size = 4,
                              .n_blocks = 100,
                              .in_flight = 1,
                              .max_kills = 2,
                              .max_frame = 1 << 16};
    assert_null(batch_new(&spec, &err));
    spec.max_step_tokens = 8;
    spec.n_blocks = 16;
    assert_null(batch_new(&spec, &err));
    assert_non_null(strstr(err.message, "too small"));
}

/* ---- the prefix cache ----*/
static void finish_all(struct world *w)
{
    for (int i = 0; !batch_idle(w->b) || w->m.n_queue; i++) {
        plan_one(w);
        if (i % 2) run_one(w);
        collect(w);
        assert_true(i < 10000);
    }
}

enum { EQUAL_PROMPT = 40, EQUAL_SHARED = (EQUAL_PROMPT - 1) / BLOCK * BLOCK };
/* Clients with the same prompt, answers of up to 20 tokens, and a seed each. */
static struct client *add_equal(struct world *w, u32 i)
{
    add_client(w, i, (const u32[]){EQUAL_PROMPT - 1, 19, 0, 2 * (i + 1)});
    return &w->c[i];
}

/* Prompts of another kind share nothing with what is cached; those of the same kind do. */
static u64 kind_by_length(const void *arg, u32 prompt_len)
{
    assert_null(arg);
    return prompt_len > EQUAL_PROMPT;
}

static void kinds_of_prompts_are_apart(void **state)
{
    (void)state;
    struct world w;
    world_kind = kind_by_length;
    world_init_as(&w, 300, 2, 64, true);
    world_kind = NULL;
    struct client *first = add_equal(&w, 0);
    finish_all(&w);
    for (u32 i = 1; i < 3; i++) {
        w.c[i] = (struct client){.id = i + 1, .n_prompt = EQUAL_PROMPT + 1, .max_tokens = 1, .n_samples = 1};
        memcpy(w.c[i].prompt, first->prompt, EQUAL_PROMPT * 4);
        submit_client(&w, &w.c[i], 0);
        finish_all(&w);
        check_client(&w.c[i]);
    }
    assert_int_equal(w.c[1].n_cached, 0);
    assert_int_equal(w.c[2].n_cached, EQUAL_PROMPT / BLOCK * BLOCK);
    batch_free(w.b);
}

static void equal_beginnings_are_computed_once(void **state)
{
    (void)state;
    struct world w;
    struct batch_counts n;
    world_init_as(&w, 300, 2, 64, true);
    struct client *first = add_equal(&w, 0), *next = &w.c[2];
    finish_all(&w);
    assert_true(w.m.first_pos == 0 && first->n_cached == 0);
    u32 before = w.m.n_computed;
    add_equal(&w, 1);
    finish_all(&w);
    assert_true(w.m.first_pos == EQUAL_SHARED && w.c[1].n_cached == EQUAL_SHARED);
    assert_true(w.m.n_computed - before <= EQUAL_PROMPT - EQUAL_SHARED + w.c[1].got[0]);
    batch_counts(w.b, &n);
    assert_int_equal(n.prefix_queries, 2 * EQUAL_PROMPT);
    assert_int_equal(n.prefix_hits, EQUAL_SHARED);
    /* a conversation goes on: the answer was computed, too, but for its last token */
    *next = (struct client){
        .id = 3, .n_prompt = EQUAL_PROMPT + first->got[0] + 1, .max_tokens = 1, .n_samples = 1};
    memcpy(next->prompt, first->prompt, EQUAL_PROMPT * 4);
    memcpy(next->prompt + EQUAL_PROMPT, first->out[0], first->got[0] * 4);
    submit_client(&w, next, 0);
    finish_all(&w);
    assert_int_equal(next->n_cached, (EQUAL_PROMPT + first->got[0] - 1) / BLOCK * BLOCK);
    for (u32 i = 0; i < 3; i++) check_client(&w.c[i]);
    batch_free(w.b);
}

static u32 computed_for_three_samples(u32 max_step_tokens, bool prefix_cache)
{
    struct world w;
    world_init_as(&w, 300, 2, max_step_tokens, prefix_cache);
    add_client(&w, 0, (const u32[]){EQUAL_PROMPT - 1, 0, 2, 4}); /* one token each */
    finish_all(&w);
    check_client(&w.c[0]);
    assert_int_equal(w.c[0].n_cached, 0);
    u32 n = w.m.n_computed;
    batch_free(w.b);
    return n;
}

static void samples_share_their_prompt(void **state)
{
    (void)state;
    const u32 sizes[] = {ROWS, 13, 64, 256};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        assert_int_equal(computed_for_three_samples(sizes[i], true),
                         EQUAL_PROMPT + 2 * (EQUAL_PROMPT - EQUAL_SHARED));
        assert_int_equal(computed_for_three_samples(sizes[i], false), 3 * EQUAL_PROMPT);
    }
}

static void the_cache_goes_with_the_engine(void **state)
{
    (void)state;
    struct world w;
    world_init_as(&w, 300, 2, 64, true);
    add_equal(&w, 0);
    finish_all(&w);
    engine_dies(&w, false);
    for (u32 i = 1; i < 3; i++) {
        add_equal(&w, i);
        finish_all(&w);
        assert_int_equal(w.m.first_pos, i == 1 ? 0 : EQUAL_SHARED);
        check_client(&w.c[i]);
    }
    batch_free(w.b);
}

/* What was committed before a cancel can be used; what was only planned cannot. */
static void a_cancelled_sequence_leaves_its_blocks(void **state)
{
    (void)state;
    struct world w;
    world_init_as(&w, 300, 2, 16, true);
    struct client *c = add_equal(&w, 0);
    plan_one(&w);
    run_one(&w);
    plan_one(&w);
    assert_true(batch_cancel(w.b, c->id));
    c->cancelled = true;
    add_equal(&w, 1);
    plan_one(&w);
    finish_all(&w);
    assert_int_equal(w.m.first_pos, 16);
    check_client(&w.c[1]);
    batch_free(w.b);
}

/* Both compute the prompt; one keeps its copy to itself, and nothing is lost at the end. */
static void two_at_the_same_time(void **state)
{
    (void)state;
    struct world w;
    struct batch_counts n;
    world_init_as(&w, 300, 2, 256, true);
    add_equal(&w, 0);
    add_equal(&w, 1);
    finish_all(&w);
    add_equal(&w, 2);
    finish_all(&w);
    assert_int_equal(w.m.first_pos, EQUAL_SHARED);
    for (u32 i = 0; i < 3; i++) check_client(&w.c[i]);
    batch_counts(w.b, &n);
    assert_int_equal(n.free_blocks, n.total_blocks);
    batch_free(w.b);
}

static void numbers_that_are_not_finite_are_not_kept(void **state)
{
    (void)state;
    struct world w;
    world_init_as(&w, 300, 2, 64, true);
    add_equal(&w, 0);
    finish_all(&w);
    w.m.nan_seed = add_equal(&w, 1)->seed;
    finish_all(&w);
    assert_int_equal(w.c[1].finish[0], FINISH_ERROR);
    assert_int_equal(w.m.first_pos, EQUAL_SHARED);
    add_equal(&w, 2);
    finish_all(&w);
    assert_int_equal(w.m.first_pos, 0);
    check_client(&w.c[2]);
    batch_free(w.b);
}

/* Memory is short: what goes first is the end of the sequence that ended, not what others may have in common with it. */
static void beginnings_stay_longer_than_ends(void **state)
{
    (void)state;
    struct world w;
    world_init_as(&w, LEN / BLOCK + 2, 2, 64, true);
    add_equal(&w, 0);
    finish_all(&w);
    add_client(&w, 1, (const u32[]){EQUAL_PROMPT + EQUAL_PROMPT - 1, 0, 0, 4}); /* of another family */
    finish_all(&w);
    assert_int_equal(w.c[1].n_cached, 0);
    add_equal(&w, 2);
    finish_all(&w);
    assert_in_range(w.c[2].n_cached, BLOCK, EQUAL_SHARED - BLOCK);
    for (u32 i = 0; i < 3; i++) check_client(&w.c[i]);
    batch_free(w.b);
}

/* One that waits for memory finds its beginning anew at every step. That does not keep these blocks from others. */
static void who_waits_holds_nothing(void **state)
{
    (void)state;
    struct world w;
    struct step_view v;
    world_init_as(&w, LEN / BLOCK + 2, 2, 64, true);
    add_client(&w, 0, (const u32[]){EQUAL_PROMPT - 1, 0, 0, 2}); /* leaves 10 blocks of 17 */
    finish_all(&w);
    add_client(&w, 1, (const u32[]){EQUAL_PROMPT + 28, 19, 0, 4}); /* runs in 8 */
    plan_one(&w);
    add_equal(&w, 2);                                            /* finds 9, and needs 10 */
    add_client(&w, 3, (const u32[]){2 * EQUAL_PROMPT, 0, 0, 8}); /* needs one */
    plan_one(&w);
    assert_int_equal(step_view(&v, w.m.queue[1], w.m.queue_len[1], NULL), 0);
    assert_int_equal(v.head->n_new, 1);
    assert_int_equal(v.new->request, w.c[3].id);
    finish_all(&w);
    for (u32 i = 0; i < 4; i++) check_client(&w.c[i]);
    batch_free(w.b);
}

/* ---- pipeline stages ----*/
static void stages_are_told_every_token(void **state)
{
    (void)state;
    u64 preemptions = 0;
    for (u64 s = 1; s <= 12; s++)
        preemptions += drive(500 + s, s % 3 ? 40 : LEN / BLOCK + 2, 3 + s % 6, 24, s % 2 ? 40 : 0, s % 5 * 8);
    assert_true(preemptions > 0);
}

static void every_stage_has_a_step_to_work_on(void **state)
{
    (void)state;
    enum { DEPTH = 4 };
    struct world w;
    world_init_as(&w, 300, DEPTH, 64, false);
    for (u32 i = 0; i < ROWS; i++) add_client(&w, i, (const u32[]){3, 19, 0, 2 * i});
    for (u32 i = 0; i < DEPTH; i++) { /* all prompts are behind them: they decode */
        plan_one(&w);
        run_one(&w);
    }
    for (u32 i = 0; i < DEPTH; i++) plan_one(&w);
    for (u32 round = 0; round < 2; round++) {
        struct step_view v;
        assert_int_equal(w.m.n_queue, DEPTH);
        assert_int_equal(step_view(&v, w.m.queue[0], w.m.queue_len[0], NULL), 0);
        assert_in_range(v.head->n_rows, 1, ROWS / DEPTH);
        run_one(&w);
        plan_one(&w);
    }
    finish_all(&w);
    for (u32 i = 0; i < ROWS; i++) check_client(&w.c[i]);
    batch_free(w.b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_answer_is_its_own),
        cmocka_unit_test(small_cache_preempts_and_finishes),
        cmocka_unit_test(deaths_change_no_byte),
        cmocka_unit_test(cancels_lose_nothing),
        cmocka_unit_test(a_poison_request_fails_alone),
        cmocka_unit_test(end_all_ends_running_and_waiting),
        cmocka_unit_test(impossible_specs_are_refused),
        cmocka_unit_test(a_suspect_without_a_row_waits_its_turn),
        cmocka_unit_test(one_block_short_costs_one_sequence),
        cmocka_unit_test(kinds_of_prompts_are_apart),
        cmocka_unit_test(equal_beginnings_are_computed_once),
        cmocka_unit_test(samples_share_their_prompt),
        cmocka_unit_test(the_cache_goes_with_the_engine),
        cmocka_unit_test(a_cancelled_sequence_leaves_its_blocks),
        cmocka_unit_test(two_at_the_same_time),
        cmocka_unit_test(numbers_that_are_not_finite_are_not_kept),
        cmocka_unit_test(beginnings_stay_longer_than_ends),
        cmocka_unit_test(who_waits_holds_nothing),
        cmocka_unit_test(stages_are_told_every_token),
        cmocka_unit_test(every_stage_has_a_step_to_work_on),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
