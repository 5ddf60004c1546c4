/* What users of other servers type, on the command line or in a file: accepted with a note when nothing changes by it,
 * refused with a reason else. */
#include "config/options.h"

#include <stdio.h>
#include <string.h>

#define NOTE(name, also, value, says)                                                                        \
    {                                                                                                        \
        name, also, value, false, NULL, says                                                                 \
    }
#define REFUSED(name, also, value, says)                                                                     \
    {                                                                                                        \
        name, also, value, true, NULL, says                                                                  \
    }
/* fine: values that say what happens anyway. */
#define ONLY(name, also, fine, says)                                                                         \
    {                                                                                                        \
        name, also, true, true, fine, says                                                                   \
    }
#define TLS     "there is no TLS yet: put a proxy in front, or listen on 127.0.0.1 and use a tunnel"
#define MPIRUN  "the job is one MPI job: mpirun says how many ranks run, and where"
#define LOCAL   "models are local folders here; nothing is downloaded, and no code of a model is run"
#define NO_GPU  "see --kv-cache-memory-bytes"
#define ONE_WAY "every rank of the job but the first is without HTTP"
#define FOLDER  "it is read from the model's folder: change it there"
#define EXPERTS "models with experts are not served yet"
#define ADAPTER "the adapters of --lora-modules are served, with whatever rank they have"
#define CORS    "browsers of other origins are not served yet: put a proxy in front"
#define NO_LOG  "no text of a request is ever logged; see --log-level"
#define ACCESS  "there is no access log; see --log-level"
#define PYTHON  "there is no Python here"
#define WATCHED "engines are watched all the time; see --step-timeout"
#define SHAPE   "an engine is one process on one rank: mpirun and --data-parallel-size say how many"

const struct foreign foreign_table[] = {
    /* vLLM: model */
    ONLY("tokenizer-mode", "", "auto", FOLDER),
    REFUSED("tokenizer", "", true, "the tokenizer is the one in the model's folder"),
    REFUSED("hf-config-path", "", true, "config.json is the one in the model's folder"),
    NOTE("trust-remote-code", "", false, LOCAL),
    NOTE("revision", "", true, LOCAL),
    NOTE("download-dir", "", true, LOCAL),
    REFUSED("override-generation-config", "", true,
            "edit generation_config.json, or use --generation-config vllm"),
    ONLY("chat-template-content-format", "", "auto", "the chat template decides"),
    REFUSED("trust-request-chat-template", "", false, "requests bring no templates; see --chat-template"),
    REFUSED("default-chat-template-kwargs", "", true, "requests bring chat_template_kwargs themselves"),
    ONLY("response-role", "", "assistant", "answers have the role assistant"),
    NOTE("enable-lora", "", false, ADAPTER),
    NOTE("max-loras", "", true, ADAPTER),
    NOTE("max-lora-rank", "", true, ADAPTER),
    NOTE("max-cpu-loras", "", true, ADAPTER),
    NOTE("fully-sharded-loras", "", false, "factors are divided as the products are"),
    ONLY("lora-dtype", "", "auto", "factors stay as they are stored"),
    REFUSED("speculative-config", "-sc", true,
            "drafts are not offered yet; leave it out, the answers are the same"),
    NOTE("enforce-eager", "-O0 -O1 -O2 -O3", false, "there is nothing to compile"),
    NOTE("compilation-config", "-cc -O", true, "there is nothing to compile"),

    /* vLLM: parallel shape */
    NOTE("distributed-executor-backend", "", true, "the job is always MPI"),
    NOTE("data-parallel-backend", "-dpb", true, "the job is always MPI"),
    NOTE("data-parallel-rpc-port", "-dpp", true, "MPI needs no port"),
    NOTE("nnodes", "", true, MPIRUN),
    NOTE("node-rank", "-r", true, MPIRUN),
    NOTE("master-addr", "", true, MPIRUN),
    NOTE("master-port", "", true, MPIRUN),
    REFUSED("data-parallel-rank", "-dpn", true, MPIRUN),
    REFUSED("data-parallel-start-rank", "-dpr", true, MPIRUN),
    REFUSED("data-parallel-hybrid-lb", "-dph", false, "rank 0 answers HTTP for the whole job"),
    REFUSED("data-parallel-external-lb", "-dpe", false, "rank 0 answers HTTP for the whole job"),
    ONLY("api-server-count", "-asc", "1", "rank 0 answers HTTP; see --http-threads"),
    REFUSED("headless", "", false, ONE_WAY),
    REFUSED("enable-expert-parallel", "", false, EXPERTS),
    REFUSED("enable-eplb", "", false, EXPERTS),
    NOTE("all2all-backend", "", true, EXPERTS),
    ONLY("decode-context-parallel-size", "-dcp", "1", "a sequence lives on one rank"),
    ONLY("prefill-context-parallel-size", "-pcp", "1", "a sequence lives on one rank"),

    /* vLLM: scheduler and memory */
    REFUSED("max-num-queued-tokens", "", true, "see --max-queued-requests"),
    ONLY("long-prefill-token-threshold", "", "0", "see --max-num-batched-tokens"),
    ONLY("stream-interval", "", "1", "every step's tokens are sent at once"),
    NOTE("async-scheduling", "", false, "the next step is planned as soon as it can be"),
    NOTE("enable-chunked-prefill", "", false, "always on"),
    REFUSED("no-enable-chunked-prefill", "", false, "prompts are always read in chunks"),
    NOTE("prefix-caching-hash-algo", "", true, "cached tokens are compared themselves"),
    REFUSED("num-gpu-blocks-override", "", true, NO_GPU),

    /* vLLM: answers */
    ONLY("logprobs-mode", "", "raw_logprobs",
         "log-probabilities are those of the model, before sampling's changes"),
    REFUSED("enable-auto-tool-choice", "", false, "tool calls are not offered yet"),
    REFUSED("tool-call-parser", "", true, "tool calls are not offered yet"),
    REFUSED("reasoning-parser", "", true, "reasoning is not split off yet"),
    REFUSED("structured-outputs-config", "", true, "constrained output is not offered yet"),
    NOTE("enable-prompt-tokens-details", "", false, "always on"),
    REFUSED("enable-force-include-usage", "", false,
            "requests ask for it: stream_options {\"include_usage\": true}"),
    REFUSED("return-tokens-as-token-ids", "", false, "requests ask for it: return_tokens_as_token_ids"),
    NOTE("enable-server-load-tracking", "", false, "always on"),
    ONLY("fingerprint-mode", "", "full", "system_fingerprint always names build, model and options"),
    REFUSED("fingerprint-value", "", true, "system_fingerprint always names build, model and options"),

    /* vLLM: HTTP and operation */
    REFUSED("uds", "", true, "use --host and --port"),
    REFUSED("ssl-keyfile", "ssl-key-file", true, TLS),
    REFUSED("ssl-certfile", "ssl-cert-file", true, TLS),
    REFUSED("ssl-ca-certs", "", true, TLS),
    REFUSED("ssl-cert-reqs", "", true, TLS),
    REFUSED("ssl-ciphers", "", true, TLS),
    REFUSED("enable-ssl-refresh", "", false, TLS),
    REFUSED("insecure", "", false,
            "other addresses than this machine's need a key, and have one without being asked"),
    REFUSED("root-path", "", true, "serve at the root of a host name"),
    REFUSED("allowed-origins", "", true, CORS),
    REFUSED("allowed-methods", "", true, CORS),
    REFUSED("allowed-headers", "", true, CORS),
    REFUSED("allow-credentials", "", false, CORS),
    NOTE("enable-request-id-headers", "", false, "always on"),
    NOTE("middleware", "", true, PYTHON),
    NOTE("disable-fastapi-docs", "", false, PYTHON),
    NOTE("enable-offline-docs", "", false, PYTHON),
    NOTE("uvicorn-log-level", "", true, ACCESS),
    NOTE("disable-uvicorn-access-log", "", false, ACCESS),
    NOTE("disable-access-log-for-endpoints", "", true, ACCESS),
    REFUSED("enable-log-requests", "", false, NO_LOG),
    REFUSED("enable-log-outputs", "", false, NO_LOG),
    NOTE("disable-log-requests", "", false, NO_LOG),
    NOTE("max-log-len", "", true, NO_LOG),
    NOTE("disable-log-stats", "", false, "figures are at /metrics, none are in the log"),
    NOTE("show-hidden-metrics-for-version", "", true, "there are none"),
    NOTE("otlp-traces-endpoint", "", true, "no traces are sent"),
    NOTE("kv-cache-metrics", "", false, "there are none"),

    /* Ray Serve */
    REFUSED("autoscaling-config", "", true, "the number of replicas is fixed: num_replicas"),
    REFUSED("backpressure-config", "", true,
            "a full queue answers 503 with Retry-After; see max_queued_requests"),
    NOTE("graceful-shutdown-wait-loop-s", "", true, "a drain ends with its last request"),
    NOTE("health-check-period-s", "", true, WATCHED),
    REFUSED("health-check-timeout-s", "", true, WATCHED),
    REFUSED("request-router-config", "", true,
            "write `router: NAME`; power_of_two is the default, as in Ray"),
    REFUSED("placement-group-bundles", "", true, SHAPE),
    REFUSED("gang-scheduling-config", "", true, "a replica is one rank in this release"),
    REFUSED("max-replicas-per-node", "", true, SHAPE),
    REFUSED("ray-actor-options", "", true, "see --threads and --kv-cache-memory-bytes"),
    REFUSED("user-config", "", true, "there is no code of yours to give it to"),
    REFUSED("logging-config", "", true, "see --log-level"),
    NOTE("rolling-update-percentage", "", true, "replicas are not replaced while the job runs"),
    NOTE("max-surge-percent", "", true, "replicas are not replaced while the job runs"),
    NOTE("max-constructor-retry-count", "", true,
         "an engine that cannot start is tried again, later and later"),
    REFUSED("applications", "", true, "put their deployments at the top: `deployments: [...]`"),
    REFUSED("import-path", "", true, "there is no Python here: name a model"),
    REFUSED("runtime-env", "", true, "set the environment of mpirun"),
    ONLY("route-prefix", "", "/", "serve at the root of a host name"),
    ONLY("proxy-location", "", "HeadOnly", "rank 0 answers HTTP for the whole job"),
    REFUSED("grpc-options", "", true, "there is only HTTP"),

    /* of later releases */
    REFUSED("survive", "", false, "the job ends with its first lost rank"),
};
const size_t foreign_count = COUNT_OF(foreign_table);

static bool is_fine(const struct foreign *f, const char *value)
{
    size_t len = value ? strlen(value) : 0;
    for (const char *p = f->fine ? f->fine : ""; len && *p; p += strcspn(p, " "), p += *p == ' ')
        if (strcspn(p, " ") == len && memcmp(p, value, len) == 0) return true;
    return false;
}

int foreign_use(struct config *c, const struct foreign *f, bool negated, const char *value, const char *where,
                struct error *err)
{
    if (f->refused && !negated && !is_fine(f, value))
        return error_set(err, ERR_UNSUPPORTED, where, "is not offered in this release: %s", f->says);
    if (c->n_notes < CONFIG_MAX_NOTES)
        snprintf(c->notes[c->n_notes++], sizeof(c->notes[0]), "%s is ignored: %s", where, f->says);
    return 0;
}
