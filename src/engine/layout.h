/* layout: which tensors make which part of the weights' image, and where in it they lie. Inside the engine
 * room.
 *
 * A pure function of the config, the shard and the stored dtypes: every process computes the same offsets.
 * What an engine has of a tensor follows from the meaning of its two sizes: heads, ffn and vocabulary are
 * divided, the hidden size is not. */
#ifndef MPISERVE_ENGINE_LAYOUT_H
#define MPISERVE_ENGINE_LAYOUT_H

#include "engine/shard.h"
#include "engine/weights.h"

enum { SLOT_PARTS = 3 };
enum slot_kind {
    SLOT_VECTOR, /* f32 numbers: norms, biases */
    SLOT_ROWS,   /* row-major: embeddings */
    SLOT_PANELS, /* a linear layer's weight; row-major on a device */
};
enum stored_form { /* see struct quant_config */
                   STORED_PLAIN,
                   STORED_FP8,
                   STORED_AWQ,
                   STORED_GPTQ,
                   STORED_GPTQ_V2,
                   STORED_MXFP4
};
/* A tensor's part that an engine has: rows (outputs), and columns of them (inputs; vectors: one). */
struct slot_part {
    const struct tensor *tensor;
    const struct model_files *files; /* that it is in; NULL: the model's */
    struct slice rows, cols;
    u64 begin;   /* elements before the matrix, in a tensor of several */
    bool across; /* stored [cols, rows] */
    u32 step;    /* outputs are every step-th stored one; 0: 1 */
    u32 phase;   /* the first of them */
    enum stored_form form;
    const struct tensor *scale, *zero; /* of quantised forms */
    const struct tensor *index;        /* gptq: the group of each input; NULL: in order */
    bool scattered;                    /* they are in any order; else index says what is known */
    u32 bits;                          /* awq, gptq: of a code */
    u32 block;                         /* inputs with one scale; fp8: outputs, too */
};
static const size_t TARGET_NONE = SIZE_MAX; /* found by its distance from another */
struct slot {                               /* one member of struct weights */
    enum slot_kind kind;
    enum dtype dtype; /* in the image */
    size_t
        target; /* byte offset in struct weights of the pointer, the struct packed or the struct table; or TARGET_NONE */
    bool adapted; /* panels: the offset is in weights.adapters; of B also: */
    u32 outputs_before;
    float scale;
    size_t offset;   /* byte offset in the image */
    u32 n_out, n_in; /* [n_out, n_in]; vectors [n_out, 1] */
    u32 group, lead; /* see struct packed */
    bool exact;      /* panels: never quantised when loaded */
    bool plus_one;   /* vectors: numbers are stored less 1 */
    u32 n_parts;     /* stacked along n_out, in order */
    struct slot_part part[SLOT_PARTS];
};
struct layout {
    struct slot *slots;
    u32 n, cap;
    size_t bytes;      /* of the image */
    struct arena made; /* dummy: the tensors that there would be */
    u64 n_made;
};
/* The weight that a slot of panels becomes, without its data. */
struct packed slot_packed(const struct slot *s);
/* Whether the image has the codes of the files. */
bool slot_keeps_codes(const struct slot *s);
/* Checks that every tensor is there with the right shape and a dtype that is offered. */
int layout_build(struct layout *l, const struct model_config *c, const struct shard *part,
                 const struct model_files *f, const struct weights_place *place, struct error *err);
void layout_release(struct layout *l);
/* Tensors of the files that no slot of a whole model's layout uses and that are not known to be idle; *first
 * is the name of one of them. */
u32 layout_unused(const struct layout *l, const struct model_config *c, const struct model_files *f,
                  const char **first);

#endif
