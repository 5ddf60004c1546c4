/* Job files: a tree of YAML into struct config. The names are those of the option table, at the top of the file or in
 * the maps that Ray Serve's users know (section_table). */
#include "config/options.h"
#include "config/yaml.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define GROUP(g) (1u << GROUP_##g)

const struct section section_table[] = {
    {"http-options", false, GROUP(HTTP), "request-timeout", NULL, NULL,
     "HTTP options together, as in Ray Serve.", NULL},
    {"deployments", true, GROUP(MODEL) | GROUP(PARALLEL) | GROUP(SCHEDULER) | GROUP(LIMITS), NULL, "name",
     "served-model-name",
     "A model with its parallel shape and limits, as in Ray Serve. A job serves one in this release.", NULL},
    {"slo", false, 0, NULL, NULL, NULL, "Service levels of the deployment.", "slo-"},
};
const size_t section_count = COUNT_OF(section_table);

struct file {
    struct config *c;
    const char *path;
    struct error *err;
};

bool section_holds(const struct section *s, const struct option *o)
{
    if (s->prefix) return strncmp(o->name, s->prefix, strlen(s->prefix)) == 0;
    return s->groups & 1u << o->group || (s->also && strcmp(s->also, o->name) == 0);
}

bool section_stands(const struct section *inner, const struct section *outer)
{
    return !outer || (inner->prefix && outer->list);
}

bool file_is_job(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot && dot > name && dot[-1] != '/' && (strcmp(dot, ".yaml") == 0 || strcmp(dot, ".yml") == 0);
}

static int refuse(const struct file *f, const struct node *at, const char *key, int code, const char *fmt,
                  ...) PRINTF_LIKE(5, 6);
static int refuse(const struct file *f, const struct node *at, const char *key, int code, const char *fmt,
                  ...)
{
    char where[256], says[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(says, sizeof(says), fmt, args);
    va_end(args);
    return error_set(f->err, code, yaml_where(f->path, at->line, at->column, key, where, sizeof(where)), "%s",
                     says);
}

/* ---- one value ----------------------------------------------------------------------------------------------------*/
/* `null` and `~` say: as if the line were not there. */
static bool is_null(const struct node *n)
{
    static const char *const words[] = {"~", "null", "Null", "NULL"};
    for (size_t i = 0; i < COUNT_OF(words); i++)
        if (n->kind == NODE_TEXT && !n->quoted && strcmp(n->text, words[i]) == 0) return true;
    return false;
}

static int single(const struct file *f, const struct node *n, const char *key)
{
    if (n->kind != NODE_TEXT)
        return refuse(f, n, key, ERR_INPUT, "needs a single value, not %s", node_kind_name(n));
    if (!n->quoted && !*n->text)
        return refuse(f, n, key, ERR_INPUT, "has no value: write one, or `null` for none");
    return 0;
}

static int check_quotes(const struct file *f, const struct option *o, const struct node *n, const char *key)
{
    if (!n->quoted || (o->kind != OPTION_INT && o->kind != OPTION_SECONDS && o->kind != OPTION_SHARE))
        return 0;
    if (o->word && strcmp(n->text, o->word) == 0) return 0;
    return refuse(f, n, key, ERR_INPUT, "needs a number, not a text in quotes");
}

/* Relative to the file's folder, so that a job can be started from anywhere. */
static int resolve(const struct file *f, const struct option *o, const struct node *n, const char *key,
                   char *out, size_t size)
{
    const char *slash = strrchr(f->path, '/'), *text = n->text;
    if (text[0] == '~' || text[0] == '$')
        return refuse(f, n, key, ERR_INPUT,
                      "`%.80s`: %c is for shells and stays as it is here: write the path out", text, text[0]);
    bool as_is = text[0] == '/' || !text[0] || !slash || (o->flags & OPTION_NAMED && !strchr(text, '/'));
    int folder = as_is ? 0 : (int)(slash + 1 - f->path);
    if (path_join(out, size, NULL, "%.*s%s", folder, f->path, text) == 0) return 0;
    return refuse(f, n, key, ERR_INPUT, "the path is longer than %zu bytes", size - 1);
}

static int set_text(const struct file *f, const struct option *o, const struct node *n, const char *key)
{
    char where[256], path[PATH_LEN];
    const char *text = n->text;
    int rc = single(f, n, key);
    if (rc == 0) rc = check_quotes(f, o, n, key);
    if (rc == 0 && o->flags & OPTION_PATH) {
        rc = resolve(f, o, n, key, path, sizeof(path));
        text = path;
    }
    if (rc < 0) return rc;
    yaml_where(f->path, n->line, n->column, key, where, sizeof(where));
    if (o->kind != OPTION_NAMES) return value_set(f->c, o, text, FROM_FILE, where, f->err);
    f->c->n_served_model_names = 0;
    return value_add_name(f->c, text, where, f->err); /* one name, with all its commas */
}

static int set_list(const struct file *f, const struct node *list, const char *key)
{
    char where[256];
    int rc = list->inside ? 0 : refuse(f, list, key, ERR_INPUT, "is an empty list");
    f->c->n_served_model_names = 0;
    for (const struct node *n = list->inside; n && rc == 0; n = n->next) {
        rc = single(f, n, key);
        yaml_where(f->path, n->line, n->column, key, where, sizeof(where));
        if (rc == 0) rc = value_add_name(f->c, n->text, where, f->err);
    }
    return rc;
}

/* ---- adapters: {NAME: FOLDER}, or a list of NAME=FOLDER or {name: NAME, path: FOLDER} */
static int add_module(const struct file *f, const struct option *o, const char *name,
                      const struct node *folder, const char *key)
{
    char where[256], path[PATH_LEN];
    int rc = single(f, folder, key);
    if (rc == 0) rc = resolve(f, o, folder, key, path, sizeof(path));
    yaml_where(f->path, folder->line, folder->column, key, where, sizeof(where));
    return rc ? rc : value_add_module(f->c, name, path, where, f->err);
}

static int add_named_module(const struct file *f, const struct option *o, const struct node *map,
                            const char *key)
{
    const struct node *name = NULL, *path = NULL;
    for (const struct node *n = map->inside; n; n = n->next) {
        if (name_same(n->key->text, "name"))
            name = n;
        else if (name_same(n->key->text, "path"))
            path = n;
        else
            return refuse(f, n->key, key, ERR_INPUT,
                          "`%.80s` is not known here: an adapter has name and path", n->key->text);
    }
    if (!name || !path) return refuse(f, map, key, ERR_INPUT, "an adapter needs name and path");
    int rc = single(f, name, key);
    return rc ? rc : add_module(f, o, name->text, path, key);
}

static int add_module_text(const struct file *f, const struct option *o, const struct node *n,
                           const char *key)
{
    char name[PATH_LEN];
    const char *equals = n->kind == NODE_TEXT ? strchr(n->text, '=') : NULL;
    if (!equals) return refuse(f, n, key, ERR_INPUT, "needs NAME=FOLDER, or a map of names to folders");
    struct node folder = *n;
    folder.text = equals + 1;
    snprintf(name, sizeof(name), "%.*s", (int)MIN_OF((size_t)(equals - n->text), sizeof(name) - 1), n->text);
    return add_module(f, o, name, &folder, key);
}

static int set_modules(const struct file *f, const struct option *o, const struct node *n, const char *key)
{
    int rc = 0;
    f->c->n_lora_modules = 0;
    if (n->kind == NODE_TEXT) return add_module_text(f, o, n, key);
    if (!n->inside) return refuse(f, n, key, ERR_INPUT, "is empty");
    for (const struct node *m = n->inside; m && rc == 0; m = m->next)
        rc = n->kind == NODE_MAP   ? add_module(f, o, m->key->text, m, key)
             : m->kind == NODE_MAP ? add_named_module(f, o, m, key)
                                   : add_module_text(f, o, m, key);
    return rc;
}

/* The same option under another spelling or in another map; and key and key file, of which there can be one. */
static int check_once(const struct file *f, const struct option *o, const struct node *key)
{
    const struct config_origin *origin = f->c->origin;
    const struct option *key_option = option_find("api-key"), *file_option = option_find("api-key-file");
    const struct option *other = o == key_option ? file_option : o == file_option ? key_option : o;
    if (origin[other - option_table].source != FROM_FILE) return 0;
    int line = origin[other - option_table].line;
    if (other == o)
        return refuse(f, key, key->text, ERR_INPUT, "is given twice; the first is in line %d", line);
    return refuse(f, key, key->text, ERR_INPUT, "excludes the %s in line %d", other->name, line);
}

/* `engine: null` means what it says. */
static bool is_word_null(const struct option *o, const struct node *n)
{
    int index;
    return o->kind == OPTION_CHOICE && n->kind == NODE_TEXT && value_word_in(o->words, n->text, &index);
}

static int set_option(const struct file *f, const struct option *o, const struct node *n)
{
    const char *key = n->key->text;
    bool none = is_null(n) && !is_word_null(o, n);
    int rc = check_once(f, o, n->key);
    if (rc < 0) return rc;
    if (!none)
        rc = o->kind == OPTION_MODULES                         ? set_modules(f, o, n, key)
             : o->kind == OPTION_NAMES && n->kind == NODE_LIST ? set_list(f, n, key)
                                                               : set_text(f, o, n, key);
    if (rc == 0 && !none) value_came(f->c, o, FROM_FILE, n->line, n->column);
    return rc;
}

/* Flags are true or false in a file; of a value for something ignored only the presence counts. */
static int set_foreign(const struct file *f, const struct foreign *o, const struct node *n)
{
    static const char *const yes_no[] = {"true", "True", "TRUE", "false", "False", "FALSE"};
    char where[256];
    size_t word = 0;
    if (is_null(n)) return 0;
    int rc = o->takes_value ? 0 : single(f, n, n->key->text);
    if (rc < 0) return rc;
    while (!o->takes_value && word < COUNT_OF(yes_no) && strcmp(n->text, yes_no[word]) != 0) word++;
    if (word == COUNT_OF(yes_no))
        return refuse(f, n, n->key->text, ERR_INPUT, "`%.80s` is not true or false", n->text);
    yaml_where(f->path, n->key->line, n->key->column, n->key->text, where, sizeof(where));
    char opposite[96];
    snprintf(opposite, sizeof(opposite), "no-%.80s", o->name);
    const struct foreign *off = word < COUNT_OF(yes_no) / 2 ? NULL : foreign_find(opposite);
    if (off) return foreign_use(f->c, off, false, NULL, where, f->err);
    return foreign_use(f->c, o, word >= COUNT_OF(yes_no) / 2, n->kind == NODE_TEXT ? n->text : "", where,
                       f->err);
}

/* ---- maps ---------------------------------------------------------------------------------------------------------*/
static int unknown(const struct file *f, const struct section *in, const struct node *key)
{
    const char *more[COUNT_OF(section_table) + 1];
    size_t n = 0;
    char name[96];
    for (size_t i = 0; i < section_count; i++) {
        const struct section *s = &section_table[i];
        if (section_stands(s, in)) more[n++] = s->name;
        if (!in && s->key && name_same(s->key, key->text))
            return refuse(f, key, key->text, ERR_INPUT, "stands in %s; at the top of the file it is %s",
                          s->name, underscores(s->key_is, name, sizeof(name)));
    }
    if (in && in->key) more[n++] = in->key;
    const char *near = name_nearest_of(key->text, strlen(key->text), OPTION_NO_FILE, more, n);
    underscores(near ? near : "", name, sizeof(name));
    return refuse(f, key, key->text, ERR_INPUT, "no such option%s%s; see --help",
                  near ? "; did you mean " : "", name);
}

static int misplaced(const struct file *f, const struct section *in, const struct option *o,
                     const struct node *key)
{
    char here[64], there[64] = "";
    for (size_t i = 0; i < section_count; i++)
        if (!section_table[i].prefix && section_holds(&section_table[i], o))
            underscores(section_table[i].name, there, sizeof(there));
    return refuse(f, key, key->text, ERR_INPUT, "does not belong into %s: put it at the top of the file%s%s",
                  underscores(in->name, here, sizeof(here)), *there ? ", or into " : "", there);
}

static int read_section(const struct file *f, const struct section *s, const struct node *n);

static int read_map(const struct file *f, const struct section *in, const struct node *map)
{
    int rc = 0;
    for (const struct node *n = map->inside; n && rc == 0; n = n->next) {
        const char *key = n->key->text;
        const struct option *o = option_find(key);
        const struct foreign *other = o ? NULL : foreign_find(key);
        const struct section *inner = NULL;
        for (size_t i = 0; i < section_count; i++)
            if (section_stands(&section_table[i], in) && name_same(key, section_table[i].name))
                inner = &section_table[i];
        if (in && in->key && name_same(key, in->key)) o = option_find(in->key_is);
        if (inner)
            rc = read_section(f, inner, n);
        else if (o && o->flags & OPTION_NO_FILE)
            rc = refuse(f, n->key, key, ERR_INPUT, "%s",
                        o->flags & OPTION_PLAN ? "is for the command line of `mpiserve plan` only"
                                               : "a job file cannot name another one");
        else if (o && in && !section_holds(in, o))
            rc = misplaced(f, in, o, n->key);
        else if (o)
            rc = set_option(f, o, n);
        else
            rc = other ? set_foreign(f, other, n) : unknown(f, in, n->key);
    }
    return rc;
}

/* `slo: {ttft_ms: 500}` is slo_ttft_ms. */
static int read_prefixed(const struct file *f, const struct section *s, const struct node *map)
{
    int rc = 0;
    char name[96], names[256] = "";
    for (const struct node *n = map->inside; n && rc == 0; n = n->next) {
        snprintf(name, sizeof(name), "%s%.60s", s->prefix, n->key->text);
        const struct option *o = option_find(name);
        if (o) {
            rc = set_option(f, o, n);
            continue;
        }
        for (size_t i = 0, at = 0; i < option_count; i++)
            if (section_holds(s, &option_table[i]))
                at += (size_t)snprintf(
                    names + at, sizeof(names) - at, "%s%s", at ? ", " : "",
                    underscores(option_table[i].name + strlen(s->prefix), name, sizeof(name)));
        rc = refuse(f, n->key, n->key->text, ERR_INPUT, "%s has no such option; it has %s", s->name, names);
    }
    return rc;
}

static int read_section(const struct file *f, const struct section *s, const struct node *n)
{
    const char *key = n->key->text;
    if (is_null(n)) return 0;
    if (!s->list && n->kind != NODE_MAP)
        return refuse(f, n, key, ERR_INPUT, "needs a mapping (`name: value` lines), not %s",
                      node_kind_name(n));
    if (s->prefix) return read_prefixed(f, s, n);
    if (!s->list) return read_map(f, s, n);
    if (n->kind != NODE_LIST)
        return refuse(f, n, key, ERR_INPUT, "needs a list (`- name: ...`), not %s", node_kind_name(n));
    const struct node *first = n->inside;
    if (!first) return refuse(f, n, key, ERR_INPUT, "is an empty list");
    for (const struct node *d = first; d; d = d->next)
        if (d->kind != NODE_MAP)
            return refuse(f, d, key, ERR_INPUT, "a deployment is a mapping (`name: value` lines), not %s",
                          node_kind_name(d));
    if (first->next)
        return refuse(
            f, first->next, key, ERR_UNSUPPORTED,
            "a job serves one deployment in this release, this is a second one: start another job for it");
    return read_map(f, s, first);
}

static int read_tree(const struct file *f, const struct node *root)
{
    if (!root || is_null(root) || (root->kind == NODE_TEXT && !root->quoted && !*root->text)) return 0;
    if (root->kind == NODE_MAP) return read_map(f, NULL, root);
    return refuse(f, root, NULL, ERR_INPUT, "a job file is lines of `option: value`, not %s",
                  node_kind_name(root));
}

int file_load(struct config *c, struct error *err)
{
    const struct file f = {c, c->config_file, err};
    struct stat st;
    struct buf text = {0};
    struct arena arena;
    struct node *root;
    if (stat(f.path, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
        return error_set(err, ERR_INPUT, f.path, "is no plain file: every rank reads it for itself");
    int rc = file_read(f.path, YAML_FILE_MAX, &text, err);
    if (rc < 0) return rc;
    arena_init(&arena, 0);
    rc = yaml_read(f.path, text.len ? text.data : "", text.len, &arena, &root, err);
    if (rc == 0) rc = read_tree(&f, root);
    arena_release(&arena);
    buf_release(&text);
    return rc;
}
