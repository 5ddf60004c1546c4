/* Which instruction sets this machine and build offer. The compiler's detection includes the operating system's part
 * (register state that it saves). */
#include "ops/cpu/tables.h"

#ifdef __x86_64__
#include <cpuid.h>
#endif
#include <string.h>

struct level {
    const char *name;
    const struct ops *(*table)(void); /* NULL: not offered here */
};

static const struct ops *portable(void)
{
    return &ops_portable;
}

#ifdef __x86_64__
/* Conversions of f16; compilers' detection does not know it everywhere. */
static bool has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
static const struct ops *avx2(void)
{
    bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    return has ? &ops_avx2 : NULL;
}
static const struct ops *avx512(void)
{
    bool has = avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return has ? &ops_avx512 : NULL;
}
static const struct ops *avx512bf16(void)
{
    return avx512() && __builtin_cpu_supports("avx512bf16") ? &ops_avx512bf16 : NULL;
}
#else
static const struct ops *none(void)
{
    return NULL;
}
#define avx2       none
#define avx512     none
#define avx512bf16 none
#endif

static const struct level levels[] = {
    {"portable", portable}, {"avx2", avx2}, {"avx512", avx512}, {"avx512bf16", avx512bf16}};

int ops_isa_level(const char *isa)
{
    for (size_t i = 0; i < COUNT_OF(levels); i++)
        if (!strcmp(levels[i].name, isa)) return (int)i;
    return -1;
}

const char *ops_isa_name(int level)
{
    return level >= 0 && (size_t)level < COUNT_OF(levels) ? levels[level].name : NULL;
}

const struct ops *ops_cpu(const char *isa)
{
    int level = ops_isa_level(isa);
    return level < 0 ? NULL : levels[level].table();
}

const char *ops_cpu_best(void)
{
    int level = COUNT_OF(levels) - 1;
    while (!levels[level].table()) level--;
    return levels[level].name;
}
