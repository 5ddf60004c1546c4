/* stored: parts of tensors read as rows of numbers or codes, however the files have them. Inside the engine room. */
#ifndef MPISERVE_ENGINE_STORED_H
#define MPISERVE_ENGINE_STORED_H

#include "engine/layout.h"

enum { STORED_BYTES = 4 << 20 }; /* of a buffer; a row is at most that (2^20 f32), so whole rows fit */
/* Of rows that are read as they lie, taken at a time: pages of the image, what was read and what is packed are in the second cache
 * together. Measured: pieces of 1 and 4 MiB take a sixth and a third more processor time; storage is asked ahead for more. */
enum { STORED_PIECE = 256 << 10 };
struct stored_room {     /* of a thread */
    void *raw, *numbers; /* [STORED_BYTES] each */
    u8 *codes;           /* [n, cols.n] */
    float *scales,
        *zeros; /* [n, groups]: groups of p->block inputs, the first one cut by cols.first; if scattered: all there are.
                   zeros: I4 only */
};
int stored_room_init(struct stored_room *r, struct error *err);
void stored_room_release(struct stored_room *r);
/* How many rows of a part fit; at least 1. */
u32 stored_most(const struct slot_part *p);
/* Where in the files row `row` of a part begins: of two places the lower one comes first in the lower file. */
u64 stored_place(const struct slot_part *p, u32 row);
/* Tells storage that rows [row, row + n) will be read soon; does not wait for it. */
void stored_ahead(const struct model_files *f, const struct slot_part *p, u32 row, u32 n);
/* Bytes of the file that rows of a part are. */
u64 stored_bytes(const struct slot_part *p, u32 n);
/* What the codes of a form are: DTYPE_F8, DTYPE_I4, DTYPE_F4. */
enum dtype stored_codes_dtype(enum stored_form form);
/* Rows [row, row + n) of a quantised part, n <= stored_most: codes, scales, zeros in the room; if scattered, raw has the group of each
 * input [cols.n], u32. ERR_INPUT for codes that are no number and groups that there are not. */
int stored_codes(const struct model_files *f, const struct slot_part *p, u32 row, u32 n,
                 struct stored_room *room, struct error *err);
/* Rows of any part: *numbers [n, cols.n] of *dtype (F32, BF16 or F16), in the room. */
int stored_read(const struct model_files *f, const struct slot_part *p, u32 row, u32 n,
                struct stored_room *room, const void **numbers, enum dtype *dtype, struct error *err);

/* The groups of inputs that a part has scales of, in the file's numbers. */
struct slice stored_groups(const struct slot_part *p);

/* Inside: rows as they lie, or turned, elements of any type. */
int stored_raw(const struct model_files *f, const struct slot_part *p, u32 row, u32 n,
               struct stored_room *room, const void **raw, struct error *err);

#endif
