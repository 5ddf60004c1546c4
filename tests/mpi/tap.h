/* Cases of a test that is an MPI job: each rank checks for itself, rank 0 prints one TAP line for all. */
#ifndef MPISERVE_TESTS_MPI_TAP_H
#define MPISERVE_TESTS_MPI_TAP_H

#include "mpiserve/wire.h"

#include <stdio.h>
#include <stdlib.h>

struct tap {
    struct wire *wire;
    u32 cases, faults; /* faults of this rank in the case that runs */
    u32 failed;        /* cases, on all ranks */
};

static inline struct wire *tap_start(struct tap *t, int *argc, char ***argv)
{
    struct error err = {0};
    *t = (struct tap){.wire = wire_init(argc, argv, &err)};
    if (!t->wire) {
        fprintf(stderr, "Bail out! %s\n", err.message);
        exit(1);
    }
    return t->wire;
}

static inline void tap_fault(struct tap *t, const char *file, int line, const char *what, const char *detail,
                             ...) PRINTF_LIKE(5, 6);
static inline void tap_fault(struct tap *t, const char *file, int line, const char *what, const char *detail,
                             ...)
{
    va_list args;
    va_start(args, detail);
    t->faults++;
    fprintf(stderr, "# rank %u, %s:%d: %s: ", wire_rank(t->wire), file, line, what);
    vfprintf(stderr, detail, args);
    fputc('\n', stderr);
    va_end(args);
}

/* Names the rank and the line of what is not so; after the condition, words as for printf. */
#define CHECK(t, cond, ...)                                                                                  \
    do {                                                                                                     \
        if (!(cond)) tap_fault(t, __FILE__, __LINE__, #cond, " " __VA_ARGS__);                               \
    } while (0)

/* Collective: the case passes when no rank found a fault. */
static inline void tap_case(struct tap *t, const char *name)
{
    u32 *all = mem_zero(wire_size(t->wire), sizeof *all), sum = 0;
    struct error err = {0};
    if (wire_allgather(t->wire, &t->faults, sizeof t->faults, all, &err)) {
        fprintf(stderr, "Bail out! %s\n", err.message);
        wire_abort(t->wire, 1);
    }
    for (u32 r = 0; r < wire_size(t->wire); r++) sum += all[r];
    free(all);
    t->cases++;
    t->failed += sum > 0;
    t->faults = 0;
    if (wire_rank(t->wire) != 0) return;
    printf("%s %u - %s\n", sum ? "not ok" : "ok", t->cases, name);
    fflush(stdout);
}

/* Collective. Returns the exit status. */
static inline int tap_end(struct tap *t)
{
    if (wire_rank(t->wire) == 0) printf("1..%u\n", t->cases);
    fflush(stdout);
    wire_end(t->wire);
    return t->failed > 0;
}

#endif
