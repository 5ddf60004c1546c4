/* jobdir: the folder of a job on this machine: what it holds, whose it is, and how it goes away.
 *
 *   $TMPDIR/mpiserve-UID/JOB   (or /tmp; mode 0700; or the folder of --run-dir)
 *     owner          who removes it: "PID START BOOT PIDNS HOST JOB"; while that process lives nobody else touches the folder
 *     endpoint.json  where the job is reached and in which state; by rank 0, renamed into place at each change
 *     key            "Authorization: Bearer KEY", mode 0600: curl -H @FILE
 *     pids           a line "RANK PID" for every rank of this machine; by one rank, once all have started
 *     run.log        what the ranks print, when `mpiserve up` started them
 *     bell.RANK      doorbells of the ranks
 *     session        "PID START FOLDER": MPI's launcher on this machine and where it has its files
 *     mpi/           MPI's own session files, when `mpiserve up` started it
 *   $TMPDIR/mpiserve-UID/JOB-nodeK   the same on the K-th other machine of the job: owner, pids and bells only
 *   /dev/shm/mpiserve-UID-JOB  MPI's shared memory; the same owner file
 * ($XDG_RUNTIME_DIR is not used: it goes away when the user logs out, jobs do not.)
 *
 * The owner is `mpiserve up`, or rank 0 of a job started by a bare mpirun; on other machines of the job, their first rank. An owner that is killed leaves its folders; the
 * next start removes them (jobdir_sweep). Owners of other machines and other pid namespaces are left alone.
 *
 * Life cycle: jobdir_sweep, jobdir_make (owner) -> jobdir_attach (every other process; MPISERVE_RUN_DIR and
 * MPISERVE_JOB of the environment) -> jobdir_remove (owner).
 * Thread rule: plain data. */
#ifndef MPISERVE_JOBDIR_H
#define MPISERVE_JOBDIR_H

#include "mpiserve/base.h"

enum { JOBDIR_PATH_MAX = 80, JOB_NAME_LEN = 24 }; /* an AF_UNIX path in the folder must fit in 107 bytes */

struct jobdir {
    char path[PATH_LEN]; /* at most JOBDIR_PATH_MAX bytes */
    char shm[96];        /* "": /dev/shm is not usable */
    char job[JOB_NAME_LEN];
    bool given; /* the folder came from --run-dir: only what jobs write there is ever removed */
};

/* Makes the folder (run_dir "": a new one under the temporary folder) and the one in /dev/shm; this process becomes the
 * owner. Errors: not writable, full, path too long for sockets, not ours, in use by a running job. */
int jobdir_make(struct jobdir *d, const char *run_dir, struct error *err);
/* Before MPI starts, which may hang for ever in a full temporary folder: an error when it has less than `bytes` left. */
enum {
    JOBDIR_ROOM = 20 << 20,
    JOBDIR_ROOM_RANK = 9 << 20
}; /* before mpirun; when mpirun has (or did not get) its share */
int jobdir_check_room(u64 bytes, struct error *err);
/* A process that the owner started: 1 and *d filled from the environment. 0 when there is no owner above (make one), or when it
 * is on another machine; then d->job is filled, else "". */
int jobdir_attach(struct jobdir *d, struct error *err);
/* The folders of node `node` of the job, when the owner of the job is on another machine; this process becomes their owner. */
int jobdir_make_node(struct jobdir *d, const char *job, u32 node, struct error *err);
/* Before MPI starts: the folder in /dev/shm that `up` names to MPI for all machines is made where it is not, and named here under a bare
 * mpirun; first: this is the first rank of its machine. d->shm is filled, or "" when there is none. What goes wrong shows when MPI uses it. */
void jobdir_prepare_shm(struct jobdir *d, bool first);
/* Names d->shm to MPI as the place for its shared memory, in the environment, where the user named none. */
void jobdir_name_shm(const struct jobdir *d);
/* Makes the folder of MPI's session files and sets TMPDIR to it, MPISERVE_TMPDIR to what that was. */
int jobdir_session(const struct jobdir *d, struct error *err);
/* For the environment of processes that attach. */
int jobdir_export(const struct jobdir *d, struct error *err);
/* Removes both folders; in a given one only the job's own files, and run.log stays. */
void jobdir_remove(const struct jobdir *d);
/* The same by a rank at its end: the others may still be removing MPI's files from /dev/shm, which complains about one that is
 * gone. It waits for them, for at most limit_ms. */
void jobdir_remove_last(const struct jobdir *d, int limit_ms);
/* Removes what dead jobs of this user left on this machine; returns how many folders. */
int jobdir_sweep(void);
/* The same for one job whose processes are just ending: again until nothing of it is left here, for at most limit_ms. Returns
 * how many folders stay, because their owner lives or cannot be known. */
int jobdir_sweep_job(const char *job, int limit_ms);
/* "PATH/name"; returns out. */
const char *jobdir_file(const struct jobdir *d, const char *name, char *out, size_t size);

/* The tidier: a small child process that removes this machine's folders, and MPI's own session folder, once all ranks of the
 * machine, the owner and the launcher are dead: so nothing is left even where everything was killed. For one rank of each machine,
 * while it has one thread and before MPI starts. known: what there is already. Returns a descriptor to be kept open (its closing tells of the rank's end), or an error. */
int jobdir_tidier_start(const struct jobdir *known, struct error *err);
void jobdir_tidier_tell(int tidier,
                        const struct jobdir *d); /* after jobdir_write_pids; tidier < 0: nothing */

/* ---- what the job says about itself ---------------------------------------------------------------------------*/
/* PENDING: no rank is up yet; written by `mpiserve up`, into a published copy only. */
enum endpoint_state { ENDPOINT_PENDING, ENDPOINT_LOADING, ENDPOINT_READY, ENDPOINT_DRAINING, ENDPOINT_DOWN };
const char *endpoint_state_name(enum endpoint_state s); /* "LOADING", ... */
struct endpoint {
    enum endpoint_state state;
    char url[320]; /* as a client types it: http://127.0.0.1:8000 */
    char host[256];
    i64 port;
    char key_file[PATH_LEN]; /* "": no key is asked for */
    char model[128];         /* the served name */
    char does[16];           /* what the model answers: "chat", "embeddings", "rerank" */
    char job[JOB_NAME_LEN];
    char node[256];     /* where rank 0 runs */
    char slurm_job[24]; /* "": not in a Slurm job */
    i64 pid;            /* rank 0's */
    i64 ranks;          /* of the job */
};
int endpoint_write(const struct jobdir *d, const struct endpoint *e, struct error *err);
int endpoint_read(const struct jobdir *d, struct endpoint *e, struct error *err); /* ERR_NOT_FOUND: not yet */

/* For files that other machines see: a folder of this user (made when it is not there) in which endpoint_write and
 * endpoint_read work, too. It has no owner; nothing in it is ever swept. */
int jobdir_open(struct jobdir *d, const char *folder, struct error *err);
/* The folders of this user's jobs on this machine whose owner lives; returns their number (at most max). */
int jobdir_list(struct jobdir *list, int max);

/* Writes the file `key` (e->key_file) for curl -H @FILE. */
int jobdir_write_key(const struct jobdir *d, const char *key, struct error *err);
/* Draws a key of 40 characters; size > 40. */
int jobdir_new_key(char *out, size_t size, struct error *err);

/* pids[i] is the process of rank ranks[i]. Written once, by one rank of the machine. */
int jobdir_write_pids(const struct jobdir *d, const int *ranks, const int *pids, int n, struct error *err);
/* Returns their number (at most max), or ERR_NOT_FOUND. */
int jobdir_read_pids(const struct jobdir *d, int *ranks, int *pids, int max, struct error *err);

/* ---- processes ------------------------------------------------------------------------------------------------*/
/* When the process started, in clock ticks since boot (a pid alone may have been given away again); 0: there is no such
 * process, or it is dead and only not waited for. *parent may be NULL. */
u64 process_start(int pid, int *parent);

#endif
