/* mpiserve tokenize, detokenize, render: what a model's files make of a text, without a job. */
#include "mpiserve/cli.h"
#include "mpiserve/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { EXIT_FINE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, CONTEXT_MAX = 256 << 20, TEMPLATE_MAX = 4 << 20 };

static const char tokenize_usage[] =
    "mpiserve tokenize DIR <LINES\n"
    "\n"
    "DIR holds tokenizer.json. Each line of the input is a JSON object, each line of the output its answer:\n"
    "  {\"text\": TEXT}            or {\"base64\": BYTES}\n"
    "  \"special\": true           with the tokens that the model wants around a text (BOS, EOS)\n"
    "  \"split_special\": true     the text of special tokens is plain text\n"
    "{\"ids\": [...]} or {\"error\": TEXT}\n";

static const char detokenize_usage[] =
    "mpiserve detokenize DIR <LINES\n"
    "\n"
    "DIR holds tokenizer.json. Each line of the input is a JSON object, each line of the output its answer:\n"
    "  {\"ids\": [...]}\n"
    "  \"skip_special\": true      special tokens give nothing\n"
    "  \"prompt_ids\": [...]       the text goes on from these\n"
    "  \"stream\": true            one piece a token, as clients get them, and one more for the end\n"
    "{\"text\": TEXT}, {\"pieces\": [...]} or {\"error\": TEXT}\n";

static const char render_usage[] =
    "mpiserve render [--now TIME] [--continue-final-message] TEMPLATE.jinja CONTEXT.json\n"
    "\n"
    "Prints what the chat template makes of the variables in CONTEXT.json (-: the standard input), an object "
    "with\n"
    "messages, add_generation_prompt, tools, bos_token ... Exit status 1 and the reason when it cannot.\n"
    "  --now TIME                  2026-11-29T12:00:00 (local time): what strftime_now() sees\n"
    "  --continue-final-message    the text ends with the last message, for the model to go on with\n";

static int fail(const struct error *err)
{
    char text[1200];
    fprintf(stderr, "mpiserve: %s\n", error_text(err, text, sizeof(text)));
    return EXIT_FAILED;
}

/* ---- lines ---- */

/* Reads v, which is missing or a boolean. */
static int read_bool(const struct json *line, const char *key, bool *to, struct error *err)
{
    const struct json *v = json_get(line, key);
    *to = json_bool(v, false);
    if (json_kind(v) <= JK_NULL || json_kind(v) == JK_BOOL) return 0;
    return error_set(err, ERR_INPUT, key, "must be a boolean, not %s", json_kind_name(json_kind(v)));
}

static int read_ids(const struct json *line, const char *key, struct ids *ids, struct error *err)
{
    const struct json *list = json_get(line, key);
    for (size_t i = 0; i < json_len(list); i++) {
        i64 id = json_int(json_item(list, i), -1);
        if (id < 0 || id > INT32_MAX) return error_set(err, ERR_INPUT, key, "item %zu is no token id", i);
        ids_add(ids, (i32)id);
    }
    if (json_kind(list) == JK_ARRAY) return 0;
    return error_set(err, ERR_INPUT, key, "must be an array, not %s", json_kind_name(json_kind(list)));
}

static int read_base64(const struct json *v, struct buf *out, struct error *err)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *s = json_text(v);
    size_t len = json_len(v);
    u32 bits = 0, have = 0;
    while (len && s[len - 1] == '=') len--;
    for (size_t i = 0; i < len; i++) {
        const char *digit = s[i] ? strchr(digits, s[i]) : NULL;
        if (!digit) return error_set(err, ERR_INPUT, "base64", "byte %zu is no base64", i);
        bits = bits << 6 | (u32)(digit - digits);
        have += 6;
        if (have < 8) continue;
        have -= 8;
        buf_char(out, (char)(bits >> have));
    }
    return 0;
}

static int read_text(const struct json *line, struct buf *text, struct error *err)
{
    const struct json *v = json_get(line, "text"), *bytes = json_get(line, "base64");
    if (json_kind(v) == JK_TEXT && !bytes) {
        buf_add(text, json_text(v), json_len(v));
        return 0;
    }
    if (json_kind(bytes) == JK_TEXT && !v) return read_base64(bytes, text, err);
    return error_set(err, ERR_INPUT, "text", "a line needs \"text\" or \"base64\", a string");
}

static void write_list(struct json_out *o, const char *key, const struct ids *ids)
{
    json_out_key(o, key);
    json_out_array(o);
    for (size_t i = 0; i < ids->len; i++) json_out_int(o, ids->data[i]);
    json_out_end_array(o);
}

static int tokenize_line(const struct tokenizer *t, const struct json *line, struct json_out *o,
                         struct error *err)
{
    struct buf text = {0};
    struct ids ids = {0};
    bool special, split;
    int rc = read_text(line, &text, err);
    if (rc == 0) rc = read_bool(line, "special", &special, err);
    if (rc == 0) rc = read_bool(line, "split_special", &split, err);
    if (rc == 0)
        rc = tokenizer_encode(t, text.data ? text.data : "", text.len,
                              (special ? TOKENIZE_ADD_SPECIAL : 0) | (split ? TOKENIZE_SPLIT_SPECIAL : 0),
                              &ids, err);
    if (rc == 0) write_list(o, "ids", &ids);
    ids_release(&ids);
    buf_release(&text);
    return rc;
}

static void write_pieces(const struct tokenizer *t, const struct ids *ids, struct detok *d,
                         struct json_out *o)
{
    struct buf piece = {0};
    (void)t;
    json_out_key(o, "pieces");
    json_out_array(o);
    for (size_t i = 0; i <= ids->len; i++) {
        buf_clear(&piece);
        if (i < ids->len) {
            detok_push(d, ids->data[i], &piece);
        } else {
            detok_finish(d, &piece);
        }
        json_out_text(o, piece.data ? piece.data : "", piece.len);
    }
    json_out_end_array(o);
    buf_release(&piece);
}

static void write_whole(const struct tokenizer *t, const struct ids *ids, bool skip, struct json_out *o)
{
    struct buf text = {0};
    tokenizer_decode(t, ids->data, ids->len, skip, &text);
    json_out_key(o, "text");
    json_out_text(o, text.data ? text.data : "", text.len);
    buf_release(&text);
}

static void write_rest(const struct ids *ids, struct detok *d, struct json_out *o)
{
    struct buf text = {0};
    for (size_t i = 0; i < ids->len; i++) detok_push(d, ids->data[i], &text);
    detok_finish(d, &text);
    json_out_key(o, "text");
    json_out_text(o, text.data ? text.data : "", text.len);
    buf_release(&text);
}

static int detokenize_line(const struct tokenizer *t, const struct json *line, struct json_out *o,
                           struct error *err)
{
    struct ids ids = {0}, prompt = {0};
    bool skip, stream, goes_on = json_kind(json_get(line, "prompt_ids")) > JK_NULL;
    int rc = read_ids(line, "ids", &ids, err);
    if (rc == 0 && goes_on) rc = read_ids(line, "prompt_ids", &prompt, err);
    if (rc == 0) rc = read_bool(line, "skip_special", &skip, err);
    if (rc == 0) rc = read_bool(line, "stream", &stream, err);
    if (rc == 0) {
        struct detok d;
        detok_init(&d, t, prompt.data, prompt.len, skip);
        if (stream)
            write_pieces(t, &ids, &d, o);
        else if (goes_on)
            write_rest(&ids, &d, o);
        else
            write_whole(t, &ids, skip, o);
    }
    ids_release(&ids);
    ids_release(&prompt);
    return rc;
}

typedef int line_fn(const struct tokenizer *t, const struct json *line, struct json_out *o,
                    struct error *err);

static void answer(const struct tokenizer *t, const char *text, size_t len, line_fn *work, struct buf *out)
{
    struct error err = {0};
    struct json_out o;
    struct json *line = json_read(text, len, &err);
    char why[1200];
    buf_clear(out);
    json_out_init(&o, out);
    json_out_object(&o);
    int rc = line ? 0 : -1;
    if (line && json_kind(line) != JK_OBJECT)
        rc = error_set(&err, ERR_INPUT, "line", "must be an object, not %s", json_kind_name(json_kind(line)));
    if (rc == 0) rc = work(t, line, &o, &err);
    if (rc) {
        json_out_key(&o, "error");
        json_out_str(&o, error_text(&err, why, sizeof(why)));
    }
    json_out_end_object(&o);
    buf_char(out, '\n');
    json_drop(line);
}

static int lines(int argc, char **argv, const char *usage, line_fn *work)
{
    struct error err = {0};
    if (argc == 3 && strcmp(argv[2], "--help") == 0) {
        fputs(usage, stdout);
        return EXIT_FINE;
    }
    if (argc != 3 || argv[2][0] == '-') {
        fputs(usage, stderr);
        return EXIT_USAGE;
    }
    struct tokenizer *t = tokenizer_load(argv[2], &err);
    if (!t) return fail(&err);
    struct buf out = {0};
    char *line = NULL;
    size_t cap = 0;
    for (ssize_t n; (n = getline(&line, &cap, stdin)) > 0;) {
        while (n && (line[n - 1] == '\n' || line[n - 1] == '\r')) n--;
        if (n == 0) continue;
        answer(t, line, (size_t)n, work, &out);
        fwrite(out.data, 1, out.len, stdout);
        fflush(stdout); /* who asks line by line gets each answer at once */
    }
    free(line);
    buf_release(&out);
    tokenizer_free(t);
    return ferror(stdin) || fflush(stdout) ? EXIT_FAILED : EXIT_FINE;
}

int cli_tokenize(int argc, char **argv)
{
    return lines(argc, argv, tokenize_usage, tokenize_line);
}

int cli_detokenize(int argc, char **argv)
{
    return lines(argc, argv, detokenize_usage, detokenize_line);
}

/* ---- render ---- */

static bool read_time(const char *text, i64 *now)
{
    struct tm tm = {.tm_isdst = -1};
    const char *end = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);
    if (!end || *end) return false;
    *now = mktime(&tm);
    return true;
}

static struct json *read_context(const char *path, struct error *err)
{
    struct buf text = {0};
    char part[16384];
    if (strcmp(path, "-") != 0) return json_read_file(path, CONTEXT_MAX, err);
    for (size_t n; text.len < CONTEXT_MAX && (n = fread(part, 1, sizeof(part), stdin)) > 0;)
        buf_add(&text, part, n);
    struct json *root = json_read(text.data ? text.data : "", text.len, err);
    buf_release(&text);
    return root;
}

static int render_files(const char *template, const char *variables, unsigned flags, i64 now)
{
    struct error err = {0};
    struct buf out = {0};
    struct chat_template *t = chat_template_read(template, &err);
    struct json *context = t ? read_context(variables, &err) : NULL;
    int rc = context ? chat_template_render(t, context, flags, now, &out, NULL, &err) : -1;
    if (rc == 0) fwrite(out.data, 1, out.len, stdout);
    if (rc && context) { /* an error of the template: the line is in this file */
        char where[sizeof(err.where)];
        snprintf(where, sizeof(where), "%.200s%s%.50s", template, err.where[0] ? ": " : "", err.where);
        memcpy(err.where, where, sizeof(where));
    }
    if (rc) fail(&err);
    buf_release(&out);
    json_drop(context);
    chat_template_free(t);
    return rc || fflush(stdout) ? EXIT_FAILED : EXIT_FINE;
}

int cli_render(int argc, char **argv)
{
    const char *paths[2] = {0};
    int n = 0;
    unsigned flags = 0;
    i64 now = clock_unix();
    bool fine = true;
    for (int i = 2; i < argc && fine; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            fputs(render_usage, stdout);
            return EXIT_FINE;
        }
        if (strcmp(argv[i], "--now") == 0)
            fine = ++i < argc && read_time(argv[i], &now);
        else if (strcmp(argv[i], "--continue-final-message") == 0)
            flags |= RENDER_CONTINUE_FINAL;
        else if (n < 2 && (argv[i][0] != '-' || !argv[i][1]))
            paths[n++] = argv[i];
        else
            fine = false;
    }
    if (fine && n == 2) return render_files(paths[0], paths[1], flags, now);
    fputs(render_usage, stderr);
    return EXIT_USAGE;
}
