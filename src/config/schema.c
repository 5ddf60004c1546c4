/* The JSON Schema of job files, for editors: what they complete (properties) and what they mark (everything else).
 * Other spellings that the program understands are patterns, so that they are valid and not offered. */
#include "config/options.h"
#include "mpiserve/json.h"

#include <stdio.h>
#include <string.h>

static void constant(struct json_out *o, const char *word)
{
    json_out_object(o);
    json_out_key_str(o, "const", word);
    json_out_end_object(o);
}

/* ---- values -------------------------------------------------------------------------------------------------------*/
static void add_words(struct json_out *o, const char *words)
{
    for (const char *p = words; p && *p; p += strcspn(p, " "), p += *p == ' ')
        json_out_text(o, p, strcspn(p, " ="));
}

static void add_bounds(struct json_out *o, const struct option *x)
{
    bool seconds = x->kind == OPTION_SECONDS || x->kind == OPTION_SHARE;
    json_out_object(o);
    json_out_key_str(o, "type", seconds ? "number" : "integer");
    json_out_key(o, "minimum");
    seconds ? json_out_real(o, (double)x->low / 1000) : json_out_int(o, x->low);
    if (x->high < INT64_MAX) {
        json_out_key(o, "maximum");
        seconds ? json_out_real(o, (double)x->high / 1000) : json_out_int(o, x->high);
    }
    json_out_end_object(o);
}

static void add_number(struct json_out *o, const struct option *x)
{
    json_out_key(o, "anyOf");
    json_out_array(o);
    add_bounds(o, x);
    if (x->kind == OPTION_SIZE) {
        json_out_object(o);
        json_out_key_str(o, "type", "string");
        json_out_key_str(o, "pattern", "^[0-9]+[kmgtKMGT]?$");
        json_out_end_object(o);
    }
    if (x->word) constant(o, x->word);
    json_out_end_array(o);
}

static void any_string(struct json_out *o)
{
    json_out_object(o);
    json_out_key_str(o, "type", "string");
    json_out_end_object(o);
}

static void add_names(struct json_out *o)
{
    json_out_key(o, "anyOf");
    json_out_array(o);
    any_string(o);
    json_out_object(o);
    json_out_key_str(o, "type", "array");
    json_out_key(o, "items");
    any_string(o);
    json_out_key_int(o, "minItems", 1);
    json_out_key_int(o, "maxItems", CONFIG_MAX_NAMES);
    json_out_end_object(o);
    json_out_end_array(o);
}

/* A map of names to folders; a list of NAME=FOLDER or of maps; one NAME=FOLDER. */
static void add_modules(struct json_out *o)
{
    json_out_key(o, "anyOf");
    json_out_array(o);
    json_out_object(o);
    json_out_key_str(o, "type", "object");
    json_out_key(o, "additionalProperties");
    any_string(o);
    json_out_end_object(o);
    json_out_object(o);
    json_out_key_str(o, "type", "array");
    json_out_key_int(o, "minItems", 1);
    json_out_key_int(o, "maxItems", CONFIG_MAX_ADAPTERS);
    json_out_end_object(o);
    any_string(o);
    json_out_end_array(o);
}

static void add_type(struct json_out *o, const struct option *x)
{
    switch (x->kind) {
    case OPTION_TEXT:
        json_out_key_str(o, "type", "string");
        json_out_key_int(o, "minLength", 1);
        break;
    case OPTION_CHOICE:
    case OPTION_SWITCH:
        json_out_key(o, "enum");
        json_out_array(o);
        add_words(o, x->words);
        add_words(o, x->same);
        json_out_end_array(o);
        break;
    case OPTION_FLAG: json_out_key_str(o, "type", "boolean"); break;
    case OPTION_INT:
    case OPTION_SIZE:
    case OPTION_SECONDS:
    case OPTION_SHARE: add_number(o, x); break;
    case OPTION_NAMES: add_names(o); break;
    case OPTION_MODULES: add_modules(o); break;
    case OPTION_KEY: json_out_key_str(o, "const", "none"); break;
    }
}

/* A line without a value (null) means the default. */
static void add_definition(struct json_out *o, const struct option *x)
{
    char range[128], text[640];
    value_range(x, range, sizeof(range));
    snprintf(text, sizeof(text), "%s%s%s%s", x->help, x->standard[0] ? " Default: " : "", x->standard,
             x->standard[0] ? "." : "");
    json_out_key(o, x->name);
    json_out_object(o);
    json_out_key_str(o, "description", text);
    json_out_key(o, "anyOf");
    json_out_array(o);
    json_out_object(o);
    add_type(o, x);
    json_out_end_object(o);
    json_out_object(o);
    json_out_key_str(o, "type", "null");
    json_out_end_object(o);
    json_out_end_array(o);
    json_out_end_object(o);
}

/* ---- names --------------------------------------------------------------------------------------------------------*/
static void reference(struct json_out *o, const char *key, const char *definition)
{
    char text[128];
    snprintf(text, sizeof(text), "#/$defs/%s", definition);
    json_out_key(o, key);
    json_out_object(o);
    json_out_key_str(o, "$ref", text);
    json_out_end_object(o);
}

/* "^max[-_]num[-_]seqs$" */
static const char *pattern(const char *name, size_t len, char *out, size_t size)
{
    struct buf text = {0};
    buf_char(&text, '^');
    for (size_t i = 0; i < len; i++) name[i] == '-' ? buf_text(&text, "[-_]") : buf_char(&text, name[i]);
    buf_char(&text, '$');
    snprintf(out, size, "%s", text.data);
    buf_release(&text);
    return out;
}

static bool stands_in(const struct section *in, const struct option *x)
{
    return !(x->flags & OPTION_NO_FILE) && (!in || section_holds(in, x));
}

/* How an option is called in the map. */
static const char *name_in(const struct section *in, const struct option *x)
{
    return x->name + (in && in->prefix ? strlen(in->prefix) : 0);
}

static void add_patterns(struct json_out *o, const struct section *in)
{
    char text[256];
    for (size_t i = 0; i < option_count; i++) {
        const struct option *x = &option_table[i];
        if (!stands_in(in, x)) continue;
        const char *name = name_in(in, x);
        if (strchr(name, '-')) reference(o, pattern(name, strlen(name), text, sizeof(text)), x->name);
        for (const char *p = x->also; *p; p += strcspn(p, " "), p += *p == ' ')
            if (*p != '-') reference(o, pattern(p, strcspn(p, " "), text, sizeof(text)), x->name);
    }
    for (size_t i = 0; !in && i < section_count; i++)
        if (strchr(section_table[i].name, '-'))
            reference(o, pattern(section_table[i].name, strlen(section_table[i].name), text, sizeof(text)),
                      section_table[i].name);
    for (size_t i = 0; (!in || in->list) && i < foreign_count; i++) {
        const struct foreign *f = &foreign_table[i];
        if (f->refused && !f->fine) continue;
        json_out_key(o, pattern(f->name, strlen(f->name), text, sizeof(text)));
        json_out_object(o);
        snprintf(text, sizeof(text), "Ignored: %s.", f->says);
        json_out_key_str(o, "description", text);
        json_out_key_bool(o, "deprecated", true);
        if (f->fine) {
            json_out_key(o, "enum");
            json_out_array(o);
            add_words(o, f->fine);
            if (strspn(f->fine, "0123456789") == strlen(f->fine)) json_out_int(o, f->fine[0] - '0');
            json_out_end_array(o);
        }
        json_out_end_object(o);
    }
}

static void add_map(struct json_out *o, const struct section *in);

static void add_section(struct json_out *o, const struct section *s)
{
    json_out_key(o, s->name);
    json_out_object(o);
    json_out_key_str(o, "description", s->help);
    if (s->list) {
        json_out_key_str(o, "type", "array");
        json_out_key_int(o, "minItems", 1);
        json_out_key(o, "items");
        json_out_object(o);
    }
    add_map(o, s);
    if (s->list) json_out_end_object(o);
    json_out_end_object(o);
}

static void add_map(struct json_out *o, const struct section *in)
{
    char name[96];
    json_out_key_str(o, "type", "object");
    json_out_key(o, "properties");
    json_out_object(o);
    for (size_t i = 0; i < option_count; i++)
        if (stands_in(in, &option_table[i]))
            reference(o, underscores(name_in(in, &option_table[i]), name, sizeof(name)),
                      option_table[i].name);
    if (in && in->key) reference(o, in->key, in->key_is);
    for (size_t i = 0; i < section_count; i++)
        if (section_stands(&section_table[i], in))
            reference(o, underscores(section_table[i].name, name, sizeof(name)), section_table[i].name);
    json_out_end_object(o);
    json_out_key(o, "patternProperties");
    json_out_object(o);
    add_patterns(o, in);
    json_out_end_object(o);
    json_out_key_bool(o, "additionalProperties", false);
}

/* ---- the whole ----------------------------------------------------------------------------------------------------*/
/* Bytes of the object or array at text when it holds no other one and is short; else 0. */
static size_t short_one(const char *text, size_t len)
{
    enum { WIDTH = 90 };
    bool in_text = false;
    for (size_t i = 1; i < len && i < WIDTH; i++) {
        if (text[i] == '"' && text[i - 1] != '\\') in_text = !in_text;
        if (!in_text && (text[i] == '}' || text[i] == ']')) return i + 1;
        if (!in_text && (text[i] == '{' || text[i] == '[')) return 0;
    }
    return 0;
}

/* One member or item a line, as people write it. */
static void spread(struct buf *to, const struct buf *compact)
{
    int depth = 0;
    bool in_text = false;
    size_t flat = 0; /* up to here everything stays in the line */
    for (size_t i = 0; i < compact->len; i++) {
        char c = compact->data[i];
        if (c == '"' && (i == 0 || compact->data[i - 1] != '\\')) in_text = !in_text;
        bool open = !in_text && (c == '{' || c == '['), end = !in_text && (c == '}' || c == ']');
        if (open && i >= flat) flat = i + short_one(compact->data + i, compact->len - i);
        bool lines = i >= flat;
        if (end && lines) buf_printf(to, "\n%*s", 2 * --depth, "");
        buf_char(to, c);
        if (open && lines) depth++;
        if (lines && !in_text && (open || c == ',')) buf_printf(to, "\n%*s", 2 * depth, "");
        if (!in_text && (c == ':' || (c == ',' && !lines))) buf_char(to, ' ');
    }
    buf_char(to, '\n');
}

void schema_write(struct buf *to)
{
    struct buf compact = {0};
    struct json_out o;
    json_out_init(&o, &compact);
    json_out_object(&o);
    json_out_key_str(&o, "$schema", "https://json-schema.org/draft/2020-12/schema");
    json_out_key_str(&o, "title", "A job file of mpiserve");
    json_out_key_str(&o, "$comment", "Made by `make docs` from the program's option table.");
    add_map(&o, NULL);
    json_out_key(&o, "$defs");
    json_out_object(&o);
    for (size_t i = 0; i < option_count; i++)
        if (!(option_table[i].flags & OPTION_NO_FILE)) add_definition(&o, &option_table[i]);
    for (size_t i = 0; i < section_count; i++) add_section(&o, &section_table[i]);
    json_out_end_object(&o);
    json_out_end_object(&o);
    spread(to, &compact);
    buf_release(&compact);
}
