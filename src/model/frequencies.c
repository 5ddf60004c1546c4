/* From the rotary embedding's configuration to angles a position. */
#include "mpiserve/model.h"
#include <math.h>

static double llama3(const struct rope_config *r, double f)
{
    double wave = 2 * M_PI / f, lo = r->low_freq_factor, hi = r->high_freq_factor;
    double g = (r->original_max_position / wave - lo) / (hi - lo);
    g = g < 0 ? 0 : g > 1 ? 1 : g; /* slow ones are divided, fast ones kept, between them a blend */
    return (1 - g) * f / r->factor + g * f;
}

/* Which pair turns so often within the original length. */
static double yarn_pair(const struct rope_config *r, double turns)
{
    return r->dims * log(r->original_max_position / (2 * M_PI * turns)) / (2 * log(r->theta));
}

static double yarn(const struct rope_config *r, u32 m, double f)
{
    double low = yarn_pair(r, r->beta_fast), high = yarn_pair(r, r->beta_slow);
    if (r->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, r->dims - 1);
    if (!(high > low) && !(high < low)) high += 0.001;
    double ramp = fmin(fmax((m - low) / (high - low), 0), 1);
    return f / r->factor * ramp + f * (1 - ramp);
}

/* Beyond the original length the base grows with the length. */
static double base(const struct rope_config *r, u32 length)
{
    double n = length, p = r->original_max_position;
    if (r->kind != ROPE_DYNAMIC || n <= p || r->dims < 4) return r->theta;
    return r->theta * pow(r->factor * n / p - (r->factor - 1), r->dims / (r->dims - 2.0));
}

void rope_frequencies(const struct rope_config *r, u32 length, float *inv)
{
    double theta = base(r, length);
    for (u32 m = 0; m < r->dims / 2; m++) {
        double f = pow(theta, -2.0 * m / r->dims);
        if (r->kind == ROPE_LINEAR) f /= r->factor;
        if (r->kind == ROPE_LLAMA3) f = llama3(r, f);
        if (r->kind == ROPE_YARN) f = yarn(r, m, f);
        if (r->kind == ROPE_LONGROPE)
            f /= length > r->original_max_position ? (double)r->long_factor[m] : (double)r->short_factor[m];
        inv[m] = (float)f;
    }
}

u32 rope_class(const struct rope_config *r, u32 prompt_len)
{
    bool longer = prompt_len > r->original_max_position;
    if (r->kind == ROPE_DYNAMIC) return longer ? prompt_len : 0;
    return r->kind == ROPE_LONGROPE && longer;
}
