/* What a slot costs on a node. Prints one JSON object.
 *   mpirun -np 2 slots [BATCHES]      reserve + release, uncontended: rank 0 takes and gives back a slot of rank 1, which sleeps, and
 *                                     one of its own; microseconds of a pair, median, least and most of the batches
 *   mpirun -np 8 slots wanted [N]     every rank wants slots of the others, two a rank: N cycles each, one at a time (reserve, DISPATCH to the
 *                                     leader, run, finish, answer); microseconds of one, p50, p99, most */
#include "mpiserve/slots.h"
#include "mpiserve/wire.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { PAIRS = 1000, SLOTS = 64, MAX_BATCHES = 10000 };
enum { WANTED = 2, MAX_CYCLES = 1000000 };
enum { DISPATCH = 1, ENDED, QUIET };

static struct wire *wire;

static void need(bool fine, const struct error *err)
{
    char text[1200];
    if (fine) return;
    fprintf(stderr, "slots: %s\n", error_text(err, text, sizeof text));
    wire_abort(wire, 1);
}

/* Microseconds of a pair, over one batch. */
static double batch(struct slots *s, u32 leader)
{
    struct error err = {0};
    u64 start = clock_ns();
    for (int i = 0; i < PAIRS; i++) {
        struct slots_answer a;
        need(!slots_reserve(s, (i32)leader, leader, SLOTS, SLOT_CLASS_SHORT, &a, &err), &err);
        if (!a.accepted) error_set(&err, ERR_STATE, "reserve", "refused in an empty window");
        need(a.accepted, &err);
        int released = slots_release(s, leader, &a.token, &err);
        if (released == 0) error_set(&err, ERR_STATE, "release", "the slot was lost");
        need(released == 1, &err);
    }
    return (double)(clock_ns() - start) / 1e3 / PAIRS;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(struct slots *s, u32 leader, int batches, const char *name)
{
    double us[MAX_BATCHES];
    batch(s, leader); /* warms up */
    for (int i = 0; i < batches; i++) us[i] = batch(s, leader);
    qsort(us, (size_t)batches, sizeof *us, by_value);
    printf(", \"%s\": {\"median\": %.4f, \"min\": %.4f, \"max\": %.4f}", name, us[batches / 2], us[0],
           us[batches - 1]);
}

/* ---- all want them ----------------------------------------------------------------------------------------------*/
struct wanted {
    struct slots *slots;
    struct dwell dwell;
    bool answered;
    u32 n_quiet;
    u64 draws;
};

static void on_message(void *ctx, u32 from, u16 type, const void *body, size_t len)
{
    struct wanted *w = ctx;
    struct error err = {0};
    struct slot_token token;
    if (type == QUIET) {
        w->n_quiet++;
        return;
    }
    if (len != sizeof token) error_set(&err, ERR_PEER, "message", "%zu bytes", len);
    need(!err.code, &err);
    memcpy(&token, body, sizeof token);
    if (type == ENDED) {
        slots_ended(w->slots, from, &token);
        w->answered = true;
        return;
    }
    int verdict = slots_run(w->slots, &token, &err);
    if (verdict == SLOT_OK) verdict = slots_finish(w->slots, &token, &err);
    if (verdict > SLOT_OK)
        error_set(&err, ERR_STATE, "run", "%s", slot_verdict_name((enum slot_verdict)verdict));
    need(verdict == SLOT_OK && !wire_send(wire, from, ENDED, &token, sizeof token, &err), &err);
}

enum { NAP_US = 50, SLEEP_US = 10000 }; /* a bell ends both */

/* As an agent's main loop does: it dwells, and sleeps. */
static void serve(struct wanted *w, int most_us)
{
    struct error err = {0};
    int n = wire_poll(wire, on_message, w, &err);
    u64 now = clock_ns();
    need(n >= 0, &err);
    if (n) dwell_worked(&w->dwell, now);
    if (n || dwell_on(&w->dwell, now)) return;
    wire_sleep(wire, true);
    n = wire_poll(wire, on_message, w, &err);
    need(n >= 0, &err);
    struct pollfd bell = {.fd = wire_fd(wire), .events = POLLIN};
    struct timespec t = {.tv_nsec = 1000L * (wire_busy(wire) ? NAP_US : most_us)};
    if (n == 0) ppoll(&bell, 1, &t, NULL);
    wire_sleep(wire, false);
    wire_drain_bell(wire);
}

static void one(struct wanted *w)
{
    struct error err = {0};
    struct slots_answer a = {0};
    u32 out[4], leader = 0;
    for (;; serve(w, NAP_US)) { /* nobody tells that a slot has come free */
        rng_block(wire_rank(wire) + 1, w->draws++, 0, out);
        leader = (wire_rank(wire) + 1 + out[0] % (wire_size(wire) - 1)) % wire_size(wire);
        need(!slots_reserve(w->slots, (i32)leader, leader, WANTED, SLOT_CLASS_SHORT, &a, &err), &err);
        if (a.accepted) break;
    }
    w->answered = false;
    need(!wire_send(wire, leader, DISPATCH, &a.token, sizeof a.token, &err), &err);
    while (!w->answered) serve(w, SLEEP_US);
}

static void fight(struct wanted *w, int n)
{
    struct error err = {0};
    u32 size = wire_size(wire);
    size_t total = (size_t)n * size;
    double *us = mem_zero((size_t)n, sizeof *us), *all = mem_zero(total, sizeof *all);
    u64 start = clock_ns();
    for (int i = 0; i < n; i++) {
        u64 since = clock_ns();
        one(w);
        us[i] = (double)(clock_ns() - since) / 1e3;
    }
    for (u32 r = 0; r < size; r++) need(!wire_send(wire, r, QUIET, NULL, 0, &err), &err);
    while (w->n_quiet < size || wire_busy(wire)) serve(w, NAP_US);
    double seconds = (double)(clock_ns() - start) / 1e9;
    need(!wire_allgather(wire, us, (size_t)n * sizeof *us, all, &err), &err);
    qsort(all, total, sizeof *all, by_value);
    if (wire_rank(wire) == 0)
        printf("{\"ranks\": %u, \"slots\": %u, \"each\": %d, \"p50_us\": %.3f, \"p99_us\": %.3f, \"max_us\": "
               "%.3f, \"per_s\": %.0f}\n",
               size, WANTED * size, n, all[total / 2], all[total * 99 / 100], all[total - 1],
               (double)total / seconds);
    free(us);
    free(all);
}

static void with_bells(char *dir)
{
    struct error err = {0};
    if (wire_rank(wire) == 0 && !mkdtemp(dir)) error_errno(&err, dir, "cannot make it");
    need(!err.code && !wire_bcast(wire, 0, dir, strlen(dir), &err) && !wire_bells(wire, dir, &err), &err);
}

static void wanted(struct slots *s, int n)
{
    struct wanted w = {.slots = s};
    struct error err = {0};
    char dir[] = "/tmp/slots-bench-XXXXXX", bell[64];
    with_bells(dir);
    fight(&w, n);
    need(!wire_barrier(wire, &err), &err);
    snprintf(bell, sizeof bell, "%s/bell.%u", dir, wire_rank(wire));
    unlink(bell);
    need(!wire_barrier(wire, &err), &err);
    if (wire_rank(wire) == 0) rmdir(dir);
}

int main(int argc, char **argv)
{
    struct error err = {0};
    bool all = argc > 1 && !strcmp(argv[1], "wanted");
    int n = argc > 1 + all ? atoi(argv[1 + all]) : all ? 20000 : 200;
    wire = wire_init(&argc, &argv, &err);
    need(wire != NULL, &err);
    prctl(PR_SET_TIMERSLACK, NS_PER_US);
    thread_slice(SLICE_SHORT_NS);
    if ((!all && wire_size(wire) != 2) || wire_n_nodes(wire) != 1 || n < 1 ||
        n > (all ? MAX_CYCLES : MAX_BATCHES))
        error_set(&err, ERR_INPUT, "slots",
                  "mpirun -np 2 slots [BATCHES], or mpirun -np 8 slots wanted [N], on one node");
    need(!err.code, &err);
    struct slots_spec spec = {.owner = (u16)wire_rank(wire),
                              .epoch = 1,
                              .lease_short_ns = 3600 * NS_PER_S,
                              .lease_long_ns = 3600 * NS_PER_S};
    struct slots *s = slots_new(&spec, &err);
    need(s != NULL, &err);
    u32 rank = wire_rank(wire);
    need(!slots_open(s, (i32)rank, all ? WANTED : SLOTS, &err), &err);
    need(!wire_barrier(wire, &err), &err);
    if (all) {
        wanted(s, n);
    } else if (rank == 0) {
        printf("{\"pairs\": %d", n * PAIRS);
        measure(s, 1, n, "other_us");
        measure(s, 0, n, "own_us");
        printf("}\n");
    }
    need(!wire_barrier(wire, &err), &err);
    slots_free(s);
    wire_end(wire);
    return 0;
}
