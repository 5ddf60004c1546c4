/* Compared at compile time by `make check-cuda`: what src/coll/nccl_api.h says of NCCL, and what the installed nccl.h says. */
#include <nccl.h>
#include <stddef.h>

extern "C" {
#include "coll/nccl_api.h"
}

#define SAME(ours, theirs) static_assert((int)(ours) == (int)(theirs), #ours " is not " #theirs)
SAME(NCCL_SUCCESS, ncclSuccess);
SAME(NCCL_UNHANDLED_CUDA_ERROR, ncclUnhandledCudaError);
SAME(NCCL_SYSTEM_ERROR, ncclSystemError);
SAME(NCCL_INTERNAL_ERROR, ncclInternalError);
SAME(NCCL_INVALID_ARGUMENT, ncclInvalidArgument);
SAME(NCCL_INVALID_USAGE, ncclInvalidUsage);
SAME(NCCL_REMOTE_ERROR, ncclRemoteError);
SAME(NCCL_IN_PROGRESS, ncclInProgress);
SAME(NCCL_BYTES, ncclInt8);
SAME(NCCL_ID_BYTES, NCCL_UNIQUE_ID_BYTES);
SAME(NCCL_UNSET, NCCL_CONFIG_UNDEF_INT);
SAME(NCCL_SINCE, NCCL_VERSION(2, 14, 0));
SAME(sizeof(struct nccl_id), sizeof(ncclUniqueId));
SAME(offsetof(struct nccl_config, size), offsetof(ncclConfig_t, size));
SAME(offsetof(struct nccl_config, magic), offsetof(ncclConfig_t, magic));
SAME(offsetof(struct nccl_config, version), offsetof(ncclConfig_t, version));
SAME(offsetof(struct nccl_config, blocking), offsetof(ncclConfig_t, blocking));
SAME(offsetof(struct nccl_config, unset), offsetof(ncclConfig_t, cgaClusterSize));
constexpr ncclConfig_t initial = NCCL_CONFIG_INITIALIZER;
SAME(NCCL_CONFIG_MAGIC, initial.magic);

/* Argument by argument: an int for an enum, a pointer for a pointer, an id for an id. */
template <class A> struct passed {
    static const size_t bytes = sizeof(A);
};
template <class... A, class... B> constexpr bool alike(int (*)(A...), ncclResult_t (*)(B...))
{
    if constexpr (sizeof...(A) != sizeof...(B))
        return false;
    else
        return ((passed<A>::bytes == passed<B>::bytes) && ...);
}
#define CALLED(field, function)                                                                              \
    static_assert(alike(decltype(nccl_api::field)(nullptr), decltype (&function)(nullptr)), #function)
CALLED(version, ncclGetVersion);
CALLED(unique_id, ncclGetUniqueId);
CALLED(init, ncclCommInitRankConfig);
CALLED(async_error, ncclCommGetAsyncError);
CALLED(abort, ncclCommAbort);
CALLED(group_start, ncclGroupStart);
CALLED(group_end, ncclGroupEnd);
CALLED(all_gather, ncclAllGather);
CALLED(send, ncclSend);
CALLED(receive, ncclRecv);
static_assert(sizeof(decltype(ncclGetLastError((ncclComm_t) nullptr))) == sizeof(const char *),
              "ncclGetLastError");
