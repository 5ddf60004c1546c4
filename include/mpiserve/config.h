/* config: every option of the program, from one table.
 *
 * The table (src/config/options.c) drives the command line, the environment (MPISERVE_<NAME>, dashes as
 * underscores), job files (YAML) and --help, the README's table, the JSON Schema of job files; precedence:
 * command line > environment > job file > default. A row: name, other names, kind,
 * group, range, default, where the value lives in struct config, help text. Unknown names, in the environment
 * and in job files too, are errors with the nearest known name. Dashes and underscores are the same in names;
 * `--name value` and `--name=value` too; `--no-name` turns a flag off. All values are checked for range before anything starts; an error names
 * the option, variable or FILE:LINE:COLUMN, the value, and the range. "Absent" is never the same as 0: such
 * options have ABSENT (-1) as default. An empty variable counts as not set. Options of other servers that change
 * nothing here are accepted with a note (struct config: notes), those that are not offered are refused with the
 * reason (src/config/foreign.c). Options of `mpiserve plan` are accepted by it alone. Thread rule: filled once at start, read-only afterwards.
 *
 * A job file (jobs/README.md) is named by --config or by an argument that ends in .yaml or .yml. Its paths are
 * relative to its own folder. */
#ifndef MPISERVE_CONFIG_H
#define MPISERVE_CONFIG_H

#include "mpiserve/base.h"

enum {
    ABSENT = -1,
    CONFIG_MAX_NAMES = 8,
    CONFIG_MAX_ADAPTERS = 32,
    CONFIG_MAX_NOTES = 64,
    CONFIG_MAX_OPTIONS = 96,
    CONFIG_RANKS = 8,
    CONFIG_KEY_MIN = 8,
    CONFIG_KEY_MAX = 200
};

enum config_source { FROM_DEFAULT, FROM_FILE, FROM_ENVIRONMENT, FROM_COMMAND_LINE };
struct config_origin {
    u8 source;
    i32 line, column; /* FROM_FILE: of the value */
};

struct config_adapter {
    char name[128], path[PATH_LEN]; /* what clients call it; a PEFT folder */
};
struct config {
    /* model */
    char model[PATH_LEN]; /* a folder; default: the demo model beside the program, then PREFIX/share */
    char served_model_name[CONFIG_MAX_NAMES]
                          [128]; /* first is the one in answers; default: last part of the folder's name */
    int n_served_model_names;
    struct config_adapter lora_modules[CONFIG_MAX_ADAPTERS]; /* requests name them by number, from 1 */
    int n_lora_modules;
    char compute[16];              /* auto, f32, bf16, f16 */
    char quantization[8];          /* auto, int8, int4, or how the folder has them: fp8, awq, gptq, mxfp4 */
    char load_format[8];           /* auto, dummy */
    char kv_cache_dtype[8];        /* auto, f32, bf16, f16, int8 */
    char engine[8];                /* cpu, cuda, null */
    double gpu_memory_utilization; /* 0.9 */
    i64 null_step_us;
    char cpu_isa[16];             /* auto, portable, avx2, avx512, avx512bf16: upper bound */
    i64 max_model_len;            /* 0: the model's */
    i64 seed;                     /* added to the seeds drawn for requests without one; ABSENT: random */
    bool generation_config;       /* use the model's suggested sampling as defaults (vLLM: --generation-config
                               auto|vllm) */
    char chat_template[PATH_LEN]; /* a file; "": the model's */
    bool allow_special;           /* text of control tokens in messages becomes tokens */
    /* parallel shape */
    i64 tensor_parallel_size, pipeline_parallel_size; /* 1 */
    i64 data_parallel_size;                           /* ABSENT: ranks / (tp * pp) */
    i64 data_parallel_size_local;                     /* ABSENT: no constraint; 0: rank 0 only serves HTTP */
    char placement_group_strategy[16];                /* PACK, STRICT_PACK, SPREAD, STRICT_SPREAD */
    char data_parallel_address[256];                  /* of rank 0's node; "": not said */
    i64 threads;                                      /* of an engine; 0: its share of the cores */
    /* scheduler */
    i64 max_num_seqs;           /* 64: rows of an engine */
    i64 max_num_batched_tokens; /* 512: tokens of a step */
    i64 block_size;             /* 16 */
    bool enable_prefix_caching;
    i64 kv_cache_memory_bytes;  /* 0: enough for max_num_seqs sequences of max_model_len, at most a share of
                                   memory */
    char scheduling_policy[16]; /* fcfs, priority */
    i64 max_logprobs;           /* 20 */
    /* routing and limits */
    char ingress[8];                    /* head, node */
    char router[16];                    /* a policy of route.h: power_of_two ... */
    i64 max_ongoing_requests;           /* slots of a replica; default: max_num_seqs, at most 1024 */
    i64 max_queued_requests;            /* at the ingress; 256; 0: none wait */
    i64 slo_ttft_ms, slo_itl_ms;        /* service levels in ms; 0: none */
    char admission[8];                  /* none, slo */
    double request_timeout_s;           /* 0: none */
    double queue_timeout_s;             /* longest wait for a slot: 60 */
    double graceful_shutdown_timeout_s; /* 20 */
    double slot_lease_s;                /* 2 */
    double reservation_lease_s;         /* 30: of slots that clients hold */
    double step_timeout_s;              /* 30: an engine silent for so long in a step is killed */
    /* HTTP */
    char host[256];                   /* 127.0.0.1 */
    i64 port;                         /* 8000; 0: any free port */
    i64 http_threads;                 /* 2 */
    i64 max_request_bytes;            /* 32 MiB */
    i64 max_connections;              /* 1024 */
    i64 max_connections_per_client;   /* 0: no limit */
    i64 max_header_bytes;             /* 16 KiB: request line and headers */
    i64 max_header_count;             /* 100 */
    double header_timeout_s;          /* 30: for request line and headers, from their first byte */
    double body_timeout_s;            /* 300: for the body */
    double keep_alive_timeout_s;      /* 75 */
    double sse_keep_alive_interval_s; /* 15; 0: off */
    /* At most one of the three is set; none of them: a key per job, written beside the endpoint file. */
    char api_key[CONFIG_KEY_MAX + 1]; /* from MPISERVE_API_KEY; see config_key */
    bool enable_admin;                /* POST /admin/drain */
    char api_key_file[PATH_LEN];
    bool api_key_none; /* --api-key none: loopback only */
    /* operation */
    char run_dir[PATH_LEN]; /* folder for this job's endpoint file, key, sockets; "": made under the temporary
                               folder */
    char log_level[16];     /* error warning info debug */
    /* up, plan */
    i64 ranks;               /* -np of `mpiserve up`; 0: CONFIG_RANKS, for plan see help */
    char hostfile[PATH_LEN]; /* for mpirun; "": none */
    char publish[PATH_LEN];  /* folder for copies of endpoint file and key, and for the log; "": none */
    char mpirun[PATH_LEN];   /* the launcher; "mpirun" */
    /* plan: the machines that are planned for */
    i64 nodes, ranks_per_node, gpus_per_node; /* 1; 0: see help; 0 */
    i64 cores, numa;                          /* of a node; 0: as this machine; 0: 1 */
    char topology[256];                       /* of a node, in hwloc's words; "" */
    i64 memory_per_node, memory_per_gpu;      /* bytes; 0: see help */
    bool json;
    /* where the values come from */
    char config_file[PATH_LEN];                      /* the job file; "": none */
    struct config_origin origin[CONFIG_MAX_OPTIONS]; /* in the table's order; see config_where */
    /* what was ignored, for the log */
    char notes[CONFIG_MAX_NOTES][192];
    int n_notes;
};

/* Reads job file, environment and argv[first..]. Positional arguments: at most one job file (*.yaml, *.yml) and
 * one model. Fills the defaults that depend on the machine too (demo model, served name). 0; on --help prints and
 * returns 1. */
int config_load(struct config *c, int argc, char **argv, int first, struct error *err);
/* Where the value of an option comes from, for errors about it: "--port", "MPISERVE_PORT",
 * "jobs/demo.yaml:3:7: port"; "--port" for a default too. name: as in the table. Returns out. */
const char *config_where(const struct config *c, const char *name, char *out, size_t size);
/* An error of another room whose where is --NAME: names the place that the value came from instead. */
void config_blame(const struct config *c, struct error *err);
void config_help(const char *program); /* the table, in groups, to stdout */
/* The table in another form, to stdout: "--markdown" (README), "--schema" (JSON Schema of job files), "--example"
 * (a job file with every option in a comment). -1: there is no such form. For `make docs`. */
int config_document(const char *form);
/* The options that must be equal on every rank: all but the model (it has a fingerprint of its own), its names, keys,
 * run_dir, log_level, and those of `up`. */
enum { CONFIG_VALUE_TEXT = PATH_LEN };
struct config_value {
    char name[64]; /* "--port" */
    char text[CONFIG_VALUE_TEXT];
};
/* The i-th of them, from 0, in the same order on every rank of a build; false behind the last. */
bool config_shared(const struct config *c, u32 i, struct config_value *out);
u64 config_fingerprint(const struct config *c); /* of all of them */
/* The arguments of argv[first..] that the ranks get from `mpiserve up` (all but up's own); returns their
 * number. out points into argv; argc entries are always enough. Call it after config_load has found no error.
 */
int config_passed(int argc, char **argv, int first, const char **out, int max);

bool config_host_is_loopback(const char *host);

/* The key that the user gave, in the environment or in a file (one line: KEY, or "Authorization: Bearer KEY",
 * so that the file serves curl -H @FILE too). 1: out (> CONFIG_KEY_MAX bytes) holds it. 0: none was given
 * (api_key_none, or make one). Keys never appear in messages. */
int config_key(const struct config *c, char *out, size_t size, struct error *err);
/* 8 to 200 printable ASCII characters without blanks. */
int config_key_check(const char *key, const char *where, struct error *err);

#endif
