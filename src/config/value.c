/* One value: from text into its field of struct config, within its range. */
#include "config/options.h"
#include "mpiserve/json.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* "float32=f32 ...": what text stands for; itself when it is not in the list. */
static const char *meaning(const char *same, const char *text, char *out, size_t size)
{
    size_t len = strlen(text);
    for (const char *p = same; p && *p; p += strcspn(p, " "), p += *p == ' ')
        if (len && strncmp(p, text, len) == 0 && p[len] == '=') {
            snprintf(out, size, "%.*s", (int)strcspn(p + len + 1, " "), p + len + 1);
            return out;
        }
    return text;
}

bool value_word_in(const char *words, const char *text, int *index)
{
    size_t len = strlen(text);
    *index = 0;
    for (const char *p = words; *p; (*index)++) {
        size_t n = strcspn(p, " ");
        if (n == len && memcmp(p, text, n) == 0) return true;
        p += n + (p[n] == ' ');
    }
    return false;
}

static const char *number(i64 v, char *out, size_t size)
{
    static const char units[] = "KMGT";
    int unit = -1;
    i64 shown = v;
    while (shown >= 1024 && shown % 1024 == 0 && unit < 3) {
        shown /= 1024;
        unit++;
    }
    if (v == INT64_MAX)
        snprintf(out, size, "2^63-1");
    else if (unit < 0)
        snprintf(out, size, "%lld", (long long)v);
    else
        snprintf(out, size, "%lld%c", (long long)shown, units[unit]);
    return out;
}

const char *value_range(const struct option *o, char *out, size_t size)
{
    char low[32], high[32];
    const char *word = o->word ? o->word : "", * or = o->word ? " or " : "";
    switch (o->kind) {
    case OPTION_CHOICE:
    case OPTION_SWITCH:
    case OPTION_FLAG:
        snprintf(out, size, "%s", o->words);
        for (char *p = out; *p; p++)
            if (*p == ' ') *p = '|';
        break;
    case OPTION_INT:
        snprintf(out, size, "%s%s%lld..%s", word, or, (long long)o->low,
                 o->high == INT64_MAX ? number(o->high, high, sizeof(high))
                                      : (snprintf(high, sizeof(high), "%lld", (long long)o->high), high));
        break;
    case OPTION_SIZE:
        snprintf(out, size, "%s%s%s..%s", word, or, number(o->low, low, sizeof(low)),
                 number(o->high, high, sizeof(high)));
        break;
    case OPTION_SECONDS:
    case OPTION_SHARE: snprintf(out, size, "%g..%g", (double)o->low / 1000, (double)o->high / 1000); break;
    case OPTION_NAMES: snprintf(out, size, "1 to %d names", CONFIG_MAX_NAMES); break;
    case OPTION_KEY: snprintf(out, size, "none"); break;
    case OPTION_MODULES: snprintf(out, size, "1 to %d of NAME=FOLDER", CONFIG_MAX_ADAPTERS); break;
    case OPTION_TEXT: snprintf(out, size, "text"); break;
    }
    return out;
}

static void print_word(const char *words, int index, char *out, size_t size)
{
    for (; index > 0; index--) words += strcspn(words, " ") + 1;
    snprintf(out, size, "%.*s", (int)strcspn(words, " "), words);
}

const char *value_print(const struct config *c, const struct option *o, char *out, size_t size)
{
    const void *field = (const char *)c + o->at;
    *out = 0;
    switch (o->kind) {
    case OPTION_TEXT:
    case OPTION_CHOICE: snprintf(out, size, "%s", (const char *)field); break;
    case OPTION_SWITCH:
    case OPTION_FLAG: print_word(o->words, *(const bool *)field, out, size); break;
    case OPTION_INT:
    case OPTION_SIZE:
        if (o->word && *(const i64 *)field == o->word_is)
            snprintf(out, size, "%s", o->word);
        else
            snprintf(out, size, "%lld", (long long)*(const i64 *)field);
        break;
    case OPTION_SECONDS:
    case OPTION_SHARE: snprintf(out, size, "%.15g", *(const double *)field); break;
    case OPTION_MODULES: /* have a fingerprint of their own, with the model's */
    case OPTION_NAMES:
    case OPTION_KEY: break; /* of rank 0 alone; a key is never shown */
    }
    return out;
}

static int out_of_range(const struct option *o, const char *text, const char *where, struct error *err)
{
    char range[128];
    return error_set(err, ERR_INPUT, where, "`%.80s` is not in the range %s%s", text,
                     value_range(o, range, sizeof(range)), o->flags & OPTION_POWER2 ? ", powers of two" : "");
}

/* Decimal digits and at most one suffix; false when it is anything else, or too large for an i64. */
static bool read_number(const char *text, bool suffixes, i64 *out)
{
    static const char letters[] = "kmgtKMGT";
    const char *p = text + (*text == '-');
    if (*p < '0' || *p > '9') return false;
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (errno) return false;
    *out = v;
    if (!*end) return true;
    const char *letter = suffixes && !end[1] ? strchr(letters, *end) : NULL;
    if (!letter) return false;
    for (int i = (int)(letter - letters) % 4; i >= 0; i--)
        if (__builtin_mul_overflow(*out, letter - letters < 4 ? 1000 : 1024, out)) return false;
    return true;
}

static int set_number(struct config *c, const struct option *o, const char *text, const char *where,
                      struct error *err)
{
    i64 *field = (i64 *)((char *)c + o->at), v;
    if (o->word && strcmp(text, o->word) == 0) {
        *field = o->word_is;
        return 0;
    }
    if (!read_number(text, o->kind == OPTION_SIZE, &v)) {
        char range[128];
        value_range(o, range, sizeof(range));
        return error_set(err, ERR_INPUT, where, "`%.80s` is not a whole number in the range %s", text, range);
    }
    if (v < o->low || v > o->high) return out_of_range(o, text, where, err);
    if (o->flags & OPTION_POWER2 && v & (v - 1)) return out_of_range(o, text, where, err);
    *field = v;
    return 0;
}

static int set_real(struct config *c, const struct option *o, const char *text, const char *where,
                    struct error *err)
{
    double *field = (double *)((char *)c + o->at);
    size_t digits = strspn(text, "0123456789"), point = text[digits] == '.';
    size_t more = point ? strspn(text + digits + 1, "0123456789") : 0;
    if (text[digits + point + more] || digits + more == 0 || strlen(text) > 30)
        return error_set(err, ERR_INPUT, where, "`%.80s` is not a number%s in the range %g..%g", text,
                         o->kind == OPTION_SECONDS ? " of seconds" : "", (double)o->low / 1000,
                         (double)o->high / 1000);
    double v = strtod(text, NULL);
    if (v * 1000 < (double)o->low || v * 1000 > (double)o->high) return out_of_range(o, text, where, err);
    *field = v;
    return 0;
}

static int check_text(const char *text, size_t size, const char *where, struct error *err)
{
    if (strlen(text) >= size)
        return error_set(err, ERR_INPUT, where, "has %zu bytes, at most %zu are possible", strlen(text),
                         size - 1);
    for (const char *p = text; *p; p++)
        if ((u8)*p < 0x20 || *p == 0x7f)
            return error_set(err, ERR_INPUT, where, "has a control character at byte %zu",
                             (size_t)(p - text));
    return 0;
}

static int set_text(struct config *c, const struct option *o, const char *text, enum config_source from,
                    const char *where, struct error *err)
{
    if (!*text && from != FROM_DEFAULT) return error_set(err, ERR_INPUT, where, "is empty");
    int rc = check_text(text, o->size, where, err);
    if (rc < 0) return rc;
    snprintf((char *)c + o->at, o->size, "%s", text);
    return 0;
}

int value_add_name(struct config *c, const char *text, const char *where, struct error *err)
{
    int n = c->n_served_model_names;
    if (!*text) return error_set(err, ERR_INPUT, where, "a name is empty");
    if (n == CONFIG_MAX_NAMES)
        return error_set(err, ERR_INPUT, where, "more than %d names", CONFIG_MAX_NAMES);
    int rc = check_text(text, sizeof(c->served_model_name[0]), where, err);
    if (rc < 0) return rc;
    for (int i = 0; i < n; i++)
        if (strcmp(c->served_model_name[i], text) == 0)
            return error_set(err, ERR_INPUT, where, "`%.80s` is named twice", text);
    snprintf(c->served_model_name[n], sizeof(c->served_model_name[0]), "%s", text);
    c->n_served_model_names++;
    return 0;
}

/* In the environment names stand between commas or blanks. */
static int set_names(struct config *c, const char *text, const char *where, struct error *err)
{
    c->n_served_model_names = 0;
    while (*(text += strspn(text, " ,"))) {
        char name[PATH_LEN];
        size_t len = strcspn(text, " ,");
        snprintf(name, sizeof(name), "%.*s", (int)MIN_OF(len, sizeof(name) - 1), text);
        int rc = value_add_name(c, name, where, err);
        if (rc < 0) return rc;
        text += len;
    }
    return 0;
}

int value_add_module(struct config *c, const char *name, const char *path, const char *where,
                     struct error *err)
{
    struct config_adapter *to = &c->lora_modules[c->n_lora_modules];
    if (!*name || !*path) return error_set(err, ERR_INPUT, where, "needs NAME=FOLDER, both not empty");
    if (c->n_lora_modules == CONFIG_MAX_ADAPTERS)
        return error_set(err, ERR_INPUT, where, "more than %d adapters", CONFIG_MAX_ADAPTERS);
    int rc = check_text(name, sizeof(to->name), where, err);
    if (rc == 0) rc = check_text(path, sizeof(to->path), where, err);
    if (rc < 0) return rc;
    for (int i = 0; i < c->n_lora_modules; i++)
        if (strcmp(c->lora_modules[i].name, name) == 0)
            return error_set(err, ERR_INPUT, where, "`%.80s` is named twice", name);
    snprintf(to->name, sizeof(to->name), "%s", name);
    snprintf(to->path, sizeof(to->path), "%s", path);
    c->n_lora_modules++;
    return 0;
}

/* As vLLM takes it, too. */
static int add_module_json(struct config *c, const char *text, const char *where, struct error *err)
{
    struct error why;
    struct json *root = json_read(text, strlen(text), &why);
    if (!root) return error_set(err, ERR_INPUT, where, "is not valid JSON: %s: %s", why.where, why.message);
    const char *name = json_text(json_get(root, "name")), *path = json_text(json_get(root, "path"));
    int rc = name && path ? value_add_module(c, name, path, where, err)
                          : error_set(err, ERR_INPUT, where, "needs {\"name\": NAME, \"path\": FOLDER}");
    json_drop(root);
    return rc;
}

int value_add_module_text(struct config *c, const char *text, const char *where, struct error *err)
{
    char name[PATH_LEN];
    const char *equals = strchr(text, '=');
    if (*text == '{') return add_module_json(c, text, where, err);
    if (!equals) return error_set(err, ERR_INPUT, where, "`%.80s` has no name: write NAME=FOLDER", text);
    snprintf(name, sizeof(name), "%.*s", (int)MIN_OF((size_t)(equals - text), sizeof(name) - 1), text);
    return value_add_module(c, name, equals + 1, where, err);
}

/* In the environment they stand between commas or blanks. */
static int set_modules(struct config *c, const char *text, enum config_source from, const char *where,
                       struct error *err)
{
    c->n_lora_modules = 0;
    while (*(text += strspn(text, " ,"))) {
        char one[2 * PATH_LEN];
        size_t len = strcspn(text, " ,");
        snprintf(one, sizeof(one), "%.*s", (int)MIN_OF(len, sizeof(one) - 1), text);
        int rc = value_add_module_text(c, one, where, err);
        if (rc < 0) return rc;
        text += len;
    }
    if (c->n_lora_modules || from == FROM_DEFAULT) return 0;
    return error_set(err, ERR_INPUT, where, "needs NAME=FOLDER");
}

/* The key itself never appears in a message. */
static int set_key(struct config *c, const char *text, enum config_source from, const char *where,
                   struct error *err)
{
    c->api_key_none = strcmp(text, "none") == 0;
    c->api_key[0] = 0;
    if (c->api_key_none || from == FROM_DEFAULT) return 0;
    if (from == FROM_FILE)
        return error_set(
            err, ERR_INPUT, where,
            "a key in a job file is copied wherever the file goes: put it into a file of its own and "
            "use api_key_file, or into the environment as MPISERVE_API_KEY; `none` asks for no key");
    if (from == FROM_COMMAND_LINE)
        return error_set(
            err, ERR_INPUT, where,
            "a key on the command line can be read by every user of the machine (ps): put it into a file "
            "and use --api-key-file FILE, or into the environment as MPISERVE_API_KEY; `--api-key none` "
            "asks for no key");
    return config_key_check(text, where, err) ? ERR_INPUT
                                              : (snprintf(c->api_key, sizeof(c->api_key), "%s", text), 0);
}

int value_set(struct config *c, const struct option *o, const char *text, enum config_source from,
              const char *where, struct error *err)
{
    int index, rc = 0;
    char word[32];
    switch (o->kind) {
    case OPTION_TEXT: rc = set_text(c, o, text, from, where, err); break;
    case OPTION_CHOICE:
        text = meaning(o->same, text, word, sizeof(word));
        if (!value_word_in(o->words, text, &index)) return out_of_range(o, text, where, err);
        snprintf((char *)c + o->at, o->size, "%s", text);
        break;
    case OPTION_SWITCH:
    case OPTION_FLAG:
        if (!value_word_in(o->words, text, &index)) return out_of_range(o, text, where, err);
        *(bool *)((char *)c + o->at) = index == 1;
        break;
    case OPTION_INT:
    case OPTION_SIZE: rc = set_number(c, o, text, where, err); break;
    case OPTION_SECONDS:
    case OPTION_SHARE: rc = set_real(c, o, text, where, err); break;
    case OPTION_NAMES: rc = set_names(c, text, where, err); break;
    case OPTION_KEY: rc = set_key(c, text, from, where, err); break;
    case OPTION_MODULES: rc = set_modules(c, text, from, where, err); break;
    }
    /* A key file, a key and no key exclude each other: what was said last, and nearest, counts. */
    if (o->kind == OPTION_KEY && from != FROM_DEFAULT) c->api_key_file[0] = 0;
    if (o->at == offsetof(struct config, api_key_file) && from != FROM_DEFAULT) {
        c->api_key[0] = 0;
        c->api_key_none = false;
    }
    return rc;
}

void value_came(struct config *c, const struct option *o, enum config_source from, int line, int column)
{
    c->origin[o - option_table] = (struct config_origin){(u8)from, line, column};
}
