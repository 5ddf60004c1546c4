/* Prompts and caches of the simulated replicas. */
#include "cli/route_prompts.h"

#include <stdlib.h>

void prompt_make(u64 session, u32 turn, struct prompt *out)
{
    u32 t = turn % PROMPT_TURNS;
    out->n = PROMPT_SYSTEM + PROMPT_TURN * t + PROMPT_QUESTION;
    out->n_then = PROMPT_SYSTEM + PROMPT_TURN * (t + 1);
    for (u32 k = 0; k < out->n_then; k++) {
        bool system = k < PROMPT_SYSTEM;
        const u64 block[] = {system, system ? session / PROMPT_SHARED : session,
                             system ? 0 : turn / PROMPT_TURNS, k};
        out->hashes[k] = hash_bytes(block, sizeof block, 0);
    }
}

/* ---- caches ---------------------------------------------------------------------------------------------------------------*/
enum { NONE = UINT16_MAX };
struct block {
    u64 hash;
    u16 newer, older, chain;
};
struct cache {
    struct block *blocks; /* [size] */
    u16 *chains;          /* [1 << bits] by hash */
    u16 newest, oldest, n;
    bool told; /* the router knows what is here */
};
struct caches {
    struct cache *of; /* [replicas] */
    struct block *blocks;
    u16 *chains;
    u32 replicas, size;
    int bits;
};

struct caches *caches_new(u32 replicas, u32 blocks)
{
    BUG_ON(blocks < CACHE_LEAST || blocks > CACHE_MOST);
    struct caches *c = mem_zero(1, sizeof *c);
    *c = (struct caches){.replicas = replicas, .size = blocks};
    while (1u << c->bits < blocks) c->bits++;
    size_t n_chains = (size_t)replicas << c->bits;
    c->of = mem_zero(replicas, sizeof *c->of);
    c->blocks = mem_zero((size_t)replicas * blocks, sizeof *c->blocks);
    c->chains = mem_zero(n_chains, sizeof *c->chains);
    for (size_t i = 0; i < n_chains; i++) c->chains[i] = NONE;
    for (u32 i = 0; i < replicas; i++)
        c->of[i] = (struct cache){.blocks = c->blocks + (size_t)i * blocks,
                                  .chains = c->chains + ((size_t)i << c->bits),
                                  .newest = NONE,
                                  .oldest = NONE,
                                  .told = true};
    return c;
}

void caches_free(struct caches *c)
{
    if (!c) return;
    free(c->of);
    free(c->blocks);
    free(c->chains);
    free(c);
}

static u16 *chain_of(const struct caches *c, const struct cache *a, u64 hash)
{
    return &a->chains[hash >> (64 - c->bits)];
}

static u16 find(const struct caches *c, const struct cache *a, u64 hash)
{
    u16 i = *chain_of(c, a, hash);
    while (i != NONE && a->blocks[i].hash != hash) i = a->blocks[i].chain;
    return i;
}

static void unlink_age(struct cache *a, u16 i)
{
    struct block *b = &a->blocks[i];
    *(b->newer == NONE ? &a->newest : &a->blocks[b->newer].older) = b->older;
    *(b->older == NONE ? &a->oldest : &a->blocks[b->older].newer) = b->newer;
}

static void make_newest(struct cache *a, u16 i)
{
    a->blocks[i].newer = NONE;
    a->blocks[i].older = a->newest;
    *(a->newest == NONE ? &a->oldest : &a->blocks[a->newest].newer) = i;
    a->newest = i;
}

/* A place for a new block; whose was it is gone. */
static u16 take_place(const struct caches *c, struct cache *a, struct router *tell, u32 replica)
{
    if (a->n < c->size) return a->n++;
    u16 i = a->oldest, *at = chain_of(c, a, a->blocks[i].hash);
    while (*at != i) at = &a->blocks[*at].chain;
    *at = a->blocks[i].chain;
    unlink_age(a, i);
    if (tell) router_prefix_remove(tell, replica, a->blocks[i].hash);
    return i;
}

u32 caches_use(struct caches *c, struct router *tell, u32 replica, const u64 *hashes, u32 n)
{
    struct cache *a = &c->of[replica];
    u32 found = 0;
    while (found < n && find(c, a, hashes[found]) != NONE) found++;
    for (u32 k = n; k-- > 0;) { /* the first is the newest */
        u16 i = find(c, a, hashes[k]);
        if (i == NONE) {
            i = take_place(c, a, tell, replica);
            u16 *chain = chain_of(c, a, hashes[k]);
            a->blocks[i] = (struct block){.hash = hashes[k], .chain = *chain};
            *chain = i;
            if (tell) router_prefix_add(tell, replica, hashes[k]);
        } else {
            unlink_age(a, i);
        }
        make_newest(a, i);
    }
    a->told = tell;
    return found;
}

void caches_tell(struct caches *c, struct router *tell, u32 replica)
{
    struct cache *a = &c->of[replica];
    if (a->told) return;
    a->told = true;
    router_prefix_clear(tell, replica);
    for (u16 i = a->oldest; i != NONE; i = a->blocks[i].newer)
        router_prefix_add(tell, replica, a->blocks[i].hash);
}
