/* mirror: what the operations must know of a chunk's tokens, on the device: lists that the forward pass makes on the host travel there
 * in one copy a chunk. Inside the engine room. */
#ifndef MPISERVE_ENGINE_MIRROR_H
#define MPISERVE_ENGINE_MIRROR_H

#include "mpiserve/device.h"

struct token_lists { /* of a chunk, where the operations look for them */
    i32 *ids;        /* rows of the embedding */
    u32 *positions;
    struct place *places;
    struct attn_span *spans;
    u32 *wanted;              /* rows that get logits */
    float *inv[2];            /* see struct rotary */
    i32 *types;               /* of tokens; encoders */
    u32 *vectors;             /* rows that join sums, of models that make vectors */
    struct pooling_run *runs; /* of those */
    u32 *adapted;             /* rows with adapters, those of each behind each other */
    struct adapted_tile *tiles;
};
struct mirror;
struct mirror_spec {
    u32 tokens;                   /* of a chunk */
    u32 max_seqs, max_seq_blocks; /* of its block tables */
    size_t inv[2];
    bool types;
    u32 vectors, adapted; /* of a chunk, at most */
};
struct mirror_use { /* how much of the lists a chunk uses */
    u32 rows, spans, wanted, types, vectors, runs, adapted, tiles;
    size_t inv[2];
};
size_t mirror_bytes(const struct mirror_spec *spec); /* on the device */
struct mirror *mirror_new(struct device *d, const struct mirror_spec *spec, struct error *err);
void mirror_free(struct mirror *m); /* NULL is fine */
/* Adds a block table to the chunk; its address on the device, for spans. */
const u32 *mirror_table(struct mirror *m, const u32 *blocks, u32 n);
/* Sends the tables and the host's lists, of which so much is used; *seen gets their addresses on the device. The next chunk begins. */
void mirror_send(struct mirror *m, const struct token_lists *host, const struct mirror_use *use,
                 struct token_lists *seen);

#endif
