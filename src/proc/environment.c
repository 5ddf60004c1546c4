/* What of the agent's environment an engine sees. */
#include "mpiserve/proc.h"

#include <string.h>

/* An engine that found the launcher's variables could take itself for a rank; MPISERVE_ holds keys. */
static const char *const stripped[] = {"OMPI_", "PMIX_", "PMI_", "PRTE_", "ORTE_", "SLURM", "MPISERVE_"};

static bool is_stripped(const char *variable)
{
    for (size_t i = 0; i < COUNT_OF(stripped); i++)
        if (strncmp(variable, stripped[i], strlen(stripped[i])) == 0) return true;
    return false;
}

char **proc_environment(char *const *env, const char *fault)
{
    static const char name[] = "MPISERVE_FAULT=";
    size_t n = 0, fault_bytes = fault ? sizeof(name) + strlen(fault) : 0;
    while (env[n]) n++;
    char **out = mem_alloc((n + 2) * sizeof(*out) + fault_bytes), **to = out;
    for (size_t i = 0; i < n; i++)
        if (!is_stripped(env[i])) *to++ = env[i];
    if (fault) {
        char *text = (char *)(out + n + 2);
        memcpy(text, name, sizeof(name) - 1);
        strcpy(text + sizeof(name) - 1, fault);
        *to++ = text;
    }
    *to = NULL;
    return out;
}
