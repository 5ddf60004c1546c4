/* From environment and command line to struct config. */
#include "config/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

/* Variables that are no options: where the program is, for job scripts; the job's name, from `mpiserve up`; faults that
 * tests ask engines for. */
static const char *const own_variables[] = {"MPISERVE_HOME", "MPISERVE_JOB", "MPISERVE_FAULT"};

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
        if (strcmp(name, name_of_environment(&option_table[i], known, sizeof(known))) == 0) return true;
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
        if (!text || !*text) continue; /* empty is how shells and job files say "not set" */
        int rc = value_set(c, &option_table[i], text, FROM_ENVIRONMENT, name, err);
        if (rc < 0) return rc;
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
        a->value = equals ? equals + 1 : "on";
        return 0;
    }
    a->value = equals ? equals + 1 : *i < argc ? argv[(*i)++] : NULL;
    if (a->value && (equals || strncmp(a->value, "--", 2) != 0)) return 0;
    return error_set(err, ERR_INPUT, a->name, "needs a value");
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

    if (a->help)
        ;
    else if (typed[0] != '-')
        a->n_values = 1;
    else if (a->option && a->option->kind == OPTION_NAMES && !equals)
        for (a->values = argv + *i; *i < argc && argv[*i][0] != '-'; (*i)++) a->n_values++;
    else if (a->option || (a->foreign && a->foreign->takes_value))
        rc = take_value(a, equals, argc, argv, i, err);
    else if (!a->foreign)
        rc = unknown(typed, len, err);
    else if (equals)
        rc = error_set(err, ERR_INPUT, a->name, "takes no value");
    a->count = *i - a->first;
    return rc < 0 ? rc : 1;
}

static int use_foreign(struct config *c, const struct argument *a, struct error *err)
{
    if (a->foreign->refused)
        return error_set(err, ERR_UNSUPPORTED, a->name, "is not offered in this release: %s",
                         a->foreign->says);
    if (c->n_notes < CONFIG_MAX_NOTES)
        snprintf(c->notes[c->n_notes++], sizeof(c->notes[0]), "%s is ignored: %s", a->name, a->foreign->says);
    return 0;
}

static int use_names(struct config *c, const struct argument *a, struct error *err)
{
    if (a->n_values == 0) return error_set(err, ERR_INPUT, a->name, "needs a value");
    c->n_served_model_names = 0;
    int rc = 0;
    for (int i = 0; i < a->n_values && rc == 0; i++) rc = value_add_name(c, a->values[i], a->name, err);
    return rc;
}

static int read_command_line(struct config *c, int argc, char **argv, int first, struct error *err)
{
    struct argument a;
    const char *model = NULL;
    int i = first, rc;
    while ((rc = argument_next(&a, argc, argv, &i, err)) > 0) {
        if (a.help) return config_help(argv[0]), 1;
        if (a.foreign) {
            rc = use_foreign(c, &a, err);
        } else if (!a.option && model) {
            rc = error_set(err, ERR_INPUT, a.values[0], "is one argument too many: the model is %s already",
                           model);
        } else if (!a.option) {
            model = a.values[0];
            rc = value_set(c, &option_table[0], model, FROM_COMMAND_LINE, "MODEL", err);
        } else if (a.option->kind == OPTION_NAMES && !a.value) {
            rc = use_names(c, &a, err);
        } else {
            rc = value_set(c, a.option, a.value, FROM_COMMAND_LINE, a.name, err);
        }
        if (rc < 0) return rc;
    }
    return rc;
}

int config_load(struct config *c, int argc, char **argv, int first, struct error *err)
{
    int rc = set_defaults(c, err);
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
