/* Waiting for a counter. A sleeper counts itself before the kernel compares the value; who raises it looks
 * for sleepers afterwards: one of the two sees the other. */
#include "coll/coll_inner.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

void counter_raise(struct counter *c, u32 value)
{
    atomic_exchange(&c->value, value);
    if (atomic_load(&c->sleepers)) syscall(SYS_futex, &c->value, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static bool poll_for(const struct counter *c, u32 want, u64 spin_ns)
{
    for (u64 until = clock_ns() + spin_ns; clock_ns() < until;)
        for (int i = 0; i < 64; i++) {
            if (reached(counter_value(c), want)) return true;
            cpu_pause();
        }
    return false;
}

static void sleep_for(struct counter *c, u32 want, u64 ns)
{
    const struct timespec limit = {.tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S)};
    atomic_fetch_add(&c->sleepers, 1);
    u32 seen = atomic_load(&c->value);
    if (!reached(seen, want)) syscall(SYS_futex, &c->value, FUTEX_WAIT, seen, &limit, NULL, 0);
    atomic_fetch_sub(&c->sleepers, 1);
}

/* A sleep that took so much longer than asked for: this process stood still, and the others may have, too. Its deadline moves by as
 * much. */
static const u64 stopped_ns = NS_PER_S;

static u64 moved(u64 until, u64 asked, u64 slept)
{
    if (slept <= asked + stopped_ns) return until;
    u64 lost = slept - asked;
    return lost > UINT64_MAX - until ? UINT64_MAX : until + lost;
}

int counter_wait(struct coll_world *w, struct counter *c, u32 want, u64 wait_ns)
{
    const struct coll_spec *s = &w->spec;
    if (reached(counter_value(c), want)) return 0;
    coll_wake(w); /* what is waited for may be an answer */
    if (s->spin_ns && poll_for(c, want, s->spin_ns)) return 0;
    u64 start = clock_ns(), now = start, until = wait_ns > UINT64_MAX - start ? UINT64_MAX : start + wait_ns;
    while (!reached(counter_value(c), want)) {
        if (now >= until) return ERR_STATE;
        u64 asked = MIN_OF(until - now, s->tick ? s->tick_ns : NS_PER_S), slept = now;
        sleep_for(c, want, asked);
        now = clock_ns();
        until = moved(until, asked, now - slept);
        if (s->tick && now - start >= s->tick_ns) {
            s->tick(s->arg);
            start = now;
        }
    }
    return 0;
}
