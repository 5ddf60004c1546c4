/* JSON: what was read is written, and what was written reads the same. */
#include "mpiserve/json.h"

#include <stdlib.h>
#include <string.h>

static void write(const struct json *v, struct buf *to)
{
    struct json_out o;
    json_out_init(&o, to);
    json_out_value(&o, v);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);
int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
    struct error err;
    struct json *v = json_read((const char *)data, size, &err);
    if (!v) return 0;
    struct buf once = {0}, twice = {0};
    write(v, &once);
    struct json *again = json_read(once.data, once.len, &err);
    if (!again) abort();
    write(again, &twice);
    if (once.len != twice.len || memcmp(once.data, twice.data, once.len) != 0) abort();
    json_drop(again);
    json_drop(v);
    buf_release(&once);
    buf_release(&twice);
    return 0;
}
