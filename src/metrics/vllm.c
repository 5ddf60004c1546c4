/* The families of vLLM's dashboards: names, labels and bucket bounds as there, so that their queries work unchanged. */
#include "mpiserve/metrics.h"

const char *const METRICS_FINISHED_REASONS[4] = {"stop", "length", "abort", "error"};

static const double TOKENS[] = {1,    2,    5,    10,    20,    50,    100,    200,   500,
                                1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000};
static const double ITERATION[] = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
static const double SAMPLES[] = {1, 2, 5, 10, 20};
static const double FIRST[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                               1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
/* the first three are ours: a token often takes less than vLLM's first bound of 10 ms */
static const double DECODE[] = {.001, .0025, .005, .01, .025, .05, .075, .1, .15, .2, .3,
                                .4,   .5,    .75,  1,   2.5,  5,   7.5,  10, 20,  40, 80};
static const double LATENCY[] = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};

#define LABELS                                                                                               \
    {                                                                                                        \
        "model_name", "engine"                                                                               \
    }
#define BOUNDS(list) LABELS, (list), COUNT_OF(list)

static const struct metric_spec ROWS[VLLM_METRICS] = {
    [VLLM_REQUESTS_RUNNING] = {"vllm:num_requests_running", "Requests in the running batch.", METRIC_GAUGE,
                               LABELS, 0, 0},
    [VLLM_REQUESTS_WAITING] = {"vllm:num_requests_waiting", "Requests waiting to run.", METRIC_GAUGE, LABELS,
                               0, 0},
    [VLLM_KV_CACHE_USAGE] = {"vllm:kv_cache_usage_perc", "Used share of the KV cache, 1 = all.", METRIC_GAUGE,
                             LABELS, 0, 0},
    [VLLM_PREFIX_CACHE_QUERIES] = {"vllm:prefix_cache_queries",
                                   "Prompt tokens looked up in the prefix cache.", METRIC_COUNTER, LABELS, 0,
                                   0},
    [VLLM_PREFIX_CACHE_HITS] = {"vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.",
                                METRIC_COUNTER, LABELS, 0, 0},
    [VLLM_PREEMPTIONS] = {"vllm:num_preemptions", "Sequences set back to make room.", METRIC_COUNTER, LABELS,
                          0, 0},
    [VLLM_PROMPT_TOKENS] = {"vllm:prompt_tokens", "Prompt tokens of accepted requests.", METRIC_COUNTER,
                            LABELS, 0, 0},
    [VLLM_GENERATION_TOKENS] = {"vllm:generation_tokens", "Generated tokens.", METRIC_COUNTER, LABELS, 0, 0},
    [VLLM_PROMPT_TOKENS_CACHED] = {"vllm:prompt_tokens_cached", "Prompt tokens that needed no computing.",
                                   METRIC_COUNTER, LABELS, 0, 0},
    [VLLM_REQUEST_SUCCESS] = {"vllm:request_success",
                              "Finished sequences.",
                              METRIC_COUNTER,
                              {"model_name", "engine", "finished_reason"},
                              0,
                              0},
    [VLLM_REQUEST_PROMPT_TOKENS] = {"vllm:request_prompt_tokens", "Prompt tokens of a request.",
                                    METRIC_HISTOGRAM, BOUNDS(TOKENS)},
    [VLLM_REQUEST_GENERATION_TOKENS] = {"vllm:request_generation_tokens", "Generated tokens of a sequence.",
                                        METRIC_HISTOGRAM, BOUNDS(TOKENS)},
    [VLLM_REQUEST_MAX_TOKENS] = {"vllm:request_params_max_tokens", "max_tokens of a request.",
                                 METRIC_HISTOGRAM, BOUNDS(TOKENS)},
    [VLLM_REQUEST_N] = {"vllm:request_params_n", "n of a request.", METRIC_HISTOGRAM, BOUNDS(SAMPLES)},
    [VLLM_ITERATION_TOKENS] = {"vllm:iteration_tokens_total", "Tokens of a step.", METRIC_HISTOGRAM,
                               BOUNDS(ITERATION)},
    [VLLM_TIME_TO_FIRST_TOKEN] = {"vllm:time_to_first_token_seconds", "From the request to its first token.",
                                  METRIC_HISTOGRAM, BOUNDS(FIRST)},
    [VLLM_INTER_TOKEN_LATENCY] = {"vllm:inter_token_latency_seconds",
                                  "From a token to the next of its sequence.", METRIC_HISTOGRAM,
                                  BOUNDS(DECODE)},
    [VLLM_TIME_PER_OUTPUT_TOKEN] = {"vllm:request_time_per_output_token_seconds",
                                    "Mean time a token of a sequence, after the first.", METRIC_HISTOGRAM,
                                    BOUNDS(DECODE)},
    [VLLM_E2E_LATENCY] = {"vllm:e2e_request_latency_seconds", "From the request to the end of its answer.",
                          METRIC_HISTOGRAM, BOUNDS(LATENCY)},
    [VLLM_QUEUE_TIME] = {"vllm:request_queue_time_seconds", "Waiting to run.", METRIC_HISTOGRAM,
                         BOUNDS(LATENCY)},
    [VLLM_PREFILL_TIME] = {"vllm:request_prefill_time_seconds", "From running to the first token.",
                           METRIC_HISTOGRAM, BOUNDS(LATENCY)},
    [VLLM_DECODE_TIME] = {"vllm:request_decode_time_seconds", "From the first token to the last.",
                          METRIC_HISTOGRAM, BOUNDS(LATENCY)},
};

const struct metric_spec *metrics_vllm(enum vllm_metric which)
{
    BUG_ON((unsigned)which >= VLLM_METRICS);
    return &ROWS[which];
}
