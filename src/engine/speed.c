#include "engine/speed.h"

#include <stdlib.h>
#include <string.h>

enum { TRIES = 10, LEAST_SIZE = 256, MOST_SIZE = 8192, HOST_ROWS = 192, DEVICE_ROWS = 2048 };
static const u64 long_enough_ns = 10 * NS_PER_MS, tries_ns = NS_PER_S / 2;
static const size_t host_bytes = 256u << 20, device_bytes = 512u << 20;

static int no_memory(size_t bytes, struct error *err)
{
    return error_set(err, ERR_MEMORY, "measuring memory and products", "no memory for %zu bytes", bytes);
}

/* ---- memory */
struct reading {
    u64 *at;
    size_t n;
    _Atomic u64 sum; /* so that it is really read */
    bool fill;
};

static void read_part(void *arg, int thread, int threads)
{
    struct reading *r = arg;
    size_t from = r->n / (size_t)threads * (size_t)thread, to = from + r->n / (size_t)threads;
    u64 sums[8] = {0};
    if (r->fill) {
        memset(r->at + from, 1, (to - from) * sizeof *r->at);
        return;
    }
    for (size_t i = from; i + COUNT_OF(sums) <= to; i += COUNT_OF(sums))
        for (size_t k = 0; k < COUNT_OF(sums); k++) sums[k] += r->at[i + k];
    for (size_t k = 0; k < COUNT_OF(sums); k++) r->sum += sums[k];
}

static int host_memory(const struct speed_ask *a, double *rate, struct error *err)
{
    struct reading r = {.n = host_bytes / sizeof *r.at, .fill = true};
    r.at = malloc(host_bytes);
    if (!r.at) return no_memory(host_bytes, err);
    pool_run(a->pool, read_part, &r);
    r.fill = false;
    u64 end = clock_ns() + tries_ns;
    for (int i = 0; i < TRIES && (!i || clock_ns() < end); i++) {
        u64 start = clock_ns();
        pool_run(a->pool, read_part, &r);
        *rate = MAX_OF(*rate, (double)host_bytes * 1e9 / (double)(clock_ns() - start));
    }
    free(r.at);
    return 0;
}

static int device_memory(const struct speed_ask *a, double *rate, struct error *err)
{
    u8 *from = device_alloc(a->device, 2 * device_bytes, err);
    if (!from) return ERR_MEMORY;
    device_zero(a->device, from, 2 * device_bytes);
    int rc = device_finish(a->device, err);
    u64 end = clock_ns() + tries_ns;
    for (int i = 0; i < TRIES && rc == 0 && (!i || clock_ns() < end); i++) {
        u64 start = clock_ns();
        device_copy(a->device, from + device_bytes, from, device_bytes);
        rc = device_finish(a->device, err);
        *rate = MAX_OF(*rate, 2 * (double)device_bytes * 1e9 / (double)(clock_ns() - start));
    }
    device_free(a->device, from);
    return rc;
}

/* ---- products */
struct product {
    const struct speed_ask *ask;
    struct linear_args args;
    struct packed w;
    void *memory; /* of w, x and y */
};

static void product_part(void *arg, int thread, int threads)
{
    const struct product *p = arg;
    p->ask->ops->linear(&p->args, (struct share){(u32)thread, (u32)threads, p->ask->device});
}

static size_t lines(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

/* Numbers as weights have them: zeros would cost a GPU less power, and be faster. */
static void fill(u16 *to, size_t n, enum dtype dtype)
{
    u32 bits[4] = {0};
    for (size_t i = 0; i < n; i++) {
        if (i % 4 == 0) rng_block(1, i, 0, bits);
        float v = rng_unit(bits[i % 4]) - 0.5f;
        if (dtype == DTYPE_F32)
            memcpy((float *)(void *)to + i, &v, sizeof v);
        else
            to[i] = dtype == DTYPE_BF16 ? bf16_from_f32(v) : f16_from_f32(v);
    }
}

/* Weights [size, size] and so many rows of x, of numbers that repeat. */
static int product_make(struct product *p, const struct speed_ask *a, u32 size, u32 rows, struct error *err)
{
    size_t element = dtype_bytes(a->dtype), w = lines((size_t)size * size * element),
           x = lines((size_t)rows * size * element), all = w + x + lines((size_t)rows * size * sizeof(float));
    *p = (struct product){.ask = a, .w = {.dtype = a->dtype, .n_out = size, .n_in = size}};
    u16 *row = malloc(size * element);
    p->memory = !row ? NULL : a->device ? device_alloc(a->device, all, err) : aligned_alloc(256, all);
    if (!p->memory) {
        free(row);
        return a->device && row ? ERR_MEMORY : no_memory(all, err);
    }
    u8 *at = p->memory;
    fill(row, size, a->dtype);
    for (u32 i = 0; i < size + rows; i++) {
        bool input = i >= size;
        u8 *to = input ? at + w + (size_t)(i - size) * size * element : at + (size_t)i * size * element;
        if (a->device)
            device_upload(a->device, to, row, size * element);
        else if (input)
            memcpy(to, row, size * element);
        else
            pack_rows(at, a->dtype, size, size, i, 1, row, a->dtype);
    }
    free(row);
    p->w.data = at;
    p->args = (struct linear_args){.w = &p->w,
                                   .x = at + w,
                                   .x_dtype = a->dtype,
                                   .rows = rows,
                                   .ld_x = size,
                                   .ld_y = size,
                                   .y = (float *)(void *)(at + w + x)};
    return 0;
}

static void product_drop(struct product *p)
{
    if (p->ask->device)
        device_free(p->ask->device, p->memory);
    else
        free(p->memory);
}

static int product_time(struct product *p, u64 *ns, struct error *err)
{
    u64 start = clock_ns();
    int rc = 0;
    if (p->ask->device) {
        product_part(p, 0, 1);
        rc = device_finish(p->ask->device, err);
    } else {
        pool_run(p->ask->pool, product_part, p);
    }
    *ns = MAX_OF(clock_ns() - start, (u64)1);
    return rc;
}

/* The best time of one size. */
static int product_best(const struct speed_ask *a, u32 size, u32 rows, u64 *best, struct error *err)
{
    struct product p;
    u64 end = clock_ns() + tries_ns, ns;
    int rc = product_make(&p, a, size, rows, err);
    if (rc) return rc;
    *best = UINT64_MAX;
    for (int i = 0; i < TRIES && rc == 0 && (i < 2 || clock_ns() < end); i++) {
        rc = product_time(&p, &ns, err);
        *best = MIN_OF(*best, ns);
    }
    product_drop(&p);
    return rc;
}

static int products(const struct speed_ask *a, double *rate, struct error *err)
{
    u32 rows = a->device ? DEVICE_ROWS : HOST_ROWS;
    u64 ns = 0;
    for (u32 size = LEAST_SIZE; size <= MOST_SIZE && ns < long_enough_ns; size *= 2) {
        int rc = product_best(a, size, rows, &ns, err);
        if (rc) return rc;
        *rate = MAX_OF(*rate, 2.0 * rows * size * size * 1e9 / (double)ns);
    }
    return 0;
}

int speed_measure(const struct speed_ask *a, struct engine_speed *out, struct error *err)
{
    *out = (struct engine_speed){0};
    int rc = a->device ? device_memory(a, &out->bytes, err) : host_memory(a, &out->bytes, err);
    return rc ? rc : products(a, &out->flops, err);
}
