/* Rules between options, and the defaults that depend on the machine. */
#include "config/options.h"
#include "config/yaml.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool config_host_is_loopback(const char *host)
{
    return strcmp(host, "localhost") == 0 || strcmp(host, "::1") == 0 || strncmp(host, "127.", 4) == 0;
}

static const char *const source_names[] = {[FROM_DEFAULT] = "the default",
                                           [FROM_FILE] = "the job file",
                                           [FROM_ENVIRONMENT] = "the environment",
                                           [FROM_COMMAND_LINE] = "the command line"};

const char *config_where(const struct config *c, const char *name, char *out, size_t size)
{
    const struct option *o = option_find(name);
    BUG_ON(!o);
    const struct config_origin *from = &c->origin[o - option_table];
    char key[96];
    if (from->source == FROM_FILE)
        return yaml_where(c->config_file, from->line, from->column, underscores(o->name, key, sizeof(key)),
                          out, size);
    if (from->source == FROM_ENVIRONMENT) return name_of_environment(o, out, size);
    snprintf(out, size, "--%s", o->name);
    return out;
}

void config_blame(const struct config *c, struct error *err)
{
    char where[sizeof err->where];
    if (err && strncmp(err->where, "--", 2) == 0 && option_find(err->where + 2))
        snprintf(err->where, sizeof err->where, "%s", config_where(c, err->where + 2, where, sizeof where));
}

/* "--max-num-seqs 600 of the environment" */
static const char *other(const struct config *c, const char *name, i64 value, char *out, size_t size)
{
    const struct config_origin *from = &c->origin[option_find(name) - option_table];
    int len = snprintf(out, size, "--%s %lld (%s", name, (long long)value, source_names[from->source]);
    if (from->source == FROM_FILE)
        snprintf(out + len, size - (size_t)len, ", line %d)", from->line);
    else
        snprintf(out + len, size - (size_t)len, ")");
    return out;
}

int config_check(struct config *c, struct error *err)
{
    char where[256], second[160];
    if (c->max_num_batched_tokens < c->max_num_seqs)
        return error_set(err, ERR_INPUT, config_where(c, "max-num-batched-tokens", where, sizeof(where)),
                         "%lld is less than %s: a step holds a token of every running sequence",
                         (long long)c->max_num_batched_tokens,
                         other(c, "max-num-seqs", c->max_num_seqs, second, sizeof(second)));
    if (c->api_key_none && !config_host_is_loopback(c->host))
        return error_set(err, ERR_INPUT, config_where(c, "api-key", where, sizeof(where)),
                         "none is only possible on 127.0.0.1: %s can be reached from outside this machine",
                         c->host);
    if (strcmp(c->compute, "f16") == 0 && strcmp(c->engine, "cuda") != 0)
        return error_set(err, ERR_INPUT, config_where(c, "compute", where, sizeof(where)),
                         "f16 is for --engine cuda: CPUs compute in f32 or bf16 here");
    if (c->null_step_us && strcmp(c->engine, "null") != 0)
        return error_set(err, ERR_INPUT, config_where(c, "null-step-us", where, sizeof(where)),
                         "is only for --engine null: this engine takes as long as it takes");
    if (strcmp(c->router, "prefix_aware") == 0 && !c->enable_prefix_caching)
        return error_set(err, ERR_INPUT, config_where(c, "router", where, sizeof(where)),
                         "prefix_aware looks for cached prompts, and --enable-prefix-caching is off: leave "
                         "one of the two out");
    if (strcmp(c->admission, "slo") == 0 && c->slo_ttft_ms == 0)
        return error_set(err, ERR_INPUT, config_where(c, "admission", where, sizeof(where)),
                         "slo needs the time to the first token that is to be kept: --slo-ttft-ms, or in a "
                         "job file slo: {ttft_ms: ...}");
    if (c->enable_admin && c->api_key_none)
        return error_set(err, ERR_INPUT, "--enable-admin", "needs a key: leave out --api-key none");
    return 0;
}

static bool holds_model(const char *folder)
{
    char file[2 * PATH_LEN + 16];
    snprintf(file, sizeof(file), "%s/config.json", folder);
    return file_exists(file);
}

/* Of a built tree, then of an installed one. */
static int find_demo_model(char *out, size_t size, struct error *err)
{
    static const char *const places[] = {"jobs/demo-model", "../share/mpiserve/jobs/demo-model"};
    char program[PATH_LEN], place[2 * PATH_LEN], real[4096];
    ssize_t len = readlink("/proc/self/exe", program, sizeof(program) - 1);
    if (len < 0) return error_errno(err, "/proc/self/exe", "cannot find the program's own folder");
    program[len] = 0;
    *strrchr(program, '/') = 0;
    for (size_t i = 0; i < COUNT_OF(places); i++) {
        snprintf(place, sizeof(place), "%s/%s", program, places[i]);
        if (holds_model(place) && realpath(place, real)) return path_join(out, size, err, "%s", real);
    }
    return error_set(err, ERR_NOT_FOUND, "MODEL",
                     "no model was named, and there is no demo model at %s/%s or %s/%s", program, places[0],
                     program, places[1]);
}

/* "models/qwen/" -> "qwen"; for "." and ".." the folder's own name. */
static void name_from_folder(const char *folder, char *out, size_t size)
{
    char real[4096];
    size_t len = strlen(folder);
    while (len > 1 && folder[len - 1] == '/') len--;
    size_t start = len;
    while (start && folder[start - 1] != '/') start--;
    if (strspn(folder + start, "./") >= len - start && realpath(folder, real)) {
        const char *slash = strrchr(real, '/');
        snprintf(out, size, "%s", slash[1] ? slash + 1 : "model");
        return;
    }
    snprintf(out, size, "%.*s", (int)(len - start), folder + start);
}

/* A name says which one is meant. */
static int check_modules(const struct config *c, struct error *err)
{
    char where[256];
    for (int i = 0; i < c->n_lora_modules; i++)
        for (int k = 0; k < c->n_served_model_names; k++)
            if (strcmp(c->lora_modules[i].name, c->served_model_name[k]) == 0)
                return error_set(
                    err, ERR_INPUT, config_where(c, "lora-modules", where, sizeof(where)),
                    "`%.80s` is the name of the model itself: give the adapter another one, or the "
                    "model (--served-model-name)",
                    c->lora_modules[i].name);
    return 0;
}

int config_complete(struct config *c, struct error *err)
{
    int rc = 0;
    if (!c->model[0]) rc = find_demo_model(c->model, sizeof(c->model), err);
    if (rc == 0 && c->n_served_model_names == 0) {
        name_from_folder(c->model, c->served_model_name[0], sizeof(c->served_model_name[0]));
        c->n_served_model_names = 1;
    }
    if (rc == 0) rc = check_modules(c, err);
    if (c->max_ongoing_requests == 0) c->max_ongoing_requests = MIN_OF(c->max_num_seqs, 1024);
    return rc;
}
