/* generation_config.json: end tokens and the sampling that the model suggests. Everything else in it is
 * ignored. */
#include "model/config.h"

enum { GENERATION_MAX_BYTES = 4 << 20 };

static float suggestion(struct fields *f, const char *key, double lo, double hi, bool *has)
{
    *has = fields_has(f, key);
    return (float)fields_real(f, key, lo, hi, lo);
}

static void read_sampling(struct fields *f, struct model_config *out)
{
    out->temperature = suggestion(f, "temperature", 0, 2, &out->has_temperature);
    out->top_p = suggestion(f, "top_p", 1e-6, 1, &out->has_top_p);
    out->repetition_penalty = suggestion(f, "repetition_penalty", 1e-6, 1e6, &out->has_repetition_penalty);
    out->has_top_k = fields_has(f, "top_k");
    i64 top_k = fields_int(f, "top_k", -1, INT32_MAX, 0);
    out->top_k = top_k < 0 ? 0 : (i32)top_k;
}

static i32 read_bos(struct fields *f, const struct model_config *out)
{
    i64 bos = fields_int(f, "bos_token_id", INT32_MIN, out->vocab - 1, -1);
    return bos < 0 ? -1 : (i32)bos;
}

int config_generation(const struct json *root, struct model_config *out, struct error *err)
{
    char config[PATH_LEN], path[PATH_LEN];
    if (path_join(config, sizeof config, err, "%s/config.json", out->dir) ||
        path_join(path, sizeof path, err, "%s/generation_config.json", out->dir))
        return ERR_INPUT;
    struct fields c = {.path = config, .object = root, .err = err};
    struct json *own = NULL;
    if (file_exists(path) && !(own = json_read_file(path, GENERATION_MAX_BYTES, err))) return ERR_INPUT;
    struct fields g = {.path = path, .object = own, .err = err};
    if (own && json_kind(own) != JK_OBJECT)
        fields_fail(&g, ERR_INPUT, "holds %s; it must be an object", json_kind_name(json_kind(own)));
    struct fields *eos = fields_has(&g, "eos_token_id") ? &g : &c;
    out->n_eos = fields_ids(eos, "eos_token_id", out->vocab, out->eos, MODEL_MAX_EOS);
    if (!g.rc && !c.rc) out->bos = read_bos(fields_has(&g, "bos_token_id") ? &g : &c, out);
    if (!g.rc && !c.rc) read_sampling(&g, out);
    json_drop(own);
    return c.rc ? c.rc : g.rc;
}
