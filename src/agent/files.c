#include "agent/files.h"
#include "mpiserve/json.h"
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int make_private(const char *dir, struct error *err)
{
    struct stat st;
    if (mkdir(dir, 0700) && errno != EEXIST)
        return error_errno(err, dir, "cannot make the job's folder (--run-dir chooses another)");
    if (lstat(dir, &st)) return error_errno(err, dir, "cannot look at the job's folder");
    if (!S_ISDIR(st.st_mode))
        return error_set(err, ERR_INPUT, dir, "is not a folder (--run-dir chooses another)");
    if (st.st_uid != geteuid())
        return error_set(err, ERR_INPUT, dir, "belongs to another user (--run-dir chooses another)");
    if ((st.st_mode & 077) && chmod(dir, 0700))
        return error_errno(err, dir, "is open to others and cannot be closed");
    return 0;
}

static const char *temporary_folder(void)
{
    static const char *const names[] = {"XDG_RUNTIME_DIR", "TMPDIR"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        const char *v = getenv(names[i]);
        if (v && v[0] == '/' && access(v, W_OK | X_OK) == 0) return v;
    }
    return "/tmp";
}

int files_make_dir(const struct config *c, char *dir, size_t size, struct error *err)
{
    if (c->run_dir[0]) {
        if (path_join(dir, size, err, "%s", c->run_dir)) return -1;
        return make_private(dir, err);
    }
    char parent[PATH_LEN];
    if (path_join(parent, sizeof parent, err, "%s/mpiserve-%u", temporary_folder(), (unsigned)geteuid()))
        return -1;
    if (make_private(parent, err)) return -1;
    if (path_join(dir, size, err, "%s/job-%d", parent, (int)getpid())) return -1;
    return make_private(dir, err);
}

int files_same_dir(const char *dir, struct error *err)
{
    char parent[PATH_LEN];
    if (path_join(parent, sizeof parent, err, "%s", dir)) return -1;
    char *slash = strrchr(parent, '/');
    if (slash && slash != parent) {
        *slash = 0;
        if (access(parent, F_OK) && make_private(parent, err)) return -1;
    }
    return make_private(dir, err);
}

static int random_key(char *key, size_t size, struct error *err)
{
    u8 bytes[24];
    if (random_bytes(bytes, sizeof bytes, err)) return -1;
    snprintf(key, size, "mps-");
    for (size_t i = 0; i < sizeof bytes; i++) snprintf(key + 4 + 2 * i, size - 4 - 2 * i, "%02x", bytes[i]);
    return 0;
}

static int take_key(const char *from, const char *text, char *key, size_t size, struct error *err)
{
    size_t len = strcspn(text, "\r\n");
    if (len < 8 || len >= size)
        return error_set(err, ERR_INPUT, from, "a key has 8 to %zu characters, this one has %zu", size - 1,
                         len);
    for (size_t i = 0; i < len; i++)
        if (text[i] <= ' ' || text[i] > '~')
            return error_set(err, ERR_INPUT, from,
                             "a key is printable ASCII without spaces; character %zu is not", i + 1);
    memcpy(key, text, len);
    key[len] = 0;
    return 0;
}

int files_key(const struct config *c, char *key, size_t size, struct error *err)
{
    key[0] = 0;
    if (c->api_key_none) return 0;
    const char *env = getenv("MPISERVE_API_KEY");
    if (c->api_key_file[0]) {
        struct buf text = {0};
        int rc = file_read(c->api_key_file, 4096, &text, err);
        if (!rc) rc = take_key(c->api_key_file, text.data ? text.data : "", key, size, err);
        buf_release(&text);
        return rc;
    }
    if (env && env[0]) return take_key("MPISERVE_API_KEY", env, key, size, err);
    return random_key(key, size, err);
}

static int write_in(const char *dir, const char *name, const void *data, size_t len, unsigned mode,
                    struct error *err)
{
    char path[PATH_LEN];
    if (path_join(path, sizeof path, err, "%s/%s", dir, name)) return -1;
    return file_write_whole(path, data, len, mode, err);
}

int files_write_key(const char *dir, const char *key, struct error *err)
{
    struct buf line = {0};
    buf_printf(&line, "Authorization: Bearer %s\n", key);
    int rc = write_in(dir, "key", line.data, line.len, 0600, err);
    buf_release(&line);
    return rc;
}

int files_write_endpoint(const char *dir, const struct endpoint *e, struct error *err)
{
    struct buf text = {0};
    struct json_out o;
    json_out_init(&o, &text);
    json_out_object(&o);
    const struct {
        const char *key, *value;
    } texts[] = {{"state", e->state},       {"url", e->url},     {"host", e->host},
                 {"key_file", e->key_file}, {"model", e->model}, {"version", MPISERVE_VERSION}};
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        json_out_key(&o, texts[i].key);
        json_out_str(&o, texts[i].value);
    }
    const struct {
        const char *key;
        i64 value;
    } numbers[] = {{"port", e->port},
                   {"pid", getpid()},
                   {"ranks", e->ranks},
                   {"replicas", e->replicas},
                   {"written", clock_unix()}};
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        json_out_key(&o, numbers[i].key);
        json_out_int(&o, numbers[i].value);
    }
    json_out_end_object(&o);
    buf_char(&text, '\n');
    int rc = write_in(dir, "endpoint.json", text.data, text.len, 0600, err);
    buf_release(&text);
    return rc;
}

int files_write_pids(const char *dir, const char *lines, size_t len, struct error *err)
{
    return write_in(dir, "pids", lines, len, 0600, err);
}

void files_remove(const char *dir, bool made)
{
    static const char *const names[] = {"key", "pids", "endpoint.json"};
    char path[PATH_LEN];
    for (size_t i = 0; i < COUNT_OF(names); i++)
        if (path_join(path, sizeof path, NULL, "%s/%s", dir, names[i]) == 0) unlink(path);
    if (made) rmdir(dir);
}
