/* config.json, a NUL, generation_config.json: an error that names its file, or a config whose numbers stay within what the engine relies
 * on, and whose weights can be laid out. */
#include "engine/layout.h"
#include "mpiserve/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[64], config[128], generation[128];

static void remove_folder(void)
{
    unlink(config);
    unlink(generation);
    rmdir(folder);
}

static void put(const char *path, const u8 *data, size_t len)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, len, f) != len || fclose(f)) abort();
}

static void must(bool holds)
{
    if (!holds) abort();
}

static void check_config(const struct model_config *c)
{
    must(c->vocab && c->hidden && c->heads && c->kv_heads && c->ffn && c->max_position);
    must(c->layers && c->layers <= MODEL_MAX_LAYERS && c->heads % c->kv_heads == 0);
    must(c->head_dim && c->head_dim <= MODEL_MAX_HEAD && c->head_dim % 2 == 0);
    must(c->rope.dims % 2 == 0 && c->rope.dims <= c->head_dim && c->n_eos <= MODEL_MAX_EOS);
    must(c->eps > 0 && isfinite(c->score_scale) && isfinite(c->embed_scale));
    for (u32 i = 0; i < c->n_eos; i++) must(c->eos[i] >= 0 && (u32)c->eos[i] < c->vocab);
    must(!c->moe.experts || (c->moe.per_token && c->moe.per_token <= c->moe.experts && c->moe.groups &&
                             c->moe.experts % c->moe.groups == 0));
}

static void check_rope(const struct rope_config *r)
{
    float inv[MODEL_MAX_HEAD / 2];
    rope_frequencies(r, 1, inv);
    rope_frequencies(r, 1 << 20, inv);
    for (u32 i = 0; i < r->dims / 2; i++) must(!isnan(inv[i]));
}

/* As `--load-format dummy` does: no file is needed. Large ones would only take time. */
static void check_layout(struct model_config *c)
{
    struct model_files *none = model_open_none();
    struct layout l;
    struct error err = {0};
    c->load.dummy = true;
    if ((u64)c->layers * MAX_OF(c->moe.experts, 1u) <= 4096) {
        const struct shard all = shard_whole(c);
        if (layout_build(&l, c, &all, none, NULL, &err))
            must(err.message[0]);
        else
            layout_release(&l);
    }
    model_close(none);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);
int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
    static struct model_config c;
    struct error err = {0};
    if (!folder[0]) {
        snprintf(folder, sizeof folder, "/tmp/mpiserve-fuzz-XXXXXX");
        if (!mkdtemp(folder)) abort();
        snprintf(config, sizeof config, "%s/config.json", folder);
        snprintf(generation, sizeof generation, "%s/generation_config.json", folder);
        atexit(remove_folder);
    }
    const u8 *nul = memchr(data, 0, size);
    size_t len = nul ? (size_t)(nul - data) : size;
    put(config, data, len);
    if (nul)
        put(generation, nul + 1, size - len - 1);
    else
        unlink(generation);
    if (model_read_config(folder, &c, &err)) {
        must(err.message[0] && strstr(err.where, folder));
        return 0;
    }
    check_config(&c);
    check_rope(&c.rope);
    if (c.arch->two_ropes) check_rope(&c.rope_local);
    check_layout(&c);
    return 0;
}
