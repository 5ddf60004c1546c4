/* The files of a folder's weights: one model.safetensors, or an index and its shards, and the tensors by
 * name. */
#include "model/fields.h"
#include "model/safetensors.h"
#include "mpiserve/json.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { INDEX_MAX_BYTES = 100000000, MAX_FILES = 4096, MAX_FILE_NAME = 255, LARGE_READ = 1 << 20 };

struct file {
    int fd;
    u64 size;
    char *name; /* as the index spells it */
    char *path;
};
struct model_files {
    struct file *files;
    u32 n_files;
    struct tensor_list list;
    u32 *table; /* hash of a name -> 1 + index into list; 0: free; open addressing */
    u32 mask;
};

/* ---- tensors by name
 * -----------------------------------------------------------------------------------------*/
static u32 *slot_of(const struct model_files *f, const char *name)
{
    u32 at = (u32)hash_bytes(name, strlen(name), 0) & f->mask;
    while (f->table[at] && strcmp(f->list.items[f->table[at] - 1].name, name)) at = (at + 1) & f->mask;
    return &f->table[at];
}

static int index_names(struct model_files *f, struct error *err)
{
    char name[SHOWN_LEN];
    u32 size = 64;
    while (size < 2 * f->list.n) size *= 2;
    f->table = mem_zero(size, sizeof *f->table);
    f->mask = size - 1;
    for (u32 i = 0; i < f->list.n; i++) {
        u32 *slot = slot_of(f, f->list.items[i].name);
        if (*slot)
            return error_set(err, ERR_INPUT, f->files[f->list.items[i].t.file].path,
                             "tensor %s is in %s as well", shown(f->list.items[i].name, name),
                             f->files[f->list.items[*slot - 1].t.file].name);
        *slot = i + 1;
    }
    return 0;
}

const struct tensor *model_tensor(const struct model_files *f, const char *name)
{
    u32 i = f->list.n ? *slot_of(f, name) : 0;
    return i ? &f->list.items[i - 1].t : NULL;
}

size_t model_tensor_count(const struct model_files *f)
{
    return f->list.n;
}
const char *model_tensor_name(const struct model_files *f, size_t i)
{
    return f->list.items[i].name;
}
const struct tensor *model_tensor_at(const struct model_files *f, size_t i)
{
    return &f->list.items[i].t;
}

/* ---- files
 * ---------------------------------------------------------------------------------------------------*/
static int open_file(struct model_files *f, const char *dir, const char *name, struct error *err)
{
    char path[PATH_LEN];
    if (path_join(path, sizeof path, err, "%s/%s", dir, name)) return ERR_INPUT;
    f->files = mem_resize(f->files, (f->n_files + 1) * sizeof *f->files);
    struct file *file = &f->files[f->n_files];
    /* O_NONBLOCK: a pipe put in the place of a file must not block */
    *file = (struct file){.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    if (file->fd < 0) return error_errno(err, path, "cannot open");
    file->name = mem_text(name);
    file->path = mem_text(path);
    f->n_files++; /* from here on model_close closes it */
    struct stat st;
    if (fstat(file->fd, &st)) return error_errno(err, path, "cannot look at it");
    if (!S_ISREG(st.st_mode)) return error_set(err, ERR_INPUT, path, "is not a regular file");
    file->size = (u64)st.st_size;
    return safetensors_header(file->fd, file->size, file->path, f->n_files - 1, &f->list, err);
}

static bool file_opened(const struct model_files *f, const char *name)
{
    /* neighbours in an index mostly share a file */
    for (u32 i = f->n_files; i > 0; i--)
        if (!strcmp(f->files[i - 1].name, name)) return true;
    return false;
}

static int open_shard(struct model_files *f, const char *dir, const char *index, void *it, struct error *err)
{
    char tensor[SHOWN_LEN], shard[SHOWN_LEN];
    const struct json *v = json_value(it);
    const char *name = json_text(v);
    shown(json_key(it), tensor);
    if (!name || !*name || strlen(name) != json_len(v) || strlen(name) > MAX_FILE_NAME || strchr(name, '/') ||
        !strcmp(name, ".") || !strcmp(name, ".."))
        return error_set(err, ERR_INPUT, index,
                         "weight_map: tensor %s must name a file of this folder, not \"%s\"", tensor,
                         name ? shown(name, shard) : "");
    if (file_opened(f, name)) return 0;
    if (f->n_files == MAX_FILES)
        return error_set(err, ERR_UNSUPPORTED, index, "more than %d files", MAX_FILES);
    return open_file(f, dir, name, err);
}

/* Every tensor must be in the file that the index names. */
static int check_map(const struct model_files *f, const struct json *map, const char *index,
                     struct error *err)
{
    char name[SHOWN_LEN], shard[SHOWN_LEN];
    for (void *it = json_first(map); it; it = json_next(map, it)) {
        const struct tensor *t = model_tensor(f, json_key(it));
        shown(json_key(it), name);
        shown(json_text(json_value(it)), shard);
        if (!t) return error_set(err, ERR_INPUT, index, "weight_map: tensor %s is not in %s", name, shard);
        if (strcmp(f->files[t->file].name, json_text(json_value(it))))
            return error_set(err, ERR_INPUT, index, "weight_map: tensor %s is in %s, not in %s", name,
                             f->files[t->file].name, shard);
    }
    return 0;
}

static int open_indexed(struct model_files *f, const char *dir, const char *index, struct error *err)
{
    struct json *root = json_read_file(index, INDEX_MAX_BYTES, err);
    if (!root) return ERR_INPUT;
    const struct json *map = json_get(root, "weight_map");
    int rc = 0;
    if (json_kind(map) != JK_OBJECT || !json_len(map))
        rc = error_set(err, ERR_INPUT, index, "\"weight_map\" must be an object of file names");
    for (void *it = rc ? NULL : json_first(map); it && !rc; it = json_next(map, it))
        rc = open_shard(f, dir, index, it, err);
    if (!rc) rc = index_names(f, err);
    if (!rc) rc = check_map(f, map, index, err);
    json_drop(root);
    return rc;
}

/* A link that leads nowhere counts: opening it says so, where another file in its place would be read without a word. */
static bool is_listed(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 || errno != ENOENT;
}

static int open_all(struct model_files *f, const char *dir, struct error *err)
{
    char single[PATH_LEN], index[PATH_LEN];
    if (path_join(single, sizeof single, err, "%s/model.safetensors", dir) ||
        path_join(index, sizeof index, err, "%s/model.safetensors.index.json", dir))
        return ERR_INPUT;
    if (is_listed(index)) return open_indexed(f, dir, index, err);
    if (!is_listed(single))
        return error_set(err, ERR_NOT_FOUND, dir,
                         "neither model.safetensors nor model.safetensors.index.json is there; other formats "
                         "are not read");
    int rc = open_file(f, dir, "model.safetensors", err);
    return rc ? rc : index_names(f, err);
}

struct model_files *model_open_none(void)
{
    struct model_files *f = mem_zero(1, sizeof *f);
    tensor_list_init(&f->list);
    return f;
}

struct model_files *model_open(const char *dir, struct error *err)
{
    struct model_files *f = mem_zero(1, sizeof *f);
    tensor_list_init(&f->list);
    if (!open_all(f, dir, err)) return f;
    model_close(f);
    return NULL;
}

struct model_files *model_open_single(const char *dir, const char *name, struct error *err)
{
    struct model_files *f = model_open_none();
    if (!open_file(f, dir, name, err) && !index_names(f, err)) return f;
    model_close(f);
    return NULL;
}

void model_close(struct model_files *f)
{
    if (!f) return;
    for (u32 i = 0; i < f->n_files; i++) {
        close(f->files[i].fd);
        free(f->files[i].name);
        free(f->files[i].path);
    }
    free(f->files);
    free(f->table);
    tensor_list_release(&f->list);
    free(f);
}

int model_read(const struct model_files *f, const struct tensor *t, u64 off, void *to, u64 len,
               struct error *err)
{
    BUG_ON(t->file >= f->n_files || off > t->bytes || len > t->bytes - off);
    const struct file *file = &f->files[t->file];
    return read_span(file->fd, file->path, t->offset + off, to, len, err);
}

void model_ahead(const struct model_files *f, const struct tensor *t, u64 off, u64 len)
{
    BUG_ON(t->file >= f->n_files || off > t->bytes || len > t->bytes - off);
    posix_fadvise(f->files[t->file].fd, (off_t)(t->offset + off), (off_t)len, POSIX_FADV_WILLNEED);
}

int model_read_rows(const struct model_files *f, const struct tensor *t, u64 off, u64 stride, void *to,
                    u64 len, u32 n, struct error *err)
{
    if (stride == len || n == 1) return model_read(f, t, off, to, len * n, err);
    BUG_ON(t->file >= f->n_files || !n || len > stride);
    if (len < LARGE_READ) model_ahead(f, t, off, stride * (n - 1) + len);
    int rc = 0;
    for (u32 i = 0; i < n && !rc; i++) rc = model_read(f, t, off + i * stride, (u8 *)to + i * len, len, err);
    return rc;
}
