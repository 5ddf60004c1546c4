/* --help, from the table. */
#include "config/options.h"

#include <stdio.h>
#include <string.h>

enum { HELP_WIDTH = 100, HELP_INDENT = 8 };

static void print_wrapped(struct buf *to, const char *text)
{
    size_t column = HELP_INDENT;
    buf_printf(to, "%*s", HELP_INDENT, "");
    while (*text) {
        size_t len = strcspn(text, " ");
        if (column > HELP_INDENT && column + 1 + len > HELP_WIDTH) {
            buf_printf(to, "\n%*s", HELP_INDENT, "");
            column = HELP_INDENT;
        }
        if (column > HELP_INDENT) {
            buf_char(to, ' ');
            column++;
        }
        buf_add(to, text, len);
        column += len;
        text += len + strspn(text + len, " ");
    }
    buf_char(to, '\n');
}

static const char *value_name(const struct option *o)
{
    static const char *const names[] = {
        [OPTION_TEXT] = "TEXT", [OPTION_INT] = "N",
        [OPTION_SIZE] = "N",    [OPTION_SECONDS] = "S",
        [OPTION_SHARE] = "X",   [OPTION_NAMES] = "NAME...",
        [OPTION_KEY] = "none",  [OPTION_MODULES] = "NAME=FOLDER...",
    };
    return names[o->kind];
}

static void print_option(struct buf *to, const struct option *o)
{
    char range[128], name[96];
    value_range(o, range, sizeof(range));
    name_of_environment(o, name, sizeof(name));
    bool words = o->kind == OPTION_CHOICE || o->kind == OPTION_SWITCH;
    bool number = o->kind == OPTION_INT || o->kind == OPTION_SIZE || o->kind == OPTION_SECONDS ||
                  o->kind == OPTION_SHARE;
    buf_printf(to, "  --%s", o->name);
    for (const char *p = o->also; *p;) {
        size_t n = strcspn(p, " ");
        if (*p == '-') buf_printf(to, ", %.*s", (int)n, p);
        p += n + (p[n] == ' ');
    }
    const char *value = o->kind == OPTION_FLAG ? "" : words ? range : value_name(o);
    buf_printf(to, "%s%s\n", value[0] ? " " : "", value);
    print_wrapped(to, o->help);
    bool variable = !(o->flags & OPTION_PLAN);
    if (!variable && !number) return;
    buf_printf(to, "%*s[", HELP_INDENT, "");
    if (number) buf_printf(to, "%s; ", range);
    if (o->standard[0]) buf_printf(to, "default %s%s", o->standard, variable ? "; " : "");
    buf_printf(to, "%s]\n", variable ? name : "");
}

static void print_all(struct buf *to, const char *program)
{
    buf_printf(to,
               "mpiserve " MPISERVE_VERSION ": serves a language model over HTTP, as one MPI job\n"
               "\n"
               "  %1$s up [-n RANKS] [JOB.yaml] [MODEL] [options]\n"
               "      start the job, say when it is ready, drain on Ctrl-C\n"
               "  mpirun -np RANKS %1$s [JOB.yaml] [MODEL] [options]\n"
               "      the same job, started by hand\n"
               "  %1$s plan [JOB.yaml] [MODEL] [options]\n"
               "      what such a job needs, and where it lies; starts nothing\n"
               "  %1$s status [--json] [--job ID]\n"
               "      running jobs, their replicas and rates\n"
               "  %1$s doctor [--json]\n"
               "      what this machine has and misses, and what to do\n"
               "  %1$s bench route [options]\n"
               "      routers in simulation, see mpiserve bench route --help\n"
               "  %1$s tokenize | detokenize DIR\n"
               "      lines of JSON: text to tokens and back, with a model's tokenizer\n"
               "  %1$s render TEMPLATE.jinja CONTEXT.json\n"
               "      what a chat template makes of its variables\n"
               "  %1$s sweep\n"
               "      remove what dead jobs of yours left on this machine (every start does, too)\n"
               "  %1$s help | version\n"
               "\n"
               "Options win over the environment (the name in brackets), that over the job file (the same "
               "names, see\n"
               "jobs/README.md), that over the default.\n"
               "Dashes and underscores are the same in names; --name value and --name=value too.\n"
               "k m g t behind a number: powers of 1000; K M G T: powers of 1024 (sizes and lengths).\n",
               program);
    for (int group = 0; group < GROUP_COUNT; group++) {
        buf_printf(to, "\n%s\n", option_group_names[group]);
        for (size_t i = 0; i < option_count; i++)
            if ((int)option_table[i].group == group) print_option(to, &option_table[i]);
    }
}

void config_help(const char *program)
{
    struct buf text = {0};
    print_all(&text, program);
    fwrite(text.data, 1, text.len, stdout);
    fflush(stdout);
    buf_release(&text);
}
