/* Every option of the program, once. Command line, environment, --help and the checks read this table. */
#include "config/options.h"

#define AT(field) offsetof(struct config, field), sizeof(((struct config *)0)->field)
#define KIB       1024ll

const char *const option_group_names[GROUP_COUNT] = {
    [GROUP_MODEL] = "Model",
    [GROUP_PARALLEL] = "Parallel shape",
    [GROUP_SCHEDULER] = "Scheduler of a replica",
    [GROUP_LIMITS] = "Queues and limits",
    [GROUP_HTTP] = "HTTP",
    [GROUP_OPERATION] = "Operation",
    [GROUP_UP] = "Only for `mpiserve up`",
};

/* name, other names, kind, group, flags, place, then .low .high .standard .word .words .help */
const struct option option_table[] = {
    {"model", "-m", OPTION_TEXT, GROUP_MODEL, 0, AT(model), .standard = "",
     .help = "Folder with config.json, tokenizer.json and *.safetensors; the same as the argument MODEL. "
             "Without it the demo model is served."},
    {"served-model-name", "", OPTION_NAMES, GROUP_MODEL, 0, AT(served_model_name), .standard = "",
     .help = "Names that clients may use (up to 8); the first is the one in answers. Without it: the last "
             "part of "
             "the folder's name."},
    {"compute", "", OPTION_CHOICE, GROUP_MODEL, 0, AT(compute), .words = "auto f32 bf16", .standard = "auto",
     .help = "Number format of activations. auto: bf16 where weights are bf16 and the CPU multiplies bf16, "
             "else f32."},
    {"cpu-isa", "", OPTION_CHOICE, GROUP_MODEL, 0, AT(cpu_isa),
     .words = "auto portable avx2 avx512 avx512bf16", .standard = "auto",
     .help = "Highest instruction set that kernels may use. auto: the best that all ranks of the job have."},
    {"max-model-len", "", OPTION_SIZE, GROUP_MODEL, 0, AT(max_model_len), 1, 16 * KIB *KIB, "auto", "auto", 0,
     .help = "Longest sequence, prompt and answer together, in tokens. auto: what the model was made for."},
    {"generation-config", "", OPTION_SWITCH, GROUP_MODEL, 0, AT(generation_config), .words = "vllm auto",
     .standard = "auto",
     .help = "Sampling of requests that do not choose. auto: as the model's generation_config.json suggests; "
             "vllm: "
             "neutral (temperature 1)."},
    {"seed", "", OPTION_INT, GROUP_MODEL, 0, AT(seed), 0, INT64_MAX, "random", "random", ABSENT,
     .help = "Start of the seeds drawn for requests that bring none. With a number, equal runs give equal "
             "seeds."},

    {"tensor-parallel-size", "-tp", OPTION_INT, GROUP_PARALLEL, 0, AT(tensor_parallel_size), 1, 4096, "1",
     .help = "Ranks that split every layer of a replica. Only 1 in this release."},
    {"pipeline-parallel-size", "-pp", OPTION_INT, GROUP_PARALLEL, 0, AT(pipeline_parallel_size), 1, 4096, "1",
     .help = "Stages of layers of a replica. Only 1 in this release."},
    {"data-parallel-size", "-dp", OPTION_INT, GROUP_PARALLEL, 0, AT(data_parallel_size), 1, 4096, "auto",
     "auto", ABSENT, .help = "Replicas. auto: as many as the ranks give."},
    {"data-parallel-size-local", "-dpl", OPTION_INT, GROUP_PARALLEL, 0, AT(data_parallel_size_local), 0, 4096,
     "auto", "auto", ABSENT,
     .help =
         "Replicas on the first node. 0: none there (in a job of one node: none on rank 0, which then only "
         "answers HTTP). auto: no constraint."},
    {"threads", "", OPTION_INT, GROUP_PARALLEL, 0, AT(threads), 1, 1024, "auto", "auto", 0,
     .help = "Threads of an engine. auto: its share of the node's cores."},

    {"max-num-seqs", "", OPTION_INT, GROUP_SCHEDULER, 0, AT(max_num_seqs), 1, 4096, "64",
     .help = "Sequences that a replica runs at the same time."},
    {"max-num-batched-tokens", "", OPTION_SIZE, GROUP_SCHEDULER, 0, AT(max_num_batched_tokens), 1, 65535,
     "512",
     .help =
         "Tokens of a step; at least --max-num-seqs. Prompts longer than this are read in several steps."},
    {"block-size", "", OPTION_INT, GROUP_SCHEDULER, OPTION_POWER2, AT(block_size), 16, 256, "16",
     .help = "Tokens of a KV block; a power of two."},
    {"kv-cache-memory-bytes", "", OPTION_SIZE, GROUP_SCHEDULER, 0, AT(kv_cache_memory_bytes), 64 * KIB,
     KIB *KIB *KIB *KIB, "auto", "auto", 0,
     .help = "Memory for the KV cache of a replica, in bytes (512M, 4G). auto: enough for --max-num-seqs "
             "sequences of "
             "full length, at most a share of the memory."},
    {"max-logprobs", "", OPTION_INT, GROUP_SCHEDULER, 0, AT(max_logprobs), 0, 256, "20",
     .help = "Most log-probabilities a token that a request may ask for."},

    {"max-ongoing-requests", "", OPTION_INT, GROUP_LIMITS, 0, AT(max_ongoing_requests), 1, 1024, "auto",
     "auto", 0,
     .help = "Slots of a replica: requests it takes at the same time. auto: --max-num-seqs, at most 1024."},
    {"max-queued-requests", "max-num-queued-reqs", OPTION_INT, GROUP_LIMITS, 0, AT(max_queued_requests), 0,
     1000000, "256",
     .help = "Requests that may wait for a slot; more are refused with 503 and Retry-After. 0: none waits."},
    {"queue-timeout", "queue-timeout-s", OPTION_SECONDS, GROUP_LIMITS, 0, AT(queue_timeout_s), 0, 86400000,
     "60", .help = "Longest wait for a slot, in seconds; then 503."},
    {"request-timeout", "request-timeout-s", OPTION_SECONDS, GROUP_LIMITS, 0, AT(request_timeout_s), 0,
     604800000, "0", .help = "Longest time of a request, in seconds; then 408. 0: no limit."},
    {"slot-lease", "slot-lease-s", OPTION_SECONDS, GROUP_LIMITS, 0, AT(slot_lease_s), 100, 60000, "2",
     .help = "Seconds after which a slot that was reserved and not used is taken back."},
    {"step-timeout", "step-timeout-s", OPTION_SECONDS, GROUP_LIMITS, 0, AT(step_timeout_s), 1000, 3600000,
     "30",
     .help = "Seconds after which an engine that is silent in a step is taken for dead and started anew."},
    {"graceful-shutdown-timeout", "graceful-shutdown-timeout-s shutdown-timeout", OPTION_SECONDS,
     GROUP_LIMITS, 0, AT(graceful_shutdown_timeout_s), 0, 86400000, "20",
     .help = "Seconds that running requests have to finish when the job is asked to stop."},

    {"host", "", OPTION_TEXT, GROUP_HTTP, 0, AT(host), .standard = "127.0.0.1",
     .help = "Address to listen on: 127.0.0.1 for this machine only, 0.0.0.0 for all interfaces."},
    {"port", "", OPTION_INT, GROUP_HTTP, 0, AT(port), 0, 65535, "8000",
     .help = "Port to listen on. 0: any free one."},
    {"api-key", "", OPTION_KEY, GROUP_HTTP, OPTION_LOCAL, AT(api_key), .standard = "",
     .help =
         "`none`: ask for no key (only with an address of this machine itself). A key is never given on the "
         "command line, where others could read it: use the environment or --api-key-file. Without all of "
         "these a "
         "key is made for each job."},
    {"api-key-file", "", OPTION_TEXT, GROUP_HTTP, OPTION_LOCAL, AT(api_key_file), .standard = "",
     .help = "File that holds the key: one line, the key alone or `Authorization: Bearer KEY`."},
    {"http-threads", "", OPTION_INT, GROUP_HTTP, 0, AT(http_threads), 1, 64, "2",
     .help = "Threads that answer HTTP."},
    {"enable-admin", "", OPTION_FLAG, GROUP_HTTP, 0, AT(enable_admin), .words = "off on", .standard = "off",
     .help = "Offer POST /admin/drain to who has the key."},
    {"max-connections", "", OPTION_INT, GROUP_HTTP, 0, AT(max_connections), 1, 65536, "1024",
     .help = "Connections open at the same time."},
    {"max-connections-per-client", "", OPTION_INT, GROUP_HTTP, 0, AT(max_connections_per_client), 0, 65536,
     "0",
     .help = "Connections that one address (of IPv6: one network of 64 bits) may have; requests on more are "
             "refused with 429. 0: no limit. Clients behind a proxy share its address."},
    {"max-header-bytes", "h11-max-incomplete-event-size", OPTION_SIZE, GROUP_HTTP, 0, AT(max_header_bytes),
     KIB, 16 * KIB *KIB, "16K",
     .help = "Largest request line and headers together; more is refused with 431, or 414 when it is the "
             "target."},
    {"max-header-count", "h11-max-header-count", OPTION_INT, GROUP_HTTP, 0, AT(max_header_count), 8, 10000,
     "100", .help = "Most headers of a request; more are refused with 431."},
    {"max-request-bytes", "", OPTION_SIZE, GROUP_HTTP, 0, AT(max_request_bytes), KIB, KIB *KIB *KIB, "32M",
     .help = "Largest body of a request; more is refused with 413."},
    {"header-timeout", "header-timeout-s", OPTION_SECONDS, GROUP_HTTP, 0, AT(header_timeout_s), 1000,
     86400000, "30",
     .help = "Seconds in which the headers of a request must come, from their first byte; then 408."},
    {"body-timeout", "body-timeout-s", OPTION_SECONDS, GROUP_HTTP, 0, AT(body_timeout_s), 1000, 86400000,
     "300", .help = "Seconds in which the body of a request must come; then 408."},
    {"keep-alive-timeout", "keep-alive-timeout-s", OPTION_SECONDS, GROUP_HTTP, 0, AT(keep_alive_timeout_s),
     1000, 86400000, "75", .help = "Seconds after which an idle connection is closed."},
    {"sse-keep-alive-interval", "", OPTION_SECONDS, GROUP_HTTP, 0, AT(sse_keep_alive_interval_s), 0, 3600000,
     "15", .help = "Seconds between comment lines in a stream that has nothing to say. 0: none."},

    {"run-dir", "", OPTION_TEXT, GROUP_OPERATION, OPTION_LOCAL, AT(run_dir), .standard = "",
     .help = "Folder for what belongs to this job: endpoint file, key, sockets, log. Without it: "
             "mpiserve-UID/JOB under $TMPDIR or /tmp."},
    {"log-level", "", OPTION_CHOICE, GROUP_OPERATION, OPTION_LOCAL, AT(log_level),
     .words = "error warning info debug", .standard = "info", .help = "How much is written to the log."},

    {"ranks", "-n -np", OPTION_INT, GROUP_UP, OPTION_LOCAL | OPTION_UP, AT(ranks), 1, 4096, "8",
     .help = "Ranks to start."},
    {"hostfile", "", OPTION_TEXT, GROUP_UP, OPTION_LOCAL | OPTION_UP, AT(hostfile), .standard = "",
     .help =
         "File with the hosts to start ranks on, this one first: lines `NAME slots=RANKS`, as mpirun reads "
         "them. Other arguments for mpirun stand behind --: `mpiserve up -n 8 -- --map-by node`."},
    {"mpirun", "", OPTION_TEXT, GROUP_UP, OPTION_LOCAL | OPTION_UP, AT(mpirun), .standard = "mpirun",
     .help = "The mpirun of the MPI that this program was built with: a name in PATH or a path."},
};
const size_t option_count = COUNT_OF(option_table);
