/* spawn: one posix_spawn of an engine; inside the proc room. */
#ifndef MPISERVE_PROC_SPAWN_H
#define MPISERVE_PROC_SPAWN_H

#include "mpiserve/proc.h"

enum { SPAWN_FDS = FD_GROUP - FD_CHANNEL + 1 };
/* fds[i] becomes FD_CHANNEL + i of the child; -1: it has none there. Returns the pid, or a negative error. */
int spawn_engine(const char *program, u32 rank, const int fds[SPAWN_FDS], const char *fault,
                 struct error *err);

#endif
