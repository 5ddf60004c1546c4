/* mpiserve status: what runs, and how it is. */
#include "cli/status.h"
#include "mpiserve/cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { EXIT_READY = 0, EXIT_NOT_READY = 1, EXIT_USAGE = 2, EXIT_NONE = 3 };

struct asked {
    bool json, help;
    const char *run_dir, *job;
};

static const char usage[] =
    "mpiserve status [--json] [--run-dir FOLDER | --job ID]\n"
    "\n"
    "Shows running jobs: nodes, replicas and their ReplicaRank, states, slots, rates over a second, queue.\n"
    "  --job ID          the job of this name, or of this number in Slurm\n"
    "  --run-dir FOLDER  the job whose endpoint file lies there\n"
    "  (neither)         all of yours on this machine, and those published in ~/.mpiserve\n"
    "  --json            {\"jobs\": [...]}\n"
    "Exit status: 0 all are ready, 1 one is not, 2 wrong usage, 3 there is none.\n";

static int read_arguments(struct asked *a, int argc, char **argv, struct error *err)
{
    *a = (struct asked){0};
    const struct {
        const char *name, **value;
    } with_value[] = {{"--run-dir", &a->run_dir}, {"--job", &a->job}};
    for (int i = 2; i < argc; i++) {
        bool known = true;
        if (strcmp(argv[i], "--json") == 0)
            a->json = true;
        else if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            a->help = true;
        else
            known = false;
        for (size_t k = 0; k < COUNT_OF(with_value) && !known; k++) {
            size_t len = strlen(with_value[k].name);
            if (strncmp(argv[i], with_value[k].name, len) != 0 || (argv[i][len] && argv[i][len] != '='))
                continue;
            const char *value = argv[i][len] ? argv[i] + len + 1 : i + 1 < argc ? argv[++i] : "";
            if (!*value) return error_set(err, ERR_INPUT, with_value[k].name, "needs a value");
            *with_value[k].value = value;
            known = true;
        }
        if (!known)
            return error_set(err, ERR_INPUT, argv[i],
                             "is no option of status; it has --json, --run-dir, --job");
    }
    if (a->run_dir && a->job)
        return error_set(err, ERR_INPUT, "--job", "is one way to name a job, --run-dir another: give one");
    return 0;
}

static int find(const struct asked *a, struct job_file *list, struct error *err)
{
    if (a->run_dir) return find_folder(a->run_dir, list, err);
    if (a->job) return find_job(a->job, list, err);
    return find_all(list, STATUS_JOBS_MAX);
}

/* Two looks at every job, a second apart, for the rates; all jobs in the same second. */
static void look(struct job_view *views, int n)
{
    bool again = false;
    for (int i = 0; i < n; i++) {
        const struct endpoint *e = &views[i].file->endpoint;
        if (e->url[0]) sample_take(&views[i].before, e);
        again |= views[i].before.status == 200;
    }
    if (again) nanosleep(&(struct timespec){.tv_sec = 1}, NULL);
    for (int i = 0; i < n; i++) {
        struct job_view *v = &views[i];
        const struct endpoint *e = &v->file->endpoint;
        if (e->url[0]) sample_take(&v->now, e);
        v->ready = v->now.status == 200 && e->state == ENDPOINT_READY;
        if (!v->ready) v->gone = slurm_state(e->slurm_job, v->slurm, sizeof(v->slurm)) == 0;
    }
}

static void show_json(const struct job_view *views, int n)
{
    struct buf text = {0};
    struct json_out o;
    json_out_init(&o, &text);
    json_out_object(&o);
    json_out_key(&o, "jobs");
    json_out_array(&o);
    for (int i = 0; i < n; i++) picture_json(&views[i], &o);
    json_out_end_array(&o);
    json_out_end_object(&o);
    puts(text.data);
    buf_release(&text);
}

static void show_text(const struct job_view *views, int n)
{
    for (int i = 0; i < n; i++) {
        if (i) putchar('\n');
        picture_text(&views[i]);
    }
}

static int show(const struct asked *a, const struct job_file *files, int n)
{
    struct job_view *views = mem_zero((size_t)n + 1, sizeof(*views));
    bool ready = true;
    for (int i = 0; i < n; i++) views[i].file = &files[i];
    look(views, n);
    (a->json ? show_json : show_text)(views, n);
    for (int i = 0; i < n; i++) {
        ready &= views[i].ready;
        sample_release(&views[i].before);
        sample_release(&views[i].now);
    }
    free(views);
    return n == 0 ? EXIT_NONE : ready ? EXIT_READY : EXIT_NOT_READY;
}

int cli_status(int argc, char **argv)
{
    struct asked a;
    struct error err;
    char text[1100];
    log_setup(LOG_INFO, "");
    int rc = read_arguments(&a, argc, argv, &err);
    if (rc == 0 && a.help) {
        fputs(usage, stdout);
        return EXIT_READY;
    }
    struct job_file *files = mem_zero(STATUS_JOBS_MAX, sizeof(*files));
    int n = rc < 0 ? rc : find(&a, files, &err);
    int status = n == ERR_NOT_FOUND ? EXIT_NONE : n < 0 ? EXIT_USAGE : show(&a, files, n);
    if (n < 0) log_error("%s", error_text(&err, text, sizeof(text)));
    if (n == 0 && a.job)
        log_error("--job %s: neither a running job of yours nor one that Slurm knows now", a.job);
    if (n == 0 && !a.job) log_info("no job of yours runs here, and none is published in ~/.mpiserve");
    free(files);
    return status;
}
