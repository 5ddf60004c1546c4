/* folder: a temporary folder for files that a test makes, reference data, damaged text. For the tests of model files. */
#ifndef MPISERVE_TEST_FOLDER_H
#define MPISERVE_TEST_FOLDER_H

#include "mpiserve/base.h"
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static inline const char *data_dir(const char *name)
{
    static char path[PATH_LEN];
    const char *tests = getenv("MPISERVE_TESTS");
    snprintf(path, sizeof path, "%s/reference/models/%s", tests ? tests : "tests", name);
    return path;
}

static char folder[64];

static inline int folder_make(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/mpiserve-test-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static inline void folder_empty(void)
{
    struct dirent *e;
    DIR *d = opendir(folder);
    assert_non_null(d);
    while ((e = readdir(d)))
        if (e->d_name[0] != '.') unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
}

static inline int folder_drop(void **state)
{
    (void)state;
    folder_empty();
    return rmdir(folder);
}

static inline void put(const char *name, const void *data, size_t len)
{
    char path[PATH_LEN];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, len), len);
    close(fd);
}

static inline void expect_error(const struct error *e, const char *part)
{
    char line[1200];
    error_text(e, line, sizeof line);
    if (!strstr(line, part)) fail_msg("expected \"%s\" in \"%s\"", part, line);
}

/* A safetensors file: header text (its length in front, plus lie) and n zero bytes. */
static inline void put_tensors(const char *name, const char *header, u64 lie, size_t n)
{
    struct buf b = {0};
    u64 len = strlen(header) + lie;
    for (int i = 0; i < 8; i++) buf_char(&b, (char)(len >> 8 * i));
    buf_text(&b, header);
    for (size_t i = 0; i < n; i++) buf_char(&b, 0);
    put(name, b.data, b.len);
    buf_release(&b);
}

/* Seeded damage to text: a small fuzzer. */
struct mutator {
    u64 round;
    u32 bits[4];
};

static inline u32 next_bits(struct mutator *m, u32 below)
{
    rng_block(7, m->round++, 0, m->bits);
    return m->bits[0] % below;
}

/* Flips, overwrites, cuts out or doubles a few bytes; returns the new length (at most len + 16). */
static inline size_t mutate(struct mutator *m, char *text, size_t len)
{
    static const char spice[] = "{}[]\",:0123456789-+.eE\\ntu \x80\xff";
    for (u32 n = 1 + next_bits(m, 4); n && len; n--) {
        size_t at = next_bits(m, (u32)len);
        switch (next_bits(m, 4)) {
        case 0: text[at] ^= (char)(1u << next_bits(m, 8)); break;
        case 1: text[at] = spice[next_bits(m, sizeof spice - 1)]; break;
        case 2: memmove(text + at, text + at + 1, --len - at); break;
        default: memmove(text + at + 1, text + at, len - at); len++;
        }
    }
    return len;
}

#endif
