#include "engine/load.h"
#include "engine/execute.h"
#include "engine/forward.h"
#include "mpiserve/device.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

enum { IMAGE_EMPTY, IMAGE_LOADING, IMAGE_READY };
static const u64 waiting_log_ns = 30 * NS_PER_S;

static int map(int fd, const char *what, u64 bytes, bool writable, void **out, struct error *err)
{
    struct stat st;
    *out = NULL;
    if (fstat(fd, &st) < 0) return error_errno(err, what, "descriptor %d", fd);
    if (st.st_size < 0 || (u64)st.st_size < bytes)
        return error_set(err, ERR_PEER, what, "the memory has %lld bytes, %llu are needed",
                         (long long)st.st_size, (unsigned long long)bytes);
    void *mem = mmap(NULL, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (mem == MAP_FAILED) return error_errno(err, what, "cannot map %llu bytes", (unsigned long long)bytes);
    madvise(mem, bytes, MADV_DONTDUMP);
    madvise(mem, bytes, MADV_HUGEPAGE); /* where the machine allows it for shared memory */
    *out = mem;
    return 0;
}

/* Of the model and of which part of it the image holds. */
static u64 image_fingerprint(const struct loaded *l)
{
    const struct shard *s = &l->shard;
    const u32 part[] = {s->tp, s->pp, s->tp_rank, s->pp_rank};
    return hash_bytes(part, sizeof(part), model_fingerprint(&l->config, l->files));
}

static bool image_is(const struct weights_head *h, u64 bytes, u64 fingerprint)
{
    return h->bytes == bytes && h->fingerprint == fingerprint;
}

/* Only one loader lives at a time: LOADING was left by a dead one. */
static int fill(struct loaded *l, u64 fingerprint, struct channel_head *head, struct error *err)
{
    struct weights_head *h = l->image;
    u64 bytes = l->image_bytes - WEIGHTS_IMAGE_OFFSET, start = clock_ns();
    if (atomic_load(&h->ready) == IMAGE_READY && image_is(h, bytes, fingerprint)) return 0;
    atomic_store(&h->ready, IMAGE_LOADING);
    h->bytes = bytes;
    h->fingerprint = fingerprint;
    int rc = weights_fill(&l->config, &l->shard, l->files, NULL, (u8 *)l->image + WEIGHTS_IMAGE_OFFSET, bytes,
                          &head->loaded_bytes, err);
    if (rc < 0) return rc;
    atomic_store(&h->ready, IMAGE_READY);
    double seconds = (double)(clock_ns() - start) / NS_PER_S;
    log_info("weights of %s: %llu MiB in %.2f s, %.2f GB/s", l->config.dir, (unsigned long long)(bytes >> 20),
             seconds, (double)bytes / 1e9 / seconds);
    return 0;
}

static int wait_for_loader(struct loaded *l, u64 fingerprint, struct channel_head *head, struct error *err)
{
    const struct weights_head *h = l->image;
    u64 said = clock_ns();
    while (atomic_load(&h->ready) != IMAGE_READY) {
        u64 now = clock_ns();
        atomic_store(&head->heartbeat_ns, now);
        if (now - said >= waiting_log_ns) {
            said = now;
            log_warning("still waiting for another rank's engine to load the weights");
        }
        nanosleep(&(struct timespec){.tv_nsec = NS_PER_MS}, NULL);
    }
    if (image_is(h, l->image_bytes - WEIGHTS_IMAGE_OFFSET, fingerprint)) return 0;
    return error_set(err, ERR_PEER, "weights",
                     "the loaded image is not of the model in %s (has it changed on disk?)", l->config.dir);
}

static int load_weights(struct loaded *l, struct channel_head *head, int fd, struct error *err)
{
    const struct engine_boot *boot = &head->boot;
    size_t bytes;
    int rc = weights_plan(&l->config, &l->shard, l->files, NULL, &bytes, err);
    if (rc < 0) return rc;
    l->image_bytes = WEIGHTS_IMAGE_OFFSET + bytes;
    if (boot->weights_bytes != l->image_bytes)
        return error_set(err, ERR_PEER, "weights", "planned %llu bytes, the model in %s needs %zu",
                         (unsigned long long)boot->weights_bytes, l->config.dir, l->image_bytes);
    u64 fingerprint = image_fingerprint(l);
    rc = map(fd, "weights", l->image_bytes, boot->loader, &l->image, err);
    if (rc == 0)
        rc = boot->loader ? fill(l, fingerprint, head, err) : wait_for_loader(l, fingerprint, head, err);
    if (rc < 0) return rc;
    mprotect(l->image, l->image_bytes, PROT_READ); /* others use it too: no stray write may reach it */
    return weights_bind(&l->config, &l->shard, l->files, NULL, (const u8 *)l->image + WEIGHTS_IMAGE_OFFSET,
                        &l->weights, err);
}

static const struct word {
    const char *name;
    enum dtype dtype;
} WEIGHTS[] = {{"int8", DTYPE_I8}, {"int4", DTYPE_I4}},
  KV[] = {{"f32", DTYPE_F32}, {"bf16", DTYPE_BF16}, {"f16", DTYPE_F16}, {"int8", DTYPE_I8}};

/* 1: found; 0: auto; else an error. */
static int find_word(const struct word *words, size_t n, const char *name, const char *what, enum dtype *out,
                     struct error *err)
{
    if (!name || !*name || !strcmp(name, "auto")) return 0;
    for (size_t i = 0; i < n; i++)
        if (!strcmp(name, words[i].name)) {
            *out = words[i].dtype;
            return 1;
        }
    return error_set(err, ERR_INPUT, what, "\"%s\" is not offered", name);
}

/* How the folder stores its weights is no choice: the word for it is a confirmation, and as good as auto. */
static int confirm(const struct model_config *c, const char **quantization, struct error *err)
{
    const char *stored = quant_method_name(c->quant.method), *word;
    for (int m = QUANT_NONE + 1; *quantization && (word = quant_method_name((enum quant_method)m)); m++) {
        if (strcmp(*quantization, word)) continue;
        if ((int)c->quant.method != m)
            return error_set(err, ERR_INPUT, "--quantization",
                             "%s: config.json of %s says that its weights are %s; leave it out", word, c->dir,
                             stored ? stored : "not quantised");
        *quantization = NULL;
        return 0;
    }
    return 0;
}

int load_formats(struct model_config *c, const char *quantization, const char *load_format,
                 const char *kv_dtype, struct error *err)
{
    c->load = (struct model_load){.dummy = load_format && !strcmp(load_format, "dummy")};
    if (confirm(c, &quantization, err)) return ERR_INPUT;
    int weights =
        find_word(WEIGHTS, COUNT_OF(WEIGHTS), quantization, "--quantization", &c->load.weights, err);
    int kv = find_word(KV, COUNT_OF(KV), kv_dtype, "--kv-cache-dtype", &c->load.kv, err);
    c->load.kv_set = kv > 0;
    if (weights < 0 || kv < 0) return ERR_INPUT;
    if (weights && c->quant.method && !quant_becomes_numbers(&c->quant) && !c->load.dummy)
        return error_set(
            err, ERR_UNSUPPORTED, "--quantization",
            "%s: the weights of %s are quantised already, and stay as they are stored; leave it out",
            quantization, c->dir);
    return 0;
}

struct model_files *load_files(const struct model_config *c, struct error *err)
{
    return c->load.dummy ? model_open_none() : model_open(c->dir, err);
}

/* ---- adapters */
_Static_assert((int)BOOT_ADAPTERS <= (int)MODEL_MAX_ADAPTERS, "all adapters of a boot find room");

int load_adapter(struct adapters *list, const char *name, const char *dir, struct error *err)
{
    struct error why = {0};
    BUG_ON(list->n == MODEL_MAX_ADAPTERS);
    if (adapter_open(&list->list[list->n], name, dir, &why) == 0) {
        list->n++;
        return 0;
    }
    return error_set(err, why.code, "--lora-modules", "%s: %s: %s", name, why.where, why.message);
}

void load_adapters_close(struct adapters *list)
{
    for (u32 i = 0; list && i < list->n; i++) adapter_close(&list->list[i]);
    free(list);
}

static int open_adapters(struct loaded *l, const struct engine_boot *b, struct error *err)
{
    int rc = 0;
    if (b->n_adapters) l->adapters = mem_zero(1, sizeof *l->adapters);
    for (u32 i = 0; i < b->n_adapters && !rc; i++)
        rc = load_adapter(l->adapters, b->adapters[i].name, b->adapters[i].path, err);
    l->config.load.adapters = l->adapters;
    return rc;
}

/* ---- on a device: each engine's own, row-major in the type that it computes in */
static int fill_device(struct loaded *l, struct channel_head *head, struct error *err)
{
    u64 start = clock_ns();
    if (!(l->image = device_alloc(l->device, l->image_bytes, err))) return ERR_MEMORY;
    if (!(l->kv = device_alloc(l->device, l->kv_bytes, err))) return ERR_MEMORY;
    int rc = weights_fill(&l->config, &l->shard, l->files, &l->place, l->image, l->image_bytes,
                          &head->loaded_bytes, err);
    if (rc < 0) return rc;
    log_info("weights of %s: %zu MiB on %s in %.2f s; %llu MiB for KV", l->config.dir, l->image_bytes >> 20,
             device_info(l->device)->name, (double)(clock_ns() - start) / NS_PER_S,
             (unsigned long long)(l->kv_bytes >> 20));
    return weights_bind(&l->config, &l->shard, l->files, &l->place, l->image, &l->weights, err);
}

static int load_on_device(struct loaded *l, struct channel_head *head, struct error *err)
{
    const struct engine_boot *boot = &head->boot;
    enum compute compute;
    if (compute_parse(boot->compute, &compute) < 0)
        return error_set(err, ERR_PEER, "compute", "\"%s\"", boot->compute);
    l->place = (struct weights_place){l->device, compute_dtype(compute)};
    int rc = weights_plan(&l->config, &l->shard, l->files, &l->place, &l->image_bytes, err);
    if (rc < 0) return rc;
    if (boot->weights_bytes != l->image_bytes)
        return error_set(err, ERR_PEER, "weights", "planned %llu bytes, the model in %s needs %zu",
                         (unsigned long long)boot->weights_bytes, l->config.dir, l->image_bytes);
    return fill_device(l, head, err);
}

int load_model(struct loaded *l, struct device *device, struct channel_head *head, int weights_fd, int kv_fd,
               struct error *err)
{
    memset(l, 0, sizeof(*l));
    l->device = device;
    l->kv_bytes = head->boot.kv_bytes;
    const struct engine_boot *b = &head->boot;
    int rc = model_read_config(b->model, &l->config, err);
    if (rc == 0) rc = load_formats(&l->config, b->quantization, b->load_format, b->kv_cache_dtype, err);
    if (rc == 0) rc = open_adapters(l, b, err);
    if (rc == 0)
        rc = shard_of(&l->shard, &l->config, MAX_OF(b->group.tp, 1u), MAX_OF(b->group.pp, 1u), b->tp_rank,
                      b->pp_rank, err);
    if (rc == 0) {
        l->files = load_files(&l->config, err);
        rc = !l->files ? -1 : device ? load_on_device(l, head, err) : load_weights(l, head, weights_fd, err);
    }
    if (rc == 0 && !device) rc = map(kv_fd, "KV", l->kv_bytes, true, &l->kv, err);
    if (rc != 0) load_release(l);
    return rc;
}

void load_release(struct loaded *l)
{
    if (l->device) {
        device_free(l->device, l->image);
        device_free(l->device, l->kv);
    } else {
        if (l->image) munmap(l->image, l->image_bytes);
        if (l->kv) munmap(l->kv, l->kv_bytes);
    }
    if (l->files) model_close(l->files);
    weights_release(&l->weights);
    load_adapters_close(l->adapters);
    memset(l, 0, sizeof(*l));
}
