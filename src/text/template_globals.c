/* Functions that every template has. */
#include "text/template.h"

#include <string.h>
#include <time.h>

#define GLOBAL(name)                                                                                         \
    static struct value name(struct render *r, struct value in, const struct call *call,                     \
                             const struct value *arg)
#define UNUSED (void)r, (void)in, (void)call, (void)arg

GLOBAL(raise_exception)
{
    UNUSED;
    struct value v = to_text(r, arg[0]);
    r->refused = true;
    raise_error(r, "%.*s", (int)MIN_OF(v.len, 700u), v.text);
}

GLOBAL(strftime_now)
{
    UNUSED;
    struct writer w = {0};
    char format[512], out[2048];
    struct tm now;
    time_t t = (time_t)r->now;
    if (arg[0].kind != V_TEXT)
        raise_error(r, "strftime_now: the format must be a string, not %s", type_name(arg[0]));
    if (arg[0].len + 2 > sizeof(format) || memchr(arg[0].text, 0, arg[0].len))
        raise_unsupported(r, "strftime_now with such a format");
    memcpy(format, arg[0].text, arg[0].len);
    memcpy(format + arg[0].len, ".", 2); /* so that an empty result differs from none */
    localtime_r(&t, &now);
    size_t len = strftime(out, sizeof(out), format, &now);
    if (len == 0) raise_unsupported(r, "strftime_now with such a format");
    write_text(r, &w, out, len - 1, arg[0].origin == FROM_TEMPLATE ? FROM_TEMPLATE : FROM_CONTENT);
    return written(r, &w);
}

GLOBAL(range)
{
    UNUSED;
    enum { RANGE_MAX = 100000 }; /* Jinja's sandbox has the same limit */
    struct range *v = render_alloc(r, sizeof(*v));
    i64 n[3] = {0, 0, 1};
    for (u32 i = 0; i < call->n && i < 3; i++) {
        if (!as_int(call->items[i], &n[i]))
            raise_error(r, "'%s' object cannot be interpreted as an integer", type_name(call->items[i]));
    }
    if (call->n < 1 || call->n > 3 || call->n_named) raise_error(r, "range expected 1 to 3 arguments");
    *v = (struct range){.start = call->n == 1 ? 0 : n[0], .stop = call->n == 1 ? n[0] : n[1], .step = n[2]};
    if (v->step == 0) raise_error(r, "range() arg 3 must not be zero");
    __int128 span = v->step > 0 ? (__int128)v->stop - v->start : (__int128)v->start - v->stop;
    __int128 step = v->step > 0 ? v->step : -(__int128)v->step;
    span = span > 0 ? (span + step - 1) / step : 0;
    if (span > RANGE_MAX)
        raise_error(r, "Range too big. The sandbox blocks ranges larger than MAX_RANGE (%d).", RANGE_MAX);
    v->n = (i64)span;
    return (struct value){.kind = V_RANGE, .range = v};
}

/* dict(mapping or pairs, key=value ...) */
static struct dict *new_dict(struct render *r, const struct call *call)
{
    struct dict *d = dict_new(r);
    if (call->n > 1) raise_error(r, "dict expected at most 1 argument, got %u", call->n);
    if (call->n && call->items[0].kind == V_DICT) {
        const struct dict *from = call->items[0].dict;
        for (u32 i = 0; i < from->n; i++) dict_set(r, d, from->pairs[i].key, from->pairs[i].value);
    } else if (call->n) {
        const struct list *pairs = walk(r, call->items[0]);
        for (u32 i = 0; i < pairs->n; i++) {
            const struct list *pair = walk(r, pairs->items[i]);
            if (pair->n != 2)
                raise_error(r, "dictionary update sequence element #%u has length %u; 2 is required", i,
                            pair->n);
            dict_set(r, d, pair->items[0], pair->items[1]);
        }
    }
    for (u32 i = 0; i < call->n_named; i++) dict_set(r, d, v_text(call->named[i].name), call->named[i].value);
    return d;
}

GLOBAL(dict)
{
    UNUSED;
    return (struct value){.kind = V_DICT, .dict = new_dict(r, call)};
}

GLOBAL(namespace)
{
    UNUSED;
    struct dict *d = new_dict(r, call);
    for (u32 i = 0; i < d->n; i++) {
        if (d->pairs[i].key.kind == V_TEXT && d->pairs[i].key.len && d->pairs[i].key.text[0] == '_')
            raise_error(r, "a namespace cannot hold the underscore name '%s'", d->pairs[i].key.text);
    }
    return (struct value){.kind = V_NAMESPACE, .dict = d};
}

GLOBAL(cycler)
{
    UNUSED;
    struct helper *h = render_alloc(r, sizeof(*h));
    if (call->n == 0) raise_error(r, "at least one item has to be provided");
    h->items = list_new(r, call->n);
    for (u32 i = 0; i < call->n; i++) list_add(r, h->items, call->items[i]);
    return (struct value){.kind = V_CYCLER, .helper = h};
}

GLOBAL(joiner)
{
    UNUSED;
    struct helper *h = render_alloc(r, sizeof(*h));
    h->by = arg[0].kind == V_ABSENT ? v_text(", ") : arg[0];
    return (struct value){.kind = V_JOINER, .helper = h};
}

static const struct function globals[] = {
    {"cycler", cycler, "*", 0},
    {"dict", dict, "*", 0},
    {"joiner", joiner, "sep", 0},
    {"namespace", namespace, "*", 0},
    {"raise_exception", raise_exception, "message", 1},
    {"range", range, "*", 0},
    {"strftime_now", strftime_now, "format", 1},
};

const struct function *global_find(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(globals); i++) {
        if (strcmp(globals[i].name, name) == 0) return &globals[i];
    }
    return NULL;
}

bool global_is_refused(const char *name)
{
    static const char *const refused[] = {"lipsum", "self"};
    for (size_t i = 0; i < COUNT_OF(refused); i++) {
        if (strcmp(refused[i], name) == 0) return true;
    }
    return false;
}
