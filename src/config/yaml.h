/* yaml: the text of a job file as a small tree in which everything knows its line and column. One document of maps,
 * lists and texts: anchors, aliases and tags are refused, so is everything that is too large or too deep. */
#ifndef CONFIG_YAML_H
#define CONFIG_YAML_H

#include "mpiserve/base.h"

enum { YAML_FILE_MAX = 256 << 10, YAML_DEPTH_MAX = 12, YAML_KEYS_MAX = 500 };

enum node_kind { NODE_TEXT, NODE_LIST, NODE_MAP };
struct node {
    enum node_kind kind;
    bool quoted;         /* NODE_TEXT: it stood in quotes, or was a block (| or >) */
    const char *text;    /* NODE_TEXT: without NULs inside */
    int line, column;    /* from 1; columns count characters */
    struct node *key;    /* in a map: a NODE_TEXT; no two keys of a map are the same */
    struct node *inside; /* lists and maps: the first entry */
    struct node *next;
};

/* The tree lies in the arena. *root is NULL when there is nothing but comments. path: for errors, whose where is
 * "PATH:LINE:COLUMN". */
int yaml_read(const char *path, const char *text, size_t len, struct arena *arena, struct node **root,
              struct error *err);
/* "PATH:LINE:COLUMN", and ": KEY" when key is not NULL; returns out. A long path loses its beginning. */
const char *yaml_where(const char *path, int line, int column, const char *key, char *out, size_t size);
const char *node_kind_name(const struct node *n); /* "a text", "a list", "a mapping" */

#endif
