/* step: frames survive the way there and back, damage is refused; the channel works between processes and
 * loses no wake-up. */
#include "mpiserve/step.h"

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static const i32 history[] = {1, 2, 3, 4, 5, 6, 7};
static const u32 blocks[] = {9, 4};

/* Two rows, one of them new. data: 7 tokens, then 2 blocks, then an eos id. */
static void *make_step(size_t *bytes)
{
    struct step h = {
        .id = 1, .gen = 3, .numerics = 77, .kind = STEP_FORWARD, .n_new = 1, .n_free = 1, .n_rows = 2};
    h.n_ops = 1;
    h.n_tok = 6;
    h.data_len = 44;
    *bytes = step_frame_bytes(&h);
    u8 *frame = mem_alloc(*bytes);
    struct step_view v;
    step_frame_layout(frame, &h, &v);
    struct seq_new *n = (struct seq_new *)v.new;
    *n = (struct seq_new){.row = 2, .row_gen = 1, .request = 5, .prompt_len = 5, .n_tok = 7, .max_len = 20};
    n->sampling = (struct sampling){.top_p = 1, .repetition_penalty = 1, .n_logprobs = -1, .max_tokens = 8};
    n->tokens = (struct span){0, 7};
    n->eos_ids = (struct span){40, 1};
    *(struct seq_free *)v.free = (struct seq_free){1, 1};
    *(struct block_op *)v.ops = (struct block_op){.op = BLOCK_COPY, .src = 1, .dst = 2};
    struct row *r = (struct row *)v.rows;
    r[0] = (struct row){.row = 0, .pos = 11, .n_tok = 1, .want = WANT_SAMPLE, .mask_slot = -1};
    r[1] = (struct row){.row = 2, .row_gen = 1, .n_tok = 5, .mask_slot = -1, .block_delta = {{32, 2}}};
    u8 *data = (u8 *)v.data;
    memcpy(data, history, sizeof(history));
    memset(data + 28, 0, 4);
    memcpy(data + 32, blocks, sizeof(blocks));
    memcpy(data + 40, history, 4);
    step_frame_seal(frame);
    return frame;
}

static void *make_results(size_t *bytes)
{
    struct results h = {.step = 1, .gen = 3, .kind = STEP_FORWARD, .n = 2, .usec = 100, .data_len = 48};
    *bytes = results_frame_bytes(&h);
    u8 *frame = mem_alloc(*bytes);
    struct results_view v;
    results_frame_layout(frame, &h, &v);
    struct result *r = (struct result *)v.rows;
    r[0] = (struct result){.row = 0, .pos0 = 12, .n_out = 1, .tokens = {0, 1}, .logprobs = {8, 3}};
    r[1] = (struct result){.row = 2, .row_gen = 1, .flags = RESULT_NONFINITE};
    memset((u8 *)v.data, 0, 48);
    results_frame_seal(frame);
    return frame;
}

static void round_trips(void **state)
{
    (void)state;
    size_t bytes;
    struct error err;
    void *frame = make_step(&bytes);
    struct step_view v;
    assert_int_equal(step_view(&v, frame, bytes, &err), 0);
    assert_true(v.head->id == 1 && v.head->gen == 3 && v.free[0].row == 1 && v.ops[0].dst == 2 &&
                v.new[0].row == 2);
    assert_memory_equal(step_at(&v, v.new[0].tokens), history, sizeof(history));
    assert_memory_equal(step_at(&v, v.rows[1].block_delta[0]), blocks, sizeof(blocks));
    free(frame);
    frame = make_results(&bytes);
    struct results_view w;
    assert_int_equal(results_view(&w, frame, bytes, &err), 0);
    assert_true(w.head->n == 2 && w.rows[0].pos0 == 12 && w.rows[1].flags == RESULT_NONFINITE);
    free(frame);
}

static int view_results(const struct result *r)
{
    struct results h = {.step = 1, .gen = 3, .kind = STEP_FORWARD, .n = 1, .data_len = 16};
    size_t bytes = results_frame_bytes(&h);
    u8 *frame = mem_alloc(bytes);
    struct results_view v;
    results_frame_layout(frame, &h, &v);
    *(struct result *)v.rows = *r;
    memset((u8 *)v.data, 0, 16);
    results_frame_seal(frame);
    int rc = results_view(&v, frame, bytes, NULL);
    free(frame);
    return rc;
}

/* A vector comes alone; who asks for one says so in seq_new, and has emitted nothing. */
static void vectors(void **state)
{
    (void)state;
    static const struct {
        struct result r;
        int rc;
    } results[] = {
        {{.hidden = {0, 4}}, 0},
        {{.hidden = {4, 3}}, 0},
        {{.hidden = {4, 4}}, ERR_PEER},
        {{.hidden = {2, 1}}, ERR_PEER},
        {{.hidden = {0, UINT32_MAX}}, ERR_PEER},
        {{.hidden = {4, 1}, .n_out = 1, .tokens = {0, 1}}, ERR_PEER},
        {{.hidden = {4, 1}, .flags = RESULT_NONFINITE}, ERR_PEER},
    };
    for (size_t i = 0; i < COUNT_OF(results); i++)
        if (view_results(&results[i].r) != results[i].rc) fail_msg("result %zu", i);
    static const struct {
        u32 pooling, prompt_len, want;
        int rc;
    } steps[] = {{POOLING_MEAN, 7, WANT_HIDDEN, 0},
                 {POOLING_MEAN, 5, WANT_HIDDEN, ERR_PEER},
                 {POOLING_CLS + 1, 7, WANT_HIDDEN, ERR_PEER},
                 {POOLING_NONE, 5, WANT_HIDDEN + 1, ERR_PEER}};
    for (size_t i = 0; i < COUNT_OF(steps); i++) {
        size_t bytes;
        struct step_view v;
        u8 *frame = make_step(&bytes);
        step_view(&v, frame, bytes, NULL);
        ((struct seq_new *)v.new)->pooling = steps[i].pooling;
        ((struct seq_new *)v.new)->prompt_len = steps[i].prompt_len;
        ((struct row *)v.rows)[1].want = (u8)steps[i].want;
        step_frame_seal(frame);
        if (step_view(&v, frame, bytes, NULL) != steps[i].rc) fail_msg("step %zu", i);
        free(frame);
    }
}

/* Every flipped bit is refused: the checksum covers all bytes of the frame, its own field aside, which then
 * differs. */
static void damage(void **state)
{
    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        size_t bytes;
        u8 *frame = kind ? make_results(&bytes) : make_step(&bytes);
        struct step_view v;
        struct results_view w;
        for (size_t i = 0; i < bytes * 8; i++) {
            frame[i / 8] ^= (u8)(1 << i % 8);
            int rc = kind ? results_view(&w, frame, bytes, NULL) : step_view(&v, frame, bytes, NULL);
            assert_int_equal(rc, ERR_PEER);
            frame[i / 8] ^= (u8)(1 << i % 8);
        }
        for (size_t len = 0; len < bytes; len++) {
            u8 *part = mem_alloc(len + 1);
            memcpy(part, frame, len);
            int rc = kind ? results_view(&w, part, len, NULL) : step_view(&v, part, len, NULL);
            assert_int_equal(rc, ERR_PEER);
            free(part);
        }
        free(frame);
    }
}

/* A peer that seals nonsense: the checksum is right, the contents are not. Any u32 of the frame is set to
 * nasty values; the view answers and what it accepts can be read. */
static void sealed_nonsense(void **state)
{
    (void)state;
    static const u32 nasty[] = {0, 1, 3, 4, 44, 48, 0x7fffffff, 0x80000000, 0xfffffffc, 0xffffffff};
    size_t bytes;
    u8 *good = make_step(&bytes);
    u32 refused = 0;
    for (size_t at = 0; at + 4 <= bytes; at += 4)
        for (size_t k = 0; k < COUNT_OF(nasty); k++) {
            u8 *frame = mem_alloc(bytes);
            memcpy(frame, good, bytes);
            memcpy(frame + at, &nasty[k], 4);
            struct step *h = (struct step *)frame;
            struct step_view v;
            if (step_frame_bytes(h) != bytes) {
                refused += step_view(&v, frame, bytes, NULL) < 0;
                free(frame);
                continue;
            }
            step_frame_seal(frame);
            if (step_view(&v, frame, bytes, NULL) < 0) {
                refused++;
            } else {
                u32 sum = 0;
                for (u32 i = 0; i < v.head->n_new; i++)
                    for (u32 t = 0; t < v.new[i].n_tok; t++)
                        sum += ((const u32 *)step_at(&v, v.new[i].tokens))[t];
                for (u32 i = 0; i < v.head->n_rows; i++)
                    for (u32 t = 0; t < v.rows[i].block_delta[0].len; t++)
                        sum += ((const u32 *)step_at(&v, v.rows[i].block_delta[0]))[t];
                (void)*(volatile u32 *)&sum;
            }
            free(frame);
        }
    assert_true(refused > 300);
    free(good);
}

static void empty_kinds(void **state)
{
    (void)state;
    struct step h = {.id = 1, .kind = STEP_CANARY};
    size_t bytes = step_frame_bytes(&h);
    void *frame = mem_alloc(bytes);
    struct step_view v;
    step_frame_layout(frame, &h, &v);
    step_frame_seal(frame);
    assert_int_equal(step_view(&v, frame, bytes, NULL), 0);
    h.data_len = 8;
    free(frame);
    bytes = step_frame_bytes(&h);
    frame = mem_alloc(bytes);
    step_frame_layout(frame, &h, &v);
    memset((u8 *)v.data, 0, 8);
    step_frame_seal(frame);
    assert_int_equal(step_view(&v, frame, bytes, NULL), ERR_PEER);
    free(frame);
}

/* The engine of the test: answers each step with its id; exits on id 0. */
static void echo_engine(struct channel *agent)
{
    int to[3] = {channel_fd(agent, FD_CHANNEL), channel_fd(agent, FD_TO_ENGINE),
                 channel_fd(agent, FD_TO_AGENT)},
        up[3];
    for (int i = 0; i < 3; i++) up[i] = dup2(to[i], 100 + i);
    for (int i = 0; i < 3; i++) dup2(up[i], FD_CHANNEL + i);
    struct error err;
    struct channel *c = channel_attach(&err);
    if (!c) _exit(2);
    atomic_store(&channel_head(c)->state, ENGINE_READY);
    u32 spin = channel_head(c)->boot.spin_us;
    for (;;) {
        size_t len;
        const void *frame = channel_step_peek(c, &len);
        if (!frame) {
            channel_engine_wait(c, spin * NS_PER_US, 2 * NS_PER_S);
            continue;
        }
        struct step_view v;
        if (step_view(&v, frame, len, &err) < 0) _exit(3);
        struct results h = {.step = v.head->id, .gen = v.head->gen, .kind = v.head->kind};
        struct results_view w;
        void *out = channel_result_claim(c, results_frame_bytes(&h));
        if (!out) _exit(4);
        results_frame_layout(out, &h, &w);
        results_frame_seal(out);
        channel_step_consume(c);
        channel_result_publish(c, results_frame_bytes(&h));
        if (h.step == 0) _exit(0);
    }
}

static void send_step(struct channel *c, u64 id)
{
    struct step h = {.id = id, .kind = STEP_DUMMY};
    struct step_view v;
    void *frame = channel_step_claim(c, step_frame_bytes(&h));
    assert_non_null(frame);
    step_frame_layout(frame, &h, &v);
    step_frame_seal(frame);
    channel_step_publish(c, step_frame_bytes(&h));
}

static u64 receive(struct channel *c, u64 *slept)
{
    for (;;) {
        size_t len;
        const void *frame = channel_result_peek(c, &len);
        struct results_view v;
        if (frame) {
            assert_int_equal(results_view(&v, frame, len, NULL), 0);
            channel_result_consume(c);
            return v.head->step;
        }
        assert_int_equal(len, 0);
        if (!channel_agent_prepare_sleep(c)) continue;
        struct pollfd p = {.fd = channel_fd(c, FD_TO_AGENT), .events = POLLIN};
        assert_int_equal(poll(&p, 1, 1500), 1); /* a lost wake-up would end here */
        ++*slept;
        channel_agent_woke(c);
    }
}

static void across_fork(void **state)
{
    (void)state;
    struct error err;
    struct channel *c = channel_new(4096, &err);
    assert_non_null(c);
    for (u32 gen = 1; gen <= 2; gen++) {
        struct engine_boot boot = {.model = "m", .gen = gen, .spin_us = gen == 1 ? 0 : 20};
        channel_reset(c, &boot);
        pid_t pid = fork();
        if (pid == 0) echo_engine(c);
        u64 slept = 0, sent = 0;
        for (u64 got = 0; got < 20000;) {
            while (sent < got + STEP_IN_FLIGHT && sent < 20000) send_step(c, ++sent);
            assert_true(receive(c, &slept) == ++got);
            if (got % 1000 == 0) usleep(100); /* let the engine fall asleep now and then */
        }
        send_step(c, 0);
        assert_true(receive(c, &slept) == 0);
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
        assert_int_equal(atomic_load(&channel_head(c)->state), ENGINE_READY);
        assert_int_equal(channel_head(c)->boot.gen, gen);
    }
    channel_free(c);
}

static void engine_killed(void **state)
{
    (void)state;
    struct channel *c = channel_new(4096, NULL);
    struct engine_boot boot = {.gen = 1};
    for (int round = 0; round < 20; round++) {
        channel_reset(c, &boot);
        pid_t pid = fork();
        if (pid == 0) echo_engine(c);
        u64 slept = 0;
        for (u64 id = 1; id < 50; id++) {
            send_step(c, id);
            assert_true(receive(c, &slept) == id);
        }
        send_step(c, 50);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        size_t len;
        struct results_view v;
        const void *frame = channel_result_peek(c, &len); /* a whole frame or none */
        if (frame) assert_int_equal(results_view(&v, frame, len, NULL), 0);
    }
    channel_free(c);
}

static void error_and_seals(void **state)
{
    (void)state;
    assert_null(channel_new(5000, NULL));
    struct channel *c = channel_new(4096, NULL);
    char text[64];
    assert_string_equal(channel_error(c, text, sizeof(text)), "");
    struct error err;
    error_set(&err, ERR_IO, "model", "%s", "not there");
    channel_fail(c, &err);
    assert_string_equal(channel_error(c, text, sizeof(text)), "model: not there");
    assert_int_equal(atomic_load(&channel_head(c)->state), ENGINE_FAILED);
    memset(channel_head(c)->error, 'x', sizeof(channel_head(c)->error));
    assert_int_equal(strlen(channel_error(c, text, sizeof(text))), 63);
    assert_int_equal(ftruncate(channel_fd(c, FD_CHANNEL), 0), -1);
    assert_int_equal(channel_fd(c, FD_KV), -1);
    /* an engine gone mad writes over everything: no access out of bounds, corrupt is said */
    u64 tail = channel_head(c)->ring_off[1];
    memset((u8 *)channel_head(c) + tail, 0x5a, 512);
    size_t len;
    assert_null(channel_result_peek(c, &len));
    struct engine_boot boot = {.gen = 2};
    channel_reset(c, &boot);
    assert_null(channel_result_peek(c, &len));
    assert_int_equal(len, 0);
    channel_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trips),     cmocka_unit_test(vectors),         cmocka_unit_test(damage),
        cmocka_unit_test(sealed_nonsense), cmocka_unit_test(empty_kinds),     cmocka_unit_test(across_fork),
        cmocka_unit_test(engine_killed),   cmocka_unit_test(error_and_seals),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
