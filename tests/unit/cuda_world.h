/* A device (emulated; in tests/gpu a real one), and memory of both sides, for tests of the CUDA kernels. */
#ifndef MPISERVE_TESTS_CUDA_WORLD_H
#define MPISERVE_TESTS_CUDA_WORLD_H

#include "mpiserve/device.h"

#include "../cudasim/cudasim.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Orders of threads in which everything is run; the first is the ascending one. */
enum { CUDA_ORDERS = 3 };

static inline void cuda_need(bool fine, const struct error *err)
{
    char text[1200];
    if (fine) return;
    fprintf(stderr, "%s\n", error_text(err, text, sizeof text));
    abort();
}

/* First of all: ends the program, and says so, where there is no device. */
static inline void cuda_begin(void)
{
    struct device_info info;
    struct error err = {0};
    char text[1200];
    if (cudasim_here()) unsetenv("CUDA_VISIBLE_DEVICES"); /* names the machine's own */
    if (device_list(&info, 1, &err) > 0) return;
    fprintf(stderr, "%s\n", error_text(&err, text, sizeof text));
    printf("1..0 # SKIP no GPU\n");
    exit(0);
}

static inline struct device *cuda_open(void)
{
    struct error err = {0};
    struct device *d = device_open("", &err);
    cuda_need(d != NULL, &err);
    return d;
}

static inline struct share cuda_share(struct device *d)
{
    return (struct share){0, 1, d};
}

/* Memory of the device: a copy of from, or NaN. */
static inline void *cuda_memory(struct device *d, const void *from, size_t bytes)
{
    struct error err = {0};
    void *at = device_alloc(d, bytes, &err);
    cuda_need(at != NULL, &err);
    if (from) device_upload(d, at, from, bytes);
    if (from || cudasim_here()) return at; /* emulated memory begins so */
    void *nan = malloc(bytes);
    memset(nan, 0xff, bytes);
    device_upload(d, at, nan, bytes);
    free(nan);
    return at;
}

static inline void cuda_fetch(struct device *d, void *to, const void *from, size_t bytes)
{
    struct error err = {0};
    void *pinned = device_host_alloc(d, bytes, &err);
    cuda_need(pinned != NULL, &err);
    device_download(d, pinned, from, bytes);
    cuda_need(device_finish(d, &err) == 0, &err);
    memcpy(to, pinned, bytes);
    device_host_free(d, pinned);
}

static inline void number_store(void *to, enum dtype t, size_t i, float v)
{
    if (t == DTYPE_F32)
        ((float *)to)[i] = v;
    else
        ((u16 *)to)[i] = t == DTYPE_BF16 ? bf16_from_f32(v) : f16_from_f32(v);
}

static inline float number_load(const void *from, enum dtype t, size_t i)
{
    if (t == DTYPE_F32) return ((const float *)from)[i];
    u16 h = ((const u16 *)from)[i];
    return t == DTYPE_BF16 ? f32_from_bf16(h) : f32_from_f16(h);
}

/* Relative step of a type. */
static inline float number_step(enum dtype t)
{
    return t == DTYPE_F32 ? 0x1p-23f : t == DTYPE_BF16 ? 0x1p-8f : 0x1p-11f;
}

static inline float random_number(u64 *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)(i32)(*state >> 32) * 0x1p-30f;
}

#endif
