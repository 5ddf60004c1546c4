/* /tokenize, /detokenize and /apply-template. */
#include "ingress/http.h"
#include "ingress/prompts.h"

#include <string.h>

struct options {  /* what only these pages know */
    bool content; /* llama.cpp's field instead of `prompt` */
    bool pieces, strings, split_special, add_special;
};

static int read_bool(const struct json *body, const char *key, bool otherwise, bool *to, struct api_error *e)
{
    const struct json *v = json_get(body, key);
    *to = json_bool(v, otherwise);
    if (json_kind(v) <= JK_NULL || json_kind(v) == JK_BOOL) return 0;
    return api_fail(e, API_BAD_VALUE, key, "`%s` must be a boolean, but is %s.", key,
                    json_kind_name(json_kind(v)));
}

static int read_options(const struct json *body, struct options *o, struct api_error *e)
{
    bool parse;
    *o = (struct options){.content = json_kind(json_get(body, "content")) > JK_NULL};
    if (read_bool(body, "with_pieces", false, &o->pieces, e) < 0) return -1;
    if (read_bool(body, "return_token_strs", false, &o->strings, e) < 0) return -1;
    if (read_bool(body, "parse_special", true, &parse, e) < 0) return -1;
    o->split_special = !parse;
    const char *key = o->content ? "add_special" : "add_special_tokens";
    return read_bool(body, key, !o->content, &o->add_special, e);
}

static int encode_text(const struct ingress *in, const struct json *body, const struct options *o,
                       struct arena *mem, struct prompt *out, struct api_error *e)
{
    const char *key = o->content ? "content" : "prompt";
    const struct json *v = json_get(body, key);
    if (json_kind(v) != JK_TEXT)
        return api_fail(e, API_BAD_VALUE, key, "`%s` must be a string (or send `messages`).", key);
    struct ids ids = {0};
    struct error err;
    unsigned flags =
        (o->add_special ? TOKENIZE_ADD_SPECIAL : 0) | (o->split_special ? TOKENIZE_SPLIT_SPECIAL : 0);
    if (tokenizer_encode(in->tokenizer, json_text(v), json_len(v), flags, &ids, &err) < 0) {
        ids_release(&ids);
        return api_fail(e, API_BAD_VALUE, key, "`%s` cannot be tokenized: %s", key, err.message);
    }
    out->ids = arena_alloc(mem, (ids.len + 1) * sizeof(i32));
    if (ids.len) memcpy(out->ids, ids.data, ids.len * sizeof(i32));
    out->n = (u32)ids.len;
    ids_release(&ids);
    return 0;
}

static int encode_messages(const struct ingress *in, const struct json *body, struct arena *mem,
                           struct prompt *out, struct api_error *e)
{
    struct params p;
    if (params_read_prompt(&p, body, &in->limits, mem, e) < 0) return -1;
    return prompts_chat(in, &p, mem, out, e);
}

static void add_piece(const struct ingress *in, struct json_out *o, i32 id)
{
    size_t len;
    const char *bytes = tokenizer_token_bytes(in->tokenizer, id, &len);
    json_out_text(o, bytes ? bytes : "", len);
}

static void write_tokens(const struct ingress *in, const struct prompt *p, const struct options *options,
                         struct buf *body)
{
    struct json_out o;
    json_out_init(&o, body);
    json_out_object(&o);
    json_out_key(&o, "count");
    json_out_int(&o, p->n);
    json_out_key(&o, "max_model_len");
    json_out_int(&o, in->limits.max_len);
    json_out_key(&o, "tokens");
    json_out_array(&o);
    for (u32 i = 0; i < p->n; i++) {
        if (!options->pieces) {
            json_out_int(&o, p->ids[i]);
            continue;
        }
        json_out_object(&o);
        json_out_key(&o, "id");
        json_out_int(&o, p->ids[i]);
        json_out_key(&o, "piece");
        add_piece(in, &o, p->ids[i]);
        json_out_end_object(&o);
    }
    json_out_end_array(&o);
    json_out_key(&o, "token_strs");
    if (options->strings) {
        json_out_array(&o);
        for (u32 i = 0; i < p->n; i++) add_piece(in, &o, p->ids[i]);
        json_out_end_array(&o);
    } else {
        json_out_null(&o);
    }
    json_out_end_object(&o);
}

/* The parts that both pages share: a body that is an object, and a model of ours. */
static struct json *open_body(struct exchange *x, struct api_error *e)
{
    struct json *body = body_read(x, e);
    if (!body) return NULL;
    const struct json *model = json_get(body, "model");
    int rc = 0;
    if (json_kind(body) != JK_OBJECT)
        rc = api_fail(e, API_BAD_VALUE, NULL, "The body must be a JSON object, but is %s.",
                      json_kind_name(json_kind(body)));
    else if (json_kind(model) > JK_NULL && json_kind(model) != JK_TEXT)
        rc = api_fail(e, API_BAD_VALUE, "model", "`model` must be a string.");
    if (rc == 0) rc = model_check(x->in, json_text(model), NULL, e);
    if (rc == 0) return body;
    json_drop(body);
    return NULL;
}

int answer_tokenize(struct exchange *x)
{
    struct api_error e;
    struct options o;
    struct arena mem;
    struct prompt prompt = {0};
    struct buf answer = {0};
    struct json *body = open_body(x, &e);
    if (!body) return reply_error(x, &e);
    arena_init(&mem, 0);
    int rc = read_options(body, &o, &e);
    if (rc == 0 && json_kind(json_get(body, "messages")) > JK_NULL)
        rc = encode_messages(x->in, body, &mem, &prompt, &e);
    else if (rc == 0)
        rc = encode_text(x->in, body, &o, &mem, &prompt, &e);
    if (rc == 0) write_tokens(x->in, &prompt, &o, &answer);
    arena_release(&mem);
    json_drop(body);
    return rc == 0 ? reply_json(x, 200, &answer) : reply_error(x, &e);
}

int answer_detokenize(struct exchange *x)
{
    struct api_error e;
    struct arena mem;
    struct buf answer = {0}, text = {0};
    i32 *ids;
    u32 n;
    struct json *body = open_body(x, &e);
    if (!body) return reply_error(x, &e);
    arena_init(&mem, 0);
    const struct json *tokens = json_get(body, "tokens");
    int rc = json_kind(tokens) == JK_ARRAY
                 ? api_ids(tokens, "tokens", x->in->limits.vocab, &mem, &ids, &n, &e)
                 : api_fail(&e, API_BAD_VALUE, "tokens", "`tokens` must be an array.");
    if (rc == 0) {
        struct json_out o;
        tokenizer_decode(x->in->tokenizer, ids, n, false, &text);
        json_out_init(&o, &answer);
        json_out_object(&o);
        json_out_key(&o, "prompt");
        json_out_text(&o, text.data ? text.data : "", text.len);
        json_out_key(&o, "content");
        json_out_text(&o, text.data ? text.data : "", text.len);
        json_out_end_object(&o);
    }
    buf_release(&text);
    arena_release(&mem);
    json_drop(body);
    return rc == 0 ? reply_json(x, 200, &answer) : reply_error(x, &e);
}

/* The prompt of a chat: its text and its tokens, as /v1/chat/completions would use them. */
int answer_apply_template(struct exchange *x)
{
    struct api_error e;
    struct arena mem;
    struct prompt prompt = {0};
    struct buf answer = {0};
    struct json *body = open_body(x, &e);
    if (!body) return reply_error(x, &e);
    arena_init(&mem, 0);
    int rc = encode_messages(x->in, body, &mem, &prompt, &e);
    if (rc == 0) {
        struct json_out o;
        json_out_init(&o, &answer);
        json_out_object(&o);
        json_out_key(&o, "prompt");
        json_out_text(&o, prompt.text.text ? prompt.text.text : "", prompt.text.len);
        json_out_key(&o, "count");
        json_out_int(&o, prompt.n);
        json_out_key(&o, "tokens");
        json_out_array(&o);
        for (u32 i = 0; i < prompt.n; i++) json_out_int(&o, prompt.ids[i]);
        json_out_end_array(&o);
        json_out_end_object(&o);
    }
    arena_release(&mem);
    json_drop(body);
    return rc == 0 ? reply_json(x, 200, &answer) : reply_error(x, &e);
}
