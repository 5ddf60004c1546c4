/* A reference checkpoint made anew, tensor by tensor: another model of one file. */
#ifndef MPISERVE_TESTS_REMADE_H
#define MPISERVE_TESTS_REMADE_H

#include "made.h"
#include "reference.h"

/* Adds to m what becomes of a tensor. entry: its part of the file's header; data: where offsets begin. */
typedef void remade_tensor(void *model, const char *name, const struct json *entry, const char *data);

/* m, begun with its config.json, gets all tensors, and ref its folder, which made_drop removes. */
static inline void remade(struct made *m, struct reference *ref, remade_tensor *tensor, void *model)
{
    struct error err = {0};
    struct buf file = {0};
    char path[PATH_LEN + 32];
    u64 len;
    snprintf(path, sizeof path, "%s/model.safetensors", ref->dir);
    runner_need(!file_read(path, 1 << 24, &file, &err), &err);
    memcpy(&len, file.data, sizeof len);
    struct json *header = json_read(file.data + sizeof len, len, &err);
    runner_need(header != NULL, &err);
    for (void *it = json_first(header); it; it = json_next(header, it))
        if (strcmp(json_key(it), "__metadata__"))
            tensor(model, json_key(it), json_value(it), file.data + sizeof len + len);
    made_finish(m);
    json_drop(header);
    buf_release(&file);
    snprintf(ref->dir, sizeof ref->dir, "%s", m->dir);
}

#endif
