/* Keys. */
#include "ingress/http.h"

#include <string.h>
#include <strings.h>

/* Takes as long for a wrong key as for the right one. */
static bool same(const char *key, const char *given)
{
    size_t len = strlen(key), n = strlen(given);
    volatile u8 differ = len != n;
    for (size_t i = 0; i < n; i++) differ |= (u8)(key[len ? i % len : 0] ^ given[i]);
    return !differ;
}

bool auth_ok(const char *key, const char *authorization, const char *x_api_key)
{
    static const char scheme[] = "Bearer ";
    if (!key) return true;
    if (authorization && strncasecmp(authorization, scheme, strlen(scheme)) == 0) {
        const char *given = authorization + strlen(scheme);
        while (*given == ' ') given++;
        if (same(key, given)) return true;
    }
    return x_api_key && same(key, x_api_key);
}
