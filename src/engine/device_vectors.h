/* device_vectors: where a device sums up the vectors of the row table's rows, from step to step, and how those that are done come to the
 * host. Inside the engine room. */
#ifndef MPISERVE_ENGINE_DEVICE_VECTORS_H
#define MPISERVE_ENGINE_DEVICE_VECTORS_H

#include "mpiserve/device.h"

struct device_vectors;
size_t device_vectors_bytes(u32 rows, u32 n); /* on the device */
/* Sums of n numbers for so many rows, and their copies. */
struct device_vectors *device_vectors_new(struct device *d, u32 rows, u32 n, struct error *err);
void device_vectors_free(struct device_vectors *v); /* NULL is fine */
/* On the device, for fwd_seq.hidden: it holds what was summed there last. */
float *device_vectors_sum(const struct device_vectors *v, u32 row);
/* Asks for the sums of rows [row, row + n); behind device_finish they are in the copies. */
void device_vectors_fetch(struct device_vectors *v, u32 row, u32 n);
const float *device_vectors_copy(const struct device_vectors *v, u32 row);

#endif
