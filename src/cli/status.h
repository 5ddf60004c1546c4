/* Inside of cli/: the parts of `mpiserve status`. */
#ifndef CLI_STATUS_H
#define CLI_STATUS_H

#include "mpiserve/jobdir.h"
#include "mpiserve/json.h"

enum { STATUS_JOBS_MAX = 64 };

/* ---- find.c: which jobs ------------------------------------------------------------------------------------------*/
struct job_file {
    char folder[PATH_LEN]; /* "": Slurm knows the job and it has written nothing yet */
    struct endpoint endpoint;
};
/* Of the folder DIR. 1, or an error. */
int find_folder(const char *dir, struct job_file *out, struct error *err);
/* The job with this name, or this number in Slurm: 1, or 0 when there is none. */
int find_job(const char *id, struct job_file *out, struct error *err);
/* All of this user that are not DOWN: on this machine, and published in ~/.mpiserve. Returns their number. */
int find_all(struct job_file *list, int max);
/* What Slurm says of a job of this user: 1 and "PENDING (Resources)", 0 and "" when it has ended, -1 when Slurm cannot be
 * asked. */
int slurm_state(const char *id, char *out, size_t size);

/* ---- sample.c: what a job says now -------------------------------------------------------------------------------*/
enum { METRIC_SUM = -1 };
struct sample {
    int status;            /* of /health; 0: no answer */
    char reason[300];      /* why it is not ready, or does not answer; "" when ready */
    struct json *topology; /* NULL: no answer */
    struct buf metrics;
    u64 at_ns;
};
/* All three pages. Never fails: what is missing is said in reason. */
void sample_take(struct sample *s, const struct endpoint *e);
void sample_release(struct sample *s);
/* The value of a metric: of the series with engine="REPLICA", or the sum of all of them (METRIC_SUM). 0: there is none. */
double sample_metric(const struct sample *s, const char *name, int replica);
/* Growth a second between two samples. */
double sample_rate(const struct sample *before, const struct sample *now, const char *name, int replica);

/* ---- picture.c: as text and as JSON ------------------------------------------------------------------------------*/
struct job_view {
    const struct job_file *file;
    struct sample before, now;
    char slurm[128]; /* what Slurm says, where the job does not answer */
    bool gone;       /* Slurm says that it has ended */
    bool ready;
};
const char *view_state(const struct job_view *v); /* READY only when it answers so now */
void picture_text(const struct job_view *v);
void picture_json(const struct job_view *v, struct json_out *o);

#endif
