/* The API key: where it comes from and what it may look like. Its text is never part of a message. */
#include "mpiserve/config.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

int config_key_check(const char *key, const char *where, struct error *err)
{
    size_t len = strlen(key);
    if (len < CONFIG_KEY_MIN || len > CONFIG_KEY_MAX)
        return error_set(err, ERR_INPUT, where, "a key has %d to %d characters, this one %zu", CONFIG_KEY_MIN,
                         CONFIG_KEY_MAX, len);
    for (size_t i = 0; i < len; i++)
        if (key[i] <= ' ' || key[i] >= 0x7f)
            return error_set(err, ERR_INPUT, where,
                             "character %zu of the key is not a printable ASCII character", i + 1);
    return 0;
}

int config_key(const struct config *c, char *out, size_t size, struct error *err)
{
    static const char header[] = "Authorization: Bearer ";
    if (c->api_key[0]) {
        BUG_ON(strlen(c->api_key) >= size);
        snprintf(out, size, "%s", c->api_key);
        return 1;
    }
    if (!c->api_key_file[0]) return 0;
    struct buf text = {0};
    int rc = file_read(c->api_key_file, 4096, &text, err);
    if (rc < 0) return rc;
    char *line = text.len ? text.data : "";
    line[strcspn(line, "\r\n")] = 0;
    if (strncmp(line, header, sizeof(header) - 1) == 0) line += sizeof(header) - 1;
    rc = config_key_check(line, c->api_key_file, err);
    if (rc == 0 && strlen(line) >= size) BUG("no room for a key");
    if (rc == 0) snprintf(out, size, "%s", line);
    explicit_bzero(text.data, text.len);
    buf_release(&text);
    if (rc < 0) return rc;
    struct stat st;
    if (stat(c->api_key_file, &st) == 0 && st.st_mode & 077)
        log_warning("%s can be read by other users: chmod 600 it", c->api_key_file);
    return 1;
}
