/* config/: the flags of `vllm serve` and the options of Ray Serve. Each is accepted, ignored with a note, or refused with
 * what to do instead; nothing in between. */
#include "config/options.h"
#include "folder.h"

#define MODEL "/models/tiny"

enum verdict { ACCEPTED, NOTED, REFUSED, WRONG }; /* WRONG: the option exists, the value is not possible */
struct flag {
    const char *name, *value; /* NULL: takes none */
    enum verdict verdict;
};

/* clang-format off */
static const struct flag flags[] = {
    {"--model", "m", ACCEPTED}, {"--served-model-name", "a", ACCEPTED},
    {"--tokenizer", "x", REFUSED}, {"--hf-config-path", "x", REFUSED}, {"--revision", "x", NOTED}, {"--trust-remote-code", NULL, NOTED}, {"--load-format", "auto", ACCEPTED}, {"--download-dir", "x", NOTED},
    {"--config", "FILE", ACCEPTED},
    {"--host", "127.0.0.1", ACCEPTED}, {"--port", "8000", ACCEPTED}, {"--uds", "x", REFUSED},
    {"--api-key", "none", ACCEPTED}, {"--api-key", "sk-1234567890", WRONG}, {"--api-key-file", "x", ACCEPTED},
    {"--ssl-keyfile", "x", REFUSED}, {"--ssl-certfile", "x", REFUSED}, {"--ssl-ca-certs", "x", REFUSED}, {"--ssl-cert-reqs", "0", REFUSED}, {"--ssl-ciphers", "x", REFUSED}, {"--enable-ssl-refresh", NULL, REFUSED},
    {"--root-path", "/x", REFUSED},
    {"--allowed-origins", "x", REFUSED}, {"--allowed-methods", "x", REFUSED}, {"--allowed-headers", "x", REFUSED}, {"--allow-credentials", NULL, REFUSED},
    {"--enable-request-id-headers", NULL, NOTED},
    {"--middleware", "x", NOTED}, {"--disable-fastapi-docs", NULL, NOTED}, {"--enable-offline-docs", NULL, NOTED},
    {"--uvicorn-log-level", "info", NOTED}, {"--disable-uvicorn-access-log", NULL, NOTED}, {"--disable-access-log-for-endpoints", "/health", NOTED},
    {"--h11-max-incomplete-event-size", "65536", ACCEPTED}, {"--h11-max-header-count", "256", ACCEPTED},
    {"--sse-keep-alive-interval", "5", ACCEPTED},
    {"--tensor-parallel-size", "1", ACCEPTED}, {"-tp", "1", ACCEPTED}, {"--tensor-parallel-size", "2", ACCEPTED},
    {"--pipeline-parallel-size", "1", ACCEPTED}, {"-pp", "1", ACCEPTED}, {"-pp", "2", ACCEPTED},
    {"--data-parallel-size", "2", ACCEPTED}, {"-dp", "2", ACCEPTED},
    {"--data-parallel-size-local", "0", ACCEPTED}, {"-dpl", "1", ACCEPTED},
    {"--data-parallel-address", "localhost", ACCEPTED}, {"-dpa", "127.0.0.1", ACCEPTED}, {"--data-parallel-rpc-port", "29550", NOTED}, {"-dpp", "29550", NOTED},
    {"--data-parallel-backend", "ray", NOTED}, {"-dpb", "mp", NOTED}, {"-dpb", "mpi", NOTED},
    {"--data-parallel-rank", "0", REFUSED}, {"-dpn", "0", REFUSED}, {"--data-parallel-start-rank", "0", REFUSED}, {"-dpr", "0", REFUSED},
    {"--data-parallel-hybrid-lb", NULL, REFUSED}, {"-dph", NULL, REFUSED}, {"--data-parallel-external-lb", NULL, REFUSED}, {"-dpe", NULL, REFUSED},
    {"--api-server-count", "4", REFUSED}, {"--api-server-count", "1", NOTED}, {"-asc", "4", REFUSED},
    {"--headless", NULL, REFUSED},
    {"--distributed-executor-backend", "mp", NOTED},
    {"--nnodes", "2", NOTED}, {"--node-rank", "0", NOTED}, {"-r", "0", NOTED}, {"--master-addr", "x", NOTED}, {"--master-port", "1", NOTED},
    {"--enable-expert-parallel", NULL, REFUSED}, {"--no-enable-expert-parallel", NULL, NOTED}, {"--enable-eplb", NULL, REFUSED}, {"--all2all-backend", "x", NOTED},
    {"--decode-context-parallel-size", "2", REFUSED}, {"-dcp", "1", NOTED}, {"--prefill-context-parallel-size", "2", REFUSED}, {"-pcp", "1", NOTED},
    {"--max-model-len", "1k", ACCEPTED}, {"--max-model-len", "auto", ACCEPTED}, {"--max-model-len", "-1", WRONG},
    {"--max-num-seqs", "256", ACCEPTED}, {"--max-num-batched-tokens", "2048", ACCEPTED},
    {"--max-num-queued-reqs", "5", ACCEPTED}, {"--max-num-queued-tokens", "5", REFUSED},
    {"--scheduling-policy", "fcfs", ACCEPTED}, {"--scheduling-policy", "priority", ACCEPTED}, {"--scheduling-policy", "lifo", WRONG},
    {"--reservation-lease", "10", ACCEPTED}, {"--reservation-lease", "0.4", WRONG},
    {"--long-prefill-token-threshold", "0", NOTED}, {"--long-prefill-token-threshold", "9", REFUSED}, {"--stream-interval", "1", NOTED}, {"--stream-interval", "8", REFUSED}, {"--async-scheduling", NULL, NOTED}, {"--no-async-scheduling", NULL, NOTED},
    {"--enable-chunked-prefill", NULL, NOTED}, {"--no-enable-chunked-prefill", NULL, REFUSED}, {"--enable-prefix-caching", NULL, ACCEPTED}, {"--no-enable-prefix-caching", NULL, ACCEPTED},
    {"--prefix-caching-hash-algo", "sha256", NOTED},
    {"--gpu-memory-utilization", "0.9", ACCEPTED}, {"--kv-cache-memory-bytes", "1G", ACCEPTED}, {"--num-gpu-blocks-override", "9", REFUSED},
    {"--block-size", "16", ACCEPTED}, {"--kv-cache-dtype", "auto", ACCEPTED}, {"--kv-cache-dtype", "fp8", WRONG},
    {"--dtype", "auto", ACCEPTED}, {"--dtype", "float32", ACCEPTED}, {"--dtype", "float", ACCEPTED}, {"--dtype", "bfloat16", ACCEPTED}, {"--dtype", "fp8", WRONG},
    {"--quantization", "awq", ACCEPTED}, {"-q", "squeezellm", WRONG},
    {"--seed", "0", ACCEPTED},
    {"--enforce-eager", NULL, NOTED}, {"--no-enforce-eager", NULL, NOTED}, {"--compilation-config", "3", NOTED}, {"-cc", "3", NOTED}, {"-O", "3", NOTED}, {"-O3", NULL, NOTED},
    {"--max-logprobs", "20", ACCEPTED}, {"--logprobs-mode", "raw_logprobs", NOTED}, {"--logprobs-mode", "processed_logits", REFUSED},
    {"--generation-config", "auto", ACCEPTED}, {"--generation-config", "vllm", ACCEPTED}, {"--generation-config", "folder", WRONG}, {"--override-generation-config", "{}", REFUSED},
    {"--chat-template-content-format", "auto", NOTED}, {"--chat-template-content-format", "openai", REFUSED}, {"--trust-request-chat-template", NULL, REFUSED}, {"--default-chat-template-kwargs", "{}", REFUSED},
    {"--response-role", "assistant", NOTED}, {"--response-role", "x", REFUSED},
    {"--enable-auto-tool-choice", NULL, REFUSED}, {"--tool-call-parser", "hermes", REFUSED}, {"--reasoning-parser", "qwen3", REFUSED}, {"--structured-outputs-config", "{}", REFUSED},
    {"--enable-prompt-tokens-details", NULL, NOTED}, {"--enable-force-include-usage", NULL, REFUSED}, {"--return-tokens-as-token-ids", NULL, REFUSED}, {"--enable-server-load-tracking", NULL, NOTED},
    {"--enable-log-requests", NULL, REFUSED}, {"--enable-log-outputs", NULL, REFUSED}, {"--no-enable-log-requests", NULL, NOTED}, {"--max-log-len", "9", NOTED},
    {"--disable-log-stats", NULL, NOTED},
    {"--fingerprint-mode", "full", NOTED}, {"--fingerprint-mode", "x", REFUSED}, {"--fingerprint-value", "x", REFUSED},
    {"--enable-lora", NULL, NOTED}, {"--max-cpu-loras", "2", NOTED}, {"--fully-sharded-loras", NULL, NOTED}, {"--lora-dtype", "bfloat16", REFUSED}, {"--max-loras", "1", NOTED}, {"--max-lora-rank", "16", NOTED},
    {"--speculative-config", "{}", REFUSED}, {"-sc", "{}", REFUSED},
    {"--shutdown-timeout", "20", ACCEPTED},
    {"--show-hidden-metrics-for-version", "x", NOTED}, {"--otlp-traces-endpoint", "x", NOTED}, {"--kv-cache-metrics", NULL, NOTED},
};

/* Of a deployment in a job file, and what stands beside. */
static const struct flag ray_options[] = {
    {"num_replicas", "1", ACCEPTED}, {"num_replicas", "auto", ACCEPTED}, {"max_ongoing_requests", "5", ACCEPTED},
    {"max_queued_requests", "10", ACCEPTED}, {"max_queued_requests", "-1", WRONG},
    {"backpressure_config", "{status_code: 503, retry_after_s: 1}", REFUSED},
    {"graceful_shutdown_timeout_s", "20", ACCEPTED}, {"graceful_shutdown_wait_loop_s", "2", NOTED},
    {"health_check_period_s", "10", NOTED}, {"health_check_timeout_s", "30", REFUSED},
    {"request_router_config", "{request_router_class: x}", REFUSED}, {"router", "session", ACCEPTED},
    {"request_router_class", "PowerOfTwoChoicesRequestRouter", ACCEPTED}, {"request_router_class", "x", WRONG}, {"autoscaling_config", "{max_replicas: 2}", REFUSED},
    {"placement_group_bundles", "[{CPU: 1}]", REFUSED}, {"placement_group_strategy", "PACK", ACCEPTED},
    {"placement_group_strategy", "SPREAD", ACCEPTED}, {"gang_scheduling_config", "{gang_size: 1}", REFUSED},
    {"max_replicas_per_node", "1", REFUSED}, {"user_config", "{a: 1}", REFUSED}, {"logging_config", "{}", REFUSED},
    {"ray_actor_options", "{num_cpus: 1}", REFUSED}, {"rolling_update_percentage", "0.2", NOTED},
    {"max_surge_percent", "0.2", NOTED}, {"max_constructor_retry_count", "20", NOTED},
};
static const struct flag http_options[] = {
    {"host", "localhost", ACCEPTED}, {"port", "8000", ACCEPTED}, {"root_path", "/x", REFUSED},
    {"request_timeout_s", "5", ACCEPTED}, {"request_timeout_s", "null", ACCEPTED}, {"keep_alive_timeout_s", "90", ACCEPTED},
    {"ssl_keyfile", "x", REFUSED}, {"ssl_certfile", "x", REFUSED}, {"ssl_ca_certs", "x", REFUSED},
};
/* clang-format on */

static void judge(const struct flag *f, int rc, const struct config *c, const struct error *err)
{
    static const int codes[] = {
        [ACCEPTED] = 0, [NOTED] = 0, [REFUSED] = ERR_UNSUPPORTED, [WRONG] = ERR_INPUT};
    if (rc != codes[f->verdict] || (rc == 0 && c->n_notes != (f->verdict == NOTED)))
        fail_msg("%s %s: code %d, %d notes, %s: %s", f->name, f->value ? f->value : "", rc, c->n_notes,
                 rc ? err->where : "", rc ? err->message : "");
    if (rc < 0) assert_true(strlen(err->message) > 20 && !strstr(err->message, "sk-1"));
    if (f->verdict == NOTED) assert_non_null(strstr(c->notes[0], " is ignored: "));
}

static void flags_of_vllm(void **state)
{
    (void)state;
    char file[128];
    struct error err = {0};
    snprintf(file, sizeof(file), "%s/a.yaml", folder);
    assert_int_equal(file_write_whole(file, "", 0, 0600, &err), 0);
    for (size_t i = 0; i < COUNT_OF(flags); i++) {
        const struct flag *f = &flags[i];
        struct config c;
        const char *value = f->value && strcmp(f->value, "FILE") == 0 ? file : f->value;
        char *argv[] = {(char *)"mpiserve", (char *)MODEL, (char *)f->name, (char *)value};
        judge(f, config_load(&c, value ? 4 : 3, argv, strcmp(f->name, "--model") == 0 ? 2 : 1, &err), &c,
              &err);
        if (f->verdict == REFUSED || f->verdict == WRONG)
            assert_true(strcmp(err.where, f->name) == 0 ||
                        f->name[1] != '-'); /* -pp: where is the long name */
    }
}

/* vLLM takes underscores too, and its --config file has the same names. */
static void flags_of_vllm_in_a_file(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(flags); i++) {
        const struct flag *f = &flags[i];
        bool is_short = f->name[1] != '-', negated = strncmp(f->name, "--no-", 5) == 0;
        if (is_short || negated || strcmp(f->name, "--config") == 0) continue;
        struct config c;
        struct error err = {0};
        char text[256], path[128], name[96];
        snprintf(text, sizeof(text), "%s: %s\n", underscores(f->name + 2, name, sizeof(name)),
                 f->value ? f->value : "true");
        snprintf(path, sizeof(path), "%s/b.yaml", folder);
        assert_int_equal(file_write_whole(path, text, strlen(text), 0600, &err), 0);
        char *argv[] = {(char *)"mpiserve", path, (char *)MODEL};
        judge(f, config_load(&c, 3, argv, 1, &err), &c, &err);
    }
}

static void in_map(const struct flag *list, size_t n, const char *form)
{
    for (size_t i = 0; i < n; i++) {
        struct config c;
        struct error err = {0};
        struct buf text = {0};
        char path[128];
        buf_text(&text, form);
        buf_printf(&text, "%s: %s\n", list[i].name, list[i].value);
        snprintf(path, sizeof(path), "%s/c.yaml", folder);
        assert_int_equal(file_write_whole(path, text.data, text.len, 0600, &err), 0);
        buf_release(&text);
        char *argv[] = {(char *)"mpiserve", path, (char *)MODEL};
        judge(&list[i], config_load(&c, 3, argv, 1, &err), &c, &err);
    }
}

static void options_of_ray_serve(void **state)
{
    (void)state;
    in_map(ray_options, COUNT_OF(ray_options), "deployments:\n  - ");
    in_map(http_options, COUNT_OF(http_options), "http_options:\n  ");
}

/* Every note has its line in the log: none is lost. */
static void all_notes_fit(void **state)
{
    (void)state;
    char *argv[2 * COUNT_OF(flags) + 2] = {(char *)"mpiserve", (char *)MODEL};
    int argc = 2, wanted = 0;
    for (size_t i = 0; i < COUNT_OF(flags); i++) {
        if (flags[i].verdict != NOTED) continue;
        wanted++;
        argv[argc++] = (char *)flags[i].name;
        if (flags[i].value) argv[argc++] = (char *)flags[i].value;
    }
    struct config c;
    struct error err;
    assert_int_equal(config_load(&c, argc, argv, 1, &err), 0);
    assert_int_equal(c.n_notes, wanted);
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flags_of_vllm),
        cmocka_unit_test(flags_of_vllm_in_a_file),
        cmocka_unit_test(options_of_ray_serve),
        cmocka_unit_test(all_notes_fit),
    };
    return cmocka_run_group_tests_name("config_flags", tests, folder_make, folder_drop);
}
