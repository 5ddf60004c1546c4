/* coll: sums are those of the members' order, bit by bit, for all types, sizes, teams and transports; random
 * sequences of calls; what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <unistd.h>

#include "coll/coll_inner.h"
#include "crew.h"

/* ---- a second opinion on the types -----------------------------------------------------------------------------*/
static size_t unit_of(enum coll_type t)
{
    return t == COLL_F32 ? 4 : 2;
}

/* A number of `digits` bits, least exponent `least`: the nearest, ties to even. */
static double rounded(double v, int digits, int least)
{
    int e;
    if (v == 0 || !isfinite(v)) return v;
    frexp(v, &e);
    double unit = ldexp(1, MAX_OF(e - digits, least));
    return nearbyint(v / unit) * unit;
}

static double value_of(enum coll_type t, const void *at, size_t i)
{
    if (t == COLL_F32) return (double)((const float *)at)[i];
    u16 h = ((const u16 *)at)[i];
    int sign = h >> 15, bits = t == COLL_F16 ? 10 : 7, bias = t == COLL_F16 ? 15 : 127;
    int e = (h & 0x7fff) >> bits, m = h & ((1 << bits) - 1);
    double v = e ? ldexp(m + (1 << bits), e - bias - bits) : ldexp(m, 1 - bias - bits);
    if (e == (0x7fff >> bits)) v = m ? NAN : INFINITY;
    return sign ? -v : v;
}

static double narrowed(enum coll_type t, float sum)
{
    if (t == COLL_F32) return (double)sum;
    double v = t == COLL_F16 ? rounded((double)sum, 11, -24) : rounded((double)sum, 8, -133);
    if (fabs(v) >= (t == COLL_F16 ? 65536 : 0x1p128)) return v < 0 ? -INFINITY : INFINITY;
    return v;
}

/* Numbers whose sums depend on the order: made once for each type; a member's begin at a place of its own. */
enum { POOL = 1 << 20, PLACES = 1 << 12 };
static struct {
    float f32[POOL];
    u16 narrow[2][POOL]; /* bf16 of about one size, and bits of all sizes below 2 */
    float values[2][65536];
} pool;

static void pool_fill(void)
{
    for (size_t i = 0; i < POOL; i++) {
        u32 r[4];
        rng_block(1, i, 0, r);
        pool.f32[i] = ldexpf((float)(i32)r[0] * 0x1p-31f, (int)(r[1] % 12) - 6);
        pool.narrow[0][i] = (u16)(r[2] % 4 ? 0x3f00 + r[0] % 512 : r[0] & 0xbfff);
        pool.narrow[1][i] = (u16)(r[0] & 0xbfff);
    }
    for (u32 i = 0; i < 65536; i++) {
        u16 bits = (u16)i;
        pool.values[0][i] = (float)value_of(COLL_BF16, &bits, 0);
        pool.values[1][i] = (float)value_of(COLL_F16, &bits, 0);
    }
}

static const void *numbers_of(enum coll_type t, u32 member, u32 round)
{
    size_t from = (member * 977 + round * 131) % PLACES;
    return t == COLL_F32 ? (const void *)(pool.f32 + from)
                         : (const void *)(pool.narrow[t - COLL_BF16] + from);
}

static float float_of(enum coll_type t, const void *at, size_t i)
{
    return t == COLL_F32 ? ((const float *)at)[i] : pool.values[t - COLL_BF16][((const u16 *)at)[i]];
}

/* ---- sums ------------------------------------------------------------------------------------------------------*/
struct sums {
    enum coll_type type;
    u32 n, threads;
    const size_t *counts;
    u32 n_counts;
    _Atomic u32 in_slots;
};
enum way { FRESH, IN_PLACE, ADDED, IN_SLOT, WAYS };

struct team {
    struct coll *c;
    struct coll_reduce r;
    struct pool *pool;
    int rc[8];
};

static void pool_wait(void *pool)
{
    pool_barrier(pool);
}

static void team_main(void *arg, int thread, int threads)
{
    struct team *t = arg;
    struct error err;
    const struct coll_how how = {
        .thread = (u32)thread, .threads = (u32)threads, .barrier = pool_wait, .arg = t->pool};
    t->rc[thread] = coll_all_reduce(t->c, &t->r, &how, &err);
}

static void reduce(struct team *t)
{
    struct error err;
    int rc = 0;
    if (!t->pool) {
        crew_need(coll_all_reduce(t->c, &t->r, NULL, &err) == 0, &err);
        return;
    }
    pool_run(t->pool, team_main, t);
    for (int i = 0; i < pool_threads(t->pool); i++) rc |= t->rc[i];
    crew_need(rc == 0, NULL);
}

static void check_sum(struct sums *s, struct team *t, size_t count, enum way way, u32 round)
{
    u32 me = coll_me(t->c);
    size_t bytes = count * unit_of(s->type);
    u8 *own = malloc(bytes + 64), *out = malloc(bytes + 64);
    const void *all[8], *before = numbers_of(s->type, 77 + me, round);
    for (u32 m = 0; m < s->n; m++) all[m] = numbers_of(s->type, m, round);
    memcpy(out, before, bytes);
    memset(out + bytes, 0xee, 64);
    void *slot = way == IN_SLOT ? coll_slot(t->c, bytes) : NULL, *in = slot ? slot : own;
    if (slot) s->in_slots++;
    memcpy(in, all[me], bytes);
    void *to = way == IN_PLACE ? in : out;
    t->r = (struct coll_reduce){in, to, count, s->type, way == ADDED};
    reduce(t);
    for (size_t i = 0; i < count; i++) {
        float sum = float_of(s->type, all[0], i), got = float_of(s->type, to, i);
        for (u32 m = 1; m < s->n; m++) sum += float_of(s->type, all[m], i);
        if (way == ADDED) sum = float_of(s->type, before, i) + (float)narrowed(s->type, sum);
        if ((double)got == narrowed(s->type, sum)) continue;
        fprintf(stderr, "engine %u of %u, type %d, way %d, %zu of %zu: %a, not %a\n", me, s->n, s->type, way,
                i, count, (double)got, narrowed(s->type, sum));
        abort();
    }
    for (u32 i = 0; i < 64; i++) crew_need(out[bytes + i] == 0xee, NULL);
    free(own);
    free(out);
}

static void sums_member(struct coll_world *w, u32 me, void *arg)
{
    struct sums *s = arg;
    struct error err;
    struct team t = {.c = coll_all(w)};
    (void)me;
    if (s->threads > 1) crew_need((t.pool = pool_new((int)s->threads, 0, &err)) != NULL, &err);
    for (u32 i = 0; i < s->n_counts; i++)
        for (enum way way = 0; way < WAYS; way++) check_sum(s, &t, s->counts[i], way, i * WAYS + way);
    pool_free(t.pool);
}

static const size_t counts[] = {0,    1,    2,     15,    16,    17,    63,          100,    2048,  4097,
                                8192, 9000, 16384, 16385, 33333, 65536, 131072 + 16, 262144, 400001};
static const u32 sizes[] = {1, 2, 3, 4, 8};

static void run_sums(u32 n, const char *nodes, enum coll_type type, u32 threads, u32 n_counts)
{
    struct sums s = {.type = type, .n = n, .threads = threads, .counts = counts, .n_counts = n_counts};
    struct crew c = {.shape = crew_shape(n, 1, nodes), .fn = sums_member, .arg = &s, .spin_ns = 2000};
    crew_run(&c);
    assert_int_equal(s.in_slots > 0, n > 1 && !coll_relays(&c.shape));
    assert_int_equal(c.carried > 0, coll_relays(&c.shape));
}

static void test_sums(void **state)
{
    (void)state;
    for (u32 i = 0; i < COUNT_OF(sizes); i++)
        for (enum coll_type t = COLL_F32; t <= COLL_F16; t++)
            run_sums(sizes[i], NULL, t, 1, COUNT_OF(counts) - (sizes[i] > 4 ? 3 : 0));
}

static void test_sums_teams(void **state)
{
    (void)state;
    run_sums(1, NULL, COLL_F32, 3, COUNT_OF(counts));
    run_sums(2, NULL, COLL_F32, 2, COUNT_OF(counts));
    run_sums(3, NULL, COLL_BF16, 3, COUNT_OF(counts));
    run_sums(4, NULL, COLL_F32, 2, COUNT_OF(counts));
}

static void test_sums_nodes(void **state)
{
    (void)state;
    run_sums(2, "01", COLL_F32, 1, COUNT_OF(counts));
    run_sums(3, "010", COLL_F32, 2, COUNT_OF(counts));
    run_sums(4, "0011", COLL_F16, 1, COUNT_OF(counts));
    run_sums(4, "0123", COLL_BF16, 1, COUNT_OF(counts));
    run_sums(8, "30", COLL_F32, 1, COUNT_OF(counts) - 4);
}

/* Every value of the narrow types goes through f32 and back unchanged; sums overflow to infinity, NaN stays NaN. */
static void test_types(void **state)
{
    (void)state;
    u16 all[65536], out[65536];
    struct coll_spec spec = {.wait_ns = 1};
    struct error err;
    struct coll_world *w = coll_open(&spec, &err);
    assert_non_null(w);
    for (u32 i = 0; i < COUNT_OF(all); i++) all[i] = (u16)i;
    for (enum coll_type t = COLL_BF16; t <= COLL_F16; t++) {
        const struct coll_reduce same = {all, out, COUNT_OF(all), t, false};
        assert_int_equal(coll_all_reduce(coll_all(w), &same, NULL, &err), 0);
        for (u32 i = 0; i < COUNT_OF(all); i++) {
            double v = value_of(t, all, i);
            if (isnan(v))
                assert_true(isnan(value_of(t, out, i)));
            else
                assert_int_equal(out[i], all[i]);
        }
        for (u32 k = 0; k < 64; k++) { /* all of them plus one of them, which rounds */
            u16 other[COUNT_OF(all)];
            for (u32 i = 0; i < COUNT_OF(all); i++) out[i] = other[i] = (u16)(k * 1021 + i * 7);
            const struct coll_reduce add = {all, out, COUNT_OF(all), t, true};
            assert_int_equal(coll_all_reduce(coll_all(w), &add, NULL, &err), 0);
            for (u32 i = 0; i < COUNT_OF(all); i++) {
                double want = narrowed(t, (float)value_of(t, all, i) + (float)value_of(t, other, i));
                double got = value_of(t, out, i);
                assert_true(got == want || (isnan(got) && isnan(want)));
            }
        }
    }
    coll_close(w);
}

/* ---- random sequences ------------------------------------------------------------------------------------------*/
enum { LARGEST = 3 << 20 };
struct sequence {
    u64 seed;
    u32 steps, largest;
};
struct walker { /* one engine's */
    struct coll_world *w;
    const struct sequence *q;
    u32 me, step;
    u8 *in, *out;
};

static u8 byte_of(u64 seed, u32 step, u32 engine, size_t i)
{
    u64 x = (seed + step * 2654435761u + engine * 40503u) ^ (i * 0x9e3779b97f4a7c15ull);
    return (u8)(x >> 29 ^ x >> 11);
}

static void put_bytes(const struct walker *k, u32 engine, size_t from, u8 *to, size_t n)
{
    for (size_t i = 0; i < n; i++) to[i] = byte_of(k->q->seed, k->step, engine, from + i);
}

static void check_bytes(const struct walker *k, u32 engine, size_t from, const u8 *got, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (got[i] != byte_of(k->q->seed, k->step, engine, from + i)) {
            fprintf(stderr, "seed %llu step %u: engine %u, byte %zu of %zu from %u\n",
                    (unsigned long long)k->q->seed, k->step, k->me, i, n, engine);
            abort();
        }
}

/* Engine index of a group's member. */
static u32 engine_of(const struct walker *k, const struct coll *c, u32 m)
{
    return k->me - coll_me(c) + m;
}

static void do_gather(struct walker *k, struct coll *c, size_t bytes, u32 root, bool all)
{
    struct error err;
    u32 n = coll_size(c), me = coll_me(c);
    size_t rows = 1 + k->q->seed % 5, pad = k->step % 3 * 8;
    bytes = bytes / n / rows + 1;
    bool in_place = k->step % 2 && (all || me == root);
    struct coll_gather g = {k->in, k->out, rows, bytes, bytes + pad, n * bytes + pad};
    if (in_place) {
        g.in = k->out + me * bytes;
        g.ld_in = g.ld_out;
    }
    for (size_t r = 0; r < rows; r++) put_bytes(k, k->me, r * bytes, (u8 *)g.in + r * g.ld_in, bytes);
    int rc = all ? coll_all_gather(c, &g, NULL, &err) : coll_gather(c, root, &g, NULL, &err);
    crew_need(rc == 0, &err);
    if (!all && me != root) return;
    for (size_t r = 0; r < rows; r++)
        for (u32 m = 0; m < n; m++)
            check_bytes(k, engine_of(k, c, m), r * bytes, k->out + r * g.ld_out + m * bytes, bytes);
}

static void do_broadcast(struct walker *k, struct coll *c, size_t bytes, u32 root)
{
    struct error err;
    if (coll_me(c) == root) put_bytes(k, k->me, 0, k->out, bytes);
    crew_need(coll_broadcast(c, root, k->out, bytes, NULL, &err) == 0, &err);
    check_bytes(k, engine_of(k, c, root), 0, k->out, bytes);
}

static void do_exchange(struct walker *k, struct coll *c, size_t bytes)
{
    struct error err;
    u32 n = coll_size(c), me = coll_me(c);
    bytes /= n;
    put_bytes(k, k->me, 0, k->in, n * bytes);
    crew_need(coll_all_to_all(c, k->in, k->out, bytes, NULL, &err) == 0, &err);
    for (u32 m = 0; m < n; m++) check_bytes(k, engine_of(k, c, m), me * bytes, k->out + m * bytes, bytes);
}

static void do_message(struct walker *k, size_t bytes, u32 from, u32 to)
{
    struct error err;
    struct coll *c = coll_all(k->w);
    if (from == to) return;
    if (k->me == from) {
        put_bytes(k, from, 0, k->in, bytes);
        crew_need(coll_send(c, to, k->in, bytes, NULL, &err) == 0, &err);
    } else if (k->me == to) {
        crew_need(coll_receive(c, from, k->out, bytes, NULL, &err) == 0, &err);
        check_bytes(k, from, 0, k->out, bytes);
    }
}

static void do_sum(struct walker *k, struct coll *c, size_t bytes)
{
    struct error err;
    size_t n = bytes / 4;
    float *in = (float *)(void *)k->in, *out = (float *)(void *)k->out;
    for (size_t i = 0; i < n; i++) in[i] = (float)(byte_of(k->q->seed, k->step, k->me, i) * 1000);
    const struct coll_reduce r = {in, k->step % 3 ? out : in, n, COLL_F32, false};
    crew_need(coll_all_reduce(c, &r, NULL, &err) == 0, &err);
    for (size_t i = 0; i < n; i++) {
        float want = 0;
        for (u32 m = 0; m < coll_size(c); m++)
            want += (float)(byte_of(k->q->seed, k->step, engine_of(k, c, m), i) * 1000);
        crew_need(((const float *)r.out)[i] == want, NULL);
    }
}

static size_t some_bytes(const struct sequence *q, const u32 r[4])
{
    static const size_t usual[] = {0, 1, 8, 100, 4096, 8192, 100000, 131072, 131073, 524288, 524289, 1500000};
    size_t n = r[2] % 3 ? usual[r[3] % COUNT_OF(usual)] : r[3] % q->largest;
    return MIN_OF(n, (size_t)q->largest);
}

static void walk(struct coll_world *w, u32 me, void *arg)
{
    const struct sequence *q = arg;
    struct walker k = {.w = w, .q = q, .me = me, .in = malloc(LARGEST), .out = malloc(LARGEST)};
    u32 engines = coll_size(coll_all(w));
    for (k.step = 0; k.step < q->steps; k.step++) {
        u32 r[4], own[4];
        rng_block(q->seed, k.step, 0, r);
        rng_block(q->seed, k.step, 1 + me, own);
        if (own[0] % 40 == 0) usleep(own[1] % 2000); /* somebody is late */
        struct coll *c = r[0] % 2 ? coll_all(w) : coll_stage(w);
        size_t bytes = some_bytes(q, r);
        u32 root = r[1] % coll_size(c);
        switch (r[0] / 2 % 6) {
        case 0: do_sum(&k, c, bytes); break;
        case 1: do_gather(&k, c, bytes, root, false); break;
        case 2: do_gather(&k, c, bytes, root, true); break;
        case 3: do_broadcast(&k, c, bytes, root); break;
        case 4: do_exchange(&k, c, bytes); break;
        case 5: do_message(&k, bytes, r[1] % engines, r[3] % engines); break;
        }
    }
    free(k.in);
    free(k.out);
}

static void run_sequence(u32 tp, u32 pp, const char *nodes, u32 steps, u32 largest, u64 seed)
{
    struct sequence q = {.seed = seed, .steps = steps, .largest = largest};
    struct crew c = {.shape = crew_shape(tp, pp, nodes), .fn = walk, .arg = &q, .spin_ns = seed % 2 * 5000};
    crew_run(&c);
}

static void test_sequences(void **state)
{
    (void)state;
    run_sequence(1, 1, NULL, 100, 100000, 1);
    run_sequence(2, 1, NULL, 400, 2000000, 2);
    run_sequence(3, 1, NULL, 300, 100000, 3);
    run_sequence(2, 2, NULL, 300, 1000000, 4);
    run_sequence(4, 2, NULL, 150, 100000, 5);
    for (u64 seed = 10; seed < 30; seed++)
        run_sequence(1 + seed % 4, 1 + seed / 4 % 3, NULL, 60, 20000, seed);
}

static void test_sequences_nodes(void **state)
{
    (void)state;
    run_sequence(2, 1, "01", 200, 2000000, 1);
    run_sequence(2, 2, "0011", 200, 1000000, 2); /* a stage a node */
    run_sequence(2, 2, "0101", 200, 300000, 3);  /* stages over nodes */
    run_sequence(1, 3, "012", 200, 300000, 4);
    run_sequence(3, 1, "001", 200, 300000, 5);
    for (u64 seed = 10; seed < 22; seed++)
        run_sequence(1 + seed % 4, 1 + seed / 4 % 2, "0210", 60, 20000, seed);
}

/* Counters that are about to start from 0 again. */
enum { SHORTLY_BEFORE = 40 };
static const u32 late = 0u - SHORTLY_BEFORE;

static void prepare_late(struct crew *c)
{
    struct place p;
    place_of(&p, &c->shape, 0);
    u8 *memory = c->memory[0];
    for (u32 i = 0; i < c->n; i++) {
        group_members(memory + p.all)[i].posted.value = group_members(memory + p.all)[i].done.value = late;
        for (u32 to = 0; to < c->n; to++)
            link_at(memory, &p, i, to)->put.value = link_at(memory, &p, i, to)->taken.value = late;
    }
}

static void walk_late(struct coll_world *w, u32 me, void *arg)
{
    w->all.piece = late;
    w->all.phase = late + 1;
    for (u32 i = 0; i < w->all.n; i++) w->all.known_done[i] = late;
    walk(w, me, arg);
    crew_need(w->all.piece < late, NULL);
}

static void test_counters_wrap(void **state)
{
    (void)state;
    for (u64 seed = 1; seed < 6; seed++) {
        struct sequence q = {.seed = seed, .steps = 300, .largest = 5000};
        struct crew c = {
            .shape = crew_shape(3, 1, NULL), .prepare = prepare_late, .fn = walk_late, .arg = &q};
        crew_run(&c);
    }
}

/* ---- waiting ---------------------------------------------------------------------------------------------------*/
static void count_tick(void *arg)
{
    atomic_fetch_add((_Atomic u32 *)arg, 1);
}

static void patient(struct coll_world *w, u32 me, void *arg)
{
    const struct coll_how forever = {.wait_ns = COLL_FOREVER}, longer = {.wait_ns = 60 * NS_PER_S};
    struct error err;
    u32 word = 7;
    (void)arg;
    if (me == 0) usleep(100000);
    crew_need(coll_broadcast(coll_all(w), 0, &word, sizeof word, me ? &forever : &longer, &err) == 0, &err);
    /* a root is not held up by who does not read, but for what it would overwrite */
    if (me) usleep(20000);
    for (u32 i = 0; i < 20; i++)
        crew_need(coll_broadcast(coll_all(w), 0, &word, sizeof word, &longer, &err) == 0, &err);
}

static void test_patience(void **state)
{
    (void)state;
    _Atomic u32 ticks = 0;
    struct crew c = {.shape = crew_shape(3, 1, NULL),
                     .fn = patient,
                     .wait_ns = 20 * NS_PER_MS, /* shorter than the root sleeps */
                     .tick = count_tick,
                     .tick_arg = (void *)&ticks};
    crew_run(&c);
    assert_true(ticks >= 2);
}

/* ---- what is refused -------------------------------------------------------------------------------------------*/
static void test_shapes(void **state)
{
    (void)state;
    struct error err = {0};
    struct coll_shape none = {0}, one = {.tp = 1, .pp = 1}, most = {.tp = 8, .pp = 8};
    struct coll_shape half = {.tp = 2}, many = {.tp = 13, .pp = 5};
    assert_int_equal(coll_check(&none, &err), 0);
    assert_int_equal(coll_check(&one, &err), 0);
    assert_int_equal(coll_check(&most, &err), 0);
    assert_int_equal(coll_check(&half, &err), ERR_INPUT);
    assert_int_equal(coll_check(&many, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "13 engines a stage and 5 stages"));
    assert_int_equal(coll_bytes(&none, 0), 0);
    assert_int_equal(coll_bytes(&one, 0), 0);
    assert_true(coll_bytes(&most, 0) > 0);
    struct coll_spec spec = {.shape = crew_shape(2, 1, NULL), .bytes = 4096, .memory = &spec};
    assert_null(coll_open(&spec, &err));
    spec.bytes = coll_bytes(&spec.shape, 0);
    spec.me = 2;
    assert_null(coll_open(&spec, &err));
    assert_non_null(strstr(err.message, "engine 2 of 2"));
}

/* What an engine gone mad writes ends at its agent. */
static void test_relay_checks(void **state)
{
    (void)state;
    struct crew c = {.shape = crew_shape(2, 1, "01"), .wait_ns = 50 * NS_PER_MS};
    struct error err = {0};
    u8 data[100] = {0};
    u32 to;
    size_t len;
    crew_map(&c);
    assert_null(coll_relay_open(&c.shape, 2, c.memory[0], c.bytes[0], &err));
    assert_null(coll_relay_open(&c.shape, 0, c.memory[0], c.bytes[0] - 1, &err));
    struct coll_relay *a = coll_relay_open(&c.shape, 0, c.memory[0], c.bytes[0], &err);
    struct coll_relay *b = coll_relay_open(&c.shape, 1, c.memory[1], c.bytes[1], &err);
    struct coll_world *w = crew_world(&c, 0, &err);
    assert_true(a && b && w);
    assert_int_equal(coll_send(coll_all(w), 1, data, sizeof data, NULL, &err), 0);
    assert_true(coll_relay_waiting(a));
    const void *message = coll_relay_take(a, &to, &len);
    assert_non_null(message);
    assert_int_equal(to, 1);
    for (u32 i = 0; i < LINK_SLOTS; i++) assert_int_equal(coll_relay_put(b, 0, message, len, &err), 0);
    assert_int_equal(coll_relay_put(b, 0, message, len, &err), ERR_PEER); /* nobody reads there */
    assert_non_null(strstr(err.message, "more than may be under way"));
    assert_int_equal(coll_relay_put(a, 1, message, 7, &err), ERR_PEER);
    assert_int_equal(coll_relay_put(a, 0, message, len, &err), ERR_PEER);
    assert_int_equal(coll_relay_put(a, 64, message, len, &err), ERR_PEER);
    assert_int_equal(coll_relay_put(a, 1, message, COLL_RELAY_MOST + 1, &err), ERR_PEER);
    const u32 credit[] = {1, LINK_SLOTS + 1};
    assert_int_equal(coll_relay_put(a, 1, credit, sizeof credit, &err), ERR_PEER);
    coll_relay_taken(a);
    struct place p;
    place_of(&p, &c.shape, 0);
    struct link *out = &relay_at(c.memory[0], &p, 2, 0)->out;
    const u32 mad[][3] = {
        {1, LINK_BYTES + 1, 1}, {1, 0, 0}, {1, 0, 64}, {LINK_SLOTS + 1, 0, 1}}; /* waiting, len, peer */
    for (size_t i = 0; i < COUNT_OF(mad); i++) {
        out->put.value = 1 + mad[i][0];
        out->slots[1].len = mad[i][1];
        out->slots[1].peer = mad[i][2];
        assert_null(coll_relay_take(a, &to, &len));
        assert_true(len == SIZE_MAX);
    }
    coll_relay_close(a);
    coll_relay_close(b);
    coll_close(w);
    crew_unmap(&c);
}

/* It writes as fast as its agent takes: beyond what may be under way nothing leaves, so neither agent is kept busy. */
static void test_relay_flood(void **state)
{
    (void)state;
    struct crew c = {.shape = crew_shape(2, 1, "01"), .wait_ns = 50 * NS_PER_MS};
    struct error err = {0};
    struct place p;
    u32 to, n = 0;
    size_t len = 0;
    crew_map(&c);
    place_of(&p, &c.shape, 0);
    struct link *out = &relay_at(c.memory[0], &p, 2, 0)->out;
    struct coll_relay *a = coll_relay_open(&c.shape, 0, c.memory[0], c.bytes[0], &err);
    assert_non_null(a);
    for (u32 i = 0; i < LINK_SLOTS; i++) out->slots[i].peer = 1; /* empty messages */
    for (; n <= 2 * LINK_SLOTS; n++) {
        out->put.value = n + 1;
        if (!coll_relay_take(a, &to, &len)) break;
        coll_relay_taken(a);
    }
    assert_true(len == SIZE_MAX);
    assert_int_equal(n, LINK_SLOTS);
    /* the other engine has taken half of them: so many more */
    const u32 credit[] = {MESSAGE_CREDIT, LINK_SLOTS / 2};
    assert_int_equal(coll_relay_put(a, 1, credit, sizeof credit, &err), 0);
    assert_non_null(coll_relay_take(a, &to, &len));
    /* of the one message that came, credit is given once; other kinds there are none */
    const u32 data[] = {MESSAGE_DATA, 0};
    assert_int_equal(coll_relay_put(a, 1, data, sizeof data, &err), 0);
    struct message *m = &out->slots[n % LINK_SLOTS];
    const u32 mad[][3] = {{MESSAGE_CREDIT, 0, 0}, {MESSAGE_CREDIT, 2, 0}, {MESSAGE_CREDIT, 1, 8}, {7, 1, 0}};
    for (size_t i = 0; i < COUNT_OF(mad); i++) {
        m->kind = mad[i][0];
        m->value = mad[i][1];
        m->len = mad[i][2];
        assert_null(coll_relay_take(a, &to, &len));
        assert_true(len == SIZE_MAX);
    }
    m->kind = MESSAGE_CREDIT;
    m->value = 1;
    m->len = 0;
    assert_non_null(coll_relay_take(a, &to, &len));
    coll_relay_taken(a);
    coll_relay_close(a);
    crew_unmap(&c);
}

static void count_wake(void *wakes)
{
    ++*(u32 *)wakes;
}

/* What is sent lazily wakes nobody, and never waits for longer than whoever sent it does. */
static void test_relay_lazy(void **state)
{
    (void)state;
    static const struct coll_how lazy = {.lazy = true};
    struct crew c = {.shape = crew_shape(2, 1, "01"), .wait_ns = 50 * NS_PER_MS};
    struct error err = {0};
    u8 data[100] = {0};
    u32 wakes = 0;
    crew_map(&c);
    struct coll_spec spec = {.shape = c.shape,
                             .memory = c.memory[0],
                             .bytes = c.bytes[0],
                             .wait_ns = NS_PER_MS,
                             .wake_agent = count_wake,
                             .arg = &wakes};
    struct coll_world *w = coll_open(&spec, &err);
    assert_non_null(w);
    struct coll *all = coll_all(w);
    coll_wake(w);
    assert_int_equal(coll_send(all, 1, data, sizeof data, &lazy, &err), 0);
    assert_int_equal(coll_send(all, 1, data, sizeof data, &lazy, &err), 0);
    assert_int_equal(wakes, 0);
    assert_int_equal(coll_send(all, 1, data, sizeof data, NULL, &err), 0); /* takes them along */
    coll_wake(w);
    assert_int_equal(wakes, 1);
    assert_int_equal(coll_send(all, 1, data, sizeof data, &lazy, &err), 0);
    coll_wake(w);
    coll_wake(w);
    assert_int_equal(wakes, 2);
    for (u32 i = 4; i < LINK_SLOTS; i++)
        assert_int_equal(coll_send(all, 1, data, sizeof data, &lazy, &err), 0);
    assert_int_equal(wakes, 2);
    assert_int_equal(coll_send(all, 1, data, sizeof data, &lazy, &err),
                     ERR_PEER); /* the agent takes nothing */
    assert_int_equal(wakes, 3);
    coll_close(w);
    crew_unmap(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_types),         cmocka_unit_test(test_sums),
        cmocka_unit_test(test_sums_teams),    cmocka_unit_test(test_sums_nodes),
        cmocka_unit_test(test_sequences),     cmocka_unit_test(test_sequences_nodes),
        cmocka_unit_test(test_counters_wrap), cmocka_unit_test(test_patience),
        cmocka_unit_test(test_shapes),        cmocka_unit_test(test_relay_checks),
        cmocka_unit_test(test_relay_flood),   cmocka_unit_test(test_relay_lazy),
    };
    pool_fill();
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("coll", tests, NULL, NULL);
}
