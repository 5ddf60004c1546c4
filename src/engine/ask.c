/* What a job's options ask of an engine: the job itself and `mpiserve plan` ask the same. */
#include "mpiserve/coll.h"
#include "mpiserve/config.h"
#include "mpiserve/engine.h"
#include "mpiserve/place.h"

#include <string.h>

void engine_ask_of(const struct config *c, const char *isa, struct engine_ask *out)
{
    *out = (struct engine_ask){.model = c->model,
                               .compute = strcmp(c->engine, "null") == 0 ? "null" : c->compute,
                               .quantization = c->quantization,
                               .load_format = c->load_format,
                               .kv_cache_dtype = c->kv_cache_dtype,
                               .isa = isa,
                               .adapters = c->lora_modules,
                               .n_adapters = (u32)c->n_lora_modules,
                               .block_size = (u32)c->block_size,
                               .max_model_len = (u32)c->max_model_len,
                               .tp = (u32)c->tensor_parallel_size,
                               .pp = (u32)c->pipeline_parallel_size,
                               .max_rows = (u32)c->max_num_seqs,
                               .max_step_tokens = (u32)MAX_OF(c->max_num_batched_tokens, c->max_num_seqs),
                               .max_logprobs = (u32)c->max_logprobs};
}

void engine_place_of(const struct config *c, struct place_spec *out)
{
    *out = (struct place_spec){.tp = c->tensor_parallel_size,
                               .pp = c->pipeline_parallel_size,
                               .dp = c->data_parallel_size,
                               .dp_local = c->data_parallel_size_local,
                               .max_group = COLL_MAX};
    BUG_ON(place_strategy_parse(c->placement_group_strategy, &out->strategy));
}
