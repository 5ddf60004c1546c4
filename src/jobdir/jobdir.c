/* Making and finding the folders of a job. */
#include "mpiserve/jobdir.h"

#include "jobdir/owner.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

const char *jobdir_file(const struct jobdir *d, const char *name, char *out, size_t size)
{
    int len = snprintf(out, size, "%s/%s", d->path, name);
    BUG_ON(len < 0 || (size_t)len >= size);
    return out;
}

/* Slurm hands the environment of `up` to other machines, where TMPDIR then names MPI's session folder (jobdir_session), or
 * /tmp since that folder is not there: what it was before is meant. */
const char *temporary_folder(void)
{
    const char *folder = getenv("TMPDIR"), *job = getenv("MPISERVE_RUN_DIR"),
               *before = getenv("MPISERVE_TMPDIR");
    bool of_job = folder && job && *job && strncmp(folder, job, strlen(job)) == 0;
    bool of_slurm = job && *job && getenv("SLURM_STEP_ID") && before && access(before, W_OK) == 0;
    if (of_job || of_slurm) folder = before;
    return folder && *folder ? folder : "/tmp";
}

/* A folder of ours that nobody else can write; made when it is not there. */
static int private_folder(const char *path, struct error *err)
{
    struct stat st;
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return error_errno(err, path, "cannot make the folder (TMPDIR or --run-dir chooses another place)");
    if (lstat(path, &st) < 0) return error_errno(err, path, "cannot look at the folder");
    if (!S_ISDIR(st.st_mode)) return error_set(err, ERR_INPUT, path, "is not a folder");
    if (st.st_uid != geteuid())
        return error_set(err, ERR_INPUT, path,
                         "belongs to user %u, not to you: choose another place with TMPDIR or --run-dir",
                         st.st_uid);
    if (st.st_mode & 022)
        return error_set(err, ERR_INPUT, path,
                         "can be written by other users: chmod 700 it, or choose another place");
    return 0;
}

/* Under a launcher that nobody chose a name for (a bare mpirun): one that all ranks find by themselves. */
static bool launched_job_name(char *out, size_t size)
{
    static const char *const names[] = {"PMIX_NAMESPACE", "OMPI_MCA_orte_hnp_uri"};
    u64 h = 0;
    if (!getenv(names[0])) return false;
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        const char *v = getenv(names[i]);
        if (v) h = hash_bytes(v, strlen(v), h + i);
    }
    snprintf(out, size, "%08x", (u32)h);
    return true;
}

static int new_job_name(char *out, size_t size, struct error *err)
{
    u32 draw;
    if (launched_job_name(out, size)) return 0;
    int rc = random_bytes(&draw, sizeof(draw), err);
    if (rc == 0) snprintf(out, size, "%08x", draw);
    return rc;
}

static int check_length(const char *path, struct error *err)
{
    if (strlen(path) <= JOBDIR_PATH_MAX) return 0;
    return error_set(err, ERR_INPUT, path,
                     "is too long for sockets: %zu bytes, at most %d; choose a shorter TMPDIR or --run-dir",
                     strlen(path), JOBDIR_PATH_MAX);
}

enum { TRIES = 100 };

/* Filled under another name first, so that nobody ever sees a folder without an owner. */
static int make_new(struct jobdir *d, const char *name, struct error *err)
{
    char parent[PATH_LEN], fresh[PATH_LEN + 8];
    int rc = path_join(parent, sizeof(parent), err, "%s/mpiserve-%u", temporary_folder(), geteuid());
    if (rc == 0) rc = path_join(d->path, sizeof(d->path), err, "%s/%s", parent, name);
    if (rc == 0) rc = check_length(d->path, err);
    if (rc < 0) return rc;
    snprintf(fresh, sizeof(fresh), "%s.new", d->path);
    rc = -1; /* more than once: whoever ends meanwhile removes the parent while it is empty */
    for (int tries = 0; tries < TRIES && rc < 0; tries++) {
        rc = private_folder(parent, err);
        if (rc == 0) rc = private_folder(fresh, err);
        if (rc < 0) nanosleep(&(struct timespec){.tv_nsec = tries * 1000l}, NULL);
    }
    if (rc == 0) rc = owner_write(fresh, d->job, err);
    if (rc == 0 && rename(fresh, d->path) < 0)
        rc = error_errno(err, d->path, "cannot rename %s to it", fresh);
    if (rc < 0) remove_tree(fresh);
    return rc;
}

static int make_given(struct jobdir *d, const char *run_dir, struct error *err)
{
    struct owner o;
    int rc = private_folder(run_dir, err);
    if (rc < 0) return rc;
    char *full = realpath(run_dir, NULL);
    if (!full) return error_errno(err, run_dir, "cannot find the folder's full name");
    rc = path_join(d->path, sizeof(d->path), err, "%s", full);
    free(full);
    if (rc == 0) rc = check_length(d->path, err);
    if (rc == 0 && owner_read(d->path, &o)) {
        if (!owner_gone(&o))
            return error_set(err, ERR_STATE, run_dir, "is in use by a running job (process %d on %s)", o.pid,
                             o.host);
        remove_own_files(d->path);
    }
    d->given = true;
    return rc < 0 ? rc : owner_write(d->path, d->job, err);
}

/* Without it MPI falls back to its own places: slower and less tidy, never wrong. */
static bool shm_path(char *out, size_t size, const char *job)
{
    int len = snprintf(out, size, SHM_FOLDER "/mpiserve-%u-%s", geteuid(), job);
    return len > 0 && (size_t)len < size;
}

static void make_shm(struct jobdir *d)
{
    struct error err;
    shm_path(d->shm, sizeof(d->shm), d->job);
    if (private_folder(d->shm, &err) == 0 && owner_write(d->shm, d->job, &err) == 0) return;
    char text[1024];
    log_warning("%s", error_text(&err, text, sizeof(text)));
    d->shm[0] = 0;
}

int jobdir_check_room(u64 bytes, struct error *err)
{
    u64 room = file_room(temporary_folder());
    if (room >= bytes) return 0;
    return error_set(
        err, ERR_IO, temporary_folder(),
        "the temporary folder has %llu KB left, MPI and the job need %llu KB: make room, or choose another "
        "place with TMPDIR",
        (unsigned long long)(room >> 10), (unsigned long long)(bytes >> 10));
}

int jobdir_make(struct jobdir *d, const char *run_dir, struct error *err)
{
    memset(d, 0, sizeof(*d));
    int rc = new_job_name(d->job, sizeof(d->job), err);
    if (rc == 0) rc = *run_dir ? make_given(d, run_dir, err) : make_new(d, d->job, err);
    if (rc < 0) return rc;
    make_shm(d);
    return 0;
}

int jobdir_make_node(struct jobdir *d, const char *job, u32 node, struct error *err)
{
    char name[2 * JOB_NAME_LEN];
    memset(d, 0, sizeof(*d));
    snprintf(d->job, sizeof(d->job), "%s", job);
    snprintf(name, sizeof(name), "%s-node%u", job, node); /* machines may share the temporary folder */
    int rc = make_new(d, name, err);
    if (rc == 0) make_shm(d);
    return rc;
}

void jobdir_name_shm(const struct jobdir *d)
{
    static const char *const names[] = {"OMPI_MCA_btl_vader_backing_directory", /* Open MPI 4 */
                                        "OMPI_MCA_btl_sm_backing_directory",    /* 5 */
                                        "OMPI_MCA_osc_sm_backing_directory",
                                        "OMPI_MCA_osc_rdma_backing_directory"};
    for (size_t i = 0; d->shm[0] && i < COUNT_OF(names); i++) setenv(names[i], d->shm, 0);
}

void jobdir_prepare_shm(struct jobdir *d, bool first)
{
    const char *job = getenv("MPISERVE_JOB");
    struct owner o;
    struct error err;
    memset(d, 0, sizeof(*d));
    if (job && *job)
        snprintf(d->job, sizeof(d->job), "%s", job);
    else if (!launched_job_name(d->job, sizeof(d->job)))
        return;
    if (!shm_path(d->shm, sizeof(d->shm), d->job)) return;
    if (private_folder(d->shm, &err) < 0 ||
        (first && !owner_read(d->shm, &o) && owner_write(d->shm, d->job, &err) < 0))
        d->shm[0] = 0;
    if (!job || !*job) jobdir_name_shm(d);
}

int jobdir_attach(struct jobdir *d, struct error *err)
{
    const char *job = getenv("MPISERVE_JOB"), *path = getenv("MPISERVE_RUN_DIR");
    memset(d, 0, sizeof(*d));
    if (!job || !path || !*job || !*path) return 0;
    struct owner o;
    int rc = path_join(d->job, sizeof(d->job), err, "%s", job);
    if (rc < 0 || !owner_read(path, &o) || !owner_is_near(&o)) return rc;
    rc = path_join(d->path, sizeof(d->path), err, "%s", path);
    if (rc < 0) return rc;
    const char *slash = strrchr(path, '/');
    d->given = !slash || strcmp(slash + 1, job) != 0;
    if (!shm_path(d->shm, sizeof(d->shm), job) || !owner_read(d->shm, &o)) d->shm[0] = 0;
    return 1;
}

int jobdir_session(const struct jobdir *d, struct error *err)
{
    char path[PATH_LEN + 8];
    jobdir_file(d, "mpi", path, sizeof(path));
    if (mkdir(path, 0700) < 0 && errno != EEXIST) return error_errno(err, path, "cannot make the folder");
    if (setenv("MPISERVE_TMPDIR", temporary_folder(), 1) < 0 || setenv("TMPDIR", path, 1) < 0)
        return error_errno(err, "TMPDIR", "cannot set it");
    return 0;
}

int jobdir_export(const struct jobdir *d, struct error *err)
{
    if (setenv("MPISERVE_RUN_DIR", d->path, 1) < 0 || setenv("MPISERVE_JOB", d->job, 1) < 0)
        return error_errno(err, "environment", "cannot add to it");
    return 0;
}

int jobdir_open(struct jobdir *d, const char *folder, struct error *err)
{
    memset(d, 0, sizeof(*d));
    int rc = private_folder(folder, err);
    if (rc < 0) return rc;
    char *full = realpath(folder, NULL);
    if (!full) return error_errno(err, folder, "cannot find the folder's full name");
    rc = path_join(d->path, sizeof(d->path), err, "%s", full);
    free(full);
    return rc;
}

int jobdir_list(struct jobdir *list, int max)
{
    char parent[PATH_LEN];
    struct owner o;
    int n = 0;
    if (path_join(parent, sizeof(parent), NULL, "%s/mpiserve-%u", temporary_folder(), geteuid()) < 0)
        return 0;
    DIR *dir = opendir(parent);
    for (struct dirent *e; dir && n < max && (e = readdir(dir));) {
        struct jobdir *d = &list[n];
        memset(d, 0, sizeof(*d));
        if (e->d_name[0] == '.') continue;
        if (path_join(d->path, sizeof(d->path), NULL, "%s/%s", parent, e->d_name) < 0) continue;
        if (!owner_read(d->path, &o) || owner_gone(&o)) continue;
        snprintf(d->job, sizeof(d->job), "%s", o.job);
        n++;
    }
    if (dir) closedir(dir);
    return n;
}
