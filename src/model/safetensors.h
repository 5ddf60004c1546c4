/* safetensors: the header of one file. Inside the model room. */
#ifndef MPISERVE_MODEL_SAFETENSORS_H
#define MPISERVE_MODEL_SAFETENSORS_H

#include "mpiserve/model.h"

struct named_tensor {
    char *name; /* in the list's arena */
    struct tensor t;
};
struct tensor_list {
    struct named_tensor *items;
    u32 n, cap;
    struct arena names;
};
void tensor_list_init(struct tensor_list *l);
void tensor_list_release(struct tensor_list *l);

enum { SAFETENSORS_MAX_HEADER = 100000000, SAFETENSORS_MAX_TENSORS = 1 << 20 };

/* Checks a header's JSON (len bytes) of a file whose data are data_size bytes from data_start, and appends
 * its tensors with offsets in the file. path is for messages. On failure the list may hold some of them. */
int safetensors_parse(const char *text, size_t len, u64 data_start, u64 data_size, const char *path, u32 file,
                      struct tensor_list *out, struct error *err);
/* Reads the header of an open file of size bytes and parses it. */
int safetensors_header(int fd, u64 size, const char *path, u32 file, struct tensor_list *out,
                       struct error *err);
/* Reads all of [off, off + len) in large pieces; ERR_IO names the file and where it ends. */
int read_span(int fd, const char *path, u64 off, void *to, u64 len, struct error *err);

#endif
