/* Placement: tables of jobs and what must come out; the checker against each kind of wrong number. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "mpiserve/place.h"

#include <stdlib.h>
#include <string.h>

enum { A = PLACE_ABSENT, MAX_RANKS = 32 };

struct good {
    const char *nodes; /* a letter a rank */
    i64 tp, pp, dp, local;
    const char *replicas;     /* a letter a rank: replica, '-' for none */
    const char *rank_triples; /* "rank.node.local" of each replica */
};
static const struct good goods[] = {
    {"a", 1, 1, A, A, "a", "0.0.0"},
    {"aaaaaaaa", 1, 1, A, A, "abcdefgh", "0.0.0 1.0.1 2.0.2 3.0.3 4.0.4 5.0.5 6.0.6 7.0.7"},
    {"aaaa", 1, 1, A, 0, "-abc", "0.0.0 1.0.1 2.0.2"},
    {"aaaa", 1, 1, 2, A, "ab--", "0.0.0 1.0.1"},
    {"aaaa", 1, 1, 2, 0, "-ab-", "0.0.0 1.0.1"},
    {"aaaa", 1, 1, A, 2, "ab--", "0.0.0 1.0.1"},
    {"aaaa", 1, 1, 4, 4, "abcd", "0.0.0 1.0.1 2.0.2 3.0.3"},
    {"aabb", 1, 1, A, A, "abcd", "0.0.0 1.0.1 2.1.0 3.1.1"},
    {"aabb", 1, 1, A, 0, "--ab", "0.0.0 1.0.1"},
    {"aabb", 1, 1, A, 1, "a-bc", "0.0.0 1.1.0 2.1.1"},
    {"aabb", 1, 1, 2, 1, "a-b-", "0.0.0 1.1.0"},
    {"aabb", 1, 1, 3, A, "abc-", "0.0.0 1.0.1 2.1.0"},
    {"abab", 1, 1, A, A, "abcd", "0.0.0 1.1.0 2.0.1 3.1.1"},
    {"baba", 1, 1, A, 0, "-a-b", "0.0.0 1.0.1"}, /* the head node is rank 0's, whatever its number */
    {"aaaaaaaa", 2, 1, A, A, "aabbccdd", "0.0.0 1.0.1 2.0.2 3.0.3"},
    {"aaaaaaaa", 2, 2, A, A, "aaaabbbb", "0.0.0 1.0.1"},
    {"abababab", 2, 1, A, A, "ababcdcd", "0.0.0 1.1.0 2.0.1 3.1.1"},
    {"aaaaa", 2, 1, A, 0, "-aabb", "0.0.0 1.0.1"},
    {"aaaaa", 2, 1, 2, A, "aabb-", "0.0.0 1.0.1"},
    {"aaabbb", 2, 1, 2, A, "aa-bb-", "0.0.0 1.1.0"},
    {"aaabb", 2, 1, A, 1, "aa-bb", "0.0.0 1.1.0"},
};

static void read_nodes(const char *text, struct place_job *job, u32 *node_of)
{
    *job = (struct place_job){.n_ranks = (u32)strlen(text), .node_of = node_of};
    for (u32 i = 0; i < job->n_ranks; i++) {
        node_of[i] = (u32)(text[i] - 'a');
        job->n_nodes = MAX_OF(job->n_nodes, node_of[i] + 1);
    }
}

static void check_engines(const struct place_plan *plan, const struct place_spec *spec)
{
    u32 group = (u32)(spec->tp * spec->pp);
    for (u32 i = 0; i < plan->n_replicas; i++) {
        const struct place_replica *r = &plan->replicas[i];
        assert_int_equal(r->n_engines, group);
        assert_int_equal(plan->engines[r->first_engine], r->leader);
        for (u32 k = 0; k < group; k++) {
            const struct place_rank *x = &plan->ranks[plan->engines[r->first_engine + k]];
            assert_int_equal(x->replica, i);
            assert_int_equal(x->pp * spec->tp + x->tp, k);
            assert_int_equal(x->is_leader, k == 0);
        }
    }
}

static void test_good(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(goods); i++) {
        const struct good *g = &goods[i];
        u32 node_of[MAX_RANKS];
        struct place_job job;
        read_nodes(g->nodes, &job, node_of);
        struct place_spec spec = {
            .tp = g->tp, .pp = g->pp, .dp = g->dp, .dp_local = g->local, .max_group = 8};
        struct place_plan plan;
        struct error err = {0};
        int rc = place_plan(&plan, &job, &spec, &err);
        if (rc) fail_msg("row %zu: %s", i, err.message);
        char got[MAX_RANKS + 1] = {0};
        for (u32 r = 0; r < job.n_ranks; r++)
            got[r] = plan.ranks[r].replica < 0 ? '-' : (char)('a' + plan.ranks[r].replica);
        assert_string_equal(got, g->replicas);
        struct buf triples = {0};
        for (u32 r = 0; r < plan.n_replicas; r++) {
            struct replica_rank t = plan.replicas[r].rank;
            buf_printf(&triples, "%s%u.%u.%u", r ? " " : "", t.rank, t.node_rank, t.local_rank);
        }
        assert_string_equal(triples.data, g->rank_triples);
        check_engines(&plan, &spec);
        assert_int_equal(place_check(plan.replicas, plan.n_replicas, &err), 0);
        buf_release(&triples);
        place_release(&plan);
    }
}

static const struct bad {
    const char *nodes;
    i64 tp, pp, dp, local;
    u32 max_group;
    int code;
    const char *where, *words[3];
} bads[] = {
    {"aaaaaaaa", 3, 1, A, A, 8, ERR_INPUT, "tensor_parallel_size", {"8 ranks", "3 * 1 = 3"}},
    {"aaaaaaa", 2, 2, A, A, 8, ERR_INPUT, "tensor_parallel_size", {"7 ranks", "2 * 2 = 4"}},
    {"aaaa",
     2,
     1,
     A,
     0,
     8,
     ERR_INPUT,
     "tensor_parallel_size",
     {"3 ranks", "= 2", "data_parallel_size_local = 0"}},
    {"aaab", 2, 1, A, A, 8, ERR_INPUT, "tensor_parallel_size", {"3 ranks of node 0", "stays in one node"}},
    {"aaaa", 1, 1, 5, A, 1, ERR_INPUT, "data_parallel_size", {"5 replicas", "4 ranks", "allow 4"}},
    {"aaaa", 1, 1, 4, 0, 1, ERR_INPUT, "data_parallel_size", {"4 replicas", "allow 3"}},
    {"aabb", 1, 1, 3, 0, 1, ERR_INPUT, "data_parallel_size", {"3 replicas", "allow 2"}},
    {"aabb", 1, 1, A, 3, 1, ERR_INPUT, "data_parallel_size_local", {"3 replicas", "2 ranks", "allow 2"}},
    {"aabb", 1, 1, 1, 2, 1, ERR_INPUT, "data_parallel_size_local", {"is 2", "data_parallel_size = 1"}},
    {"aa", 1, 1, 3, 2, 1, ERR_INPUT, "data_parallel_size", {"3 replicas", "allow 2"}},
    {"a", 1, 1, A, 0, 1, ERR_INPUT, "data_parallel_size_local", {"1 ranks", "rank 0"}},
    {"a", 2, 1, A, A, 8, ERR_INPUT, "tensor_parallel_size", {"1 ranks"}},
    {"aaaa", 2, 1, A, A, 1, ERR_UNSUPPORTED, "tensor_parallel_size", {"2 * 1 = 2", "runs 1"}},
    {"aaaa", 1, 4, A, A, 1, ERR_UNSUPPORTED, "tensor_parallel_size", {"1 * 4 = 4", "runs 1"}},
    {"aaaa", 0, 1, A, A, 1, ERR_INPUT, "tensor_parallel_size", {"is 0", "at least 1"}},
    {"aaaa", 1, -2, A, A, 1, ERR_INPUT, "pipeline_parallel_size", {"is -2"}},
    {"aaaa", 1, 1, 0, A, 1, ERR_INPUT, "data_parallel_size", {"is 0", "at least 1"}},
    {"aaaa", 1, 1, A, -2, 1, ERR_INPUT, "data_parallel_size_local", {"is -2", "at least 0"}},
    {"aaaa", INT64_MAX, 1, A, A, 1, ERR_INPUT, "tensor_parallel_size", {"9223372036854775807"}},
};

static void test_bad(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(bads); i++) {
        const struct bad *b = &bads[i];
        u32 node_of[MAX_RANKS];
        struct place_job job;
        read_nodes(b->nodes, &job, node_of);
        struct place_spec spec = {b->tp, b->pp, b->dp, b->local, b->max_group, PLACE_PACK};
        struct place_plan plan;
        struct error err = {0};
        if (place_plan(&plan, &job, &spec, &err) != b->code)
            fail_msg("row %zu: code %d: %s", i, err.code, err.message);
        assert_string_equal(err.where, b->where);
        for (size_t k = 0; k < COUNT_OF(b->words) && b->words[k]; k++)
            if (!strstr(err.message, b->words[k]))
                fail_msg("row %zu: no '%s' in: %s", i, b->words[k], err.message);
        assert_null(plan.ranks);
    }
}

static void test_oversubscribed(void **state)
{
    (void)state;
    const u32 node_of[] = {0, 0, 0, 1}, few[] = {2, 1}, enough[] = {3, 1};
    struct place_job job = {.n_ranks = 4, .n_nodes = 2, .node_of = node_of, .cores_of = few};
    struct place_spec spec = {1, 1, A, A, 1, PLACE_PACK};
    struct place_plan plan;
    assert_int_equal(place_plan(&plan, &job, &spec, NULL), 0);
    assert_true(plan.oversubscribed);
    place_release(&plan);
    job.cores_of = enough;
    assert_int_equal(place_plan(&plan, &job, &spec, NULL), 0);
    assert_false(plan.oversubscribed);
    place_release(&plan);
}

/* Two nodes with two replicas each; one field is then spoiled. */
static void make_four(struct place_replica r[4])
{
    for (u32 i = 0; i < 4; i++)
        r[i] = (struct place_replica){.leader = 10 + i,
                                      .n_engines = 1,
                                      .node = i / 2,
                                      .live = true,
                                      .ranked = true,
                                      .rank = {i, i / 2, i % 2}};
}

static void expect_refused(const struct place_replica *r, u32 n, const char *words)
{
    struct error err = {0};
    assert_int_equal(place_check(r, n, &err), ERR_STATE);
    if (!strstr(err.message, words)) fail_msg("no '%s' in: %s", words, err.message);
}

static void test_check_names(void **state)
{
    (void)state;
    struct place_replica r[4];
    make_four(r);
    assert_int_equal(place_check(r, 4, NULL), 0);
    assert_int_equal(place_check(r, 0, NULL), 0);
    r[2].ranked = false;
    expect_refused(r, 4, "unranked: replica 2 (leader: rank 12)");
    make_four(r);
    r[3].live = false;
    expect_refused(r, 4, "stale: replica 3 (leader: rank 13)");
    make_four(r);
    r[3].rank.rank = 1;
    expect_refused(r, 4, "duplicate: replicas 1 and 3 (leaders: ranks 11 and 13) both hold rank 1");
    make_four(r);
    r[0].rank.rank = 4;
    expect_refused(r, 4, "holds rank 4 of 4: not dense");
    make_four(r);
    r[1].rank.local_rank = 0;
    expect_refused(r, 4, "both hold local_rank 0");
    make_four(r);
    r[3].rank.node_rank = 0;
    expect_refused(r, 4, "replicas 2 and 3 are on one node and hold node_rank 1 and 0");
    make_four(r);
    r[2].rank.node_rank = r[3].rank.node_rank = 0;
    expect_refused(r, 4, "both hold node_rank 0");
}

static void test_rerank(void **state)
{
    (void)state;
    struct place_replica r[4];
    make_four(r);
    r[1].live = false;
    place_rerank(r, 4);
    assert_int_equal(place_check(r, 4, NULL), 0);
    assert_int_equal(r[0].rank.rank, 0);
    assert_int_equal(r[2].rank.rank, 2); /* keeps */
    assert_int_equal(r[3].rank.rank, 1); /* 3 is beyond the live count: into the gap */
    r[0].live = false;
    place_rerank(r, 4);
    assert_int_equal(place_check(r, 4, NULL), 0);
    assert_int_equal(r[2].rank.node_rank, 0);
    r[0].live = r[1].live = true;
    place_rerank(r, 4);
    assert_int_equal(place_check(r, 4, NULL), 0);
    assert_int_equal(r[3].rank.rank, 1);
    assert_int_equal(r[2].rank.node_rank, 0); /* a new node does not push the old one away */
}

static void test_rerank_any_history(void **state)
{
    (void)state;
    enum { N = 24, ROUNDS = 2000 };
    struct place_replica r[N];
    for (u32 i = 0; i < N; i++) r[i] = (struct place_replica){.leader = i, .node = i % 5, .live = true};
    for (u32 round = 0; round < ROUNDS; round++) {
        u32 bits[4];
        rng_block(7, round, 0, bits);
        struct place_replica before[N];
        memcpy(before, r, sizeof r);
        u32 live = 0;
        for (u32 i = 0; i < N; i++) {
            r[i].live = bits[0] >> i & 1;
            live += r[i].live;
        }
        place_rerank(r, N);
        struct error err = {0};
        if (place_check(r, N, &err)) fail_msg("round %u: %s", round, err.message);
        for (u32 i = 0; i < N; i++)
            if (r[i].live && before[i].ranked && before[i].rank.rank < live)
                assert_int_equal(r[i].rank.rank, before[i].rank.rank);
    }
}

/* Ranks 1 and 2 of the first node are left over: their stages make a replica with the second node's. */
static void test_parts_and_the_least(void **state)
{
    (void)state;
    const u32 node_of[] = {0, 0, 0, 1, 1, 1}, values[] = {9, 4, 7, 6, 5, 3}, first[] = {0, 1, 2},
              all[] = {5, 3, 1, 0};
    const struct place_job job = {.n_ranks = 6, .n_nodes = 2, .node_of = node_of};
    const struct place_spec spec = {.tp = 1,
                                    .pp = 2,
                                    .dp = PLACE_ABSENT,
                                    .dp_local = PLACE_ABSENT,
                                    .max_group = 4,
                                    .strategy = PLACE_PACK};
    struct place_plan plan;
    u32 out[6];
    assert_int_equal(place_plan(&plan, &job, &spec, NULL), 0);
    assert_int_equal(plan.ranks[2].replica, plan.ranks[5].replica); /* over both nodes */
    assert_int_equal(place_least(&plan, 0, values), 4);
    assert_int_equal(place_least(&plan, 1, values), 4);
    assert_int_equal(place_least(&plan, 2, values), 3);
    assert_int_equal(place_least(&plan, 3, values), 5);
    assert_int_equal(place_parts(&plan, first, 3, out), 2);
    assert_int_equal(out[0], 0);
    assert_int_equal(out[1], 1);
    assert_int_equal(place_parts(&plan, all, 4, out), 2);
    assert_int_equal(out[0], 1);
    place_release(&plan);
    const struct place_spec one = {
        .tp = 1, .pp = 1, .dp = 1, .dp_local = 0, .max_group = 4, .strategy = PLACE_PACK};
    assert_int_equal(place_plan(&plan, &job, &one, NULL), 0);
    assert_int_equal(place_least(&plan, 0, values), 9); /* has no engine */
    assert_int_equal(place_parts(&plan, first, 3, out), 0);
    place_release(&plan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_oversubscribed),
        cmocka_unit_test(test_check_names),
        cmocka_unit_test(test_rerank),
        cmocka_unit_test(test_rerank_any_history),
        cmocka_unit_test(test_parts_and_the_least),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("place", tests, NULL, NULL);
}
