/* NCCL is opened when it is needed: the program starts, and serves on CPUs, where it is not installed. */
#include "coll/nccl_api.h"

#include <dlfcn.h>

void *nccl_symbol(const char *name)
{
    void *handle = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    return handle ? dlsym(handle, name) : NULL;
}
