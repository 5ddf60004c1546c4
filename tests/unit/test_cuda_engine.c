/* Steps in, results out, on CUDA (emulated): the reference's tokens, the draws of an engine on the CPU, the same again after a restart;
 * and whatever call of CUDA fails in a step, the engine ends with its name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "cuda_runner.h"
#include "reference.h"
#include "stepper_run.h"

enum { NUMERICS = 77, ROW_BLOCKS = 16, MOST_LOGPROBS = 5 };

struct fixture {
    struct reference ref;
    struct cuda_runner cuda;
    struct runner cpu;
    struct execute *x;
    struct stepper s;
    struct results_view out;
};

static void engine_start(struct fixture *f, bool on_device, const char *fault)
{
    struct error err = {0};
    execute_free(f->x);
    struct execute_spec spec = {.limits = {.max_rows = 8,
                                           .max_step_tokens = 256,
                                           .max_model_len = ROW_BLOCKS * RUNNER_BLOCK,
                                           .max_logprobs = MOST_LOGPROBS,
                                           .block_size = RUNNER_BLOCK,
                                           .n_blocks = 200,
                                           .vocab = f->cpu.config.vocab},
                                .forward = on_device ? f->cuda.r.forward : f->cpu.forward,
                                .pool = on_device ? NULL : f->cpu.pool,
                                .device = on_device ? f->cuda.device : NULL,
                                .gen = 1,
                                .numerics = NUMERICS};
    runner_need(!fault_parse(&spec.fault, fault, &err), &err);
    runner_need((f->x = execute_new(&spec, &err)) != NULL, &err);
    f->s = (struct stepper){.gen = 1, .numerics = NUMERICS, .id = 1};
}

static int set_up(void **state)
{
    struct fixture *f = *state = calloc(1, sizeof *f);
    reference_read(&f->ref, "qwen3_headdim32");
    runner_load(&f->cpu, f->ref.dir);
    runner_start(&f->cpu, "portable", COMPUTE_F32, 1, 256);
    cuda_runner_start(&f->cuda, f->ref.dir, COMPUTE_F32, 256);
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    execute_free(f->x);
    buf_release(&f->s.data);
    cuda_runner_stop(&f->cuda);
    runner_unload(&f->cpu);
    reference_release(&f->ref);
    free(f);
    return 0;
}

static const void *step(struct fixture *f, u32 kind)
{
    return stepper_run(&f->s, kind, f->x, &f->out);
}

static void add_prompt(struct fixture *f, u32 row, const struct sampling *p, const i32 *ids, u32 prompt_len,
                       u32 n)
{
    u32 blocks[ROW_BLOCKS];
    for (u32 i = 0; i < ROW_BLOCKS; i++) blocks[i] = 1 + row + i * 8;
    stepper_new(&f->s, row, 1, p, ids, prompt_len, n, ROW_BLOCKS * RUNNER_BLOCK);
    stepper_row(&f->s, row, 1, 0, n, WANT_SAMPLE, blocks, ROW_BLOCKS);
}

static i32 token_of(const struct fixture *f, u32 i)
{
    assert_int_equal(f->out.rows[i].flags, 0);
    return *(const i32 *)results_at(&f->out, f->out.rows[i].tokens);
}

/* All prompts at once, so many tokens of each, from what is emitted already. */
static void generate(struct fixture *f, const struct sampling *p, i32 out[PROMPTS][STEPS], u32 from, u32 to)
{
    for (u32 i = 0; i < PROMPTS; i++) {
        const struct prompt *q = &f->ref.prompts[i];
        i32 history[LONGEST];
        memcpy(history, q->ids, q->n * sizeof *history);
        memcpy(history + q->n, out[i], from * sizeof *history);
        struct sampling own = *p;
        own.seed += i;
        add_prompt(f, i, &own, history, q->n, q->n + from);
    }
    for (u32 t = from; t < to; t++) {
        assert_non_null(step(f, STEP_FORWARD));
        assert_int_equal(f->out.head->failed, 0);
        for (u32 i = 0; i < PROMPTS; i++) {
            out[i][t] = token_of(f, i);
            stepper_row(&f->s, i, 1, f->ref.prompts[i].n + t, 1, WANT_SAMPLE, NULL, 0);
        }
    }
    assert_non_null(step(f, STEP_FORWARD));
    for (u32 i = 0; i < PROMPTS; i++) stepper_free(&f->s, i, 1);
    assert_non_null(step(f, STEP_FORWARD));
}

static void test_reference_tokens(void **state)
{
    struct fixture *f = *state;
    struct sampling greedy = stepper_greedy();
    i32 out[PROMPTS][STEPS];
    engine_start(f, true, NULL);
    generate(f, &greedy, out, 0, STEPS);
    for (u32 i = 0; i < PROMPTS; i++) assert_memory_equal(out[i], f->ref.prompts[i].greedy, sizeof out[i]);
}

static void test_draws_of_the_cpu(void **state)
{
    struct fixture *f = *state;
    struct sampling p = {.temperature = 0.9f,
                         .top_p = 0.9f,
                         .repetition_penalty = 1.1f,
                         .presence_penalty = 0.3f,
                         .n_logprobs = -1,
                         .seed = 1234,
                         .max_tokens = 1000};
    i32 cpu[PROMPTS][STEPS], cuda[PROMPTS][STEPS], again[PROMPTS][STEPS];
    engine_start(f, false, NULL);
    generate(f, &p, cpu, 0, STEPS);
    engine_start(f, true, NULL);
    generate(f, &p, cuda, 0, STEPS);
    assert_memory_equal(cuda, cpu, sizeof cuda);
    memcpy(again, cuda, sizeof again);
    for (u32 i = 0; i < PROMPTS; i++) memset(again[i] + 10, 0, (STEPS - 10) * sizeof(i32));
    engine_start(f, true, NULL); /* died after ten tokens */
    generate(f, &p, again, 10, STEPS);
    assert_memory_equal(again, cpu, sizeof again);
}

static void test_logprobs(void **state)
{
    struct fixture *f = *state;
    const struct prompt *q = &f->ref.prompts[2];
    struct sampling p = stepper_greedy();
    struct token_logprob lists[2][1 + MOST_LOGPROBS];
    p.n_logprobs = MOST_LOGPROBS;
    for (int on_device = 0; on_device < 2; on_device++) {
        engine_start(f, on_device, NULL);
        add_prompt(f, 3, &p, q->ids, q->n, q->n);
        assert_non_null(step(f, STEP_FORWARD));
        assert_int_equal(f->out.rows[0].logprobs.len, 1 + MOST_LOGPROBS);
        memcpy(lists[on_device], results_at(&f->out, f->out.rows[0].logprobs), sizeof lists[0]);
    }
    for (u32 i = 0; i <= MOST_LOGPROBS; i++) {
        assert_int_equal(lists[1][i].id, lists[0][i].id);
        assert_int_equal(lists[1][i].rank, lists[0][i].rank);
        assert_true(fabsf(lists[1][i].logprob - lists[0][i].logprob) < 1e-3f);
    }
}

static void test_nan_and_canary(void **state)
{
    struct fixture *f = *state;
    const struct prompt *p = &f->ref.prompts[0], *q = &f->ref.prompts[1];
    struct sampling greedy = stepper_greedy();
    char fault[32];
    snprintf(fault, sizeof fault, "nan-token:%d", p->ids[p->n - 1]);
    engine_start(f, true, fault);
    assert_non_null(step(f, STEP_CANARY));
    assert_int_equal(f->out.head->failed, 0);
    add_prompt(f, 0, &greedy, p->ids, p->n, p->n);
    add_prompt(f, 1, &greedy, q->ids, q->n, q->n);
    assert_non_null(step(f, STEP_FORWARD));
    assert_int_equal(f->out.rows[0].flags, RESULT_NONFINITE);
    if (!f->out.rows[1].flags) assert_int_equal(token_of(f, 1), q->greedy[0]);
}

/* The n-th call of CUDA in a step fails, for every n: the engine is told to end, with CUDA's name and the step's number. */
static void test_errors(void **state)
{
    struct fixture *f = *state;
    const struct prompt *q = &f->ref.prompts[1];
    struct sampling greedy = stepper_greedy();
    u64 n = 1;
    for (;; n += 7) {
        cuda_runner_stop(&f->cuda); /* what failed is of no further use */
        cuda_runner_start(&f->cuda, f->ref.dir, COMPUTE_F32, 256);
        engine_start(f, true, NULL);
        assert_non_null(step(f, STEP_FORWARD));
        add_prompt(f, 0, &greedy, q->ids, q->n, q->n);
        cudasim_fail(n, 719);
        const void *out = step(f, STEP_FORWARD);
        cudasim_fail(0, 0);
        const struct error *e = execute_error(f->x);
        if (out) break;
        assert_int_equal(e->code, ERR_STATE);
        if (strncmp(e->message, "step 2: cudaErrorLaunchFailure in ", 34) &&
            !strstr(e->message, "cublasLt status"))
            fail_msg("%s", e->message);
        assert_null(step(f, STEP_FORWARD)); /* and nothing after it is done */
        execute_free(f->x);
        f->x = NULL;
    }
    assert_true(n > 30);
}

int main(void)
{
    cuda_begin();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_reference_tokens, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_draws_of_the_cpu, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_logprobs, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_nan_and_canary, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_errors, set_up, tear_down), /* the last: needs calls that fail */
    };
    size_t n = COUNT_OF(tests) - (cudasim_here() ? 0 : 1);
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return _cmocka_run_group_tests("cuda_engine", tests, n, NULL, NULL);
}
