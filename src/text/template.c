/* Chat templates: finding, compiling, rendering. */
#include "text/template.h"
#include "text/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEMPLATE_MAX = 4 << 20, CONFIG_MAX = 16 << 20 };
static const u64 STEPS_MAX = 10 * 1000 * 1000;
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
    t->source = arena_text(&t->arena, source, len);
    t->source_len = len;
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

struct chat_template *chat_template_read(const char *path, struct error *err)
{
    struct buf source = {0};
    if (file_read(path, TEMPLATE_MAX, &source, err)) return NULL;
    struct chat_template *t = chat_template_compile(source.data ? source.data : "", source.len, err);
    if (!t) name_file(err, path);
    buf_release(&source);
    return t;
}

struct chat_template *chat_template_find(const char *dir, struct error *err)
{
    char path[PATH_LEN];
    if (path_join(path, sizeof(path), err, "%s/chat_template.jinja", dir)) return NULL;
    if (file_exists(path)) return chat_template_read(path, err);
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

static int render(const struct chat_template *t, const struct json *context, unsigned flags, i64 now,
                  struct buf *out, struct text_spans *content, bool *refused, struct error *err)
{
    struct writer w = {0};
    struct render *r =
        mem_zero(1, sizeof(*r)); /* on the heap: what longjmp comes back to must not be in registers */
    r->fault = (struct fault){.err = err, .line = 1};
    r->now = now;
    r->out = &w;
    arena_init(&r->arena, 64 * 1024);
    if (setjmp(r->fault.back) == 0) {
        build_context(r, context, flags);
        r->top = r->scope = scope_push(r, NULL);
        run_body(r, &t->body);
        if (flags & RENDER_CONTINUE_FINAL) cut_at_marker(r, &w);
        add_output(&w, out, content);
    }
    int rc = r->fault.code;
    *refused = r->refused && rc;
    arena_release(&r->arena);
    free(r);
    return rc;
}

int chat_template_render(const struct chat_template *t, const struct json *context, unsigned flags, i64 now,
                         struct buf *out, struct text_spans *content, struct error *err)
{
    bool refused;
    return render(t, context, flags, now, out, content, &refused, err);
}

/* ---- a try before there are requests ---- */

#define USER(text) "{\"role\":\"user\",\"content\":\"" text "\"}"
static const char *const tries[] = {
    [TRY_USER] = "\"messages\":[" USER("Hello") "],\"tools\":null",
    [TRY_TURNS] = "\"messages\":[{\"role\":\"system\",\"content\":\"Be brief.\"}," USER(
        "Hello") ",{\"role\":\"assistant\",\"content\":\"Hi.\"}," USER("What now?") "],\"tools\":null",
    [TRY_TOOLS] = "\"messages\":[" USER(
        "Hello") ",{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"id\":\"call_000001\",\"type\":"
                 "\"function\","
                 "\"function\":{\"name\":\"look\",\"arguments\":{\"at\":\"x\"}}}]},{\"role\":\"tool\","
                 "\"name\":\"look\","
                 "\"tool_call_id\":\"call_000001\",\"content\":\"42\"}],\"tools\":[{\"type\":\"function\","
                 "\"function\":{"
                 "\"name\":\"look\",\"description\":\"Looks.\",\"parameters\":{\"type\":\"object\","
                 "\"properties\":{\"at\":{"
                 "\"type\":\"string\",\"description\":\"Where.\"}},\"required\":[\"at\"]}}}]",
};

int chat_template_try(const struct chat_template *tmpl, const struct tokenizer *tokens, enum try what,
                      struct error *err)
{
    static const char *const named[] = {"bos", "eos", "pad", "unk"};
    struct buf text = {0}, out = {0};
    bool refused = false;
    buf_printf(&text, "{%s,\"documents\":null,\"add_generation_prompt\":true", tries[what]);
    for (size_t i = 0; tokens && i < COUNT_OF(named); i++) {
        struct json_out o;
        if (!tokenizer_named_text(tokens, named[i])) continue;
        buf_printf(&text, ",\"%s_token\":", named[i]);
        json_out_init(&o, &text);
        json_out_str(&o, tokenizer_named_text(tokens, named[i]));
    }
    buf_char(&text, '}');
    struct json *context = json_read(text.data, text.len, err);
    int rc = context ? render(tmpl, context, 0, clock_unix(), &out, NULL, &refused, err) : ERR_INPUT;
    json_drop(context);
    buf_release(&text);
    buf_release(&out);
    return refused ? ERR_STATE : rc;
}
