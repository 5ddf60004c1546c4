/* Errors that travel up to whoever can tell the user, and BUG for what must not happen. */
#include "mpiserve/base.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void copy_text(char *to, size_t size, const char *from)
{
    size_t len = strnlen(from, size - 1);
    memcpy(to, from, len);
    to[len] = 0;
}

/* The arguments may point into *err (an error wrapped in another), so everything is formatted aside first. */
static void error_fill(struct error *err, int code, const char *where, const char *reason, const char *fmt,
                       va_list args)
{
    if (!err) return;
    struct error made = {.code = code};
    vsnprintf(made.message, sizeof(made.message), fmt, args);
    if (reason) {
        size_t len = strlen(made.message);
        snprintf(made.message + len, sizeof(made.message) - len, ": %s", reason);
    }
    copy_text(made.where, sizeof(made.where), where ? where : "");
    *err = made;
}

int error_set(struct error *err, int code, const char *where, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    error_fill(err, code, where, NULL, fmt, args);
    va_end(args);
    return code;
}

int error_errno(struct error *err, const char *where, const char *fmt, ...)
{
    char text[128];
    const char *reason = strerror_r(errno, text, sizeof(text));
    va_list args;
    va_start(args, fmt);
    error_fill(err, ERR_IO, where, reason, fmt, args);
    va_end(args);
    return ERR_IO;
}

const char *error_text(const struct error *err, char *out, size_t size)
{
    if (err->where[0])
        snprintf(out, size, "%s: %s", err->where, err->message);
    else
        snprintf(out, size, "%s", err->message);
    return out;
}

_Noreturn void bug_at(const char *file, int line, const char *fmt, ...)
{
    char text[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    log_error("BUG at %s:%d: %s", file, line, text);
    abort();
}
