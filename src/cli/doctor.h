/* Inside of cli/: the parts of `mpiserve doctor`. */
#ifndef CLI_DOCTOR_H
#define CLI_DOCTOR_H

#include "mpiserve/base.h"

enum verdict { FINE, SKIPPED, WARNING, PROBLEM };
enum { FINDINGS_MAX = 32, NUMBERS_MAX = 6 };
struct finding {
    const char *name; /* "open files" */
    enum verdict verdict;
    char text[240];   /* what was found */
    char advice[320]; /* what to do; "": nothing */
    struct {
        const char *key; /* with its unit: "free_bytes" */
        double value;
    } numbers[NUMBERS_MAX];
    int n_numbers;
};
struct report {
    struct finding list[FINDINGS_MAX];
    int n;
};
/* A new line of the report; FINE until something else is said. */
struct finding *finding_add(struct report *r, const char *name);
void finding_say(struct finding *f, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* A verdict and what to do; of several the worst stays. */
void finding_judge(struct finding *f, enum verdict verdict, const char *fmt, ...) PRINTF_LIKE(3, 4);
void finding_number(struct finding *f, const char *key, double value);

/* Each adds a line or more. */
void doctor_kernel(struct report *r); /* doctor_kernel.c: what the kernel offers to processes */
void doctor_copies(struct report *r); /* one rank reading another's memory */
void doctor_cpus(struct report *r);   /* doctor_machine.c: what the machine gives */
void doctor_memory(struct report *r);
void doctor_gpus(struct report *r);
void doctor_shm(struct report *r); /* doctor_places.c: where things are written */
void doctor_temporary(struct report *r);
void doctor_files(struct report *r);
void doctor_slurm(struct report *r);
void doctor_mpi(struct report *r);       /* doctor_mpi.c: MPI, by a job of two ranks */
void doctor_bandwidth(struct report *r); /* doctor_machine.c */

/* The two ranks' line on stdout: PROBE_MARK and then JSON. */
#define PROBE_MARK "mpiserve-probe "

#endif
