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

bool name_same(const char *a, const char *b)
{
    while (*a && plain(*a) == plain(*b)) a++, b++;
    return plain(*a) == plain(*b);
}

/* One of the spellings in a row's `also`; *p moves on. Its length, 0 at the end. */
static size_t next_spelling(const char **p, char *out, size_t size)
{
    size_t n = strcspn(*p, " ");
    snprintf(out, size, "%.*s", (int)n, *p);
    *p += n + ((*p)[n] == ' ');
    return n;
}

static bool is_called(const char *name, const char *known, const char *also)
{
    char spelling[NAME_LONGEST];
    if (name_same(name, known)) return true;
    for (const char *p = also; next_spelling(&p, spelling, sizeof(spelling));)
        if (spelling[0] != '-' && name_same(name, spelling)) return true;
    return false;
}

const struct option *option_find(const char *name)
{
    for (size_t i = 0; i < option_count; i++)
        if (is_called(name, option_table[i].name, option_table[i].also)) return &option_table[i];
    return NULL;
}

const struct foreign *foreign_find(const char *name)
{
    for (size_t i = 0; i < foreign_count; i++)
        if (is_called(name, foreign_table[i].name, foreign_table[i].also)) return &foreign_table[i];
    return NULL;
}

bool name_matches(const char *typed, size_t len, const char *name, const char *also)
{
    bool is_long = len > 2 && typed[0] == '-' && typed[1] == '-';
    char spelling[NAME_LONGEST];
    if (is_long && name_equal(typed + 2, len - 2, name)) return true;
    for (const char *p = also; next_spelling(&p, spelling, sizeof(spelling));) {
        if (spelling[0] == '-' && strlen(spelling) == len && memcmp(spelling, typed, len) == 0) return true;
        if (spelling[0] != '-' && is_long && name_equal(typed + 2, len - 2, spelling)) return true;
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

struct nearest {
    const char *name; /* what was typed */
    size_t len;
    unsigned distance;
    const char *best;
};

static void consider(struct nearest *n, const char *spelling, const char *means)
{
    unsigned d = distance(n->name, n->len, spelling);
    /* Half a name is a better hint than its distance: --max-seqs, --batched-tokens. */
    if (n->len >= 4 && strlen(spelling) > n->len && strncmp(spelling, n->name, n->len) == 0)
        d = MIN_OF(d, 1u);
    if (d >= n->distance) return;
    n->distance = d;
    n->best = means;
}

const char *name_nearest_of(const char *name, size_t len, unsigned without, const char *const *more,
                            size_t n_more)
{
    if (len == 0 || len > NAME_LONGEST) return NULL;
    struct nearest n = {name, len, 1 + (unsigned)(len / 3 > 2 ? len / 3 : 2), NULL};
    char spelling[NAME_LONGEST];
    for (size_t i = 0; i < option_count; i++) {
        const struct option *o = &option_table[i];
        if (o->flags & without) continue;
        consider(&n, o->name, o->name);
        for (const char *p = o->also; next_spelling(&p, spelling, sizeof(spelling));)
            if (spelling[0] != '-') consider(&n, spelling, o->name);
    }
    for (size_t i = 0; i < n_more; i++) consider(&n, more[i], more[i]);
    return n.best;
}

const char *name_nearest(const char *name, size_t len)
{
    return name_nearest_of(name, len, 0, NULL, 0);
}

const char *name_of_environment(const struct option *o, char *out, size_t size)
{
    size_t len = (size_t)snprintf(out, size, "MPISERVE_%s", o->name);
    BUG_ON(len >= size);
    for (size_t i = 0; i < len; i++) out[i] = out[i] == '-' ? '_' : (char)toupper((unsigned char)out[i]);
    return out;
}

const char *underscores(const char *name, char *out, size_t size)
{
    snprintf(out, size, "%s", name);
    for (char *p = out; *p; p++)
        if (*p == '-') *p = '_';
    return out;
}
