/* Prompts: text to ids, ids checked, lengths kept within the context. */
#include "ingress/prompts.h"

#include <stdio.h>
#include <string.h>

enum { COUNT_EXACTLY = 1 << 20 /* bytes */ };

i32 *prompts_keep(struct arena *mem, struct ids *ids, u32 *n)
{
    i32 *out = arena_alloc(mem, (ids->len + 1) * sizeof(*out));
    if (ids->len) memcpy(out, ids->data, ids->len * sizeof(*out));
    *n = (u32)ids->len;
    ids_release(ids);
    return out;
}

int prompts_encode(const struct ingress *in, const char *path, const char *text, size_t len, bool special,
                   struct ids *ids, struct api_error *e)
{
    struct error err;
    if (tokenizer_encode(in->tokenizer, text, len, special ? TOKENIZE_ADD_SPECIAL : 0, ids, &err) == 0)
        return 0;
    return api_fail(e, API_BAD_VALUE, path, "`%s` cannot be tokenized: %s", path, err.message);
}

/* Tokenizing takes time, so a long text that cannot fit whatever its tokens are is refused before. Then the number of its
 * tokens is the least there can be. */
int prompts_check_size(const struct ingress *in, const struct params *p, size_t len, struct api_error *e)
{
    size_t least = len / in->longest_token;
    if (len <= COUNT_EXACTLY || least <= in->limits.max_len || p->truncate_prompt_tokens != PARAM_NONE)
        return 0;
    return api_context_overflow(e, (u32)least, in->limits.max_len);
}

/* The text as it is to be tokenized: an embedding model may want a prompt in front of it, and all of it in lower case. */
static int encode_text(const struct ingress *in, const struct params *p, const struct json *v,
                       const char *path, struct ids *ids, struct api_error *e)
{
    const struct pooling_config *pooling = &in->spec.model->pooling;
    if (!pooling->prompt[0] && !pooling->lowercase)
        return prompts_encode(in, path, json_text(v), json_len(v), p->add_special, ids, e);
    struct buf text = {0}, lower = {0};
    buf_text(&text, pooling->prompt);
    buf_add(&text, json_text(v), json_len(v));
    if (pooling->lowercase) text_lower_case(text.data, text.len, &lower);
    const struct buf *whole = pooling->lowercase ? &lower : &text;
    int rc = prompts_encode(in, path, whole->data, whole->len, p->add_special, ids, e);
    buf_release(&text);
    buf_release(&lower);
    return rc;
}

static int text_prompt(const struct ingress *in, const struct params *p, const struct json *v,
                       const char *path, struct arena *mem, struct prompt *out, struct api_error *e)
{
    struct ids ids = {0};
    if (!json_len(v)) return api_fail(e, API_BAD_VALUE, path, "`%s` is empty.", path);
    if (prompts_check_size(in, p, json_len(v), e) < 0) return -1;
    if (encode_text(in, p, v, path, &ids, e) < 0) {
        ids_release(&ids);
        return -1;
    }
    out->ids = prompts_keep(mem, &ids, &out->n);
    if (p->add_special) tokenizer_around(in->tokenizer, &out->before, &out->behind);
    if (!out->n) return api_fail(e, API_BAD_VALUE, path, "`%s` has no tokens.", path);
    if (p->echo) out->text = (struct api_text){arena_text(mem, json_text(v), json_len(v)), json_len(v)};
    return 0;
}

static int id_prompt(const struct ingress *in, const struct json *v, const char *path, struct arena *mem,
                     struct prompt *out, struct api_error *e)
{
    if (!json_len(v)) return api_fail(e, API_BAD_VALUE, path, "`%s` is empty.", path);
    return api_ids(v, path, in->limits.vocab, mem, &out->ids, &out->n, e);
}

static int prompt_list(const struct ingress *in, const struct params *p, struct arena *mem,
                       struct prompt *out, struct api_error *e)
{
    enum json_kind kind = json_kind(json_item(p->prompt, 0));
    const char *name = api_prompt_name(p->api);
    for (size_t i = 0; i < json_len(p->prompt); i++) {
        const struct json *v = json_item(p->prompt, i);
        char path[40];
        snprintf(path, sizeof(path), "%s[%zu]", name, i);
        if (json_kind(v) != kind || (kind != JK_TEXT && kind != JK_ARRAY))
            return api_fail(
                e, API_BAD_VALUE, path,
                "`%s` must be a string, an array of strings, an array of token ids, or an array of "
                "arrays of token ids; `%s` is %s.",
                name, path, json_kind_name(json_kind(v)));
        int rc = kind == JK_TEXT ? text_prompt(in, p, v, path, mem, &out[i], e)
                                 : id_prompt(in, v, path, mem, &out[i], e);
        if (rc < 0) return -1;
    }
    return 0;
}

int prompts_read(const struct ingress *in, const struct params *p, struct arena *mem, struct prompt **prompts,
                 u32 *n, struct api_error *e)
{
    enum json_kind kind = json_kind(p->prompt);
    size_t count = kind == JK_ARRAY && json_kind(json_item(p->prompt, 0)) != JK_INT ? json_len(p->prompt) : 1;
    const char *name = api_prompt_name(p->api);
    u32 most = p->api == API_EMBEDDINGS ? MAX_INPUTS : MAX_PROMPTS;
    if (kind != JK_TEXT && kind != JK_ARRAY)
        return api_fail(e, API_BAD_VALUE, name, "`%s` must be a string or an array, but is %s.", name,
                        json_kind_name(kind));
    if (count < 1) return api_fail(e, API_BAD_VALUE, name, "`%s` is empty.", name);
    if (count > most || count * (u64)p->n > MAX_CHOICES)
        return api_fail(
            e, API_BAD_VALUE, name,
            "`%s` has %zu prompts with %lld choices each; at most %u prompts and %d choices are allowed.",
            name, count, (long long)p->n, most, MAX_CHOICES);
    struct prompt *out = arena_alloc(mem, count * sizeof(*out));
    memset(out, 0, count * sizeof(*out));
    *prompts = out;
    *n = (u32)count;
    if (kind == JK_TEXT) return text_prompt(in, p, p->prompt, name, mem, out, e);
    if (json_kind(json_item(p->prompt, 0)) == JK_INT) return id_prompt(in, p->prompt, name, mem, out, e);
    return prompt_list(in, p, mem, out, e);
}

/* ---- chat ---------------------------------------------------------------------------------------------------- */
static int render(const struct ingress *in, const struct params *p, struct buf *text,
                  struct text_spans *spans, struct api_error *e)
{
    struct json *context = messages_context(in, p, e);
    if (!context) return -1;
    struct error err;
    unsigned flags = RENDER_REASONING_ALIAS | (p->continue_final ? RENDER_CONTINUE_FINAL : 0);
    int rc = chat_template_render(in->chat_template, context, flags, clock_unix(), text, spans, &err);
    if (rc < 0)
        api_fail(e, API_BAD_VALUE, "messages", "The chat template refuses these messages: %s", err.message);
    json_drop(context);
    return rc;
}

int prompts_chat(const struct ingress *in, const struct params *p, struct arena *mem, struct prompt *prompt,
                 struct api_error *e)
{
    if (!in->chat_template) return api_fail(e, API_UNSUPPORTED, "messages", "%s", in->none_why);
    struct buf text = {0};
    struct text_spans spans = {0};
    struct ids ids = {0};
    struct error err;
    int rc = render(in, p, &text, &spans, e);
    if (rc == 0) rc = prompts_check_size(in, p, text.len, e);
    if (rc == 0) {
        while (spans.len && spans.data[spans.len - 1].from >= text.len) spans.len--;
        if (spans.len) spans.data[spans.len - 1].to = MIN_OF(spans.data[spans.len - 1].to, text.len);
        unsigned flags = p->add_special ? TOKENIZE_ADD_SPECIAL : 0;
        rc = tokenizer_encode_spans(in->tokenizer, text.data ? text.data : "", text.len, flags,
                                    in->spec.config->allow_special ? NULL : &spans, &ids, &err);
        if (rc < 0) api_fail(e, API_BAD_VALUE, "messages", "`messages` cannot be tokenized: %s", err.message);
    }
    if (rc == 0 && !ids.len) rc = api_fail(e, API_BAD_VALUE, "messages", "`messages` give no tokens.");
    if (rc == 0) {
        *prompt = (struct prompt){.text = {arena_text(mem, text.data, text.len), text.len}};
        prompt->ids = prompts_keep(mem, &ids, &prompt->n);
    }
    ids_release(&ids);
    text_spans_release(&spans);
    buf_release(&text);
    return rc < 0 ? -1 : 0;
}

/* ---- lengths ------------------------------------------------------------------------------------------------- */
/* To so many ids. What the tokenizer put around a text that becomes a vector stays: it may be all that the vector is made of. */
static void cut(struct prompt *prompt, u32 keep, bool right, bool around)
{
    u32 over = prompt->n - keep, before = prompt->before, behind = prompt->behind;
    if (!around || before + behind > keep) before = behind = 0;
    i32 *ids = prompt->ids;
    if (right)
        memmove(ids + keep - behind, ids + prompt->n - behind, behind * sizeof(*ids));
    else
        memmove(ids + over, ids, before * sizeof(*ids));
    if (!right) prompt->ids += over;
    prompt->n = keep;
}

int prompts_fit(const struct ingress *in, const struct params *p, struct prompt *prompt, bool generating,
                struct api_error *e)
{
    u32 context = in->limits.max_len;
    if (p->truncate_prompt_tokens != PARAM_NONE) {
        i64 keep =
            p->truncate_prompt_tokens == -1 ? (i64)context - (generating ? 1 : 0) : p->truncate_prompt_tokens;
        if ((i64)prompt->n > keep) {
            cut(prompt, (u32)keep, p->truncate_right, api_pools(p->api));
            prompt->text = (struct api_text){0};
        }
    }
    /* A prompt that fills the context leaves no room for an answer: to a client it is as much too long. */
    if (prompt->n > context || (generating && prompt->n == context))
        return api_context_overflow(e, prompt->n, context);
    return 0;
}

int prompts_bad_words(const struct ingress *in, const struct params *p, struct arena *mem, i32 **words,
                      u32 *n, struct api_error *e)
{
    struct ids all = {0};
    struct buf spaced = {0};
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < 2 * json_len(p->bad_words); i++) {
        const struct json *word = json_item(p->bad_words, i / 2);
        struct ids ids = {0};
        buf_clear(&spaced);
        if (i % 2) buf_char(&spaced, ' ');
        buf_add(&spaced, json_text(word), json_len(word));
        rc = prompts_encode(in, "bad_words", spaced.data, spaced.len, false, &ids, e);
        if (rc == 0 && ids.len) {
            ids_add(&all, (i32)ids.len);
            for (size_t k = 0; k < ids.len; k++) ids_add(&all, ids.data[k]);
        }
        ids_release(&ids);
    }
    buf_release(&spaced);
    *words = prompts_keep(mem, &all, n);
    return rc;
}
