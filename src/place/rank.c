/* ReplicaRank: proving that the numbers are dense and unique, and mending them after a change.
 *
 * There are three kinds of numbering: `rank` counts the live replicas, `node_rank` the nodes that have one, `local_rank` those of
 * one node. Each is a list of holders, which must hold 0 .. n-1, every number once. */
#include "mpiserve/place.h"

#include <stdlib.h>
#include <string.h>

enum { NOBODY = -1, UNRANKED = INT32_MAX };

enum scope { SCOPE_ALL, SCOPE_NODES, SCOPE_IN_NODE };
static const char *const scope_names[] = {"rank", "node_rank", "local_rank"};

static u32 *number_of(struct place_replica *r, enum scope scope)
{
    return scope == SCOPE_ALL     ? &r->rank.rank
           : scope == SCOPE_NODES ? &r->rank.node_rank
                                  : &r->rank.local_rank;
}

static u32 get_number(const struct place_replica *r, enum scope scope)
{
    return *number_of((struct place_replica *)r, scope);
}

/* Replicas sorted into the numberings: per node a chain, and of each node its first live replica. */
struct census {
    u32 n, n_nodes;
    i32 *first;              /* [n_nodes] first live replica of a node, or NOBODY */
    i32 *next;               /* [n] next live replica of the same node */
    u32 *holders, n_holders; /* [n] the numbering looked at */
    i32 *holder_of;          /* [n] by number */
};

static void census_init(struct census *c, const struct place_replica *replicas, u32 n)
{
    *c = (struct census){.n = n};
    for (u32 i = 0; i < n; i++) c->n_nodes = MAX_OF(c->n_nodes, replicas[i].node + 1);
    c->first = mem_alloc((c->n_nodes + 1) * sizeof *c->first);
    c->next = mem_alloc((n + 1) * sizeof *c->next);
    c->holders = mem_alloc((n + 1) * sizeof *c->holders);
    c->holder_of = mem_alloc((n + 1) * sizeof *c->holder_of);
    for (u32 i = 0; i < c->n_nodes; i++) c->first[i] = NOBODY;
    for (u32 i = n; i-- > 0;) {
        if (!replicas[i].live) continue;
        c->next[i] = c->first[replicas[i].node];
        c->first[replicas[i].node] = (i32)i;
    }
}

static void census_release(struct census *c)
{
    free(c->first);
    free(c->next);
    free(c->holders);
    free(c->holder_of);
}

/* Fills holders with the numbering; for SCOPE_NODES a node is stood for by its first live replica. */
static void census_list(struct census *c, const struct place_replica *replicas, enum scope scope, u32 node)
{
    c->n_holders = 0;
    if (scope == SCOPE_ALL)
        for (u32 i = 0; i < c->n; i++)
            if (replicas[i].live) c->holders[c->n_holders++] = i;
    if (scope == SCOPE_NODES)
        for (u32 i = 0; i < c->n; i++)
            if (replicas[i].live && c->first[replicas[i].node] == (i32)i) c->holders[c->n_holders++] = i;
    if (scope == SCOPE_IN_NODE)
        for (i32 i = c->first[node]; i != NOBODY; i = c->next[i]) c->holders[c->n_holders++] = (u32)i;
    for (u32 i = 0; i < c->n_holders; i++) c->holder_of[i] = NOBODY;
}

/* ---- the proof -----------------------------------------------------------------------------------------------*/
static int check_live(const struct place_replica *replicas, u32 n, struct error *err)
{
    for (u32 i = 0; i < n; i++) {
        const struct place_replica *a = &replicas[i];
        if (a->live && !a->ranked)
            return error_set(err, ERR_STATE, "rank",
                             "unranked: replica %u (leader: rank %u) is live and has no rank", i, a->leader);
        if (!a->live && a->ranked)
            return error_set(err, ERR_STATE, "rank",
                             "stale: replica %u (leader: rank %u) was given up and still holds rank %u", i,
                             a->leader, a->rank.rank);
    }
    return 0;
}

static int check_numbering(struct census *c, const struct place_replica *replicas, enum scope scope, u32 node,
                           struct error *err)
{
    const char *name = scope_names[scope];
    census_list(c, replicas, scope, node);
    for (u32 k = 0; k < c->n_holders; k++) {
        u32 i = c->holders[k], number = get_number(&replicas[i], scope);
        if (number >= c->n_holders)
            return error_set(err, ERR_STATE, name,
                             "replica %u (leader: rank %u) holds %s %u of %u: not dense", i,
                             replicas[i].leader, name, number, c->n_holders);
        i32 other = c->holder_of[number];
        if (other != NOBODY)
            return error_set(err, ERR_STATE, name,
                             "duplicate: replicas %d and %u (leaders: ranks %u and %u) both hold %s %u",
                             other, i, replicas[other].leader, replicas[i].leader, name, number);
        c->holder_of[number] = (i32)i;
    }
    return 0; /* n numbers, distinct, below n: dense */
}

static int check_node_mates(const struct census *c, const struct place_replica *replicas, u32 node,
                            struct error *err)
{
    for (i32 i = c->first[node]; i != NOBODY; i = c->next[i])
        if (replicas[i].rank.node_rank != replicas[c->first[node]].rank.node_rank)
            return error_set(err, ERR_STATE, "node_rank",
                             "replicas %d and %d are on one node and hold node_rank %u and %u",
                             c->first[node], i, replicas[c->first[node]].rank.node_rank,
                             replicas[i].rank.node_rank);
    return 0;
}

int place_check(const struct place_replica *replicas, u32 n, struct error *err)
{
    int rc = check_live(replicas, n, err);
    if (rc) return rc;
    struct census c;
    census_init(&c, replicas, n);
    rc = check_numbering(&c, replicas, SCOPE_ALL, 0, err);
    if (!rc) rc = check_numbering(&c, replicas, SCOPE_NODES, 0, err);
    for (u32 node = 0; !rc && node < c.n_nodes; node++) {
        rc = check_node_mates(&c, replicas, node, err);
        if (!rc) rc = check_numbering(&c, replicas, SCOPE_IN_NODE, node, err);
    }
    census_release(&c);
    return rc;
}

/* ---- mending -------------------------------------------------------------------------------------------------*/
/* First those keep theirs who can, then the others take the lowest free number. */
static void mend_numbering(struct census *c, struct place_replica *replicas, enum scope scope, u32 node)
{
    census_list(c, replicas, scope, node);
    for (u32 k = 0; k < c->n_holders; k++) {
        struct place_replica *r = &replicas[c->holders[k]];
        u32 *number = number_of(r, scope);
        if (r->ranked && *number < c->n_holders && c->holder_of[*number] == NOBODY)
            c->holder_of[*number] = (i32)c->holders[k];
        else
            *number = UNRANKED;
    }
    u32 free_number = 0;
    for (u32 k = 0; k < c->n_holders; k++) {
        u32 *number = number_of(&replicas[c->holders[k]], scope);
        if (*number != UNRANKED) continue;
        while (c->holder_of[free_number] != NOBODY) free_number++;
        c->holder_of[free_number] = (i32)c->holders[k];
        *number = free_number;
    }
}

/* A node keeps its number as long as a live replica holds it, even when its first one is new there. */
static void lend_node_rank(const struct census *c, struct place_replica *replicas, u32 node)
{
    i32 head = c->first[node];
    for (i32 i = head; i != NOBODY && !replicas[head].ranked; i = c->next[i]) {
        if (!replicas[i].ranked) continue;
        replicas[head].rank = (struct replica_rank){UNRANKED, replicas[i].rank.node_rank, UNRANKED};
        replicas[head].ranked = true;
    }
}

void place_rerank(struct place_replica *replicas, u32 n)
{
    struct census c;
    census_init(&c, replicas, n);
    for (u32 node = 0; node < c.n_nodes; node++)
        if (c.first[node] != NOBODY) lend_node_rank(&c, replicas, node);
    mend_numbering(&c, replicas, SCOPE_ALL, 0);
    mend_numbering(&c, replicas, SCOPE_NODES, 0);
    for (u32 node = 0; node < c.n_nodes; node++) {
        mend_numbering(&c, replicas, SCOPE_IN_NODE, node);
        for (i32 i = c.first[node]; i != NOBODY; i = c.next[i])
            replicas[i].rank.node_rank = replicas[c.first[node]].rank.node_rank;
    }
    for (u32 i = 0; i < n; i++) {
        replicas[i].ranked = replicas[i].live;
        if (!replicas[i].live) replicas[i].rank = (struct replica_rank){0};
    }
    census_release(&c);
}
