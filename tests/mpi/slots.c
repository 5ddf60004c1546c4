/* The slot window under fire: every rank is ingress and leader, few slots, all want them. An independent count: each ingress notes what
 * it was granted, each leader what it ran; after every round no (leader, slot, seq) was granted twice and none was skipped, since the
 * first; in the end the books balance.
 * ranks: 8
 * By hand: mpirun -np 8 --oversubscribe build/tests/mpi/slots [SECONDS [CAS]]: so long at least, and so many compare-and-swaps of all
 * ranks at least. With SOAK=1 (make soak) 10^8 of them. */
#include "tap.h"

#include "mpiserve/slots.h"

#include <mpi.h>
#include <string.h>
#include <unistd.h>

enum { SLOTS = 4, HELD = 8, ROUND_GRANTS = 1 << 16, LOG_MAX = ROUND_GRANTS + HELD, MAX_RUNNING = 64 };
enum { DISPATCH = 1, ENDED, REFUSED, QUIET, ROUND };
static const u64 short_lease = 300 * NS_PER_MS, long_lease = 600 * NS_PER_MS;

struct held {
    struct slot_token token;
    u32 leader;
    bool sent, lost; /* lost on purpose: neither dispatched nor released before the leader has reaped it */
    u64 until_ns;    /* lost: so long */
};
struct rank_state {
    struct held held[HELD];
    u32 n_held, n_quiet;
    struct running {
        struct slot_token token;
        u32 from;
        u64 until_ns;
    } running[MAX_RUNNING];
    u32 n_running;
    u64 *log; /* leader:8 | slot:24 | seq:32 of every grant of the round */
    u64 n_log, logged, draws, passes, lost;
    u32 round, over; /* the one that runs; the last that somebody ended */
    u32 *next;       /* rank 0: [ranks][SLOTS] the seq that is granted next */
    u64 twice, gaps; /* rank 0 */
    u64 stale_replies, finish_faults, double_runs;
};
static struct tap tap;
static struct wire *w;
static struct slots *s;
static struct rank_state me;

static u32 draw(u32 below)
{
    u32 out[4];
    rng_block(wire_rank(w) + 1000, me.draws++, 0, out);
    return out[0] % below;
}

static void must(int rc, const struct error *err)
{
    if (rc >= 0) return;
    fprintf(stderr, "Bail out! rank %u: %s\n", wire_rank(w), err->message);
    wire_abort(w, 1);
}

/* ---- ingress -------------------------------------------------------------------------------------------------*/
static void forget(u32 k)
{
    me.held[k] = me.held[--me.n_held];
}

static void reserve(void)
{
    u32 leader = draw(wire_size(w));
    struct slots_answer a;
    struct error err = {0};
    must(slots_reserve(s, (i32)leader, leader, SLOTS, draw(8) ? SLOT_CLASS_SHORT : SLOT_CLASS_LONG, &a, &err),
         &err);
    if (!a.accepted) return;
    BUG_ON(me.n_log == LOG_MAX);
    me.log[me.n_log++] = (u64)leader << 56 | (u64)a.token.slot << 32 | a.token.seq;
    bool lost = draw(5000) == 0;
    me.lost += lost;
    me.held[me.n_held++] = (struct held){
        .token = a.token, .leader = leader, .lost = lost, .until_ns = lost ? clock_ns() + 2 * long_lease : 0};
}

static void release(u32 k)
{
    struct error err = {0};
    int rc = slots_release(s, me.held[k].leader, &me.held[k].token, &err);
    must(rc, &err);
    CHECK(&tap, slots_release(s, me.held[k].leader, &me.held[k].token, NULL) == 0, "released twice");
    forget(k);
}

/* The leader had time to take them back; if it did not turn, they were not lost. */
static void find_lost(void)
{
    u64 now = clock_ns();
    for (u32 k = me.n_held; k-- > 0;) {
        if (!me.held[k].lost || now < me.held[k].until_ns) continue;
        u64 before = slots_counts(s)->releases;
        release(k);
        me.lost -= slots_counts(s)->releases - before;
    }
}

static void dispatch(u32 k)
{
    struct error err = {0};
    me.held[k].sent = true;
    must(wire_send(w, me.held[k].leader, DISPATCH, &me.held[k].token, sizeof me.held[k].token, &err), &err);
}

static void answered(u32 leader, const struct slot_token *token)
{
    for (u32 k = 0; k < me.n_held; k++) {
        if (me.held[k].leader != leader || memcmp(&me.held[k].token, token, sizeof *token)) continue;
        slots_ended(s, leader, token);
        forget(k);
        return;
    }
    CHECK(&tap, false, "an answer for slot %u of rank %u, which is not held", token->slot, leader);
}

/* ---- leader --------------------------------------------------------------------------------------------------*/
static void run(u32 from, const struct slot_token *token)
{
    struct error err = {0};
    int rc = slots_run(s, token, &err);
    must(rc, &err);
    if (rc != SLOT_OK) {
        me.stale_replies++;
        CHECK(&tap, rc == SLOT_STALE, "%s", slot_verdict_name((enum slot_verdict)rc));
        must(wire_send(w, from, REFUSED, token, sizeof *token, &err), &err);
        return;
    }
    for (u32 i = 0; i < me.n_running; i++) me.double_runs += me.running[i].token.slot == token->slot;
    me.running[me.n_running++] = (struct running){*token, from, clock_ns() + draw(300) * NS_PER_US};
}

static void finish_some(void)
{
    u64 now = me.n_running ? clock_ns() : 0;
    for (u32 i = me.n_running; i-- > 0;) {
        struct running r = me.running[i];
        if (r.until_ns > now) continue;
        struct error err = {0};
        int rc = slots_finish(s, &r.token, &err);
        must(rc, &err);
        me.finish_faults += rc != SLOT_OK;
        me.running[i] = me.running[--me.n_running];
        must(wire_send(w, r.from, ENDED, &r.token, sizeof r.token, &err), &err);
    }
}

static void on_message(void *ctx, u32 from, u16 type, const void *body, size_t len)
{
    (void)ctx;
    struct slot_token token = {0};
    if (type == QUIET) {
        me.n_quiet++;
        return;
    }
    if (type == ROUND) {
        CHECK(&tap, len == sizeof me.over);
        memcpy(&me.over, body, sizeof me.over);
        return;
    }
    CHECK(&tap, len == sizeof token);
    memcpy(&token, body, sizeof token);
    if (type == DISPATCH)
        run(from, &token);
    else
        answered(from, &token);
}

static void serve(void)
{
    struct error err = {0};
    must(wire_poll(w, on_message, NULL, &err), &err);
    finish_some();
    must(slots_reap(s, clock_ns(), &err), &err);
    me.passes++;
}

/* ---- the run -------------------------------------------------------------------------------------------------*/
/* Until the time is over, or the log of one of the ranks is full, who tells the others. */
static void fight(u64 until)
{
    while (me.over < me.round) {
        for (int i = 0; i < HELD; i++) {
            if (me.n_held < HELD && draw(2)) reserve();
            u32 k = me.n_held ? draw(me.n_held) : 0;
            if (!me.n_held || me.held[k].sent || me.held[k].lost) continue;
            draw(4) ? release(k) : dispatch(k);
        }
        serve();
        find_lost();
        if (me.n_log < ROUND_GRANTS && clock_ns() < until) continue;
        for (u32 r = 0; r < wire_size(w); r++)
            must(wire_send(w, r, ROUND, &me.round, sizeof me.round, NULL), NULL);
        break;
    }
    while (wire_busy(w)) serve(); /* what was sent leaves only while this is called */
}

static bool waits_for_answers(void)
{
    for (u32 k = 0; k < me.n_held; k++)
        if (me.held[k].sent) return true;
    return false;
}

/* Each waits for its answers, says that it is quiet, and serves until all are. Lost reservations are reaped meanwhile. */
static void settle(void)
{
    for (u32 k = me.n_held; k-- > 0;)
        if (!me.held[k].sent && !me.held[k].lost) release(k);
    while (waits_for_answers()) {
        serve();
        usleep(50);
    }
    for (u32 r = 0; r < wire_size(w); r++) wire_send(w, r, QUIET, NULL, 0, NULL);
    u64 until = clock_ns() + 2 * long_lease;
    while (me.n_quiet < wire_size(w) || me.n_running || wire_busy(w) || clock_ns() < until) {
        serve();
        usleep(200);
    }
    find_lost();
    CHECK(&tap, !me.n_held, "%u reservations are held still", me.n_held);
}

static int by_value(const void *a, const void *b)
{
    u64 x = *(const u64 *)a, y = *(const u64 *)b;
    return x < y ? -1 : x > y;
}

/* Of one (leader, slot), sorted: what was granted is what comes after the last round's, one by one. */
static void count_faults(const u64 *grants, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        u32 *next = &me.next[(grants[i] >> 56) * SLOTS + (grants[i] >> 32 & (SLOTS - 1))],
            seq = (u32)grants[i];
        me.twice += seq < *next;
        me.gaps += seq > *next;
        if (seq >= *next) *next = seq + 1;
    }
}

/* All grants of the round of all ranks on rank 0, sorted: the independent count. Nobody reserves meanwhile. */
static void check_round(void)
{
    int n = (int)me.n_log, *counts = mem_zero(wire_size(w), sizeof *counts),
        *at = mem_zero(wire_size(w), sizeof *at);
    MPI_Gather(&n, 1, MPI_INT, counts, 1, MPI_INT, 0, MPI_COMM_WORLD);
    size_t total = 0;
    for (u32 r = 0; r < wire_size(w); r++) {
        at[r] = (int)total;
        total += (size_t)counts[r];
    }
    u64 *all = mem_alloc((total + 1) * sizeof *all);
    MPI_Gatherv(me.log, n, MPI_UINT64_T, all, counts, at, MPI_UINT64_T, 0, MPI_COMM_WORLD);
    if (wire_rank(w) == 0) {
        qsort(all, total, sizeof *all, by_value);
        count_faults(all, total);
    }
    me.logged += me.n_log;
    me.n_log = 0;
    free(all);
    free(counts);
    free(at);
}

/* Collective: rounds until all ranks together have done so many CAS and rank 0 says that the time is over. Returns the seconds of
 * fighting and checking. */
static double fight_rounds(double seconds, u64 least)
{
    u64 start = clock_ns(), until = start + (u64)(seconds * NS_PER_S);
    for (u64 go = 1; go;) {
        alarm((unsigned)seconds + 100);
        me.round++;
        /* when only CAS are missing, a round ends with a full log */
        fight(clock_ns() < until ? until : UINT64_MAX);
        check_round();
        u64 cas = slots_counts(s)->cas, all = 0;
        MPI_Allreduce(&cas, &all, 1, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
        go = all < least || clock_ns() < until;
        MPI_Bcast(&go, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD);
    }
    return (double)(clock_ns() - start) / (double)NS_PER_S;
}

static void check_grants(void)
{
    CHECK(&tap, !me.twice, "%llu reservations were granted twice", (unsigned long long)me.twice);
    CHECK(&tap, !me.gaps, "%llu times sequence numbers were used by nobody", (unsigned long long)me.gaps);
    tap_case(&tap, "no (slot, seq) had two owners, none was skipped");
}

static void check_books(double seconds, u64 least)
{
    const struct slots_counts *c = slots_counts(s);
    u64 mine[] = {c->grants,
                  c->releases,
                  c->finishes,
                  c->reaped,
                  c->cas,
                  c->runs,
                  c->stale,
                  c->refusals[SLOTS_FULL],
                  c->refusals[SLOTS_CONTENDED],
                  me.lost,
                  me.logged,
                  me.passes};
    u64 sum[COUNT_OF(mine)];
    MPI_Allreduce(mine, sum, COUNT_OF(mine), MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
    CHECK(&tap, sum[0] == sum[1] + sum[2] + sum[3], "%llu grants, %llu released, %llu finished, %llu reaped",
          (unsigned long long)sum[0], (unsigned long long)sum[1], (unsigned long long)sum[2],
          (unsigned long long)sum[3]);
    CHECK(&tap, sum[0] == sum[10] && sum[2] == sum[5] && sum[0] > 1000 && sum[2] > 100);
    CHECK(&tap, sum[4] >= least, "%llu CAS", (unsigned long long)sum[4]);
    CHECK(&tap, sum[3] >= sum[9], "%llu lost, %llu reaped", (unsigned long long)sum[9],
          (unsigned long long)sum[3]);
    if (wire_rank(w) == 0) {
        printf("# %u ranks, %u rounds, %.0f s: %llu CAS, %.0f CAS/s, %.0f grants/s; released %llu, finished "
               "%llu, reaped %llu "
               "(%llu lost on "
               "purpose)\n",
               wire_size(w), me.round, seconds, (unsigned long long)sum[4], (double)sum[4] / seconds,
               (double)sum[0] / seconds, (unsigned long long)sum[1], (unsigned long long)sum[2],
               (unsigned long long)sum[3], (unsigned long long)sum[9]);
        printf("# refused: full %llu, contended %llu; dispatches refused as stale %llu; %llu turns of the "
               "loop\n",
               (unsigned long long)sum[7], (unsigned long long)sum[8], (unsigned long long)sum[6],
               (unsigned long long)sum[11]);
    }
    tap_case(&tap, "grants == releases + finishes + reaped");
}

static void check_leader(void)
{
    struct error err = {0};
    CHECK(&tap, !me.double_runs, "two requests ran on one slot");
    CHECK(&tap, !me.finish_faults, "%llu finishes failed", (unsigned long long)me.finish_faults);
    CHECK(&tap, slots_close_free(s, &err) == 0, "%s", err.message);
    CHECK(&tap, slots_in_use(s) == 0);
    wire_barrier(w, NULL);
    struct slots_answer a;
    u32 other = (wire_rank(w) + 1) % wire_size(w);
    must(slots_reserve(s, (i32)other, other, SLOTS, SLOT_CLASS_SHORT, &a, &err), &err);
    CHECK(&tap, !a.accepted && a.reason == SLOTS_LEAVING && a.num_ongoing == 0);
    CHECK(&tap, slots_outstanding(s, other) == 0);
    tap_case(&tap, "one request a slot; all closed after the drain");
}

int main(int argc, char **argv)
{
    const char *soak = getenv("SOAK");
    double seconds = argc > 1 ? atof(argv[1]) : 10;
    u64 least = argc > 2 ? (u64)atof(argv[2]) : soak && soak[0] == '1' ? 100000000 : 0;
    alarm(100);
    w = tap_start(&tap, &argc, &argv);
    u32 *node_of = mem_zero(wire_size(w), sizeof *node_of);
    for (u32 r = 0; r < wire_size(w); r++) node_of[r] = wire_peers(w)[r].node_rank;
    struct slots_spec spec = {.owner = (u16)wire_rank(w),
                              .epoch = SLOT_EPOCH_MAX,
                              .node_of = node_of,
                              .lease_short_ns = short_lease,
                              .lease_long_ns = long_lease};
    struct error err = {0};
    s = slots_new(&spec, &err);
    must(s ? 0 : -1, &err);
    must(slots_open(s, (i32)wire_rank(w), SLOTS, &err), &err);
    must(wire_barrier(w, &err), &err);
    me.log = mem_alloc(LOG_MAX * sizeof *me.log);
    me.next = mem_zero(wire_size(w) * SLOTS, sizeof *me.next);
    seconds = fight_rounds(seconds, least);
    settle();
    must(wire_barrier(w, &err), &err);
    check_grants();
    check_books(seconds, least);
    check_leader();
    slots_free(s);
    free(me.log);
    free(me.next);
    free(node_of);
    return tap_end(&tap);
}
