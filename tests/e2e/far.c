/* Doorbells between two nodes: who is rung listens for the packets that were announced, and no longer.
 * Started by t_hosts.py: two ranks on two nodes. */
#include "../mpi/tap.h"
#include "wire/wire_inner.h"

#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TYPE_HELLO = 7, MESSAGES = 3 };

static struct tap tap;
static struct wire *w;

static void on_message(void *ctx, u32 from, u16 type, const void *body, size_t len)
{
    (void)from, (void)type, (void)body, (void)len;
    ++*(u32 *)ctx;
}

static void poll_until(u32 *came, u32 wanted)
{
    struct error err = {0};
    for (u64 until = clock_ns() + 5 * NS_PER_S; *came < wanted && clock_ns() < until; usleep(50))
        CHECK(&tap, wire_poll(w, on_message, came, &err) >= 0, "%s", err.message);
    CHECK(&tap, *came == wanted, "%u of %u messages", *came, wanted);
}

static void wait_for_bell(void)
{
    struct pollfd p = {.fd = wire_fd(w), .events = POLLIN};
    CHECK(&tap, poll(&p, 1, 3000) == 1, "nobody rang");
}

static void send_some(void)
{
    u32 none = 0;
    struct error err = {0};
    u64 before = wire_counts(w)->bells_sent;
    for (u32 i = 0; i < MESSAGES; i++)
        CHECK(&tap, !wire_send(w, 0, TYPE_HELLO, "x", 1, &err), "%s", err.message);
    CHECK(&tap, wire_counts(w)->bells_sent == before, "rung before the poll");
    for (u32 i = 0; i < MESSAGES; i++)
        CHECK(&tap, wire_poll(w, on_message, &none, &err) >= 0, "%s", err.message);
    CHECK(&tap, wire_counts(w)->bells_sent == before + 1, "%llu bells",
          (unsigned long long)(wire_counts(w)->bells_sent - before));
}

static void case_announced(void)
{
    u32 came = 0;
    if (wire_rank(w) == 1) {
        send_some();
    } else {
        wait_for_bell();
        wire_drain_bell(w);
        CHECK(&tap, wire_listens(w, clock_ns()), "nothing has come yet");
        poll_until(&came, MESSAGES);
        CHECK(&tap, !wire_listens(w, clock_ns()), "all has come");
    }
    tap_case(&tap, "one bell for the messages of a turn, which is over when they are here");
    CHECK(&tap, !wire_barrier(w, NULL));
}

static void case_late_bell(void)
{
    u32 came = 0;
    if (wire_rank(w) == 1) {
        send_some();
    } else {
        poll_until(&came, MESSAGES);
        wait_for_bell();
        wire_drain_bell(w);
        CHECK(&tap, !wire_listens(w, clock_ns()));
    }
    tap_case(&tap, "a bell for what is here already keeps nobody awake");
    CHECK(&tap, !wire_barrier(w, NULL));
}

static void case_other_bell(void)
{
    if (wire_rank(w) == 1) {
        wire_ring(w, 0);
    } else {
        wait_for_bell();
        u64 before = clock_ns();
        wire_drain_bell(w);
        CHECK(&tap, wire_listens(w, before + WIRE_BELL_NS - 1));
        CHECK(&tap, !wire_listens(w, clock_ns() + WIRE_BELL_NS));
    }
    tap_case(&tap, "what is no message is listened for a while");
    CHECK(&tap, !wire_barrier(w, NULL));
}

/* The sender dies between the bell and what it announced: the last case, since the packets of this pair are out of order from here on. */
static void case_nothing_comes(void)
{
    if (wire_rank(w) == 1) {
        w->states[0].posted += MESSAGES;
        bell_packets(w, 0);
        bell_owed(w);
    } else {
        wait_for_bell();
        wire_drain_bell(w);
        u64 now = clock_ns();
        CHECK(&tap, wire_listens(w, now));
        CHECK(&tap, !wire_listens(w, now + NS_PER_S), "it waits for ever");
        wire_forget(w, 1);
        CHECK(&tap, !wire_listens(w, now), "the rank is forgotten");
    }
    tap_case(&tap, "what was announced and does not come is given up");
}

int main(int argc, char **argv)
{
    char folder[64];
    struct error err = {0};
    alarm(60);
    w = tap_start(&tap, &argc, &argv);
    if (wire_n_nodes(w) < 2) {
        fprintf(stderr, "Bail out! needs two nodes\n");
        wire_abort(w, 1);
    }
    snprintf(folder, sizeof folder, "/tmp/far-test.%d", (int)getpid());
    CHECK(&tap, !mkdir(folder, 0700));
    CHECK(&tap, !wire_bells(w, folder, &err), "%s", err.message);
    case_announced();
    case_late_bell();
    case_other_bell();
    case_nothing_comes();
    int status = tap_end(&tap);
    rmdir(folder);
    return status;
}
