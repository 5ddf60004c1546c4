/* experts: routing, products of the chosen experts, and their weighted sum. */
#ifndef MPISERVE_OPS_EXPERTS_H
#define MPISERVE_OPS_EXPERTS_H

#include "ops/cpu/rows.h"

#include <stdatomic.h>

enum { ROUTE_MAX = 1024 }; /* experts */

static void route_softmax(float *p, const float *z, u32 n)
{
    vf top = vf_set(-__builtin_inff()), sum = vf_zero();
    float padded[ROUTE_MAX];
    for (u32 i = 0; i < (n + 15) / 16 * 16; i++) padded[i] = i < n ? z[i] : -__builtin_inff();
    for (u32 i = 0; i < n; i += 16) top = vf_max(top, vf_load(padded + i));
    vf largest = vf_set(vf_largest(top));
    for (u32 i = 0; i < n; i += 16) {
        float e[16] = {0};
        vf_store_n(e, vf_exp(vf_sub(vf_load(padded + i), largest)), n - i);
        sum = vf_add(sum, vf_load(e));
        vf_store_n(p + i, vf_load(e), n - i);
    }
    vf total = vf_set(vf_sum(sum));
    for (u32 i = 0; i < n; i += 16) vf_store_n(p + i, vf_div(vf_load_n(p + i, n - i), total), n - i);
}

static void route_sigmoid(float *p, const float *z, u32 n)
{
    for (u32 i = 0; i < n; i += 16) vf_store_n(p + i, gated(vf_set(1), vf_load_n(z + i, n - i)), n - i);
}

/* The largest of those not taken, the lowest of equals; also where nothing is a number. */
static u32 route_best(const float *x, const bool *taken, u32 n)
{
    u32 best = n;
    for (u32 i = 0; i < n; i++)
        if (!taken[i] && (best == n || x[i] > x[best])) best = i;
    return best;
}

static float group_score(const float *x, u32 n, bool pair)
{
    float first = x[0], second = -__builtin_inff();
    for (u32 i = 1; i < n; i++) {
        if (x[i] > first) {
            second = first;
            first = x[i];
        } else if (x[i] > second) {
            second = x[i];
        }
    }
    return pair ? first + second : first;
}

/* Experts of groups that are not among the best count as taken. */
static void route_groups(const struct moe_config *m, const float *scores, bool *taken)
{
    u32 size = m->experts / m->groups;
    float best[ROUTE_MAX];
    bool kept[ROUTE_MAX] = {false};
    for (u32 g = 0; g < m->groups; g++) best[g] = group_score(scores + g * size, size, m->pair_groups);
    for (u32 i = 0; i < m->top_groups; i++) kept[route_best(best, kept, m->groups)] = true;
    for (u32 e = 0; e < m->experts; e++) taken[e] = !kept[e / size];
}

static void route_weights(const struct moe_config *m, const float *p, const u32 *ids, float *w)
{
    float sum = 0, chosen[ROUTE_MAX];
    for (u32 j = 0; j < m->per_token; j++) chosen[j] = p[ids[j]];
    if (m->score == SCORE_CHOSEN)
        route_softmax(w, chosen, m->per_token);
    else
        __builtin_memcpy(w, chosen, m->per_token * sizeof *w);
    for (u32 j = 0; j < m->per_token; j++) sum += w[j];
    for (u32 j = 0; j < m->per_token; j++) {
        if (m->renormalise) w[j] /= sum + 1e-20f;
        w[j] *= m->scale;
    }
}

static void route_row(const struct route_args *a, u32 row)
{
    const struct moe_config *m = a->moe;
    const float *z = a->logits + row * a->ld;
    float p[ROUTE_MAX], scores[ROUTE_MAX];
    bool taken[ROUTE_MAX] = {false};
    if (m->score == SCORE_SOFTMAX)
        route_softmax(p, z, m->experts);
    else if (m->score == SCORE_SIGMOID)
        route_sigmoid(p, z, m->experts);
    else
        __builtin_memcpy(p, z, m->experts * sizeof *p);
    for (u32 e = 0; e < m->experts; e++) scores[e] = a->correction ? p[e] + a->correction[e] : p[e];
    if (m->groups > 1) route_groups(m, scores, taken);
    u32 *ids = a->ids + (size_t)row * m->per_token;
    for (u32 j = 0; j < m->per_token; j++) taken[ids[j] = route_best(scores, taken, m->experts)] = true;
    route_weights(m, p, ids, a->weights + (size_t)row * m->per_token);
}

static void route(const struct route_args *a, struct share s)
{
    for (u32 row = s.i; row < a->rows; row += s.n) route_row(a, row);
}

static void group(const struct group_args *a, struct share s)
{
    if (s.i) return;
    for (u32 e = 0; e <= a->experts; e++) a->start[e] = 0;
    for (u32 i = 0; i < a->pairs; i++) a->start[a->ids[i] + 1]++;
    for (u32 e = 0; e < a->experts; e++) a->start[e + 1] += a->start[e];
    for (u32 i = 0; i < a->pairs; i++) { /* start[e] runs to start[e + 1] */
        u32 at = a->start[a->ids[i]]++;
        a->order[at] = i;
        a->place[i] = at;
    }
    for (u32 e = a->experts; e > 0; e--) a->start[e] = a->start[e - 1];
    a->start[0] = 0;
}

static void gather(const struct gather_args *a, struct share s)
{
    size_t element = a->dtype == DTYPE_F32 ? 4 : 2, bytes = element * ((a->n + 1) & ~1u);
    for (u32 i = s.i; i < a->pairs; i += s.n)
        __builtin_memcpy((u8 *)a->y + i * a->ld_y * element,
                         (const u8 *)a->x + a->order[i] / a->per_token * a->ld_x * element, bytes);
}

/* Panels [p0, p1) of expert e. */
static void expert_panels(const struct experts_args *a, u32 e, u32 p0, u32 p1)
{
    size_t row = a->start[e], element = a->x_dtype == DTYPE_F32 ? 4 : 2;
    struct packed w = a->w;
    w.data = (const u8 *)w.data + e * a->stride;
    struct linear_args one = {.w = &w,
                              .bias = a->bias ? a->bias + e * a->bias_stride : NULL,
                              .x = (const u8 *)a->x + row * a->ld_x * element,
                              .x_dtype = a->x_dtype,
                              .rows = a->start[e + 1] - a->start[e],
                              .ld_x = a->ld_x,
                              .ld_y = a->ld_y,
                              .y = a->y + row * a->ld_y};
    linear_rows(&one, 0, one.rows, p0, p1);
}

/* Threads take units, MAX_PANELS panels of an expert, as they become free: tokens spread unevenly. */
static void experts(const struct experts_args *a, struct share s)
{
    (void)s;
    u32 panels = (a->w.n_out + PANEL - 1) / PANEL, units = (panels + MAX_PANELS - 1) / MAX_PANELS;
    u32 unit, e = 0, first = 0; /* of expert e, the first unit */
    u32 old = a->x_dtype == DTYPE_BF16 ? vec_flush_begin() : 0;
    for (;;) {
        unit = atomic_fetch_add_explicit(a->ticket, 1, memory_order_relaxed);
        for (u32 n; e < a->experts && unit >= first + (n = a->start[e + 1] > a->start[e] ? units : 0); e++)
            first += n;
        if (e == a->experts) break;
        u32 p = (unit - first) * MAX_PANELS;
        expert_panels(a, e, p, MIN_OF(p + MAX_PANELS, panels));
    }
    if (a->x_dtype == DTYPE_BF16) vec_flush_end(old);
}

static void combine(const struct combine_args *a, struct share s)
{
    for (u32 r = s.i; r < a->rows; r += s.n) {
        const float *w = a->weights + (size_t)r * a->per_token;
        const u32 *place = a->place + (size_t)r * a->per_token;
        float gate[16];
        if (a->shared_gate) vf_store(gate, gated(vf_set(1), vf_set(a->shared_gate[r])));
        for (u32 i = 0; i < a->n; i += 16) {
            u32 n = a->n - i;
            vf sum = vf_zero();
            for (u32 j = 0; j < a->per_token; j++)
                sum = vf_fma(vf_set(w[j]), vf_load_n(a->x + place[j] * a->ld_x + i, n), sum);
            if (a->shared) {
                vf v = vf_load_n(a->shared + r * a->ld_shared + i, n);
                sum = a->shared_gate ? vf_fma(vf_set(gate[0]), v, sum) : vf_add(sum, v);
            }
            float *y = a->y + r * a->ld_y + i;
            vf_store_n(y, a->add ? vf_add(vf_load_n(y, n), sum) : sum, n);
        }
    }
}

#endif
