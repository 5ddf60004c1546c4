/* Families and series. A series is made under the family's lock, published with one store, and never moves. */
#include "mpiserve/metrics.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct series {
    struct series *next;
    const struct metric_spec *spec;
    const char *values[METRIC_MAX_LABELS];
    _Atomic u64 number;    /* the bits of a double: value, or sum of a histogram */
    _Atomic u64 buckets[]; /* n_buckets + 1, not cumulative */
};
struct metric {
    struct metric *next;
    struct metric_spec spec;
    u32 n_labels;
    pthread_mutex_t lock;
    struct series *_Atomic first;
};
struct metrics {
    struct metric *first, **end;
};

struct metrics *metrics_new(void)
{
    struct metrics *m = mem_zero(1, sizeof(*m));
    m->end = &m->first;
    return m;
}

void metrics_free(struct metrics *m)
{
    if (!m) return;
    for (struct metric *f = m->first, *next; f; f = next) {
        next = f->next;
        for (struct series *s = atomic_load(&f->first), *after; s; s = after) {
            after = s->next;
            for (u32 i = 0; i < f->n_labels; i++) free((char *)s->values[i]);
            free(s);
        }
        pthread_mutex_destroy(&f->lock);
        free(f);
    }
    free(m);
}

struct metric *metrics_add(struct metrics *m, const struct metric_spec *spec)
{
    BUG_ON(spec->n_buckets > METRIC_MAX_BUCKETS || (spec->kind == METRIC_HISTOGRAM) != (spec->n_buckets > 0));
    struct metric *f = mem_zero(1, sizeof(*f));
    f->spec = *spec;
    while (f->n_labels < METRIC_MAX_LABELS && spec->labels[f->n_labels]) f->n_labels++;
    pthread_mutex_init(&f->lock, NULL);
    *m->end = f;
    m->end = &f->next;
    return f;
}

static struct series *find(const struct metric *f, struct series *from, const char *const *values)
{
    for (struct series *s = from; s; s = s->next) {
        u32 same = 0;
        while (same < f->n_labels && strcmp(s->values[same], values[same]) == 0) same++;
        if (same == f->n_labels) return s;
    }
    return NULL;
}

struct series *metric_series(struct metric *f, const char *const *values)
{
    struct series *s = find(f, atomic_load_explicit(&f->first, memory_order_acquire), values);
    if (s) return s;
    pthread_mutex_lock(&f->lock);
    struct series *head = atomic_load_explicit(&f->first, memory_order_relaxed);
    s = find(f, head, values);
    if (!s) {
        s = mem_zero(1, sizeof(*s) + (f->spec.n_buckets + 1) * sizeof(s->buckets[0]));
        s->spec = &f->spec;
        for (u32 i = 0; i < f->n_labels; i++) s->values[i] = mem_text(values[i]);
        s->next = head;
        atomic_store_explicit(&f->first, s, memory_order_release);
    }
    pthread_mutex_unlock(&f->lock);
    return s;
}

static double number_of(u64 bits)
{
    double v;
    memcpy(&v, &bits, sizeof(v));
    return v;
}

static u64 bits_of(double v)
{
    u64 bits;
    memcpy(&bits, &v, sizeof(bits));
    return bits;
}

void series_add(struct series *s, double by)
{
    u64 old = atomic_load_explicit(&s->number, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&s->number, &old, bits_of(number_of(old) + by),
                                                  memory_order_relaxed, memory_order_relaxed)) {}
}

void series_set(struct series *s, double value)
{
    atomic_store_explicit(&s->number, bits_of(value), memory_order_relaxed);
}

void series_observe(struct series *s, double value)
{
    const struct metric_spec *spec = s->spec;
    u32 i = 0;
    while (i < spec->n_buckets && value > spec->buckets[i]) i++;
    atomic_fetch_add_explicit(&s->buckets[i], 1, memory_order_relaxed);
    series_add(s, value);
}

double series_value(const struct series *s)
{
    return number_of(atomic_load_explicit(&s->number, memory_order_relaxed));
}

u64 series_count(const struct series *s)
{
    u64 count = 0;
    for (u32 i = 0; s->spec->n_buckets && i <= s->spec->n_buckets; i++)
        count += atomic_load_explicit(&s->buckets[i], memory_order_relaxed);
    return count;
}

/* ---- the page ---------------------------------------------------------------------------------------------- */
static void add_escaped(struct buf *to, const char *s, bool quotes)
{
    for (; *s; s++) {
        if (*s == '\\')
            buf_text(to, "\\\\");
        else if (*s == '\n')
            buf_text(to, "\\n");
        else if (*s == '"' && quotes)
            buf_text(to, "\\\"");
        else
            buf_char(to, *s);
    }
}

static void add_number(struct buf *to, double v)
{
    char text[40];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, v);
        if (strtod(text, NULL) == v) break;
    }
    buf_text(to, text);
}

/* name{labels,le="bound"} without the value; le NULL: none. */
static void add_name(struct buf *to, const struct metric *f, const struct series *s, const char *suffix,
                     const double *le)
{
    buf_text(to, f->spec.name);
    buf_text(to, suffix);
    if (!f->n_labels && !le) return;
    buf_char(to, '{');
    for (u32 i = 0; i < f->n_labels; i++) {
        if (i) buf_char(to, ',');
        buf_printf(to, "%s=\"", f->spec.labels[i]);
        add_escaped(to, s->values[i], true);
        buf_char(to, '"');
    }
    if (le) {
        buf_printf(to, "%sle=\"", f->n_labels ? "," : "");
        if (*le > 1e300)
            buf_text(to, "+Inf");
        else
            add_number(to, *le);
        buf_char(to, '"');
    }
    buf_char(to, '}');
}

static void add_histogram(struct buf *to, const struct metric *f, const struct series *s)
{
    const double infinity = 1e308;
    u64 count = 0;
    for (u32 i = 0; i <= f->spec.n_buckets; i++) {
        count += atomic_load_explicit(&s->buckets[i], memory_order_relaxed);
        add_name(to, f, s, "_bucket", i < f->spec.n_buckets ? &f->spec.buckets[i] : &infinity);
        buf_printf(to, " %llu\n", (unsigned long long)count);
    }
    add_name(to, f, s, "_sum", NULL);
    buf_char(to, ' ');
    add_number(to, series_value(s));
    buf_char(to, '\n');
    add_name(to, f, s, "_count", NULL);
    buf_printf(to, " %llu\n", (unsigned long long)count);
}

void metrics_text(const struct metrics *m, struct buf *to)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    for (const struct metric *f = m->first; f; f = f->next) {
        const struct series *s = atomic_load_explicit(&f->first, memory_order_acquire);
        const char *suffix = f->spec.kind == METRIC_COUNTER ? "_total" : "";
        if (!s) continue;
        buf_printf(to, "# HELP %s%s ", f->spec.name, suffix);
        add_escaped(to, f->spec.help, false);
        buf_printf(to, "\n# TYPE %s%s %s\n", f->spec.name, suffix, kinds[f->spec.kind]);
        for (; s; s = s->next) {
            if (f->spec.kind == METRIC_HISTOGRAM) {
                add_histogram(to, f, s);
                continue;
            }
            add_name(to, f, s, suffix, NULL);
            buf_char(to, ' ');
            add_number(to, series_value(s));
            buf_char(to, '\n');
        }
    }
}
