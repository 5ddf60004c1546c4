/* Inside of config/: the option table and its parts. */
#ifndef CONFIG_OPTIONS_H
#define CONFIG_OPTIONS_H

#include "mpiserve/config.h"

enum option_kind {
    OPTION_TEXT,    /* char[] in struct config */
    OPTION_CHOICE,  /* char[]; one of words */
    OPTION_SWITCH,  /* bool; words are "<false> <true>" */
    OPTION_FLAG,    /* bool; false or true; the name alone on the command line is true */
    OPTION_INT,     /* i64 */
    OPTION_SIZE,    /* i64; k m g t = powers of 1000, K M G T = powers of 1024 */
    OPTION_SECONDS, /* double; low and high are milliseconds */
    OPTION_SHARE,   /* double; low and high are thousandths */
    OPTION_NAMES,   /* served_model_name and n_served_model_names */
    OPTION_KEY,     /* api_key and api_key_none */
    OPTION_MODULES, /* lora_modules and n_lora_modules: NAME=FOLDER */
};
enum option_group {
    GROUP_MODEL,
    GROUP_PARALLEL,
    GROUP_SCHEDULER,
    GROUP_LIMITS,
    GROUP_HTTP,
    GROUP_OPERATION,
    GROUP_UP,
    GROUP_PLAN,
    GROUP_COUNT
};
enum option_flags {
    OPTION_LOCAL = 1,    /* may differ between ranks: not compared (a model is, by its fingerprint) */
    OPTION_UP = 2,       /* for `mpiserve up` or plan only: not passed on to the ranks */
    OPTION_POWER2 = 4,   /* an INT that must be a power of two */
    OPTION_PATH = 8,     /* a TEXT that is a path: relative to a job file when it comes from one */
    OPTION_NAMED = 16,   /* a PATH that is looked up in PATH when it has no slash */
    OPTION_NO_FILE = 32, /* not possible in a job file */
    OPTION_PLAN = 64,    /* for `mpiserve plan` alone, on the command line; an error elsewhere */
};

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
    const char *same;     /* CHOICE: other spellings of words, "float32=f32 ..." */
    const char *sample;   /* for the example of a job file, where there is no default */
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
    const char *fine; /* refused: but not with one of these words, which say what happens anyway */
    const char *says;
};
extern const struct foreign foreign_table[];
extern const size_t foreign_count;

/* One argument of the command line, read but not yet judged. */
struct argument {
    const struct option *option;   /* or */
    const struct foreign *foreign; /* or both NULL: a positional argument (its text is values[0]), or help */
    bool help;
    bool negated;      /* --no-NAME of a flag */
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
/* Are two names the same when dashes, underscores and case do not count? */
bool name_same(const char *a, const char *b);
/* The option whose name (or one of its long spellings) is nearest, or NULL when none is near; the same but
 * for the options with one of the flags `without`, and with n more names that are possible. */
const char *name_nearest(const char *name, size_t len);
const char *name_nearest_of(const char *name, size_t len, unsigned without, const char *const *more,
                            size_t n);
/* By a long name without dashes in front; NULL: there is none. */
const struct option *option_find(const char *name);
const struct foreign *foreign_find(const char *name);
const char *name_of_environment(const struct option *o, char *out, size_t size); /* MPISERVE_NAME */

/* Sets one value. where: what the user typed or set, for errors. */
int value_set(struct config *c, const struct option *o, const char *text, enum config_source from,
              const char *where, struct error *err);
/* Notes where the value of o came from. */
void value_came(struct config *c, const struct option *o, enum config_source from, int line, int column);
/* Is the text one of the words, which stand between blanks? *index: which. */
bool value_word_in(const char *words, const char *text, int *index);
int value_add_name(struct config *c, const char *text, const char *where, struct error *err);
int value_add_module(struct config *c, const char *name, const char *path, const char *where,
                     struct error *err);
/* One NAME=FOLDER, or {"name": ..., "path": ...}. */
int value_add_module_text(struct config *c, const char *text, const char *where, struct error *err);
/* "0..65535", "auto or 1..1024", "f32|bf16", as shown in errors and --help; returns out. */
const char *value_range(const struct option *o, char *out, size_t size);

/* A foreign option was given: a note, or the error. value: NULL for a flag, "" for something without a text. */
int foreign_use(struct config *c, const struct foreign *f, bool negated, const char *value, const char *where,
                struct error *err);

/* Is this argument a job file rather than a model? */
bool file_is_job(const char *name);
/* Reads c->config_file into c. */
int file_load(struct config *c, struct error *err);
/* Maps of a job file that hold options, as in Ray Serve. */
struct section {
    const char *name;
    bool list;                /* of maps */
    unsigned groups;          /* whose options may stand there: a bit for each */
    const char *also;         /* one more option that may */
    const char *key, *key_is; /* a name that only this map knows, and the option that it means */
    const char *help;
    const char
        *prefix; /* of the options that stand there, without it; this map may stand in others; or NULL */
};
extern const struct section section_table[];
extern const size_t section_count;
bool section_holds(const struct section *s, const struct option *o);
/* May the map `inner` stand in `outer` (NULL: at the top)? */
bool section_stands(const struct section *inner, const struct section *outer);

/* The name as it stands in files: max_num_seqs. */
const char *underscores(const char *name, char *out, size_t size);
/* The JSON Schema of job files. */
void schema_write(struct buf *to);
/* The value as one would type it, cut at size; for CHOICE, SWITCH, FLAG, numbers and TEXT. Returns out. */
const char *value_print(const struct config *c, const struct option *o, char *out, size_t size);

/* Rules between options. */
int config_check(struct config *c, struct error *err);
/* Fills in what depends on other things: the demo model, the served name. */
int config_complete(struct config *c, struct error *err);

#endif
