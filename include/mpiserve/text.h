/* text: from chat to token ids and from token ids to text. Three things, in the order in which a request meets them:
 *
 *   chat template    messages as JSON -> the prompt's text, and which of its bytes came from the messages
 *   tokenizer        text -> token ids; token ids -> text
 *   detokenizer      the same for ids that arrive one by one: a character leaves with the token that completes it
 *
 * All of it follows the files of a Hugging Face model folder (tokenizer.json, tokenizer_config.json,
 * chat_template.jinja). What those files ask for and this room does not do is refused when the file is read, with an
 * error that names the field; it is never approximated. tests/reference holds the cases that say what is right.
 *
 * Invariants
 * - Text inside is UTF-8. Encoding refuses what is not; decoding gives U+FFFD for each maximal ill-formed part. With a
 *   ByteFallback decoder a run of tokens for bytes is all characters or all U+FFFD, one a byte.
 * - Joined pieces of a stream equal the decoding of the whole. One exception: a stream does not hold back the good
 *   characters of a run of byte tokens that turns bad later.
 * - A special token's text in a message stays text when the template's content spans go with it to the encoder.
 *
 * Life cycle: tokenizer_load, chat_template_find (once a model); chat_template_render, tokenizer_encode_spans (a request);
 * detok_init, detok_push ..., detok_finish (a sample); chat_template_free, tokenizer_free.
 *
 * Thread rule: a struct tokenizer and a struct chat_template do not change once they are made; any number of threads
 * may use one at the same time. A struct detok belongs to one thread at a time. */
#ifndef MPISERVE_TEXT_H
#define MPISERVE_TEXT_H

#include "mpiserve/json.h"

/* ---- token ids ----------------------------------------------------------------------------------------------
 * {0} is a valid empty list. "No token" is -1. */
struct ids {
    i32 *data;
    size_t len, cap;
};
void ids_add(struct ids *ids, i32 id);
void ids_release(struct ids *ids);

/* Byte ranges [from, to) of a text: ascending, not touching. {0} is a valid empty list. */
struct text_span {
    size_t from, to;
};
struct text_spans {
    struct text_span *data;
    size_t len, cap;
};
void text_spans_add(struct text_spans *spans, size_t from, size_t to); /* joins what touches the last one */
void text_spans_release(struct text_spans *spans);

/* ---- tokenizer ------------------------------------------------------------------------------------------------
 * Offered, with Sequences of them:
 *   models            BPE (over bytes or characters, byte fallback, affixes), Unigram, WordPiece, WordLevel
 *   normalizers       NFC, NFD, NFKC, NFKD, Prepend, Replace, Strip, Lowercase, StripAccents, BertNormalizer,
 *                     Precompiled (SentencePiece's character map)
 *   pre-tokenizers    ByteLevel, Split, Digits, Punctuation, Whitespace, WhitespaceSplit, Metaspace, BertPreTokenizer,
 *                     CharDelimiterSplit
 *   post-processors   ByteLevel, TemplateProcessing, BertProcessing, RobertaProcessing
 *   decoders          ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace, WordPiece; none */
struct tokenizer;

/* Reads dir/tokenizer.json and, where it exists, dir/tokenizer_config.json. NULL: *err names file and field;
 * ERR_UNSUPPORTED for what is valid and not offered. */
struct tokenizer *tokenizer_load(const char *dir, struct error *err);
/* The same from the text of a tokenizer.json; it has no named tokens. */
struct tokenizer *tokenizer_read(const char *text, size_t len, struct error *err);
void tokenizer_free(struct tokenizer *t); /* NULL: nothing */

enum tokenize_flag {
    TOKENIZE_ADD_SPECIAL = 1,   /* what the post-processor puts around a text (BOS, EOS) */
    TOKENIZE_SPLIT_SPECIAL = 2, /* the text of special tokens is plain text everywhere */
};
/* Appends the ids of text (len bytes) to *out. Errors (ids are then not appended): ERR_INPUT where "byte N" is not UTF-8,
 * ERR_FULL when a splitting pattern needs more work than its limit. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, unsigned flags, struct ids *out,
                     struct error *err);
/* The same; tokens that overlap one of the content spans (NULL: none) and are special, or that tokenizer_guard found, are plain
 * text. */
int tokenizer_encode_spans(const struct tokenizer *t, const char *text, size_t len, unsigned flags,
                           const struct text_spans *content, struct ids *out, struct error *err);

/* Two texts, encoded without TOKENIZE_ADD_SPECIAL, as the post-processor puts them together, appended to *out. The second gives way where
 * all would be more than `most` ids (0: as many as there are): its end is cut. *second: the place in *out from which on tokens are of type
 * 1; 0: all are of type 0. ERR_FULL when the first alone is too long, errors of tokenizer_check_pairs. */
int tokenizer_join(const struct tokenizer *t, const struct ids *a, const struct ids *b, u32 most,
                   struct ids *out, u32 *second, struct error *err);
/* 0, or ERR_UNSUPPORTED: the file says nothing of pairs, or something that is not offered. */
int tokenizer_check_pairs(const struct tokenizer *t, struct error *err);
/* Tokens that TOKENIZE_ADD_SPECIAL puts in front of a text, and behind it. */
void tokenizer_around(const struct tokenizer *t, u32 *before, u32 *behind);

/* Some control tokens are not special in their files (<think>, DeepSeek's user and assistant marks): those that the template
 * writes itself count as such in content spans. Before t is shared. */
struct chat_template;
void tokenizer_guard(struct tokenizer *t, const struct chat_template *tmpl);

i32 tokenizer_vocab_size(const struct tokenizer *t); /* highest id + 1; ids below may be unused */
i32 tokenizer_id(const struct tokenizer *t,
                 const char *token); /* as the file spells it ("<|im_end|>"); -1: none */
/* What a token adds to the decoded bytes; not NUL-terminated, owned by t. NULL with *len = 0: no such id. */
const char *tokenizer_token_bytes(const struct tokenizer *t, i32 id, size_t *len);
bool tokenizer_is_special(const struct tokenizer *t, i32 id);
/* From tokenizer_config.json: "bos", "eos", "pad" or "unk". The id is -1 and the text NULL when it names none. */
i32 tokenizer_named_id(const struct tokenizer *t, const char *name);
const char *tokenizer_named_text(const struct tokenizer *t, const char *name);
/* Appends the text of n ids. Unknown ids give nothing. */
void tokenizer_decode(const struct tokenizer *t, const i32 *ids, size_t n, bool skip_special,
                      struct buf *out);

/* Appends UTF-8 text as Python's lower() makes it. */
void text_lower_case(const char *text, size_t len, struct buf *out);

/* ---- streaming detokenizer --------------------------------------------------------------------------------- */
struct detok {
    const struct tokenizer *tokenizer;
    bool skip_special, begun; /* begun: a token was shown */
    u32 strip;                /* characters at the begin that the decoder still takes away */
    u8 held[4];               /* the begin of a character */
    int n_held;
    i32 n_bad; /* bytes of a run of tokens for bytes that is ill-formed */
};
/* The stream carries on from the n prompt ids (NULL, 0: from nothing): a character whose first bytes end the prompt leaves
 * whole with the output. Nothing to release; t outlives d. A copy of *d carries on from the same place. */
void detok_init(struct detok *d, const struct tokenizer *t, const i32 *prompt, size_t n, bool skip_special);
/* Appends what id completes (maybe nothing) to *out: never half a character. */
void detok_push(struct detok *d, i32 id, struct buf *out);
/* The stream is over: what was held becomes U+FFFD. */
void detok_finish(struct detok *d, struct buf *out);

/* ---- chat template ---------------------------------------------------------------------------------------------
 * The Jinja language as transformers runs it: trim_blocks, lstrip_blocks, break and continue, generation blocks, tojson
 * without HTML escapes, no mutation of lists and dicts; include, import and extends are errors where they are reached. Not
 * offered: lipsum, self, super; rare filters and methods (their names are in tables in src/text/template_filters.c and
 * template_methods.c); integers of more than 4300 digits. */
/* NULL: *err says what and in which line. ERR_UNSUPPORTED: the template uses, at whatever place, something that this
 * room knows of and does not offer. source: len bytes of UTF-8. */
struct chat_template *chat_template_compile(const char *source, size_t len, struct error *err);
/* A file that holds a template. */
struct chat_template *chat_template_read(const char *path, struct error *err);
/* dir/chat_template.jinja, else "chat_template" in dir/tokenizer_config.json (a text, or a list of {name, template}
 * of which "default" is taken). NULL: an error; ERR_NOT_FOUND when the folder has no template. */
struct chat_template *chat_template_find(const char *dir, struct error *err);
void chat_template_free(struct chat_template *tmpl); /* NULL: nothing */
/* context: an object with every variable (messages, tools, documents, add_generation_prompt, bos_token, ...). Absent ones
 * are undefined in the template; transformers always passes tools and documents, null when there are none.
 * now: what strftime_now() sees, in seconds since 1970, shown in local time.
 * Appends the text to *out and, when content is not NULL, adds the ranges of *out that came from the context: every text
 * but the members whose name ends in "_token" and the roles of messages (letters and underscores only).
 * Errors (out and content are then as before): ERR_INPUT for raise_exception() and for everything that is an error in the
 * language (where: the line), ERR_FULL when the work or memory limit was met, ERR_UNSUPPORTED for values outside of what is
 * offered. */
int chat_template_render(const struct chat_template *tmpl, const struct json *context, unsigned flags,
                         i64 now, struct buf *out, struct text_spans *content, struct error *err);
/* Renders a made-up conversation, so that errors show before there are requests. 0; ERR_STATE: the template calls
 * raise_exception() for it; else the code of an error in the template, with its line. tokens (NULL: none): of bos_token ... */
enum try {
    TRY_USER,
    TRY_TURNS,
    TRY_TOOLS
}; /* one message; system, user, assistant, user; a tool that is called */
int chat_template_try(const struct chat_template *tmpl, const struct tokenizer *tokens, enum try what,
                      struct error *err);
enum render_flag {
    /* The text ends with the last message's content, for the model to carry on (continue_final_message). */
    RENDER_CONTINUE_FINAL = 1,
    /* A message's reasoning_content, reasoning and thinking get the value of the first of them that it has. */
    RENDER_REASONING_ALIAS = 2,
};

#endif
