#include "agent/watchdog.h"
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LOOK_MS = 250 };

/* Counts looks, not time: while the whole process is stopped (a paused container, a suspended machine) this thread is too. */
static void *watch(void *arg)
{
    struct watchdog *w = arg;
    u64 seen = 0;
    for (int same = 0; !atomic_load(&w->stop);) {
        nanosleep(&(struct timespec){.tv_nsec = LOOK_MS * NS_PER_MS}, NULL);
        u64 tick = atomic_load(&w->tick_ns);
        same = tick == seen ? same + 1 : 0;
        seen = tick;
        if (same * LOOK_MS >= WATCHDOG_S * 1000 && !atomic_load(&w->stop)) {
            log_error(
                "the main loop has not turned for %d s; it was at: %s. This rank ends, and the job with it.",
                WATCHDOG_S, atomic_load(&w->waits_for));
            _exit(70);
        }
    }
    return NULL;
}

int watchdog_start(struct watchdog *w, struct error *err)
{
    watchdog_turn(w, clock_ns(), "start");
    int rc = pthread_create(&w->thread, NULL, watch, w);
    if (rc) return error_set(err, ERR_IO, "watchdog", "cannot start its thread: %s", strerror(rc));
    w->started = true;
    return 0;
}

void watchdog_stop(struct watchdog *w)
{
    if (!w->started) return;
    atomic_store(&w->stop, true);
    pthread_join(w->thread, NULL);
    w->started = false;
}
