#include "engine/mirror.h"

#include <stdlib.h>
#include <string.h>

enum { LIST_ALIGN = 16, LISTS = 12 };

struct mirror {
    struct device *device;
    size_t bytes, used;
    u8 *host, *there; /* the tables come first: their addresses must be known when spans are made */
};

static size_t aligned(size_t bytes)
{
    return (bytes + LIST_ALIGN - 1) / LIST_ALIGN * LIST_ALIGN;
}

size_t mirror_bytes(const struct mirror_spec *s)
{
    size_t token = sizeof(i32) + 2 * sizeof(u32) + sizeof(struct place) + sizeof(struct attn_span) +
                   (s->types ? sizeof(i32) : 0),
           vector = sizeof(u32) + sizeof(struct pooling_run),
           adapted = sizeof(u32) + sizeof(struct adapted_tile);
    return s->max_seqs * aligned(s->max_seq_blocks * sizeof(u32)) + s->tokens * token + s->vectors * vector +
           s->adapted * adapted + (s->inv[0] + s->inv[1]) * sizeof(float) + LISTS * LIST_ALIGN;
}

struct mirror *mirror_new(struct device *d, const struct mirror_spec *spec, struct error *err)
{
    struct mirror *m = mem_zero(1, sizeof *m);
    *m = (struct mirror){.device = d, .bytes = mirror_bytes(spec)};
    m->host = mem_alloc(m->bytes);
    m->there = device_alloc(d, m->bytes, err);
    if (m->there) return m;
    mirror_free(m);
    return NULL;
}

void mirror_free(struct mirror *m)
{
    if (!m) return;
    device_free(m->device, m->there);
    free(m->host);
    free(m);
}

/* Where the copy will be. */
static void *add(struct mirror *m, const void *list, size_t bytes)
{
    u8 *there = m->there + m->used;
    BUG_ON(m->used + aligned(bytes) > m->bytes);
    if (bytes) memcpy(m->host + m->used, list, bytes);
    m->used += aligned(bytes);
    return there;
}

const u32 *mirror_table(struct mirror *m, const u32 *blocks, u32 n)
{
    return add(m, blocks, n * sizeof *blocks);
}

void mirror_send(struct mirror *m, const struct token_lists *host, const struct mirror_use *use,
                 struct token_lists *seen)
{
    *seen = (struct token_lists){.ids = add(m, host->ids, use->rows * sizeof *host->ids),
                                 .positions = add(m, host->positions, use->rows * sizeof *host->positions),
                                 .places = add(m, host->places, use->rows * sizeof *host->places),
                                 .spans = add(m, host->spans, use->spans * sizeof *host->spans),
                                 .wanted = add(m, host->wanted, use->wanted * sizeof *host->wanted),
                                 .types = add(m, host->types, use->types * sizeof *host->types),
                                 .vectors = add(m, host->vectors, use->vectors * sizeof *host->vectors),
                                 .runs = add(m, host->runs, use->runs * sizeof *host->runs),
                                 .adapted = add(m, host->adapted, use->adapted * sizeof *host->adapted),
                                 .tiles = add(m, host->tiles, use->tiles * sizeof *host->tiles)};
    for (u32 i = 0; i < 2; i++) seen->inv[i] = add(m, host->inv[i], use->inv[i] * sizeof(float));
    device_upload(m->device, m->there, m->host, m->used);
    m->used = 0;
}
