/* config: every option of the program, from one table.
 *
 * The table (src/config/options.c) drives the command line, the environment (MPISERVE_<NAME>, dashes as underscores) and --help; precedence:
 * command line > environment > default. A row: name, short name, kind, range, default, where the value lives in struct
 * config, help text, group. Unknown names are errors with the nearest known name. Dashes and underscores are the same in names;
 * `--name value`, `--name=value`, `--no-name` for booleans. All rows are checked for range before anything starts; an
 * error names the option, where it came from (command line, environment), the value, and the range.
 * "Absent" is never the same as 0: such options have ABSENT (-1) as default.
 * Thread rule: filled once at start, read-only afterwards. */
#ifndef MPISERVE_CONFIG_H
#define MPISERVE_CONFIG_H

#include "mpiserve/base.h"

enum { ABSENT = -1, CONFIG_MAX_NAMES = 8 };

struct config {
    /* model */
    char model[PATH_LEN];         /* a folder; default: the demo model beside the program, then PREFIX/share */
    char served_model_name[CONFIG_MAX_NAMES][128]; /* first is the one in answers; default: last part of the folder's name */
    int n_served_model_names;
    char compute[16];             /* auto, f32, bf16 */
    char cpu_isa[16];             /* auto, portable, avx2, avx512, avx512bf16: upper bound */
    i64 max_model_len;            /* 0: the model's */
    i64 seed;                     /* added to the seeds drawn for requests without one; ABSENT: random */
    bool generation_config;       /* use the model's suggested sampling as defaults (vLLM: --generation-config auto|vllm) */
    /* parallel shape */
    i64 tensor_parallel_size, pipeline_parallel_size; /* 1 */
    i64 data_parallel_size;                           /* ABSENT: ranks / (tp * pp) */
    i64 data_parallel_size_local;                     /* ABSENT: no constraint; 0: rank 0 only serves HTTP */
    i64 threads;                                      /* of an engine; 0: its share of the cores */
    /* scheduler */
    i64 max_num_seqs;             /* 64: rows of an engine */
    i64 max_num_batched_tokens;   /* 512: tokens of a step */
    i64 block_size;               /* 16 */
    i64 kv_cache_memory_bytes;    /* 0: enough for max_num_seqs sequences of max_model_len, at most a share of memory */
    i64 max_logprobs;             /* 20 */
    /* routing and limits */
    i64 max_ongoing_requests;     /* slots of a replica; 0: max_num_seqs */
    i64 max_queued_requests;      /* at the ingress; 256; 0: none wait */
    double request_timeout_s;     /* 0: none */
    double queue_timeout_s;       /* longest wait for a slot: 60 */
    double graceful_shutdown_timeout_s; /* 20 */
    double slot_lease_s;          /* 2 */
    double step_timeout_s;        /* 30: an engine silent for so long in a step is killed */
    /* HTTP */
    char host[256];               /* 127.0.0.1 */
    i64 port;                     /* 8000; 0: any free port */
    i64 http_threads;             /* 2 */
    i64 max_request_bytes;        /* 32 MiB */
    i64 max_connections;          /* 1024 */
    double keep_alive_timeout_s;  /* 75 */
    double sse_keep_alive_interval_s; /* 15; 0: off */
    char api_key_file[PATH_LEN];  /* "": a key per job, written beside the endpoint file */
    bool api_key_none;            /* --api-key none: loopback only */
    /* operation */
    char run_dir[PATH_LEN];       /* folder for this job's endpoint file, key, sockets; "": made under the temporary folder */
    char log_level[16];           /* error warning info debug */
    /* up */
    i64 ranks;                    /* -np of `mpiserve up`; 8 */
};

/* Reads environment and argv[first..]. Positional arguments: at most one, the model. On --help prints and returns 1. */
int config_load(struct config *c, int argc, char **argv, int first, struct error *err);
void config_help(const char *program); /* the table, in groups, to stdout */
/* Hash of all options that must be equal on every rank (all but run_dir, log_level, ranks). */
u64 config_fingerprint(const struct config *c);
/* The options given on the command line, as an argv tail to pass on (mpiserve up -> ranks); returns their number. */
int config_passed(int argc, char **argv, int first, const char **out, int max);

#endif
