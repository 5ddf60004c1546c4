/* device_sampler: the sampler of rows whose logits are on a device. Inside the engine room.
 *
 * The same choices as sampler.h, for all rows of a step at once: what a row's choice depends on goes to the device, tokens and the
 * log-probabilities asked for come back, and nothing else.
 * A step: clear; add for each row; run; choice for each row. Thread rule: one thread. */
#ifndef MPISERVE_ENGINE_DEVICE_SAMPLER_H
#define MPISERVE_ENGINE_DEVICE_SAMPLER_H

#include "engine/sampler.h"
#include "mpiserve/device.h"

struct device_sampler;
/* Takes all of its memory on the device but that for long lists (penalties of long texts), which grows. */
struct device_sampler *device_sampler_new(struct device *d, u32 max_rows, u32 vocab, u32 max_logprobs,
                                          struct error *err);
size_t device_sampler_bytes(u32 max_rows, u32 vocab, u32 max_logprobs); /* of the device */
void device_sampler_free(struct device_sampler *s);

void device_sampler_clear(struct device_sampler *s);
/* The row's index, from 0. logits: row of the logits given to run; history, n: as in sampler_choose. */
u32 device_sampler_add(struct device_sampler *s, const struct sampler_row *r, const i32 *history, u32 n,
                       u32 logits);
/* logits: [.., vocab] on the device. Waits until the device is done with this and all before. */
int device_sampler_run(struct device_sampler *s, const float *logits, struct error *err);
/* logprobs: as in sampler_choose. */
struct choice device_sampler_choice(const struct device_sampler *s, u32 index,
                                    struct token_logprob *logprobs);

#endif
