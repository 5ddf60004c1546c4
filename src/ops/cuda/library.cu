/* Libraries that are opened when they are needed: the program starts, and serves on CPUs, where they are not installed. */
#include "library.h"

#include <dlfcn.h>
#include <stddef.h>

void *library_symbol(const char *library, const char *name)
{
    void *handle = dlopen(library, RTLD_NOW | RTLD_GLOBAL);
    return handle ? dlsym(handle, name) : NULL;
}
