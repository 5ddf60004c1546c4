/* Tokenizers against the cases in tests/reference/tokenizers (its README tells what the fields mean). */
#include "mpiserve/text.h"
#include "text/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static const char *const sets[] = {"gpt2",    "llama3", "qwen",    "deepseek",    "o200k",    "llama2",
                                   "mistral", "gemma",  "unigram", "precompiled", "wordpiece"};

static const char *tests_dir(void)
{
    const char *dir = getenv("MPISERVE_TESTS");
    return dir ? dir : "tests";
}

static struct tokenizer *load(const char *dir)
{
    struct error err = {0};
    struct tokenizer *t = tokenizer_load(dir, &err);
    if (!t) fail_msg("%s: %s: %s", dir, err.where, err.message);
    return t;
}

static struct json *read_cases(const char *set, struct tokenizer **t)
{
    char path[512];
    struct error err = {0};
    snprintf(path, sizeof(path), "%s/reference/tokenizers/%s", tests_dir(), set);
    *t = load(path);
    strcat(path, "/cases.json");
    struct json *cases = json_read_file(path, 64 << 20, &err);
    if (!cases) fail_msg("%s: %s: %s", path, err.where, err.message);
    return cases;
}

static void case_text(const struct json *c, struct buf *out)
{
    const struct json *repeat = json_get(c, "repeat"), *text = json_get(c, "text");
    buf_clear(out);
    buf_reserve(out, 1);
    if (text) buf_add(out, json_text(text), json_len(text));
    for (i64 i = 0; repeat && i < json_int(json_item(repeat, 1), 0); i++)
        buf_text(out, json_text(json_item(repeat, 0)));
}

static void list_ids(const struct json *list, const struct json *rle, struct ids *out)
{
    for (size_t i = 0; i < json_len(list); i++) ids_add(out, (i32)json_int(json_item(list, i), -1));
    for (size_t i = 0; i < json_len(rle); i++) {
        const struct json *run = json_item(rle, i);
        for (i64 k = 0; k < json_int(json_item(run, 1), 0); k++)
            ids_add(out, (i32)json_int(json_item(run, 0), -1));
    }
}

static bool same_ids(const struct ids *a, const struct ids *b)
{
    return a->len == b->len && (a->len == 0 || memcmp(a->data, b->data, a->len * sizeof(*a->data)) == 0);
}

static void expect_ids(const char *what, const char *text, const struct ids *got, const struct ids *want)
{
    if (same_ids(got, want)) return;
    fprintf(stderr, "%s of \"%.200s\":", what, text);
    for (size_t i = 0; i < MIN_OF(got->len, 40u); i++) fprintf(stderr, " %d", got->data[i]);
    fprintf(stderr, "\n  instead of");
    for (size_t i = 0; i < MIN_OF(want->len, 40u); i++) fprintf(stderr, " %d", want->data[i]);
    fail_msg("%s of \"%.200s\" differ", what, text);
}

static void expect_text(const char *what, const struct buf *got, const char *want, size_t len)
{
    if (got->len != len || (len && memcmp(got->data, want, len) != 0))
        fail_msg("%s: \"%.300s\" instead of \"%.300s\"", what, got->data ? got->data : "", want);
}

static void check_encode(const struct tokenizer *t, const struct json *c, const struct json *root,
                         struct buf *text)
{
    struct ids want = {0}, split = {0}, around = {0}, got = {0};
    struct error err = {0};
    case_text(c, text);
    list_ids(json_get(c, "ids"), json_get(c, "ids_rle"), &want);
    assert_int_equal(tokenizer_encode(t, text->data, text->len, 0, &got, &err), 0);
    expect_ids("ids", text->data, &got, &want);

    list_ids(json_get(c, "ids_split") ? json_get(c, "ids_split") : json_get(c, "ids"), json_get(c, "ids_rle"),
             &split);
    got.len = 0;
    assert_int_equal(tokenizer_encode(t, text->data, text->len, TOKENIZE_SPLIT_SPECIAL, &got, &err), 0);
    expect_ids("split ids", text->data, &got, &split);

    /* text that is all content is the same as split */
    struct text_spans all = {0};
    text_spans_add(&all, 0, text->len);
    got.len = 0;
    assert_int_equal(tokenizer_encode_spans(t, text->data, text->len, 0, &all, &got, &err), 0);
    expect_ids("content ids", text->data, &got, &split);
    text_spans_release(&all);

    list_ids(json_get(root, "specials_prefix"), NULL, &around);
    list_ids(json_get(c, "ids"), json_get(c, "ids_rle"), &around);
    list_ids(json_get(root, "specials_suffix"), NULL, &around);
    got.len = 0;
    assert_int_equal(tokenizer_encode(t, text->data, text->len, TOKENIZE_ADD_SPECIAL, &got, &err), 0);
    expect_ids("ids with special tokens", text->data, &got, &around);

    struct buf decoded = {0};
    const struct json *v = json_get(c, "decode");
    tokenizer_decode(t, want.data, want.len, false, &decoded);
    expect_text("decode", &decoded, v ? json_text(v) : text->data, v ? json_len(v) : text->len);
    v = json_get(c, "decode_skip") ? json_get(c, "decode_skip") : v;
    buf_clear(&decoded);
    tokenizer_decode(t, around.data, around.len, true, &decoded);
    expect_text("decode_skip", &decoded, v ? json_text(v) : text->data, v ? json_len(v) : text->len);
    buf_release(&decoded);
    ids_release(&want);
    ids_release(&split);
    ids_release(&around);
    ids_release(&got);
}

static void test_cases(void **state)
{
    (void)state;
    for (size_t s = 0; s < COUNT_OF(sets); s++) {
        struct tokenizer *t;
        struct json *root = read_cases(sets[s], &t);
        const struct json *cases = json_get(root, "cases");
        struct buf text = {0};
        assert_true(json_len(cases) > 200);
        assert_int_equal(tokenizer_vocab_size(t), json_int(json_get(root, "vocab_size"), -1));
        for (size_t i = 0; i < json_len(cases); i++) check_encode(t, json_item(cases, i), root, &text);
        print_message("# %s: %zu texts\n", sets[s], json_len(cases));
        buf_release(&text);
        json_drop(root);
        tokenizer_free(t);
    }
}

static size_t base64(const char *s, u8 *out)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    u32 bits = 0;
    size_t n = 0, have = 0;
    for (; *s && *s != '='; s++) {
        bits = bits << 6 | (u32)(strchr(digits, *s) - digits);
        have += 6;
        if (have < 8) continue;
        have -= 8;
        out[n++] = (u8)(bits >> have);
    }
    return n;
}

static void test_reject(void **state)
{
    (void)state;
    for (size_t s = 0; s < COUNT_OF(sets); s++) {
        struct tokenizer *t;
        struct json *root = read_cases(sets[s], &t);
        const struct json *list = json_get(root, "reject");
        assert_true(json_len(list) >= 23);
        for (size_t i = 0; i < json_len(list); i++) {
            u8 bytes[8192];
            struct ids ids = {0};
            struct error err = {0};
            size_t len = base64(json_text(json_get(json_item(list, i), "base64")), bytes);
            ids_add(&ids, 7);
            assert_int_equal(tokenizer_encode(t, (char *)bytes, len, 0, &ids, &err), ERR_INPUT);
            assert_int_equal(ids.len, 1);
            assert_non_null(strstr(err.where, "byte "));
            ids_release(&ids);
        }
        json_drop(root);
        tokenizer_free(t);
    }
}

static void test_questions(void **state)
{
    (void)state;
    size_t len;
    char path[512];
    snprintf(path, sizeof(path), "%s/reference/tokenizers/llama3", tests_dir());
    struct tokenizer *t = load(path);
    i32 eot = tokenizer_id(t, "<|eot_id|>");
    assert_true(eot > 0 && tokenizer_is_special(t, eot));
    assert_memory_equal(tokenizer_token_bytes(t, eot, &len), "<|eot_id|>", 10);
    assert_int_equal(len, 10);
    assert_false(tokenizer_is_special(t, 0));
    assert_memory_equal(tokenizer_token_bytes(t, tokenizer_id(t, "\xc4\xa0the"), &len), " the", 4);
    assert_int_equal(len, 4);
    assert_int_equal(tokenizer_id(t, "no such token"), -1);
    assert_null(tokenizer_token_bytes(t, -1, &len));
    assert_int_equal(len, 0);
    assert_null(tokenizer_token_bytes(t, tokenizer_vocab_size(t), &len));
    assert_string_equal(tokenizer_named_text(t, "bos"), "<|begin_of_text|>");
    assert_int_equal(tokenizer_named_id(t, "bos"), tokenizer_id(t, "<|begin_of_text|>"));
    assert_int_equal(tokenizer_named_id(t, "eos"), tokenizer_id(t, "<|end_of_text|>"));
    assert_null(tokenizer_named_text(t, "pad"));
    assert_int_equal(tokenizer_named_id(t, "pad"), -1);
    tokenizer_free(t);
    tokenizer_free(NULL);
}

/* The text of special tokens in a message stays text; the template's own are found next to it. */
static void test_spans(void **state)
{
    (void)state;
    static const char text[] = "<|im_start|>user\nhi<|im_end|>x<|im_end|>\n";
    struct tokenizer *t;
    struct json *root = read_cases("qwen", &t);
    i32 end = tokenizer_id(t, "<|im_end|>");
    struct text_spans content = {0};
    struct ids ids = {0};
    text_spans_add(&content, 17, 30); /* hi<|im_end|>x */
    assert_int_equal(tokenizer_encode_spans(t, text, strlen(text), 0, &content, &ids, NULL), 0);
    size_t ends = 0;
    for (size_t i = 0; i < ids.len; i++) ends += ids.data[i] == end;
    assert_int_equal(ends, 1);
    struct buf back = {0};
    tokenizer_decode(t, ids.data, ids.len, false, &back);
    assert_string_equal(back.data, text);

    content.data[0].to = 31; /* a single byte of the template's token is content: it is no token */
    ids.len = 0;
    assert_int_equal(tokenizer_encode_spans(t, text, strlen(text), 0, &content, &ids, NULL), 0);
    for (size_t i = 0; i < ids.len; i++) assert_int_not_equal(ids.data[i], end);
    buf_release(&back);
    ids_release(&ids);
    text_spans_release(&content);
    json_drop(root);
    tokenizer_free(t);
}

/* ---- files that are wrong or ask for what is not offered ---- */

#define MODEL         "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"
#define PRE           "\"pre_tokenizer\":{\"type\":\"ByteLevel\"}"
#define DEC           "\"decoder\":{\"type\":\"ByteLevel\"}"
#define WITH_PRE(p)   "{" MODEL ",\"pre_tokenizer\":" p "," DEC "}"
#define WITH_MODEL(m) "{\"model\":" m "," PRE "," DEC "}"
#define WITH_ADDED(a) "{" MODEL "," PRE "," DEC ",\"added_tokens\":" a "}"
#define WITH_DEC(d)   "{" MODEL "," PRE ",\"decoder\":{\"type\":\"Sequence\",\"decoders\":[" d "]}}"
#define SPLIT(regex)                                                                                         \
    WITH_PRE("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"behavior\":\"Isolated\","      \
             "\"pattern\":{\"Regex\":\"" regex "\"}},{\"type\":\"ByteLevel\"}]}")

struct bad_file {
    int code;
    const char *where, *text;
};
static const struct bad_file bad_files[] = {
    {ERR_INPUT, "line", "{"},
    {ERR_INPUT, "json", "[]"},
    {ERR_INPUT, "model", "{}"},
    {ERR_INPUT, "model", WITH_MODEL("3")},
    {ERR_UNSUPPORTED, "model.type", WITH_MODEL("{\"type\":\"Tiktoken\"}")},
    {ERR_UNSUPPORTED, "pre_tokenizer", WITH_MODEL("{\"type\":\"Unigram\",\"vocab\":[[\"a\",-1.5]]}")},
    {ERR_UNSUPPORTED, "pre_tokenizer", WITH_MODEL("{\"type\":\"WordPiece\",\"vocab\":{\"a\":0}}")},
    {ERR_INPUT, "model.vocab", "{\"model\":{\"type\":\"Unigram\",\"vocab\":{}}}"},
    {ERR_INPUT, "model.vocab[1]", "{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",-1],[\"b\"]]}}"},
    {ERR_INPUT, "model.vocab[1]", "{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",-1],[\"a\",-2]]}}"},
    {ERR_INPUT, "model.unk_id", "{\"model\":{\"type\":\"Unigram\",\"unk_id\":9,\"vocab\":[[\"a\",-1]]}}"},
    {ERR_INPUT, "model.unk_token", "{\"model\":{\"type\":\"WordPiece\",\"unk_token\":\"?\",\"vocab\":{}}}"},
    {ERR_INPUT, "model.max_input_chars_per_word",
     "{\"model\":{\"type\":\"WordPiece\",\"max_input_chars_per_word\":0,\"vocab\":{}}}"},
    {ERR_UNSUPPORTED, "model.continuing_subword_prefix",
     WITH_MODEL("{\"type\":\"BPE\",\"continuing_subword_prefix\":\"##\",\"vocab\":{},\"merges\":[]}")},
    {ERR_UNSUPPORTED, "model.dropout",
     WITH_MODEL("{\"type\":\"BPE\",\"dropout\":0.1,\"vocab\":{},\"merges\":[]}")},
    {ERR_INPUT, "model.end_of_word_suffix",
     WITH_MODEL("{\"type\":\"BPE\",\"end_of_word_suffix\":7,\"vocab\":{},\"merges\":[]}")},
    {ERR_INPUT, "model.vocab", WITH_MODEL("{\"type\":\"BPE\",\"vocab\":[],\"merges\":[]}")},
    {ERR_INPUT, "model.vocab", WITH_MODEL("{\"type\":\"BPE\",\"vocab\":{\"a\":\"0\"},\"merges\":[]}")},
    {ERR_INPUT, "model.vocab", WITH_MODEL("{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}")},
    {ERR_INPUT, "model.vocab", WITH_MODEL("{\"type\":\"BPE\",\"vocab\":{\"a\":4294967296},\"merges\":[]}")},
    {ERR_INPUT, "model.vocab", WITH_MODEL("{\"type\":\"BPE\",\"vocab\":{\"a\":9000000},\"merges\":[]}")},
    {ERR_INPUT, "model.vocab", WITH_MODEL("{\"type\":\"BPE\",\"vocab\":{\"a\":1,\"b\":1},\"merges\":[]}")},
    {ERR_INPUT, "model.vocab", WITH_MODEL("{\"type\":\"BPE\",\"vocab\":{\"\":1},\"merges\":[]}")},
    {ERR_INPUT, "model.merges", WITH_MODEL("{\"type\":\"BPE\",\"vocab\":{\"a\":1}}")},
    {ERR_INPUT, "model.merges[0]", WITH_MODEL("{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[\"a b\"]}")},
    {ERR_INPUT, "model.merges[0]", WITH_MODEL("{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[\"a a\"]}")},
    {ERR_INPUT, "model.merges[0]",
     "{\"model\":{\"type\":\"BPE\",\"continuing_subword_prefix\":\"##\",\"vocab\":{\"a\":0,\"##\":1},"
     "\"merges\":[\"a ##\"]}}"},
    {ERR_INPUT, "model.merges[1]",
     WITH_MODEL("{\"type\":\"BPE\",\"vocab\":{\"a\":1,\"aa\":2},\"merges\":[\"a a\",\"aa\"]}")},
    {ERR_INPUT, "model.merges[0]", WITH_MODEL("{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[[\"a\"]]}")},
    {ERR_INPUT, "model.merges[0]", WITH_MODEL("{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[{}]}")},
    {ERR_INPUT, "model.unk_token",
     WITH_MODEL("{\"type\":\"BPE\",\"unk_token\":\"u\",\"vocab\":{\"a\":1},\"merges\":[]}")},
    {ERR_UNSUPPORTED, "normalizer.type", "{" MODEL "," PRE "," DEC ",\"normalizer\":{\"type\":\"Nmt\"}}"},
    {ERR_INPUT, "normalizer.type", "{" MODEL "," PRE "," DEC ",\"normalizer\":7}"},
    {ERR_INPUT, "normalizer.content",
     "{" MODEL ",\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"}}}"},
    {ERR_INPUT, "normalizer.pattern", "{" MODEL ",\"normalizer\":{\"type\":\"Replace\",\"content\":\"a\"}}"},
    {ERR_UNSUPPORTED, "pre_tokenizer.type", WITH_PRE("{\"type\":\"UnicodeScripts\"}")},
    {ERR_INPUT, "pre_tokenizer.replacement", WITH_PRE("{\"type\":\"Metaspace\"}")},
    {ERR_INPUT, "pre_tokenizer.prepend_scheme",
     WITH_PRE("{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"last\"}")},
    {ERR_INPUT, "pre_tokenizer.delimiter",
     WITH_PRE("{\"type\":\"CharDelimiterSplit\",\"delimiter\":\"ab\"}")},
    {ERR_INPUT, "pre_tokenizer.type", WITH_PRE("{}")},
    {ERR_INPUT, "pre_tokenizer.pretokenizers", WITH_PRE("{\"type\":\"Sequence\"}")},
    {ERR_UNSUPPORTED, "pre_tokenizer",
     WITH_PRE("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\"},{\"type\":\"Digits\"}]}")},
    {ERR_INPUT, "pre_tokenizer.pattern", WITH_PRE("{\"type\":\"Split\",\"behavior\":\"Isolated\"}")},
    {ERR_UNSUPPORTED, "pre_tokenizer.behavior",
     WITH_PRE("{\"type\":\"Split\",\"behavior\":\"Torn\",\"pattern\":{\"String\":\"a\"}}")},
    {ERR_UNSUPPORTED, "pre_tokenizer.pattern", SPLIT("(")},
    {ERR_UNSUPPORTED, "pre_tokenizer.pattern", SPLIT("a*")},
    {ERR_UNSUPPORTED, "pre_tokenizer.pattern", SPLIT("[a&&b]")},
    {ERR_UNSUPPORTED, "pre_tokenizer.pattern", SPLIT("[a[b]]")},
    {ERR_UNSUPPORTED, "pre_tokenizer.pattern", SPLIT("\\\\p{N}{1,3}+")},
    {ERR_UNSUPPORTED, "pre_tokenizer.pattern", SPLIT("\\\\h")},
    {ERR_UNSUPPORTED, "pre_tokenizer.pattern", SPLIT("\\\\p{Nonsense}")},
    {ERR_UNSUPPORTED, "pre_tokenizer.pattern", SPLIT("[abc")},
    {ERR_UNSUPPORTED, "pre_tokenizer.pattern", SPLIT("(?m:a)")},
    {ERR_UNSUPPORTED, "pre_tokenizer.pattern", SPLIT("a\\\\")},
    {ERR_UNSUPPORTED, "decoder.type", "{" MODEL "," PRE ",\"decoder\":{\"type\":\"CTC\"}}"},
    {ERR_INPUT, "decoder.type", "{" MODEL "," PRE ",\"decoder\":7}"},
    {ERR_INPUT, "decoder.prefix", "{" MODEL "," PRE ",\"decoder\":{\"type\":\"WordPiece\"}}"},
    {ERR_INPUT, "decoder.decoders", "{" MODEL "," PRE ",\"decoder\":{\"type\":\"Sequence\"}}"},
    {ERR_UNSUPPORTED, "decoder.type", WITH_DEC("{\"type\":\"Fuse\"},{\"type\":\"ByteFallback\"}")},
    {ERR_UNSUPPORTED, "decoder.type",
     WITH_DEC("{\"type\":\"ByteFallback\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":"
              "\"\"}")},
    {ERR_UNSUPPORTED, "decoder.stop",
     WITH_DEC("{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":0,\"stop\":1}")},
    {ERR_INPUT, "decoder.content",
     WITH_DEC("{\"type\":\"Strip\",\"content\":\"ab\",\"start\":1,\"stop\":0}")},
    {ERR_INPUT, "added_tokens", WITH_ADDED("{}")},
    {ERR_INPUT, "added_tokens[0]", WITH_ADDED("[{\"id\":5}]")},
    {ERR_INPUT, "added_tokens[0]", WITH_ADDED("[{\"id\":-5,\"content\":\"x\"}]")},
    {ERR_INPUT, "added_tokens[0]", WITH_ADDED("[{\"id\":5,\"content\":\"\"}]")},
    {ERR_INPUT, "added_tokens[0]", WITH_ADDED("[{\"id\":1,\"content\":\"x\"}]")},
    {ERR_INPUT, "added_tokens[0]", WITH_ADDED("[{\"id\":7,\"content\":\"b\"}]")},
    {ERR_UNSUPPORTED, "post_processor.type",
     "{" MODEL "," PRE "," DEC ",\"post_processor\":{\"type\":\"PairProcessing\"}}"},
    {ERR_INPUT, "post_processor.cls",
     "{" MODEL "," PRE "," DEC ",\"post_processor\":{\"type\":\"BertProcessing\"}}"},
    {ERR_INPUT, "post_processor.special_tokens",
     "{" MODEL "," PRE "," DEC
     ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}},{"
     "\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"x\":{\"ids\":[99]}}}}"},
    {ERR_UNSUPPORTED, "post_processor.single",
     "{" MODEL "," PRE "," DEC ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[]}}"},
};

static void write_file(const char *dir, const char *name, const char *text)
{
    char path[600];
    struct error err;
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    assert_int_equal(file_write_whole(path, text, strlen(text), 0600, &err), 0);
}

static void temporary_folder(char *dir, size_t size)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, size, "%s/mpiserve-tokenizer-XXXXXX", tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(dir));
}

static void remove_folder(const char *dir)
{
    char path[600];
    static const char *const files[] = {"tokenizer.json", "tokenizer_config.json"};
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, files[i]);
        unlink(path);
    }
    rmdir(dir);
}

static void test_bad_files(void **state)
{
    (void)state;
    char dir[512];
    temporary_folder(dir, sizeof(dir));
    for (size_t i = 0; i < COUNT_OF(bad_files); i++) {
        const struct bad_file *b = &bad_files[i];
        struct error err = {0};
        write_file(dir, "tokenizer.json", b->text);
        struct tokenizer *t = tokenizer_load(dir, &err);
        if (t || err.code != b->code || !strstr(err.where, b->where) || !err.message[0])
            fail_msg("%s: loaded %d, code %d, %s: %s", b->text, t != NULL, err.code, err.where, err.message);
    }
    struct error err = {0};
    write_file(dir, "tokenizer.json", "{" MODEL "," PRE "," DEC "}");
    write_file(dir, "tokenizer_config.json", "{\"eos_token\":[]}");
    assert_null(tokenizer_load(dir, &err));
    assert_non_null(strstr(err.where, "eos_token"));
    write_file(dir, "tokenizer_config.json", "{\"eos_token\":{\"content\":\"ab\"},\"bos_token\":\"?\"}");
    struct tokenizer *t = load(dir);
    assert_int_equal(tokenizer_named_id(t, "eos"), 2);
    assert_int_equal(tokenizer_named_id(t, "bos"), -1);
    tokenizer_free(t);
    remove_folder(dir);
    assert_null(tokenizer_load(dir, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
}

/* Every prefix of a good file, and the file with single bytes changed: an error or a tokenizer, never a crash. */
static void test_damaged_files(void **state)
{
    (void)state;
    char dir[512], path[600];
    struct error err = {0};
    struct buf whole = {0};
    snprintf(path, sizeof(path), "%s/reference/tokenizers/qwen/tokenizer.json", tests_dir());
    assert_int_equal(file_read(path, 1 << 24, &whole, &err), 0);
    temporary_folder(dir, sizeof(dir));
    for (u64 i = 0; i < 60; i++) {
        u32 r[4];
        rng_block(1, i, 0, r);
        size_t at = r[0] % whole.len, len = i % 3 ? whole.len : at;
        char was = whole.data[at];
        whole.data[at] = "0\"{[,-9x"[r[1] % 8];
        char *cut = mem_textn(whole.data, len);
        write_file(dir, "tokenizer.json", cut);
        struct tokenizer *t = tokenizer_load(dir, &err);
        struct ids ids = {0};
        if (t) tokenizer_encode(t, "Hello, <|im_end|> 123", 21, TOKENIZE_ADD_SPECIAL, &ids, &err);
        ids_release(&ids);
        tokenizer_free(t);
        free(cut);
        whole.data[at] = was;
    }
    remove_folder(dir);
    buf_release(&whole);
}

/* ---- merging, against the plainest way to do it ---- */

enum { ORACLE_TOKENS = 60, ORACLE_TEXT = 400 };
struct oracle {
    char text[ORACLE_TOKENS][24]; /* the first three are a, b, c */
    int n, merges[ORACLE_TOKENS][2], n_merges;
};

static u32 draw(u64 seed, u64 *at, u32 below)
{
    u32 r[4];
    rng_block(seed, (*at)++, 0, r);
    return r[0] % below;
}

/* Merges of any tokens there are, then put into any order: a pair that arises late may be the first to be merged. */
static void make_oracle(struct oracle *o, u64 seed, u64 *at)
{
    memset(o, 0, sizeof(*o));
    for (o->n = 0; o->n < 3; o->n++) o->text[o->n][0] = (char)('a' + o->n);
    for (int try = 0; try < 60 && o->n < ORACLE_TOKENS; try++) {
        int left = (int)draw(seed, at, (u32)o->n), right = (int)draw(seed, at, (u32)o->n), known = 0;
        char joined[64];
        snprintf(joined, sizeof(joined), "%s%s", o->text[left], o->text[right]);
        if (strlen(joined) > 12) continue;
        while (known < o->n && strcmp(o->text[known], joined) != 0) known++;
        if (known == o->n) strcpy(o->text[o->n++], joined);
        o->merges[o->n_merges][0] = left;
        o->merges[o->n_merges++][1] = right;
    }
    for (int i = o->n_merges - 1; i > 0; i--) {
        int k = (int)draw(seed, at, (u32)i + 1), swap[2] = {o->merges[i][0], o->merges[i][1]};
        memcpy(o->merges[i], o->merges[k], sizeof(swap));
        memcpy(o->merges[k], swap, sizeof(swap));
    }
}

static struct tokenizer *tokenizer_of(const struct oracle *o)
{
    struct buf file = {0};
    struct error err = {0};
    buf_text(&file, "{\"model\":{\"type\":\"BPE\",\"vocab\":{");
    for (int i = 0; i < o->n; i++) buf_printf(&file, "%s\"%s\":%d", i ? "," : "", o->text[i], i);
    buf_text(&file, "},\"merges\":[");
    for (int i = 0; i < o->n_merges; i++)
        buf_printf(&file, "%s\"%s %s\"", i ? "," : "", o->text[o->merges[i][0]], o->text[o->merges[i][1]]);
    buf_text(&file, "]}}");
    struct tokenizer *t = tokenizer_read(file.data, file.len, &err);
    if (!t) fail_msg("%s: %s", err.where, err.message);
    buf_release(&file);
    return t;
}

static int rank_in(const struct oracle *o, int left, int right)
{
    int found = ORACLE_TOKENS + 1; /* of the same pair twice the last one counts */
    for (int i = 0; i < o->n_merges; i++)
        if (o->merges[i][0] == left && o->merges[i][1] == right) found = i;
    return found;
}

static void oracle_encode(const struct oracle *o, const char *text, struct ids *out)
{
    for (const char *c = text; *c; c++) ids_add(out, *c - 'a');
    for (;;) {
        size_t best = 0;
        int rank = ORACLE_TOKENS + 1;
        for (size_t i = 0; i + 1 < out->len; i++) {
            int r = rank_in(o, out->data[i], out->data[i + 1]);
            if (r < rank) best = i;
            rank = MIN_OF(rank, r);
        }
        if (rank > ORACLE_TOKENS) return;
        char joined[64];
        int id = 0;
        snprintf(joined, sizeof(joined), "%s%s", o->text[out->data[best]], o->text[out->data[best + 1]]);
        while (strcmp(o->text[id], joined) != 0) id++;
        out->data[best] = id;
        memmove(&out->data[best + 1], &out->data[best + 2], (out->len - best - 2) * sizeof(i32));
        out->len--;
    }
}

static void test_merging(void **state)
{
    (void)state;
    for (u64 seed = 0; seed < 150; seed++) {
        u64 at = 0;
        struct oracle o;
        make_oracle(&o, seed, &at);
        struct tokenizer *t = tokenizer_of(&o);
        for (int run = 0; run < 6; run++) {
            char text[ORACLE_TEXT + 1] = "";
            struct ids got = {0}, want = {0};
            size_t len = run < 3 ? 1 + draw(seed, &at, 32) : 1 + draw(seed, &at, ORACLE_TEXT);
            u32 letters = 1 + draw(seed, &at, 3);
            for (size_t i = 0; i < len; i++) text[i] = (char)('a' + draw(seed, &at, letters));
            oracle_encode(&o, text, &want);
            assert_int_equal(tokenizer_encode(t, text, len, 0, &got, NULL), 0);
            expect_ids("merged ids", text, &got, &want);
            ids_release(&got);
            ids_release(&want);
        }
        tokenizer_free(t);
    }
}

/* The queue of pairs alone, with arrivals in any order: the smallest rank, then the leftmost place, comes out. */
static void test_queue(void **state)
{
    (void)state;
    struct pair_queue q = {0};
    u64 waiting[600], at = 0;
    size_t n = 0, popped = 0;
    while (popped < 20000) {
        u32 rank;
        i32 place;
        bool push = n == 0 || (n < COUNT_OF(waiting) && draw(5, &at, 2));
        if (push) {
            rank = draw(5, &at, 40) * 1000;
            place = (i32)draw(5, &at, 1 << 20);
            waiting[n++] = (u64)rank << 32 | (u32)place;
            pair_queue_push(&q, rank, place);
            continue;
        }
        size_t least = 0;
        for (size_t i = 1; i < n; i++) least = waiting[i] < waiting[least] ? i : least;
        assert_true(pair_queue_pop(&q, &rank, &place));
        assert_int_equal((u64)rank << 32 | (u32)place, waiting[least]);
        waiting[least] = waiting[--n];
        popped++;
    }
    while (n--) assert_true(pair_queue_pop(&q, &(u32){0}, &(i32){0}));
    assert_false(pair_queue_pop(&q, &(u32){0}, &(i32){0}));
    pair_queue_release(&q);
}

/* What is remembered of words within a text is what they are alone: thousands of words, which share places. */
static void test_words_in_texts(void **state)
{
    (void)state;
    struct tokenizer *t;
    struct json *root = read_cases("gpt2", &t);
    struct buf text = {0};
    struct ids whole = {0}, words = {0};
    for (u64 i = 0; i < 20000; i++) {
        char word[8] = " ";
        u32 r[4];
        rng_block(77, i, 0, r);
        for (int k = 1; k < 6; k++) word[k] = (char)('a' + (r[0] >> (3 * k)) % 8);
        buf_text(&text, word);
        assert_int_equal(tokenizer_encode(t, word, strlen(word), 0, &words, NULL), 0);
    }
    assert_int_equal(tokenizer_encode(t, text.data, text.len, 0, &whole, NULL), 0);
    assert_true(same_ids(&whole, &words));
    buf_release(&text);
    ids_release(&whole);
    ids_release(&words);
    json_drop(root);
    tokenizer_free(t);
}

static void expect_words(const char *pre, const char *text, const char *want)
{
    static const char vocab[] =
        "{\"model\":{\"type\":\"BPE\",\"ignore_merges\":true,\"merges\":[],\"vocab\":{"
        "\"a\":0,\"b\":1,\"-\":2,\"ab\":3,\"a-\":4,\"-b\":5,\"--\":6,\"a-b\":7,\"1\":8,\"12\":9,\"\xc4\xa0\":"
        "10,"
        "\"\xc4\xa0"
        "a\":11}}," DEC ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[%s"
        "{\"type\":\"ByteLevel\",\"use_regex\":false,\"add_prefix_space\":%s}]}}";
    char dir[512];
    struct buf file = {0}, got = {0};
    struct ids ids = {0};
    temporary_folder(dir, sizeof(dir));
    buf_printf(&file, vocab, pre, strcmp(pre, "") == 0 ? "true" : "false");
    write_file(dir, "tokenizer.json", file.data);
    struct tokenizer *t = load(dir);
    assert_int_equal(tokenizer_encode(t, text, strlen(text), 0, &ids, NULL), 0);
    for (size_t i = 0; i < ids.len; i++) {
        size_t len;
        const char *bytes = tokenizer_token_bytes(t, ids.data[i], &len);
        buf_printf(&got, "%s%.*s", i ? "|" : "", (int)len, bytes);
    }
    assert_string_equal(got.data ? got.data : "", want);
    tokenizer_free(t);
    buf_release(&file);
    buf_release(&got);
    ids_release(&ids);
    remove_folder(dir);
}

#define CUT(behavior, invert)                                                                                \
    "{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"" behavior "\",\"invert\":" invert "},"

static void test_split_behaviors(void **state)
{
    (void)state;
    expect_words("", "a", " a");
    expect_words("", " a", " a");
    expect_words(CUT("Isolated", "false"), "a--b", "a|-|-|b");
    expect_words(CUT("Removed", "false"), "a--b", "a|b");
    expect_words(CUT("Removed", "true"), "a--b", "-|-");
    expect_words(CUT("Contiguous", "false"), "a--b", "a|--|b");
    expect_words(CUT("MergedWithPrevious", "false"), "a--b", "a-|-|b");
    expect_words(CUT("MergedWithNext", "false"), "a--b", "a|-|-b");
    expect_words(CUT("MergedWithNext", "false"), "a-", "a|-");
    expect_words(CUT("MergedWithPrevious", "false"), "-b", "-|b");
    expect_words(CUT("MergedWithPrevious", "true"), "a-b", "a|-b");
    expect_words("{\"type\":\"Digits\",\"individual_digits\":true},", "a12", "a|1");
    expect_words("{\"type\":\"Digits\",\"individual_digits\":false},", "a12", "a|12");
    expect_words("{\"type\":\"Punctuation\"},", "a-b", "a|-|b");
    expect_words("{\"type\":\"WhitespaceSplit\"},", " a  -b ", "a|-b");
    expect_words("{\"type\":\"Whitespace\"},", "ab -- a", "ab|--|a");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),           cmocka_unit_test(test_reject),
        cmocka_unit_test(test_questions),       cmocka_unit_test(test_spans),
        cmocka_unit_test(test_bad_files),       cmocka_unit_test(test_damaged_files),
        cmocka_unit_test(test_split_behaviors), cmocka_unit_test(test_merging),
        cmocka_unit_test(test_queue),           cmocka_unit_test(test_words_in_texts),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("tokenizer", tests, NULL, NULL);
}
