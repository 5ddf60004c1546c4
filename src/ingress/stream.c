/* Server-sent events of a call. Everything of an event that never changes is written once, into c->head. */
#include "ingress/call.h"

void stream_begin(struct call *c)
{
    struct json_out o;
    buf_text(&c->head, "data: ");
    json_out_init(&o, &c->head);
    json_out_object(&o);
    json_out_key(&o, "id");
    json_out_str(&o, c->id);
    json_out_key(&o, "object");
    json_out_str(&o, c->p.api == API_CHAT ? "chat.completion.chunk" : "text_completion");
    json_out_key(&o, "created");
    json_out_int(&o, c->created);
    json_out_key(&o, "model");
    json_out_str(&o, call_model(c));
    json_out_key(&o, "system_fingerprint");
    json_out_str(&o, c->in->spec.fingerprint);
    buf_text(&c->head, ",\"choices\":[");
}

static u32 index_of(const struct call *c, const struct choice *ch)
{
    return (u32)(ch - c->choices);
}

static void begin_event(struct call *c, const struct choice *ch)
{
    buf_add(&c->out, c->head.data, c->head.len);
    buf_printf(&c->out, "{\"index\":%u,", index_of(c, ch));
}

/* After the choice's own members: closes the choice and the event. */
static void end_event(struct call *c)
{
    buf_text(&c->out, "}]");
    if (c->p.include_usage && c->p.continuous_usage) {
        buf_text(&c->out, ",\"usage\":");
        answer_usage(c, &c->out, false);
    }
    buf_text(&c->out, "}\n\n");
    c->event_sent = true;
}

static void add_prompt_ids(struct call *c, const struct choice *ch)
{
    const struct prompt *prompt = &c->prompts[index_of(c, ch) / (u32)c->p.n];
    buf_text(&c->out, ",\"prompt_token_ids\":");
    answer_id_list(prompt->ids, prompt->n, &c->out);
}

/* Chat: the role comes alone, and what is said once about the prompt with it. */
static void role_event(struct call *c, const struct choice *ch)
{
    begin_event(c, ch);
    buf_text(&c->out,
             "\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null");
    if (!c->p.return_token_ids && !c->prompt_text.text) {
        end_event(c);
        return;
    }
    buf_text(&c->out, "}]");
    if (c->p.return_token_ids) add_prompt_ids(c, ch);
    if (c->prompt_text.text) {
        buf_text(&c->out, ",\"prompt_text\":");
        answer_text(&c->out, c->prompt_text.text, c->prompt_text.len);
    }
    buf_text(&c->out, "}\n\n");
    c->event_sent = true;
}

static void content_event(struct call *c, struct choice *ch, bool first)
{
    bool chat = c->p.api == API_CHAT;
    begin_event(c, ch);
    buf_text(&c->out, chat ? "\"delta\":{\"content\":" : "\"text\":");
    answer_text(&c->out, ch->text.data, ch->text.len);
    buf_text(&c->out, chat ? "},\"logprobs\":" : ",\"logprobs\":");
    bool logprobs = ch->lp[LP_TOKENS].len > 0;
    if (logprobs)
        answer_logprobs(c, ch, &c->out);
    else
        buf_text(&c->out, "null");
    buf_text(&c->out, ",\"finish_reason\":null");
    if (c->p.return_token_ids) {
        buf_printf(&c->out, ",\"token_ids\":[%s]", ch->ids.len ? ch->ids.data : "");
        if (first && !chat) add_prompt_ids(c, ch);
    }
    end_event(c);
    buf_clear(&ch->text);
    buf_clear(&ch->ids);
    for (int i = 0; i < LP_LISTS; i++) buf_clear(&ch->lp[i]);
    ch->n_unsent = 0;
}

static void finish_event(struct call *c, const struct choice *ch)
{
    begin_event(c, ch);
    buf_text(&c->out, c->p.api == API_CHAT ? "\"delta\":{}" : "\"text\":\"\"");
    buf_printf(&c->out,
               ",\"logprobs\":null,\"finish_reason\":\"%s\",\"stop_reason\":", choice_finish_reason(ch));
    answer_stop_reason(c, ch, &c->out);
    end_event(c);
}

void stream_choice(struct call *c, struct choice *ch)
{
    bool finished = ch->finish != FINISH_NONE, first = !ch->started;
    if (first && c->p.api == API_CHAT) role_event(c, ch);
    bool something = ch->text.len || ch->lp[LP_TOKENS].len || ch->ids.len;
    if (something && (finished || first || ch->n_unsent >= c->p.stream_interval)) content_event(c, ch, first);
    ch->started = true;
    if (finished) finish_event(c, ch);
}

void stream_end(struct call *c)
{
    if (c->failed) {
        buf_text(&c->out, "data: ");
        api_error_json(&c->error, &c->out);
        buf_text(&c->out, "\n\n");
    } else if (c->p.include_usage) {
        buf_add(&c->out, c->head.data, c->head.len);
        buf_text(&c->out, "],\"usage\":");
        answer_usage(c, &c->out, true);
        buf_text(&c->out, "}\n\n");
    }
    buf_text(&c->out, "data: [DONE]\n\n");
}
