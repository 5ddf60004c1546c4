/* files: the job's folder and what lies in it: endpoint.json, key, pids. */
#ifndef MPISERVE_AGENT_FILES_H
#define MPISERVE_AGENT_FILES_H

#include "mpiserve/base.h"
#include "mpiserve/config.h"

struct endpoint {
    char url[320];
    char host[256];
    int port;
    const char *key_file; /* NULL: no key */
    const char *state;    /* LOADING READY DRAINING DOWN */
    const char *model;
    u32 ranks, replicas;
};
/* The folder: the option's (made when missing), or a new one under XDG_RUNTIME_DIR, TMPDIR or /tmp. 0700. */
int files_make_dir(const struct config *c, char *dir, size_t size, struct error *err);
/* The same folder on another node, or the one that is there. */
int files_same_dir(const char *dir, struct error *err);
/* The job's key: MPISERVE_API_KEY, the file of --api-key-file, or a new random one. key[0] = 0: --api-key none. */
int files_key(const struct config *c, char *key, size_t size, struct error *err);
int files_write_key(const char *dir, const char *key, struct error *err);
int files_write_endpoint(const char *dir, const struct endpoint *e, struct error *err);
int files_write_pids(const char *dir, const char *lines, size_t len, struct error *err);
/* Removes what this job wrote there, and the folder when it made it (dir was not given by an option). */
void files_remove(const char *dir, bool made);

#endif
