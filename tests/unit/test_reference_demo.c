/* The demo model's chats: greedy ids as the reference gives them, one at a time and eight at a time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "mpiserve/json.h"
#include "runner.h"

enum { CHATS = 40, LONGEST = 512 };

struct chat {
    i32 prompt[LONGEST], ids[LONGEST];
    u32 n_prompt, n_ids;
    double min_gap;
};
struct demo {
    struct runner runner;
    struct chat chats[CHATS];
};
struct run { /* a continuation in work */
    const struct chat *chat;
    i32 ids[LONGEST];
    u32 n;
};

static u32 read_ids(const struct json *from, i32 *to)
{
    u32 n = (u32)json_len(from);
    assert_in_range(n, 1, LONGEST);
    for (u32 i = 0; i < n; i++) to[i] = (i32)json_int(json_item(from, i), -1);
    return n;
}

static int demo_open(void **state)
{
    struct demo *d = mem_zero(1, sizeof *d);
    struct error err = {0};
    char dir[PATH_LEN], path[PATH_LEN + 32];
    snprintf(dir, sizeof dir, "%s/demo-model", data_dir("MPISERVE_JOBS", "jobs"));
    snprintf(path, sizeof path, "%s/expected.json", dir);
    struct json *root = json_read_file(path, 1 << 24, &err);
    runner_need(root != NULL, &err);
    assert_int_equal(json_len(root), CHATS);
    for (u32 i = 0; i < CHATS; i++) {
        const struct json *from = json_item(root, i);
        struct chat *c = &d->chats[i];
        c->n_prompt = read_ids(json_get(from, "prompt_ids"), c->prompt);
        c->n_ids = read_ids(json_get(from, "ids"), c->ids);
        c->min_gap = json_real(json_get(from, "min_gap"), -1);
    }
    json_drop(root);
    runner_load(&d->runner, dir);
    *state = d;
    return 0;
}

static int demo_close(void **state)
{
    struct demo *d = *state;
    runner_unload(&d->runner);
    free(d);
    return 0;
}

/* Continues n chats together to their reference's length. */
static void run_chats(struct runner *r, struct run *runs, u32 n)
{
    struct fwd_seq seqs[RUNNER_SEQS];
    u32 who[RUNNER_SEQS];
    for (;;) {
        u32 rows = 0;
        for (u32 i = 0; i < n; i++) {
            const struct chat *c = runs[i].chat;
            u32 done = runs[i].n;
            if (done == c->n_ids) continue;
            seqs[rows] = done ? runner_seq(r, i, &runs[i].ids[done - 1], c->n_prompt + done - 1, 1)
                              : runner_seq(r, i, c->prompt, 0, c->n_prompt);
            who[rows++] = i;
        }
        if (!rows) return;
        const float *logits = forward_run(r->forward, seqs, rows);
        for (u32 k = 0; k < rows; k++) {
            struct run *x = &runs[who[k]];
            x->ids[x->n++] = best_token(logits + (size_t)k * r->config.vocab, r->config.vocab);
        }
    }
}

/* All chats whose margin is at least min_gap, `together` at a time; returns how many were compared. */
static u32 check_chats(struct demo *d, double min_gap, u32 together)
{
    struct run *runs = mem_zero(CHATS, sizeof *runs);
    u32 n = 0;
    for (u32 i = 0; i < CHATS; i++)
        if (d->chats[i].min_gap >= min_gap) runs[n++].chat = &d->chats[i];
    for (u32 i = 0; i < n; i += together) run_chats(&d->runner, runs + i, MIN_OF(together, n - i));
    for (u32 i = 0; i < n; i++)
        assert_memory_equal(runs[i].ids, runs[i].chat->ids, runs[i].n * sizeof *runs[i].ids);
    free(runs);
    return n;
}

static void check_compute(struct demo *d, enum compute compute, double min_gap, u32 chats)
{
    const char *levels[8];
    int n = runner_levels(levels);
    for (int i = n > 1; i < n; i++) { /* plain C is slow, and test_reference compares its bits */
        runner_start(&d->runner, levels[i], compute, 1, 4096);
        assert_int_equal(check_chats(d, min_gap, 1), chats);
        assert_int_equal(check_chats(d, min_gap, 8), chats);
    }
    runner_start(&d->runner, ops_cpu_best(), compute, 2, 64);
    assert_int_equal(check_chats(d, min_gap, 8), chats);
}

static void test_f32(void **state)
{
    check_compute(*state, COMPUTE_F32, 0.1, 39);
}

static void test_bf16(void **state)
{
    check_compute(*state, COMPUTE_BF16, 1, 38);
}

/* Threads change no bit: a prompt cut into steps large enough to be shared. */
static void test_threads(void **state)
{
    struct demo *d = *state;
    struct runner *r = &d->runner;
    u32 vocab = r->config.vocab;
    i32 tokens[200];
    float *first = malloc(COUNT_OF(tokens) * vocab * sizeof *first);
    for (u32 i = 0; i < COUNT_OF(tokens); i++) tokens[i] = (i32)(i * 7919 % vocab);
    for (int threads = 1; threads <= 5; threads += 2) {
        runner_start(r, ops_cpu_best(), COMPUTE_BF16, threads, COUNT_OF(tokens));
        struct fwd_seq all = runner_seq(r, 0, tokens, 0, COUNT_OF(tokens));
        const float *logits = forward_run_all(r->forward, &all, 1);
        if (threads == 1) memcpy(first, logits, COUNT_OF(tokens) * vocab * sizeof *first);
        assert_memory_equal(first, logits, COUNT_OF(tokens) * vocab * sizeof *first);
    }
    free(first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_f32), cmocka_unit_test(test_bf16),
                                       cmocka_unit_test(test_threads)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("reference_demo", tests, demo_open, demo_close);
}
