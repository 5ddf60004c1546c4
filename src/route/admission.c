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

void admission_observe_slots(struct admission *a, u64 now_ns, u32 freed, bool full)
{
    if (forgotten(a, now_ns)) a->service = (struct admission_rate){0};
    if (a->full) a->waited_s += seconds_since(a->service_ns, now_ns);
    if (a->full && freed) add(&a->service, freed, a->waited_s, SERVICE_WINDOW);
    /* What passed while all were in use and ends without one coming free says nothing: it was not the requests' time. */
    if (freed || !full) a->waited_s = 0;
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

double admission_predict_ms(const struct admission *a, const struct admission_load *load, u64 now_ns)
{
    if (load->replicas == 0) return 0;
    double token_s = seconds_a_token(a) * fade(a->prefill_ns, now_ns, ADMISSION_PREFILL_HALF_LIFE_S);
    double base_s = a->base_s * fade(a->base_ns, now_ns, ADMISSION_BASE_HALF_LIFE_S);
    double places = (double)load->others + 1 - load->slots;
    double slot_s = MAX_OF(places, 0.0) * seconds_a_slot(a, now_ns);
    double read_s = (double)load->unread / load->replicas * token_s;
    double ms = 1e3 * (base_s + load->own * token_s + MAX_OF(slot_s, read_s));
    return MIN_OF(ms, ADMISSION_MAX_MS);
}

bool admission_allows(const struct admission *a, const struct admission_load *load, double allowed_ms,
                      u64 now_ns, double *predicted_ms)
{
    *predicted_ms = admission_predict_ms(a, load, now_ns);
    return load->others == 0 || *predicted_ms <= allowed_ms;
}
