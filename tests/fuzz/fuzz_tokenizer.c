/* A tokenizer.json, a NUL, a text: reading the file, encoding the text in every way, decoding and streaming what came out. */
#include "mpiserve/text.h"

#include <stdlib.h>
#include <string.h>

static void check_stream(const struct tokenizer *t, const struct ids *ids)
{
    struct buf whole = {0}, joined = {0};
    struct detok d;
    tokenizer_decode(t, ids->data, ids->len, true, &whole);
    detok_init(&d, t, NULL, 0, true);
    for (size_t i = 0; i < ids->len; i++) detok_push(&d, ids->data[i], &joined);
    detok_finish(&d, &joined);
    /* Only with bad runs of byte tokens do they differ, and those have U+FFFD. */
    bool same =
        whole.len == joined.len && (whole.len == 0 || memcmp(whole.data, joined.data, whole.len) == 0);
    if (!same && !memmem(whole.data, whole.len, "\xef\xbf\xbd", 3)) abort();
    buf_release(&whole);
    buf_release(&joined);
}

static void check_text(const struct tokenizer *t, const char *text, size_t len)
{
    struct error err;
    struct ids ids = {0};
    struct text_spans content = {0};
    text_spans_add(&content, len / 3, len / 2);
    for (unsigned flags = 0; flags < 4; flags++) {
        ids.len = 0;
        if (tokenizer_encode_spans(t, text, len, flags, flags & 1 ? &content : NULL, &ids, &err)) continue;
        for (size_t i = 0; i < ids.len; i++)
            if (ids.data[i] < 0 || ids.data[i] >= tokenizer_vocab_size(t)) abort();
        check_stream(t, &ids);
    }
    ids.len = 0;
    for (size_t i = 0; i < len && i < 200; i++) ids_add(&ids, (i32)(u8)text[i] - 3);
    check_stream(t, &ids);
    text_spans_release(&content);
    ids_release(&ids);
}

/* The text with itself, cut and not. */
static void check_pair(const struct tokenizer *t, const char *text, size_t len)
{
    struct error err;
    u32 second, before, behind;
    struct ids one = {0}, ids = {0};
    tokenizer_around(t, &before, &behind);
    int rc = tokenizer_encode(t, text, len, 0, &one, &err);
    for (u32 most = 0; rc == 0 && most < 40; most += 13) {
        ids.len = 0;
        if (tokenizer_join(t, &one, &one, most, &ids, &second, &err)) continue;
        if (second > ids.len || (most && ids.len > most)) abort();
        for (size_t i = 0; i < ids.len; i++)
            if (ids.data[i] < 0 || ids.data[i] >= tokenizer_vocab_size(t)) abort();
    }
    ids_release(&one);
    ids_release(&ids);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);
int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
    struct error err;
    const char *file = (const char *)data, *nul = memchr(file, 0, size);
    size_t len = nul ? (size_t)(nul - file) : size;
    struct tokenizer *t = tokenizer_read(file, len, &err);
    if (!t) return 0;
    char *text =
        mem_textn(nul ? nul + 1 : "", nul ? size - len - 1 : 0); /* a block of its own: its end is guarded */
    check_text(t, text, nul ? size - len - 1 : 0);
    check_pair(t, text, nul ? size - len - 1 : 0);
    free(text);
    tokenizer_free(t);
    return 0;
}
