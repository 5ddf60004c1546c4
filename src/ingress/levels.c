/* Service levels: what was seen beside what was promised. */
#include "ingress/call.h"

void levels_init(struct ingress *in)
{
    static const struct metric_spec first = {
        "mpiserve_slo_ttft",
        "Requests by whether their first token came within --slo-ttft-ms.",
        METRIC_COUNTER,
        {"deployment", "result"},
        NULL,
        0};
    static const struct metric_spec token = {"mpiserve_slo_itl",
                                             "Answers of two and more tokens by whether the mean time a "
                                             "token after the first was within --slo-itl-ms.",
                                             METRIC_COUNTER,
                                             {"deployment", "result"},
                                             NULL,
                                             0};
    static const struct metric_spec refused = {
        "mpiserve_admission_refused",
        "Requests refused with 429, since their first token would have come later than --slo-ttft-ms.",
        METRIC_COUNTER,
        {"deployment"},
        NULL,
        0};
    const char *labels[METRIC_MAX_LABELS] = {in->model_name};
    const struct config *c = in->spec.config;
    struct ingress_series *s = &in->series;
    const struct {
        const struct metric_spec *spec;
        struct series **to;
        bool set;
    } levels[] = {{&first, s->first_level, c->slo_ttft_ms > 0}, {&token, s->token_level, c->slo_itl_ms > 0}};
    s->too_late = metric_series(metrics_add(in->metrics, &refused), labels);
    for (size_t i = 0; i < COUNT_OF(levels); i++) {
        if (!levels[i].set) continue;
        struct metric *m = metrics_add(in->metrics, levels[i].spec);
        for (int missed = 0; missed < 2; missed++) {
            labels[1] = missed ? "missed" : "met";
            levels[i].to[missed] = metric_series(m, labels);
        }
    }
}

static void judge(struct series *const *level, double seconds, i64 allowed_ms)
{
    if (level[0]) series_add(level[seconds * 1e3 > (double)allowed_ms], 1);
}

void levels_first_token(struct ingress *in, double seconds)
{
    series_observe(in->series.first_token, seconds);
    judge(in->series.first_level, seconds, in->spec.config->slo_ttft_ms);
}

void levels_per_token(struct ingress *in, double seconds)
{
    series_observe(in->series.per_token, seconds);
    judge(in->series.token_level, seconds, in->spec.config->slo_itl_ms);
}
