/* The option table as the README's table and as an example of a job file. Made by `make docs`. */
#include "config/options.h"

#include <stdio.h>
#include <string.h>

/* Text for a cell of a table: `|` would end it. */
static void add_cell(struct buf *to, const char *text)
{
    for (; *text; text++) {
        if (*text == '|') buf_char(to, '\\');
        buf_char(to, *text);
    }
}

static bool has_range(const struct option *o)
{
    return o->kind == OPTION_INT || o->kind == OPTION_SIZE || o->kind == OPTION_SECONDS ||
           o->kind == OPTION_SHARE;
}

static bool has_words(const struct option *o)
{
    return o->kind == OPTION_CHOICE || o->kind == OPTION_SWITCH;
}

static void add_row(struct buf *to, const struct option *o)
{
    char range[128];
    value_range(o, range, sizeof(range));
    buf_printf(to, "| `--%s`", o->name);
    for (const char *p = o->also; *p;) {
        size_t n = strcspn(p, " ");
        buf_printf(to, ", `%s%.*s`", *p == '-' ? "" : "--", (int)n, p);
        p += n + (p[n] == ' ');
    }
    buf_printf(to, " | %s | ", o->standard[0] ? o->standard : "");
    if (has_range(o) || has_words(o)) add_cell(to, range);
    buf_text(to, " | ");
    add_cell(to, o->help);
    buf_text(to, " |\n");
}

static void markdown(struct buf *to)
{
    buf_text(to, "| option | default | range | |\n|---|---|---|---|\n");
    for (int group = 0; group < GROUP_COUNT; group++) {
        buf_printf(to, "| **%s** | | | |\n", option_group_names[group]);
        for (size_t i = 0; i < option_count; i++)
            if ((int)option_table[i].group == group) add_row(to, &option_table[i]);
    }
}

/* ---- a job file -------------------------------------------------------------------------------------------------- */
static void add_comment(struct buf *to, const char *text)
{
    enum { WIDTH = 100 };
    size_t column = 1;
    buf_char(to, '#');
    while (*text) {
        size_t len = strcspn(text, " ");
        if (column > 1 && column + 1 + len > WIDTH) {
            buf_text(to, "\n#");
            column = 1;
        }
        buf_printf(to, " %.*s", (int)len, text);
        column += len + 1;
        text += len + strspn(text + len, " ");
    }
    buf_char(to, '\n');
}

static void add_setting(struct buf *to, const struct option *o)
{
    char range[128], name[96];
    buf_char(to, '\n');
    add_comment(to, o->help);
    value_range(o, range, sizeof(range));
    if (has_range(o) || has_words(o)) buf_printf(to, "# (%s)\n", range);
    buf_printf(to, "#%s: %s\n", underscores(o->name, name, sizeof(name)),
               o->standard[0] ? o->standard : o->sample);
}

static void example(struct buf *to)
{
    buf_text(
        to,
        "# yaml-language-server: $schema=schema.json\n"
        "# Every option of a job file, with its default (where there is one). Made by `make docs` from the\n"
        "# program's option table: copy it, and take away the # in front of what you change. Start it with\n"
        "#\n"
        "#     mpiserve up jobs/every-option.yaml\n"
        "#     mpirun -np 8 mpiserve jobs/every-option.yaml\n"
        "#\n"
        "# The command line wins over the environment, that over this file. Paths are relative to this "
        "file.\n");
    for (int group = 0; group < GROUP_COUNT; group++) {
        bool titled = false;
        for (size_t i = 0; i < option_count; i++) {
            const struct option *o = &option_table[i];
            if ((int)o->group != group || o->flags & OPTION_NO_FILE) continue;
            if (!titled) buf_printf(to, "\n\n# ---- %s ----\n", option_group_names[group]);
            titled = true;
            add_setting(to, o);
        }
    }
    buf_text(to, "\n\n# ---- The same names in the maps of Ray Serve ----\n"
                 "#\n"
                 "#     http_options:\n"
                 "#       host: 127.0.0.1\n"
                 "#       port: 8000\n"
                 "#     deployments:\n"
                 "#       - name: demo\n"
                 "#         model: demo-model\n"
                 "#         num_replicas: 2\n"
                 "#         max_ongoing_requests: 16\n"
                 "#         slo: {ttft_ms: 500, itl_ms: 50}\n");
}

int config_document(const char *form)
{
    static const struct {
        const char *name;
        void (*write)(struct buf *to);
    } forms[] = {{"--markdown", markdown}, {"--schema", schema_write}, {"--example", example}};
    for (size_t i = 0; i < COUNT_OF(forms); i++) {
        if (strcmp(form, forms[i].name) != 0) continue;
        struct buf text = {0};
        forms[i].write(&text);
        fwrite(text.data, 1, text.len, stdout);
        fflush(stdout);
        buf_release(&text);
        return 0;
    }
    return -1;
}
