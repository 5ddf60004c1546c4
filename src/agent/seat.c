/* This rank's engine: the memory it is handed, its process, and what it says to engines on other nodes. */
#include "agent/seat.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

static u32 node_of(const struct agent *a, u32 rank)
{
    return wire_peers(a->wire)[rank].node_rank;
}

/* ---- weights -------------------------------------------------------------------------------------------------*/
struct shared_fd {
    i32 pid, fd;
};

/* The first rank of this node whose engine has the same part of the model. */
static u32 weights_owner(const struct agent *a)
{
    const struct place_rank *mine = &a->plan.ranks[agent_rank(a)];
    for (u32 i = 0; i < wire_node_size(a->wire); i++) {
        u32 r = wire_node_ranks(a->wire)[i];
        const struct place_rank *other = &a->plan.ranks[r];
        if (other->replica >= 0 && other->tp == mine->tp && other->pp == mine->pp) return r;
    }
    BUG("rank %u has no engine", agent_rank(a));
}

/* Of a memory that the engine works in: what is a GPU's has nothing to do with the host's. */
static u64 host_bytes(const struct seat *s, u64 bytes)
{
    return s->agent->needs.device ? 4096 : bytes;
}

static int own_weights(struct seat *s, struct error *err)
{
    s->boot.loader = 1;
    s->weights_fd = memory_new("mpiserve-weights", host_bytes(s, s->agent->needs.weights_bytes), true, err);
    return s->weights_fd < 0 ? err->code : 0;
}

static int open_weights(struct seat *s, const struct shared_fd *from, struct error *err)
{
    if (from->fd < 0) return 0; /* the owner has said why, and the job ends */
    s->weights_fd = memory_open(from->pid, from->fd, host_bytes(s, s->agent->needs.weights_bytes), err);
    if (s->weights_fd >= 0) return 0;
    log_warning("the node's weights cannot be shared (%s): this engine loads its own copy", err->message);
    return own_weights(s, err);
}

static int share_weights(struct agent *a, struct error *err)
{
    struct seat *s = a->seat;
    struct shared_fd mine = {-1, -1}, *all = mem_zero(wire_size(a->wire), sizeof *all);
    struct error trouble;
    u32 owner = s ? weights_owner(a) : 0;
    int rc = 0;
    if (s && owner == agent_rank(a)) {
        rc = own_weights(s, err);
        mine = (struct shared_fd){getpid(), s->weights_fd};
    }
    if (wire_allgather(a->wire, &mine, sizeof mine, all, &trouble)) agent_die(a, "start", &trouble);
    if (s && owner != agent_rank(a)) rc = open_weights(s, &all[owner], err);
    free(all);
    return rc;
}

/* ---- the reservation -----------------------------------------------------------------------------------------*/
/* Others of the group are waited for less long than a step may take: who waits names who has not come. */
enum { GROUP_WAIT_PERCENT = 60 };

_Static_assert((int)CONFIG_MAX_ADAPTERS <= (int)BOOT_ADAPTERS, "all adapters of a job find room");

static void fill_boot(struct seat *s)
{
    const struct agent *a = s->agent;
    const struct place_rank *mine = &a->plan.ranks[agent_rank(a)];
    u8 loader = s->boot.loader;
    struct engine_boot *b = &s->boot;
    *b = (struct engine_boot){.weights_bytes = a->needs.weights_bytes,
                              .kv_bytes = a->needs.kv_bytes_per_block * a->n_blocks,
                              .numerics = a->numerics,
                              .rank = agent_rank(a),
                              .block_size = (u32)a->config.block_size,
                              .n_blocks = a->n_blocks,
                              .max_rows = a->max_num_seqs,
                              .max_step_tokens =
                                  (u32)MAX_OF(a->config.max_num_batched_tokens, (i64)a->max_num_seqs),
                              .max_model_len = a->max_model_len,
                              .max_logprobs = (u32)MAX_OF(a->config.max_logprobs, 0),
                              .threads = a->config.threads ? (u32)a->config.threads : a->cores,
                              .spin_us = a->cores_shared ? 0 : 50,
                              .loader = loader,
                              .null_step_us = (u32)a->config.null_step_us,
                              .log_level = (u8)(log_wants(LOG_DEBUG) ? LOG_DEBUG : LOG_INFO)};
    snprintf(b->model, sizeof b->model, "%s", a->config.model);
    snprintf(b->compute, sizeof b->compute, "%s", a->needs.compute);
    snprintf(b->quantization, sizeof b->quantization, "%s", a->config.quantization);
    snprintf(b->load_format, sizeof b->load_format, "%s", a->config.load_format);
    snprintf(b->kv_cache_dtype, sizeof b->kv_cache_dtype, "%s", a->config.kv_cache_dtype);
    b->n_adapters = (u32)a->config.n_lora_modules;
    for (u32 i = 0; i < b->n_adapters; i++) {
        const struct config_adapter *from = &a->config.lora_modules[i];
        snprintf(b->adapters[i].name, sizeof b->adapters[i].name, "%s", from->name);
        snprintf(b->adapters[i].path, sizeof b->adapters[i].path, "%s", from->path);
    }
    snprintf(b->isa, sizeof b->isa, "%s", a->needs.isa);
    snprintf(b->device, sizeof b->device, "%s", a->gpu.uuid);
    memcpy(b->cpus, a->cpus.bits, sizeof b->cpus);
    if (s->n == 1) return;
    b->group = s->shape;
    b->tp_rank = mine->tp;
    b->pp_rank = mine->pp;
    b->group_bytes = coll_bytes(&s->shape, node_of(a, agent_rank(a)));
    b->group_wait_ms = (u32)(a->config.step_timeout_s * 10 * GROUP_WAIT_PERCENT);
}

static void fill_shape(struct seat *s)
{
    const struct agent *a = s->agent;
    const struct place_replica *r = &a->plan.replicas[s->replica];
    const u32 *engines = a->plan.engines + r->first_engine;
    s->n = r->n_engines;
    s->shape = (struct coll_shape){.tp = (u32)a->config.tensor_parallel_size,
                                   .pp = (u32)a->config.pipeline_parallel_size};
    for (u32 i = 0; i < s->n; i++) {
        s->shape.rank[i] = engines[i];
        s->shape.node[i] = node_of(a, engines[i]);
        if (engines[i] == agent_rank(a)) s->index = i;
    }
}

u32 seat_in_flight(const struct seat *s)
{
    return step_in_flight(s->shape.pp);
}

static int make_proc(struct seat *s, struct error *err)
{
    struct agent *a = s->agent;
    const struct engine_boot *b = &s->boot;
    u64 step_ns = (u64)(a->config.step_timeout_s * (double)NS_PER_S);
    /* whether a step is out is known to the leader: it comes first, and names who hangs */
    u64 idle_ns = s->index ? 2 * step_ns : 0;
    size_t ring =
        2 * engine_ring_size(b->max_rows, b->max_step_tokens, b->max_model_len, b->max_logprobs,
                             a->needs.hidden, b->block_size); /* a step takes at most a quarter of it */
    ring = step_ring_bytes(ring, seat_in_flight(s));
    struct proc_spec spec = {.fault = getenv("MPISERVE_FAULT"),
                             .boot = *b,
                             .weights_fd = s->weights_fd,
                             .kv_fd = s->kv_fd,
                             .ring_size = ring,
                             .limits = {.step_ns = step_ns, .idle_ns = idle_ns}};
    if (!(s->proc = proc_new(&spec, err))) return err->code;
    s->channel = proc_channel(s->proc);
    return 0;
}

int seat_open(struct agent *a, struct error *err)
{
    i32 replica = a->plan.ranks[agent_rank(a)].replica;
    struct seat *s = NULL;
    if (replica >= 0) {
        s = a->seat = mem_zero(1, sizeof *s);
        s->agent = a;
        s->replica = replica;
        s->weights_fd = s->kv_fd = s->group_fd = -1;
        fill_shape(s);
    }
    int rc = share_weights(a, err);
    if (!s || rc) return rc;
    fill_boot(s);
    s->kv_fd = memory_new("mpiserve-kv", host_bytes(s, s->boot.kv_bytes), false, err);
    return s->kv_fd < 0 ? err->code : make_proc(s, err);
}

void seat_close(struct seat *s)
{
    if (!s) return;
    proc_free(s->proc);
    seat_gone(s);
    if (s->weights_fd >= 0) close(s->weights_fd);
    if (s->kv_fd >= 0) close(s->kv_fd);
    free(s);
}

/* ---- a generation --------------------------------------------------------------------------------------------*/
int seat_group_memory(struct seat *s, i32 pid, i32 fd, struct error *err)
{
    u64 bytes = s->boot.group_bytes;
    s->group_fd = pid < 0 ? memory_new("mpiserve-group", bytes, false, err) /* hardly any of it is touched */
                          : memory_open(pid, fd, bytes, err);
    if (s->group_fd < 0) return err->code;
    if (!seat_relays(s)) return 0;
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s->group_fd, 0);
    if (memory == MAP_FAILED)
        return error_errno(err, "group", "cannot map %llu bytes", (unsigned long long)bytes);
    s->group_memory = memory;
    s->relay = coll_relay_open(&s->shape, s->index, memory, bytes, err);
    return s->relay ? 0 : err->code;
}

int seat_start(struct seat *s, u32 gen, u64 now_ns, struct error *err)
{
    s->boot.gen = gen;
    proc_set_group(s->proc, s->group_fd);
    int rc = proc_start(s->proc, gen, now_ns, err);
    if (rc) return rc;
    int fd = proc_pidfd(s->proc); /* closing it at the end takes it out of the epoll set */
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
    if (fd >= 0) epoll_ctl(s->agent->epoll, EPOLL_CTL_ADD, fd, &e);
    return 0;
}

void seat_gone(struct seat *s)
{
    coll_relay_close(s->relay);
    s->relay = NULL;
    if (s->group_memory) munmap(s->group_memory, s->boot.group_bytes);
    s->group_memory = NULL;
    if (s->group_fd >= 0) close(s->group_fd);
    s->group_fd = -1;
}

/* ---- between nodes -------------------------------------------------------------------------------------------*/
static bool speaks(const struct seat *s)
{
    enum proc_state state = proc_state(s->proc);
    return s->relay && (state == PROC_STARTING || state == PROC_READY);
}

int seat_relay(struct seat *s)
{
    int n = 0;
    size_t len = 0;
    u32 to;
    const void *message;
    if (!speaks(s)) return 0;
    while ((message = coll_relay_take(s->relay, &to, &len))) {
        struct msg_relay head = {.gen = s->boot.gen, .from = s->index, .to = to};
        agent_send(s->agent, s->shape.rank[to], MSG_RELAY, &head, sizeof head, message, len);
        coll_relay_taken(s->relay);
        n++;
    }
    if (len == SIZE_MAX) proc_kill(s->proc, true, "what it says to other nodes is no message");
    return n;
}

void seat_relayed(struct seat *s, const void *body, size_t len)
{
    const struct msg_relay *m = body;
    struct error err;
    if (len < sizeof *m || m->from >= s->n || m->to != s->index) {
        error_set(&err, ERR_PEER, "", "%zu bytes", len);
        agent_die(s->agent, "message RELAY", &err);
    }
    if (!s->relay || m->gen != s->boot.gen) return; /* of a generation that is gone */
    if (coll_relay_put(s->relay, m->from, m + 1, len - sizeof *m, &err))
        proc_kill(s->proc, true, err.message);
}

/* ---- sleep ---------------------------------------------------------------------------------------------------*/
int seat_watch(struct seat *s, int epoll, struct error *err)
{
    int fd = channel_fd(s->channel, FD_TO_AGENT);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) ? error_errno(err, "", "epoll") : 0;
}

bool seat_prepare_sleep(struct seat *s)
{
    return channel_agent_prepare_sleep(s->channel) && !(speaks(s) && coll_relay_waiting(s->relay));
}

void seat_woke(struct seat *s)
{
    channel_agent_woke(s->channel);
}
