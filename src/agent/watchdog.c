#include "agent/watchdog.h"
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void *watch(void *arg)
{
    struct watchdog *w = arg;
    while (!atomic_load(&w->stop)) {
        nanosleep(&(struct timespec){.tv_nsec = 250 * 1000000}, NULL);
        u64 tick = atomic_load(&w->tick_ns), now = clock_ns();
        if (now > tick && now - tick > WATCHDOG_S * NS_PER_S && !atomic_load(&w->stop)) {
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
