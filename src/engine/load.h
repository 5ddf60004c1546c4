/* load: a model in this process: configuration, shared weights image, KV memory. */
#ifndef MPISERVE_ENGINE_LOAD_H
#define MPISERVE_ENGINE_LOAD_H

#include "engine/shard.h"
#include "engine/weights.h"
#include "mpiserve/step.h"

/* Opens a folder and puts it behind the others; an error names the option, the adapter and the file. */
int load_adapter(struct adapters *list, const char *name, const char *dir, struct error *err);
void load_adapters_close(struct adapters *list); /* and frees the list; NULL: nothing */

struct loaded {
    struct model_config config;
    struct shard shard; /* by the boot: which part of the model is here */
    struct model_files *files;
    struct adapters *adapters; /* NULL: none */
    struct weights weights;
    void *image, *kv; /* mappings, or the device's memory, or NULL */
    size_t image_bytes, kv_bytes;
    struct device *device; /* the caller's; NULL: on the host */
    struct weights_place place;
};
/* Words of --quantization, --load-format and --kv-cache-dtype (NULL: auto) to c->load. */
int load_formats(struct model_config *c, const char *quantization, const char *load_format,
                 const char *kv_dtype, struct error *err);
/* The files of c->dir, or none where there is nothing to be read of them. */
struct model_files *load_files(const struct model_config *c, struct error *err);
/* Reads the model, fills the image in weights_fd or waits until its loader has, and maps kv_fd. head: for progress and
 * heartbeats, and its boot for all else. With a device (isa "cuda") it reads the weights into its memory and takes memory for KV
 * there; the descriptors are not looked at. On an error *l needs no release. */
int load_model(struct loaded *l, struct device *device, struct channel_head *head, int weights_fd, int kv_fd,
               struct error *err);
void load_release(struct loaded *l); /* the device stays open */

#endif
