/* engine: replicas of several engines, each a process, driven through channels as their agents would: the
 * references' tokens, with two steps in flight where there is one stage; canaries; what is refused; engines
 * that die or hang are named by the others. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "engine/group.h"
#include "mpiserve/engine.h"
#include "mpiserve/json.h"
#include "stepper.h"

enum { PROMPTS = 4, TOKENS = 24, LONGEST = 128, ROW_BLOCKS = 16, BLOCKS = 80, MOST = 8, NODES = 4 };

struct prompt {
    i32 ids[LONGEST], greedy[TOKENS];
    u32 n;
};
struct part { /* an engine and what its agent has of it */
    struct channel *channel;
    int weights, kv;
    pid_t pid;
    struct coll_relay *relay;
};
struct replica {
    struct coll_shape shape;
    u32 n, numerics;
    struct part parts[MOST];
    int group[NODES];
    u8 *group_memory[NODES];
    u64 group_bytes[NODES];
    struct stepper s;
    struct results_view out;
    u8 copy[1 << 16];
};
static char model[PATH_LEN];
static struct prompt prompts[PROMPTS];

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
}

static void need(bool fine, const struct error *err)
{
    char text[1200];
    if (fine) return;
    fprintf(stderr, "%s\n", error_text(err, text, sizeof(text)));
    abort();
}

static int memory(u64 bytes)
{
    int fd = memfd_create("mpiserve-test", MFD_CLOEXEC);
    assert_true(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
    return fd;
}

static int model_open_all(void **state)
{
    struct error err;
    char path[PATH_LEN + 32];
    const char *tests = getenv("MPISERVE_TESTS");
    (void)state;
    snprintf(model, sizeof model, "%s/reference/models/qwen2_bias", tests ? tests : "tests");
    snprintf(path, sizeof path, "%s/reference.json", model);
    struct json *root = json_read_file(path, 1 << 24, &err);
    need(root != NULL, &err);
    for (u32 i = 0; i < PROMPTS; i++) {
        const struct json *from = json_item(json_get(root, "prompts"), i), *ids = json_get(from, "ids");
        struct prompt *p = &prompts[i];
        p->n = (u32)json_len(ids);
        for (u32 k = 0; k < p->n; k++) p->ids[k] = (i32)json_int(json_item(ids, k), -1);
        ids = json_get(json_get(from, "greedy"), "ids");
        for (u32 k = 0; k < TOKENS; k++) p->greedy[k] = (i32)json_int(json_item(ids, k), -1);
    }
    json_drop(root);
    return 0;
}

/* ---- starting and ending ---------------------------------------------------------------------------------------*/
/* The engine's process: descriptors at their numbers, then the engine itself. */
static _Noreturn void become_engine(const struct replica *r, const struct part *p, int group,
                                    const char *fault)
{
    int fds[] = {channel_fd(p->channel, FD_CHANNEL),
                 channel_fd(p->channel, FD_TO_ENGINE),
                 channel_fd(p->channel, FD_TO_AGENT),
                 p->weights,
                 p->kv,
                 group};
    (void)r;
    for (size_t i = 0; i < COUNT_OF(fds); i++) fds[i] = fcntl(fds[i], F_DUPFD, 100);
    for (size_t i = 0; i < COUNT_OF(fds); i++) dup2(fds[i], FD_CHANNEL + (int)i);
    if (fault) setenv("MPISERVE_FAULT", fault, 1);
    char name[] = "mpiserve", *argv[] = {name, NULL};
    _exit(engine_main(1, argv));
}

static void start_part(struct replica *r, u32 i, const char *compute, u32 wait_ms, const char *fault)
{
    struct part *p = &r->parts[i];
    struct engine_needs needs;
    struct error err;
    u32 tp = r->shape.tp, node = r->shape.node[i];
    struct engine_ask ask = {.model = model,
                             .compute = compute,
                             .isa = "auto",
                             .block_size = 16,
                             .tp = tp,
                             .pp = r->shape.pp,
                             .tp_rank = i % tp,
                             .pp_rank = i / tp};
    need(engine_plan(&ask, &needs, &err) == 0, &err);
    assert_true(r->numerics == 0 || r->numerics == needs.numerics); /* one class */
    r->numerics = needs.numerics;
    struct engine_boot b = {.weights_bytes = needs.weights_bytes,
                            .kv_bytes = needs.kv_bytes_per_block * BLOCKS,
                            .numerics = needs.numerics,
                            .rank = r->shape.rank[i],
                            .agent_pid = (u32)getpid(),
                            .gen = 1,
                            .block_size = 16,
                            .n_blocks = BLOCKS,
                            .max_rows = 8,
                            .max_step_tokens = 256,
                            .max_model_len = ROW_BLOCKS * 16,
                            .max_logprobs = 5,
                            .threads = 1 + i % 2,
                            .loader = 1,
                            .log_level = LOG_ERROR,
                            .group = r->shape,
                            .tp_rank = ask.tp_rank,
                            .pp_rank = ask.pp_rank,
                            .group_bytes = r->group_bytes[node],
                            .group_wait_ms = wait_ms};
    snprintf(b.model, sizeof b.model, "%s", model);
    memcpy(b.compute, needs.compute, sizeof b.compute);
    memcpy(b.isa, needs.isa, sizeof b.isa);
    /* only root and sampler have frames */
    size_t ring = i == 0 || i == r->n - tp ? engine_ring_size(8, 256, ROW_BLOCKS * 16, 5, 0, 16) : 4096;
    need((p->channel = channel_new(ring, &err)) != NULL, &err);
    channel_reset(p->channel, &b);
    p->weights = memory(b.weights_bytes);
    p->kv = memory(b.kv_bytes);
    if (coll_relays(&r->shape))
        need((p->relay = coll_relay_open(&r->shape, i, r->group_memory[node], r->group_bytes[node], &err)) !=
                 NULL,
             &err);
    p->pid = fork();
    assert_true(p->pid >= 0);
    if (p->pid == 0) become_engine(r, p, r->group[node], fault);
}

static void carry(struct replica *r)
{
    struct error err;
    for (u32 i = 0; i < r->n; i++) {
        u32 to;
        size_t len;
        const void *data;
        while (r->parts[i].relay && (data = coll_relay_take(r->parts[i].relay, &to, &len))) {
            need(coll_relay_put(r->parts[to].relay, i, data, len, &err) == 0, &err);
            coll_relay_taken(r->parts[i].relay);
        }
    }
}

static enum engine_state state_of(struct replica *r, u32 i)
{
    return (enum engine_state)atomic_load(&channel_head(r->parts[i].channel)->state);
}

static void wait_ready(struct replica *r)
{
    for (u32 i = 0; i < r->n; i++)
        for (u64 until = clock_ns() + 30 * NS_PER_S; state_of(r, i) != ENGINE_READY; nap()) {
            char why[1000];
            if (state_of(r, i) == ENGINE_FAILED || clock_ns() > until)
                fail_msg("engine %u: %s", i, channel_error(r->parts[i].channel, why, sizeof why));
        }
}

struct start {
    u32 tp, pp, wait_ms;
    const char *nodes, *compute, *fault;
    u32 faulty; /* engine that gets the fault */
};
static struct replica *replica_start(struct start how)
{
    struct replica *r = mem_zero(1, sizeof *r);
    r->n = how.tp * how.pp;
    r->shape.tp = how.tp;
    r->shape.pp = how.pp;
    for (u32 i = 0; i < r->n; i++) {
        r->shape.rank[i] = 10 + i;
        r->shape.node[i] = how.nodes ? (u32)(how.nodes[i] - '0') : 0;
    }
    for (u32 i = 0; i < r->n; i++) {
        u32 node = r->shape.node[i];
        if (r->group_memory[node]) continue;
        r->group_bytes[node] = coll_bytes(&r->shape, node);
        r->group[node] = memory(r->group_bytes[node]);
        r->group_memory[node] =
            mmap(NULL, r->group_bytes[node], PROT_READ | PROT_WRITE, MAP_SHARED, r->group[node], 0);
        assert_true(r->group_memory[node] != MAP_FAILED);
    }
    for (u32 i = 0; i < r->n; i++)
        start_part(r, i, how.compute ? how.compute : "f32", how.wait_ms ? how.wait_ms : 20000,
                   i == how.faulty ? how.fault : NULL);
    wait_ready(r);
    r->s = (struct stepper){.gen = 1, .id = 1, .numerics = r->numerics};
    return r;
}

static void replica_end(struct replica *r)
{
    for (u32 i = 0; i < r->n; i++) {
        struct part *p = &r->parts[i];
        kill(p->pid, SIGKILL);
        waitpid(p->pid, NULL, 0);
        coll_relay_close(p->relay);
        channel_free(p->channel);
        close(p->weights);
        close(p->kv);
    }
    for (u32 i = 0; i < NODES; i++) {
        if (!r->group_memory[i]) continue;
        munmap(r->group_memory[i], r->group_bytes[i]);
        close(r->group[i]);
    }
    buf_release(&r->s.data);
    free(r);
}

/* ---- steps -----------------------------------------------------------------------------------------------------*/
static void send(struct replica *r, u32 kind)
{
    size_t len;
    void *frame = stepper_seal(&r->s, kind, &len), *to = channel_step_claim(r->parts[0].channel, len);
    assert_non_null(to);
    memcpy(to, frame, len);
    free(frame);
    channel_step_publish(r->parts[0].channel, len);
}

/* The sampler's next results into r->out; false: the sampler has failed. */
static bool receive(struct replica *r)
{
    u32 sampler = r->n - r->shape.tp;
    struct channel *c = r->parts[sampler].channel;
    for (u64 until = clock_ns() + 30 * NS_PER_S; clock_ns() < until; nap()) {
        size_t len;
        carry(r);
        const void *frame = channel_result_peek(c, &len);
        if (!frame && state_of(r, sampler) == ENGINE_FAILED) return false;
        if (!frame) continue;
        assert_true(len <= sizeof r->copy);
        memcpy(r->copy, frame, len);
        channel_result_consume(c);
        assert_int_equal(results_view(&r->out, r->copy, len, NULL), 0);
        return true;
    }
    fail_msg("no results");
    return false;
}

static i32 token_of(const struct replica *r, u32 i)
{
    const struct result *x = &r->out.rows[i];
    assert_int_equal(x->n_out, 1);
    return *(const i32 *)results_at(&r->out, x->tokens);
}

static void new_row(struct replica *r, u32 row, u32 row_gen, const struct prompt *p, u32 n)
{
    struct sampling greedy = stepper_greedy();
    static const struct token_bias nothing[600]; /* makes frames longer than one broadcast */
    u32 blocks[ROW_BLOCKS];
    for (u32 i = 0; i < ROW_BLOCKS; i++) blocks[i] = 1 + row + i * 4;
    struct seq_new *s = stepper_new(&r->s, row, row_gen, &greedy, p->ids, p->n, p->n, LONGEST);
    s->bias = stepper_put(&r->s, nothing, COUNT_OF(nothing), sizeof *nothing);
    stepper_row(&r->s, row, row_gen, 0, n, n == p->n ? WANT_SAMPLE : WANT_NOTHING, blocks, ROW_BLOCKS);
}

/* The row of token k of a continuation; with stages it carries the token before. */
static void next_row(struct replica *r, u32 row, u32 row_gen, u32 pos, i32 token)
{
    struct row *plan = stepper_row(&r->s, row, row_gen, pos, 1, WANT_SAMPLE, NULL, 0);
    if (r->shape.pp == 1) return;
    plan->src = SRC_RING;
    plan->tok_off = stepper_put(&r->s, &token, 1, sizeof token).off;
}

/* All prompts at once, the longest one in two steps; then all continuations. One stage: a step ahead of the
 * results. */
static void run_prompts(struct replica *r)
{
    u32 ahead = r->shape.pp == 1, sent = 0, n = 0;
    u32 first_chunk = 40;
    for (u32 i = 0; i < PROMPTS; i++) new_row(r, i, 1, &prompts[i], MIN_OF(prompts[i].n, first_chunk));
    send(r, STEP_FORWARD);
    assert_true(receive(r));
    for (u32 i = 0; i + 1 < PROMPTS; i++) assert_int_equal(token_of(r, i), prompts[i].greedy[0]);
    const struct prompt *last = &prompts[PROMPTS - 1];
    stepper_row(&r->s, PROMPTS - 1, 1, first_chunk, last->n - first_chunk, WANT_SAMPLE, NULL, 0);
    send(r, STEP_FORWARD);
    assert_true(receive(r));
    assert_int_equal(token_of(r, 0), last->greedy[0]);
    i32 tokens[PROMPTS];
    for (u32 i = 0; i < PROMPTS; i++) tokens[i] = prompts[i].greedy[0];
    for (n = 1; n < TOKENS; n++) {
        for (; sent < n + ahead && sent + 1 < TOKENS; sent++) {
            for (u32 i = 0; i < PROMPTS; i++) next_row(r, i, 1, prompts[i].n + sent, tokens[i]);
            send(r, STEP_FORWARD);
        }
        assert_true(receive(r));
        assert_int_equal(r->out.head->failed, 0);
        for (u32 i = 0; i < PROMPTS; i++) {
            tokens[i] = token_of(r, i);
            assert_int_equal(tokens[i], prompts[i].greedy[n]);
        }
    }
}

static void canary(struct replica *r)
{
    send(r, STEP_CANARY);
    assert_true(receive(r));
    assert_int_equal(r->out.head->kind, STEP_CANARY);
    assert_int_equal(r->out.head->failed, 0);
}

static void run_shape(u32 tp, u32 pp, const char *nodes)
{
    struct replica *r = replica_start((struct start){.tp = tp, .pp = pp, .nodes = nodes});
    canary(r);
    run_prompts(r);
    /* what the group refuses it refuses as one, and goes on */
    stepper_row(&r->s, 7, 1, 0, 1, WANT_SAMPLE, NULL, 0);
    send(r, STEP_FORWARD);
    assert_true(receive(r));
    assert_int_equal(r->out.head->failed, 1);
    r->s.id--;
    for (u32 i = 0; i < PROMPTS; i++) stepper_free(&r->s, i, 1);
    new_row(r, 2, 2, &prompts[1], prompts[1].n);
    send(r, STEP_FORWARD);
    assert_true(receive(r));
    assert_int_equal(token_of(r, 0), prompts[1].greedy[0]);
    canary(r);
    for (u32 i = 0; i < r->n; i++) /* all have done it, and beat */
        for (u64 until = clock_ns() + 10 * NS_PER_S;
             atomic_load(&channel_head(r->parts[i].channel)->steps_done) != r->s.id - 1; nap())
            assert_true(clock_ns() < until);
    replica_end(r);
}

static void test_one_node(void **state)
{
    (void)state;
    run_shape(2, 1, NULL);
    run_shape(4, 1, NULL);
    run_shape(1, 2, NULL);
    run_shape(2, 2, NULL);
}

static void test_nodes(void **state)
{
    (void)state;
    run_shape(2, 1, "01");
    run_shape(1, 2, "01");
    run_shape(2, 2, "0011");
}

/* No maths, the same ways. */
static void test_null(void **state)
{
    (void)state;
    struct replica *r = replica_start((struct start){.tp = 2, .pp = 1, .compute = "null"});
    canary(r);
    for (u32 i = 0; i < PROMPTS; i++) new_row(r, i, 1, &prompts[i], prompts[i].n);
    send(r, STEP_FORWARD);
    assert_true(receive(r));
    assert_int_equal(r->out.head->n, PROMPTS);
    replica_end(r);
}

/* Rows that fail are known to all: later rows of theirs are answered, others go on. */
static void test_dead_row(void **state)
{
    (void)state;
    char fault[64];
    snprintf(fault, sizeof fault, "nan-token:%d", prompts[1].ids[prompts[1].n - 1]);
    struct replica *r = replica_start((struct start){.tp = 2, .pp = 1, .fault = fault});
    for (u32 i = 1; i < 3; i++) new_row(r, i, 1, &prompts[i], prompts[i].n);
    send(r, STEP_FORWARD);
    for (u32 n = 0; n < 4; n++) {
        for (u32 i = 1; i < 3; i++) next_row(r, i, 1, prompts[i].n + n, 0);
        send(r, STEP_FORWARD);
        assert_true(receive(r));
        assert_int_equal(r->out.rows[0].flags, RESULT_NONFINITE);
    }
    assert_true(receive(r));
    replica_end(r);
}

/* ---- failures --------------------------------------------------------------------------------------------------*/
static void wait_for_words(struct replica *r, u32 i, const char *words)
{
    char why[1000] = "";
    for (u64 until = clock_ns() + 20 * NS_PER_S; state_of(r, i) != ENGINE_FAILED; nap())
        if (clock_ns() > until) fail_msg("engine %u does not fail", i);
    channel_error(r->parts[i].channel, why, sizeof why);
    if (!strstr(why, words)) fail_msg("\"%s\" does not say \"%s\"", why, words);
}

static void test_dead_engine(void **state)
{
    (void)state;
    struct replica *r = replica_start((struct start){.tp = 3 - 1, .pp = 2, .wait_ms = 300});
    canary(r);
    kill(r->parts[1].pid, SIGKILL);
    new_row(r, 0, 1, &prompts[1], prompts[1].n);
    send(r, STEP_FORWARD);
    wait_for_words(r, 0, "engine 1 (rank 11) has not come within 0.3 s");
    wait_for_words(r, 3, "engine 1 (rank 11) has not come within 0.3 s"); /* it waits for 1's activations */
    replica_end(r);
}

static void test_stalled_engine(void **state)
{
    (void)state;
    struct replica *r =
        replica_start((struct start){.tp = 2, .pp = 1, .wait_ms = 300, .fault = "stall-step:2", .faulty = 1});
    canary(r);
    new_row(r, 0, 1, &prompts[1], prompts[1].n);
    send(r, STEP_FORWARD);
    wait_for_words(r, 0, "engine 1 (rank 11) has not come within 0.3 s");
    replica_end(r);
}

/* Engines that wait for the root's next step beat, and know no deadline. */
static void test_idle(void **state)
{
    (void)state;
    struct replica *r = replica_start((struct start){.tp = 2, .pp = 1, .wait_ms = 100});
    struct channel_head *h = channel_head(r->parts[1].channel);
    canary(r);
    u64 first = atomic_load(&h->heartbeat_ns), until = clock_ns() + 20 * NS_PER_S;
    while (atomic_load(&h->heartbeat_ns) < first + 400 * NS_PER_MS && clock_ns() < until) nap();
    assert_true(clock_ns() < until);
    canary(r);
    replica_end(r);
}

/* The first stage is as many steps ahead of the last as there may be in flight: it does not wait until that has taken them. */
static void test_stages_apart(void **state)
{
    (void)state;
    static u8 frame[3 * 4096];
    struct error err = {0};
    struct channel *c = channel_new(4096, &err);
    struct engine_boot b = {.group = {.tp = 1, .pp = 8}, .group_wait_ms = 1};
    for (u32 i = 0; i < 8; i++) b.group.rank[i] = i;
    b.group_bytes = coll_bytes(&b.group, 0);
    int fd = memory(b.group_bytes);
    struct group root, last;
    struct group_step s = {.frame = frame, .len = sizeof frame};
    channel_reset(c, &b);
    need(group_open(&root, c, fd, &err) == 0, &err);
    b.pp_rank = 7;
    channel_reset(c, &b);
    need(group_open(&last, c, fd, &err) == 0, &err);
    for (u8 i = 0; i < STEP_IN_FLIGHT_MOST; i++) {
        frame[sizeof frame - 1] = i;
        s = (struct group_step){.frame = frame, .len = sizeof frame};
        need(group_hand_on(&root, &s, &err) == 0, &err);
    }
    for (u8 i = 0; i < STEP_IN_FLIGHT_MOST; i++) {
        need(group_take(&last, &s, &err) == 0, &err);
        assert_int_equal(s.len, sizeof frame);
        assert_int_equal(((const u8 *)s.frame)[s.len - 1], i);
    }
    group_close(&root);
    group_close(&last);
    close(fd);
    channel_free(c);
}

/* A step waits for what the first stage makes of it, to go to another node with one wake-up; without rows it makes nothing. */
static void test_nothing_to_send_on(void **state)
{
    (void)state;
    struct replica *r = replica_start((struct start){.tp = 1, .pp = 2, .nodes = "01"});
    struct channel *c = r->parts[0].channel;
    struct pollfd bell = {.fd = channel_fd(c, FD_TO_AGENT), .events = POLLIN};
    assert_true(channel_agent_prepare_sleep(c));
    send(r, STEP_FORWARD);
    assert_int_equal(poll(&bell, 1, 10000), 1);
    channel_agent_woke(c);
    assert_true(receive(r));
    assert_int_equal(r->out.head->n, 0);
    replica_end(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_node),
        cmocka_unit_test(test_nodes),
        cmocka_unit_test(test_null),
        cmocka_unit_test(test_dead_row),
        cmocka_unit_test(test_dead_engine),
        cmocka_unit_test(test_stalled_engine),
        cmocka_unit_test(test_idle),
        cmocka_unit_test(test_stages_apart),
        cmocka_unit_test(test_nothing_to_send_on),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("group", tests, model_open_all, NULL);
}
