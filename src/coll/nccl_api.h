/* NCCL's functions that are used, as nccl.h declares them since 2.14. The program is built without that header, which is no part of
 * CUDA's toolkit; `make check-cuda` compares the two where it is installed. Inside the coll room. */
#ifndef MPISERVE_COLL_NCCL_API_H
#define MPISERVE_COLL_NCCL_API_H

#include <stddef.h>

enum nccl_result {
    NCCL_SUCCESS,
    NCCL_UNHANDLED_CUDA_ERROR,
    NCCL_SYSTEM_ERROR,
    NCCL_INTERNAL_ERROR,
    NCCL_INVALID_ARGUMENT,
    NCCL_INVALID_USAGE,
    NCCL_REMOTE_ERROR,
    NCCL_IN_PROGRESS,
    NCCL_RESULTS
};
enum { NCCL_BYTES = 0 /* ncclInt8 */, NCCL_ID_BYTES = 128, NCCL_SINCE = 21400 };
enum { NCCL_CONFIG_MAGIC = (int)0xcafebeef, NCCL_UNSET = -2147483647 - 1 };
struct nccl_id {
    char bytes[NCCL_ID_BYTES];
};
struct nccl_config { /* of version 2.14: later libraries take their defaults for what came later */
    size_t size;
    unsigned magic, version;
    int blocking, unset;
};
struct ncclComm;
typedef struct ncclComm *nccl_comm;

struct nccl_api {
    int (*version)(int *version);
    int (*unique_id)(struct nccl_id *id);
    int (*init)(nccl_comm *comm, int ranks, struct nccl_id id, int rank, struct nccl_config *config);
    int (*async_error)(nccl_comm comm, int *state);
    int (*abort)(nccl_comm comm);
    const char *(*last_error)(nccl_comm comm); /* words of the last error or warning */
    int (*group_start)(void);
    int (*group_end)(void);
    int (*all_gather)(const void *in, void *out, size_t count, int type, nccl_comm comm, void *stream);
    int (*send)(const void *data, size_t count, int type, int peer, nccl_comm comm, void *stream);
    int (*receive)(void *data, size_t count, int type, int peer, nccl_comm comm, void *stream);
};
/* A function of the library, which is opened for it; NULL: there is no such library, or nothing of that name in it. Tests have
 * another one. */
void *nccl_symbol(const char *name);

#endif
