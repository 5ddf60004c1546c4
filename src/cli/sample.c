/* What a job says about itself at one moment: health, topology, metrics. */
#include "cli/http.h"
#include "cli/status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LIMIT_MS = 3000, MAX_PAGE = 64 << 20, MAX_KEY = 4096 };

/* The line of the key file, a header already; "" without one. */
static int read_key(const struct endpoint *e, char *out, size_t size, struct error *err)
{
    struct buf text = {0};
    *out = 0;
    if (!e->key_file[0]) return 0;
    int rc = file_read(e->key_file, MAX_KEY, &text, err);
    if (rc == 0 && text.len) snprintf(out, size, "%.*s", (int)strcspn(text.data, "\r\n"), text.data);
    if (text.data) explicit_bzero(text.data, text.len);
    buf_release(&text);
    return rc;
}

static void say(struct sample *s, const struct error *err)
{
    char text[1100];
    if (!s->reason[0]) snprintf(s->reason, sizeof(s->reason), "%.290s", error_text(err, text, sizeof(text)));
}

/* {"error": {"message": ...}} */
static void read_reason(struct sample *s, const struct buf *body)
{
    struct json *root = body->len ? json_read(body->data, body->len, NULL) : NULL;
    const char *message = json_text(json_get(json_get(root, "error"), "message"));
    snprintf(s->reason, sizeof(s->reason), "%.290s", message ? message : "it does not say why");
    json_drop(root);
}

static void take_topology(struct sample *s, const struct http_ask *ask, struct buf *body)
{
    struct error err;
    int rc = http_get(ask, "/v1/topology", body, &err);
    if (rc == 200 && body->len) s->topology = json_read(body->data, body->len, &err);
    if (rc > 0 && rc != 200) error_set(&err, ERR_PEER, "/v1/topology", "is refused with status %d", rc);
    if (!s->topology) say(s, &err);
}

void sample_take(struct sample *s, const struct endpoint *e)
{
    char key[MAX_KEY];
    struct buf body = {0};
    struct error err;
    memset(s, 0, sizeof(*s));
    struct http_ask ask = {.url = e->url, .header = "", .limit_ms = LIMIT_MS, .max_bytes = MAX_PAGE};
    int rc = http_get(&ask, "/health", &body, &err);
    if (rc < 0) {
        say(s, &err);
        buf_release(&body);
        return;
    }
    s->status = rc;
    if (rc != 200) read_reason(s, &body);
    s->at_ns = clock_ns();
    rc = http_get(&ask, "/metrics", &s->metrics, &err);
    if (rc != 200) buf_clear(&s->metrics);
    if (rc < 0) say(s, &err);
    if (read_key(e, key, sizeof(key), &err) < 0) say(s, &err);
    ask.header = key;
    take_topology(s, &ask, &body);
    explicit_bzero(key, sizeof(key));
    buf_release(&body);
}

void sample_release(struct sample *s)
{
    json_drop(s->topology);
    buf_release(&s->metrics);
    memset(s, 0, sizeof(*s));
}

double sample_metric(const struct sample *s, const char *name, int replica)
{
    char label[32];
    size_t len = strlen(name);
    double sum = 0;
    snprintf(label, sizeof(label), "engine=\"%d\"", replica);
    for (const char *line = s->metrics.len ? s->metrics.data : ""; *line;) {
        size_t size = strcspn(line, "\n");
        const char *next = line + size + (line[size] == '\n');
        if (strncmp(line, name, len) == 0 && (line[len] == '{' || line[len] == ' ')) {
            const char *value = memrchr(line, ' ', size), *at = strstr(line, label);
            if (value && (replica == METRIC_SUM || (at && at < line + size))) sum += strtod(value, NULL);
        }
        line = next;
    }
    return sum;
}

double sample_rate(const struct sample *before, const struct sample *now, const char *name, int replica)
{
    if (!before->metrics.len || !now->metrics.len || now->at_ns <= before->at_ns) return 0;
    double grown = sample_metric(now, name, replica) - sample_metric(before, name, replica);
    return grown <= 0 ? 0 : grown * 1e9 / (double)(now->at_ns - before->at_ns);
}
