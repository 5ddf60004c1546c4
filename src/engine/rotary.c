#include "engine/rotary.h"

#include <string.h>

void rotary_init(struct rotary *r, const struct rope_config *config, float *inv)
{
    *r = (struct rotary){.config = config, .inv = inv, .varies = rotary_varies(config)};
    if (!r->varies) rope_frequencies(config, 0, inv);
}

void rotary_row(struct rotary *r, u32 row, u32 pos, u32 prompt)
{
    u32 half = r->config->dims / 2, length = MAX_OF(prompt, pos + 1);
    float *inv = r->inv + (size_t)row * half;
    if (!r->varies) return;
    if (row && rope_class(r->config, length) == rope_class(r->config, r->last))
        memcpy(inv, inv - half, half * sizeof *inv);
    else
        rope_frequencies(r->config, length, inv);
    r->last = length;
}
