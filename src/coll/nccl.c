/* Memory of GPUs: communicators of NCCL for the stage and for all engines, how they come about, and what is asked of them. */
#include "coll/coll_inner.h"
#include "coll/nccl_api.h"

#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { NOTES = 4096, UUID_BYTES = 48 };

struct note { /* of a call, for words about it */
    const char *name;
    u64 bytes;
    u32 peer; /* of the group's members, or NOBODY */
    bool all; /* the group of all */
};
struct coll_nccl {
    struct nccl_api api;
    struct coll_world *world;
    struct coll *stage, *all; /* who is in which communicator */
    nccl_comm stage_comm, all_comm;
    void *stream;
    struct note notes[NOTES]; /* of the last calls, by number */
    u64 calls, ticked_ns;
    bool broken;
    struct error err;
};

/* ---- the library -----------------------------------------------------------------------------------------------*/
static int load(struct nccl_api *api, struct error *err)
{
    struct {
        const char *name;
        void *at;
    } all[] = {
        {"ncclGetVersion", &api->version},
        {"ncclGetUniqueId", &api->unique_id},
        {"ncclCommInitRankConfig", &api->init},
        {"ncclCommGetAsyncError", &api->async_error},
        {"ncclCommAbort", &api->abort},
        {"ncclGetLastError", &api->last_error},
        {"ncclGroupStart", &api->group_start},
        {"ncclGroupEnd", &api->group_end},
        {"ncclAllGather", &api->all_gather},
        {"ncclSend", &api->send},
        {"ncclRecv", &api->receive},
    };
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        void *symbol = nccl_symbol(all[i].name);
        if (!symbol)
            return error_set(
                err, ERR_NOT_FOUND, "libnccl.so.2",
                "cannot be opened, or has no %s: several GPUs for a model need NCCL 2.14 or later; "
                "install it (libnccl2), or add its folder to LD_LIBRARY_PATH",
                all[i].name);
        memcpy(all[i].at, &symbol, sizeof symbol);
    }
    return 0;
}

int coll_nccl_version(struct error *err)
{
    struct nccl_api api;
    int version = 0, rc = load(&api, err);
    if (rc) return rc;
    rc = api.version(&version);
    return rc ? error_set(err, ERR_STATE, "libnccl.so.2", "does not tell its version: result %d", rc)
              : version;
}

static const char *result_name(int result)
{
    static const char *const names[NCCL_RESULTS] = {
        "ncclSuccess",         "ncclUnhandledCudaError", "ncclSystemError", "ncclInternalError",
        "ncclInvalidArgument", "ncclInvalidUsage",       "ncclRemoteError", "ncclInProgress"};
    return result >= 0 && result < NCCL_RESULTS ? names[result] : "an unknown result";
}

/* ---- words -----------------------------------------------------------------------------------------------------*/
struct words {
    char text[240];
};

static struct words name_of(const struct coll *c, u32 member)
{
    struct words w;
    u32 engine = c->member[member];
    snprintf(w.text, sizeof w.text, "engine %u (rank %u)", engine, c->world->spec.shape.rank[engine]);
    return w;
}

static struct words members_of(const struct coll *c)
{
    struct words w;
    snprintf(w.text, sizeof w.text, "of %.60s to %.60s", name_of(c, 0).text, name_of(c, c->n - 1).text);
    return w;
}

static struct words call_words(const struct coll_nccl *n, u64 call)
{
    struct words w;
    const struct note *note = &n->notes[call % NOTES];
    const struct coll *c = note->all ? n->all : n->stage;
    if (!call || call > n->calls || call + NOTES <= n->calls)
        snprintf(w.text, sizeof w.text, "the work that is not NCCL's");
    else if (note->peer != NOBODY)
        snprintf(w.text, sizeof w.text, "%s %llu of %llu bytes, with %.60s", note->name,
                 (unsigned long long)call, (unsigned long long)note->bytes, name_of(c, note->peer).text);
    else
        snprintf(w.text, sizeof w.text, "%s %llu of %llu bytes %.130s", note->name, (unsigned long long)call,
                 (unsigned long long)note->bytes, members_of(c).text);
    return w;
}

/* ---- failures --------------------------------------------------------------------------------------------------*/
static int broken(const struct coll_nccl *n, struct error *err)
{
    return error_set(err, n->err.code, n->err.where, "%s", n->err.message);
}

__attribute__((format(printf, 3, 4))) static int fail(struct coll_nccl *n, struct error *err,
                                                      const char *format, ...)
{
    if (!n->broken) {
        char text[500];
        va_list args;
        va_start(args, format);
        vsnprintf(text, sizeof text, format, args);
        va_end(args);
        error_set(&n->err, ERR_PEER, "NCCL", "%s", text);
    }
    n->broken = true;
    return broken(n, err);
}

static int fail_result(struct coll_nccl *n, nccl_comm comm, int result, const char *what, struct error *err)
{
    const char *more = n->api.last_error(comm);
    return fail(n, err, "%s in %s%s%.200s", result_name(result), what, more && *more ? ": " : "",
                more ? more : "");
}

/* ---- asking ----------------------------------------------------------------------------------------------------*/
static void beat(struct coll_nccl *n)
{
    const struct coll_spec *s = &n->world->spec;
    u64 now = clock_ns();
    if (!s->tick || now - n->ticked_ns < s->tick_ns) return;
    n->ticked_ns = now;
    s->tick(s->arg);
}

/* The communicator's state; what cannot even be asked for is an error, too. */
static int state_of(const struct coll_nccl *n, nccl_comm comm)
{
    int state = NCCL_SUCCESS, result = n->api.async_error(comm, &state);
    return result && result != NCCL_IN_PROGRESS ? result : state;
}

/* Until NCCL has done what was asked last: result is what it said then. */
static int settle(struct coll_nccl *n, nccl_comm comm, int result, u64 wait_ns, const char *what,
                  struct error *err)
{
    enum { EAGER = 2000 };
    u64 start = 0;
    for (u32 turn = 0; result == NCCL_IN_PROGRESS; turn++) {
        result = state_of(n, comm);
        if (result != NCCL_IN_PROGRESS) break;
        u64 now = clock_ns();
        if (!start) start = now;
        if (now - start >= wait_ns)
            return fail(n, err, "%s: NCCL is not ready within %.1f s; NCCL_DEBUG=WARN lets it say why", what,
                        (double)wait_ns / NS_PER_S);
        beat(n);
        if (turn < EAGER)
            sched_yield();
        else
            nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    }
    return result ? fail_result(n, comm, result, what, err) : 0;
}

/* ---- opening ---------------------------------------------------------------------------------------------------*/
struct card { /* what an engine says of itself before NCCL is asked for anything */
    char uuid[UUID_BYTES];
    i32 version; /* 0: it has no NCCL */
    u32 pad;
};

static int check_card(const struct coll *c, const struct card *cards, u32 i, struct error *err)
{
    const struct card *mine = &cards[c->me], *other = &cards[i];
    if (!other->version)
        return error_set(err, ERR_PEER, "NCCL", "%s has none: its log says why", name_of(c, i).text);
    if (other->version != mine->version)
        return error_set(err, ERR_PEER, "NCCL", "%s has version %d, this engine has %d: all need the same",
                         name_of(c, i).text, other->version, mine->version);
    for (u32 k = 0; k < i; k++)
        if (!memcmp(cards[k].uuid, other->uuid, sizeof other->uuid))
            return error_set(err, ERR_INPUT, "NCCL",
                             "%s and %s have the same GPU, %.47s: each engine needs its own",
                             name_of(c, k).text, name_of(c, i).text, other->uuid);
    return 0;
}

/* All are there, with a library (loaded: what became of it here) and a GPU that each can work with. */
static int meet(struct coll_nccl *n, const struct coll_gpu *gpu, int loaded, struct error *err)
{
    struct card cards[COLL_MAX] = {0}, mine = {.version = 0};
    const struct coll_how how = {.wait_ns = gpu->wait_ns};
    const struct coll_gather g = {.in = &mine,
                                  .out = cards,
                                  .rows = 1,
                                  .bytes = sizeof mine,
                                  .ld_in = sizeof mine,
                                  .ld_out = sizeof cards};
    struct error others;
    int version = 0;
    if (!loaded && n->api.version(&version) == NCCL_SUCCESS) mine.version = version;
    snprintf(mine.uuid, sizeof mine.uuid, "%s", gpu->uuid);
    int rc = coll_all_gather(n->all, &g, &how, loaded ? &others : err);
    if (loaded) return loaded;
    if (!rc && version < NCCL_SINCE)
        rc = error_set(err, ERR_UNSUPPORTED, "NCCL", "version %d is too old: 2.14 or later is needed",
                       version);
    for (u32 i = 0; i < n->all->n && !rc; i++) rc = check_card(n->all, cards, i, err);
    return rc;
}

/* A communicator of the group's members. */
static int connect_group(struct coll_nccl *n, struct coll *c, nccl_comm *comm, u64 wait_ns, struct error *err)
{
    struct {
        struct nccl_id id;
        i32 result, pad;
    } first = {.result = NCCL_SUCCESS};
    const struct coll_how how = {.wait_ns = wait_ns};
    struct nccl_config config = {.size = sizeof config,
                                 .magic = (unsigned)NCCL_CONFIG_MAGIC,
                                 .version = NCCL_SINCE,
                                 .blocking = 0,
                                 .unset = NCCL_UNSET};
    char what[300];
    if (c->me == 0) first.result = n->api.unique_id(&first.id);
    int rc = coll_broadcast(c, 0, &first, sizeof first, &how, err);
    if (rc) return rc;
    if (first.result) return fail_result(n, NULL, first.result, "ncclGetUniqueId of the first engine", err);
    snprintf(what, sizeof what, "connecting the GPUs %s", members_of(c).text);
    int result = n->api.init(comm, (int)c->n, first.id, (int)c->me, &config);
    return settle(n, *comm, result, wait_ns, what, err);
}

struct coll_nccl *coll_nccl_open(struct coll_world *w, const struct coll_gpu *gpu, struct error *err)
{
    struct coll_nccl *n = mem_zero(1, sizeof *n);
    n->world = w;
    n->stage = coll_stage(w);
    n->all = coll_all(w);
    n->stream = gpu->stream;
    n->ticked_ns = clock_ns();
    BUG_ON(n->all->n < 2);
    int rc = meet(n, gpu, load(&n->api, err), err);
    if (!rc && n->stage->n > 1) rc = connect_group(n, n->stage, &n->stage_comm, gpu->wait_ns, err);
    if (n->stage == n->all)
        n->all_comm = n->stage_comm;
    else if (!rc)
        rc = connect_group(n, n->all, &n->all_comm, gpu->wait_ns, err);
    if (!rc) return n;
    coll_nccl_close(n);
    return NULL;
}

void coll_nccl_close(struct coll_nccl *n)
{
    if (!n) return;
    if (n->stage_comm) n->api.abort(n->stage_comm);
    if (n->all_comm && n->all_comm != n->stage_comm) n->api.abort(n->all_comm);
    free(n);
}

/* ---- calls -----------------------------------------------------------------------------------------------------*/
static void begin(struct coll_nccl *n, enum call_kind kind, bool all, u32 peer, u64 bytes)
{
    n->notes[++n->calls % NOTES] = (struct note){call_name(kind), bytes, peer, all};
}

static int finish(struct coll_nccl *n, nccl_comm comm, int result, struct error *err)
{
    if (!result) return 0;
    return settle(n, comm, result, n->world->spec.wait_ns, call_words(n, n->calls).text, err);
}

/* A part of a group of messages; nothing after the first failure. */
static void put(const struct coll_nccl *n, nccl_comm comm, u32 to, const void *data, size_t bytes,
                int *result)
{
    if (*result == NCCL_SUCCESS || *result == NCCL_IN_PROGRESS)
        *result = n->api.send(data, bytes, NCCL_BYTES, (int)to, comm, n->stream);
}

static void get(const struct coll_nccl *n, nccl_comm comm, u32 from, void *data, size_t bytes, int *result)
{
    if (*result == NCCL_SUCCESS || *result == NCCL_IN_PROGRESS)
        *result = n->api.receive(data, bytes, NCCL_BYTES, (int)from, comm, n->stream);
}

static int end_group(const struct coll_nccl *n, int result)
{
    int ended = n->api.group_end();
    return result == NCCL_SUCCESS || result == NCCL_IN_PROGRESS ? ended : result;
}

int coll_nccl_all_gather(struct coll_nccl *n, const void *in, void *out, size_t bytes, struct error *err)
{
    if (n->broken) return broken(n, err);
    begin(n, CALL_ALL_GATHER, false, NOBODY, bytes);
    return finish(n, n->stage_comm, n->api.all_gather(in, out, bytes, NCCL_BYTES, n->stage_comm, n->stream),
                  err);
}

int coll_nccl_gather(struct coll_nccl *n, u32 root, const void *in, void *out, size_t bytes,
                     struct error *err)
{
    const struct coll *c = n->stage;
    if (n->broken) return broken(n, err);
    begin(n, CALL_GATHER, false, NOBODY, bytes);
    int result = n->api.group_start();
    if (c->me != root) put(n, n->stage_comm, root, in, bytes, &result);
    for (u32 i = 0; c->me == root && i < c->n; i++)
        if (i != root) get(n, n->stage_comm, i, (u8 *)out + i * bytes, bytes, &result);
    return finish(n, n->stage_comm, end_group(n, result), err);
}

int coll_nccl_all_to_all(struct coll_nccl *n, const void *in, void *out, size_t bytes, struct error *err)
{
    if (n->broken) return broken(n, err);
    begin(n, CALL_ALL_TO_ALL, false, NOBODY, bytes);
    int result = n->api.group_start();
    for (u32 i = 0; i < n->stage->n; i++) {
        put(n, n->stage_comm, i, (const u8 *)in + i * bytes, bytes, &result);
        get(n, n->stage_comm, i, (u8 *)out + i * bytes, bytes, &result);
    }
    return finish(n, n->stage_comm, end_group(n, result), err);
}

int coll_nccl_send(struct coll_nccl *n, u32 to, const void *data, size_t bytes, struct error *err)
{
    int result = NCCL_SUCCESS;
    BUG_ON(to >= n->all->n || to == n->all->me);
    if (n->broken) return broken(n, err);
    begin(n, CALL_SEND, true, to, bytes);
    put(n, n->all_comm, to, data, bytes, &result);
    return finish(n, n->all_comm, result, err);
}

int coll_nccl_receive(struct coll_nccl *n, u32 from, void *data, size_t bytes, struct error *err)
{
    int result = NCCL_SUCCESS;
    BUG_ON(from >= n->all->n || from == n->all->me);
    if (n->broken) return broken(n, err);
    begin(n, CALL_RECEIVE, true, from, bytes);
    get(n, n->all_comm, from, data, bytes, &result);
    return finish(n, n->all_comm, result, err);
}

u64 coll_nccl_calls(const struct coll_nccl *n)
{
    return n->calls;
}

/* The first call that is not done is the one that failed, or did not end. */
int coll_nccl_look(struct coll_nccl *n, u64 done, u64 waited_ns, struct error *err)
{
    const nccl_comm comms[] = {n->stage_comm,
                               n->all_comm}; /* one of a stage alone, or of one stage: see open */
    u64 wait_ns = n->world->spec.wait_ns;
    if (n->broken) return broken(n, err);
    for (size_t i = 0; i < COUNT_OF(comms); i++) {
        int state = comms[i] ? state_of(n, comms[i]) : NCCL_SUCCESS;
        if (state && state != NCCL_IN_PROGRESS)
            return fail_result(n, comms[i], state, call_words(n, done + 1).text, err);
    }
    if (waited_ns > wait_ns)
        return fail(n, err, "%s is not done within %.1f s", call_words(n, done + 1).text,
                    (double)wait_ns / NS_PER_S);
    beat(n);
    return 0;
}
