/* tokenizer: its parts. Private to this room; each part has a file of its name.
 *
 *   text -> added tokens | rest -> normalizer -> pre-tokenizer -> model -> ids
 *
 * Every stage is a table of rows, one for each "type" in tokenizer.json: a new type is a row and a function. */
#ifndef TEXT_TOKENIZER_H
#define TEXT_TOKENIZER_H

#include "mpiserve/text.h"
#include "text/utf8.h"

/* ---- vocab: tokens by id, by text, by word -----------------------------------------------------------------------
 * A token has three readings: text is the file's spelling; word is what the model is given of a text (bytes when the
 * pre-tokenizer is ByteLevel, else the text); bytes is what it adds to a decoded text, first the same at its begin. */
enum {
    TOKEN_USED = 1,
    TOKEN_SPECIAL = 2,
    TOKEN_MODEL = 4, /* of model.vocab, not only of added_tokens */
    TOKEN_WHOLE = 8, /* the model gives this token alone for its word */
    TOKEN_BYTE = 16, /* for the decoder it is a byte of a character: <0xE2> */
};
enum { VOCAB_MAX_ID = (1 << 22) - 1, TOKEN_MAX_BYTES = 16384 };

struct token {
    u32 text, word, bytes, first; /* offsets into the pool */
    u32 text_len, word_len, bytes_len, first_len;
    u8 flags;
};
struct vocab {
    struct token *tokens; /* [n_ids] */
    i32 n_ids;
    struct buf pool;
    i32 *by_text; /* open addressing, -1: free */
    u32 mask;
    struct word_slot *by_word;
    u32 word_mask;
};
void vocab_init(struct vocab *v);
void vocab_release(struct vocab *v);
void vocab_resize(struct vocab *v, i32 n_ids); /* room for ids up to n_ids - 1; never less than before */
/* Reads model.vocab. */
int vocab_load(struct vocab *v, const struct json *object, struct error *err);
/* Adds or confirms a token under its id. */
int vocab_add(struct vocab *v, const char *text, size_t len, i64 id, const char *field, struct error *err);
i32 vocab_find(const struct vocab *v, const char *text, size_t len); /* -1: none */
i32 vocab_find_json(const struct vocab *v, const struct json *text); /* -1: none, or no text */
const char *vocab_text(const struct vocab *v, i32 id, size_t *len);
/* The words of the model's tokens; alphabet: they are spelled in the byte-level alphabet. */
void vocab_set_words(struct vocab *v, bool alphabet);
/* After it vocab_find_word finds those that are TOKEN_WHOLE. */
void vocab_index_words(struct vocab *v);
i32 vocab_find_word(const struct vocab *v, const char *word, size_t len);
/* The byte-level alphabet of GPT-2: every byte has a printable character. */
u32 alphabet_char(u8 byte);
/* Appends what text means as bytes: each character's byte when all are of the alphabet, else (false) text itself. */
bool alphabet_bytes(const char *text, size_t len, struct buf *out);

/* ---- added: tokens that are found before everything else ------------------------------------------------------ */
struct added_token {
    i32 id;
    bool special, single_word, lstrip, rstrip;
    bool control; /* not special, but the chat template writes it: plain text in messages */
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

/* Tokens whose text is in source are control tokens. */
void added_guard(struct added *a, const struct vocab *v, const char *source, size_t len);

/* ---- pattern: regular expressions ------------------------------------------------------------------------------
 * The file's patterns are in the syntax of Oniguruma; what means something else in PCRE2 is translated or refused. */
/* A pattern never matches the empty text (refused). */
struct pattern;
struct pattern_scratch; /* what one thread needs while it searches */
struct pattern *pattern_compile(const char *source, bool literal, const char *field, struct error *err);
/* {"Regex": ...} or {"String": ...} */
struct pattern *pattern_load(const struct json *pattern, const char *field, struct error *err);
void pattern_free(struct pattern *p);
struct pattern_scratch *pattern_scratch_new(void);
void pattern_scratch_free(struct pattern_scratch *s);
/* 1 and the range of the first match at or after `at`; 0: none; < 0: ERR_FULL. */
int pattern_find(const struct pattern *p, struct pattern_scratch *s, const char *text, size_t len, size_t at,
                 size_t *from, size_t *to, struct error *err);

/* ---- charsmap: SentencePiece's character map ------------------------------------------------------------------- */
struct charsmap;
struct charsmap *charsmap_read(const char *text, size_t len, struct error *err); /* base64 */
void charsmap_free(struct charsmap *m);                                          /* NULL: nothing */
/* ERR_INPUT: the map is damaged. */
int charsmap_run(const struct charsmap *m, const char *text, size_t len, struct buf *out, struct error *err);

/* ---- normalize ------------------------------------------------------------------------------------------------ */
enum { NORMALIZE_STEPS = 16 };
struct normalize_step {
    const struct normalize_row *row;
    struct pattern *pattern; /* of Replace */
    struct charsmap *map;    /* of Precompiled */
    char *content;           /* of Replace and Prepend */
    size_t content_len;
    bool left, right;                              /* of Strip */
    bool clean, chinese, strip_accents, lowercase; /* of BertNormalizer */
};
struct normalizer {
    struct normalize_step steps[NORMALIZE_STEPS];
    int n;
};
int normalizer_load(struct normalizer *n, const struct json *field, struct error *err);
void normalizer_release(struct normalizer *n);
/* The normalized text: text itself, or what is then in *out. < 0: ERR_FULL, ERR_INPUT (Precompiled). */
int normalizer_run(const struct normalizer *n, struct pattern_scratch *s, const char **text, size_t *len,
                   struct buf *out, struct error *err);

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
enum prefix_scheme { PREFIX_NEVER, PREFIX_FIRST, PREFIX_ALWAYS };
struct pre_step {
    struct pattern *pattern; /* NULL: no split */
    enum split_behavior behavior;
    bool invert;
    enum prefix_scheme prefix; /* what does not begin with the mark gets one in front */
    bool metaspace;            /* blanks become marks first */
    char mark[UTF8_MAX + 1];
};
struct pretokenizer {
    struct pre_step steps[PRE_STEPS];
    int n;
    bool bytes; /* has a ByteLevel step */
};
int pretokenizer_load(struct pretokenizer *p, const struct json *field, struct error *err);
void pretokenizer_release(struct pretokenizer *p);

/* ---- models: a word to ids -------------------------------------------------------------------------------------- */
struct merge {
    u64 pair; /* left << 32 | right */
    u32 rank;
    i32 id;
};
struct bpe {
    struct merge *merges; /* open addressing, id -1: free */
    u64 mask;
    u64 *maybe, maybe_mask; /* a bit for each hash that a merge has */
    i32 byte_id[256];       /* of a byte of a word (ByteLevel), or of <0x00>; -1: not in the vocabulary */
    i32 ascii_id[128];
    i32 unk; /* -1: none */
    bool bytes, fuse_unk, ignore_merges, byte_fallback;
    bool cuts; /* a word may be cut between kinds of characters (of known ones) that no merge joins */
    bool known[130];
    u64 joins[130][3];
    char *prefix, *suffix; /* continuing_subword_prefix, end_of_word_suffix; NULL: none */
};
struct pair_queue { /* bpe_queue.c */
    struct rank_list *lists;
    size_t n_lists, cap_lists;
    i32 *slots; /* open addressing by rank: an index of lists, -1: free */
    u32 slot_mask;
    struct pair_heap {
        u64 *entries; /* rank << 32 | index or place; the smallest first */
        size_t n, cap;
    } ranks, late;
};
void pair_queue_push(struct pair_queue *q, u32 rank, i32 at);
bool pair_queue_pop(struct pair_queue *q, u32 *rank, i32 *at); /* false: empty, and ready for the next word */
void pair_queue_release(struct pair_queue *q);

struct bpe_scratch {
    i32 *symbols;           /* [cap] */
    struct bpe_node *nodes; /* [cap_nodes] */
    struct pair_queue queue;
    size_t cap, cap_nodes;
    struct buf symbol;
    size_t text_len; /* of the whole text: how large the memo gets */
    struct word_memo *memo;
    size_t memo_mask;
};
void bpe_scratch_release(struct bpe_scratch *s);

struct unigram {
    double *scores; /* [n_ids] */
    i32 n_ids, unk; /* unk -1: none */
    double unk_score;
    bool byte_fallback;
    i32 byte_id[256];
    struct trie_edge *edges; /* open addressing, child 0: free */
    u32 mask;
    i32 *ends; /* [nodes]: the token whose text leads there, -1: none */
    i32 n_nodes, cap_nodes;
};
struct unigram_scratch {
    struct best_path *best;
    size_t cap;
};

struct wordpiece { /* WordLevel too, which looks at whole words only */
    i32 unk;       /* -1: none */
    size_t max_chars, longest_token;
    char *prefix;
    size_t prefix_len;
};

struct encoding;
struct model_row {
    const char *type;
    int (*load)(struct tokenizer *t, const struct json *model, struct error *err);
    int (*word)(struct encoding *e, const char *word, size_t len);
};
int bpe_load(struct tokenizer *t, const struct json *model, struct error *err);
int bpe_word(struct encoding *e, const char *word, size_t len);
void bpe_release(struct bpe *b);
int unigram_load(struct tokenizer *t, const struct json *model, struct error *err);
int unigram_word(struct encoding *e, const char *word, size_t len);
void unigram_release(struct unigram *u);
int wordpiece_load(struct tokenizer *t, const struct json *model, struct error *err);
int wordpiece_word(struct encoding *e, const char *word, size_t len);
int wordlevel_load(struct tokenizer *t, const struct json *model, struct error *err);
int wordlevel_word(struct encoding *e, const char *word, size_t len);
void wordpiece_release(struct wordpiece *w);
int model_load(struct tokenizer *t, const struct json *model, struct error *err);
/* Ids of <0x00> ... <0xFF>, -1 where there is none. */
void find_byte_tokens(const struct vocab *v, i32 ids[256]);
/* model.unk_token: -1 when it names none. */
int load_unk(const struct vocab *v, const struct json *model, i32 *unk, struct error *err);

/* ---- decode: ids to bytes ---------------------------------------------------------------------------------------
 * What a decoder does to single tokens is done once, when the file is read; what is left for a stream is here. */
struct decoder {
    bool byte_runs; /* tokens for bytes stand for themselves: a bad run of them is a U+FFFD each */
    u32 strip;      /* characters at the begin of the whole text that may go */
    char strip_char[UTF8_MAX + 1];
};
int decoder_load(struct tokenizer *t, const struct json *field, struct error *err);

/* ---- the whole -------------------------------------------------------------------------------------------------- */
enum { TOKENIZER_NAMED = 4 };
/* Two texts: before A between B behind. Types of tokens are 0 up to n_first tokens of `between`, then 1; or 0 throughout. */
struct pair_form {
    struct ids before, between, behind;
    size_t n_first;
    bool typed; /* there are two types */
    bool offered;
    struct error why; /* not */
};
struct tokenizer {
    struct vocab vocab;
    struct added raw, normalized; /* by the added token's "normalized" */
    struct normalizer normalizer;
    struct pretokenizer pre;
    const struct model_row *model;
    struct bpe bpe;
    struct unigram unigram;
    struct wordpiece wordpiece;
    struct decoder decoder;
    struct ids prefix, suffix; /* of the post-processor */
    struct pair_form pair;
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
    struct unigram_scratch unigram;
    const char *begin; /* where a section begins that begins the text; NULL: the section does not */
    struct buf normalized, written[PRE_STEPS], joined;
};
/* A section of text between added tokens, through pre-tokenizer and model. */
int pretokenize(struct encoding *e, const char *text, size_t len);
bool spans_overlap(const struct text_spans *spans, size_t from, size_t to); /* NULL: no */
int post_load(struct tokenizer *t, const struct json *field, struct error *err);

/* Errors of a file's field. */
int field_error(struct error *err, int code, const char *field, const char *fmt, ...) PRINTF_LIKE(4, 5);

#endif
