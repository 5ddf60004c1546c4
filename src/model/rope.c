/* The rotary embedding's numbers, in the older spelling (rope_theta, rope_scaling) and the newer
 * (rope_parameters). */
#include "model/config.h"
#include <math.h>
#include <string.h>

static const struct kind {
    const char *name;
    enum rope_kind kind, fused_kind; /* fused_kind: what phi3 means by the name */
} KINDS[] = {
    {"default", ROPE_DEFAULT, ROPE_DEFAULT}, {"linear", ROPE_LINEAR, ROPE_LINEAR},
    {"dynamic", ROPE_DYNAMIC, ROPE_DYNAMIC}, {"llama3", ROPE_LLAMA3, ROPE_LLAMA3},
    {"yarn", ROPE_YARN, ROPE_LONGROPE},      {"longrope", ROPE_LONGROPE, ROPE_LONGROPE},
    {"su", ROPE_LONGROPE, ROPE_LONGROPE},
};

static const char KNOWN[] = " rope_theta rope_type type factor low_freq_factor high_freq_factor "
                            "original_max_position_embeddings partial_rotary_factor beta_fast beta_slow "
                            "truncate attention_factor mscale mscale_all_dim short_factor long_factor ";

/* What reading one dictionary needs. */
struct source {
    struct fields *f; /* config.json */
    struct fields d;  /* the dictionary, which may be empty */
    const char *name;
    struct model_config *c;
};

static int check_known(struct fields *d, const char *dict)
{
    char name[SHOWN_LEN];
    for (void *it = json_first(d->object); it; it = json_next(d->object, it))
        if (json_kind(json_value(it)) != JK_NULL && !word_listed(json_key(it), KNOWN))
            return fields_fail(d, ERR_UNSUPPORTED,
                               "\"%s\" in \"%s\" is not understood and may change the results",
                               shown(json_key(it), name), dict);
    return 0;
}

static int find_kind(struct source *s, enum rope_kind *out)
{
    char name[SHOWN_LEN];
    const char *type = fields_text(&s->d, "rope_type", NULL);
    if (!type) type = fields_text(&s->d, "type", "default");
    for (size_t i = 0; i < COUNT_OF(KINDS); i++)
        if (!strcmp(type, KINDS[i].name)) {
            *out = s->c->arch->fused ? KINDS[i].fused_kind : KINDS[i].kind;
            return s->d.rc;
        }
    return fields_fail(
        &s->d, ERR_UNSUPPORTED,
        "rope type \"%s\" in \"%s\" is not offered; offered: default, linear, dynamic, llama3, "
        "yarn, longrope",
        shown(type, name), s->name);
}

static void read_original(struct source *s, struct rope_config *r)
{
    const char *key = "original_max_position_embeddings";
    struct fields *where = fields_has(s->f, key) ? s->f : &s->d;
    i64 otherwise = s->c->arch->fused ? 4096 : s->c->max_position;
    r->original_max_position = (u32)fields_int(where, key, 1, 1 << 24, otherwise);
}

static void read_llama3(struct source *s, struct rope_config *r)
{
    r->low_freq_factor = fields_need_real(&s->d, "low_freq_factor", 1e-6, 1e6);
    r->high_freq_factor = fields_need_real(&s->d, "high_freq_factor", 1e-6, 1e6);
    if (r->high_freq_factor <= r->low_freq_factor)
        fields_fail(&s->d, ERR_INPUT, "\"high_freq_factor\" (%g) must be above \"low_freq_factor\" (%g)",
                    r->high_freq_factor, r->low_freq_factor);
}

static double yarn_scale(double factor, double x)
{
    return factor <= 1 ? 1 : 0.1 * x * log(factor) + 1;
}

static void read_yarn(struct source *s, struct rope_config *r)
{
    struct fields *d = &s->d;
    r->beta_fast = fields_real(d, "beta_fast", 1e-6, 1e6, 32);
    r->beta_slow = fields_real(d, "beta_slow", 1e-6, 1e6, 1);
    r->truncate = fields_bool(d, "truncate", true);
    double mscale = fields_real(d, "mscale", 0, 100, 0), all = fields_real(d, "mscale_all_dim", 0, 100, 0);
    double usual = mscale > 0 && all > 0 ? yarn_scale(r->factor, mscale) / yarn_scale(r->factor, all)
                                         : yarn_scale(r->factor, 1);
    r->attention = fields_real(d, "attention_factor", 1e-6, 1e6, usual);
}

static void read_list(struct fields *d, const char *key, float *out, u32 n)
{
    const struct json *list = json_get(d->object, key);
    if (json_kind(list) != JK_ARRAY || json_len(list) != n) {
        fields_fail(d, ERR_INPUT, "\"%s\" must be a list of %u numbers", key, n);
        return;
    }
    for (u32 i = 0; i < n; i++) {
        double x = json_real(json_item(list, i), NAN);
        if (!(x >= 1e-6 && x <= 1e6))
            fields_fail(d, ERR_INPUT, "\"%s\" item %u must be a number from 1e-06 to 1e+06", key, i);
        out[i] = (float)x;
    }
}

static void read_longrope(struct source *s, struct rope_config *r)
{
    read_list(&s->d, "short_factor", r->short_factor, r->dims / 2);
    read_list(&s->d, "long_factor", r->long_factor, r->dims / 2);
    double usual = r->factor <= 1 ? 1 : sqrt(1 + log(r->factor) / log(r->original_max_position));
    r->attention = fields_real(&s->d, "attention_factor", 1e-6, 1e6, usual);
    if (r->original_max_position < 2)
        fields_fail(&s->d, ERR_INPUT, "\"original_max_position_embeddings\" must be above 1");
}

static void read_factor(struct source *s, struct rope_config *r)
{
    bool derived = r->kind == ROPE_YARN || r->kind == ROPE_LONGROPE;
    double usual = (double)s->c->max_position / r->original_max_position;
    r->factor = derived ? fields_real(&s->d, "factor", 1e-3, 1e6, usual)
                        : fields_need_real(&s->d, "factor", 1e-3, 1e6);
}

static void read_dims(struct source *s, struct rope_config *r)
{
    const struct model_config *c = s->c;
    struct fields *where = fields_has(&s->d, "partial_rotary_factor") ? &s->d : s->f;
    double part = fields_real(where, "partial_rotary_factor", c->arch->fused ? 1e-3 : 1, 1, 1);
    r->dims = c->mla.rope ? c->mla.rope : (u32)(c->head_dim * part);
    r->interleaved = c->arch->mla && fields_bool(s->f, "rope_interleave", true);
    if (r->dims < 2 || r->dims % 2)
        fields_fail(s->f, ERR_UNSUPPORTED,
                    "%u of %u numbers of a head would be rotated; it must be an even number", r->dims,
                    c->head_dim);
}

/* The dictionary's part; theta is set. */
static int scaling(struct source *s, struct rope_config *r)
{
    /* the kind comes first: an unknown one explains the unknown keys beside it */
    if (find_kind(s, &r->kind) || check_known(&s->d, s->name)) return s->d.rc;
    read_dims(s, r);
    read_original(s, r);
    if (r->kind == ROPE_DEFAULT) return s->d.rc;
    read_factor(s, r);
    if (r->kind == ROPE_LLAMA3) read_llama3(s, r);
    if (r->kind == ROPE_YARN) read_yarn(s, r);
    if (r->kind == ROPE_LONGROPE) read_longrope(s, r);
    double all = fields_real(&s->d, "mscale_all_dim", 0, 100, 0);
    if (s->c->arch->mla && all > 0) {
        double m = yarn_scale(r->factor, all);
        s->c->score_scale *= (float)(m * m);
    }
    return s->d.rc;
}

static int read_dict(struct fields *f, const struct json *dict, const char *name, double theta,
                     struct model_config *c, struct rope_config *r)
{
    struct source s = {f, {.path = f->path, .object = dict, .err = f->err, .rc = f->rc}, name, c};
    *r = (struct rope_config){.factor = 1, .low_freq_factor = 1, .high_freq_factor = 1, .attention = 1};
    r->theta = theta;
    if (dict && json_kind(dict) != JK_OBJECT)
        return fields_fail(f, ERR_INPUT, "\"%s\" is %s; it must be an object or null", name,
                           json_kind_name(json_kind(dict)));
    r->theta = fields_real(&s.d, "rope_theta", 1, 1e12, theta);
    scaling(&s, r);
    if (r->theta <= 1) fields_fail(&s.d, ERR_INPUT, "\"rope_theta\" (%g) must be above 1", r->theta);
    if (!f->rc) f->rc = s.d.rc;
    return f->rc;
}

/* Windowed layers have their own numbers (gemma3): rope_parameters by layer type, or rope_local_base_freq, never scaled. */
static void read_two(struct fields *f, const struct json *dict, const char *name, double theta,
                     struct model_config *out)
{
    const struct json *full = json_get(dict, "full_attention"), *local = json_get(dict, "sliding_attention");
    double base = fields_real(f, "rope_local_base_freq", 1, 1e12, 10000);
    if ((full || local) && (!full || !local || json_len(dict) != 2)) {
        fields_fail(f, ERR_INPUT, "\"%s\" must have \"full_attention\" and \"sliding_attention\" only", name);
        return;
    }
    read_dict(f, full ? full : dict, full ? "full_attention" : name, theta, out, &out->rope);
    if (!f->rc) read_dict(f, local, "sliding_attention", base, out, &out->rope_local);
    if (out->rope_local.kind == ROPE_DYNAMIC || out->rope_local.kind == ROPE_LONGROPE)
        fields_fail(f, ERR_UNSUPPORTED,
                    "\"sliding_attention\": a rotation by length is not offered for windowed layers");
}

/* gpt_oss without any scaling means the model's own. */
static void usual_scaling(struct fields *f, struct model_config *out)
{
    struct rope_config *r = &out->rope;
    if (!out->arch->sinks || fields_has(f, "rope_parameters") || fields_has(f, "rope_scaling")) return;
    r->kind = ROPE_YARN;
    r->factor = 32;
    r->beta_fast = 32;
    r->beta_slow = 1;
    r->original_max_position = 4096;
    r->attention = yarn_scale(r->factor, 1);
}

int config_rope(struct fields *f, struct model_config *out)
{
    bool newer = fields_has(f, "rope_parameters"), older = fields_has(f, "rope_scaling");
    const char *name = newer ? "rope_parameters" : "rope_scaling";
    double usual = out->arch->theta_default > 0 ? out->arch->theta_default : 10000;
    double theta = fields_real(f, "rope_theta", 1, 1e12, usual);
    if (newer && older)
        return fields_fail(f, ERR_INPUT, "both \"rope_parameters\" and \"rope_scaling\" are given; keep one");
    const struct json *dict = newer || older ? json_get(f->object, name) : NULL;
    if (out->arch->two_ropes)
        read_two(f, dict, name, theta, out);
    else if (!read_dict(f, dict, name, theta, out, &out->rope))
        usual_scaling(f, out);
    if (f->rc || out->rope.kind != ROPE_DYNAMIC) return f->rc;
    out->rope.original_max_position = out->max_position; /* the length before scaling */
    out->max_position = (u32)MIN_OF(out->max_position * out->rope.factor, 16777216.0);
    return 0;
}
