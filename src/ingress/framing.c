/* What the headers of a request must be before anything else of it counts. The HTTP library lets pass what two readers could
 * understand in two ways; behind such a request the connection is closed. */
#include "ingress/http.h"

#include <microhttpd.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct found {
    int lengths, codings, hosts;
    const char *length, *coding;
    bool strange; /* a name or value with characters that cannot be in one */
};

static bool is_name(const char *s)
{
    static const char others[] = "!#$%&'*+-.^_`|~";
    if (!*s) return false;
    for (; *s; s++) {
        bool letter = (*s | 32) >= 'a' && (*s | 32) <= 'z', digit = *s >= '0' && *s <= '9';
        if (!letter && !digit && !strchr(others, *s)) return false;
    }
    return true;
}

static bool is_value(const char *s)
{
    for (; s && *s; s++)
        if (((u8)*s < ' ' && *s != '\t') || *s == 0x7f) return false;
    return true;
}

static enum MHD_Result note(void *cls, enum MHD_ValueKind kind, const char *name, const char *value)
{
    struct found *f = cls;
    (void)kind;
    f->strange |= !is_name(name) || !is_value(value);
    if (strcasecmp(name, MHD_HTTP_HEADER_CONTENT_LENGTH) == 0) {
        f->lengths++;
        f->length = value;
    } else if (strcasecmp(name, MHD_HTTP_HEADER_TRANSFER_ENCODING) == 0) {
        f->codings++;
        f->coding = value;
    } else if (strcasecmp(name, MHD_HTTP_HEADER_HOST) == 0) {
        f->hosts++;
    }
    return MHD_YES;
}

static int check_size(struct exchange *x, const char *url, int n)
{
    const struct config *c = x->in->spec.config;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    u64 bytes = info ? info->header_size : 0, most = (u64)c->max_header_bytes;
    if (bytes > most && strlen(url) > most / 2)
        return api_fail(&x->error, API_LONG_TARGET, NULL, "The target of the request is too long.");
    if (bytes > most)
        return api_fail(&x->error, API_LARGE_HEADERS, NULL,
                        "The headers have more than %lld bytes (--max-header-bytes).", (long long)most);
    if (n > c->max_header_count)
        return api_fail(&x->error, API_LARGE_HEADERS, NULL,
                        "There are more than %lld headers (--max-header-count).",
                        (long long)c->max_header_count);
    return 0;
}

static bool length_is_clear(const struct found *f, const char *version)
{
    if (f->lengths + f->codings > 1) return false;
    if (f->length && (!f->length[0] || strspn(f->length, "0123456789") != strlen(f->length))) return false;
    if (f->lengths && !f->length) return false;
    if (!f->codings) return true;
    return f->coding && strcasecmp(f->coding, "chunked") == 0 && strcmp(version, "HTTP/1.0") != 0;
}

static int check(struct exchange *x, const char *url, const char *version, const struct found *f, int n)
{
    if (!length_is_clear(f, version))
        return api_fail(&x->error, API_BAD_HTTP, NULL,
                        "The length of the body is not clear: send one Content-Length or one "
                        "Transfer-Encoding: chunked.");
    if (f->strange)
        return api_fail(&x->error, API_BAD_HTTP, NULL,
                        "A header has characters that cannot be in its name or value.");
    if (f->hosts > 1) return api_fail(&x->error, API_BAD_HTTP, NULL, "There is more than one Host header.");
    return check_size(x, url, n);
}

int framing_check(struct exchange *x, const char *url, const char *version, u64 *length, bool *chunked)
{
    struct found f = {0};
    int n = MHD_get_connection_values(x->connection, MHD_HEADER_KIND, note, &f);
    *chunked = f.codings > 0;
    *length = 0;
    if (check(x, url, version, &f, n) < 0) {
        x->error.close = true;
        return -1;
    }
    if (f.length) *length = strtoull(f.length, NULL, 10);
    return 0;
}
