/* NCCL between processes of one machine, naively: the part that coll/ uses, with communicators that do not block. What is sent lies
 * in a memory of the processes, a mailbox for each pair; work waits in its stream until somebody waits for that. As with the real one
 * nothing is on the stream before ncclCommGetAsyncError has said so, and a communicator that is asked for more before is an error. */
#include "cudasim.h"

#include <cuda_runtime.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

extern "C" {
#include "coll/nccl_api.h"
}

namespace
{
enum { MOST_RANKS = 16, MAIL_BYTES = 32 << 10, POLLS = 2 };
struct mailbox { /* of a pair: one piece at a time */
    std::atomic<uint32_t> put, taken;
    uint64_t total, bytes; /* of the message, of this piece */
    char data[MAIL_BYTES];
};
struct memory {
    std::atomic<uint32_t> joined; /* a bit for each rank */
    mailbox box[MOST_RANKS][MOST_RANKS];
};
struct name { /* in the first bytes of an id: where the memory is */
    int pid, fd;
};
struct transfer {
    bool out;
    int peer;
    char *at;
    size_t bytes, done;
    bool begun;
};
struct work {
    std::vector<transfer> transfers;
    cudaStream_t stream;
};
} // namespace

struct ncclComm {
    memory *shared;
    int ranks, rank, polls;
    std::atomic<int> state; /* an enum nccl_result: the asynchronous one */
    std::atomic<bool> aborted;
    std::shared_ptr<work> asked; /* what is on its way to the stream */
};

namespace
{
uint64_t fail_in;
int fail_with, depth, version = 22809;
bool never_connects;
const char *missing;
std::vector<ncclComm *> communicators; /* all that there were: work in streams may name them */
thread_local std::vector<transfer> group;
thread_local ncclComm *group_comm;
thread_local cudaStream_t group_stream;

/* A process that is driven from outside has an asynchronous error when the file that CUDASIM_NCCL_FAIL names is there. */
void asked_to_fail()
{
    static const char *const file = getenv("CUDASIM_NCCL_FAIL");
    if (!file || fail_in || unlink(file)) return;
    fail_in = 1;
    fail_with = NCCL_REMOTE_ERROR;
}

int called()
{
    asked_to_fail();
    if (fail_in > 1) fail_in--;
    return fail_in == 1 ? fail_with : NCCL_SUCCESS;
}

mailbox &box(ncclComm *c, int from, int to)
{
    return c->shared->box[from][to];
}

/* One piece, if there is room or it is there. */
bool move_out(ncclComm *c, transfer &t)
{
    mailbox &b = box(c, c->rank, t.peer);
    if (b.put.load() != b.taken.load()) return false;
    b.total = t.bytes;
    b.bytes = std::min<size_t>(t.bytes - t.done, MAIL_BYTES);
    memcpy(b.data, t.at + t.done, b.bytes);
    t.done += b.bytes;
    b.put++;
    return true;
}

bool move_in(ncclComm *c, transfer &t)
{
    mailbox &b = box(c, t.peer, c->rank);
    if (b.put.load() == b.taken.load()) return false;
    if (b.total != t.bytes) {
        fprintf(stderr, "cudasim: rank %d sends %zu bytes to rank %d, which expects %zu\n", t.peer,
                (size_t)b.total, c->rank, t.bytes);
        abort();
    }
    memcpy(t.at + t.done, b.data, b.bytes);
    t.done += b.bytes;
    b.taken++;
    return true;
}

/* To and from the same peer messages go in order: an earlier transfer first. */
bool earlier(const std::vector<transfer> &all, const transfer &t)
{
    for (const transfer &other : all) {
        if (&other == &t) return false;
        if (other.out == t.out && other.peer == t.peer && !(other.begun && other.done == other.bytes))
            return true;
    }
    return false;
}

/* True when everything has arrived, or nobody waits for it any more. */
bool transfer_all(ncclComm *c, std::vector<transfer> &all)
{
    for (bool moved = true; moved;) {
        moved = false;
        if (c->aborted) return true;
        for (transfer &t : all) {
            if ((t.begun && t.done == t.bytes) || earlier(all, t)) continue;
            if (!(t.out ? move_out(c, t) : move_in(c, t))) continue;
            t.begun = moved = true;
        }
    }
    for (const transfer &t : all)
        if (!t.begun || t.done < t.bytes) return false;
    return true;
}

int ready(ncclComm *c)
{
    if (int e = called()) return e;
    return c->state.load() == NCCL_SUCCESS ? NCCL_SUCCESS : NCCL_INVALID_ARGUMENT;
}

int submit(ncclComm *c, std::vector<transfer> transfers, cudaStream_t stream)
{
    c->asked = std::make_shared<work>(work{std::move(transfers), stream});
    c->polls = POLLS;
    c->state = NCCL_IN_PROGRESS;
    return NCCL_IN_PROGRESS;
}

int add(ncclComm *c, const transfer &t, cudaStream_t stream)
{
    if (int e = ready(c)) return e;
    if (t.peer < 0 || t.peer >= c->ranks) return NCCL_INVALID_ARGUMENT;
    if (!depth) return submit(c, {t}, stream);
    group.push_back(t);
    group_comm = c;
    group_stream = stream;
    return NCCL_SUCCESS;
}

/* What was asked for goes to the stream. */
void enqueue(ncclComm *c)
{
    std::shared_ptr<work> w = std::move(c->asked);
    cudasim::later_until(w->stream, [=] { return transfer_all(c, w->transfers); });
}

int get_version(int *out)
{
    *out = version;
    return NCCL_SUCCESS;
}

int unique_id(nccl_id *id)
{
    if (int e = called()) return e;
    name n = {getpid(), memfd_create("cudasim-nccl", MFD_CLOEXEC)};
    memset(id, 0, sizeof *id);
    if (n.fd < 0 || ftruncate(n.fd, sizeof(memory))) return NCCL_SYSTEM_ERROR;
    memcpy(id, &n, sizeof n);
    return NCCL_SUCCESS;
}

int init(nccl_comm *out, int ranks, nccl_id id, int rank, nccl_config *config)
{
    name n;
    char path[64];
    *out = nullptr;
    if (int e = called()) return e;
    if (config->size < sizeof *config || config->magic != (unsigned)NCCL_CONFIG_MAGIC || config->blocking)
        return NCCL_INVALID_ARGUMENT;
    if (ranks > MOST_RANKS || rank < 0 || rank >= ranks) return NCCL_INVALID_ARGUMENT;
    memcpy(&n, &id, sizeof n);
    snprintf(path, sizeof path, "/proc/%d/fd/%d", n.pid, n.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    void *at = mmap(nullptr, sizeof(memory), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0) close(fd);
    if (at == MAP_FAILED) return NCCL_SYSTEM_ERROR;
    ncclComm *c = *out = new ncclComm();
    communicators.push_back(c);
    c->shared = (memory *)at;
    c->ranks = ranks;
    c->rank = rank;
    c->state = NCCL_IN_PROGRESS;
    if (!never_connects) c->shared->joined.fetch_or(1u << rank);
    return NCCL_IN_PROGRESS;
}

int async_error(nccl_comm c, int *state)
{
    int e = called();
    if (e) c->state = e;
    if (c->state == NCCL_IN_PROGRESS && c->shared->joined == (1u << c->ranks) - 1 && --c->polls < 0) {
        if (c->asked) enqueue(c);
        c->state = NCCL_SUCCESS;
    }
    *state = c->state;
    return NCCL_SUCCESS;
}

/* Work that nobody waits for any more may still be in a stream: it ends there. */
int abort_comm(nccl_comm c)
{
    c->aborted = true;
    c->asked = nullptr;
    munmap(c->shared, sizeof(memory));
    return NCCL_SUCCESS;
}

const char *last_error(nccl_comm)
{
    return "emulated failure";
}

int group_start()
{
    depth++;
    return NCCL_SUCCESS;
}

int group_end()
{
    if (--depth || group.empty()) return NCCL_SUCCESS;
    return submit(group_comm, std::move(group), group_stream);
}

int send(const void *data, size_t count, int, int peer, nccl_comm c, void *stream)
{
    return add(c, {true, peer, (char *)data, count, 0, false}, (cudaStream_t)stream);
}

int receive(void *data, size_t count, int, int peer, nccl_comm c, void *stream)
{
    return add(c, {false, peer, (char *)data, count, 0, false}, (cudaStream_t)stream);
}

int all_gather(const void *in, void *out, size_t count, int, nccl_comm c, void *stream)
{
    group_start();
    int result = NCCL_SUCCESS;
    for (int i = 0; i < c->ranks && !result; i++) {
        result = send(in, count, 0, i, c, stream);
        if (!result) result = receive((char *)out + i * count, count, 0, i, c, stream);
    }
    int ended = group_end();
    return result ? result : ended;
}
} // namespace

void cudasim_nccl_fail(uint64_t n, int result)
{
    fail_in = n;
    fail_with = result;
}

void cudasim_nccl_version(int v)
{
    version = v;
}

void cudasim_nccl_without(const char *function)
{
    missing = function;
}

void cudasim_nccl_never_connects(void)
{
    never_connects = true;
}

static bool lacks(const char *name)
{
    const char *said = missing ? missing : getenv("CUDASIM_NCCL_WITHOUT");
    return said && !strcmp(said, name);
}

/* coll/ asks for functions of NCCL by name. */
extern "C" void *nccl_symbol(const char *name)
{
    static const struct {
        const char *name;
        void *function;
    } all[] = {
        {"ncclGetVersion", (void *)get_version},
        {"ncclGetUniqueId", (void *)unique_id},
        {"ncclCommInitRankConfig", (void *)init},
        {"ncclCommGetAsyncError", (void *)async_error},
        {"ncclCommAbort", (void *)abort_comm},
        {"ncclGetLastError", (void *)last_error},
        {"ncclGroupStart", (void *)group_start},
        {"ncclGroupEnd", (void *)group_end},
        {"ncclAllGather", (void *)all_gather},
        {"ncclSend", (void *)send},
        {"ncclRecv", (void *)receive},
    };
    for (const auto &f : all)
        if (!strcmp(f.name, name)) return lacks(name) ? nullptr : f.function;
    return nullptr;
}
