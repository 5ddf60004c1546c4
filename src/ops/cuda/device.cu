/* A device of this process: its stream, memory, copies and the first error. */
#include "table.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

enum { STAGE_BYTES = 4 << 20 }; /* of an upload; larger ones go in parts */

struct stage { /* pinned memory, and when its last copy was done */
    u8 *at;
    cudaEvent_t done;
};
struct device {
    struct device_info info;
    int ordinal;
    cudaStream_t stream;
    struct stage stages[DEVICE_UPLOADS];
    u32 next_stage;
    float *partial;
    struct blas *blas;
    struct error failure;      /* the first one; code 0: none */
    struct device_watch watch; /* look NULL: nobody looks */
    volatile u64 *marked;      /* pinned: the last mark that was reached */
};

/* ---- what is there */
static int failed_to(struct error *err, cudaError_t e, const char *what)
{
    int code = e == cudaErrorNoDevice || e == cudaErrorInsufficientDriver ? ERR_UNSUPPORTED : ERR_STATE;
    return error_set(err, code, "CUDA", "%s: %s (%s)", what, cudaGetErrorName(e), cudaGetErrorString(e));
}

static void uuid_text(char out[48], const cudaUUID_t *uuid)
{
    char *to = out + sprintf(out, "GPU-");
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10) *to++ = '-';
        to += sprintf(to, "%02x", (unsigned char)uuid->bytes[i]);
    }
}

static int describe(struct device_info *out, int index, struct error *err)
{
    cudaDeviceProp p;
    cudaError_t e = cudaGetDeviceProperties(&p, index);
    if (e) return failed_to(err, e, "asking for the properties of a device");
    memset(out, 0, sizeof *out);
    snprintf(out->name, sizeof out->name, "%.60s", p.name);
    uuid_text(out->uuid, &p.uuid);
    snprintf(out->bus, sizeof out->bus, "%04x:%02x:%02x.0", p.pciDomainID & 0xffff, p.pciBusID & 0xff,
             p.pciDeviceID & 0xff);
    out->total = p.totalGlobalMem;
    out->major = (u32)p.major;
    out->minor = (u32)p.minor;
    out->processors = (u32)p.multiProcessorCount;
    return 0;
}

int device_list(struct device_info *out, u32 max, struct error *err)
{
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e) return failed_to(err, e, "looking for devices");
    n = MIN_OF(n, (int)max);
    for (int i = 0; i < n; i++) {
        int rc = describe(&out[i], i, err);
        if (rc) return rc;
    }
    return n;
}

/* Its number among the visible ones; "": the first. */
static int ordinal_of(const char *uuid, struct device_info *out, struct error *err)
{
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e) return failed_to(err, e, "looking for devices");
    for (int i = 0; i < n; i++) {
        int rc = describe(out, i, err);
        if (rc) return rc;
        if (!*uuid || !strcmp(uuid, out->uuid)) return i;
    }
    return error_set(err, ERR_NOT_FOUND, "device", "none of the %d devices has the UUID %s", n, uuid);
}

/* The calling thread's device from now on, with a context. */
static int enter(struct device_info *d, int ordinal, struct error *err)
{
    size_t free_bytes, total;
    cudaError_t e = cudaSetDevice(ordinal);
    if (!e) e = cudaMemGetInfo(&free_bytes, &total);
    if (e) return failed_to(err, e, "using a device");
    d->total = total;
    d->free = free_bytes;
    return 0;
}

int device_look(struct device_info *d, struct error *err)
{
    struct device_info same;
    int ordinal = ordinal_of(d->uuid, &same, err);
    return ordinal < 0 ? ordinal : enter(d, ordinal, err);
}

/* ---- life */
static int choose(struct device *d, const char *uuid, struct error *err)
{
    d->ordinal = ordinal_of(uuid, &d->info, err);
    return d->ordinal < 0 ? d->ordinal : enter(&d->info, d->ordinal, err);
}

static int check_device(const struct device *d, struct error *err)
{
    if (d->info.major >= 8) return 0;
    return error_set(err, ERR_UNSUPPORTED, d->info.name,
                     "has compute capability %u.%u; the kernels need 8.0 or later", d->info.major,
                     d->info.minor);
}

static int start(struct device *d, struct error *err)
{
    cudaError_t e = cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking);
    for (u32 i = 0; i < DEVICE_UPLOADS && !e; i++) {
        e = cudaMallocHost((void **)&d->stages[i].at, STAGE_BYTES);
        if (!e) e = cudaEventCreateWithFlags(&d->stages[i].done, cudaEventDisableTiming);
    }
    if (e) return failed_to(err, e, "starting");
    d->partial = (float *)device_alloc(d, PARTIAL_BYTES, err);
    if (!d->partial) return ERR_MEMORY;
    prefill_prepare(d);
    latents_prepare(d);
    int rc = blas_open(d, err);
    return rc ? rc : device_finish(d, err);
}

struct device *device_open(const char *uuid, struct error *err)
{
    struct device *d = (struct device *)calloc(1, sizeof *d);
    if (!d) {
        error_set(err, ERR_MEMORY, "device", "no memory");
        return NULL;
    }
    int rc = choose(d, uuid, err);
    if (!rc) rc = check_device(d, err);
    if (!rc) rc = start(d, err);
    if (!rc) return d;
    device_close(d);
    return NULL;
}

void device_close(struct device *d)
{
    if (!d) return;
    blas_close(d);
    device_free(d, d->partial);
    device_host_free(d, (void *)d->marked);
    for (u32 i = 0; i < DEVICE_UPLOADS; i++) {
        if (d->stages[i].done) cudaEventDestroy(d->stages[i].done);
        if (d->stages[i].at) cudaFreeHost(d->stages[i].at);
    }
    if (d->stream) cudaStreamDestroy(d->stream);
    free(d);
}

size_t device_own_bytes(void)
{
    return (size_t)PARTIAL_BYTES + WORKSPACE_BYTES;
}

const struct device_info *device_info(const struct device *d)
{
    return &d->info;
}

int device_ordinal(const struct device *d)
{
    return d->ordinal;
}

cudaStream_t device_stream(const struct device *d)
{
    return d->stream;
}

float *device_partial(const struct device *d)
{
    return d->partial;
}

struct blas **device_blas(struct device *d)
{
    return &d->blas;
}

/* ---- errors */
bool device_works(const struct device *d)
{
    return !d->failure.code;
}

void device_failed(struct device *d, cudaError_t e, const char *operation)
{
    if (e && device_works(d))
        error_set(&d->failure, ERR_STATE, "CUDA", "%s in %s: %s", cudaGetErrorName(e), operation,
                  cudaGetErrorString(e));
}

void device_failed_product(struct device *d, int status, u32 n_out, u32 n_in, u32 rows)
{
    if (device_works(d))
        error_set(&d->failure, ERR_STATE, "CUDA", "cublasLt status %d in a product of [%u, %u] with %u rows",
                  status, n_out, n_in, rows);
}

int device_check(const struct device *d, struct error *err)
{
    const struct error *e = &d->failure;
    return e->code ? error_set(err, e->code, e->where, "%s", e->message) : 0;
}

/* Until there is nothing to wait for, as ask says; or until who looks has seen enough. */
template <class Ask> static void wait_watched(struct device *d, Ask ask)
{
    const u64 look_ns = NS_PER_MS;
    u64 start = clock_ns(), looked = start;
    cudaError_t e;
    while ((e = ask()) == cudaErrorNotReady) {
        u64 now = clock_ns();
        if (now - looked >= look_ns) {
            looked = now;
            if (d->watch.look(d->watch.arg, now - start, &d->failure)) return;
        }
        sched_yield();
    }
    device_failed(d, e, "waiting for the work before");
}

int device_finish(struct device *d, struct error *err)
{
    if (!d->watch.look)
        device_failed(d, cudaStreamSynchronize(d->stream), "waiting for the work before");
    else if (device_works(d))
        wait_watched(d, [=] { return cudaStreamQuery(d->stream); });
    return device_check(d, err);
}

/* ---- with devices of other processes */
void *device_stream_handle(const struct device *d)
{
    return d->stream;
}

int device_watch(struct device *d, const struct device_watch *w, struct error *err)
{
    if (!d->marked && !(d->marked = (u64 *)device_host_alloc(d, sizeof *d->marked, err))) return ERR_MEMORY;
    *d->marked = 0;
    d->watch = *w;
    return 0;
}

volatile u64 *device_mark_place(const struct device *d)
{
    return d->marked;
}

u64 device_marked(const struct device *d)
{
    return *d->marked;
}

/* ---- memory */
static void *no_memory(struct device *d, size_t bytes, cudaError_t e, struct error *err)
{
    size_t free_bytes = 0, total = 0;
    cudaGetLastError(); /* this one is told here, and is no reason to stop */
    cudaMemGetInfo(&free_bytes, &total);
    error_set(err, ERR_MEMORY, d->info.name, "%s: %zu bytes are asked for, %zu of %zu are free",
              cudaGetErrorName(e), bytes, free_bytes, total);
    return NULL;
}

void *device_alloc(struct device *d, size_t bytes, struct error *err)
{
    void *at = NULL;
    cudaError_t e = cudaMalloc(&at, bytes);
    return e ? no_memory(d, bytes, e, err) : at;
}

void device_free(struct device *d, void *at)
{
    if (at) device_failed(d, cudaFree(at), "freeing");
}

void *device_host_alloc(struct device *d, size_t bytes, struct error *err)
{
    void *at = NULL;
    cudaError_t e = cudaMallocHost(&at, bytes);
    return e ? no_memory(d, bytes, e, err) : at;
}

void device_host_free(struct device *d, void *at)
{
    if (at) device_failed(d, cudaFreeHost(at), "freeing pinned memory");
}

/* ---- copies */
static void await_stage(struct device *d, const struct stage *s)
{
    if (d->watch.look)
        wait_watched(d, [=] { return cudaEventQuery(s->done); });
    else
        device_failed(d, cudaEventSynchronize(s->done), "waiting for an upload");
}

void device_upload(struct device *d, void *to, const void *from, size_t bytes)
{
    for (size_t at = 0, n; at < bytes && device_works(d); at += n) {
        struct stage *s = &d->stages[d->next_stage++ % DEVICE_UPLOADS];
        n = MIN_OF(bytes - at, (size_t)STAGE_BYTES);
        await_stage(d, s);
        if (!device_works(d)) return;
        memcpy(s->at, (const u8 *)from + at, n);
        device_failed(d, cudaMemcpyAsync((u8 *)to + at, s->at, n, cudaMemcpyHostToDevice, d->stream),
                      "upload");
        device_failed(d, cudaEventRecord(s->done, d->stream), "upload");
    }
}

void device_download(struct device *d, void *to, const void *from, size_t bytes)
{
    if (device_works(d) && bytes)
        device_failed(d, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, d->stream), "download");
}

void device_copy(struct device *d, void *to, const void *from, size_t bytes)
{
    if (device_works(d) && bytes)
        device_failed(d, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, d->stream), "copy");
}

void device_copy_rows(struct device *d, void *to, size_t ld_to, const void *from, size_t ld_from,
                      size_t bytes, u32 rows)
{
    if (device_works(d) && bytes && rows)
        device_failed(
            d, cudaMemcpy2DAsync(to, ld_to, from, ld_from, bytes, rows, cudaMemcpyDeviceToDevice, d->stream),
            "copy of rows");
}

void device_zero(struct device *d, void *at, size_t bytes)
{
    if (device_works(d) && bytes) device_failed(d, cudaMemsetAsync(at, 0, bytes, d->stream), "zero");
}
