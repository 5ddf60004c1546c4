/* layout: what its parts share. */
#ifndef MPISERVE_ENGINE_LAYOUT_INNER_H
#define MPISERVE_ENGINE_LAYOUT_INNER_H

#include "engine/tensors.h"

enum { LAYOUT_NAME = 160 };

struct builder {
    struct layout *l;
    const struct model_config *c;
    const struct shard *shard;
    const struct model_files *f;
    const struct weights_place *place;
    struct error *err; /* never NULL */
};
/* A tensor that should be there with this shape: [planes, rows, cols] as the file has it, leading ones left out (planes 0, cols 0). */
struct shape {
    u32 planes, rows, cols;
};
/* What a file calls a layer's tensor; out[LAYOUT_NAME]. */
void layout_name(const struct builder *b, char *out, u32 layer, const char *name);
/* NULL: absent. Files of embedding models may name tensors without what is around them elsewhere ("model."); those of encoders,
 * with it ("bert."), and the parts of a norm gamma and beta. */
const struct tensor *layout_tensor(const struct builder *b, const char *name);
/* The tensor, checked; NULL and an error. */
const struct tensor *layout_find(const struct builder *b, const char *name, struct shape shape);
/* Adds a part to the slot; p says which part of the tensor NAME it is. For fp8, finds its scales too. */
int layout_stack(const struct builder *b, struct slot *s, const char *name, struct slot_part p);
/* The same for a linear layer's weight, however it is stored: finds NAME.weight, or what stands for it. */
int layout_weight(const struct builder *b, struct slot *s, const char *name, struct slot_part p);
/* Whether layout_weight would find something. */
bool layout_has(const struct builder *b, const char *name);
/* One tensor of packed codes for all experts (mxfp4): NAME_blocks, NAME_scales. */
int layout_mxfp4(const struct builder *b, struct slot *s, const char *name, u32 experts, struct slot_part p);
/* Places the slot behind the others. Products take bf16 as it is stored if all parts are, else f32. */
void layout_add(const struct builder *b, struct slot s);
/* A slot of one tensor, NAME as it is. */
int layout_one(const struct builder *b, struct slot s, const char *name, enum dim rows, enum dim cols);
/* The two ends of an encoder; and which tensors of its files nobody needs. */
int layout_encoder(const struct builder *b);
bool layout_encoder_idle(const struct model_config *c, const char *name);
/* Banks of a layer: heads of MLA, experts. */
int layout_heads(const struct builder *b, u32 layer);
int layout_experts(const struct builder *b, u32 layer);
/* The factors of all adapters. ERR_UNSUPPORTED for a tensor that changes what adapters may not. */
int layout_adapters(const struct builder *b);

static inline size_t layout_target(u32 layer, size_t field)
{
    return offsetof(struct weights, layer) + layer * sizeof(struct layer_weights) + field;
}

#endif
