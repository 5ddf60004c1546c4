/* kv: blocks and the prefix cache. The last tests drive it at random against a plain model that knows whole prefixes and compares
 * nothing by hash. */
#include "mpiserve/kv.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants the four above first
#include <cmocka.h>

enum { SIZE = 2 }; /* tokens of a block */

static struct kv_blocks *new_pool(u32 n_blocks, u32 n_changes)
{
    struct kv_spec spec = {
        .n_blocks = n_blocks, .block_size = SIZE, .prefix_cache = true, .n_changes = n_changes};
    return kv_blocks_new(&spec, NULL);
}

static u32 take(struct kv_blocks *p)
{
    u32 block = 0;
    assert_true(kv_take(p, &block));
    return block;
}

static void too_small_is_refused(void **state)
{
    (void)state;
    struct error err;
    assert_null(kv_blocks_new(&(struct kv_spec){.n_blocks = 1, .block_size = 4}, &err));
    assert_int_equal(err.code, ERR_INPUT);
    assert_null(kv_blocks_new(&(struct kv_spec){.n_blocks = 2}, &err));
}

static void scratch_block_is_never_handed_out(void **state)
{
    (void)state;
    struct kv_blocks *p = new_pool(5, 0);
    bool seen[5] = {false};
    u32 block;
    for (int i = 0; i < 4; i++) {
        block = take(p);
        assert_in_range(block, 1, 4);
        assert_false(seen[block]);
        seen[block] = true;
    }
    assert_false(kv_take(p, &block));
    kv_blocks_free(p);
}

static void given_blocks_wait_for_their_steps(void **state)
{
    (void)state;
    struct kv_blocks *p = new_pool(3, 0);
    u32 a = take(p), b = take(p), c;
    kv_give(p, a, 4);
    kv_give(p, b, 6);
    kv_committed(p, 3);
    assert_false(kv_take(p, &c));
    kv_committed(p, 4);
    assert_int_equal(take(p), a);
    assert_int_equal(kv_free_blocks(p), 0);
    kv_settle(p);
    assert_int_equal(kv_free_blocks(p), 1);
    kv_blocks_free(p);
}

/* ---- the cache by hand ---------------------------------------------------------------------------------------*/
/* A sequence of n blocks (tokens first, first + 1, ...) is computed and given back. */
static void leave_sequence(struct kv_blocks *p, i32 first, u32 n, u64 step)
{
    struct kv_link at = {0};
    u32 block[8];
    for (u32 i = 0; i < n; i++) {
        i32 tokens[SIZE] = {first + (i32)i, first};
        block[i] = take(p);
        assert_true(kv_cache(p, &at, tokens, block[i]));
    }
    while (n > 0) kv_give(p, block[--n], step);
}

/* How many of its blocks are found; none is held. */
static u32 found(struct kv_blocks *p, i32 first, u32 n)
{
    struct kv_link at = {0};
    for (u32 i = 0; i < n; i++) {
        i32 tokens[SIZE] = {first + (i32)i, first};
        u32 block;
        if (!kv_find(p, &at, tokens, &block)) return i;
        assert_int_equal(block, at.block);
    }
    return n;
}

static void nothing_is_cached_when_it_is_off(void **state)
{
    (void)state;
    struct kv_blocks *p = kv_blocks_new(&(struct kv_spec){.n_blocks = 4, .block_size = SIZE}, NULL);
    struct kv_link at = {0};
    u32 block = take(p);
    assert_false(kv_cache(p, &at, (i32[]){1, 2}, block));
    assert_false(kv_find(p, &at, (i32[]){1, 2}, &block));
    kv_give(p, block, 0);
    kv_settle(p);
    kv_forget(p);
    assert_int_equal(kv_free_blocks(p), 3);
    assert_int_equal(kv_cached_blocks(p), 0);
    kv_blocks_free(p);
}

static void ends_of_sequences_go_first_and_the_oldest_of_them(void **state)
{
    (void)state;
    struct kv_blocks *p = new_pool(7, 0);
    leave_sequence(p, 100, 3, 1);
    leave_sequence(p, 200, 3, 2);
    kv_settle(p);
    assert_int_equal(kv_free_blocks(p), 6);
    struct kv_link at = {0};
    u32 held;
    assert_true(kv_find(p, &at, (i32[]){100, 100},
                        &held)); /* its first block is in use: it was without users least long */
    kv_hold(p, held);
    const u32 left[][2] = {{2, 3}, {1, 3}, {1, 2}, {1, 1}, {1, 0}};
    for (size_t i = 0; i < COUNT_OF(left); i++) {
        take(p);
        assert_int_equal(found(p, 100, 3), left[i][0]);
        assert_int_equal(found(p, 200, 3), left[i][1]);
    }
    u32 none;
    assert_false(kv_take(p, &none));
    kv_blocks_free(p);
}

/* Found again while steps are in flight, and given back again: only then do its own steps count. */
static void a_given_block_can_be_found(void **state)
{
    (void)state;
    struct kv_blocks *p = new_pool(2, 0);
    struct kv_link at = {0};
    u32 block;
    leave_sequence(p, 5, 1, 3);
    assert_int_equal(kv_given_blocks(p), 1);
    assert_true(kv_find(p, &at, (i32[]){5, 5}, &block));
    kv_hold(p, block);
    assert_int_equal(kv_given_blocks(p), 0);
    kv_unhold(p, block); /* as it was: step 3 frees it */
    assert_int_equal(kv_given_blocks(p), 1);
    kv_hold(p, block);
    kv_committed(p, 3);
    assert_int_equal(kv_free_blocks(p) + kv_given_blocks(p), 0);
    kv_give(p, block, 7);
    kv_committed(p, 6);
    assert_int_equal(kv_free_blocks(p), 0);
    kv_committed(p, 7);
    assert_int_equal(kv_free_blocks(p), 1);
    assert_int_equal(take(p), block);
    assert_int_equal(kv_cached_blocks(p), 0);
    kv_blocks_free(p);
}

/* Two compute the same: the later one keeps its block for itself, and what it computes next is cached behind the other's. */
static void the_second_copy_stays_private(void **state)
{
    (void)state;
    struct kv_blocks *p = new_pool(6, 0);
    struct kv_link one = {0}, two = {0};
    u32 a = take(p), b = take(p), c = take(p), again;
    assert_true(kv_cache(p, &one, (i32[]){1, 1}, a));
    assert_true(kv_cache(p, &two, (i32[]){1, 1}, b));
    assert_int_equal(two.block, a);
    assert_true(kv_cache(p, &two, (i32[]){2, 2}, c));
    assert_int_equal(kv_cached_blocks(p), 2);
    kv_give(p, a, 1);
    kv_settle(p);
    struct kv_link at = {0};
    assert_true(kv_find(p, &at, (i32[]){1, 1}, &again) && again == a);
    assert_true(kv_find(p, &at, (i32[]){2, 2}, &again) && again == c);
    /* a has no users: when it is needed, c cannot be found any more, though in use, and nothing can be cached behind it */
    for (int i = 0; i < 3; i++) take(p);
    assert_int_equal(kv_cached_blocks(p), 0);
    assert_false(kv_cache(p, &two, (i32[]){3, 3}, b));
    at = (struct kv_link){0};
    assert_false(kv_find(p, &at, (i32[]){1, 1}, &again));
    assert_int_equal(kv_users(p, c), 1);
    kv_blocks_free(p);
}

static void forgotten_as_a_whole(void **state)
{
    (void)state;
    struct kv_blocks *p = new_pool(9, 4);
    struct kv_link at = {0};
    u64 hash;
    u32 block = take(p);
    assert_true(kv_cache(p, &at, (i32[]){9, 9}, block));
    leave_sequence(p, 100, 3, 1);
    kv_forget(p);
    assert_int_equal(kv_next_change(p, &hash), KV_ALL_CHANGED);
    assert_int_equal(kv_next_change(p, &hash), KV_UNCHANGED);
    assert_int_equal(kv_hashes(p, NULL, 0), 0);
    assert_int_equal(found(p, 100, 3), 0);
    assert_false(kv_cache(p, &at, (i32[]){10, 10}, take(p)));
    assert_int_equal(kv_users(p, block), 1);
    kv_settle(p);
    assert_int_equal(kv_free_blocks(p), 6);
    kv_blocks_free(p);
}

static void changes_are_told_in_order(void **state)
{
    (void)state;
    struct kv_blocks *p = new_pool(3, 4);
    u64 hash, want[2], other;
    kv_prefix_hashes(0, (i32[]){100, 100, 101, 100, 7}, 5, SIZE, want);
    kv_prefix_hashes(0, (i32[]){300, 300}, 2, SIZE, &other);
    assert_true(want[0] != want[1] && want[0] != other);
    leave_sequence(p, 100, 2, 1);
    kv_settle(p);
    leave_sequence(p, 300, 1, 2); /* takes the block of the end */
    const struct {
        enum kv_change what;
        u64 hash;
    } told[] = {{KV_ADDED, want[0]}, {KV_ADDED, want[1]}, {KV_REMOVED, want[1]}, {KV_ADDED, other}};
    for (size_t i = 0; i < COUNT_OF(told); i++) {
        assert_int_equal(kv_next_change(p, &hash), told[i].what);
        assert_true(hash == told[i].hash);
    }
    assert_int_equal(kv_next_change(p, &hash), KV_UNCHANGED);
    kv_settle(p);
    leave_sequence(p, 400, 2, 3); /* 2 removed, 2 added: fits; one more does not */
    kv_settle(p);
    leave_sequence(p, 500, 1, 4);
    assert_int_equal(kv_next_change(p, &hash), KV_ALL_CHANGED);
    u64 all[4];
    assert_int_equal(kv_hashes(p, all, 4), 2);
    kv_prefix_hashes(0, (i32[]){500, 500}, 2, SIZE, want);
    assert_true(all[0] == want[0] || all[1] == want[0]);
    kv_forget(p);
    assert_int_equal(kv_next_change(p, &hash), KV_ALL_CHANGED);
    kv_blocks_free(p);
}

/* ---- at random, against a model ------------------------------------------------------------------------------*/
enum { N = 24, SEQS = 6, DEPTH = 5, LETTERS = 2, MAX_TIME = 1 << 30 };

/* A block by what it holds: the whole prefix. */
struct copy {
    bool cached;
    u32 n; /* tokens of the prefix, SIZE * depth */
    i32 tokens[SIZE * DEPTH];
    u32 users;
    u64 after_step; /* of its last give, when it has no users */
    u32 order;      /* of its last give; then of the begin of its rest */
    bool resting;   /* no step needs it; without users */
};
struct client {
    bool alive, unlinked;
    u32 n_blocks, n_linked, block[DEPTH], writes; /* writes: blocks from here on are its own */
    i32 tokens[SIZE * DEPTH];
    struct kv_link link;
};
struct model {
    struct kv_blocks *p;
    struct copy copy[N + 1];
    struct client client[SEQS];
    u64 step, committed;
    u32 clock, n_taken_from_cache, n_hits, n_told;
    u64 known[N + 1]; /* hashes, as changes tell */
    u32 n_known;
};

static bool is_prefix(const struct copy *a, const struct copy *b)
{
    return a->n <= b->n && memcmp(a->tokens, b->tokens, a->n * sizeof(i32)) == 0;
}

static u32 model_find(const struct model *m, const i32 *tokens, u32 n)
{
    for (u32 i = 1; i <= N; i++) {
        const struct copy *c = &m->copy[i];
        if (c->cached && c->n == n && memcmp(c->tokens, tokens, n * sizeof(i32)) == 0) return i;
    }
    return 0;
}

/* Which block must be taken, were no uncached one free: 0: none. */
static u32 model_victim(const struct model *m, bool *has_free)
{
    u32 best = 0;
    *has_free = false;
    for (u32 i = 1; i <= N; i++) {
        const struct copy *c = &m->copy[i];
        if (c->users > 0 || !c->resting) continue;
        if (!c->cached)
            *has_free = true;
        else if (!best || c->order < m->copy[best].order)
            best = i;
    }
    return best;
}

static bool model_take(struct model *m, u32 *block)
{
    bool has_free;
    u32 victim = model_victim(m, &has_free);
    bool took = kv_take(m->p, block);
    assert_int_equal(took, has_free || victim);
    if (!took) return false;
    struct copy *c = &m->copy[*block];
    assert_in_range(*block, 1, N);
    assert_true(c->users == 0 && c->resting && c->after_step <= m->committed); /* no second writer */
    if (!has_free) {
        assert_int_equal(*block, victim); /* longest without users */
        m->n_taken_from_cache++;
        for (u32 i = 1; i <= N; i++) /* what is behind it cannot be found */
            if (i != victim && m->copy[i].cached && is_prefix(c, &m->copy[i])) m->copy[i].cached = false;
    }
    assert_true(has_free != c->cached);
    *c = (struct copy){.users = 1};
    return true;
}

static void model_begin(struct model *m, struct client *s, const u32 r[4])
{
    *s = (struct client){.alive = true};
    for (u32 i = 0; i < SIZE * DEPTH; i++) s->tokens[i] = (i32)(r[1] >> i & 1) % LETTERS;
    u32 block, most = r[2] % (DEPTH + 1);
    while (s->n_blocks < most) {
        u32 want = model_find(m, s->tokens, (s->n_blocks + 1) * SIZE);
        bool hit = kv_find(m->p, &s->link, s->tokens + s->n_blocks * SIZE, &block);
        assert_int_equal(hit ? block : 0, want); /* exactly what it must be */
        if (!hit) break;
        kv_hold(m->p, block);
        s->block[s->n_blocks++] = block;
        m->copy[block].users++;
        m->n_hits++;
    }
    s->n_linked = s->writes = s->n_blocks;
    if (r[3] % 8 > 0) return;
    while (s->n_blocks > 0) { /* it does not start after all */
        struct copy *c = &m->copy[s->block[--s->n_blocks]];
        kv_unhold(m->p, s->block[s->n_blocks]);
        if (--c->users == 0 && c->resting) c->order = ++m->clock;
    }
    s->alive = false;
}

static void model_end(struct model *m, struct client *s)
{
    while (s->n_blocks > 0) {
        u32 block = s->block[--s->n_blocks];
        struct copy *c = &m->copy[block];
        kv_give(m->p, block, m->step);
        if (--c->users > 0) continue;
        c->resting = false;
        c->after_step = m->step;
        c->order = ++m->clock;
    }
    s->alive = false;
}

static void model_cache(struct model *m, struct client *s)
{
    u32 block = s->block[s->n_linked], n = (s->n_linked + 1) * SIZE;
    u32 before = s->n_linked ? model_find(m, s->tokens, n - SIZE) : 0, known = model_find(m, s->tokens, n);
    bool may = (s->n_linked == 0 || (before && before == s->link.block)) && !s->unlinked;
    bool did = !s->unlinked && kv_cache(m->p, &s->link, s->tokens + n - SIZE, block);
    if (did) assert_true(may && s->link.block == (known ? known : block));
    s->unlinked |= !did;
    if (did && !known) {
        struct copy *c = &m->copy[block];
        assert_false(c->cached);
        c->cached = true;
        c->n = n;
        memcpy(c->tokens, s->tokens, n * sizeof(i32));
    }
    s->n_linked++;
}

static void model_commit(struct model *m)
{
    kv_committed(m->p, ++m->committed);
    for (;;) { /* in the order in which they were given */
        struct copy *next = NULL;
        for (u32 i = 1; i <= N; i++) {
            struct copy *c = &m->copy[i];
            if (!c->resting && c->after_step <= m->committed && (!next || c->order < next->order)) next = c;
        }
        if (!next) break;
        next->resting = true;
        next->order = ++m->clock;
    }
}

static void model_hear(struct model *m)
{
    u64 hash;
    enum kv_change what;
    while ((what = kv_next_change(m->p, &hash)) != KV_UNCHANGED) {
        m->n_told++;
        u32 at = 0;
        while (at < m->n_known && m->known[at] != hash) at++;
        if (what == KV_ALL_CHANGED) {
            m->n_known = kv_hashes(m->p, m->known, N + 1);
        } else if (what == KV_ADDED) {
            assert_true(m->n_known < N + 1);
            m->known[m->n_known++] = hash;
        } else {
            assert_true(at < m->n_known);
            m->known[at] = m->known[--m->n_known];
        }
    }
    u64 sum = 0, all[N + 1];
    u32 n = kv_hashes(m->p, all, N + 1);
    assert_int_equal(n, m->n_known);
    for (u32 i = 0; i < n; i++) sum += all[i] - m->known[i];
    assert_true(sum == 0);
}

static void model_check(const struct model *m)
{
    u32 n_free = 0, n_given = 0, n_cached = 0;
    for (u32 i = 1; i <= N; i++) {
        const struct copy *c = &m->copy[i];
        u32 users = 0, writers = 0;
        for (u32 s = 0; s < SEQS; s++)
            for (u32 k = 0; k < m->client[s].n_blocks; k++)
                if (m->client[s].block[k] == i) {
                    users++;
                    writers += k >= m->client[s].writes && k >= m->client[s].n_linked;
                }
        assert_int_equal(kv_users(m->p, i), users);
        assert_int_equal(c->users, users);
        assert_true(writers == 0 || (users == 1 && !c->cached));
        n_free += users == 0 && c->resting;
        n_given += users == 0 && !c->resting;
        n_cached += c->cached;
    }
    assert_int_equal(kv_free_blocks(m->p), n_free);
    assert_int_equal(kv_given_blocks(m->p), n_given);
    assert_int_equal(kv_cached_blocks(m->p), n_cached);
}

static void model_step(struct model *m, const u32 r[4])
{
    struct client *s = &m->client[r[0] % SEQS];
    switch (r[0] / SEQS % 6) {
    case 0:
        if (!s->alive) model_begin(m, s, r);
        break;
    case 1:
        if (s->alive && r[2] % 2) model_end(m, s);
        break;
    case 2:
        if (s->alive && s->n_linked < s->n_blocks) model_cache(m, s);
        break;
    case 3:
        if (m->committed < m->step)
            model_commit(m);
        else
            m->step++;
        break;
    case 4:
        if (r[2] % 64 == 0) {
            kv_forget(m->p);
            for (u32 i = 1; i <= N; i++) m->copy[i].cached = false;
        }
        if (r[2] % 4 == 1) m->step++;
        break;
    default:
        if (s->alive && s->n_blocks < DEPTH) {
            u32 block;
            if (model_take(m, &block)) s->block[s->n_blocks++] = block;
        }
    }
}

static u64 bad_hash(u64 before, const i32 *tokens, u32 n)
{
    (void)n;
    return (before + (u64)tokens[0]) % 2; /* nearly everything collides */
}

static void run_model(u64 seed, u64 (*hash)(u64, const i32 *, u32), u32 n_changes)
{
    struct kv_spec spec = {
        .n_blocks = N + 1, .block_size = SIZE, .prefix_cache = true, .n_changes = n_changes, .hash = hash};
    struct model m = {.p = kv_blocks_new(&spec, NULL)};
    for (u32 i = 1; i <= N; i++) m.copy[i].resting = true;
    for (u32 i = 0; i < 30000; i++) {
        u32 r[4];
        rng_block(seed, i, 0, r);
        model_step(&m, r);
        model_check(&m);
        if (r[3] % 8 == 0 && !hash) model_hear(&m);
    }
    assert_true(m.n_taken_from_cache > 100 && m.n_hits > 1000);
    for (u32 s = 0; s < SEQS; s++) model_end(&m, &m.client[s]);
    kv_settle(m.p);
    assert_int_equal(kv_free_blocks(m.p), N);
    kv_blocks_free(m.p);
}

static void any_order_agrees_with_the_model(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 4; seed++) run_model(seed, NULL, 1000);
    run_model(5, NULL, 3);
}

static void hits_are_exact_when_hashes_collide(void **state)
{
    (void)state;
    for (u64 seed = 11; seed <= 14; seed++) run_model(seed, bad_hash, 0);
}

/* The same tokens in sequences of two kinds are two blocks, and what is behind them is apart too. */
static void kinds_share_nothing(void **state)
{
    (void)state;
    struct kv_blocks *p = new_pool(8, 8);
    u32 a = take(p), b = take(p), c = take(p), d = take(p), found;
    struct kv_link plain = {0}, other = {0, 7}, again = {0, 7}, third = {0, 9};
    assert_true(kv_cache(p, &plain, (i32[]){1, 1}, a));
    assert_false(kv_find(p, &again, (i32[]){1, 1}, &found));
    assert_true(kv_cache(p, &other, (i32[]){1, 1}, b));
    assert_true(kv_cache(p, &plain, (i32[]){2, 2}, c));
    assert_true(kv_find(p, &again, (i32[]){1, 1}, &found) && found == b);
    assert_false(kv_find(p, &again, (i32[]){2, 2}, &found));
    assert_true(kv_cache(p, &other, (i32[]){2, 2}, d));
    assert_true(kv_find(p, &again, (i32[]){2, 2}, &found) && found == d);
    assert_false(kv_find(p, &third, (i32[]){1, 1}, &found));
    assert_int_equal(kv_cached_blocks(p), 4);
    kv_blocks_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(too_small_is_refused),
        cmocka_unit_test(kinds_share_nothing),
        cmocka_unit_test(scratch_block_is_never_handed_out),
        cmocka_unit_test(given_blocks_wait_for_their_steps),
        cmocka_unit_test(nothing_is_cached_when_it_is_off),
        cmocka_unit_test(ends_of_sequences_go_first_and_the_oldest_of_them),
        cmocka_unit_test(a_given_block_can_be_found),
        cmocka_unit_test(the_second_copy_stays_private),
        cmocka_unit_test(forgotten_as_a_whole),
        cmocka_unit_test(changes_are_told_in_order),
        cmocka_unit_test(any_order_agrees_with_the_model),
        cmocka_unit_test(hits_are_exact_when_hashes_collide),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
