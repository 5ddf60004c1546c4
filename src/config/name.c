/* Names of options: equal spellings, and the nearest one to a name that does not exist. */
#include "config/options.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

enum { NAME_LONGEST = 64 };

static char plain(char c)
{
    return c == '_' ? '-' : (char)tolower((unsigned char)c);
}

bool name_equal(const char *name, size_t len, const char *other)
{
    if (strlen(other) != len) return false;
    for (size_t i = 0; i < len; i++)
        if (name[i] != other[i] && plain(name[i]) != other[i]) return false;
    return true;
}

bool name_matches(const char *typed, size_t len, const char *name, const char *also)
{
    bool is_long = len > 2 && typed[0] == '-' && typed[1] == '-';
    if (is_long && name_equal(typed + 2, len - 2, name)) return true;
    for (const char *p = also; *p;) {
        size_t n = strcspn(p, " ");
        if (*p == '-' && n == len && memcmp(p, typed, n) == 0) return true;
        char spelling[NAME_LONGEST];
        snprintf(spelling, sizeof(spelling), "%.*s", (int)n, p);
        if (*p != '-' && is_long && name_equal(typed + 2, len - 2, spelling)) return true;
        p += n + (p[n] == ' ');
    }
    return false;
}

/* Levenshtein distance by rows; both at most NAME_LONGEST. */
static unsigned distance(const char *a, size_t n, const char *b)
{
    size_t m = strlen(b);
    unsigned row[NAME_LONGEST + 1];
    for (size_t j = 0; j <= m; j++) row[j] = (unsigned)j;
    for (size_t i = 1; i <= n; i++) {
        unsigned diagonal = row[0];
        row[0] = (unsigned)i;
        for (size_t j = 1; j <= m; j++) {
            unsigned replace = diagonal + (plain(a[i - 1]) != b[j - 1]);
            diagonal = row[j];
            row[j] = MIN_OF(replace, MIN_OF(row[j], row[j - 1]) + 1);
        }
    }
    return row[m];
}

const char *name_nearest(const char *name, size_t len)
{
    if (len == 0 || len > NAME_LONGEST) return NULL;
    const char *best = NULL;
    unsigned nearest = 1 + (unsigned)(len / 3 > 2 ? len / 3 : 2);
    for (size_t i = 0; i < option_count; i++) {
        const char *known = option_table[i].name;
        unsigned d = distance(name, len, known);
        /* Half a name is a better hint than its distance: --max-seqs, --batched-tokens. */
        if (len >= 4 && strlen(known) > len && strncmp(known, name, len) == 0) d = MIN_OF(d, 1u);
        if (d < nearest) {
            nearest = d;
            best = known;
        }
    }
    return best;
}

const char *name_of_environment(const struct option *o, char *out, size_t size)
{
    size_t len = (size_t)snprintf(out, size, "MPISERVE_%s", o->name);
    BUG_ON(len >= size);
    for (size_t i = 0; i < len; i++) out[i] = out[i] == '-' ? '_' : (char)toupper((unsigned char)out[i]);
    return out;
}
