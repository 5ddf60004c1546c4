/* A build without CUDA: opening a device says so, and so there is none for the rest. */
#include "mpiserve/device.h"

static int absent(struct error *err)
{
    return error_set(err, ERR_UNSUPPORTED, "device", "this build has no CUDA: make CUDA=1");
}

int device_list(struct device_info *out, u32 max, struct error *err)
{
    (void)out;
    (void)max;
    return absent(err);
}

int device_look(struct device_info *d, struct error *err)
{
    (void)d;
    return absent(err);
}

struct device *device_open(const char *uuid, struct error *err)
{
    (void)uuid;
    absent(err);
    return NULL;
}

void device_close(struct device *d)
{
    BUG_ON(d);
}

const struct ops *ops_cuda(void)
{
    return NULL;
}

u32 device_attn_tokens(const struct kv_pool *kv, u32 heads)
{
    return attn_tokens(heads / kv->kv_heads);
}

size_t device_own_bytes(void)
{
    return 0;
}

size_t device_sample_bytes(u32 rows, u32 vocab)
{
    (void)rows;
    (void)vocab;
    return 0;
}

#define NO_DEVICE BUG("a device in a build without CUDA")

const struct device_info *device_info(const struct device *d)
{
    (void)d;
    NO_DEVICE;
}

void *device_alloc(struct device *d, size_t bytes, struct error *err)
{
    (void)d;
    (void)bytes;
    (void)err;
    NO_DEVICE;
}

void device_free(struct device *d, void *at)
{
    (void)d;
    (void)at;
    NO_DEVICE;
}

void *device_host_alloc(struct device *d, size_t bytes, struct error *err)
{
    (void)d;
    (void)bytes;
    (void)err;
    NO_DEVICE;
}

void device_host_free(struct device *d, void *at)
{
    (void)d;
    (void)at;
    NO_DEVICE;
}

void device_upload(struct device *d, void *to, const void *from, size_t bytes)
{
    (void)d;
    (void)to;
    (void)from;
    (void)bytes;
    NO_DEVICE;
}

void device_download(struct device *d, void *to, const void *from, size_t bytes)
{
    device_upload(d, to, from, bytes);
}

void device_copy(struct device *d, void *to, const void *from, size_t bytes)
{
    device_upload(d, to, from, bytes);
}

void device_zero(struct device *d, void *at, size_t bytes)
{
    device_upload(d, at, NULL, bytes);
}

void device_copy_rows(struct device *d, void *to, size_t ld_to, const void *from, size_t ld_from,
                      size_t bytes, u32 rows)
{
    (void)ld_to;
    (void)ld_from;
    (void)rows;
    device_upload(d, to, from, bytes);
}

int device_check(const struct device *d, struct error *err)
{
    (void)d;
    (void)err;
    NO_DEVICE;
}

void *device_stream_handle(const struct device *d)
{
    (void)d;
    NO_DEVICE;
}

int device_watch(struct device *d, const struct device_watch *w, struct error *err)
{
    (void)d;
    (void)w;
    (void)err;
    NO_DEVICE;
}

void device_mark(struct device *d, u64 number)
{
    (void)d;
    (void)number;
    NO_DEVICE;
}

u64 device_marked(const struct device *d)
{
    (void)d;
    NO_DEVICE;
}

void device_sum(struct device *d, const struct sum_args *a)
{
    (void)d;
    (void)a;
    NO_DEVICE;
}

int device_finish(struct device *d, struct error *err)
{
    (void)d;
    (void)err;
    NO_DEVICE;
}

void device_adapt(struct device *d, const struct adapt_args *a)
{
    (void)d;
    (void)a;
    NO_DEVICE;
}

struct device_lane *device_lane_new(struct device *d, size_t bytes, struct error *err)
{
    (void)d;
    (void)bytes;
    (void)err;
    NO_DEVICE;
}

void *device_lane_buffer(struct device_lane *l)
{
    (void)l;
    NO_DEVICE;
}

void device_lane_send(struct device_lane *l, void *to, size_t bytes)
{
    (void)l;
    (void)to;
    (void)bytes;
    NO_DEVICE;
}

int device_lane_free(struct device_lane *l, struct error *err)
{
    (void)err;
    BUG_ON(l);
    return 0;
}

void device_sample(struct device *d, const struct sample_args *a)
{
    (void)d;
    (void)a;
    NO_DEVICE;
}
