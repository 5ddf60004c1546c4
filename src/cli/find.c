/* Which jobs there are: the folders on this machine, those published for other machines, and Slurm's list. */
#include "cli/status.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool read_folder(const char *path, struct job_file *out, struct error *err)
{
    struct jobdir d = {0};
    if (path_join(d.path, sizeof(d.path), err, "%s", path) < 0) return false;
    if (endpoint_read(&d, &out->endpoint, err) < 0) return false;
    snprintf(out->folder, sizeof(out->folder), "%s", d.path);
    return true;
}

int find_folder(const char *dir, struct job_file *out, struct error *err)
{
    return read_folder(dir, out, err) ? 1 : err->code;
}

static bool published_place(char *out, size_t size)
{
    const char *home = getenv("HOME");
    return home && *home && path_join(out, size, NULL, "%s/.mpiserve", home) == 0;
}

static bool is_listed(const struct job_file *list, int n, const char *job)
{
    for (int i = 0; i < n; i++)
        if (strcmp(list[i].endpoint.job, job) == 0) return true;
    return false;
}

int find_all(struct job_file *list, int max)
{
    struct jobdir *here = mem_zero(STATUS_JOBS_MAX, sizeof(*here));
    char parent[PATH_LEN], path[PATH_LEN];
    int n = 0, n_here = jobdir_list(here, MIN_OF(max, STATUS_JOBS_MAX));
    for (int i = 0; i < n_here && n < max; i++) n += read_folder(here[i].path, &list[n], NULL);
    free(here);
    if (!published_place(parent, sizeof(parent))) return n;
    DIR *dir = opendir(parent);
    for (struct dirent *e; dir && n < max && (e = readdir(dir));) {
        struct job_file *f = &list[n];
        if (e->d_name[0] == '.' || path_join(path, sizeof(path), NULL, "%s/%s", parent, e->d_name) < 0)
            continue;
        if (!read_folder(path, f, NULL) || f->endpoint.state == ENDPOINT_DOWN) continue;
        n += !is_listed(list, n, f->endpoint.job);
    }
    if (dir) closedir(dir);
    return n;
}

/* The line of this user's job: all of them are asked for, since squeue takes one that has ended for an error. */
static bool take_line(char *line, const char *id, char *out, size_t size)
{
    char *state = strchr(line, '|'), *reason = state ? strchr(state + 1, '|') : NULL;
    if (!reason) return false;
    *state++ = *reason++ = 0;
    reason[strcspn(reason, "\n")] = 0;
    if (strcmp(line, id) != 0) return false;
    bool why = *reason && strcmp(reason, "None") != 0;
    snprintf(out, size, "%s%s%s%s", state, why ? " (" : "", why ? reason : "", why ? ")" : "");
    return true;
}

int slurm_state(const char *id, char *out, size_t size)
{
    char command[96], line[256];
    int known = 0;
    *out = 0;
    snprintf(command, sizeof(command), "squeue --noheader --user=%u --format='%%A|%%T|%%r' 2>/dev/null",
             geteuid());
    FILE *f = *id ? popen(command, "re") : NULL;
    if (!f) return -1;
    while (fgets(line, sizeof(line), f)) known |= !known && take_line(line, id, out, size);
    return pclose(f) == 0 ? known : -1;
}

static bool find_running(const char *id, struct job_file *out)
{
    struct job_file *all = mem_zero(STATUS_JOBS_MAX, sizeof(*all));
    bool found = false;
    for (int i = 0, n = find_all(all, STATUS_JOBS_MAX); i < n && !found; i++) {
        const struct endpoint *e = &all[i].endpoint;
        found = strcmp(e->job, id) == 0 || strcmp(e->slurm_job, id) == 0;
        if (found) *out = all[i];
    }
    free(all);
    return found;
}

int find_job(const char *id, struct job_file *out, struct error *err)
{
    char parent[PATH_LEN], path[PATH_LEN], state[128];
    if (!*id || strspn(id, "0123456789abcdefghijklmnopqrstuvwxyz_-") != strlen(id))
        return error_set(err, ERR_INPUT, id,
                         "is no name of a job: give Slurm's number, or the name that status shows");
    if (published_place(parent, sizeof(parent)) &&
        path_join(path, sizeof(path), NULL, "%s/%s", parent, id) == 0 && read_folder(path, out, NULL))
        return 1;
    if (find_running(id, out)) return 1;
    if (slurm_state(id, state, sizeof(state)) != 1) return 0;
    memset(out, 0, sizeof(*out));
    out->endpoint.state = ENDPOINT_PENDING;
    snprintf(out->endpoint.slurm_job, sizeof(out->endpoint.slurm_job), "%s", id);
    return 1;
}
