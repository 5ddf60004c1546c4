/* Sets of CPU numbers: operations, the kernel's text form, masks of threads. */
#include "mpiserve/topo.h"

#include <ctype.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

void cpuset_add(struct cpuset *s, u32 cpu)
{
    if (cpu < CPUSET_BITS) s->bits[cpu / 64] |= 1ull << cpu % 64;
}

bool cpuset_has(const struct cpuset *s, u32 cpu)
{
    return cpu < CPUSET_BITS && (s->bits[cpu / 64] >> cpu % 64 & 1);
}

u32 cpuset_count(const struct cpuset *s)
{
    u32 n = 0;
    for (u32 i = 0; i < CPUSET_WORDS; i++) n += (u32)__builtin_popcountll(s->bits[i]);
    return n;
}

bool cpuset_empty(const struct cpuset *s)
{
    return cpuset_next(s, -1) < 0;
}

bool cpuset_equal(const struct cpuset *a, const struct cpuset *b)
{
    return !memcmp(a, b, sizeof *a);
}

bool cpuset_meets(const struct cpuset *a, const struct cpuset *b)
{
    for (u32 i = 0; i < CPUSET_WORDS; i++)
        if (a->bits[i] & b->bits[i]) return true;
    return false;
}

void cpuset_and(struct cpuset *s, const struct cpuset *other)
{
    for (u32 i = 0; i < CPUSET_WORDS; i++) s->bits[i] &= other->bits[i];
}

void cpuset_or(struct cpuset *s, const struct cpuset *other)
{
    for (u32 i = 0; i < CPUSET_WORDS; i++) s->bits[i] |= other->bits[i];
}

void cpuset_minus(struct cpuset *s, const struct cpuset *other)
{
    for (u32 i = 0; i < CPUSET_WORDS; i++) s->bits[i] &= ~other->bits[i];
}

i32 cpuset_next(const struct cpuset *s, i32 after)
{
    u32 from = (u32)(after + 1);
    for (u32 i = from / 64; i < CPUSET_WORDS; i++) {
        u64 word = s->bits[i];
        if (i == from / 64) word &= ~0ull << from % 64;
        if (word) return (i32)(i * 64 + (u32)__builtin_ctzll(word));
    }
    return -1;
}

/* ---- text ----------------------------------------------------------------------------------------------------*/
const char *cpuset_print(const struct cpuset *s, char *out, size_t size)
{
    size_t len = 0;
    if (size) out[0] = 0;
    for (i32 cpu = cpuset_next(s, -1); cpu >= 0;) {
        i32 last = cpu;
        while (cpuset_has(s, (u32)last + 1)) last++;
        const char *comma = len ? "," : "";
        int n = last > cpu ? snprintf(out + len, size - len, "%s%d-%d", comma, cpu, last)
                           : snprintf(out + len, size - len, "%s%d", comma, cpu);
        if (n < 0 || (size_t)n >= size - len) break;
        len += (size_t)n;
        cpu = cpuset_next(s, last);
    }
    return out;
}

/* A decimal number; -1 when there is none or it is too large. */
static i32 take_number(const char **at)
{
    if (!isdigit((unsigned char)**at)) return -1;
    u32 value = 0;
    for (; isdigit((unsigned char)**at); (*at)++)
        if (value < CPUSET_BITS) value = value * 10 + (u32)(**at - '0');
    return value < CPUSET_BITS ? (i32)value : -1;
}

int cpuset_parse(struct cpuset *s, const char *text, struct error *err)
{
    *s = (struct cpuset){0};
    const char *at = text;
    while (isspace((unsigned char)*at)) at++;
    while (*at) {
        const char *start = at;
        i32 first = take_number(&at), last = first;
        if (*at == '-') {
            at++;
            last = take_number(&at);
        }
        if (first < 0 || last < first)
            return error_set(err, ERR_INPUT, "",
                             "list of CPUs '%.80s': byte %td is not a CPU number below %d or a range", text,
                             start - text, CPUSET_BITS);
        for (i32 cpu = first; cpu <= last; cpu++) cpuset_add(s, (u32)cpu);
        while (isspace((unsigned char)*at)) at++;
        if (*at == ',' && at[1])
            at++;
        else if (*at)
            return error_set(err, ERR_INPUT, "", "list of CPUs '%.80s': byte %td is not a comma", text,
                             at - text);
        while (isspace((unsigned char)*at)) at++;
    }
    return 0;
}

/* ---- masks ---------------------------------------------------------------------------------------------------*/
int cpuset_of_self(struct cpuset *s, struct error *err)
{
    *s = (struct cpuset){0};
    size_t size = CPU_ALLOC_SIZE(8 * CPUSET_BITS); /* the kernel refuses a mask smaller than its own */
    cpu_set_t *mask = CPU_ALLOC(8 * CPUSET_BITS);
    int rc = 0;
    if (!mask) return error_set(err, ERR_MEMORY, "", "no memory for a CPU mask");
    if (sched_getaffinity(0, size, mask)) rc = error_errno(err, "", "own CPU mask");
    for (u32 cpu = 0; !rc && cpu < CPUSET_BITS; cpu++)
        if (CPU_ISSET_S(cpu, size, mask)) cpuset_add(s, cpu);
    CPU_FREE(mask);
    return rc;
}

int cpuset_bind_self(const struct cpuset *s, struct error *err)
{
    cpu_set_t mask;
    CPU_ZERO(&mask);
    for (i32 cpu = cpuset_next(s, -1); cpu >= 0; cpu = cpuset_next(s, cpu)) CPU_SET((size_t)cpu, &mask);
    char text[128];
    if (!cpuset_empty(s) && sched_setaffinity(0, sizeof mask, &mask))
        return error_errno(err, "", "binding to CPUs %s", cpuset_print(s, text, sizeof text));
    return 0;
}
