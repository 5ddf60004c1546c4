/* The whole forward pass on CUDA (emulated) against the reference checkpoints without experts and latent attention (those:
 * test_cuda_families); blocks that are copied; what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "cuda_reference.h"

static const char *const folders[] = {"llama_tied_llama3",
                                      "llama_untied_sharded",
                                      "llama_v5style",
                                      "mistral_swa16",
                                      "qwen2_bias",
                                      "qwen3_headdim32",
                                      "llama_dynamic",
                                      "gemma2",
                                      "gemma3_text",
                                      "phi3_swa",
                                      "phi3_longrope_partial",
                                      "qwen3_fp8block",
                                      "qwen3_awq",
                                      "llama_gptq",
                                      "llama_gptq_v2",
                                      "llama_gptq_act",
                                      "olmo2"};

/* Blocks that are copied and zeroed are the device's. */
static void test_blocks(void **state)
{
    struct reference ref;
    struct engine e;
    (void)state;
    reference_read(&ref, folders[0]);
    engine_start(&e, ref.dir, COMPUTE_F32, 64);
    const struct prompt *p = &ref.prompts[2];
    struct fwd_seq seq = runner_seq(&e.on.r, 0, p->ids, 0, p->n),
                   last = runner_seq(&e.on.r, 1, p->ids + p->n - 1, p->n - 1, 1);
    u32 vocab = e.on.r.config.vocab;
    float *first = malloc(vocab * sizeof *first);
    memcpy(first, fetch(&e, forward_run(e.on.r.forward, &seq, 1), 1), vocab * sizeof *first);
    for (u32 b = 0; b <= (p->n - 1) / RUNNER_BLOCK; b++)
        forward_copy_block(e.on.r.forward, e.on.r.blocks[1][b], e.on.r.blocks[0][b]);
    assert_near(&e, "from copied blocks", fetch(&e, forward_run(e.on.r.forward, &last, 1), 1), first, vocab);
    forward_zero_block(e.on.r.forward, e.on.r.blocks[1][0]);
    const float *zeroed = fetch(&e, forward_run(e.on.r.forward, &last, 1), 1);
    double most = 0;
    for (u32 i = 0; i < vocab; i++) most = fmax(most, fabs((double)zeroed[i] - first[i]));
    assert_true(most > e.tolerance);
    free(first);
    engine_stop(&e);
    reference_release(&ref);
}

/* What kernels cannot take is refused before anything is allocated. */
static void test_refused(void **state)
{
    struct error err = {0};
    struct reference ref;
    (void)state;
    reference_read(&ref, folders[0]);
    struct model_config c = reference_config(&ref);
    struct forward_spec spec = {.config = &c, .shard = shard_whole(&c)};
    assert_int_equal(forward_check_device(&spec, &err), 0);
    c.load.weights = DTYPE_I4;
    assert_int_equal(forward_check_device(&spec, &err), ERR_UNSUPPORTED);
    assert_string_equal(err.message, "--quantization: on CPUs only; leave out --engine cuda");
    c.load = (struct model_load){.kv_set = true, .kv = DTYPE_I8};
    assert_int_equal(forward_check_device(&spec, &err), ERR_UNSUPPORTED);
    assert_string_equal(err.message,
                        "a KV cache of another format than --compute: on CPUs only; leave out --engine cuda");
    c.load = (struct model_load){.kv_set = true, .kv = DTYPE_F32};
    assert_int_equal(forward_check_device(&spec, &err), 0);
    c.mla = (struct mla_config){.kv_rank = 512, .rope = 128};
    assert_int_equal(forward_check_device(&spec, &err), ERR_UNSUPPORTED);
    assert_string_equal(err.message, "512 and 128 of the rope: on devices 576 together");
    c.mla = (struct mla_config){.kv_rank = 36};
    assert_int_equal(forward_check_device(&spec, &err), ERR_UNSUPPORTED);
    assert_string_equal(err.where, "kv_lora_rank");
    c.mla = (struct mla_config){0};
    spec.shard.ffn.n = 100;
    assert_int_equal(forward_check_device(&spec, &err), ERR_UNSUPPORTED);
    assert_string_equal(err.where, "intermediate_size");
    reference_release(&ref);
}

int main(void)
{
    cuda_begin();
    struct CMUnitTest tests[COUNT_OF(folders) + 2] = {cmocka_unit_test(test_blocks),
                                                      cmocka_unit_test(test_refused)};
    for (u32 i = 0; i < COUNT_OF(folders); i++)
        tests[2 + i] =
            (struct CMUnitTest){folders[i], test_folder, NULL, NULL, (void *)(uintptr_t)folders[i]};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("cuda_forward", tests, NULL, NULL);
}
