/* Chat templates: finding, compiling, rendering. */
#include "text/template.h"
#include "text/utf8.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEMPLATE_MAX = 4 << 20, CONFIG_MAX = 16 << 20 };
static const u64 STEPS_MAX = 20 * 1000 * 1000;
static const size_t MEMORY_MAX = (size_t)256 << 20;

void fault_raise(struct fault *f, int code, const char *fmt, ...)
{
    char text[768], where[32];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    snprintf(where, sizeof(where), "line %d", f->line);
    f->code = error_set(f->err, code, where, "%s", text);
    longjmp(f->back, 1);
}

/* ---- compiling ---- */

static void compile(struct chat_template *t, struct fault *fault, const char *source, size_t len)
{
    struct lexer l = {.fault = fault, .arena = &t->arena};
    struct parser p = {.fault = fault, .arena = &t->arena};
    lex(&l, source, len);
    p.t = l.items;
    t->body = parse_template(&p);
}

struct chat_template *chat_template_compile(const char *source, size_t len, struct error *err)
{
    size_t good = utf8_valid(source, len);
    if (good < len) {
        error_set(err, ERR_INPUT, "chat template", "byte %zu is not UTF-8", good);
        return NULL;
    }
    if (len > TEMPLATE_MAX) {
        error_set(err, ERR_INPUT, "chat template", "%zu bytes are more than %d", len, TEMPLATE_MAX);
        return NULL;
    }
    struct chat_template *t = mem_alloc(sizeof(*t));
    struct fault fault = {.err = err, .line = 1};
    arena_init(&t->arena, 64 * 1024);
    if (setjmp(fault.back)) {
        chat_template_free(t);
        return NULL;
    }
    compile(t, &fault, source, len);
    return t;
}

void chat_template_free(struct chat_template *t)
{
    if (!t) return;
    arena_release(&t->arena);
    free(t);
}

/* ---- finding ---- */

static const struct json *named_default(const struct json *list)
{
    for (size_t i = 0; i < json_len(list); i++) {
        const char *name = json_text(json_get(json_item(list, i), "name"));
        if (name && strcmp(name, "default") == 0) return json_get(json_item(list, i), "template");
    }
    return NULL;
}

static struct chat_template *from_config(const char *path, struct error *err)
{
    struct json *root = json_read_file(path, CONFIG_MAX, err);
    if (!root) return NULL;
    const struct json *v = json_get(root, "chat_template");
    struct chat_template *t = NULL;
    if (json_kind(v) == JK_ARRAY) v = named_default(v);
    if (json_kind(v) == JK_TEXT) {
        t = chat_template_compile(json_text(v), json_len(v), err);
    } else {
        error_set(err, ERR_NOT_FOUND, path, "there is no chat_template (nor one named \"default\")");
    }
    json_drop(root);
    return t;
}

static void name_file(struct error *err, const char *path)
{
    char where[sizeof(err->where)];
    if (!err) return;
    snprintf(where, sizeof(where), "%.200s: %.50s", path, err->where);
    memcpy(err->where, where, sizeof(where));
}

struct chat_template *chat_template_find(const char *dir, struct error *err)
{
    char path[PATH_LEN];
    struct buf source = {0};
    if (path_join(path, sizeof(path), err, "%s/chat_template.jinja", dir)) return NULL;
    if (file_exists(path)) {
        if (file_read(path, TEMPLATE_MAX, &source, err)) return NULL;
        struct chat_template *t = chat_template_compile(source.data, source.len, err);
        if (!t) name_file(err, path);
        buf_release(&source);
        return t;
    }
    if (path_join(path, sizeof(path), err, "%s/tokenizer_config.json", dir)) return NULL;
    if (!file_exists(path)) {
        error_set(err, ERR_NOT_FOUND, dir, "there is neither chat_template.jinja nor tokenizer_config.json");
        return NULL;
    }
    struct chat_template *t = from_config(path, err);
    if (!t && err && strncmp(err->where, "line ", 5) == 0) name_file(err, path);
    return t;
}

/* ---- rendering ---- */

void raise_error(struct render *r, const char *fmt, ...)
{
    char text[768];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    fault_raise(&r->fault, ERR_INPUT, "%s", text);
}

void raise_unsupported(struct render *r, const char *what)
{
    fault_raise(&r->fault, ERR_UNSUPPORTED, "%s is not supported", what);
}

void *render_alloc(struct render *r, size_t size)
{
    r->memory += size + 16;
    if (r->memory > MEMORY_MAX)
        fault_raise(&r->fault, ERR_FULL, "the template needs more than %zu MiB of memory", MEMORY_MAX >> 20);
    return memset(arena_alloc(&r->arena, size), 0, size);
}

void spend(struct render *r, u64 steps)
{
    r->steps += steps;
    if (r->steps > STEPS_MAX)
        fault_raise(&r->fault, ERR_FULL, "the template needs more than %llu steps",
                    (unsigned long long)STEPS_MAX);
}

void go_deeper(struct render *r)
{
    enum { DEPTH = 1000 };
    if (++r->depth > DEPTH) raise_error(r, "maximum recursion depth exceeded");
}

static struct value text_of(const struct json *v, enum origin origin)
{
    return (struct value){.kind = V_TEXT, .origin = origin, .len = (u32)json_len(v), .text = json_text(v)};
}

/* Depth is bounded by the reader of JSON. */
static struct value value_of(struct render *r, const struct json *v)
{
    struct value out = v_none();
    switch (json_kind(v)) {
    case JK_BOOL: return v_bool(json_bool(v, false));
    case JK_INT: return v_int(json_int(v, 0));
    case JK_REAL: return v_real(json_real(v, 0));
    case JK_TEXT: return text_of(v, FROM_CONTENT);
    case JK_ARRAY:
        out = v_list(V_LIST, list_new(r, (u32)json_len(v)));
        for (size_t i = 0; i < json_len(v); i++) list_add(r, out.list, value_of(r, json_item(v, i)));
        return out;
    case JK_OBJECT:
        out = (struct value){.kind = V_DICT, .dict = dict_new(r)};
        out.dict->pairs = render_alloc(r, (json_len(v) + 1) * sizeof(*out.dict->pairs));
        out.dict->cap = (u32)json_len(v) + 1;
        for (void *it = json_first(v); it; it = json_next(v, it)) {
            struct value key = {
                .kind = V_TEXT, .origin = FROM_CONTENT, .len = (u32)json_key_len(it), .text = json_key(it)};
            out.dict->pairs[out.dict->n++] = (struct pair){key, value_of(r, json_value(it))};
        }
        return out;
    default: return out;
    }
}

/* Templates build special tokens from roles ("<|" + role + "|>"), and the API admits known roles only: a plain word there is
 * as good as the template's. */
static void trust_roles(struct render *r, struct value messages)
{
    for (u32 i = 0; messages.kind == V_LIST && i < messages.list->n; i++) {
        if (messages.list->items[i].kind != V_DICT) continue;
        const struct value *role = dict_get_name(r, messages.list->items[i].dict, "role", 4);
        bool plain = role && role->kind == V_TEXT;
        for (u32 k = 0; plain && k < role->len; k++)
            plain = isalpha((u8)role->text[k]) || role->text[k] == '_';
        if (plain) ((struct value *)role)->origin = FROM_TEMPLATE;
    }
}

static void build_context(struct render *r, const struct json *context)
{
    static const char suffix[] = "_token";
    if (json_kind(context) != JK_OBJECT) raise_error(r, "the context must be an object");
    r->context = value_of(r, context).dict;
    for (u32 i = 0; i < r->context->n; i++) {
        struct pair *p = &r->context->pairs[i];
        size_t n = strlen(suffix);
        bool is_token = p->key.len > n && memcmp(p->key.text + p->key.len - n, suffix, n) == 0;
        if (is_token && p->value.kind == V_TEXT) p->value.origin = FROM_TEMPLATE;
        if (is_text(p->key, "messages")) trust_roles(r, p->value);
    }
}

static void add_output(const struct writer *w, struct buf *out, struct text_spans *content)
{
    size_t before = out->len;
    buf_add(out, w->data, w->len);
    if (!content) return;
    if (!w->marks) {
        if (w->origin == FROM_CONTENT) text_spans_add(content, before, before + w->len);
        return;
    }
    for (size_t at = 0; at < w->len;) {
        size_t to = at + 1;
        while (to < w->len && w->marks[to] == w->marks[at]) to++;
        if (w->marks[at] == FROM_CONTENT) text_spans_add(content, before + at, before + to);
        at = to;
    }
}

int chat_template_render(const struct chat_template *t, const struct json *context, i64 now, struct buf *out,
                         struct text_spans *content, struct error *err)
{
    struct writer w = {0};
    struct render *r =
        mem_zero(1, sizeof(*r)); /* on the heap: what longjmp comes back to must not be in registers */
    r->fault = (struct fault){.err = err, .line = 1};
    r->now = now;
    r->out = &w;
    arena_init(&r->arena, 64 * 1024);
    if (setjmp(r->fault.back) == 0) {
        build_context(r, context);
        r->scope = scope_push(r, NULL);
        run_body(r, &t->body);
        add_output(&w, out, content);
    }
    int rc = r->fault.code;
    arena_release(&r->arena);
    free(r);
    return rc;
}
