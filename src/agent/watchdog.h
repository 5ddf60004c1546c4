/* watchdog: a thread that ends the process when the main loop has not turned for WATCHDOG_S, naming what it waited for. It calls no MPI. */
#ifndef MPISERVE_AGENT_WATCHDOG_H
#define MPISERVE_AGENT_WATCHDOG_H

#include "mpiserve/base.h"
#include <pthread.h>
#include <stdatomic.h>

enum { WATCHDOG_S = 5 };
struct watchdog {
    _Atomic u64 tick_ns; /* clock_ns() of the loop's last turn; read by the HTTP threads as well */
    _Atomic(const char *) waits_for; /* a constant text */
    _Atomic bool stop;
    pthread_t thread;
    bool started;
};
int watchdog_start(struct watchdog *w, struct error *err);
void watchdog_stop(struct watchdog *w);
/* The loop turns, and is about to do this. */
static inline void watchdog_turn(struct watchdog *w, u64 now_ns, const char *doing)
{
    atomic_store_explicit(&w->tick_ns, now_ns, memory_order_relaxed);
    atomic_store_explicit(&w->waits_for, doing, memory_order_relaxed);
}

#endif
