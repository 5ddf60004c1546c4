/* The runtime: memory, streams, events. What is asked of a stream waits in its queue until somebody waits for the stream: a
 * buffer that is used again too early, or read too soon, shows. */
#include "cudasim.h"
#include "fibers.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <sstream>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <unordered_map>
#include <vector>

struct cudasim_event {
    cudaStream_t stream;
    uint64_t wanted, done; /* the record to wait for, the last one reached */
};
struct cudasim_stream {
    std::deque<std::function<bool()>> work; /* false: it waits for another process */
};

namespace
{
/* Threads may ask for memory and copies; kernels are one thread's. */
std::recursive_mutex mutex;
#define ONE_AT_A_TIME std::lock_guard<std::recursive_mutex> guard(mutex)

struct machine {
    std::unordered_map<void *, size_t> memory;
    size_t bytes;
    uint64_t fail_in;
    cudaError_t fail_with, last;
    std::unordered_map<const void *, int> shared_limit;
} m;
const size_t total_memory = (size_t)4 << 30, shared_static = 48 << 10, shared_most = 99 << 10;

/* A process that is driven from outside fails when the file that CUDASIM_FAIL names is there; it takes it away, so that one does. */
void asked_to_fail()
{
    static const char *const file = getenv("CUDASIM_FAIL");
    if (!file || m.fail_in || unlink(file)) return;
    m.fail_in = 1;
    m.fail_with = cudaErrorIllegalAddress;
}

/* Counts a call; not cudaSuccess: it fails, as all behind it do. */
cudaError_t called()
{
    ONE_AT_A_TIME;
    asked_to_fail();
    if (m.fail_in && m.fail_in > 1)
        m.fail_in--;
    else if (m.fail_in)
        m.last = m.fail_with;
    return m.fail_in == 1 ? m.fail_with : cudaSuccess;
}

/* Memory begins as NaN. Devices are opened with far more of it than tests use: large memory is a file of NaN, mapped again and again,
 * and costs what is written. With the sanitizer all is of the exact size, so that the byte behind it is out of bounds. */
const size_t nan_bytes = 1 << 20;
#if defined(__SANITIZE_ADDRESS__)
const bool maps_large = false;
#else
const bool maps_large = true;
#endif

int nan_file()
{
    int file = memfd_create("cudasim-nan", MFD_CLOEXEC);
    std::vector<char> nan(nan_bytes, (char)0xff);
    return file >= 0 && write(file, nan.data(), nan_bytes) == (ssize_t)nan_bytes ? file : -1;
}

void *map_nan(size_t bytes)
{
    static const int file = nan_file();
    void *at = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return nullptr;
    for (size_t i = 0; i < bytes; i += nan_bytes)
        if (mmap((char *)at + i, std::min(nan_bytes, bytes - i), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_FIXED, file, 0) == MAP_FAILED) {
            munmap(at, bytes);
            return nullptr;
        }
    return at;
}

bool is_mapped(size_t bytes)
{
    return maps_large && bytes >= nan_bytes;
}

cudaError_t allocate(void **at, size_t bytes)
{
    ONE_AT_A_TIME;
    if (cudaError_t e = called()) return e;
    if (m.bytes + bytes > total_memory) return m.last = cudaErrorMemoryAllocation;
    *at = nullptr;
    if (is_mapped(bytes))
        *at = map_nan(bytes);
    else if (!posix_memalign(at, 256, bytes ? bytes : 1))
        memset(*at, 0xff, bytes);
    if (!*at) return m.last = cudaErrorMemoryAllocation;
    m.memory[*at] = bytes;
    m.bytes += bytes;
    return cudaSuccess;
}

cudaError_t release(void *at)
{
    ONE_AT_A_TIME;
    if (!at) return cudaSuccess;
    auto found = m.memory.find(at);
    if (found == m.memory.end()) return m.last = cudaErrorInvalidValue;
    size_t bytes = found->second;
    m.bytes -= bytes;
    m.memory.erase(found);
    if (is_mapped(bytes))
        munmap(at, bytes);
    else
        free(at);
    return cudaSuccess;
}

/* The next work of the stream; false: it could not be done now. */
bool advance(cudaStream_t s)
{
    std::function<bool()> next = std::move(s->work.front());
    s->work.pop_front();
    if (next()) return true;
    s->work.push_front(std::move(next));
    return false;
}

bool run(cudaStream_t s)
{
    ONE_AT_A_TIME;
    while (!s->work.empty())
        if (!advance(s)) return false;
    return true;
}

bool reach(cudaEvent_t e, uint64_t record)
{
    ONE_AT_A_TIME;
    while (e->done < record && e->stream && !e->stream->work.empty())
        if (!advance(e->stream)) return false;
    return true;
}

const unsigned nap_us = 50; /* other processes are about to do what is waited for */

template <class F> void until(F done)
{
    while (!done()) usleep(nap_us);
}

cudaError_t asked(bool done)
{
    if (!done) usleep(nap_us);
    return done ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t queue(cudaStream_t s, std::function<bool()> work)
{
    ONE_AT_A_TIME;
    if (cudaError_t e = called()) return e;
    s->work.push_back(std::move(work));
    return cudaSuccess;
}
} // namespace

cudaError_t cudasim::later_until(cudaStream_t stream, std::function<bool()> work)
{
    return queue(stream, std::move(work));
}

cudaError_t cudasim::later(cudaStream_t stream, std::function<void()> work)
{
    return queue(stream, [=] {
        work();
        return true;
    });
}

int cudasim_here(void)
{
    return 1;
}

void cudasim_fail(uint64_t n, int error)
{
    m.fail_in = n;
    m.fail_with = (cudaError_t)error;
    m.last = cudaSuccess;
}

size_t cudasim_allocated(void)
{
    return m.bytes;
}

/* ---- which devices there are, and which of them this process sees */
namespace
{
const char first_uuid[] = "cudasim-device-0";

std::string uuid_of(int device)
{
    std::string text = "GPU-";
    for (size_t i = 0; i < 16; i++) {
        char digits[12];
        snprintf(digits, sizeof digits, "%02x", first_uuid[i] + (i == 15 ? device : 0));
        text += (i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "") + std::string(digits);
    }
    return text;
}

/* One of n: a number, or the beginning of a UUID that no other begins with. -1: none. */
int named(const std::string &word, int n)
{
    int found = -1;
    char *end;
    if (word.compare(0, 4, "GPU-")) {
        long number = strtol(word.c_str(), &end, 10);
        return !word.empty() && !*end && number >= 0 && number < n ? (int)number : -1;
    }
    for (int i = 0; i < n; i++)
        if (!uuid_of(i).compare(0, word.size(), word)) found = found < 0 ? i : n;
    return found < n ? found : -1;
}

/* As many as CUDASIM_DEVICES says, or one; of these what CUDA_VISIBLE_DEVICES names, in its order. Its first word that names none ends it. */
std::vector<int> visible()
{
    const char *said = getenv("CUDASIM_DEVICES"), *list = getenv("CUDA_VISIBLE_DEVICES");
    int n = said ? atoi(said) : 1;
    std::vector<int> devices;
    for (int i = 0; !list && i < n; i++) devices.push_back(i);
    std::istringstream words(list ? list : "");
    for (std::string word; std::getline(words, word, ',') && named(word, n) >= 0;)
        devices.push_back(named(word, n));
    return devices;
}
} // namespace

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = (int)visible().size();
    return *count ? called() : cudaErrorNoDevice;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop, int ordinal)
{
    if (cudaError_t e = called()) return e;
    const std::vector<int> devices = visible();
    if (ordinal < 0 || (size_t)ordinal >= devices.size()) return m.last = cudaErrorInvalidDevice;
    int device = devices[(size_t)ordinal];
    memset((void *)prop, 0, sizeof *prop);
    snprintf(prop->name, sizeof prop->name, "cudasim");
    memcpy(prop->uuid.bytes, first_uuid, 16);
    prop->uuid.bytes[15] = (char)(prop->uuid.bytes[15] + device);
    prop->pciBusID = device;
    prop->totalGlobalMem = total_memory;
    prop->major = 8;
    prop->multiProcessorCount = 4;
    prop->sharedMemPerBlockOptin = shared_most;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int ordinal)
{
    if (ordinal < 0 || (size_t)ordinal >= visible().size()) return m.last = cudaErrorInvalidDevice;
    return called();
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    *free_bytes = total_memory - m.bytes;
    *total = total_memory;
    return called();
}

cudaError_t cudaMalloc(void **at, size_t bytes)
{
    return allocate(at, bytes);
}
cudaError_t cudaMallocHost(void **at, size_t bytes)
{
    return allocate(at, bytes);
}
cudaError_t cudaFree(void *at)
{
    return release(at);
}
cudaError_t cudaFreeHost(void *at)
{
    return release(at);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t stream)
{
    return cudasim::later(stream, [=] { memcpy(to, from, bytes); });
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t ld_to, const void *from, size_t ld_from, size_t bytes,
                              size_t rows, cudaMemcpyKind, cudaStream_t stream)
{
    if (bytes > ld_to || bytes > ld_from) return m.last = cudaErrorInvalidValue;
    return cudasim::later(stream, [=] {
        for (size_t i = 0; i < rows; i++)
            memcpy((char *)to + i * ld_to, (const char *)from + i * ld_from, bytes);
    });
}

cudaError_t cudaMemsetAsync(void *at, int value, size_t bytes, cudaStream_t stream)
{
    return cudasim::later(stream, [=] { memset(at, value, bytes); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned)
{
    if (cudaError_t e = called()) return e;
    *stream = new cudasim_stream();
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    if (cudaError_t e = called()) return e;
    until([=] { return run(stream); });
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    if (cudaError_t e = called()) return e;
    return asked(run(stream));
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    uint64_t record = event->wanted;
    return queue(stream, [=] { return reach(event, record); });
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned)
{
    if (cudaError_t e = called()) return e;
    *event = new cudasim_event();
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    uint64_t record = ++event->wanted;
    event->stream = stream;
    return cudasim::later(stream, [=] { event->done = record; });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    if (cudaError_t e = called()) return e;
    until([=] { return reach(event, event->wanted); });
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    if (cudaError_t e = called()) return e;
    return asked(reach(event, event->wanted));
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    return cudaSuccess;
}

cudaError_t cudaGetLastError()
{
    cudaError_t e = m.last;
    m.last = m.fail_in == 1 ? m.fail_with : cudaSuccess;
    return e;
}

const char *cudaGetErrorName(cudaError_t error)
{
    switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    }
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error)
{
    return error ? "emulated failure" : "no error";
}

cudaError_t cudasim::allow_shared(const void *kernel, int bytes)
{
    if (bytes > (int)shared_most) return m.last = cudaErrorInvalidValue;
    m.shared_limit[kernel] = bytes;
    return called();
}

cudaError_t cudasim::launch(const cudaLaunchConfig_t *c, const void *kernel, std::function<void()> thread)
{
    size_t limit = shared_static;
    auto found = m.shared_limit.find(kernel);
    if (found != m.shared_limit.end() && (size_t)found->second > limit) limit = (size_t)found->second;
    unsigned threads = c->blockDim.x * c->blockDim.y * c->blockDim.z;
    bool empty = !c->gridDim.x || !c->gridDim.y || !c->gridDim.z || !threads;
    if (empty || threads > 1024 || c->gridDim.y > 65535 || c->gridDim.z > 65535 ||
        c->dynamicSmemBytes > limit)
        return m.last = cudaErrorInvalidValue;
    dim3 grid = c->gridDim, block = c->blockDim;
    size_t bytes = c->dynamicSmemBytes;
    return cudasim::later(c->stream, [=] { run_grid(grid, block, bytes, thread); });
}
