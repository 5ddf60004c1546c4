/* The engine process: from its first instruction to its last step. */
#include "engine/process.h"
#include "mpiserve/engine.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

static const u64 idle_ns = 500 * NS_PER_MS; /* between heartbeats of an idle engine */

/* Dies with its agent. The agent may have died before prctl: then somebody else is the parent now. */
static void tie_to_agent(const struct engine_boot *boot)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != (pid_t)boot->agent_pid) _exit(1);
}

/* What a terminal or a launcher sends to the whole group is the agent's to act on. */
static void ignore_signals(void)
{
    const int ignored[] = {SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGPIPE};
    sigset_t none;
    for (size_t i = 0; i < COUNT_OF(ignored); i++) signal(ignored[i], SIG_IGN);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* If memory runs out, an engine should go rather than an agent: it comes back. */
static void prefer_as_victim(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd < 0) return;
    if (write(fd, "300", 3) != 3) log_debug("cannot set oom_score_adj");
    close(fd);
}

static int bind_to_cpus(const struct engine_boot *boot, struct error *err)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    for (unsigned i = 0; i < COUNT_OF(boot->cpus) * 64; i++)
        if (boot->cpus[i / 64] >> (i % 64) & 1) CPU_SET(i, &set);
    if (CPU_COUNT(&set) == 0) return 0;
    if (sched_setaffinity(0, sizeof(set), &set) < 0)
        return error_errno(err, "cpus", "cannot bind to the CPUs assigned");
    return 0;
}

static bool texts_end(const struct engine_boot *b)
{
    const struct {
        const char *text;
        size_t size;
    } texts[] = {{b->model, sizeof b->model},
                 {b->compute, sizeof b->compute},
                 {b->isa, sizeof b->isa},
                 {b->quantization, sizeof b->quantization},
                 {b->load_format, sizeof b->load_format},
                 {b->kv_cache_dtype, sizeof b->kv_cache_dtype},
                 {b->device, sizeof b->device}};
    for (size_t i = 0; i < COUNT_OF(texts); i++)
        if (!memchr(texts[i].text, 0, texts[i].size)) return false;
    for (u32 i = 0; i < b->n_adapters; i++) {
        const struct boot_adapter *a = &b->adapters[i];
        if (!memchr(a->name, 0, sizeof a->name) || !memchr(a->path, 0, sizeof a->path)) return false;
    }
    return true;
}

static int check_boot(const struct engine *e, struct error *err)
{
    const struct engine_boot *b = e->boot;
    if (b->n_adapters > BOOT_ADAPTERS || !texts_end(b) || b->threads < 1 || b->threads > 4096 ||
        b->n_blocks < 2)
        return error_set(err, ERR_PEER, "boot", "%u threads, %u blocks, %u adapters", b->threads, b->n_blocks,
                         b->n_adapters);
    return 0;
}

/* Before its first step: every results frame must find room. */
static int check_frames(const struct engine *e, struct error *err)
{
    const struct engine_boot *b = e->boot;
    size_t most = channel_max_frame(e->channel),
           results = execute_results_max(b->max_rows, b->max_logprobs, model_vector(&e->model.config));
    if (!e->group.sampler || results <= most) return 0;
    return error_set(err, ERR_PEER, "boot", "results of %zu bytes do not fit into frames of %zu", results,
                     most);
}

static bool without_maths(const struct engine_boot *b)
{
    return strcmp(b->compute, "null") == 0;
}

/* With a GPU: it, and its way to those of the other engines. Before weights are read, since all come at about the same time then. */
static int open_device(struct engine *e, struct error *err)
{
    if (strcmp(e->boot->isa, "cuda") != 0) return 0;
    if (!(e->device = device_open(e->boot->device, err))) return -1;
    atomic_store(&e->head->heartbeat_ns, clock_ns());
    return group_connect(&e->group, e->device, err);
}

static int make_pool(struct engine *e, u32 threads, struct error *err)
{
    e->pool = pool_new((int)threads, e->boot->spin_us * NS_PER_US, err);
    return e->pool ? 0 : -1;
}

static int make_forward(struct engine *e, struct error *err)
{
    const struct engine_boot *b = e->boot;
    struct forward_spec spec = {.config = &e->model.config,
                                .shard = e->model.shard,
                                .all = e->group.all,
                                .stage = e->group.stage,
                                .gpus = e->group.gpus,
                                .weights = &e->model.weights,
                                .ops = e->model.device ? ops_cuda() : ops_cpu(b->isa),
                                .device = e->model.device,
                                .kv = e->model.kv,
                                .block_size = b->block_size,
                                .n_blocks = b->n_blocks,
                                .max_step_tokens = b->max_step_tokens,
                                .max_rows = b->max_rows,
                                .max_seq_blocks = b->block_size ? b->max_model_len / b->block_size + 1 : 0};
    if (!spec.ops)
        return error_set(err, ERR_UNSUPPORTED, "isa", "this machine has no \"%s\" (its best: %s)", b->isa,
                         ops_cpu_best());
    if (compute_parse(b->compute, &spec.compute) < 0)
        return error_set(err, ERR_PEER, "compute", "\"%s\"", b->compute);
    if (!b->block_size ||
        forward_kv_bytes(spec.config, &spec.shard, spec.compute, b->n_blocks, b->block_size) > b->kv_bytes)
        return error_set(err, ERR_PEER, "KV", "%u blocks of %u tokens do not fit into %llu bytes",
                         b->n_blocks, b->block_size, (unsigned long long)b->kv_bytes);
    int rc = make_pool(e, e->model.device ? 1 : b->threads, err);
    if (rc < 0) return rc;
    spec.pool = e->pool;
    e->forward = forward_new(&spec, err);
    return e->forward ? 0 : -1;
}

static int make_execute(struct engine *e, struct error *err)
{
    const struct engine_boot *b = e->boot;
    struct execute_spec spec = {.limits = {.max_rows = b->max_rows,
                                           .max_step_tokens = b->max_step_tokens,
                                           .max_model_len = b->max_model_len,
                                           .max_logprobs = b->max_logprobs,
                                           .block_size = b->block_size,
                                           .n_blocks = b->n_blocks,
                                           .vocab = e->model.config.vocab,
                                           .hidden = model_vector(&e->model.config),
                                           .pooling = e->model.config.pooling.kind,
                                           .whole = e->model.config.arch->encoder,
                                           .types = e->model.config.encoder.types,
                                           .adapters = b->n_adapters},
                                .forward = e->forward,
                                .null_step_us = b->null_step_us,
                                .pool = e->pool,
                                .device = e->model.device,
                                .gen = b->gen,
                                .numerics = b->numerics,
                                .fault = e->fault,
                                .all = e->group.all,
                                .follows = !e->group.sampler};
    e->execute = execute_new(&spec, err);
    return e->execute ? 0 : -1;
}

int engine_build(struct engine *e, struct error *err)
{
    int rc;
    if (without_maths(e->boot)) {
        prctl(PR_SET_TIMERSLACK, NS_PER_US); /* steps take as long as they say */
        rc = model_read_config(e->boot->model, &e->model.config, err);
        if (rc == 0) rc = make_pool(e, 1, err);
    } else {
        rc = open_device(e, err);
        if (rc == 0) rc = load_model(&e->model, e->device, e->head, e->weights_fd, e->kv_fd, err);
        if (rc == 0) rc = make_forward(e, err);
    }
    return rc == 0 ? make_execute(e, err) : rc;
}

static int prepare(struct engine *e, struct error *err)
{
    atomic_store(&e->head->heartbeat_ns, clock_ns());
    atomic_store(&e->head->state, ENGINE_LOADING);
    int rc = fault_parse(&e->fault, getenv("MPISERVE_FAULT"), err);
    if (rc == 0) rc = group_open(&e->group, e->channel, FD_GROUP, err);
    if (rc == 0) rc = check_boot(e, err);
    if (rc == 0) rc = bind_to_cpus(e->boot, err);
    if (rc < 0) return rc;
    if (!without_maths(e->boot)) thread_slice(0); /* the agent's is shorter */
    if (e->fault.kind) fault_load(&e->fault);
    rc = engine_build(e, err);
    return rc == 0 ? check_frames(e, err) : rc;
}

/* Executes a step; the sampler answers it. */
static int execute(struct engine *e, const void *frame, size_t len, struct error *err)
{
    size_t bytes;
    const void *results = execute_step(e->execute, frame, len, &bytes);
    if (!results) {
        *err = *execute_error(e->execute);
        return err->code;
    }
    void *to = NULL;
    /* room comes as soon as the agent has read: with two steps in flight the ring is never full for long */
    while (e->group.sampler && !(to = channel_result_claim(e->channel, bytes)))
        nanosleep(&(struct timespec){.tv_nsec = NS_PER_MS}, NULL);
    if (to) memcpy(to, results, bytes);
    if (e->group.root) channel_step_consume(e->channel);
    atomic_store(&e->head->heartbeat_ns, clock_ns());
    atomic_store(&e->head->steps_done, ((const struct results *)results)->step);
    if (to) channel_result_publish(e->channel, bytes);
    return 0;
}

/* The root's: to the others first, with what they do not know yet. */
static int lead(struct engine *e, const void *frame, size_t len, struct error *err)
{
    struct group_step s = {.frame = frame, .len = len};
    if (!e->group.world) return execute(e, frame, len, err);
    if (e->group.sampler) s.n = execute_outcomes(e->execute, &s.outcomes);
    int rc = group_hand_on(&e->group, &s, err);
    if (rc == 0) rc = execute(e, s.frame, s.len, err);
    group_done(&e->group);
    return rc;
}

static int serve(struct engine *e, struct error *err)
{
    u64 spin_ns = e->boot->spin_us * NS_PER_US;
    for (int rc = 0;;) {
        size_t len;
        atomic_store(&e->head->heartbeat_ns, clock_ns());
        const void *frame = channel_step_peek(e->channel, &len);
        if (frame)
            rc = lead(e, frame, len, err);
        else if (len)
            return error_set(err, ERR_PEER, "channel", "the ring of steps is corrupt");
        else
            channel_engine_wait(e->channel, spin_ns, idle_ns);
        if (rc < 0) return rc;
    }
}

static int follow(struct engine *e, struct error *err)
{
    for (int rc = 0; rc == 0;) {
        struct group_step s;
        rc = group_take(&e->group, &s, err);
        if (rc == 0) rc = execute_learn(e->execute, s.outcomes, s.n, err);
        if (rc == 0) rc = execute(e, s.frame, s.len, err);
    }
    return err->code;
}

/* First what waits for other engines ends: freeing a device's memory waits for all that is done there. */
void engine_release(struct engine *e)
{
    group_disconnect(&e->group);
    execute_free(e->execute);
    forward_free(e->forward);
    pool_free(e->pool);
    load_release(&e->model);
    device_close(e->device);
    group_close(&e->group);
    channel_free(e->channel);
}

int engine_main(int argc, char **argv)
{
    struct error err = {0};
    struct engine e = {.channel = channel_attach(&err), .weights_fd = FD_WEIGHTS, .kv_fd = FD_KV};
    char text[1100], who[32];
    (void)argc;
    if (!e.channel) {
        fprintf(stderr, "%s engine: is started by a rank of a job, not by hand (%s)\n", argv[0],
                error_text(&err, text, sizeof(text)));
        return 2;
    }
    e.head = channel_head(e.channel);
    e.boot = &e.head->boot;
    tie_to_agent(e.boot);
    ignore_signals();
    prctl(PR_SET_NAME, "mpiserve-eng");
    snprintf(who, sizeof(who), "engine %u", e.boot->rank);
    log_setup((enum log_level)MIN_OF(e.boot->log_level, (u8)LOG_DEBUG), who);
    prefer_as_victim();
    int rc = prepare(&e, &err);
    if (rc == 0) {
        atomic_store(&e.head->state, ENGINE_READY);
        rc = e.group.root ? serve(&e, &err) : follow(&e, &err);
    }
    channel_fail(e.channel, &err);
    log_error("%s", error_text(&err, text, sizeof(text)));
    engine_release(&e);
    return 1;
}
