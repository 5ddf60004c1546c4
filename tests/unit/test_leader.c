/* What a leader answers to a DISPATCH: runs it, refuses it, or says nothing because it runs already. The window is plain memory; batch,
 * engine and messages are this file's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "agent/leader_internal.h"
#include "slots/window.h"

#include <stdlib.h>
#include <string.h>

enum { SLOTS = 4, REPLICA = 0, EPOCH = 7, HEAD = 0 };

static u64 memory[SLOTS_PER_RANK];
static struct seat seat;
static struct agent agent;
static u32 n_added, n_refused, n_chunks;
static u64 ended; /* the request that batch_next_ended gives; 0: none */
static struct msg_refused refused;

/* ---- the window ----------------------------------------------------------------------------------------------*/
struct slot_window *slot_window_new(const struct slots_spec *spec, struct error *err)
{
    (void)spec, (void)err;
    return (struct slot_window *)memory;
}
void slot_window_free(struct slot_window *window)
{
    (void)window;
}
void slot_window_abandon(struct slot_window *window)
{
    (void)window;
}
u32 slot_window_ranks(const struct slot_window *window)
{
    (void)window;
    return 1;
}
u32 slot_window_rank(const struct slot_window *window)
{
    (void)window;
    return 0;
}
u64 slot_window_operations(const struct slot_window *window)
{
    (void)window;
    return 0;
}
int slot_window_cas(struct slot_window *window, u32 rank, u32 slot, u64 expected, u64 desired, u64 *old,
                    struct error *err)
{
    (void)window, (void)rank, (void)err;
    *old = memory[slot];
    if (*old == expected) memory[slot] = desired;
    return 0;
}
int slot_window_read(struct slot_window *window, u32 rank, u32 first, u32 n, u64 *out, struct error *err)
{
    (void)window, (void)rank, (void)err;
    memcpy(out, memory + first, n * sizeof *out);
    return 0;
}

/* ---- what a leader stands on ---------------------------------------------------------------------------------*/
void agent_send(struct agent *a, u32 to, enum message_type type, const void *head, size_t head_len,
                const void *body, size_t len)
{
    (void)a, (void)body, (void)len;
    assert_int_equal(to, HEAD);
    n_chunks += type == MSG_CHUNK;
    if (type != MSG_REFUSED) return;
    n_refused++;
    assert_int_equal(head_len, sizeof refused);
    memcpy(&refused, head, sizeof refused);
}
void agent_die(struct agent *a, const char *what, const struct error *err)
{
    (void)a;
    fail_msg("%s: %s", what, err->message);
    abort();
}
u32 agent_ingress_rank(const struct agent *a, u32 index)
{
    (void)a;
    return index;
}
void leader_publish(struct leader *l, u64 now_ns)
{
    (void)l, (void)now_ns;
}
u32 wire_rank(const struct wire *wire)
{
    (void)wire;
    return 0;
}
int supervise_init(struct leader *l, struct error *err)
{
    (void)err;
    l->state = REPLICA_UP;
    return 0;
}
int supervise_turn(struct leader *l, u64 now_ns)
{
    (void)l, (void)now_ns;
    return 0;
}
int proc_pid(const struct proc *p)
{
    (void)p;
    return 0;
}
int batch_add(struct batch *b, const struct request *r, u32 origin, u64 now_ns, struct error *err)
{
    (void)b, (void)r, (void)origin, (void)now_ns, (void)err;
    n_added++;
    return 0;
}
bool batch_cancel(struct batch *b, u64 request)
{
    (void)b, (void)request;
    return false;
}
void batch_free(struct batch *b)
{
    (void)b;
}
void batch_end_all(struct batch *b, enum finish how)
{
    (void)b, (void)how;
}
void batch_flush(struct batch *b, void (*fn)(void *arg, u32 origin, const void *msg, size_t len), void *arg)
{
    (void)b, (void)fn, (void)arg;
}
bool batch_has_output(const struct batch *b)
{
    (void)b;
    return false;
}
bool batch_next_ended(struct batch *b, u64 *request)
{
    (void)b;
    *request = ended;
    ended = 0;
    return *request != 0;
}
void batch_counts(const struct batch *b, struct batch_counts *out)
{
    (void)b;
    *out = (struct batch_counts){0};
}

/* ---- cases ---------------------------------------------------------------------------------------------------*/
static int open_leader(void **state)
{
    (void)state;
    n_added = n_refused = n_chunks = 0;
    ended = 0;
    agent = (struct agent){.seat = &seat, .max_ongoing = SLOTS, .n_ingresses = 1, .model.vocab = 100};
    static struct place_rank ranks[1] = {{.replica = REPLICA}};
    agent.plan.ranks = ranks;
    for (u32 i = 0; i < SLOTS_PER_RANK; i++) memory[i] = slot_word(EPOCH, SLOT_CLOSED, 0, 0);
    struct slots_spec spec = {.epoch = EPOCH, .lease_short_ns = NS_PER_S, .lease_long_ns = NS_PER_S};
    agent.slots = slots_new(&spec, NULL);
    assert_int_equal(leader_new(&agent, NULL), 0);
    leader_start(agent.leader);
    return 0;
}

static int close_leader(void **state)
{
    (void)state;
    leader_free(agent.leader);
    slots_abandon(agent.slots);
    return 0;
}

static struct slot_token reserve(void)
{
    struct slots_answer answer;
    assert_int_equal(slots_reserve(agent.slots, REPLICA, 0, SLOTS, SLOT_CLASS_SHORT, &answer, NULL), 0);
    assert_true(answer.accepted);
    return answer.token;
}

static void deliver(u64 id, struct slot_token token)
{
    static const i32 prompt[] = {1, 2, 3};
    struct request head = {
        .id = id,
        .n_samples = 1,
        .sampling = {.top_p = 1, .repetition_penalty = 1, .n_logprobs = -1, .max_tokens = 1}};
    struct request *r = request_build(&head, &(struct request_parts){.prompt = prompt, .n_prompt = 3});
    size_t len = sizeof(struct msg_dispatch) + r->bytes;
    struct msg_dispatch *m = mem_zero(1, len);
    m->token = token;
    m->origin = HEAD;
    memcpy(m + 1, r, r->bytes);
    leader_dispatch(agent.leader, HEAD, m, len);
    free(m);
    free(r);
}

static void finish(u64 id)
{
    ended = id;
    leader_turn(agent.leader, 1);
}

static void test_runs_and_ends(void **state)
{
    (void)state;
    struct slot_token token = reserve();
    deliver(1, token);
    assert_true(n_added == 1 && n_refused == 0);
    assert_int_equal(slot_word_state(memory[token.slot]), SLOT_RUNNING);
    finish(1);
    assert_int_equal(memory[token.slot], slot_word(EPOCH, SLOT_FREE, 0, token.seq + 1));
}

/* A refusal of what runs would make the head run it elsewhere as well. */
static void test_delivered_twice(void **state)
{
    (void)state;
    struct slot_token token = reserve();
    deliver(1, token);
    deliver(1, token);
    assert_true(n_added == 1 && n_refused == 0);
    /* the window was rebuilt: the same request runs in a later epoch, and the copy's token is stale */
    memory[token.slot] = slot_word(slot_epoch_after(EPOCH), SLOT_RUNNING, 0, token.seq);
    deliver(1, token);
    assert_true(n_added == 1 && n_refused == 0);
}

static void test_after_its_end(void **state)
{
    (void)state;
    struct slot_token token = reserve();
    deliver(1, token);
    finish(1);
    deliver(1, token); /* the head drops this answer: the request has ended there */
    assert_true(n_added == 1 && n_refused == 1);
    assert_int_equal(refused.why, REFUSED_STALE);
}

static void test_stale(void **state)
{
    (void)state;
    struct slot_token token = reserve(), other;
    deliver(1, token);
    deliver(2, token); /* another request with a used token */
    assert_true(n_added == 1 && n_refused == 1 && refused.request == 2);
    other = reserve();
    other.seq++;
    deliver(3, other);
    assert_true(n_added == 1 && n_refused == 2 && refused.request == 3);
    assert_memory_equal(&refused.token, &other, sizeof other);
    other.seq--;
    other.slot = SLOTS;
    deliver(4, other);
    assert_true(n_added == 1 && n_refused == 3 && refused.request == 4);
}

/* An ingress had the slot before it heard that the drain's time is over. */
static void test_after_the_drain(void **state)
{
    (void)state;
    struct slot_token token = reserve();
    leader_hurry(agent.leader);
    deliver(1, token);
    assert_true(n_added == 0 && n_refused == 1);
    assert_int_equal(refused.why, REFUSED_UNAVAILABLE);
    assert_int_equal(memory[token.slot], slot_word(EPOCH, SLOT_FREE, 0, token.seq + 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_runs_and_ends, open_leader, close_leader),
        cmocka_unit_test_setup_teardown(test_delivered_twice, open_leader, close_leader),
        cmocka_unit_test_setup_teardown(test_after_its_end, open_leader, close_leader),
        cmocka_unit_test_setup_teardown(test_stale, open_leader, close_leader),
        cmocka_unit_test_setup_teardown(test_after_the_drain, open_leader, close_leader),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("leader", tests, NULL, NULL);
}
