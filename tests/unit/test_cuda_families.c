/* The whole forward pass on CUDA (emulated) of models with experts and latent attention, against their reference checkpoints. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "cuda_reference.h"

static const char *const folders[] = {
    "mixtral",     "qwen2_moe",           "qwen3_moe",           "qwen3_moe_v5fused",
    "gpt_oss",     "gpt_oss_mxfp4",       "deepseek_v2",         "deepseek_v2_lite",
    "deepseek_v3", "deepseek_v3_noqlora", "deepseek_v3_fp8block"};

int main(void)
{
    struct CMUnitTest tests[COUNT_OF(folders)];
    cuda_begin();
    for (u32 i = 0; i < COUNT_OF(folders); i++)
        tests[i] = (struct CMUnitTest){folders[i], test_folder, NULL, NULL, (void *)(uintptr_t)folders[i]};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("cuda_families", tests, NULL, NULL);
}
