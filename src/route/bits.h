/* A set of numbers below n that answers "the first one from here on" in O(log64 n): levels of words, and a bit of a level says
 * whether the word under it has any. Inside of route/. */
#ifndef ROUTE_BITS_H
#define ROUTE_BITS_H

#include "mpiserve/base.h"

enum { BITS_LEVELS = 6 };
struct bits {
    u64 *words[BITS_LEVELS]; /* the last level is one word */
    u32 sizes[BITS_LEVELS];  /* bits of a level */
    int levels;
};
#define BITS_NONE UINT32_MAX
void bits_init(struct bits *b, u32 n);
void bits_release(struct bits *b);
void bits_put(struct bits *b, u32 i);
void bits_drop(struct bits *b, u32 i);
u32 bits_from(const struct bits *b, u32 from); /* the smallest member >= from; BITS_NONE: there is none */

#endif
