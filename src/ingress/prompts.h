/* From a request's body to prompts of token ids. Inner door of ingress/. */
#ifndef INGRESS_PROMPTS_H
#define INGRESS_PROMPTS_H

#include "ingress/call.h"

/* The four forms of `prompt` and `input`: a text, texts, ids, lists of ids. Ids and texts lie in mem. */
int prompts_read(const struct ingress *in, const struct params *p, struct arena *mem, struct prompt **prompts,
                 u32 *n, struct api_error *e);
/* pairs.c: `query` with each of `documents`; `text_1` with `text_2`, one with each or one by one. Cut by truncate_prompt_tokens;
 * one that does not fit is refused before the next is read, since each has the first text again. */
int prompts_pairs(const struct ingress *in, const struct params *p, struct arena *mem,
                  struct prompt **prompts, u32 *n, struct api_error *e);
/* A text that cannot fit into the context whatever its tokens are is refused before it is tokenized. */
int prompts_check_size(const struct ingress *in, const struct params *p, size_t len, struct api_error *e);
/* Appends the ids of a text; path names it in an error. special: with what the tokenizer puts around it. */
int prompts_encode(const struct ingress *in, const char *path, const char *text, size_t len, bool special,
                   struct ids *ids, struct api_error *e);
/* The ids in the arena; the list is released. */
i32 *prompts_keep(struct arena *mem, struct ids *ids, u32 *n);
/* The messages through the chat template; prompt->text is what the template gave. */
int prompts_chat(const struct ingress *in, const struct params *p, struct arena *mem, struct prompt *prompt,
                 struct api_error *e);
/* Cuts by truncate_prompt_tokens, then checks the length against the context; generating: one token must fit behind it. */
int prompts_fit(const struct ingress *in, const struct params *p, struct prompt *prompt, bool generating,
                struct api_error *e);
/* bad_words as ids: each word plain and with a blank in front. */
int prompts_bad_words(const struct ingress *in, const struct params *p, struct arena *mem, i32 **words,
                      u32 *n, struct api_error *e);

/* messages.c: the context of a chat template as JSON, from the messages and fields of the request. */
struct json *messages_context(const struct ingress *in, const struct params *p, struct api_error *e);

#endif
