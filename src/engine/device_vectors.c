#include "engine/device_vectors.h"

#include <stdlib.h>

struct device_vectors {
    struct device *device;
    u32 n;
    float *sums;   /* [rows, n], there */
    float *copies; /* [rows, n], pinned */
};

size_t device_vectors_bytes(u32 rows, u32 n)
{
    return (size_t)rows * n * sizeof(float);
}

struct device_vectors *device_vectors_new(struct device *d, u32 rows, u32 n, struct error *err)
{
    struct device_vectors *v = mem_zero(1, sizeof *v);
    *v = (struct device_vectors){.device = d, .n = n};
    v->sums = device_alloc(d, device_vectors_bytes(rows, n), err);
    if (v->sums) v->copies = device_host_alloc(d, device_vectors_bytes(rows, n), err);
    if (v->copies) return v;
    device_vectors_free(v);
    return NULL;
}

void device_vectors_free(struct device_vectors *v)
{
    if (!v) return;
    device_free(v->device, v->sums);
    device_host_free(v->device, v->copies);
    free(v);
}

float *device_vectors_sum(const struct device_vectors *v, u32 row)
{
    return v->sums + (size_t)row * v->n;
}

void device_vectors_fetch(struct device_vectors *v, u32 row, u32 n)
{
    size_t at = (size_t)row * v->n;
    device_download(v->device, v->copies + at, v->sums + at, device_vectors_bytes(n, v->n));
}

const float *device_vectors_copy(const struct device_vectors *v, u32 row)
{
    return v->copies + (size_t)row * v->n;
}
