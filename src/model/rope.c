/* The rotary embedding's numbers, in the older spelling (rope_theta, rope_scaling) and the newer
 * (rope_parameters). */
#include "model/config.h"
#include <string.h>

static const struct kind {
    const char *name;
    enum rope_kind kind;
} KINDS[] = {{"default", ROPE_DEFAULT}, {"linear", ROPE_LINEAR}, {"llama3", ROPE_LLAMA3}};

static const char *const KNOWN[] = {
    "rope_theta",
    "rope_type",
    "type",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
};

static int check_known(struct fields *d, const char *dict)
{
    char name[SHOWN_LEN];
    for (void *it = json_first(d->object); it; it = json_next(d->object, it)) {
        bool known = json_kind(json_value(it)) == JK_NULL;
        for (size_t i = 0; i < COUNT_OF(KNOWN) && !known; i++) known = !strcmp(json_key(it), KNOWN[i]);
        if (!known)
            return fields_fail(d, ERR_UNSUPPORTED,
                               "\"%s\" in \"%s\" is not understood and may change the results",
                               shown(json_key(it), name), dict);
    }
    return 0;
}

static int find_kind(struct fields *d, const char *dict, enum rope_kind *out)
{
    char name[SHOWN_LEN];
    const char *type = fields_text(d, "rope_type", NULL);
    if (!type) type = fields_text(d, "type", "default");
    for (size_t i = 0; i < COUNT_OF(KINDS); i++)
        if (!strcmp(type, KINDS[i].name)) {
            *out = KINDS[i].kind;
            return d->rc;
        }
    return fields_fail(d, ERR_UNSUPPORTED,
                       "rope type \"%s\" in \"%s\" is not offered; offered: default, linear, llama3",
                       shown(type, name), dict);
}

static int scaling(struct fields *f, struct fields *d, const char *dict, struct model_config *out)
{
    /* the kind comes first: an unknown one explains the unknown keys beside it */
    if (find_kind(d, dict, &out->rope.kind) || check_known(d, dict)) return d->rc;
    fields_real(d, "partial_rotary_factor", 1, 1, 1);
    if (out->rope.kind == ROPE_DEFAULT) return d->rc;
    out->rope.factor = fields_need_real(d, "factor", 1e-3, 1e6);
    if (out->rope.kind != ROPE_LLAMA3) return d->rc;
    out->rope.low_freq_factor = fields_need_real(d, "low_freq_factor", 1e-6, 1e6);
    out->rope.high_freq_factor = fields_need_real(d, "high_freq_factor", 1e-6, 1e6);
    if (out->rope.high_freq_factor <= out->rope.low_freq_factor)
        fields_fail(d, ERR_INPUT, "\"high_freq_factor\" (%g) must be above \"low_freq_factor\" (%g)",
                    out->rope.high_freq_factor, out->rope.low_freq_factor);
    const char *key = "original_max_position_embeddings";
    struct fields *where = fields_has(f, key) ? f : d;
    out->rope.original_max_position = (u32)fields_int(where, key, 1, 1 << 24, out->max_position);
    return d->rc;
}

int config_rope(struct fields *f, struct model_config *out)
{
    bool newer = fields_has(f, "rope_parameters"), older = fields_has(f, "rope_scaling");
    const char *dict = newer ? "rope_parameters" : "rope_scaling";
    out->rope.kind = ROPE_DEFAULT;
    out->rope.factor = 1;
    out->rope.low_freq_factor = out->rope.high_freq_factor = 1;
    out->rope.original_max_position = out->max_position;
    out->rope.theta = fields_real(f, "rope_theta", 1, 1e12, 10000);
    if (newer && older)
        return fields_fail(f, ERR_INPUT, "both \"rope_parameters\" and \"rope_scaling\" are given; keep one");
    if (!newer && !older) return f->rc;
    struct fields d = {.path = f->path, .object = json_get(f->object, dict), .err = f->err, .rc = f->rc};
    if (json_kind(d.object) != JK_OBJECT)
        return fields_fail(f, ERR_INPUT, "\"%s\" is %s; it must be an object or null", dict,
                           json_kind_name(json_kind(d.object)));
    out->rope.theta = fields_real(&d, "rope_theta", 1, 1e12, out->rope.theta);
    scaling(f, &d, dict, out);
    if (!f->rc) f->rc = d.rc;
    return f->rc;
}
