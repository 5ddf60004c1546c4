/* From the text of a job file to a tree. libyaml finds the structure; what it would accept and a job file has no use
 * for is refused here. */
#include "config/yaml.h"
#include "config/options.h"

#include <stdio.h>
#include <string.h>
#include <yaml.h>

struct reader {
    yaml_parser_t parser;
    const char *path, *text;
    size_t len;
    struct arena *arena;
    struct error *err;
};

const char *node_kind_name(const struct node *n)
{
    static const char *const names[] = {
        [NODE_TEXT] = "a single value", [NODE_LIST] = "a list", [NODE_MAP] = "a mapping"};
    return names[n->kind];
}

const char *yaml_where(const char *path, int line, int column, const char *key, char *out, size_t size)
{
    enum { PATH_SHOWN = 140, KEY_SHOWN = 64 };
    size_t len = strlen(path);
    bool cut = len > PATH_SHOWN;
    snprintf(out, size, "%s%s:%d:%d%s%.*s", cut ? "..." : "", path + (cut ? len - PATH_SHOWN : 0), line,
             column, key ? ": " : "", KEY_SHOWN, key ? key : "");
    return out;
}

static int refuse(struct reader *r, int line, int column, const char *key, const char *says)
{
    char where[256];
    return error_set(r->err, ERR_INPUT, yaml_where(r->path, line, column, key, where, sizeof(where)), "%s",
                     says);
}

static int refuse_at(struct reader *r, const yaml_mark_t *mark, const char *says)
{
    return refuse(r, (int)mark->line + 1, (int)mark->column + 1, NULL, says);
}

/* ---- what libyaml does not understand -----------------------------------------------------------------------------*/
/* Errors of its lowest layer come with a byte's number only. */
static int bad_bytes(struct reader *r)
{
    size_t at = MIN_OF(r->parser.problem_offset, r->len);
    int line = 1, column = 1;
    for (size_t i = 0; i < at; i++) {
        column = r->text[i] == '\n' ? 1 : column + (((u8)r->text[i] & 0xc0) != 0x80);
        line += r->text[i] == '\n';
    }
    bool control = at < r->len && (u8)r->text[at] < 0x80;
    return refuse(r, line, column, NULL,
                  control ? "a control character: job files are text"
                          : "not UTF-8: job files are text in UTF-8");
}

static bool tab_in_front(const struct reader *r, const yaml_mark_t *mark)
{
    const char *line = r->text, *end = r->text + r->len;
    for (size_t i = 0; i < mark->line && line; i++) {
        line = memchr(line, '\n', (size_t)(end - line));
        if (line) line++;
    }
    size_t blanks = 0;
    while (line && line + blanks < end && line[blanks] == ' ') blanks++;
    return line && line + blanks < end && line[blanks] == '\t' && blanks <= mark->column;
}

static int not_yaml(struct reader *r)
{
    const yaml_parser_t *p = &r->parser;
    if (p->error == YAML_READER_ERROR) return bad_bytes(r);
    if (p->error == YAML_MEMORY_ERROR) return error_set(r->err, ERR_MEMORY, r->path, "no memory to read it");
    if (tab_in_front(r, &p->problem_mark))
        return refuse_at(r, &p->problem_mark, "a tab in front of the line: YAML is indented with blanks");
    char says[300], begins[64] = "";
    if (p->context && p->context_mark.line != p->problem_mark.line)
        snprintf(begins, sizeof(begins), ", which begins in line %zu", p->context_mark.line + 1);
    snprintf(says, sizeof(says), "not YAML: %s%s%s%s%s; lines are `option: value`",
             p->problem ? p->problem : "it cannot be read", p->context ? " (" : "",
             p->context ? p->context : "", begins, p->context ? ")" : "");
    return refuse_at(r, &p->problem_mark, says);
}

/* ---- events -------------------------------------------------------------------------------------------------------*/
static int next_event(struct reader *r, yaml_event_t *event)
{
    if (!yaml_parser_parse(&r->parser, event)) return not_yaml(r);
    const yaml_char_t *anchor = NULL, *tag = NULL;
    if (event->type == YAML_SCALAR_EVENT) anchor = event->data.scalar.anchor, tag = event->data.scalar.tag;
    if (event->type == YAML_SEQUENCE_START_EVENT)
        anchor = event->data.sequence_start.anchor, tag = event->data.sequence_start.tag;
    if (event->type == YAML_MAPPING_START_EVENT)
        anchor = event->data.mapping_start.anchor, tag = event->data.mapping_start.tag;
    int rc = 0;
    if (anchor || event->type == YAML_ALIAS_EVENT)
        rc = refuse_at(
            r, &event->start_mark,
            "anchors (&) and aliases (*) are not understood here: write the value out, or put it in quotes");
    else if (tag)
        rc = refuse_at(r, &event->start_mark,
                       "tags (!) are not understood here: write the value alone, or put it in quotes");
    if (rc < 0) yaml_event_delete(event);
    return rc;
}

static struct node *node_new(struct reader *r, enum node_kind kind, const yaml_event_t *event)
{
    struct node *n = arena_alloc(r->arena, sizeof(*n));
    *n = (struct node){
        .kind = kind, .line = (int)event->start_mark.line + 1, .column = (int)event->start_mark.column + 1};
    return n;
}

static int read_node(struct reader *r, const yaml_event_t *event, int depth, struct node **out);

static int read_text(struct reader *r, const yaml_event_t *event, struct node **out)
{
    const char *value = (const char *)event->data.scalar.value;
    size_t len = event->data.scalar.length;
    if (memchr(value, 0, len)) return refuse_at(r, &event->start_mark, "a NUL character in a value");
    *out = node_new(r, NODE_TEXT, event);
    (*out)->quoted = event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    (*out)->text = arena_text(r->arena, value, len);
    return 0;
}

static int check_key(struct reader *r, const struct node *map, const struct node *key, int n)
{
    if (key->kind != NODE_TEXT)
        return refuse(r, key->line, key->column, NULL, "a name is expected here, in front of the colon");
    if (n >= YAML_KEYS_MAX) return refuse(r, key->line, key->column, NULL, "too many entries in one mapping");
    for (const struct node *e = map->inside; e; e = e->next) {
        if (!name_same(e->key->text, key->text)) continue;
        char says[64];
        snprintf(says, sizeof(says), "is given twice; the first is in line %d", e->key->line);
        return refuse(r, key->line, key->column, key->text, says);
    }
    return 0;
}

static int read_entry(struct reader *r, const struct node *in, const yaml_event_t *event, int depth, int n,
                      struct node **out)
{
    struct node *key = NULL;
    yaml_event_t value;
    int rc = read_node(r, event, depth, in->kind == NODE_MAP ? &key : out);
    if (rc < 0 || in->kind == NODE_LIST) return rc;
    rc = check_key(r, in, key, n);
    if (rc == 0) rc = next_event(r, &value);
    if (rc < 0) return rc;
    rc = read_node(r, &value, depth, out);
    yaml_event_delete(&value);
    if (rc == 0) (*out)->key = key;
    return rc;
}

static int read_inside(struct reader *r, struct node *in, int depth)
{
    struct node **end = &in->inside;
    for (int n = 0;; n++) {
        yaml_event_t event;
        int rc = next_event(r, &event);
        if (rc < 0) return rc;
        bool over = event.type == YAML_SEQUENCE_END_EVENT || event.type == YAML_MAPPING_END_EVENT;
        if (!over) rc = read_entry(r, in, &event, depth, n, end);
        yaml_event_delete(&event);
        if (over || rc < 0) return rc;
        end = &(*end)->next;
    }
}

static int read_node(struct reader *r, const yaml_event_t *event, int depth, struct node **out)
{
    if (event->type == YAML_SCALAR_EVENT) return read_text(r, event, out);
    BUG_ON(event->type != YAML_SEQUENCE_START_EVENT && event->type != YAML_MAPPING_START_EVENT);
    if (depth >= YAML_DEPTH_MAX) return refuse_at(r, &event->start_mark, "nested too deeply");
    *out = node_new(r, event->type == YAML_MAPPING_START_EVENT ? NODE_MAP : NODE_LIST, event);
    return read_inside(r, *out, depth + 1);
}

static int read_stream(struct reader *r, struct node **root)
{
    for (int documents = 0;;) {
        yaml_event_t event;
        int rc = next_event(r, &event);
        if (rc < 0) return rc;
        yaml_event_type_t type = event.type;
        if (type == YAML_DOCUMENT_START_EVENT && documents++)
            rc = refuse_at(r, &event.start_mark, "a second document: a job file holds one");
        else if (type == YAML_SCALAR_EVENT || type == YAML_SEQUENCE_START_EVENT ||
                 type == YAML_MAPPING_START_EVENT)
            rc = read_node(r, &event, 0, root);
        yaml_event_delete(&event);
        if (rc < 0 || type == YAML_STREAM_END_EVENT) return rc;
    }
}

int yaml_read(const char *path, const char *text, size_t len, struct arena *arena, struct node **root,
              struct error *err)
{
    struct reader r = {.path = path, .text = text, .len = len, .arena = arena, .err = err};
    *root = NULL;
    if (!yaml_parser_initialize(&r.parser)) return error_set(err, ERR_MEMORY, path, "no memory to read it");
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, len);
    int rc = read_stream(&r, root);
    yaml_parser_delete(&r.parser);
    return rc;
}
