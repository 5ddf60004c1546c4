/* fields: reading a JSON object's members with types and ranges. Inside the model room.
 *
 * The first complaint is kept (rc, *err), later ones are dropped: read everything, then look at rc once. Null
 * is the same as absent unless a function says otherwise. */
#ifndef MPISERVE_MODEL_FIELDS_H
#define MPISERVE_MODEL_FIELDS_H

#include "mpiserve/base.h"
#include "mpiserve/json.h"

struct fields {
    const char *path; /* of the file, for messages */
    const struct json *object;
    struct error *err;
    int rc; /* 0, or the code of the first complaint */
};
/* Complains unless something was complained of before; returns rc. */
int fields_fail(struct fields *f, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);
bool fields_has(const struct fields *f, const char *key); /* present and not null */
/* Values outside [lo, hi] or of another type are complaints, and otherwise is answered. */
i64 fields_int(struct fields *f, const char *key, i64 lo, i64 hi, i64 otherwise);
i64 fields_need_int(struct fields *f, const char *key, i64 lo, i64 hi); /* absent is a complaint too */
double fields_real(struct fields *f, const char *key, double lo, double hi, double otherwise);
double fields_need_real(struct fields *f, const char *key, double lo, double hi);
bool fields_bool(struct fields *f, const char *key, bool otherwise);
const char *fields_text(struct fields *f, const char *key, const char *otherwise);
/* A token id, a list of them, or null: at most max ids in [0, vocab) go to out; returns how many. */
u32 fields_ids(struct fields *f, const char *key, i64 vocab, i32 *out, u32 max);

enum { SHOWN_LEN = 80 };
/* Text from a file as a message may show it: cut to fit, control characters replaced; returns out. */
const char *shown(const char *text, char out[SHOWN_LEN]);

#endif
