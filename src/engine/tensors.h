/* tensors: which tensors a layer has, by architecture: tables. Inside the engine room. */
#ifndef MPISERVE_ENGINE_TENSORS_H
#define MPISERVE_ENGINE_TENSORS_H

#include "engine/layout.h"

/* Sizes by meaning, so that the tables hold for every model and shard. */
enum dim {
    DIM_ONE,
    DIM_HIDDEN,
    DIM_Q,
    DIM_KV,
    DIM_FFN,
    DIM_HEAD,
    DIM_HEADS,
    DIM_VOCAB,
    DIM_Q_RANK,
    DIM_KV_RANK,
    DIM_LATENT, /* kv_rank + rope */
    DIM_VALUES, /* heads * value */
    DIM_EXPERTS,
    DIM_EXPERT_FFN,
    DIM_SHARED_FFN,
    DIM_POSITIONS,
    DIM_TYPES,
    DIM_COUNT
};
struct slice dim_slice(const struct model_config *c, const struct shard *part, enum dim d);

/* Parts of a linear layer's weight, stacked along the outputs: each a tensor NAME.weight or what stands for it, or all in one. */
struct tensor_part {
    const char *name,
        *other; /* after "model.layers.N.", of an encoder "encoder.layer.N."; other: a second spelling, or NULL. name NULL ends the list */
    enum dim rows;
};
typedef bool tensor_when(const struct model_config *c, u32 layer);
struct tensor_linear {
    tensor_when *when, *biased; /* NULL: always; never */
    size_t weight, bias;        /* in struct layer_weights */
    enum dim cols;
    bool fused; /* the parts are rows of one tensor */
    bool exact; /* never quantised when loaded */
    struct tensor_part parts[SLOT_PARTS];
};
struct tensor_vector {
    tensor_when *when; /* NULL: always */
    size_t at;         /* in struct layer_weights */
    const char *name;
    enum dim size;
    bool norm; /* a norm's weight */
};
extern const struct tensor_linear TENSOR_LINEARS[];
extern const size_t TENSOR_LINEARS_N;
extern const struct tensor_vector TENSOR_VECTORS[];
extern const size_t TENSOR_VECTORS_N;

#endif
