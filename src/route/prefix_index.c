/* Holders of blocks, in buckets. */
#include "route/prefix_index.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096 };
enum { HUGE_FROM = 32 << 20 }; /* bytes of a table where a look costs more for the page than for the data */
enum { ROOM = 2 }; /* buckets fill unevenly: with twice the places, less than 1 in 1000 entries find none */
_Static_assert(sizeof(struct bucket) == 2 * CACHE_LINE, "a bucket is two cache lines");

void prefix_index_init(struct prefix_index *x, u32 replicas, u32 blocks)
{
    u64 places = (u64)replicas * blocks * ROOM;
    *x = (struct prefix_index){.n_buckets = (places + PLACES - 1) / PLACES};
    BUG_ON(x->n_buckets > UINT32_MAX);
    x->memory = mem_zero(x->n_buckets + 2, sizeof *x->buckets);
    x->buckets = (struct bucket *)(((uintptr_t)x->memory + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);
    size_t bytes = x->n_buckets * sizeof *x->buckets;
    uintptr_t page = ((uintptr_t)x->buckets + PAGE - 1) / PAGE * PAGE;
    if (bytes >= HUGE_FROM) madvise((void *)page, bytes - PAGE, MADV_HUGEPAGE); /* a wish */
    x->lives = mem_zero(replicas + 1, sizeof *x->lives);
    for (u32 i = 0; i < replicas; i++) x->lives[i] = 1;
}

void prefix_index_release(struct prefix_index *x)
{
    free(x->memory);
    free(x->lives);
    *x = (struct prefix_index){0};
}

/* ---- places ---------------------------------------------------------------------------------------------------------------*/
/* Never 0, as in a free place. */
static u32 tag_of(u64 hash)
{
    return MAX_OF((u32)hash, 1u);
}

/* By the upper bits of a product, which all bits of the hash reach. */
static struct bucket *bucket_of(const struct prefix_index *x, u64 hash)
{
    u64 mixed = (hash ^ hash >> 32) * 0x9E3779B97F4A7C15u;
    return x->buckets + ((mixed >> 32) * x->n_buckets >> 32);
}

static u16 replica_of(u32 whose)
{
    return (u16)whose;
}

static bool stale(const struct prefix_index *x, u32 whose)
{
    return whose >> 16 != x->lives[replica_of(whose)];
}

/* A bit for each place of this hash. All are compared: a loop that ends early costs more where nobody can guess when. */
static u32 places_of(const struct bucket *b, u32 tag)
{
    typedef u32 four __attribute__((vector_size(16)));
    static const four bits[PLACES / 4] = {
        {1, 2, 4, 8}, {16, 32, 64, 128}, {256, 512, 1024, 2048}, {4096, 8192, 16384, 32768}};
    const four *tags = (const four *)b->tags, wanted = {tag, tag, tag, tag};
    four found = {0};
    for (u32 k = 0; k < PLACES / 4; k++) found |= (four)(tags[k] == wanted) & bits[k];
    return found[0] | found[1] | found[2] | found[3];
}

/* A hash that is new here. */
static void put_new(struct bucket *b, u32 tag, u32 whose)
{
    memmove(b->tags + 1, b->tags, (PLACES - 1) * sizeof *b->tags);
    memmove(b->whose + 1, b->whose, (PLACES - 1) * sizeof *b->whose);
    b->tags[0] = tag;
    b->whose[0] = whose;
}

/* These n come first, then what is in none of `but`, as long as there is room. */
static void put_first(struct bucket *b, u32 tag, const u32 *whose, u32 n, u32 but)
{
    struct bucket old = *b;
    for (u32 k = 0; k < n; k++) {
        b->tags[k] = tag;
        b->whose[k] = whose[k];
    }
    for (u32 rest = ~but & ((1u << PLACES) - 1); rest && n < PLACES; rest &= rest - 1) {
        u32 k = (u32)__builtin_ctz(rest);
        b->tags[n] = old.tags[k];
        b->whose[n++] = old.whose[k];
    }
}

/* ---- looks ----------------------------------------------------------------------------------------------------------------*/
void prefix_index_ready(const struct prefix_index *x, u64 hash)
{
    const struct bucket *b = bucket_of(x, hash);
    __builtin_prefetch(b->tags);
    __builtin_prefetch(b->whose);
}

u32 prefix_index_use(struct prefix_index *x, u64 hash)
{
    struct bucket *b = bucket_of(x, hash);
    u32 places = places_of(b, tag_of(hash));
    if (places >> PLACES / 2) {
        u32 whose[HOLDERS], n = 0;
        for (u32 rest = places; rest; rest &= rest - 1) whose[n++] = b->whose[__builtin_ctz(rest)];
        put_first(b, tag_of(hash), whose, n, places);
    }
    return (u32)__builtin_popcount(places);
}

void prefix_index_holders(const struct prefix_index *x, const struct router *r, u64 hash, struct holders *out)
{
    const struct bucket *b = bucket_of(x, hash);
    out->n = 0;
    for (u32 rest = places_of(b, tag_of(hash)); rest; rest &= rest - 1) {
        u32 who = b->whose[__builtin_ctz(rest)];
        if (!stale(x, who) && r->seats[replica_of(who)].at != ROUTE_NOWHERE)
            out->replicas[out->n++] = replica_of(who);
    }
}

/* ---- changes --------------------------------------------------------------------------------------------------------------*/
/* Which of HOLDERS to forget for a new one: a stale one, one that cannot be chosen, the busiest. HOLDERS: the new one, it is no
 * less busy than any of them. */
static u32 least_useful(const struct prefix_index *x, const struct router *r, const u32 *whose, u32 replica)
{
    u32 most = r->seats[replica].ongoing, which = HOLDERS;
    for (u32 k = 0; k < HOLDERS; k++) {
        const struct seat *s = &r->seats[replica_of(whose[k])];
        if (stale(x, whose[k]) || s->at == ROUTE_NOWHERE) return k;
        if (s->ongoing > most) {
            most = s->ongoing;
            which = k;
        }
    }
    return which;
}

void prefix_index_put(struct prefix_index *x, const struct router *r, u64 hash, u32 replica)
{
    struct bucket *b = bucket_of(x, hash);
    u32 places = places_of(b, tag_of(hash)), n = 1;
    u32 whose[HOLDERS + 1] = {(u32)x->lives[replica] << 16 | replica};
    if (x->n_buckets == 0) return;
    if (places == 0) {
        put_new(b, tag_of(hash), whose[0]);
        return;
    }
    for (u32 rest = places; rest; rest &= rest - 1) {
        u32 who = b->whose[__builtin_ctz(rest)];
        if (who == whose[0] && !(places >> PLACES / 2)) return;
        if (replica_of(who) != replica) whose[n++] = who;
    }
    const u32 *first = whose;
    if (n > HOLDERS) {
        u32 drop = least_useful(x, r, whose + 1, replica);
        if (drop == HOLDERS)
            first++;
        else
            memmove(whose + 1 + drop, whose + 2 + drop, (HOLDERS - 1 - drop) * sizeof *whose);
        n = HOLDERS;
    }
    put_first(b, tag_of(hash), first, n, places);
}

void prefix_index_remove(struct prefix_index *x, u64 hash, u32 replica)
{
    struct bucket *b = bucket_of(x, hash);
    for (u32 rest = places_of(b, tag_of(hash)); rest; rest &= rest - 1) {
        u32 k = (u32)__builtin_ctz(rest), behind = PLACES - 1 - k;
        if (replica_of(b->whose[k]) != replica) continue;
        memmove(b->tags + k, b->tags + k + 1, behind * sizeof *b->tags);
        memmove(b->whose + k, b->whose + k + 1, behind * sizeof *b->whose);
        b->tags[PLACES - 1] = b->whose[PLACES - 1] = 0;
        return; /* a replica has one place of a hash */
    }
}

/* After 65535 clears what is left of the first life counts again; by then it is long overwritten, and a hint only. */
void prefix_index_clear(struct prefix_index *x, u32 replica)
{
    if (++x->lives[replica] == 0) x->lives[replica] = 1;
}
