/* What users of other servers type: accepted with a note when nothing changes by it, refused with a reason
 * else. */
#include "config/options.h"

#define NOTE(name, also, value, says)                                                                        \
    {                                                                                                        \
        name, also, value, false, says                                                                       \
    }
#define REFUSED(name, also, value, says)                                                                     \
    {                                                                                                        \
        name, also, value, true, says                                                                        \
    }
#define TLS     "there is no TLS yet: put a proxy in front, or listen on 127.0.0.1 and use a tunnel"
#define MPIRUN  "the job is one MPI job: mpirun says how many ranks run, and where"
#define LOCAL   "models are local folders here; nothing is downloaded, and no code of a model is run"
#define NO_GPU  "engines run on the CPU"
#define ONE_WAY "every rank of the job but the first is without HTTP"

const struct foreign foreign_table[] = {
    NOTE("distributed-executor-backend", "", true, "the job is always MPI"),
    NOTE("data-parallel-backend", "-dpb", true, "the job is always MPI"),
    NOTE("data-parallel-rpc-port", "-dpp", true, "MPI needs no port"),
    NOTE("nnodes", "", true, MPIRUN),
    NOTE("node-rank", "-r", true, MPIRUN),
    NOTE("master-addr", "", true, MPIRUN),
    NOTE("master-port", "", true, MPIRUN),
    NOTE("trust-remote-code", "", false, LOCAL),
    NOTE("revision", "", true, LOCAL),
    NOTE("load-format", "", true, LOCAL),
    NOTE("download-dir", "", true, LOCAL),
    NOTE("enforce-eager", "-O0 -O1 -O2 -O3", false, "there is nothing to compile"),
    NOTE("compilation-config", "-cc -O", true, "there is nothing to compile"),
    NOTE("middleware", "", true, "there is no Python here"),
    NOTE("disable-fastapi-docs", "", false, "there is no Python here"),
    NOTE("enable-offline-docs", "", false, "there is no Python here"),
    NOTE("enable-request-id-headers", "", false, "always on"),
    NOTE("enable-prompt-tokens-details", "", false, "always on"),
    NOTE("enable-server-load-tracking", "", false, "always on"),
    NOTE("enable-chunked-prefill", "", false, "always on"),
    NOTE("show-hidden-metrics-for-version", "", true, "there are none"),
    NOTE("kv-cache-metrics", "", false, "there are none"),

    REFUSED("data-parallel-rank", "-dpn", true, MPIRUN),
    REFUSED("data-parallel-start-rank", "-dpr", true, MPIRUN),
    REFUSED("data-parallel-hybrid-lb", "-dph", false, "rank 0 answers HTTP for the whole job"),
    REFUSED("data-parallel-external-lb", "-dpe", false, "rank 0 answers HTTP for the whole job"),
    REFUSED("api-server-count", "-asc", true, "rank 0 answers HTTP; see --http-threads"),
    REFUSED("headless", "", false, ONE_WAY),
    REFUSED("enable-expert-parallel", "", false, "models with experts are not served yet"),
    REFUSED("decode-context-parallel-size", "-dcp", true, "a sequence lives on one rank"),
    REFUSED("prefill-context-parallel-size", "-pcp", true, "a sequence lives on one rank"),
    REFUSED("gpu-memory-utilization", "", true, NO_GPU),
    REFUSED("num-gpu-blocks-override", "", true, NO_GPU "; see --kv-cache-memory-bytes"),
    REFUSED("dtype", "", true, "weights keep their format; see --compute for activations"),
    REFUSED("kv-cache-dtype", "", true, "the KV cache has the format of --compute"),
    REFUSED("quantization", "-q", true, "weights are f32 or bf16"),
    REFUSED("enable-prefix-caching", "", false, "there is no prefix cache yet; answers are the same without"),
    REFUSED("no-enable-chunked-prefill", "", false, "prompts are always read in chunks"),
    REFUSED("scheduling-policy", "", true, "requests run by priority, then by arrival"),
    REFUSED("override-generation-config", "", true,
            "edit generation_config.json, or use --generation-config vllm"),
    REFUSED("tokenizer", "", true, "the tokenizer is the one in the model's folder"),
    REFUSED("chat-template", "", true, "the chat template is the one in the model's folder"),
    REFUSED("enable-auto-tool-choice", "", false, "tool calls are not offered yet"),
    REFUSED("tool-call-parser", "", true, "tool calls are not offered yet"),
    REFUSED("reasoning-parser", "", true, "reasoning is not split off yet"),
    REFUSED("enable-lora", "", false, "adapters are not offered yet"),
    REFUSED("lora-modules", "", true, "adapters are not offered yet"),
    REFUSED("speculative-config", "-sc", true, "drafts are not offered yet"),
    REFUSED("config", "", true,
            "there are no configuration files yet: use options or MPISERVE_* in the environment"),
    REFUSED("uds", "", true, "use --host and --port"),
    REFUSED("insecure", "", false,
            "other addresses than this machine's need a key, and have one without being asked"),
    REFUSED("root-path", "", true, "serve at the root of a host name"),
    REFUSED("allowed-origins", "", true, "browsers of other origins are not served yet"),
    REFUSED("ssl-keyfile", "ssl-key-file", true, TLS),
    REFUSED("ssl-certfile", "", true, TLS),
    REFUSED("ssl-ca-certs", "", true, TLS),
    REFUSED("survive", "", false, "the job ends with its first lost rank"),
};
const size_t foreign_count = COUNT_OF(foreign_table);
