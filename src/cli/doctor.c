/* mpiserve doctor: what this machine has and misses for a job. */
#include "cli/doctor.h"
#include "mpiserve/cli.h"
#include "mpiserve/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { EXIT_FINE = 0, EXIT_PROBLEM = 1, EXIT_USAGE = 2 };

static const char usage[] =
    "mpiserve doctor [--json]\n"
    "\n"
    "Looks at this machine as a job would use it, some seconds long: kernel, cores, memory, folders, limits, "
    "MPI;\n"
    "measures memory bandwidth, and the latency of messages and slots between two ranks that it starts.\n"
    "  --json   {\"verdict\", \"items\": [{\"name\", \"verdict\", \"found\", \"advice\", numbers...}]}\n"
    "Exit status: 0 a job can run here, 1 there is a problem, 2 wrong usage.\n";

static const char *const verdict_names[] = {
    [FINE] = "ok", [SKIPPED] = "skipped", [WARNING] = "warning", [PROBLEM] = "problem"};

static void (*const parts[])(struct report *) = {
    doctor_kernel,    doctor_copies, doctor_cpus,  doctor_memory, doctor_gpus,      doctor_shm,
    doctor_temporary, doctor_files,  doctor_slurm, doctor_mpi,    doctor_bandwidth,
};

/* ---- findings -----------------------------------------------------------------------------------------------------*/
struct finding *finding_add(struct report *r, const char *name)
{
    BUG_ON(r->n == FINDINGS_MAX);
    struct finding *f = &r->list[r->n++];
    *f = (struct finding){.name = name};
    return f;
}

void finding_say(struct finding *f, const char *fmt, ...)
{
    size_t len = strlen(f->text);
    va_list args;
    va_start(args, fmt);
    vsnprintf(f->text + len, sizeof(f->text) - len, fmt, args);
    va_end(args);
}

void finding_judge(struct finding *f, enum verdict verdict, const char *fmt, ...)
{
    va_list args;
    if (verdict < f->verdict) return;
    f->verdict = verdict;
    va_start(args, fmt);
    vsnprintf(f->advice, sizeof(f->advice), fmt, args);
    va_end(args);
}

void finding_number(struct finding *f, const char *key, double value)
{
    BUG_ON(f->n_numbers == NUMBERS_MAX);
    f->numbers[f->n_numbers].key = key;
    f->numbers[f->n_numbers++].value = value;
}

/* ---- the answer ---------------------------------------------------------------------------------------------------*/
static enum verdict overall(const struct report *r, int counts[])
{
    enum verdict worst = FINE;
    for (int i = 0; i < r->n; i++) {
        counts[r->list[i].verdict]++;
        if (r->list[i].verdict != SKIPPED) worst = MAX_OF(worst, r->list[i].verdict);
    }
    return worst;
}

static void print_text(const struct report *r)
{
    int counts[COUNT_OF(verdict_names)] = {0};
    char host[256] = "";
    gethostname(host, sizeof(host) - 1);
    printf("mpiserve " MPISERVE_VERSION " on %s\n\n", host);
    for (int i = 0; i < r->n; i++) {
        const struct finding *f = &r->list[i];
        printf("  %-8s %-18s %s\n", verdict_names[f->verdict], f->name, f->text);
        if (f->advice[0]) printf("  %-8s %-18s -> %s\n", "", "", f->advice);
    }
    enum verdict worst = overall(r, counts);
    printf("\n%s: ", verdict_names[worst]);
    if (worst == PROBLEM)
        printf("a job will not run well here; %d problem%s, %d warning%s\n", counts[PROBLEM],
               counts[PROBLEM] == 1 ? "" : "s", counts[WARNING], counts[WARNING] == 1 ? "" : "s");
    else
        printf("a job can run here; %d warning%s\n", counts[WARNING], counts[WARNING] == 1 ? "" : "s");
}

static void add_finding(struct json_out *o, const struct finding *f)
{
    json_out_object(o);
    json_out_key_str(o, "name", f->name);
    json_out_key_str(o, "verdict", verdict_names[f->verdict]);
    json_out_key_str(o, "found", f->text);
    json_out_key_str(o, "advice", f->advice);
    for (int i = 0; i < f->n_numbers; i++) {
        double v = f->numbers[i].value;
        json_out_key(o, f->numbers[i].key);
        v == (double)(i64)v ? json_out_int(o, (i64)v) : json_out_real(o, v);
    }
    json_out_end_object(o);
}

static void print_json(const struct report *r)
{
    int counts[COUNT_OF(verdict_names)] = {0};
    char host[256] = "";
    struct buf text = {0};
    struct json_out o;
    gethostname(host, sizeof(host) - 1);
    json_out_init(&o, &text);
    json_out_object(&o);
    json_out_key_str(&o, "mpiserve", MPISERVE_VERSION);
    json_out_key_str(&o, "host", host);
    json_out_key_str(&o, "verdict", verdict_names[overall(r, counts)]);
    json_out_key(&o, "items");
    json_out_array(&o);
    for (int i = 0; i < r->n; i++) add_finding(&o, &r->list[i]);
    json_out_end_array(&o);
    json_out_end_object(&o);
    puts(text.data);
    buf_release(&text);
}

int cli_doctor(int argc, char **argv)
{
    struct report r = {0};
    int counts[COUNT_OF(verdict_names)] = {0};
    bool json = argc == 3 && strcmp(argv[2], "--json") == 0;
    log_setup(LOG_INFO, "");
    if (argc == 3 && (strcmp(argv[2], "--help") == 0 || strcmp(argv[2], "-h") == 0)) {
        fputs(usage, stdout);
        return EXIT_FINE;
    }
    if (argc > 2 && !json) {
        log_error("%s: is no option of doctor; it has --json", argv[argc == 3 ? 2 : 3]);
        return EXIT_USAGE;
    }
    for (size_t i = 0; i < COUNT_OF(parts); i++) parts[i](&r);
    json ? print_json(&r) : print_text(&r);
    return overall(&r, counts) == PROBLEM ? EXIT_PROBLEM : EXIT_FINE;
}
