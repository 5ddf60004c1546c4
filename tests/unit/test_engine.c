/* engine: steps in, results out, on a reference checkpoint: the reference's tokens however the work is cut, and the same
 * tokens again after a restart; what an engine must refuse it refuses whole. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/execute.h"
#include "mpiserve/engine.h"
#include "reference.h"
#include "stepper.h"

enum { NUMERICS = 77, ROW_BLOCKS = 16 };

static struct fixture {
    struct runner model;
    struct reference ref;
    struct execute *x;
    struct stepper s;
    struct results_view out;
} fix;

static u32 blocks_of_row(u32 row, u32 *blocks)
{
    for (u32 i = 0; i < ROW_BLOCKS; i++) blocks[i] = 1 + row + i * 8; /* interleaved; block 0 is scratch */
    return ROW_BLOCKS;
}

/* A new engine: nothing of the last one is left but the KV memory. */
static void engine_start_as(u32 gen, const char *fault, bool follows)
{
    struct error err = {0};
    execute_free(fix.x);
    struct execute_spec spec = {.limits = {.max_rows = 8,
                                           .max_step_tokens = 256,
                                           .max_model_len = ROW_BLOCKS * RUNNER_BLOCK,
                                           .max_logprobs = 20,
                                           .block_size = RUNNER_BLOCK,
                                           .n_blocks = 200,
                                           .vocab = fix.model.config.vocab},
                                .forward = fix.model.forward,
                                .pool = fix.model.pool,
                                .gen = gen,
                                .numerics = NUMERICS,
                                .follows = follows};
    runner_need(!fault_parse(&spec.fault, fault, &err), &err);
    runner_need((fix.x = execute_new(&spec, &err)) != NULL, &err);
    fix.s.gen = gen;
    fix.s.numerics = NUMERICS;
    fix.s.id = 1;
}

static void engine_start_with(u32 gen, const char *fault)
{
    engine_start_as(gen, fault, false);
}

static void engine_start(u32 gen)
{
    engine_start_with(gen, NULL);
}

/* Runs a frame (and frees it); true: it was executed. */
static bool run_frame(void *frame, size_t len)
{
    size_t out_len;
    const void *out = execute_step(fix.x, frame, len, &out_len);
    assert_int_equal(results_view(&fix.out, out, out_len, NULL), 0);
    free(frame);
    return !fix.out.head->failed;
}

static bool run(void)
{
    size_t len;
    void *frame = stepper_seal(&fix.s, STEP_FORWARD, &len);
    u64 id = fix.s.id - 1;
    bool ok = run_frame(frame, len);
    assert_true(fix.out.head->step == id && fix.out.head->gen == fix.s.gen);
    if (!ok) fix.s.id--;
    return ok;
}

static i32 token_of(u32 i)
{
    assert_true(i < fix.out.head->n);
    assert_int_equal(fix.out.rows[i].n_out, 1);
    return *(const i32 *)results_at(&fix.out, fix.out.rows[i].tokens);
}

/* A sequence from history[n], count more tokens, its missing positions computed in chunks. */
static void continue_alone(u32 row, const struct sampling *sampling, const i32 *history, u32 prompt_len,
                           u32 n, u32 chunk, i32 *out, u32 count)
{
    u32 blocks[ROW_BLOCKS], n_blocks = blocks_of_row(row, blocks);
    stepper_new(&fix.s, row, 1, sampling, history, prompt_len, n, n + count);
    for (u32 pos = 0; pos < n; pos += chunk) {
        bool last = pos + chunk >= n;
        stepper_row(&fix.s, row, 1, pos, MIN_OF(chunk, n - pos), last ? WANT_SAMPLE : WANT_NOTHING, blocks,
                    pos ? 0 : n_blocks);
        assert_true(run());
        assert_int_equal(fix.out.head->n, last);
    }
    out[0] = token_of(0);
    for (u32 i = 1; i < count; i++) {
        stepper_row(&fix.s, row, 1, n + i - 1, 1, WANT_SAMPLE, NULL, 0);
        assert_true(run());
        assert_int_equal(fix.out.rows[0].pos0, n + i);
        out[i] = token_of(0);
    }
    stepper_free(&fix.s, row, 1);
    assert_true(run());
}

static void whole_prompts(void **state)
{
    (void)state;
    struct sampling greedy = stepper_greedy();
    engine_start(1);
    for (u32 p = 0; p < PROMPTS; p++) {
        i32 out[STEPS];
        continue_alone(p, &greedy, fix.ref.prompts[p].ids, fix.ref.prompts[p].n, fix.ref.prompts[p].n,
                       LONGEST, out, STEPS);
        assert_memory_equal(out, fix.ref.prompts[p].greedy, sizeof(out));
    }
}

static void chunked_prompts(void **state)
{
    (void)state;
    struct sampling greedy = stepper_greedy();
    engine_start(1);
    for (u32 p = 0; p < PROMPTS; p++)
        for (u32 chunk = 1; chunk < 40; chunk = chunk * 2 + 1) {
            i32 out[STEPS];
            continue_alone(p, &greedy, fix.ref.prompts[p].ids, fix.ref.prompts[p].n, fix.ref.prompts[p].n,
                           chunk, out, STEPS);
            assert_memory_equal(out, fix.ref.prompts[p].greedy, sizeof(out));
        }
}

/* Every frame is built before the first one runs: steps name positions, not tokens. All prompts together. */
static void planned_ahead(void **state)
{
    (void)state;
    struct sampling greedy = stepper_greedy();
    void *frames[STEPS];
    size_t lens[STEPS];
    u32 blocks[ROW_BLOCKS];
    engine_start(1);
    for (u32 k = 0; k < STEPS; k++) {
        for (u32 p = 0; p < PROMPTS; p++) {
            const struct prompt *from = &fix.ref.prompts[p];
            u32 n_blocks = blocks_of_row(p, blocks);
            if (k == 0) {
                stepper_new(&fix.s, p, 9, &greedy, from->ids, from->n, from->n, from->n + STEPS);
                stepper_row(&fix.s, p, 9, 0, from->n, WANT_SAMPLE, blocks, n_blocks);
            } else {
                stepper_row(&fix.s, p, 9, from->n + k - 1, 1, WANT_SAMPLE, NULL, 0);
            }
        }
        frames[k] = stepper_seal(&fix.s, STEP_FORWARD, &lens[k]);
    }
    for (u32 k = 0; k < STEPS; k++) {
        assert_true(run_frame(frames[k], lens[k]));
        assert_int_equal(fix.out.head->n, PROMPTS);
        for (u32 p = 0; p < PROMPTS; p++) {
            assert_int_equal(fix.out.rows[p].row, p);
            assert_int_equal(token_of(p), fix.ref.prompts[p].greedy[k]);
        }
    }
}

/* The engine dies after each number of tokens; another one is told prompt and emitted tokens, and goes on identically. */
static void replay(void **state)
{
    (void)state;
    struct sampling ways[3] = {stepper_greedy(), stepper_greedy(), stepper_greedy()};
    ways[1].temperature = 0.9f;
    ways[1].seed = 1234567;
    ways[2] = ways[1];
    ways[2].top_p = 0.8f;
    ways[2].top_k = 40;
    ways[2].repetition_penalty = 1.3f;
    ways[2].frequency_penalty = 0.5f;
    ways[2].presence_penalty = 0.2f;
    const struct prompt *p = &fix.ref.prompts[1];
    for (size_t w = 0; w < COUNT_OF(ways); w++) {
        i32 whole[STEPS], rest[STEPS], history[LONGEST];
        engine_start(1);
        continue_alone(0, &ways[w], p->ids, p->n, p->n, 7, whole, STEPS);
        if (w == 0) assert_memory_equal(whole, p->greedy, sizeof(whole));
        memcpy(history, p->ids, p->n * sizeof(i32));
        memcpy(history + p->n, whole, sizeof(whole));
        for (u32 died = 1; died < STEPS; died += 5) {
            engine_start(1 + died);
            continue_alone(3, &ways[w], history, p->n, p->n + died, 11, rest, STEPS - died);
            assert_memory_equal(rest, whole + died, (STEPS - died) * sizeof(i32));
        }
    }
}

static void log_probabilities(void **state)
{
    (void)state;
    struct sampling s = stepper_greedy();
    const struct prompt *p = &fix.ref.prompts[2];
    u32 blocks[ROW_BLOCKS], n_blocks = blocks_of_row(0, blocks);
    s.n_logprobs = 5;
    engine_start(1);
    stepper_new(&fix.s, 0, 1, &s, p->ids, p->n, p->n, p->n + 4);
    stepper_row(&fix.s, 0, 1, 0, p->n, WANT_SAMPLE, blocks, n_blocks);
    assert_true(run());
    const struct result *r = &fix.out.rows[0];
    assert_int_equal(r->logprobs.len, 6);
    const struct token_logprob *lp = results_at(&fix.out, r->logprobs);
    assert_int_equal(lp[0].id, p->greedy[0]);
    assert_int_equal(lp[1].id, p->greedy[0]);
    assert_int_equal(lp[0].rank, 1);
    for (int i = 2; i < 6; i++) assert_true(lp[i].logprob <= lp[i - 1].logprob && lp[i].rank == i);
}

/* A prefix computed by another sequence, and a copy of one of its blocks: the same tokens. */
static void shared_and_copied_blocks(void **state)
{
    (void)state;
    struct sampling greedy = stepper_greedy();
    const struct prompt *p = &fix.ref.prompts[0];
    for (u32 i = 1; i < PROMPTS; i++)
        if (fix.ref.prompts[i].n > p->n) p = &fix.ref.prompts[i];
    u32 blocks[ROW_BLOCKS], n_blocks = blocks_of_row(0, blocks),
                            cached = (p->n - 1) / RUNNER_BLOCK * RUNNER_BLOCK;
    assert_true(cached > 0);
    engine_start(1);
    stepper_new(&fix.s, 0, 1, &greedy, p->ids, p->n, p->n, p->n + 1);
    stepper_row(&fix.s, 0, 1, 0, p->n, WANT_SAMPLE, blocks, n_blocks);
    assert_true(run());
    u32 first = blocks[0];
    blocks[0] = 150;
    for (u32 i = cached / RUNNER_BLOCK; i < n_blocks; i++) blocks[i] = 160 + i;
    stepper_op(&fix.s, BLOCK_ZERO, 150, 150);
    stepper_op(&fix.s, BLOCK_COPY, first, 150);
    stepper_new(&fix.s, 1, 1, &greedy, p->ids, p->n, p->n, p->n + STEPS);
    for (u32 k = 0; k < STEPS; k++) {
        stepper_row(&fix.s, 1, 1, k ? p->n + k - 1 : cached, k ? 1 : p->n - cached, WANT_SAMPLE, blocks,
                    k ? 0 : n_blocks);
        assert_true(run());
        assert_int_equal(token_of(0), p->greedy[k]);
    }
}

/* Two sequences behind the same cached blocks, in one step with the one that computed them: bit for bit the numbers
 * that they have alone, and the cached blocks stay as they are. */
static void sequences_behind_cached_blocks(void **state)
{
    (void)state;
    struct sampling s = stepper_greedy();
    s.n_logprobs = 20;
    const struct prompt *p = &fix.ref.prompts[0];
    for (u32 i = 1; i < PROMPTS; i++)
        if (fix.ref.prompts[i].n > p->n) p = &fix.ref.prompts[i];
    enum { STEPS = 6, SEQS = 3 };
    struct token_logprob alone[STEPS][21];
    u32 blocks[ROW_BLOCKS], n_blocks = blocks_of_row(0, blocks),
                            cached = (p->n - 1) / RUNNER_BLOCK * RUNNER_BLOCK;
    engine_start(1);
    stepper_new(&fix.s, 0, 1, &s, p->ids, p->n, p->n, p->n + STEPS);
    for (u32 k = 0; k < STEPS; k++) {
        stepper_row(&fix.s, 0, 1, k ? p->n + k - 1 : 0, k ? 1 : p->n, WANT_SAMPLE, blocks, k ? 0 : n_blocks);
        assert_true(run());
        assert_int_equal(token_of(0), p->greedy[k]);
        assert_int_equal(fix.out.rows[0].logprobs.len, 21);
        memcpy(alone[k], results_at(&fix.out, fix.out.rows[0].logprobs), sizeof(alone[k]));
    }
    size_t bytes = forward_block_bytes(fix.model.forward);
    u8 *before = mem_alloc(bytes * (cached / RUNNER_BLOCK));
    for (u32 i = 0; i < cached / RUNNER_BLOCK; i++)
        memcpy(before + i * bytes, forward_block(fix.model.forward, blocks[i]), bytes);
    for (u32 q = 1; q <= SEQS; q++) stepper_new(&fix.s, q, 1, &s, p->ids, p->n, p->n, p->n + STEPS);
    for (u32 k = 0; k < STEPS; k++) {
        for (u32 q = 1; q <= SEQS; q++) { /* the last one computes all itself */
            u32 own[ROW_BLOCKS], from = q < SEQS ? cached : 0;
            blocks_of_row(q, own);
            memcpy(own, blocks, from / RUNNER_BLOCK * sizeof(u32));
            stepper_row(&fix.s, q, 1, k ? p->n + k - 1 : from, k ? 1 : p->n - from, WANT_SAMPLE, own,
                        k ? 0 : n_blocks);
        }
        assert_true(run());
        for (u32 q = 0; q < SEQS; q++)
            assert_memory_equal(results_at(&fix.out, fix.out.rows[q].logprobs), alone[k], sizeof(alone[k]));
    }
    for (u32 i = 0; i < cached / RUNNER_BLOCK; i++)
        assert_memory_equal(before + i * bytes, forward_block(fix.model.forward, blocks[i]), bytes);
    free(before);
}

static void dummies_and_canaries(void **state)
{
    (void)state;
    engine_start(4);
    const u32 kinds[] = {STEP_DUMMY, STEP_CANARY, STEP_FORWARD, STEP_CANARY};
    for (size_t i = 0; i < COUNT_OF(kinds); i++) {
        size_t len;
        void *frame = stepper_seal(&fix.s, kinds[i], &len);
        assert_true(run_frame(frame, len));
        assert_true(fix.out.head->n == 0 && fix.out.head->kind == kinds[i] && fix.out.head->step == i + 1);
    }
}

/* One row's numbers break: it alone fails, and stays failed until its row is freed. */
static void one_bad_row(void **state)
{
    (void)state;
    struct sampling greedy = stepper_greedy();
    const struct prompt *good = &fix.ref.prompts[1];
    char fault[32];
    u32 blocks[ROW_BLOCKS], n_blocks;
    i32 poison = 0;
    while (poison < 384) { /* a token that the good sequence never sees */
        bool seen = false;
        for (u32 i = 0; i < good->n; i++) seen |= good->ids[i] == poison;
        for (u32 i = 0; i < STEPS; i++) seen |= good->greedy[i] == poison;
        if (!seen) break;
        poison++;
    }
    const i32 bad[] = {1, poison, 5};
    snprintf(fault, sizeof(fault), "nan-token:%d", poison);
    engine_start_with(1, fault);
    stepper_new(&fix.s, 0, 1, &greedy, bad, 3, 3, 10);
    n_blocks = blocks_of_row(0, blocks);
    stepper_row(&fix.s, 0, 1, 0, 3, WANT_SAMPLE, blocks, n_blocks);
    stepper_new(&fix.s, 1, 1, &greedy, good->ids, good->n, good->n, LONGEST);
    n_blocks = blocks_of_row(1, blocks);
    stepper_row(&fix.s, 1, 1, 0, good->n, WANT_SAMPLE, blocks, n_blocks);
    for (u32 k = 0; k < 4; k++) {
        if (k > 0) { /* planned before it was known that row 0 is dead */
            stepper_row(&fix.s, 0, 1, 3 + k - 1, 1, WANT_SAMPLE, NULL, 0);
            stepper_row(&fix.s, 1, 1, good->n + k - 1, 1, WANT_SAMPLE, NULL, 0);
        }
        assert_true(run());
        assert_int_equal(fix.out.head->n, 2);
        assert_int_equal(fix.out.rows[0].flags, RESULT_NONFINITE);
        assert_int_equal(fix.out.rows[0].n_out, 0);
        assert_int_equal(fix.out.rows[1].flags, 0);
        assert_int_equal(token_of(1), good->greedy[k]);
    }
    stepper_free(&fix.s, 0, 1);
    stepper_free(&fix.s, 1, 1);
    assert_true(run());
    i32 out[STEPS];
    continue_alone(0, &greedy, good->ids, good->n, good->n, LONGEST, out, STEPS);
    assert_memory_equal(out, good->greedy, sizeof(out));
}

static void no_token_left(void **state)
{
    (void)state;
    struct sampling greedy = stepper_greedy();
    const i32 prompt[] = {1, 2}, allowed[] = {5}, bad[] = {1, 5};
    u32 blocks[ROW_BLOCKS], n_blocks = blocks_of_row(0, blocks);
    engine_start(1);
    struct seq_new *n = stepper_new(&fix.s, 0, 1, &greedy, prompt, 2, 2, 10);
    n->allowed = stepper_put(&fix.s, allowed, 1, sizeof(i32));
    n->bad_words = stepper_put(&fix.s, bad, 2, sizeof(i32));
    stepper_row(&fix.s, 0, 1, 0, 2, WANT_SAMPLE, blocks, n_blocks);
    assert_true(run());
    assert_int_equal(fix.out.rows[0].flags, RESULT_NOTHING);
}

static void full_history(void **state)
{
    (void)state;
    struct sampling greedy = stepper_greedy();
    const struct prompt *p = &fix.ref.prompts[1];
    u32 blocks[ROW_BLOCKS], n_blocks = blocks_of_row(0, blocks);
    engine_start(1);
    stepper_new(&fix.s, 0, 1, &greedy, p->ids, p->n, p->n, p->n);
    stepper_row(&fix.s, 0, 1, 0, p->n, WANT_SAMPLE, blocks, n_blocks);
    assert_true(run());
    assert_int_equal(token_of(0), p->greedy[0]);
    stepper_row(&fix.s, 0, 1, p->n, 1, WANT_SAMPLE, NULL, 0);
    assert_false(run());
}

/* ---- refusals: one thing wrong at a time, in a step that is otherwise like the good one ---- */

enum wrong {
    RIGHT,
    WRONG_GEN,
    WRONG_NUMERICS,
    WRONG_ID,
    FREE_UNUSED,
    FREE_OTHER_GEN,
    NEW_IN_USE,
    NEW_NO_ROW,
    NEW_TOO_LONG,
    NEW_TOKEN,
    NEW_BIAS,
    NEW_STOP,
    NEW_LOGPROBS,
    ROW_NO_ROW,
    ROW_OTHER_GEN,
    ROW_TWICE,
    ROW_AHEAD,
    ROW_BEHIND,
    ROW_AGAIN,
    ROW_INSIDE,
    ROW_PREFIX_MISSING,
    RING_OTHER,
    RING_AHEAD,
    RING_SHORT,
    RING_TOKEN,
    RING_NEW,
    ROW_DRAFT,
    ROW_MASK,
    BLOCK_SCRATCH,
    BLOCK_NUMBER,
    BLOCK_TOO_MANY,
    BLOCK_GROUP,
    BLOCK_MISSING,
    OP_OUT,
    OP_NUMBER,
    OP_SCRATCH,
    TOO_MANY_TOKENS,
    N_WRONG,
};

/* Row 0 is in use (row_gen 1, 3 tokens, all computed, one sampled: 4); row 1 is new here. */
static void build_wrong(enum wrong w)
{
    struct stepper *s = &fix.s;
    struct sampling greedy = stepper_greedy();
    const i32 prompt[] = {1, w == NEW_TOKEN ? 384 : 7, 9}, stop[] = {-1};
    const struct token_bias bias[] = {{400, 1}};
    u32 blocks[ROW_BLOCKS + 1], n_blocks = blocks_of_row(1, blocks);
    blocks[ROW_BLOCKS] = 199;
    if (w == WRONG_GEN) s->gen++;
    if (w == WRONG_NUMERICS) s->numerics++;
    if (w == WRONG_ID) s->id++;
    if (w == FREE_UNUSED) stepper_free(s, 5, 1);
    if (w == FREE_OTHER_GEN) stepper_free(s, 0, 2);
    if (w == NEW_LOGPROBS) greedy.n_logprobs = 21;
    struct seq_new *n = stepper_new(s,
                                    w == NEW_IN_USE   ? 0
                                    : w == NEW_NO_ROW ? 8
                                                      : 1,
                                    1, &greedy, prompt, 3, 3, 12);
    if (w == NEW_TOO_LONG) n->max_len = ROW_BLOCKS * RUNNER_BLOCK + 1;
    if (w == NEW_BIAS) n->bias = stepper_put(s, bias, 1, sizeof(*bias));
    if (w == NEW_STOP) n->stop_ids = stepper_put(s, stop, 1, sizeof(*stop));
    if (w == BLOCK_SCRATCH) blocks[1] = 0;
    if (w == BLOCK_NUMBER) blocks[1] = 200;
    if (w == BLOCK_TOO_MANY) n_blocks++;
    if (w == OP_OUT) stepper_op(s, BLOCK_OUT, 1, 2);
    if (w == OP_NUMBER) stepper_op(s, BLOCK_COPY, 1, 200);
    if (w == OP_SCRATCH) stepper_op(s, BLOCK_ZERO, 0, 0);
    struct row *a = stepper_row(s, w == ROW_NO_ROW ? 8 : 0, w == ROW_OTHER_GEN ? 2 : 1,
                                w == ROW_AHEAD ? 4 : 3, 1, WANT_SAMPLE, NULL, 0);
    if (w == ROW_BEHIND) a->pos = 2;
    if (w == ROW_AGAIN) a->pos = 1; /* its second token once more */
    if (w == ROW_AGAIN) a->want = WANT_NOTHING;
    if (w == ROW_MASK) a->mask_slot = 0;
    if (w == RING_OTHER || w == RING_AHEAD || w == RING_SHORT || w == RING_TOKEN) {
        i32 tokens[] = {w == RING_TOKEN ? 384 : 1, 7};
        a->src = SRC_RING;
        a->tok_off = stepper_put(s, tokens, 2, sizeof(i32)).off;
    }
    if (w == RING_AHEAD) a->pos = 5;
    if (w == RING_SHORT) a->pos = 2;
    if (w == ROW_DRAFT) {
        a->n_tok = 2;
        a->n_draft = 1;
        s->n_tok++;
    }
    struct row *b = stepper_row(s, 1, 1, 0, 3, WANT_SAMPLE, blocks, w == BLOCK_MISSING ? 0 : n_blocks);
    if (w == RING_NEW) {
        b->src = SRC_RING;
        b->tok_off = n->tokens.off;
    }
    if (w == ROW_INSIDE) {
        b->pos = 1;
        b->n_tok = 2;
        s->n_tok--;
    }
    if (w == ROW_PREFIX_MISSING) { /* behind a prefix, and without a block for its own token */
        n->tokens = stepper_put(s, (const i32[RUNNER_BLOCK + 1]){1}, RUNNER_BLOCK + 1, sizeof(i32));
        n->n_tok = n->prompt_len = RUNNER_BLOCK + 1;
        n->max_len = 2 * RUNNER_BLOCK;
        b->pos = RUNNER_BLOCK;
        b->n_tok = 1;
        b->block_delta[0].len = 1;
        s->n_tok -= 2;
    }
    if (w == BLOCK_GROUP) b->block_delta[1] = b->block_delta[0];
    if (w == ROW_TWICE) stepper_row(s, 0, 1, 3, 1, WANT_SAMPLE, NULL, 0);
    if (w == TOO_MANY_TOKENS) {
        s->n_tok += 300 - b->n_tok;
        b->n_tok = 300;
    }
}

static void refusals(void **state)
{
    (void)state;
    struct sampling greedy = stepper_greedy();
    const i32 prompt[] = {1, 2, 3};
    u32 blocks[ROW_BLOCKS], n_blocks = blocks_of_row(0, blocks);
    i32 expected[2] = {0};
    for (int alone = 1; alone >= 0; alone--) {
        engine_start(3);
        stepper_new(&fix.s, 0, 1, &greedy, prompt, 3, 3, 20);
        stepper_row(&fix.s, 0, 1, 0, 3, WANT_SAMPLE, blocks, n_blocks);
        assert_true(run());
        for (enum wrong w = RIGHT + 1; w < N_WRONG && !alone; w++) {
            u64 id = fix.s.id;
            size_t len, out_len;
            build_wrong(w);
            void *frame = stepper_seal(&fix.s, STEP_FORWARD, &len);
            const void *out = execute_step(fix.x, frame, len, &out_len);
            assert_int_equal(results_view(&fix.out, out, out_len, NULL), 0);
            if (!fix.out.head->failed) fail_msg("case %d was not refused", w);
            free(frame);
            fix.s.gen = 3;
            fix.s.numerics = NUMERICS;
            fix.s.id = id;
        }
        /* nothing was changed by them */
        build_wrong(RIGHT);
        assert_true(run());
        assert_int_equal(fix.out.head->n, 2);
        i32 got[2] = {token_of(0), token_of(1)};
        if (alone) memcpy(expected, got, sizeof(got));
        assert_memory_equal(expected, got, sizeof(got));
    }
    /* what is no frame at all */
    u64 junk[40] = {0};
    size_t out_len;
    const void *out = execute_step(fix.x, junk, sizeof(junk), &out_len);
    assert_int_equal(results_view(&fix.out, out, out_len, NULL), 0);
    assert_true(fix.out.head->failed);
}

/* Tokens that travel: the sampler, which has them already, goes on as without; one that follows gets them
 * that way, or as outcomes, and has the same history. */
static void travelling(void **state)
{
    (void)state;
    struct sampling greedy = stepper_greedy();
    const struct prompt *p = &fix.ref.prompts[2];
    u32 blocks[ROW_BLOCKS], n_blocks = blocks_of_row(0, blocks);
    const struct outcome *list;
    for (int follows = 0; follows < 3; follows++) { /* no; by outcomes; by travelling tokens */
        engine_start_as(1, NULL, follows);
        stepper_new(&fix.s, 0, 1, &greedy, p->ids, p->n, p->n, p->n + STEPS);
        stepper_row(&fix.s, 0, 1, 0, p->n, WANT_SAMPLE, blocks, n_blocks);
        assert_true(run());
        for (u32 n = 0; n + 1 < STEPS; n++) {
            struct error err;
            const struct outcome told = {0, 1, p->greedy[n], 0};
            assert_int_equal(execute_outcomes(fix.x, &list), !follows);
            if (!follows) assert_memory_equal(list, &told, sizeof told);
            if (follows == 1) assert_int_equal(execute_learn(fix.x, &told, 1, &err), 0);
            struct row *r = stepper_row(&fix.s, 0, 1, p->n + n, 1, WANT_SAMPLE, NULL, 0);
            if (follows != 1 && n % 3) r->src = SRC_RING;
            if (follows == 2) r->src = SRC_RING;
            r->tok_off = stepper_put(&fix.s, &p->greedy[n], 1, sizeof(i32)).off;
            assert_true(run());
            assert_int_equal(fix.out.head->n, 1);
            if (!follows) assert_int_equal(token_of(0), p->greedy[n + 1]);
        }
    }
    const struct outcome wrong[] = {{8, 1, 5, 0}, {1, 1, 5, 0}, {0, 2, 5, 0}, {0, 1, 384, 0}, {0, 1, -1, 0}};
    struct error err;
    for (size_t i = 0; i < COUNT_OF(wrong); i++)
        assert_int_equal(execute_learn(fix.x, &wrong[i], 1, &err), ERR_PEER);
}

/* Parts of a replica: what each has, and what cannot be divided. */
static void planning_parts(void **state)
{
    (void)state;
    struct error err;
    struct engine_needs whole, part;
    struct engine_ask ask = {.model = fix.ref.dir, .compute = "f32", .isa = "auto", .block_size = 16};
    assert_int_equal(engine_plan(&ask, &whole, &err), 0);
    ask.tp = ask.pp = 1;
    assert_int_equal(engine_plan(&ask, &part, &err), 0);
    assert_true(part.numerics == whole.numerics && part.weights_bytes == whole.weights_bytes);
    ask.tp = 2;
    u64 weights = 0, kv = 0;
    for (ask.tp_rank = 0; ask.tp_rank < 2; ask.tp_rank++) {
        assert_int_equal(engine_plan(&ask, &part, &err), 0);
        weights += part.weights_bytes;
        kv += part.kv_bytes_per_block;
        assert_true(part.numerics != whole.numerics && part.fingerprint == whole.fingerprint);
    }
    assert_true(weights > whole.weights_bytes && weights < whole.weights_bytes * 5 / 4);
    assert_int_equal(kv, whole.kv_bytes_per_block);
    ask.tp_rank = 0;
    u32 numerics = part.numerics;
    ask.pp = 2;
    assert_int_equal(engine_plan(&ask, &part, &err), 0);
    assert_true(part.numerics != numerics);
    assert_int_equal(part.kv_bytes_per_block * 4, whole.kv_bytes_per_block);
    ask.tp = 4; /* two KV heads: each engine has one of them */
    ask.pp = 1;
    assert_int_equal(engine_plan(&ask, &part, &err), 0);
    assert_int_equal(part.kv_bytes_per_block * 2, whole.kv_bytes_per_block);
    ask.tp = 3;
    assert_int_equal(engine_plan(&ask, &part, &err), ERR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "3 engines cannot share the 4 attention heads"));
    ask.tp = 1;
    ask.pp = 3;
    assert_int_equal(engine_plan(&ask, &part, &err), ERR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "2 layers, fewer than 3 stages"));
}

/* --quantization with a word for how the folder has its weights. */
static void planning_confirmed(void **state)
{
    static const struct {
        const char *folder, *word, *message; /* NULL: as without the word */
    } cases[] = {
        {"llama_gptq", "gptq", NULL},
        {"qwen3_awq", "awq", NULL},
        {"qwen3_fp8block", "fp8", NULL},
        {"gpt_oss_mxfp4", "mxfp4", NULL},
        {"llama_gptq", "awq", "/llama_gptq says that its weights are gptq; leave it out"},
        {"llama_v5style", "fp8", "/llama_v5style says that its weights are not quantised; leave it out"},
        {"qwen3_awq", "int8", "/qwen3_awq are quantised already, and stay as they are stored; leave it out"},
        {"qwen3_awq", "marlin", "\"marlin\" is not offered"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char dir[PATH_LEN];
        struct error err;
        struct engine_needs plain, named;
        snprintf(dir, sizeof dir, "%s/reference/models/%s", data_dir("MPISERVE_TESTS", "tests"),
                 cases[i].folder);
        struct engine_ask ask = {.model = dir, .compute = "f32", .isa = "auto", .block_size = 16};
        assert_int_equal(engine_plan(&ask, &plain, &err), 0);
        ask.quantization = cases[i].word;
        int rc = engine_plan(&ask, &named, &err);
        assert_int_equal(rc < 0, cases[i].message != NULL);
        if (rc)
            assert_non_null(strstr(err.message, cases[i].message));
        else
            assert_true(named.numerics == plain.numerics && named.fingerprint == plain.fingerprint &&
                        named.weights_bytes == plain.weights_bytes);
    }
}

/* --compute auto: bf16 where the CPU multiplies it, but not for models whose weights are f32. */
static void planning_auto(void **state)
{
    static const struct {
        const char *folder;
        bool float32;
    } cases[] = {
        {"llama_v5style", false}, {"llama_gptq", false}, {"llama_untied_sharded", true}, {"olmo2", true}};
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char dir[PATH_LEN];
        struct error err;
        struct engine_needs needs;
        snprintf(dir, sizeof dir, "%s/reference/models/%s", data_dir("MPISERVE_TESTS", "tests"),
                 cases[i].folder);
        struct engine_ask ask = {.model = dir, .compute = "auto", .isa = "auto", .block_size = 16};
        assert_int_equal(engine_plan(&ask, &needs, &err), 0);
        bool bf16 = ops_cpu(ops_cpu_best())->native_bf16 && !cases[i].float32;
        assert_string_equal(needs.compute, bf16 ? "bf16" : "f32");
    }
}

static void planning(void **state)
{
    (void)state;
    struct error err;
    struct engine_needs needs;
    struct engine_ask ask = {.model = fix.ref.dir, .compute = "f32", .isa = "auto", .block_size = 16};
    assert_int_equal(engine_plan(&ask, &needs, &err), 0);
    assert_string_equal(needs.compute, "f32");
    assert_string_equal(needs.isa, ops_cpu_best());
    assert_true(needs.kv_bytes_per_block ==
                forward_kv_bytes(&fix.model.config, &fix.model.shard, COMPUTE_F32, 1, 16));
    assert_true(needs.vocab == 384 && needs.max_model_len == 512 && needs.weights_bytes > 4096);
    u32 numerics = needs.numerics;
    ask.compute = "bf16";
    assert_int_equal(engine_plan(&ask, &needs, &err), 0);
    assert_true(needs.numerics != numerics);
    numerics = needs.numerics;
    u64 bytes = needs.weights_bytes;
    ask.compute = "null";
    assert_int_equal(engine_plan(&ask, &needs, &err), 0);
    assert_true(needs.numerics != numerics && needs.weights_bytes < bytes && needs.vocab == 384);
    assert_string_equal(needs.compute, "null");
    ask.compute = "fp8";
    assert_int_equal(engine_plan(&ask, &needs, &err), ERR_INPUT);
    ask.compute = "auto";
    ask.isa = "mmx";
    assert_int_equal(engine_plan(&ask, &needs, &err), ERR_UNSUPPORTED);
    ask.isa = "portable";
    ask.block_size = 24;
    assert_int_equal(engine_plan(&ask, &needs, &err), ERR_INPUT);
    ask.block_size = 16;
    ask.model = "tests";
    assert_true(engine_plan(&ask, &needs, &err) < 0);
    size_t ring = engine_ring_size(64, 512, 131072, 20, 0, 16);
    assert_true((ring & (ring - 1)) == 0 && ring >= 4 * 131072 * 4);
}

static void faults(void **state)
{
    (void)state;
    struct fault f;
    struct error err;
    assert_int_equal(fault_parse(&f, NULL, &err), 0);
    assert_int_equal(f.kind, FAULT_NONE);
    assert_int_equal(fault_parse(&f, "crash-token:17", &err), 0);
    assert_true(f.kind == FAULT_CRASH_TOKEN && f.number == 17);
    const char *bad[] = {"crash-token", "crash-token:", "crash-token:x", "crash:1", "crash-token:1x"};
    for (size_t i = 0; i < COUNT_OF(bad); i++) assert_int_equal(fault_parse(&f, bad[i], &err), ERR_INPUT);
}

static int setup(void **state)
{
    (void)state;
    reference_read(&fix.ref, "llama_tied_llama3");
    runner_load(&fix.model, fix.ref.dir);
    runner_start(&fix.model, ops_cpu_best(), COMPUTE_F32, 2, 256);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    execute_free(fix.x);
    runner_unload(&fix.model);
    reference_release(&fix.ref);
    buf_release(&fix.s.data);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_prompts),
        cmocka_unit_test(chunked_prompts),
        cmocka_unit_test(planned_ahead),
        cmocka_unit_test(replay),
        cmocka_unit_test(log_probabilities),
        cmocka_unit_test(shared_and_copied_blocks),
        cmocka_unit_test(sequences_behind_cached_blocks),
        cmocka_unit_test(one_bad_row),
        cmocka_unit_test(no_token_left),
        cmocka_unit_test(full_history),
        cmocka_unit_test(dummies_and_canaries),
        cmocka_unit_test(refusals),
        cmocka_unit_test(travelling),
        cmocka_unit_test(planning_parts),
        cmocka_unit_test(planning_auto),
        cmocka_unit_test(planning),
        cmocka_unit_test(planning_confirmed),
        cmocka_unit_test(faults),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, setup, teardown);
}
