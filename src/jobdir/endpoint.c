/* endpoint.json, key and pids: what a job says about itself. */
#include "mpiserve/jobdir.h"
#include "mpiserve/json.h"

#include <stdio.h>
#include <string.h>

static const char *const state_names[] = {
    [ENDPOINT_PENDING] = "PENDING",   [ENDPOINT_LOADING] = "LOADING", [ENDPOINT_READY] = "READY",
    [ENDPOINT_DRAINING] = "DRAINING", [ENDPOINT_DOWN] = "DOWN",
};

const char *endpoint_state_name(enum endpoint_state s)
{
    return state_names[s];
}

/* The texts and numbers of the file: one table for writing and reading. */
static const struct field {
    const char *key;
    size_t at, size; /* size 0: an i64 */
} fields[] = {
#define TEXT(key, field)                                                                                     \
    {                                                                                                        \
        key, offsetof(struct endpoint, field), sizeof(((struct endpoint *)0)->field)                         \
    }
#define NUMBER(key, field)                                                                                   \
    {                                                                                                        \
        key, offsetof(struct endpoint, field), 0                                                             \
    }
    TEXT("url", url),           TEXT("host", host),           NUMBER("port", port),
    TEXT("key_file", key_file), TEXT("model", model),         TEXT("does", does),
    TEXT("job", job),           NUMBER("pid", pid),           NUMBER("ranks", ranks),
    TEXT("node", node),         TEXT("slurm_job", slurm_job),
};

int endpoint_write(const struct jobdir *d, const struct endpoint *e, struct error *err)
{
    struct buf text = {0};
    struct json_out out;
    char path[PATH_LEN + 32];
    json_out_init(&out, &text);
    json_out_object(&out);
    json_out_key(&out, "state");
    json_out_str(&out, state_names[e->state]);
    for (size_t i = 0; i < COUNT_OF(fields); i++) {
        const char *field = (const char *)e + fields[i].at;
        json_out_key(&out, fields[i].key);
        if (fields[i].size)
            json_out_str(&out, field);
        else
            json_out_int(&out, *(const i64 *)field);
    }
    json_out_end_object(&out);
    buf_char(&text, '\n');
    int rc =
        file_write_whole(jobdir_file(d, "endpoint.json", path, sizeof(path)), text.data, text.len, 0600, err);
    buf_release(&text);
    return rc;
}

int endpoint_read(const struct jobdir *d, struct endpoint *e, struct error *err)
{
    char path[PATH_LEN + 32];
    jobdir_file(d, "endpoint.json", path, sizeof(path));
    if (!file_exists(path)) return error_set(err, ERR_NOT_FOUND, path, "there is no such file");
    struct json *root = json_read_file(path, 64 * 1024, err);
    if (!root) return ERR_PEER;
    memset(e, 0, sizeof(*e));
    const char *state = json_text(json_get(root, "state"));
    size_t s = 0;
    while (s < COUNT_OF(state_names) && (!state || strcmp(state, state_names[s]) != 0)) s++;
    e->state = (enum endpoint_state)s;
    for (size_t i = 0; i < COUNT_OF(fields); i++) {
        char *field = (char *)e + fields[i].at;
        const struct json *v = json_get(root, fields[i].key);
        if (fields[i].size)
            snprintf(field, fields[i].size, "%s", json_text(v) ? json_text(v) : "");
        else
            *(i64 *)field = json_int(v, 0);
    }
    json_drop(root);
    return s < COUNT_OF(state_names)
               ? 0
               : error_set(err, ERR_PEER, path, "the field state is missing or unknown");
}

int jobdir_write_key(const struct jobdir *d, const char *key, struct error *err)
{
    char path[PATH_LEN + 32], line[512];
    int len = snprintf(line, sizeof(line), "Authorization: Bearer %s\n", key);
    BUG_ON(len < 0 || (size_t)len >= sizeof(line));
    int rc = file_write_whole(jobdir_file(d, "key", path, sizeof(path)), line, (size_t)len, 0600, err);
    explicit_bzero(line, sizeof(line));
    return rc;
}

int jobdir_new_key(char *out, size_t size, struct error *err)
{
    u8 draw[18];
    BUG_ON(size < 41);
    int rc = random_bytes(draw, sizeof(draw), err);
    if (rc < 0) return rc;
    size_t at = (size_t)snprintf(out, size, "mps-");
    for (size_t i = 0; i < sizeof(draw); i++) at += (size_t)snprintf(out + at, size - at, "%02x", draw[i]);
    return 0;
}

int jobdir_write_pids(const struct jobdir *d, const int *ranks, const int *pids, int n, struct error *err)
{
    struct buf text = {0};
    char path[PATH_LEN + 32];
    for (int i = 0; i < n; i++) buf_printf(&text, "%d %d\n", ranks[i], pids[i]);
    int rc = file_write_whole(jobdir_file(d, "pids", path, sizeof(path)), text.data, text.len, 0600, err);
    buf_release(&text);
    return rc;
}

int jobdir_read_pids(const struct jobdir *d, int *ranks, int *pids, int max, struct error *err)
{
    struct buf text = {0};
    char path[PATH_LEN + 32];
    int n = 0, used, rc = file_read(jobdir_file(d, "pids", path, sizeof(path)), 1 << 20, &text, err);
    if (rc < 0) return rc;
    for (const char *p = text.len ? text.data : "";
         n < max && sscanf(p, "%d %d\n%n", &ranks[n], &pids[n], &used) == 2; n++)
        p += used;
    buf_release(&text);
    return n;
}
