/* Placement against an oracle: on small jobs every division of replicas among nodes is tried, and those that keep the rules as they
 * are written in place.h are known. place_plan has to find one exactly when there is one, and the best of its kind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "mpiserve/place.h"

#include <stdlib.h>

enum { A = PLACE_ABSENT, MAX_NODES = 4, MAX_RANKS = 12, CASES = 20000 };

struct small {
    struct place_job job;
    struct place_spec spec;
    u32 node_of[MAX_RANKS], head, group;
    u32 room[MAX_NODES]; /* whole groups of ranks that may hold engines */
    u32 open[MAX_NODES]; /* those ranks */
    bool spans;          /* a replica's stages may lie on several nodes */
    u32 whole, spare;    /* replicas that fit on single nodes; replicas of the stages that are left then */
};

static u32 draw(u64 number, u32 which, u32 below)
{
    u32 bits[4];
    rng_block(11, number, which, bits);
    return bits[0] % below;
}

static void make_case(struct small *s, u64 number)
{
    *s = (struct small){0};
    u32 n_ranks = 1 + draw(number, 0, MAX_RANKS), n_nodes = 1 + draw(number, 1, MAX_NODES);
    bool blocks = draw(number, 2, 2);
    for (u32 r = 0; r < n_ranks; r++)
        s->node_of[r] = blocks ? r * n_nodes / n_ranks : draw(number, 100 + r, n_nodes);
    s->job = (struct place_job){.n_ranks = n_ranks, .n_nodes = n_nodes, .node_of = s->node_of};
    s->spec = (struct place_spec){.tp = 1 + draw(number, 3, 4) / 3,
                                  .pp = 1 + draw(number, 4, 4) / 3,
                                  .dp = draw(number, 5, 3) ? 1 + (i64)draw(number, 6, 8) : A,
                                  .dp_local = draw(number, 7, 2) ? (i64)draw(number, 8, 4) : A,
                                  .max_group = 4,
                                  .strategy = (enum place_strategy)draw(number, 9, 4)};
    s->head = s->node_of[0];
    s->group = (u32)(s->spec.tp * s->spec.pp);
    for (u32 r = 0; r < n_ranks; r++) {
        bool closed = s->spec.dp_local == 0 && (n_nodes == 1 ? r == 0 : s->node_of[r] == s->head);
        s->open[s->node_of[r]] += !closed;
    }
    s->spans = s->spec.pp > 1 && n_nodes > 1 && s->spec.strategy != PLACE_STRICT_PACK &&
               s->spec.strategy != PLACE_STRICT_SPREAD;
    u32 stages = 0;
    for (u32 i = 0; i < n_nodes; i++) {
        bool fixed = s->spec.dp_local > 0 && i == s->head;
        s->room[i] = s->open[i] / s->group;
        s->whole += fixed ? (u32)s->spec.dp_local : s->room[i];
        if (!fixed) stages += s->open[i] / (u32)s->spec.tp - s->room[i] * (u32)s->spec.pp;
    }
    s->spare = s->spans ? stages / (u32)s->spec.pp : 0;
}

/* ---- the rules, said once more ---------------------------------------------------------------------------------*/
struct division {
    u32 take[MAX_NODES], sum, used, squares; /* squares: of the nodes whose number is free */
};

static bool keeps_rules(const struct small *s, const struct division *d)
{
    u32 most = 0;
    for (u32 i = 0; i < s->job.n_nodes; i++) most = MAX_OF(most, d->take[i]);
    return d->sum > 0 && (s->spec.dp == A || d->sum == (u32)s->spec.dp) &&
           (s->spec.dp_local <= 0 || d->take[s->head] == (u32)s->spec.dp_local) &&
           (s->spec.strategy != PLACE_STRICT_PACK || d->used == 1) &&
           (s->spec.strategy != PLACE_STRICT_SPREAD || most == 1);
}

static void measure(const struct small *s, struct division *d)
{
    d->sum = d->used = d->squares = 0;
    for (u32 i = 0; i < s->job.n_nodes; i++) {
        d->sum += d->take[i];
        d->used += d->take[i] > 0;
        if (s->spec.dp_local <= 0 || i != s->head) d->squares += d->take[i] * d->take[i];
    }
}

static bool is_better(const struct small *s, const struct division *a, const struct division *b)
{
    if (a->sum != b->sum) return a->sum > b->sum;
    return s->spec.strategy == PLACE_PACK ? a->used < b->used : a->squares < b->squares;
}

/* Tries all; false when none keeps the rules. */
static bool best_division(const struct small *s, struct division *best)
{
    struct division d = {0};
    bool found = false;
    for (bool more = true; more;) {
        measure(s, &d);
        if (keeps_rules(s, &d) && (!found || is_better(s, &d, best))) {
            *best = d;
            found = true;
        }
        more = false;
        for (u32 i = 0; i < s->job.n_nodes && !more; i++) {
            more = d.take[i] < s->room[i];
            d.take[i] = more ? d.take[i] + 1 : 0;
        }
    }
    return found;
}

/* More replicas than single nodes hold: every node is full, and the rest is made of what is left over. 0: none are needed. */
static u32 spanning(const struct small *s)
{
    u32 wanted = s->spec.dp == A ? s->whole + s->spare : (u32)s->spec.dp;
    bool head = s->spec.dp_local <= 0 || (u32)s->spec.dp_local <= s->room[s->head];
    return s->spans && head && wanted > s->whole && wanted <= s->whole + s->spare ? wanted - s->whole : 0;
}

static bool best_of(const struct small *s, u32 *across, struct division *best)
{
    *across = spanning(s);
    if (!*across) return best_division(s, best);
    for (u32 i = 0; i < s->job.n_nodes; i++)
        best->take[i] = s->spec.dp_local > 0 && i == s->head ? (u32)s->spec.dp_local : s->room[i];
    measure(s, best);
    return true;
}

/* No number of replicas, and a strategy that uses all ranks: none may be left over. */
static bool ranks_are_left(const struct small *s)
{
    bool all = s->spec.dp == A && (s->spec.strategy == PLACE_PACK || s->spec.strategy == PLACE_SPREAD);
    u32 sum = 0;
    for (u32 i = 0; all && i < s->job.n_nodes; i++) {
        if (s->spec.dp_local > 0 && i == s->head) continue;
        if (s->open[i] % (s->spans ? (u32)s->spec.tp : s->group)) return true;
        sum += s->open[i];
    }
    return all && sum % s->group;
}

/* ---- what came out ---------------------------------------------------------------------------------------------*/
/* Every engine is on one rank, on the lowest ranks of a node that may hold one, a stage on one node; replicas ascend. */
static void check_engines(const struct small *s, const struct place_plan *p)
{
    u32 seen[MAX_NODES] = {0}, engines = 0, leader = 0;
    bool closed[MAX_NODES] = {0};
    for (u32 r = 0; r < s->job.n_ranks; r++) {
        const struct place_rank *x = &p->ranks[r];
        u32 node = s->node_of[r];
        bool may = !(s->spec.dp_local == 0 && (s->job.n_nodes == 1 ? r == 0 : node == s->head));
        if (x->replica < 0) {
            closed[node] |= may;
            continue;
        }
        assert_true(may && !closed[node]);
        assert_true((u32)x->replica < p->n_replicas);
        const struct place_replica *home = &p->replicas[x->replica];
        assert_int_equal(s->node_of[p->engines[home->first_engine + x->pp * (u32)s->spec.tp]], node);
        assert_int_equal(home->node, s->node_of[home->leader]);
        assert_int_equal(p->engines[p->replicas[x->replica].first_engine + x->pp * (u32)s->spec.tp + x->tp],
                         r);
        engines++;
        seen[node]++;
    }
    assert_int_equal(engines, p->n_replicas * s->group);
    for (u32 i = 0; i < p->n_replicas; i++) {
        assert_true(i == 0 || p->replicas[i].leader > leader);
        leader = p->replicas[i].leader;
        assert_int_equal(p->replicas[i].n_engines, s->group);
        assert_true(p->ranks[leader].is_leader);
    }
}

static bool is_whole(const struct small *s, const struct place_plan *p, u32 replica)
{
    const u32 *engines = p->engines + p->replicas[replica].first_engine;
    for (u32 i = 1; i < s->group; i++)
        if (s->node_of[engines[i]] != s->node_of[engines[0]]) return false;
    return true;
}

static void check_case(u64 number, u32 *feasible)
{
    struct small s;
    struct division best = {0}, got = {0};
    struct place_plan plan, again;
    struct error err = {0};
    u32 across, crossing = 0;
    make_case(&s, number);
    bool possible = best_of(&s, &across, &best) && !ranks_are_left(&s);
    int rc = place_plan(&plan, &s.job, &s.spec, &err);
    if (rc != (possible ? 0 : ERR_INPUT))
        fail_msg("case %llu: %s, and place_plan says %d: %s", (unsigned long long)number,
                 possible ? "possible" : "impossible", rc, err.message);
    if (rc) {
        assert_null(plan.ranks);
        assert_true(err.message[0]);
        return;
    }
    ++*feasible;
    check_engines(&s, &plan);
    if (place_check(plan.replicas, plan.n_replicas, &err))
        fail_msg("case %llu: %s", (unsigned long long)number, err.message);
    for (u32 i = 0; i < plan.n_replicas; i++)
        if (is_whole(&s, &plan, i))
            got.take[plan.replicas[i].node]++;
        else
            crossing++;
    measure(&s, &got);
    assert_int_equal(crossing, across);
    if ((!across && !keeps_rules(&s, &got)) || got.sum != best.sum || is_better(&s, &best, &got))
        fail_msg("case %llu: %s: %u replicas on %u nodes (%u), best is %u on %u (%u)",
                 (unsigned long long)number, place_strategy_name(s.spec.strategy), got.sum, got.used,
                 got.squares, best.sum, best.used, best.squares);
    assert_int_equal(place_plan(&again, &s.job, &s.spec, &err), 0);
    assert_memory_equal(plan.engines, again.engines, plan.n_ranks * sizeof *plan.engines);
    place_release(&again);
    place_release(&plan);
}

static void test_oracle(void **state)
{
    (void)state;
    u32 feasible = 0;
    for (u64 number = 0; number < CASES; number++) check_case(number, &feasible);
    assert_in_range(feasible, CASES / 8, CASES - CASES / 8); /* the cases are worth something */
}

static void test_names(void **state)
{
    (void)state;
    enum place_strategy s;
    for (int i = PLACE_PACK; i <= PLACE_STRICT_SPREAD; i++) {
        assert_int_equal(place_strategy_parse(place_strategy_name((enum place_strategy)i), &s), 0);
        assert_int_equal(s, i);
    }
    assert_int_equal(place_strategy_parse("pack", &s), ERR_INPUT);
    assert_int_equal(place_strategy_parse("", &s), ERR_INPUT);
}

/* No time is judged: with work that grows with nodes * ranks this would not end. */
static void test_large(void **state)
{
    (void)state;
    enum { NODES = 20000, EACH = 16 };
    u32 *node_of = mem_alloc(NODES * EACH * sizeof *node_of);
    for (u32 r = 0; r < NODES * EACH; r++) node_of[r] = r % NODES;
    struct place_job job = {.n_ranks = NODES * EACH, .n_nodes = NODES, .node_of = node_of};
    for (int i = PLACE_PACK; i <= PLACE_STRICT_SPREAD; i++) {
        struct place_spec spec = {1, 1, A, A, 1, (enum place_strategy)i};
        struct place_plan plan;
        const u32 wanted[] = {NODES * EACH, EACH, NODES * EACH, NODES};
        assert_int_equal(place_plan(&plan, &job, &spec, NULL), 0);
        assert_int_equal(plan.n_replicas, wanted[i]);
        assert_int_equal(place_check(plan.replicas, plan.n_replicas, NULL), 0);
        place_release(&plan);
    }
    free(node_of);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_oracle), cmocka_unit_test(test_names),
                                       cmocka_unit_test(test_large)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("place_oracle", tests, NULL, NULL);
}
