/* tokenizer: its parts. Private to this room; each part has a file of its name.
 *
 *   text -> added tokens | rest -> normalizer -> pre-tokenizer -> model -> ids
 *
 * Every stage is a table of rows, one for each "type" in tokenizer.json: a new type is a row and a function. */
#ifndef TEXT_TOKENIZER_H
#define TEXT_TOKENIZER_H

#include "mpiserve/text.h"

/* ---- vocab: tokens by id, by text, by bytes -------------------------------------------------------------------
 * text is the file's spelling, bytes what the token adds to a decoded text. */
enum { TOKEN_USED = 1, TOKEN_SPECIAL = 2, TOKEN_ALPHABET = 4 }; /* ALPHABET: spelled in it */
enum { VOCAB_MAX_ID = (1 << 22) - 1, TOKEN_MAX_BYTES = 16384 };

struct token {
    u32 text, bytes; /* offsets into the pool */
    u32 text_len, bytes_len;
    u8 flags;
};
struct vocab {
    struct token *tokens; /* [n_ids] */
    i32 n_ids;
    struct buf pool;
    i32 *by_text, *by_bytes; /* open addressing, -1: free; by_bytes only when asked for */
    u32 mask, bytes_mask;
};
void vocab_init(struct vocab *v);
void vocab_release(struct vocab *v);
/* Reads model.vocab. */
int vocab_load(struct vocab *v, const struct json *object, struct error *err);
/* Adds or confirms a token under its id. */
int vocab_add(struct vocab *v, const char *text, size_t len, i64 id, const char *field, struct error *err);
void vocab_index_bytes(struct vocab *v);
i32 vocab_find(const struct vocab *v, const char *text, size_t len);        /* -1: none */
i32 vocab_find_bytes(const struct vocab *v, const char *bytes, size_t len); /* needs vocab_index_bytes */
/* The byte-level alphabet of GPT-2: every byte has a printable character. */
u32 alphabet_char(u8 byte);
/* Appends what text means as bytes: each character's byte when all are of the alphabet, else (false) text itself. */
bool alphabet_bytes(const char *text, size_t len, struct buf *out);

/* ---- added: tokens that are found before everything else ------------------------------------------------------ */
struct added_token {
    i32 id;
    bool special, single_word, lstrip, rstrip;
};
struct trie_node {
    i32 token; /* index of an added token, -1: none ends here */
    i32 child, next;
    u8 byte;
};
struct added {
    struct added_token *tokens;
    i32 n_tokens;
    struct trie_node *nodes; /* [0] is the root */
    i32 n_nodes, cap_nodes;
    u64 first[4]; /* which bytes begin a token */
};
struct added_match {
    size_t from, to; /* with what lstrip and rstrip take in; from == to == len: no match */
    i32 id;          /* -1: no match */
};
/* Which special tokens are plain text. */
struct added_mode {
    bool split_special;
    const struct text_spans *content; /* of the text that is searched */
};
void added_init(struct added *a);
void added_release(struct added *a);
void added_put(struct added *a, const char *text, size_t len, const struct added_token *token);
/* The first match in text[at, len); nothing before at is taken in. */
struct added_match added_find(const struct added *a, const char *text, size_t len, size_t at,
                              const struct added_mode *mode);

/* ---- normalize ------------------------------------------------------------------------------------------------ */
enum { NORMALIZE_STEPS = 16 };
struct normalizer {
    const struct normalize_row *steps[NORMALIZE_STEPS];
    int n;
};
int normalizer_load(struct normalizer *n, const struct json *field, struct error *err);
/* The normalized text: text itself, or what is then in *out. */
void normalizer_run(const struct normalizer *n, const char **text, size_t *len, struct buf *out);

/* ---- pattern: regular expressions ------------------------------------------------------------------------------
 * The file's patterns are in the syntax of Oniguruma; what means something else in PCRE2 is translated or refused. */
/* A pattern never matches the empty text (refused). */
struct pattern;
struct pattern_scratch; /* what one thread needs while it searches */
struct pattern *pattern_compile(const char *source, bool literal, const char *field, struct error *err);
void pattern_free(struct pattern *p);
struct pattern_scratch *pattern_scratch_new(void);
void pattern_scratch_free(struct pattern_scratch *s);
/* 1 and the range of the first match at or after `at`; 0: none; < 0: ERR_FULL. */
int pattern_find(const struct pattern *p, struct pattern_scratch *s, const char *text, size_t len, size_t at,
                 size_t *from, size_t *to, struct error *err);

/* ---- pretokenize ------------------------------------------------------------------------------------------------
 * Steps call each other: a step gives its pieces to the next one, the last one to the model. */
enum { PRE_STEPS = 16 };
enum split_behavior {
    SPLIT_ISOLATED,
    SPLIT_REMOVED,
    SPLIT_PREVIOUS,
    SPLIT_NEXT,
    SPLIT_CONTIGUOUS,
};
struct pre_step {
    struct pattern *pattern; /* NULL: only the prefix */
    enum split_behavior behavior;
    bool invert, add_prefix_space;
};
struct pretokenizer {
    struct pre_step steps[PRE_STEPS];
    int n;
    bool bytes; /* has a ByteLevel step */
};
int pretokenizer_load(struct pretokenizer *p, const struct json *field, struct error *err);
void pretokenizer_release(struct pretokenizer *p);

/* ---- bpe -------------------------------------------------------------------------------------------------------- */
struct merge {
    u64 pair; /* left << 32 | right */
    u32 rank;
    i32 id;
};
struct bpe {
    struct merge *merges; /* open addressing, id -1: free */
    u64 mask;
    i32 byte_id[256]; /* -1: not in the vocabulary */
    i32 unk;          /* -1: none */
    bool fuse_unk, ignore_merges;
};
struct bpe_scratch {
    struct bpe_node *nodes;
    struct bpe_heap {
        u64 *entries; /* rank << 32 | node: the smallest is the lowest rank, leftmost */
        size_t n, cap;
    } heap;
    size_t cap;
};
int bpe_load(struct bpe *b, struct vocab *v, const struct json *model, struct error *err);
void bpe_release(struct bpe *b);
void bpe_scratch_release(struct bpe_scratch *s);
void bpe_word(const struct bpe *b, const struct vocab *v, struct bpe_scratch *s, const char *word, size_t len,
              struct ids *out);

/* ---- the whole -------------------------------------------------------------------------------------------------- */
enum { TOKENIZER_NAMED = 4 };
struct tokenizer {
    struct vocab vocab;
    struct added raw, normalized; /* by the added token's "normalized" */
    struct normalizer normalizer;
    struct pretokenizer pre;
    struct bpe bpe;
    struct ids prefix, suffix; /* of the post-processor */
    char *named_text[TOKENIZER_NAMED];
    i32 named_id[TOKENIZER_NAMED];
};
/* One text on its way: scratch memory of one call. */
struct encoding {
    const struct tokenizer *t;
    const char *text;
    const struct text_spans *content; /* NULL: none */
    unsigned flags;
    struct ids *out;
    struct error *err;
    struct pattern_scratch *patterns;
    struct bpe_scratch bpe;
    struct buf normalized, prefixed;
};
/* A section of text between added tokens, through pre-tokenizer and model. */
int pretokenize(struct encoding *e, const char *text, size_t len);
bool spans_overlap(const struct text_spans *spans, size_t from, size_t to); /* NULL: no */
int post_load(struct tokenizer *t, const struct json *field, struct error *err);

/* Errors of a file's field. */
int field_error(struct error *err, int code, const char *field, const char *fmt, ...) PRINTF_LIKE(4, 5);

#endif
