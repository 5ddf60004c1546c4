/* Inside of cli/: asking a running job over HTTP. */
#ifndef CLI_HTTP_H
#define CLI_HTTP_H

#include "mpiserve/base.h"

struct http_ask {
    const char *url;    /* http://HOST[:PORT], HOST may be [v6] */
    const char *header; /* "Name: value", or "" */
    int limit_ms;       /* for connection, request and answer together; looking up the name comes on top */
    size_t max_bytes;   /* of the answer */
};
/* GET url path. The status of the answer, its body in *body (cleared first); or an error: ERR_INPUT for the url, ERR_IO when
 * nobody answers in time, ERR_PEER when what comes is not HTTP. */
int http_get(const struct http_ask *ask, const char *path, struct buf *body, struct error *err);

#endif
