/* What all ranks must have alike, option by option, so that an error can name the one that differs. */
#include "config/options.h"

#include <stdio.h>
#include <string.h>

bool config_shared(const struct config *c, u32 i, struct config_value *out)
{
    for (size_t k = 0; k < option_count; k++) {
        const struct option *o = &option_table[k];
        if (o->flags & OPTION_LOCAL || i--) continue;
        snprintf(out->name, sizeof(out->name), "--%s", o->name);
        value_print(c, o, out->text, sizeof(out->text));
        return true;
    }
    return false;
}

u64 config_fingerprint(const struct config *c)
{
    u64 hash = hash_bytes(MPISERVE_VERSION, strlen(MPISERVE_VERSION), 0);
    struct config_value v;
    for (u32 i = 0; config_shared(c, i, &v); i++) hash = hash_bytes(v.text, strlen(v.text), hash + i);
    return hash;
}
