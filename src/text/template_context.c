/* The variables of a template: JSON as values, and what is done to the messages before and after a render. */
#include "text/template.h"

#include <ctype.h>
#include <string.h>

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
    case JK_BIG: return big_from_digits(r, json_digits(v));
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

/* Templates know the text of a model's reasoning by different names. */
static void alias_reasoning(struct render *r, struct value messages)
{
    static const char *const names[] = {"reasoning_content", "reasoning", "thinking"};
    for (u32 i = 0; messages.kind == V_LIST && i < messages.list->n; i++) {
        struct value message = messages.list->items[i];
        const struct value *text = NULL;
        for (size_t k = 0; message.kind == V_DICT && k < COUNT_OF(names) && !text; k++) {
            text = dict_get_name(r, message.dict, names[k], strlen(names[k]));
            if (text && text->kind != V_TEXT) text = NULL;
        }
        if (!text) continue;
        struct value copy = *text; /* dict_set may move it */
        for (size_t k = 0; k < COUNT_OF(names); k++) {
            if (!dict_get_name(r, message.dict, names[k], strlen(names[k])))
                dict_set(r, message.dict, v_text(names[k]), copy);
        }
    }
}

/* ---- continuing the final message: its text gets a marker, and the output ends where the marker is ---- */

#define MARKER "CONTINUE_FINAL_MESSAGE_TAG"

/* The text that the final message ends with: its content or the last text part of it. */
static struct value *final_text(struct render *r, struct value messages)
{
    if (messages.kind != V_LIST || messages.list->n == 0)
        raise_error(r, "continue_final_message is set but the conversation is empty!");
    struct value last = messages.list->items[messages.list->n - 1];
    struct value *content =
        last.kind == V_DICT ? (struct value *)dict_get_name(r, last.dict, "content", 7) : NULL;
    if (!content || content->kind == V_TEXT) return content;
    for (u32 i = content->kind == V_LIST ? content->list->n : 0; i > 0; i--) {
        struct value block = content->list->items[i - 1];
        struct value *text =
            block.kind == V_DICT ? (struct value *)dict_get_name(r, block.dict, "text", 4) : NULL;
        if (text) return text->kind == V_TEXT ? text : NULL;
    }
    return NULL;
}

static void mark_final(struct render *r, struct value messages)
{
    struct value *text = final_text(r, messages);
    if (!text) raise_error(r, "continue_final_message is set but the final message has no text");
    r->final = *text;
    *text = binary(r, OP_ADD, *text, v_text(MARKER " "));
}

/* A template that strips its messages takes the marker's space away: then the text's own goes as well. */
void cut_at_marker(struct render *r, struct writer *w)
{
    if (r->final.kind != V_TEXT)
        raise_error(r, "continue_final_message is set but the conversation is empty!");
    struct value all = written(r, w), marker = v_text(MARKER),
                 final = text_strip(r, r->final, NULL, true, true);
    const char *last = NULL;
    for (const char *hit = all.text; (hit = find_text(all, (size_t)(hit - all.text), marker)); hit++)
        last = hit;
    if (!last || !find_text(all, 0, final))
        raise_error(
            r, "continue_final_message is set but the final message does not appear in the chat after the "
               "template was applied");
    w->len = (size_t)(last - all.text);
    if (last[marker.len] != ' ') w->len = text_strip(r, part(all, 0, w->len), NULL, false, true).len;
}

void build_context(struct render *r, const struct json *context, unsigned flags)
{
    static const char suffix[] = "_token";
    if (json_kind(context) != JK_OBJECT) raise_error(r, "the context must be an object");
    r->context = value_of(r, context).dict;
    for (u32 i = 0; i < r->context->n; i++) {
        struct pair *p = &r->context->pairs[i];
        size_t n = strlen(suffix);
        bool is_token = p->key.len > n && memcmp(p->key.text + p->key.len - n, suffix, n) == 0;
        if (is_token && p->value.kind == V_TEXT) p->value.origin = FROM_TEMPLATE;
        if (!is_text(p->key, "messages")) continue;
        trust_roles(r, p->value);
        if (flags & RENDER_REASONING_ALIAS) alias_reasoning(r, p->value);
        if (flags & RENDER_CONTINUE_FINAL) mark_final(r, p->value);
    }
}
