/* The engines of a replica as threads of a test, each with its end of the group; a thread more carries
 * messages between "nodes", as agents do. Assertions of cmocka belong to the main thread: inside, use crew_need. */
#ifndef MPISERVE_TESTS_CREW_H
#define MPISERVE_TESTS_CREW_H

#include "mpiserve/coll.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { CREW_NODES = 8 }; /* nodes are 0 .. 7 */
struct crew;
typedef void (*crew_fn)(struct coll_world *w, u32 me, void *arg);
struct crew_member {
    struct crew *crew;
    u32 me;
    pthread_t thread;
};
struct crew {
    struct coll_shape shape;
    u64 wait_ns, spin_ns;
    void (*tick)(void *arg);
    void *tick_arg;
    void (*prepare)(struct crew *c); /* of the memory, before anybody starts; NULL: nothing */
    crew_fn fn;
    void *arg;
    /* inside */
    u32 n;
    void *memory[CREW_NODES];
    u64 bytes[CREW_NODES];
    struct crew_member members[COLL_MAX];
    _Atomic bool ended;
    _Atomic u64 carried; /* messages between nodes */
};

#define crew_need(cond, err)                                                                                 \
    do {                                                                                                     \
        if (!(cond)) crew_fail(__FILE__, __LINE__, #cond, err);                                              \
    } while (0)
static inline _Noreturn void crew_fail(const char *file, int line, const char *what, const struct error *err)
{
    fprintf(stderr, "%s:%d: %s%s%s\n", file, line, what, err ? ": " : "", err ? err->message : "");
    abort();
}

/* tp * pp engines on nodes: engine i on nodes[i % strlen]; NULL: all on node 0. */
static inline struct coll_shape crew_shape(u32 tp, u32 pp, const char *nodes)
{
    struct coll_shape s = {.tp = tp, .pp = pp};
    for (u32 i = 0; i < tp * pp; i++) {
        s.rank[i] = i + 100;
        s.node[i] = nodes ? (u32)(nodes[i % strlen(nodes)] - '0') : 0;
    }
    return s;
}

static inline void crew_map(struct crew *c)
{
    c->n = c->shape.tp * c->shape.pp;
    for (u32 i = 0; i < c->n; i++) {
        u32 node = c->shape.node[i];
        if (c->memory[node]) continue;
        c->bytes[node] = coll_bytes(&c->shape, node);
        c->memory[node] = mmap(NULL, MAX_OF(c->bytes[node], 1u), PROT_READ | PROT_WRITE,
                               MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        crew_need(c->memory[node] != MAP_FAILED, NULL);
    }
}

static inline void crew_unmap(struct crew *c)
{
    for (u32 i = 0; i < CREW_NODES; i++) {
        if (c->memory[i]) munmap(c->memory[i], MAX_OF(c->bytes[i], 1u));
        c->memory[i] = NULL;
    }
}

static inline struct coll_world *crew_world(struct crew *c, u32 me, struct error *err)
{
    u32 node = c->shape.node[me];
    struct coll_spec spec = {.shape = c->shape,
                             .me = me,
                             .memory = c->memory[node],
                             .bytes = c->bytes[node],
                             .wait_ns = c->wait_ns ? c->wait_ns : 60 * NS_PER_S,
                             .spin_ns = c->spin_ns,
                             .tick_ns = 5 * NS_PER_MS,
                             .tick = c->tick,
                             .arg = c->tick_arg};
    return coll_open(&spec, err);
}

static inline void *crew_main(void *arg)
{
    struct crew_member *m = arg;
    struct error err;
    struct coll_world *w = crew_world(m->crew, m->me, &err);
    crew_need(w != NULL, &err);
    m->crew->fn(w, m->me, m->crew->arg);
    coll_close(w);
    return NULL;
}

static inline bool crew_carry(struct crew *c, struct coll_relay *const *relays, u32 from)
{
    u32 to;
    size_t len;
    struct error err;
    const void *data = coll_relay_take(relays[from], &to, &len);
    if (!data) {
        crew_need(len == 0, NULL);
        return false;
    }
    crew_need(len <= COLL_RELAY_MOST && coll_relay_waiting(relays[from]), NULL);
    crew_need(coll_relay_put(relays[to], from, data, len, &err) == 0, &err);
    coll_relay_taken(relays[from]);
    c->carried++;
    return true;
}

static inline void *crew_agents(void *arg)
{
    struct crew *c = arg;
    struct coll_relay *relays[COLL_MAX];
    struct error err;
    for (u32 i = 0; i < c->n; i++) {
        u32 node = c->shape.node[i];
        relays[i] = coll_relay_open(&c->shape, i, c->memory[node], c->bytes[node], &err);
        crew_need(relays[i] != NULL, &err);
    }
    for (bool ended = false, any = true; any || !ended;) {
        ended = c->ended;
        any = false;
        for (u32 i = 0; i < c->n; i++) any |= crew_carry(c, relays, i);
        if (!any) nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
    for (u32 i = 0; i < c->n; i++) coll_relay_close(relays[i]);
    return NULL;
}

/* fn in a thread for each engine, until all have returned. */
static inline void crew_run(struct crew *c)
{
    pthread_t agents;
    crew_map(c);
    if (c->prepare) c->prepare(c);
    c->ended = false;
    bool relays = coll_relays(&c->shape);
    if (relays) crew_need(pthread_create(&agents, NULL, crew_agents, c) == 0, NULL);
    for (u32 i = 0; i < c->n; i++) {
        c->members[i] = (struct crew_member){.crew = c, .me = i};
        crew_need(pthread_create(&c->members[i].thread, NULL, crew_main, &c->members[i]) == 0, NULL);
    }
    for (u32 i = 0; i < c->n; i++) pthread_join(c->members[i].thread, NULL);
    c->ended = true;
    if (relays) pthread_join(agents, NULL);
    crew_unmap(c);
}

#endif
