/* All kernels over the instruction set of the file that includes this: it makes a table of them. */
#ifndef MPISERVE_OPS_KERNELS_H
#define MPISERVE_OPS_KERNELS_H

#include "ops/cpu/attn.h"
#include "ops/cpu/experts.h"
#include "ops/cpu/linear.h"
#include "ops/cpu/rope.h"
#include "ops/cpu/rows.h"
#include "ops/cpu/tables.h"

#define KERNELS                                                                                              \
    .linear = linear, .norm = norm, .glu = glu, .cap = cap, .embed = embed, .angles = angles, .rope = rope,  \
    .latent = latent, .heads = heads, .attn = attn, .pooling = pooling, .route = route, .group = group,      \
    .gather = gather, .experts = experts, .combine = combine

#endif
