/* Sets of numbers, in levels. */
#include "route/bits.h"

#include <stdlib.h>

void bits_init(struct bits *b, u32 n)
{
    *b = (struct bits){0};
    do {
        BUG_ON(b->levels == BITS_LEVELS);
        u32 words = n / 64 + 1;
        b->sizes[b->levels] = n;
        b->words[b->levels++] = mem_zero(words, sizeof(u64));
        n = words > 1 ? words : 0;
    } while (n > 0);
}

void bits_release(struct bits *b)
{
    for (int l = 0; l < b->levels; l++) free(b->words[l]);
    *b = (struct bits){0};
}

void bits_put(struct bits *b, u32 i)
{
    for (int l = 0; l < b->levels; l++, i /= 64) {
        u64 *word = &b->words[l][i / 64], before = *word;
        *word |= 1ull << (i % 64);
        if (before) return; /* those above know already */
    }
}

void bits_drop(struct bits *b, u32 i)
{
    for (int l = 0; l < b->levels; l++, i /= 64) {
        u64 *word = &b->words[l][i / 64];
        *word &= ~(1ull << (i % 64));
        if (*word) return;
    }
}

u32 bits_from(const struct bits *b, u32 from)
{
    int l = 0;
    u64 rest = 0;
    while (from < b->sizes[l] && !(rest = b->words[l][from / 64] >> (from % 64))) {
        from = from / 64 + 1;
        if (++l == b->levels) return BITS_NONE;
    }
    if (!rest) return BITS_NONE;
    from += (u32)__builtin_ctzll(rest);
    while (l-- > 0) from = from * 64 + (u32)__builtin_ctzll(b->words[l][from]);
    return from;
}
