/* The table of policies: a file and a row each. */
#include "route/router.h"

#include <stdio.h>
#include <string.h>

static const struct route_policy *const policies[] = {
    &policy_power_of_two, &policy_least_loaded, &policy_round_robin,
    &policy_session,      &policy_prefix_aware, &policy_random,
};

const struct route_policy *route_policy_at(u32 i)
{
    return i < COUNT_OF(policies) ? policies[i] : NULL;
}

const char *route_policy_name(const struct route_policy *p)
{
    return p->name;
}

const char *route_policy_help(const struct route_policy *p)
{
    return p->help;
}

bool route_policy_wants_prefix(const struct route_policy *p)
{
    return p->prefix_add != NULL;
}

const struct route_policy *route_policy_find(const char *name, struct error *err)
{
    char known[256] = "";
    for (size_t i = 0; i < COUNT_OF(policies); i++) {
        if (strcmp(policies[i]->name, name) == 0) return policies[i];
        size_t at = strlen(known);
        snprintf(known + at, sizeof known - at, "%s%s", at ? ", " : "", policies[i]->name);
    }
    error_set(err, ERR_NOT_FOUND, name, "is no routing policy; there are: %s", known);
    return NULL;
}
