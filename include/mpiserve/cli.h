/* cli: the subcommands of the program that are no part of a running job.
 *
 * Each gets the process's argc and argv unchanged (argv[1] is the subcommand) and returns the exit status. Messages
 * for people go to stderr, results to stdout. */
#ifndef MPISERVE_CLI_H
#define MPISERVE_CLI_H

/* mpiserve up [-n RANKS] [MODEL] [options] [-- arguments for mpirun]: starts the job under mpirun, says when it is
 * ready, drains it on INT or TERM, ends what is left of it, and removes what it left behind. USR1 drains as well, however
 * often it comes. 0 after a clean drain; 130 when it was ended before it was
 * ready; 2 when the options are wrong, 1 on other failures. */
int cli_up(int argc, char **argv);

/* mpiserve plan [MODEL] [--nodes N ...] [options of the job] [--json]: how such a job would lie over the nodes, what it needs
 * and how to start it; starts nothing and uses no MPI. 0: it fits; 1: it does not, or an option is wrong: each reason is a line on
 * stderr, with numbers. --json prints one object in every case:
 *   mpiserve          version
 *   fits              bool; refusals: [{where, message}]; notes: [text]
 *   model             folder
 * and as far as it could be computed:
 *   ground            {nodes, ranks_per_node, cores_per_node, numa_per_node, gpus_per_node, memory_per_node_bytes or null,
 *                     this_machine}
 *   placement         {strategy, tensor_parallel_size, pipeline_parallel_size, data_parallel_size, data_parallel_size_local or
 *                     null, engine_takes, cores_shared, nodes: [{node, engines, ranks: [{rank, replica or null, tp_rank, pp_rank,
 *                     replica_rank: {rank, node_rank, local_rank}, cpus}]}]}
 *   engine            {compute, isa, least_cores, most_cores, threads, weights_bytes, kv_cache_bytes, activation_bytes, ring_bytes}
 *   gpu               with --engine cuda: {needed_bytes (the engine's first three), memory_bytes or null}
 *   node              {weights_bytes, rank_bytes, most_engines, needed_bytes} of the fullest node; weights lie there once
 *   max_model_len, kv_blocks, block_size
 *   replica, job      {kv_tokens, full_sequences, max_num_seqs, max_ongoing_requests} at the same time
 *   commands          {up (null for several nodes), mpirun, sbatch}; only when it fits */
int cli_plan(int argc, char **argv);
/* mpiserve status [--json] [--run-dir FOLDER | --job ID]: running jobs of this user as they answer now. 0 all are ready, 1
 * one is not, 2 wrong usage, 3 there is none. Changes nothing. */
int cli_status(int argc, char **argv);

/* mpiserve devices [--json [UUID]]: the GPUs that an engine started here could use, in the order of CUDA_VISIBLE_DEVICES; with UUID that
 * one. 0; 1 there is none, or CUDA cannot be used (stderr says why); 2 wrong usage. --json prints one object: {devices: [{name, uuid, bus,
 * total_bytes, free_bytes (0 without UUID: looking makes a context there), capability ("9.0"), processors}]}. Agents ask this way,
 * since they do not use CUDA themselves. */
int cli_devices(int argc, char **argv);

/* mpiserve sweep [--job JOB]: removes what dead jobs of this user left on this machine (every start does so too). With --job only
 * that one's, waiting some seconds for its last processes; 0 nothing is left, 1 something is, 2 wrong usage. */
int cli_sweep(int argc, char **argv);

/* mpiserve bench route [--replicas N] [--slots N] [--load X] [--policy NAME|all] [--seed N] [--requests N] [--stale X] [--refuse]
 * [--prefixes N] [--trace FILE] [--json]: the routers in simulation, and what a decision costs on this machine; --help says what
 * each is. 0; 1 a trace that cannot be read; 2 wrong usage. No MPI. Waits are in mean service times, of a trace in seconds. --json
 * prints one object:
 *   mpiserve, replicas, slots, load (null with a trace), seed, stale, prefixes (blocks of a cache; 0: none), refuse
 *   runs              [{policy, service ("exponential", "lognormal", "recorded"), requests (measured ones), wait_p50, wait_p99,
 *                     wait_mean, imbalance (most ongoing on a replica / mean, on average over moments), most_ongoing (the same
 *                     not divided), kept (share of requests that went where their session was before), hits (share of the
 *                     prompts' blocks that were in the cache; null without prefixes), choices (a request), decision_ns_p50,
 *                     decision_ns_p99 (all choices of a request with their updates; the clock's own cost is taken off),
 *                     theory: {wait_p50, wait_p99, most_ongoing or null} or null}] */
/* mpiserve bench engine [MODEL] [--input-len N,N...] [--batch-size N,N...] [--context-len N] [--output-len N] [--num-iters N]
 * [--num-iters-warmup N] [--json] [options of the job that an engine knows]: one engine alone, without MPI; --help says what each is.
 * 0; 1 the model cannot be run; 2 wrong usage. --json prints one object:
 *   mpiserve, model, engine, device (a GPU's name or null), compute, isa, quantization, load_format, threads, max_num_batched_tokens,
 *   weights_bytes
 *   limits            {memory_bytes_per_s (reading; on a GPU copying, both ways counted), product_flops_per_s (the compute's own)}, of
 *                     this run
 *   prefill, decode   [{batch_size, context_len (tokens that count as computed), tokens (of each sequence), tokens_per_s (all of them),
 *                     seconds (the median run), bytes_per_s, of_memory, flops_per_s, of_products (what weights, K and V and products ask
 *                     for at the least: engine_cost; shares of the limits), runs: [seconds]}]: a prompt; a token a step */
int cli_bench(int argc, char **argv);

/* mpiserve tokenize DIR, detokenize DIR: JSON objects on stdin, one a line, and their answers on stdout, each at once; DIR holds
 * tokenizer.json. No MPI. 0, also when a line's answer is an error; 1 the files cannot be read; 2 wrong usage.
 *   tokenize     {"text": TEXT | "base64": BYTES, "special": with BOS and EOS, "split_special": special text is plain}
 *                -> {"ids": [...]} or {"error": TEXT}
 *   detokenize   {"ids": [...], "skip_special", "prompt_ids": [...] to go on from, "stream"}
 *                -> {"text": TEXT}; with stream {"pieces": [...]}, one a token and one for the end; or {"error": TEXT} */
int cli_tokenize(int argc, char **argv);
int cli_detokenize(int argc, char **argv);
/* mpiserve render [--now TIME] [--continue-final-message] TEMPLATE.jinja CONTEXT.json: prints what a chat template makes of the
 * variables in CONTEXT.json (-: stdin). 0; 1 with the reason and the template's line; 2 wrong usage. */
int cli_render(int argc, char **argv);

/* mpiserve doctor [--json]: what this machine has and misses for a job, with what to do; measures memory bandwidth, messages and
 * slots, some seconds long. 0: a job can run here; 1: there is a problem; 2: wrong usage. Leaves nothing. --json prints one object:
 *   mpiserve, host    version, name
 *   verdict           "ok", "warning" or "problem": the worst of the items
 *   items             [{name, verdict (also "skipped"), found, advice ("": nothing to do), numbers}], with these numbers:
 *     cores             allowed, online, cores, numa, cgroup_cpus (only where the cgroup limits time)
 *     memory            total_bytes, left_bytes;  GPUs: nvidia;  memory bandwidth: gigabytes_per_second, threads
 *     /dev/shm          free_bytes, ranks (as many have room);  temporary folder: free_bytes;  socket paths: bytes
 *     open files        soft, hard
 *     message latency, slot latency   microseconds */
int cli_doctor(int argc, char **argv);
/* The ranks that it starts. */
int cli_doctor_probe(int argc, char **argv);

#endif
