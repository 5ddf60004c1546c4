#include "agent/key.h"
#include "mpiserve/jobdir.h"
#include <stdlib.h>
#include <string.h>

static int take_key(const char *from, const char *text, char key[KEY_LEN], struct error *err)
{
    size_t len = strcspn(text, "\r\n");
    if (len < 8 || len >= KEY_LEN)
        return error_set(err, ERR_INPUT, from, "a key has 8 to %d characters, this one has %zu", KEY_LEN - 1,
                         len);
    for (size_t i = 0; i < len; i++)
        if (text[i] <= ' ' || text[i] > '~')
            return error_set(err, ERR_INPUT, from,
                             "a key is printable ASCII without spaces; character %zu is not", i + 1);
    memcpy(key, text, len);
    key[len] = 0;
    return 0;
}

int key_find(const struct config *c, char key[KEY_LEN], struct error *err)
{
    key[0] = 0;
    if (c->api_key_none) return 0;
    const char *env = getenv("MPISERVE_API_KEY");
    if (c->api_key_file[0]) {
        struct buf text = {0};
        int rc = file_read(c->api_key_file, 4096, &text, err);
        if (!rc) rc = take_key(c->api_key_file, text.data ? text.data : "", key, err);
        buf_release(&text);
        return rc;
    }
    if (env && env[0]) return take_key("MPISERVE_API_KEY", env, key, err);
    return jobdir_new_key(key, KEY_LEN, err);
}
