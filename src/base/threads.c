/* A fixed pool. Everything that threads wait for is a gate: a word that changes when the gate turns. */
#include "mpiserve/base.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

struct gate {
    _Alignas(CACHE_LINE) atomic_uint turns;
    atomic_uint sleepers;
    /* Of spinning: how many waits are still to sleep at once, and how many do after the next spin in vain. */
    _Alignas(CACHE_LINE) atomic_uint skip, doubt;
};
enum { MOST_DOUBT = 255 };

struct worker {
    struct pool *pool;
    int index;
    pthread_t thread;
};

struct pool {
    struct gate start, finish, barrier;
    _Alignas(CACHE_LINE) atomic_int running; /* workers that are still in fn */
    _Alignas(CACHE_LINE) atomic_int arrived; /* threads at the barrier */
    _Alignas(CACHE_LINE) void (*fn)(void *arg, int thread, int threads);
    void *arg;
    u64 spin_ns;
    int threads;
    bool stop;
    struct worker workers[];
};

static void futex(atomic_uint *word, int op, unsigned value)
{
    syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

static unsigned gate_turns(struct gate *g)
{
    return atomic_load_explicit(&g->turns, memory_order_acquire);
}

/* A sleeper counts itself before the kernel compares the word; a turner changes the word before it looks for
 * sleepers: one of the two sees the other. */
static void gate_turn(struct gate *g)
{
    atomic_fetch_add(&g->turns, 1);
    if (atomic_load(&g->sleepers)) futex(&g->turns, FUTEX_WAKE, INT_MAX);
}

static bool gate_spin(struct gate *g, unsigned seen, u64 spin_ns)
{
    for (u64 until = clock_ns() + spin_ns; clock_ns() < until;) {
        for (int i = 0; i < 32; i++) {
            if (gate_turns(g) != seen) return true;
            cpu_pause();
        }
    }
    return false;
}

/* Spinning pays while all threads run. When other work has taken a CPU from one of them, it only uses up the time that the
 * kernel would have given at once to a thread that slept; so after spins in vain more and more waits do without. The counts are
 * hints, threads may overwrite each other's. */
static bool gate_try_spin(struct gate *g, unsigned seen, u64 spin_ns)
{
    unsigned skip = atomic_load_explicit(&g->skip, memory_order_relaxed);
    unsigned doubt = atomic_load_explicit(&g->doubt, memory_order_relaxed);
    if (skip) {
        atomic_store_explicit(&g->skip, skip - 1, memory_order_relaxed);
        return false;
    }
    bool turned = gate_spin(g, seen, spin_ns);
    if (turned && doubt) atomic_store_explicit(&g->doubt, doubt / 2, memory_order_relaxed);
    /* Of several that wait here in vain, the first counts. */
    if (!turned && !atomic_load_explicit(&g->skip, memory_order_relaxed)) {
        doubt = MIN_OF(2 * doubt + 1, (unsigned)MOST_DOUBT);
        atomic_store_explicit(&g->doubt, doubt, memory_order_relaxed);
        atomic_store_explicit(&g->skip, doubt, memory_order_relaxed);
    }
    return turned;
}

static void gate_wait(struct gate *g, unsigned seen, u64 spin_ns)
{
    if (gate_turns(g) != seen) return;
    if (spin_ns && gate_try_spin(g, seen, spin_ns)) return;
    atomic_fetch_add(&g->sleepers, 1);
    while (atomic_load(&g->turns) == seen) futex(&g->turns, FUTEX_WAIT, seen);
    atomic_fetch_sub(&g->sleepers, 1);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct pool *p = w->pool;
    for (unsigned seen = 0;; seen++) {
        gate_wait(&p->start, seen, p->spin_ns);
        if (p->stop) return NULL;
        p->fn(p->arg, w->index, p->threads);
        if (atomic_fetch_sub(&p->running, 1) == 1) gate_turn(&p->finish);
    }
}

static void gate_init(struct gate *g)
{
    atomic_init(&g->turns, 0);
    atomic_init(&g->sleepers, 0);
    atomic_init(&g->skip, 0);
    atomic_init(&g->doubt, 0);
}

static int worker_start(struct pool *p, int index)
{
    struct worker *w = &p->workers[index];
    *w = (struct worker){.pool = p, .index = index};
    int rc = pthread_create(&w->thread, NULL, worker_main, w);
    if (rc) return rc;
    char name[16];
    snprintf(name, sizeof(name), "pool %d", index);
    pthread_setname_np(w->thread, name);
    return 0;
}

static void workers_stop(struct pool *p, int started)
{
    p->stop = true;
    gate_turn(&p->start);
    for (int i = 1; i < started; i++) pthread_join(p->workers[i].thread, NULL);
}

struct pool *pool_new(int threads, u64 spin_ns, struct error *err)
{
    if (threads < 1 || threads > 4096) {
        error_set(err, ERR_INPUT, "", "a pool has 1 to 4096 threads, not %d", threads);
        return NULL;
    }
    size_t size = sizeof(struct pool) + (size_t)threads * sizeof(struct worker);
    struct pool *p = aligned_alloc(CACHE_LINE, (size + CACHE_LINE - 1) & ~(size_t)(CACHE_LINE - 1));
    if (!p) {
        error_set(err, ERR_MEMORY, "", "no memory for a pool of %d threads", threads);
        return NULL;
    }
    memset(p, 0, size);
    gate_init(&p->start);
    gate_init(&p->finish);
    gate_init(&p->barrier);
    p->threads = threads;
    p->spin_ns = spin_ns;
    /* Signals are the business of the thread that makes the pool. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int started = 1, rc = 0;
    while (started < threads && !(rc = worker_start(p, started))) started++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!rc) return p;
    workers_stop(p, started);
    free(p);
    errno = rc;
    error_errno(err, "", "cannot start thread %d of %d", started, threads);
    return NULL;
}

void pool_free(struct pool *p)
{
    if (!p) return;
    workers_stop(p, p->threads);
    free(p);
}

int pool_threads(const struct pool *p)
{
    return p->threads;
}

void pool_run(struct pool *p, void (*fn)(void *arg, int thread, int threads), void *arg)
{
    if (p->threads == 1) {
        fn(arg, 0, 1);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    atomic_store_explicit(&p->running, p->threads - 1, memory_order_relaxed);
    unsigned seen = gate_turns(&p->finish);
    gate_turn(&p->start);
    fn(arg, 0, p->threads);
    gate_wait(&p->finish, seen, p->spin_ns);
}

void pool_barrier(struct pool *p)
{
    if (p->threads == 1) return;
    unsigned seen = gate_turns(&p->barrier);
    if (atomic_fetch_add(&p->arrived, 1) == p->threads - 1) {
        atomic_store_explicit(&p->arrived, 0, memory_order_relaxed);
        gate_turn(&p->barrier);
    } else {
        gate_wait(&p->barrier, seen, p->spin_ns);
    }
}
