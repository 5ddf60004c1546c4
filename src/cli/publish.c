/* What a job shows to other machines: copies of its endpoint file and key in a folder that they see, and the lines that
 * tell how to reach it. The job's own folder is on one machine and goes away with the job. */
#include "cli/up.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void warn(const struct error *err)
{
    char text[1100];
    log_warning("%s", error_text(err, text, sizeof(text)));
}

static const char *variable(const char *name, const char *otherwise)
{
    const char *v = getenv(name);
    return v && *v ? v : otherwise;
}

int publish_start(struct publish *p, const struct config *c, const struct jobdir *d, struct error *err)
{
    if (!c->publish[0]) return 0;
    int rc = jobdir_open(&p->to, c->publish, err);
    if (rc < 0) return rc;
    struct endpoint e = {.state = ENDPOINT_PENDING, .ranks = c->ranks};
    snprintf(e.host, sizeof(e.host), "%s", c->host);
    snprintf(e.model, sizeof(e.model), "%s", c->served_model_name[0]);
    snprintf(e.job, sizeof(e.job), "%s", d->job);
    snprintf(e.slurm_job, sizeof(e.slurm_job), "%s", variable("SLURM_JOB_ID", ""));
    if (gethostname(e.node, sizeof(e.node)) < 0) e.node[0] = 0;
    e.node[sizeof(e.node) - 1] = 0;
    p->last = e;
    return endpoint_write(&p->to, &e, err);
}

/* The key is copied before the endpoint file names it. */
static int copy_key(const struct publish *p, struct endpoint *e, struct error *err)
{
    char path[PATH_LEN + 16];
    struct buf key = {0};
    int rc = file_read(e->key_file, 4096, &key, err);
    jobdir_file(&p->to, "key", path, sizeof(path));
    if (rc == 0) rc = file_write_whole(path, key.data, key.len, 0600, err);
    if (rc == 0) rc = path_join(e->key_file, sizeof(e->key_file), err, "%s", path);
    if (key.data) explicit_bzero(key.data, key.len);
    buf_release(&key);
    return rc;
}

void publish_change(struct publish *p, struct endpoint *e)
{
    struct error err;
    if (!p->to.path[0] || e->state < ENDPOINT_LOADING || e->state == ENDPOINT_DOWN) return;
    int rc = e->key_file[0] ? copy_key(p, e, &err) : 0;
    if (rc == 0) rc = endpoint_write(&p->to, e, &err);
    p->last = *e;
    if (rc < 0) warn(&err);
}

void publish_end(struct publish *p)
{
    struct error err;
    char path[PATH_LEN + 16];
    if (!p->to.path[0]) return;
    unlink(jobdir_file(&p->to, "key", path, sizeof(path)));
    p->last.state = ENDPOINT_DOWN;
    p->last.url[0] = p->last.key_file[0] = 0;
    if (endpoint_write(&p->to, &p->last, &err) < 0) warn(&err);
}

/* ---- what people see ---------------------------------------------------------------------------------------------*/
static void say_example(const struct endpoint *e)
{
    static const struct {
        const char *does, *path, *body;
    } examples[] = {
        {"chat", "chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":\"What is 17 + 25?\"}]}"},
        {"embeddings", "embeddings", "{\"input\":[\"a text\",\"another\"]}"},
        {"rerank", "rerank", "{\"query\":\"What is MPI?\",\"documents\":[\"a standard\",\"a fruit\"]}"}};
    char key[PATH_LEN + 16] = "";
    size_t i = COUNT_OF(examples) - 1;
    while (i > 0 && strcmp(e->does, examples[i].does) != 0) i--;
    if (e->key_file[0]) snprintf(key, sizeof(key), " -H @%s", e->key_file);
    printf("  URL   %s\n", e->url);
    printf("  try   curl -sS%s %s/v1/%s -H 'Content-Type: application/json' -d '%s'\n", key, e->url,
           examples[i].path, examples[i].body);
}

/* From a laptop, through the machine where the user logs in; the same port there. */
static void say_tunnel(const struct endpoint *e)
{
    printf("  ssh   ssh -N -L %lld:%s:%lld %s@%s\n", (long long)e->port, e->node, (long long)e->port,
           variable("SLURM_JOB_USER", "USER"), variable("SLURM_SUBMIT_HOST", "LOGIN-HOST"));
    printf("        on your laptop, with the name of the login host as seen from there; then "
           "http://127.0.0.1:%lld "
           "is this job\n",
           (long long)e->port);
}

void say_ready(const struct endpoint *e, const char *log_folder, double seconds)
{
    printf("\nmpiserve serves %s with %lld ranks, ready after %.1f s\n\n", e->model, (long long)e->ranks,
           seconds);
    say_example(e);
    if (e->slurm_job[0] && !config_host_is_loopback(e->host)) say_tunnel(e);
    printf("  log   %s/run.log (warnings and errors are shown here too)\n", log_folder);
    if (e->slurm_job[0])
        printf("  stop  scancel --batch --signal=USR1 %s: running requests finish; scancel %s ends them\n\n",
               e->slurm_job, e->slurm_job);
    else
        printf("  stop  Ctrl-C here, or kill %d: running requests finish; a second time ends them\n\n",
               getpid());
    fflush(stdout);
}
