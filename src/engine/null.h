/* null: what stands for the maths in an engine without any (compute "null"). Pure, but for the wait. */
#ifndef MPISERVE_ENGINE_NULL_H
#define MPISERVE_ENGINE_NULL_H

#include "engine/sampler.h"

/* The token at a position: letters in most vocabularies of byte-level BPE. logprobs: as for sampler_choose; the numbers are
 * made up like the token. */
struct choice null_choose(u32 position, u32 vocab, const struct sampling *s, struct token_logprob *logprobs);
/* A vector as made up: the n_tok-th unit vector, counted round. */
void null_vector(u32 n_tok, float *vector, u32 n);
void null_wait(u32 us);

#endif
