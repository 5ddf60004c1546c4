/* Chat messages as templates want them: content is a text, arguments of tool calls are objects; and the other variables that a
 * template sees. */
#include "ingress/prompts.h"

#include <stdio.h>
#include <string.h>

enum { PATH_SIZE = 48, LONG_PATH = 112 };

static int add_part(struct buf *text, const struct json *part, const char *path, struct api_error *e)
{
    const char *type = json_text(json_get(part, "type"));
    if (!type) return api_fail(e, API_BAD_VALUE, path, "`%s` must be an object with a `type`.", path);
    const char *key = strcmp(type, "refusal") == 0 ? "refusal" : "text";
    if (strcmp(type, "text") != 0 && strcmp(type, "refusal") != 0)
        return api_fail(e, API_UNSUPPORTED, path,
                        "`%s` has a type other than \"text\": the models served take text only.", path);
    const struct json *v = json_get(part, key);
    if (!json_text(v)) return api_fail(e, API_BAD_VALUE, path, "`%s.%s` must be a string.", path, key);
    if (text->len) buf_char(text, '\n');
    buf_add(text, json_text(v), json_len(v));
    return 0;
}

static int add_content(struct json_out *o, const struct json *v, const char *message, struct api_error *e)
{
    char path[LONG_PATH];
    struct buf text = {0};
    int rc = 0;
    enum json_kind kind = json_kind(v);
    snprintf(path, sizeof(path), "%s.content", message);
    if (kind == JK_TEXT)
        buf_add(&text, json_text(v), json_len(v));
    else if (kind > JK_NULL && kind != JK_ARRAY)
        rc = api_fail(e, API_BAD_VALUE, path, "`%s` must be a string or an array of parts, but is %s.", path,
                      json_kind_name(kind));
    for (size_t i = 0; rc == 0 && kind == JK_ARRAY && i < json_len(v); i++) {
        char part[LONG_PATH + 32];
        snprintf(part, sizeof(part), "%s[%zu]", path, i);
        rc = add_part(&text, json_item(v, i), part, e);
    }
    json_out_key(o, "content");
    json_out_text(o, text.data ? text.data : "", text.len);
    buf_release(&text);
    return rc;
}

/* {"name":...,"arguments":"{...}"}: the arguments come as a text, and templates want what it says. */
static int add_function(struct json_out *o, const struct json *function, const char *path,
                        struct api_error *e)
{
    json_out_object(o);
    for (void *it = json_first(function); it; it = json_next(function, it)) {
        const struct json *v = json_value(it);
        json_out_key(o, json_key(it));
        if (strcmp(json_key(it), "arguments") != 0 || json_kind(v) != JK_TEXT) {
            json_out_value(o, v);
            continue;
        }
        struct error err;
        bool none = json_len(v) == 0; /* of a function without parameters */
        struct json *arguments = json_read(none ? "{}" : json_text(v), none ? 2 : json_len(v), &err);
        if (!arguments)
            return api_fail(e, API_BAD_VALUE, path, "`%s.function.arguments` is not JSON: %s.", path,
                            err.message);
        json_out_value(o, arguments);
        json_drop(arguments);
    }
    json_out_end_object(o);
    return 0;
}

static int add_tool_calls(struct json_out *o, const struct json *calls, const char *message,
                          struct api_error *e)
{
    char path[LONG_PATH];
    snprintf(path, sizeof(path), "%s.tool_calls", message);
    if (json_kind(calls) != JK_ARRAY) return api_fail(e, API_BAD_VALUE, path, "`%s` must be an array.", path);
    json_out_key(o, "tool_calls");
    json_out_array(o);
    for (size_t i = 0; i < json_len(calls); i++) {
        const struct json *call = json_item(calls, i);
        snprintf(path, sizeof(path), "%s.tool_calls[%zu]", message, i);
        if (json_kind(json_get(call, "function")) != JK_OBJECT)
            return api_fail(e, API_BAD_VALUE, path, "`%s` must be an object with a `function`.", path);
        json_out_object(o);
        for (void *it = json_first(call); it; it = json_next(call, it)) {
            json_out_key(o, json_key(it));
            if (strcmp(json_key(it), "function") != 0)
                json_out_value(o, json_value(it));
            else if (add_function(o, json_value(it), path, e) < 0)
                return -1;
        }
        json_out_end_object(o);
    }
    json_out_end_array(o);
    return 0;
}

static int add_message(struct json_out *o, const struct json *m, size_t index, struct api_error *e)
{
    static const char *const roles[] = {"system", "developer", "user", "assistant", "tool", "function"};
    char path[PATH_SIZE];
    snprintf(path, sizeof(path), "messages[%zu]", index);
    if (json_kind(m) != JK_OBJECT)
        return api_fail(e, API_BAD_VALUE, path, "`%s` must be an object, but is %s.", path,
                        json_kind_name(json_kind(m)));
    const char *role = json_text(json_get(m, "role"));
    size_t known = 0;
    while (role && known < COUNT_OF(roles) && strcmp(role, roles[known]) != 0) known++;
    if (!role || known == COUNT_OF(roles)) {
        strcat(path, ".role");
        return api_fail(e, API_BAD_VALUE, path,
                        "`%s` must be one of system, developer, user, assistant, tool, function.", path);
    }
    json_out_object(o);
    json_out_key(o, "role");
    json_out_str(o, role);
    if (json_kind(json_get(m, "content")) <= JK_NULL && strcmp(role, "assistant") != 0) {
        strcat(path, ".content");
        return api_fail(e, API_BAD_VALUE, path, "`%s` is required.", path);
    }
    if (add_content(o, json_get(m, "content"), path, e) < 0) return -1;
    for (void *it = json_first(m); it; it = json_next(m, it)) {
        const char *key = json_key(it);
        if (strcmp(key, "role") == 0 || strcmp(key, "content") == 0 || json_kind(json_value(it)) == JK_NULL)
            continue;
        if (strcmp(key, "tool_calls") == 0) {
            if (add_tool_calls(o, json_value(it), path, e) < 0) return -1;
            continue;
        }
        json_out_key(o, key);
        json_out_value(o, json_value(it));
    }
    json_out_end_object(o);
    return 0;
}

/* ---- the other variables ------------------------------------------------------------------------------------- */
/* A template trusts the members that end in _token: only the model's files set them. */
static int check_kwargs(const struct json *kwargs, struct api_error *e)
{
    static const char *const ours[] = {"messages", "tools", "documents", "add_generation_prompt"};
    for (void *it = json_first(kwargs); it; it = json_next(kwargs, it)) {
        const char *key = json_key(it);
        size_t len = json_key_len(it);
        bool taken = len >= 6 && strcmp(key + len - 6, "_token") == 0;
        for (size_t i = 0; i < COUNT_OF(ours); i++) taken |= strcmp(key, ours[i]) == 0;
        if (taken || strlen(key) != len)
            return api_fail(e, API_BAD_VALUE, "chat_template_kwargs",
                            "`chat_template_kwargs` must not set `%.60s`.", key);
    }
    return 0;
}

static void add_variables(struct json_out *o, const struct ingress *in, const struct params *p)
{
    static const char *const named[] = {"bos", "eos", "pad", "unk"};
    json_out_key(o, "tools");
    if (json_len(p->tools))
        json_out_value(o, p->tools);
    else
        json_out_null(o);
    json_out_key(o, "documents");
    if (p->documents)
        json_out_value(o, p->documents);
    else
        json_out_null(o);
    json_out_key(o, "add_generation_prompt");
    json_out_bool(o, p->add_generation_prompt && !p->continue_final);
    for (size_t i = 0; i < COUNT_OF(named); i++) {
        char key[16];
        const char *text = tokenizer_named_text(in->tokenizer, named[i]);
        if (!text) continue;
        snprintf(key, sizeof(key), "%s_token", named[i]);
        json_out_key(o, key);
        json_out_str(o, text);
    }
    if (p->reasoning_effort && !json_get(p->template_kwargs, "reasoning_effort")) {
        json_out_key(o, "reasoning_effort");
        json_out_str(o, p->reasoning_effort);
    }
    if (p->reasoning_effort && !json_get(p->template_kwargs, "enable_thinking")) {
        json_out_key(o, "enable_thinking");
        json_out_bool(o, strcmp(p->reasoning_effort, "none") != 0);
    }
    for (void *it = json_first(p->template_kwargs); it; it = json_next(p->template_kwargs, it)) {
        json_out_key(o, json_key(it));
        json_out_value(o, json_value(it));
    }
}

struct json *messages_context(const struct ingress *in, const struct params *p, struct api_error *e)
{
    struct buf text = {0};
    struct json_out o;
    struct json *context = NULL;
    size_t n = json_len(p->messages);
    int rc = 0;
    if (n == 0) rc = api_fail(e, API_BAD_VALUE, "messages", "`messages` is empty.");
    if (rc == 0) rc = check_kwargs(p->template_kwargs, e);
    json_out_init(&o, &text);
    json_out_object(&o);
    json_out_key(&o, "messages");
    json_out_array(&o);
    for (size_t i = 0; rc == 0 && i < n; i++) rc = add_message(&o, json_item(p->messages, i), i, e);
    if (rc == 0) {
        json_out_end_array(&o);
        add_variables(&o, in, p);
        json_out_end_object(&o);
        struct error err;
        context = json_read(text.data, text.len, &err);
        if (!context) api_fail(e, API_BAD_VALUE, "messages", "`messages` cannot be used: %s.", err.message);
    }
    buf_release(&text);
    return context;
}
