/* From nothing to a rank that can loop, and back. Collective calls come in the same order on every rank; a rank that fails says so to
 * all (together), so that one error is printed and every rank ends in order. */
#include "agent/address.h"
#include "agent/agent_internal.h"
#include "agent/seat.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { OTHERS_END_MS = 500 };

/* ---- before MPI ----------------------------------------------------------------------------------------------*/
/* The launcher's number for this process: -1 when there is no launcher. */
static int launcher_rank(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        const char *v = getenv(names[i]);
        if (v && v[0]) return atoi(v);
    }
    return -1;
}

/* Is this the first of its machine's ranks? Launchers say so before MPI does; a rank without launcher is alone. */
static bool first_of_machine(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        const char *v = getenv(names[i]);
        if (v && v[0]) return atoi(v) == 0;
    }
    return launcher_rank() < 0;
}

static void start_tidier(struct agent *a)
{
    struct error err;
    bool first = first_of_machine();
    jobdir_prepare_shm(&a->dir, first);
    a->tidier = first ? jobdir_tidier_start(&a->dir, &err) : -1;
    if (first && a->tidier < 0) agent_print(&err);
}

/* A rank without a launcher has nobody to remove MPI's files: they lie in its job's folders. */
static int prepare_alone(struct agent *a, struct error *err)
{
    if (launcher_rank() >= 0) return 0;
    jobdir_sweep();
    int rc = jobdir_make(&a->dir, a->config.run_dir, err);
    if (rc) return rc;
    a->owns_dir = true;
    jobdir_name_shm(&a->dir);
    return jobdir_session(&a->dir, err);
}

/* The launcher's end is ours: nothing of a job outlives it. */
static void follow_launcher(void)
{
    if (launcher_rank() < 0) return;
    pid_t parent = getppid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
}

static int take_signals(struct agent *a, struct error *err)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    a->signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    return a->signals < 0 ? error_errno(err, "", "signalfd") : 0;
}

/* Before MPI, what is wrong is found by every rank: one of them says so. The others leave a little later, since the launcher ends
 * all when the first has gone. */
static void say_once(const struct error *err, bool speaker)
{
    const struct timespec pause = {.tv_nsec = 300 * NS_PER_MS};
    if (speaker)
        agent_print(err);
    else
        nanosleep(&pause, NULL);
}

/* Of an agent without connections of clients: engine, rings, MPI; one more for each rank on other machines. */
static u64 files_needed(void)
{
    enum { FILES = 96 };
    const char *size = getenv("OMPI_COMM_WORLD_SIZE");
    return FILES + (size && atoi(size) > 0 ? (u64)atoi(size) : 1);
}

/* In a step of Slurm MPI looks for PMIx and does not come up without. */
static int check_step(struct error *err)
{
    if (!getenv("SLURM_STEP_ID") || getenv("PMIX_RANK") || getenv("OMPI_COMM_WORLD_RANK")) return 0;
    return error_set(err, ERR_INPUT, "srun",
                     "has started this rank without PMIx, which MPI needs: use `srun --mpi=pmix` where `srun "
                     "--mpi=list` shows it, or "
                     "mpirun in a batch script (slurm/serve.slurm)");
}

static int check_ground(struct error *err)
{
    if (check_step(err)) return err->code;
    i64 files = file_limit(files_needed(), err);
    return files < 0 ? (int)files : jobdir_check_room(JOBDIR_ROOM_RANK, err);
}

/* Every connection is an open file. */
static void fit_connections(struct config *c)
{
    i64 most = file_limit(0, NULL) - (i64)files_needed();
    if (most < 0 || c->max_connections <= most) return;
    log_warning("--max-connections: %lld need more open files than this process may have (ulimit -n): at "
                "most %lld are served at the "
                "same time",
                (long long)c->max_connections, (long long)most);
    c->max_connections = most;
}

/* What is wrong for all is said once; a job file may be missing on one host only. */
static bool tells_errors(const struct error *err)
{
    bool of_this_host = err->code == ERR_NOT_FOUND || err->code == ERR_IO;
    return launcher_rank() <= 0 || (of_this_host && first_of_machine());
}

static int load_options(struct agent *a, int argc, char **argv)
{
    struct error err;
    int rc = config_load(&a->config, argc, argv, 1, &err);
    for (int i = 0; rc == 0 && launcher_rank() <= 0 && i < a->config.n_notes; i++)
        log_info("%s", a->config.notes[i]);
    const char *model = a->config.model;
    if (rc == 0 && launcher_rank() <= 0 && !strchr(model, '/') && access(model, F_OK))
        rc = error_set(&err, ERR_INPUT, "", "`%s` is neither a command nor a folder with a model; see --help",
                       model);
    if (rc == 0) return 0;
    if (rc < 0) say_once(&err, tells_errors(&err));
    return rc < 0 ? 2 : -1; /* -1: help was printed */
}

static enum log_level level_of(const char *name)
{
    static const char *const names[] = {
        [LOG_ERROR] = "error", [LOG_WARNING] = "warning", [LOG_INFO] = "info", [LOG_DEBUG] = "debug"};
    for (size_t i = 0; i < COUNT_OF(names); i++)
        if (strcmp(name, names[i]) == 0) return (enum log_level)i;
    return LOG_INFO;
}

/* ---- what an engine will be --------------------------------------------------------------------------------*/
static bool on_gpu(const struct agent *a)
{
    return strcmp(a->config.engine, "cuda") == 0;
}

/* The kernels' level: the lowest of all ranks, so that any replica can take over any request bit by bit. */
static int agree_on_isa(struct agent *a, const char **isa, struct error *err)
{
    const char *best = strcmp(a->config.cpu_isa, "auto") == 0 ? ops_cpu_best() : a->config.cpu_isa;
    i32 mine = MIN_OF(ops_isa_level(best), ops_isa_level(ops_cpu_best())), low = mine;
    i32 *all = mem_zero(wire_size(a->wire), sizeof *all);
    int rc = wire_allgather(a->wire, &mine, sizeof mine, all, err);
    for (u32 r = 0; r < wire_size(a->wire); r++) low = MIN_OF(low, all[r]);
    free(all);
    *isa = on_gpu(a) ? "cuda" : ops_isa_name(low);
    return rc;
}

/* Parts of the model that lie in this node's memory: those of its engines, each once. */
static u32 parts_here(const struct agent *a)
{
    u32 n = wire_node_size(a->wire), *parts = mem_alloc(n * sizeof *parts);
    u32 found = place_parts(&a->plan, wire_node_ranks(a->wire), n, parts);
    free(parts);
    return found;
}

/* Half of what the weights leave. Caches that the kernel can drop count as free, limits of cgroups count. */
static u64 memory_for_kv(const struct agent *a)
{
    u64 left = memory_left(), weights = a->needs.weights_bytes * parts_here(a);
    if (left == UINT64_MAX) left = 1ull << 30;
    return engine_kv_share(left - MIN_OF(left, weights), wire_node_size(a->wire));
}

static int size_engine(struct agent *a, const char *isa, struct error *err)
{
    const struct config *c = &a->config;
    struct engine_ask ask;
    engine_ask_of(c, isa, &ask);
    ask.tp_rank = a->plan.ranks[agent_rank(a)].tp;
    ask.pp_rank = a->plan.ranks[agent_rank(a)].pp;
    int rc = engine_plan(&ask, &a->needs, err);
    if (!rc) {
        a->max_num_seqs = (u32)c->max_num_seqs;
        a->max_ongoing = c->max_ongoing_requests ? (u32)c->max_ongoing_requests : a->max_num_seqs;
        a->max_model_len = a->needs.max_model_len;
        a->numerics = a->needs.numerics;
    }
    if (rc) config_blame(c, err);
    return rc;
}

/* On a GPU behind the choice of GPUs; a rank without an engine has no cache. */
static int size_cache(struct agent *a, struct error *err)
{
    const struct config *c = &a->config;
    struct engine_limits limits = {a->max_num_seqs, a->max_model_len, (u32)c->block_size};
    u64 room = 0;
    int rc = 0;
    if (a->needs.device && a->plan.ranks[agent_rank(a)].replica < 0) return 0;
    const struct engine_device gpu = {a->gpu.total, a->gpu.free, c->gpu_memory_utilization,
                                      (u64)c->kv_cache_memory_bytes};
    if (a->needs.device)
        rc = engine_device_room(&a->needs, &gpu, &room, err);
    else
        room = c->kv_cache_memory_bytes ? (u64)c->kv_cache_memory_bytes : memory_for_kv(a);
    if (!rc) rc = engine_blocks(&a->needs, &limits, room, &a->n_blocks, err);
    if (rc) config_blame(c, err);
    return rc;
}

/* Engines of a replica share the numbers of blocks: all have as many as the one with the least room. */
static int agree_on_blocks(struct agent *a, struct error *err)
{
    u32 *all = mem_zero(wire_size(a->wire), sizeof *all);
    int rc = wire_allgather(a->wire, &a->n_blocks, sizeof a->n_blocks, all, err);
    if (!rc) a->n_blocks = place_least(&a->plan, agent_rank(a), all);
    free(all);
    return rc;
}

/* ---- placement and cores -------------------------------------------------------------------------------------*/
static int place(struct agent *a, struct error *err)
{
    u32 n = wire_size(a->wire), *node_of = mem_zero(n, sizeof *node_of);
    for (u32 r = 0; r < n; r++) node_of[r] = wire_peers(a->wire)[r].node_rank;
    struct place_job job = {.n_ranks = n, .n_nodes = wire_n_nodes(a->wire), .node_of = node_of};
    struct place_spec spec;
    engine_place_of(&a->config, &spec);
    int rc = place_plan(&a->plan, &job, &spec, err);
    if (!rc) rc = place_check(a->plan.replicas, a->plan.n_replicas, err);
    free(node_of);
    return rc;
}

static int check_head_address(const struct agent *a, struct error *err)
{
    if (agent_rank(a) != 0 || !a->config.data_parallel_address[0]) return 0;
    return address_check_own(a->config.data_parallel_address, "--data-parallel-address", err);
}

i32 agent_ingress_of(const struct agent *a, u32 rank)
{
    const struct wire_peer *p = &wire_peers(a->wire)[rank];
    return p->local_rank == 0 && p->node_rank < a->n_ingresses ? (i32)p->node_rank : -1;
}

/* One on rank 0, or on the first rank of each node: its index is its node's. */
static void place_ingresses(struct agent *a)
{
    bool every_node = strcmp(a->config.ingress, "node") == 0;
    a->n_ingresses = every_node ? wire_n_nodes(a->wire) : 1;
    a->ingress_index = agent_ingress_of(a, agent_rank(a));
}

u32 agent_ingress_rank(const struct agent *a, u32 index)
{
    return wire_first_rank(a->wire, index);
}

/* Collective: the masks of all ranks of this node, divided among its engines. */
static int share_cores(struct agent *a, struct error *err)
{
    struct cpuset mine = {0}, *all = mem_zero(wire_size(a->wire), sizeof *all);
    struct topo *t = NULL;
    int rc = cpuset_of_self(&mine, err);
    if (wire_allgather(a->wire, &mine, sizeof mine, all, err)) rc = -1;
    if (!rc && !(t = topo_load(err))) rc = -1;
    if (!rc) {
        u32 n = wire_node_size(a->wire);
        struct cpuset *masks = mem_zero(n, sizeof *masks), *out = mem_zero(n, sizeof *out);
        bool *engine = mem_zero(n, sizeof *engine);
        for (u32 i = 0; i < n; i++) {
            u32 r = wire_node_ranks(a->wire)[i];
            masks[i] = all[r];
            engine[i] = a->plan.ranks[r].replica >= 0;
        }
        struct topo_division how;
        rc = topo_divide(t, masks, engine, n, out, &how, err);
        if (!rc) {
            a->cpus = out[wire_peers(a->wire)[agent_rank(a)].local_rank];
            a->cores = MAX_OF(1u, topo_cores_of(t, &a->cpus));
            a->node_cores = how.cores;
            a->cores_shared = how.shared || how.cores < 2 * n; /* agents need some too */
            if (how.shared && wire_peers(a->wire)[agent_rank(a)].local_rank == 0)
                log_info("%u ranks share %u cores: engines are bound round robin to single cores", n,
                         how.cores);
        }
        free(masks);
        free(out);
        free(engine);
    }
    topo_free(t);
    free(all);
    return rc;
}

/* ---- the job's folder ----------------------------------------------------------------------------------------*/
/* Rank 0's is the job's: made here where nobody above has (a bare mpirun), after what dead jobs left is gone. */
static int make_job_dir(struct agent *a, struct error *err)
{
    if (a->owns_dir) return 0; /* alone */
    int rc = jobdir_attach(&a->dir, err);
    if (rc != 0) return MIN_OF(rc, 0);
    if (a->dir.job[0])
        return error_set(
            err, ERR_STATE, wire_peers(a->wire)[0].host,
            "rank 0 runs on this machine and `mpiserve up` on another: start it here, or let the "
            "list of hosts begin with the machine of `mpiserve up`");
    jobdir_sweep();
    rc = jobdir_make(&a->dir, a->config.run_dir, err);
    a->owns_dir = rc == 0;
    return rc;
}

/* Other nodes: the first rank's, unless the owner of the job is here as well. */
static int make_node_dir(struct agent *a, const char *job, struct error *err)
{
    int rc = jobdir_attach(&a->dir, err);
    if (rc != 0) return MIN_OF(rc, 0);
    jobdir_sweep();
    rc = jobdir_make_node(&a->dir, job, wire_peers(a->wire)[agent_rank(a)].node_rank, err);
    a->owns_dir = rc == 0;
    return rc;
}

static int write_pids(struct agent *a, struct error *err)
{
    u32 n = wire_node_size(a->wire);
    int *ranks = mem_zero(n, sizeof *ranks), *pids = mem_zero(n, sizeof *pids);
    for (u32 i = 0; i < n; i++) {
        ranks[i] = (int)wire_node_ranks(a->wire)[i];
        pids[i] = wire_peers(a->wire)[ranks[i]].pid;
    }
    int rc = jobdir_write_pids(&a->dir, ranks, pids, (int)n, err);
    free(ranks);
    free(pids);
    return rc;
}

/* Collective: rank 0 chooses the folder and the name, every other node has a folder of its own. */
static int make_run_dir(struct agent *a, struct error *err)
{
    struct jobdir dir;
    bool first = wire_peers(a->wire)[agent_rank(a)].local_rank == 0;
    if (agent_together(a, agent_rank(a) == 0 ? make_job_dir(a, err) : 0, err)) return 1;
    dir = a->dir;
    int rc = wire_bcast(a->wire, 0, &dir, sizeof dir, err);
    if (!rc && first && agent_rank(a) != 0) rc = make_node_dir(a, dir.job, err);
    if (!rc && first) rc = write_pids(a, err);
    if (!rc && first) jobdir_tidier_tell(a->tidier, &a->dir);
    if (agent_together(a, rc, err)) return 1;
    dir = a->dir;
    rc = wire_node_bcast(a->wire, 0, &dir, sizeof dir, err);
    a->dir = dir;
    if (agent_together(a, rc, err)) return 1;
    return agent_together(a, wire_bells(a->wire, a->dir.path, err), err);
}

static int open_slots(struct agent *a, struct error *err)
{
    u32 epoch = 0, n = wire_size(a->wire), *node_of = mem_zero(n, sizeof *node_of);
    if (agent_rank(a) == 0 && random_bytes(&epoch, sizeof epoch, err)) epoch = (u32)clock_ns();
    epoch = 1 + epoch % SLOT_EPOCH_MAX;
    int rc = wire_bcast(a->wire, 0, &epoch, sizeof epoch, err);
    for (u32 r = 0; r < n; r++) node_of[r] = wire_peers(a->wire)[r].node_rank;
    const struct config *c = &a->config;
    struct slots_spec spec = {.owner = a->ingress_index < 0 ? UINT16_MAX : (u16)a->ingress_index,
                              .epoch = epoch,
                              .node_of = node_of,
                              .lease_short_ns = (u64)(c->slot_lease_s * (double)NS_PER_S),
                              .lease_long_ns = (u64)(c->reservation_lease_s * (double)NS_PER_S),
                              .ring = (void (*)(void *, u32))wire_ring,
                              .ctx = a->wire};
    if (!rc && !(a->slots = slots_new(&spec, err))) rc = err->code;
    free(node_of);
    return agent_together(a, rc, err);
}

/* ---- the whole way -------------------------------------------------------------------------------------------*/
static void describe(const struct agent *a)
{
    const struct place_rank *mine = &a->plan.ranks[agent_rank(a)];
    if (mine->replica < 0) {
        log_info("no engine here");
        return;
    }
    const struct replica_rank *r = &a->plan.replicas[mine->replica].rank;
    char cpus[CPUSET_TEXT], part[64] = "";
    const struct config *c = &a->config;
    if (c->tensor_parallel_size > 1 || c->pipeline_parallel_size > 1)
        snprintf(part, sizeof part, ", tensor part %u of %lld, stage %u of %lld", mine->tp,
                 (long long)c->tensor_parallel_size, mine->pp, (long long)c->pipeline_parallel_size);
    log_info("replica %d: ReplicaRank {rank %u, node_rank %u, local_rank %u}%s on %s, CPUs %s, %s on %s%s%s",
             mine->replica, r->rank, r->node_rank, r->local_rank, part,
             wire_peers(a->wire)[agent_rank(a)].host, cpuset_print(&a->cpus, cpus, sizeof cpus),
             a->needs.compute, a->needs.isa, a->gpu.uuid[0] ? ", " : "", a->gpu.uuid);
}

/* The user's, or a new one for this job. */
static int take_key(struct agent *a, struct error *err)
{
    int rc = config_key(&a->config, a->key, sizeof a->key, err);
    if (rc == 0 && !a->config.api_key_none) rc = jobdir_new_key(a->key, sizeof a->key, err);
    return MIN_OF(rc, 0);
}

static int start_rooms(struct agent *a, struct error *err)
{
    int rc = 0;
    if (agent_together(a, seat_open(a, err), err)) return 1;
    if (a->seat && a->seat->index == 0) rc = leader_new(a, err);
    if (a->seat && a->seat->index != 0) follower_new(a);
    if (agent_together(a, rc, err)) return 1;
    if (agent_rank(a) == 0) rc = take_key(a, err);
    if (agent_together(a, rc, err)) return 1;
    if (a->n_ingresses > 1) rc = wire_bcast(a->wire, 0, a->key, sizeof a->key, err);
    if (!rc && a->ingress_index >= 0) {
        fit_connections(&a->config);
        rc = head_new(a, err);
    }
    if (agent_together(a, rc, err)) return 1;
    if (a->n_ingresses > 1 && agent_together(a, heads_meet(a, err), err)) return 1;
    a->epoll = epoll_create1(EPOLL_CLOEXEC);
    int fds[] = {a->signals, wire_fd(a->wire), a->head ? head_fd(a->head) : -1};
    for (size_t i = 0; i < COUNT_OF(fds); i++) {
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fds[i]};
        if (fds[i] >= 0 && epoll_ctl(a->epoll, EPOLL_CTL_ADD, fds[i], &e)) rc = error_errno(err, "", "epoll");
    }
    if (a->seat && !rc) rc = seat_watch(a->seat, a->epoll, err);
    if (!rc) rc = watchdog_start(&a->watchdog, err);
    if (agent_together(a, rc, err)) return 1;
    if (a->leader) leader_start(a->leader);
    return 0;
}

static void name_in_log(const struct agent *a)
{
    char who[48];
    const struct wire_peer *me = &wire_peers(a->wire)[agent_rank(a)];
    bool alone = wire_n_nodes(a->wire) == 1;
    snprintf(who, sizeof who, alone ? "rank %u" : "rank %u (%.30s)", agent_rank(a), me->host);
    log_setup(level_of(a->config.log_level), who);
}

/* The same error on every rank. */
static int end_differing(const struct agent *a, const struct error *err)
{
    if (agent_rank(a) == 0) agent_print(err);
    return 1;
}

int agent_start(struct agent *a, int argc, char **argv)
{
    struct error err = {0};
    a->signals = a->epoll = -1;
    log_setup(LOG_INFO, "");
    int rc = load_options(a, argc, argv);
    if (rc) return rc < 0 ? -1 : rc;
    log_setup(level_of(a->config.log_level), "");
    follow_launcher();
    if (check_ground(&err)) {
        say_once(&err, first_of_machine());
        return 1;
    }
    start_tidier(a);
    struct error model_err = {0};
    int model_rc = model_read_config(a->config.model, &a->model, &model_err);
    if (prepare_alone(a, &err) || take_signals(a, &err) || !(a->wire = wire_init(&argc, &argv, &err))) {
        say_once(&err, first_of_machine());
        return 1;
    }
    name_in_log(a);
    if (agree_on_start(a, &err)) return end_differing(a, &err);
    if (agent_together(a, model_rc, &model_err)) return 1;
    const char *isa;
    if (agent_together(a, agree_on_isa(a, &isa, &err), &err)) return 1;
    if (agent_together(a, place(a, &err), &err)) return 1;
    if (agent_together(a, size_engine(a, isa, &err), &err)) return 1;
    if (agree_on_model(a, &err)) return end_differing(a, &err);
    if (agent_together(a, check_head_address(a, &err), &err)) return 1;
    place_ingresses(a);
    if (agent_together(a, share_cores(a, &err), &err)) return 1;
    if (on_gpu(a) && agent_together(a, gpus_choose(a, &err), &err)) return 1;
    if (agent_together(a, size_cache(a, &err), &err)) return 1;
    if (agent_together(a, agree_on_blocks(a, &err), &err)) return 1;
    describe(a);
    if (make_run_dir(a, &err)) return 1;
    if (open_slots(a, &err)) return 1;
    return start_rooms(a, &err);
}

void agent_finish(struct agent *a)
{
    leader_free(a->leader);
    follower_free(a->follower);
    seat_close(a->seat);
    head_free(a->head);
    watchdog_stop(&a->watchdog);
    slots_free(a->slots);
    place_release(&a->plan);
    if (a->epoll >= 0) close(a->epoll);
    if (a->signals >= 0) close(a->signals);
    if (a->wire) wire_end(a->wire);
    if (a->owns_dir) jobdir_remove_last(&a->dir, OTHERS_END_MS);
}

void agent_kill_engine(struct agent *a)
{
    if (a->seat && a->seat->proc) proc_kill(a->seat->proc, false, "the agent ends");
}

_Noreturn void agent_die(struct agent *a, const char *what, const struct error *err)
{
    char line[1100];
    log_error("%s: %s. This rank ends, and the job with it.", what, error_text(err, line, sizeof line));
    agent_kill_engine(a);
    wire_abort(a->wire, 1);
}

int agent_main(int argc, char **argv)
{
    struct agent *a = mem_zero(1, sizeof *a);
    thread_slice(SLICE_SHORT_NS);
    int rc = agent_start(a, argc, argv);
    if (rc == 0) rc = agent_loop(a);
    agent_finish(a);
    free(a);
    return rc < 0 ? 0 : rc;
}
