/* Lanes: copies to a device from other threads than its own, each with a stream and two pinned buffers. */
#include "table.h"

#include <stdlib.h>

struct lane_buffer {
    void *at;
    cudaEvent_t done;
};
struct device_lane {
    cudaStream_t stream;
    struct lane_buffer buffers[2];
    u32 turn;
    cudaError_t error; /* the first */
};

static void lane_failed(struct device_lane *l, cudaError_t e)
{
    if (!l->error) l->error = e;
}

struct device_lane *device_lane_new(struct device *d, size_t bytes, struct error *err)
{
    struct device_lane *l = (struct device_lane *)calloc(1, sizeof *l);
    if (!l) {
        error_set(err, ERR_MEMORY, "device", "no memory");
        return NULL;
    }
    lane_failed(l, cudaSetDevice(device_ordinal(d))); /* which one is current is each thread's own */
    lane_failed(l, cudaStreamCreateWithFlags(&l->stream, cudaStreamNonBlocking));
    for (struct lane_buffer &b : l->buffers) {
        if (!l->error) lane_failed(l, cudaMallocHost(&b.at, bytes));
        if (!l->error) lane_failed(l, cudaEventCreateWithFlags(&b.done, cudaEventDisableTiming));
    }
    if (!l->error) return l;
    device_lane_free(l, err);
    return NULL;
}

void *device_lane_buffer(struct device_lane *l)
{
    lane_failed(l, cudaEventSynchronize(l->buffers[l->turn].done));
    return l->buffers[l->turn].at;
}

void device_lane_send(struct device_lane *l, void *to, size_t bytes)
{
    struct lane_buffer *b = &l->buffers[l->turn];
    if (!l->error) lane_failed(l, cudaMemcpyAsync(to, b->at, bytes, cudaMemcpyHostToDevice, l->stream));
    if (!l->error) lane_failed(l, cudaEventRecord(b->done, l->stream));
    l->turn = !l->turn;
}

int device_lane_free(struct device_lane *l, struct error *err)
{
    if (!l) return 0;
    if (l->stream) lane_failed(l, cudaStreamSynchronize(l->stream));
    for (struct lane_buffer &b : l->buffers) {
        if (b.done) cudaEventDestroy(b.done);
        if (b.at) cudaFreeHost(b.at);
    }
    if (l->stream) cudaStreamDestroy(l->stream);
    cudaError_t e = l->error;
    free(l);
    return e ? error_set(err, ERR_STATE, "CUDA", "%s in bringing memory in: %s", cudaGetErrorName(e),
                         cudaGetErrorString(e))
             : 0;
}
