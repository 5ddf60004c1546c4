/* stored: parts of tensors read as rows of numbers, however the files have them. Inside the engine room. */
#ifndef MPISERVE_ENGINE_STORED_H
#define MPISERVE_ENGINE_STORED_H

#include "engine/layout.h"

enum { STORED_BYTES = 4 << 20 };  /* of a buffer; a row is at most that (2^20 f32), so whole rows fit */
struct stored_room {              /* of a thread */
    void *raw, *numbers, *scales; /* [STORED_BYTES] each */
};
int stored_room_init(struct stored_room *r, struct error *err);
void stored_room_release(struct stored_room *r);
/* How many rows of a part fit; at least 1. */
u32 stored_most(const struct slot_part *p);
/* Bytes of the file that rows of a part are. */
u64 stored_bytes(const struct slot_part *p, u32 n);
/* Rows [row, row + n) of the part, n <= stored_most: *numbers [n, cols.n] of *dtype (F32, BF16 or F16), in the room. */
int stored_read(const struct model_files *f, const struct slot_part *p, u32 row, u32 n,
                struct stored_room *room, const void **numbers, enum dtype *dtype, struct error *err);

#endif
