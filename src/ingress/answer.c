/* The JSON of answers, and the pieces that whole answers and streams share. */
#include "ingress/call.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void answer_text(struct buf *to, const char *s, size_t len)
{
    struct json_out o;
    json_out_init(&o, to);
    json_out_text(&o, s ? s : "", len);
}

void answer_float(struct buf *to, float v)
{
    char text[32];
    if (!isfinite(v)) v = -9999.0f;
    for (int digits = 5; digits <= 9; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, (double)v);
        if (strtof(text, NULL) == v) break;
    }
    buf_text(to, text);
    if (!strpbrk(text, ".e")) buf_text(to, ".0");
}

void answer_id_list(const i32 *ids, u32 n, struct buf *to)
{
    buf_char(to, '[');
    for (u32 i = 0; i < n; i++) buf_printf(to, i ? ",%d" : "%d", ids[i]);
    buf_char(to, ']');
}

void answer_usage(const struct call *c, struct buf *to, bool whole)
{
    u64 output = 0;
    for (u32 i = 0; i < c->n_choices; i++) output += c->choices[i].n_tokens;
    buf_printf(to, "{\"prompt_tokens\":%llu,\"completion_tokens\":%llu,\"total_tokens\":%llu",
               (unsigned long long)c->n_prompt_tokens, (unsigned long long)output,
               (unsigned long long)(c->n_prompt_tokens + output));
    if (whole)
        buf_printf(to, ",\"prompt_tokens_details\":{\"cached_tokens\":%llu}",
                   (unsigned long long)c->n_cached);
    buf_char(to, '}');
}

static void add_list(struct buf *to, const char *key, const struct buf *items)
{
    buf_printf(to, "\"%s\":[", key);
    if (items->len) buf_add(to, items->data, items->len);
    buf_char(to, ']');
}

void answer_logprobs(const struct call *c, const struct choice *ch, struct buf *to)
{
    if (c->sampling.n_logprobs < 0) {
        buf_text(to, "null");
        return;
    }
    buf_char(to, '{');
    if (c->p.api == API_CHAT) {
        add_list(to, "content", &ch->lp[LP_TOKENS]);
        buf_text(to, ",\"refusal\":null}");
        return;
    }
    static const char *const keys[LP_LISTS] = {"tokens", "token_logprobs", "top_logprobs", "text_offset"};
    for (int i = 0; i < LP_LISTS; i++) {
        if (i) buf_char(to, ',');
        add_list(to, keys[i], &ch->lp[i]);
    }
    buf_char(to, '}');
}

void answer_stop_reason(const struct call *c, const struct choice *ch, struct buf *to)
{
    if (ch->stop_string >= 0)
        answer_text(to, c->p.stops[ch->stop_string].text, c->p.stops[ch->stop_string].len);
    else if (ch->stop_id >= 0)
        buf_printf(to, "%d", ch->stop_id);
    else
        buf_text(to, "null");
}

static void add_choice(const struct call *c, u32 index, struct buf *to)
{
    const struct choice *ch = &c->choices[index];
    bool chat = c->p.api == API_CHAT;
    buf_printf(to,
               chat ? "{\"index\":%u,\"message\":{\"role\":\"assistant\",\"content\":"
                    : "{\"index\":%u,\"text\":",
               index);
    answer_text(to, ch->text.data, ch->text.len);
    buf_text(to, chat ? ",\"refusal\":null},\"logprobs\":" : ",\"logprobs\":");
    answer_logprobs(c, ch, to);
    buf_printf(to, ",\"finish_reason\":\"%s\",\"stop_reason\":", choice_finish_reason(ch));
    answer_stop_reason(c, ch, to);
    if (c->p.return_token_ids) {
        const struct prompt *prompt = &c->prompts[index / (u32)c->p.n];
        buf_char(to, ',');
        add_list(to, "token_ids", &ch->ids);
        if (!chat) {
            buf_text(to, ",\"prompt_token_ids\":");
            answer_id_list(prompt->ids, prompt->n, to);
        }
    }
    buf_char(to, '}');
}

void answer_json(struct call *c, struct buf *to)
{
    bool chat = c->p.api == API_CHAT;
    struct json_out o;
    json_out_init(&o, to);
    json_out_object(&o);
    json_out_key(&o, "id");
    json_out_str(&o, c->id);
    json_out_key(&o, "object");
    json_out_str(&o, chat ? "chat.completion" : "text_completion");
    json_out_key(&o, "created");
    json_out_int(&o, c->created);
    json_out_key(&o, "model");
    json_out_str(&o, call_model(c));
    buf_text(to, ",\"choices\":[");
    for (u32 i = 0; i < c->n_choices; i++) {
        if (i) buf_char(to, ',');
        add_choice(c, i, to);
    }
    buf_text(to, "],\"usage\":");
    answer_usage(c, to, true);
    json_out_key(&o, "system_fingerprint");
    json_out_str(&o, c->in->spec.fingerprint);
    if (chat && c->p.return_token_ids) {
        buf_text(to, ",\"prompt_token_ids\":");
        answer_id_list(c->prompts[0].ids, c->prompts[0].n, to);
    }
    if (c->prompt_text.text) {
        json_out_key(&o, "prompt_text");
        json_out_text(&o, c->prompt_text.text, c->prompt_text.len);
    }
    json_out_end_object(&o);
}
