/* A chat template, a NUL, a context: compiling and rendering. */
#include "mpiserve/text.h"

#include <stdlib.h>
#include <string.h>

static void check_spans(const struct text_spans *spans, const struct buf *out)
{
    size_t end = 0;
    for (size_t i = 0; i < spans->len; i++) {
        if (spans->data[i].from < end || spans->data[i].to <= spans->data[i].from ||
            spans->data[i].to > out->len)
            abort();
        end = spans->data[i].to + 1;
    }
}

static void render(const struct chat_template *t, const struct json *context, unsigned flags)
{
    struct error err;
    struct buf out = {0};
    struct text_spans content = {0};
    int rc = chat_template_render(t, context, flags, 1764417600, &out, &content, &err);
    if (rc && (out.len || content.len)) abort();
    if (rc == 0) check_spans(&content, &out);
    buf_release(&out);
    text_spans_release(&content);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);
int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
    static const char plain[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"s\":\"a b\",\"n\":3,\"l\":[1,2]}";
    struct error err;
    const char *source = (const char *)data, *nul = memchr(source, 0, size);
    size_t len = nul ? (size_t)(nul - source) : size;
    struct chat_template *t = chat_template_compile(source, len, &err);
    if (!t) return 0;
    struct json *context = nul ? json_read(nul + 1, size - len - 1, &err) : NULL;
    if (!context) context = json_read(plain, strlen(plain), &err);
    render(t, context, 0);
    render(t, context, RENDER_CONTINUE_FINAL | RENDER_REASONING_ALIAS);
    chat_template_try(t, NULL, TRY_TOOLS, &err);
    json_drop(context);
    chat_template_free(t);
    return 0;
}
