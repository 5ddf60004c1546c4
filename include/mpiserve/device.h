/* device: a GPU of this process: memory, copies, and what is computed there beside the table of operations. A second door
 * of ops.
 *
 * Life cycle: device_list (what is there); device_open; device_alloc, device_upload, the operations of ops_cuda() with
 * share.device set, device_sample ...; device_finish once a step; device_free, device_close. device_list and
 * device_open start CUDA in this process: only engines do.
 * Order: everything goes to one stream and is done in the order of calls; nothing waits but device_finish, and device_upload when
 * DEVICE_UPLOADS of them are not done yet. Addresses that device_alloc gives are the device's: no C code may look at what is there.
 * Errors: an operation that fails makes all further ones do nothing; device_finish tells the first, by CUDA's name and the
 * operation. An error inside a kernel is seen later than it happens: the operation named is then the one that saw it
 * (CUDA_LAUNCH_BLOCKING=1 makes it the one that failed). After an error the device is of no use: the process ends and another is started.
 * Thread rule: one thread per device; lanes are for others.
 * In a build without CUDA device_list and device_open say so (ERR_UNSUPPORTED), and nothing else can be called. */
#ifndef MPISERVE_DEVICE_H
#define MPISERVE_DEVICE_H

#include "mpiserve/base.h"
#include "mpiserve/ops.h"
#include "mpiserve/request.h"

enum {
    DEVICE_UPLOADS = 8,
    DEVICE_MAX = 64,
    DEVICE_MAX_LATENT = 576 /* numbers of a latent, what is rotated included */
};

struct device_info {
    char name[64];
    char uuid[48];   /* "GPU-", then 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12 */
    char bus[16];    /* "0000:17:00.0" */
    u64 total, free; /* bytes */
    u32 major, minor, processors;
};
/* The devices that CUDA_VISIBLE_DEVICES leaves, in its order; at most max. Returns how many, or a negative code. free is 0: it is
 * not known without a context, some hundred MiB, on the device. */
int device_list(struct device_info *out, u32 max, struct error *err);
/* Fills in free; for that it makes such a context, which is this process's until it ends. */
int device_look(struct device_info *d, struct error *err);

struct device;
/* The device with this UUID ("": the first). Takes the memory of its staging buffers and of the library of products. */
struct device *device_open(const char *uuid, struct error *err);
void device_close(struct device *d); /* NULL is fine */
size_t device_own_bytes(void);       /* that device_open takes there, beside what CUDA itself does */
const struct device_info *device_info(const struct device *d); /* free: when it was opened */

/* 256-byte aligned. NULL: no memory, and err says how much there was. */
void *device_alloc(struct device *d, size_t bytes, struct error *err);
void device_free(struct device *d, void *at);
/* Memory of the host that the device can write to while the host works on. */
void *device_host_alloc(struct device *d, size_t bytes, struct error *err);
void device_host_free(struct device *d, void *at);

/* `from` is the host's and may be used again when the call returns. */
void device_upload(struct device *d, void *to, const void *from, size_t bytes);
/* `to` comes from device_host_alloc and has the bytes after device_finish. */
void device_download(struct device *d, void *to, const void *from, size_t bytes);
void device_copy(struct device *d, void *to, const void *from, size_t bytes);
void device_zero(struct device *d, void *at, size_t bytes);
/* Rows of `bytes` each, ld_to and ld_from bytes from row to row. */
void device_copy_rows(struct device *d, void *to, size_t ld_to, const void *from, size_t ld_from,
                      size_t bytes, u32 rows);
/* Waits until all is done; the first error since device_open. */
int device_finish(struct device *d, struct error *err);
/* The first error so far, without waiting: 0 does not say that there will be none. */
int device_check(const struct device *d, struct error *err);

/* ---- with the devices of other processes: what moves between them is put on this device's stream by others (coll_nccl), and
 * would make device_finish wait for as long as they do. So somebody looks after that meanwhile. */
void *device_stream_handle(const struct device *d); /* cudaStream_t */
struct device_watch {
    /* Every now and then while device_finish waits, for waited_ns by then. Not 0: it waits no longer and fails with this error; the
     * device is of no further use. */
    int (*look)(void *arg, u64 waited_ns, struct error *err);
    void *arg;
};
int device_watch(struct device *d, const struct device_watch *w,
                 struct error *err); /* before the first mark */
/* Says number when all before it is done. device_marked: the last one said, without waiting; 0: none. */
void device_mark(struct device *d, u64 number);
u64 device_marked(const struct device *d);
struct sum_args {       /* out = the sum of n parts, added from the first to the last, or out += that */
    const float *parts; /* [n, ld] */
    size_t ld;
    u32 n;
    size_t count; /* it and ld: multiples of 4 */
    float *out;   /* [count]; not part of parts, or exactly one of them */
    bool add;
    u64 mark; /* as device_mark when the parts are there; 0: nothing */
};
void device_sum(struct device *d, const struct sum_args *a);

/* ---- adapters: y[r][at + o] += scale sum_k b[o][k] (sum_i a[k][i] x[r][i]) for the rows of a batch that have one, all adapters of the batch
 * at once. The inner sums come first, for each row and part of the product, then what they make of y; sums are f32, inputs are added in an
 * order that depends on the sizes alone. */
struct device_factors { /* of an adapter, for a part of a product; a NULL: it adds nothing there */
    const void *a, *b;  /* [rank, n_in], [n_out, rank], row-major, 16-byte aligned */
    u32 rank, n_out, at;
    float scale;
};
struct adapted_tile { /* rows of one adapter: [first, first + n) of the list */
    u32 adapter, first, n;
};
enum { ADAPTED_FEW = 16, ADAPTED_MANY = 64 }; /* rows of a tile, at most; with f32 always the first */
struct adapt_args {
    const struct device_factors *factors; /* an adapter's [parts]; stride from one adapter to the next */
    size_t stride;
    enum dtype dtype; /* of a and b */
    u32 parts, most_rank, most_out;
    const u32 *rows; /* [n_rows], of x and y */
    const struct adapted_tile *tiles;
    u32 n_rows, n_tiles, tile_rows;
    const void *x; /* [.., n_in] of dtype, or f32, which is rounded to it */
    enum dtype x_dtype;
    u32 n_in;
    size_t ld_x, ld_y;
    float *y;
    float *low; /* [splits, n_rows, parts, low_ld]: the inner sums, of `splits` ranges of the inputs */
    u32 low_ld, splits;
};
void device_adapt(struct device *d, const struct adapt_args *a);

/* ---- a lane: how another thread brings memory in while it prepares more. A thread's own: made, used and freed by it. Two pinned
 * buffers: one is filled while the other travels. */
struct device_lane;
struct device_lane *device_lane_new(struct device *d, size_t bytes, struct error *err);
void *device_lane_buffer(struct device_lane *l); /* `bytes` to fill; waits until its last copy is done */
void device_lane_send(struct device_lane *l, void *to, size_t bytes); /* what was filled, to the device */
/* Waits until all has arrived. The first error; on one the device is of no use. l: NULL is fine. */
int device_lane_free(struct device_lane *l, struct error *err);

/* The table for devices. Products take activations of the weights' type, or f32, which is rounded to it before; a struct packed is
 * row-major [n_out, n_in] there, without padding, and K in the KV pool is [block_size, d] like V. n_in, ld and d are multiples of 8.
 * Where experts' rows begin and end is known on the device only: nothing waits for it. */
const struct ops *ops_cuda(void); /* NULL: a build without CUDA */
/* As attn_tokens: most tokens of a span, with such a KV pool. */
u32 device_attn_tokens(const struct kv_pool *kv, u32 heads);

/* ---- sampling: what engine/sampler.h says, by the same rules and with the same draws ---------------------------*/
struct sample_list {
    u32 at, n; /* 4-byte words into the lists */
};
struct sample_row {
    u32 logits;         /* row of the logits */
    u32 top_k;          /* 0: off */
    i32 n_logprobs;     /* -1: none */
    u32 greedy;         /* 1: the best; nothing is drawn */
    double draw;        /* uniform in (0, 1) */
    double drop;        /* 1 - top_p; 0: off */
    float scale, min_p; /* 1 / temperature */
    float repetition, presence, frequency;
    u32 edits; /* 1: the lists and penalties below change the logits */
    struct sample_list allowed, bias /* struct token_bias */, ends, counts /* id, times in the output */,
        bad; /* the last ids of words */
};
enum sample_state { SAMPLE_OK, SAMPLE_NONFINITE, SAMPLE_NOTHING };
struct sample_choice {
    u32 state; /* enum sample_state */
    i32 token;
    u32 n_logprobs;
};
struct sample_args {
    const float *logits; /* [.., vocab], not changed */
    u32 vocab, rows;
    const struct sample_row *row; /* [rows] */
    const u32 *lists;
    struct sample_choice *choices;  /* [rows] */
    struct token_logprob *logprobs; /* [rows, 1 + max_logprobs] */
    u32 max_logprobs;
    void *scratch; /* device_sample_bytes(rows, vocab) */
};
/* All pointers are the device's. */
void device_sample(struct device *d, const struct sample_args *a);
size_t device_sample_bytes(u32 rows, u32 vocab);

#endif
