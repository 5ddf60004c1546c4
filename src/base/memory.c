/* Small allocations that do not fail, and arenas that free many of them at once. */
#include "mpiserve/base.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static _Noreturn void out_of_memory(size_t size)
{
    log_error("out of memory: could not get %zu bytes", size);
    _exit(71); /* EX_OSERR: no core dump of a process that is large already */
}

void *mem_alloc(size_t size)
{
    void *p = malloc(size ? size : 1);
    if (!p) out_of_memory(size);
    return p;
}

void *mem_zero(size_t count, size_t size)
{
    void *p = calloc(count ? count : 1, size ? size : 1);
    if (!p) out_of_memory(size && count > SIZE_MAX / size ? SIZE_MAX : count * size);
    return p;
}

void *mem_resize(void *p, size_t size)
{
    void *q = realloc(p, size ? size : 1);
    if (!q) out_of_memory(size);
    return q;
}

char *mem_text(const char *s)
{
    return mem_textn(s, strlen(s));
}

char *mem_textn(const char *s, size_t len)
{
    char *copy = mem_alloc(len + 1);
    if (len) memcpy(copy, s, len);
    copy[len] = 0;
    return copy;
}

struct arena_block {
    struct arena_block *next;
    size_t used, cap;
    _Alignas(16) u8 data[];
};

void arena_init(struct arena *a, size_t block_size)
{
    a->head = NULL;
    a->block_size = block_size ? block_size : 16 * 1024;
}

static struct arena_block *block_new(size_t cap)
{
    struct arena_block *b = mem_alloc(sizeof(*b) + cap);
    b->next = NULL;
    b->used = 0;
    b->cap = cap;
    return b;
}

void *arena_alloc(struct arena *a, size_t size)
{
    if (size > SIZE_MAX / 2) out_of_memory(size);
    size = (size + 15) & ~(size_t)15;
    struct arena_block *b = a->head;
    if (b && b->cap - b->used >= size) {
        void *p = b->data + b->used;
        b->used += size;
        return p;
    }
    b = block_new(MAX_OF(size, a->block_size));
    b->used = size;
    if (a->head && size > a->block_size) { /* the room left in the head stays in use */
        b->next = a->head->next;
        a->head->next = b;
    } else {
        b->next = a->head;
        a->head = b;
    }
    return b->data;
}

char *arena_text(struct arena *a, const char *s, size_t len)
{
    char *copy = arena_alloc(a, len + 1);
    if (len) memcpy(copy, s, len);
    copy[len] = 0;
    return copy;
}

void arena_clear(struct arena *a)
{
    struct arena_block *kept = NULL, *next;
    for (struct arena_block *b = a->head; b; b = next) {
        next = b->next;
        if (!kept && b->cap == a->block_size)
            kept = b;
        else
            free(b);
    }
    if (kept) {
        kept->next = NULL;
        kept->used = 0;
    }
    a->head = kept;
}

void arena_release(struct arena *a)
{
    struct arena_block *next;
    for (struct arena_block *b = a->head; b; b = next) {
        next = b->next;
        free(b);
    }
    a->head = NULL;
}
