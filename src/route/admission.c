/* When would the first token come? The formula and what keeps it from refusing for ever are in the door. */
#include "mpiserve/route.h"
#include <math.h>

enum { SERVICE_WINDOW = 64, SERVICE_FEW = 3, PREFILL_WINDOW_STEPS = 32 };

static double seconds_since(u64 then_ns, u64 now_ns)
{
    return now_ns > then_ns ? (double)(now_ns - then_ns) * 1e-9 : 0;
}

static void add(struct admission_rate *r, double n, double seconds, double window)
{
    double keep = window / (window + n);
    r->n = r->n * keep + n;
    r->seconds = r->seconds * keep + seconds;
}

void admission_init(struct admission *a, u32 step_tokens)
{
    *a = (struct admission){.step_tokens = MAX_OF(step_tokens, 1u)};
}

static bool forgotten(const struct admission *a, u64 now_ns)
{
    return !a->full && seconds_since(a->service_ns, now_ns) > ADMISSION_FORGET_S;
}

void admission_observe_slots(struct admission *a, u64 now_ns, double freed, bool full)
{
    if (forgotten(a, now_ns)) a->service = (struct admission_rate){0};
    if (a->full) a->waited_s += seconds_since(a->service_ns, now_ns);
    if (a->full && freed > 0) add(&a->service, freed, a->waited_s, SERVICE_WINDOW);
    /* What passed while all were in use and ends without one coming free says nothing: it was not the requests' time. */
    if (freed > 0 || !full) a->waited_s = 0;
    a->full = full;
    a->service_ns = MAX_OF(now_ns, a->service_ns);
}

void admission_observe_prefill(struct admission *a, u64 now_ns, u64 unread, u64 read, double seconds)
{
    if (unread <= a->step_tokens || !(seconds >= 0)) return;
    add(&a->prefill, (double)read, seconds, (double)a->step_tokens * PREFILL_WINDOW_STEPS);
    a->prefill_ns = MAX_OF(now_ns, a->prefill_ns);
}

/* Of a token of a prompt, in one replica; 0: not known. */
static double seconds_a_token(const struct admission *a)
{
    return a->prefill.n >= a->step_tokens ? a->prefill.seconds / a->prefill.n : 0;
}

void admission_observe_first(struct admission *a, u64 now_ns, u64 tokens, double seconds)
{
    double base = seconds - (double)tokens * seconds_a_token(a);
    if (!(base > 0)) base = 0; /* a NaN too */
    base = MIN_OF(base, ADMISSION_MAX_MS / 1e3);
    double by = base - a->base_s;
    a->base_s = a->has_base ? a->base_s + by * (by < 0 ? 0.5 : 0.125) : base;
    a->has_base = true;
    a->base_ns = MAX_OF(now_ns, a->base_ns);
}

static double fade(u64 then_ns, u64 now_ns, double half_life_s)
{
    return exp2(-seconds_since(then_ns, now_ns) / half_life_s);
}

static double seconds_a_slot(const struct admission *a, u64 now_ns)
{
    if (a->service.n <= SERVICE_FEW || forgotten(a, now_ns)) return 0;
    double mean = a->service.seconds / a->service.n;
    double late = a->full ? a->waited_s + seconds_since(a->service_ns, now_ns) - mean : 0;
    return mean + MAX_OF(late, 0.0) / a->service.n;
}

struct terms {
    double base_s, own_s, slots_s, read_s;
    bool known;
};

static struct terms terms_of(const struct admission *a, const struct admission_load *load, u64 now_ns)
{
    double places = MAX_OF((double)load->others + 1 - load->slots, 0.0);
    double unread = (double)load->unread / MAX_OF(load->replicas, 1u);
    double token_s = seconds_a_token(a), slot_s = seconds_a_slot(a, now_ns);
    bool much = load->own > a->step_tokens || unread > a->step_tokens;
    struct terms t = {.known = load->replicas > 0 && a->has_base && (places == 0 || slot_s > 0) &&
                               (!much || token_s > 0)};
    token_s *= fade(a->prefill_ns, now_ns, ADMISSION_PREFILL_HALF_LIFE_S);
    t.base_s = a->base_s * fade(a->base_ns, now_ns, ADMISSION_BASE_HALF_LIFE_S);
    t.own_s = load->own * token_s;
    t.slots_s = places * slot_s;
    t.read_s = unread * token_s;
    return t;
}

static double sum_s(const struct terms *t)
{
    return t->base_s + t->own_s + MAX_OF(t->slots_s, t->read_s);
}

double admission_expect_s(const struct admission *a, const struct admission_load *load, u64 now_ns)
{
    struct terms t = terms_of(a, load, now_ns);
    return t.known ? sum_s(&t) : -1;
}

void admission_observe_outcome(struct admission *a, double expected_s, double seconds)
{
    const double most = ADMISSION_MAX_MS / 1e3, gain = 1. / 16;
    if (!(expected_s >= 0 && expected_s <= most && seconds >= 0)) return;
    double error = MIN_OF(seconds, most) - expected_s;
    if (!a->has_error) {
        a->error_s = error;
        a->spread_s = fabs(error) / 2;
        a->has_error = true;
        return;
    }
    double off = error - a->error_s;
    a->error_s += gain * off;
    a->spread_s += gain * (fabs(off) - a->spread_s);
}

double admission_predict_ms(const struct admission *a, const struct admission_load *load, u64 now_ns)
{
    if (load->replicas == 0) return 0;
    struct terms t = terms_of(a, load, now_ns);
    double margin_s = MAX_OF(a->error_s + 2 * a->spread_s, 0.0);
    margin_s *= fade(a->base_ns, now_ns, ADMISSION_BASE_HALF_LIFE_S);
    return MIN_OF(1e3 * (sum_s(&t) + margin_s), ADMISSION_MAX_MS);
}

bool admission_allows(const struct admission *a, const struct admission_load *load, double allowed_ms,
                      u64 now_ns, double *predicted_ms)
{
    *predicted_ms = admission_predict_ms(a, load, now_ns);
    return load->others == 0 || *predicted_ms <= allowed_ms;
}
