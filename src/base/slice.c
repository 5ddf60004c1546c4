#include "mpiserve/base.h"

#include <linux/sched.h>
#include <linux/sched/types.h>
#include <sys/syscall.h>
#include <unistd.h>

u64 thread_slice(u64 ns)
{
    struct sched_attr a = {0};
    if (syscall(SYS_sched_getattr, 0, &a, sizeof(a), 0) < 0 || a.sched_policy != SCHED_NORMAL) return 0;
    a.size = SCHED_ATTR_SIZE_VER0;
    a.sched_runtime = ns;
    if (syscall(SYS_sched_setattr, 0, &a, 0) < 0 || syscall(SYS_sched_getattr, 0, &a, sizeof(a), 0) < 0)
        return 0;
    return a.sched_runtime;
}
