/* Values: making them, and what Python says of them (truth, equality, order, length, iteration). */
#include "text/template.h"
#include "text/utf8.h"

#include <stdio.h>
#include <string.h>

/* ---- making ---- */

struct value v_none(void)
{
    return (struct value){.kind = V_NONE};
}

struct value v_bool(bool b)
{
    return (struct value){.kind = V_BOOL, .b = b};
}

struct value v_int(i64 i)
{
    return (struct value){.kind = V_INT, .i = i};
}

struct value v_real(double d)
{
    return (struct value){.kind = V_REAL, .d = d};
}

struct value v_text(const char *s)
{
    return (struct value){.kind = V_TEXT, .text = s, .len = (u32)strlen(s)};
}

struct value v_list(enum value_kind kind, struct list *list)
{
    return (struct value){.kind = (u8)kind, .list = list};
}

struct value undefined(struct render *r, const char *fmt, ...)
{
    char why[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(why, sizeof(why), fmt, args);
    va_end(args);
    size_t len = strlen(why);
    char *copy = render_alloc(r, len + 1);
    memcpy(copy, why, len);
    return (struct value){.kind = V_UNDEFINED, .text = copy};
}

struct list *list_new(struct render *r, u32 cap)
{
    struct list *l = render_alloc(r, sizeof(*l));
    l->cap = cap;
    if (cap) l->items = render_alloc(r, cap * sizeof(*l->items));
    return l;
}

void list_add(struct render *r, struct list *l, struct value v)
{
    if (l->n == l->cap) {
        u32 cap = l->cap ? l->cap * 2 : 8;
        struct value *more = render_alloc(r, cap * sizeof(*more));
        if (l->n) memcpy(more, l->items, l->n * sizeof(*more));
        l->items = more;
        l->cap = cap;
    }
    l->items[l->n++] = v;
}

struct dict *dict_new(struct render *r)
{
    return render_alloc(r, sizeof(struct dict));
}

bool is_hashable(struct render *r, struct value v)
{
    bool all = v.kind <= V_TUPLE && v.kind != V_LIST;
    if (v.kind != V_TUPLE) return all || v.kind == V_RANGE;
    go_deeper(r);
    for (u32 i = 0; all && i < v.list->n; i++) all = is_hashable(r, v.list->items[i]);
    r->depth--;
    return all;
}

const struct value *dict_get(struct render *r, const struct dict *d, struct value key)
{
    spend(r, 1 + d->n / 8);
    for (u32 i = 0; i < d->n; i++) {
        if (equal(r, d->pairs[i].key, key)) return &d->pairs[i].value;
    }
    return NULL;
}

const struct value *dict_get_name(struct render *r, const struct dict *d, const char *name, size_t len)
{
    spend(r, 1 + d->n / 8);
    for (u32 i = 0; i < d->n; i++) {
        const struct value *key = &d->pairs[i].key;
        if (key->kind == V_TEXT && key->len == len && memcmp(key->text, name, len) == 0)
            return &d->pairs[i].value;
    }
    return NULL;
}

void dict_set(struct render *r, struct dict *d, struct value key, struct value v)
{
    if (!is_hashable(r, key)) raise_error(r, "unhashable type: '%s'", type_name(key));
    struct value *known = (struct value *)dict_get(r, d, key);
    if (known) {
        *known = v;
        return;
    }
    if (d->n == d->cap) {
        u32 cap = d->cap ? d->cap * 2 : 8;
        struct pair *more = render_alloc(r, cap * sizeof(*more));
        if (d->n) memcpy(more, d->pairs, d->n * sizeof(*more));
        d->pairs = more;
        d->cap = cap;
    }
    d->pairs[d->n++] = (struct pair){key, v};
}

/* ---- asking ---- */

const char *type_name(struct value v)
{
    static const char *const names[] = {
        [V_ABSENT] = "nothing",
        [V_UNDEFINED] = "Undefined",
        [V_NONE] = "NoneType",
        [V_BOOL] = "bool",
        [V_INT] = "int",
        [V_BIG] = "int",
        [V_REAL] = "float",
        [V_TEXT] = "str",
        [V_BYTES] = "bytes",
        [V_LIST] = "list",
        [V_TUPLE] = "tuple",
        [V_DICT] = "dict",
        [V_RANGE] = "range",
        [V_VIEW] = "dict view",
        [V_GENERATOR] = "generator",
        [V_NAMESPACE] = "namespace",
        [V_MACRO] = "macro",
        [V_LOOP] = "loop",
        [V_FUNCTION] = "function",
        [V_METHOD] = "method",
        [V_CYCLER] = "Cycler",
        [V_JOINER] = "Joiner",
    };
    return names[v.kind];
}

bool is_true(struct value v)
{
    switch (v.kind) {
    case V_ABSENT:
    case V_UNDEFINED:
    case V_NONE: return false;
    case V_BOOL: return v.b;
    case V_INT: return v.i != 0;
    case V_REAL: return v.d != 0;
    case V_TEXT:
    case V_BYTES: return v.len > 0;
    case V_LIST:
    case V_TUPLE:
    case V_VIEW: return v.list->n > 0;
    case V_DICT: return v.dict->n > 0;
    case V_RANGE: return v.range->n > 0;
    case V_LOOP: return v.loop->list->n > 0;
    default: return true;
    }
}

bool is_number(struct value v)
{
    return v.kind == V_BOOL || v.kind == V_INT || v.kind == V_BIG || v.kind == V_REAL;
}

bool as_int(struct value v, i64 *i)
{
    *i = v.kind == V_BOOL ? v.b : v.i;
    return v.kind == V_BOOL || v.kind == V_INT;
}

double as_real(struct value v)
{
    return v.kind == V_REAL ? v.d : v.kind == V_BOOL ? v.b : (double)v.i;
}

bool is_text(struct value v, const char *s)
{
    return v.kind == V_TEXT && v.len == strlen(s) && memcmp(v.text, s, v.len) == 0;
}

/* -1, 0, 1; 2 when one is NaN. An i64 fits a long double here and on aarch64. */
static int compare_numbers(struct render *r, struct value a, struct value b)
{
    i64 i, k;
    if (as_int(a, &i) && as_int(b, &k)) return i < k ? -1 : i > k;
    if (a.kind == V_BIG || b.kind == V_BIG) return big_order(r, a, b);
    long double x = a.kind == V_REAL ? (long double)a.d : (long double)(a.kind == V_BOOL ? a.b : a.i);
    long double y = b.kind == V_REAL ? (long double)b.d : (long double)(b.kind == V_BOOL ? b.b : b.i);
    return x < y ? -1 : x > y ? 1 : x == y ? 0 : 2;
}

static bool equal_lists(struct render *r, const struct list *a, const struct list *b)
{
    bool same = a->n == b->n;
    go_deeper(r);
    for (u32 i = 0; same && i < a->n; i++) same = equal(r, a->items[i], b->items[i]);
    r->depth--;
    return same;
}

static bool equal_dicts(struct render *r, const struct dict *a, const struct dict *b)
{
    bool same = a->n == b->n;
    go_deeper(r);
    for (u32 i = 0; same && i < a->n; i++) {
        const struct value *other = dict_get(r, b, a->pairs[i].key);
        same = other && equal(r, a->pairs[i].value, *other);
    }
    r->depth--;
    return same;
}

bool equal(struct render *r, struct value a, struct value b)
{
    if (is_number(a) && is_number(b)) return compare_numbers(r, a, b) == 0;
    if (a.kind != b.kind) return false;
    switch (a.kind) {
    case V_UNDEFINED:
    case V_NONE: return true;
    case V_TEXT:
    case V_BYTES: return a.len == b.len && memcmp(a.text, b.text, a.len) == 0;
    case V_LIST:
    case V_TUPLE: spend(r, a.list->n); return equal_lists(r, a.list, b.list);
    case V_DICT: return equal_dicts(r, a.dict, b.dict);
    case V_RANGE:
        return a.range->n == b.range->n && (a.range->n == 0 || a.range->start == b.range->start) &&
               (a.range->n < 2 || a.range->step == b.range->step);
    default: return a.list == b.list;
    }
}

/* UTF-8 keeps the order of code points. */
static int order_texts(struct value a, struct value b)
{
    int c = memcmp(a.text, b.text, MIN_OF(a.len, b.len));
    return c < 0 ? -1 : c > 0 ? 1 : a.len < b.len ? -1 : a.len > b.len;
}

static int order_lists(struct render *r, const struct list *a, const struct list *b, const char *op)
{
    go_deeper(r);
    int c = a->n < b->n ? -1 : a->n > b->n;
    for (u32 i = 0; i < a->n && i < b->n; i++) {
        spend(r, 1);
        if (equal(r, a->items[i], b->items[i])) continue;
        c = order(r, a->items[i], b->items[i], op);
        break;
    }
    r->depth--;
    return c;
}

int order(struct render *r, struct value a, struct value b, const char *op)
{
    if (is_number(a) && is_number(b)) return compare_numbers(r, a, b);
    if (a.kind == V_UNDEFINED || b.kind == V_UNDEFINED)
        raise_error(r, "%s", a.kind == V_UNDEFINED ? a.text : b.text);
    if (a.kind == V_TEXT && b.kind == V_TEXT) return order_texts(a, b);
    if (a.kind == b.kind && (a.kind == V_LIST || a.kind == V_TUPLE))
        return order_lists(r, a.list, b.list, op);
    raise_error(r, "'%s' not supported between instances of '%s' and '%s'", op, type_name(a), type_name(b));
}

bool contains(struct render *r, struct value in, struct value v)
{
    if (in.kind == V_TEXT) {
        if (v.kind != V_TEXT)
            raise_error(r, "'in <string>' requires string as left operand, not %s", type_name(v));
        spend(r, in.len / 64);
        return find_text(in, 0, v) != NULL;
    }
    if (in.kind == V_DICT || in.kind == V_NAMESPACE) {
        if (in.kind == V_NAMESPACE) raise_error(r, "argument of type 'namespace' is not iterable");
        if (!is_hashable(r, v)) raise_error(r, "unhashable type: '%s'", type_name(v));
        return dict_get(r, in.dict, v) != NULL;
    }
    if (in.kind < V_TEXT && in.kind != V_UNDEFINED)
        raise_error(r, "argument of type '%s' is not iterable", type_name(in));
    const struct list *items = walk(r, in);
    for (u32 i = 0; i < items->n; i++) {
        spend(r, 1);
        if (equal(r, items->items[i], v)) return true;
    }
    return false;
}

static struct list *walk_text(struct render *r, struct value v)
{
    struct list *l = list_new(r, v.len);
    v.safe = false; /* iterating over a safe text gives plain ones */
    for (size_t at = 0; at < v.len;) {
        int n;
        utf8_at(v.text + at, &n);
        list_add(r, l, part(v, at, (size_t)n));
        at += (size_t)n;
    }
    return l;
}

const struct list *walk(struct render *r, struct value v)
{
    static const struct list empty;
    struct list *l;
    switch (v.kind) {
    case V_UNDEFINED: return &empty;
    case V_TEXT: return walk_text(r, v);
    case V_LIST:
    case V_TUPLE:
    case V_VIEW: return v.list;
    case V_GENERATOR:
        if (v.list->walked) return &empty;
        v.list->walked = true;
        return v.list;
    case V_DICT:
        l = list_new(r, v.dict->n);
        for (u32 i = 0; i < v.dict->n; i++) list_add(r, l, v.dict->pairs[i].key);
        return l;
    case V_RANGE:
        l = list_new(r, (u32)v.range->n);
        for (i64 i = 0; i < v.range->n; i++) list_add(r, l, v_int(v.range->start + i * v.range->step));
        return l;
    case V_LOOP: raise_unsupported(r, "iterating over a loop object");
    default: raise_error(r, "'%s' object is not iterable", type_name(v));
    }
}

i64 length(struct render *r, struct value v)
{
    switch (v.kind) {
    case V_UNDEFINED: return 0;
    case V_TEXT: return count_chars(v);
    case V_LIST:
    case V_TUPLE:
    case V_VIEW: return v.list->n;
    case V_DICT: return v.dict->n;
    case V_RANGE: return v.range->n;
    case V_LOOP: return v.loop->list->n;
    default: raise_error(r, "object of type '%s' has no len()", type_name(v));
    }
}
