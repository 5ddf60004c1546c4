/* Inside of config/: the option table and its parts. */
#ifndef CONFIG_OPTIONS_H
#define CONFIG_OPTIONS_H

#include "mpiserve/config.h"

enum option_kind {
    OPTION_TEXT,    /* char[] in struct config */
    OPTION_CHOICE,  /* char[]; one of words */
    OPTION_SWITCH,  /* bool; words are "<false> <true>" */
    OPTION_FLAG,    /* bool; off or on; the name alone on the command line is on */
    OPTION_INT,     /* i64 */
    OPTION_SIZE,    /* i64; k m g t = powers of 1000, K M G T = powers of 1024 */
    OPTION_SECONDS, /* double; low and high are milliseconds */
    OPTION_NAMES,   /* served_model_name and n_served_model_names */
    OPTION_KEY,     /* api_key and api_key_none */
};
enum option_group {
    GROUP_MODEL,
    GROUP_PARALLEL,
    GROUP_SCHEDULER,
    GROUP_LIMITS,
    GROUP_HTTP,
    GROUP_OPERATION,
    GROUP_UP,
    GROUP_COUNT
};
enum option_flags {
    OPTION_LOCAL = 1,  /* may differ between ranks: not compared (a model is, by its fingerprint) */
    OPTION_UP = 2,     /* for `mpiserve up` only: not passed on to the ranks */
    OPTION_POWER2 = 4, /* an INT that must be a power of two */
};
enum option_source { FROM_DEFAULT, FROM_ENVIRONMENT, FROM_COMMAND_LINE };

struct option {
    const char *name;
    const char *also; /* other spellings, separated by blanks; those with a dash in front are short */
    enum option_kind kind;
    enum option_group group;
    unsigned flags;
    size_t at, size; /* where in struct config */
    i64 low, high;
    const char *standard; /* the default, as one would type it; NULL: absent */
    const char *word;     /* for numbers: a word that is accepted too, and ... */
    i64 word_is;          /* ... what it stands for */
    const char *words;    /* CHOICE, SWITCH: separated by blanks */
    const char *help;
};
extern const struct option option_table[];
extern const size_t option_count;
extern const char *const option_group_names[GROUP_COUNT];

/* Options of other servers: accepted with a note where they change nothing here, else refused with a reason.
 */
struct foreign {
    const char *name, *also;
    bool takes_value, refused;
    const char *says;
};
extern const struct foreign foreign_table[];
extern const size_t foreign_count;

/* One argument of the command line, read but not yet judged. */
struct argument {
    const struct option *option;   /* or */
    const struct foreign *foreign; /* or both NULL: a positional argument (its text is values[0]), or help */
    bool help;
    char name[96];     /* as typed, without the value */
    const char *value; /* the part behind '=', or the next argument; NULL: none */
    char **values;     /* NAMES, and positional: n_values arguments */
    int n_values;
    int first, count; /* of argv */
};
/* Reads the argument at argv[*i] and moves *i on. 1, 0 at the end, or an error. */
int argument_next(struct argument *a, int argc, char **argv, int *i, struct error *err);

/* name: len bytes; dashes and underscores are the same. */
bool name_equal(const char *name, size_t len, const char *other);
/* Is name (as typed, with its dashes) one of the spellings of a row? */
bool name_matches(const char *typed, size_t len, const char *name, const char *also);
/* The option whose name is nearest, or NULL when none is near. */
const char *name_nearest(const char *name, size_t len);
const char *name_of_environment(const struct option *o, char *out, size_t size); /* MPISERVE_NAME */

/* Sets one value. where: what the user typed or set, for errors. */
int value_set(struct config *c, const struct option *o, const char *text, enum option_source from,
              const char *where, struct error *err);
int value_add_name(struct config *c, const char *text, const char *where, struct error *err);
/* "0..65535", "auto or 1..1024", "f32|bf16", as shown in errors and --help; returns out. */
const char *value_range(const struct option *o, char *out, size_t size);

/* The value as one would type it, cut at size; for CHOICE, SWITCH, FLAG, numbers and TEXT. Returns out. */
const char *value_print(const struct config *c, const struct option *o, char *out, size_t size);

/* Rules between options. */
int config_check(struct config *c, struct error *err);
/* Fills in what depends on other things: the demo model, the served name. */
int config_complete(struct config *c, struct error *err);

#endif
