/* Inside of jobdir/: the file `owner`. */
#ifndef JOBDIR_OWNER_H
#define JOBDIR_OWNER_H

#include "mpiserve/jobdir.h"

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

/* The folder and all in it, as far as that is possible. */
void remove_tree(const char *path);
/* MPI's own session folder, which the file `session` in this folder names, if its launcher is dead. */
void session_remove_dead(const char *folder);
/* Those of the job's folders whose owner is gone. */
void jobdir_remove_dead(const struct jobdir *d);
void jobdir_remove_dead_shm(const struct jobdir *d); /* only the one in /dev/shm */

#endif
