/* Which layers see a window of tokens only. */
#include "model/config.h"
#include <string.h>

/* The numbers that the rules ask for. */
struct rule {
    i64 first, pattern; /* max_window_layers, sliding_window_pattern */
};

static bool windowed(enum window_rule rule, u32 layer, const struct rule *n)
{
    switch (rule) {
    case WINDOW_NEVER: return false;
    case WINDOW_ALL:
    case WINDOW_ASKED_ALL: return true;
    case WINDOW_ASKED_FROM: return layer >= n->first;
    case WINDOW_ASKED_EVEN: return layer % 2 == 0 && layer < n->first;
    case WINDOW_EVEN: return layer % 2 == 0;
    case WINDOW_PATTERN: return (layer + 1) % n->pattern != 0;
    }
    return false;
}

static bool asked(enum window_rule rule)
{
    return rule == WINDOW_ASKED_FROM || rule == WINDOW_ASKED_EVEN || rule == WINDOW_ASKED_ALL;
}

/* "layer_types" item i. */
static bool slides(struct fields *f, const struct arch *a, const struct json *types, u32 i)
{
    const char *type = json_text(json_item(types, i));
    bool yes = type && !strcmp(type, "sliding_attention");
    if (!yes && (!type || strcmp(type, "full_attention")))
        fields_fail(f, ERR_UNSUPPORTED,
                    "\"layer_types\" item %u must be \"full_attention\" or \"sliding_attention\"", i);
    if (yes && a->windows == WINDOW_NEVER)
        fields_fail(f, ERR_UNSUPPORTED, "\"layer_types\": a window is not known of a %s model",
                    a->model_type);
    return yes;
}

int config_windows(struct fields *f, struct model_config *out)
{
    const struct arch *a = out->arch;
    bool listed = json_get(f->object, "sliding_window") != NULL; /* null says "none" */
    i64 window = fields_int(f, "sliding_window", 0, INT32_MAX, listed ? 0 : a->window_default);
    bool use = fields_bool(f, "use_sliding_window", false);
    const char *pattern = fields_has(f, "sliding_window_pattern") ? "sliding_window_pattern" /* older */
                                                                  : "_sliding_window_pattern";
    const struct rule n = {fields_int(f, "max_window_layers", 0, MAX_WIDTH, 28),
                           fields_int(f, pattern, 1, MODEL_MAX_LAYERS, 6)};
    if (a->windows == WINDOW_NEVER && window)
        return fields_fail(f, ERR_UNSUPPORTED, "\"sliding_window\" is not known of a %s model",
                           a->model_type);
    if (asked(a->windows) && !use) window = 0;
    const struct json *types = fields_has(f, "layer_types") ? json_get(f->object, "layer_types") : NULL;
    if (types && (json_kind(types) != JK_ARRAY || json_len(types) != out->layers))
        return fields_fail(f, ERR_INPUT, "\"layer_types\" must be a list of %u strings, one a layer",
                           out->layers);
    for (u32 i = 0; i < out->layers; i++)
        out->window[i] = (types ? slides(f, a, types, i) : windowed(a->windows, i, &n)) ? (u32)window : 0;
    return f->rc;
}
