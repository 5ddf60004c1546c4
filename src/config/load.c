/* From job file, environment and command line to struct config. */
#include "config/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

/* Variables that are no options: where the program is, for job scripts; the job's name, from `mpiserve up`; faults that
 * tests ask engines for; TMPDIR before `mpiserve up` changed it. */
static const char *const own_variables[] = {"MPISERVE_HOME", "MPISERVE_JOB", "MPISERVE_TMPDIR",
                                            "MPISERVE_FAULT"};

static int set_defaults(struct config *c, struct error *err)
{
    memset(c, 0, sizeof(*c));
    for (size_t i = 0; i < option_count; i++) {
        int rc =
            value_set(c, &option_table[i], option_table[i].standard, FROM_DEFAULT, option_table[i].name, err);
        if (rc < 0) return rc;
    }
    return 0;
}

static bool variable_known(const char *name)
{
    char known[96];
    for (size_t i = 0; i < COUNT_OF(own_variables); i++)
        if (strcmp(name, own_variables[i]) == 0) return true;
    for (size_t i = 0; i < option_count; i++)
        if (!(option_table[i].flags & OPTION_PLAN) &&
            strcmp(name, name_of_environment(&option_table[i], known, sizeof(known))) == 0)
            return true;
    return false;
}

static int check_variables(struct error *err)
{
    static const char prefix[] = "MPISERVE_";
    for (char **e = environ; *e; e++) {
        char name[96];
        size_t len = strcspn(*e, "=");
        if (strncmp(*e, prefix, sizeof(prefix) - 1) != 0) continue;
        snprintf(name, sizeof(name), "%.*s", (int)MIN_OF(len, sizeof(name) - 1), *e);
        if (variable_known(name)) continue;
        const char *near = name_nearest(name + sizeof(prefix) - 1, strlen(name) - (sizeof(prefix) - 1));
        return error_set(err, ERR_INPUT, name, "is set in the environment, and no option has this name%s%s",
                         near ? "; nearest: " : "", near ? near : "");
    }
    return 0;
}

static int read_environment(struct config *c, struct error *err)
{
    char name[96];
    for (size_t i = 0; i < option_count; i++) {
        const char *text = getenv(name_of_environment(&option_table[i], name, sizeof(name)));
        if (option_table[i].flags & OPTION_NO_FILE) continue; /* find_job_file has seen it */
        if (!text || !*text) continue; /* empty is how shells and job files say "not set" */
        int rc = value_set(c, &option_table[i], text, FROM_ENVIRONMENT, name, err);
        if (rc < 0) return rc;
        value_came(c, &option_table[i], FROM_ENVIRONMENT, 0, 0);
    }
    return check_variables(err);
}

static int unknown(const char *typed, size_t len, struct error *err)
{
    const char *name = typed;
    while (len && *name == '-') name++, len--;
    const char *near = name_nearest(name, len);
    char where[96];
    snprintf(where, sizeof(where), "%.*s", (int)strcspn(typed, "="), typed);
    return error_set(err, ERR_INPUT, where, "no such option%s%s; see --help", near ? "; did you mean --" : "",
                     near ? near : "");
}

static int take_value(struct argument *a, const char *equals, int argc, char **argv, int *i,
                      struct error *err)
{
    if (a->option && a->option->kind == OPTION_FLAG) {
        if (a->negated && equals) return error_set(err, ERR_INPUT, a->name, "takes no value");
        a->value = equals ? equals + 1 : a->negated ? "false" : "true";
        return 0;
    }
    a->value = equals ? equals + 1 : *i < argc ? argv[(*i)++] : NULL;
    if (a->value && (equals || strncmp(a->value, "--", 2) != 0)) return 0;
    return error_set(err, ERR_INPUT, a->name, "needs a value");
}

/* --no-FLAG turns a flag off, be it one of another server. */
static void find_negated(struct argument *a, const char *typed, size_t len)
{
    static const char prefix[] = "--no-";
    char flag[96];
    if (len < sizeof(prefix) || !name_equal(typed, sizeof(prefix) - 1, prefix)) return;
    snprintf(flag, sizeof(flag), "%.*s", (int)MIN_OF(len - (sizeof(prefix) - 1), sizeof(flag) - 1),
             typed + sizeof(prefix) - 1);
    const struct option *o = option_find(flag);
    const struct foreign *f = foreign_find(flag);
    a->option = o && o->kind == OPTION_FLAG ? o : NULL;
    a->foreign = f && !f->takes_value ? f : NULL;
    a->negated = a->option || a->foreign;
}

/* NAME=FOLDER, or JSON: a model may follow. */
static bool is_module(const char *text)
{
    return text[0] == '{' || (text[0] != '-' && strchr(text, '='));
}

int argument_next(struct argument *a, int argc, char **argv, int *i, struct error *err)
{
    if (*i >= argc) return 0;
    const char *typed = argv[*i], *equals = strchr(typed, '=');
    size_t len = equals ? (size_t)(equals - typed) : strlen(typed);
    *a = (struct argument){.first = *i, .values = argv + *i};
    (*i)++;
    int rc = 1;
    snprintf(a->name, sizeof(a->name), "%.*s", (int)MIN_OF(len, sizeof(a->name) - 1), typed);
    a->help = strcmp(typed, "--help") == 0 || strcmp(typed, "-h") == 0;
    for (size_t k = 0; k < option_count; k++)
        if (name_matches(typed, len, option_table[k].name, option_table[k].also))
            a->option = &option_table[k];
    for (size_t k = 0; k < foreign_count; k++)
        if (name_matches(typed, len, foreign_table[k].name, foreign_table[k].also))
            a->foreign = &foreign_table[k];
    if (!a->option && !a->foreign) find_negated(a, typed, len);

    if (a->help)
        ;
    else if (typed[0] != '-')
        a->n_values = 1;
    else if (a->option && a->option->kind == OPTION_NAMES && !equals)
        for (a->values = argv + *i; *i < argc && argv[*i][0] != '-' && !file_is_job(argv[*i]); (*i)++)
            a->n_values++;
    else if (a->option && a->option->kind == OPTION_MODULES && !equals)
        for (a->values = argv + *i; *i < argc && is_module(argv[*i]); (*i)++) a->n_values++;
    else if (a->option || (a->foreign && a->foreign->takes_value && !a->negated))
        rc = take_value(a, equals, argc, argv, i, err);
    else if (!a->foreign)
        rc = unknown(typed, len, err);
    else if (equals)
        rc = error_set(err, ERR_INPUT, a->name, "takes no value");
    a->count = *i - a->first;
    return rc < 0 ? rc : 1;
}

static int use_names(struct config *c, const struct argument *a, struct error *err)
{
    if (a->n_values == 0) return error_set(err, ERR_INPUT, a->name, "needs a value");
    c->n_served_model_names = 0;
    int rc = 0;
    for (int i = 0; i < a->n_values && rc == 0; i++) rc = value_add_name(c, a->values[i], a->name, err);
    return rc;
}

/* Those of several options on the command line add up. */
static int use_modules(struct config *c, const struct argument *a, struct error *err)
{
    bool more = c->origin[a->option - option_table].source == FROM_COMMAND_LINE;
    int rc = 0;
    if (!more) c->n_lora_modules = 0;
    if (a->value) return value_add_module_text(c, a->value, a->name, err);
    if (a->n_values == 0) return error_set(err, ERR_INPUT, a->name, "needs NAME=FOLDER");
    for (int i = 0; i < a->n_values && rc == 0; i++)
        rc = value_add_module_text(c, a->values[i], a->name, err);
    return rc;
}

/* The word before the first option is the command. */
static int check_command(const struct argument *a, char **argv, int first, struct error *err)
{
    if (!a->option || !(a->option->flags & OPTION_PLAN)) return 0;
    if (first > 1 && strcmp(argv[first - 1], "plan") == 0) return 0;
    return error_set(err, ERR_INPUT, a->name, "is only for `mpiserve plan`");
}

/* The model or the job file: at most one of each. */
static int use_positional(struct config *c, const char *text, bool *model_given, struct error *err)
{
    if (file_is_job(text)) return 0; /* find_job_file has seen it */
    if (*model_given)
        return error_set(err, ERR_INPUT, text, "is one argument too many: the model is %s already", c->model);
    *model_given = true;
    value_came(c, &option_table[0], FROM_COMMAND_LINE, 0, 0);
    return value_set(c, &option_table[0], text, FROM_COMMAND_LINE, "MODEL", err);
}

static int read_command_line(struct config *c, int argc, char **argv, int first, struct error *err)
{
    struct argument a;
    bool model_given = false;
    int i = first, rc;
    while ((rc = argument_next(&a, argc, argv, &i, err)) > 0) {
        if (a.help) return config_help(argv[0]), 1;
        if ((rc = check_command(&a, argv, first, err)) < 0) return rc;
        if (a.foreign)
            rc = foreign_use(c, a.foreign, a.negated, a.value, a.name, err);
        else if (!a.option)
            rc = use_positional(c, a.values[0], &model_given, err);
        else if (a.option->kind == OPTION_NAMES && !a.value)
            rc = use_names(c, &a, err);
        else if (a.option->kind == OPTION_MODULES)
            rc = use_modules(c, &a, err);
        else
            rc = value_set(c, a.option, a.value, FROM_COMMAND_LINE, a.name, err);
        if (rc < 0) return rc;
        if (a.option) value_came(c, a.option, FROM_COMMAND_LINE, 0, 0);
    }
    return rc;
}

/* The job file comes first of all, wherever its name stands. Other errors of the command line are found later. */
static int find_job_file(struct config *c, int argc, char **argv, int first, struct error *err)
{
    struct argument a;
    const struct option *config = option_find("config");
    const char *name = NULL;
    for (int i = first; argument_next(&a, argc, argv, &i, NULL) > 0;) {
        const char *found = NULL;
        if (a.help) return 0;
        if (a.option == config) found = a.value;
        if (!a.option && !a.foreign && file_is_job(a.values[0])) found = a.values[0];
        if (found && name)
            return error_set(err, ERR_INPUT, found, "is one argument too many: the job file is %s already",
                             name);
        if (found) name = found;
    }
    if (name) return value_set(c, config, name, FROM_COMMAND_LINE, "--config", err);
    name = getenv("MPISERVE_CONFIG");
    return name && *name ? value_set(c, config, name, FROM_ENVIRONMENT, "MPISERVE_CONFIG", err) : 0;
}

int config_load(struct config *c, int argc, char **argv, int first, struct error *err)
{
    int rc = set_defaults(c, err);
    if (rc == 0) rc = find_job_file(c, argc, argv, first, err);
    if (rc == 0 && c->config_file[0]) rc = file_load(c, err);
    if (rc == 0) rc = read_environment(c, err);
    if (rc == 0) rc = read_command_line(c, argc, argv, first, err);
    if (rc == 0) rc = config_check(c, err);
    if (rc == 0) rc = config_complete(c, err);
    return rc;
}

int config_passed(int argc, char **argv, int first, const char **out, int max)
{
    struct argument a;
    int i = first, n = 0;
    while (argument_next(&a, argc, argv, &i, NULL) > 0) {
        if (a.option && a.option->flags & OPTION_UP) continue;
        for (int k = 0; k < a.count && n < max; k++) out[n++] = argv[a.first + k];
    }
    return n;
}
