/* Messages, doorbells and the start-up agreement between real processes.
 * ranks: 4 */
#include "tap.h"
#include "wire/wire_inner.h"

#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TYPE_BULK = 7, TYPE_PING, TYPE_PONG, TYPE_WAKE, TYPE_DONE, TYPE_LOST };
enum { MESSAGES = 60, BULK_MAX = 1 << 20, MAX_RANKS = 16, PINGS = 400 };

static struct tap tap;
static struct wire *w;

static u32 draw(u64 key, u64 counter)
{
    u32 out[4];
    rng_block(key, counter, 0, out);
    return out[0];
}

/* ---- who is who ----------------------------------------------------------------------------------------------*/
static void case_peers(void)
{
    const struct wire_peer *p = wire_peers(w);
    CHECK(&tap, p[wire_rank(w)].pid == (i32)getpid());
    CHECK(&tap, wire_node_ranks(w)[p[wire_rank(w)].local_rank] == wire_rank(w));
    CHECK(&tap, p[0].node_rank == 0 && p[0].local_rank == 0);
    for (u32 r = 0; r < wire_size(w); r++) {
        CHECK(&tap, p[r].node_rank < wire_n_nodes(w));
        CHECK(&tap, p[r].host[0]);
        for (u32 q = 0; q < r; q++)
            CHECK(&tap, p[q].node_rank != p[r].node_rank || p[q].local_rank < p[r].local_rank);
    }
    CHECK(&tap, strstr(wire_library(w), "MPI"));
    if (wire_rank(w) == 0)
        printf("# %u ranks on %u nodes, %s\n", wire_size(w), wire_n_nodes(w), wire_library(w));
    tap_case(&tap, "ranks know each other");
}

static void case_collectives(void)
{
    u32 all[MAX_RANKS], mine = wire_rank(w) * 3 + 1, word = wire_rank(w) == 1 ? 77 : 0;
    CHECK(&tap, !wire_allgather(w, &mine, sizeof mine, all, NULL));
    for (u32 r = 0; r < wire_size(w); r++) CHECK(&tap, all[r] == r * 3 + 1);
    CHECK(&tap, !wire_bcast(w, 1, &word, sizeof word, NULL) && word == 77);
    u64 blob[2] = {0};
    u32 last = wire_node_size(w) - 1;
    if (wire_peers(w)[wire_rank(w)].local_rank == last) blob[0] = blob[1] = 123456789;
    CHECK(&tap, !wire_node_bcast(w, last, blob, sizeof blob, NULL) && blob[1] == 123456789);
    CHECK(&tap, !wire_node_barrier(w, NULL) && !wire_barrier(w, NULL));
    tap_case(&tap, "gathering, broadcast, barriers");
}

static void case_agree(void)
{
    struct error err = {0};
    struct wire_item items[] = {{"build", "0.1.0", 0}, {"configuration", NULL, 5}, {"model", NULL, 99}};
    CHECK(&tap, !wire_agree(w, items, COUNT_OF(items), &err), "%s", err.message);
    if (wire_rank(w) == 2) items[2].hash = 98;
    CHECK(&tap, wire_agree(w, items, COUNT_OF(items), &err) == ERR_PEER);
    CHECK(&tap, strstr(err.message, "rank 2") && strstr(err.message, "model") && strstr(err.message, "0062"),
          "%s", err.message);
    CHECK(&tap, !strstr(err.message, "rank 1"), "%s", err.message);
    items[2].hash = 99;
    if (wire_rank(w) == 3) items[0].text = "0.2.0";
    CHECK(&tap, wire_agree(w, items, COUNT_OF(items), &err) == ERR_PEER);
    CHECK(&tap, strstr(err.message, "build 0.2.0, rank 0") && strstr(err.message, "has 0.1.0"), "%s",
          err.message);
    items[0].text = "0.1.0";
    CHECK(&tap, wire_agree(w, items, wire_rank(w) == 1 ? 2 : 3, &err) == ERR_PEER);
    CHECK(&tap, strstr(err.message, "rank 1"), "%s", err.message);
    /* two long texts that differ only behind what fits */
    char text[300];
    memset(text, 'x', sizeof text);
    text[299] = 0;
    items[0].text = text;
    CHECK(&tap, !wire_agree(w, items, 3, &err));
    if (wire_rank(w) == 0) text[298] = 'y';
    CHECK(&tap, wire_agree(w, items, 3, &err) == ERR_PEER);
    tap_case(&tap, "ranks that differ are refused and named");
}

/* ---- doorbells -----------------------------------------------------------------------------------------------*/
static char folder[64];

static void case_bells(void)
{
    struct error err = {0};
    char bad[200];
    if (wire_rank(w) == 0) {
        snprintf(folder, sizeof folder, "/tmp/wire-test.%d", (int)getpid());
        CHECK(&tap, !mkdir(folder, 0700));
    }
    CHECK(&tap, !wire_bcast(w, 0, folder, sizeof folder, NULL));
    memset(bad, 'a', sizeof bad);
    bad[0] = '/';
    bad[sizeof bad - 1] = 0;
    CHECK(&tap, wire_bells(w, wire_rank(w) == 2 ? bad : folder, &err) == ERR_INPUT);
    CHECK(&tap, strstr(err.message, "rank 2") && strstr(err.message, "shorter"), "%s", err.message);
    CHECK(&tap, wire_fd(w) == -1);
    wire_drain_bell(w); /* there are none: nothing */
    CHECK(&tap, wire_bells(w, wire_rank(w) == 1 ? "/tmp" : folder, &err) == ERR_INPUT);
    CHECK(&tap, strstr(err.message, "rank 1") && strstr(err.message, "0700"), "%s", err.message);
    CHECK(&tap, wire_bells(w, wire_rank(w) == 3 ? "/tmp/is-not-there" : folder, &err) == ERR_IO);
    CHECK(&tap, !wire_bells(w, folder, &err), "%s", err.message);
    CHECK(&tap, wire_fd(w) >= 0 && !wire_listens(w, clock_ns()));
    tap_case(&tap, "doorbells: bad folders are refused on all ranks");
}

struct woken {
    u32 wakes, done;
};
static void on_wake(void *ctx, u32 from, u16 type, const void *body, size_t len)
{
    struct woken *x = ctx;
    (void)from, (void)body, (void)len;
    x->wakes += type == TYPE_WAKE;
    x->done += type == TYPE_DONE;
}

static int poll_until(wire_handler handler, void *ctx, const u32 *count, u32 wanted, double seconds)
{
    struct error err = {0};
    u64 until = clock_ns() + (u64)(seconds * NS_PER_S);
    while (*count < wanted && clock_ns() < until) {
        int n = wire_poll(w, handler, ctx, &err);
        if (n < 0) {
            CHECK(&tap, n >= 0, "%s", err.message);
            return n;
        }
        if (!n) usleep(50);
    }
    return *count >= wanted ? 0 : -1;
}

/* Rank 0 sleeps in poll(2); who sends to it ends the sleep. */
static void case_wake(void)
{
    struct woken x = {0};
    if (wire_rank(w) == 0) {
        for (u32 i = 0; i + 1 < wire_size(w); i++) {
            struct pollfd p = {.fd = wire_fd(w), .events = POLLIN};
            wire_sleep(w, true);
            wire_send(w, i + 1, TYPE_WAKE, NULL, 0, NULL);
            u64 before = clock_ns();
            CHECK(&tap, poll(&p, 1, 3000) == 1, "nobody rang");
            CHECK(&tap, clock_ns() - before < NS_PER_S);
            wire_sleep(w, false);
            wire_drain_bell(w);
            CHECK(&tap, wire_listens(w, clock_ns()));
            CHECK(&tap, !poll_until(on_wake, &x, &x.wakes, i + 1, 5), "the message did not follow its bell");
            CHECK(&tap, !wire_listens(w, clock_ns()), "the message came, and it still listens");
        }
    } else {
        CHECK(&tap, !poll_until(on_wake, &x, &x.wakes, 1, 10));
        usleep(20000); /* rank 0 sleeps by now */
        CHECK(&tap, !wire_send(w, 0, TYPE_WAKE, "x", 1, NULL));
    }
    struct wire_counts c = *wire_counts(w);
    for (int i = 0; i < 10; i++) wire_ring(w, (wire_rank(w) + 1) % wire_size(w));
    wire_ring(w, wire_rank(w));
    CHECK(&tap,
          wire_counts(w)->bells_sent == c.bells_sent && wire_counts(w)->bells_saved >= c.bells_saved + 10);
    tap_case(&tap, "a message wakes a sleeping rank, and who is awake is not rung");
    wire_sleep(w, true);
    CHECK(&tap, !wire_barrier(w, NULL)); /* all sleep */
    for (int i = 0; i < 10; i++) wire_ring(w, (wire_rank(w) + 1) % wire_size(w));
    CHECK(&tap, wire_counts(w)->bells_sent == c.bells_sent + 1, "%llu bells",
          (unsigned long long)(wire_counts(w)->bells_sent - c.bells_sent));
    CHECK(&tap, !wire_barrier(w, NULL));
    wire_sleep(w, false);
    wire_drain_bell(w);
    tap_case(&tap, "a sleep is ended by one bell");
}

/* Two ranks answer each other and sleep in between, as a main loop does. A sleep that its time ends, with a message there, was begun
 * although the message had come. */
static u32 sleep_once(struct woken *x)
{
    struct pollfd p = {.fd = wire_fd(w), .events = POLLIN};
    bool slept_out = false;
    u32 before = x->wakes;
    if (wire_poll(w, on_wake, x, NULL) > 0) return 0;
    wire_sleep(w, true);
    if (wire_poll(w, on_wake, x, NULL) == 0)
        slept_out = poll(&p, 1, wire_busy(w) ? 1 : 1000) == 0 && !wire_busy(w);
    wire_sleep(w, false);
    wire_drain_bell(w);
    wire_poll(w, on_wake, x, NULL);
    return slept_out && x->wakes > before;
}

static void case_no_sleep_over_a_message(void)
{
    enum { ROUNDS = 3000 };
    struct woken x = {0};
    u32 missed = 0, me = wire_rank(w);
    for (u32 i = 0; me < 2 && i < ROUNDS && missed < 3; i++) {
        if (me == 0) CHECK(&tap, !wire_send(w, 1, TYPE_WAKE, NULL, 0, NULL));
        while (x.wakes <= i && missed < 3) missed += sleep_once(&x);
        if (me == 1) CHECK(&tap, !wire_send(w, 0, TYPE_WAKE, NULL, 0, NULL));
    }
    CHECK(&tap, missed == 0, "%u times", missed);
    CHECK(&tap, !wire_barrier(w, NULL));
    while (wire_poll(w, on_wake, &x, NULL) > 0) continue;
    tap_case(&tap, "nobody falls asleep over a message that has come");
}

/* ---- bulk ----------------------------------------------------------------------------------------------------*/
struct bulk {
    u32 next[MAX_RANKS], received, wanted;
    u64 bytes;
    u8 *expected;
};

static size_t bulk_size(u32 from, u32 to, u32 i)
{
    static const size_t edges[] = {
        0, 1, WIRE_FRAGMENT - 1, WIRE_FRAGMENT, WIRE_FRAGMENT + 1, 2 * WIRE_FRAGMENT};
    u32 x = draw(from * 100 + to, i);
    if (i < COUNT_OF(edges)) return edges[i];
    return x % 3 ? x % 4096 : x % BULK_MAX; /* most are small, as in life: they would overtake */
}

static void bulk_fill(u8 *out, size_t len, u32 from, u32 to, u32 i)
{
    u64 x = (u64)from << 40 | (u64)to << 20 | i;
    for (size_t k = 0; k < len; k++)
        out[k] = (u8)((x = x * 6364136223846793005ull + 1442695040888963407ull) >> 56);
}

static void on_bulk(void *ctx, u32 from, u16 type, const void *body, size_t len)
{
    struct bulk *b = ctx;
    u32 i = b->next[from]++;
    CHECK(&tap, type == TYPE_BULK + (i & 1) * 100 && len == bulk_size(from, wire_rank(w), i),
          "message %u from %u: type %u, %zu bytes", i, from, type, len);
    CHECK(&tap, (uintptr_t)body % 16 == 0);
    bulk_fill(b->expected, len, from, wire_rank(w), i);
    CHECK(&tap, !memcmp(body, b->expected, len), "message %u from %u: other bytes", i, from);
    b->received++;
    b->bytes += len;
}

static void case_bulk(void)
{
    struct bulk b = {.wanted = MESSAGES * wire_size(w), .expected = mem_alloc(BULK_MAX)};
    u8 *body = mem_alloc(BULK_MAX);
    struct error err = {0};
    u64 start = clock_ns();
    for (u32 i = 0; i < MESSAGES; i++)
        for (u32 k = 0; k < wire_size(w); k++) {
            u32 to = (wire_rank(w) + k) % wire_size(w);
            size_t len = bulk_size(wire_rank(w), to, i), head = len ? draw(9, i) % len : 0;
            bulk_fill(body, len, wire_rank(w), to, i);
            int rc = wire_send2(w, to, (u16)(TYPE_BULK + (i & 1) * 100), body, head, body + head, len - head,
                                &err);
            CHECK(&tap, !rc, "%s", err.message);
            memset(body, 0xee, len); /* it was copied */
            if (draw(8, i) % 4 == 0) CHECK(&tap, wire_poll(w, on_bulk, &b, &err) >= 0, "%s", err.message);
        }
    CHECK(&tap, !poll_until(on_bulk, &b, &b.received, b.wanted, 60), "%u of %u came", b.received, b.wanted);
    u32 never = 0;
    while (wire_busy(w)) poll_until(on_bulk, &b, &never, 1, 0.001);
    for (u32 r = 0; r < wire_size(w); r++)
        CHECK(&tap, b.next[r] == MESSAGES && wire_sends_pending_to(w, r) == 0);
    double s = (double)(clock_ns() - start) / NS_PER_S;
    if (wire_rank(w) == 0)
        printf("# rank 0 received %.0f MB in %.2f s, %llu packets came early\n", (double)b.bytes / 1e6, s,
               (unsigned long long)wire_counts(w)->packets_held);
    free(body);
    free(b.expected);
    tap_case(&tap, "all to all, 0 to 1 MB: order, bytes");
}

/* ---- latency -------------------------------------------------------------------------------------------------*/
struct ping {
    u32 got, from_size;
};
static void on_ping(void *ctx, u32 from, u16 type, const void *body, size_t len)
{
    struct ping *p = ctx;
    p->got++;
    if (type == TYPE_PING) wire_send(w, from, TYPE_PONG, body, len, NULL);
}

static int by_value(const void *a, const void *b)
{
    u64 x = *(const u64 *)a, y = *(const u64 *)b;
    return x < y ? -1 : x > y;
}

static void ping_round(u32 rounds, size_t len)
{
    u64 *ns = mem_zero(rounds, sizeof *ns);
    u8 *body = mem_zero(len, 1);
    struct ping p = {0};
    for (u32 i = 0; i < rounds && wire_rank(w) < 2; i++) {
        u64 start = clock_ns();
        u32 before = p.got;
        if (wire_rank(w) == 0) wire_send(w, 1, TYPE_PING, body, len, NULL);
        u64 until = start + 5 * NS_PER_S;
        while (p.got == before && clock_ns() < until)
            if (wire_poll(w, on_ping, &p, NULL) == 0) sched_yield();
        CHECK(&tap, p.got == before + 1);
        ns[i] = clock_ns() - start;
    }
    u32 never = 0;
    while (wire_busy(w)) poll_until(on_ping, &p, &never, 1, 0.001);
    qsort(ns, rounds, sizeof *ns, by_value);
    if (wire_rank(w) == 0)
        printf("# there and back, %zu bytes: median %.1f us, best %.1f us\n", len,
               (double)ns[rounds / 2] / 1e3, (double)ns[0] / 1e3);
    free(ns);
    free(body);
    wire_barrier(w, NULL);
}

static void case_latency(void)
{
    ping_round(PINGS, 64);
    ping_round(PINGS, 3000);
    ping_round(PINGS / 4, 16384);
    ping_round(PINGS / 8, 1 << 20);
    tap_case(&tap, "there and back");
}

/* ---- what is refused -----------------------------------------------------------------------------------------*/
static void on_any(void *ctx, u32 from, u16 type, const void *body, size_t len)
{
    (void)from, (void)type, (void)body, (void)len;
    ++*(u32 *)ctx;
}

static void case_refused_sends(void)
{
    struct error err = {0};
    static u8 byte;
    CHECK(&tap, wire_send(w, wire_size(w), 1, &byte, 1, &err) == ERR_INPUT);
    CHECK(&tap, strstr(err.message, "rank 4 of 4"), "%s", err.message);
    CHECK(&tap, wire_send(w, 0, 1, &byte, (size_t)WIRE_MAX_MESSAGE + 1, &err) == ERR_INPUT);
    CHECK(&tap, wire_send2(w, 0, 1, &byte, SIZE_MAX, &byte, 2, &err) == ERR_INPUT);
    CHECK(&tap, !wire_busy(w));
    tap_case(&tap, "impossible sends are refused");
}

/* Rank 1 forgets rank 3: neither hears of the other again, and nobody else minds. */
static void case_forget(void)
{
    u32 got = 0, me = wire_rank(w);
    if (me == 1) wire_forget(w, 3);
    wire_barrier(w, NULL);
    if (me == 3) CHECK(&tap, !wire_send(w, 1, TYPE_LOST, &me, sizeof me, NULL));
    if (me == 1) CHECK(&tap, !wire_send(w, 3, TYPE_LOST, &me, sizeof me, NULL));
    if (me == 2) CHECK(&tap, !wire_send(w, 1, TYPE_DONE, &me, sizeof me, NULL));
    if (me == 1) CHECK(&tap, !poll_until(on_any, &got, &got, 1, 5));
    u32 never = 0;
    poll_until(on_any, &got, &never, 1, 0.02);
    CHECK(&tap, got == (me == 1));
    CHECK(&tap, !wire_busy(w));
    tap_case(&tap, "a forgotten rank");
}

/* Sends bytes beside the room's own functions, as a peer gone wrong would. */
static void send_raw(u32 to, const void *bytes, size_t len)
{
    MPI_Request r;
    MPI_Isend(bytes, (int)len, MPI_BYTE, (int)to, PACKET_TAG, w->comm, &r);
    wire_wait(&r, "raw send", NULL);
}

static void case_malformed(void)
{
    static u8 bytes[2 * WIRE_FRAGMENT];
    struct packet_head good = {
        .magic = PACKET_MAGIC, .type = 1, .seq = w->states[0].send_seq, .total = 8, .len = 8};
    struct packet_head heads[6];
    for (size_t i = 0; i < COUNT_OF(heads); i++) heads[i] = good;
    heads[0].magic = 1;
    heads[1].len = 9;                         /* more than comes */
    heads[2].total = WIRE_MAX_MESSAGE + 1;    /* too long */
    heads[3].offset = 4;                      /* beyond its end */
    heads[4].seq += SEQ_AHEAD_MAX + 7;        /* from nowhere */
    heads[5].offset = 8, heads[5].total = 16; /* a middle without a start: ends this pair's order */
    for (size_t i = 0; i <= COUNT_OF(heads) + 1; i++) {
        size_t len = i == COUNT_OF(heads) ? 3 : i > COUNT_OF(heads) ? sizeof bytes : sizeof good + 8;
        if (i < COUNT_OF(heads)) memcpy(bytes, &heads[i], sizeof good);
        if (wire_rank(w) == 2) send_raw(0, bytes, len);
        if (wire_rank(w) != 0) {
            wire_barrier(w, NULL);
            continue;
        }
        u32 got = 0;
        int rc = 0;
        struct error err = {0};
        for (u64 until = clock_ns() + 5 * NS_PER_S; !rc && clock_ns() < until;)
            rc = wire_poll(w, on_any, &got, &err);
        CHECK(&tap, rc == ERR_PEER && !got && strstr(err.message, "rank 2"), "packet %zu: %d %s", i, rc,
              err.message);
        wire_barrier(w, NULL);
    }
    tap_case(&tap, "malformed packets are refused and their sender named");
}

int main(int argc, char **argv)
{
    alarm(120);
    w = tap_start(&tap, &argc, &argv);
    if (wire_size(w) < 4 || wire_size(w) > MAX_RANKS) {
        if (wire_rank(w) == 0) fprintf(stderr, "Bail out! needs 4 to %d ranks\n", MAX_RANKS);
        wire_abort(w, 1);
    }
    case_peers();
    case_collectives();
    case_agree();
    case_bells();
    case_wake();
    case_no_sleep_over_a_message();
    case_bulk();
    case_latency();
    case_refused_sends();
    case_forget();
    case_malformed();
    bool last = wire_rank(w) == 0;
    int status = tap_end(&tap);
    for (int i = 0; last && rmdir(folder) && i < 100; i++)
        usleep(10000); /* others remove their sockets first */
    return status;
}
