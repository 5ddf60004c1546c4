/* Inside of jobdir/: whose a folder is, and how it goes. */
#ifndef JOBDIR_OWNER_H
#define JOBDIR_OWNER_H

#include "mpiserve/jobdir.h"

#define SHM_FOLDER "/dev/shm"
const char *
temporary_folder(void); /* $TMPDIR or /tmp, as it was before MPI's session folder took its place */

/* ---- owner.c: the file `owner` */
struct owner {
    int pid;
    u64 start, pid_ns;
    char boot[64], host[256], job[JOB_NAME_LEN];
};
/* This process owns the folder from now on. */
int owner_write(const char *folder, const char *job, struct error *err);
/* false: there is none, or not one that was written by owner_write. */
bool owner_read(const char *folder, struct owner *o);
bool owner_is_near(const struct owner *o); /* on this machine, since its last start */
/* Certainly dead. What cannot be known from here counts as living. */
bool owner_gone(const struct owner *o);

/* ---- session.c: where MPI's launcher on this machine keeps its files, and who it is */
struct session {
    int launcher;
    u64 start;
    char path[PATH_LEN];
};
/* The file `session` of a folder; false: there is none, or it names a folder that is not MPI's. */
bool session_read(const char *folder, struct session *s);
void session_write(const char *folder); /* of this process's launcher, if it has one */
bool session_ended(const struct session *s);

/* ---- remove.c */
/* The folder and all in it, as far as that is possible. */
void remove_tree(const char *path);
/* In a folder that is not ours alone, only what jobs write; run.log stays for its reader. */
void remove_own_files(const char *folder);
/* Those of the job's folders whose owner is gone. */
void jobdir_remove_dead(const struct jobdir *d);
void jobdir_remove_dead_shm(const struct jobdir *d); /* only the one in /dev/shm */

#endif
