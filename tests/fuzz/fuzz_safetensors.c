/* The bytes of model.safetensors; or, behind an x, an index, a NUL, and the bytes of two shards, "one" and "two", with NUL NUL NUL |
 * between them: the folder is opened, and the first and last bytes of every tensor that was found are read. */
#include "mpiserve/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[64];

static void remove_folder(void)
{
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json", "one", "two"};
    char path[128];
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

static void put(const char *name, const u8 *data, size_t len)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, len, f) != len || fclose(f)) abort();
}

static void drop(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path);
}

static void read_ends(const struct model_files *f, const struct tensor *t)
{
    u64 len = MIN_OF(t->bytes, (u64)64);
    u8 *to = mem_alloc(len); /* a block of its own: its end is guarded */
    struct error err;
    if (model_read(f, t, 0, to, len, &err) || model_read(f, t, t->bytes - len, to, len, &err)) abort();
    free(to);
}

static void check_sizes(const struct tensor *t)
{
    u64 numbers = 1;
    for (u32 i = 0; i < MIN_OF(t->n_dims, (u32)COUNT_OF(t->dims)); i++)
        if (__builtin_mul_overflow(numbers, t->dims[i], &numbers)) numbers = 0;
    if (dtype_bytes(t->dtype) && t->n_dims <= COUNT_OF(t->dims) &&
        numbers * dtype_bytes(t->dtype) != t->bytes)
        abort();
}

static void open_folder(void)
{
    struct error err = {0};
    struct model_files *f = model_open(folder, &err);
    if (!f) {
        if (!err.message[0] || !strstr(err.where, folder)) abort();
        return;
    }
    for (size_t i = 0; i < model_tensor_count(f); i++) {
        const struct tensor *t = model_tensor_at(f, i);
        if (model_tensor(f, model_tensor_name(f, i)) != t) abort();
        check_sizes(t);
        read_ends(f, t);
    }
    model_close(f);
}

static void put_shards(const u8 *data, size_t size)
{
    const u8 *nul = memchr(data, 0, size), *end = data + size;
    const u8 *rest = nul ? nul + 1 : end;
    const u8 *cut = memmem(rest, (size_t)(end - rest), "\0\0\0|", 4);
    put("model.safetensors.index.json", data, (size_t)((nul ? nul : end) - data));
    put("one", rest, (size_t)((cut ? cut : end) - rest));
    put("two", cut ? cut + 4 : end, cut ? (size_t)(end - cut - 4) : 0);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);
int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
    if (!folder[0]) {
        snprintf(folder, sizeof folder, "/tmp/mpiserve-fuzz-XXXXXX");
        if (!mkdtemp(folder)) abort();
        atexit(remove_folder);
    }
    bool sharded = size && data[0] == 'x';
    if (sharded) {
        put_shards(data + 1, size - 1);
    } else {
        drop("model.safetensors.index.json");
        put("model.safetensors", data, size);
    }
    open_folder();
    return 0;
}
