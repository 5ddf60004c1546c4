/* adapter_config.json, a NUL, adapter_model.safetensors: an error that names the adapter's folder, or factors whose parts lie within
 * their tensors, laid out for a small llama whole and in two parts. */
#include "engine/layout.h"
#include "mpiserve/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char base[] = "{\"model_type\":\"llama\",\"architectures\":[\"LlamaForCausalLM\"],"
                           "\"hidden_size\":16,\"intermediate_size\":32,\"num_hidden_layers\":2,"
                           "\"num_attention_heads\":2,\"vocab_size\":16,\"max_position_embeddings\":64}";
enum { BASE, CONFIG, TENSORS, FILES };
static const char *const names[FILES] = {"config.json", "adapter_config.json", "adapter_model.safetensors"};
static char folder[64], paths[FILES][128];
static struct model_config config;
static struct adapters list;

static void must(bool holds)
{
    if (!holds) abort();
}

static void put(const char *path, const void *data, size_t len)
{
    FILE *f = fopen(path, "wb");
    must(f && fwrite(data, 1, len, f) == len && !fclose(f));
}

static void remove_folder(void)
{
    for (int i = 0; i < FILES; i++) unlink(paths[i]);
    rmdir(folder);
}

static void begin(void)
{
    struct error err = {0};
    snprintf(folder, sizeof folder, "/tmp/mpiserve-fuzz-XXXXXX");
    must(mkdtemp(folder) != NULL);
    for (int i = 0; i < FILES; i++) snprintf(paths[i], sizeof paths[i], "%s/%s", folder, names[i]);
    atexit(remove_folder);
    put(paths[BASE], base, strlen(base));
    must(model_read_config(folder, &config, &err) == 0);
    config.load.dummy = true;
    config.load.adapters = &list;
}

static void check_slot(const struct slot *s)
{
    must(isfinite(s->scale) && s->n_out && s->n_in);
    for (u32 i = 0; i < s->n_parts; i++) {
        const struct slot_part *p = &s->part[i];
        must(p->files == list.list[0].files && p->rows.first + p->rows.n <= p->rows.of &&
             p->cols.first + p->cols.n <= p->cols.of);
        must((u64)p->rows.of * p->cols.of * dtype_bytes(p->tensor->dtype) == p->tensor->bytes);
    }
}

static void check_layout(const struct shard *part)
{
    struct model_files *none = model_open_none();
    struct layout l;
    struct error err = {0};
    if (layout_build(&l, &config, part, none, NULL, &err)) {
        must(err.message[0] && !strcmp(err.where, folder));
    } else {
        for (u32 i = 0; i < l.n; i++)
            if (l.slots[i].adapted) check_slot(&l.slots[i]);
        layout_release(&l);
    }
    model_close(none);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);
int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
    struct error err = {0};
    if (!folder[0]) begin();
    const u8 *nul = memchr(data, 0, size), *end = data + size;
    put(paths[CONFIG], data, (size_t)((nul ? nul : end) - data));
    put(paths[TENSORS], nul ? nul + 1 : end, nul ? (size_t)(end - nul - 1) : 0);
    list.n = 0;
    if (adapter_open(&list.list[0], "a", folder, &err)) {
        must(err.message[0] && strstr(err.where, folder));
        return 0;
    }
    list.n = 1;
    for (u32 tp = 1; tp <= 2; tp++) {
        struct shard part;
        must(shard_of(&part, &config, tp, 1, tp - 1, 0, NULL) == 0);
        check_layout(&part);
    }
    adapter_close(&list.list[0]);
    return 0;
}
