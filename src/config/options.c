/* Every option of the program, once. Command line, environment, job files, --help, README, schema and the checks
 * read this table; after a change of it: make docs. */
#include "config/options.h"

#define AT(field)       offsetof(struct config, field), sizeof(((struct config *)0)->field)
#define KIB             1024ll
#define OPTION_FOR_PLAN (OPTION_LOCAL | OPTION_UP | OPTION_NO_FILE | OPTION_PLAN)

const char *const option_group_names[GROUP_COUNT] = {
    [GROUP_MODEL] = "Model",
    [GROUP_PARALLEL] = "Parallel shape",
    [GROUP_SCHEDULER] = "Scheduler of a replica",
    [GROUP_LIMITS] = "Routing, queues and limits",
    [GROUP_HTTP] = "HTTP",
    [GROUP_OPERATION] = "Operation",
    [GROUP_UP] = "Only for `mpiserve up` and `mpiserve plan`",
    [GROUP_PLAN] = "Only for `mpiserve plan`: the machines that it plans for",
};

/* name, other names, kind, group, flags, place, then .low .high .standard .word .words .help */
const struct option option_table[] = {
    {"model", "-m", OPTION_TEXT, GROUP_MODEL, OPTION_LOCAL | OPTION_PATH, AT(model), .standard = "",
     .sample = "demo-model",
     .help = "Folder with config.json, tokenizer.json and *.safetensors; the same as the argument MODEL. "
             "Without it the demo model is served."},
    {"served-model-name", "", OPTION_NAMES, GROUP_MODEL, OPTION_LOCAL, AT(served_model_name), .standard = "",
     .sample = "[my-model, gpt-4o]",
     .help = "Names that clients may use (up to 8); the first is the one in answers. Without it: the last "
             "part of "
             "the folder's name."},
    {"lora-modules", "", OPTION_MODULES, GROUP_MODEL, OPTION_LOCAL, AT(lora_modules), .standard = "",
     .sample = "{sql: adapters/sql}",
     .help = "LoRA adapters, NAME=FOLDER each, as often as needed (up to 32): PEFT folders that are served "
             "beside the model, each under its own name. In a job file: a map of names to folders."},
    {"compute", "dtype", OPTION_CHOICE, GROUP_MODEL, 0, AT(compute), .words = "auto f32 bf16 f16",
     .standard = "auto", .same = "float32=f32 float=f32 bfloat16=bf16 float16=f16 half=f16",
     .help = "Number format of activations. auto: bf16 where the CPU multiplies bf16, else f32, and f32 for "
             "models whose config.json says float32; on GPUs bf16. f16: on GPUs only. On GPUs it is also the "
             "format of weights."},
    {"quantization", "-q", OPTION_CHOICE, GROUP_MODEL, 0, AT(quantization),
     .words = "auto int8 int4 fp8 awq gptq mxfp4", .standard = "auto", .same = "none=auto None=auto",
     .help = "Weights of the layers in memory. auto: as they are stored; int8, int4: f32, f16 and bf16 ones "
             "become codes with a "
             "scale for 128 or 32 inputs, which costs some accuracy; fp8, awq, gptq, mxfp4: the same as auto "
             "for a folder whose "
             "weights are stored so, refused for others."},
    {"load-format", "", OPTION_CHOICE, GROUP_MODEL, 0, AT(load_format), .words = "auto dummy",
     .standard = "auto", .same = "safetensors=auto",
     .help = "dummy: random weights of the right shapes, for benchmarks; of the folder config.json and the "
             "tokenizer are read."},
    {"cpu-isa", "", OPTION_CHOICE, GROUP_MODEL, 0, AT(cpu_isa),
     .words = "auto portable avx2 avx512 avx512bf16", .standard = "auto",
     .help = "Highest instruction set that kernels may use. auto: the best that all ranks of the job have."},
    {"engine", "device", OPTION_CHOICE, GROUP_MODEL, 0, AT(engine), .words = "cpu cuda null",
     .standard = "cpu",
     .help = "What computes. cuda: a GPU for each engine, in builds with CUDA; null: nothing does, answers "
             "are letters; for benchmarks of all that is around "
             "the engine."},
    {"null-step-us", "", OPTION_INT, GROUP_MODEL, 0, AT(null_step_us), 0, 10000000, "0",
     .help = "With --engine null: microseconds that a step takes."},
    {"max-model-len", "", OPTION_SIZE, GROUP_MODEL, 0, AT(max_model_len), 1, 16 * KIB *KIB, "auto", "auto", 0,
     .help = "Longest sequence, prompt and answer together, in tokens. auto: what the model was made for."},
    {"generation-config", "", OPTION_SWITCH, GROUP_MODEL, 0, AT(generation_config), .words = "vllm auto",
     .standard = "auto",
     .help = "Sampling of requests that do not choose. auto: as the model's generation_config.json suggests; "
             "vllm: "
             "neutral (temperature 1)."},
    {"chat-template", "", OPTION_TEXT, GROUP_MODEL, OPTION_LOCAL | OPTION_PATH, AT(chat_template),
     .standard = "", .sample = "template.jinja",
     .help = "File with the chat template (Jinja). Without it: the one in the model's folder."},
    {"allow-special-tokens-in-messages", "", OPTION_FLAG, GROUP_MODEL, 0, AT(allow_special),
     .words = "false true", .standard = "false",
     .help = "The text of a control token (<|im_end|>) in a message becomes that token, as in other servers. "
             "Without it "
             "messages are text and nothing else: whoever writes one cannot end a turn or begin another."},
    {"seed", "", OPTION_INT, GROUP_MODEL, 0, AT(seed), 0, INT64_MAX, "random", "random", ABSENT,
     .help = "Start of the seeds drawn for requests that bring none. With a number, equal runs give equal "
             "seeds."},

    {"tensor-parallel-size", "-tp", OPTION_INT, GROUP_PARALLEL, 0, AT(tensor_parallel_size), 1, 4096, "1",
     .help = "Ranks that split every layer of a replica: they are on one node."},
    {"pipeline-parallel-size", "-pp", OPTION_INT, GROUP_PARALLEL, 0, AT(pipeline_parallel_size), 1, 4096, "1",
     .help = "Stages that the layers of a replica are divided into; each is tensor-parallel-size ranks of "
             "one node, and several nodes can hold a replica."},
    {"data-parallel-size", "-dp num-replicas", OPTION_INT, GROUP_PARALLEL, 0, AT(data_parallel_size), 1, 4096,
     "auto", "auto", ABSENT, .help = "Replicas. auto: as many as the ranks give."},
    {"data-parallel-size-local", "-dpl", OPTION_INT, GROUP_PARALLEL, 0, AT(data_parallel_size_local), 0, 4096,
     "auto", "auto", ABSENT,
     .help =
         "Replicas on the first node. 0: none there (in a job of one node: none on rank 0, which then only "
         "answers HTTP). auto: no constraint."},
    {"placement-group-strategy", "", OPTION_CHOICE, GROUP_PARALLEL, 0, AT(placement_group_strategy),
     .words = "PACK STRICT_PACK SPREAD STRICT_SPREAD", .standard = "PACK",
     .help = "How replicas lie over the nodes. PACK: on the fewest; SPREAD: one to each in turn; "
             "STRICT_PACK: all on one; "
             "STRICT_SPREAD: at most one on each. What a strict one cannot keep is refused."},
    {"data-parallel-address", "-dpa", OPTION_TEXT, GROUP_PARALLEL, 0, AT(data_parallel_address),
     .standard = "", .sample = "localhost",
     .help = "The first node, where rank 0 runs: a name, an address, localhost. Any other is an error. With "
             "--host "
             "0.0.0.0 it is the address in the endpoint file."},
    {"threads", "", OPTION_INT, GROUP_PARALLEL, 0, AT(threads), 1, 1024, "auto", "auto", 0,
     .help = "Threads of an engine. auto: its share of the node's cores."},

    {"max-num-seqs", "", OPTION_INT, GROUP_SCHEDULER, 0, AT(max_num_seqs), 1, 4096, "64",
     .help = "Sequences that a replica runs at the same time."},
    {"max-num-batched-tokens", "", OPTION_SIZE, GROUP_SCHEDULER, 0, AT(max_num_batched_tokens), 1, 65535,
     "512",
     .help = "Tokens of a step; at least --max-num-seqs. Prompts longer than this are read in several steps; "
             "encoders read "
             "each in one, so that this must be their --max-model-len or more."},
    {"block-size", "", OPTION_INT, GROUP_SCHEDULER, OPTION_POWER2, AT(block_size), 16, 256, "16",
     .help = "Tokens of a KV block; a power of two."},
    {"kv-cache-dtype", "", OPTION_CHOICE, GROUP_SCHEDULER, 0, AT(kv_cache_dtype),
     .words = "auto f32 bf16 f16 int8", .standard = "auto", .same = "float32=f32 bfloat16=bf16 float16=f16",
     .help = "Format of the KV cache. auto: that of --compute. int8: codes with a scale for each token and "
             "head."},
    {"enable-prefix-caching", "", OPTION_FLAG, GROUP_SCHEDULER, 0, AT(enable_prefix_caching),
     .words = "false true", .standard = "true",
     .help = "Keep full KV blocks of ended sequences while there is room, so that what begins with the same "
             "tokens is not computed again. Answers are the same without (--no-enable-prefix-caching)."},
    {"kv-cache-memory-bytes", "", OPTION_SIZE, GROUP_SCHEDULER, 0, AT(kv_cache_memory_bytes), 64 * KIB,
     KIB *KIB *KIB *KIB, "auto", "auto", 0,
     .help = "Memory for the KV cache of a replica, in bytes (512M, 4G). auto: enough for --max-num-seqs "
             "sequences of "
             "full length, at most a share of the memory (on a GPU: what --gpu-memory-utilization leaves)."},
    {"gpu-memory-utilization", "", OPTION_SHARE, GROUP_SCHEDULER, 0, AT(gpu_memory_utilization), 10, 1000,
     "0.9",
     .help =
         "With --engine cuda: the share of a GPU's memory that its engine may use for weights, work and "
         "KV cache. The rest of it stays free for NCCL and CUDA, also where others use a part of the GPU."},
    {"scheduling-policy", "", OPTION_CHOICE, GROUP_SCHEDULER, 0, AT(scheduling_policy),
     .words = "fcfs priority", .standard = "fcfs",
     .help = "Who is next, in the queue and in a replica. fcfs: who came first; priority: the lowest "
             "`priority` (field "
             "of a request, or header X-Vllm-Priority), then who came first."},
    {"max-logprobs", "", OPTION_INT, GROUP_SCHEDULER, 0, AT(max_logprobs), 0, 256, "20",
     .help = "Most log-probabilities a token that a request may ask for."},

    {"router", "request-router-class", OPTION_CHOICE, GROUP_LIMITS, 0, AT(router),
     .words = "power_of_two least_loaded round_robin session prefix_aware random", .standard = "power_of_two",
     .same = "PowerOfTwoChoicesRequestRouter=power_of_two",
     .help =
         "Which replica gets a request. power_of_two: the one of the ingress's own rank when it is idle, "
         "else of "
         "two random ones the less loaded; least_loaded: "
         "of all; round_robin: one after the other; session: requests of a session (`session_id` in the "
         "body, header X-Session-ID, else `user`) go to the same replica unless it is overloaded, others by "
         "power_of_two; prefix_aware: to the replica whose cache holds most of the prompt, unless it is "
         "overloaded; random: for comparison."},
    {"max-ongoing-requests", "", OPTION_INT, GROUP_LIMITS, 0, AT(max_ongoing_requests), 1, 1024, "auto",
     "auto", 0,
     .help = "Slots of a replica: requests it takes at the same time. auto: --max-num-seqs, at most 1024."},
    {"max-queued-requests", "max-num-queued-reqs", OPTION_INT, GROUP_LIMITS, 0, AT(max_queued_requests), 0,
     1000000, "256",
     .help = "Requests that may wait for a slot; more are refused with 503 and Retry-After. 0: none waits."},
    {"slo-ttft-ms", "", OPTION_INT, GROUP_LIMITS, 0, AT(slo_ttft_ms), 1, 3600000, "none", "none", 0,
     .help = "Service level: milliseconds to a request's first token. Metrics count who gets it; --admission "
             "slo keeps it."},
    {"slo-itl-ms", "", OPTION_INT, GROUP_LIMITS, 0, AT(slo_itl_ms), 1, 3600000, "none", "none", 0,
     .help = "Service level: milliseconds a token after the first, a request's mean. Metrics count who gets "
             "it."},
    {"admission", "", OPTION_CHOICE, GROUP_LIMITS, 0, AT(admission), .words = "none slo", .standard = "none",
     .help = "Who is let in. none: everybody for whom slots and queue have room; slo: of those only who is "
             "predicted to have the first token within --slo-ttft-ms; others get 429 with Retry-After at "
             "once."},
    {"queue-timeout", "queue-timeout-s", OPTION_SECONDS, GROUP_LIMITS, 0, AT(queue_timeout_s), 0, 86400000,
     "60", .help = "Longest wait for a slot, in seconds; then 503."},
    {"request-timeout", "request-timeout-s", OPTION_SECONDS, GROUP_LIMITS, 0, AT(request_timeout_s), 0,
     604800000, "0", .help = "Longest time of a request, in seconds; then 408. 0: no limit."},
    {"slot-lease", "slot-lease-s", OPTION_SECONDS, GROUP_LIMITS, 0, AT(slot_lease_s), 100, 60000, "2",
     .help = "Seconds after which a slot that was reserved and not used is taken back."},
    {"reservation-lease", "", OPTION_SECONDS, GROUP_LIMITS, 0, AT(reservation_lease_s), 500, 3600000, "30",
     .help = "Seconds after which a slot that a client holds by POST /v1/reservations is taken back at the "
             "latest; the "
             "client may use it in four fifths of that time."},
    {"step-timeout", "step-timeout-s", OPTION_SECONDS, GROUP_LIMITS, 0, AT(step_timeout_s), 1000, 3600000,
     "30",
     .help = "Seconds after which an engine that is silent in a step is taken for dead and started anew."},
    {"graceful-shutdown-timeout", "graceful-shutdown-timeout-s shutdown-timeout", OPTION_SECONDS,
     GROUP_LIMITS, 0, AT(graceful_shutdown_timeout_s), 0, 86400000, "20",
     .help = "Seconds that running requests have to finish when the job is asked to stop."},

    {"ingress", "", OPTION_CHOICE, GROUP_HTTP, 0, AT(ingress), .words = "head node", .standard = "head",
     .help =
         "Where HTTP is answered. head: on rank 0; node: on the first rank of every node, at the same port "
         "(with --port 0 each has its own, see /v1/topology); "
         "each serves all replicas."},
    {"host", "", OPTION_TEXT, GROUP_HTTP, 0, AT(host), .standard = "127.0.0.1",
     .help = "Address to listen on: 127.0.0.1 for this machine only, 0.0.0.0 for all interfaces."},
    {"port", "", OPTION_INT, GROUP_HTTP, 0, AT(port), 0, 65535, "8000",
     .help = "Port to listen on. 0: any free one."},
    {"api-key", "", OPTION_KEY, GROUP_HTTP, OPTION_LOCAL, AT(api_key), .standard = "", .sample = "none",
     .help =
         "`none`: ask for no key (only with an address of this machine itself). A key is never given on the "
         "command line, where others could read it: use the environment or --api-key-file. Without all of "
         "these a "
         "key is made for each job."},
    {"api-key-file", "", OPTION_TEXT, GROUP_HTTP, OPTION_LOCAL | OPTION_PATH, AT(api_key_file),
     .standard = "", .sample = "my-key",
     .help = "File that holds the key: one line, the key alone or `Authorization: Bearer KEY`."},
    {"http-threads", "", OPTION_INT, GROUP_HTTP, 0, AT(http_threads), 1, 64, "2",
     .help = "Threads that answer HTTP."},
    {"enable-admin", "", OPTION_FLAG, GROUP_HTTP, 0, AT(enable_admin), .words = "false true",
     .standard = "false", .help = "Offer POST /admin/drain to who has the key."},
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

    {"config", "", OPTION_TEXT, GROUP_OPERATION, OPTION_LOCAL | OPTION_NO_FILE, AT(config_file),
     .standard = "",
     .help = "A job file: YAML with these same names; the same as an argument that ends in .yaml. Paths in "
             "it are "
             "relative to its folder."},
    {"run-dir", "", OPTION_TEXT, GROUP_OPERATION, OPTION_LOCAL | OPTION_PATH, AT(run_dir), .standard = "",
     .sample = "/tmp/my-job",
     .help = "Folder for what belongs to this job: endpoint file, key, sockets, log. Without it: "
             "mpiserve-UID/JOB under $TMPDIR or /tmp."},
    {"log-level", "", OPTION_CHOICE, GROUP_OPERATION, OPTION_LOCAL, AT(log_level),
     .words = "error warning info debug", .standard = "info", .help = "How much is written to the log."},

    {"ranks", "-n -np", OPTION_INT, GROUP_UP, OPTION_LOCAL | OPTION_UP, AT(ranks), 1, 4096, "auto", "auto", 0,
     .help = "Ranks to start. auto: 8; for plan --ranks-per-node on every node."},
    {"hostfile", "", OPTION_TEXT, GROUP_UP, OPTION_LOCAL | OPTION_UP | OPTION_PATH, AT(hostfile),
     .standard = "", .sample = "hosts",
     .help =
         "File with the hosts to start ranks on, this one first: lines `NAME slots=RANKS`, as mpirun reads "
         "them. Other arguments for mpirun stand behind --: `mpiserve up -n 8 -- --map-by node`."},
    {"publish", "", OPTION_TEXT, GROUP_UP, OPTION_LOCAL | OPTION_UP | OPTION_PATH, AT(publish),
     .standard = "", .sample = "published",
     .help = "Folder that other machines see, for copies of the endpoint file and the key, and for the log. "
             "slurm/serve.slurm: ~/.mpiserve/JOBID."},
    {"mpirun", "", OPTION_TEXT, GROUP_UP, OPTION_LOCAL | OPTION_UP | OPTION_PATH | OPTION_NAMED, AT(mpirun),
     .standard = "mpirun",
     .help = "The mpirun of the MPI that this program was built with: a name in PATH or a path."},

    {"nodes", "", OPTION_INT, GROUP_PLAN, OPTION_FOR_PLAN, AT(nodes), 1, 65536, "1",
     .help = "Nodes, all alike."},
    {"ranks-per-node", "ntasks-per-node", OPTION_INT, GROUP_PLAN, OPTION_FOR_PLAN, AT(ranks_per_node), 1,
     4096, "auto", "auto", 0,
     .help = "Ranks of a node. auto: --ranks / --nodes, else one a GPU, else 8 on this machine and one a "
             "NUMA domain on others."},
    {"gpus-per-node", "", OPTION_INT, GROUP_PLAN, OPTION_FOR_PLAN, AT(gpus_per_node), 0, 64, "0",
     .help = "GPUs of a node: places one engine a GPU."},
    {"cores", "cores-per-node", OPTION_INT, GROUP_PLAN, OPTION_FOR_PLAN, AT(cores), 1, 1024, "auto", "auto",
     0, .help = "Cores of a node. auto: as on this machine."},
    {"numa", "numa-per-node", OPTION_INT, GROUP_PLAN, OPTION_FOR_PLAN, AT(numa), 1, 1024, "auto", "auto", 0,
     .help = "NUMA domains of a node, of equal size; needs --cores. auto: 1."},
    {"topology", "", OPTION_TEXT, GROUP_PLAN, OPTION_FOR_PLAN, AT(topology), .standard = "",
     .help = "A node in hwloc's words instead: \"numa:2 core:32 pu:2\"."},
    {"memory-per-node", "", OPTION_SIZE, GROUP_PLAN, OPTION_FOR_PLAN, AT(memory_per_node), KIB *KIB,
     KIB *KIB *KIB *KIB *KIB, "auto", "auto", 0,
     .help = "Memory of a node that is free for the job (512G). auto: what is free on this machine; not "
             "judged where --cores or "
             "--topology describe another one."},
    {"memory-per-gpu", "", OPTION_SIZE, GROUP_PLAN, OPTION_FOR_PLAN, AT(memory_per_gpu), KIB *KIB,
     KIB *KIB *KIB *KIB *KIB, "auto", "auto", 0,
     .help = "With --engine cuda: memory of a GPU (80G). auto: the least of this machine's GPUs; not judged "
             "where it has none."},
    {"json", "", OPTION_FLAG, GROUP_PLAN, OPTION_FOR_PLAN, AT(json), .words = "false true",
     .standard = "false", .help = "Print one JSON object instead of text."},
};
const size_t option_count = COUNT_OF(option_table);
_Static_assert(COUNT_OF(option_table) <= CONFIG_MAX_OPTIONS, "struct config has no room for the origins");
