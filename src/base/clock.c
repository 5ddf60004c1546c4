#include "mpiserve/base.h"

#include <time.h>

u64 clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (u64)t.tv_sec * NS_PER_S + (u64)t.tv_nsec;
}

i64 clock_unix(void)
{
    return (i64)time(NULL);
}
